// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sockcat: joins standard input and output to a TCP, vsock or Unix stream, for guests and hosts that have busybox
 * only. It sends all of its input, half-closes, and receives until the other side does the same; status 0 only if
 * both directions ended well. What was sent has left this machine then, which may be switched off next.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Want sys/socket.h before them. */
#include <linux/sockios.h>
#include <linux/vm_sockets.h>

static const char usage[] =
	"usage: sockcat vsock CID PORT         connect from a guest; CID 2 is its host\n"
	"       sockcat vsock-listen PORT      take one connection in a guest\n"
	"       sockcat tcp ADDRESS PORT       connect; ADDRESS is numeric IPv4\n"
	"       sockcat tcp-listen PORT        take one connection\n"
	"       sockcat unix PATH [PORT]       connect on a host; with PORT, ask a VMM for that port of its guest\n"
	"       sockcat unix-listen PATH       take one connection on a host\n";

static void die(const char *what)
{
	fprintf(stderr, "sockcat: %s: %s\n", what, strerror(errno));
	exit(1);
}

static unsigned int number(const char *text)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || *end || end == text || value > 0xffffffffUL) {
		fprintf(stderr, "sockcat: '%s' is not a number\n", text);
		exit(2);
	}
	return (unsigned int)value;
}

/* Connects, or listens and takes the first connection. */
static int stream(int family, const void *address, socklen_t size, int listens)
{
	const int on = 1;
	int peer, s = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (s < 0)
		die("socket");
	if (!listens) {
		if (connect(s, address, size))
			die("connect");
		return s;
	}
	if (setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
		die("setsockopt");
	if (bind(s, address, size) || listen(s, 1))
		die("listen");
	do {
		peer = accept4(s, NULL, NULL, SOCK_CLOEXEC);
	} while (peer < 0 && errno == EINTR);
	if (peer < 0)
		die("accept");
	close(s);
	return peer;
}

static int vsock(unsigned int cid, unsigned int port, int listens)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port,
	};

	return stream(AF_VSOCK, &address, sizeof(address), listens);
}

static int tcp(const char *host, unsigned int port, int listens)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = htons((unsigned short)port),
	};

	if (port > 65535 || (host && inet_pton(AF_INET, host, &address.sin_addr) != 1)) {
		fprintf(stderr, "sockcat: no such address\n");
		exit(2);
	}
	return stream(AF_INET, &address, sizeof(address), listens);
}

static int unix_socket(const char *path, int listens)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		die(path);
	}
	strcpy(address.sun_path, path);
	if (listens)
		unlink(path);
	return stream(AF_UNIX, &address, sizeof(address), listens);
}

/* The VMM's handshake: CONNECT PORT, then OK and a number. */
static void ask_for_port(int s, unsigned int port)
{
	char line[64];
	size_t n = 0;
	int length = snprintf(line, sizeof(line), "CONNECT %u\n", port);

	if (write(s, line, (size_t)length) != length)
		die("handshake");
	while (n < sizeof(line) - 1 && read(s, line + n, 1) == 1 && line[n] != '\n')
		n++;
	line[n] = 0;
	if (strncmp(line, "OK ", 3)) {
		fprintf(stderr, "sockcat: port %u: refused\n", port);
		exit(1);
	}
}

/* 30 seconds, in hundredths: it acknowledges the last end only if it is still there. */
enum { PATIENCE = 3000 };

struct half {
	int from, to;
	size_t have, done;
	int ended;
	char data[65536];
};

static int would_block(void)
{
	return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

/* Moves what can be moved now. At the end of the input, tells the other side. */
static void move(struct half *h, int to_socket)
{
	ssize_t n;

	if (!h->have) {
		n = read(h->from, h->data, sizeof(h->data));
		if (n < 0) {
			if (would_block())
				return;
			die("read");
		}
		if (!n) {
			h->ended = 1;
			if (to_socket && shutdown(h->to, SHUT_WR))
				die("shutdown");
			return;
		}
		h->have = (size_t)n;
		h->done = 0;
	}
	n = write(h->to, h->data + h->done, h->have - h->done);
	if (n < 0) {
		if (would_block())
			return;
		die("write");
	}
	h->done += (size_t)n;
	if (h->done == h->have)
		h->have = 0;
}

/* Waits until the other side has acknowledged all that was sent, and the end of it, or has done nothing for PATIENCE. */
static void linger(int s)
{
	int left, before = -1, still = 0;

	while (still < PATIENCE && !ioctl(s, SIOCOUTQ, &left) && left > 0) {
		still = left == before ? still + 1 : 0;
		before = left;
		usleep(10000);
	}
}

static void join(int s)
{
	static struct half out = { .from = 0 }, in = { .to = 1 };

	/* A write that waits for room would not read meanwhile, and the other side may wait for that. */
	if (fcntl(s, F_SETFL, O_NONBLOCK))
		die("fcntl");
	out.to = s;
	in.from = s;
	while (!out.ended || !in.ended) {
		struct half *halves[2] = { &out, &in };
		struct pollfd fds[2];

		for (int i = 0; i < 2; i++) {
			struct half *h = halves[i];

			fds[i].fd = h->ended ? -1 : h->have ? h->to : h->from;
			fds[i].events = h->have ? POLLOUT : POLLIN;
			fds[i].revents = 0;
		}
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			die("poll");
		for (int i = 0; i < 2; i++)
			if (fds[i].revents)
				move(halves[i], i == 0);
	}
	linger(s);
}

int main(int argc, char **argv)
{
	int s;

	if (argc == 4 && !strcmp(argv[1], "vsock")) {
		s = vsock(number(argv[2]), number(argv[3]), 0);
	} else if (argc == 3 && !strcmp(argv[1], "vsock-listen")) {
		s = vsock(VMADDR_CID_ANY, number(argv[2]), 1);
	} else if (argc == 4 && !strcmp(argv[1], "tcp")) {
		s = tcp(argv[2], number(argv[3]), 0);
	} else if (argc == 3 && !strcmp(argv[1], "tcp-listen")) {
		s = tcp(NULL, number(argv[2]), 1);
	} else if ((argc == 3 || argc == 4) && !strcmp(argv[1], "unix")) {
		s = unix_socket(argv[2], 0);
		if (argc == 4)
			ask_for_port(s, number(argv[3]));
	} else if (argc == 3 && !strcmp(argv[1], "unix-listen")) {
		s = unix_socket(argv[2], 1);
	} else {
		fputs(usage, stderr);
		return 2;
	}
	join(s);
	return 0;
}
