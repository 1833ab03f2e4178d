/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR Apache-2.0 OR MIT */
/*
 * What user space calls: /dev/porthole, and the VM and vCPU files it hands out.
 *
 * Rules that hold for every ioctl:
 *  - The argument is a pointer to the struct named, of fixed layout without
 *    padding. It is read whole, and where the direction says so written back
 *    whole, also when the call fails.
 *  - Fields named "reserved" and flag bits without a name must be 0 (EINVAL).
 *  - Addresses and sizes are bytes. A page is 4096 bytes. IPAs are page-aligned.
 *  - "refusal" is written back as 0, or as the hypervisor's own error code
 *    (negative, PORTHOLE_E_* in porthole_abi.h) when it was the hypervisor
 *    that refused; errno is then the nearest Unix error:
 *      EBUSY   Busy                        ENOMEM  NoMemory, NoMetadata
 *      ENOSPC  NoSlot                      EEXIST  AlreadyMapped, WindowOverlap,
 *                                                  AlreadyConfined
 *      ENXIO   OutsideRegion, BadVcpu, BadCpu, BadStream
 *      ENOENT  NoWindow, NotConfined       EPERM   Denied, WindowForeign
 *      EBADFD  BadHandle, BadState         EOVERFLOW Overflow
 *      E2BIG   TooLarge                    EOPNOTSUPP NotSupported, UnsafeDma
 *      EINVAL  everything else
 *  - Files are close-on-exec. They are bound to no process: whoever holds one
 *    may use it.
 */
#ifndef PORTHOLE_UAPI_H
#define PORTHOLE_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define PORTHOLE_UAPI_VERSION	2
#define PORTHOLE_IOC		0xD7

#define PORTHOLE_UAPI_REGIONS_MAX	16

/* ---- /dev/porthole ---------------------------------------------------- */

/* PORTHOLE_INFO: the hypervisor and this driver. */
struct porthole_info {
	__u32 uapi_version;	/* PORTHOLE_UAPI_VERSION of the driver */
	__u32 abi_version;	/* of the hypervisor: major << 16 | minor */
	__u64 features;		/* PORTHOLE_FEATURE_* */
	__u64 reserved_bytes;	/* memory kept from the host */
	__u64 ram_bytes;	/* memory of the machine */
	__u64 pool_free_pages;	/* free pages of the hypervisor's own pool */
	__u64 cpus;		/* CPUs that run under the hypervisor */
	__u64 leaked_pages;	/* pages the driver dared not free since it was loaded */
	__u64 reserved;
};

/* Kinds as PORTHOLE_REGION_* in porthole_abi.h. */
struct porthole_region {
	__u64 base;		/* IPA, page-aligned */
	__u64 size;		/* bytes, a multiple of the page size */
	__u32 kind;
	__u32 reserved;
};

/*
 * PORTHOLE_CREATE_VM: returns a VM file. The map cannot change later. Entries
 * of regions beyond region_count must be 0. At least one region is RAM, or open
 * RAM with PORTHOLE_VM_FLAG_UNPROTECTED: then it takes windows instead of pages.
 */
struct porthole_create_vm {
	__u64 flags;		/* policy, part of the measurement: PORTHOLE_VM_FLAG_* */
	__u32 vcpus;		/* 1 to 8 */
	__u32 spi_count;	/* SPIs declared, from INTID 32 on; at most 224 */
	__u32 msi_base;		/* first INTID of the GICv2m frame; 0 without one */
	__u32 msi_count;	/* SPIs of the frame */
	__u32 region_count;	/* 1 to 16 */
	__s32 refusal;		/* out */
	__u64 handle;		/* out: the hypervisor's handle */
	__u64 reserved;
	struct porthole_region regions[PORTHOLE_UAPI_REGIONS_MAX];
};

/* One VM that lives. */
struct porthole_vm_entry {
	__u64 handle;
	__u64 memory_pages;
	__u64 metadata_pages;
	__u64 metadata_free;	/* metadata pages not in use yet */
	__u32 state;		/* PORTHOLE_VM_* */
	__u32 vcpus;
	__u32 windows;
	__s32 pid;		/* process that created it, in the caller's pid
				 * namespace; 0 if gone or unknown */
	__u64 flags;		/* PORTHOLE_VM_FLAG_* it was created with */
};

/* PORTHOLE_LIST: all VMs. ENOSPC, with count set, if they do not fit. */
struct porthole_list {
	__u64 entries;		/* user address of struct porthole_vm_entry[] */
	__u32 capacity;		/* entries that fit; 64 always do */
	__u32 count;		/* out: living VMs */
};

/*
 * PORTHOLE_AUDIT: a whole pass of SHARE_AUDIT. The pages that host and guests
 * both reach are exactly the windows if shared_pages == window_pages and
 * offender is ~0. EAGAIN if memory changed hands during every pass tried.
 */
struct porthole_audit {
	__u64 shared_pages;	/* out: reachable by the host and a guest */
	__u64 window_pages;	/* out: covered by registered windows */
	__u64 offender;		/* out: PA of the first page that differs, or ~0 */
	__u64 epoch;		/* out: the tracker's epoch during the pass */
	__u32 steps;		/* out: hypercalls of the pass */
	__u32 passes;		/* out: passes made, void ones included */
};

/*
 * PORTHOLE_LOG_READ: bytes of the hypervisor's ring buffer from a position on,
 * counted from its boot. Older bytes are gone: position then moves forward.
 * The next call takes position + length; length 0 means nothing new.
 */
struct porthole_log_read {
	__u64 position;		/* in: where to start; out: of the first byte */
	__u64 buffer;		/* user address */
	__u32 capacity;		/* bytes, 1 to 1 MiB */
	__u32 length;		/* out: bytes written */
};

/* PORTHOLE_STATS: one counter. */
struct porthole_stats {
	__u32 kind;		/* PORTHOLE_STAT_* */
	__s32 refusal;		/* out */
	__u64 index;
	__u64 value;		/* out */
};

/*
 * PORTHOLE_PAGE_INFO: who owns a page, and how many from it on have the same
 * owner and VM: 16384 at most. Where no RAM is, the pages to the next RAM, 0 if
 * none comes. Looking again at pa + (pages << 12) shows all of memory.
 */
struct porthole_page_info {
	__u64 pa;		/* page-aligned */
	__u64 vm;		/* out: handle of its VM or 0 */
	__u64 pages;		/* out */
	__u32 owner;		/* out: PORTHOLE_OWNER_* */
	__s32 refusal;		/* out */
};

/*
 * PORTHOLE_PAGE_FIND: first page from start on, below end, with this owner (and
 * of this VM unless vm is 0). ENOENT if there is none. EINTR on a signal.
 */
struct porthole_page_find {
	__u64 start;		/* page-aligned PA; out: the page found */
	__u64 end;		/* PA, at most 2^40 */
	__u64 vm;		/* handle, or 0 for any */
	__u32 owner;
	__u32 reserved;
};

/* PORTHOLE_VM_WINDOW: a registered window of any VM, as the hypervisor knows it. */
struct porthole_vm_window {
	__u64 vm;		/* handle */
	__u64 id;		/* 0 to 31, the hypervisor's; ENOENT if there is none */
	__u64 ipa;		/* out */
	__u64 length;		/* out: bytes */
	__u64 bar_offset;	/* out */
	__u32 function;		/* out: as in WINDOW_CREATE; the lowest that shares it */
	__u32 function_mask;	/* out: bit n: function n of the device shares it */
	__u32 bar;		/* out */
	__s32 refusal;		/* out */
};

/* Why a device cannot be confined. */
#define PORTHOLE_DMA_OBSTACLE_NONE	0
#define PORTHOLE_DMA_OBSTACLE_BRIDGE	1	/* a bridge: it speaks for others */
#define PORTHOLE_DMA_OBSTACLE_ALIAS	2	/* its accesses carry another function's id */
#define PORTHOLE_DMA_OBSTACLE_IOMMU	3	/* the kernel has an IOMMU of its own for it */
#define PORTHOLE_DMA_OBSTACLE_ADDRESS	4	/* its addresses are not the CPUs', or not coherent */
#define PORTHOLE_DMA_OBSTACLE_KERNEL	5	/* the kernel lets no module serve its DMA API */
#define PORTHOLE_DMA_OBSTACLE_SIZE	6	/* its driver needs 2 MiB: a request is mapped whole */

/*
 * PORTHOLE_DMA_CONFINE: takes a region of the kernel's memory, in one piece
 * and zeroed, and confines a PCI function to it; from then on the kernel's DMA
 * API for the device uses the region only, whatever driver is bound. Bus
 * mastering is switched off first. The module cannot be unloaded until the
 * function is released, or the device removed, which releases it.
 *   EINVAL      size is 0, no multiple of the page size or above 64 MiB
 *   ENODEV      no such function
 *   EBUSY       a driver is bound to it
 *   EEXIST      it is confined
 *   EOPNOTSUPP  see obstacle
 *   ETIMEDOUT   accesses of it are under way that do not end
 *   ENOMEM      no such piece of memory is free: see available
 */
struct porthole_dma_confine {
	__u64 size;		/* bytes, a multiple of the page size, at most 64 MiB */
	__u64 pa;		/* out: where the region is */
	__u64 available;	/* out: with ENOMEM a size that is free and enough, or 0 */
	__u32 function;		/* segment << 16 | bus << 8 | device << 3 | function */
	__u32 obstacle;		/* out: PORTHOLE_DMA_OBSTACLE_* */
	__s32 refusal;		/* out */
	__u32 reserved;
};

/*
 * PORTHOLE_DMA_RELEASE: the function reaches what the host reaches again, its
 * region is freed. Takes functions too that an earlier kernel has confined
 * (kexec). EBUSY while a driver is bound, ENOENT if it is not confined.
 */
struct porthole_dma_release {
	__u32 function;
	__s32 refusal;		/* out */
};

/* PORTHOLE_DMA_INFO: one line of what the hypervisor knows of the host's DMA. */
struct porthole_dma_info {
	__u64 index;		/* 0 to 15: confined functions; 16 to 31: refused accesses */
	__u32 kind;		/* out: PORTHOLE_DMA_*; what follows is 0 where it says nothing */
	__u32 function;		/* out: or ~0 for a stream that is no function's */
	__u64 pa;		/* out: confined: its region */
	__u64 size;		/* out: confined: bytes */
	__u64 used;		/* out: confined: bytes in use by its driver */
	__u64 failed;		/* out: confined: requests of its driver that found no room */
	__u64 stream;		/* out: faults: SMMU << 32 | StreamID */
	__u64 count;		/* out: faults: how many */
	__u64 address;		/* out: faults: of the last one, or ~0 */
	__u32 event;		/* out: faults: of the last one: SMMU event, bit 8: a write */
	__u32 owned;		/* out: confined: 1 if by this kernel */
	__s32 refusal;		/* out */
	__u32 reserved;
};

#define PORTHOLE_INFO		_IOR(PORTHOLE_IOC, 0x00, struct porthole_info)
#define PORTHOLE_CREATE_VM	_IOWR(PORTHOLE_IOC, 0x01, struct porthole_create_vm)
#define PORTHOLE_LIST		_IOWR(PORTHOLE_IOC, 0x02, struct porthole_list)
#define PORTHOLE_AUDIT		_IOR(PORTHOLE_IOC, 0x03, struct porthole_audit)
#define PORTHOLE_LOG_READ	_IOWR(PORTHOLE_IOC, 0x04, struct porthole_log_read)
#define PORTHOLE_STATS		_IOWR(PORTHOLE_IOC, 0x05, struct porthole_stats)
#define PORTHOLE_PAGE_INFO	_IOWR(PORTHOLE_IOC, 0x06, struct porthole_page_info)
#define PORTHOLE_PAGE_FIND	_IOWR(PORTHOLE_IOC, 0x07, struct porthole_page_find)
#define PORTHOLE_VM_WINDOW	_IOWR(PORTHOLE_IOC, 0x08, struct porthole_vm_window)
#define PORTHOLE_DMA_CONFINE	_IOWR(PORTHOLE_IOC, 0x09, struct porthole_dma_confine)
#define PORTHOLE_DMA_RELEASE	_IOWR(PORTHOLE_IOC, 0x0a, struct porthole_dma_release)
#define PORTHOLE_DMA_INFO	_IOWR(PORTHOLE_IOC, 0x0b, struct porthole_dma_info)

/* ---- VM file ---------------------------------------------------------- */

/*
 * PORTHOLE_VM_LOAD: copies size bytes to fresh pages of the guest at ipa,
 * measured; the rest of the last page is zero. Before FINALIZE only. After an
 * error part of it may have been loaded: "loaded" says how much; the VM is
 * then of no use but to be closed.
 */
struct porthole_load {
	__u64 source;		/* user address, any alignment */
	__u64 ipa;		/* page-aligned, inside a RAM region */
	__u64 size;		/* bytes, not 0 */
	__u64 loaded;		/* out: bytes */
	__s32 refusal;		/* out */
	__u32 reserved;
};

/*
 * PORTHOLE_VM_POPULATE: gives the guest its zeroed pages of a range now instead
 * of on first touch; pages it has are skipped. Any time before it stopped.
 */
struct porthole_populate {
	__u64 ipa;		/* page-aligned, inside a RAM region */
	__u64 size;		/* bytes, a multiple of the page size */
	__s32 refusal;		/* out */
	__u32 reserved;
};

/* PORTHOLE_VM_FINALIZE: closes the measurement. All vCPUs must exist. */
struct porthole_finalize {
	__u64 entry;		/* IPA where vCPU 0 starts */
	__u64 x0;		/* its x0: the IPA of the device tree */
	__s32 refusal;		/* out */
	__u32 reserved;
};

/*
 * PORTHOLE_VM_CREATE_VCPU: returns a vCPU file. Before FINALIZE only. The vCPU is
 * made before its file: without room for one (EMFILE, ENFILE) the VM is of no use.
 */
struct porthole_create_vcpu {
	__u32 index;		/* 0 to vcpus - 1, each once */
	__s32 refusal;		/* out */
};

#define PORTHOLE_WINDOW_UNMAPPED	0xffffffffffffffffULL

/*
 * PORTHOLE_WINDOW_CREATE: allocates zeroed pages for a window and, unless ipa
 * is PORTHOLE_WINDOW_UNMAPPED, registers it. mmap(MAP_SHARED) of the VM file at
 * offset (id << 32) + page-aligned offset inside the window maps the pages, read
 * and write, never executable; a mapping that is longer goes on with the windows
 * whose ids follow. It stays good after WINDOW_DESTROY and is not inherited by
 * fork.
 */
struct porthole_window_create {
	__u64 ipa;		/* inside a Window or open RAM region, or UNMAPPED */
	__u64 length;		/* bytes, a multiple of the page size, at most 16 MiB,
				 * or 64 MiB in open RAM */
	__u64 bar_size;		/* a power of two, at least a page */
	__u64 bar_offset;	/* of the window inside its BAR, page-aligned */
	__u32 function;		/* segment << 16 | bus << 8 | device << 3 | function */
	__u32 bar;		/* 0 to 5 */
	__u32 flags;		/* PORTHOLE_WINDOW_BAR_64 */
	__u32 id;		/* out: 0 to 31, the driver's, kept over moves */
	__s32 refusal;		/* out */
	__u32 reserved;
};

/*
 * PORTHOLE_WINDOW_MOVE: the guest wrote its BAR or the decode bit: unregisters
 * and, unless ipa is UNMAPPED, registers the same pages at ipa for the same
 * functions. When the new place is refused the window is left unmapped.
 */
struct porthole_window_move {
	__u32 id;
	__s32 refusal;		/* out */
	__u64 ipa;
};

/* PORTHOLE_WINDOW_DESTROY: unregisters the window; its pages go back when unmapped. */
struct porthole_window_destroy {
	__u32 id;
	__s32 refusal;		/* out */
};

/* PORTHOLE_WINDOW_ADD_FUNCTION, _REMOVE_FUNCTION: another function of the same
 * device shares the window. The last one cannot be removed (EINVAL): destroy.
 */
struct porthole_window_function {
	__u32 id;
	__u32 function;		/* as in WINDOW_CREATE */
	__s32 refusal;		/* out */
	__u32 reserved;
};

/* PORTHOLE_WINDOW_INFO */
struct porthole_window_info {
	__u32 id;		/* in */
	__u32 function;		/* out: the one that created it */
	__u32 function_mask;	/* out: bit n: function n of the device shares it */
	__u32 bar;		/* out */
	__u64 ipa;		/* out: or UNMAPPED */
	__u64 length;		/* out: bytes */
	__u64 first_pa;		/* out: physical address of its first page */
	__u32 hyp_id;		/* out: the hypervisor's number of it while mapped */
	__u32 extents;		/* out: runs of contiguous pages */
};

/* PORTHOLE_IRQ_LINE: level of a declared SPI. */
struct porthole_irq_line {
	__u32 intid;		/* 32 on */
	__u32 level;		/* 0 or 1 */
	__s32 refusal;		/* out */
	__u32 reserved;
};

#define PORTHOLE_IRQFD_DEASSIGN		0x1

/*
 * PORTHOLE_IRQFD: each write to the eventfd raises an edge of the SPI (level 1,
 * then 0). DEASSIGN needs the same fd and INTID and waits for callers inside.
 * EBUSY if the eventfd is in use here already.
 */
struct porthole_irqfd {
	__s32 fd;
	__u32 intid;
	__u32 flags;
	__s32 refusal;		/* out */
};

#define PORTHOLE_IOEVENTFD_DEASSIGN	0x1
#define PORTHOLE_IOEVENTFD_DATAMATCH	0x2

/*
 * PORTHOLE_IOEVENTFD: a guest's write to ipa of this width (and, with DATAMATCH,
 * of this value) signals the eventfd and does not reach RUN's caller. EEXIST if
 * it overlaps one that would match too. At most 256 of them (ENOSPC).
 */
struct porthole_ioeventfd {
	__u64 ipa;		/* aligned to width */
	__u64 datamatch;	/* 0 without DATAMATCH */
	__u32 width;		/* 1, 2, 4, 8; 0 for any (ipa is then any byte) */
	__u32 flags;
	__s32 fd;
	__u32 reserved;
};

/* PORTHOLE_VM_MEASUREMENT: SHA-256 of the launch, after FINALIZE. */
struct porthole_measurement {
	__u8 digest[32];
};

/* PORTHOLE_VM_INFO: the hypervisor's view and the driver's. */
struct porthole_vm_info {
	__u64 handle;
	__u64 memory_pages;
	__u64 metadata_pages;
	__u64 metadata_free;
	__u32 state;		/* PORTHOLE_VM_* */
	__u32 vcpus;
	__u32 windows;		/* registered */
	__s32 refusal;
	__u64 blocks_2m;	/* 2 MiB blocks among the memory */
	__u64 ram_faults;	/* served on first touch */
	__u64 first_pa;		/* physical address of a page of memory, or ~0 */
	__u64 reserved;
};

#define PORTHOLE_VM_LOAD	_IOWR(PORTHOLE_IOC, 0x20, struct porthole_load)
#define PORTHOLE_VM_POPULATE	_IOWR(PORTHOLE_IOC, 0x21, struct porthole_populate)
#define PORTHOLE_VM_FINALIZE	_IOWR(PORTHOLE_IOC, 0x22, struct porthole_finalize)
#define PORTHOLE_VM_CREATE_VCPU	_IOWR(PORTHOLE_IOC, 0x23, struct porthole_create_vcpu)
#define PORTHOLE_VM_MEASUREMENT	_IOR(PORTHOLE_IOC, 0x24, struct porthole_measurement)
#define PORTHOLE_VM_INFO	_IOR(PORTHOLE_IOC, 0x25, struct porthole_vm_info)
#define PORTHOLE_WINDOW_CREATE	_IOWR(PORTHOLE_IOC, 0x30, struct porthole_window_create)
#define PORTHOLE_WINDOW_MOVE	_IOWR(PORTHOLE_IOC, 0x31, struct porthole_window_move)
#define PORTHOLE_WINDOW_DESTROY	_IOWR(PORTHOLE_IOC, 0x32, struct porthole_window_destroy)
#define PORTHOLE_WINDOW_ADD_FUNCTION	_IOWR(PORTHOLE_IOC, 0x33, struct porthole_window_function)
#define PORTHOLE_WINDOW_REMOVE_FUNCTION	_IOWR(PORTHOLE_IOC, 0x34, struct porthole_window_function)
#define PORTHOLE_WINDOW_INFO	_IOWR(PORTHOLE_IOC, 0x35, struct porthole_window_info)
#define PORTHOLE_IRQ_LINE	_IOWR(PORTHOLE_IOC, 0x40, struct porthole_irq_line)
#define PORTHOLE_IRQFD		_IOWR(PORTHOLE_IOC, 0x41, struct porthole_irqfd)
#define PORTHOLE_IOEVENTFD	_IOW(PORTHOLE_IOC, 0x42, struct porthole_ioeventfd)

/* ---- vCPU file -------------------------------------------------------- */

/* Why RUN returned; the kinds that reach user space keep their ABI number. */
#define PORTHOLE_RUN_NONE		0	/* has not run yet, or RUN failed */
#define PORTHOLE_RUN_MMIO_READ		1	/* put the value in mmio.data, RUN again */
#define PORTHOLE_RUN_MMIO_WRITE		2
#define PORTHOLE_RUN_SYSTEM_OFF		7	/* PSCI SYSTEM_OFF: the VM is over */
#define PORTHOLE_RUN_SYSTEM_RESET	8	/* system.type: 0 cold, else SYSTEM_RESET2's */
#define PORTHOLE_RUN_CRASH		10	/* system.type: exception class (ESR.EC) */
#define PORTHOLE_RUN_INTR		256	/* a signal or immediate_exit; RUN gave EINTR */
#define PORTHOLE_RUN_STOPPED		257	/* another vCPU ended the VM */

/* Kinds of exits that are counted. */
#define PORTHOLE_RUN_EXITS		11

/*
 * The page that mmap(MAP_SHARED) of a vCPU file at offset 0 shows. The driver
 * writes it before RUN returns; the caller writes immediate_exit and mmio.data.
 */
struct porthole_run {
	__u32 immediate_exit;	/* in: not 0: RUN returns EINTR before it enters the guest */
	__u32 exit_reason;	/* out: PORTHOLE_RUN_* */
	struct {
		__u64 ipa;	/* out */
		__u64 data;	/* write: out, zero-extended; read: in */
		__u32 width;	/* out: 1, 2, 4 or 8 bytes */
		__u32 reserved;
	} mmio;
	struct {
		__u64 type;	/* out */
	} system;
	__u64 exits[PORTHOLE_RUN_EXITS];	/* out: exits so far by PORTHOLE_EXIT_*, those
						 * served in the driver too */
};

#define PORTHOLE_RUN_SIZE	4096	/* what mmap takes */

/*
 * PORTHOLE_VCPU_RUN: enters the guest until it needs the caller. 0 with
 * exit_reason set; EINTR (RUN again); ENOMEM if the host has no page for the
 * guest (RUN again when it has); EBADFD before FINALIZE. A second thread waits
 * until the first one is out. RAM faults, idle waits, CPU_ON and CPU_OFF are
 * served inside: a vCPU that is off sleeps in RUN.
 */
#define PORTHOLE_VCPU_RUN	_IO(PORTHOLE_IOC, 0x60)

#endif /* PORTHOLE_UAPI_H */
