// SPDX-License-Identifier: GPL-2.0
/*
 * edu_dma FUNCTION fetch ADDRESS...          DMA from each page into the device: prints its first word, and `mixed` or
 *                                            `whole` for whether all words of the page are that one
 * edu_dma FUNCTION store WORD ADDRESS...     DMA from the device onto each page, all of it this word
 * edu_dma --through ADDRESS FUNCTION ...     the words go through this page of the host (/dev/porthole-peek) instead of
 *                                            one of the process, for a device that does not reach all pages
 *
 * Root in user space, with a PCI device that can copy a page to and from any physical address (QEMU's `edu`), driven
 * through sysfs as a process with VFIO or UIO would. FUNCTION is the device's address, like 0000:00:05.0.
 * Registers: QEMU's docs/specs/edu.rst.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define BUFFER 0x40000 /* the device's own page, as the device addresses it */
#define DMA_FROM 0x80
#define DMA_TO 0x88
#define DMA_COUNT 0x90
#define DMA_COMMAND 0x98
#define START 1
#define TO_MEMORY 2
/* PCI command register: memory space, bus master. */
#define COMMAND 4
#define ENABLE 6

static volatile uint64_t *page;
static uint64_t page_address;
static volatile uint8_t *device;

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static int open_of(const char *function, const char *file, int flags)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", function, file);
	fd = open(path, flags);
	if (fd < 0)
		die(path);
	return fd;
}

/* One page of this process that stays where it is, and its physical address. */
static void get_page(void)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
	if (page == MAP_FAILED)
		die("mmap");
	page[0] = 1;
	if (fd < 0 || pread(fd, &entry, 8, (uintptr_t)page / PAGE * 8) != 8)
		die("pagemap");
	close(fd);
	page_address = (entry & ((1ULL << 55) - 1)) * PAGE;
	if (!(entry >> 63) || !page_address) {
		fprintf(stderr, "pagemap does not tell\n");
		exit(2);
	}
}

/* A page by its address: one that the device reaches. */
static void get_page_at(uint64_t address)
{
	int fd = open("/dev/porthole-peek", O_RDWR);

	if (fd < 0)
		die("/dev/porthole-peek");
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, address);
	if (page == MAP_FAILED)
		die("mmap of /dev/porthole-peek");
	close(fd);
	page_address = address;
}

static void get_device(const char *function)
{
	uint16_t command;
	int fd = open_of(function, "config", O_RDWR);

	if (pread(fd, &command, 2, COMMAND) != 2)
		die("config");
	command |= ENABLE;
	if (pwrite(fd, &command, 2, COMMAND) != 2)
		die("config");
	close(fd);
	fd = open_of(function, "resource0", O_RDWR);
	device = mmap(NULL, 0x100000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (device == MAP_FAILED)
		die("resource0");
	close(fd);
}

static void set(unsigned int at, uint64_t value)
{
	*(volatile uint64_t *)(device + at) = value;
}

static void dma(uint64_t from, uint64_t to, uint64_t command)
{
	int i;

	__sync_synchronize();
	set(DMA_FROM, from);
	set(DMA_TO, to);
	set(DMA_COUNT, PAGE);
	set(DMA_COMMAND, command | START);
	for (i = 0; i < 100000; i++) {
		if (!(*(volatile uint64_t *)(device + DMA_COMMAND) & START)) {
			__sync_synchronize();
			return;
		}
		usleep(1000);
	}
	fprintf(stderr, "the device does not finish\n");
	exit(2);
}

static void fill(uint64_t word)
{
	int i;

	for (i = 0; i < PAGE / 8; i++)
		page[i] = word;
}

static void fetch(uint64_t address)
{
	int i, mixed = 0;

	/* What the device has from before is not taken for what it read. */
	fill(0xedededededededed);
	dma(page_address, BUFFER, 0);
	/* Nor is this page, which may be the one that is asked for. */
	fill(0);
	dma(address, BUFFER, 0);
	dma(BUFFER, page_address, TO_MEMORY);
	for (i = 1; i < PAGE / 8; i++)
		mixed |= page[i] != page[0];
	printf("%#llx %016llx %s\n", (unsigned long long)address, (unsigned long long)page[0],
	       mixed ? "mixed" : "whole");
}

int main(int argc, char **argv)
{
	int i;

	if (argc >= 5 && !strcmp(argv[1], "--through")) {
		get_page_at(strtoull(argv[2], NULL, 0));
		argc -= 2;
		argv += 2;
	} else {
		get_page();
	}
	if (argc >= 4 && !strcmp(argv[2], "fetch")) {
		get_device(argv[1]);
		for (i = 3; i < argc; i++)
			fetch(strtoull(argv[i], NULL, 0));
		return 0;
	}
	if (argc >= 5 && !strcmp(argv[2], "store")) {
		get_device(argv[1]);
		fill(strtoull(argv[3], NULL, 0));
		dma(page_address, BUFFER, 0);
		for (i = 4; i < argc; i++)
			dma(BUFFER, strtoull(argv[i], NULL, 0), TO_MEMORY);
		return 0;
	}
	fprintf(stderr, "usage: edu_dma [--through ADDRESS] FUNCTION fetch ADDRESS... | ... store WORD ADDRESS...\n");
	return 2;
}
