/*
 * What the tests of the files have in common that call the OpenSSL of a connection, found by way of
 * the tap (openssl_apart.c, openssl_half.c): a connection with a socket's BIOs, how such a file is
 * opened, and sizes.
 */
#ifndef CONNECTION_H
#define CONNECTION_H

#include <limits.h>
#include <stdint.h>

#include "check.h"
#include "fake_libssl.h"
#include "openssl_tap.h"
#include "watched.h"

#define SENT 1
#define RECEIVED 2

/* More than an int holds; the last ones would be a small int if they were cut to one. */
static const size_t too_much[] = {
    (size_t)INT_MAX + 1,
    UINT_MAX,
    SIZE_MAX,
#if SIZE_MAX > UINT_MAX
    (size_t)UINT_MAX + 1,
    (size_t)UINT_MAX + 6,
#endif
};
#define TOO_MUCH (sizeof(too_much) / sizeof(too_much[0]))

static struct fake_ctx ctx;
static struct fake_ssl ssl;
static struct fake_bio reads, writes; /* the socket's */

static inline void connect_it(void) {
    memset(&ctx, 0, sizeof(ctx));
    memset(&reads, 0, sizeof(reads));
    memset(&writes, 0, sizeof(writes));
    fake_ssl_init(&ssl, &ctx);
    ssl.read_bio = &reads;
    ssl.write_bio = &writes;
    reset_openssl();
}

/* After it nothing that OpenSSL was asked for is left, nor did anybody go wrong. */
static inline void disconnect(void) {
    CHECK_INT(on_openssl.errors, 0);
    fake_ssl_free(&ssl);
    fake_ctx_free(&ctx);
    CHECK_INT(on_openssl.bios, 0);
    CHECK_INT(on_openssl.ciphers, 0);
    CHECK_INT(fake_misuse, 0);
}

/* What asks the tap for functions, before the tap has any. */
static inline void opens_after_the_tap(int (*open)(void), int not_open, const char *module_path,
                                       void (*nothing_works_yet)(void)) {
    CHECK_INT(open(), not_open);
    CHECK_INT(lookups, 0);
    nothing_works_yet();
    CHECK_INT(pyktls_tap_open(module_path), PYKTLS_TAP_OK);
    nothing_works_yet();
}

/* Then with each of them missing, and at last with all.  Returns their number. */
static inline int opens_with_all_names(int (*open)(void), int not_open,
                                       void (*nothing_works_yet)(void)) {
    int names = 0;
    for (;; names++) {
        lookups = 0;
        fail_lookup = names;
        failed_name = NULL;
        int result = open();
        if (failed_name == NULL) {
            CHECK_INT(result, 0);
            CHECK_INT(lookups, names);
            break;
        }
        check_context = failed_name;
        CHECK_INT(result, not_open);
        CHECK_INT(lookups, names + 1);
        nothing_works_yet();
    }
    fail_lookup = -1;
    lookups = 0;
    CHECK_INT(open(), 0); /* again is harmless */
    CHECK_INT(lookups, 0);
    return names;
}

#endif
