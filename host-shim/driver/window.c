// SPDX-License-Identifier: GPL-2.0-only
/*
 * Windows: the host pages that a guest's device shares with the VMM. They are
 * ordinary pages with a reference count each, so a page outlives both its
 * registration and the last mapping of it before the kernel has it back.
 */
#include "porthole.h"

#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/libnvdimm.h>
#include <linux/slab.h>

/* An mmap offset is the window's id above 4 GiB, its offset below. */
#define MMAP_ID_SHIFT	(32 - PAGE_SHIFT)
/* Tries of a call that meets Busy, 100 us apart at least. */
#define BUSY_TRIES_MAX	2000
/* Times that a registration may ask for more metadata. */
#define METADATA_STEPS_MAX	8
/* Functions of one PCI device. */
#define FUNCTIONS_MAX	8

struct porthole_window {
	u64 ipa;		/* or PORTHOLE_WINDOW_UNMAPPED */
	u64 length;
	u64 bar_size;
	u64 bar_offset;
	u32 function;		/* the one that created it */
	u32 function_mask;	/* all that share it */
	u32 registered_mask;	/* those that the hypervisor knows */
	u32 bar;
	u32 flags;
	u32 hyp_id;		/* while registered_mask is not 0 */
	u32 extent_count;
	struct porthole_extent extents[PORTHOLE_WINDOW_EXTENTS_MAX];
	unsigned long page_count;
	struct page *pages[];
};

/* Drops the references of the driver; mappings may still hold theirs. */
static void window_free(struct porthole_window *window)
{
	unsigned long i;

	for (i = 0; i < window->page_count; i++)
		put_page(window->pages[i]);
	kvfree(window);
}

/* Notes pages behind those already there; false if the list of extents is full. */
static bool note_pages(struct porthole_window *window, struct page *page,
		      unsigned int order)
{
	struct porthole_extent *last = NULL;
	unsigned long i;

	if (window->extent_count)
		last = &window->extents[window->extent_count - 1];
	if (last && last->pa + (last->pages << PAGE_SHIFT) == page_to_phys(page)) {
		last->pages += 1UL << order;
	} else {
		if (window->extent_count == PORTHOLE_WINDOW_EXTENTS_MAX)
			return false;
		window->extents[window->extent_count++] = (struct porthole_extent) {
			.pa = page_to_phys(page),
			.pages = 1UL << order,
		};
	}
	for (i = 0; i < 1UL << order; i++)
		window->pages[window->page_count++] = page + i;
	return true;
}

/* Zeroed pages for the whole window in the largest pieces that the host has. */
static int window_alloc_pages(struct porthole_window *window, unsigned long count)
{
	unsigned int order = MAX_PAGE_ORDER;

	while (window->page_count < count) {
		gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN;
		struct page *page;

		order = min_t(unsigned int, order, ilog2(count - window->page_count));
		gfp |= order ? __GFP_NORETRY : __GFP_RETRY_MAYFAIL;
		page = alloc_pages(gfp, order);
		if (!page && !order)
			return -ENOMEM;
		if (!page) {
			order--;
			continue;
		}
		/* Each page gets a count of its own: mappings drop them singly. */
		if (order)
			split_page(page, order);
		if (!note_pages(window, page, order)) {
			unsigned long i;

			for (i = 0; i < 1UL << order; i++)
				__free_page(page + i);
			return -ENOMEM;
		}
	}
	return 0;
}

static u32 function_number(const struct porthole_window *window, unsigned int bit)
{
	return (window->function & ~(FUNCTIONS_MAX - 1)) | bit;
}

/* Registers the window at its IPA for one function. Under windows_lock. */
static int register_function(struct porthole_vm *vm,
			     struct porthole_window *window, unsigned int bit,
			     s32 *refusal)
{
	struct porthole_window_config *config;
	unsigned int grown = 0, tries = 0;
	struct porthole_result result;

	/* A page of its own: the block may not cross into another one. */
	BUILD_BUG_ON(sizeof(*config) > PAGE_SIZE);
	config = (void *)get_zeroed_page(GFP_KERNEL);
	if (!config)
		return -ENOMEM;
	*config = (struct porthole_window_config) {
		.version = PORTHOLE_ABI_VERSION,
		.flags = window->flags,
		.vm = vm->handle,
		.function = function_number(window, bit),
		.bar = window->bar,
		.bar_size = window->bar_size,
		.bar_offset = window->bar_offset,
		.length = window->length,
		.ipa = window->ipa,
		.extent_count = window->extent_count,
	};
	memcpy(config->extents, window->extents,
	       window->extent_count * sizeof(window->extents[0]));
	for (;;) {
		result = porthole_call(PORTHOLE_FN_WINDOW_REGISTER,
				       virt_to_phys(config));
		if (result.status == PORTHOLE_E_NO_METADATA &&
		    grown++ < METADATA_STEPS_MAX) {
			if (porthole_memory_grow_metadata(vm))
				break;
		} else if (result.status == PORTHOLE_E_BUSY &&
			   tries++ < BUSY_TRIES_MAX) {
			usleep_range(100, 200);
		} else {
			break;
		}
	}
	free_page((unsigned long)config);
	if (result.status)
		return porthole_refused(result.status, refusal);
	window->hyp_id = result.x1;
	window->registered_mask |= BIT(bit);
	return 0;
}

/* Takes one function's registration back. Under windows_lock. */
static int unregister_function(struct porthole_vm *vm,
			       struct porthole_window *window, unsigned int bit,
			       s32 *refusal)
{
	struct porthole_result result;
	unsigned int tries = 0;

	for (;;) {
		result = porthole_call(PORTHOLE_FN_WINDOW_UNREGISTER, vm->handle,
				       window->hyp_id, bit);
		if (result.status != PORTHOLE_E_BUSY || tries++ == BUSY_TRIES_MAX)
			break;
		usleep_range(100, 200);
	}
	if (result.status)
		return porthole_refused(result.status, refusal);
	window->registered_mask &= ~BIT(bit);
	return 0;
}

static int unregister_all(struct porthole_vm *vm, struct porthole_window *window,
			  s32 *refusal)
{
	unsigned int bit;
	int ret = 0;

	for (bit = 0; !ret && bit < FUNCTIONS_MAX; bit++)
		if (window->registered_mask & BIT(bit))
			ret = unregister_function(vm, window, bit, refusal);
	if (!ret)
		window->ipa = PORTHOLE_WINDOW_UNMAPPED;
	return ret;
}

/*
 * A guest whose caches are off, as each is at first, reads memory: what the
 * host wrote, zeros included, has to be there.
 */
static void clean_pages(struct porthole_window *window)
{
	u32 i;

	for (i = 0; i < window->extent_count; i++)
		arch_wb_cache_pmem(phys_to_virt(window->extents[i].pa),
				   window->extents[i].pages << PAGE_SHIFT);
}

/* Registers for all functions or for none. */
static int register_all(struct porthole_vm *vm, struct porthole_window *window,
			u64 ipa, s32 *refusal)
{
	unsigned int bit;
	s32 ignored;
	int ret = 0;

	clean_pages(window);
	window->ipa = ipa;
	for (bit = 0; !ret && bit < FUNCTIONS_MAX; bit++)
		if (window->function_mask & BIT(bit))
			ret = register_function(vm, window, bit, refusal);
	if (ret)
		unregister_all(vm, window, &ignored);
	return ret;
}

static struct porthole_window *window_alloc(const struct porthole_window_create *create)
{
	unsigned long count = create->length >> PAGE_SHIFT;
	struct porthole_window *window;
	int ret;

	window = kvzalloc(struct_size(window, pages, count), GFP_KERNEL_ACCOUNT);
	if (!window)
		return ERR_PTR(-ENOMEM);
	window->ipa = PORTHOLE_WINDOW_UNMAPPED;
	window->length = create->length;
	window->bar_size = create->bar_size;
	window->bar_offset = create->bar_offset;
	window->function = create->function;
	window->function_mask = BIT(create->function & (FUNCTIONS_MAX - 1));
	window->bar = create->bar;
	window->flags = create->flags;
	ret = window_alloc_pages(window, count);
	if (ret) {
		window_free(window);
		return ERR_PTR(ret);
	}
	return window;
}

/* Gives the window an id. Under windows_lock. */
static int insert_window(struct porthole_vm *vm, struct porthole_window *window,
			 struct porthole_window_create *create)
{
	int ret = 0;
	u32 id;

	for (id = 0; id < PORTHOLE_WINDOWS_MAX && vm->windows[id]; id++)
		;
	if (id == PORTHOLE_WINDOWS_MAX)
		return -ENOSPC;
	if (create->ipa != PORTHOLE_WINDOW_UNMAPPED)
		ret = register_all(vm, window, create->ipa, &create->refusal);
	/* Pages that the hypervisor will not let go of stay until the VM is gone. */
	if (!ret || window->registered_mask)
		vm->windows[id] = window;
	create->id = id;
	return ret;
}

long porthole_window_create(struct porthole_request *request)
{
	struct porthole_window_create *create = request->arg;
	struct porthole_vm *vm = request->object;
	struct porthole_window *window;
	int ret;

	create->refusal = 0;
	create->id = 0;
	/* What sizes the allocation is checked here, the rest by the hypervisor. */
	if (create->reserved || !create->length || !PAGE_ALIGNED(create->length) ||
	    create->length >> PAGE_SHIFT > PORTHOLE_OPEN_WINDOW_PAGES_MAX ||
	    create->flags & ~PORTHOLE_WINDOW_BAR_64)
		return -EINVAL;
	window = window_alloc(create);
	if (IS_ERR(window))
		return PTR_ERR(window);
	mutex_lock(&vm->windows_lock);
	ret = insert_window(vm, window, create);
	if (ret && !window->registered_mask)
		window_free(window);
	mutex_unlock(&vm->windows_lock);
	return ret;
}

/* The window with this id, NULL if there is none. Under windows_lock. */
static struct porthole_window *find_window(struct porthole_vm *vm, u32 id)
{
	return id < PORTHOLE_WINDOWS_MAX ? vm->windows[id] : NULL;
}

long porthole_window_move(struct porthole_request *request)
{
	struct porthole_window_move *move = request->arg;
	struct porthole_vm *vm = request->object;
	struct porthole_window *window;
	int ret = -ENOENT;

	move->refusal = 0;
	mutex_lock(&vm->windows_lock);
	window = find_window(vm, move->id);
	if (window)
		ret = unregister_all(vm, window, &move->refusal);
	if (!ret && move->ipa != PORTHOLE_WINDOW_UNMAPPED)
		ret = register_all(vm, window, move->ipa, &move->refusal);
	mutex_unlock(&vm->windows_lock);
	return ret;
}

long porthole_window_destroy(struct porthole_request *request)
{
	struct porthole_window_destroy *destroy = request->arg;
	struct porthole_vm *vm = request->object;
	struct porthole_window *window;
	int ret = -ENOENT;

	destroy->refusal = 0;
	mutex_lock(&vm->windows_lock);
	window = find_window(vm, destroy->id);
	if (window)
		ret = unregister_all(vm, window, &destroy->refusal);
	if (!ret)
		vm->windows[destroy->id] = NULL;
	mutex_unlock(&vm->windows_lock);
	if (!ret)
		window_free(window);
	return ret;
}

/* The bit of a function of the window's own device, or an errno. */
static int shared_bit(const struct porthole_window *window, u32 function)
{
	if ((function ^ window->function) & ~(FUNCTIONS_MAX - 1))
		return -EPERM;
	return function & (FUNCTIONS_MAX - 1);
}

long porthole_window_add_function(struct porthole_request *request)
{
	struct porthole_window_function *share = request->arg;
	struct porthole_vm *vm = request->object;
	struct porthole_window *window;
	int ret = 0, bit;

	share->refusal = 0;
	if (share->reserved)
		return -EINVAL;
	mutex_lock(&vm->windows_lock);
	window = find_window(vm, share->id);
	bit = window ? shared_bit(window, share->function) : -ENOENT;
	if (bit < 0)
		ret = bit;
	else if (window->function_mask & BIT(bit))
		ret = -EEXIST;
	else if (window->registered_mask)
		ret = register_function(vm, window, bit, &share->refusal);
	if (!ret)
		window->function_mask |= BIT(bit);
	mutex_unlock(&vm->windows_lock);
	return ret;
}

long porthole_window_remove_function(struct porthole_request *request)
{
	struct porthole_window_function *share = request->arg;
	struct porthole_vm *vm = request->object;
	struct porthole_window *window;
	int ret = 0, bit;

	share->refusal = 0;
	if (share->reserved)
		return -EINVAL;
	mutex_lock(&vm->windows_lock);
	window = find_window(vm, share->id);
	bit = window ? shared_bit(window, share->function) : -ENOENT;
	if (bit < 0)
		ret = bit;
	else if (!(window->function_mask & BIT(bit)))
		ret = -ENOENT;
	else if (window->function_mask == BIT(bit))
		ret = -EINVAL;
	else if (window->registered_mask & BIT(bit))
		ret = unregister_function(vm, window, bit, &share->refusal);
	if (!ret)
		window->function_mask &= ~BIT(bit);
	mutex_unlock(&vm->windows_lock);
	return ret;
}

long porthole_window_info(struct porthole_request *request)
{
	struct porthole_window_info *info = request->arg;
	struct porthole_vm *vm = request->object;
	struct porthole_window *window;

	mutex_lock(&vm->windows_lock);
	window = find_window(vm, info->id);
	if (window)
		*info = (struct porthole_window_info) {
			.id = info->id,
			.function = window->function,
			.function_mask = window->function_mask,
			.bar = window->bar,
			.ipa = window->ipa,
			.length = window->length,
			.first_pa = window->extents[0].pa,
			.hyp_id = window->registered_mask ? window->hyp_id : 0,
			.extents = window->extent_count,
		};
	mutex_unlock(&vm->windows_lock);
	return window ? 0 : -ENOENT;
}

/* Maps pages of the windows from "id" on, "first" pages behind its start. Under windows_lock. */
static int insert_pages(struct porthole_vm *vm, struct vm_area_struct *vma,
			unsigned long id, unsigned long first)
{
	unsigned long at = vma->vm_start;

	while (at < vma->vm_end) {
		struct porthole_window *window =
			id < PORTHOLE_WINDOWS_MAX ? vm->windows[id] : NULL;
		unsigned long count, left;
		int ret;

		if (!window)
			return at == vma->vm_start ? -ENOENT : -EINVAL;
		if (first >= window->page_count)
			return -EINVAL;
		count = min(window->page_count - first, (vma->vm_end - at) >> PAGE_SHIFT);
		left = count;
		ret = vm_insert_pages(vma, at, &window->pages[first], &left);
		if (ret)
			return ret;
		at += count << PAGE_SHIFT;
		first = 0;
		id++;
	}
	return 0;
}

/* mmap of a VM file: some or all pages of a window, or of several in a row. Under mmap_lock. */
int porthole_window_mmap(struct porthole_vm *vm, struct vm_area_struct *vma)
{
	unsigned long first = vma->vm_pgoff & GENMASK(MMAP_ID_SHIFT - 1, 0);
	unsigned long id = vma->vm_pgoff >> MMAP_ID_SHIFT;
	int ret;

	if (!(vma->vm_flags & VM_SHARED) || (vma->vm_flags & VM_EXEC))
		return -EINVAL;
	vm_flags_mod(vma, VM_DONTEXPAND | VM_DONTCOPY | VM_DONTDUMP, VM_MAYEXEC);
	mutex_lock(&vm->windows_lock);
	ret = insert_pages(vm, vma, id, first);
	mutex_unlock(&vm->windows_lock);
	return ret;
}

/*
 * The VM is gone from the hypervisor, its windows with it; or, with "leak", it
 * would not go, and a guest may still reach the pages: nobody gets them.
 */
void porthole_windows_free(struct porthole_vm *vm, bool leak)
{
	u32 id;

	for (id = 0; id < PORTHOLE_WINDOWS_MAX; id++) {
		struct porthole_window *window = vm->windows[id];

		vm->windows[id] = NULL;
		if (!window)
			continue;
		if (leak)
			atomic64_add(window->page_count, &porthole_leaked_pages);
		else
			window_free(window);
	}
}
