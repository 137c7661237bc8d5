/*
 * Put in front of every file of csrc/ that is tested here: what it calls of the C library ends in
 * functions of the tests, named as here with test_ before it.
 *
 * For a new system call: declare it here, define its macro, and give it a script in scripts.c.
 */
#ifndef REPLACED_H
#define REPLACED_H

#include <dlfcn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/types.h>

/* scripts.c: system calls that do as they are told (scripts.h) */
int test_setsockopt(int fd, int level, int option, const void *value, socklen_t size);
int test_getsockopt(int fd, int level, int option, void *value, socklen_t *size);
ssize_t test_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t test_sendmsg(int fd, const struct msghdr *message, int flags);

/* watched.c: the real ones, watched, and refusing where told (watched.h) */
void *test_dlopen(const char *path, int mode);
void *test_dlsym(void *handle, const char *name);
int test_dlclose(void *handle);
void *test_malloc(size_t size);
void *test_calloc(size_t count, size_t size);
void test_free(void *memory);

#ifndef TEST_REPLACES
#define setsockopt(...) test_setsockopt(__VA_ARGS__)
#define getsockopt(...) test_getsockopt(__VA_ARGS__)
#define recvmsg(...) test_recvmsg(__VA_ARGS__)
#define sendmsg(...) test_sendmsg(__VA_ARGS__)
#define dlopen(...) test_dlopen(__VA_ARGS__)
#define dlsym(...) test_dlsym(__VA_ARGS__)
#define dlclose(...) test_dlclose(__VA_ARGS__)
#define malloc(...) test_malloc(__VA_ARGS__)
#define calloc(...) test_calloc(__VA_ARGS__)
#define free(...) test_free(__VA_ARGS__)
#endif

#endif
