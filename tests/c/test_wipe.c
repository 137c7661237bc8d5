/*
 * After every function of csrc/ that touches a key, and on every way out of it, no copy of the key
 * is left in this process but the caller's own (memory.h).
 *
 * Each test first shows that the search finds the key while it has to be there.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "fake_libssl.h"
#include "kernel.h"
#include "memory.h"
#include "openssl_apart.h"
#include "openssl_tap.h"
#include "scripts.h"

/* ---- the caller's own copies, and nothing else ----------------------------------------------- */

static struct {
    unsigned char key[64];
    unsigned char iv[12];
    unsigned char sequence[8]; /* as on the wire */
} own;
static uint64_t sequence;

/* Made anew each time, byte by byte: nothing of it is in the program's file. */
static void make_secrets(void) {
    static uint32_t state = 2463534242;
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

static void expect_copies(int some, const char *of, const unsigned char *secret, size_t size,
                          int line) {
    size_t found = copies_of(secret, size, !some);
    char text[64];
    snprintf(text, sizeof(text), "%zu places with a piece of the %s", found, of);
    check_that((found > 0) == some, __FILE__, line, text);
}
#define EXPECT_COPIES(some, name, size) expect_copies(some, #name, own.name, size, __LINE__)
#define NOTHING_LEFT()                                                                             \
    do {                                                                                           \
        EXPECT_COPIES(0, key, sizeof(own.key));                                                    \
        EXPECT_COPIES(0, iv, sizeof(own.iv));                                                      \
        EXPECT_COPIES(0, sequence, sizeof(own.sequence));                                          \
    } while (0)

/* ---- the search itself ----------------------------------------------------------------------- */

static size_t where_to_begin;
static unsigned char *heap;
static unsigned char data[128];

/*
 * A copy of which nothing is left in registers.  Not inlined: a compiler may take an array apart
 * whose bytes it knows one by one.
 */
__attribute__((noinline)) static void plant(unsigned char *to, const unsigned char *from,
                                            size_t size) {
    for (size_t i = 0; i < size; i++) {
        ((volatile unsigned char *)to)[i] = from[i];
    }
}

static void forget_on_the_stack(void) {
    unsigned char copy[256];
    plant(copy + 100, own.key + where_to_begin, PIECE);
}

static void the_search_finds_any_piece_anywhere(void) {
    make_secrets();
    NOTHING_LEFT();
    for (where_to_begin = 0; where_to_begin + PIECE <= sizeof(own.key); where_to_begin += 7) {
        on_own_stack(forget_on_the_stack);
        EXPECT_COPIES(1, key, sizeof(own.key));
    }
    make_secrets();
    plant(data + 5, own.key + 20, PIECE);
    EXPECT_COPIES(1, key, sizeof(own.key));
    EXPECT_COPIES(0, key, 20);
    memset(data, 0, sizeof(data));
    EXPECT_COPIES(0, key, sizeof(own.key));
    heap = malloc(200);
    plant(heap + 100, own.iv, PIECE);
    EXPECT_COPIES(1, iv, sizeof(own.iv));
    free(heap); /* not wiped */
    EXPECT_COPIES(1, iv, sizeof(own.iv));
}

/* ---- pyktls_linux_pack and pyktls_linux_unpack ----------------------------------------------- */

static unsigned char packed[56], taken_key[32], taken_iv[12];
static uint64_t taken_sequence;
static size_t key_length, room;
static uint16_t cipher;
static int result;

static void pack(void) {
    result = pyktls_linux_pack(packed, room, 0x0304, cipher, own.key, key_length, own.iv, sequence);
}

static void unpack(void) {
    uint16_t version, number;
    result = pyktls_linux_unpack(packed, room, &version, &number, taken_key, taken_iv,
                                 &taken_sequence);
}

static void clear(void) {
    memset(packed, 0, sizeof(packed));
    memset(taken_key, 0, sizeof(taken_key));
    memset(taken_iv, 0, sizeof(taken_iv));
    taken_sequence = 0;
}

static void packing_leaves_what_was_asked_for_only(void) {
    for (cipher = 50; cipher <= 59; cipher++) {
        for (key_length = 0; key_length <= 32; key_length += 16) {
            for (room = 0; room <= 56; room += 8) {
                make_secrets();
                clear();
                on_own_stack(pack);
                if (result > 0) {
                    EXPECT_COPIES(1, key, sizeof(own.key));
                    clear();
                }
                NOTHING_LEFT();
            }
        }
    }
}

static void unpacking_leaves_what_was_asked_for_only(void) {
    for (cipher = 51; cipher <= 58; cipher++) {
        key_length = cipher == 52 || cipher == 54 || cipher == 58 ? 32 : 16;
        size_t size = pyktls_linux_crypto_info_size(cipher);
        for (size_t given = 0; given <= size; given += size > given + 8 ? 8 : 1) {
            make_secrets();
            clear();
            room = size;
            pack();
            room = given;
            on_own_stack(unpack);
            CHECK_INT(result, given == size ? (int)key_length : -EINVAL);
            memset(packed, 0, sizeof(packed));
            EXPECT_COPIES(given == size, key, sizeof(own.key));
            EXPECT_COPIES(given == size, iv, sizeof(own.iv));
            clear();
            NOTHING_LEFT();
        }
    }
}

/* ---- pyktls_linux_set_keys ------------------------------------------------------------------- */

static int was_there;

static void in_setsockopt(void) {
    was_there = copies_of(own.key, sizeof(own.key), 0) > 0;
    was_there &= copies_of(own.iv, sizeof(own.iv), 0) > 0;
    was_there &= copies_of(own.sequence, sizeof(own.sequence), 0) > 0;
}

static void set_keys(void) {
    result = pyktls_linux_set_keys(3, 1, 0x0304, cipher, own.key, key_length, own.iv, sequence);
}

static void set_keys_wipes_on_every_way(void) {
    for (cipher = 50; cipher <= 59; cipher++) {
        for (key_length = 0; key_length <= 48; key_length += 16) {
            static const int errors[] = {0, EINVAL, EBUSY, ENOENT, ENOPROTOOPT, EBADF};
            for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
                make_secrets();
                reset_scripts();
                on_setsockopt.error = errors[i];
                on_setsockopt.during = spill_registers; /* a search would cover its own tracks */
                on_own_stack(set_keys);
                NOTHING_LEFT();
                if (on_setsockopt.calls == 0) {
                    CHECK_INT(result, -EINVAL);
                    break; /* the kernel was not asked: the others are the same */
                }
                CHECK_INT(result, -errors[i]);
                on_setsockopt.during = in_setsockopt;
                was_there = 0;
                on_own_stack(set_keys);
                CHECK(was_there);
            }
        }
    }
}

/* ---- the tap --------------------------------------------------------------------------------- */

static struct fake_ctx ctx;
static struct fake_ssl ssl;
static struct fake_session session;
static struct pyktls_tap_snapshot snapshot;
static char line[512]; /* OpenSSL's, which wipes its own */
static const unsigned char *digits; /* of the secret, in it */
static size_t secret_length;
static const char *label;

/* Byte by byte, as OpenSSL does it too. */
static void write_line(void) {
    static const char hex[] = "0123456789abcdef";
    volatile char *at = line;
    for (const char *c = label; *c != '\0'; c++) {
        *at++ = *c;
    }
    *at++ = ' ';
    for (int i = 0; i < 64; i++) {
        *at++ = '0';
    }
    *at++ = ' ';
    digits = (const unsigned char *)at;
    for (size_t i = 0; i < secret_length; i++) {
        *at++ = hex[own.key[i] >> 4];
        *at++ = hex[own.key[i] & 15];
    }
    *at = '\0';
}

static void hear(void) {
    ctx.keylog(&ssl, line);
}

static void read_tap(void) {
    pyktls_tap_read(&ssl, &snapshot);
}

/* Nor this. */
static void wipe_snapshot(void) {
    pyktls_tap_wipe(&snapshot, sizeof(snapshot));
}

/* Not on the subject's stack, which would be cleared for it. */
static void free_connection(void) {
    fake_ssl_free(&ssl);
}

static void begin_connection(int version) {
    memset(&ctx, 0, sizeof(ctx));
    CHECK_INT(pyktls_tap_watch(&ctx), PYKTLS_TAP_OK);
    fake_ssl_init(&ssl, &ctx);
    ssl.version = version;
    ssl.message(0, 0, 256, "\26\3\3\0\1", 5, &ssl, NULL);
}

/* The digits of a secret are as good as the secret. */
static void no_digits_left(void) {
    leave_out(line, sizeof(line));
    CHECK_INT(copies_of(digits, 2 * secret_length, 1), 0);
}

static void the_tap_keeps_a_secret_only_until_it_is_freed(void) {
    static const char *const labels[] = {"CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"};
    for (size_t i = 0; i < 2; i++) {
        for (secret_length = 32; secret_length <= 64; secret_length += 16) {
            make_secrets();
            begin_connection(0x0304);
            label = labels[i];
            write_line();
            on_own_stack(hear);
            no_digits_left();
            EXPECT_COPIES(1, key, sizeof(own.key));
            free_connection();
            NOTHING_LEFT();
            no_digits_left();
            fake_ctx_free(&ctx);
        }
    }
}

static void a_new_secret_takes_the_place_of_the_old(void) {
    secret_length = 48;
    label = "SERVER_TRAFFIC_SECRET_0";
    make_secrets();
    begin_connection(0x0304);
    write_line();
    on_own_stack(hear);
    EXPECT_COPIES(1, key, sizeof(own.key));
    static unsigned char old[48];
    plant(old, own.key, sizeof(old));
    make_secrets();
    leave_out(old, sizeof(old));
    label = "SERVER_TRAFFIC_SECRET_N";
    write_line();
    on_own_stack(hear);
    EXPECT_COPIES(1, key, sizeof(own.key));
    CHECK_INT(copies_of(old, sizeof(old), 1), 0);
    free_connection();
    NOTHING_LEFT();
    fake_ctx_free(&ctx);
}

static void a_line_that_is_cut_or_spoilt_leaves_no_secret(void) {
    /* It is not used, so it is not kept; and the one before it is out of use. */
    for (int spoilt = 0; spoilt < 3; spoilt++) {
        secret_length = 48;
        label = "SERVER_TRAFFIC_SECRET_0";
        make_secrets();
        begin_connection(0x0304);
        for (int round = 0; round < 2; round++) {
            write_line();
            if (round == 1) {
                char *end = line + (digits - (unsigned char *)line) + 2 * secret_length;
                if (spoilt == 0) {
                    end[-1] = '\0';
                } else if (spoilt == 1) {
                    end[-1] = 'x';
                } else {
                    memset(end, '0', 64);
                    end[64] = '\0';
                }
            }
            on_own_stack(hear);
        }
        on_own_stack(read_tap);
        CHECK_INT(snapshot.read.secret_length, 0);
        NOTHING_LEFT();
        free_connection();
        NOTHING_LEFT();
        fake_ctx_free(&ctx);
    }
}

static void a_snapshot_is_the_only_further_copy(void) {
    static const char *const labels[] = {"CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"};
    for (int i = 0; i < 2; i++) {
        make_secrets();
        secret_length = 48;
        label = labels[i];
        begin_connection(0x0304);
        write_line();
        on_own_stack(hear);
        on_own_stack(read_tap);
        CHECK_INT((i == 0 ? &snapshot.write : &snapshot.read)->secret_length, 48);
        free_connection();
        EXPECT_COPIES(1, key, sizeof(own.key));
        wipe_snapshot();
        NOTHING_LEFT();
        fake_ctx_free(&ctx);
    }
}

static void a_master_secret_is_in_the_snapshot_only(void) {
    make_secrets();
    begin_connection(0x0303);
    plant(session.master, own.key, sizeof(session.master));
    session.master_length = sizeof(session.master);
    ssl.session = &session;
    leave_out(&session, sizeof(session)); /* OpenSSL's own */
    on_own_stack(read_tap);
    CHECK_INT(snapshot.master_length, 48);
    EXPECT_COPIES(1, key, sizeof(own.key));
    wipe_snapshot();
    NOTHING_LEFT();
    free_connection();
    fake_ctx_free(&ctx);
    memset(&session, 0, sizeof(session));
}

/* ---- sealing --------------------------------------------------------------------------------- */

static const struct fake_aead *aead;
static unsigned char sealed[sizeof(data) + 16];

static void in_sealing(void) {
    was_there = copies_of(own.key, aead->key_size, 0) > 0;
}

static void seal(void) {
    result = pyktls_apart_seal(aead->name, own.key, own.iv, "\27\3\3\0\220", 5, data, sizeof(data),
                               sealed);
}

static void sealing_leaves_nothing_on_every_way(void) {
    for (aead = fake_aeads; aead < fake_aeads + FAKE_AEADS; aead++) {
        check_context = aead->name;
        result = PYKTLS_APART_REFUSED;
        for (int step = 0; result != PYKTLS_APART_OK; step++) {
            make_secrets();
            reset_openssl();
            on_openssl.fail_at = step;
            on_openssl.during = spill_registers; /* a search would cover its own tracks */
            on_own_stack(seal);
            CHECK_INT(result, on_openssl.failed == NULL ? PYKTLS_APART_OK : PYKTLS_APART_REFUSED);
            NOTHING_LEFT();
        }
        reset_openssl();
        on_openssl.during = in_sealing; /* it has to be there, in the context */
        was_there = 0;
        on_own_stack(seal);
        CHECK_INT(result, PYKTLS_APART_OK);
        CHECK(was_there);
        NOTHING_LEFT();
    }
    reset_openssl();
}

static const struct test tests[] = {
    TEST(the_search_finds_any_piece_anywhere),
    TEST(packing_leaves_what_was_asked_for_only),
    TEST(unpacking_leaves_what_was_asked_for_only),
    TEST(set_keys_wipes_on_every_way),
    TEST(the_tap_keeps_a_secret_only_until_it_is_freed),
    TEST(a_new_secret_takes_the_place_of_the_old),
    TEST(a_line_that_is_cut_or_spoilt_leaves_no_secret),
    TEST(a_snapshot_is_the_only_further_copy),
    TEST(a_master_secret_is_in_the_snapshot_only),
    TEST(sealing_leaves_nothing_on_every_way),
};

int main(int count, char **words) {
    if (count != 2 || dlopen(words[1], RTLD_NOW) == NULL ||
        pyktls_tap_open(words[1]) != PYKTLS_TAP_OK || pyktls_apart_open() != PYKTLS_APART_OK) {
        printf("usage: test_wipe MODULE\n");
        return 2;
    }
    return RUN_TESTS(tests);
}
