// SPDX-License-Identifier: GPL-2.0-only
/*
 * The DMA API of a confined device: everything that its driver maps or
 * allocates comes out of the one region that the device reaches. Streaming
 * mappings are copied in and out. Who is confined, and when, is in confine.c.
 *
 * What the device may write is only the region; the records of what is mapped
 * lie elsewhere, so a bad device spoils its data and nothing else.
 */
#include "porthole.h"

#include <linux/bitmap.h>
#include <linux/dma-map-ops.h>
#include <linux/log2.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

/* What is handed out: half a page, since most packets need no more. */
#define SLOT_SHIFT	11
#define SLOT_SIZE	(1UL << SLOT_SHIFT)
/* The longest mapping that drivers are told of, and its share of the region. */
#define MAPPING_MAX	SZ_256K
#define MAPPING_SHARE	8

/* "origin" of memory that is used where it is. */
#define IN_PLACE	((phys_addr_t)-1)

/* The record of a mapping or allocation is that of its first slot. */
struct porthole_slot {
	phys_addr_t origin;	/* of the memory that it stands for, or IN_PLACE */
	u32 bytes;
	u32 offset;		/* of its first byte in the first slot */
	u32 first;		/* in every slot: the first one's number */
};

static struct porthole_pool *pool_of(struct device *dev)
{
	return container_of(get_dma_ops(dev), struct porthole_pool, ops);
}

static unsigned int slots_of(size_t bytes)
{
	return DIV_ROUND_UP(bytes, SLOT_SIZE);
}

static unsigned long find_slots(struct porthole_pool *pool, unsigned int start,
				unsigned int count, unsigned long align_mask)
{
	/* Aligned is the address, not the number of the slot. */
	return bitmap_find_next_zero_area_off(pool->used, pool->slots, start,
					      count, align_mask >> SLOT_SHIFT,
					      (pool->start >> SLOT_SHIFT) &
					      (align_mask >> SLOT_SHIFT));
}

/*
 * Takes room for bytes, the first of them "offset" behind an address that
 * align_mask allows. Returns its bus address, or DMA_MAPPING_ERROR.
 */
static dma_addr_t take(struct device *dev, phys_addr_t origin, size_t bytes,
		       u32 offset, unsigned long align_mask, u64 dma_mask)
{
	struct porthole_pool *pool = pool_of(dev);
	unsigned long first = pool->slots, flags;
	unsigned int count, i;

	if (!bytes || bytes > pool->size - offset)
		goto full;
	count = slots_of(offset + bytes);
	spin_lock_irqsave(&pool->lock, flags);
	/*
	 * What comes and goes lies in a circle; what stays long lies low, and
	 * leaves room for a mapping: without any, a driver of a disk would try
	 * its first request for ever instead of failing.
	 */
	if (origin != IN_PLACE)
		first = find_slots(pool, pool->next, count, align_mask);
	if (first >= pool->slots &&
	    (origin != IN_PLACE || count + pool->kept <= pool->kept_max))
		first = find_slots(pool, 0, count, align_mask);
	if (first < pool->slots) {
		bitmap_set(pool->used, first, count);
		pool->busy += count;
		if (origin == IN_PLACE)
			pool->kept += count;
		else
			pool->next = first + count;
		for (i = 0; i < count; i++)
			pool->slot[first + i].first = first;
		pool->slot[first].origin = origin;
		pool->slot[first].bytes = bytes;
		pool->slot[first].offset = offset;
	}
	spin_unlock_irqrestore(&pool->lock, flags);
	if (first < pool->slots) {
		dma_addr_t addr = pool->start + (first << SLOT_SHIFT) + offset;

		if (addr + bytes - 1 <= dma_mask)
			return addr;
		porthole_pool_give(pool, addr);
		dev_err_ratelimited(dev, "porthole: its DMA region at %#llx is beyond its %llu-bit addresses\n",
				    pool->start, (u64)fls64(dma_mask));
		return DMA_MAPPING_ERROR;
	}
full:
	/* A driver may try again all the time. */
	if (is_power_of_2(atomic64_inc_return(&pool->failed)))
		dev_err(dev, "porthole: no room for %zu bytes in its DMA region of %zu KiB (%llu KiB in use); `porthole dma release` it and confine it to more\n",
			bytes, pool->size >> 10, porthole_pool_used(pool) >> 10);
	return DMA_MAPPING_ERROR;
}

/* The record of what holds an address, or NULL with one warning. */
static struct porthole_slot *record(struct porthole_pool *pool, dma_addr_t addr)
{
	u64 number = (addr - pool->start) >> SLOT_SHIFT;

	if (WARN_ONCE(addr < pool->start || number >= pool->slots ||
		      !test_bit(number, pool->used),
		      "porthole: a driver names DMA address %pad, which is not its own\n",
		      &addr))
		return NULL;
	return &pool->slot[pool->slot[number].first];
}

/* Gives the room back that holds an address. */
void porthole_pool_give(struct porthole_pool *pool, dma_addr_t addr)
{
	struct porthole_slot *slot;
	unsigned long flags;
	unsigned int count;

	spin_lock_irqsave(&pool->lock, flags);
	slot = record(pool, addr);
	if (slot) {
		count = slots_of(slot->offset + slot->bytes);
		bitmap_clear(pool->used, slot->first, count);
		pool->busy -= count;
		if (slot->origin == IN_PLACE)
			pool->kept -= count;
	}
	spin_unlock_irqrestore(&pool->lock, flags);
}

/* Copies a part of a mapping into the region, or out of it. */
static void copy(struct porthole_pool *pool, dma_addr_t addr, size_t bytes,
		 bool in)
{
	struct porthole_slot *slot = record(pool, addr);
	u64 skip;
	void *inside, *outside;

	if (!slot || slot->origin == IN_PLACE)
		return;
	skip = addr - pool->start - ((u64)slot->first << SLOT_SHIFT) - slot->offset;
	if (WARN_ONCE(skip > slot->bytes || bytes > slot->bytes - skip,
		      "porthole: a driver syncs %zu bytes at %llu of a mapping of %u\n",
		      bytes, skip, slot->bytes))
		return;
	inside = pool->base + (addr - pool->start);
	outside = phys_to_virt(slot->origin + skip);
	if (in)
		memcpy(inside, outside, bytes);
	else
		memcpy(outside, inside, bytes);
}

static dma_addr_t pool_map_page(struct device *dev, struct page *page,
				unsigned long offset, size_t size,
				enum dma_data_direction dir, unsigned long attrs)
{
	phys_addr_t origin = page_to_phys(page) + offset;
	unsigned long mask = dma_get_min_align_mask(dev);
	dma_addr_t addr = take(dev, origin, size, origin & mask, mask,
			       dma_get_mask(dev));

	/*
	 * In every direction: what the device does not write comes back as it
	 * was, and nobody reads what the room held before.
	 */
	if (addr != DMA_MAPPING_ERROR && !(attrs & DMA_ATTR_SKIP_CPU_SYNC))
		copy(pool_of(dev), addr, size, true);
	return addr;
}

static void pool_sync_for_cpu(struct device *dev, dma_addr_t addr, size_t size,
			      enum dma_data_direction dir)
{
	if (dir != DMA_TO_DEVICE)
		copy(pool_of(dev), addr, size, false);
}

static void pool_sync_for_device(struct device *dev, dma_addr_t addr,
				 size_t size, enum dma_data_direction dir)
{
	if (dir != DMA_FROM_DEVICE)
		copy(pool_of(dev), addr, size, true);
}

static void pool_unmap_page(struct device *dev, dma_addr_t addr, size_t size,
			    enum dma_data_direction dir, unsigned long attrs)
{
	if (!(attrs & DMA_ATTR_SKIP_CPU_SYNC))
		pool_sync_for_cpu(dev, addr, size, dir);
	porthole_pool_give(pool_of(dev), addr);
}

static void pool_unmap_sg(struct device *dev, struct scatterlist *list,
			  int count, enum dma_data_direction dir,
			  unsigned long attrs)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, count, i)
		pool_unmap_page(dev, sg_dma_address(sg), sg_dma_len(sg), dir,
				attrs);
}

static int pool_map_sg(struct device *dev, struct scatterlist *list, int count,
		       enum dma_data_direction dir, unsigned long attrs)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, count, i) {
		dma_addr_t addr = pool_map_page(dev, sg_page(sg), sg->offset,
						sg->length, dir, attrs);

		if (addr == DMA_MAPPING_ERROR) {
			pool_unmap_sg(dev, list, i, dir,
				      attrs | DMA_ATTR_SKIP_CPU_SYNC);
			return -ENOMEM;
		}
		sg_dma_address(sg) = addr;
		sg_dma_len(sg) = sg->length;
	}
	return count;
}

static void pool_sync_sg_for_cpu(struct device *dev, struct scatterlist *list,
				 int count, enum dma_data_direction dir)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, count, i)
		pool_sync_for_cpu(dev, sg_dma_address(sg), sg_dma_len(sg), dir);
}

static void pool_sync_sg_for_device(struct device *dev,
				    struct scatterlist *list, int count,
				    enum dma_data_direction dir)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, count, i)
		pool_sync_for_device(dev, sg_dma_address(sg), sg_dma_len(sg),
				     dir);
}

/* Memory that driver and device both use where it is: a part of the region. */
static void *pool_alloc(struct device *dev, size_t size, dma_addr_t *handle,
			gfp_t gfp, unsigned long attrs)
{
	struct porthole_pool *pool = pool_of(dev);
	unsigned long mask = (PAGE_SIZE << get_order(size)) - 1;
	void *memory;

	*handle = take(dev, IN_PLACE, PAGE_ALIGN(size), 0, mask,
		       dev->coherent_dma_mask);
	if (*handle == DMA_MAPPING_ERROR)
		return NULL;
	memory = pool->base + (*handle - pool->start);
	memset(memory, 0, PAGE_ALIGN(size));
	return memory;
}

static void pool_free(struct device *dev, size_t size, void *memory,
		      dma_addr_t handle, unsigned long attrs)
{
	porthole_pool_give(pool_of(dev), handle);
}

static struct page *pool_alloc_pages(struct device *dev, size_t size,
				     dma_addr_t *handle,
				     enum dma_data_direction dir, gfp_t gfp)
{
	void *memory = pool_alloc(dev, size, handle, gfp, 0);

	return memory ? virt_to_page(memory) : NULL;
}

static void pool_free_pages(struct device *dev, size_t size, struct page *page,
			    dma_addr_t handle, enum dma_data_direction dir)
{
	porthole_pool_give(pool_of(dev), handle);
}

static int pool_mmap(struct device *dev, struct vm_area_struct *vma,
		     void *memory, dma_addr_t handle, size_t size,
		     unsigned long attrs)
{
	unsigned long pages = vma_pages(vma), all = PAGE_ALIGN(size) >> PAGE_SHIFT;

	if (vma->vm_pgoff >= all || pages > all - vma->vm_pgoff)
		return -ENXIO;
	return remap_pfn_range(vma, vma->vm_start,
			       page_to_pfn(virt_to_page(memory)) + vma->vm_pgoff,
			       pages << PAGE_SHIFT, vma->vm_page_prot);
}

static int pool_dma_supported(struct device *dev, u64 mask)
{
	struct porthole_pool *pool = pool_of(dev);

	return pool->start + pool->size - 1 <= mask;
}

static u64 pool_required_mask(struct device *dev)
{
	struct porthole_pool *pool = pool_of(dev);

	return DMA_BIT_MASK(fls64(pool->start + pool->size - 1));
}

static size_t longest_mapping(const struct porthole_pool *pool)
{
	return clamp_t(size_t, pool->size / MAPPING_SHARE & PAGE_MASK, PAGE_SIZE,
		       MAPPING_MAX);
}

static size_t pool_max_mapping_size(struct device *dev)
{
	return longest_mapping(pool_of(dev));
}

/*
 * Without map_resource (another device's registers are out of reach) and
 * get_sgtable; the DMA API answers for those itself.
 */
static const struct dma_map_ops pool_ops = {
	.alloc = pool_alloc,
	.free = pool_free,
	.alloc_pages_op = pool_alloc_pages,
	.free_pages = pool_free_pages,
	.mmap = pool_mmap,
	.map_page = pool_map_page,
	.unmap_page = pool_unmap_page,
	.map_sg = pool_map_sg,
	.unmap_sg = pool_unmap_sg,
	.sync_single_for_cpu = pool_sync_for_cpu,
	.sync_single_for_device = pool_sync_for_device,
	.sync_sg_for_cpu = pool_sync_sg_for_cpu,
	.sync_sg_for_device = pool_sync_sg_for_device,
	.dma_supported = pool_dma_supported,
	.get_required_mask = pool_required_mask,
	.max_mapping_size = pool_max_mapping_size,
};

/* A pool over a region whose memory is the caller's, and zero. */
int porthole_pool_init(struct porthole_pool *pool, struct page *pages,
		       size_t size)
{
	pool->ops = pool_ops;
	spin_lock_init(&pool->lock);
	pool->base = page_address(pages);
	pool->start = page_to_phys(pages);
	pool->size = size;
	pool->slots = size >> SLOT_SHIFT;
	pool->kept_max = pool->slots - slots_of(longest_mapping(pool));
	pool->used = bitmap_zalloc(pool->slots, GFP_KERNEL);
	pool->slot = kvcalloc(pool->slots, sizeof(*pool->slot), GFP_KERNEL);
	if (pool->used && pool->slot)
		return 0;
	porthole_pool_free(pool);
	return -ENOMEM;
}

void porthole_pool_free(struct porthole_pool *pool)
{
	bitmap_free(pool->used);
	kvfree(pool->slot);
}

/* Bytes in use. */
u64 porthole_pool_used(struct porthole_pool *pool)
{
	return (u64)READ_ONCE(pool->busy) << SLOT_SHIFT;
}

/* From now on the DMA API of a device, whose driver is about to be bound, is the pool's. */
void porthole_pool_serve(struct porthole_pool *pool, struct device *dev)
{
	set_dma_ops(dev, &pool->ops);
#ifdef CONFIG_DMA_NEED_SYNC
	/* A driver before this one may have found that nothing needs a sync. */
	dev->dma_skip_sync = false;
#endif
}
