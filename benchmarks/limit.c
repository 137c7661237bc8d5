/*
 * The limit: the system calls that a program with kernel TLS cannot do without, and nothing else.
 *
 *   limit SOCKET [FILE]
 *
 * SOCKET is the inherited descriptor of a connection whose handshake somebody else has made, FILE
 * that of a file.  On standard input come two lines of hexadecimal digits, the crypto_info structs
 * for sending and for receiving, and then orders, which are those of ends.py:
 *
 *   sendfile BYTES | send SIZE COUNT | recv ROOM BYTES | ping COUNT | pong COUNT
 *
 * Two empty lines instead of the structs leave the connection without TLS.  It answers "ready", and
 * to each order its processor time and the time on the wall in nanoseconds; "error: ..." ends it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LEVEL_TCP 6
#define OPTION_ULP 31
#define LEVEL_TLS 282
#define OPTION_TX 1
#define OPTION_RX 2
#define APPLICATION_DATA 23
#define HANDSHAKE 22
#define MOST (1 << 24)

static int connection, file = -1;
static unsigned char *memory;

static void fail(const char *what) {
    printf("error: %s: %s\n", what, errno ? strerror(errno) : "the other end has closed");
    exit(1);
}

static int64_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Sets keys from a line of hexadecimal digits; nothing if it is empty. */
static void set_keys(int option) {
    char line[256];
    unsigned char info[128];
    size_t size = 0;
    unsigned int byte;
    if (fgets(line, sizeof line, stdin) == NULL)
        fail("no keys");
    for (char *digits = line; size < sizeof info && sscanf(digits, "%2x", &byte) == 1; digits += 2)
        info[size++] = (unsigned char)byte;
    if (size == 0)
        return;
    if (option == OPTION_TX && setsockopt(connection, LEVEL_TCP, OPTION_ULP, "tls", 3) != 0)
        fail("setsockopt(TCP_ULP)");
    if (setsockopt(connection, LEVEL_TLS, option, info, (socklen_t)size) != 0)
        fail(option == OPTION_TX ? "setsockopt(TLS_TX)" : "setsockopt(TLS_RX)");
    explicit_bzero(info, sizeof info);
    explicit_bzero(line, sizeof line);
}

static void send_all(size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t sent = send(connection, memory + done, size - done, 0);
        if (sent < 0)
            fail("send");
        done += (size_t)sent;
    }
}

static void send_file(int64_t size) {
    off_t offset = 0;
    while (offset < size) {
        ssize_t sent = sendfile(connection, file, &offset, (size_t)(size - offset));
        if (sent < 0)
            fail("sendfile");
        if (sent == 0)
            fail("the file is too short");
    }
}

/* What is no data (session tickets) is passed over; that takes room for the record's type. */
static void receive(size_t room, int64_t size) {
    while (size > 0) {
        char control[CMSG_SPACE(1)];
        struct iovec iov = {memory, (int64_t)room < size ? room : (size_t)size};
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1,
            .msg_control = control, .msg_controllen = sizeof control,
        };
        ssize_t received = recvmsg(connection, &message, 0);
        if (received <= 0)
            fail("recvmsg");
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        if (header == NULL || *CMSG_DATA(header) == APPLICATION_DATA)
            size -= received;
        else if (*CMSG_DATA(header) != HANDSHAKE)
            fail("an alert has come");
    }
}

static void play(int64_t count, int first) {
    for (int64_t i = 0; i < count; i++) {
        if (first)
            send_all(1);
        receive(1, 1);
        if (!first)
            send_all(1);
    }
}

static void perform(const char *what, int64_t a, int64_t b) {
    if (strcmp(what, "sendfile") == 0)
        send_file(a);
    else if (strcmp(what, "send") == 0)
        for (int64_t i = 0; i < b; i++)
            send_all((size_t)a);
    else if (strcmp(what, "recv") == 0)
        receive((size_t)a, b);
    else if (strcmp(what, "ping") == 0 || strcmp(what, "pong") == 0)
        play(a, what[1] == 'i');
    else
        fail(what);
}

int main(int argc, char **argv) {
    char line[128], what[16];
    setvbuf(stdout, NULL, _IOLBF, 0);
    memory = calloc(1, MOST);
    if (argc < 2 || memory == NULL)
        return 2;
    connection = atoi(argv[1]);
    if (argc > 2)
        file = atoi(argv[2]);
    set_keys(OPTION_TX);
    set_keys(OPTION_RX);
    puts("ready");
    while (fgets(line, sizeof line, stdin) != NULL) {
        long long a = 0, b = 0;
        if (sscanf(line, "%15s %lld %lld", what, &a, &b) < 2 || a > MOST * INT64_C(1024))
            return 2;
        int64_t cpu = now(CLOCK_PROCESS_CPUTIME_ID), wall = now(CLOCK_MONOTONIC);
        perform(what, a, b);
        cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        wall = now(CLOCK_MONOTONIC) - wall;
        printf("%lld %lld\n", (long long)cpu, (long long)wall);
    }
    return 0;
}
