// SPDX-License-Identifier: GPL-2.0-only
/*
 * Confinement on a machine with two of QEMU's edu devices that no driver wants: what is refused, what a release leaves,
 * and the DMA API of a confined device, of which porthole_dma_test.ko (module/) is the driver.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sys/syscall.h>

#include "vm.h"

#define DEVICES		"/sys/bus/pci/devices/"
#define DRIVER		"/sys/bus/pci/drivers/porthole_dma_test/"
#define PARAMETERS	"/sys/module/porthole_dma_test/parameters/"
#define TEST_MODULE	"/lib/porthole/porthole_dma_test.ko"
#define NO_DEVICE	0xfd		/* 0000:00:1f.5 */

/* A device: its name in sysfs, and its number as the driver takes it. */
struct edu {
	char name[16];
	uint32_t function;
};

static struct edu edu[2];

static bool put(const char *directory, const char *file, const char *text)
{
	char path[256];
	bool done;
	int fd;

	snprintf(path, sizeof(path), "%s%s", directory, file);
	fd = open(path, O_WRONLY);
	CHECK(fd >= 0);
	done = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return done;
}

static bool is_edu(const char *name)
{
	char path[300], text[16] = "";
	int fd;

	snprintf(path, sizeof(path), DEVICES "%s/device", name);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return false;
	CHECK(read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	return !strncmp(text, "0x11e8", 6);
}

static int release(uint32_t function)
{
	struct porthole_dma_release release = { .function = function };

	return ioctl(device, PORTHOLE_DMA_RELEASE, &release);
}

static struct porthole_dma_confine try_confine(uint32_t function, uint64_t size, int error)
{
	struct porthole_dma_confine confine = {
		.function = function, .size = size, .pa = 1, .available = 1,
		.obstacle = 1, .refusal = 1,
	};

	errno = 0;
	CHECK(ioctl(device, PORTHOLE_DMA_CONFINE, &confine) == (error ? -1 : 0));
	CHECK(errno == error);
	CHECK(!error == !!confine.pa);
	return confine;
}

/* The line of a confined function in what the hypervisor knows; kind 0 if there is none. */
static struct porthole_dma_info line_of(uint32_t function)
{
	struct porthole_dma_info info = { 0 };

	for (uint64_t i = 0; i < PORTHOLE_DMA_CONFINED_MAX; i++) {
		info.index = i;
		CHECK(ioctl(device, PORTHOLE_DMA_INFO, &info) == 0);
		if (info.kind == PORTHOLE_DMA_CONFINED && info.function == function)
			return info;
	}
	return (struct porthole_dma_info) { 0 };
}

/* How often the kernel has said that. */
static unsigned int times_said(const char *text)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	char line[2048];
	unsigned int times = 0;
	ssize_t length;

	CHECK(fd >= 0);
	while ((length = read(fd, line, sizeof(line) - 1)) > 0 || errno == EPIPE) {
		if (length <= 0)
			continue;
		line[length] = 0;
		times += strstr(line, text) != NULL;
	}
	close(fd);
	return times;
}

/* Two devices without a driver, not confined, whatever a test before left. */
static void find_devices(void)
{
	unsigned int found = 0, bus, slot, function;
	DIR *all = opendir(DEVICES);
	struct dirent *entry;

	CHECK(all);
	while (found < 2 && (entry = readdir(all))) {
		if (sscanf(entry->d_name, "0000:%x:%x.%x", &bus, &slot, &function) != 3 ||
		    bus || !is_edu(entry->d_name))
			continue;
		snprintf(edu[found].name, sizeof(edu[found].name), "%.15s", entry->d_name);
		edu[found].function = slot << 3 | function;
		if (!access(DRIVER, F_OK))
			put(DRIVER, "unbind", edu[found].name);
		release(edu[found].function);
		found++;
	}
	closedir(all);
	CHECK(found == 2);
}

static void load_test_driver(void)
{
	int fd;

	if (!access(DRIVER, F_OK))
		return;
	fd = open(TEST_MODULE, O_RDONLY);
	CHECK(fd >= 0 && syscall(SYS_finit_module, fd, "", 0) == 0);
	close(fd);
}

static void set_parameter(const char *name, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	CHECK(put(PARAMETERS, name, text));
}

/* Binds the test's driver, whose probe makes a step. */
static bool makes(const struct edu *device, const char *step)
{
	char directory[64];

	load_test_driver();
	snprintf(directory, sizeof(directory), DEVICES "%s/", device->name);
	CHECK(put(directory, "driver_override", "porthole_dma_test"));
	CHECK(put(PARAMETERS, "step", step));
	return put(DRIVER, "bind", device->name);
}

static bool unbind(const struct edu *device)
{
	return put(DRIVER, "unbind", device->name);
}

/* Tells the test's driver the region of its device. */
static void name_region(const struct edu *device, uint64_t longest)
{
	struct porthole_dma_info line = line_of(device->function);

	load_test_driver();
	set_parameter("region", line.pa);
	set_parameter("bytes", line.size);
	set_parameter("longest", longest);
}

/* A step with a region of a size of its own; nothing may be in use afterwards. */
static void step_in(const char *step, uint64_t size, uint64_t longest)
{
	find_devices();
	CHECK(try_confine(edu[0].function, size, 0).pa == line_of(edu[0].function).pa);
	CHECK(line_of(edu[0].function).size == size);
	name_region(&edu[0], longest);
	CHECK(makes(&edu[0], step));
	CHECK(line_of(edu[0].function).used == 0);
	CHECK(unbind(&edu[0]));
	CHECK(release(edu[0].function) == 0);
}

TEST(drivers_of_a_confined_device_copy_what_they_map)
{
	step_in("copies", 64 << 10, 8192);
	step_in("lists", 64 << 10, 8192);
}

TEST(a_region_gives_its_room_to_one_mapping_at_a_time)
{
	step_in("room", 16 << 10, 4096);
	step_in("room", 64 << 10, 8192);
	step_in("room", 4 << 20, 256 << 10);
}

TEST(memory_that_driver_and_confined_device_share_is_of_the_region)
{
	step_in("coherent", 64 << 10, 8192);
	/* The kernel aligns a region to no more than 1 MiB, the DMA API memory to its size. */
	step_in("coherent", 4 << 20, 256 << 10);
}

TEST(a_driver_that_names_addresses_of_others_moves_nothing)
{
	step_in("strangers", 64 << 10, 8192);
}

TEST(a_driver_that_asked_for_nothing_is_synced)
{
	find_devices();
	CHECK(makes(&edu[0], "plain") && unbind(&edu[0]));
	step_in("syncs", 64 << 10, 8192);
	step_in("kept", 64 << 10, 8192);
}

TEST(the_region_serves_each_driver_that_comes)
{
	find_devices();
	CHECK(try_confine(edu[0].function, 64 << 10, 0).pa);
	/* The driver leaves the device as kernels do that reset its DMA operations. */
	for (int i = 0; i < 3; i++) {
		name_region(&edu[0], 0);
		CHECK(makes(&edu[0], "syncs") && unbind(&edu[0]));
	}
	CHECK(release(edu[0].function) == 0);
	/* And none after the release. */
	CHECK(makes(&edu[0], "plain") && unbind(&edu[0]));
}

TEST(shared_memory_is_shown_to_processes_in_its_bounds)
{
	const int both = PROT_READ | PROT_WRITE;
	char *pages, *last;
	int fd;

	find_devices();
	CHECK(try_confine(edu[0].function, 64 << 10, 0).pa);
	CHECK(makes(&edu[0], "show"));
	fd = open("/dev/porthole-dma-test", O_RDWR);
	CHECK(fd >= 0);
	pages = mmap(NULL, 3 * 4096, both, MAP_SHARED, fd, 0);
	last = mmap(NULL, 2 * 4096, both, MAP_SHARED, fd, 4096);
	CHECK(pages != MAP_FAILED && last != MAP_FAILED);
	CHECK(pages[0] == 1 && pages[4096] == 2 && last[0] == 2 && last[4096] == 3);
	CHECK(mmap(NULL, 4 * 4096, both, MAP_SHARED, fd, 0) == MAP_FAILED);
	CHECK(mmap(NULL, 4096, both, MAP_SHARED, fd, 3 * 4096) == MAP_FAILED);
	CHECK(mmap(NULL, 2 * 4096, both, MAP_SHARED, fd, 2 * 4096) == MAP_FAILED);
	CHECK(mmap(NULL, 4096, both, MAP_SHARED, fd, 1LL << 40) == MAP_FAILED);
	munmap(pages, 3 * 4096);
	munmap(last, 2 * 4096);
	close(fd);
	CHECK(unbind(&edu[0]) && release(edu[0].function) == 0);
}

TEST(a_release_says_what_a_driver_left_behind)
{
	const char *message = "left 8192 bytes of DMA memory behind";
	unsigned int before = times_said(message);

	find_devices();
	CHECK(try_confine(edu[0].function, 64 << 10, 0).pa);
	CHECK(try_confine(edu[1].function, 32 << 10, 0).pa);
	CHECK(makes(&edu[0], "leave"));
	/* Each line is its own device's. */
	CHECK(line_of(edu[0].function).used == 8192 && line_of(edu[1].function).used == 0);
	CHECK(line_of(edu[0].function).owned && line_of(edu[1].function).size == 32 << 10);
	CHECK(unbind(&edu[0]) && release(edu[0].function) == 0);
	CHECK(times_said(message) == before + 1);
	CHECK(release(edu[1].function) == 0);
}

/* The command register of a device: bus mastering is bit 2. */
static uint16_t command(const struct edu *device, const uint16_t *write)
{
	uint16_t value;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), DEVICES "%s/config", device->name);
	fd = open(path, O_RDWR);
	CHECK(fd >= 0);
	if (write)
		CHECK(pwrite(fd, write, 2, 4) == 2);
	CHECK(pread(fd, &value, 2, 4) == 2);
	close(fd);
	return value;
}

TEST(a_device_is_confined_once_and_released_once)
{
	const uint16_t master = 4;
	uint64_t pinned, hosts;

	find_devices();
	pinned = stat_of(PORTHOLE_STAT_PAGES_BY_OWNER, PORTHOLE_OWNER_PINNED);
	hosts = stat_of(PORTHOLE_STAT_PAGES_BY_OWNER, PORTHOLE_OWNER_HOST);
	CHECK(command(&edu[0], &master) & master);
	CHECK(try_confine(edu[0].function, 64 << 10, 0).pa == line_of(edu[0].function).pa);
	CHECK(!(command(&edu[0], NULL) & master));
	CHECK(stat_of(PORTHOLE_STAT_PAGES_BY_OWNER, PORTHOLE_OWNER_PINNED) == pinned + 16);
	CHECK(!try_confine(edu[0].function, 64 << 10, EEXIST).obstacle);
	name_region(&edu[0], 0);
	CHECK(makes(&edu[0], "syncs"));
	/* With a driver: it is confined, and stays so. */
	try_confine(edu[0].function, 64 << 10, EEXIST);
	CHECK_FAILS(release(edu[0].function), EBUSY);
	CHECK(makes(&edu[1], "plain"));
	try_confine(edu[1].function, 64 << 10, EBUSY);
	CHECK_FAILS(release(edu[1].function), EBUSY);
	CHECK(unbind(&edu[0]) && unbind(&edu[1]));
	CHECK(command(&edu[0], &master) & master);
	CHECK(release(edu[0].function) == 0);
	CHECK(!(command(&edu[0], NULL) & master));
	CHECK_FAILS(release(edu[0].function), ENOENT);
	CHECK(line_of(edu[0].function).kind == PORTHOLE_DMA_FREE);
	CHECK(stat_of(PORTHOLE_STAT_PAGES_BY_OWNER, PORTHOLE_OWNER_PINNED) == pinned);
	CHECK(stat_of(PORTHOLE_STAT_PAGES_BY_OWNER, PORTHOLE_OWNER_HOST) == hosts);
}

TEST(regions_and_functions_that_cannot_be_are_refused)
{
	static const uint64_t sizes[] = {
		0, 1, 4095, 4097, (64 << 20) + 1, (64 << 20) + 4096, 1ULL << 32,
		1ULL << 63, -4096ULL, UINT64_MAX,
	};
	struct porthole_dma_confine confine = { .size = 4096, .reserved = 1 };
	struct porthole_dma_info info = { .index = 32 };
	struct porthole_dma_confine *argument;

	find_devices();
	for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		CHECK(try_confine(edu[0].function, sizes[i], EINVAL).refusal == 0);
		CHECK(try_confine(NO_DEVICE, sizes[i], EINVAL).refusal == 0);
	}
	confine.function = edu[0].function;
	CHECK_FAILS(ioctl(device, PORTHOLE_DMA_CONFINE, &confine), EINVAL);
	try_confine(NO_DEVICE, 4096, ENODEV);
	try_confine(UINT32_MAX, 4096, ENODEV);
	try_confine(1 << 16 | edu[0].function, 4096, ENODEV);
	CHECK(release(NO_DEVICE) == -1 && release(UINT32_MAX) == -1);
	CHECK_FAILS(release(edu[0].function), ENOENT);
	/* The host bridge speaks for others. */
	CHECK(try_confine(0, 4096, EOPNOTSUPP).obstacle == PORTHOLE_DMA_OBSTACLE_BRIDGE);
	CHECK(ioctl(device, PORTHOLE_DMA_INFO, &info) == -1 && info.refusal);
	CHECK(info.kind == PORTHOLE_DMA_FREE && info.function == 0);
	CHECK_FAILS(ioctl(device, PORTHOLE_DMA_CONFINE, NULL), EFAULT);
	CHECK_FAILS(ioctl(device, PORTHOLE_DMA_RELEASE, NULL), EFAULT);
	CHECK_FAILS(ioctl(device, PORTHOLE_DMA_INFO, NULL), EFAULT);
	CHECK(line_of(edu[0].function).kind == PORTHOLE_DMA_FREE);

	/* An answer that cannot be given: what the list says is what holds. */
	argument = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(argument != MAP_FAILED);
	argument->function = edu[0].function;
	argument->size = 4096;
	CHECK(mprotect(argument, 4096, PROT_READ) == 0);
	CHECK_FAILS(ioctl(device, PORTHOLE_DMA_CONFINE, argument), EFAULT);
	CHECK(line_of(edu[0].function).size == 4096 && release(edu[0].function) == 0);
}

TEST(a_region_that_cannot_be_had_names_one_that_can)
{
	struct porthole_dma_confine refused;

	find_devices();
	/* The most there may be, and more than the kernel has in one piece; then half of what it has is gone. */
	for (int i = 0; i < 4; i++) {
		refused = try_confine(edu[0].function, 64 << 20, ENOMEM);
		CHECK(refused.available >= 8 << 20 && refused.available < 64 << 20);
		CHECK(line_of(edu[0].function).kind == PORTHOLE_DMA_FREE);
		CHECK(try_confine(edu[1].function, refused.available, 0).pa);
		refused = try_confine(edu[0].function, 64 << 20, ENOMEM);
		CHECK(refused.available >= 4096);
		CHECK(try_confine(edu[0].function, refused.available, 0).pa);
		CHECK(release(edu[0].function) == 0 && release(edu[1].function) == 0);
	}
}

TEST(a_device_with_dma_operations_of_others_is_not_confined)
{
	find_devices();
	CHECK(makes(&edu[0], "foreign") && unbind(&edu[0]));
	CHECK(try_confine(edu[0].function, 4096, EOPNOTSUPP).obstacle ==
	      PORTHOLE_DMA_OBSTACLE_IOMMU);
	CHECK(makes(&edu[0], "reset") && unbind(&edu[0]));
}

TEST(what_an_earlier_kernel_confined_is_shown_and_released)
{
	struct porthole_dma_confine refused;

	find_devices();
	CHECK(makes(&edu[0], "earlier") && unbind(&edu[0]));
	CHECK(line_of(edu[0].function).size == 4096 && !line_of(edu[0].function).owned);
	refused = try_confine(edu[0].function, 4096, EEXIST);
	CHECK(refused.refusal == PORTHOLE_E_ALREADY_CONFINED);
	/* The driver keeps nothing of what was refused. */
	CHECK(!line_of(edu[0].function).owned && line_of(edu[0].function).size == 4096);
	CHECK(release(edu[0].function) == 0);
	CHECK(line_of(edu[0].function).kind == PORTHOLE_DMA_FREE);
	CHECK_FAILS(release(edu[0].function), ENOENT);
	CHECK(try_confine(edu[0].function, 4096, 0).pa && release(edu[0].function) == 0);
}

TEST(lines_say_nothing_of_what_they_are_not_about)
{
	struct porthole_dma_info free, info;
	bool refused = false;

	find_devices();
	memset(&free, 0xff, sizeof(free));
	free.index = 15;
	CHECK(ioctl(device, PORTHOLE_DMA_INFO, &free) == 0);
	info = (struct porthole_dma_info) { .index = 15, .kind = PORTHOLE_DMA_FREE };
	CHECK(!memcmp(&free, &info, sizeof(info)));

	CHECK(try_confine(edu[0].function, 4096, 0).pa);
	name_region(&edu[0], 0);
	CHECK(makes(&edu[0], "fault"));
	for (info.index = 16; info.index < 32; info.index++) {
		CHECK(ioctl(device, PORTHOLE_DMA_INFO, &info) == 0);
		if (info.kind != PORTHOLE_DMA_FAULTS || info.function != edu[0].function)
			continue;
		refused = true;
		CHECK(info.count && (info.address & ~4095ULL) == line_of(edu[0].function).pa + 4096);
		CHECK(!info.owned && !info.pa && !info.size);
	}
	CHECK(refused);
	CHECK(unbind(&edu[0]) && release(edu[0].function) == 0);
}
