/*
 * Put in front of csrc/kernel_freebsd.c: the fake FreeBSD of tests/freebsd/fake, except that
 * messages are seen as they are, by scripts.c, and sendfile's arguments before the fake takes them.
 */
#ifndef FREEBSD_CALLS_H
#define FREEBSD_CALLS_H

#include "../freebsd/fake/calls.h"

ssize_t test_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t test_sendmsg(int fd, const struct msghdr *message, int flags);
int test_sendfile(int file, int fd, off_t offset, size_t count, struct sf_hdtr *around,
                  off_t *sbytes, int flags);

#undef recvmsg
#undef sendmsg
#undef sendfile
#define recvmsg(...) test_recvmsg(__VA_ARGS__)
#define sendmsg(...) test_sendmsg(__VA_ARGS__)
#define sendfile(...) test_sendfile(__VA_ARGS__)

#endif
