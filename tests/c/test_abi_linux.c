/* The crypto_info structs of Linux, byte by byte. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include "check.h"
#include "kernel.h"

/*
 * include/uapi/linux/tls.h written out once more, as offsets: nothing here is computed by the
 * code under test or taken from its headers.
 */
static const struct {
    uint16_t cipher;
    size_t size, iv, iv_size, key, key_size, salt, salt_size, sequence;
} ciphers[] = {
    {51, 40, 4, 8, 12, 16, 28, 4, 32},  /* AES-128-GCM */
    {52, 56, 4, 8, 12, 32, 44, 4, 48},  /* AES-256-GCM */
    {53, 40, 4, 8, 12, 16, 28, 4, 32},  /* AES-128-CCM */
    {54, 56, 4, 12, 16, 32, 48, 0, 48}, /* ChaCha20-Poly1305 */
    {55, 40, 4, 8, 12, 16, 28, 4, 32},  /* SM4-GCM */
    {56, 40, 4, 8, 12, 16, 28, 4, 32},  /* SM4-CCM */
    {57, 40, 4, 8, 12, 16, 28, 4, 32},  /* ARIA-128-GCM */
    {58, 56, 4, 8, 12, 32, 44, 4, 48},  /* ARIA-256-GCM */
};
#define CIPHERS (sizeof(ciphers) / sizeof(ciphers[0]))
#define LARGEST 56
#define GUARD 0xee

static const unsigned char iv[12] = {0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5,
                                     0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab};
static const uint64_t sequence = 0x0102030405060708;
static unsigned char key[64];

static void make_key(void) {
    for (size_t i = 0; i < sizeof(key); i++) {
        key[i] = (unsigned char)(0x40 + i);
    }
}

static void name_cipher(size_t i) {
    static char text[32];
    snprintf(text, sizeof(text), "(cipher %u)", ciphers[i].cipher);
    check_context = text;
}

static void expect_bytes(unsigned char *out, size_t i, uint16_t version) {
    memset(out, GUARD, ciphers[i].size);
    memcpy(out, &version, 2);
    memcpy(out + 2, &ciphers[i].cipher, 2);
    memcpy(out + ciphers[i].salt, iv, ciphers[i].salt_size);
    memcpy(out + ciphers[i].iv, iv + ciphers[i].salt_size, ciphers[i].iv_size);
    memcpy(out + ciphers[i].key, key, ciphers[i].key_size);
    memcpy(out + ciphers[i].sequence, "\1\2\3\4\5\6\7\10", 8);
}

static void sizes(void) {
    for (unsigned number = 0; number <= UINT16_MAX; number++) {
        size_t expected = 0;
        for (size_t i = 0; i < CIPHERS; i++) {
            expected = ciphers[i].cipher == number ? ciphers[i].size : expected;
        }
        CHECK_INT(pyktls_linux_crypto_info_size((uint16_t)number), expected);
    }
}

static void one_struct_written_out(void) {
    /* AES-128-GCM in TLS 1.3, and ChaCha20-Poly1305 in TLS 1.2, with no help from a table. */
    static const unsigned char gcm[] =
        "VVCC\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab"
        "@ABCDEFGHIJKLMNO"
        "\xa0\xa1\xa2\xa3"
        "\1\2\3\4\5\6\7\10";
    static const unsigned char chacha[] =
        "VVCC\xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab"
        "@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_"
        "\1\2\3\4\5\6\7\10";
    unsigned char out[LARGEST];
    uint16_t number;
    CHECK_INT(pyktls_linux_pack(out, 40, 0x0304, 51, key, 16, iv, sequence), 40);
    CHECK_BYTES(out + 4, gcm + 4, 36);
    memcpy(&number, out, 2);
    CHECK_INT(number, 0x0304);
    memcpy(&number, out + 2, 2);
    CHECK_INT(number, 51);
    CHECK_INT(pyktls_linux_pack(out, 56, 0x0303, 54, key, 32, iv, sequence), 56);
    CHECK_BYTES(out + 4, chacha + 4, 52);
    memcpy(&number, out, 2);
    CHECK_INT(number, 0x0303);
    memcpy(&number, out + 2, 2);
    CHECK_INT(number, 54);
}

static void pack_every_cipher_into_every_room(void) {
    for (size_t i = 0; i < CIPHERS; i++) {
        name_cipher(i);
        unsigned char expected[LARGEST], around[LARGEST * 3];
        expect_bytes(expected, i, 0x0303);
        for (size_t room = 0; room <= LARGEST * 2; room++) {
            memset(around, GUARD, sizeof(around));
            unsigned char *out = around + 16;
            int result = pyktls_linux_pack(out, room, 0x0303, ciphers[i].cipher, key,
                                           ciphers[i].key_size, iv, sequence);
            if (room < ciphers[i].size) {
                CHECK_INT(result, -EINVAL);
                CHECK_ALL(around, GUARD, sizeof(around));
            } else {
                CHECK_INT(result, ciphers[i].size);
                CHECK_BYTES(out, expected, ciphers[i].size);
                CHECK_ALL(around, GUARD, 16);
                CHECK_ALL(out + ciphers[i].size, GUARD,
                          sizeof(around) - 16 - ciphers[i].size);
            }
        }
    }
}

static void pack_with_every_key_length(void) {
    static const size_t huge[] = {256 + 16, 256 + 32, 65536 + 16, SIZE_MAX, SIZE_MAX - 255};
    for (size_t i = 0; i < CIPHERS; i++) {
        name_cipher(i);
        unsigned char out[LARGEST];
        for (size_t n = 0; n < sizeof(key) + 5; n++) {
            size_t length = n < sizeof(key) ? n : huge[n - sizeof(key)];
            if (length == ciphers[i].key_size) {
                continue;
            }
            memset(out, GUARD, sizeof(out));
            CHECK_INT(pyktls_linux_pack(out, sizeof(out), 0x0304, ciphers[i].cipher, key, length,
                                        iv, sequence),
                      -EINVAL);
            CHECK_ALL(out, GUARD, sizeof(out));
        }
    }
}

static void pack_unknown_ciphers(void) {
    for (unsigned number = 0; number <= UINT16_MAX; number++) {
        if (number >= 51 && number <= 58) {
            continue;
        }
        unsigned char out[LARGEST];
        memset(out, GUARD, sizeof(out));
        for (size_t length = 0; length <= 32; length += 16) {
            CHECK_INT(pyktls_linux_pack(out, sizeof(out), 0x0304, (uint16_t)number, key, length, iv,
                                        sequence),
                      -EINVAL);
        }
        CHECK_ALL(out, GUARD, sizeof(out));
    }
}

static void pack_reads_no_more_than_it_was_given(void) {
    /* Buffers of exactly the size, for the sanitizer and valgrind to watch over their ends. */
    for (size_t i = 0; i < CIPHERS; i++) {
        name_cipher(i);
        unsigned char *exact_key = malloc(ciphers[i].key_size), *exact_iv = malloc(12),
                      *out = malloc(ciphers[i].size), expected[LARGEST];
        memcpy(exact_key, key, ciphers[i].key_size);
        memcpy(exact_iv, iv, 12);
        expect_bytes(expected, i, 0x0304);
        CHECK_INT(pyktls_linux_pack(out, ciphers[i].size, 0x0304, ciphers[i].cipher, exact_key,
                                    ciphers[i].key_size, exact_iv, sequence),
                  ciphers[i].size);
        CHECK_BYTES(out, expected, ciphers[i].size);
        free(exact_key);
        free(exact_iv);
        free(out);
    }
}

static void sequence_numbers(void) {
    static const struct {
        uint64_t number;
        unsigned char bytes[8];
    } numbers[] = {
        {0, {0, 0, 0, 0, 0, 0, 0, 0}},
        {1, {0, 0, 0, 0, 0, 0, 0, 1}},
        {256, {0, 0, 0, 0, 0, 0, 1, 0}},
        {UINT64_MAX, {255, 255, 255, 255, 255, 255, 255, 255}},
        {0x8000000000000000, {128, 0, 0, 0, 0, 0, 0, 0}},
    };
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        unsigned char out[LARGEST], out_key[32], out_iv[12];
        uint16_t version, cipher;
        uint64_t number = 12345;
        CHECK_INT(pyktls_linux_pack(out, sizeof(out), 0x0304, 52, key, 32, iv, numbers[i].number),
                  56);
        CHECK_BYTES(out + 48, numbers[i].bytes, 8);
        CHECK_INT(pyktls_linux_unpack(out, 56, &version, &cipher, out_key, out_iv, &number), 32);
        CHECK(number == numbers[i].number);
    }
}

static void every_version_is_passed_on(void) {
    /* What a version number means is the kernel's business. */
    for (unsigned version = 0; version <= UINT16_MAX; version += 0x101) {
        unsigned char out[LARGEST], out_key[32], out_iv[12];
        uint16_t found = 1, cipher = 1;
        uint64_t number = 1;
        CHECK_INT(pyktls_linux_pack(out, 40, (uint16_t)version, 51, key, 16, iv, 0), 40);
        CHECK_INT(pyktls_linux_unpack(out, 40, &found, &cipher, out_key, out_iv, &number), 16);
        CHECK_INT(found, version);
    }
}

static void unpack_every_cipher_from_every_size(void) {
    for (size_t i = 0; i < CIPHERS; i++) {
        name_cipher(i);
        for (size_t size = 0; size <= LARGEST * 2; size++) {
            unsigned char info[LARGEST * 2], out_key[48], out_iv[28];
            uint16_t version = 7, cipher = 8;
            uint64_t number = 9;
            memset(info, GUARD, sizeof(info));
            expect_bytes(info, i, 0x0304);
            memset(out_key, GUARD, sizeof(out_key));
            memset(out_iv, GUARD, sizeof(out_iv));
            /* Exactly `size` bytes are there to be read. */
            unsigned char *exact = malloc(size + (size == 0));
            memcpy(exact, info, size);
            int result = pyktls_linux_unpack(exact, size, &version, &cipher, out_key + 8,
                                             out_iv + 8, &number);
            free(exact);
            if (size == ciphers[i].size) {
                CHECK_INT(result, ciphers[i].key_size);
                CHECK_INT(version, 0x0304);
                CHECK_INT(cipher, ciphers[i].cipher);
                CHECK_BYTES(out_key + 8, key, ciphers[i].key_size);
                CHECK_BYTES(out_iv + 8, iv, 12);
                CHECK(number == sequence);
                CHECK_ALL(out_key, GUARD, 8);
                CHECK_ALL(out_key + 8 + ciphers[i].key_size, GUARD, 40 - ciphers[i].key_size);
                CHECK_ALL(out_iv, GUARD, 8);
                CHECK_ALL(out_iv + 20, GUARD, 8);
            } else {
                CHECK_INT(result, -EINVAL);
                CHECK(version == 7 && cipher == 8 && number == 9);
                CHECK_ALL(out_key, GUARD, sizeof(out_key));
                CHECK_ALL(out_iv, GUARD, sizeof(out_iv));
            }
        }
    }
}

static void unpack_unknown_ciphers(void) {
    for (unsigned number = 0; number <= UINT16_MAX; number++) {
        if (number >= 51 && number <= 58) {
            continue;
        }
        unsigned char info[LARGEST], out_key[32], out_iv[12];
        uint16_t version = 7, cipher = (uint16_t)number;
        uint64_t found = 9;
        memset(info, 0, sizeof(info));
        memcpy(info + 2, &cipher, 2);
        cipher = 8;
        CHECK_INT(pyktls_linux_unpack(info, 40, &version, &cipher, out_key, out_iv, &found),
                  -EINVAL);
        CHECK_INT(pyktls_linux_unpack(info, 56, &version, &cipher, out_key, out_iv, &found),
                  -EINVAL);
        CHECK(version == 7 && cipher == 8 && found == 9);
    }
}

static const struct test tests[] = {
    TEST(sizes),
    TEST(one_struct_written_out),
    TEST(pack_every_cipher_into_every_room),
    TEST(pack_with_every_key_length),
    TEST(pack_unknown_ciphers),
    TEST(pack_reads_no_more_than_it_was_given),
    TEST(sequence_numbers),
    TEST(every_version_is_passed_on),
    TEST(unpack_every_cipher_from_every_size),
    TEST(unpack_unknown_ciphers),
};

int main(void) {
    make_key();
    return RUN_TESTS(tests);
}
