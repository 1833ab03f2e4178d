// SPDX-License-Identifier: GPL-2.0-only
/* The device itself, and VMs that come, are refused, are measured and are killed. */
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "vm.h"

TEST(info_names_the_hypervisor)
{
	struct porthole_info info;

	CHECK(ioctl(device, PORTHOLE_INFO, &info) == 0);
	CHECK(info.uapi_version == PORTHOLE_UAPI_VERSION);
	CHECK(info.abi_version >> 16 == PORTHOLE_ABI_VERSION >> 16);
	CHECK(info.cpus >= 1 && info.reserved_bytes && info.ram_bytes);
	CHECK(info.reserved_bytes < info.ram_bytes);
	CHECK(info.leaked_pages == 0);
}

TEST(log_is_read_from_its_start)
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

TEST(bad_configurations_are_refused)
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
	config.flags = 2;
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

TEST(a_vm_comes_and_goes)
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

TEST(the_measurement_follows_the_content)
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

TEST(all_slots_can_be_used_and_used_again)
{
	struct porthole_create_vm config = vm_config(1);
	int vms[PORTHOLE_VMS_MAX];

	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < PORTHOLE_VMS_MAX; i++) {
			vms[i] = ioctl(device, PORTHOLE_CREATE_VM, &config);
			CHECK(vms[i] >= 0);
		}
		CHECK_FAILS(ioctl(device, PORTHOLE_CREATE_VM, &config), ENOSPC);
		CHECK(config.refusal == PORTHOLE_E_NO_SLOT);
		for (int i = 0; i < PORTHOLE_VMS_MAX; i++)
			close(vms[i]);
		CHECK(pages_out() == 0);
	}
}

/* A guest as large as the machine gets what the host has, then everything is back. */
TEST(a_guest_too_large_for_the_host_is_refused_its_memory)
{
	struct porthole_create_vm config = vm_config(1);
	struct porthole_populate populate = { .ipa = RAM_BASE };
	struct porthole_info info;
	int vm;

	CHECK(ioctl(device, PORTHOLE_INFO, &info) == 0);
	populate.size = config.regions[0].size = info.ram_bytes;
	vm = ioctl(device, PORTHOLE_CREATE_VM, &config);
	CHECK(vm >= 0);
	CHECK_FAILS(ioctl(vm, PORTHOLE_VM_POPULATE, &populate), ENOMEM);
	CHECK(pages_out() > info.ram_bytes / 4096 / 2);
	CHECK(ioctl(device, PORTHOLE_INFO, &info) == 0 && info.leaked_pages == 0);
	close(vm);
}

static void *run_forever(void *vm)
{
	vm_run(vm, 1);
	return NULL;
}

/* A process with a VM in every stage of its life, killed at some moment. */
static void victim(void)
{
	struct porthole_irqfd irqfd = { .fd = eventfd(0, 0), .intid = TEST_SPI };
	struct porthole_window_create create = window_config(WINDOW_BASE, 4 << 20);
	struct porthole_populate populate = { .ipa = RAM_BASE, .size = RAM_SIZE };
	struct vm vm = vm_unfinished(2);
	pthread_t thread;

	vm_load(&vm);
	CHECK(ioctl(vm.fd, PORTHOLE_IRQFD, &irqfd) == 0);
	CHECK(ioctl(vm.fd, PORTHOLE_WINDOW_CREATE, &create) == 0);
	CHECK(mmap(NULL, 4 << 20, PROT_READ, MAP_SHARED, vm.fd, 0) != MAP_FAILED);
	CHECK(ioctl(vm.fd, PORTHOLE_VM_POPULATE, &populate) == 0);
	vm_finalize(&vm, SPIN);
	/* vCPU 1 is off: its thread sleeps in RUN. */
	pthread_create(&thread, NULL, run_forever, &vm);
	vm_run(&vm, 0);
	_exit(1);
}

TEST(sigkill_at_any_moment_gives_everything_back)
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

TEST(pages_name_their_owner)
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
