// SPDX-License-Identifier: GPL-2.0-only
/*
 * Confined devices: which PCI functions can be, their regions, the calls to the
 * hypervisor, and what happens when a driver comes or the device goes.
 * How a driver's DMA gets into the region is in pool.c.
 */
#include "porthole.h"

#include <linux/log2.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/property.h>
#include <linux/sizes.h>
#include <linux/slab.h>

/* The longest region, in bytes. */
#define REGION_MAX	((u64)PORTHOLE_DMA_PAGES_MAX << PAGE_SHIFT)
/* Physical addresses that the hypervisor lets a confined device use. */
#define REGION_BITS	39
/* Disks in PCI device ids of virtio: 1.x, and transitional (virtio 1.2, 4.1.2) */
#define VIRTIO_BLK	0x1042
#define VIRTIO_BLK_OLD	0x1001

struct porthole_confined {
	struct list_head link;
	struct pci_dev *pdev;
	struct page *pages;
	dma_addr_t handle;	/* of the pages, for the kernel's own bookkeeping */
	struct porthole_pool pool;
};

static LIST_HEAD(confined);
static DEFINE_MUTEX(confined_lock);

static struct porthole_confined *find(const struct device *dev)
{
	struct porthole_confined *c;

	list_for_each_entry(c, &confined, link)
		if (&c->pdev->dev == dev)
			return c;
	return NULL;
}

static u32 function_of(struct pci_dev *pdev)
{
	return (u32)pci_domain_nr(pdev->bus) << 16 | pci_dev_id(pdev);
}

static struct pci_dev *get_device_of(u32 function)
{
	return pci_get_domain_bus_and_slot(function >> 16,
					   PCI_BUS_NUM(function & 0xffff),
					   function & 0xff);
}

/*
 * What holds a device's accesses is the requester id that they carry. Bridges
 * to buses that are not PCI Express put their own there.
 */
static bool has_own_id(struct pci_dev *pdev)
{
	struct pci_bus *bus;

	if (pdev->dma_alias_mask)
		return false;
	for (bus = pdev->bus; !pci_is_root_bus(bus); bus = bus->parent) {
		if (!bus->self)
			continue;
		if (!pci_is_pcie(bus->self) ||
		    pci_pcie_type(bus->self) == PCI_EXP_TYPE_PCI_BRIDGE ||
		    pci_pcie_type(bus->self) == PCI_EXP_TYPE_PCIE_BRIDGE)
			return false;
	}
	return true;
}

/* The device's addresses are physical ones, and it sees what the CPUs see. */
static bool has_plain_addresses(struct pci_dev *pdev)
{
	struct pci_host_bridge *bridge = pci_find_host_bridge(pdev->bus);
	struct resource_entry *range;

	resource_list_for_each_entry(range, &bridge->dma_ranges)
		if (range->offset)
			return false;
	return bridge->dev.parent &&
	       device_get_dma_attr(bridge->dev.parent) == DEV_DMA_COHERENT;
}

/*
 * Disk drivers split requests by dma_max_mapping_size; virtio_blk limits only
 * the pieces of a request by it, and tries one that cannot be mapped for ever.
 */
static u64 least(struct pci_dev *pdev)
{
	return pdev->vendor == PCI_VENDOR_ID_REDHAT_QUMRANET &&
	       (pdev->device == VIRTIO_BLK || pdev->device == VIRTIO_BLK_OLD) ?
		       SZ_2M : PAGE_SIZE;
}

static u32 obstacle(struct pci_dev *pdev, u64 size)
{
	if (!IS_ENABLED(CONFIG_ARCH_HAS_DMA_OPS))
		return PORTHOLE_DMA_OBSTACLE_KERNEL;
	if (pdev->hdr_type != PCI_HEADER_TYPE_NORMAL ||
	    pdev->class >> 16 == PCI_BASE_CLASS_BRIDGE)
		return PORTHOLE_DMA_OBSTACLE_BRIDGE;
	if (!has_own_id(pdev))
		return PORTHOLE_DMA_OBSTACLE_ALIAS;
	if (device_iommu_mapped(&pdev->dev) || get_dma_ops(&pdev->dev))
		return PORTHOLE_DMA_OBSTACLE_IOMMU;
	if (!has_plain_addresses(pdev))
		return PORTHOLE_DMA_OBSTACLE_ADDRESS;
	if (size < least(pdev))
		return PORTHOLE_DMA_OBSTACLE_SIZE;
	return PORTHOLE_DMA_OBSTACLE_NONE;
}

/*
 * Contiguous memory below 4 GiB, where every device can use it, or else where
 * the hypervisor allows it. The kernel takes it from its area for such requests
 * (cma=) or, up to 4 MiB, from anywhere.
 */
static struct page *get_region(struct pci_dev *pdev, size_t size,
			       dma_addr_t *handle)
{
	static const unsigned int bits[] = { 32, REGION_BITS };
	struct device *dev = &pdev->dev;
	u64 mask = dev->coherent_dma_mask;
	struct page *pages = NULL;
	unsigned int i;

	for (i = 0; !pages && i < ARRAY_SIZE(bits); i++) {
		dev->coherent_dma_mask = DMA_BIT_MASK(bits[i]);
		pages = dma_alloc_pages(dev, size, handle, DMA_BIDIRECTIONAL,
					GFP_KERNEL | __GFP_NOWARN);
	}
	dev->coherent_dma_mask = mask;
	return pages;
}

static void put_region(struct pci_dev *pdev, size_t size, struct page *pages,
		       dma_addr_t handle)
{
	dma_free_pages(&pdev->dev, size, pages, handle, DMA_BIDIRECTIONAL);
}

/* A size that could be had, and would do, instead of one that could not. */
static u64 available(struct pci_dev *pdev, size_t size)
{
	struct page *pages;
	dma_addr_t handle;

	/* The least is a power of two: rounding does not go below it. */
	while (size > least(pdev)) {
		size = rounddown_pow_of_two(size - 1);
		pages = get_region(pdev, size, &handle);
		if (pages) {
			put_region(pdev, size, pages, handle);
			return size;
		}
	}
	return 0;
}

/* With device_lock, without a driver. */
static long confine(struct pci_dev *pdev, struct porthole_dma_confine *arg)
{
	struct porthole_confined *c;
	long ret = -ENOMEM;

	if (find(&pdev->dev))
		return -EEXIST;
	arg->obstacle = obstacle(pdev, arg->size);
	if (arg->obstacle)
		return -EOPNOTSUPP;
	c = kzalloc(sizeof(*c), GFP_KERNEL);
	if (!c)
		return -ENOMEM;
	c->pages = get_region(pdev, arg->size, &c->handle);
	if (!c->pages) {
		arg->available = available(pdev, arg->size);
		goto no_pages;
	}
	ret = porthole_pool_init(&c->pool, c->pages, arg->size);
	if (ret)
		goto no_pool;
	/* A transfer that was under way must not find another map half-way. */
	pci_clear_master(pdev);
	ret = -ETIMEDOUT;
	if (pci_is_pcie(pdev) && !pci_wait_for_pending_transaction(pdev))
		goto refused;
	arg->pa = page_to_phys(c->pages);
	ret = porthole_refused(porthole_call(PORTHOLE_FN_DMA_CONFINE,
					     arg->function, arg->pa,
					     arg->size >> PAGE_SHIFT).status,
			       &arg->refusal);
	if (ret)
		goto refused;
	c->pdev = pci_dev_get(pdev);
	list_add_tail(&c->link, &confined);
	__module_get(THIS_MODULE);
	pci_info(pdev, "porthole: DMA is confined to %llu KiB at %#llx\n",
		 arg->size >> 10, arg->pa);
	return 0;

refused:
	arg->pa = 0;
	porthole_pool_free(&c->pool);
no_pool:
	put_region(pdev, arg->size, c->pages, c->handle);
no_pages:
	kfree(c);
	return ret;
}

long porthole_dma_confine(struct porthole_request *request)
{
	struct porthole_dma_confine *arg = request->arg;
	struct pci_dev *pdev;
	long ret = -EBUSY;

	arg->pa = arg->available = arg->obstacle = arg->refusal = 0;
	if (arg->reserved || !arg->size || !PAGE_ALIGNED(arg->size) ||
	    arg->size > REGION_MAX)
		return -EINVAL;
	/* The device stays, and so does its lack of a driver. */
	pci_lock_rescan_remove();
	pdev = get_device_of(arg->function);
	if (!pdev) {
		pci_unlock_rescan_remove();
		return -ENODEV;
	}
	device_lock(&pdev->dev);
	mutex_lock(&confined_lock);
	if (!pdev->dev.driver)
		ret = confine(pdev, arg);
	else if (find(&pdev->dev))
		ret = -EEXIST;
	mutex_unlock(&confined_lock);
	device_unlock(&pdev->dev);
	pci_dev_put(pdev);
	pci_unlock_rescan_remove();
	return ret;
}

/* No driver is bound. The region is kept if the hypervisor does. */
static long release(struct porthole_confined *c, s32 *refusal)
{
	struct pci_dev *pdev = c->pdev;
	s64 status;

	pci_clear_master(pdev);
	status = porthole_call(PORTHOLE_FN_DMA_RELEASE, function_of(pdev)).status;
	if (status && status != PORTHOLE_E_NOT_CONFINED)
		return porthole_refused(status, refusal);
	set_dma_ops(&pdev->dev, NULL);
	if (c->pool.busy)
		pci_warn(pdev, "porthole: its last driver has left %llu bytes of DMA memory behind\n",
			 porthole_pool_used(&c->pool));
	list_del(&c->link);
	porthole_pool_free(&c->pool);
	put_region(pdev, c->pool.size, c->pages, c->handle);
	pci_info(pdev, "porthole: DMA is no longer confined\n");
	pci_dev_put(pdev);
	kfree(c);
	module_put(THIS_MODULE);
	return 0;
}

long porthole_dma_release(struct porthole_request *request)
{
	struct porthole_dma_release *arg = request->arg;
	struct porthole_confined *c = NULL;
	struct pci_dev *pdev;
	long ret;

	arg->refusal = 0;
	pci_lock_rescan_remove();
	pdev = get_device_of(arg->function);
	if (pdev)
		device_lock(&pdev->dev);
	mutex_lock(&confined_lock);
	if (pdev)
		c = find(&pdev->dev);
	if (pdev && pdev->dev.driver)
		ret = -EBUSY;
	else if (c)
		ret = release(c, &arg->refusal);
	else	/* An earlier kernel's: its region is this one's ordinary memory. */
		ret = porthole_refused(porthole_call(PORTHOLE_FN_DMA_RELEASE,
						     arg->function).status,
				       &arg->refusal);
	mutex_unlock(&confined_lock);
	if (pdev) {
		device_unlock(&pdev->dev);
		pci_dev_put(pdev);
	}
	pci_unlock_rescan_remove();
	return ret;
}

static void add_pool(struct porthole_dma_info *info)
{
	struct porthole_confined *c;

	mutex_lock(&confined_lock);
	list_for_each_entry(c, &confined, link) {
		if (function_of(c->pdev) != info->function)
			continue;
		info->owned = 1;
		info->used = porthole_pool_used(&c->pool);
		info->failed = atomic64_read(&c->pool.failed);
	}
	mutex_unlock(&confined_lock);
}

static s64 get_info(struct porthole_dma_info *info)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = PORTHOLE_FN_DMA_INFO, .a1 = info->index,
	};

	porthole_call_regs(&regs);
	if (regs.a0)
		return regs.a0;
	info->kind = regs.a1;
	info->function = regs.a2;
	if (info->kind == PORTHOLE_DMA_CONFINED) {
		info->pa = regs.a3;
		info->size = regs.a4 << PAGE_SHIFT;
	} else if (info->kind == PORTHOLE_DMA_FAULTS) {
		info->stream = regs.a3;
		info->count = regs.a4;
		info->address = regs.a5;
		info->event = regs.a6;
	}
	return 0;
}

long porthole_dma_info(struct porthole_request *request)
{
	struct porthole_dma_info *info = request->arg;
	long ret;

	*info = (struct porthole_dma_info) { .index = info->index };
	ret = porthole_refused(get_info(info), &info->refusal);
	if (!ret && info->kind == PORTHOLE_DMA_CONFINED)
		add_pool(info);
	return ret;
}

static int device_event(struct notifier_block *block, unsigned long action,
			void *data)
{
	struct porthole_confined *c;
	s32 refusal;

	if (action != BUS_NOTIFY_BIND_DRIVER &&
	    action != BUS_NOTIFY_REMOVED_DEVICE)
		return NOTIFY_DONE;
	mutex_lock(&confined_lock);
	c = find(data);
	if (c && action == BUS_NOTIFY_BIND_DRIVER)
		/*
		 * Here, for each driver anew, and nowhere else: the bus has
		 * just configured the device's DMA, and some kernels (not
		 * Debian's 6.12) reset the operations whenever a driver goes.
		 */
		porthole_pool_serve(&c->pool, data);
	else if (c && release(c, &refusal))
		pci_err(c->pdev, "porthole: it is gone and still confined; its region is lost\n");
	mutex_unlock(&confined_lock);
	return NOTIFY_DONE;
}

static struct notifier_block device_notifier = {
	.notifier_call = device_event,
};

int porthole_confine_init(void)
{
	struct porthole_dma_info info = { 0 };

	for (; info.index < PORTHOLE_DMA_CONFINED_MAX; info.index++)
		if (!get_info(&info) && info.kind == PORTHOLE_DMA_CONFINED)
			pr_warn("%04x:%02x:%02x.%u is confined by an earlier kernel and will not work: `porthole dma release` it\n",
				info.function >> 16,
				PCI_BUS_NUM(info.function & 0xffff),
				PCI_SLOT(info.function), PCI_FUNC(info.function));
	return bus_register_notifier(&pci_bus_type, &device_notifier);
}

void porthole_confine_exit(void)
{
	bus_unregister_notifier(&pci_bus_type, &device_notifier);
}
