/*
 * FreeBSD's struct tls_enable holds no key, only where it is, and the number of the next record.
 * Nothing of it is left after pyktls_freebsd_set_keys, on any way out (memory.h).
 */
#include "freebsd_calls.h"

#include <errno.h>
#include <stdint.h>

#include "abi_freebsd.h"
#include "check.h"
#include "kernel.h"
#include "memory.h"

static struct {
    unsigned char key[32];
    unsigned char iv[16];
    unsigned char mac[48];
    unsigned char sequence[8]; /* as in the struct: big-endian */
} own;
static uint64_t sequence;

static void make_secrets(void) {
    static uint32_t state = 88172645;
    volatile unsigned char *bytes = (volatile unsigned char *)&own;
    for (size_t i = 0; i < sizeof(own); i++) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes[i] = (unsigned char)(1 + state % 255); /* most memory is zeros */
    }
    sequence = 0;
    for (size_t i = 0; i < sizeof(own.sequence); i++) {
        sequence = sequence << 8 | own.sequence[i];
    }
    leave_nothing_out();
    leave_out(&own, sizeof(own));
}

static void nothing_left(void) {
    CHECK_INT(copies_of(own.key, sizeof(own.key), 1), 0);
    CHECK_INT(copies_of(own.iv, sizeof(own.iv), 1), 0);
    CHECK_INT(copies_of(own.mac, sizeof(own.mac), 1), 0);
    CHECK_INT(copies_of(own.sequence, sizeof(own.sequence), 1), 0);
}

static int error, calls, searches, was_there, version, result;
static size_t key_length, iv_length, mac_length;

int test_sendfile(int file, int fd, off_t offset, size_t count, struct sf_hdtr *around,
                  off_t *sbytes, int flags) {
    return fake_sendfile(file, fd, offset, count, around, sbytes, flags);
}

static int set_option(int fd, int option, const void *value, unsigned size) {
    (void)fd, (void)option, (void)value, (void)size;
    calls++;
    if (searches) {
        was_there = copies_of(own.sequence, sizeof(own.sequence), 0) > 0;
    } else {
        spill_registers(); /* a search would cover its own tracks */
    }
    return -error;
}

static void set_keys(void) {
    result = pyktls_freebsd_set_keys(3, TCP_TXTLS_ENABLE, version, CRYPTO_AES_CBC, own.key,
                                     key_length, own.iv, iv_length, CRYPTO_SHA2_384_HMAC, own.mac,
                                     mac_length, sequence);
}

static void set_keys_wipes_where_the_kernel_was_asked(void) {
    static const int errors[] = {0, EINVAL, EPROTONOSUPPORT, ENOTCONN, EALREADY, EOPNOTSUPP};
    key_length = sizeof(own.key);
    iv_length = sizeof(own.iv);
    mac_length = sizeof(own.mac);
    for (version = 0x0301; version <= 0x0304; version++) {
        for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
            make_secrets();
            error = errors[i];
            calls = searches = was_there = 0;
            on_own_stack(set_keys);
            CHECK_INT(result, -error);
            CHECK_INT(calls, 1);
            nothing_left();
            searches = 1;
            on_own_stack(set_keys);
            CHECK(was_there);
        }
    }
}

static void set_keys_leaves_nothing_where_it_refuses(void) {
    for (int wrong = 0; wrong < 4; wrong++) {
        make_secrets();
        version = wrong == 0 ? 0x0305 : 0x0303;
        key_length = wrong == 1 ? 1025 : sizeof(own.key);
        iv_length = wrong == 2 ? 1025 : sizeof(own.iv);
        mac_length = wrong == 3 ? 1025 : sizeof(own.mac);
        calls = 0;
        on_own_stack(set_keys);
        CHECK_INT(result, -EINVAL);
        CHECK_INT(calls, 0);
        nothing_left();
    }
}

static const struct test tests[] = {
    TEST(set_keys_wipes_where_the_kernel_was_asked),
    TEST(set_keys_leaves_nothing_where_it_refuses),
};

int main(void) {
    fake_calls.set_option = set_option;
    return RUN_TESTS(tests);
}
