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
#include <ctype.h>
#include <errno.h>
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
    if (fgets(line, sizeof(line), stdin) == NULL) {
        fail("no keys");
    }
    while (size < sizeof(info) && isxdigit(line[2 * size]) && isxdigit(line[2 * size + 1])) {
        const char digits[3] = {line[2 * size], line[2 * size + 1], 0};
        info[size++] = (unsigned char)strtoul(digits, NULL, 16);
    }
    if (size == 0) {
        return;
    }
    if (option == OPTION_TX && setsockopt(connection, LEVEL_TCP, OPTION_ULP, "tls", 3) != 0) {
        fail("setsockopt(TCP_ULP)");
    }
    if (setsockopt(connection, LEVEL_TLS, option, info, (socklen_t)size) != 0) {
        fail(option == OPTION_TX ? "setsockopt(TLS_TX)" : "setsockopt(TLS_RX)");
    }
    explicit_bzero(info, sizeof(info));
    explicit_bzero(line, sizeof(line));
}

static void send_all(size_t size) {
    if (size > MOST) {
        errno = ENOMEM;
        fail("so large a piece");
    }
    for (size_t done = 0; done < size;) {
        ssize_t sent = send(connection, memory + done, size - done, 0);
        if (sent < 0) {
            fail("send");
        }
        done += (size_t)sent;
    }
}

static void send_file(int64_t size) {
    off_t offset = 0;
    while (offset < size) {
        ssize_t sent = sendfile(connection, file, &offset, (size_t)(size - offset));
        if (sent < 0) {
            fail("sendfile");
        }
        if (sent == 0) {
            fail("the file is too short");
        }
    }
}

/* What is no data (session tickets) is passed over; that takes room for the record's type. */
static void receive(size_t room, int64_t size) {
    room = room < MOST ? room : MOST;
    while (size > 0) {
        char control[CMSG_SPACE(1)];
        struct iovec iov = {memory, (int64_t)room < size ? room : (size_t)size};
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1,
            .msg_control = control, .msg_controllen = sizeof(control),
        };
        ssize_t received = recvmsg(connection, &message, 0);
        if (received <= 0) {
            fail("recvmsg");
        }
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        if (header == NULL || *CMSG_DATA(header) == APPLICATION_DATA) {
            size -= received;
        } else if (*CMSG_DATA(header) != HANDSHAKE) {
            fail("an alert has come");
        }
    }
}

static void play(int64_t count, int first) {
    for (int64_t i = 0; i < count; i++) {
        if (first) {
            send_all(1);
        }
        receive(1, 1);
        if (!first) {
            send_all(1);
        }
    }
}

static void perform(const char *what, int64_t a, int64_t b) {
    if (strcmp(what, "sendfile") == 0) {
        send_file(a);
    } else if (strcmp(what, "send") == 0) {
        for (int64_t i = 0; i < b; i++) {
            send_all((size_t)a);
        }
    } else if (strcmp(what, "recv") == 0) {
        receive((size_t)a, b);
    } else if (strcmp(what, "ping") == 0 || strcmp(what, "pong") == 0) {
        play(a, what[1] == 'i');
    } else {
        fail(what);
    }
}

static int64_t number(const char *text) {
    return text == NULL ? 0 : strtoll(text, NULL, 10);
}

int main(int argc, char **argv) {
    char line[128];
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    memory = calloc(1, MOST);
    if (argc < 2 || memory == NULL) {
        return 2;
    }
    connection = (int)number(argv[1]);
    if (argc > 2) {
        file = (int)number(argv[2]);
    }
    set_keys(OPTION_TX);
    set_keys(OPTION_RX);
    puts("ready");
    while (fgets(line, sizeof(line), stdin) != NULL) {
        const char *what = strtok(line, " \n");
        int64_t a = number(strtok(NULL, " \n"));
        int64_t b = number(strtok(NULL, " \n"));
        int64_t wall = now(CLOCK_MONOTONIC);
        int64_t cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        perform(what == NULL ? "no order" : what, a, b);
        cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        wall = now(CLOCK_MONOTONIC) - wall;
        printf("%lld %lld\n", (long long)cpu, (long long)wall);
    }
    return 0;
}
