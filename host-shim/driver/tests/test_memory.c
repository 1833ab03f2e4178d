// SPDX-License-Identifier: GPL-2.0-only
/* Memory on first touch and ahead of it; windows and their mappings. */
#include <elf.h>
#include <fcntl.h>

#include "vm.h"

/*
 * Reads a word of physical memory through /proc/kcore; false if it is not there.
 * Memory that was the kernel's init section is there twice, and reads as zero
 * where the kernel's image was: the word is what any of them shows.
 */
static bool kcore_word(uint64_t pa, uint64_t *word)
{
	int fd = open("/proc/kcore", O_RDONLY);
	Elf64_Ehdr header;
	bool found = false;

	CHECK(fd >= 0);
	CHECK(pread(fd, &header, sizeof(header), 0) == sizeof(header));
	*word = 0;
	for (unsigned int i = 0; i < header.e_phnum; i++) {
		uint64_t seen = 0;
		Elf64_Phdr part;

		CHECK(pread(fd, &part, sizeof(part), header.e_phoff + i * sizeof(part)) ==
		      sizeof(part));
		/* Parts without a physical address say 0 or -1. */
		if (part.p_type == PT_LOAD && part.p_paddr && part.p_paddr <= pa &&
		    pa - part.p_paddr < part.p_memsz &&
		    pread(fd, &seen, sizeof(seen),
			  part.p_offset + (pa - part.p_paddr)) == sizeof(seen)) {
			found = true;
			*word |= seen;
		}
	}
	close(fd);
	return found;
}

TEST(the_kernels_own_readers_stay_away_from_guest_pages)
{
	struct porthole_window_create create = window_config(WINDOW_BASE, 1 << 16);
	struct porthole_window_info window = {};
	struct vm vm = vm_unfinished(1);
	struct porthole_vm_info info;
	uint64_t *shared, word = 1, aborts;

	vm_load(&vm);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_INFO, &window) == 0);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_INFO, &info) == 0);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vm.fd, 0);
	CHECK(shared != MAP_FAILED);
	shared[0] = 0x706f7274;
	/* A window can be read there, so the way is the right one. */
	CHECK(kcore_word(window.first_pa, &word) && word == 0x706f7274);
	/* A page of the guest reads as zero, without a fault taken on it. */
	aborts = stat_of(PORTHOLE_STAT_HOST_ABORTS, 0);
	CHECK(kcore_word(info.first_pa, &word) && word == 0);
	CHECK(stat_of(PORTHOLE_STAT_HOST_ABORTS, 0) == aborts);
	munmap(shared, 4096);
	vm_close(&vm);
}

TEST(ram_comes_on_first_touch_in_2m_blocks)
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

TEST(populate_fills_what_is_missing)
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

TEST(a_window_is_shared_moved_and_destroyed)
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

TEST(bad_windows_are_refused)
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
	bad.length = (64 << 20) + 4096;
	CHECK_FAILS(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &bad), EINVAL);
	/* As much as open RAM may have, but not a device. */
	bad.length = (16 << 20) + 4096;
	bad.bar_size = 32 << 20;
	REFUSED(PORTHOLE_E_TOO_LARGE);

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

TEST(windows_are_mapped_and_shown_in_a_row)
{
	struct porthole_window_create create = window_config(WINDOW_BASE, 1 << 16);
	struct porthole_vm_window look = { 0 };
	struct porthole_page_info page = { 0 };
	struct porthole_window_info info = { .id = 1 };
	struct vm vm = vm_unfinished(1);
	char *both, *second;

	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	create.ipa += 1 << 20;
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0 && create.id == 1);
	both = mmap(NULL, 2 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, vm.fd, 0);
	second = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, vm.fd, 1LL << 32);
	CHECK(both != MAP_FAILED && second != MAP_FAILED);
	both[1 << 16] = 5;
	CHECK(second[0] == 5 && both[0] == 0);
	/* Neither more than there is nor from behind the end. */
	CHECK(mmap(NULL, 3 << 16, PROT_READ, MAP_SHARED, vm.fd, 0) == MAP_FAILED);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vm.fd, 1 << 16) == MAP_FAILED);

	look.vm = vm.handle;
	look.id = 1;
	CHECK(ioctl(device, PORTHOLE_VM_WINDOW, &look) == 0);
	CHECK(look.ipa == create.ipa && look.length == 1 << 16);
	CHECK(look.function == FUNCTION && look.function_mask == 1U << (FUNCTION & 7));
	look.id = 2;
	CHECK_FAILS(ioctl(device, PORTHOLE_VM_WINDOW, &look), ENOENT);
	look.id = UINT64_MAX;
	CHECK_FAILS(ioctl(device, PORTHOLE_VM_WINDOW, &look), ENOENT);

	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_INFO, &info) == 0);
	page.pa = info.first_pa;
	CHECK(ioctl(device, PORTHOLE_PAGE_INFO, &page) == 0);
	CHECK(page.owner == PORTHOLE_OWNER_WINDOW && page.pages >= 1 && page.pages <= 32);
	page.pa = 0;
	CHECK(ioctl(device, PORTHOLE_PAGE_INFO, &page) == 0);
	CHECK(page.owner == PORTHOLE_OWNER_NONE && page.pages > 0);
	page.pa = page.pages << 12;
	CHECK(ioctl(device, PORTHOLE_PAGE_INFO, &page) == 0);
	CHECK(page.owner != PORTHOLE_OWNER_NONE);
	vm_close(&vm);
	munmap(both, 2 << 16);
	munmap(second, 1 << 16);
}

TEST(a_mapping_outlives_its_window)
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
