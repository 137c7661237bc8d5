/*
 * Overwrites memory that held a secret in a way the compiler may not leave out.
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

#endif
