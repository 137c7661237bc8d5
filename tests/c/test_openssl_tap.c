/*
 * csrc/openssl_tap.c, watching an OpenSSL that is a row of structs (fake_libssl.h).
 *
 * The tap can be opened once in a process, so the first tests have to stay the first, and in order.
 * The program's argument is a shared library that is linked to the fake one, as CPython's _ssl
 * module is to the real one, and a copy of it that nobody loads.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "fake_libssl.h"
#include "openssl_tap.h"
#include "watched.h"

#define TLS_1_2 0x0303
#define TLS_1_3 0x0304

static const char *module_path, *unloaded_path;

/* ---- before it is open ----------------------------------------------------------------------- */

static void nothing_before_it_is_open(void) {
    struct fake_ctx ctx = {.options = 5};
    struct fake_ssl ssl;
    struct pyktls_tap_snapshot out, empty;
    fake_ssl_init(&ssl, &ctx);
    memset(&out, 0xee, sizeof(out));
    memset(&empty, 0, sizeof(empty));
    empty.encrypt_then_mac = -1;
    CHECK_INT(pyktls_tap_watch(&ctx), PYKTLS_TAP_NOT_OPEN);
    CHECK_INT(pyktls_tap_read(&ssl, &out), PYKTLS_TAP_NOT_OPEN);
    CHECK_BYTES(&out, &empty, sizeof(out));
    CHECK_INT(pyktls_tap_leave(&ssl), PYKTLS_TAP_NOT_OPEN);
    CHECK_INT(ssl.shutdown, 0);
    CHECK_INT(pyktls_tap_context_options(&ctx), 0);
    CHECK_INT(pyktls_tap_owned_by(&ssl, NULL), 0);
    CHECK(pyktls_tap_symbol("SSL_version") == NULL);
    CHECK_INT(pyktls_tap_follow(&ssl), PYKTLS_TAP_NOT_OPEN);
    CHECK_INT(pyktls_tap_kept(&ssl), PYKTLS_TAP_LOST);
    unsigned char untouched[16];
    memset(untouched, 0xee, sizeof(untouched));
    pyktls_tap_take(&ssl, untouched);
    CHECK_ALL(untouched, 0xee, sizeof(untouched));
    CHECK_INT(pyktls_tap_read_bytes(&ssl), 0);
    CHECK(ctx.keylog == NULL && ctx.message == NULL && ctx.info == NULL);
}

static void open_a_module_that_is_not_loaded(void) {
    CHECK_INT(pyktls_tap_open("/no/such/file"), PYKTLS_TAP_NOT_LOADED);
    CHECK_INT(pyktls_tap_open(unloaded_path), PYKTLS_TAP_NOT_LOADED);
    CHECK_INT(opens, 0);
    CHECK_INT(open_mode & RTLD_NOLOAD, RTLD_NOLOAD);
    CHECK(dlopen(unloaded_path, RTLD_NOLOAD | RTLD_NOW) == NULL); /* nor is it now */
    CHECK_INT(lookups, 0);
    CHECK(pyktls_tap_missing() == NULL);
}

static void open_with_each_name_missing(void) {
    fake_refused_class = 0; /* the last one goes through, and may not succeed yet */
    int names = 0;
    for (int result = PYKTLS_TAP_NO_SYMBOL; result == PYKTLS_TAP_NO_SYMBOL; names++) {
        opens = closes = lookups = 0;
        fail_lookup = names;
        failed_name = NULL;
        result = pyktls_tap_open(module_path);
        CHECK_INT(opens, 1);
        CHECK_INT(closes, 1);
        if (failed_name == NULL) {
            CHECK_INT(result, PYKTLS_TAP_NO_INDEX);
        } else {
            CHECK_INT(result, PYKTLS_TAP_NO_SYMBOL);
            CHECK(pyktls_tap_missing() != NULL && strcmp(pyktls_tap_missing(), failed_name) == 0);
            CHECK_INT(lookups, names + 1);
        }
    }
    CHECK(names > 20);
    fail_lookup = -1;
    struct fake_ctx ctx = {0};
    CHECK_INT(pyktls_tap_watch(&ctx), PYKTLS_TAP_NOT_OPEN);
}

static void open_without_an_index(void) {
    for (fake_refused_class = 0; fake_refused_class <= 1; fake_refused_class++) {
        opens = closes = 0;
        CHECK_INT(pyktls_tap_open(module_path), PYKTLS_TAP_NO_INDEX);
        CHECK_INT(opens, 1);
        CHECK_INT(closes, 1);
    }
    fake_refused_class = -1;
    struct fake_ctx ctx = {0};
    CHECK_INT(pyktls_tap_watch(&ctx), PYKTLS_TAP_NOT_OPEN);
}

static void open_it(void) {
    opens = closes = 0;
    CHECK_INT(pyktls_tap_open(module_path), PYKTLS_TAP_OK);
    CHECK_INT(opens, 1);
    CHECK_INT(closes, 0); /* the pointers are in use from now on */
    CHECK_INT(pyktls_tap_open(module_path), PYKTLS_TAP_OK);
    CHECK_INT(pyktls_tap_open("/no/such/file"), PYKTLS_TAP_OK);
    CHECK_INT(opens, 1);
    CHECK(pyktls_tap_symbol("SSL_version") != NULL);
    CHECK(pyktls_tap_symbol("SSL_of_no_library") == NULL);
}

/* ---- a connection ---------------------------------------------------------------------------- */

static struct fake_ctx ctx;
static struct fake_ssl ssl;
static struct pyktls_tap_snapshot seen;

static void connect_with(int version, int server) {
    memset(&ctx, 0, sizeof(ctx));
    CHECK_INT(pyktls_tap_watch(&ctx), PYKTLS_TAP_OK);
    fake_ssl_init(&ssl, &ctx);
    ssl.version = version;
    ssl.server = server;
    allocated = freed = freed_dirty = 0;
}

static void disconnect(void) {
    fake_ssl_free(&ssl);
    fake_ctx_free(&ctx);
}

static void look(void) {
    memset(&seen, 0xee, sizeof(seen));
    CHECK_INT(pyktls_tap_read(&ssl, &seen), PYKTLS_TAP_OK);
}

/* An event of the message callback; the data is in a block of its own, to be seen overrun. */
static void event(int write, int type, const void *data, size_t size) {
    void *exact = malloc(size + (size == 0));
    memcpy(exact, data, size);
    ssl.message(write, TLS_1_2, type, exact, size, &ssl, NULL);
    free(exact);
}

static void record_header(int write, int type, size_t length) {
    const unsigned char header[5] = {(unsigned char)type, 3, 3, (unsigned char)(length >> 8),
                                     (unsigned char)length};
    event(write, 256, header, sizeof(header));
}

static unsigned char secret[64];
static char line[2 * 64 + 1];

static void make_secret(size_t size, unsigned seed, const char *digits) {
    for (size_t i = 0; i < size; i++) {
        secret[i] = (unsigned char)(seed + i * 7);
    }
    for (size_t i = 0; i < size; i++) {
        line[2 * i] = digits[secret[i] >> 4];
        line[2 * i + 1] = digits[secret[i] & 15];
    }
    line[2 * size] = '\0';
}

static void keylog(const char *label, const char *hex) {
    char text[1024];
    snprintf(text, sizeof(text), "%s %064d %s", label, 7, hex);
    ctx.keylog(&ssl, text);
}

static void keylog_secret(const char *label, size_t size, unsigned seed) {
    make_secret(size, seed, "0123456789abcdef");
    keylog(label, line);
}

static const struct pyktls_tap_half *half(int write) {
    return write ? &seen.write : &seen.read;
}

static void secrets_of_both_roles(void) {
    for (int server = 0; server <= 1; server++) {
        for (int of_server = 0; of_server <= 1; of_server++) {
            for (size_t size = 32; size <= 64; size += 16) {
                connect_with(TLS_1_3, server);
                record_header(0, 22, 100);
                keylog_secret(of_server ? "SERVER_TRAFFIC_SECRET_0" : "CLIENT_TRAFFIC_SECRET_0",
                              size, 3);
                look();
                CHECK_INT(half(of_server == server)->live, 1);
                CHECK_INT(half(of_server == server)->secret_length, size);
                CHECK_BYTES(half(of_server == server)->secret, secret, size);
                CHECK_ALL(half(of_server == server)->secret + size, 0, 64 - size);
                CHECK_INT(half(of_server != server)->live, 0);
                CHECK_INT(half(of_server != server)->secret_length, 0);
                CHECK_ALL(half(of_server != server)->secret, 0, 64);
                disconnect();
            }
        }
    }
}

static void secrets_in_capital_digits(void) {
    connect_with(TLS_1_3, 0);
    record_header(0, 22, 100);
    make_secret(48, 200, "0123456789ABCDEF");
    keylog("SERVER_TRAFFIC_SECRET_0", line);
    look();
    CHECK_INT(seen.read.secret_length, 48);
    CHECK_BYTES(seen.read.secret, secret, 48);
    disconnect();
}

static void lines_that_are_no_secret(void) {
    static const char *const labels[] = {
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "EXPORTER_SECRET",                 "CLIENT_RANDOM",
        "CLIENT_EARLY_TRAFFIC_SECRET",     "client_traffic_secret_0",
        "CLIENT_TRAFFIC_SECRET",           "XSERVER_TRAFFIC_SECRET_0",
        "",
    };
    connect_with(TLS_1_3, 0);
    record_header(0, 22, 100);
    for (size_t i = 0; i < sizeof(labels) / sizeof(labels[0]); i++) {
        check_context = labels[i];
        keylog_secret(labels[i], 32, 9);
        look();
        CHECK(!seen.read.live && !seen.write.live);
        CHECK_ALL(seen.read.secret, 0, 64);
        CHECK_ALL(seen.write.secret, 0, 64);
    }
    disconnect();
}

static void secrets_that_are_no_hex(void) {
    static const char *const bad[] = {
        "abc", "0g", "zz", "/0", "0:", "@1", "1`", "G0", "0 ", "-1", "\xc3\xa9", "",
    };
    for (size_t i = 0; i <= sizeof(bad) / sizeof(bad[0]); i++) {
        connect_with(TLS_1_3, 0);
        record_header(0, 22, 100);
        make_secret(64, 1, "0123456789abcdef");
        check_context = "65 bytes";
        if (i < sizeof(bad) / sizeof(bad[0])) {
            check_context = bad[i];
            keylog("SERVER_TRAFFIC_SECRET_0", bad[i]);
        } else {
            char longer[160];
            snprintf(longer, sizeof(longer), "%s00", line);
            keylog("SERVER_TRAFFIC_SECRET_0", longer);
        }
        look();
        CHECK_INT(seen.read.live, 1); /* the keys did change: what is unknown is which they are */
        CHECK_INT(seen.read.secret_length, 0);
        disconnect();
    }
    connect_with(TLS_1_3, 0);
    record_header(0, 22, 100);
    ctx.keylog(&ssl, "SERVER_TRAFFIC_SECRET_0"); /* not even a space */
    look();
    CHECK_INT(seen.read.live, 0);
    disconnect();
}

static void secret_before_any_record(void) {
    connect_with(TLS_1_3, 0);
    keylog_secret("SERVER_TRAFFIC_SECRET_0", 32, 3);
    CHECK_INT(allocated, 0);
    look();
    CHECK_INT(seen.watched, 0);
    CHECK_INT(seen.read.secret_length, 0);
    disconnect();
}

static void records_of_tls_1_3(void) {
    connect_with(TLS_1_3, 1);
    record_header(0, 22, 512); /* ClientHello */
    record_header(1, 22, 90);  /* ServerHello */
    record_header(1, 20, 1);   /* ChangeCipherSpec for middleboxes: counts as bytes only */
    record_header(1, 23, 700);
    look();
    CHECK_INT(seen.watched, 1);
    CHECK_INT(seen.read.record_bytes, 517);
    CHECK_INT(seen.write.record_bytes, 95 + 6 + 705);
    CHECK_INT(seen.write.sequence, 0); /* not under application keys */
    keylog_secret("SERVER_TRAFFIC_SECRET_0", 32, 3);
    record_header(1, 23, 0x1234);
    record_header(1, 23, 20);
    record_header(1, 20, 1);
    record_header(1, 21, 2); /* in the clear: before the handshake's end */
    look();
    CHECK_INT(seen.write.sequence, 2);
    CHECK_INT(seen.write.record_bytes, 95 + 6 + 705 + 0x1239 + 25 + 6 + 7);
    CHECK_INT(seen.read.live, 0);
    keylog_secret("SERVER_TRAFFIC_SECRET_N", 32, 77); /* KeyUpdate */
    look();
    CHECK_INT(seen.write.sequence, 0);
    CHECK_BYTES(seen.write.secret, secret, 32);
    record_header(1, 23, 20);
    look();
    CHECK_INT(seen.write.sequence, 1);
    CHECK_INT(seen.read.sequence, 0);
    disconnect();
}

static void records_of_tls_1_2(void) {
    connect_with(TLS_1_2, 0);
    record_header(0, 22, 100);
    record_header(0, 23, 100);
    look();
    CHECK_INT(seen.read.live, 0);
    CHECK_INT(seen.read.sequence, 0);
    record_header(0, 20, 1); /* ChangeCipherSpec: the count begins */
    look();
    CHECK_INT(seen.read.live, 1);
    CHECK_INT(seen.read.sequence, 0);
    record_header(0, 22, 40); /* Finished is number 0 */
    record_header(0, 23, 0x4000);
    record_header(0, 21, 26); /* of every type */
    look();
    CHECK_INT(seen.read.sequence, 3);
    CHECK_INT(seen.read.record_bytes, 105 + 105 + 6 + 45 + 0x4005 + 31);
    CHECK_INT(seen.write.live, 0);
    CHECK_INT(seen.write.record_bytes, 0);
    record_header(0, 20, 1); /* renegotiation: new keys */
    look();
    CHECK_INT(seen.read.sequence, 0);
    disconnect();
}

static void a_header_of_another_size_ends_the_watch(void) {
    for (size_t size = 0; size <= 13; size++) {
        connect_with(TLS_1_2, 0);
        record_header(0, 22, 100);
        event(0, 256, "\26\3\3\0\144\0\0\0\0\0\0\0\0", size);
        look();
        CHECK_INT(seen.watched, size == 5);
        CHECK_INT(seen.read.record_bytes, size == 5 ? 210 : 0);
        disconnect();
    }
}

static void handshake_messages_against_their_records(void) {
    connect_with(TLS_1_3, 0);
    record_header(0, 22, 100);
    event(0, 257, "\26", 1); /* before the application keys: not looked at */
    event(0, 22, "\10abc", 4);
    look();
    CHECK_INT(seen.read.handshake_bytes, 0);
    keylog_secret("SERVER_TRAFFIC_SECRET_0", 32, 3);
    record_header(0, 23, 217); /* 200 bytes of a ticket of 300 */
    event(0, 257, "\26", 1);
    look();
    CHECK_INT(seen.read.handshake_bytes, 200);
    record_header(0, 23, 117);
    event(0, 257, "\26", 1);
    unsigned char ticket[300] = {4};
    event(0, 22, ticket, sizeof(ticket));
    look();
    CHECK_INT(seen.read.handshake_bytes, 0);
    record_header(0, 23, 30);
    event(0, 257, "\27", 1); /* data */
    event(0, 257, "\26\26", 2); /* no such event */
    event(0, 257, "", 0);
    event(0, 21, "\1\0", 2); /* an alert's message */
    event(1, 257, "\26", 1); /* what is written is never cut */
    event(1, 22, ticket, 10);
    look();
    CHECK_INT(seen.read.handshake_bytes, 0);
    CHECK_INT(seen.write.handshake_bytes, 0);
    event(0, 22, ticket, 7);
    look();
    CHECK_INT(seen.read.handshake_bytes, -7);
    keylog_secret("SERVER_TRAFFIC_SECRET_N", 32, 4);
    look();
    CHECK_INT(seen.read.handshake_bytes, 0);
    disconnect();
}

/* ---- ServerHello ----------------------------------------------------------------------------- */

static size_t server_hello(unsigned char *out, size_t session, const char *extensions,
                           size_t size) {
    memset(out, 0xaa, 512);
    out[0] = 2;
    out[38] = (unsigned char)session;
    size_t at = 39 + session + 3;
    out[at++] = (unsigned char)(size >> 8);
    out[at++] = (unsigned char)size;
    memcpy(out + at, extensions, size);
    return at + size;
}

static void encrypt_then_mac(void) {
    static const struct {
        const char *extensions;
        size_t size;
        int expected;
    } hellos[] = {
        {"", 0, 0},
        {"\0\26\0\0", 4, 1},
        {"\0\27\0\0\0\26\0\0", 8, 1},
        {"\0\20\0\2\0\26\0\26\0\0", 10, 1},
        {"\0\20\0\4\0\26\0\0", 8, 0}, /* inside another extension */
        {"\26\0\0\0", 4, 0},
        {"\1\26\0\0", 4, 0},
        {"\0\20\xff\xff\0\26\0\0", 8, 0}, /* a length beyond the end */
        {"\0\20\0\1\0\0\26\0\0", 9, 1},
        {"\0\20\1\0\0\26\0\0", 8, 0},
    };
    unsigned char hello[512];
    for (size_t i = 0; i < sizeof(hellos) / sizeof(hellos[0]); i++) {
        for (size_t session = 0; session <= 32; session += 32) {
            connect_with(TLS_1_2, 0);
            record_header(0, 22, 100);
            look();
            CHECK_INT(seen.encrypt_then_mac, -1);
            event(0, 22, hello, server_hello(hello, session, hellos[i].extensions, hellos[i].size));
            look();
            CHECK_INT(seen.encrypt_then_mac, hellos[i].expected);
            event(0, 22, "\13", 1); /* another message does not change it */
            event(0, 22, "", 0);
            event(0, 23, "\2", 1);
            look();
            CHECK_INT(seen.encrypt_then_mac, hellos[i].expected);
            disconnect();
        }
    }
}

static void server_hello_cut_anywhere(void) {
    unsigned char hello[512];
    for (size_t session = 0; session <= 32; session += 16) {
        size_t whole = server_hello(hello, session, "\0\27\0\0\0\26\0\0", 8);
        for (size_t size = 1; size <= whole; size++) {
            connect_with(TLS_1_2, 1);
            event(1, 22, hello, size);
            look();
            CHECK_INT(seen.encrypt_then_mac, size == whole);
            disconnect();
        }
    }
    /* A session's length that leads far beyond the end. */
    server_hello(hello, 255, "", 0);
    connect_with(TLS_1_2, 1);
    event(1, 22, hello, 60);
    look();
    CHECK_INT(seen.encrypt_then_mac, 0);
    /* The last one counts: renegotiation, or HelloRetryRequest. */
    event(1, 22, hello, server_hello(hello, 0, "\0\26\0\0", 4));
    look();
    CHECK_INT(seen.encrypt_then_mac, 1);
    event(1, 22, hello, server_hello(hello, 0, "", 0));
    look();
    CHECK_INT(seen.encrypt_then_mac, 0);
    disconnect();
}

/* ---- following ------------------------------------------------------------------------------- */

#define KEPT_HEADER 6
#define KEPT_MOST 0x100000

/* One whose tap is there, and which is followed. */
static void connect_and_follow(void) {
    connect_with(TLS_1_3, 0);
    record_header(0, 22, 100);
    CHECK_INT(pyktls_tap_follow(&ssl), PYKTLS_TAP_OK);
}

/* Takes what is kept, in a block of its own, and there is this and then nothing. */
static void check_kept(const void *expected, size_t size) {
    unsigned char *out = malloc(size + (size == 0));
    int64_t kept = pyktls_tap_kept(&ssl);
    CHECK_INT(kept, size);
    if (kept == (int64_t)size) {
        memset(out, 0x11, size + (size == 0));
        pyktls_tap_take(&ssl, out);
        CHECK_BYTES(out, expected, size);
        if (size == 0) {
            CHECK_ALL(out, 0x11, 1);
        }
        CHECK_INT(pyktls_tap_kept(&ssl), 0);
    }
    free(out);
}

static void check_lost(void) {
    unsigned char out[16];
    memset(out, 0x11, sizeof(out));
    CHECK_INT(pyktls_tap_kept(&ssl), PYKTLS_TAP_LOST);
    pyktls_tap_take(&ssl, out);
    CHECK_ALL(out, 0x11, sizeof(out));
}

static void following_is_for_those_that_are_watched(void) {
    struct fake_ctx other = {0};
    connect_with(TLS_1_3, 0);
    CHECK_INT(pyktls_tap_follow(&ssl), PYKTLS_TAP_REFUSED); /* nothing was seen of it yet */
    CHECK_INT(allocated, 0);
    check_lost();
    CHECK_INT(pyktls_tap_read_bytes(&ssl), 0);
    record_header(0, 22, 100);
    check_lost();
    CHECK_INT(pyktls_tap_read_bytes(&ssl), 0);
    ssl.ctx = &other;
    CHECK_INT(pyktls_tap_follow(&ssl), PYKTLS_TAP_REFUSED);
    check_lost();
    ssl.ctx = &ctx;
    CHECK_INT(pyktls_tap_follow(&ssl), PYKTLS_TAP_OK);
    check_kept("", 0);
    disconnect();
    connect_with(TLS_1_3, 0);
    event(0, 256, "\26\3\3", 3); /* no header of ours: the counts are wrong from now on */
    CHECK_INT(pyktls_tap_follow(&ssl), PYKTLS_TAP_REFUSED);
    check_lost();
    disconnect();
}

static void messages_and_alerts_of_both_directions_are_kept_in_order(void) {
    static const char all[] = "\0\26\0\0\0\5\30\0\0\1\1"
                              "\1\26\0\0\0\5\30\0\0\1\0"
                              "\1\25\0\0\0\2\2\12"
                              "\0\25\0\0\0\2\1\0"
                              "\1\25\0\0\0\2\1\0";
    connect_and_follow();
    check_kept("", 0);
    event(0, 22, "\30\0\0\1\1", 5);
    CHECK_INT(pyktls_tap_kept(&ssl), 11);
    event(1, 22, "\30\0\0\1\0", 5);
    CHECK_INT(pyktls_tap_kept(&ssl), 22);
    CHECK_INT(pyktls_tap_follow(&ssl), PYKTLS_TAP_OK); /* again is harmless */
    event(1, 21, "\2\12", 2);
    event(0, 21, "\1\0", 2);
    event(2, 21, "\1\0", 2); /* any truth is 1 */
    check_kept(all, sizeof(all) - 1);
    event(0, 21, "\1\0", 2); /* and on */
    check_kept("\0\25\0\0\0\2\1\0", 8);
    check_kept("", 0);
    ssl.message(1, TLS_1_2, 22, NULL, 0, &ssl, NULL); /* nothing is a message too */
    event(0, 21, "\1\0", 2);
    event(1, 21, "\1\0", 2);
    check_kept("\1\26\0\0\0\0"
               "\0\25\0\0\0\2\1\0"
               "\1\25\0\0\0\2\1\0",
               22);
    disconnect();
}

static void nothing_else_is_kept(void) {
    static const int types[] = {0, 20, 23, 24, 25, 255, 256, 257, 277, 278};
    connect_with(TLS_1_3, 0);
    record_header(0, 22, 100);
    event(0, 22, "\2\0\0\0", 4); /* before */
    event(1, 21, "\1\0", 2);
    CHECK_INT(allocated, 1); /* the connection's own */
    CHECK_INT(pyktls_tap_follow(&ssl), PYKTLS_TAP_OK);
    for (int write = 0; write <= 1; write++) {
        for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
            event(write, types[i], "\26\3\3\0\5", 5);
        }
        keylog_secret("SERVER_TRAFFIC_SECRET_N", 32, 3);
    }
    check_kept("", 0);
    CHECK_INT(allocated, 1);
    disconnect();
}

static void messages_of_any_size_are_kept_whole(void) {
    static const size_t sizes[] = {0,      1,       255,     256,           0x1234,
                                   0x4000, 0x12345, 0xfffff, KEPT_MOST - 1, KEPT_MOST};
    unsigned char *expected = malloc(KEPT_HEADER + KEPT_MOST);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        size_t size = sizes[i];
        expected[0] = 0;
        expected[1] = 22;
        expected[2] = 0;
        expected[3] = (unsigned char)(size / 0x10000);
        expected[4] = (unsigned char)(size / 0x100 % 0x100);
        expected[5] = (unsigned char)(size % 0x100);
        for (size_t j = 0; j < size; j++) {
            expected[KEPT_HEADER + j] = (unsigned char)(j * 7 + j / 256);
        }
        connect_and_follow();
        event(0, 22, expected + KEPT_HEADER, size);
        check_kept(expected, KEPT_HEADER + size);
        disconnect();
    }
    free(expected);
}

static void a_message_larger_than_any_is_lost_for_good(void) {
    unsigned char *large = calloc(1, KEPT_MOST + 1);
    connect_and_follow();
    event(0, 21, "\1\0", 2);
    CHECK_INT(pyktls_tap_kept(&ssl), 8);
    event(0, 22, large, KEPT_MOST + 1);
    check_lost();
    CHECK_INT(allocated, 2); /* it was not even tried */
    CHECK_INT(freed, 1);     /* and what there was nobody can ask for */
    event(0, 21, "\1\0", 2);
    check_lost();
    CHECK_INT(pyktls_tap_follow(&ssl), PYKTLS_TAP_OK);
    event(0, 21, "\1\0", 2);
    check_lost();
    CHECK_INT(allocated, 2);
    /* What is counted is counted on. */
    record_header(0, 23, 20);
    CHECK_INT(pyktls_tap_read_bytes(&ssl), 130);
    disconnect();
    free(large);
}

static void what_nobody_takes_is_lost_some_time(void) {
    unsigned char *large = calloc(1, KEPT_MOST + 1);
    for (int over = 0; over <= 1; over++) {
        connect_and_follow();
        event(0, 22, large, KEPT_MOST - KEPT_HEADER + (size_t)over);
        CHECK_INT(pyktls_tap_kept(&ssl), KEPT_MOST + over);
        event(0, 21, "\1\0", 2);
        if (over) {
            check_lost();
        } else {
            CHECK_INT(pyktls_tap_kept(&ssl), KEPT_MOST + 8);
        }
        disconnect();
        CHECK_INT(freed, allocated + 1); /* the context's was made before the count */
        CHECK_INT(freed_dirty, 0);
    }
    free(large);
}

static void without_memory_a_message_is_lost_for_good(void) {
    for (int before = 0; before <= 1; before++) {
        connect_and_follow();
        if (before) {
            event(0, 22, "\4\0\0\1a", 5);
            CHECK_INT(pyktls_tap_kept(&ssl), 11);
        }
        no_memory = 1;
        event(1, 21, "\1\0", 2);
        no_memory = 0;
        check_lost();
        CHECK_INT(freed, before);
        CHECK_INT(freed_dirty, 0);
        event(1, 21, "\1\0", 2);
        check_lost();
        CHECK_INT(allocated, 1 + before);
        disconnect();
    }
}

static void what_is_kept_is_wiped_each_time_and_freed_with_the_connection(void) {
    unsigned char out[64];
    connect_and_follow();
    event(0, 22, "\4\0\0\1a", 5);
    event(0, 22, "\4\0\0\1b", 5); /* moves to a larger block */
    CHECK_INT(allocated, 3);
    CHECK_INT(freed, 1);
    pyktls_tap_take(&ssl, out);
    CHECK_INT(freed, 2);
    event(0, 22, "\4\0\0\1c", 5);
    CHECK_INT(allocated, 4);
    fake_ssl_free(&ssl); /* with the last one in it */
    CHECK_INT(freed, 4);
    CHECK_INT(freed_dirty, 0);
    fake_ctx_free(&ctx);
}

static void two_connections_are_followed_apart(void) {
    connect_and_follow();
    struct fake_ssl other;
    fake_ssl_init(&other, &ctx);
    other.version = TLS_1_3;
    other.message(0, 0, 256, "\26\3\3\0\1", 5, &other, NULL);
    event(0, 21, "\1\0", 2);
    other.message(0, 0, 21, "\2\50", 2, &other, NULL); /* not followed yet */
    CHECK_INT(pyktls_tap_kept(&other), PYKTLS_TAP_LOST);
    CHECK_INT(pyktls_tap_follow(&other), PYKTLS_TAP_OK);
    other.message(0, 0, 21, "\2\51", 2, &other, NULL);
    CHECK_INT(pyktls_tap_kept(&other), 8);
    CHECK_INT(pyktls_tap_read_bytes(&other), 6);
    CHECK_INT(pyktls_tap_read_bytes(&ssl), 105);
    check_kept("\0\25\0\0\0\2\1\0", 8);
    CHECK_INT(pyktls_tap_kept(&other), 8);
    fake_ssl_free(&other);
    disconnect();
}

static void bytes_that_were_begun_to_be_read(void) {
    connect_and_follow();
    CHECK_INT(pyktls_tap_read_bytes(&ssl), 105);
    record_header(1, 23, 0x4000); /* not what is sent */
    CHECK_INT(pyktls_tap_read_bytes(&ssl), 105);
    uint64_t expected = 105;
    for (int i = 0; i < 70000; i++) { /* more than 32 bits hold */
        record_header(0, 23, 0xffff);
        expected += 0x10004;
    }
    CHECK(pyktls_tap_read_bytes(&ssl) == expected && expected > UINT32_MAX);
    look();
    CHECK(seen.read.record_bytes == expected);
    disconnect();
}

/* ---- what it reads of the connection --------------------------------------------------------- */

static void read_all_fields(void) {
    static struct fake_bio in = {.read = 0x100000005, .written = 1, .ktls_recv = 1},
                           out = {.read = 2, .written = 0x200000006, .ktls_send = 1};
    static struct fake_session session = {.max_fragment = 0, .master_length = 48};
    connect_with(TLS_1_2, 1);
    memset(session.master, 0x77, sizeof(session.master));
    memset(ssl.client_random, 0xc1, 32);
    memset(ssl.server_random, 0x5e, 32);
    ssl.in_init = 4; /* any truth is 1 */
    ssl.server = 2;
    ssl.shutdown = 2;
    ssl.pending = 99;
    ssl.key_update = 0;
    ssl.compressed = 1;
    ssl.early_data = 2;
    ssl.cipher = 0xc02f;
    ssl.read_bio = &in;
    ssl.write_bio = &out;
    ssl.session = &session;
    look();
    CHECK_INT(seen.watched, 0);
    CHECK_INT(seen.keylog_replaced, 0);
    CHECK_INT(seen.version, TLS_1_2);
    CHECK_INT(seen.suite, 0xc02f);
    CHECK_INT(seen.server, 1);
    CHECK_INT(seen.in_init, 1);
    CHECK_INT(seen.shutdown, 2);
    CHECK_INT(seen.pending, 99);
    CHECK_INT(seen.key_update_due, 1);
    CHECK_INT(seen.compressed, 1);
    CHECK_INT(seen.early_data, 1);
    CHECK_INT(seen.ktls_recv, 1);
    CHECK_INT(seen.ktls_send, 1);
    CHECK_INT(seen.read.moved_bytes, 0x100000005);
    CHECK_INT(seen.write.moved_bytes, 0x200000006);
    CHECK_INT(seen.max_fragment, 0);
    CHECK_INT(seen.encrypt_then_mac, -1);
    CHECK_INT(seen.master_length, 48);
    CHECK_BYTES(seen.master, session.master, 48);
    CHECK_ALL(seen.client_random, 0xc1, 32);
    CHECK_ALL(seen.server_random, 0x5e, 32);
    in.ktls_recv = 0;
    out.ktls_send = 0;
    in.ktls_send = out.ktls_recv = 1; /* asked of the wrong side, it would be this */
    look();
    CHECK_INT(seen.ktls_recv, 0);
    CHECK_INT(seen.ktls_send, 0);
    in.ktls_recv = out.ktls_send = -1; /* a BIO that does not know the question */
    look();
    CHECK_INT(seen.ktls_recv, 0);
    CHECK_INT(seen.ktls_send, 0);
    ssl.version = TLS_1_3; /* where there is a resumption secret in that place */
    look();
    CHECK_INT(seen.master_length, 0);
    CHECK_ALL(seen.master, 0, 48);
    CHECK_INT(fake_misuse, 0);
    disconnect();
}

static void read_a_connection_that_has_not_begun(void) {
    connect_with(TLS_1_3, 0);
    ssl.early_data = 1;
    look();
    struct pyktls_tap_snapshot expected;
    memset(&expected, 0, sizeof(expected));
    expected.version = TLS_1_3;
    expected.suite = -1;
    expected.encrypt_then_mac = -1;
    CHECK_BYTES(&seen, &expected, sizeof(seen));
    disconnect();
}

static void max_fragment_length(void) {
    static const int bytes[] = {0, 512, 1024, 2048, 4096};
    struct fake_session session = {0};
    connect_with(TLS_1_3, 0);
    ssl.session = &session;
    for (uint8_t code = 0; code <= 4; code++) {
        session.max_fragment = code;
        look();
        CHECK_INT(seen.max_fragment, bytes[code]);
    }
    disconnect();
}

static void context_options_and_owner(void) {
    int owner, other;
    connect_with(TLS_1_3, 0);
    ctx.options = 0x8000000080000054;
    ssl.ex_data[0] = &owner;
    CHECK(pyktls_tap_context_options(&ctx) == 0x8000000080000054);
    CHECK_INT(pyktls_tap_owned_by(&ssl, &owner), 1);
    CHECK_INT(pyktls_tap_owned_by(&ssl, &other), 0);
    disconnect();
}

static void leave(void) {
    connect_with(TLS_1_3, 0);
    CHECK_INT(pyktls_tap_leave(&ssl), PYKTLS_TAP_OK);
    CHECK_INT(ssl.shutdown, 3);
    disconnect();
}

/* ---- who else listens ------------------------------------------------------------------------ */

static int calls_a, calls_b, info_calls;
static const char *last_line;

static void keylog_a(const void *connection, const char *text) {
    (void)connection;
    calls_a++;
    last_line = text;
}

static void keylog_b(const void *connection, const char *text) {
    (void)connection, (void)text;
    calls_b++;
}

static int info_where, info_result;

static void info(const void *connection, int where, int result) {
    info_calls += connection == &ssl;
    info_where = where;
    info_result = result;
}

static void those_who_listened_before_still_hear(void) {
    static const char text[] = "CLIENT_RANDOM 00 00";
    memset(&ctx, 0, sizeof(ctx));
    ctx.keylog = keylog_a;
    ctx.info = info;
    CHECK_INT(pyktls_tap_watch(&ctx), PYKTLS_TAP_OK);
    CHECK_INT(pyktls_tap_watch(&ctx), PYKTLS_TAP_OK); /* again is harmless: no ring of callbacks */
    fake_ssl_init(&ssl, &ctx);
    calls_a = info_calls = 0;
    ctx.keylog(&ssl, text);
    CHECK_INT(calls_a, 1);
    CHECK(last_line == text);
    ctx.info(&ssl, 0x2001, 1);
    CHECK_INT(info_calls, 1);
    CHECK_INT(info_where, 0x2001);
    CHECK_INT(info_result, 1);
    disconnect();
}

static void one_who_took_our_place_is_put_behind_us(void) {
    connect_with(TLS_1_3, 0);
    record_header(0, 22, 100);
    ctx.keylog = keylog_b;
    ctx.info = info;
    look();
    CHECK_INT(seen.keylog_replaced, 1);
    CHECK_INT(pyktls_tap_watch(&ctx), PYKTLS_TAP_OK);
    CHECK_INT(allocated, 1); /* the connection's: the context has its own already */
    look();
    CHECK_INT(seen.keylog_replaced, 0);
    calls_b = info_calls = 0;
    keylog_secret("SERVER_TRAFFIC_SECRET_0", 32, 3);
    ctx.info(&ssl, 1, 1);
    CHECK_INT(calls_b, 1);
    CHECK_INT(info_calls, 1);
    look();
    CHECK_INT(seen.read.secret_length, 32);
    disconnect();
}

static void two_contexts_do_not_mix(void) {
    struct fake_ctx first = {.keylog = keylog_a}, second = {.keylog = keylog_b};
    struct fake_ssl one, two;
    struct pyktls_tap_snapshot of_one, of_two;
    CHECK_INT(pyktls_tap_watch(&first), PYKTLS_TAP_OK);
    CHECK_INT(pyktls_tap_watch(&second), PYKTLS_TAP_OK);
    fake_ssl_init(&one, &first);
    fake_ssl_init(&two, &second);
    one.version = two.version = TLS_1_3;
    calls_a = calls_b = 0;
    one.message(0, 0, 256, "\26\3\3\0\1", 5, &one, NULL);
    two.message(0, 0, 256, "\26\3\3\0\2", 5, &two, NULL);
    first.keylog(&one, "SERVER_TRAFFIC_SECRET_0 00 aaaa");
    CHECK_INT(calls_a, 1);
    CHECK_INT(calls_b, 0);
    second.keylog(&two, "SERVER_TRAFFIC_SECRET_0 00 bbbbbb");
    CHECK_INT(calls_a, 1);
    CHECK_INT(calls_b, 1);
    CHECK_INT(pyktls_tap_read(&one, &of_one), PYKTLS_TAP_OK);
    CHECK_INT(pyktls_tap_read(&two, &of_two), PYKTLS_TAP_OK);
    CHECK_INT(of_one.read.secret_length, 2);
    CHECK_INT(of_two.read.secret_length, 3);
    CHECK_INT(of_one.read.record_bytes, 6);
    CHECK_INT(of_two.read.record_bytes, 7);
    CHECK_ALL(of_one.read.secret, 0xaa, 2);
    CHECK_ALL(of_two.read.secret, 0xbb, 3);
    /* The first moves to the second's context (sni_callback): it is watched there too. */
    one.ctx = &second;
    CHECK_INT(pyktls_tap_read(&one, &of_one), PYKTLS_TAP_OK);
    CHECK_INT(of_one.watched, 1);
    fake_ssl_free(&one);
    fake_ssl_free(&two);
    fake_ctx_free(&first);
    fake_ctx_free(&second);
}

static void a_connection_that_moved_to_an_unwatched_context(void) {
    struct fake_ctx other = {.keylog = keylog_b};
    connect_with(TLS_1_3, 1);
    record_header(0, 22, 100);
    look();
    CHECK_INT(seen.watched, 1);
    ssl.ctx = &other;
    look();
    CHECK_INT(seen.watched, 0);
    CHECK_INT(seen.keylog_replaced, 1);
    CHECK_INT(seen.read.record_bytes, 0);
    /* Our callbacks may still come, and find no context of ours. */
    keylog_secret("SERVER_TRAFFIC_SECRET_0", 32, 3);
    ctx.info(&ssl, 1, 1);
    disconnect();
}

static void the_message_callback_is_put_back(void) {
    connect_with(TLS_1_3, 1);
    ssl.message = NULL;
    ctx.info(&ssl, 0x10, 1);
    CHECK(ssl.message == NULL); /* nothing of ours was ever on this connection */
    ssl.message = ctx.message;
    record_header(0, 22, 100);
    ssl.message = NULL; /* as CPython does when sni_callback changes the context */
    ctx.info(&ssl, 0x10, 1);
    CHECK(ssl.message == ctx.message);
    disconnect();
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void freeing_wipes_and_leaves_nothing(void) {
    connect_with(TLS_1_3, 1);
    record_header(0, 22, 100);
    keylog_secret("SERVER_TRAFFIC_SECRET_0", 64, 3);
    keylog_secret("CLIENT_TRAFFIC_SECRET_0", 64, 5);
    CHECK_INT(allocated, 1);
    fake_ssl_free(&ssl);
    CHECK_INT(freed, 1);
    CHECK_INT(freed_dirty, 0);
    fake_ctx_free(&ctx);
    CHECK_INT(freed, 2);
}

static void without_memory_nothing_is_watched(void) {
    memset(&ctx, 0, sizeof(ctx));
    no_memory = 1;
    CHECK_INT(pyktls_tap_watch(&ctx), PYKTLS_TAP_REFUSED);
    CHECK(ctx.keylog == NULL && ctx.message == NULL && ctx.info == NULL);
    no_memory = 0;
    connect_with(TLS_1_3, 0);
    no_memory = 1;
    record_header(0, 22, 100);
    no_memory = 0;
    keylog_secret("SERVER_TRAFFIC_SECRET_0", 32, 3);
    look();
    CHECK_INT(seen.watched, 0);
    disconnect();
    CHECK_INT(allocated, 0);
}

static void data_that_openssl_refuses_is_freed(void) {
    memset(&ctx, 0, sizeof(ctx));
    ctx.refuses_ex_data = 1;
    allocated = freed = 0;
    CHECK_INT(pyktls_tap_watch(&ctx), PYKTLS_TAP_REFUSED);
    CHECK(ctx.keylog == NULL && ctx.message == NULL && ctx.info == NULL);
    CHECK_INT(allocated, 1);
    CHECK_INT(freed, 1);
    connect_with(TLS_1_3, 0);
    ssl.refuses_ex_data = 1;
    record_header(0, 22, 100);
    record_header(0, 22, 100);
    CHECK_INT(allocated, 2);
    CHECK_INT(freed, 2);
    look();
    CHECK_INT(seen.watched, 0);
    disconnect();
}

static void wiping(void) {
    unsigned char bytes[40];
    for (size_t size = 0; size <= 24; size++) {
        memset(bytes, 0xee, sizeof(bytes));
        pyktls_tap_wipe(bytes + 8, size);
        CHECK_ALL(bytes, 0xee, 8);
        CHECK_ALL(bytes + 8, 0, size);
        CHECK_ALL(bytes + 8 + size, 0xee, 32 - size);
    }
}

static const struct test tests[] = {
    /* In this order: see above. */
    TEST(nothing_before_it_is_open),
    TEST(open_a_module_that_is_not_loaded),
    TEST(open_with_each_name_missing),
    TEST(open_without_an_index),
    TEST(open_it),
    /* In any. */
    TEST(secrets_of_both_roles),
    TEST(secrets_in_capital_digits),
    TEST(lines_that_are_no_secret),
    TEST(secrets_that_are_no_hex),
    TEST(secret_before_any_record),
    TEST(records_of_tls_1_3),
    TEST(records_of_tls_1_2),
    TEST(a_header_of_another_size_ends_the_watch),
    TEST(handshake_messages_against_their_records),
    TEST(encrypt_then_mac),
    TEST(server_hello_cut_anywhere),
    TEST(following_is_for_those_that_are_watched),
    TEST(messages_and_alerts_of_both_directions_are_kept_in_order),
    TEST(nothing_else_is_kept),
    TEST(messages_of_any_size_are_kept_whole),
    TEST(a_message_larger_than_any_is_lost_for_good),
    TEST(what_nobody_takes_is_lost_some_time),
    TEST(without_memory_a_message_is_lost_for_good),
    TEST(what_is_kept_is_wiped_each_time_and_freed_with_the_connection),
    TEST(two_connections_are_followed_apart),
    TEST(bytes_that_were_begun_to_be_read),
    TEST(read_all_fields),
    TEST(read_a_connection_that_has_not_begun),
    TEST(max_fragment_length),
    TEST(context_options_and_owner),
    TEST(leave),
    TEST(those_who_listened_before_still_hear),
    TEST(one_who_took_our_place_is_put_behind_us),
    TEST(two_contexts_do_not_mix),
    TEST(a_connection_that_moved_to_an_unwatched_context),
    TEST(the_message_callback_is_put_back),
    TEST(freeing_wipes_and_leaves_nothing),
    TEST(without_memory_nothing_is_watched),
    TEST(data_that_openssl_refuses_is_freed),
    TEST(wiping),
};

int main(int count, char **words) {
    if (count != 3 || dlopen(words[1], RTLD_NOW) == NULL) {
        printf("usage: test_openssl_tap MODULE UNLOADED_MODULE\n");
        return 2;
    }
    module_path = words[1];
    unloaded_path = words[2];
    return RUN_TESTS(tests);
}
