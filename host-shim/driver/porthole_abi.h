/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT */
/*
 * The hypercall ABI of Porthole as the driver uses it: a mirror of hyp/abi,
 * which is the source. hyp/abi/tests/c_header.rs compiles this file and fails
 * when a number, an offset or a size differs. docs/abi.md explains the calls.
 */
#ifndef PORTHOLE_ABI_H
#define PORTHOLE_ABI_H

#include <linux/types.h>

/* Version: major in bits 31:16, minor in 15:0. Another major is refused. */
#define PORTHOLE_ABI_VERSION		0x00010000
#define PORTHOLE_HVC_IMMEDIATE		0

/* SMCCC 1.2, vendor-specific hypervisor service. */
#define PORTHOLE_RANGE_FAST64		0xC6000000
#define PORTHOLE_RANGE_FAST32		0x86000000
#define PORTHOLE_RANGE_MASK		0xFF000000
#define PORTHOLE_CALL_COUNT		0x8600FF00
#define PORTHOLE_CALL_UID		0x8600FF01
#define PORTHOLE_CALL_REVISION		0x8600FF03

/* What CALL_UID returns: d1f6c3a0-5b0e-4f7a-9c41-706f7274686c. */
#define PORTHOLE_UID_0			0xa0c3f6d1
#define PORTHOLE_UID_1			0x7a4f0e5b
#define PORTHOLE_UID_2			0x6f70419c
#define PORTHOLE_UID_3			0x6c687472

/* Calls of the host. Arguments from x1, status in x0, results from x1. */
#define PORTHOLE_FN_FEATURES		0xC6000100
#define PORTHOLE_FN_VM_CREATE		0xC6000110
#define PORTHOLE_FN_VM_DONATE_META	0xC6000111
#define PORTHOLE_FN_VM_DONATE		0xC6000112
#define PORTHOLE_FN_VM_FINALIZE		0xC6000113
#define PORTHOLE_FN_VM_TEARDOWN		0xC6000114
#define PORTHOLE_FN_VM_RECLAIM		0xC6000115
#define PORTHOLE_FN_VM_DESTROY		0xC6000116
#define PORTHOLE_FN_VM_INFO		0xC6000117
#define PORTHOLE_FN_VM_MEASUREMENT	0xC6000118
#define PORTHOLE_FN_VCPU_CREATE		0xC6000120
#define PORTHOLE_FN_VCPU_RUN		0xC6000121
#define PORTHOLE_FN_WINDOW_REGISTER	0xC6000130
#define PORTHOLE_FN_WINDOW_UNREGISTER	0xC6000131
#define PORTHOLE_FN_WINDOW_INFO		0xC6000132
#define PORTHOLE_FN_SPI_SET		0xC6000140
#define PORTHOLE_FN_SHARE_AUDIT		0xC6000150
#define PORTHOLE_FN_STATS		0xC6000151
#define PORTHOLE_FN_LOG_READ		0xC6000152
#define PORTHOLE_FN_PAGE_INFO		0xC6000153
#define PORTHOLE_FN_DMA_CONFINE		0xC6000160
#define PORTHOLE_FN_DMA_RELEASE		0xC6000161
#define PORTHOLE_FN_DMA_INFO		0xC6000162

/* Calls of a guest: the driver makes none of them. */
#define PORTHOLE_FN_GUEST_FEATURES	0xC6000200
#define PORTHOLE_FN_WINDOW_ENUM		0xC6000201
#define PORTHOLE_FN_MEASUREMENT		0xC6000202
#define PORTHOLE_FN_MEM_SHARE		0xC6000203
#define PORTHOLE_FN_MEM_UNSHARE		0xC6000204

/* Flags of VM_DONATE. */
#define PORTHOLE_DONATE_CONTENT		0x1

/* Errors, in x0 as a negative 64-bit number. */
#define PORTHOLE_E_NOT_SUPPORTED	(-1)
#define PORTHOLE_E_INVALID_PARAMETER	(-3)
#define PORTHOLE_E_UNALIGNED		(-16)
#define PORTHOLE_E_OVERFLOW		(-17)
#define PORTHOLE_E_EMPTY		(-18)
#define PORTHOLE_E_TOO_LARGE		(-19)
#define PORTHOLE_E_NOT_RAM		(-20)
#define PORTHOLE_E_NOT_HOST_OWNED	(-21)
#define PORTHOLE_E_PAGE_IS_WINDOW	(-22)
#define PORTHOLE_E_PAGE_PINNED		(-23)
#define PORTHOLE_E_BAD_HANDLE		(-24)
#define PORTHOLE_E_BAD_STATE		(-25)
#define PORTHOLE_E_BUSY			(-26)
#define PORTHOLE_E_NO_MEMORY		(-27)
#define PORTHOLE_E_NO_METADATA		(-28)
#define PORTHOLE_E_NO_SLOT		(-29)
#define PORTHOLE_E_OUTSIDE_REGION	(-30)
#define PORTHOLE_E_ALREADY_MAPPED	(-31)
#define PORTHOLE_E_RESERVED_NON_ZERO	(-32)
#define PORTHOLE_E_BAD_BAR		(-33)
#define PORTHOLE_E_OUTSIDE_BAR		(-34)
#define PORTHOLE_E_BAD_FUNCTION		(-35)
#define PORTHOLE_E_WINDOW_OVERLAP	(-36)
#define PORTHOLE_E_DUPLICATE_PAGE	(-37)
#define PORTHOLE_E_BAD_REGIONS		(-38)
#define PORTHOLE_E_BAD_VCPU		(-39)
#define PORTHOLE_E_NOT_VM_OWNED		(-40)
#define PORTHOLE_E_BAD_INTID		(-41)
#define PORTHOLE_E_UNSAFE_DMA		(-42)
#define PORTHOLE_E_BAD_VERSION		(-43)
#define PORTHOLE_E_NO_WINDOW		(-44)
#define PORTHOLE_E_WINDOW_FOREIGN	(-45)
#define PORTHOLE_E_DENIED		(-46)
#define PORTHOLE_E_PAGES_LEFT		(-47)
#define PORTHOLE_E_BAD_CPU		(-48)
#define PORTHOLE_E_BAD_STREAM		(-49)
#define PORTHOLE_E_NOT_CONFINED		(-50)
#define PORTHOLE_E_ALREADY_CONFINED	(-51)

/* Kinds of a vCPU's exit, in x1 after VCPU_RUN; the payload is in x2 to x4. */
#define PORTHOLE_EXIT_HOST_INTERRUPT	0
#define PORTHOLE_EXIT_MMIO_READ		1
#define PORTHOLE_EXIT_MMIO_WRITE	2
#define PORTHOLE_EXIT_RAM_FAULT		3
#define PORTHOLE_EXIT_WFI		4
#define PORTHOLE_EXIT_CPU_ON		5
#define PORTHOLE_EXIT_CPU_OFF		6
#define PORTHOLE_EXIT_SYSTEM_OFF	7
#define PORTHOLE_EXIT_SYSTEM_RESET	8
#define PORTHOLE_EXIT_WAKE		9
#define PORTHOLE_EXIT_CRASH		10

/* Feature bits, in x2 of FEATURES. */
#define PORTHOLE_FEATURE_DMA_ISOLATED	0x1
#define PORTHOLE_FEATURE_UNSAFE_DMA	0x2
#define PORTHOLE_FEATURE_TRNG		0x4
#define PORTHOLE_FEATURE_LOG_UART	0x8
#define PORTHOLE_FEATURE_DEBUG_BUILD	0x10
#define PORTHOLE_FEATURE_UNPROTECTED	0x20

/* States of a VM, in x2 of VM_INFO. */
#define PORTHOLE_VM_CREATED		1
#define PORTHOLE_VM_FINAL		2
#define PORTHOLE_VM_STOPPED		3
#define PORTHOLE_VM_DYING		4

/* Owners of a page, in x1 of PAGE_INFO. */
#define PORTHOLE_OWNER_NONE		0
#define PORTHOLE_OWNER_HOST		1
#define PORTHOLE_OWNER_HYP		2
#define PORTHOLE_OWNER_VM_MEMORY	3
#define PORTHOLE_OWNER_VM_METADATA	4
#define PORTHOLE_OWNER_WINDOW		5
#define PORTHOLE_OWNER_PINNED		6
#define PORTHOLE_OWNER_HW_TABLE		7

/* Counters of STATS. */
#define PORTHOLE_STAT_HOST_CALLS	0
#define PORTHOLE_STAT_HOST_ABORTS	1
#define PORTHOLE_STAT_LAST_ABORT_ADDRESS	2
#define PORTHOLE_STAT_SMCS_REFUSED	3
#define PORTHOLE_STAT_GUEST_EXITS_INSIDE	4
#define PORTHOLE_STAT_GUEST_EXITS_TO_HOST	5
#define PORTHOLE_STAT_PAGES_BY_OWNER	6
#define PORTHOLE_STAT_EPOCH		7
#define PORTHOLE_STAT_PAGES_DONATED	8
#define PORTHOLE_STAT_PAGES_RECLAIMED	9
#define PORTHOLE_STAT_HOST_TABLES	10
#define PORTHOLE_STAT_DMA_FAULTS	11

/* What stands at an index, in x1 of DMA_INFO. */
#define PORTHOLE_DMA_FREE		0
#define PORTHOLE_DMA_CONFINED		1
#define PORTHOLE_DMA_FAULTS		2

/* Kinds of a region of guest addresses. */
#define PORTHOLE_REGION_RAM		1
#define PORTHOLE_REGION_WINDOW		2
#define PORTHOLE_REGION_GIC_DISTRIBUTOR	3
#define PORTHOLE_REGION_GIC_REDISTRIBUTORS	4
#define PORTHOLE_REGION_GIC_V2M		5
#define PORTHOLE_REGION_OPEN_RAM	6

/* Flags of a VM. */
#define PORTHOLE_VM_FLAG_UNPROTECTED	0x1

/* Flags of a window. */
#define PORTHOLE_WINDOW_BAR_64		0x1

/* Limits. */
#define PORTHOLE_PAGE_SIZE		4096
#define PORTHOLE_PAGE_SHIFT		12
#define PORTHOLE_DONATE_PAGES_MAX	512
#define PORTHOLE_WINDOW_PAGES_MAX	4096
#define PORTHOLE_OPEN_WINDOW_PAGES_MAX	16384
#define PORTHOLE_PAGE_RUN_MAX		16384
#define PORTHOLE_WINDOWS_MAX		32
#define PORTHOLE_VMS_MAX		64
#define PORTHOLE_VCPUS_MAX		8
#define PORTHOLE_GUEST_IPA_BITS		36
#define PORTHOLE_SPI_BASE		32
#define PORTHOLE_SPIS_MAX		224
#define PORTHOLE_VCPU_META_PAGES	1
#define PORTHOLE_DMA_PAGES_MAX		16384
#define PORTHOLE_DMA_CONFINED_MAX	16
#define PORTHOLE_DMA_SOURCES_MAX	16
#define PORTHOLE_LOG_CHUNK		120
#define PORTHOLE_VM_REGIONS_MAX		16
#define PORTHOLE_WINDOW_EXTENTS_MAX	240
#define PORTHOLE_NO_ADDRESS		0xffffffffffffffff

/* One typed range of guest addresses; base and size in bytes, page-aligned. */
struct porthole_region_desc {
	__u64 base;
	__u64 size;
	__u32 kind;
	__u32 reserved;
};

/* Parameter block of VM_CREATE, 8-byte aligned, inside one page. */
struct porthole_vm_config {
	__u32 version;
	__u32 vcpus;
	__u64 flags;
	__u32 spi_count;
	__u32 msi_base;
	__u32 msi_count;
	__u32 region_count;
	__u64 meta_pa;
	__u64 meta_pages;
	__u64 reserved[2];
	struct porthole_region_desc regions[PORTHOLE_VM_REGIONS_MAX];
};

/* A run of host pages. */
struct porthole_extent {
	__u64 pa;
	__u64 pages;
};

/* Parameter block of WINDOW_REGISTER, 8-byte aligned, inside one page. */
struct porthole_window_config {
	__u32 version;
	__u32 flags;
	__u64 vm;
	__u32 function;
	__u32 bar;
	__u64 bar_size;
	__u64 bar_offset;
	__u64 length;
	__u64 ipa;
	__u32 extent_count;
	__u32 reserved;
	struct porthole_extent extents[PORTHOLE_WINDOW_EXTENTS_MAX];
};

#endif /* PORTHOLE_ABI_H */
