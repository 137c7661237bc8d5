/*
 * csrc/openssl_half.c, calling an OpenSSL that is a row of structs (fake_libssl.h).
 *
 * It can be opened once in a process, so the first tests have to stay the first, and in order.  The
 * program's argument is a shared library that is linked to the fake one.
 *
 * What the real OpenSSL reads and writes so is in tests/kernel/test_directions.py.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "connection.h"
#include "openssl_half.h"

#define ERROR_SSL 1
#define ERROR_WANT_READ 2
#define ERROR_ZERO_RETURN 6
#define AUTO_RETRY 4L
#define NO_RENEGOTIATION ((uint64_t)1 << 30)

static const char *module_path;
static const char *reason;
static const char untouched[] = "what was there before";

static void begin(int direction) {
    connect_it();
    CHECK_INT(pyktls_half_begin(&ssl, direction), PYKTLS_HALF_OK);
    reset_openssl();
    reason = untouched;
}

/* Errors that others have left, and which are nobody's any more. */
static void leave_old_errors(void) {
    on_openssl.errors = 3;
    on_openssl.oldest = FAKE_OLD_ERROR;
}

static void check_reason(const char *expected) {
    if (expected == NULL) {
        CHECK(reason == NULL);
    } else {
        CHECK(reason != NULL && strcmp(reason, expected) == 0);
    }
}

/* All that was made for the socket is this.  Takes it, in a block of its own to be seen overrun. */
static void check_made(const void *expected, size_t size) {
    unsigned char *out = malloc(size + (size == 0));
    CHECK_INT(pyktls_half_made(&ssl), size);
    if (size > 0 && pyktls_half_made(&ssl) == size) {
        CHECK_INT(pyktls_half_take(&ssl, out, size), PYKTLS_HALF_OK);
        CHECK_BYTES(out, expected, size);
        CHECK_INT(pyktls_half_made(&ssl), 0);
    }
    free(out);
}

/* ---- before it is open ----------------------------------------------------------------------- */

static void nothing_works_yet(void) {
    static const size_t sizes[] = {0, 1, sizeof(untouched), SIZE_MAX};
    unsigned char out[sizeof(untouched)];
    memset(out, 0xee, sizeof(out));
    connect_it();
    ssl.pending = 9;
    ssl.read.result = ssl.peek.result = 4;
    CHECK_INT(pyktls_half_begin(&ssl, PYKTLS_HALF_READS), PYKTLS_HALF_NOT_OPEN);
    CHECK_INT(pyktls_half_begin(&ssl, PYKTLS_HALF_WRITES), PYKTLS_HALF_NOT_OPEN);
    CHECK(ssl.read_bio == &reads && ssl.write_bio == &writes);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        CHECK_INT(pyktls_half_feed(&ssl, untouched, sizes[i]), PYKTLS_HALF_NOT_OPEN);
        for (int peek = 0; peek <= 1; peek++) {
            reason = untouched;
            CHECK_INT(pyktls_half_read(&ssl, out, sizes[i], peek, &reason), PYKTLS_HALF_NOT_OPEN);
            check_reason(NULL);
        }
        reason = untouched;
        CHECK_INT(pyktls_half_write(&ssl, untouched, sizes[i], &reason), PYKTLS_HALF_NOT_OPEN);
        check_reason(NULL);
        CHECK_INT(pyktls_half_take(&ssl, out, sizes[i]), PYKTLS_HALF_NOT_OPEN);
    }
    CHECK_INT(pyktls_half_pending(&ssl), 0);
    CHECK_INT(pyktls_half_made(&ssl), 0);
    CHECK_INT(pyktls_half_close_notify(&ssl), PYKTLS_HALF_NOT_OPEN);
    CHECK_INT(pyktls_half_key_update(&ssl, 0), PYKTLS_HALF_NOT_OPEN);
    CHECK_INT(pyktls_half_key_update(&ssl, 1), PYKTLS_HALF_NOT_OPEN);
    CHECK_ALL(out, 0xee, sizeof(out));
    CHECK_INT(on_openssl.calls, 0);
    CHECK_INT(ssl.read.calls + ssl.peek.calls, 0);
    disconnect();
}

static void open_before_the_tap(void) {
    opens_after_the_tap(pyktls_half_open, PYKTLS_HALF_NOT_OPEN, module_path, nothing_works_yet);
}

static void open_with_each_name_missing(void) {
    CHECK(opens_with_all_names(pyktls_half_open, PYKTLS_HALF_NOT_OPEN, nothing_works_yet) > 20);
}

/* ---- pyktls_half_begin ----------------------------------------------------------------------- */

#define EACH_DIRECTION direction = PYKTLS_HALF_READS; direction <= PYKTLS_HALF_WRITES; direction++

static void beginning_takes_the_socket_away(void) {
    for (int EACH_DIRECTION) {
        connect_it();
        ssl.shutdown = SENT;
        ssl.mode = ~0L;
        ssl.options = 5;
        CHECK_INT(pyktls_half_begin(&ssl, direction), PYKTLS_HALF_OK);
        CHECK_INT(reads.released, 1);
        CHECK_INT(writes.released, 1);
        CHECK_INT(ssl.read_bio->method, FAKE_MEMORY);
        CHECK_INT(ssl.read_bio->at_end, -1); /* nothing yet, not the end of all */
        CHECK_INT(ssl.read_bio->size, 0);
        /* What one that only reads would write is lost, lest it be gathered for ever. */
        CHECK_INT(ssl.write_bio->method, direction == PYKTLS_HALF_READS ? FAKE_NULL : FAKE_MEMORY);
        CHECK_INT(ssl.mode, ~AUTO_RETRY);
        CHECK(ssl.options == (5 | NO_RENEGOTIATION));
        CHECK_INT(ssl.shutdown, SENT);
        CHECK_INT(on_openssl.bios, 2);
        disconnect();
        CHECK_INT(reads.released + writes.released, 2);
    }
}

static void beginning_where_there_is_one_bio_or_none(void) {
    for (int EACH_DIRECTION) {
        connect_it();
        ssl.write_bio = &reads; /* as CPython's: the connection holds it twice */
        CHECK_INT(pyktls_half_begin(&ssl, direction), PYKTLS_HALF_OK);
        CHECK_INT(reads.released, 2);
        disconnect();
        connect_it();
        ssl.read_bio = ssl.write_bio = NULL;
        CHECK_INT(pyktls_half_begin(&ssl, direction), PYKTLS_HALF_OK);
        CHECK(ssl.read_bio != NULL && ssl.write_bio != NULL);
        disconnect();
    }
}

static void beginning_again_leaves_nothing_behind(void) {
    for (int EACH_DIRECTION) {
        begin(direction);
        CHECK_INT(pyktls_half_begin(&ssl, direction), PYKTLS_HALF_OK);
        CHECK_INT(on_openssl.bios, 2);
        disconnect();
    }
}

static void beginning_without_memory_changes_nothing(void) {
    static const struct {
        int fail_at, fail_for;
    } cases[] = {{0, 1}, {1, 1}, {0, 2}};
    for (int EACH_DIRECTION) {
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            connect_it();
            ssl.mode = AUTO_RETRY;
            on_openssl.fail_at = cases[i].fail_at;
            on_openssl.fail_for = cases[i].fail_for;
            CHECK_INT(pyktls_half_begin(&ssl, direction), PYKTLS_HALF_FAILED);
            CHECK(on_openssl.failed != NULL && strcmp(on_openssl.failed, "BIO_new") == 0);
            CHECK(ssl.read_bio == &reads && ssl.write_bio == &writes);
            CHECK_INT(reads.released + writes.released, 0);
            CHECK_INT(ssl.mode, AUTO_RETRY);
            CHECK_INT(ssl.options, 0);
            CHECK_INT(on_openssl.bios, 0);
            disconnect();
        }
    }
}

/* ---- pyktls_half_feed ------------------------------------------------------------------------ */

static const unsigned char records[] = "\27\3\3\0\4one.\27\3\3\0\4two.";
#define RECORDS (sizeof(records) - 1)

static void feeding_is_for_reading(void) {
    unsigned char byte;
    begin(PYKTLS_HALF_READS);
    CHECK_INT(pyktls_half_feed(&ssl, records, 5), PYKTLS_HALF_OK);
    CHECK_INT(pyktls_half_feed(&ssl, records + 5, 0), PYKTLS_HALF_OK);
    CHECK_INT(pyktls_half_feed(&ssl, records + 5, RECORDS - 5), PYKTLS_HALF_OK);
    CHECK_INT(ssl.read.calls + ssl.peek.calls, 0); /* it only brings */
    CHECK_INT(pyktls_half_read(&ssl, &byte, 1, 0, &reason), PYKTLS_HALF_WANTS_MORE);
    CHECK_INT(ssl.taken_size, RECORDS);
    CHECK_BYTES(ssl.taken, records, RECORDS);
    CHECK_INT(ssl.write_bio->written, 0);
    disconnect();
}

static void feeding_without_memory(void) {
    for (size_t room = 0; room <= RECORDS; room++) {
        begin(PYKTLS_HALF_READS);
        ssl.read_bio->room = room;
        CHECK_INT(pyktls_half_feed(&ssl, records, RECORDS),
                  room == RECORDS ? PYKTLS_HALF_OK : PYKTLS_HALF_FAILED);
        disconnect();
    }
    for (int failure = -2; failure <= (int)RECORDS + 1; failure++) {
        begin(PYKTLS_HALF_READS);
        on_openssl.fail_at = 0;
        on_openssl.failure = failure;
        on_openssl.silently = failure == (int)RECORDS;
        CHECK_INT(pyktls_half_feed(&ssl, records, RECORDS),
                  failure == (int)RECORDS ? PYKTLS_HALF_OK : PYKTLS_HALF_FAILED);
        CHECK(on_openssl.failed != NULL && strcmp(on_openssl.failed, "BIO_write") == 0);
        disconnect();
    }
    connect_it();
    ssl.read_bio = NULL;
    CHECK_INT(pyktls_half_feed(&ssl, records, RECORDS), PYKTLS_HALF_FAILED);
    disconnect();
}

static void feeding_more_than_an_int_holds(void) {
    begin(PYKTLS_HALF_READS);
    for (size_t i = 0; i < TOO_MUCH; i++) {
        leave_old_errors();
        CHECK_INT(pyktls_half_feed(&ssl, records, too_much[i]), PYKTLS_HALF_FAILED);
        CHECK_INT(on_openssl.errors, 0);
    }
    CHECK_INT(on_openssl.calls, 0);
    ssl.read_bio->room = 0; /* so that there need not be so much */
    CHECK_INT(pyktls_half_feed(&ssl, records, INT_MAX), PYKTLS_HALF_FAILED);
    CHECK_INT(ssl.read_bio->last_length, INT_MAX);
    disconnect();
}

/* ---- pyktls_half_read ------------------------------------------------------------------------ */

/* Calls it with the script for the one call; the other must not come. */
static int64_t read_with(const struct fake_reading *script, int peek, void *out, size_t room) {
    struct fake_reading *asked = peek ? &ssl.peek : &ssl.read;
    *asked = *script;
    (peek ? &ssl.read : &ssl.peek)->result = 1;
    reason = untouched;
    int64_t result = pyktls_half_read(&ssl, out, room, peek, &reason);
    CHECK_INT(asked->calls, 1);
    CHECK_INT((peek ? ssl.read : ssl.peek).calls, 0);
    CHECK_INT(on_openssl.errors, 0); /* on every way */
    return result;
}

static void reading_gives_data(void) {
    unsigned char out[20];
    for (int peek = 0; peek <= 1; peek++) {
        for (size_t room = 1; room <= 16; room++) {
            for (int there = 1; there <= 17; there++) {
                size_t given = (size_t)there < room ? (size_t)there : room;
                struct fake_reading script = {.result = there};
                memset(out, 0x11, sizeof(out));
                begin(PYKTLS_HALF_READS);
                leave_old_errors();
                CHECK_INT(read_with(&script, peek, out, room), given);
                CHECK_INT((peek ? ssl.peek : ssl.read).room, room);
                check_reason(NULL);
                CHECK_ALL(out, 0xee, given); /* the fake one's data */
                CHECK_ALL(out + given, 0x11, sizeof(out) - given);
                disconnect();
            }
        }
    }
}

static void reading_gives_data_and_no_error_that_was_left_on_the_way(void) {
    unsigned char out[20];
    for (int peek = 0; peek <= 1; peek++) {
        struct fake_reading script = {.result = 7, .queues = 2};
        begin(PYKTLS_HALF_READS);
        CHECK_INT(read_with(&script, peek, out, sizeof(out)), 7);
        check_reason(NULL);
        disconnect();
    }
}

static int64_t meaning_of(int error) {
    switch (error) {
    case ERROR_WANT_READ:
        return PYKTLS_HALF_WANTS_MORE;
    case ERROR_ZERO_RETURN:
        return PYKTLS_HALF_CLOSED;
    default:
        return PYKTLS_HALF_FAILED;
    }
}

static void reading_what_is_no_data(void) {
    unsigned char out[20];
    memset(out, 0x11, sizeof(out));
    for (int peek = 0; peek <= 1; peek++) {
        for (int result = -2; result <= 0; result++) {
            for (int error = 0; error <= 12; error++) {
                for (int queues = 0; queues <= 2; queues++) {
                    struct fake_reading script = {
                        .result = result, .error = error, .queues = queues};
                    if (result == 0 && error == 0) {
                        continue; /* OpenSSL has no such answer */
                    }
                    begin(PYKTLS_HALF_READS);
                    leave_old_errors(); /* which are not taken for this one's */
                    CHECK_INT(read_with(&script, peek, out, sizeof(out)),
                              meaning_of(queues ? ERROR_SSL : error));
                    check_reason(queues ? FAKE_REASON : NULL);
                    disconnect();
                }
            }
        }
    }
    CHECK_ALL(out, 0x11, sizeof(out));
}

static void reading_fails_without_words(void) {
    unsigned char out[20];
    for (int peek = 0; peek <= 1; peek++) {
        struct fake_reading script = {.result = -1, .error = ERROR_SSL, .queues = 1};
        begin(PYKTLS_HALF_READS);
        on_openssl.code = 77;
        CHECK_INT(read_with(&script, peek, out, sizeof(out)), PYKTLS_HALF_FAILED);
        check_reason(NULL);
        disconnect();
    }
}

static void reading_by_itself_wants_more_until_it_is_closed(void) {
    unsigned char out[20];
    for (int peek = 0; peek <= 1; peek++) {
        static const struct fake_reading nothing;
        begin(PYKTLS_HALF_READS);
        CHECK_INT(read_with(&nothing, peek, out, sizeof(out)), PYKTLS_HALF_WANTS_MORE);
        check_reason(NULL);
        ssl.shutdown = RECEIVED;
        CHECK_INT(read_with(&nothing, peek, out, sizeof(out)), PYKTLS_HALF_CLOSED);
        check_reason(NULL);
        disconnect();
    }
}

static void reading_more_than_an_int_holds(void) {
    unsigned char out[20];
    static const struct fake_reading some = {.result = sizeof(out)};
    for (int peek = 0; peek <= 1; peek++) {
        for (size_t i = 0; i <= TOO_MUCH; i++) {
            begin(PYKTLS_HALF_READS);
            CHECK_INT(read_with(&some, peek, out, i < TOO_MUCH ? too_much[i] : INT_MAX),
                      sizeof(out));
            CHECK_INT((peek ? ssl.peek : ssl.read).room, INT_MAX);
            disconnect();
        }
    }
}

static void pending(void) {
    static const int there[] = {0, 1, 16384, INT_MAX};
    begin(PYKTLS_HALF_READS);
    for (size_t i = 0; i < sizeof(there) / sizeof(there[0]); i++) {
        ssl.pending = there[i];
        CHECK_INT(pyktls_half_pending(&ssl), there[i]);
    }
    ssl.pending = -1;
    CHECK_INT(pyktls_half_pending(&ssl), 0);
    disconnect();
}

/* ---- pyktls_half_write ----------------------------------------------------------------------- */

static void writing_makes_a_record(void) {
    static const char both[] = FAKE_RECORD "one" FAKE_RECORD "2";
    begin(PYKTLS_HALF_WRITES);
    check_made("", 0);
    leave_old_errors();
    CHECK_INT(pyktls_half_write(&ssl, "one", 3, &reason), PYKTLS_HALF_OK);
    check_reason(NULL);
    CHECK_INT(on_openssl.errors, 0);
    CHECK_INT(ssl.last_length, 3);
    CHECK_INT(pyktls_half_write(&ssl, "2", 1, &reason), PYKTLS_HALF_OK);
    check_made(both, sizeof(both) - 1);
    disconnect();
}

/* Also one of which OpenSSL says that it took more than there was: nobody knows what is made. */
static void writing_that_openssl_refuses_or_does_in_part(void) {
    for (int result = -2; result <= 6; result++) {
        for (int silently = 0; silently <= 1; silently++) {
            begin(PYKTLS_HALF_WRITES);
            leave_old_errors();
            on_openssl.fail_at = 0;
            on_openssl.failure = result;
            on_openssl.silently = silently;
            CHECK_INT(pyktls_half_write(&ssl, "data.", 5, &reason),
                      result == 5 ? PYKTLS_HALF_OK : PYKTLS_HALF_FAILED);
            CHECK(on_openssl.failed != NULL && strcmp(on_openssl.failed, "SSL_write") == 0);
            check_reason(result == 5 || silently ? NULL : FAKE_REASON);
            CHECK_INT(on_openssl.errors, 0);
            disconnect();
        }
    }
    begin(PYKTLS_HALF_WRITES);
    on_openssl.fail_at = 0;
    on_openssl.code = 77; /* without words */
    CHECK_INT(pyktls_half_write(&ssl, "data.", 5, &reason), PYKTLS_HALF_FAILED);
    check_reason(NULL);
    disconnect();
}

static void writing_nothing_or_more_than_an_int_holds(void) {
    begin(PYKTLS_HALF_WRITES);
    for (size_t i = 0; i <= TOO_MUCH; i++) {
        reason = untouched;
        leave_old_errors();
        CHECK_INT(pyktls_half_write(&ssl, "data.", i < TOO_MUCH ? too_much[i] : 0, &reason),
                  PYKTLS_HALF_FAILED);
        check_reason(NULL);
        CHECK_INT(on_openssl.errors, 0);
    }
    CHECK_INT(on_openssl.calls, 0);
    on_openssl.fail_at = 0; /* so that there need not be so much */
    CHECK_INT(pyktls_half_write(&ssl, "data.", INT_MAX, &reason), PYKTLS_HALF_FAILED);
    CHECK_INT(ssl.last_length, INT_MAX);
    check_made("", 0);
    disconnect();
}

/* ---- close_notify and KeyUpdate -------------------------------------------------------------- */

static void close_notify(void) {
    for (int before = 0; before <= RECEIVED; before += RECEIVED) {
        begin(PYKTLS_HALF_WRITES);
        ssl.shutdown = before; /* SSL_shutdown gives 0 or 1 */
        CHECK_INT(pyktls_half_close_notify(&ssl), PYKTLS_HALF_OK);
        CHECK_INT(ssl.shutdown, before | SENT);
        check_made(FAKE_CLOSE_NOTIFY, sizeof(FAKE_CLOSE_NOTIFY) - 1);
        disconnect();
    }
    for (int result = -2; result <= 1; result++) {
        for (int silently = 0; silently <= 1; silently++) {
            begin(PYKTLS_HALF_WRITES);
            leave_old_errors();
            on_openssl.fail_at = 0;
            on_openssl.failure = result;
            on_openssl.silently = silently;
            CHECK_INT(pyktls_half_close_notify(&ssl),
                      result < 0 ? PYKTLS_HALF_FAILED : PYKTLS_HALF_OK);
            disconnect();
        }
    }
}

static void key_update(void) {
    static const struct {
        int request_peer;
        const char *made;
    } kinds[] = {
        {0, FAKE_KEY_UPDATE "\0"},
        {1, FAKE_KEY_UPDATE "\1"},
        {-1, FAKE_KEY_UPDATE "\1"}, /* any truth is 1 */
        {256, FAKE_KEY_UPDATE "\1"},
    };
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        begin(PYKTLS_HALF_WRITES);
        leave_old_errors();
        CHECK_INT(pyktls_half_key_update(&ssl, kinds[i].request_peer), PYKTLS_HALF_OK);
        CHECK_INT(on_openssl.calls, 2);
        check_made(kinds[i].made, sizeof(FAKE_KEY_UPDATE));
        disconnect();
        for (int failure = -1; failure <= 0; failure++) {
            for (int step = 0; step <= 1; step++) {
                begin(PYKTLS_HALF_WRITES);
                on_openssl.fail_at = step;
                on_openssl.failure = failure;
                CHECK_INT(pyktls_half_key_update(&ssl, kinds[i].request_peer), PYKTLS_HALF_FAILED);
                CHECK_INT(on_openssl.calls, step + 1);
                CHECK(on_openssl.failed != NULL &&
                      strcmp(on_openssl.failed, step ? "SSL_do_handshake" : "SSL_key_update") == 0);
                check_made("", 0);
                disconnect();
            }
        }
    }
}

/* ---- pyktls_half_made and pyktls_half_take --------------------------------------------------- */

static void nothing_is_made_where_nothing_is_kept(void) {
    connect_it();
    CHECK_INT(pyktls_half_made(&ssl), 0); /* the socket's BIO */
    ssl.write_bio = NULL;
    CHECK_INT(pyktls_half_made(&ssl), 0);
    disconnect();
    begin(PYKTLS_HALF_READS);
    CHECK_INT(pyktls_half_write(&ssl, "lost", 4, &reason), PYKTLS_HALF_OK);
    CHECK_INT(pyktls_half_made(&ssl), 0);
    disconnect();
}

static void taking_a_part(void) {
    static const char made[] = FAKE_RECORD "data.";
    for (size_t size = 0; size <= sizeof(made) + 1; size++) {
        size_t there = sizeof(made) - 1;
        unsigned char *out = malloc(size + (size == 0));
        begin(PYKTLS_HALF_WRITES);
        CHECK_INT(pyktls_half_write(&ssl, "data.", 5, &reason), PYKTLS_HALF_OK);
        CHECK_INT(pyktls_half_take(&ssl, out, size),
                  size <= there ? PYKTLS_HALF_OK : PYKTLS_HALF_FAILED);
        CHECK_BYTES(out, made, size < there ? size : there);
        CHECK_INT(pyktls_half_made(&ssl), size < there ? there - size : 0);
        if (size < there) {
            check_made(made + size, there - size);
        }
        disconnect();
        free(out);
    }
}

static void taking_what_is_not_there(void) {
    unsigned char out[20];
    memset(out, 0x11, sizeof(out));
    begin(PYKTLS_HALF_WRITES);
    CHECK_INT(pyktls_half_take(&ssl, out, 1), PYKTLS_HALF_FAILED);
    CHECK_INT(pyktls_half_take(&ssl, out, sizeof(out)), PYKTLS_HALF_FAILED);
    disconnect();
    connect_it();
    ssl.write_bio = NULL;
    CHECK_INT(pyktls_half_take(&ssl, out, 1), PYKTLS_HALF_FAILED);
    disconnect();
    for (int failure = -2; failure <= 6; failure++) {
        begin(PYKTLS_HALF_WRITES);
        CHECK_INT(pyktls_half_write(&ssl, "data.", 5, &reason), PYKTLS_HALF_OK);
        reset_openssl();
        on_openssl.fail_at = 0;
        on_openssl.failure = failure;
        on_openssl.silently = failure == 5;
        CHECK_INT(pyktls_half_take(&ssl, out, 5),
                  failure == 5 ? PYKTLS_HALF_OK : PYKTLS_HALF_FAILED);
        CHECK(on_openssl.failed != NULL && strcmp(on_openssl.failed, "BIO_read") == 0);
        disconnect();
    }
    CHECK_ALL(out, 0x11, sizeof(out));
}

static void taking_more_than_an_int_holds(void) {
    unsigned char out[20];
    begin(PYKTLS_HALF_WRITES);
    CHECK_INT(pyktls_half_write(&ssl, "data.", 5, &reason), PYKTLS_HALF_OK);
    on_openssl.calls = 0;
    for (size_t i = 0; i < TOO_MUCH; i++) {
        leave_old_errors();
        CHECK_INT(pyktls_half_take(&ssl, out, too_much[i]), PYKTLS_HALF_FAILED);
        CHECK_INT(on_openssl.errors, 0);
    }
    CHECK_INT(on_openssl.calls, 0);
    CHECK_INT(pyktls_half_take(&ssl, out, INT_MAX), PYKTLS_HALF_FAILED);
    CHECK_INT(ssl.write_bio->last_length, INT_MAX);
    disconnect();
}

static const struct test tests[] = {
    /* In this order: see above. */
    TEST(nothing_works_yet),
    TEST(open_before_the_tap),
    TEST(open_with_each_name_missing),
    /* In any. */
    TEST(beginning_takes_the_socket_away),
    TEST(beginning_where_there_is_one_bio_or_none),
    TEST(beginning_again_leaves_nothing_behind),
    TEST(beginning_without_memory_changes_nothing),
    TEST(feeding_is_for_reading),
    TEST(feeding_without_memory),
    TEST(feeding_more_than_an_int_holds),
    TEST(reading_gives_data),
    TEST(reading_gives_data_and_no_error_that_was_left_on_the_way),
    TEST(reading_what_is_no_data),
    TEST(reading_fails_without_words),
    TEST(reading_by_itself_wants_more_until_it_is_closed),
    TEST(reading_more_than_an_int_holds),
    TEST(pending),
    TEST(writing_makes_a_record),
    TEST(writing_that_openssl_refuses_or_does_in_part),
    TEST(writing_nothing_or_more_than_an_int_holds),
    TEST(close_notify),
    TEST(key_update),
    TEST(nothing_is_made_where_nothing_is_kept),
    TEST(taking_a_part),
    TEST(taking_what_is_not_there),
    TEST(taking_more_than_an_int_holds),
};

int main(int count, char **words) {
    if (count != 2 || dlopen(words[1], RTLD_NOW) == NULL) {
        printf("usage: test_openssl_half MODULE\n");
        return 2;
    }
    module_path = words[1];
    return RUN_TESTS(tests);
}
