// Memory that nobody else should touch: fills so many MiB of its own with a pattern, and checks it for each line on
// standard input, answering `intact` or where it is not. Or leaves so many MiB full of the letter Z behind, for whoever
// gets the pages next. Usage: canary MIB | canary litter MIB
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t pattern(uint64_t place)
{
	uint64_t x = place * 0x9e3779b97f4a7c15ULL + 1;

	x ^= x >> 29;
	return x * 0xbf58476d1ce4e5b9ULL;
}

int main(int argc, char **argv)
{
	int litter = argc > 2 && !strcmp(argv[1], "litter");
	uint64_t words = argc > 1 ? strtoull(argv[1 + litter], NULL, 10) << 17 : 0;
	uint64_t *memory = words ? malloc(words * sizeof(*memory)) : NULL;
	char line[64];

	if (!memory) {
		fprintf(stderr, "usage: canary MIB | canary litter MIB\n");
		return 2;
	}
	if (litter) {
		memset(memory, 'Z', words * sizeof(*memory));
		/* So that the compiler does not leave it out. */
		return ((volatile char *)memory)[0] != 'Z';
	}
	for (uint64_t i = 0; i < words; i++)
		memory[i] = pattern(i);
	while (fgets(line, sizeof(line), stdin)) {
		uint64_t i = 0;

		while (i < words && memory[i] == pattern(i))
			i++;
		if (i < words)
			printf("damaged at byte %llu\n", (unsigned long long)i * 8);
		else
			printf("intact\n");
		fflush(stdout);
	}
	return 0;
}
