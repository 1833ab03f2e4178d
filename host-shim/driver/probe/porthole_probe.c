// SPDX-License-Identifier: GPL-2.0-only
/*
 * A tool of the demo and the tests, never of a production host: lets root try
 * to reach any physical page as an attacker in the host's kernel would, and
 * says what came of it. It knows nothing of Porthole.
 *
 *   read, write of /dev/porthole_probe at offset PA
 *	by the kernel, through its own mapping: EFAULT if the access faults
 *   mmap at offset PA
 *	by the process: SIGBUS if its access aborts
 *
 * So `dd if=/dev/porthole_probe bs=4096 count=1 skip=$((PA / 4096))` reads a page.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

/* First address behind those that a host under Porthole can name. */
#define PA_END	(1ULL << 40)

/*
 * The kernel's address of a page, in *mapping what has to be unmapped. RAM that
 * the kernel knows is in its linear map; the rest gets a cacheable mapping.
 */
static void *map_page(phys_addr_t pa, void **mapping)
{
	*mapping = NULL;
	if (pfn_valid(PHYS_PFN(pa)) && page_is_ram(PHYS_PFN(pa)))
		return phys_to_virt(pa);
	*mapping = memremap(pa, PAGE_SIZE, MEMREMAP_WB);
	return *mapping;
}

/* What copy_to_kernel_nofault does, which modules do not get. */
static int store(u8 *to, const u8 *from, size_t length)
{
	pagefault_disable();
	for (; length; length--, to++, from++)
		__put_kernel_nofault(to, from, u8, fault);
	pagefault_enable();
	return 0;
fault:
	pagefault_enable();
	return -EFAULT;
}

/* Reads or writes inside one page through a buffer; the bytes done or an errno. */
static ssize_t touch(phys_addr_t pa, u8 *buffer, size_t length, bool write)
{
	size_t offset = offset_in_page(pa);
	void *mapping, *page;
	long ret;

	page = map_page(pa - offset, &mapping);
	if (!page)
		return -ENXIO;
	if (write)
		ret = store(page + offset, buffer, length);
	else
		ret = copy_from_kernel_nofault(buffer, page + offset, length);
	if (mapping)
		memunmap(mapping);
	return ret ? ret : length;
}

/* Bytes from pos to the end of its page, at most count; 0 behind the end. */
static size_t step(loff_t pos, size_t count)
{
	if (pos < 0 || pos >= PA_END)
		return 0;
	return min_t(size_t, count, PAGE_SIZE - offset_in_page(pos));
}

static ssize_t probe_read(struct file *file, char __user *user, size_t count,
			  loff_t *pos)
{
	size_t length = step(*pos, count);
	u8 *buffer;
	ssize_t ret;

	if (!length)
		return 0;
	buffer = kmalloc(length, GFP_KERNEL);
	if (!buffer)
		return -ENOMEM;
	ret = touch(*pos, buffer, length, false);
	if (ret > 0 && copy_to_user(user, buffer, ret))
		ret = -EFAULT;
	if (ret > 0)
		*pos += ret;
	kfree(buffer);
	return ret;
}

static ssize_t probe_write(struct file *file, const char __user *user,
			   size_t count, loff_t *pos)
{
	size_t length = step(*pos, count);
	u8 *buffer;
	ssize_t ret;

	if (!length)
		return count ? -ENOSPC : 0;
	buffer = memdup_user(user, length);
	if (IS_ERR(buffer))
		return PTR_ERR(buffer);
	ret = touch(*pos, buffer, length, true);
	if (ret > 0)
		*pos += ret;
	kfree(buffer);
	return ret;
}

static loff_t probe_llseek(struct file *file, loff_t offset, int whence)
{
	return fixed_size_llseek(file, offset, whence, PA_END);
}

static int probe_mmap(struct file *file, struct vm_area_struct *vma)
{
	u64 end = ((u64)vma->vm_pgoff << PAGE_SHIFT) + (vma->vm_end - vma->vm_start);

	if (vma->vm_pgoff >= PHYS_PFN(PA_END) || end > PA_END ||
	    !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	return remap_pfn_range(vma, vma->vm_start, vma->vm_pgoff,
			       vma->vm_end - vma->vm_start, vma->vm_page_prot);
}

static int probe_open(struct inode *inode, struct file *file)
{
	return capable(CAP_SYS_RAWIO) ? 0 : -EPERM;
}

static const struct file_operations probe_fops = {
	.owner = THIS_MODULE,
	.open = probe_open,
	.read = probe_read,
	.write = probe_write,
	.llseek = probe_llseek,
	.mmap = probe_mmap,
};

static struct miscdevice probe_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "porthole_probe",
	.fops = &probe_fops,
	.mode = 0600,
};

static int __init probe_init(void)
{
	int ret = misc_register(&probe_device);

	if (!ret) {
		add_taint(TAINT_USER, LOCKDEP_STILL_OK);
		pr_warn("root can now try any physical address; for demonstrations only\n");
	}
	return ret;
}

static void __exit probe_exit(void)
{
	misc_deregister(&probe_device);
}

module_init(probe_init);
module_exit(probe_exit);

MODULE_DESCRIPTION("Attempts on physical memory, for Porthole's demo and tests");
MODULE_AUTHOR("The Porthole authors");
MODULE_LICENSE("GPL");
