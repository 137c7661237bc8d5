/* The system calls of csrc/kernel_linux.c, on a kernel that does as the test says. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "check.h"
#include "kernel.h"
#include "scripts.h"

#define SOL_TLS 282
#define SET_RECORD_TYPE 1
#define GET_RECORD_TYPE 2

static const unsigned char key[] = "thirty-two bytes for a test key.";
static const unsigned char iv[] = "twelve bytes";

static void system_is_linux(void) {
    CHECK_INT(pyktls_system(), 1);
}

/* ---- keys ------------------------------------------------------------------------------------ */

static void set_keys_hands_the_packed_struct_over(void) {
    for (int direction = 1; direction <= 2; direction++) {
        for (uint16_t cipher = 51; cipher <= 58; cipher++) {
            size_t length = cipher == 52 || cipher == 54 || cipher == 58 ? 32 : 16;
            unsigned char expected[64];
            int size = pyktls_linux_pack(expected, sizeof(expected), 0x0304, cipher, key, length,
                                         iv, 77);
            reset_scripts();
            CHECK_INT(pyktls_linux_set_keys(9, direction, 0x0304, cipher, key, length, iv, 77), 0);
            CHECK_INT(on_setsockopt.calls, 1);
            CHECK_INT(on_setsockopt.fd, 9);
            CHECK_INT(on_setsockopt.level, SOL_TLS);
            CHECK_INT(on_setsockopt.option, direction);
            CHECK_INT(on_setsockopt.size, size);
            CHECK_BYTES(on_setsockopt.value, expected, on_setsockopt.size);
        }
    }
}

static void set_keys_gives_every_errno(void) {
    for (int error = 1; error <= LAST_ERRNO; error++) {
        reset_scripts();
        on_setsockopt.error = error;
        CHECK_INT(pyktls_linux_set_keys(3, 1, 0x0303, 51, key, 16, iv, 0), -error);
        CHECK_INT(on_setsockopt.calls, 1);
    }
}

static void set_keys_asks_no_kernel_about_what_cannot_be(void) {
    reset_scripts();
    for (size_t length = 0; length < 64; length++) {
        for (uint16_t cipher = 50; cipher <= 59; cipher++) {
            size_t right = cipher == 50 || cipher == 59                   ? SIZE_MAX
                           : cipher == 52 || cipher == 54 || cipher == 58 ? 32
                                                                          : 16;
            if (length != right) {
                CHECK_INT(pyktls_linux_set_keys(3, 1, 0x0304, cipher, key, length, iv, 0), -EINVAL);
            }
        }
    }
    CHECK_INT(on_setsockopt.calls, 0);
}

/* ---- receiving ------------------------------------------------------------------------------- */

static unsigned char inbox[64];
static int type, flags;

static ssize_t receive(size_t size) {
    memset(inbox, 0xee, sizeof(inbox));
    type = 12345;
    flags = 12345;
    return pyktls_recv_record(7, inbox, size, MSG_DONTWAIT | MSG_PEEK, &type, &flags);
}

/* A control message comes with what is received: one byte, `value`. */
static void script_control(const unsigned char *value) {
    on_recvmsg.has_control = 1;
    on_recvmsg.level = SOL_TLS;
    on_recvmsg.type = GET_RECORD_TYPE;
    on_recvmsg.inside = value;
    on_recvmsg.inside_size = 1;
}

static void receive_gives_data_type_and_flags(void) {
    for (int value = 0; value <= UINT8_MAX; value++) {
        unsigned char byte = (unsigned char)value;
        reset_scripts();
        script_control(&byte);
        on_recvmsg.data = "some data";
        on_recvmsg.data_size = 9;
        on_recvmsg.msg_flags = MSG_EOR | MSG_CMSG_CLOEXEC;
        CHECK_INT(receive(32), 9);
        CHECK_INT(type, value);
        CHECK_INT(flags, MSG_EOR | MSG_CMSG_CLOEXEC);
        CHECK_BYTES(inbox, "some data", 9);
        CHECK_ALL(inbox + 9, 0xee, sizeof(inbox) - 9);
    }
}

static void receive_asks_once_with_room_for_the_type(void) {
    reset_scripts();
    CHECK_INT(receive(33), 0);
    CHECK_INT(on_recvmsg.calls, 1);
    CHECK_INT(on_recvmsg.fd, 7);
    CHECK_INT(on_recvmsg.flags, MSG_DONTWAIT | MSG_PEEK);
    CHECK_INT(on_recvmsg.buffers, 1);
    CHECK(on_recvmsg.buffer[0] == inbox);
    CHECK_INT(on_recvmsg.buffer_size[0], 33);
    CHECK(on_recvmsg.control_room >= CMSG_SPACE(1) + CMSG_SPACE(2 * sizeof(long)));
    CHECK_INT(on_recvmsg.has_name, 0);
}

static void receive_gives_every_errno(void) {
    for (int error = 1; error <= LAST_ERRNO; error++) { /* EINTR is one: it is not tried again */
        reset_scripts();
        on_recvmsg.error = error;
        on_recvmsg.msg_flags = MSG_EOR;
        CHECK_INT(receive(32), -error);
        CHECK_INT(on_recvmsg.calls, 1);
        CHECK_INT(type, PYKTLS_NO_RECORD_TYPE);
        CHECK_INT(flags, 0);
        CHECK_ALL(inbox, 0xee, sizeof(inbox));
    }
}

static void receive_without_control_message(void) {
    reset_scripts();
    on_recvmsg.data = "plain";
    on_recvmsg.data_size = 5;
    CHECK_INT(receive(32), 5);
    CHECK_INT(type, PYKTLS_NO_RECORD_TYPE);
    CHECK_INT(flags, 0);
    CHECK_BYTES(inbox, "plain", 5);
}

static void receive_at_the_end_of_the_stream(void) {
    reset_scripts();
    CHECK_INT(receive(32), 0);
    CHECK_INT(type, PYKTLS_NO_RECORD_TYPE);
}

static void receive_an_empty_record(void) {
    unsigned char byte = 23;
    reset_scripts();
    script_control(&byte);
    on_recvmsg.msg_flags = MSG_EOR;
    CHECK_INT(receive(32), 0);
    CHECK_INT(type, 23); /* so it is not the end */
    CHECK_INT(flags, MSG_EOR);
}

static void receive_into_no_room(void) {
    unsigned char byte = 21;
    reset_scripts();
    script_control(&byte);
    on_recvmsg.data = "more than that";
    on_recvmsg.data_size = 14;
    CHECK_INT(receive(0), 0);
    CHECK_INT(type, 21);
    CHECK_ALL(inbox, 0xee, sizeof(inbox));
}

static void receive_part_of_a_record(void) {
    unsigned char byte = 23;
    reset_scripts();
    script_control(&byte);
    on_recvmsg.data = "ten bytes.";
    on_recvmsg.data_size = 10;
    CHECK_INT(receive(4), 4);
    CHECK_INT(type, 23);
    CHECK_INT(flags, 0); /* no MSG_EOR */
    CHECK_BYTES(inbox, "ten ", 4);
    CHECK_ALL(inbox + 4, 0xee, sizeof(inbox) - 4);
}

static void receive_with_another_control_message(void) {
    static const struct {
        int level, type;
    } others[] = {
        {SOL_TLS, SET_RECORD_TYPE}, {SOL_TLS, 3},       {SOL_TLS, 0},
        {SOL_SOCKET, 2},            {6, 2},             {0, 2},
        {-SOL_TLS, 2},              {SOL_TLS + 1, 2},   {SOL_TLS, GET_RECORD_TYPE | 0x100},
    };
    unsigned char byte = 21;
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        reset_scripts();
        script_control(&byte);
        on_recvmsg.level = others[i].level;
        on_recvmsg.type = others[i].type;
        on_recvmsg.data = "data";
        on_recvmsg.data_size = 4;
        CHECK_INT(receive(32), 4);
        CHECK_INT(type, PYKTLS_NO_RECORD_TYPE);
    }
}

static void receive_with_a_cut_control_message(void) {
    /* MSG_CTRUNC: the header is there and its byte is not, or not even the header. */
    unsigned char byte = 21;
    for (size_t left = 0; left <= CMSG_LEN(0); left++) {
        reset_scripts();
        script_control(&byte);
        on_recvmsg.has_control = left > 0;
        on_recvmsg.cut_to = left;
        on_recvmsg.claimed_size = left;
        on_recvmsg.msg_flags = MSG_CTRUNC | MSG_EOR;
        on_recvmsg.data = "data";
        on_recvmsg.data_size = 4;
        CHECK_INT(receive(32), -EPROTO);
        CHECK_INT(type, PYKTLS_NO_RECORD_TYPE);
        CHECK_INT(flags, 0);
    }
    /* Another one was cut, and the type is there. */
    reset_scripts();
    script_control(&byte);
    on_recvmsg.msg_flags = MSG_CTRUNC;
    on_recvmsg.data = "data";
    on_recvmsg.data_size = 4;
    CHECK_INT(receive(32), 4);
    CHECK_INT(type, 21);
    CHECK_INT(flags, MSG_CTRUNC);
    /* A header that claims too little has no byte, cut or not. */
    reset_scripts();
    script_control(&byte);
    on_recvmsg.claimed_size = CMSG_LEN(0);
    CHECK_INT(receive(32), 0);
    CHECK_INT(type, PYKTLS_NO_RECORD_TYPE);
}

static void receive_behind_a_message_of_tcps_own(void) {
    /* SO_TIMESTAMP, SO_TIMESTAMPING and TCP_INQ at once would be as much as the last. */
    unsigned char byte = 22;
    for (size_t size = 1; size <= 128; size++) {
        reset_scripts();
        script_control(&byte);
        on_recvmsg.ahead = size;
        on_recvmsg.data = "data";
        on_recvmsg.data_size = 4;
        CHECK_INT(receive(32), 4);
        CHECK_INT(type, 22);
    }
    /* It alone: then there is no type. */
    script_control(&byte);
    on_recvmsg.level = 6;
    CHECK_INT(receive(32), 4);
    CHECK_INT(type, PYKTLS_NO_RECORD_TYPE);
}

static void receive_into_several_buffers(void) {
    unsigned char byte = 23, first[3], second[8];
    const struct iovec parts[] = {{first, 3}, {NULL, 0}, {second, 8}};
    reset_scripts();
    script_control(&byte);
    on_recvmsg.msg_flags = MSG_EOR;
    on_recvmsg.data = "abcdef";
    on_recvmsg.data_size = 6;
    memset(second, 0xee, sizeof(second));
    type = flags = 12345;
    CHECK_INT(pyktls_recv_record_vector(7, parts, 3, MSG_PEEK, &type, &flags), 6);
    CHECK_BYTES(first, "abc", 3);
    CHECK_BYTES(second, "def", 3);
    CHECK_ALL(second + 3, 0xee, 5);
    CHECK_INT(type, 23);
    CHECK_INT(flags, MSG_EOR);
    CHECK_INT(on_recvmsg.calls, 1);
    CHECK_INT(on_recvmsg.fd, 7);
    CHECK_INT(on_recvmsg.flags, MSG_PEEK);
    CHECK_INT(on_recvmsg.buffers, 3);
    CHECK(on_recvmsg.control_room >= CMSG_SPACE(1) + CMSG_SPACE(2 * sizeof(long)));
    on_recvmsg.error = EINTR;
    CHECK_INT(pyktls_recv_record_vector(7, parts, 3, 0, &type, &flags), -EINTR);
    CHECK_INT(type, PYKTLS_NO_RECORD_TYPE);
    CHECK_INT(flags, 0);
    reset_scripts();
    CHECK_INT(pyktls_recv_record_vector(7, NULL, 0, 0, &type, &flags), 0);
    CHECK_INT(on_recvmsg.buffers, 0);
}

/* ---- sending --------------------------------------------------------------------------------- */

static void send_without_type(void) {
    char hello[] = "hello ", world[] = "world";
    const struct iovec parts[] = {{hello, 6}, {hello, 0}, {world, 5}};
    reset_scripts();
    on_sendmsg.result = 11;
    CHECK_INT(pyktls_send_record(5, parts, 3, MSG_MORE, PYKTLS_NO_RECORD_TYPE), 11);
    CHECK_INT(on_sendmsg.calls, 1);
    CHECK_INT(on_sendmsg.fd, 5);
    CHECK_INT(on_sendmsg.flags, MSG_MORE);
    CHECK_INT(on_sendmsg.buffers, 3);
    CHECK_INT(on_sendmsg.data_size, 11);
    CHECK_BYTES(on_sendmsg.data, "hello world", 11);
    CHECK_INT(on_sendmsg.has_control, 0);
    CHECK_INT(on_sendmsg.control_size, 0);
    CHECK_INT(on_sendmsg.has_name, 0);
}

static void send_with_every_type(void) {
    char alert[] = {1, 0};
    const struct iovec part = {alert, 2};
    for (int value = 0; value <= UINT8_MAX; value++) {
        reset_scripts();
        on_sendmsg.result = 2;
        CHECK_INT(pyktls_send_record(5, &part, 1, MSG_DONTWAIT, value), 2);
        CHECK_INT(on_sendmsg.flags, MSG_DONTWAIT);
        CHECK_INT(on_sendmsg.has_control, 1);
        CHECK_INT(on_sendmsg.level, SOL_TLS);
        CHECK_INT(on_sendmsg.type, SET_RECORD_TYPE);
        CHECK_INT(on_sendmsg.inside_size, 1);
        CHECK_INT(on_sendmsg.control_size, CMSG_SPACE(1));
        CHECK_INT(on_sendmsg.control[CMSG_LEN(0)], value);
        /* The padding goes to the kernel: no stack in it. */
        CHECK_ALL(on_sendmsg.control + CMSG_LEN(1), 0, CMSG_SPACE(1) - CMSG_LEN(1));
        CHECK_BYTES(on_sendmsg.data, alert, 2);
    }
}

static void send_nothing(void) {
    reset_scripts();
    CHECK_INT(pyktls_send_record(5, NULL, 0, 0, 23), 0);
    CHECK_INT(on_sendmsg.calls, 1);
    CHECK_INT(on_sendmsg.buffers, 0);
    CHECK_INT(on_sendmsg.has_control, 1);
}

static void send_gives_part_and_every_errno(void) {
    char data[] = "data";
    const struct iovec part = {data, 4};
    reset_scripts();
    on_sendmsg.result = 1;
    CHECK_INT(pyktls_send_record(5, &part, 1, 0, PYKTLS_NO_RECORD_TYPE), 1);
    for (int error = 1; error <= LAST_ERRNO; error++) {
        reset_scripts();
        on_sendmsg.error = error;
        CHECK_INT(pyktls_send_record(5, &part, 1, 0, PYKTLS_NO_RECORD_TYPE), -error);
        CHECK_INT(pyktls_send_record(5, &part, 1, 0, 21), -error);
        CHECK_INT(on_sendmsg.calls, 2);
    }
}

static const struct test tests[] = {
    TEST(system_is_linux),
    TEST(set_keys_hands_the_packed_struct_over),
    TEST(set_keys_gives_every_errno),
    TEST(set_keys_asks_no_kernel_about_what_cannot_be),
    TEST(receive_gives_data_type_and_flags),
    TEST(receive_asks_once_with_room_for_the_type),
    TEST(receive_gives_every_errno),
    TEST(receive_without_control_message),
    TEST(receive_at_the_end_of_the_stream),
    TEST(receive_an_empty_record),
    TEST(receive_into_no_room),
    TEST(receive_part_of_a_record),
    TEST(receive_with_another_control_message),
    TEST(receive_with_a_cut_control_message),
    TEST(receive_behind_a_message_of_tcps_own),
    TEST(receive_into_several_buffers),
    TEST(send_without_type),
    TEST(send_with_every_type),
    TEST(send_nothing),
    TEST(send_gives_part_and_every_errno),
};

int main(void) {
    return RUN_TESTS(tests);
}
