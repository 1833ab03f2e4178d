// SPDX-License-Identifier: GPL-2.0
/*
 * What a hostile root would load: any physical page, read by the kernel or mapped into a process.
 *
 *   /dev/porthole-peek   read at an offset reads that physical address; mmap maps it
 *   /proc/porthole-map   ranges of pages by owner, as the hypervisor tells the host (PAGE_INFO)
 *
 * The demo and the system tests use it to show what the host can reach. It is no part of Porthole.
 */
#include <linux/arm-smccc.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/sizes.h>
#include <linux/uaccess.h>

/* hyp/abi/src/function.rs: HostFunction::Features and HostFunction::PageInfo. */
#define PORTHOLE_FEATURES  0xC6000100UL
#define PORTHOLE_PAGE_INFO 0xC6000153UL

static unsigned long ram_base = SZ_1G;
module_param(ram_base, ulong, 0444);
MODULE_PARM_DESC(ram_base, "physical address where RAM begins");

/* hyp/abi/src/info.rs: PageOwner. */
static const char *const owners[] = {
	"none", "host", "hyp", "vm-memory", "vm-metadata", "window", "pinned", "hw-table",
};

static int peek_word(phys_addr_t pa, u64 *word)
{
	void *map;
	int ret;

	/* Through the kernel's own linear map where the page is in it, else through a mapping made for it. */
	if (pfn_is_map_memory(PHYS_PFN(pa)))
		return copy_from_kernel_nofault(word, __va(pa), sizeof(*word));
	map = memremap(pa & PAGE_MASK, PAGE_SIZE, MEMREMAP_WB);
	if (!map)
		return -ENOMEM;
	ret = copy_from_kernel_nofault(word, map + offset_in_page(pa), sizeof(*word));
	memunmap(map);
	return ret;
}

static ssize_t peek_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	size_t done = 0;
	u64 word;
	int ret;

	if (*pos & 7 || len & 7)
		return -EINVAL;
	while (done < len) {
		ret = peek_word(*pos + done, &word);
		if (ret)
			return done ? done : ret;
		if (copy_to_user(buf + done, &word, sizeof(word)))
			return -EFAULT;
		done += sizeof(word);
		cond_resched();
	}
	*pos += done;
	return done;
}

static int peek_mmap(struct file *file, struct vm_area_struct *vma)
{
	return remap_pfn_range(vma, vma->vm_start, vma->vm_pgoff, vma->vm_end - vma->vm_start,
			       vma->vm_page_prot);
}

static const struct file_operations peek_fops = {
	.owner = THIS_MODULE,
	.llseek = no_seek_end_llseek,
	.read = peek_read,
	.mmap = peek_mmap,
};

static struct miscdevice peek_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "porthole-peek",
	.fops = &peek_fops,
	.mode = 0600,
};

static int map_show(struct seq_file *seq, void *unused)
{
	struct arm_smccc_1_2_regs call = { .a0 = PORTHOLE_FEATURES }, result;
	unsigned long pa, end, run, start = ram_base;
	u64 owner, last = ~0ULL;

	arm_smccc_1_2_hvc(&call, &result);
	if (result.a0)
		return -ENODEV;
	end = ram_base + result.a6;
	for (pa = ram_base; pa <= end; pa += run) {
		owner = ~0ULL;
		run = PAGE_SIZE;
		if (pa < end) {
			call = (struct arm_smccc_1_2_regs){ .a0 = PORTHOLE_PAGE_INFO, .a1 = pa };
			arm_smccc_1_2_hvc(&call, &result);
			owner = result.a0 ? 0 : result.a1;
			/* The hypervisor counts the pages of a run each time, so take them all. */
			if (!result.a0 && result.a3)
				run = min(result.a3 << PAGE_SHIFT, end - pa);
		}
		if (owner != last && last < ARRAY_SIZE(owners))
			seq_printf(seq, "%s %#lx %lu\n", owners[last], start, (pa - start) >> PAGE_SHIFT);
		if (owner != last)
			start = pa;
		last = owner;
		cond_resched();
	}
	return 0;
}

static int __init peek_init(void)
{
	int ret = misc_register(&peek_device);

	if (ret)
		return ret;
	if (!proc_create_single("porthole-map", 0400, NULL, map_show)) {
		misc_deregister(&peek_device);
		return -ENOMEM;
	}
	return 0;
}

static void __exit peek_exit(void)
{
	remove_proc_entry("porthole-map", NULL);
	misc_deregister(&peek_device);
}

module_init(peek_init);
module_exit(peek_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Reads any physical page, to show which ones the host can reach");
