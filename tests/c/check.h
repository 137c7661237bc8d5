/*
 * The whole test framework: checks that say where and what, and a table of tests in each program.
 *
 * A failed check does not end its test.  A test that is in no table does not compile (-Wunused).
 */
#ifndef CHECK_H
#define CHECK_H

#include <stddef.h>
#include <stdio.h>
#include <string.h>

struct test {
    const char *name;
    void (*run)(void);
};
#define TEST(name)                                                                                 \
    { #name, name }

static int check_count, check_failed;
static const char *check_context = ""; /* what a loop is at: printed with a failure */

#define CHECK(condition)                                                                           \
    check_that((condition) ? 1 : 0, __FILE__, __LINE__, #condition)
#define CHECK_INT(actual, expected)                                                                \
    check_int((long long)(actual), (long long)(expected), __FILE__, __LINE__,                      \
              #actual " == " #expected)
#define CHECK_BYTES(actual, expected, size)                                                        \
    check_that(memcmp(actual, expected, size) == 0, __FILE__, __LINE__,                            \
               #actual " has the bytes of " #expected)
/* All `size` bytes at `memory` are `value`. */
#define CHECK_ALL(memory, value, size)                                                             \
    check_that(check_all(memory, value, size), __FILE__, __LINE__,                                 \
               #size " bytes at " #memory " are " #value)

static inline void check_that(int holds, const char *file, int line, const char *text) {
    check_count++;
    if (!holds) {
        check_failed++;
        printf("%s:%d: not so: %s %s\n", file, line, text, check_context);
    }
}

static inline void check_int(long long actual, long long expected, const char *file, int line,
                             const char *text) {
    check_that(actual == expected, file, line, text);
    if (actual != expected) {
        printf("    it is %lld, not %lld\n", actual, expected);
    }
}

static inline int check_all(const void *memory, unsigned char value, size_t size) {
    for (size_t i = 0; i < size; i++) {
        if (((const unsigned char *)memory)[i] != value) {
            return 0;
        }
    }
    return 1;
}

/* The last line it prints is what run.py reads. */
static inline int run_tests(const struct test *tests, size_t count) {
    size_t failed = 0;
    for (size_t i = 0; i < count; i++) {
        int before = check_failed, made = check_count;
        check_context = "";
        tests[i].run();
        CHECK(check_count > made); /* a test that checks nothing is a mistake */
        if (check_failed > before) {
            failed++;
            printf("failed: %s\n", tests[i].name);
        }
    }
    printf("%zu tests, %d checks, %zu failed\n", count, check_count, failed);
    return failed > 0;
}
#define RUN_TESTS(tests) run_tests(tests, sizeof(tests) / sizeof((tests)[0]))

#endif
