// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vCPU and its file: the run loop. Most exits end here; MMIO that no eventfd
 * takes, the end of the VM and signals go to the caller through the run page.
 */
#include "porthole.h"

#include <linux/hrtimer.h>
#include <linux/math64.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include <asm/arch_timer.h>
#include <clocksource/arm_arch_timer.h>

#define SECONDS_PER_DAY	86400

/* VCPU_RUN's answer. */
struct vcpu_exit {
	u64 kind, x2, x3, x4;
};

/*
 * The hot path: VCPU_RUN in registers, without the trip through memory that
 * arm_smccc_1_2_hvc makes. SMCCC 1.2 lets a callee use x4 to x17.
 */
static __always_inline s64 call_run(u64 handle, u64 index, u64 value,
				    struct vcpu_exit *exit)
{
	register u64 x0 asm("x0") = PORTHOLE_FN_VCPU_RUN;
	register u64 x1 asm("x1") = handle;
	register u64 x2 asm("x2") = index;
	register u64 x3 asm("x3") = value;
	register u64 x4 asm("x4");

	asm volatile("hvc #" __stringify(PORTHOLE_HVC_IMMEDIATE)
		     : "+r" (x0), "+r" (x1), "+r" (x2), "+r" (x3), "=r" (x4)
		     :
		     : "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",
		       "x14", "x15", "x16", "x17", "memory", "cc");
	exit->kind = x1;
	exit->x2 = x2;
	exit->x3 = x3;
	exit->x4 = x4;
	return x0;
}

/* When the host's counter reaches "deadline", in the time of hrtimers. */
static ktime_t deadline_to_ktime(u64 deadline)
{
	u64 now = arch_timer_read_counter();
	u32 frequency = arch_timer_get_cntfrq();
	u64 ticks;

	if (deadline <= now)
		return ktime_get();
	/* A longer sleep than a day just enters the guest once in between. */
	ticks = min_t(u64, deadline - now, (u64)frequency * SECONDS_PER_DAY);
	return ktime_add_ns(ktime_get(),
			    mul_u64_u32_div(ticks, NSEC_PER_SEC, frequency));
}

static_assert(PORTHOLE_EXIT_CRASH < PORTHOLE_RUN_EXITS);

/* Why a sleeper has to get up, beside its own flag. */
static bool must_leave(struct porthole_vcpu *vcpu)
{
	return READ_ONCE(vcpu->vm->stopped) || signal_pending(current) ||
	       READ_ONCE(vcpu->run->immediate_exit);
}

/* Sleeps until *flag, a reason to leave, or the deadline (NULL: none). */
static void vcpu_sleep(struct porthole_vcpu *vcpu, bool *flag, ktime_t *deadline)
{
	prepare_to_rcuwait(&vcpu->wait);
	for (;;) {
		/* Pairs with the barrier of rcuwait_wake_up. */
		set_current_state(TASK_INTERRUPTIBLE);
		if (READ_ONCE(*flag) || must_leave(vcpu))
			break;
		if (!schedule_hrtimeout_range(deadline, 0, HRTIMER_MODE_ABS))
			break;
	}
	finish_rcuwait(&vcpu->wait);
}

/*
 * The guest waits for an interrupt. A waker sets "woken" after the interrupt
 * became pending in the hypervisor, and RUN clears it before it goes there: a
 * wake-up in between is seen here.
 */
static void wait_for_interrupt(struct porthole_vcpu *vcpu, u64 counter)
{
	ktime_t deadline;

	if (counter == U64_MAX) {
		vcpu_sleep(vcpu, &vcpu->woken, NULL);
		return;
	}
	deadline = deadline_to_ktime(counter);
	vcpu_sleep(vcpu, &vcpu->woken, &deadline);
}

/*
 * A vCPU that is off. Only the hypervisor grants CPU_ON, and only once for each
 * time the vCPU is off, so a request belongs to this wait even if it came while
 * the thread was still on its way here.
 */
static void wait_for_cpu_on(struct porthole_vcpu *vcpu)
{
	vcpu_sleep(vcpu, &vcpu->on_request, NULL);
	if (xchg(&vcpu->on_request, false))
		vcpu->off = false;
}

static void cpu_on(struct porthole_vm *vm, u64 index)
{
	struct porthole_vcpu *vcpu;

	if (index >= vm->vcpu_count)
		return;
	vcpu = smp_load_acquire(&vm->vcpus[index]);
	if (!vcpu)
		return;
	WRITE_ONCE(vcpu->on_request, true);
	rcuwait_wake_up(&vcpu->wait);
}

static long leave(struct porthole_vcpu *vcpu, u32 reason, long ret)
{
	WRITE_ONCE(vcpu->run->exit_reason, reason);
	return ret;
}

static long leave_mmio(struct porthole_vcpu *vcpu, u32 reason,
		       const struct vcpu_exit *exit)
{
	struct porthole_run *run = vcpu->run;

	run->mmio.ipa = exit->x2;
	run->mmio.width = exit->x3;
	run->mmio.data = reason == PORTHOLE_RUN_MMIO_WRITE ? exit->x4 : 0;
	vcpu->read_pending = reason == PORTHOLE_RUN_MMIO_READ;
	return leave(vcpu, reason, 0);
}

static long leave_system(struct porthole_vcpu *vcpu, u32 reason, u64 type)
{
	porthole_vm_stop(vcpu->vm);
	vcpu->run->system.type = type;
	return leave(vcpu, reason, 0);
}

/* VCPU_RUN was refused: 1 to try again, else what RUN returns. */
static long refused(struct porthole_vcpu *vcpu, s64 status)
{
	struct porthole_vm *vm = vcpu->vm;

	if (status == PORTHOLE_E_BUSY)
		return 1;
	/* Another vCPU ended the VM and its thread has not got so far yet. */
	if (status == PORTHOLE_E_BAD_STATE &&
	    (READ_ONCE(vm->stopped) ||
	     porthole_vm_state(vm) == PORTHOLE_VM_STOPPED))
		return leave(vcpu, PORTHOLE_RUN_STOPPED, 0);
	return porthole_errno(status);
}

/* Answers an exit: 1 to enter the guest again, else what RUN returns. */
static long handle_exit(struct porthole_vcpu *vcpu, const struct vcpu_exit *exit)
{
	struct porthole_vm *vm = vcpu->vm;
	long ret;

	switch (exit->kind) {
	case PORTHOLE_EXIT_HOST_INTERRUPT:
		return 1;	/* taken the moment the HVC returned */
	case PORTHOLE_EXIT_MMIO_READ:
		return leave_mmio(vcpu, PORTHOLE_RUN_MMIO_READ, exit);
	case PORTHOLE_EXIT_MMIO_WRITE:
		if (porthole_ioeventfd_signal(vm, exit->x2, exit->x3, exit->x4))
			return 1;
		return leave_mmio(vcpu, PORTHOLE_RUN_MMIO_WRITE, exit);
	case PORTHOLE_EXIT_RAM_FAULT:
		ret = porthole_memory_fault(vm, exit->x2);
		return ret ? ret : 1;
	case PORTHOLE_EXIT_WFI:
		wait_for_interrupt(vcpu, exit->x2);
		return 1;
	case PORTHOLE_EXIT_CPU_ON:
		cpu_on(vm, exit->x2);
		return 1;
	case PORTHOLE_EXIT_CPU_OFF:
		vcpu->off = true;
		return 1;
	case PORTHOLE_EXIT_SYSTEM_OFF:
		return leave_system(vcpu, PORTHOLE_RUN_SYSTEM_OFF, 0);
	case PORTHOLE_EXIT_SYSTEM_RESET:
		return leave_system(vcpu, PORTHOLE_RUN_SYSTEM_RESET, exit->x2);
	case PORTHOLE_EXIT_WAKE:
		porthole_vm_wake(vm, exit->x2);
		return 1;
	case PORTHOLE_EXIT_CRASH:
		return leave_system(vcpu, PORTHOLE_RUN_CRASH, exit->x2);
	default:
		pr_warn_once("the hypervisor names an exit %llu that this module does not know\n",
			     exit->kind);
		return -EPROTO;
	}
}

static long run_loop(struct porthole_vcpu *vcpu)
{
	struct porthole_vm *vm = vcpu->vm;
	u64 value = vcpu->read_pending ? READ_ONCE(vcpu->run->mmio.data) : 0;
	struct vcpu_exit exit;
	s64 status;
	long ret;

	do {
		if (signal_pending(current) ||
		    READ_ONCE(vcpu->run->immediate_exit))
			return leave(vcpu, PORTHOLE_RUN_INTR, -EINTR);
		if (READ_ONCE(vm->stopped))
			return leave(vcpu, PORTHOLE_RUN_STOPPED, 0);
		cond_resched();
		if (vcpu->off) {
			wait_for_cpu_on(vcpu);
			ret = 1;
			continue;
		}
		smp_store_mb(vcpu->woken, false);
		status = call_run(vm->handle, vcpu->index, value, &exit);
		if (status) {
			ret = refused(vcpu, status);
		} else {
			vcpu->read_pending = false;
			if (exit.kind < PORTHOLE_RUN_EXITS)
				vcpu->run->exits[exit.kind]++;
			ret = handle_exit(vcpu, &exit);
		}
	} while (ret > 0);
	return ret;
}

static long vcpu_run(struct porthole_vcpu *vcpu)
{
	long ret;

	if (mutex_lock_interruptible(&vcpu->run_lock))
		return -EINTR;
	WRITE_ONCE(vcpu->run->exit_reason, PORTHOLE_RUN_NONE);
	ret = run_loop(vcpu);
	mutex_unlock(&vcpu->run_lock);
	return ret;
}

static long vcpu_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	if (cmd != PORTHOLE_VCPU_RUN)
		return -ENOTTY;
	if (arg)
		return -EINVAL;
	return vcpu_run(file->private_data);
}

/* Shows the run page. The mapping holds the file, and so the VM. */
static int vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct porthole_vcpu *vcpu = file->private_data;

	if (vma->vm_pgoff || vma->vm_end - vma->vm_start != PORTHOLE_RUN_SIZE ||
	    !(vma->vm_flags & VM_SHARED) || (vma->vm_flags & VM_EXEC))
		return -EINVAL;
	vm_flags_mod(vma, VM_DONTEXPAND | VM_DONTCOPY | VM_DONTDUMP, VM_MAYEXEC);
	return vm_insert_page(vma, vma->vm_start, vcpu->run_page);
}

static int vcpu_release(struct inode *inode, struct file *file)
{
	struct porthole_vcpu *vcpu = file->private_data;

	/* The vCPU itself lives as long as its VM: wakers hold no reference. */
	porthole_vm_put(vcpu->vm);
	return 0;
}

static const struct file_operations vcpu_fops = {
	.owner = THIS_MODULE,
	.release = vcpu_release,
	.unlocked_ioctl = vcpu_ioctl,
	.mmap = vcpu_mmap,
	.llseek = noop_llseek,
};

static struct porthole_vcpu *vcpu_alloc(struct porthole_vm *vm, u32 index)
{
	struct porthole_vcpu *vcpu = kzalloc(sizeof(*vcpu), GFP_KERNEL_ACCOUNT);

	if (!vcpu)
		return NULL;
	vcpu->run_page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!vcpu->run_page) {
		kfree(vcpu);
		return NULL;
	}
	vcpu->run = page_address(vcpu->run_page);
	vcpu->vm = vm;
	vcpu->index = index;
	vcpu->off = index != 0;
	mutex_init(&vcpu->run_lock);
	rcuwait_init(&vcpu->wait);
	return vcpu;
}

void porthole_vcpu_free(struct porthole_vcpu *vcpu)
{
	put_page(vcpu->run_page);
	kfree(vcpu);
}

/* VCPU_CREATE, with more metadata if the hypervisor asks for it. */
static int create_in_hypervisor(struct porthole_vm *vm, u32 index, s32 *refusal)
{
	struct porthole_result result =
		porthole_call(PORTHOLE_FN_VCPU_CREATE, vm->handle, index);

	if (result.status == PORTHOLE_E_NO_METADATA &&
	    !porthole_memory_grow_metadata(vm))
		result = porthole_call(PORTHOLE_FN_VCPU_CREATE, vm->handle, index);
	return porthole_refused(result.status, refusal);
}

long porthole_vcpu_create(struct porthole_request *request)
{
	struct porthole_create_vcpu *create = request->arg;
	struct porthole_vm *vm = request->object;
	struct porthole_vcpu *vcpu;
	int ret;

	create->refusal = 0;
	if (create->index >= vm->vcpu_count)
		return -ENXIO;
	vcpu = vcpu_alloc(vm, create->index);
	if (!vcpu)
		return -ENOMEM;
	ret = create_in_hypervisor(vm, create->index, &create->refusal);
	if (ret) {
		porthole_vcpu_free(vcpu);
		return ret;
	}
	/* The hypervisor makes each index once, so nobody else is in this place. */
	smp_store_release(&vm->vcpus[create->index], vcpu);
	porthole_vm_get(vm);
	ret = porthole_new_file(request, "[porthole-vcpu]", &vcpu_fops, vcpu);
	if (ret)
		porthole_vm_put(vm);
	return ret;
}
