// SPDX-License-Identifier: GPL-2.0
/*
 * touch_page DEVICE ADDRESS: maps one physical page into this process and reads a word of it.
 * Prints the word; a page that the host does not have ends the process with SIGBUS.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
	volatile uint64_t *page;
	unsigned long long address;
	int fd;

	if (argc != 3) {
		fprintf(stderr, "usage: touch_page DEVICE ADDRESS\n");
		return 2;
	}
	address = strtoull(argv[2], NULL, 0);
	fd = open(argv[1], O_RDONLY);
	if (fd < 0) {
		perror(argv[1]);
		return 2;
	}
	page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, address & ~4095ULL);
	if (page == MAP_FAILED) {
		perror("mmap");
		return 2;
	}
	printf("%016llx\n", (unsigned long long)page[0]);
	return 0;
}
