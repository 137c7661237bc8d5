/* The system calls of replaced.h, played from the scripts of scripts.h. */
#define TEST_REPLACES
#include "replaced.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "scripts.h"

struct option_script on_setsockopt, on_getsockopt;
struct receive_script on_recvmsg;
struct send_script on_sendmsg;

void reset_scripts(void) {
    memset(&on_setsockopt, 0, sizeof(on_setsockopt));
    memset(&on_getsockopt, 0, sizeof(on_getsockopt));
    memset(&on_recvmsg, 0, sizeof(on_recvmsg));
    memset(&on_sendmsg, 0, sizeof(on_sendmsg));
    errno = 0;
}

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

static int fail(int error) {
    errno = error;
    return -1;
}

static void take_option(struct option_script *script, int fd, int level, int option,
                        socklen_t size) {
    script->calls++;
    script->fd = fd;
    script->level = level;
    script->option = option;
    script->size = size;
    if (script->during != NULL) {
        script->during();
    }
}

int test_setsockopt(int fd, int level, int option, const void *value, socklen_t size) {
    struct option_script *script = &on_setsockopt;
    take_option(script, fd, level, option, size);
    if (script->during == NULL) { /* those who look for copies want no other here */
        memcpy(script->value, value, least(size, ROOM));
    }
    return script->error ? fail(script->error) : 0;
}

int test_getsockopt(int fd, int level, int option, void *value, socklen_t *size) {
    struct option_script *script = &on_getsockopt;
    take_option(script, fd, level, option, *size);
    if (script->error) {
        return fail(script->error);
    }
    *size = (socklen_t)least(*size, script->answer_size);
    memcpy(value, script->answer, *size);
    return 0;
}

static size_t fill_control(const struct receive_script *script, struct msghdr *message) {
    size_t size = CMSG_LEN(script->inside_size);
    size_t ahead = script->ahead != 0 ? CMSG_SPACE(script->ahead) : 0;
    if (message->msg_control == NULL || message->msg_controllen < ahead + size) {
        return 0;
    }
    struct cmsghdr *header = message->msg_control;
    if (ahead != 0) {
        memset(header, 0, ahead);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = 29;
        header->cmsg_len = CMSG_LEN(script->ahead);
        header = (struct cmsghdr *)(void *)((char *)message->msg_control + ahead);
    }
    header->cmsg_level = script->level;
    header->cmsg_type = script->type;
    header->cmsg_len = script->claimed_size != 0 ? script->claimed_size : size;
    memcpy(CMSG_DATA(header), script->inside, script->inside_size);
    return script->cut_to != 0
               ? ahead + script->cut_to
               : least(message->msg_controllen, ahead + CMSG_SPACE(script->inside_size));
}

ssize_t test_recvmsg(int fd, struct msghdr *message, int flags) {
    struct receive_script *script = &on_recvmsg;
    script->calls++;
    script->fd = fd;
    script->flags = flags;
    script->buffers = (size_t)message->msg_iovlen;
    script->control_room = message->msg_controllen;
    script->has_name = message->msg_name != NULL || message->msg_namelen != 0;
    for (size_t i = 0; i < script->buffers && i < 8; i++) {
        script->buffer[i] = message->msg_iov[i].iov_base;
        script->buffer_size[i] = message->msg_iov[i].iov_len;
    }
    if (script->error) {
        return fail(script->error);
    }
    size_t done = 0;
    for (size_t i = 0; i < script->buffers && done < script->data_size; i++) {
        size_t part = least(message->msg_iov[i].iov_len, script->data_size - done);
        if (part == 0) {
            continue;
        }
        memcpy(message->msg_iov[i].iov_base, (const char *)script->data + done, part);
        done += part;
    }
    message->msg_controllen = script->has_control ? fill_control(script, message) : 0;
    message->msg_flags = script->msg_flags;
    return (ssize_t)done;
}

ssize_t test_sendmsg(int fd, const struct msghdr *message, int flags) {
    struct send_script *script = &on_sendmsg;
    script->calls++;
    script->fd = fd;
    script->flags = flags;
    script->buffers = (size_t)message->msg_iovlen;
    script->has_name = message->msg_name != NULL || message->msg_namelen != 0;
    script->data_size = 0;
    /* A test of too many buffers has not got them. */
    for (size_t i = 0; i < script->buffers && message->msg_iov != NULL; i++) {
        const struct iovec *part = &message->msg_iov[i];
        size_t size = least(part->iov_len, ROOM - script->data_size);
        if (size > 0) {
            memcpy(script->data + script->data_size, part->iov_base, size);
        }
        script->data_size += size;
    }
    const struct cmsghdr *header = CMSG_FIRSTHDR(message);
    script->has_control = header != NULL;
    script->control_size = message->msg_controllen;
    memset(script->control, 0xee, sizeof(script->control));
    if (header != NULL) {
        script->level = header->cmsg_level;
        script->type = header->cmsg_type;
        script->inside_size = header->cmsg_len - CMSG_LEN(0);
        /* All of it, the padding too: reading it here shows valgrind what was never written. */
        memcpy(script->control, message->msg_control, least(message->msg_controllen, ROOM));
    }
    return script->error ? fail(script->error) : script->result;
}
