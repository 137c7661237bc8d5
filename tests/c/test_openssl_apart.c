/*
 * csrc/openssl_apart.c, calling an OpenSSL that is a row of structs (fake_libssl.h).
 *
 * It can be opened once in a process, so the first tests have to stay the first, and in order.  The
 * program's argument is a shared library that is linked to the fake one.
 *
 * What the real OpenSSL seals and takes in is in tests/unit/test_resumption.py.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "connection.h"
#include "openssl_apart.h"
#include "openssl_half.h"

#define WANT_READ 2

static const char *module_path;

/* As pyktls_half_begin leaves it. */
static void connect_and_isolate(void) {
    connect_it();
    reads.method = FAKE_MEMORY;
    writes.method = FAKE_NULL;
    reads.at_end = -1;
    reads.room = FAKE_ROOM;
}

/* ---- before it is open ----------------------------------------------------------------------- */

static void nothing_works_yet(void) {
    unsigned char out[17];
    memset(out, 0xee, sizeof(out));
    connect_it();
    CHECK_INT(pyktls_apart_feed(&ssl, "a", 1), PYKTLS_APART_NOT_OPEN);
    CHECK_INT(pyktls_apart_feed(&ssl, "a", SIZE_MAX), PYKTLS_APART_NOT_OPEN);
    CHECK_INT(pyktls_apart_seal("AES-128-GCM", out, out, "", 0, "a", 1, out),
              PYKTLS_APART_NOT_OPEN);
    CHECK_ALL(out, 0xee, sizeof(out));
    CHECK_INT(on_openssl.calls, 0);
    disconnect();
}

static void open_before_the_tap(void) {
    opens_after_the_tap(pyktls_apart_open, PYKTLS_APART_NOT_OPEN, module_path, nothing_works_yet);
}

static void open_with_each_name_missing(void) {
    CHECK_INT(pyktls_half_open(), PYKTLS_HALF_OK); /* feeding is by its means */
    CHECK_INT(opens_with_all_names(pyktls_apart_open, PYKTLS_APART_NOT_OPEN, nothing_works_yet),
              10);
}

/* ---- pyktls_apart_feed ----------------------------------------------------------------------- */

static const unsigned char records[] = "\27\3\3\0\4one.\27\3\3\0\4two.";
#define RECORDS (sizeof(records) - 1)

static void feeding_is_taken_in_whole(void) {
    connect_and_isolate();
    CHECK_INT(pyktls_apart_feed(&ssl, records, RECORDS), PYKTLS_APART_OK);
    CHECK_INT(ssl.taken_size, RECORDS);
    CHECK_BYTES(ssl.taken, records, RECORDS);
    CHECK_INT(ssl.peek.calls, 1);
    CHECK_INT(pyktls_apart_feed(&ssl, records, 9), PYKTLS_APART_OK);
    CHECK_INT(ssl.taken_size, RECORDS + 9);
    CHECK_BYTES(ssl.taken + RECORDS, records, 9);
    CHECK_INT(pyktls_apart_feed(&ssl, records, 0), PYKTLS_APART_OK);
    CHECK_INT(ssl.taken_size, RECORDS + 9);
    CHECK_INT(ssl.write_bio->written, 0);
    disconnect();
}

static void only_that_more_is_wanted_is_good(void) {
    for (int result = -1; result <= 1; result++) {
        for (int error = 0; error <= 12; error++) {
            if (result == 0 && error == 0) {
                continue; /* OpenSSL has no such answer */
            }
            connect_and_isolate();
            ssl.peek.result = result;
            ssl.peek.error = error;
            CHECK_INT(pyktls_apart_feed(&ssl, records, RECORDS),
                      result <= 0 && error == WANT_READ ? PYKTLS_APART_OK : PYKTLS_APART_REFUSED);
            CHECK_INT(ssl.peek.calls, 1);
            disconnect();
        }
    }
}

static void data_is_neither_wanted_nor_taken(void) {
    connect_and_isolate();
    ssl.peek.result = FAKE_ROOM; /* more than there is room for */
    CHECK_INT(pyktls_apart_feed(&ssl, records, RECORDS), PYKTLS_APART_REFUSED);
    CHECK_INT(ssl.peek.calls, 1);
    disconnect();
}

static void the_flags_are_as_before(void) {
    for (int before = 0; before <= (SENT | RECEIVED); before++) {
        for (int during = 0; during <= (SENT | RECEIVED); during++) {
            for (int good = 0; good <= 1; good++) {
                connect_and_isolate();
                ssl.shutdown = before;
                ssl.peek.shutdown = during;
                ssl.peek.queues = !good;
                CHECK_INT(pyktls_apart_feed(&ssl, records, RECORDS),
                          good ? PYKTLS_APART_OK : PYKTLS_APART_REFUSED);
                CHECK_INT(ssl.peek.shutdown_before, before & SENT); /* or it reads nothing */
                CHECK_INT(ssl.taken_size, RECORDS);
                CHECK_INT(ssl.shutdown, before);
                disconnect();
            }
        }
    }
}

static void old_errors_are_not_this_ones(void) {
    connect_and_isolate();
    on_openssl.errors = 3;
    CHECK_INT(pyktls_apart_feed(&ssl, records, RECORDS), PYKTLS_APART_OK);
    CHECK_INT(on_openssl.errors, 0);
    ssl.peek.result = -1;
    ssl.peek.error = WANT_READ;
    ssl.peek.queues = 1;
    CHECK_INT(pyktls_apart_feed(&ssl, records, RECORDS), PYKTLS_APART_REFUSED);
    CHECK_INT(on_openssl.errors, 0);
    disconnect();
}

static void what_the_memory_does_not_take_is_not_read(void) {
    static const int failures[] = {0, -1, -2};
    for (size_t room = 0; room <= RECORDS; room++) {
        connect_and_isolate();
        ssl.shutdown = SENT | RECEIVED;
        ssl.read_bio->room = room;
        CHECK_INT(pyktls_apart_feed(&ssl, records, RECORDS),
                  room == RECORDS ? PYKTLS_APART_OK : PYKTLS_APART_REFUSED);
        CHECK_INT(ssl.peek.calls, room == RECORDS);
        CHECK_INT(ssl.shutdown, SENT | RECEIVED);
        disconnect();
    }
    for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++) {
        connect_and_isolate();
        ssl.shutdown = RECEIVED;
        on_openssl.fail_at = 0;
        on_openssl.failure = failures[i];
        CHECK_INT(pyktls_apart_feed(&ssl, records, RECORDS), PYKTLS_APART_REFUSED);
        CHECK(on_openssl.failed != NULL && strcmp(on_openssl.failed, "BIO_write") == 0);
        CHECK_INT(ssl.peek.calls, 0);
        CHECK_INT(ssl.shutdown, RECEIVED);
        disconnect();
    }
    connect_it();
    ssl.read_bio = NULL;
    CHECK_INT(pyktls_apart_feed(&ssl, records, RECORDS), PYKTLS_APART_REFUSED);
    CHECK_INT(ssl.peek.calls, 0);
    disconnect();
}

static void feeding_more_than_an_int_holds(void) {
    connect_and_isolate();
    for (size_t i = 0; i < TOO_MUCH; i++) {
        CHECK_INT(pyktls_apart_feed(&ssl, records, too_much[i]), PYKTLS_APART_REFUSED);
    }
    CHECK_INT(on_openssl.calls, 0);
    CHECK_INT(ssl.peek.calls, 0);
    ssl.read_bio->room = 0; /* so that there need not be so much */
    CHECK_INT(pyktls_apart_feed(&ssl, records, INT_MAX), PYKTLS_APART_REFUSED);
    CHECK_INT(ssl.read_bio->last_length, INT_MAX);
    disconnect();
}

/* ---- pyktls_apart_seal ----------------------------------------------------------------------- */

static unsigned char key[32], nonce[12], additional[13], content[16385];
static const struct fake_aead *aead;

static void fill(unsigned char *to, size_t size, unsigned seed) {
    for (size_t i = 0; i < size; i++) {
        to[i] = (unsigned char)(seed + i * 7 + i / 256);
    }
}

static void begin_sealing(void) {
    fill(key, sizeof(key), 1);
    fill(nonce, sizeof(nonce), 60);
    fill(additional, sizeof(additional), 120);
    fill(content, sizeof(content), 180);
    check_context = aead->name;
    reset_openssl();
}

/* What was taken is given back, and nothing is left to be found by the next who looks. */
static void end_sealing(void) {
    CHECK_INT(on_openssl.ciphers, 0);
    CHECK_INT(on_openssl.errors, 0);
}

static int seal(size_t additional_size, size_t size, unsigned char *out) {
    return pyktls_apart_seal(aead->name, key, nonce, additional, additional_size, content, size,
                             out);
}

#define EACH_AEAD aead = fake_aeads; aead < fake_aeads + FAKE_AEADS; aead++

static void sealing_is_as_the_aead_has_it(void) {
    static const size_t sizes[] = {0, 1, 15, 16, 17, 300, 16384, 16385};
    static const size_t additional_sizes[] = {5, 13};
    for (EACH_AEAD) {
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            for (size_t j = 0; j < 2; j++) {
                size_t size = sizes[i];
                /* In blocks of their own, to be seen overrun. */
                unsigned char *out = malloc(size + 16), *expected = malloc(size + 16);
                begin_sealing();
                CHECK_INT(seal(additional_sizes[j], size, out), PYKTLS_APART_OK);
                fake_seal(aead, key, nonce, additional, additional_sizes[j], content, size,
                          expected);
                CHECK_BYTES(out, expected, size);
                CHECK_BYTES(out + size, expected + size, 16);
                end_sealing();
                free(out);
                free(expected);
            }
        }
    }
}

/* With this, that what is sealed is right says that all of it was sealed. */
static void the_fake_tag_depends_on_every_byte(void) {
    unsigned char before[16 + 16], after[16 + 16];
    for (EACH_AEAD) {
        begin_sealing();
        struct {
            unsigned char *bytes;
            size_t size;
        } parts[] = {{key, aead->key_size}, {nonce, 12}, {additional, 13}, {content, 16}};
        fake_seal(aead, key, nonce, additional, 13, content, 16, before);
        for (size_t part = 0; part < 4; part++) {
            for (size_t i = 0; i < parts[part].size; i++) {
                parts[part].bytes[i] ^= 1;
                fake_seal(aead, key, nonce, additional, 13, content, 16, after);
                CHECK(memcmp(before + 16, after + 16, 16) != 0);
                parts[part].bytes[i] ^= 1;
            }
        }
        for (const struct fake_aead *other = fake_aeads; other < aead; other++) {
            fake_seal(other, key, nonce, additional, 13, content, 16, after);
            CHECK(memcmp(before + 16, after + 16, 16) != 0);
        }
    }
}

static void sealing_that_fails_at_each_step(void) {
    unsigned char out[20 + 16];
    for (EACH_AEAD) {
        for (int failure = -1; failure <= 0; failure++) {
            int result = PYKTLS_APART_REFUSED, steps = 0;
            for (; result != PYKTLS_APART_OK && steps < 100; steps++) {
                begin_sealing();
                on_openssl.fail_at = steps;
                on_openssl.failure = failure;
                result = seal(5, 20, out);
                CHECK_INT(result,
                          on_openssl.failed == NULL ? PYKTLS_APART_OK : PYKTLS_APART_REFUSED);
                end_sealing();
            }
            /* Each was asked once; the last time nothing failed. */
            CHECK_INT(steps - 1, aead->ccm ? 11 : 9);
        }
    }
}

static void sealing_that_makes_more_or_less_than_it_was_given(void) {
    unsigned char out[20 + 16];
    for (EACH_AEAD) {
        for (int extra = -1; extra <= 1; extra++) {
            begin_sealing();
            on_openssl.update_extra = extra;
            CHECK_INT(seal(5, 20, out), extra == 0 ? PYKTLS_APART_OK : PYKTLS_APART_REFUSED);
            end_sealing();
            begin_sealing();
            on_openssl.final_extra = extra;
            CHECK_INT(seal(5, 20, out), extra == 0 ? PYKTLS_APART_OK : PYKTLS_APART_REFUSED);
            end_sealing();
        }
    }
}

static void sealing_with_a_cipher_that_is_unknown(void) {
    static const char *const names[] = {"AES-128-CCM8", "AES-128-OCB", "CCM", ""};
    unsigned char out[20 + 16];
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct fake_aead unknown = {names[i], 16, 0};
        aead = &unknown;
        begin_sealing();
        on_openssl.errors = 1; /* OpenSSL 3 looks further, and leaves some */
        memset(out, 0xee, sizeof(out));
        CHECK_INT(seal(5, 20, out), PYKTLS_APART_REFUSED);
        CHECK(on_openssl.calls <= 2); /* its name, and a context at most */
        CHECK_ALL(out, 0xee, sizeof(out));
        end_sealing();
    }
}

static void sealing_more_than_an_int_holds(void) {
    unsigned char out[20 + 16];
    for (EACH_AEAD) {
        begin_sealing();
        memset(out, 0xee, sizeof(out));
        for (size_t i = 0; i < TOO_MUCH; i++) {
            CHECK_INT(seal(5, too_much[i], out), PYKTLS_APART_REFUSED);
            CHECK_INT(seal(too_much[i], 20, out), PYKTLS_APART_REFUSED);
        }
        CHECK_INT(on_openssl.calls, 0);
        CHECK_ALL(out, 0xee, sizeof(out));
        on_openssl.fail_at = 0; /* so that there need not be so much */
        CHECK_INT(seal(INT_MAX, INT_MAX, out), PYKTLS_APART_REFUSED);
        CHECK(on_openssl.calls > 0);
        end_sealing();
    }
}

static const struct test tests[] = {
    /* In this order: see above. */
    TEST(nothing_works_yet),
    TEST(open_before_the_tap),
    TEST(open_with_each_name_missing),
    /* In any. */
    TEST(feeding_is_taken_in_whole),
    TEST(only_that_more_is_wanted_is_good),
    TEST(data_is_neither_wanted_nor_taken),
    TEST(the_flags_are_as_before),
    TEST(old_errors_are_not_this_ones),
    TEST(what_the_memory_does_not_take_is_not_read),
    TEST(feeding_more_than_an_int_holds),
    TEST(sealing_is_as_the_aead_has_it),
    TEST(the_fake_tag_depends_on_every_byte),
    TEST(sealing_that_fails_at_each_step),
    TEST(sealing_that_makes_more_or_less_than_it_was_given),
    TEST(sealing_with_a_cipher_that_is_unknown),
    TEST(sealing_more_than_an_int_holds),
};

int main(int count, char **words) {
    if (count != 2 || dlopen(words[1], RTLD_NOW) == NULL) {
        printf("usage: test_openssl_apart MODULE\n");
        return 2;
    }
    module_path = words[1];
    return RUN_TESTS(tests);
}
