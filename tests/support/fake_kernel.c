/*
 * A kernel TLS that lies, for LD_PRELOAD: setsockopt and getsockopt for TCP_ULP and SOL_TLS never
 * reach the kernel.  FAKE_KERNEL names the lie:
 *
 *   gvisor       success for everything, and every question is answered with ENOPROTOOPT
 *   nothing      TCP_ULP succeeds and reads back as attached to nothing
 *   ulp          TCP_ULP reads back "tls"; keys are accepted and then unknown
 *   cipher       as ulp, and keys read back as another cipher
 *   version      as ulp, and keys read back as another version
 *   short        as ulp, and keys read back as two bytes
 *   tx_fails     receiving keys are taken for good, sending keys fail with EINVAL
 *   tx_lies      receiving keys are taken for good, sending keys are accepted and then unknown; as
 *                Linux before 5.11 does with the receiving ones
 *   honest       takes all keys, reads back what it took, and sends plain text all the same
 *
 * The library first tries a cipher with a key of zeros on sockets of its own: that always succeeds,
 * and what is read back is the same lie.  Besides keys, gvisor takes every option of SOL_TLS, the
 * others know none.
 * FAKE_KERNEL_LOG names a file that gets one line for each call: the option, and what was given.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TCP_ULP 31
#define SOL_TLS 282
#define TLS_TX 1
#define TLS_RX 2
#define MOST_FDS 1024

static unsigned char heads[MOST_FDS][3][4]; /* version and cipher, by descriptor and direction */
static unsigned char attached[MOST_FDS];

static int lie(const char *name) {
    const char *wanted = getenv("FAKE_KERNEL");
    return wanted != NULL && strcmp(wanted, name) == 0;
}

static int fail(int error) {
    errno = error;
    return -1;
}

static void note(const char *what, const unsigned char *value, socklen_t size) {
    const char *path = getenv("FAKE_KERNEL_LOG");
    FILE *log = path == NULL ? NULL : fopen(path, "a");
    if (log == NULL) {
        return;
    }
    fprintf(log, "%s ", what);
    for (socklen_t i = 0; i < size; i++) {
        fprintf(log, "%02x", value[i]);
    }
    fprintf(log, "\n");
    fclose(log);
}

static int is_trial(const unsigned char *value, socklen_t size) {
    for (socklen_t i = 4; i < size; i++) {
        if (value[i] != 0) {
            return 0;
        }
    }
    return 1;
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t size) {
    static int (*next)(int, int, int, const void *, socklen_t);
    if (level == IPPROTO_TCP && option == TCP_ULP) {
        if (fd >= 0 && fd < MOST_FDS) {
            if (attached[fd]) {
                return fail(EEXIST);
            }
            memset(heads[fd], 0, sizeof(heads[fd]));
            attached[fd] = lie("honest");
        }
        return 0;
    }
    if (level == SOL_TLS) {
        if (option != TLS_TX && option != TLS_RX) {
            return lie("gvisor") ? 0 : fail(ENOPROTOOPT);
        }
        if (is_trial(value, size)) {
            memcpy(heads[fd][option], value, 4);
            return 0;
        }
        note(option == TLS_TX ? "tx" : "rx", value, size);
        if (option == TLS_TX && lie("tx_fails")) {
            return fail(EINVAL);
        }
        memcpy(heads[fd][option], value, 4);
        return 0;
    }
    if (next == NULL) {
        next = (int (*)(int, int, int, const void *, socklen_t))dlsym(RTLD_NEXT, "setsockopt");
    }
    return next(fd, level, option, value, size);
}

int getsockopt(int fd, int level, int option, void *value, socklen_t *size) {
    static int (*next)(int, int, int, void *, socklen_t *);
    if (level == IPPROTO_TCP && option == TCP_ULP) {
        if (lie("gvisor")) {
            return fail(ENOPROTOOPT);
        }
        if (lie("nothing")) {
            *size = 0;
            return 0;
        }
        memcpy(value, "tls", 4);
        *size = 4;
        return 0;
    }
    if (level == SOL_TLS && option != TLS_TX && option != TLS_RX) {
        return fail(ENOPROTOOPT);
    }
    if (level == SOL_TLS) {
        unsigned char *head = heads[fd][option];
        int known = head[0] != 0 || head[1] != 0;
        if (!known) {
            return fail(lie("gvisor") ? ENOPROTOOPT : EBUSY);
        }
        if (lie("gvisor") || lie("ulp") || (lie("tx_lies") && option == TLS_TX)) {
            return fail(ENOPROTOOPT);
        }
        memcpy(value, head, 4);
        *size = 4;
        if (lie("cipher")) {
            ((unsigned char *)value)[2] = ((unsigned char *)value)[3] = 99;
        } else if (lie("version")) {
            memset(value, 2, 2);
        } else if (lie("short")) {
            *size = 2;
        }
        return 0;
    }
    if (next == NULL) {
        next = (int (*)(int, int, int, void *, socklen_t *))dlsym(RTLD_NEXT, "getsockopt");
    }
    return next(fd, level, option, value, size);
}

int close(int fd) {
    static int (*next)(int);
    if (next == NULL) {
        next = (int (*)(int))dlsym(RTLD_NEXT, "close");
    }
    if (fd >= 0 && fd < MOST_FDS) {
        attached[fd] = 0; /* the number may come again */
        memset(heads[fd], 0, sizeof(heads[fd]));
    }
    return next(fd);
}
