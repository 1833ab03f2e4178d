# shellcheck shell=bash
# The host's I/O benchmark: instructions that the whole machine spends on disks and network, under Porthole with its
# SMMU against the same kernel bare at EL1, the SMMU in the machine and iommu.passthrough=1; and what a donation costs.
# One CPU, and a clock that is the count of instructions: a loop that is never idle takes as many as its time says.

IO_BENCH_MACHINE=gic-version=3,iommu=smmuv3,dtb-randomness=off
# name|unit|operations|device|command on the host. A spinning process keeps the CPU from idling, whose time the clock
# would count without any instruction; it gets what the load leaves and takes no time from it (SCHED_IDLE).
IO_BENCHES=(
    'virtio-blk, 4 KiB random read|operation|2048|vda|rand_read /dev/vda'
    'virtio-blk, 1 MiB sequential read|MiB|64|vda|seq_read /dev/vda'
    'NVMe, 4 KiB random read|operation|2048|nvme0n1|rand_read /dev/nvme0n1'
    'NVMe, 1 MiB sequential read|MiB|64|nvme0n1|seq_read /dev/nvme0n1'
    'virtio-net to e1000, TCP|MiB|16|net|stream'
)
