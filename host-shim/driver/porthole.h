/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Types that the files of the driver share, and the locking rules.
 *
 * Lock order, outermost first:
 *   vcpu->run_lock       one thread in RUN; held while the guest runs
 *   mmap_lock            of the caller, in mmap of a VM file
 *   vm->windows_lock     windows[], their registration
 *   vm->mem_lock         page lists, populated bits; never held over user access
 *   vm->irqfd_mutex      making and unmaking of irqfds
 *   vm->io_lock          ioeventfds (a leaf but for the eventfd's own lock)
 *   eventfd's wqh.lock -> vm->irqfd_lock   both with interrupts off (leaves)
 *   vms_lock             the list of VMs (a leaf)
 *
 *   pci_rescan_remove_lock, device_lock   of a device that is confined or released
 *   confined_lock        the list of confined devices
 *   pool->lock           room in a region, with interrupts off (a leaf)
 *
 * User memory is touched with none of them but run_lock held.
 */
#ifndef PORTHOLE_H
#define PORTHOLE_H

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/arm-smccc.h>
#include <linux/dma-map-ops.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/rcuwait.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/workqueue.h>

#include "porthole_abi.h"
#include "porthole_uapi.h"

#define PORTHOLE_BLOCK_ORDER	(21 - PAGE_SHIFT)	/* 2 MiB */

/* One RAM region of a VM. */
struct porthole_ram {
	u64 base;			/* IPA */
	u64 pages;
	unsigned long *populated;	/* a bit for each page, under mem_lock */
};

/*
 * Pages that were donated. They are linked by page->lru, the order of each
 * block is in page->private. While they are here nothing in the kernel may
 * touch their content: every access is an abort.
 */
struct porthole_pages {
	struct list_head blocks;
	u64 count;			/* pages */
};

struct porthole_vm {
	struct kref ref;
	u64 handle;
	u32 vcpu_count;
	u32 spi_count;
	bool stopped;			/* the guest is over; written once */

	struct list_head link;		/* in vms, under vms_lock */
	struct pid *creator;

	struct mutex mem_lock;
	struct porthole_pages memory;
	struct porthole_pages metadata;
	u64 blocks_2m;
	u64 ram_faults;
	u32 ram_count;
	struct porthole_ram ram[PORTHOLE_VM_REGIONS_MAX];

	struct mutex windows_lock;
	struct porthole_window *windows[PORTHOLE_WINDOWS_MAX];

	/* Set once at creation of each vCPU, read without a lock. */
	struct porthole_vcpu *vcpus[PORTHOLE_VCPUS_MAX];

	struct mutex irqfd_mutex;
	spinlock_t irqfd_lock;
	struct list_head irqfds;
	rwlock_t io_lock;
	struct list_head ioeventfds;
	u32 ioeventfd_count;

	struct delayed_work reaper;	/* a teardown that the hypervisor put off */
	bool translations_gone;		/* VM_TEARDOWN is through */
};

struct porthole_vcpu {
	struct porthole_vm *vm;
	u32 index;
	bool off;			/* PSCI: waits for CPU_ON; under run_lock */
	bool read_pending;		/* the guest waits for mmio.data; under run_lock */
	bool woken;			/* an interrupt may be pending */
	bool on_request;		/* another vCPU made CPU_ON for this one */
	struct mutex run_lock;
	struct rcuwait wait;		/* the thread that sleeps in RUN */
	struct page *run_page;
	struct porthole_run *run;
};

/* hvc.c */

/* Status and values of a call: x0 to x5. */
struct porthole_result {
	s64 status;
	u64 x1, x2, x3, x4, x5;
};

int porthole_discover(u32 *abi_version);
void porthole_call_regs(struct arm_smccc_1_2_regs *regs);
struct porthole_result porthole_call5(u32 function, u64 x1, u64 x2, u64 x3,
				      u64 x4, u64 x5);
int porthole_errno(s64 status);
int porthole_refused(s64 status, s32 *refusal);

#define porthole_call(function, ...) \
	PORTHOLE_CALL_N(function, ##__VA_ARGS__, 0, 0, 0, 0, 0)
#define PORTHOLE_CALL_N(function, a, b, c, d, e, ...) \
	porthole_call5(function, a, b, c, d, e)

/* ioctl.c */

/* One ioctl under way. */
struct porthole_request {
	void *object;		/* what the file stands for */
	void *arg;		/* kernel copy of the argument */
	struct file *file;	/* set by a handler that makes a file: installed at the end */
	int fd;
};

struct porthole_ioctl {
	unsigned int cmd;
	long (*handle)(struct porthole_request *request);
};

/* Bytes of the longest argument, and an entry of a table whose argument is no longer. */
#define PORTHOLE_ARG_MAX	sizeof(struct porthole_create_vm)
#define PORTHOLE_IOCTL(number, handler) \
	{ (number) + BUILD_BUG_ON_ZERO(_IOC_SIZE(number) > PORTHOLE_ARG_MAX), handler }

long porthole_ioctl(const struct porthole_ioctl *table, size_t entries,
		    void *object, unsigned int cmd, unsigned long arg);
int porthole_new_file(struct porthole_request *request, const char *name,
		      const struct file_operations *fops, void *object);

/* main.c */
extern atomic64_t porthole_leaked_pages;
extern struct workqueue_struct *porthole_wq;

/* vm.c */
long porthole_vm_create(struct porthole_request *request);
pid_t porthole_vm_creator(u64 handle);
bool porthole_vms_end(unsigned long patience);
void porthole_vm_get(struct porthole_vm *vm);
void porthole_vm_put(struct porthole_vm *vm);
void porthole_vm_wake(struct porthole_vm *vm, u64 mask);
void porthole_vm_stop(struct porthole_vm *vm);
int porthole_vm_state(struct porthole_vm *vm);

/* memory.c */
void porthole_memory_init(struct porthole_vm *vm);
int porthole_memory_add_ram(struct porthole_vm *vm, u64 base, u64 size);
struct page *porthole_memory_first_metadata(const struct porthole_vm_config *config,
					    unsigned int extra_order,
					    unsigned int *order);
void porthole_memory_keep(struct porthole_pages *pages, struct page *page,
			  unsigned int order);
int porthole_memory_grow_metadata(struct porthole_vm *vm);
int porthole_memory_fault(struct porthole_vm *vm, u64 ipa);
int porthole_memory_load(struct porthole_vm *vm, struct porthole_load *load);
int porthole_memory_populate(struct porthole_vm *vm, u64 ipa, u64 size,
			     s32 *refusal);
bool porthole_memory_reclaim(struct porthole_vm *vm, unsigned long deadline);
void porthole_memory_leak(struct porthole_vm *vm);
void porthole_memory_free(struct porthole_vm *vm);

/* vcpu.c */
long porthole_vcpu_create(struct porthole_request *request);
void porthole_vcpu_free(struct porthole_vcpu *vcpu);

/* window.c */
long porthole_window_create(struct porthole_request *request);
long porthole_window_move(struct porthole_request *request);
long porthole_window_destroy(struct porthole_request *request);
long porthole_window_add_function(struct porthole_request *request);
long porthole_window_remove_function(struct porthole_request *request);
long porthole_window_info(struct porthole_request *request);
int porthole_window_mmap(struct porthole_vm *vm, struct vm_area_struct *vma);
void porthole_windows_free(struct porthole_vm *vm, bool leak);

/* irq.c */
long porthole_irq_line(struct porthole_request *request);
long porthole_irqfd(struct porthole_request *request);
long porthole_ioeventfd(struct porthole_request *request);
void porthole_irq_init(struct porthole_vm *vm);
void porthole_irq_release(struct porthole_vm *vm);
bool porthole_ioeventfd_signal(struct porthole_vm *vm, u64 ipa, u64 width,
			       u64 value);

/* pool.c */

/* A region that is all that a device reaches, and the DMA API that keeps to it. */
struct porthole_pool {
	struct dma_map_ops ops;		/* a copy: finds the pool of a device */
	u8 *base;
	dma_addr_t start;		/* bus address, which is the physical one */
	size_t size;			/* bytes */
	spinlock_t lock;
	unsigned int slots;
	unsigned int next;		/* where the next search starts; under lock */
	unsigned int busy;		/* slots in use; under lock */
	unsigned int kept, kept_max;	/* of these, memory used where it is */
	atomic64_t failed;		/* requests that found no room */
	unsigned long *used;		/* a bit for each slot, under lock */
	struct porthole_slot *slot;
};

int porthole_pool_init(struct porthole_pool *pool, struct page *pages,
		       size_t size);
void porthole_pool_free(struct porthole_pool *pool);
void porthole_pool_give(struct porthole_pool *pool, dma_addr_t addr);
void porthole_pool_serve(struct porthole_pool *pool, struct device *dev);
u64 porthole_pool_used(struct porthole_pool *pool);

/* confine.c */
long porthole_dma_confine(struct porthole_request *request);
long porthole_dma_release(struct porthole_request *request);
long porthole_dma_info(struct porthole_request *request);
int porthole_confine_init(void);
void porthole_confine_exit(void);

#endif /* PORTHOLE_H */
