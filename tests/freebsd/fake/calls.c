/* The one table behind calls.h, for both extension modules. */
#include "calls.h"

struct fake_calls fake_calls;

/* recvmsg(2) with `room` bytes for control messages, for tests of what happens where they lack. */
int64_t fake_recvmsg_with_room(int fd, void *buffer, size_t size, size_t room, int *messages,
                               int *flags) {
    _Alignas(struct cmsghdr) unsigned char control[256];
    struct iovec iov = {buffer, size};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    message.msg_control = room > 0 ? control : NULL;
    message.msg_controllen = room;
    ssize_t received = recvmsg(fd, &message, 0);
    *messages = CMSG_FIRSTHDR(&message) != NULL;
    *flags = message.msg_flags;
    return received < 0 ? -errno : received;
}
