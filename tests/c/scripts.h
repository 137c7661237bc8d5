/*
 * What a test tells a system call to do, and what the system call tells the test.
 *
 * Each script counts its calls.  `error` not 0: the call fails with it.  The buffers that a call
 * was given are gone when it has returned, so what is in them is kept here.
 */
#ifndef SCRIPTS_H
#define SCRIPTS_H

#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

#define ROOM 512
/* Every errno that Linux has, and some more. */
#define LAST_ERRNO 140

struct option_script {
    int error;
    unsigned char answer[ROOM]; /* for getsockopt: what it answers with */
    socklen_t answer_size;
    void (*during)(void); /* called in the middle of it, if there is one */

    int calls, fd, level, option;
    unsigned char value[ROOM]; /* what setsockopt was given */
    socklen_t size;            /* and its size, or getsockopt's room */
};

struct receive_script {
    int error;
    const void *data;
    size_t data_size; /* goes into the buffers, as far as they reach, and is returned */
    int msg_flags;
    size_t ahead;    /* if not 0, one of another kind comes before it, with so many bytes */
    int has_control; /* a control message comes along, of this level and type */
    int level, type;
    const void *inside; /* what is in it */
    size_t inside_size;
    size_t cut_to;       /* if not 0, the msg_controllen that is left of it */
    size_t claimed_size; /* if not 0, its cmsg_len, instead of the right one */

    int calls, fd, flags;
    size_t buffers; /* how many there were; the first of them: where and how long */
    void *buffer[8];
    size_t buffer_size[8];
    size_t control_room;
    int has_name;
};

struct send_script {
    int error;
    ssize_t result; /* where there is no error */

    int calls, fd, flags;
    size_t buffers;
    unsigned char data[ROOM]; /* all that was in them, as far as it fits */
    size_t data_size;
    int has_control, level, type;
    size_t control_size; /* msg_controllen */
    size_t inside_size;  /* from cmsg_len */
    unsigned char control[ROOM];
    int has_name;
};

extern struct option_script on_setsockopt, on_getsockopt;
extern struct receive_script on_recvmsg;
extern struct send_script on_sendmsg;

/* All scripts as at the start: success, and nothing received. */
void reset_scripts(void);

#endif
