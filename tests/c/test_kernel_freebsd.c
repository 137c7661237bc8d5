/* The system calls of csrc/kernel_freebsd.c, on a kernel that does as the test says. */
#include "freebsd_calls.h"

#include <errno.h>
#include <limits.h>
#include <stdint.h>

#include "abi_freebsd.h"
#include "check.h"
#include "kernel.h"
#include "scripts.h"

/* The fake takes these; any other option goes on to the real call. */
#define TX_ENABLE 39
#define TX_MODE 40
#define RX_ENABLE 41
#define RX_MODE 42

static const unsigned char key[] = "thirty-two bytes for a test key.";
static const unsigned char iv[] = "sixteen bytes iv";
static const unsigned char mac[] = "twenty bytes of HMAC";

/* ---- keys and modes -------------------------------------------------------------------------- */

static int option_error, option_calls, option_fd, option_number, option_answer;
static unsigned option_size;
static unsigned char option_value[64];

static int set_option(int fd, int option, const void *value, unsigned size) {
    option_calls++;
    option_fd = fd;
    option_number = option;
    option_size = size;
    memcpy(option_value, value, size < sizeof(option_value) ? size : sizeof(option_value));
    return -option_error;
}

static int get_option(int fd, int option, void *value, unsigned *size) {
    option_calls++;
    option_fd = fd;
    option_number = option;
    option_size = *size;
    if (option_error == 0) {
        memcpy(value, &option_answer, sizeof(option_answer));
    }
    return -option_error;
}

static void boot(void) {
    reset_scripts();
    option_error = option_calls = option_fd = option_number = 0;
    option_answer = -1;
    fake_calls.set_option = set_option;
    fake_calls.get_option = get_option;
}

static void system_is_freebsd(void) {
    CHECK_INT(pyktls_system(), 2);
}

static int set_keys(int option, int version) {
    return pyktls_freebsd_set_keys(6, option, version, 11, key, 32, iv, 16, 7, mac, 20, 77);
}

static void set_keys_hands_the_struct_over(void) {
    for (int option = TX_ENABLE; option <= RX_ENABLE; option += RX_ENABLE - TX_ENABLE) {
        struct tls_enable expected;
        pyktls_freebsd_fill(&expected, 0x0303, 11, key, 32, iv, 16, 7, mac, 20, 77);
        boot();
        CHECK_INT(set_keys(option, 0x0303), 0);
        CHECK_INT(option_calls, 1);
        CHECK_INT(option_fd, 6);
        CHECK_INT(option_number, option);
        CHECK_INT(option_size, sizeof(expected));
        CHECK_BYTES(option_value, &expected, sizeof(expected));
    }
}

static void set_keys_gives_every_errno(void) {
    for (int error = 1; error <= LAST_ERRNO; error++) {
        boot();
        option_error = error;
        CHECK_INT(set_keys(TX_ENABLE, 0x0304), -error);
        CHECK_INT(option_calls, 1);
    }
}

static void set_keys_asks_no_kernel_about_what_cannot_be(void) {
    boot();
    CHECK_INT(set_keys(TX_ENABLE, 0x0305), -EINVAL);
    CHECK_INT(pyktls_freebsd_set_keys(6, TX_ENABLE, 0x0303, 11, key, 1025, iv, 16, 7, mac, 20, 0),
              -EINVAL);
    CHECK_INT(pyktls_freebsd_set_keys(6, TX_ENABLE, 0x0303, 11, key, 32, iv, 1025, 7, mac, 20, 0),
              -EINVAL);
    CHECK_INT(pyktls_freebsd_set_keys(6, TX_ENABLE, 0x0303, 11, key, 32, iv, 16, 7, mac, 1025, 0),
              -EINVAL);
    CHECK_INT(option_calls, 0);
}

static void modes(void) {
    for (int option = TX_MODE; option <= RX_MODE; option += RX_MODE - TX_MODE) {
        for (int mode = 0; mode <= 3; mode++) {
            boot();
            option_answer = mode;
            CHECK_INT(pyktls_freebsd_get_mode(8, option), mode);
            CHECK_INT(option_fd, 8);
            CHECK_INT(option_number, option);
            CHECK_INT(option_size, sizeof(int));
        }
    }
    for (int mode = 0; mode <= 3; mode++) {
        int given;
        boot();
        CHECK_INT(pyktls_freebsd_set_tx_mode(8, mode), 0);
        CHECK_INT(option_number, TX_MODE);
        CHECK_INT(option_size, sizeof(int));
        memcpy(&given, option_value, sizeof(given));
        CHECK_INT(given, mode);
    }
    for (int error = 1; error <= LAST_ERRNO; error++) {
        boot();
        option_error = error;
        CHECK_INT(pyktls_freebsd_get_mode(8, TX_MODE), -error);
        CHECK_INT(pyktls_freebsd_set_tx_mode(8, 1), -error);
        CHECK_INT(option_calls, 2);
    }
}

/* ---- receiving ------------------------------------------------------------------------------- */

static unsigned char inbox[64];
static int type, version, length, flags;

static ssize_t receive(size_t size) {
    memset(inbox, 0xee, sizeof(inbox));
    type = version = length = flags = 12345;
    return pyktls_freebsd_recv(7, inbox, size, MSG_DONTWAIT, &type, &version, &length, &flags);
}

/* struct tls_get_record: type, 3, 3, padding, length in network order */
static const unsigned char record[6] = {21, 3, 3, 0xee, 0x12, 0x34};

static void script_record(void) {
    reset_scripts();
    on_recvmsg.has_control = 1;
    on_recvmsg.level = IPPROTO_TCP;
    on_recvmsg.type = 2;
    on_recvmsg.inside = record;
    on_recvmsg.inside_size = sizeof(record);
    on_recvmsg.data = "data";
    on_recvmsg.data_size = 4;
}

static void receive_gives_all_there_is(void) {
    script_record();
    on_recvmsg.msg_flags = MSG_EOR;
    CHECK_INT(receive(32), 4);
    CHECK_INT(type, 21);
    CHECK_INT(version, 0x0303);
    CHECK_INT(length, 0x1234);
    CHECK_INT(flags, MSG_EOR);
    CHECK_BYTES(inbox, "data", 4);
    CHECK_INT(on_recvmsg.calls, 1);
    CHECK_INT(on_recvmsg.fd, 7);
    CHECK_INT(on_recvmsg.flags, MSG_DONTWAIT);
    CHECK_INT(on_recvmsg.buffers, 1);
    CHECK(on_recvmsg.buffer[0] == inbox);
    CHECK_INT(on_recvmsg.buffer_size[0], 32);
    CHECK_INT(on_recvmsg.control_room, CMSG_SPACE(6)); /* with the padding, or none comes */
    CHECK_INT(on_recvmsg.has_name, 0);
}

static void receive_gives_every_number(void) {
    for (int value = 0; value <= UINT8_MAX; value++) {
        unsigned char byte = (unsigned char)value;
        const unsigned char bytes[6] = {byte, 255, 254, 0, 255, byte};
        script_record();
        on_recvmsg.inside = bytes;
        CHECK_INT(receive(32), 4);
        CHECK_INT(type, value);
        CHECK_INT(version, 0xfffe);
        CHECK_INT(length, 0xff00 + value);
    }
}

static void nothing_known(ssize_t result, ssize_t expected) {
    CHECK_INT(result, expected);
    CHECK_INT(type, PYKTLS_NO_RECORD_TYPE);
    CHECK_INT(version, -1);
    CHECK_INT(length, -1);
}

static void receive_gives_every_errno(void) {
    for (int error = 1; error <= LAST_ERRNO; error++) {
        script_record();
        on_recvmsg.error = error;
        on_recvmsg.msg_flags = MSG_EOR;
        nothing_known(receive(32), -error);
        CHECK_INT(flags, 0);
        CHECK_INT(on_recvmsg.calls, 1);
    }
}

static void receive_later_part_of_a_record(void) {
    script_record();
    on_recvmsg.has_control = 0;
    on_recvmsg.msg_flags = MSG_EOR;
    nothing_known(receive(32), 4);
    CHECK_INT(flags, MSG_EOR);
}

static void receive_at_the_end_of_the_stream(void) {
    reset_scripts();
    nothing_known(receive(32), 0);
    CHECK_INT(flags, 0);
}

static void receive_an_empty_record(void) {
    script_record();
    on_recvmsg.data_size = 0;
    CHECK_INT(receive(32), 0);
    CHECK_INT(type, 21); /* so it is not the end */
}

static void receive_with_a_lost_control_message(void) {
    script_record();
    on_recvmsg.has_control = 0;
    on_recvmsg.msg_flags = MSG_CTRUNC | MSG_EOR;
    nothing_known(receive(32), -EPROTO);
    /* Even if the kernel left something behind. */
    script_record();
    on_recvmsg.msg_flags = MSG_CTRUNC;
    nothing_known(receive(32), -EPROTO);
    CHECK_INT(flags, 0);
}

static void receive_with_another_control_message(void) {
    static const struct {
        int level, type;
    } others[] = {{IPPROTO_TCP, 1}, {IPPROTO_TCP, 3}, {SOL_SOCKET, 2}, {282, 2}, {0, 2}};
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        script_record();
        on_recvmsg.level = others[i].level;
        on_recvmsg.type = others[i].type;
        nothing_known(receive(32), 4);
    }
    for (size_t size = CMSG_LEN(0); size < CMSG_LEN(sizeof(record)); size++) {
        script_record();
        on_recvmsg.claimed_size = size;
        nothing_known(receive(32), 4);
    }
    script_record();
    on_recvmsg.cut_to = CMSG_LEN(0) - 1; /* not even a header */
    nothing_known(receive(32), 4);
}

static void receive_through_the_common_interface(void) {
    script_record();
    on_recvmsg.msg_flags = MSG_EOR;
    type = flags = 12345;
    CHECK_INT(pyktls_recv_record(7, inbox, 31, MSG_PEEK, &type, &flags), 4);
    CHECK_INT(type, 21);
    CHECK_INT(flags, MSG_EOR);
    CHECK_INT(on_recvmsg.flags, MSG_PEEK);
    CHECK_INT(on_recvmsg.buffer_size[0], 31);
    on_recvmsg.error = EAGAIN;
    CHECK_INT(pyktls_recv_record(7, inbox, 31, MSG_PEEK, &type, &flags), -EAGAIN);
    CHECK_INT(type, PYKTLS_NO_RECORD_TYPE);
    CHECK_INT(flags, 0);
}

static void receive_into_several_buffers(void) {
    unsigned char first[3], second[8];
    const struct iovec parts[] = {{first, 3}, {second, 8}};
    script_record();
    on_recvmsg.msg_flags = MSG_EOR;
    memset(second, 0xee, sizeof(second));
    type = flags = 12345;
    CHECK_INT(pyktls_recv_record_vector(7, parts, 2, MSG_PEEK, &type, &flags), 4);
    CHECK_BYTES(first, "dat", 3);
    CHECK_BYTES(second, "a", 1);
    CHECK_ALL(second + 1, 0xee, 7);
    CHECK_INT(type, 21);
    CHECK_INT(flags, MSG_EOR);
    CHECK_INT(on_recvmsg.fd, 7);
    CHECK_INT(on_recvmsg.flags, MSG_PEEK);
    CHECK_INT(on_recvmsg.buffers, 2);
    on_recvmsg.msg_flags = MSG_CTRUNC;
    CHECK_INT(pyktls_recv_record_vector(7, parts, 2, 0, &type, &flags), -EPROTO);
    CHECK_INT(type, PYKTLS_NO_RECORD_TYPE);
    reset_scripts();
    CHECK_INT(pyktls_recv_record_vector(7, parts, (size_t)INT_MAX + 1, 0, &type, &flags),
              -EMSGSIZE);
    CHECK_INT(pyktls_recv_record_vector(7, parts, SIZE_MAX, 0, &type, &flags), -EMSGSIZE);
    CHECK_INT(on_recvmsg.calls, 0);
}

/* ---- sending --------------------------------------------------------------------------------- */

static void send_without_type(void) {
    char hello[] = "hello ", world[] = "world";
    const struct iovec parts[] = {{hello, 6}, {world, 5}};
    reset_scripts();
    on_sendmsg.result = 7;
    CHECK_INT(pyktls_send_record(5, parts, 2, MSG_NOSIGNAL, PYKTLS_NO_RECORD_TYPE), 7);
    CHECK_INT(on_sendmsg.fd, 5);
    CHECK_INT(on_sendmsg.flags, MSG_NOSIGNAL);
    CHECK_INT(on_sendmsg.buffers, 2);
    CHECK_INT(on_sendmsg.data_size, 11);
    CHECK_BYTES(on_sendmsg.data, "hello world", 11);
    CHECK_INT(on_sendmsg.has_control, 0);
    CHECK_INT(on_sendmsg.has_name, 0);
}

static void send_with_every_type(void) {
    char data[] = "data";
    const struct iovec part = {data, 4};
    for (int value = 1; value <= UINT8_MAX; value++) {
        reset_scripts();
        on_sendmsg.result = 4;
        CHECK_INT(pyktls_send_record(5, &part, 1, 0, value), 4);
        CHECK_INT(on_sendmsg.has_control, 1);
        CHECK_INT(on_sendmsg.level, IPPROTO_TCP);
        CHECK_INT(on_sendmsg.type, 1);
        CHECK_INT(on_sendmsg.inside_size, 1);
        CHECK_INT(on_sendmsg.control_size, CMSG_SPACE(1));
        CHECK_INT(on_sendmsg.control[CMSG_LEN(0)], value);
        CHECK_ALL(on_sendmsg.control + CMSG_LEN(1), 0, CMSG_SPACE(1) - CMSG_LEN(1));
    }
}

static void send_refuses_what_the_kernel_would_mangle(void) {
    static const int wrong[] = {0, -2, -21, 256, 256 + 23, INT_MAX, INT_MIN};
    char data[] = "data";
    const struct iovec part = {data, 4};
    reset_scripts();
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        CHECK_INT(pyktls_send_record(5, &part, 1, 0, wrong[i]), -EINVAL);
    }
    CHECK_INT(pyktls_send_record(5, &part, (size_t)INT_MAX + 1, 0, 23), -EMSGSIZE);
    CHECK_INT(pyktls_send_record(5, &part, SIZE_MAX, 0, PYKTLS_NO_RECORD_TYPE), -EMSGSIZE);
    CHECK_INT(on_sendmsg.calls, 0);
    CHECK_INT(pyktls_send_record(5, NULL, INT_MAX, 0, 23), 0);
    CHECK_INT(on_sendmsg.calls, 1);
    CHECK_INT(on_sendmsg.buffers, INT_MAX);
}

static void send_refuses_urgent_data(void) {
    char data[] = "data";
    const struct iovec part = {data, 4};
    reset_scripts();
    CHECK_INT(pyktls_send_record(5, &part, 1, MSG_OOB, PYKTLS_NO_RECORD_TYPE), -EOPNOTSUPP);
    CHECK_INT(pyktls_send_record(5, &part, 1, MSG_OOB | MSG_NOSIGNAL, 21), -EOPNOTSUPP);
    CHECK_INT(on_sendmsg.calls, 0);
}

static void send_of_nothing(void) {
    char data[] = "data";
    const struct iovec parts[] = {{data, 0}, {NULL, 0}, {data, 1}};
    reset_scripts();
    CHECK_INT(pyktls_send_record(5, NULL, 0, 0, PYKTLS_NO_RECORD_TYPE), 0);
    CHECK_INT(pyktls_send_record(5, parts, 2, 0, PYKTLS_NO_RECORD_TYPE), 0);
    CHECK_INT(on_sendmsg.calls, 0);
    on_sendmsg.result = 1;
    CHECK_INT(pyktls_send_record(5, parts, 3, 0, PYKTLS_NO_RECORD_TYPE), 1);
    on_sendmsg.error = EINVAL;
    CHECK_INT(pyktls_send_record(5, parts, 2, 0, 23), -EINVAL);
    CHECK_INT(on_sendmsg.calls, 2);
}

static void send_gives_every_errno(void) {
    char data[] = "data";
    const struct iovec part = {data, 4};
    for (int error = 1; error <= LAST_ERRNO; error++) {
        reset_scripts();
        on_sendmsg.error = error;
        CHECK_INT(pyktls_send_record(5, &part, 1, 0, PYKTLS_NO_RECORD_TYPE), -error);
        CHECK_INT(pyktls_send_record(5, &part, 1, 0, 21), -error);
        CHECK_INT(on_sendmsg.calls, 2);
    }
}

/* ---- sendfile -------------------------------------------------------------------------------- */

static struct {
    int error;
    int64_t sent;
    int calls, file, fd, flags, header_count, trailer_count, has_around;
    int64_t offset;
    size_t count;
    const struct iovec *headers, *trailers;
} file_script;

static int send_file(int file, int fd, int64_t offset, size_t count, const struct iovec *headers,
                     int header_count, const struct iovec *trailers, int trailer_count,
                     int64_t *sent) {
    file_script.calls++;
    file_script.file = file;
    file_script.fd = fd;
    file_script.offset = offset;
    file_script.count = count;
    file_script.headers = headers;
    file_script.header_count = header_count;
    file_script.trailers = trailers;
    file_script.trailer_count = trailer_count;
    *sent = file_script.sent;
    return -file_script.error;
}

int test_sendfile(int file, int fd, off_t offset, size_t count, struct sf_hdtr *around,
                  off_t *sbytes, int flags) {
    file_script.has_around = around != NULL;
    file_script.flags = flags;
    return fake_sendfile(file, fd, offset, count, around, sbytes, flags);
}

static void boot_files(int64_t sent, int error) {
    memset(&file_script, 0, sizeof(file_script));
    file_script.sent = sent;
    file_script.error = error;
    fake_calls.send_file = send_file;
}

static void sendfile_alone(void) {
    int64_t sent = -1;
    boot_files(0x123456789a, 0);
    CHECK_INT(pyktls_freebsd_sendfile(3, 4, 0x100000000, 5, NULL, 0, NULL, 0, 0x40, &sent), 0);
    CHECK_INT(sent, 0x123456789a);
    CHECK_INT(file_script.file, 3);
    CHECK_INT(file_script.fd, 4);
    CHECK_INT(file_script.offset, 0x100000000);
    CHECK_INT(file_script.count, 5);
    CHECK_INT(file_script.has_around, 0);
    CHECK_INT(file_script.flags, 0x40);
}

static void sendfile_with_more_around_it(void) {
    char text[] = "text";
    const struct iovec before[] = {{text, 4}, {text, 2}}, after[] = {{text, 1}};
    for (size_t headers = 0; headers <= 2; headers++) {
        for (size_t trailers = 0; trailers <= 1; trailers++) {
            int64_t sent = -1;
            boot_files(9, 0);
            CHECK_INT(pyktls_freebsd_sendfile(3, 4, 0, 0, before, headers, after, trailers, 0,
                                              &sent),
                      0);
            CHECK_INT(file_script.has_around, headers + trailers > 0);
            CHECK_INT(file_script.header_count, headers);
            CHECK_INT(file_script.trailer_count, trailers);
            CHECK(file_script.headers == (headers > 0 ? before : NULL));
            CHECK(file_script.trailers == (trailers > 0 ? after : NULL));
        }
    }
}

static void sendfile_leaves_out_trailers_without_a_byte(void) {
    char text[] = "text";
    const struct iovec empty[] = {{text, 0}, {NULL, 0}};
    for (size_t headers = 0; headers <= 2; headers++) {
        int64_t sent = -1;
        boot_files(9, 0);
        CHECK_INT(pyktls_freebsd_sendfile(3, 4, 0, 0, empty, headers, empty, 2, 0, &sent), 0);
        CHECK_INT(sent, 9);
        CHECK_INT(file_script.has_around, headers > 0);
        CHECK(file_script.headers == (headers > 0 ? empty : NULL));
        CHECK_INT(file_script.header_count, headers);
        CHECK(file_script.trailers == NULL);
        CHECK_INT(file_script.trailer_count, 0);
    }
}

static void sendfile_gives_every_errno_and_what_was_sent(void) {
    for (int error = 1; error <= LAST_ERRNO; error++) {
        int64_t sent = -1;
        boot_files(17, error);
        CHECK_INT(pyktls_freebsd_sendfile(3, 4, 0, 0, NULL, 0, NULL, 0, 0, &sent), -error);
        CHECK_INT(sent, 17);
    }
}

static void sendfile_refuses_more_than_an_int(void) {
    int64_t sent = -1;
    const struct iovec part = {NULL, 0};
    boot_files(17, 0);
    CHECK_INT(pyktls_freebsd_sendfile(3, 4, 0, 0, &part, (size_t)INT_MAX + 1, NULL, 0, 0, &sent),
              -EMSGSIZE);
    CHECK_INT(sent, 0);
    sent = -1;
    CHECK_INT(pyktls_freebsd_sendfile(3, 4, 0, 0, NULL, 0, &part, (size_t)INT_MAX + 1, 0, &sent),
              -EMSGSIZE);
    CHECK_INT(sent, 0);
    CHECK_INT(file_script.calls, 0);
}

/* ---- sysctl ---------------------------------------------------------------------------------- */

static int sysctl_error;
static size_t sysctl_room;
static const char *sysctl_name;

static int read_sysctl(const char *name, void *value, size_t *size) {
    sysctl_name = name;
    sysctl_room = *size;
    if (sysctl_error == 0) {
        memcpy(value, "\1\0\0\0", 4);
        *size = 4;
    }
    return -sysctl_error;
}

static void sysctl(void) {
    static const char name[] = "kern.ipc.tls.enable";
    unsigned char value[8];
    size_t size = sizeof(value);
    fake_calls.read_sysctl = read_sysctl;
    sysctl_error = 0;
    CHECK_INT(pyktls_freebsd_sysctl(name, value, &size), 0);
    CHECK(sysctl_name == name);
    CHECK_INT(sysctl_room, 8);
    CHECK_INT(size, 4);
    CHECK_BYTES(value, "\1\0\0\0", 4);
    for (sysctl_error = 1; sysctl_error <= LAST_ERRNO; sysctl_error++) {
        CHECK_INT(pyktls_freebsd_sysctl(name, value, &size), -sysctl_error);
    }
}

static const struct test tests[] = {
    TEST(system_is_freebsd),
    TEST(set_keys_hands_the_struct_over),
    TEST(set_keys_gives_every_errno),
    TEST(set_keys_asks_no_kernel_about_what_cannot_be),
    TEST(modes),
    TEST(receive_gives_all_there_is),
    TEST(receive_gives_every_number),
    TEST(receive_gives_every_errno),
    TEST(receive_later_part_of_a_record),
    TEST(receive_at_the_end_of_the_stream),
    TEST(receive_an_empty_record),
    TEST(receive_with_a_lost_control_message),
    TEST(receive_with_another_control_message),
    TEST(receive_through_the_common_interface),
    TEST(receive_into_several_buffers),
    TEST(send_without_type),
    TEST(send_with_every_type),
    TEST(send_refuses_what_the_kernel_would_mangle),
    TEST(send_refuses_urgent_data),
    TEST(send_of_nothing),
    TEST(send_gives_every_errno),
    TEST(sendfile_alone),
    TEST(sendfile_with_more_around_it),
    TEST(sendfile_leaves_out_trailers_without_a_byte),
    TEST(sendfile_gives_every_errno_and_what_was_sent),
    TEST(sendfile_refuses_more_than_an_int),
    TEST(sysctl),
};

int main(void) {
    return RUN_TESTS(tests);
}
