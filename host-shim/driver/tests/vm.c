// SPDX-License-Identifier: GPL-2.0-only
/* Short hands for the tests: a VM with the test guest, and steps of its run. */
#include "vm.h"

struct porthole_create_vm vm_config(uint32_t vcpus)
{
	return (struct porthole_create_vm) {
		.vcpus = vcpus,
		.spi_count = 64,
		.msi_base = 64,
		.msi_count = 32,
		.region_count = 5,
		.regions = {
			{ .base = RAM_BASE, .size = RAM_SIZE, .kind = PORTHOLE_REGION_RAM },
			{ .base = WINDOW_BASE, .size = 64ULL << 20, .kind = PORTHOLE_REGION_WINDOW },
			{ .base = 0x08000000, .size = 0x10000, .kind = PORTHOLE_REGION_GIC_DISTRIBUTOR },
			{ .base = 0x08020000, .size = 0x1000, .kind = PORTHOLE_REGION_GIC_V2M },
			{ .base = 0x080a0000, .size = 0x20000ULL * vcpus,
			  .kind = PORTHOLE_REGION_GIC_REDISTRIBUTORS },
		},
	};
}

struct vm vm_unfinished(uint32_t vcpus)
{
	struct porthole_create_vm config = vm_config(vcpus);
	struct vm vm = { .fd = ioctl(device, PORTHOLE_CREATE_VM, &config) };

	CHECK(vm.fd >= 0);
	vm.handle = config.handle;
	for (uint32_t i = 0; i < vcpus; i++) {
		struct porthole_create_vcpu create = { .index = i };

		vm.vcpu[i] = ioctl(vm.fd, PORTHOLE_VM_CREATE_VCPU, &create);
		CHECK(vm.vcpu[i] >= 0);
		vm.run[i] = mmap(NULL, PORTHOLE_RUN_SIZE, PROT_READ | PROT_WRITE,
				 MAP_SHARED, vm.vcpu[i], 0);
		CHECK(vm.run[i] != MAP_FAILED);
	}
	return vm;
}

void vm_load(struct vm *vm)
{
	struct porthole_load load = {
		.source = (uintptr_t)guest_start,
		.ipa = RAM_BASE,
		.size = guest_end - guest_start,
	};

	CHECK(ioctl(vm->fd, PORTHOLE_VM_LOAD, &load) == 0);
	CHECK(load.loaded == load.size);
}

void vm_finalize(struct vm *vm, enum routine routine)
{
	struct porthole_finalize finalize = { .entry = RAM_BASE, .x0 = routine };

	CHECK(ioctl(vm->fd, PORTHOLE_VM_FINALIZE, &finalize) == 0);
}

struct vm vm_new(uint32_t vcpus, enum routine routine)
{
	struct vm vm = vm_unfinished(vcpus);

	vm_load(&vm);
	vm_finalize(&vm, routine);
	return vm;
}

void vm_close(struct vm *vm)
{
	for (unsigned int i = 0; i < PORTHOLE_VCPUS_MAX; i++) {
		if (!vm->run[i])
			continue;
		munmap(vm->run[i], PORTHOLE_RUN_SIZE);
		close(vm->vcpu[i]);
	}
	close(vm->fd);
}

int vm_run(struct vm *vm, unsigned int vcpu)
{
	return ioctl(vm->vcpu[vcpu], PORTHOLE_VCPU_RUN, 0);
}

/* Runs to the next exit and returns its reason. */
uint32_t vm_run_to(struct vm *vm, unsigned int vcpu)
{
	CHECK(vm_run(vm, vcpu) == 0);
	return vm->run[vcpu]->exit_reason;
}

/* Runs to a write there and returns its value. */
uint64_t vm_expect_write(struct vm *vm, unsigned int vcpu, uint64_t ipa,
			 uint32_t width)
{
	CHECK(vm_run_to(vm, vcpu) == PORTHOLE_RUN_MMIO_WRITE);
	CHECK(vm->run[vcpu]->mmio.ipa == ipa);
	CHECK(vm->run[vcpu]->mmio.width == width);
	return vm->run[vcpu]->mmio.data;
}

/* Runs vCPU 0 to a read there and answers it. */
void vm_expect_read(struct vm *vm, uint64_t ipa, uint32_t width, uint64_t value)
{
	CHECK(vm_run_to(vm, 0) == PORTHOLE_RUN_MMIO_READ);
	CHECK(vm->run[0]->mmio.ipa == ipa);
	CHECK(vm->run[0]->mmio.width == width);
	vm->run[0]->mmio.data = value;
}

void vm_expect_end(struct vm *vm, uint32_t reason)
{
	CHECK(vm_run_to(vm, 0) == reason);
	CHECK(vm_run_to(vm, 0) == PORTHOLE_RUN_STOPPED);
}

uint64_t stat_of(uint32_t kind, uint64_t index)
{
	struct porthole_stats stats = { .kind = kind, .index = index };

	CHECK(ioctl(device, PORTHOLE_STATS, &stats) == 0);
	return stats.value;
}

/* Pages that are not the host's alone because of VMs. */
uint64_t pages_out(void)
{
	return stat_of(PORTHOLE_STAT_PAGES_BY_OWNER, PORTHOLE_OWNER_VM_MEMORY) +
	       stat_of(PORTHOLE_STAT_PAGES_BY_OWNER, PORTHOLE_OWNER_VM_METADATA) +
	       stat_of(PORTHOLE_STAT_PAGES_BY_OWNER, PORTHOLE_OWNER_WINDOW);
}

/* The audit, which must agree with the windows. */
struct porthole_audit audit(void)
{
	struct porthole_audit audit = {};

	CHECK(ioctl(device, PORTHOLE_AUDIT, &audit) == 0);
	CHECK(audit.shared_pages == audit.window_pages);
	CHECK(audit.offender == PORTHOLE_NO_ADDRESS);
	return audit;
}

struct porthole_window_create window_config(uint64_t ipa, uint64_t length)
{
	return (struct porthole_window_create) {
		.ipa = ipa,
		.length = length,
		.bar_size = 16ULL << 20,
		.function = FUNCTION,
		.bar = 2,
	};
}
