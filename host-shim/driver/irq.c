// SPDX-License-Identifier: GPL-2.0-only
/*
 * Interrupts into the guest, from the VMM and from eventfds, and guest writes
 * that signal eventfds. The only interrupts that the hypervisor lets the host
 * raise are the SPIs that the VM's configuration declared.
 */
#include "porthole.h"

#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/wait.h>

#define IOEVENTFDS_MAX	256

/*
 * An eventfd that raises an SPI. It leaves vm->irqfds once, by DEASSIGN, by the
 * closing of the eventfd or with the VM; whoever takes it off frees it through
 * "shutdown", because the callback itself cannot unhook its wait queue entry.
 */
struct porthole_irqfd_entry {
	struct porthole_vm *vm;
	u32 intid;
	struct eventfd_ctx *eventfd;
	struct list_head link;		/* in vm->irqfds, under irqfd_lock */
	wait_queue_head_t *queue;
	wait_queue_entry_t wait;
	poll_table poll;
	struct work_struct shutdown;
};

/* A guest's write that signals an eventfd. */
struct porthole_ioeventfd_entry {
	struct list_head link;		/* in vm->ioeventfds, under io_lock */
	struct eventfd_ctx *eventfd;
	u64 ipa;
	u64 datamatch;
	u32 width;			/* 0: any */
	bool match;
};

/* Sets the level of an SPI and wakes the vCPUs that it is for. Any context. */
static s64 spi_set(struct porthole_vm *vm, u32 intid, u32 level)
{
	struct porthole_result result =
		porthole_call(PORTHOLE_FN_SPI_SET, vm->handle, intid, level);

	if (!result.status)
		porthole_vm_wake(vm, result.x1);
	return result.status;
}

long porthole_irq_line(struct porthole_request *request)
{
	struct porthole_irq_line *line = request->arg;

	line->refusal = 0;
	if (line->reserved || line->level > 1)
		return -EINVAL;
	return porthole_refused(spi_set(request->object, line->intid, line->level),
				&line->refusal);
}

static void irqfd_pulse(struct porthole_irqfd_entry *irqfd)
{
	spi_set(irqfd->vm, irqfd->intid, 1);
	spi_set(irqfd->vm, irqfd->intid, 0);
}

/* Unhooks an entry that is on no list any more. */
static void irqfd_shutdown(struct work_struct *work)
{
	struct porthole_irqfd_entry *irqfd =
		container_of(work, struct porthole_irqfd_entry, shutdown);
	u64 count;

	eventfd_ctx_remove_wait_queue(irqfd->eventfd, &irqfd->wait, &count);
	eventfd_ctx_put(irqfd->eventfd);
	kfree(irqfd);
}

/* Takes an entry off its list unless someone was faster. Under irqfd_lock. */
static void irqfd_deactivate(struct porthole_irqfd_entry *irqfd)
{
	if (list_empty(&irqfd->link))
		return;
	list_del_init(&irqfd->link);
	queue_work(porthole_wq, &irqfd->shutdown);
}

/* The eventfd was written or closed; its wait queue's lock is held. */
static int irqfd_wakeup(wait_queue_entry_t *wait, unsigned int mode, int sync,
			void *key)
{
	struct porthole_irqfd_entry *irqfd =
		container_of(wait, struct porthole_irqfd_entry, wait);
	__poll_t events = key_to_poll(key);
	unsigned long flags;
	u64 count;

	if (events & EPOLLIN) {
		eventfd_ctx_do_read(irqfd->eventfd, &count);
		irqfd_pulse(irqfd);
	}
	if (events & EPOLLHUP) {
		spin_lock_irqsave(&irqfd->vm->irqfd_lock, flags);
		irqfd_deactivate(irqfd);
		spin_unlock_irqrestore(&irqfd->vm->irqfd_lock, flags);
	}
	return 0;
}

static void irqfd_hook(struct file *file, wait_queue_head_t *queue,
		       poll_table *poll)
{
	struct porthole_irqfd_entry *irqfd =
		container_of(poll, struct porthole_irqfd_entry, poll);

	irqfd->queue = queue;
	add_wait_queue(queue, &irqfd->wait);
}

/* Whether an eventfd is in use here. */
static bool irqfd_known(struct porthole_vm *vm, struct eventfd_ctx *eventfd)
{
	struct porthole_irqfd_entry *irqfd;
	bool known = false;

	spin_lock_irq(&vm->irqfd_lock);
	list_for_each_entry(irqfd, &vm->irqfds, link)
		known |= irqfd->eventfd == eventfd;
	spin_unlock_irq(&vm->irqfd_lock);
	return known;
}

/*
 * Takes over the reference to eventfd if it succeeds. Under irqfd_mutex; the
 * caller holds the file, so it is not closed while the entry is half made.
 */
static int irqfd_assign(struct porthole_vm *vm, struct file *file,
			struct eventfd_ctx *eventfd, u32 intid)
{
	struct porthole_irqfd_entry *irqfd;
	u64 count;

	if (irqfd_known(vm, eventfd))
		return -EBUSY;
	irqfd = kzalloc(sizeof(*irqfd), GFP_KERNEL_ACCOUNT);
	if (!irqfd)
		return -ENOMEM;
	irqfd->vm = vm;
	irqfd->intid = intid;
	irqfd->eventfd = eventfd;
	INIT_WORK(&irqfd->shutdown, irqfd_shutdown);
	init_waitqueue_func_entry(&irqfd->wait, irqfd_wakeup);
	init_poll_funcptr(&irqfd->poll, irqfd_hook);
	vfs_poll(file, &irqfd->poll);

	spin_lock_irq(&vm->irqfd_lock);
	list_add_tail(&irqfd->link, &vm->irqfds);
	spin_unlock_irq(&vm->irqfd_lock);

	/* What was written before the hook was in place. */
	spin_lock_irq(&irqfd->queue->lock);
	eventfd_ctx_do_read(eventfd, &count);
	if (count)
		irqfd_pulse(irqfd);
	spin_unlock_irq(&irqfd->queue->lock);
	return 0;
}

static int irqfd_deassign(struct porthole_vm *vm, struct eventfd_ctx *eventfd,
			  u32 intid)
{
	struct porthole_irqfd_entry *irqfd, *next;
	int ret = -ENOENT;

	spin_lock_irq(&vm->irqfd_lock);
	list_for_each_entry_safe(irqfd, next, &vm->irqfds, link) {
		if (irqfd->eventfd == eventfd && irqfd->intid == intid) {
			irqfd_deactivate(irqfd);
			ret = 0;
		}
	}
	spin_unlock_irq(&vm->irqfd_lock);
	/* No interrupt comes from this eventfd once we return. */
	flush_workqueue(porthole_wq);
	return ret;
}

long porthole_irqfd(struct porthole_request *request)
{
	struct porthole_irqfd *arg = request->arg;
	struct porthole_vm *vm = request->object;
	struct eventfd_ctx *eventfd;
	struct file *file;
	bool assigned = false;
	int ret;

	arg->refusal = 0;
	if (arg->flags & ~PORTHOLE_IRQFD_DEASSIGN)
		return -EINVAL;
	/* What the hypervisor would refuse at each signal is refused once here. */
	if (arg->intid < PORTHOLE_SPI_BASE ||
	    arg->intid - PORTHOLE_SPI_BASE >= vm->spi_count)
		return porthole_refused(PORTHOLE_E_BAD_INTID, &arg->refusal);
	file = fget(arg->fd);
	if (!file)
		return -EBADF;
	eventfd = eventfd_ctx_fileget(file);
	if (IS_ERR(eventfd)) {
		fput(file);
		return PTR_ERR(eventfd);
	}
	mutex_lock(&vm->irqfd_mutex);
	if (arg->flags & PORTHOLE_IRQFD_DEASSIGN) {
		ret = irqfd_deassign(vm, eventfd, arg->intid);
	} else {
		ret = irqfd_assign(vm, file, eventfd, arg->intid);
		assigned = !ret;
	}
	mutex_unlock(&vm->irqfd_mutex);
	if (!assigned)
		eventfd_ctx_put(eventfd);
	fput(file);
	return ret;
}

static bool io_matches(const struct porthole_ioeventfd_entry *entry, u64 ipa,
		       u64 width, u64 value)
{
	return entry->ipa == ipa && (!entry->width || entry->width == width) &&
	       (!entry->match || entry->datamatch == value);
}

/* Signals the eventfd that a guest's write is for; false if there is none. */
bool porthole_ioeventfd_signal(struct porthole_vm *vm, u64 ipa, u64 width,
			       u64 value)
{
	struct porthole_ioeventfd_entry *entry;
	bool found = false;

	read_lock(&vm->io_lock);
	list_for_each_entry(entry, &vm->ioeventfds, link) {
		if (io_matches(entry, ipa, width, value)) {
			eventfd_signal(entry->eventfd);
			found = true;
			break;
		}
	}
	read_unlock(&vm->io_lock);
	return found;
}

/* Whether some write would match both. */
static bool io_collide(const struct porthole_ioeventfd_entry *a,
		       const struct porthole_ioeventfd_entry *b)
{
	return a->ipa == b->ipa &&
	       (!a->width || !b->width || a->width == b->width) &&
	       (!a->match || !b->match || a->datamatch == b->datamatch);
}

static bool io_same(const struct porthole_ioeventfd_entry *a,
		    const struct porthole_ioeventfd_entry *b)
{
	return a->eventfd == b->eventfd && a->ipa == b->ipa &&
	       a->width == b->width && a->match == b->match &&
	       a->datamatch == b->datamatch;
}

/* Takes over "new" if it succeeds. */
static int io_assign(struct porthole_vm *vm, struct porthole_ioeventfd_entry *new)
{
	struct porthole_ioeventfd_entry *entry;
	int ret = 0;

	write_lock(&vm->io_lock);
	if (vm->ioeventfd_count == IOEVENTFDS_MAX)
		ret = -ENOSPC;
	list_for_each_entry(entry, &vm->ioeventfds, link)
		if (io_collide(entry, new))
			ret = -EEXIST;
	if (!ret) {
		list_add_tail(&new->link, &vm->ioeventfds);
		vm->ioeventfd_count++;
	}
	write_unlock(&vm->io_lock);
	return ret;
}

static int io_deassign(struct porthole_vm *vm,
		       const struct porthole_ioeventfd_entry *like)
{
	struct porthole_ioeventfd_entry *entry, *found = NULL;

	write_lock(&vm->io_lock);
	list_for_each_entry(entry, &vm->ioeventfds, link) {
		if (io_same(entry, like)) {
			found = entry;
			list_del(&found->link);
			vm->ioeventfd_count--;
			break;
		}
	}
	write_unlock(&vm->io_lock);
	if (!found)
		return -ENOENT;
	eventfd_ctx_put(found->eventfd);
	kfree(found);
	return 0;
}

static bool io_valid(const struct porthole_ioeventfd *arg)
{
	bool match = arg->flags & PORTHOLE_IOEVENTFD_DATAMATCH;

	if (arg->reserved ||
	    arg->flags & ~(PORTHOLE_IOEVENTFD_DEASSIGN | PORTHOLE_IOEVENTFD_DATAMATCH))
		return false;
	if (arg->width && (arg->width > 8 || !is_power_of_2(arg->width) ||
			   !IS_ALIGNED(arg->ipa, arg->width)))
		return false;
	if (!match)
		return !arg->datamatch;
	return arg->width && (arg->width == 8 || !(arg->datamatch >> (8 * arg->width)));
}

long porthole_ioeventfd(struct porthole_request *request)
{
	struct porthole_ioeventfd *arg = request->arg;
	struct porthole_ioeventfd_entry *entry;
	int ret;

	if (!io_valid(arg))
		return -EINVAL;
	entry = kzalloc(sizeof(*entry), GFP_KERNEL_ACCOUNT);
	if (!entry)
		return -ENOMEM;
	entry->eventfd = eventfd_ctx_fdget(arg->fd);
	if (IS_ERR(entry->eventfd)) {
		ret = PTR_ERR(entry->eventfd);
		kfree(entry);
		return ret;
	}
	entry->ipa = arg->ipa;
	entry->width = arg->width;
	entry->datamatch = arg->datamatch;
	entry->match = arg->flags & PORTHOLE_IOEVENTFD_DATAMATCH;
	if (!(arg->flags & PORTHOLE_IOEVENTFD_DEASSIGN)) {
		ret = io_assign(request->object, entry);
		if (!ret)
			return 0;
	} else {
		ret = io_deassign(request->object, entry);
	}
	eventfd_ctx_put(entry->eventfd);
	kfree(entry);
	return ret;
}

void porthole_irq_init(struct porthole_vm *vm)
{
	mutex_init(&vm->irqfd_mutex);
	spin_lock_init(&vm->irqfd_lock);
	INIT_LIST_HEAD(&vm->irqfds);
	rwlock_init(&vm->io_lock);
	INIT_LIST_HEAD(&vm->ioeventfds);
}

/* Lets go of all eventfds; afterwards nothing calls into the VM. */
void porthole_irq_release(struct porthole_vm *vm)
{
	struct porthole_ioeventfd_entry *entry, *after;
	struct porthole_irqfd_entry *irqfd, *next;

	spin_lock_irq(&vm->irqfd_lock);
	list_for_each_entry_safe(irqfd, next, &vm->irqfds, link)
		irqfd_deactivate(irqfd);
	spin_unlock_irq(&vm->irqfd_lock);
	/* Those that were closed before are on their way out there too. */
	flush_workqueue(porthole_wq);

	list_for_each_entry_safe(entry, after, &vm->ioeventfds, link) {
		eventfd_ctx_put(entry->eventfd);
		kfree(entry);
	}
}
