// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the driver on the real hypervisor: run as root on the host under
 * Porthole. `driver_test` runs all, `driver_test NAME...` some. Each test is a
 * process of its own; after each no page may be left with a VM. A line for each
 * test and "N passed, N failed" at the end; exit status 0 if none failed.
 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include "vm.h"

int device = -1;

void fail(const char *file, int line, const char *what)
{
	printf("  %s:%d: %s (errno %d, %s)\n", file, line, what, errno,
	       strerror(errno));
	fflush(stdout);
	_exit(1);
}

static uint64_t milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ULL + now.tv_nsec / 1000000;
}

static void info_names_the_hypervisor(void)
{
	struct porthole_info info;

	CHECK(ioctl(device, PORTHOLE_INFO, &info) == 0);
	CHECK(info.uapi_version == PORTHOLE_UAPI_VERSION);
	CHECK(info.abi_version >> 16 == PORTHOLE_ABI_VERSION >> 16);
	CHECK(info.cpus >= 1 && info.reserved_bytes && info.ram_bytes);
	CHECK(info.reserved_bytes < info.ram_bytes);
	CHECK(info.leaked_pages == 0);
}

static void log_is_read_from_its_start(void)
{
	static char text[1 << 20];
	struct porthole_log_read log = {
		.buffer = (uintptr_t)text, .capacity = sizeof(text),
	};
	uint64_t end;

	CHECK(ioctl(device, PORTHOLE_LOG_READ, &log) == 0);
	CHECK(log.length > 0);
	end = log.position + log.length;
	log.position = end;
	log.length = 0;
	CHECK(ioctl(device, PORTHOLE_LOG_READ, &log) == 0);
	CHECK(log.position >= end);
	log.capacity = 0;
	CHECK_FAILS(ioctl(device, PORTHOLE_LOG_READ, &log), EINVAL);
}

static void bad_configurations_are_refused(void)
{
	struct porthole_create_vm config = vm_config(1);

	config.vcpus = 9;
	CHECK_FAILS(ioctl(device, PORTHOLE_CREATE_VM, &config), EINVAL);
	config = vm_config(1);
	config.vcpus = 0;
	CHECK(ioctl(device, PORTHOLE_CREATE_VM, &config) == -1 && config.refusal);
	config = vm_config(1);
	config.reserved = 1;
	CHECK_FAILS(ioctl(device, PORTHOLE_CREATE_VM, &config), EINVAL);
	config = vm_config(1);
	config.flags = 1;
	CHECK(ioctl(device, PORTHOLE_CREATE_VM, &config) == -1);
	CHECK(config.refusal == PORTHOLE_E_RESERVED_NON_ZERO);
	config = vm_config(1);
	config.regions[1].base = RAM_BASE;
	CHECK(ioctl(device, PORTHOLE_CREATE_VM, &config) == -1);
	CHECK(config.refusal == PORTHOLE_E_BAD_REGIONS);
	config = vm_config(1);
	config.region_count = 17;
	CHECK_FAILS(ioctl(device, PORTHOLE_CREATE_VM, &config), EINVAL);
	CHECK_FAILS(ioctl(device, PORTHOLE_VM_LOAD, &config), ENOTTY);
	CHECK_FAILS(ioctl(device, PORTHOLE_CREATE_VM, NULL), EFAULT);
}

static void a_vm_comes_and_goes(void)
{
	struct porthole_vm_entry entries[PORTHOLE_VMS_MAX];
	struct porthole_list list = { .entries = (uintptr_t)entries };
	struct vm vm = vm_unfinished(2);

	CHECK_FAILS(ioctl(device, PORTHOLE_LIST, &list), ENOSPC);
	list.capacity = PORTHOLE_VMS_MAX;
	CHECK(ioctl(device, PORTHOLE_LIST, &list) == 0);
	CHECK(list.count == 1 && entries[0].handle == vm.handle);
	CHECK(entries[0].pid == getpid());
	CHECK(entries[0].state == PORTHOLE_VM_CREATED && entries[0].vcpus == 2);
	CHECK(pages_out() > 0);
	vm_close(&vm);
	CHECK(pages_out() == 0);
	CHECK(ioctl(device, PORTHOLE_LIST, &list) == 0 && list.count == 0);
}

static void mmio_exits_carry_every_width(void)
{
	struct vm vm = vm_new(1, MMIO);

	CHECK(vm_expect_write(&vm, 0, CONSOLE + 1, 1) == 0xa5);
	vm_expect_read(&vm, CONSOLE + 2, 2, 0x1234);
	CHECK(vm_expect_write(&vm, 0, CONSOLE + 2, 2) == 0x1235);
	vm_expect_read(&vm, CONSOLE + 4, 4, 0x12345678);
	CHECK(vm_expect_write(&vm, 0, CONSOLE + 4, 4) == 0x12345679);
	vm_expect_read(&vm, CONSOLE + 8, 8, 0x123456789abcdef0);
	/* The answer is not lost when RUN ends before it enters the guest. */
	vm.run[0]->immediate_exit = 1;
	CHECK_FAILS(vm_run(&vm, 0), EINTR);
	CHECK(vm.run[0]->exit_reason == PORTHOLE_RUN_INTR);
	vm.run[0]->immediate_exit = 0;
	CHECK(vm_expect_write(&vm, 0, CONSOLE + 8, 8) == 0x123456789abcdef1);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	vm_close(&vm);
}

static void run_needs_finalize(void)
{
	struct vm vm = vm_unfinished(1);

	vm_load(&vm);
	CHECK_FAILS(vm_run(&vm, 0), EBADFD);
	CHECK_FAILS(ioctl(vm.vcpu[0], PORTHOLE_VCPU_RUN, 1), EINVAL);
	vm_finalize(&vm, OFF);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	vm_close(&vm);
}

static void the_ends_of_a_vm_are_told_apart(void)
{
	struct vm vm = vm_new(1, RESET);

	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_RESET);
	CHECK(vm.run[0]->system.type == 0);
	vm_close(&vm);
	vm = vm_new(1, CRASH);
	vm_expect_end(&vm, PORTHOLE_RUN_CRASH);
	vm_close(&vm);
}

static void ram_comes_on_first_touch_in_2m_blocks(void)
{
	struct vm vm = vm_new(1, TOUCH);
	struct porthole_vm_info info;

	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 0);
	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 0x1234);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_INFO, &info) == 0);
	CHECK(info.ram_faults == 1 && info.blocks_2m == 1);
	CHECK(info.memory_pages == 512 + 1 && info.state == PORTHOLE_VM_FINAL);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	vm_close(&vm);
}

static void populate_fills_what_is_missing(void)
{
	struct porthole_populate populate = { .ipa = RAM_BASE, .size = RAM_SIZE };
	struct porthole_load load = { .source = (uintptr_t)guest_start };
	struct vm vm = vm_unfinished(1);
	struct porthole_vm_info info;

	vm_load(&vm);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_POPULATE, &populate) == 0);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_POPULATE, &populate) == 0);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_INFO, &info) == 0);
	CHECK(info.memory_pages == RAM_SIZE / 4096 && info.blocks_2m == 7);
	load.ipa = RAM_BASE + 0x1000;
	load.size = 1;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_VM_LOAD, &load), EEXIST);
	CHECK(load.refusal == PORTHOLE_E_ALREADY_MAPPED);
	load.ipa = RAM_BASE + RAM_SIZE;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_VM_LOAD, &load), ENXIO);
	load.ipa = RAM_BASE + 1;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_VM_LOAD, &load), EINVAL);
	vm_finalize(&vm, TOUCH);
	vm_expect_write(&vm, 0, CONSOLE, 8);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_INFO, &info) == 0 && info.ram_faults == 0);
	load.ipa = RAM_BASE + 0x1000;
	CHECK(ioctl(vm.fd, PORTHOLE_VM_LOAD, &load) == -1);
	CHECK(load.refusal == PORTHOLE_E_BAD_STATE);
	vm_close(&vm);
}

static void the_measurement_follows_the_content(void)
{
	struct porthole_measurement first, same, other;
	struct porthole_load load = { .source = (uintptr_t)"x", .size = 1 };
	struct vm vm = vm_new(1, OFF);

	CHECK(ioctl(vm.fd, PORTHOLE_VM_MEASUREMENT, &first) == 0);
	vm_close(&vm);
	vm = vm_new(1, OFF);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_MEASUREMENT, &same) == 0);
	vm_close(&vm);
	vm = vm_unfinished(1);
	vm_load(&vm);
	load.ipa = RAM_BASE + 0x10000;
	CHECK(ioctl(vm.fd, PORTHOLE_VM_LOAD, &load) == 0);
	vm_finalize(&vm, OFF);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_MEASUREMENT, &other) == 0);
	vm_close(&vm);
	CHECK(!memcmp(&first, &same, sizeof(first)));
	CHECK(memcmp(&first, &other, sizeof(first)));
}

static void a_window_is_shared_moved_and_destroyed(void)
{
	const uint64_t length = 5ULL << 20, moved = WINDOW_BASE + (32ULL << 20);
	struct porthole_window_create create = window_config(WINDOW_BASE, length);
	struct porthole_window_move move = { .ipa = moved };
	struct porthole_window_destroy destroy = {};
	struct porthole_window_info info = {};
	struct vm vm = vm_new(1, WINDOW);
	uint64_t *shared;

	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	CHECK(create.id == 0);
	shared = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, vm.fd, 0);
	CHECK(shared != MAP_FAILED);
	for (uint64_t i = 0; i < length / 8; i++)
		CHECK(shared[i] == 0);
	CHECK(audit().window_pages == length / 4096);
	shared[0] = 7;
	vm_expect_read(&vm, CONSOLE, 8, moved);
	CHECK(shared[1] == 8);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_MOVE, &move) == 0);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_INFO, &info) == 0);
	CHECK(info.ipa == moved && info.function_mask == 1);
	CHECK(audit().window_pages == length / 4096);
	shared[0] = 100;
	vm_expect_read(&vm, CONSOLE, 8, 0);
	CHECK(shared[1] == 101);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_DESTROY, &destroy) == 0);
	CHECK(audit().window_pages == 0);
	vm_expect_read(&vm, WINDOW_BASE, 8, 55);
	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 55);
	CHECK(shared[0] == 100);
	munmap(shared, length);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_DESTROY, &destroy), ENOENT);
	vm_close(&vm);
}

static void bad_windows_are_refused(void)
{
	struct porthole_window_create good = window_config(WINDOW_BASE, 1 << 16);
	struct porthole_window_function share = { .function = FUNCTION + 1 };
	struct porthole_window_create bad = good;
	struct vm vm = vm_unfinished(1);

#define REFUSED(error) \
	do { \
		CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &bad) == -1); \
		CHECK(bad.refusal == (error)); \
		CHECK(audit().window_pages == 16); \
		bad = good; \
	} while (0)
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &good) == 0);
	bad.ipa = WINDOW_BASE + 0x8000;
	REFUSED(PORTHOLE_E_WINDOW_OVERLAP);
	bad.ipa = RAM_BASE;
	REFUSED(PORTHOLE_E_OUTSIDE_REGION);
	good.ipa = WINDOW_BASE + (1 << 20);
	bad = good;
	bad.bar = 6;
	REFUSED(PORTHOLE_E_BAD_BAR);
	bad.bar_offset = 16 << 20;
	REFUSED(PORTHOLE_E_OUTSIDE_BAR);
	bad.length = 0;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &bad), EINVAL);
	bad.length = (16 << 20) + 4096;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &bad), EINVAL);

	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_ADD_FUNCTION, &share) == 0);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_ADD_FUNCTION, &share), EEXIST);
	CHECK(audit().window_pages == 16);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_REMOVE_FUNCTION, &share) == 0);
	share.function = FUNCTION;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_REMOVE_FUNCTION, &share), EINVAL);
	share.function = FUNCTION + 8;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_ADD_FUNCTION, &share), EPERM);
	CHECK(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, vm.fd, 0) == MAP_FAILED);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, vm.fd, 0) == MAP_FAILED);
	CHECK(mmap(NULL, (1 << 16) + 4096, PROT_READ, MAP_SHARED, vm.fd, 0) == MAP_FAILED);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vm.fd, 1LL << 32) == MAP_FAILED);
	vm_close(&vm);
}

static void a_mapping_outlives_its_window(void)
{
	struct porthole_window_create create = window_config(WINDOW_BASE, 1 << 20);
	struct vm vm = vm_unfinished(1);
	uint64_t *shared;

	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	shared = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, vm.fd, 0);
	CHECK(shared != MAP_FAILED);
	vm_close(&vm);
	/* The mapping holds the VM. */
	CHECK(pages_out() > 0);
	shared[3] = 4;
	CHECK(shared[3] == 4);
	munmap(shared, 1 << 20);
	CHECK(pages_out() == 0);
}

static void the_timer_wakes_a_sleeping_guest(void)
{
	struct vm vm = vm_new(1, TIMER);
	uint64_t start = milliseconds(), took;

	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 27);
	took = milliseconds() - start;
	CHECK(took >= 150 && took < 5000);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	vm_close(&vm);
}

static void *signal_eventfd_later(void *fd)
{
	const uint64_t one = 1;

	usleep(200000);
	CHECK(write((int)(intptr_t)fd, &one, sizeof(one)) == sizeof(one));
	return NULL;
}

static void an_irqfd_wakes_a_sleeping_guest(void)
{
	struct porthole_irqfd irqfd = { .fd = eventfd(0, 0), .intid = TEST_SPI };
	struct vm vm = vm_new(1, INTERRUPT);
	pthread_t thread;

	CHECK(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd) == 0);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd), EBUSY);
	vm_expect_write(&vm, 0, CONSOLE, 8);
	pthread_create(&thread, NULL, signal_eventfd_later, (void *)(intptr_t)irqfd.fd);
	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == TEST_SPI);
	pthread_join(thread, NULL);
	irqfd.flags = PORTHOLE_IRQFD_DEASSIGN;
	CHECK(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd) == 0);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd), ENOENT);
	irqfd.flags = 0;
	irqfd.intid = 27;
	CHECK(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd) == -1);
	CHECK(irqfd.refusal == PORTHOLE_E_BAD_INTID);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	vm_close(&vm);
}

static void an_interrupt_line_reaches_the_guest(void)
{
	struct porthole_irq_line line = { .intid = TEST_SPI, .level = 1 };
	struct vm vm = vm_new(1, INTERRUPT);

	vm_expect_write(&vm, 0, CONSOLE, 8);
	CHECK(ioctl(vm.fd, PORTHOLE_IRQ_LINE, &line) == 0);
	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == TEST_SPI);
	line.intid = 32 + 64;
	CHECK(ioctl(vm.fd, PORTHOLE_IRQ_LINE, &line) == -1);
	CHECK(line.refusal == PORTHOLE_E_BAD_INTID);
	line.intid = 1;
	CHECK(ioctl(vm.fd, PORTHOLE_IRQ_LINE, &line) == -1);
	CHECK(line.refusal == PORTHOLE_E_BAD_INTID);
	vm_close(&vm);
}

static void ioeventfds_take_the_writes_that_match(void)
{
	struct porthole_ioeventfd io = {
		.ipa = CONSOLE + 0x20, .width = 4, .datamatch = 2,
		.flags = PORTHOLE_IOEVENTFD_DATAMATCH, .fd = eventfd(0, EFD_NONBLOCK),
	};
	struct vm vm = vm_new(1, KICKS);
	uint64_t count;

	CHECK(ioctl(vm.fd, PORTHOLE_IOEVENTFD, &io) == 0);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IOEVENTFD, &io), EEXIST);
	io.ipa++;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IOEVENTFD, &io), EINVAL);
	CHECK(vm_expect_write(&vm, 0, CONSOLE + 0x20, 4) == 1);
	CHECK_FAILS(read(io.fd, &count, sizeof(count)), EAGAIN);
	CHECK(vm_expect_write(&vm, 0, CONSOLE + 0x30, 2) == 2);
	CHECK(read(io.fd, &count, sizeof(count)) == 8 && count == 1);
	io.ipa--;
	io.flags |= PORTHOLE_IOEVENTFD_DEASSIGN;
	CHECK(ioctl(vm.fd, PORTHOLE_IOEVENTFD, &io) == 0);
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_IOEVENTFD, &io), ENOENT);
	vm_close(&vm);
}

struct second {
	struct vm *vm;
	uint64_t seen;
};

static void *run_second(void *arg)
{
	struct second *second = arg;

	while (vm_run_to(second->vm, 1) == PORTHOLE_RUN_MMIO_WRITE)
		second->seen = second->seen << 4 | second->vm->run[1]->mmio.data;
	CHECK(second->vm->run[1]->exit_reason == PORTHOLE_RUN_STOPPED);
	return NULL;
}

static void a_second_vcpu_is_switched_on_and_off(void)
{
	struct vm vm = vm_new(2, SECOND);
	struct second second = { .vm = &vm };
	pthread_t thread;

	pthread_create(&thread, NULL, run_second, &second);
	for (int i = 0; i < 3; i++)
		CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 0);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	pthread_join(thread, NULL);
	CHECK(second.seen == 0x321);
	vm_close(&vm);
}

static void on_alarm(int number)
{
	(void)number;
}

static void a_signal_interrupts_a_guest(enum routine routine)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval timer = { .it_value.tv_usec = 200000 };
	struct vm vm = vm_new(1, routine);
	uint64_t start = milliseconds();

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	CHECK_FAILS(vm_run(&vm, 0), EINTR);
	CHECK(vm.run[0]->exit_reason == PORTHOLE_RUN_INTR);
	CHECK(milliseconds() - start >= 150);
	vm_close(&vm);
}

static void a_signal_interrupts_a_busy_guest(void)
{
	a_signal_interrupts_a_guest(SPIN);
}

static void a_signal_interrupts_a_sleeping_guest(void)
{
	a_signal_interrupts_a_guest(SLEEP);
}

/* A process with a VM in every stage of its life, killed at some moment. */
static void victim(void)
{
	struct porthole_window_create create = window_config(WINDOW_BASE, 4 << 20);
	struct porthole_populate populate = { .ipa = RAM_BASE, .size = RAM_SIZE };
	struct vm vm = vm_unfinished(2);

	vm_load(&vm);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	CHECK(mmap(NULL, 4 << 20, PROT_READ, MAP_SHARED, vm.fd, 0) != MAP_FAILED);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_POPULATE, &populate) == 0);
	vm_finalize(&vm, SPIN);
	vm_run(&vm, 0);
	_exit(1);
}

static void sigkill_at_any_moment_gives_everything_back(void)
{
	unsigned int seed = 1;

	for (int i = 0; i < 20; i++) {
		pid_t pid = fork();
		int status;

		if (!pid)
			victim();
		usleep(rand_r(&seed) % 100000);
		kill(pid, SIGKILL);
		CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
		/* Files are closed before the parent hears of the end. */
		CHECK(pages_out() == 0);
		CHECK(audit().window_pages == 0);
	}
}

static void pages_name_their_owner(void)
{
	struct vm vm = vm_new(1, OFF);
	struct porthole_vm_info info;
	struct porthole_page_info page;
	struct porthole_page_find find = { .owner = PORTHOLE_OWNER_VM_MEMORY };

	CHECK(ioctl(vm.fd, PORTHOLE_VM_INFO, &info) == 0);
	page.pa = info.first_pa;
	CHECK(ioctl(device, PORTHOLE_PAGE_INFO, &page) == 0);
	CHECK(page.owner == PORTHOLE_OWNER_VM_MEMORY && page.vm == vm.handle);
	find.start = info.first_pa - 4096;
	find.end = info.first_pa + 4096;
	find.vm = vm.handle;
	CHECK(ioctl(device, PORTHOLE_PAGE_FIND, &find) == 0);
	CHECK(find.start == info.first_pa);
	vm_close(&vm);
	find.vm = 0;
	CHECK_FAILS(ioctl(device, PORTHOLE_PAGE_FIND, &find), ENOENT);
}

#define TEST(name) { #name, name }
static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	TEST(info_names_the_hypervisor),
	TEST(log_is_read_from_its_start),
	TEST(bad_configurations_are_refused),
	TEST(a_vm_comes_and_goes),
	TEST(run_needs_finalize),
	TEST(mmio_exits_carry_every_width),
	TEST(the_ends_of_a_vm_are_told_apart),
	TEST(ram_comes_on_first_touch_in_2m_blocks),
	TEST(populate_fills_what_is_missing),
	TEST(the_measurement_follows_the_content),
	TEST(a_window_is_shared_moved_and_destroyed),
	TEST(bad_windows_are_refused),
	TEST(a_mapping_outlives_its_window),
	TEST(the_timer_wakes_a_sleeping_guest),
	TEST(an_irqfd_wakes_a_sleeping_guest),
	TEST(an_interrupt_line_reaches_the_guest),
	TEST(ioeventfds_take_the_writes_that_match),
	TEST(a_second_vcpu_is_switched_on_and_off),
	TEST(a_signal_interrupts_a_busy_guest),
	TEST(a_signal_interrupts_a_sleeping_guest),
	TEST(pages_name_their_owner),
	TEST(sigkill_at_any_moment_gives_everything_back),
};

/* One test in a process of its own, which may take 60 seconds. */
static bool passes(void (*run)(void))
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		alarm(60);
		run();
		fflush(stdout);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid)
		return false;
	if (WIFSIGNALED(status))
		printf("  killed by signal %d\n", WTERMSIG(status));
	if (pages_out())
		printf("  left %llu pages behind\n", (unsigned long long)pages_out());
	return status == 0 && !pages_out();
}

static bool wanted(const char *name, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(name, argv[i]))
			return true;
	return argc < 2;
}

int main(int argc, char **argv)
{
	unsigned int passed = 0, failed = 0;

	device = open("/dev/porthole", O_RDWR | O_CLOEXEC);
	if (device < 0) {
		fprintf(stderr, "driver_test: /dev/porthole: %s\n", strerror(errno));
		return 2;
	}
	for (unsigned int i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		bool ok;

		if (!wanted(tests[i].name, argc, argv))
			continue;
		ok = passes(tests[i].run);
		printf("driver %s: %s\n", tests[i].name, ok ? "ok" : "FAILED");
		passed += ok;
		failed += !ok;
	}
	printf("%u passed, %u failed\n", passed, failed);
	return failed || !passed;
}
