// SPDX-License-Identifier: GPL-2.0-only
/*
 * A PCI driver that uses the DMA API as drivers do, and as bad ones do, and says whether it keeps its promises for a
 * confined device. test_confine.c binds it; which step its probe runs is a parameter, and a step that fails is a line
 * in the kernel's log and a probe that fails. The CPU plays the device: it looks at the addresses that a device would.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/arm-smccc.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

static char step[16];
module_param_string(step, step, sizeof(step), 0600);
static unsigned long region, bytes, longest;
module_param(region, ulong, 0600);
module_param(bytes, ulong, 0600);
module_param(longest, ulong, 0600);

#define EXPECT(condition) \
	do { \
		if (!(condition)) { \
			pr_err("%s:%d: %s\n", __func__, __LINE__, #condition); \
			return -EIO; \
		} \
	} while (0)

/* A driver's buffer, of its probe. */
#define LENGTH	5000
static u8 *buffer;

/* A device sees physical addresses. */
static u8 *seen(dma_addr_t addr)
{
	return phys_to_virt(addr);
}

static bool inside(dma_addr_t addr, size_t size)
{
	return addr >= region && size <= bytes && addr - region <= bytes - size;
}

static bool all(const u8 *at, u8 value, size_t count)
{
	return !memchr_inv(at, value, count);
}

static dma_addr_t map(struct device *dev, u8 value, size_t size,
		      enum dma_data_direction dir)
{
	memset(buffer, value, LENGTH);
	return dma_map_single(dev, buffer, size, dir);
}

/* Room of that many bytes, whatever lies there. */
static dma_addr_t occupy(struct device *dev, size_t size)
{
	return dma_map_page_attrs(dev, virt_to_page(buffer), 0, size,
				  DMA_TO_DEVICE, DMA_ATTR_SKIP_CPU_SYNC);
}

static void vacate(struct device *dev, dma_addr_t addr, size_t size)
{
	dma_unmap_page_attrs(dev, addr, size, DMA_TO_DEVICE,
			     DMA_ATTR_SKIP_CPU_SYNC);
}

static int copies(struct device *dev)
{
	dma_addr_t addr, rooms[64];
	unsigned int i, count = min(bytes / 2048, ARRAY_SIZE(rooms));

	/* Every place has been one of its own. */
	for (i = 0; i < count; i++)
		rooms[i] = occupy(dev, 2048);
	EXPECT(count && rooms[count - 1] != DMA_MAPPING_ERROR);
	while (i--)
		vacate(dev, rooms[i], 2048);
	addr = map(dev, 1, LENGTH, DMA_BIDIRECTIONAL);

	EXPECT(!dma_mapping_error(dev, addr) && inside(addr, LENGTH));
	EXPECT(all(seen(addr), 1, LENGTH));
	/* A part, this way and that. */
	memset(seen(addr), 2, LENGTH);
	dma_sync_single_range_for_cpu(dev, addr, 3000, 500, DMA_FROM_DEVICE);
	EXPECT(all(buffer, 1, 3000) && all(buffer + 3000, 2, 500));
	EXPECT(all(buffer + 3500, 1, LENGTH - 3500));
	memset(buffer, 3, LENGTH);
	dma_sync_single_range_for_device(dev, addr, 3000, 500, DMA_TO_DEVICE);
	EXPECT(all(seen(addr), 2, 3000) && all(seen(addr) + 3000, 3, 500));
	EXPECT(all(seen(addr) + 3500, 2, LENGTH - 3500));
	/* Not against the direction. */
	dma_sync_single_for_cpu(dev, addr, LENGTH, DMA_TO_DEVICE);
	EXPECT(all(buffer, 3, LENGTH));
	dma_sync_single_for_device(dev, addr, LENGTH, DMA_FROM_DEVICE);
	EXPECT(all(seen(addr), 2, 3000));
	dma_unmap_single(dev, addr, LENGTH, DMA_BIDIRECTIONAL);
	EXPECT(all(buffer, 2, 3000) && buffer[3000] == 3);

	/* What the device only reads does not come back. */
	addr = map(dev, 4, LENGTH, DMA_TO_DEVICE);
	EXPECT(all(seen(addr), 4, LENGTH));
	memset(seen(addr), 5, LENGTH);
	dma_unmap_single(dev, addr, LENGTH, DMA_TO_DEVICE);
	EXPECT(all(buffer, 4, LENGTH));
	/* What it does not write is as it was. */
	addr = map(dev, 6, LENGTH, DMA_FROM_DEVICE);
	memset(seen(addr), 7, 10);
	dma_unmap_single(dev, addr, LENGTH, DMA_FROM_DEVICE);
	EXPECT(all(buffer, 7, 10) && all(buffer + 10, 6, LENGTH - 10));
	/* Drivers may do without copies. */
	addr = dma_map_single_attrs(dev, buffer, LENGTH, DMA_BIDIRECTIONAL,
				    DMA_ATTR_SKIP_CPU_SYNC);
	memset(seen(addr), 8, LENGTH);
	dma_unmap_single_attrs(dev, addr, LENGTH, DMA_BIDIRECTIONAL,
			       DMA_ATTR_SKIP_CPU_SYNC);
	EXPECT(all(buffer + 10, 6, LENGTH - 10));
	/* Where the room begins before the mapping does. */
	dma_set_min_align_mask(dev, PAGE_SIZE - 1);
	memset(buffer, 1, LENGTH);
	addr = dma_map_single(dev, buffer + 100, 3000, DMA_BIDIRECTIONAL);
	EXPECT(all(seen(addr), 1, 3000));
	memset(seen(addr), 2, 3000);
	dma_sync_single_range_for_cpu(dev, addr, 1000, 500, DMA_FROM_DEVICE);
	EXPECT(all(buffer, 1, 1100) && all(buffer + 1100, 2, 500));
	EXPECT(all(buffer + 1600, 1, LENGTH - 1600));
	dma_unmap_single(dev, addr, 3000, DMA_BIDIRECTIONAL);
	EXPECT(all(buffer, 1, 100) && all(buffer + 100, 2, 3000));
	dma_set_min_align_mask(dev, 0);
	memset(buffer, 6, LENGTH);
	addr = occupy(dev, bytes);
	memset(seen(addr), 9, bytes);
	vacate(dev, addr, bytes);
	addr = dma_map_single_attrs(dev, buffer, LENGTH, DMA_BIDIRECTIONAL,
				    DMA_ATTR_SKIP_CPU_SYNC);
	EXPECT(all(seen(addr), 9, LENGTH));
	dma_unmap_single_attrs(dev, addr, LENGTH, DMA_BIDIRECTIONAL,
			       DMA_ATTR_SKIP_CPU_SYNC);
	return 0;
}

static int lists(struct device *dev)
{
	struct scatterlist list[2];

	memset(buffer, 1, LENGTH);
	sg_init_table(list, 2);
	sg_set_buf(&list[0], buffer + 8, 100);
	sg_set_buf(&list[1], buffer + 200, 3000);
	EXPECT(dma_map_sg(dev, list, 2, DMA_BIDIRECTIONAL) == 2);
	EXPECT(sg_dma_len(&list[0]) == 100 && sg_dma_len(&list[1]) == 3000);
	EXPECT(inside(sg_dma_address(&list[0]), 100));
	EXPECT(inside(sg_dma_address(&list[1]), 3000));
	EXPECT(all(seen(sg_dma_address(&list[1])), 1, 3000));
	memset(seen(sg_dma_address(&list[0])), 2, 100);
	memset(seen(sg_dma_address(&list[1])), 3, 3000);
	dma_sync_sg_for_cpu(dev, list, 2, DMA_FROM_DEVICE);
	EXPECT(all(buffer, 1, 8) && all(buffer + 8, 2, 100));
	EXPECT(all(buffer + 108, 1, 92) && all(buffer + 200, 3, 3000));
	memset(buffer, 4, LENGTH);
	dma_sync_sg_for_device(dev, list, 2, DMA_TO_DEVICE);
	EXPECT(all(seen(sg_dma_address(&list[0])), 4, 100));
	EXPECT(all(seen(sg_dma_address(&list[1])), 4, 3000));
	memset(seen(sg_dma_address(&list[1])), 5, 3000);
	dma_unmap_sg(dev, list, 2, DMA_BIDIRECTIONAL);
	EXPECT(all(buffer, 4, 200) && all(buffer + 200, 5, 3000));
	return 0;
}

static int room(struct device *dev)
{
	struct scatterlist list[2];
	dma_addr_t addr, other;
	size_t size;

	EXPECT(occupy(dev, 0) == DMA_MAPPING_ERROR);
	EXPECT(occupy(dev, bytes + 1) == DMA_MAPPING_ERROR);
	EXPECT(occupy(dev, 1UL << 43) == DMA_MAPPING_ERROR);
	EXPECT(occupy(dev, SIZE_MAX) == DMA_MAPPING_ERROR);
	addr = occupy(dev, bytes);
	EXPECT(addr == region);
	EXPECT(occupy(dev, 1) == DMA_MAPPING_ERROR);
	vacate(dev, addr, bytes);
	/* Nobody gets what another one has. */
	addr = occupy(dev, LENGTH);
	for (size = bytes; size > LENGTH; size -= 2048) {
		other = occupy(dev, size);
		EXPECT(other == DMA_MAPPING_ERROR ||
		       other + size <= addr || addr + LENGTH <= other);
		if (other != DMA_MAPPING_ERROR)
			vacate(dev, other, size);
	}
	vacate(dev, addr, LENGTH);
	/* A list that finds room for a part only takes none. */
	addr = occupy(dev, bytes - 4096);
	sg_init_table(list, 2);
	sg_set_buf(&list[0], buffer, 100);
	sg_set_buf(&list[1], buffer + 200, 3000);
	EXPECT(!dma_map_sg(dev, list, 2, DMA_TO_DEVICE));
	other = occupy(dev, 4096);
	EXPECT(other != DMA_MAPPING_ERROR);
	vacate(dev, other, 4096);
	vacate(dev, addr, bytes - 4096);
	/* Some devices read meaning into the low bits of addresses (NVMe). */
	dma_set_min_align_mask(dev, PAGE_SIZE - 1);
	for (size = 1; size < 4096; size = size * 2 + 1) {
		addr = dma_map_single(dev, buffer + size, 64, DMA_TO_DEVICE);
		EXPECT(inside(addr, 64));
		EXPECT(offset_in_page(addr) == offset_in_page(buffer + size));
		other = dma_map_single(dev, buffer + size, 64, DMA_TO_DEVICE);
		EXPECT(offset_in_page(other) == offset_in_page(addr) && other != addr);
		dma_unmap_single(dev, addr, 64, DMA_TO_DEVICE);
		dma_unmap_single(dev, other, 64, DMA_TO_DEVICE);
	}
	dma_set_min_align_mask(dev, 0);
	EXPECT(dma_max_mapping_size(dev) == longest);
	return 0;
}

static int coherent(struct device *dev)
{
	dma_addr_t addr = occupy(dev, bytes), other;
	u64 mask = *dev->dma_mask;
	unsigned int i;
	struct sg_table table;
	struct page *page;
	u8 *memory;

	memset(seen(addr), 0xff, bytes);
	vacate(dev, addr, bytes);
	memory = dma_alloc_coherent(dev, LENGTH, &addr, GFP_KERNEL);
	EXPECT(memory && memory == seen(addr) && inside(addr, 8192));
	EXPECT(IS_ALIGNED(addr, 8192) && all(memory, 0, 8192));
	/* Whole pages are the driver's: the rest has room for mappings, they have none. */
	for (i = 0; occupy(dev, 2048) != DMA_MAPPING_ERROR; i++)
		;
	EXPECT(i == (bytes - 8192) / 2048);
	for (other = region; other < region + bytes; other += 2048)
		if (other < addr || other >= addr + 8192)
			vacate(dev, other, 2048);
	page = dma_alloc_pages(dev, PAGE_SIZE, &other, DMA_BIDIRECTIONAL, GFP_KERNEL);
	EXPECT(page && page_address(page) == seen(other));
	EXPECT(other + PAGE_SIZE <= addr || other >= addr + 8192);
	/* Used where it is: there is nothing to copy. */
	memset(memory, 1, 8192);
	dma_sync_single_for_cpu(dev, addr, LENGTH, DMA_FROM_DEVICE);
	dma_sync_single_for_device(dev, addr, LENGTH, DMA_TO_DEVICE);
	EXPECT(all(memory, 1, 8192));
	EXPECT(dma_get_sgtable(dev, &table, memory, addr, LENGTH));
	dma_free_pages(dev, PAGE_SIZE, page, other, DMA_BIDIRECTIONAL);
	dma_free_coherent(dev, LENGTH, memory, addr);
	/* All of it is never kept: a mapping would have no room. */
	EXPECT(!dma_alloc_coherent(dev, bytes, &addr, GFP_KERNEL | __GFP_NOWARN));
	for (i = 0; i < 8; i++) {
		memory = dma_alloc_coherent(dev, bytes / 2, &addr, GFP_KERNEL);
		EXPECT(memory && IS_ALIGNED(addr, bytes / 2));
		dma_free_coherent(dev, bytes / 2, memory, addr);
	}

	/* Addresses that the device does not have. */
	EXPECT(dma_set_mask(dev, DMA_BIT_MASK(fls64(region) - 1)) == -EIO);
	EXPECT(dma_get_required_mask(dev) == DMA_BIT_MASK(fls64(region + bytes - 1)));
	*dev->dma_mask = DMA_BIT_MASK(fls64(region) - 1);
	EXPECT(occupy(dev, 1) == DMA_MAPPING_ERROR);
	*dev->dma_mask = mask;
	mask = dev->coherent_dma_mask;
	dev->coherent_dma_mask = DMA_BIT_MASK(fls64(region) - 1);
	memory = dma_alloc_coherent(dev, PAGE_SIZE, &addr, GFP_KERNEL | __GFP_NOWARN);
	dev->coherent_dma_mask = mask;
	EXPECT(!memory);
	addr = dma_map_resource(dev, pci_resource_start(to_pci_dev(dev), 0),
				PAGE_SIZE, DMA_TO_DEVICE, 0);
	EXPECT(addr == DMA_MAPPING_ERROR);
	return 0;
}

/* A driver that names what is not its own. Whoever has what is there keeps it, and nothing is copied. */
static int strangers(struct device *dev)
{
	dma_addr_t addr = map(dev, 1, 3000, DMA_BIDIRECTIONAL), gone;

	memset(seen(addr), 2, 4096);
	dma_sync_single_for_cpu(dev, addr, 3001, DMA_FROM_DEVICE);
	dma_sync_single_for_cpu(dev, addr, SIZE_MAX, DMA_FROM_DEVICE);
	dma_sync_single_for_cpu(dev, addr + 2999, 2, DMA_FROM_DEVICE);
	dma_sync_single_for_cpu(dev, addr + 3500, 1, DMA_FROM_DEVICE);
	dma_sync_single_for_cpu(dev, addr + 3500, SIZE_MAX - 400, DMA_FROM_DEVICE);
	dma_sync_single_for_cpu(dev, region - 1, 1, DMA_FROM_DEVICE);
	dma_sync_single_for_cpu(dev, region + bytes, 1, DMA_FROM_DEVICE);
	dma_sync_single_for_cpu(dev, 0, 1, DMA_FROM_DEVICE);
	dma_sync_single_for_cpu(dev, DMA_MAPPING_ERROR, 1, DMA_FROM_DEVICE);
	EXPECT(all(buffer, 1, LENGTH));
	gone = dma_map_single(dev, buffer, 64, DMA_BIDIRECTIONAL);
	dma_unmap_single(dev, gone, 64, DMA_BIDIRECTIONAL);
	memset(seen(gone), 3, 64);
	dma_sync_single_for_cpu(dev, gone, 64, DMA_FROM_DEVICE);
	EXPECT(all(buffer, 1, LENGTH));
	dma_unmap_single(dev, gone, 64, DMA_BIDIRECTIONAL);
	vacate(dev, region - 4096, 1);
	vacate(dev, region + bytes, 1);
	EXPECT(all(buffer, 1, LENGTH) && all(seen(addr), 2, 3000));
	dma_unmap_single(dev, addr, 3000, DMA_BIDIRECTIONAL);
	EXPECT(all(buffer, 2, 3000) && all(buffer + 3000, 1, LENGTH - 3000));
	return 0;
}

/* A device that is not confined, and whose driver finds out that it needs no syncs. */
static int plain(struct device *dev)
{
	dma_addr_t addr;

	EXPECT(!dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64)));
	addr = map(dev, 1, LENGTH, DMA_BIDIRECTIONAL);
	EXPECT(addr == virt_to_phys(buffer));
	dma_unmap_single(dev, addr, LENGTH, DMA_BIDIRECTIONAL);
	return 0;
}

/* What an earlier driver found out about the device is still so. */
static int kept(struct device *dev)
{
	EXPECT(dev->coherent_dma_mask == DMA_BIT_MASK(64));
	EXPECT(*dev->dma_mask == DMA_BIT_MASK(64));
	return 0;
}

/* A driver that asks for nothing before it maps. */
static int syncs(struct device *dev)
{
	dma_addr_t addr = map(dev, 1, LENGTH, DMA_FROM_DEVICE);

	EXPECT(inside(addr, LENGTH));
	memset(seen(addr), 2, LENGTH);
	dma_sync_single_for_cpu(dev, addr, LENGTH, DMA_FROM_DEVICE);
	EXPECT(all(buffer, 2, LENGTH));
	dma_unmap_single(dev, addr, LENGTH, DMA_FROM_DEVICE);
	return 0;
}

/* A driver that leaves memory behind. */
static int leave(struct device *dev)
{
	dma_addr_t addr;

	EXPECT(dma_alloc_coherent(dev, 8192, &addr, GFP_KERNEL));
	return 0;
}

/* DMA operations of somebody else's, which stay when the driver goes. */
static const struct dma_map_ops foreign_ops;

static int foreign(struct device *dev)
{
	set_dma_ops(dev, &foreign_ops);
	return 0;
}

static int reset(struct device *dev)
{
	set_dma_ops(dev, NULL);
	return 0;
}

/* An earlier kernel that confined the device: to this page, which nobody gives back. The number is porthole_abi.h's. */
#define DMA_CONFINE	0xC6000160
static void *earlier_page;

static int earlier(struct device *dev)
{
	struct arm_smccc_res result;

	if (!earlier_page)
		earlier_page = (void *)get_zeroed_page(GFP_KERNEL);
	EXPECT(earlier_page);
	arm_smccc_1_1_hvc(DMA_CONFINE, pci_dev_id(to_pci_dev(dev)),
			  virt_to_phys(earlier_page), 1, &result);
	EXPECT(!result.a0);
	return 0;
}

/* Registers of edu (QEMU, docs/specs/edu.rst), and its buffer. */
#define EDU_SOURCE	0x80
#define EDU_TARGET	0x88
#define EDU_COUNT	0x90
#define EDU_COMMAND	0x98
#define EDU_START	1
#define EDU_BUFFER	0x40000

/* A device that reads right behind its region. */
static int fault(struct device *dev)
{
	struct pci_dev *pdev = to_pci_dev(dev);
	void __iomem *registers;

	EXPECT(!pcim_enable_device(pdev));
	pci_set_master(pdev);
	registers = pcim_iomap(pdev, 0, 0);
	EXPECT(registers);
	writeq(region + bytes, registers + EDU_SOURCE);
	writeq(EDU_BUFFER, registers + EDU_TARGET);
	writeq(8, registers + EDU_COUNT);
	writeq(EDU_START, registers + EDU_COMMAND);
	while (readq(registers + EDU_COMMAND) & EDU_START)
		cond_resched();
	return 0;
}

#define SHOWN	(3 * PAGE_SIZE)
static struct device *shown_by;
static dma_addr_t shown_at;
static u8 *shown;

static int show_mmap(struct file *file, struct vm_area_struct *vma)
{
	return dma_mmap_coherent(shown_by, vma, shown, shown_at, SHOWN);
}

static const struct file_operations show_fops = {
	.owner = THIS_MODULE,
	.mmap = show_mmap,
};

static struct miscdevice show_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "porthole-dma-test",
	.fops = &show_fops,
};

/* A driver that shows its memory to processes, until it is unbound. */
static int show(struct device *dev)
{
	shown = dma_alloc_coherent(dev, SHOWN, &shown_at, GFP_KERNEL);
	EXPECT(shown);
	shown_by = dev;
	memset(shown, 1, PAGE_SIZE);
	memset(shown + PAGE_SIZE, 2, PAGE_SIZE);
	memset(shown + 2 * PAGE_SIZE, 3, PAGE_SIZE);
	return misc_register(&show_device);
}

static const struct {
	const char *name;
	int (*run)(struct device *dev);
} steps[] = {
	{ "copies", copies }, { "lists", lists }, { "room", room },
	{ "coherent", coherent }, { "strangers", strangers }, { "plain", plain },
	{ "syncs", syncs }, { "leave", leave }, { "show", show },
	{ "kept", kept }, { "foreign", foreign }, { "reset", reset },
	{ "earlier", earlier }, { "fault", fault },
};

static int test_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	unsigned int i;

	buffer = (u8 *)devm_get_free_pages(&pdev->dev, GFP_KERNEL, 1);
	if (!buffer)
		return -ENOMEM;
	for (i = 0; i < ARRAY_SIZE(steps); i++)
		if (sysfs_streq(step, steps[i].name))
			return steps[i].run(&pdev->dev);
	return -EINVAL;
}

static void test_remove(struct pci_dev *pdev)
{
	if (shown) {
		misc_deregister(&show_device);
		dma_free_coherent(&pdev->dev, SHOWN, shown, shown_at);
		shown = NULL;
	}
	/* What kernels with arch_teardown_dma_ops do when a driver goes. */
	if (!sysfs_streq(step, "foreign"))
		set_dma_ops(&pdev->dev, NULL);
}

/* No ids: a device is bound by its driver_override. */
static struct pci_driver test_driver = {
	.name = "porthole_dma_test",
	.probe = test_probe,
	.remove = test_remove,
};

module_pci_driver(test_driver);

MODULE_DESCRIPTION("Tests of the DMA API of a device that Porthole confines");
MODULE_LICENSE("GPL");
