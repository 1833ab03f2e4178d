// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * QEMU plugin of the boot and I/O benchmarks: counts executed instructions of all CPUs, at every exception level, and
 * prints the count when one address runs for the first time, and then another: the kernel's entry, the first process.
 * It prints it again whenever a third address runs, which only a program made for it has, with the shares of guest
 * kernel, host kernel and programs if asked to (`shares=1`).
 * Time spent idle is not counted, which is why the clock of -icount does not serve here.
 *
 * The declarations are those of QEMU's plugin interface, version 2 (docs/devel/tcg-plugins.rst): Debian ships the
 * interface without its header.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*cb)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, void (*cb)(unsigned int, void *), int flags,
					  void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
void qemu_plugin_outs(const char *text);

__attribute__((visibility("default"))) int qemu_plugin_version = 2;

static const char *const names[] = { "kernel", "init" };
/* Where RAM begins (hw/arm/virt.c). */
static const uint64_t low_start = 0x40000000;
static uint64_t marks[2], mark_again;
static unsigned int reached;
/* All instructions, and those at addresses below the kernel's, which is where EL2 lies and nothing else runs. */
static uint64_t count, count_low;

static void count_block(unsigned int cpu, void *instructions)
{
	(void)cpu;
	count += (uintptr_t)instructions;
}

static void count_low_block(unsigned int cpu, void *instructions)
{
	(void)cpu;
	count_low += (uintptr_t)instructions;
}

/*
 * Whose instructions these are tells their address, for our guests and host: a guest's kernel has addresses of 39 bits
 * (guest/linux/porthole.config), the host's of 48. What is left are programs, the VMM above all, and EL2, which is taken
 * out where counts are printed.
 */
enum { GUEST_KERNEL, HOST_KERNEL, PROGRAMS, SHARES };
static uint64_t shares[SHARES];
static int with_shares;

static int share_of(uint64_t address)
{
	if (address >= 0xffffff8000000000)
		return GUEST_KERNEL;
	return address >= 0xffff000000000000 ? HOST_KERNEL : PROGRAMS;
}

static void count_share_0(unsigned int cpu, void *n) { (void)cpu; shares[0] += (uintptr_t)n; }
static void count_share_1(unsigned int cpu, void *n) { (void)cpu; shares[1] += (uintptr_t)n; }
static void count_share_2(unsigned int cpu, void *n) { (void)cpu; shares[2] += (uintptr_t)n; }
static void (*const count_share[SHARES])(unsigned int, void *) = {
	count_share_0, count_share_1, count_share_2,
};

static void print_counts(const char *name)
{
	char line[256];
	int n = snprintf(line, sizeof(line), "%s %" PRIu64 " %" PRIu64, name, count, count_low);

	if (with_shares)
		n += snprintf(line + n, sizeof(line) - (size_t)n, " %" PRIu64 " %" PRIu64 " %" PRIu64,
			      shares[GUEST_KERNEL], shares[HOST_KERNEL], shares[PROGRAMS] - count_low);
	snprintf(line + n, sizeof(line) - (size_t)n, "\n");
	qemu_plugin_outs(line);
}

static void count_mark(unsigned int cpu, void *which)
{
	(void)cpu;
	if ((uintptr_t)which != reached)
		return;
	print_counts(names[reached]);
	reached++;
}

static void count_again(unsigned int cpu, void *unused)
{
	(void)cpu;
	(void)unused;
	print_counts("mark");
}

static void translated(plugin_id id, struct qemu_plugin_tb *tb)
{
	uintptr_t i;

	(void)id;
	for (i = 0; i < 2; i++)
		if (marks[i] && qemu_plugin_tb_vaddr(tb) == marks[i])
			qemu_plugin_register_vcpu_tb_exec_cb(tb, count_mark, 0, (void *)i);
	if (mark_again && qemu_plugin_tb_vaddr(tb) == mark_again)
		qemu_plugin_register_vcpu_tb_exec_cb(tb, count_again, 0, NULL);
	qemu_plugin_register_vcpu_tb_exec_cb(tb, count_block, 0, (void *)qemu_plugin_tb_n_insns(tb));
	if (with_shares)
		qemu_plugin_register_vcpu_tb_exec_cb(tb, count_share[share_of(qemu_plugin_tb_vaddr(tb))], 0,
						     (void *)qemu_plugin_tb_n_insns(tb));
	if (qemu_plugin_tb_vaddr(tb) >= low_start && qemu_plugin_tb_vaddr(tb) < marks[0])
		qemu_plugin_register_vcpu_tb_exec_cb(tb, count_low_block, 0, (void *)qemu_plugin_tb_n_insns(tb));
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
	int i;

	(void)info;
	for (i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "kernel=", 7))
			marks[0] = strtoull(argv[i] + 7, NULL, 0);
		else if (!strncmp(argv[i], "init=", 5))
			marks[1] = strtoull(argv[i] + 5, NULL, 0);
		else if (!strncmp(argv[i], "mark=", 5))
			mark_again = strtoull(argv[i] + 5, NULL, 0);
		else if (!strcmp(argv[i], "shares=1"))
			with_shares = 1;
	}
	if (!marks[0] || (!marks[1] && !mark_again)) {
		fprintf(stderr, "count_plugin: wants kernel=ADDRESS and init=ADDRESS or mark=ADDRESS\n");
		return 1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
