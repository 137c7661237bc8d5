/* The functions of libssl that csrc/openssl_*.c look up: see fake_libssl.h. */
#include "fake_libssl.h"

#include <string.h>

#include "wipe.h"

#define CLASSES 2
#define SENT_SHUTDOWN 1
#define RECEIVED_SHUTDOWN 2
#define CLEAR_MODE 78
#define NO_KEY_UPDATE (-1)
#define ERROR_SSL 1
#define ERROR_WANT_READ 2
#define ERROR_SYSCALL 5
#define ERROR_ZERO_RETURN 6

int fake_refused_class = -1;

static ex_free_function free_functions[CLASSES][EX_DATA];
static int used[CLASSES] = {1, 1}; /* 0 is the application's own */

static void free_ex_data(int class, void *parent, void **ex_data) {
    for (int i = 0; i < used[class]; i++) { /* where there is none it is called with NULL */
        if (free_functions[class][i] != NULL) {
            free_functions[class][i](parent, ex_data[i], ex_data, i, 0, NULL);
        }
    }
}

void fake_ssl_init(struct fake_ssl *ssl, struct fake_ctx *ctx) {
    memset(ssl, 0, sizeof(*ssl));
    ssl->ctx = ctx;
    ssl->message = ctx->message;
    ssl->key_update = NO_KEY_UPDATE;
}

void fake_ssl_free(struct fake_ssl *ssl) {
    free_ex_data(0, ssl, ssl->ex_data);
    BIO_free(ssl->read_bio);
    BIO_free(ssl->write_bio);
}

void fake_ctx_free(struct fake_ctx *ctx) {
    free_ex_data(1, ctx, ctx->ex_data);
}

/*
 * The types are those that the callers use, not OpenSSL's: a sanitizer compares them at each call
 * through a pointer.
 */
#define SSL(pointer) ((struct fake_ssl *)(pointer))
#define CTX(pointer) ((struct fake_ctx *)(pointer))
#define SESSION(pointer) ((struct fake_session *)(pointer))

#define GETTER(name, type, expression)                                                             \
    type name(const void *object);                                                                 \
    type name(const void *object) {                                                                \
        return expression;                                                                         \
    }

int CRYPTO_get_ex_new_index(int class, long argument_long, void *argument_pointer,
                            void *new_function, void *dup_function, ex_free_function free_function);
int CRYPTO_get_ex_new_index(int class, long argument_long, void *argument_pointer,
                            void *new_function, void *dup_function,
                            ex_free_function free_function) {
    (void)argument_long, (void)argument_pointer, (void)new_function, (void)dup_function;
    if (class == fake_refused_class || used[class] == EX_DATA) {
        return -1;
    }
    free_functions[class][used[class]] = free_function;
    return used[class]++;
}

void *SSL_CTX_get_ex_data(const void *ctx, int index);
void *SSL_CTX_get_ex_data(const void *ctx, int index) {
    return CTX(ctx)->ex_data[index];
}

int SSL_CTX_set_ex_data(void *ctx, int index, void *data);
int SSL_CTX_set_ex_data(void *ctx, int index, void *data) {
    if (CTX(ctx)->refuses_ex_data) {
        return 0;
    }
    CTX(ctx)->ex_data[index] = data;
    return 1;
}

void *SSL_get_ex_data(const void *ssl, int index);
void *SSL_get_ex_data(const void *ssl, int index) {
    return SSL(ssl)->ex_data[index];
}

int SSL_set_ex_data(void *ssl, int index, void *data);
int SSL_set_ex_data(void *ssl, int index, void *data) {
    if (SSL(ssl)->refuses_ex_data) {
        return 0;
    }
    SSL(ssl)->ex_data[index] = data;
    return 1;
}

void SSL_CTX_set_keylog_callback(void *ctx, keylog_function function);
void SSL_CTX_set_keylog_callback(void *ctx, keylog_function function) {
    CTX(ctx)->keylog = function;
}

void SSL_CTX_set_msg_callback(void *ctx, message_function function);
void SSL_CTX_set_msg_callback(void *ctx, message_function function) {
    CTX(ctx)->message = function;
}

void SSL_CTX_set_info_callback(void *ctx, info_function function);
void SSL_CTX_set_info_callback(void *ctx, info_function function) {
    CTX(ctx)->info = function;
}

void SSL_set_msg_callback(void *ssl, message_function function);
void SSL_set_msg_callback(void *ssl, message_function function) {
    SSL(ssl)->message = function;
}

void SSL_set_shutdown(void *ssl, int mode);
void SSL_set_shutdown(void *ssl, int mode) {
    SSL(ssl)->shutdown = mode;
}

void SSL_set0_rbio(void *ssl, void *bio);
void SSL_set0_rbio(void *ssl, void *bio) {
    BIO_free(SSL(ssl)->read_bio);
    SSL(ssl)->read_bio = bio;
}

void SSL_set0_wbio(void *ssl, void *bio);
void SSL_set0_wbio(void *ssl, void *bio) {
    BIO_free(SSL(ssl)->write_bio);
    SSL(ssl)->write_bio = bio;
}

GETTER(SSL_CTX_get_options, uint64_t, CTX(object)->options)
GETTER(SSL_CTX_get_keylog_callback, keylog_function, CTX(object)->keylog)
GETTER(SSL_CTX_get_info_callback, info_function, CTX(object)->info)
GETTER(SSL_get_SSL_CTX, void *, SSL(object)->ctx)
GETTER(SSL_version, int, SSL(object)->version)
GETTER(SSL_is_server, int, SSL(object)->server)
GETTER(SSL_in_init, int, SSL(object)->in_init)
GETTER(SSL_get_shutdown, int, SSL(object)->shutdown)
GETTER(SSL_pending, int, SSL(object)->pending)
GETTER(SSL_get_key_update_type, int, SSL(object)->key_update)
GETTER(SSL_get_rbio, void *, SSL(object)->read_bio)
GETTER(SSL_get_wbio, void *, SSL(object)->write_bio)
GETTER(SSL_get_current_cipher, const void *, SSL(object)->cipher == 0 ? NULL : &SSL(object)->cipher)
GETTER(SSL_CIPHER_get_protocol_id, uint16_t, *(const uint16_t *)object)
GETTER(SSL_get_current_compression, const void *, SSL(object)->compressed ? "zlib" : NULL)
GETTER(SSL_get_early_data_status, int, SSL(object)->early_data)
GETTER(SSL_get_session, void *, SSL(object)->session)
GETTER(SSL_SESSION_get_max_fragment_length, uint8_t, SESSION(object)->max_fragment)

static size_t copy_out(unsigned char *out, size_t room, const unsigned char *from, size_t size) {
    if (room == 0) {
        return size; /* as OpenSSL: it asks for the length */
    }
    size = room < size ? room : size;
    /* For test_wipe.c: what the real one leaves in registers is not ours to test. */
    pyktls_copy_secret(out, from, size);
    return size;
}

size_t SSL_get_client_random(const void *ssl, unsigned char *out, size_t room);
size_t SSL_get_client_random(const void *ssl, unsigned char *out, size_t room) {
    return copy_out(out, room, SSL(ssl)->client_random, 32);
}

size_t SSL_get_server_random(const void *ssl, unsigned char *out, size_t room);
size_t SSL_get_server_random(const void *ssl, unsigned char *out, size_t room) {
    return copy_out(out, room, SSL(ssl)->server_random, 32);
}

size_t SSL_SESSION_get_master_key(const void *session, unsigned char *out, size_t room);
size_t SSL_SESSION_get_master_key(const void *session, unsigned char *out, size_t room) {
    return copy_out(out, room, SESSION(session)->master, SESSION(session)->master_length);
}

/* ---- reading --------------------------------------------------------------------------------- */

static int take(struct fake_ssl *ssl, struct fake_reading *reading, void *out, int room) {
    reading->calls++;
    reading->shutdown_before = ssl->shutdown;
    reading->room = room;
    if (ssl->shutdown & RECEIVED_SHUTDOWN) {
        ssl->error = ERROR_ZERO_RETURN;
        return 0;
    }
    struct fake_bio *bio = ssl->read_bio;
    memcpy(ssl->taken + ssl->taken_size, bio->data, bio->size);
    ssl->taken_size += bio->size;
    bio->size = 0;
    ssl->shutdown |= reading->shutdown;
    fake_queue(reading->queues);
    if (reading->result == 0 && reading->error == 0) {
        ssl->error = bio->at_end < 0 ? ERROR_WANT_READ : ERROR_SYSCALL;
        return bio->at_end;
    }
    ssl->error = reading->error;
    int result = reading->result < room ? reading->result : room;
    if (result > 0) {
        memset(out, 0xee, (size_t)result);
    }
    return result;
}

int SSL_peek(void *ssl, void *out, int room);
int SSL_peek(void *ssl, void *out, int room) {
    return take(ssl, &SSL(ssl)->peek, out, room);
}

int SSL_read(void *ssl, void *out, int room);
int SSL_read(void *ssl, void *out, int room) {
    return take(ssl, &SSL(ssl)->read, out, room);
}

/* An error in the queue comes first, whatever it is of. */
int SSL_get_error(const void *ssl, int result);
int SSL_get_error(const void *ssl, int result) {
    if (result > 0) {
        return 0;
    }
    return on_openssl.errors > 0 ? ERROR_SSL : SSL(ssl)->error;
}

/* ---- writing, and settings ------------------------------------------------------------------- */

static void make(struct fake_ssl *ssl, const void *data, size_t size) {
    struct fake_bio *bio = ssl->write_bio;
    if (bio->method == FAKE_MEMORY) {
        memcpy(bio->data + bio->size, data, size);
        bio->size += size;
    }
    bio->written += size;
}

int SSL_write(void *ssl, const void *data, int length);
int SSL_write(void *ssl, const void *data, int length) {
    SSL(ssl)->last_length = length;
    if (fake_fails(__func__)) {
        return on_openssl.failure;
    }
    make(ssl, FAKE_RECORD, strlen(FAKE_RECORD));
    make(ssl, data, (size_t)length);
    return length;
}

/* 1 where both close_notify are through, else 0. */
int SSL_shutdown(void *ssl);
int SSL_shutdown(void *ssl) {
    if (fake_fails(__func__)) {
        return on_openssl.failure;
    }
    SSL(ssl)->shutdown |= SENT_SHUTDOWN;
    make(ssl, FAKE_CLOSE_NOTIFY, strlen(FAKE_CLOSE_NOTIFY));
    return (SSL(ssl)->shutdown & RECEIVED_SHUTDOWN) != 0;
}

int SSL_key_update(void *ssl, int kind);
int SSL_key_update(void *ssl, int kind) {
    if (fake_fails(__func__)) {
        return on_openssl.failure;
    }
    SSL(ssl)->key_update = kind;
    return 1;
}

int SSL_do_handshake(void *ssl);
int SSL_do_handshake(void *ssl) {
    if (fake_fails(__func__)) {
        return on_openssl.failure;
    }
    if (SSL(ssl)->key_update != NO_KEY_UPDATE) {
        unsigned char kind = (unsigned char)SSL(ssl)->key_update;
        make(ssl, FAKE_KEY_UPDATE, strlen(FAKE_KEY_UPDATE));
        make(ssl, &kind, 1);
        SSL(ssl)->key_update = NO_KEY_UPDATE;
    }
    return 1;
}

long SSL_ctrl(void *ssl, int command, long argument, void *pointer);
long SSL_ctrl(void *ssl, int command, long argument, void *pointer) {
    if (command != CLEAR_MODE || pointer != NULL) {
        fake_misuse++;
        return 0;
    }
    return SSL(ssl)->mode &= ~argument;
}

uint64_t SSL_set_options(void *ssl, uint64_t options);
uint64_t SSL_set_options(void *ssl, uint64_t options) {
    return SSL(ssl)->options |= options;
}
