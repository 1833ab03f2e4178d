/* SPDX-License-Identifier: GPL-2.0-only */
/* Short hands for the tests: a VM with the test guest, and steps of its run. */
#ifndef TEST_VM_H
#define TEST_VM_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../porthole_abi.h"
#include "../porthole_uapi.h"

#define RAM_BASE	0x80000000ULL
#define RAM_SIZE	(16ULL << 20)
#define WINDOW_BASE	0x10000000ULL
#define CONSOLE		0x09000000ULL
#define TEST_SPI	40
#define FUNCTION	0x08		/* 0000:00:01.0 */

enum routine {
	OFF, MMIO, TOUCH, WINDOW, SPIN, TIMER, INTERRUPT, SECOND, RESET, LOST,
	KICKS, SLEEP, PINGS, RACE, TAIL,
};

struct vm {
	int fd;
	int vcpu[PORTHOLE_VCPUS_MAX];
	struct porthole_run *run[PORTHOLE_VCPUS_MAX];
	uint64_t handle;
};

extern int device;
extern const char guest_start[], guest_end[];

/* A test: a function with a name that says what holds. */
struct test {
	const char *name;
	void (*run)(void);
};

#define TEST(name) \
	static void name(void); \
	static const struct test test_##name \
		__attribute__((used, section("tests"))) = { #name, name }; \
	static void name(void)

/* Ends the test that runs as failed, with the place and the errno. */
void fail(const char *file, int line, const char *what);

#define CHECK(condition) \
	do { \
		if (!(condition)) \
			fail(__FILE__, __LINE__, #condition); \
	} while (0)
#define CHECK_FAILS(call, error) \
	do { \
		errno = 0; \
		CHECK((call) == -1 && errno == (error)); \
	} while (0)

struct porthole_create_vm vm_config(uint32_t vcpus);
struct vm vm_new(uint32_t vcpus, enum routine routine);
struct vm vm_unfinished(uint32_t vcpus);
void vm_load(struct vm *vm);
void vm_finalize(struct vm *vm, enum routine routine);
void vm_close(struct vm *vm);
int vm_run(struct vm *vm, unsigned int vcpu);
uint32_t vm_run_to(struct vm *vm, unsigned int vcpu);
uint64_t vm_expect_write(struct vm *vm, unsigned int vcpu, uint64_t ipa,
			 uint32_t width);
void vm_expect_read(struct vm *vm, uint64_t ipa, uint32_t width, uint64_t value);
void vm_expect_end(struct vm *vm, uint32_t reason);
uint64_t stat_of(uint32_t kind, uint64_t index);
uint64_t pages_out(void);
struct porthole_audit audit(void);
struct porthole_window_create window_config(uint64_t ipa, uint64_t length);

#endif
