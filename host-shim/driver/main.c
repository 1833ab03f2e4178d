// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/porthole: what concerns the hypervisor as a whole. Creating a VM starts
 * here too; everything about one VM is in vm.c.
 */
#include "porthole.h"

#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/reboot.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

/* Passes that AUDIT makes before it gives up on a quiet one. */
#define AUDIT_PASSES	64
/* Most bytes of one LOG_READ. */
#define LOG_READ_MAX	(1024 * 1024)
/* End of the addresses that PAGE_FIND takes: the host's 40-bit IPAs. */
#define PA_END		(1ULL << 40)
/* How long a machine that goes down waits for the last VM. */
#define END_PATIENCE	(10 * HZ)

/* Pages that could not be freed because the hypervisor did not give them back. */
atomic64_t porthole_leaked_pages = ATOMIC64_INIT(0);
struct workqueue_struct *porthole_wq;
static u32 abi_version;

static long handle_info(struct porthole_request *request)
{
	struct porthole_info *info = request->arg;
	struct arm_smccc_1_2_regs regs = { .a0 = PORTHOLE_FN_FEATURES };

	porthole_call_regs(&regs);
	if (regs.a0)
		return porthole_errno(regs.a0);
	*info = (struct porthole_info) {
		.uapi_version = PORTHOLE_UAPI_VERSION,
		.abi_version = regs.a1,
		.features = regs.a2,
		.reserved_bytes = regs.a3,
		.cpus = regs.a4,
		.pool_free_pages = regs.a5,
		.ram_bytes = regs.a6,
		.leaked_pages = atomic64_read(&porthole_leaked_pages),
	};
	return 0;
}

static bool fill_entry(struct porthole_vm_entry *entry, unsigned int slot)
{
	struct arm_smccc_1_2_regs regs = { .a0 = PORTHOLE_FN_VM_INFO, .a1 = slot };

	porthole_call_regs(&regs);
	if (regs.a0 || !regs.a1)
		return false;
	*entry = (struct porthole_vm_entry) {
		.handle = regs.a1,
		.state = regs.a2,
		.memory_pages = regs.a3,
		.metadata_pages = regs.a4,
		.windows = regs.a5,
		.vcpus = regs.a6,
		.metadata_free = regs.a7,
		.pid = porthole_vm_creator(regs.a1),
		.flags = regs.a8,
	};
	return true;
}

static long handle_list(struct porthole_request *request)
{
	struct porthole_list *list = request->arg;
	struct porthole_vm_entry *entries;
	unsigned int slot;
	long ret = 0;

	entries = kcalloc(PORTHOLE_VMS_MAX, sizeof(*entries), GFP_KERNEL);
	if (!entries)
		return -ENOMEM;
	list->count = 0;
	for (slot = 0; slot < PORTHOLE_VMS_MAX; slot++)
		if (fill_entry(&entries[list->count], slot))
			list->count++;
	if (list->count > list->capacity)
		ret = -ENOSPC;
	if (copy_to_user(u64_to_user_ptr(list->entries), entries,
			 min(list->count, list->capacity) * sizeof(*entries)))
		ret = -EFAULT;
	kfree(entries);
	return ret;
}

/* One pass: 0, -EAGAIN if ownership moved meanwhile, or another error. */
static int audit_pass(struct porthole_audit *audit)
{
	u64 cursor = 0;

	audit->shared_pages = 0;
	audit->window_pages = 0;
	audit->offender = PORTHOLE_NO_ADDRESS;
	audit->steps = 0;
	do {
		struct porthole_result step =
			porthole_call(PORTHOLE_FN_SHARE_AUDIT, cursor);

		if (step.status == PORTHOLE_E_BUSY)
			return -EAGAIN;
		if (step.status)
			return porthole_errno(step.status);
		if (audit->steps && step.x5 != audit->epoch)
			return -EAGAIN;
		cursor = step.x1;
		audit->shared_pages += step.x2;
		audit->window_pages += step.x3;
		if (audit->offender == PORTHOLE_NO_ADDRESS)
			audit->offender = step.x4;
		audit->epoch = step.x5;
		audit->steps++;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	} while (cursor);
	return 0;
}

static long handle_audit(struct porthole_request *request)
{
	struct porthole_audit *audit = request->arg;
	int ret = -EAGAIN;

	for (audit->passes = 0; ret == -EAGAIN && audit->passes < AUDIT_PASSES;
	     audit->passes++)
		ret = audit_pass(audit);
	return ret;
}

static long handle_log_read(struct porthole_request *request)
{
	struct porthole_log_read *log = request->arg;
	u8 __user *to = u64_to_user_ptr(log->buffer);

	log->length = 0;
	if (!log->capacity || log->capacity > LOG_READ_MAX)
		return -EINVAL;
	while (log->length < log->capacity) {
		struct arm_smccc_1_2_regs regs = {
			.a0 = PORTHOLE_FN_LOG_READ,
			.a1 = log->position + log->length,
		};
		u32 length;

		porthole_call_regs(&regs);
		if (regs.a0)
			return porthole_errno(regs.a0);
		length = min3(regs.a2, (unsigned long)PORTHOLE_LOG_CHUNK,
			      (unsigned long)(log->capacity - log->length));
		if (!log->length)
			log->position = regs.a1;
		else if (regs.a1 != log->position + log->length)
			break;	/* overtaken by the writer: what is here is whole */
		if (!length)
			break;
		/* The bytes are the memory image of x3 to x17. */
		if (copy_to_user(to + log->length, &regs.a3, length))
			return -EFAULT;
		log->length += length;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static long handle_stats(struct porthole_request *request)
{
	struct porthole_stats *stats = request->arg;
	struct porthole_result result =
		porthole_call(PORTHOLE_FN_STATS, stats->kind, stats->index);

	stats->refusal = 0;
	stats->value = result.status ? 0 : result.x1;
	return porthole_refused(result.status, &stats->refusal);
}

static long handle_page_info(struct porthole_request *request)
{
	struct porthole_page_info *info = request->arg;
	struct porthole_result result =
		porthole_call(PORTHOLE_FN_PAGE_INFO, info->pa);

	info->refusal = 0;
	info->owner = result.status ? 0 : result.x1;
	info->vm = result.status ? 0 : result.x2;
	info->pages = result.status ? 0 : result.x3;
	return porthole_refused(result.status, &info->refusal);
}

static long handle_page_find(struct porthole_request *request)
{
	struct porthole_page_find *find = request->arg;
	u64 pa;

	if (find->reserved || !PAGE_ALIGNED(find->start) || find->end > PA_END)
		return -EINVAL;
	for (pa = find->start; pa < find->end; pa += PAGE_SIZE) {
		struct porthole_result result =
			porthole_call(PORTHOLE_FN_PAGE_INFO, pa);

		if (!result.status && result.x1 == find->owner &&
		    (!find->vm || result.x2 == find->vm)) {
			find->start = pa;
			return 0;
		}
		if (signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return -ENOENT;
}

static long handle_vm_window(struct porthole_request *request)
{
	struct porthole_vm_window *window = request->arg;
	struct arm_smccc_1_2_regs regs = {
		.a0 = PORTHOLE_FN_WINDOW_INFO,
		.a1 = window->vm,
		.a2 = window->id,
	};

	window->refusal = 0;
	porthole_call_regs(&regs);
	if (regs.a0)
		return porthole_refused(regs.a0, &window->refusal);
	window->ipa = regs.a1;
	window->length = regs.a2;
	window->function = regs.a3;
	window->bar = regs.a4;
	window->bar_offset = regs.a5;
	window->function_mask = regs.a6;
	return 0;
}

static const struct porthole_ioctl device_ioctls[] = {
	PORTHOLE_IOCTL(PORTHOLE_INFO, handle_info),
	PORTHOLE_IOCTL(PORTHOLE_CREATE_VM, porthole_vm_create),
	PORTHOLE_IOCTL(PORTHOLE_LIST, handle_list),
	PORTHOLE_IOCTL(PORTHOLE_AUDIT, handle_audit),
	PORTHOLE_IOCTL(PORTHOLE_LOG_READ, handle_log_read),
	PORTHOLE_IOCTL(PORTHOLE_STATS, handle_stats),
	PORTHOLE_IOCTL(PORTHOLE_PAGE_INFO, handle_page_info),
	PORTHOLE_IOCTL(PORTHOLE_PAGE_FIND, handle_page_find),
	PORTHOLE_IOCTL(PORTHOLE_VM_WINDOW, handle_vm_window),
	PORTHOLE_IOCTL(PORTHOLE_DMA_CONFINE, porthole_dma_confine),
	PORTHOLE_IOCTL(PORTHOLE_DMA_RELEASE, porthole_dma_release),
	PORTHOLE_IOCTL(PORTHOLE_DMA_INFO, porthole_dma_info),
};

static long device_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return porthole_ioctl(device_ioctls, ARRAY_SIZE(device_ioctls), NULL,
			      cmd, arg);
}

static const struct file_operations device_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "porthole",
	.fops = &device_fops,
	.mode = 0600,
};

/*
 * The machine restarts, or another kernel takes it over (kexec), which would
 * take the pages of guests for its own: VMs end first.
 */
static int going_down(struct notifier_block *block, unsigned long action,
		      void *unused)
{
	if (!porthole_vms_end(END_PATIENCE))
		pr_warn("VMs are left; a kernel started now cannot use their pages\n");
	return NOTIFY_DONE;
}

static struct notifier_block reboot_notifier = {
	.notifier_call = going_down,
};

static int __init porthole_init(void)
{
	int ret;

	BUILD_BUG_ON(PAGE_SIZE != PORTHOLE_PAGE_SIZE);
	ret = porthole_discover(&abi_version);
	if (ret)
		return ret;
	porthole_wq = alloc_workqueue("porthole", WQ_UNBOUND, 0);
	if (!porthole_wq)
		return -ENOMEM;
	ret = porthole_confine_init();
	if (ret)
		goto no_confine;
	ret = misc_register(&device);
	if (ret) {
		pr_err("cannot make /dev/porthole (error %d)\n", ret);
		goto no_device;
	}
	register_reboot_notifier(&reboot_notifier);
	pr_info("Porthole runs at EL2, ABI %u.%u\n", abi_version >> 16,
		abi_version & 0xffff);
	return 0;

no_device:
	porthole_confine_exit();
no_confine:
	destroy_workqueue(porthole_wq);
	return ret;
}

/*
 * No VM is left and no device confined: each file holds the module, and so do a
 * reaper at work and a confinement.
 */
static void __exit porthole_exit(void)
{
	unregister_reboot_notifier(&reboot_notifier);
	misc_deregister(&device);
	porthole_confine_exit();
	destroy_workqueue(porthole_wq);
}

module_init(porthole_init);
module_exit(porthole_exit);

MODULE_DESCRIPTION("Protected virtual machines under the Porthole hypervisor");
MODULE_AUTHOR("The Porthole authors");
MODULE_LICENSE("GPL");
