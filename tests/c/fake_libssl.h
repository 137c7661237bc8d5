/*
 * An OpenSSL without TLS: its objects are these structs, which the test fills and calls back from.
 * All that csrc/openssl_*.c look up of libssl is there (fake_libssl.c), and answers from them; what
 * they look up of libcrypto is in fake_libcrypto.c.  Both are one library.
 */
#ifndef FAKE_LIBSSL_H
#define FAKE_LIBSSL_H

#include <stddef.h>
#include <stdint.h>

#include "fake_libcrypto.h"

#define EX_DATA 16

typedef void (*keylog_function)(const void *ssl, const char *line);
typedef void (*message_function)(int write, int version, int content_type, const void *data,
                                 size_t size, void *ssl, void *argument);
typedef void (*info_function)(const void *ssl, int where, int result);
typedef void (*ex_free_function)(void *parent, void *pointer, void *ex_data, int index,
                                 long argument_long, void *argument_pointer);

struct fake_ctx {
    uint64_t options;
    keylog_function keylog;
    message_function message;
    info_function info;
    void *ex_data[EX_DATA];
    int refuses_ex_data;
};

struct fake_session {
    uint8_t max_fragment;
    unsigned char master[48];
    size_t master_length;
};

/*
 * What a call that reads is told to do, and what it tells the test.  Told nothing, it does as one
 * that takes all there is in the BIO and finds nothing to hand out.
 */
struct fake_reading {
    int result;   /* what it returns, or how much there would be to hand out */
    int error;    /* what SSL_get_error says after it */
    int queues;   /* leaves this many errors in the queue, of on_openssl.code */
    int shutdown; /* sets these flags, as an alert does that was read */

    int calls, shutdown_before;
    int room; /* that it was given */
};

/* What SSL_write leaves in the BIO before the data, SSL_shutdown and SSL_do_handshake as all. */
#define FAKE_RECORD "record:"
#define FAKE_CLOSE_NOTIFY "close_notify"
#define FAKE_KEY_UPDATE "key_update" /* and then the kind, one byte */

struct fake_ssl {
    struct fake_ctx *ctx;
    message_function message;
    void *ex_data[EX_DATA];
    int refuses_ex_data;
    int version, server, in_init, shutdown, pending, key_update, early_data;
    uint16_t cipher; /* 0: none yet */
    int compressed;
    unsigned char client_random[32], server_random[32];
    struct fake_bio *read_bio, *write_bio;
    struct fake_session *session;
    struct fake_reading peek, read;
    int last_length; /* of SSL_write */
    long mode;
    uint64_t options;
    unsigned char taken[FAKE_ROOM]; /* all that it read from its BIO */
    size_t taken_size;
    int error; /* of the last call */
};

/* Which class of ex_data gets no index: 0 connections, 1 contexts, -1 none is refused. */
extern int fake_refused_class;

/* As SSL_new and SSL_free: the context's callback is copied, ex_data and BIOs are freed. */
void fake_ssl_init(struct fake_ssl *ssl, struct fake_ctx *ctx);
void fake_ssl_free(struct fake_ssl *ssl);
void fake_ctx_free(struct fake_ctx *ctx);

#endif
