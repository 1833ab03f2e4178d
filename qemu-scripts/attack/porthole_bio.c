// SPDX-License-Identifier: GPL-2.0
/*
 * What a hostile host kernel can do with an honest disk: have it write its content onto pages that are not the
 * kernel's any more.
 *
 *   echo "DEVICE ADDRESS PAGES" >/proc/porthole-bio    the disk's first pages onto these physical pages
 *
 * The write fails with the block layer's error, or ETIMEDOUT if the disk never answers. It is no part of Porthole.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/uaccess.h>

#define PAGES_PER_BIO 64
#define PATIENCE (3 * HZ)

/* Lives on if the disk never answers. */
struct transfer {
	struct completion done;
	blk_status_t status;
};

static void transfer_end(struct bio *bio)
{
	struct transfer *transfer = bio->bi_private;

	transfer->status = bio->bi_status;
	complete(&transfer->done);
}

static int read_onto(struct block_device *bdev, sector_t sector, unsigned long pfn, unsigned int pages)
{
	struct transfer *transfer = kzalloc(sizeof(*transfer), GFP_KERNEL);
	struct bio *bio;
	unsigned int i;
	int ret;

	if (!transfer)
		return -ENOMEM;
	init_completion(&transfer->done);
	bio = bio_alloc(bdev, pages, REQ_OP_READ, GFP_KERNEL);
	bio->bi_iter.bi_sector = sector;
	bio->bi_private = transfer;
	bio->bi_end_io = transfer_end;
	for (i = 0; i < pages; i++)
		__bio_add_page(bio, pfn_to_page(pfn + i), PAGE_SIZE, 0);
	submit_bio(bio);
	if (!wait_for_completion_timeout(&transfer->done, PATIENCE))
		return -ETIMEDOUT;
	ret = blk_status_to_errno(transfer->status);
	bio_put(bio);
	kfree(transfer);
	return ret;
}

static ssize_t bio_write(struct file *file, const char __user *buf, size_t len, loff_t *pos)
{
	unsigned long address, pages, done, part;
	char line[128], device[64];
	struct file *disk;
	int ret = 0, failed = 0;

	if (len >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, buf, len))
		return -EFAULT;
	line[len] = 0;
	if (sscanf(line, "%63s %lx %lu", device, &address, &pages) != 3 || !PAGE_ALIGNED(address))
		return -EINVAL;
	for (done = 0; done < pages; done++)
		if (!pfn_valid(PHYS_PFN(address) + done))
			return -ENXIO;
	disk = bdev_file_open_by_path(device, BLK_OPEN_READ, NULL, NULL);
	if (IS_ERR(disk))
		return PTR_ERR(disk);
	/* All of it is tried, whatever becomes of a part. */
	for (done = 0; done < pages && ret != -ETIMEDOUT; done += part) {
		part = min_t(unsigned long, pages - done, PAGES_PER_BIO);
		ret = read_onto(file_bdev(disk), done << (PAGE_SHIFT - SECTOR_SHIFT), PHYS_PFN(address) + done, part);
		if (ret)
			failed = ret;
	}
	/* A disk that still has the pages must not lose its file. */
	if (ret != -ETIMEDOUT)
		bdev_fput(disk);
	return failed ? failed : len;
}

static const struct proc_ops bio_ops = {
	.proc_write = bio_write,
};

static int __init porthole_bio_init(void)
{
	return proc_create("porthole-bio", 0200, NULL, &bio_ops) ? 0 : -ENOMEM;
}

static void __exit porthole_bio_exit(void)
{
	remove_proc_entry("porthole-bio", NULL);
}

module_init(porthole_bio_init);
module_exit(porthole_bio_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Has a disk write its content onto any physical page");
