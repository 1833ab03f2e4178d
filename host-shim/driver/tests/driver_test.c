// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the driver on the real hypervisor: run as root on the host under
 * Porthole. `driver_test` runs all, `driver_test NAME...` some. Each test is a
 * process of its own; after each no page may be left with a VM. A line for each
 * test and "N passed, N failed" at the end; exit status 0 if none failed.
 */
#include <fcntl.h>
#include <sys/wait.h>

#include "vm.h"

int device = -1;

/* What TEST collects, in the order of the files and lines. */
extern const struct test __start_tests[], __stop_tests[];

void fail(const char *file, int line, const char *what)
{
	printf("  %s:%d: %s (errno %d, %s)\n", file, line, what, errno,
	       strerror(errno));
	fflush(stdout);
	_exit(1);
}

/* One test in a process of its own, which hangs if it takes ten minutes. */
static bool passes(void (*run)(void))
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		alarm(600);
		run();
		fflush(stdout);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid)
		return false;
	if (WIFSIGNALED(status))
		printf("  killed by signal %d\n", WTERMSIG(status));
	if (pages_out())
		printf("  left %llu pages behind\n", (unsigned long long)pages_out());
	return status == 0 && !pages_out();
}

static bool wanted(const char *name, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(name, argv[i]))
			return true;
	return argc < 2;
}

int main(int argc, char **argv)
{
	unsigned int passed = 0, failed = 0;

	device = open("/dev/porthole", O_RDWR | O_CLOEXEC);
	if (device < 0) {
		fprintf(stderr, "driver_test: /dev/porthole: %s\n", strerror(errno));
		return 2;
	}
	for (const struct test *test = __start_tests; test < __stop_tests; test++) {
		bool ok;

		if (!wanted(test->name, argc, argv))
			continue;
		ok = passes(test->run);
		printf("driver %s: %s\n", test->name, ok ? "ok" : "FAILED");
		passed += ok;
		failed += !ok;
	}
	printf("%u passed, %u failed\n", passed, failed);
	return failed || !passed;
}
