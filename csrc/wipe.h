/*
 * Overwrites memory that held a secret in a way the compiler may not leave out, and copies a secret
 * from memory to memory without leaving a piece of it anywhere else.
 *
 * Our own few lines because explicit_bzero(3) is younger than the oldest C library that the wheels
 * are built for (glibc 2.17 against 2.25).
 */
#ifndef PYKTLS_WIPE_H
#define PYKTLS_WIPE_H

#include <stddef.h>

static inline void pyktls_wipe(void *memory, size_t size) {
    volatile unsigned char *p = memory;
    while (size-- > 0) {
        *p++ = 0;
    }
}

/*
 * memcpy(3) takes the bytes through vector registers, and what is in those gets onto the stack: the
 * kernel writes them there for a signal handler, the dynamic linker when a function is called for
 * the first time.  One byte at a time is no piece of a secret.
 */
static inline void pyktls_copy_secret(void *to, const void *from, size_t size) {
    volatile unsigned char *out = to;
    const volatile unsigned char *in = from;
    while (size-- > 0) {
        *out++ = *in++;
    }
}

#endif
