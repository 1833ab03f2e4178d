// SPDX-License-Identifier: GPL-2.0-only
/* The run loop: exits, interrupts, timers, eventfds, signals, a second vCPU. */
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <time.h>

#include "vm.h"

static uint64_t milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ULL + now.tv_nsec / 1000000;
}

TEST(mmio_exits_carry_every_width)
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
	CHECK(vm.run[0]->exits[PORTHOLE_EXIT_MMIO_READ] == 3);
	CHECK(vm.run[0]->exits[PORTHOLE_EXIT_MMIO_WRITE] == 4);
	CHECK(vm.run[0]->exits[PORTHOLE_EXIT_SYSTEM_OFF] == 1);
	CHECK(vm.run[0]->exits[PORTHOLE_EXIT_CRASH] == 0);
	vm_close(&vm);
}

TEST(run_needs_finalize)
{
	struct vm vm = vm_unfinished(1);

	vm_load(&vm);
	CHECK_FAILS(vm_run(&vm, 0), EBADFD);
	CHECK_FAILS(ioctl(vm.vcpu[0], PORTHOLE_VCPU_RUN, 1), EINVAL);
	vm_finalize(&vm, OFF);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	vm_close(&vm);
}

TEST(a_reset_is_told_from_an_end)
{
	struct vm vm = vm_new(1, RESET);

	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_RESET);
	CHECK(vm.run[0]->system.type == 0);
	vm_close(&vm);
}

TEST(the_timer_wakes_a_sleeping_guest)
{
	struct vm vm = vm_new(1, TIMER);
	uint64_t start = milliseconds(), took;

	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 27);
	took = milliseconds() - start;
	/* It ends by the alarm if nothing wakes it. */
	CHECK(took >= 150);
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

TEST(an_irqfd_wakes_a_sleeping_guest)
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

TEST(what_an_eventfd_held_before_reaches_the_guest)
{
	struct porthole_irqfd irqfd = { .fd = eventfd(1, 0), .intid = TEST_SPI };
	struct vm vm = vm_new(1, INTERRUPT);

	vm_expect_write(&vm, 0, CONSOLE, 8);
	CHECK(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd) == 0);
	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == TEST_SPI);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	vm_close(&vm);
}

#define PING_COUNT 2000

/* Answers each byte in a pipe with a write to an eventfd, after some moments. */
static void *signal_on_request(void *arg)
{
	const int *fds = arg;	/* pipe, eventfd */
	const uint64_t one = 1;
	unsigned int seed = 1;
	char byte;

	while (read(fds[0], &byte, 1) == 1) {
		for (volatile int spin = rand_r(&seed) % 20000; spin > 0; spin--)
			;
		CHECK(write(fds[1], &one, sizeof(one)) == sizeof(one));
	}
	return NULL;
}

/* Interrupts that come before, while and after a vCPU goes to sleep. */
TEST(no_interrupt_is_slept_over)
{
	struct porthole_irqfd irqfd = { .fd = eventfd(0, 0), .intid = TEST_SPI };
	struct vm vm = vm_new(1, PINGS);
	int pipes[2], fds[2];
	pthread_t thread;

	CHECK(pipe(pipes) == 0);
	fds[0] = pipes[0];
	fds[1] = irqfd.fd;
	CHECK(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd) == 0);
	pthread_create(&thread, NULL, signal_on_request, fds);
	for (int i = 0; i < PING_COUNT; i++) {
		CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 0);
		CHECK(write(pipes[1], "", 1) == 1);
		CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == TEST_SPI);
	}
	close(pipes[1]);
	pthread_join(thread, NULL);
	vm_close(&vm);
}

TEST(an_interrupt_line_reaches_the_guest)
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

TEST(ioeventfds_take_the_writes_that_match)
{
	struct porthole_ioeventfd io = {
		.ipa = CONSOLE + 0x20, .width = 4, .datamatch = 2,
		.flags = PORTHOLE_IOEVENTFD_DATAMATCH, .fd = eventfd(0, EFD_NONBLOCK),
	};
	/* The guest writes two bytes there. */
	struct porthole_ioeventfd wide = { .ipa = CONSOLE + 0x30, .width = 4, .fd = io.fd };
	struct vm vm = vm_new(1, KICKS);
	uint64_t count;

	CHECK(ioctl(vm.fd, PORTHOLE_IOEVENTFD, &wide) == 0);
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

TEST(a_second_vcpu_is_switched_on_and_off)
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
	/* While it was off it slept. */
	CHECK(vm.run[1]->exits[PORTHOLE_EXIT_CPU_OFF] == 3);
	vm_close(&vm);
}

TEST(two_vcpus_fault_on_the_same_pages)
{
	struct vm vm = vm_new(2, RACE);
	struct second second = { .vm = &vm };
	struct porthole_vm_info info;
	pthread_t thread;

	pthread_create(&thread, NULL, run_second, &second);
	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == (RAM_SIZE / 2) / 4096);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_INFO, &info) == 0);
	CHECK(info.memory_pages == (RAM_SIZE / 2) / 4096 + 1);
	CHECK(info.blocks_2m == info.ram_faults && info.blocks_2m == 4);
	vm_expect_end(&vm, PORTHOLE_RUN_SYSTEM_OFF);
	pthread_join(thread, NULL);
	vm_close(&vm);
}

static void on_alarm(int number)
{
	(void)number;
}

static void a_signal_interrupts_a_guest(enum routine routine)
{
	struct sigaction action = { .sa_handler = on_alarm };
	/* Again and again: one alone may come before the guest runs. */
	struct itimerval timer = {
		.it_value.tv_usec = 200000, .it_interval.tv_usec = 200000,
	}, off = {};
	struct vm vm = vm_new(1, routine);
	uint64_t start = milliseconds();

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	CHECK_FAILS(vm_run(&vm, 0), EINTR);
	CHECK(vm.run[0]->exit_reason == PORTHOLE_RUN_INTR);
	CHECK(milliseconds() - start >= 150);
	setitimer(ITIMER_REAL, &off, NULL);
	vm_close(&vm);
}

TEST(a_signal_interrupts_a_busy_guest)
{
	a_signal_interrupts_a_guest(SPIN);
}

TEST(a_signal_interrupts_a_sleeping_guest)
{
	a_signal_interrupts_a_guest(SLEEP);
}

TEST(a_signal_interrupts_a_guest_that_is_lost)
{
	a_signal_interrupts_a_guest(LOST);
}

TEST(a_guest_that_was_woken_sleeps_again)
{
	struct porthole_irqfd irqfd = { .fd = eventfd(0, 0), .intid = TEST_SPI };
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval timer = {
		.it_value.tv_usec = 200000, .it_interval.tv_usec = 200000,
	}, off = {};
	struct vm vm = vm_new(1, PINGS);
	pthread_t thread;

	CHECK(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd) == 0);
	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 0);
	/* It sleeps when the interrupt comes, as a rule. */
	pthread_create(&thread, NULL, signal_eventfd_later, (void *)(intptr_t)irqfd.fd);
	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == TEST_SPI);
	pthread_join(thread, NULL);
	CHECK(vm_expect_write(&vm, 0, CONSOLE, 8) == 0);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	CHECK_FAILS(vm_run(&vm, 0), EINTR);
	setitimer(ITIMER_REAL, &off, NULL);
	/* A wait for the interrupt, one for the edge's other half, one until the signal. */
	CHECK(vm.run[0]->exits[PORTHOLE_EXIT_WFI] <= 4);
	vm_close(&vm);
}
