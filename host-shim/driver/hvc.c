// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls to the hypervisor: SMCCC 1.2 by HVC, discovery, errors as errno.
 * What the calls mean is in porthole_abi.h; no state lives here.
 */
#include "porthole.h"

#include <linux/errno.h>
#include <linux/of.h>

/*
 * An HVC without EL2 under us is an undefined instruction, so the device tree
 * is asked first: the hypervisor puts its node there for the host.
 */
static bool node_present(void)
{
	struct device_node *node =
		of_find_compatible_node(NULL, NULL, "porthole,hypervisor");

	of_node_put(node);
	return node;
}

/* Finds the hypervisor; says in one line why not. */
int porthole_discover(u32 *abi_version)
{
	struct arm_smccc_1_2_regs regs = { .a0 = PORTHOLE_CALL_UID };
	struct porthole_result result;

	if (!node_present()) {
		pr_err("this kernel does not run under Porthole (no \"porthole,hypervisor\" in the device tree): boot it with qemu-scripts/run.sh\n");
		return -ENODEV;
	}
	porthole_call_regs(&regs);
	if (lower_32_bits(regs.a0) != PORTHOLE_UID_0 ||
	    lower_32_bits(regs.a1) != PORTHOLE_UID_1 ||
	    lower_32_bits(regs.a2) != PORTHOLE_UID_2 ||
	    lower_32_bits(regs.a3) != PORTHOLE_UID_3) {
		pr_err("the hypervisor under this kernel is not Porthole (UID %08lx %08lx %08lx %08lx)\n",
		       regs.a0, regs.a1, regs.a2, regs.a3);
		return -ENODEV;
	}
	result = porthole_call(PORTHOLE_FN_FEATURES);
	if (result.status) {
		pr_err("the hypervisor does not name its features (error %lld)\n",
		       result.status);
		return -EPROTO;
	}
	if (result.x1 >> 16 != PORTHOLE_ABI_VERSION >> 16) {
		pr_err("the hypervisor speaks ABI %llu.%llu, this module %u.x: build both from one tree\n",
		       result.x1 >> 16, result.x1 & 0xffff,
		       PORTHOLE_ABI_VERSION >> 16);
		return -EPROTONOSUPPORT;
	}
	*abi_version = result.x1;
	return 0;
}

/* The long form: x0 to x17 in and out. */
void porthole_call_regs(struct arm_smccc_1_2_regs *regs)
{
	arm_smccc_1_2_hvc(regs, regs);
}

/* The short form: five arguments, x0 to x5 back. Callable in any context. */
struct porthole_result porthole_call5(u32 function, u64 x1, u64 x2, u64 x3,
				      u64 x4, u64 x5)
{
	struct arm_smccc_1_2_regs regs = {
		.a0 = function, .a1 = x1, .a2 = x2, .a3 = x3, .a4 = x4, .a5 = x5,
	};

	arm_smccc_1_2_hvc(&regs, &regs);
	return (struct porthole_result) {
		.status = regs.a0, .x1 = regs.a1, .x2 = regs.a2,
		.x3 = regs.a3, .x4 = regs.a4, .x5 = regs.a5,
	};
}

/* The errno of a status; the list is part of porthole_uapi.h. */
int porthole_errno(s64 status)
{
	switch (status) {
	case PORTHOLE_E_BUSY:
		return -EBUSY;
	case PORTHOLE_E_NO_MEMORY:
	case PORTHOLE_E_NO_METADATA:
		return -ENOMEM;
	case PORTHOLE_E_NO_SLOT:
		return -ENOSPC;
	case PORTHOLE_E_ALREADY_MAPPED:
	case PORTHOLE_E_WINDOW_OVERLAP:
	case PORTHOLE_E_ALREADY_CONFINED:
		return -EEXIST;
	case PORTHOLE_E_OUTSIDE_REGION:
	case PORTHOLE_E_BAD_VCPU:
	case PORTHOLE_E_BAD_CPU:
	case PORTHOLE_E_BAD_STREAM:
		return -ENXIO;
	case PORTHOLE_E_NO_WINDOW:
	case PORTHOLE_E_NOT_CONFINED:
		return -ENOENT;
	case PORTHOLE_E_DENIED:
	case PORTHOLE_E_WINDOW_FOREIGN:
		return -EPERM;
	case PORTHOLE_E_BAD_HANDLE:
	case PORTHOLE_E_BAD_STATE:
		return -EBADFD;
	case PORTHOLE_E_OVERFLOW:
		return -EOVERFLOW;
	case PORTHOLE_E_TOO_LARGE:
		return -E2BIG;
	case PORTHOLE_E_NOT_SUPPORTED:
	case PORTHOLE_E_UNSAFE_DMA:
		return -EOPNOTSUPP;
	default:
		return status < 0 ? -EINVAL : -EIO;
	}
}

/* Hands the hypervisor's own code on and returns its errno; 0 stays 0. */
int porthole_refused(s64 status, s32 *refusal)
{
	if (!status)
		return 0;
	*refusal = clamp_t(s64, status, S32_MIN, S32_MAX);
	return porthole_errno(status);
}
