// The statistics that a network device says it has, one hexadecimal number a line. Usage: ethstats INTERFACE
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int ask(int fd, const char *name, void *data)
{
	struct ifreq request;

	memset(&request, 0, sizeof(request));
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	request.ifr_data = data;
	return ioctl(fd, SIOCETHTOOL, &request);
}

int main(int argc, char **argv)
{
	struct {
		struct ethtool_sset_info info;
		__u32 count;
	} sets = { .info = { .cmd = ETHTOOL_GSSET_INFO, .sset_mask = 1 << ETH_SS_STATS } };
	struct ethtool_stats *stats;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (argc < 2 || fd < 0) {
		fprintf(stderr, "usage: ethstats INTERFACE\n");
		return 2;
	}
	if (ask(fd, argv[1], &sets)) {
		perror("number of statistics");
		return 1;
	}
	stats = calloc(1, sizeof(*stats) + sets.count * sizeof(__u64));
	if (!stats)
		return 1;
	stats->cmd = ETHTOOL_GSTATS;
	stats->n_stats = sets.count;
	if (ask(fd, argv[1], stats)) {
		perror("statistics");
		return 1;
	}
	for (__u32 i = 0; i < stats->n_stats; i++)
		printf("%016llx\n", (unsigned long long)stats->data[i]);
	close(fd);
	return 0;
}
