// SPDX-License-Identifier: GPL-2.0-only
/*
 * The pages a VM owns: allocation in the largest blocks that fit, donation,
 * and the way back. Donated pages are never mapped into a process, and the
 * kernel's own mapping of them faults; PageOffline keeps kcore, kdump and
 * hibernation away from them.
 */
#include "porthole.h"

#include <linux/bitmap.h>
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/page-flags.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

/* Metadata that one refusal for want of it brings, if the host has it in one piece. */
#define METADATA_STEP_ORDER	3
/* Times that one call may ask for more metadata; far above what any call needs. */
#define METADATA_STEPS_MAX	64
/* Tries of a call that meets Busy, 100 us apart at least. */
#define BUSY_TRIES_MAX		2000

void porthole_memory_init(struct porthole_vm *vm)
{
	mutex_init(&vm->mem_lock);
	INIT_LIST_HEAD(&vm->memory.blocks);
	INIT_LIST_HEAD(&vm->metadata.blocks);
}

/* Makes the driver's record of a RAM region; the hypervisor checks it. */
int porthole_memory_add_ram(struct porthole_vm *vm, u64 base, u64 size)
{
	struct porthole_ram *ram = &vm->ram[vm->ram_count];

	if (!PAGE_ALIGNED(base) || !PAGE_ALIGNED(size) || !size ||
	    size > 1ULL << PORTHOLE_GUEST_IPA_BITS ||
	    base > (1ULL << PORTHOLE_GUEST_IPA_BITS) - size)
		return -EINVAL;
	ram->base = base;
	ram->pages = size >> PAGE_SHIFT;
	ram->populated = kvcalloc(BITS_TO_LONGS(ram->pages), sizeof(long),
				  GFP_KERNEL_ACCOUNT);
	if (!ram->populated)
		return -ENOMEM;
	vm->ram_count++;
	return 0;
}

static struct porthole_ram *find_ram(struct porthole_vm *vm, u64 ipa, u64 size)
{
	u32 i;

	for (i = 0; i < vm->ram_count; i++) {
		struct porthole_ram *ram = &vm->ram[i];
		u64 bytes = ram->pages << PAGE_SHIFT;

		if (ipa >= ram->base && ipa - ram->base < bytes &&
		    size <= bytes - (ipa - ram->base))
			return ram;
	}
	return NULL;
}

/*
 * 2^order pages in one piece, charged to the caller's memory cgroup. Neither
 * the OOM killer nor a warning answers a host without memory: the caller does.
 */
static struct page *alloc_block(unsigned int order)
{
	gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;

	gfp |= order ? __GFP_NORETRY : __GFP_RETRY_MAYFAIL;
	return alloc_pages(gfp, order);
}

/* Records pages that the hypervisor took. */
void porthole_memory_keep(struct porthole_pages *pages, struct page *page,
			  unsigned int order)
{
	unsigned long i;

	for (i = 0; i < 1UL << order; i++)
		__SetPageOffline(page + i);
	set_page_private(page, order);
	list_add_tail(&page->lru, &pages->blocks);
	pages->count += 1UL << order;
}

/* Takes the marks off pages that the hypervisor gave back, or lets them go. */
static void forget(struct porthole_pages *pages, struct page *page, bool back)
{
	unsigned int order = page_private(page);
	unsigned long i;

	list_del(&page->lru);
	pages->count -= 1UL << order;
	if (!back) {
		atomic64_add(1UL << order, &porthole_leaked_pages);
		return;
	}
	set_page_private(page, 0);
	for (i = 0; i < 1UL << order; i++)
		__ClearPageOffline(page + i);
	__free_pages(page, order);
}

/*
 * The metadata for VM_CREATE: the root, the interrupt controller, the vCPUs, the
 * tables of RAM mapped in 2 MiB blocks (one a GiB), with a few last-level tables
 * for the ends of each region and the windows. More is donated when the
 * hypervisor asks.
 */
struct page *porthole_memory_first_metadata(const struct porthole_vm_config *config,
					    unsigned int extra_order,
					    unsigned int *order)
{
	u64 pages = 2 + (u64)config->vcpus * PORTHOLE_VCPU_META_PAGES;
	u32 i;

	for (i = 0; i < config->region_count; i++) {
		const struct porthole_region_desc *region = &config->regions[i];
		/* A size beyond that is the hypervisor's to refuse. */
		u64 size = min_t(u64, region->size, 1ULL << PORTHOLE_GUEST_IPA_BITS);

		if (region->kind == PORTHOLE_REGION_RAM)
			pages += DIV_ROUND_UP_ULL(size, SZ_1G) + 3;
		else if (region->kind == PORTHOLE_REGION_WINDOW)
			pages += DIV_ROUND_UP_ULL(size, SZ_1G) + 2;
	}
	*order = order_base_2(pages) + extra_order;
	if (*order > PORTHOLE_BLOCK_ORDER)
		return NULL;
	return alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_RETRY_MAYFAIL,
			   *order);
}

/* Donates more metadata. Under mem_lock. */
static int grow_metadata(struct porthole_vm *vm)
{
	unsigned int order = METADATA_STEP_ORDER;
	struct porthole_result result;
	struct page *page = alloc_block(order);

	if (!page) {
		order = 0;
		page = alloc_block(order);
	}
	if (!page)
		return -ENOMEM;
	result = porthole_call(PORTHOLE_FN_VM_DONATE_META, vm->handle,
			       page_to_phys(page), 1UL << order);
	if (result.status) {
		__free_pages(page, order);
		return porthole_errno(result.status);
	}
	porthole_memory_keep(&vm->metadata, page, order);
	return 0;
}

/* The same, for a caller without mem_lock. */
int porthole_memory_grow_metadata(struct porthole_vm *vm)
{
	int ret;

	mutex_lock(&vm->mem_lock);
	ret = grow_metadata(vm);
	mutex_unlock(&vm->mem_lock);
	return ret;
}

/*
 * Donates a block that the host owns and nobody else uses; on an error it is
 * still the caller's. Under mem_lock.
 */
static int donate(struct porthole_vm *vm, struct porthole_ram *ram,
		  struct page *page, unsigned int order, u64 ipa, u64 flags,
		  s32 *refusal)
{
	unsigned int grown = 0, tries = 0;
	struct porthole_result result;

	for (;;) {
		result = porthole_call(PORTHOLE_FN_VM_DONATE, vm->handle,
				       page_to_phys(page), ipa, 1UL << order,
				       flags);
		if (result.status == PORTHOLE_E_NO_METADATA &&
		    grown++ < METADATA_STEPS_MAX) {
			if (grow_metadata(vm))
				break;
		} else if (result.status == PORTHOLE_E_BUSY &&
			   tries++ < BUSY_TRIES_MAX) {
			if (fatal_signal_pending(current))
				return -EINTR;
			usleep_range(100, 200);
		} else {
			break;
		}
	}
	if (result.status)
		return porthole_refused(result.status, refusal);
	porthole_memory_keep(&vm->memory, page, order);
	bitmap_set(ram->populated, (ipa - ram->base) >> PAGE_SHIFT, 1UL << order);
	if (order == PORTHOLE_BLOCK_ORDER)
		vm->blocks_2m++;
	return 0;
}

/* Whether a naturally aligned block lies in [from, to) of a region, all of it missing. */
static bool block_is_free(const struct porthole_ram *ram, u64 ipa,
			  unsigned int order, u64 from, u64 to)
{
	u64 size = PAGE_SIZE << order;
	u64 base = ALIGN_DOWN(ipa, size);
	u64 first = (base - ram->base) >> PAGE_SHIFT;
	u64 end = first + (1UL << order);

	if (base < from || to - base < size)
		return false;
	return find_next_bit(ram->populated, end, first) >= end;
}

/*
 * Gives the guest zeroed pages around ipa: the largest block inside [from, to)
 * that is missing, or a smaller one if the host has none so large. Returns the
 * order. Under mem_lock, ipa missing.
 */
static int populate_block(struct porthole_vm *vm, struct porthole_ram *ram,
			  u64 ipa, u64 from, u64 to, s32 *refusal)
{
	int order, ret;

	for (order = PORTHOLE_BLOCK_ORDER; order >= 0; order--) {
		struct page *page;

		if (!block_is_free(ram, ipa, order, from, to))
			continue;
		page = alloc_block(order);
		if (!page)
			continue;
		ret = donate(vm, ram, page, order,
			     ALIGN_DOWN(ipa, PAGE_SIZE << order), 0, refusal);
		if (!ret)
			return order;
		__free_pages(page, order);
		/* The host's tables could not be split: one page asks for less. */
		if (ret != -ENOMEM)
			return ret;
	}
	return -ENOMEM;
}

/*
 * Serves a fault of the guest in RAM it has no page for. 0 if the guest can
 * try again, also when another vCPU was faster.
 */
int porthole_memory_fault(struct porthole_vm *vm, u64 ipa)
{
	struct porthole_ram *ram = find_ram(vm, ipa, PAGE_SIZE);
	s32 refusal = 0;
	int ret = 0;

	if (!ram)
		return -EFAULT;
	if (mutex_lock_killable(&vm->mem_lock))
		return -EINTR;
	if (!test_bit((ipa - ram->base) >> PAGE_SHIFT, ram->populated)) {
		ret = populate_block(vm, ram, ipa, ram->base,
				     ram->base + (ram->pages << PAGE_SHIFT),
				     &refusal);
		vm->ram_faults++;
	}
	mutex_unlock(&vm->mem_lock);
	return ret < 0 ? ret : 0;
}

int porthole_memory_populate(struct porthole_vm *vm, u64 ipa, u64 size,
			     s32 *refusal)
{
	struct porthole_ram *ram = find_ram(vm, ipa, size);
	u64 end = ipa + size, at = ipa;
	int ret = 0;

	if (!PAGE_ALIGNED(ipa | size) || !size)
		return -EINVAL;
	if (!ram)
		return -ENXIO;
	while (at < end && ret >= 0) {
		if (mutex_lock_killable(&vm->mem_lock))
			return -EINTR;
		if (test_bit((at - ram->base) >> PAGE_SHIFT, ram->populated)) {
			at += PAGE_SIZE;
		} else {
			ret = populate_block(vm, ram, at, ipa, end, refusal);
			if (ret >= 0)
				at = ALIGN_DOWN(at, PAGE_SIZE << ret) +
				     (PAGE_SIZE << ret);
		}
		mutex_unlock(&vm->mem_lock);
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	if (ret < 0)
		return ret;
	*refusal = 0;	/* of a block too large for the host's tables */
	return 0;
}

/* Largest naturally aligned block at ipa that "pages" pages fill. */
static unsigned int load_order(u64 ipa, u64 pages)
{
	unsigned int order = min_t(u64, ilog2(pages), PORTHOLE_BLOCK_ORDER);

	return min_t(unsigned int, order, __ffs64(ipa | BIT_ULL(40)) - PAGE_SHIFT);
}

/* A block with the next bytes of the image, zeroes behind its end. */
static struct page *fill_block(const struct porthole_load *load,
			       unsigned int *order)
{
	u64 left = load->size - load->loaded;
	struct page *page = NULL;
	u64 copy;

	*order = load_order(load->ipa + load->loaded,
			    DIV_ROUND_UP_ULL(left, PAGE_SIZE));
	for (; !page; (*order)--) {
		page = alloc_block(*order);
		if (page)
			break;
		if (!*order)
			return ERR_PTR(-ENOMEM);
	}
	copy = min_t(u64, left, PAGE_SIZE << *order);
	if (copy_from_user(page_address(page),
			   u64_to_user_ptr(load->source + load->loaded), copy)) {
		__free_pages(page, *order);
		return ERR_PTR(-EFAULT);
	}
	memset(page_address(page) + copy, 0, (PAGE_SIZE << *order) - copy);
	return page;
}

int porthole_memory_load(struct porthole_vm *vm, struct porthole_load *load)
{
	struct porthole_ram *ram;
	u64 end;

	if (!PAGE_ALIGNED(load->ipa) || !load->size ||
	    load->size > 1ULL << PORTHOLE_GUEST_IPA_BITS ||
	    check_add_overflow(load->source, load->size, &end))
		return -EINVAL;
	ram = find_ram(vm, load->ipa, PAGE_ALIGN(load->size));
	if (!ram)
		return -ENXIO;
	while (load->loaded < load->size) {
		u64 ipa = load->ipa + load->loaded;
		unsigned int order;
		struct page *page;
		int ret;

		/* User memory is read with no lock held: it may fault anywhere. */
		page = fill_block(load, &order);
		if (IS_ERR(page))
			return PTR_ERR(page);
		if (mutex_lock_killable(&vm->mem_lock)) {
			__free_pages(page, order);
			return -EINTR;
		}
		ret = donate(vm, ram, page, order, ipa, PORTHOLE_DONATE_CONTENT,
			     &load->refusal);
		mutex_unlock(&vm->mem_lock);
		if (ret) {
			__free_pages(page, order);
			return ret;
		}
		load->loaded += min_t(u64, load->size - load->loaded,
				      PAGE_SIZE << order);
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

/* Gets one list of pages back; false if the time was up. */
static bool reclaim_list(struct porthole_vm *vm, struct porthole_pages *pages,
			 unsigned long deadline)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, &pages->blocks, lru) {
		struct porthole_result result;

		do {
			result = porthole_call(PORTHOLE_FN_VM_RECLAIM, vm->handle,
					       page_to_phys(page),
					       1UL << page_private(page));
			if (result.status != PORTHOLE_E_BUSY)
				break;
			if (time_after(jiffies, deadline))
				return false;
			usleep_range(100, 1000);
		} while (true);
		if (WARN_ONCE(result.status, "porthole: page %pa not given back (error %lld), kept from the allocator\n",
			      &(phys_addr_t){ page_to_phys(page) }, result.status))
			forget(pages, page, false);
		else
			forget(pages, page, true);
		cond_resched();
	}
	return true;
}

/*
 * Gets every page back from a VM without translations: scrubbed, then freed.
 * A page that the hypervisor keeps is never given to the allocator, whose next
 * user would fault on it. False if the hypervisor was busy until the deadline.
 */
bool porthole_memory_reclaim(struct porthole_vm *vm, unsigned long deadline)
{
	return reclaim_list(vm, &vm->memory, deadline) &&
	       reclaim_list(vm, &vm->metadata, deadline);
}

/* Gives all pages up for lost. */
void porthole_memory_leak(struct porthole_vm *vm)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, &vm->memory.blocks, lru)
		forget(&vm->memory, page, false);
	list_for_each_entry_safe(page, next, &vm->metadata.blocks, lru)
		forget(&vm->metadata, page, false);
}

/* Frees the driver's own records; the pages are gone already. */
void porthole_memory_free(struct porthole_vm *vm)
{
	u32 i;

	for (i = 0; i < vm->ram_count; i++)
		kvfree(vm->ram[i].populated);
}
