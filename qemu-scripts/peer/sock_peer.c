// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * The host's side of the socket tests: an echo at a Unix socket, a client of the VMM's vsock socket, and a client of
 * a UDP echo. Each compares what comes back with what went out and says how much that was. Ends with 1 if not.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define PIECE 65536
#define SECONDS 300

static void fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fprintf(stderr, "sock_peer: ");
	vfprintf(stderr, format, arguments);
	fprintf(stderr, "\n");
	exit(1);
}

static unsigned char pattern(size_t i)
{
	return i * 13 + i / 255;
}

static int unix_socket(const char *path, struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	if (fd < 0 || strlen(path) >= sizeof(address->sun_path))
		fail("no socket for %s", path);
	strcpy(address->sun_path, path);
	return fd;
}

static void wait_for(int fd, short events, short *got)
{
	struct pollfd p = { .fd = fd, .events = events };

	if (poll(&p, 1, SECONDS * 1000) != 1)
		fail("nothing happens for %d s", SECONDS);
	*got = p.revents;
}

/* Sends back what one connection brings, until its other side stops sending. */
static int echo(const char *path)
{
	static char data[PIECE];
	struct sockaddr_un address;
	int listener = unix_socket(path, &address), fd;
	ssize_t count, done;
	size_t all = 0;

	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 1))
		fail("cannot listen at %s: %s", path, strerror(errno));
	fd = accept(listener, NULL, NULL);
	while ((count = read(fd, data, sizeof(data))) > 0) {
		for (ssize_t at = 0; at < count; at += done) {
			done = write(fd, data + at, count - at);
			if (done < 0)
				fail("cannot send back: %s", strerror(errno));
		}
		all += count;
	}
	if (count < 0)
		fail("cannot read: %s", strerror(errno));
	printf("echo: %zu bytes\n", all);
	return 0;
}

/* Takes every connection, says something on each, and listens to none: until it is killed. */
static int talk(const char *path)
{
	static char data[PIECE];
	struct sockaddr_un address;
	int listener = unix_socket(path, &address), fd;

	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 4096))
		fail("cannot listen at %s: %s", path, strerror(errno));
	while ((fd = accept(listener, NULL, NULL)) >= 0)
		send(fd, data, sizeof(data), MSG_DONTWAIT | MSG_NOSIGNAL);
	fail("cannot accept: %s", strerror(errno));
	return 1;
}

/* Asks the VMM's socket for a port of the guest, and compares what an echo there sends back. */
static int send_to_guest(const char *path, const char *port, size_t bytes)
{
	static unsigned char data[PIECE];
	char line[32];
	struct sockaddr_un address;
	int fd = unix_socket(path, &address);
	size_t sent = 0, back = 0, length = 0;
	ssize_t count;
	short events;

	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		fail("cannot connect to %s: %s", path, strerror(errno));
	dprintf(fd, "CONNECT %s\n", port);
	do {
		wait_for(fd, POLLIN, &events);
		if (length == sizeof(line) - 1 || read(fd, line + length, 1) != 1)
			fail("no OK for port %s", port);
	} while (line[length++] != '\n');
	line[length] = 0;
	if (strncmp(line, "OK ", 3))
		fail("port %s: %s", port, line);
	while (back < bytes) {
		wait_for(fd, POLLIN | (sent < bytes ? POLLOUT : 0), &events);
		if (events & POLLOUT) {
			size_t wish = bytes - sent < PIECE ? bytes - sent : PIECE;

			for (size_t i = 0; i < wish; i++)
				data[i] = pattern(sent + i);
			count = send(fd, data, wish, MSG_DONTWAIT);
			if (count > 0)
				sent += count;
		}
		if (events & (POLLIN | POLLHUP)) {
			count = read(fd, data, sizeof(data));
			if (count <= 0)
				fail("the guest ends the connection after %zu bytes", back);
			for (ssize_t i = 0; i < count; i++)
				if (data[i] != pattern(back + i))
					fail("byte %zu came back changed", back + i);
			back += count;
		}
	}
	close(fd);
	printf("send: %zu bytes to the guest came back as they went\n", bytes);
	return 0;
}

/* Datagrams of all sizes to an echo; the last one says `quit`. A lost one is sent again. */
static int udp(const char *ip, int count)
{
	static unsigned char data[1472], back[2048];
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(7) };
	/* A guest that is late is not asked twice. */
	struct timeval patience = { .tv_sec = 20 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	size_t all = 0;

	if (fd < 0 || inet_pton(AF_INET, ip, &address.sin_addr) != 1 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) ||
	    connect(fd, (struct sockaddr *)&address, sizeof(address)))
		fail("no socket for %s", ip);
	for (int n = 0; n <= count; n++) {
		size_t length = n == count ? 4 : 4 + (n * 131) % (sizeof(data) - 3);
		int tries = 0;

		for (size_t i = 0; i < length; i++)
			data[i] = pattern(i + n);
		memcpy(data, n == count ? "quit" : (char *)&n, 4);
		for (;;) {
			ssize_t got;

			if (tries++ == 15)
				fail("no answer to datagram %d", n);
			send(fd, data, length, 0);
			do
				got = recv(fd, back, sizeof(back), 0);
			while (got >= 4 && memcmp(back, data, 4));
			if (got < 0)
				continue;
			if ((size_t)got != length || memcmp(back, data, length))
				fail("datagram %d came back changed", n);
			break;
		}
		all += length;
	}
	printf("udp: %d datagrams, %zu bytes, came back as they went\n", count, all);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "echo"))
		return echo(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "talk"))
		return talk(argv[2]);
	if (argc == 5 && !strcmp(argv[1], "send"))
		return send_to_guest(argv[2], argv[3], strtoul(argv[4], NULL, 10));
	if (argc == 4 && !strcmp(argv[1], "udp"))
		return udp(argv[2], atoi(argv[3]));
	fprintf(stderr, "usage: sock_peer echo PATH | talk PATH | send PATH PORT BYTES | udp ADDRESS COUNT\n");
	return 2;
}
