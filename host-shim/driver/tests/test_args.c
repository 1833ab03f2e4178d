// SPDX-License-Identifier: GPL-2.0-only
/*
 * Arguments that cannot be: memory that cannot be read or written, sizes, numbers and reserved fields. Each is refused
 * by the driver itself, and nothing has changed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "vm.h"

/* The descriptor that the next file gets. */
static int next_descriptor(void)
{
	int fd = dup(device);

	CHECK(fd >= 0);
	close(fd);
	return fd;
}

/* A page, and behind it nothing. */
static char *page_before_nothing(void)
{
	char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(pages != MAP_FAILED && munmap(pages + 4096, 4096) == 0);
	return pages;
}

TEST(arguments_that_cannot_be_read_change_nothing)
{
	struct porthole_ioeventfd io = { .ipa = CONSOLE, .fd = eventfd(0, 0) };
	struct vm vm = vm_unfinished(1);
	char *end = page_before_nothing() + 4096;
	struct porthole_list list = { .entries = 1, .capacity = PORTHOLE_VMS_MAX };
	struct porthole_log_read log = { .buffer = 1, .capacity = 4096 };

	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IOEVENTFD, NULL), EFAULT);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IOEVENTFD, -4096L), EFAULT);
	/* The half that can be read is that of a good one. */
	memcpy(end - sizeof(io) / 2, &io, sizeof(io) / 2);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IOEVENTFD, end - sizeof(io) / 2), EFAULT);
	CHECK(ioctl(vm.fd, PORTHOLE_IOEVENTFD, &io) == 0);
	CHECK_FAILS(ioctl(device, PORTHOLE_LIST, &list), EFAULT);
	CHECK_FAILS(ioctl(device, PORTHOLE_LOG_READ, &log), EFAULT);
	vm_close(&vm);
}

TEST(a_file_that_cannot_be_told_of_is_not_made)
{
	struct porthole_create_vm *config = (void *)page_before_nothing();
	struct porthole_create_vcpu *vcpu = (void *)page_before_nothing();
	struct porthole_create_vm good = vm_config(1);
	int fd = next_descriptor(), vm;

	*config = vm_config(1);
	CHECK(mprotect(config, 4096, PROT_READ) == 0);
	CHECK(mprotect(vcpu, 4096, PROT_READ) == 0);
	CHECK_FAILS(ioctl(device, PORTHOLE_CREATE_VM, config), EFAULT);
	CHECK(next_descriptor() == fd && pages_out() == 0);
	vm = ioctl(device, PORTHOLE_CREATE_VM, &good);
	CHECK_FAILS(ioctl(vm, PORTHOLE_VM_CREATE_VCPU, vcpu), EFAULT);
	CHECK(next_descriptor() == vm + 1);
	close(vm);
}

/* A process without privileges, in a system that has all files it may have. */
static void make_a_vm_too_many(void)
{
	struct porthole_create_vm config = vm_config(1);
	int fd = next_descriptor();

	CHECK(setresuid(65534, 65534, 65534) == 0);
	CHECK_FAILS(ioctl(device, PORTHOLE_CREATE_VM, &config), ENFILE);
	CHECK(next_descriptor() == fd);
	_exit(0);
}

static void set_file_max(const char *number)
{
	int fd = open("/proc/sys/fs/file-max", O_WRONLY);

	CHECK(write(fd, number, strlen(number)) > 0);
	close(fd);
}

TEST(without_room_for_a_file_there_is_no_vm)
{
	struct porthole_create_vcpu vcpu = { .index = 0 };
	struct porthole_create_vm config = vm_config(1);
	int fd = next_descriptor(), status, vm;
	struct rlimit limit, none;
	pid_t pid;

	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	none = limit;
	none.rlim_cur = fd;
	CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
	CHECK_FAILS(ioctl(device, PORTHOLE_CREATE_VM, &config), EMFILE);
	CHECK(pages_out() == 0);
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	vm = ioctl(device, PORTHOLE_CREATE_VM, &config);
	CHECK(vm == fd);
	none.rlim_cur = fd + 1;
	CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
	CHECK_FAILS(ioctl(vm, PORTHOLE_VM_CREATE_VCPU, &vcpu), EMFILE);
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	close(vm);
	CHECK(pages_out() == 0);

	set_file_max("0");
	pid = fork();
	if (!pid)
		make_a_vm_too_many();
	CHECK(waitpid(pid, &status, 0) == pid);
	set_file_max("100000");
	CHECK(status == 0 && pages_out() == 0 && next_descriptor() == fd);
}

TEST(lists_and_logs_are_not_written_beyond_their_end)
{
	struct porthole_vm_entry entries[2] = { [1].handle = 77 };
	struct porthole_list list = { .entries = (uintptr_t)entries, .capacity = 1 };
	struct vm first = vm_unfinished(1), second = vm_unfinished(1);
	struct porthole_log_read log = { .capacity = 125 };
	struct porthole_page_find find = { .end = 1ULL << 40 };
	char text[126];

	CHECK_FAILS(ioctl(device, PORTHOLE_LIST, &list), ENOSPC);
	CHECK(list.count == 2 && entries[0].handle == first.handle);
	CHECK(entries[1].handle == 77);
	text[125] = 77;
	log.buffer = (uintptr_t)text;
	CHECK(ioctl(device, PORTHOLE_LOG_READ, &log) == 0);
	CHECK(log.length == 125 && text[125] == 77);
	log.capacity = (1 << 20) + 1;
	CHECK_FAILS(ioctl(device, PORTHOLE_LOG_READ, &log), EINVAL);

	find.end++;
	CHECK_FAILS(ioctl(device, PORTHOLE_PAGE_FIND, &find), EINVAL);
	find.end = find.start = 1;
	CHECK_FAILS(ioctl(device, PORTHOLE_PAGE_FIND, &find), EINVAL);
	find.start = 0;
	find.reserved = 1;
	CHECK_FAILS(ioctl(device, PORTHOLE_PAGE_FIND, &find), EINVAL);
	vm_close(&first);
	vm_close(&second);
}

/* CREATE_VM is refused by the driver or, which has a code for it, by the hypervisor. */
static void not_created(struct porthole_create_vm config, bool by_driver)
{
	CHECK(ioctl(device, PORTHOLE_CREATE_VM, &config) == -1);
	CHECK(by_driver == !config.refusal && (!by_driver || errno == EINVAL));
	CHECK(!config.handle && pages_out() == 0);
}

TEST(vms_whose_records_would_be_endless_are_refused)
{
	struct porthole_create_vm config = vm_config(1);

	config.vcpus = UINT32_MAX;
	not_created(config, true);
	config = vm_config(1);
	config.region_count = PORTHOLE_VM_REGIONS_MAX + 1;
	not_created(config, true);
	config.region_count = UINT32_MAX;
	not_created(config, true);
	config = vm_config(1);
	config.regions[0].size = 1ULL << 63;
	not_created(config, true);
	config.regions[0].size = -4096ULL;
	not_created(config, true);
	/* A region that is not RAM has no record of the driver's: the hypervisor refuses it. */
	config = vm_config(1);
	config.regions[1].size = 1ULL << 63;
	not_created(config, false);
	config = vm_config(1);
	config.region_count = 0;
	not_created(config, true);
	for (uint64_t odd = 1; odd < 4096; odd = odd * 4 + 1) {
		config = vm_config(1);
		config.regions[0].size += odd;
		not_created(config, true);
		config = vm_config(1);
		config.regions[0].base += odd;
		not_created(config, true);
	}
	config = vm_config(1);
	config.regions[0].size = 0;
	not_created(config, true);
	config = vm_config(1);
	config.regions[0].base = (1ULL << PORTHOLE_GUEST_IPA_BITS) - 4096;
	not_created(config, true);
	config.regions[0].base = -4096ULL;
	not_created(config, true);
}

static void load_fails(const struct vm *vm, int error, uint64_t ipa, uint64_t size,
		       const void *source)
{
	struct porthole_load load = {
		.source = (uintptr_t)source, .ipa = ipa, .size = size,
	};
	uint64_t before = pages_out();

	CHECK_FAILS(ioctl(vm->fd, PORTHOLE_VM_LOAD, &load), error);
	CHECK(!load.loaded && !load.refusal && pages_out() == before);
}

static void populate_fails(const struct vm *vm, int error, uint64_t ipa, uint64_t size)
{
	struct porthole_populate populate = { .ipa = ipa, .size = size };
	uint64_t before = pages_out();

	CHECK_FAILS(ioctl(vm->fd, PORTHOLE_VM_POPULATE, &populate), error);
	CHECK(!populate.refusal && pages_out() == before);
}

TEST(memory_is_given_inside_ram_and_in_pages_only)
{
	struct porthole_load load = { .size = 4096, .ipa = RAM_BASE, .reserved = 1 };
	struct porthole_populate populate = { .size = 4096, .ipa = RAM_BASE, .reserved = 1 };
	struct porthole_finalize finalize = { .entry = RAM_BASE, .reserved = 1 };
	const uint64_t end = RAM_BASE + RAM_SIZE;
	struct porthole_measurement measurement;
	struct porthole_vm_info info;
	struct vm vm = vm_unfinished(1);
	char *page = page_before_nothing();

	load.source = (uintptr_t)page;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_VM_LOAD, &load), EINVAL);
	load_fails(&vm, EINVAL, RAM_BASE, 0, page);
	load_fails(&vm, EINVAL, RAM_BASE + 1, 1, page);
	load_fails(&vm, EINVAL, RAM_BASE, UINT64_MAX, page);
	load_fails(&vm, EINVAL, RAM_BASE, UINT64_MAX, NULL);
	load_fails(&vm, ENXIO, 0, 4096, page);
	load_fails(&vm, ENXIO, RAM_BASE - 4096, 8192, page);
	load_fails(&vm, ENXIO, end - 4096, 4097, page);
	load_fails(&vm, ENXIO, end, 1, page);
	load_fails(&vm, ENXIO, WINDOW_BASE, 1, page);
	load_fails(&vm, ENXIO, -4096ULL, 4096, page);
	load_fails(&vm, EFAULT, RAM_BASE, 4096, NULL);
	load_fails(&vm, EINVAL, RAM_BASE, 4096, (void *)-4096L);
	load_fails(&vm, EINVAL, RAM_BASE, 8192, (void *)-4096L);
	load_fails(&vm, EFAULT, RAM_BASE, 4097, page);

	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_VM_POPULATE, &populate), EINVAL);
	populate_fails(&vm, EINVAL, RAM_BASE, 0);
	populate_fails(&vm, EINVAL, RAM_BASE, 1);
	populate_fails(&vm, EINVAL, RAM_BASE + 2048, 4096);
	populate_fails(&vm, ENXIO, 0, 4096);
	populate_fails(&vm, ENXIO, RAM_BASE - 4096, 8192);
	populate_fails(&vm, ENXIO, end - 4096, 8192);
	populate_fails(&vm, ENXIO, end, 4096);
	populate_fails(&vm, ENXIO, RAM_BASE, -4096ULL);
	populate_fails(&vm, ENXIO, -4096ULL, 4096);

	/* What is asked for and no more, though a block of 2 MiB is free around it. */
	populate = (struct porthole_populate) { .ipa = RAM_BASE + (4 << 20) + 4096, .size = 8192 };
	CHECK(ioctl(vm.fd, PORTHOLE_VM_POPULATE, &populate) == 0);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_INFO, &info) == 0 && info.memory_pages == 2);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_VM_FINALIZE, &finalize), EINVAL);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_VM_MEASUREMENT, &measurement), EBADFD);
	vm_load(&vm);
	vm_finalize(&vm, OFF);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	vm_close(&vm);
}

/* The kernel's free memory in KiB. */
static long memory_free(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char line[128];
	long free = -1;

	CHECK(file);
	while (free < 0 && fgets(line, sizeof(line), file))
		sscanf(line, "MemFree: %ld kB", &free);
	fclose(file);
	CHECK(free > 0);
	return free;
}

/* Refused so often that what is left behind each time would be 128 MiB of the machine. */
TEST(what_is_refused_takes_no_memory_along)
{
	struct porthole_create_vm large = vm_config(1), small = vm_config(1);
	struct porthole_window_create window = window_config(RAM_BASE, 4 << 20);
	struct porthole_load load = { .ipa = RAM_BASE, .size = 2 << 20 };
	struct vm vm = vm_unfinished(1);
	long before = memory_free();

	/* A record of 2 MiB; metadata of 32 KiB or more. */
	large.regions[0].base = 0;
	large.regions[0].size = 1ULL << PORTHOLE_GUEST_IPA_BITS;
	small.flags = 1ULL << 63;
	load.source = (uintptr_t)malloc(load.size);
	memset((void *)(uintptr_t)load.source, 1, load.size);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_LOAD, &load) == 0);
	for (int i = 0; i < 64; i++) {
		CHECK(ioctl(device, PORTHOLE_CREATE_VM, &large) == -1 && large.refusal);
		CHECK(ioctl(vm.fd, PORTHOLE_VM_LOAD, &load) == -1 && load.refusal);
		CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &window) == -1);
		for (int j = 0; j < 64; j++)
			CHECK(ioctl(device, PORTHOLE_CREATE_VM, &small) == -1 && small.refusal);
	}
	CHECK(before - memory_free() < 64 << 10);
	vm_close(&vm);
}

TEST(vcpus_are_made_once_each_as_declared)
{
	struct porthole_create_vcpu create = { .index = 1 };
	struct vm vm = vm_unfinished(1);

	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_VM_CREATE_VCPU, &create), ENXIO);
	create.index = UINT32_MAX;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_VM_CREATE_VCPU, &create), ENXIO);
	CHECK(create.refusal == 0);
	create.index = 0;
	CHECK(ioctl(vm.fd, PORTHOLE_VM_CREATE_VCPU, &create) == -1);
	CHECK(create.refusal);
	CHECK_FAILS(ioctl(vm.vcpu[0], PORTHOLE_VM_INFO, &create), ENOTTY);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_VCPU_RUN, 0), ENOTTY);
	vm_close(&vm);
}

TEST(interrupt_lines_and_eventfds_are_checked_whole)
{
	struct porthole_irq_line line = { .intid = TEST_SPI, .level = 2 };
	struct porthole_irqfd good = { .fd = eventfd(0, 0), .intid = TEST_SPI }, irqfd;
	struct vm vm = vm_unfinished(1);

	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IRQ_LINE, &line), EINVAL);
	CHECK(line.refusal == 0);
	line.level = 0;
	line.reserved = 1;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IRQ_LINE, &line), EINVAL);
	CHECK(line.refusal == 0);
#define IRQFD_FAILS(error, field, value) \
	do { \
		irqfd = good; \
		irqfd.field = (value); \
		CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd), error); \
	} while (0)
	IRQFD_FAILS(EINVAL, flags, 2);
	CHECK(irqfd.refusal == 0);
	IRQFD_FAILS(EINVAL, intid, 31);
	CHECK(irqfd.refusal == PORTHOLE_E_BAD_INTID);
	IRQFD_FAILS(EINVAL, intid, 32 + 64);
	CHECK(irqfd.refusal == PORTHOLE_E_BAD_INTID);
	IRQFD_FAILS(EBADF, fd, -1);
	IRQFD_FAILS(EINVAL, fd, device);
	IRQFD_FAILS(ENOENT, flags, PORTHOLE_IRQFD_DEASSIGN);
	CHECK(ioctl(vm.fd, PORTHOLE_IRQFD, &good) == 0);
	IRQFD_FAILS(EBUSY, intid, TEST_SPI + 1);
	good.flags = PORTHOLE_IRQFD_DEASSIGN;
	IRQFD_FAILS(ENOENT, intid, TEST_SPI + 1);
	IRQFD_FAILS(ENOENT, fd, eventfd(0, 0));
	CHECK(ioctl(vm.fd, PORTHOLE_IRQFD, &good) == 0);
	vm_close(&vm);
}

/* The kernel's number of an eventfd: the lowest that none has. */
static int number_of(int eventfd)
{
	char path[64], line[64];
	int number = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", eventfd);
	file = fopen(path, "r");
	CHECK(file);
	while (number < 0 && fgets(line, sizeof(line), file))
		sscanf(line, "eventfd-id: %d", &number);
	fclose(file);
	CHECK(number >= 0);
	return number;
}

TEST(a_closed_eventfd_is_forgotten)
{
	struct porthole_ioeventfd io = { .width = 3 };
	struct porthole_irqfd irqfd = { .intid = TEST_SPI };
	struct vm vm = vm_unfinished(1);
	int first = -1, number;

	/* One that was refused is at once. */
	for (int i = 0; i < 3; i++) {
		irqfd.fd = io.fd = eventfd(0, 0);
		number = number_of(irqfd.fd);
		CHECK(first < 0 || number == first);
		first = number;
		irqfd.flags = PORTHOLE_IRQFD_DEASSIGN;
		CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd), ENOENT);
		io.flags = PORTHOLE_IOEVENTFD_DEASSIGN;
		io.width = 4;
		CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IOEVENTFD, &io), ENOENT);
		close(irqfd.fd);
	}
	/* One in use is when the driver's worker has been there, for which every DEASSIGN waits. */
	for (int i = 0; i < 3; i++) {
		irqfd.flags = 0;
		irqfd.fd = eventfd(0, 0);
		CHECK(number_of(irqfd.fd) == first);
		CHECK(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd) == 0);
		close(irqfd.fd);
		irqfd.flags = PORTHOLE_IRQFD_DEASSIGN;
		irqfd.fd = eventfd(0, 0);
		CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd), ENOENT);
		close(irqfd.fd);
	}
	vm_close(&vm);
}

TEST(an_eventfd_outlives_its_vm)
{
	struct porthole_irqfd irqfd = { .fd = eventfd(0, EFD_NONBLOCK), .intid = TEST_SPI };
	struct vm vm = vm_unfinished(1);
	uint64_t count = 1;

	CHECK(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd) == 0);
	CHECK(write(irqfd.fd, &count, sizeof(count)) == sizeof(count));
	CHECK_FAILS(read(irqfd.fd, &count, sizeof(count)), EAGAIN);
	vm_close(&vm);
	/* Nobody else reads it any more. */
	CHECK(write(irqfd.fd, &count, sizeof(count)) == sizeof(count));
	CHECK(read(irqfd.fd, &count, sizeof(count)) == sizeof(count) && count == 1);
}

TEST(writes_that_no_guest_makes_are_not_waited_for)
{
	struct porthole_ioeventfd good = {
		.ipa = CONSOLE + 0x20, .width = 4, .datamatch = 2,
		.flags = PORTHOLE_IOEVENTFD_DATAMATCH, .fd = eventfd(0, 0),
	}, io;
	struct vm vm = vm_unfinished(1);
	int others = eventfd(0, 0);

#define IO(result, ...) \
	do { \
		io = good; \
		__VA_ARGS__; \
		errno = 0; \
		ioctl(vm.fd, PORTHOLE_IOEVENTFD, &io); \
		CHECK(errno == (result)); \
	} while (0)
	IO(EINVAL, io.reserved = 1);
	IO(EINVAL, io.flags |= 4);
	IO(EINVAL, io.width = 3);
	IO(EINVAL, io.width = 16; io.flags = 0; io.datamatch = 0);
	IO(EINVAL, io.ipa += 2);
	IO(EINVAL, io.flags = 0);
	IO(EINVAL, io.width = 0; io.datamatch = 0);
	IO(EINVAL, io.datamatch = 1ULL << 32);
	IO(EBADF, io.fd = -1);
	IO(EINVAL, io.fd = device);
	IO(0, io.width = 8; io.datamatch = UINT64_MAX);
	CHECK(ioctl(vm.fd, PORTHOLE_IOEVENTFD, &good) == 0);
	/* Whoever would match too is refused, the others are not. */
	IO(EEXIST, io.fd = others);
	IO(EEXIST, io.flags = 0; io.datamatch = 0);
	IO(EEXIST, io.flags = 0; io.datamatch = 0; io.width = 0);
	IO(0, io.datamatch = 3);
	IO(0, io.width = 2);
	IO(0, io.ipa += 4);
	IO(0, io.ipa += 9; io.width = 0; io.flags = 0; io.datamatch = 0);
	IO(EEXIST, io.ipa += 9; io.width = 1);
	/* What is taken away is what was there, field by field. */
	good.flags |= PORTHOLE_IOEVENTFD_DEASSIGN;
	IO(ENOENT, io.fd = others);
	IO(ENOENT, io.ipa += 8);
	IO(ENOENT, io.width = 8);
	IO(ENOENT, io.datamatch = 4);
	IO(ENOENT, io.flags = PORTHOLE_IOEVENTFD_DEASSIGN; io.datamatch = 0);
	CHECK(ioctl(vm.fd, PORTHOLE_IOEVENTFD, &good) == 0);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IOEVENTFD, &good), ENOENT);
	good.flags = PORTHOLE_IOEVENTFD_DATAMATCH;
	IO(0, io.datamatch = 0);
	IO(ENOENT, io.flags = PORTHOLE_IOEVENTFD_DEASSIGN; io.datamatch = 0);
	/* There is an end to them, and six are there. */
	for (int i = 6; i < 256; i++)
		IO(0, io.datamatch = i);
	IO(ENOSPC, io.datamatch = 256);
	vm_close(&vm);
}
