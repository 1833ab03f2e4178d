// SPDX-License-Identifier: GPL-2.0-only
/* Windows and mappings: whom they are for, what they are not, and what becomes of them. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include "vm.h"

#define WINDOW_FAILS(error, field, value) \
	do { \
		bad = good; \
		bad.field = (value); \
		CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &bad), error); \
		CHECK(bad.refusal == 0 && audit().window_pages == 0); \
	} while (0)

TEST(windows_that_cannot_be_are_not_allocated)
{
	struct porthole_window_create good = window_config(PORTHOLE_WINDOW_UNMAPPED, 4096);
	struct porthole_window_create bad;
	struct vm vm = vm_unfinished(1);

	WINDOW_FAILS(EINVAL, reserved, 1);
	WINDOW_FAILS(EINVAL, flags, 2);
	WINDOW_FAILS(EINVAL, flags, 1U << 31);
	WINDOW_FAILS(EINVAL, length, 0);
	WINDOW_FAILS(EINVAL, length, 4095);
	WINDOW_FAILS(EINVAL, length, 4097);
	WINDOW_FAILS(EINVAL, length, 1ULL << 63);
	WINDOW_FAILS(EINVAL, length, -4096ULL);
	/* One more than there is room for. */
	for (unsigned int i = 0; i < 32; i++) {
		CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &good) == 0);
		CHECK(good.id == i);
	}
	WINDOW_FAILS(ENOSPC, length, 4096);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vm.fd, 31LL << 32) != MAP_FAILED);
	CHECK(mmap(NULL, 8192, PROT_READ, MAP_SHARED, vm.fd, 31LL << 32) == MAP_FAILED);
	vm_close(&vm);
}

TEST(windows_that_are_not_there_are_not_found)
{
	static const uint32_t ids[] = { 1, 31, 32, 33, UINT32_MAX };
	struct porthole_window_create create = window_config(WINDOW_BASE, 4096);
	struct vm vm = vm_unfinished(1);

	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	for (unsigned int i = 0; i < 5; i++) {
		struct porthole_window_move move = { .id = ids[i], .ipa = WINDOW_BASE };
		struct porthole_window_destroy destroy = { .id = ids[i] };
		struct porthole_window_function share = { .id = ids[i], .function = FUNCTION + 1 };
		struct porthole_window_info info = { .id = ids[i] };

		CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_MOVE, &move), ENOENT);
		CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_DESTROY, &destroy), ENOENT);
		CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_ADD_FUNCTION, &share), ENOENT);
		CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_REMOVE_FUNCTION, &share), ENOENT);
		CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_INFO, &info), ENOENT);
		if (i)
			CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vm.fd,
				   (off_t)ids[i] << 32) == MAP_FAILED);
	}
	CHECK(audit().window_pages == 1);
	vm_close(&vm);
}

/* Functions of a window that the guest has not mapped are the driver's affair alone. */
TEST(functions_share_an_unmapped_window_once_each)
{
	struct porthole_window_create create = window_config(PORTHOLE_WINDOW_UNMAPPED, 4096);
	struct porthole_window_function share = { .function = FUNCTION + 1 };
	struct porthole_window_move move = { .ipa = WINDOW_BASE };
	struct porthole_window_info info = {};
	struct vm vm = vm_unfinished(1);

	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	share.reserved = 1;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_ADD_FUNCTION, &share), EINVAL);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_REMOVE_FUNCTION, &share), EINVAL);
	share.reserved = 0;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_REMOVE_FUNCTION, &share), ENOENT);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_ADD_FUNCTION, &share) == 0);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_ADD_FUNCTION, &share), EEXIST);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_INFO, &info) == 0);
	CHECK(info.function_mask == 3 && info.ipa == PORTHOLE_WINDOW_UNMAPPED);
	share.function = FUNCTION;
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_REMOVE_FUNCTION, &share) == 0);
	share.function = FUNCTION + 1;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_REMOVE_FUNCTION, &share), EINVAL);
	share.function = FUNCTION + 9;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_ADD_FUNCTION, &share), EPERM);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_REMOVE_FUNCTION, &share), EPERM);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_MOVE, &move) == 0);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_INFO, &info) == 0);
	CHECK(info.function_mask == 2 && info.ipa == WINDOW_BASE);
	vm_close(&vm);
}

TEST(a_window_that_cannot_move_there_is_left_unmapped)
{
	struct porthole_window_create create = window_config(WINDOW_BASE + (1 << 20), 4096);
	struct porthole_window_function share = { .id = 1, .function = FUNCTION + 1 };
	struct porthole_window_move move = { .id = 1, .ipa = RAM_BASE };
	struct porthole_window_info info = { .id = 1 };
	struct vm vm = vm_unfinished(1);

	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	create.ipa = WINDOW_BASE;
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0 && create.id == 1);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_INFO, &info) == 0 && info.hyp_id);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_ADD_FUNCTION, &share) == 0);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_MOVE, &move), ENXIO);
	CHECK(move.refusal == PORTHOLE_E_OUTSIDE_REGION && audit().window_pages == 1);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_INFO, &info) == 0);
	CHECK(info.ipa == PORTHOLE_WINDOW_UNMAPPED && !info.hyp_id);
	move.ipa = PORTHOLE_WINDOW_UNMAPPED;
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_MOVE, &move) == 0 && !move.refusal);
	CHECK(audit().window_pages == 1);
	move.ipa = WINDOW_BASE + 4096;
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_MOVE, &move) == 0 && !move.refusal);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_INFO, &info) == 0);
	CHECK(info.ipa == WINDOW_BASE + 4096 && info.function_mask == 3);
	CHECK(audit().window_pages == 2);
	vm_close(&vm);
}

/* Whether "smaps" has a flag for the mapping there. */
static bool has_flag(const void *at, const char *flag)
{
	FILE *maps = fopen("/proc/self/smaps", "r");
	bool here = false, found = false;
	unsigned long start, end;
	char line[512];

	CHECK(maps);
	while (fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx", &start, &end) == 2)
			here = start == (uintptr_t)at;
		else if (here && !strncmp(line, "VmFlags:", 8))
			found = strstr(line, flag);
	}
	fclose(maps);
	return found;
}

/* What holds for a mapping of a window and for that of a run page. */
static void is_held_back(volatile char *shared, size_t length)
{
	int status;
	pid_t pid;

	CHECK(shared != MAP_FAILED);
	CHECK_FAILS(mprotect((void *)shared, length, PROT_READ | PROT_EXEC), EACCES);
	CHECK(mremap((void *)shared, length, length + 4096, MREMAP_MAYMOVE) == MAP_FAILED);
	CHECK(has_flag((void *)shared, " dd"));
	CHECK(shared[0] == 0);
	/* A child has none of it. */
	pid = fork();
	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		_exit(shared[0]);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

TEST(mappings_stay_with_their_process_and_are_never_code)
{
	struct porthole_window_create create = window_config(WINDOW_BASE, 1 << 16);
	const int both = PROT_READ | PROT_WRITE;
	struct vm vm = vm_unfinished(1);
	int vcpu = vm.vcpu[0];

	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	is_held_back(mmap(NULL, 1 << 16, both, MAP_SHARED, vm.fd, 0), 1 << 16);
	is_held_back(mmap(NULL, 4096, both, MAP_SHARED, vcpu, 0), 4096);
	CHECK(mmap(NULL, 8192, both, MAP_SHARED, vcpu, 0) == MAP_FAILED);
	CHECK(mmap(NULL, 4096, both, MAP_SHARED, vcpu, 4096) == MAP_FAILED);
	CHECK(mmap(NULL, 4096, both, MAP_PRIVATE, vcpu, 0) == MAP_FAILED);
	CHECK(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, vcpu, 0) == MAP_FAILED);
	vm_close(&vm);
}

TEST(mappings_lie_inside_their_windows)
{
	struct porthole_window_create create = window_config(WINDOW_BASE, 1 << 16);
	struct vm vm = vm_unfinished(1);
	char *whole, *part;

	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	whole = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, vm.fd, 0);
	part = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, vm.fd, 0xe000);
	CHECK(whole != MAP_FAILED && part != MAP_FAILED);
	part[4096] = 9;
	CHECK(whole[0xf000] == 9);
	CHECK(mmap(NULL, 12288, PROT_READ, MAP_SHARED, vm.fd, 0xe000) == MAP_FAILED);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vm.fd, 0xfffff000) == MAP_FAILED);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vm.fd, INT64_MAX & ~4095ULL) == MAP_FAILED);
	CHECK(mmap(NULL, 1ULL << 40, PROT_READ, MAP_SHARED, vm.fd, 0) == MAP_FAILED);
	vm_close(&vm);
	munmap(whole, 1 << 16);
	munmap(part, 8192);
}

/* Host memory that others left full of something is not what a guest finds. */
TEST(pages_arrive_without_what_others_left_in_them)
{
	struct porthole_window_create create = window_config(WINDOW_BASE, 8 << 20);
	size_t bytes = 160 << 20;
	struct vm vm;
	char *dirt;

	dirt = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(dirt != MAP_FAILED);
	memset(dirt, 0x5a, bytes);
	munmap(dirt, bytes);
	vm = vm_new(1, TAIL);
	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 0);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	dirt = mmap(NULL, 8 << 20, PROT_READ, MAP_SHARED, vm.fd, 0);
	CHECK(dirt != MAP_FAILED);
	for (size_t i = 0; i < 8 << 20; i++)
		CHECK(dirt[i] == 0);
	munmap(dirt, 8 << 20);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	vm_close(&vm);
}

/* Files belong to whoever holds them: a child runs the guest of a parent that let go. */
TEST(a_child_runs_the_guest_it_inherits)
{
	struct vm vm = vm_new(1, TOUCH);
	int status, told[2], tell[2];
	char byte;
	pid_t pid;

	CHECK(pipe(told) == 0 && pipe(tell) == 0);
	pid = fork();
	if (!pid) {
		CHECK(read(tell[0], &byte, 1) == 1);
		vm.run[0] = mmap(NULL, PORTHOLE_RUN_SIZE, PROT_READ | PROT_WRITE,
				 MAP_SHARED, vm.vcpu[0], 0);
		CHECK(vm.run[0] != MAP_FAILED);
		CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 0);
		CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 0x1234);
		vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
		CHECK(write(told[1], "", 1) == 1);
		CHECK(read(tell[0], &byte, 1) == 1);
		_exit(0);
	}
	vm_close(&vm);
	CHECK(write(tell[1], "", 1) == 1);
	CHECK(read(told[0], &byte, 1) == 1);
	CHECK(pages_out() > 512);
	CHECK(write(tell[1], "", 1) == 1);
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(pages_out() == 0);
}

/* A guest that has ended keeps its windows, gets no more, and gives them up one by one or all at once. */
TEST(a_guest_that_has_ended_gets_no_window)
{
	struct porthole_window_create create = window_config(WINDOW_BASE, 4096);
	struct porthole_window_move move = { .id = 1, .ipa = WINDOW_BASE + (1 << 20) };
	struct porthole_window_destroy destroy = { .id = 0 };
	struct vm vm = vm_new(1, OFF);

	for (unsigned int i = 0; i < 3; i++, create.ipa += 4096)
		CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	CHECK(audit().window_pages == 3);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create), EBADFD);
	CHECK(create.refusal == PORTHOLE_E_BAD_STATE && audit().window_pages == 3);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_DESTROY, &destroy) == 0);
	CHECK(audit().window_pages == 2);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_MOVE, &move), EBADFD);
	CHECK(move.refusal == PORTHOLE_E_BAD_STATE && audit().window_pages == 1);
	vm_close(&vm);
}
