// SPDX-License-Identifier: GPL-2.0-only
/*
 * The one way in and out of every ioctl: the argument is copied in whole, a
 * handler from a table works on the copy, and the copy goes back whole. A new
 * file becomes visible last, so that no error leaves a descriptor behind.
 */
#include "porthole.h"

#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/uaccess.h>

long porthole_ioctl(const struct porthole_ioctl *table, size_t entries,
		    void *object, unsigned int cmd, unsigned long arg)
{
	u64 copy[DIV_ROUND_UP(PORTHOLE_ARG_MAX, sizeof(u64))];
	struct porthole_request request = { .object = object, .arg = copy };
	void __user *user = (void __user *)arg;
	unsigned int size = _IOC_SIZE(cmd);
	size_t i;
	long ret;

	for (i = 0; i < entries && table[i].cmd != cmd; i++)
		;
	if (i == entries)
		return -ENOTTY;
	memset(copy, 0, size);
	if ((_IOC_DIR(cmd) & _IOC_WRITE) && copy_from_user(copy, user, size))
		return -EFAULT;
	ret = table[i].handle(&request);
	if ((_IOC_DIR(cmd) & _IOC_READ) && copy_to_user(user, copy, size))
		ret = -EFAULT;
	if (!request.file)
		return ret;
	if (ret < 0) {
		put_unused_fd(request.fd);
		fput(request.file);
		return ret;
	}
	fd_install(request.fd, request.file);
	return request.fd;
}

/*
 * Makes the file that a request returns. From here on the file owns "object"
 * (its release runs even when the request fails later); on an error of this
 * function the caller still does.
 */
int porthole_new_file(struct porthole_request *request, const char *name,
		      const struct file_operations *fops, void *object)
{
	struct file *file;
	int fd = get_unused_fd_flags(O_CLOEXEC);

	if (fd < 0)
		return fd;
	file = anon_inode_getfile(name, fops, object, O_RDWR | O_CLOEXEC);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	request->file = file;
	request->fd = fd;
	return 0;
}
