// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * ioload: loads for counting instructions: requests to a disk past the page cache, one after another, and a TCP stream
 * and one-byte round trips. It does no more than the system calls; checksums are the tests' business (sockcat).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Wants sys/ioctl.h before it. */
#include <linux/fs.h>

static const char usage[] =
	"usage: ioload read|write DEVICE BYTES COUNT random|seq\n"
	"                                        COUNT requests of BYTES each, O_DIRECT\n"
	"       ioload pieces DEVICE BYTES COUNT one read of COUNT pieces of BYTES each, O_DIRECT, every piece into a page of\n"
	"                                        its own; what was read goes to standard output\n"
	"       ioload send ADDRESS|- PORT MIB   a stream, until the other side has all of it; - takes one connection\n"
	"       ioload take ADDRESS|- PORT       its other side\n"
	"       ioload ping ADDRESS|- PORT COUNT one byte there and back, COUNT times\n"
	"       ioload pong ADDRESS|- PORT       its other side\n";

enum { CHUNK = 65536, MIB = 1 << 20, PAGE = 4096 };

static void die(const char *what)
{
	fprintf(stderr, "ioload: %s: %s\n", what, errno ? strerror(errno) : "ended early");
	exit(1);
}

static unsigned long number(const char *text)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || *end || end == text || text[0] == '-') {
		fprintf(stderr, "ioload: '%s' is not a number\n", text);
		exit(2);
	}
	return value;
}

static unsigned short port_of(const char *text)
{
	unsigned long value = number(text);

	if (!value || value > 65535) {
		fprintf(stderr, "ioload: '%s' is no port\n", text);
		exit(2);
	}
	return (unsigned short)value;
}

static void disk(const char *path, int writes, unsigned long bytes, unsigned long count, int random)
{
	unsigned long long size, places, place, state = 88172645463325252ULL;
	unsigned long i;
	void *buffer;
	int fd = open(path, (writes ? O_WRONLY : O_RDONLY) | O_DIRECT | O_CLOEXEC);

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size))
		die(path);
	places = bytes ? size / bytes : 0;
	if (!places) {
		fprintf(stderr, "ioload: no request of %lu bytes fits into %s\n", bytes, path);
		exit(2);
	}
	errno = posix_memalign(&buffer, CHUNK, bytes);
	if (errno)
		die("memory");
	memset(buffer, 0x5a, bytes);
	for (i = 0; i < count; i++) {
		/* xorshift64 (Marsaglia): the same places in every run. */
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		place = (random ? state : i) % places * bytes;
		errno = 0;
		if ((writes ? pwrite(fd, buffer, bytes, (off_t)place) : pread(fd, buffer, bytes, (off_t)place)) !=
		    (ssize_t)bytes)
			die(path);
	}
	free(buffer);
	close(fd);
}

/* One read into pieces of memory that lie apart, so that no two of them make one segment. */
static void read_in_pieces(const char *path, unsigned long bytes, unsigned long count)
{
	struct iovec pieces[IOV_MAX];
	char *memory;
	unsigned long i;
	int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);

	if (fd < 0)
		die(path);
	if (!bytes || bytes > PAGE / 2 || !count || count > IOV_MAX) {
		fprintf(stderr, "ioload: no more than %d pieces of %d bytes\n", IOV_MAX, PAGE / 2);
		exit(2);
	}
	errno = posix_memalign((void **)&memory, PAGE, count * PAGE);
	if (errno)
		die("memory");
	for (i = 0; i < count; i++)
		pieces[i] = (struct iovec){ .iov_base = memory + i * PAGE, .iov_len = bytes };
	errno = 0;
	if (preadv(fd, pieces, (int)count, 0) != (ssize_t)(bytes * count))
		die(path);
	for (i = 0; i < count; i++)
		if (fwrite(pieces[i].iov_base, bytes, 1, stdout) != 1)
			die("standard output");
	if (fflush(stdout))
		die("standard output");
	free(memory);
	close(fd);
}

/* Connects to an address, or for `-` listens and takes the first connection. */
static int tcp(const char *host, unsigned short port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	const int on = 1;
	int peer, s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (s < 0)
		die("socket");
	if (strcmp(host, "-") && inet_pton(AF_INET, host, &address.sin_addr) != 1) {
		fprintf(stderr, "ioload: '%s' is no IPv4 address\n", host);
		exit(2);
	}
	if (strcmp(host, "-")) {
		if (connect(s, (struct sockaddr *)&address, sizeof(address)))
			die("connect");
		peer = s;
	} else {
		if (setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
		    bind(s, (struct sockaddr *)&address, sizeof(address)) || listen(s, 1))
			die("listen");
		peer = accept4(s, NULL, NULL, SOCK_CLOEXEC);
		if (peer < 0)
			die("accept");
		close(s);
	}
	if (setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		die("TCP_NODELAY");
	return peer;
}

static char chunk[CHUNK];

static void send_stream(int s, unsigned long mib)
{
	unsigned long long left = (unsigned long long)mib * MIB;
	ssize_t n;

	while (left) {
		errno = 0;
		n = write(s, chunk, left < CHUNK ? left : CHUNK);
		if (n <= 0)
			die("send");
		left -= (unsigned long long)n;
	}
	/* The other side closes once it has read to the end. */
	errno = 0;
	if (shutdown(s, SHUT_WR) || read(s, chunk, 1) != 0)
		die("end of the stream");
}

static void take_stream(int s)
{
	ssize_t n;

	while ((n = read(s, chunk, CHUNK)) > 0)
		;
	if (n < 0)
		die("receive");
}

static void ping(int s, unsigned long count)
{
	while (count--) {
		errno = 0;
		if (write(s, chunk, 1) != 1 || read(s, chunk, 1) != 1)
			die("round trip");
	}
}

static void pong(int s)
{
	while (read(s, chunk, 1) == 1) {
		errno = 0;
		if (write(s, chunk, 1) != 1)
			die("answer");
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (argc == 6 && (!strcmp(what, "read") || !strcmp(what, "write")))
		disk(argv[2], what[0] == 'w', number(argv[3]), number(argv[4]), !strcmp(argv[5], "random"));
	else if (argc == 5 && !strcmp(what, "pieces"))
		read_in_pieces(argv[2], number(argv[3]), number(argv[4]));
	else if (argc == 5 && !strcmp(what, "send"))
		send_stream(tcp(argv[2], port_of(argv[3])), number(argv[4]));
	else if (argc == 4 && !strcmp(what, "take"))
		take_stream(tcp(argv[2], port_of(argv[3])));
	else if (argc == 5 && !strcmp(what, "ping"))
		ping(tcp(argv[2], port_of(argv[3])), number(argv[4]));
	else if (argc == 4 && !strcmp(what, "pong"))
		pong(tcp(argv[2], port_of(argv[3])));
	else {
		fputs(usage, stderr);
		return 2;
	}
	return 0;
}
