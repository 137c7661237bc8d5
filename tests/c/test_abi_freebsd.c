/* FreeBSD's struct tls_enable, filled. */
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>

#include "abi_freebsd.h"
#include "check.h"
#include "kernel.h"

#define GUARD 0xee

static const unsigned char key[] = "the key that is thirty-two bytes";
static const unsigned char iv[] = "sixteen bytes iv";
static const unsigned char mac[] = "an HMAC key, as long as SHA-384's: 48 characters";
static const uint64_t sequence = 0x0102030405060708;

static int filled(struct tls_enable *out, int version, size_t key_length, size_t iv_length,
                  size_t mac_length) {
    return pyktls_freebsd_fill(out, version, 25, key, key_length, iv, iv_length, 19, mac,
                               mac_length, sequence);
}

static int number_at(const void *memory, size_t offset) {
    int number;
    memcpy(&number, (const char *)memory + offset, sizeof(number));
    return number;
}

static const void *pointer_at(const void *memory, size_t offset) {
    const void *pointer;
    memcpy(&pointer, (const char *)memory + offset, sizeof(pointer));
    return pointer;
}

static void the_struct_as_a_64_bit_kernel_reads_it(void) {
    if (sizeof(void *) != 8) {
        CHECK_INT(sizeof(struct tls_enable), 48);
        return;
    }
    CHECK_INT(sizeof(struct tls_enable), 64);
    unsigned char bytes[80];
    struct tls_enable enable;
    memset(bytes, GUARD, sizeof(bytes));
    memset(&enable, GUARD, sizeof(enable));
    CHECK_INT(filled(&enable, 0x0303, 32, 16, 48), 0);
    memcpy(bytes, &enable, sizeof(enable));
    /* Up to 50: struct tls_enable_v0, which FreeBSD 12's programs pass and which has no number. */
    CHECK(pointer_at(bytes, 0) == key);
    CHECK(pointer_at(bytes, 8) == iv);
    CHECK(pointer_at(bytes, 16) == mac);
    CHECK_INT(number_at(bytes, 24), 25);
    CHECK_INT(number_at(bytes, 28), 32);
    CHECK_INT(number_at(bytes, 32), 16);
    CHECK_INT(number_at(bytes, 36), 19);
    CHECK_INT(number_at(bytes, 40), 48);
    CHECK_INT(number_at(bytes, 44), 0);
    CHECK_INT(bytes[48], 3);
    CHECK_INT(bytes[49], 3);
    CHECK_BYTES(bytes + 50, "\1\2\3\4\5\6\7\10", 8);
    CHECK_ALL(bytes + 58, 0, 6); /* the padding goes to the kernel: no stack in it */
    CHECK_ALL(bytes + 64, GUARD, 16);
}

static void no_byte_beyond_it(void) {
    struct tls_enable *enable = malloc(sizeof(*enable));
    CHECK_INT(filled(enable, 0x0304, 32, 12, 0), 0);
    CHECK(enable->cipher_key == key);
    free(enable);
}

static void versions(void) {
    static const int wrong[] = {0,      3,       4,       0x0300,  0x0305,        0x03ff,  0x0201,
                                0x0404, 0x10303, 0x30303, INT_MAX, INT_MIN,       -1,      -0x0303,
                                0x0002, 0x0103,  0xfefd,  0x7f1c,  INT_MIN + 0x0303};
    for (int version = 0x0301; version <= 0x0304; version++) {
        struct tls_enable enable;
        CHECK_INT(filled(&enable, version, 16, 4, 0), 0);
        CHECK_INT(enable.tls_vmajor, 3);
        CHECK_INT(enable.tls_vminor, version & 0xff);
    }
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct tls_enable enable;
        memset(&enable, GUARD, sizeof(enable));
        CHECK_INT(filled(&enable, wrong[i], 16, 4, 0), -EINVAL);
        CHECK_ALL(&enable, GUARD, sizeof(enable));
    }
}

static void lengths(void) {
    static const size_t wrong[] = {1025, 65536, (size_t)INT_MAX + 1, (size_t)UINT_MAX + 17,
                                   SIZE_MAX};
    struct tls_enable enable;
    CHECK_INT(filled(&enable, 0x0303, 1024, 1024, 1024), 0);
    CHECK_INT(enable.cipher_key_len, 1024);
    CHECK_INT(enable.iv_len, 1024);
    CHECK_INT(enable.auth_key_len, 1024);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        memset(&enable, GUARD, sizeof(enable));
        CHECK_INT(filled(&enable, 0x0303, wrong[i], 16, 48), -EINVAL);
        CHECK_INT(filled(&enable, 0x0303, 32, wrong[i], 48), -EINVAL);
        CHECK_INT(filled(&enable, 0x0303, 32, 16, wrong[i]), -EINVAL);
        CHECK_ALL(&enable, GUARD, sizeof(enable));
    }
}

static void what_is_empty_is_null(void) {
    struct tls_enable enable;
    CHECK_INT(filled(&enable, 0x0304, 32, 0, 0), 0);
    CHECK(enable.iv == NULL && enable.iv_len == 0);
    CHECK(enable.auth_key == NULL && enable.auth_key_len == 0);
    CHECK(enable.cipher_key == key);
    CHECK_INT(filled(&enable, 0x0304, 0, 1, 1), 0);
    CHECK(enable.iv == iv && enable.iv_len == 1);
    CHECK(enable.auth_key == mac && enable.auth_key_len == 1);
    CHECK_INT(enable.cipher_key_len, 0);
}

static void numbers_are_passed_on(void) {
    static const int numbers[] = {0, 7, 11, 18, 25, 41, -1, INT_MAX, INT_MIN};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        struct tls_enable enable;
        CHECK_INT(pyktls_freebsd_fill(&enable, 0x0303, numbers[i], key, 16, iv, 16, 0, mac, 20,
                                      UINT64_MAX),
                  0);
        CHECK_INT(enable.cipher_algorithm, numbers[i]);
        CHECK_INT(enable.auth_algorithm, 0);
        CHECK_ALL(enable.rec_seq, 0xff, 8);
        CHECK_INT(pyktls_freebsd_fill(&enable, 0x0303, 11, key, 16, iv, 16, numbers[i], mac, 20, 0),
                  0);
        CHECK_INT(enable.auth_algorithm, numbers[i]);
        CHECK_INT(enable.cipher_algorithm, 11);
        CHECK_ALL(enable.rec_seq, 0, 8);
    }
}

static const struct test tests[] = {
    TEST(the_struct_as_a_64_bit_kernel_reads_it),
    TEST(no_byte_beyond_it),
    TEST(versions),
    TEST(lengths),
    TEST(what_is_empty_is_null),
    TEST(numbers_are_passed_on),
};

int main(void) {
    return RUN_TESTS(tests);
}
