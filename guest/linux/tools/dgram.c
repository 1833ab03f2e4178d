// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * dgram: UDP for guests and hosts that have busybox only: an echo, one who asks it, and a name server of made-up names.
 * A datagram without an answer is sent again, so that none that is lost matters. Status 0 only if all were answered.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char usage[] =
	"usage: dgram echo PORT                     send datagrams back, until it is killed\n"
	"       dgram ask ADDRESS PORT COUNT LONGEST COUNT datagrams of up to LONGEST bytes to an echo, one after another\n"
	"       dgram names PORT                    every name has the address 203.0.113.(letters of its first part)\n";

enum {
	DATAGRAM_MAX = 65507,	/* bytes: an IPv4 packet less its headers */
	TRIES = 600,		/* of a second each */
	SUM = -1,		/* the number of a datagram that asks what the echo has seen */
};

/* Before the data of each datagram, and all there is of the answer to SUM. Little-endian. */
struct head {
	uint32_t number;
	uint32_t bytes;
	uint64_t sum;
};

static void die(const char *what)
{
	fprintf(stderr, "dgram: %s: %s\n", what, strerror(errno));
	exit(1);
}

static unsigned int number(const char *text, unsigned long most)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || *end || end == text || value > most) {
		fprintf(stderr, "dgram: '%s' is not a number up to %lu\n", text, most);
		exit(2);
	}
	return (unsigned int)value;
}

static int udp(const char *host, const char *port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = htons((uint16_t)number(port, 65535)),
	};
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (s < 0)
		die("socket");
	if (!host) {
		if (bind(s, (struct sockaddr *)&address, sizeof(address)))
			die("bind");
		return s;
	}
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
		fprintf(stderr, "dgram: no such address\n");
		exit(2);
	}
	if (connect(s, (struct sockaddr *)&address, sizeof(address)))
		die("connect");
	return s;
}

/* FNV-1a, 64 bits: enough to see a bit that changed. */
static uint64_t sum_of(uint64_t sum, const unsigned char *data, size_t length)
{
	while (length--)
		sum = (sum ^ *data++) * 0x100000001b3ULL;
	return sum;
}

/* Serves until it is killed: `answer` makes the answer in place of what came, and says how long it is; 0 for none. */
static _Noreturn void serve(const char *port, size_t (*answer)(unsigned char *data, size_t length))
{
	static unsigned char data[DATAGRAM_MAX + 1];
	int s = udp(NULL, port);

	for (;;) {
		struct sockaddr_in peer;
		socklen_t size = sizeof(peer);
		ssize_t n = recvfrom(s, data, sizeof(data), 0, (struct sockaddr *)&peer, &size);
		size_t length = n < 0 ? 0 : answer(data, (size_t)n);

		/* One that cannot be sent is lost, as on a wire. */
		if (length)
			sendto(s, data, length, 0, (struct sockaddr *)&peer, size);
	}
}

/* What the echo has seen: each number once, in order; one that was sent again is not seen again. */
static struct head seen = { .sum = 0xcbf29ce484222325ULL };

static void see(const unsigned char *data, size_t length)
{
	seen.number++;
	seen.bytes += (uint32_t)length;
	seen.sum = sum_of(seen.sum, data, length);
}

static size_t echo(unsigned char *data, size_t length)
{
	struct head head;

	if (length < sizeof(head))
		return 0;
	memcpy(&head, data, sizeof(head));
	if (le32toh(head.number) == (uint32_t)SUM) {
		head = (struct head){ htole32(SUM), htole32(seen.bytes), htole64(seen.sum) };
		memcpy(data, &head, sizeof(head));
		return sizeof(head);
	}
	if (le32toh(head.number) == seen.number)
		see(data, length);
	return length;
}

/* Sends until an answer with the same number has come: its length. */
static size_t exchange(int s, const unsigned char *data, size_t length, unsigned char *back)
{
	for (int i = 0; i < TRIES; i++) {
		struct pollfd fd = { .fd = s, .events = POLLIN };
		ssize_t n;

		/* Refused, or no room: as good as lost. */
		if (send(s, data, length, 0) < 0)
			usleep(200000);
		while (poll(&fd, 1, 1000) == 1) {
			n = recv(s, back, DATAGRAM_MAX + 1, MSG_DONTWAIT);
			if (n < 0) {
				/* Nobody listens there yet. */
				usleep(200000);
				break;
			}
			/* Late answers to earlier ones are not ours. */
			if (n >= (ssize_t)sizeof(struct head) && !memcmp(data, back, sizeof(uint32_t)))
				return (size_t)n;
		}
	}
	fprintf(stderr, "dgram: no answer to a datagram of %zu bytes\n", length);
	exit(1);
}

static int ask(const char *host, const char *port, unsigned int count, size_t longest)
{
	static unsigned char data[DATAGRAM_MAX], back[DATAGRAM_MAX + 1];
	struct head head = { 0 };
	int s = udp(host, port);

	for (unsigned int n = 0; n < count; n++) {
		/* The first is the longest there is, the second the shortest. */
		size_t span = longest - sizeof(head) + 1;
		size_t length = sizeof(head) + (span - 1 + (size_t)n * 7919) % span;

		if (n == 1)
			length = sizeof(head);
		for (size_t i = 0; i < length; i++)
			data[i] = (unsigned char)(i * 13 + i / 255 + n);
		head.number = htole32(n);
		memcpy(data, &head, sizeof(head));
		see(data, length);
		if (exchange(s, data, length, back) != length || memcmp(data, back, length)) {
			fprintf(stderr, "dgram: datagram %u of %zu bytes came back changed\n", n, length);
			return 1;
		}
	}
	head.number = htole32(SUM);
	if (exchange(s, (unsigned char *)&head, sizeof(head), back) != sizeof(head))
		return 1;
	memcpy(&head, back, sizeof(head));
	if (le32toh(head.bytes) != seen.bytes || le64toh(head.sum) != seen.sum) {
		fprintf(stderr, "dgram: the echo has seen something else\n");
		return 1;
	}
	printf("%u datagrams, %u bytes, sum %016llx\n", count, seen.bytes, (unsigned long long)seen.sum);
	return 0;
}

/* RFC 1035, 4.1: one question, answered if it is for an IPv4 address. */
static size_t name(unsigned char *data, size_t length)
{
	enum { HEADER = 12, TYPE_A = 1, ANSWER = 16, LONGEST = 512 };
	size_t at = HEADER;
	unsigned char letters;
	int is_a;

	if (length < HEADER + 5 || length > LONGEST || data[2] & 0x80 || data[4] || data[5] != 1)
		return 0;
	letters = data[at];
	while (at < length && data[at])
		at += 1u + data[at];
	at += 1 + 4;
	if (letters > 63 || at > length)
		return 0;
	is_a = !data[at - 4] && data[at - 3] == TYPE_A;
	/* It is an answer, and the questioner may have wanted recursion, which is there. Nothing else follows. */
	data[2] = 0x80 | (data[2] & 0x01);
	data[3] = 0x80;
	memset(data + 6, 0, HEADER - 6);
	if (!is_a)
		return at;
	data[7] = 1;
	/* The name in the question, A, IN, a minute, four bytes. */
	memcpy(data + at, "\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xcb\0\x71", ANSWER - 1);
	data[at + ANSWER - 1] = letters;
	return at + ANSWER;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "echo"))
		serve(argv[2], echo);
	if (argc == 3 && !strcmp(argv[1], "names"))
		serve(argv[2], name);
	if (argc == 6 && !strcmp(argv[1], "ask")) {
		size_t longest = number(argv[5], DATAGRAM_MAX);

		if (longest >= sizeof(struct head))
			return ask(argv[2], argv[3], number(argv[4], INT32_MAX), longest);
	}
	fputs(usage, stderr);
	return 2;
}
