// SPDX-License-Identifier: GPL-2.0-only
/*
 * A VM and its file: creation, the ioctls, and the teardown that runs when the
 * last file, vCPU file or mapping is gone, whatever ended the process.
 */
#include "porthole.h"

#include <linux/delay.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

/* How long the closing task itself tries; then the reaper goes on each second. */
#define TEARDOWN_PATIENCE	(5 * HZ)
#define REAPER_PERIOD		HZ

static LIST_HEAD(vms);
static DEFINE_SPINLOCK(vms_lock);
static const struct file_operations vm_fops;

/* The process that made a VM, as the caller's pid namespace numbers it; 0 if gone. */
pid_t porthole_vm_creator(u64 handle)
{
	struct porthole_vm *vm;
	pid_t pid = 0;

	spin_lock(&vms_lock);
	list_for_each_entry(vm, &vms, link) {
		if (vm->handle != handle)
			continue;
		rcu_read_lock();
		if (pid_task(vm->creator, PIDTYPE_TGID))
			pid = pid_vnr(vm->creator);
		rcu_read_unlock();
		break;
	}
	spin_unlock(&vms_lock);
	return pid;
}

/*
 * Ends the processes that made VMs and waits until all VMs are gone; false if
 * some are left after the patience, a time in jiffies.
 */
bool porthole_vms_end(unsigned long patience)
{
	unsigned long deadline = jiffies + patience;
	struct porthole_vm *vm;
	bool left;

	for (;;) {
		spin_lock(&vms_lock);
		left = !list_empty(&vms);
		list_for_each_entry(vm, &vms, link)
			kill_pid(vm->creator, SIGKILL, 1);
		spin_unlock(&vms_lock);
		if (!left || time_after(jiffies, deadline))
			return !left;
		msleep(20);
	}
}

/* The hypervisor's state of this VM, PORTHOLE_VM_*, or an errno. */
static int query(struct porthole_vm *vm, struct arm_smccc_1_2_regs *regs)
{
	*regs = (struct arm_smccc_1_2_regs) {
		.a0 = PORTHOLE_FN_VM_INFO,
		.a1 = vm->handle & 0xff,	/* the slot */
	};
	porthole_call_regs(regs);
	if (regs->a0)
		return porthole_errno(regs->a0);
	if (regs->a1 != vm->handle)
		return -EBADFD;
	return regs->a2;
}

int porthole_vm_state(struct porthole_vm *vm)
{
	struct arm_smccc_1_2_regs regs;

	return query(vm, &regs);
}

/* Makes vCPUs that sleep in RUN look again; callable in any context. */
void porthole_vm_wake(struct porthole_vm *vm, u64 mask)
{
	unsigned int i;

	for (i = 0; mask && i < vm->vcpu_count; i++, mask >>= 1) {
		struct porthole_vcpu *vcpu = smp_load_acquire(&vm->vcpus[i]);

		if (!(mask & 1) || !vcpu)
			continue;
		WRITE_ONCE(vcpu->woken, true);
		rcuwait_wake_up(&vcpu->wait);	/* a full barrier first */
	}
}

/* The guest is over: every thread in RUN comes out. */
void porthole_vm_stop(struct porthole_vm *vm)
{
	WRITE_ONCE(vm->stopped, true);
	porthole_vm_wake(vm, U64_MAX);
}

/*
 * Everything the VM has goes back: 0 work left with the hypervisor, then its
 * pages, then the handle. False if the hypervisor was busy until the deadline:
 * call again. Cannot fail otherwise; what the hypervisor keeps is leaked.
 */
static bool teardown(struct porthole_vm *vm, unsigned long deadline)
{
	struct porthole_result result;

	while (!vm->translations_gone) {
		result = porthole_call(PORTHOLE_FN_VM_TEARDOWN, vm->handle);
		if (result.status == PORTHOLE_E_BUSY) {
			if (time_after(jiffies, deadline))
				return false;
			usleep_range(100, 1000);
		} else if (result.status) {
			WARN(1, "porthole: VM %llx cannot be torn down (error %lld), its pages are lost\n",
			     vm->handle, result.status);
			porthole_windows_free(vm, true);
			porthole_memory_leak(vm);
			return true;
		} else {
			vm->translations_gone = !result.x1;
		}
		cond_resched();
	}
	porthole_windows_free(vm, false);
	if (!porthole_memory_reclaim(vm, deadline))
		return false;
	for (;;) {
		result = porthole_call(PORTHOLE_FN_VM_DESTROY, vm->handle);
		if (result.status != PORTHOLE_E_BUSY)
			break;
		if (time_after(jiffies, deadline))
			return false;
		usleep_range(100, 1000);
	}
	WARN(result.status, "porthole: VM %llx stays in the hypervisor's table (error %lld)\n",
	     vm->handle, result.status);
	return true;
}

static void vm_free(struct porthole_vm *vm)
{
	unsigned int i;

	spin_lock(&vms_lock);
	list_del_init(&vm->link);
	spin_unlock(&vms_lock);
	for (i = 0; i < PORTHOLE_VCPUS_MAX; i++)
		if (vm->vcpus[i])
			porthole_vcpu_free(vm->vcpus[i]);
	porthole_memory_free(vm);
	put_pid(vm->creator);
	kfree(vm);
}

static void reap(struct work_struct *work)
{
	struct porthole_vm *vm = container_of(to_delayed_work(work),
					      struct porthole_vm, reaper);

	if (!teardown(vm, jiffies + TEARDOWN_PATIENCE)) {
		queue_delayed_work(porthole_wq, &vm->reaper, REAPER_PERIOD);
		return;
	}
	vm_free(vm);
	/* Unloading waits for this function on its workqueue. */
	module_put(THIS_MODULE);
}

static void vm_release(struct kref *ref)
{
	struct porthole_vm *vm = container_of(ref, struct porthole_vm, ref);

	porthole_irq_release(vm);
	if (teardown(vm, jiffies + TEARDOWN_PATIENCE)) {
		vm_free(vm);
		return;
	}
	pr_warn("VM %llx is still busy in the hypervisor, teardown goes on behind\n",
		vm->handle);
	/* The file being closed holds the module until this returns. */
	__module_get(THIS_MODULE);
	queue_delayed_work(porthole_wq, &vm->reaper, REAPER_PERIOD);
}

void porthole_vm_get(struct porthole_vm *vm)
{
	kref_get(&vm->ref);
}

void porthole_vm_put(struct porthole_vm *vm)
{
	kref_put(&vm->ref, vm_release);
}

static int vm_file_release(struct inode *inode, struct file *file)
{
	porthole_vm_put(file->private_data);
	return 0;
}

/* Checks what user space sent and writes the parameter block. */
static int fill_config(struct porthole_vm_config *config,
		       const struct porthole_create_vm *create)
{
	u32 i;

	if (create->reserved || create->vcpus > PORTHOLE_VCPUS_MAX ||
	    !create->region_count ||
	    create->region_count > PORTHOLE_VM_REGIONS_MAX)
		return -EINVAL;
	*config = (struct porthole_vm_config) {
		.version = PORTHOLE_ABI_VERSION,
		.vcpus = create->vcpus,
		.flags = create->flags,
		.spi_count = create->spi_count,
		.msi_base = create->msi_base,
		.msi_count = create->msi_count,
		.region_count = create->region_count,
	};
	/* Entries beyond the count go along: the hypervisor refuses rubbish there. */
	for (i = 0; i < PORTHOLE_VM_REGIONS_MAX; i++)
		config->regions[i] = (struct porthole_region_desc) {
			.base = create->regions[i].base,
			.size = create->regions[i].size,
			.kind = create->regions[i].kind,
			.reserved = create->regions[i].reserved,
		};
	return 0;
}

/* VM_CREATE, with more metadata as long as the hypervisor asks for it. */
static int create_in_hypervisor(struct porthole_vm *vm,
				struct porthole_vm_config *config,
				s32 *refusal)
{
	struct porthole_result result = {};
	unsigned int extra, order;

	for (extra = 0; extra <= PORTHOLE_BLOCK_ORDER; extra++) {
		struct page *page =
			porthole_memory_first_metadata(config, extra, &order);

		if (!page)
			return -ENOMEM;
		config->meta_pa = page_to_phys(page);
		config->meta_pages = 1UL << order;
		result = porthole_call(PORTHOLE_FN_VM_CREATE, virt_to_phys(config));
		if (!result.status) {
			vm->handle = result.x1;
			porthole_memory_keep(&vm->metadata, page, order);
			return 0;
		}
		__free_pages(page, order);
		if (result.status != PORTHOLE_E_NO_METADATA)
			break;
	}
	return porthole_refused(result.status, refusal);
}

static int add_ram(struct porthole_vm *vm, const struct porthole_vm_config *config)
{
	int ret = 0;
	u32 i;

	for (i = 0; !ret && i < config->region_count; i++)
		if (config->regions[i].kind == PORTHOLE_REGION_RAM)
			ret = porthole_memory_add_ram(vm, config->regions[i].base,
						      config->regions[i].size);
	return ret;
}

long porthole_vm_create(struct porthole_request *request)
{
	struct porthole_create_vm *create = request->arg;
	struct porthole_vm_config *config;
	struct porthole_vm *vm;
	int ret;

	create->refusal = 0;
	create->handle = 0;
	/* A page of its own: the block may not cross into another one. */
	config = (void *)get_zeroed_page(GFP_KERNEL);
	vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	if (!config || !vm) {
		ret = -ENOMEM;
		goto out;
	}
	kref_init(&vm->ref);
	INIT_LIST_HEAD(&vm->link);
	INIT_DELAYED_WORK(&vm->reaper, reap);
	mutex_init(&vm->windows_lock);
	porthole_memory_init(vm);
	porthole_irq_init(vm);
	vm->vcpu_count = create->vcpus;
	vm->spi_count = create->spi_count;

	ret = fill_config(config, create);
	if (!ret)
		ret = add_ram(vm, config);
	if (!ret)
		ret = create_in_hypervisor(vm, config, &create->refusal);
	if (ret) {
		porthole_memory_free(vm);
		goto out;
	}
	create->handle = vm->handle;
	vm->creator = get_pid(task_tgid(current));
	spin_lock(&vms_lock);
	list_add_tail(&vm->link, &vms);
	spin_unlock(&vms_lock);

	/* From here on the VM ends as every VM does. */
	ret = porthole_new_file(request, "[porthole-vm]", &vm_fops, vm);
	if (ret)
		porthole_vm_put(vm);
	vm = NULL;
out:
	kfree(vm);
	free_page((unsigned long)config);
	return ret;
}

static long handle_load(struct porthole_request *request)
{
	struct porthole_load *load = request->arg;

	load->refusal = 0;
	load->loaded = 0;
	if (load->reserved)
		return -EINVAL;
	return porthole_memory_load(request->object, load);
}

static long handle_populate(struct porthole_request *request)
{
	struct porthole_populate *populate = request->arg;

	populate->refusal = 0;
	if (populate->reserved)
		return -EINVAL;
	return porthole_memory_populate(request->object, populate->ipa,
					populate->size, &populate->refusal);
}

static long handle_finalize(struct porthole_request *request)
{
	struct porthole_finalize *finalize = request->arg;
	struct porthole_vm *vm = request->object;
	struct porthole_result result;

	finalize->refusal = 0;
	if (finalize->reserved)
		return -EINVAL;
	result = porthole_call(PORTHOLE_FN_VM_FINALIZE, vm->handle,
			       finalize->entry, finalize->x0);
	return porthole_refused(result.status, &finalize->refusal);
}

static long handle_measurement(struct porthole_request *request)
{
	struct porthole_measurement *measurement = request->arg;
	struct porthole_vm *vm = request->object;
	struct porthole_result result =
		porthole_call(PORTHOLE_FN_VM_MEASUREMENT, vm->handle);

	/* The digest is the memory image of x1 to x4. */
	const u64 words[] = { result.x1, result.x2, result.x3, result.x4 };

	BUILD_BUG_ON(sizeof(measurement->digest) != sizeof(words));
	if (result.status)
		return porthole_errno(result.status);
	memcpy(measurement->digest, words, sizeof(words));
	return 0;
}

static long handle_info(struct porthole_request *request)
{
	struct porthole_vm_info *info = request->arg;
	struct porthole_vm *vm = request->object;
	struct arm_smccc_1_2_regs regs;
	int state = query(vm, &regs);

	if (state < 0)
		return state;
	*info = (struct porthole_vm_info) {
		.handle = regs.a1,
		.state = state,
		.memory_pages = regs.a3,
		.metadata_pages = regs.a4,
		.windows = regs.a5,
		.vcpus = regs.a6,
		.metadata_free = regs.a7,
		.first_pa = PORTHOLE_NO_ADDRESS,
	};
	mutex_lock(&vm->mem_lock);
	info->blocks_2m = vm->blocks_2m;
	info->ram_faults = vm->ram_faults;
	if (!list_empty(&vm->memory.blocks))
		info->first_pa = page_to_phys(list_first_entry(&vm->memory.blocks,
							       struct page, lru));
	mutex_unlock(&vm->mem_lock);
	return 0;
}

static const struct porthole_ioctl vm_ioctls[] = {
	PORTHOLE_IOCTL(PORTHOLE_VM_LOAD, handle_load),
	PORTHOLE_IOCTL(PORTHOLE_VM_POPULATE, handle_populate),
	PORTHOLE_IOCTL(PORTHOLE_VM_FINALIZE, handle_finalize),
	PORTHOLE_IOCTL(PORTHOLE_VM_CREATE_VCPU, porthole_vcpu_create),
	PORTHOLE_IOCTL(PORTHOLE_VM_MEASUREMENT, handle_measurement),
	PORTHOLE_IOCTL(PORTHOLE_VM_INFO, handle_info),
	PORTHOLE_IOCTL(PORTHOLE_WINDOW_CREATE, porthole_window_create),
	PORTHOLE_IOCTL(PORTHOLE_WINDOW_MOVE, porthole_window_move),
	PORTHOLE_IOCTL(PORTHOLE_WINDOW_DESTROY, porthole_window_destroy),
	PORTHOLE_IOCTL(PORTHOLE_WINDOW_ADD_FUNCTION, porthole_window_add_function),
	PORTHOLE_IOCTL(PORTHOLE_WINDOW_REMOVE_FUNCTION, porthole_window_remove_function),
	PORTHOLE_IOCTL(PORTHOLE_WINDOW_INFO, porthole_window_info),
	PORTHOLE_IOCTL(PORTHOLE_IRQ_LINE, porthole_irq_line),
	PORTHOLE_IOCTL(PORTHOLE_IRQFD, porthole_irqfd),
	PORTHOLE_IOCTL(PORTHOLE_IOEVENTFD, porthole_ioeventfd),
};

static long vm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return porthole_ioctl(vm_ioctls, ARRAY_SIZE(vm_ioctls),
			      file->private_data, cmd, arg);
}

static int vm_file_mmap(struct file *file, struct vm_area_struct *vma)
{
	return porthole_window_mmap(file->private_data, vma);
}

static const struct file_operations vm_fops = {
	.owner = THIS_MODULE,
	.release = vm_file_release,
	.unlocked_ioctl = vm_ioctl,
	.mmap = vm_file_mmap,
	.llseek = noop_llseek,
};
