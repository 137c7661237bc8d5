#include "openssl_half.h"

#include <limits.h>

#include "openssl_lookup.h"
#include "openssl_tap.h"

#define ERROR_WANT_READ 2
#define ERROR_ZERO_RETURN 6
#define BIO_PENDING 10 /* BIO_CTRL_PENDING */
#define BIO_SET_MEMORY_EOF_RETURN 130 /* BIO_C_SET_BUF_MEM_EOF_RETURN */
#define CTRL_CLEAR_MODE 78 /* SSL_CTRL_CLEAR_MODE */
#define MODE_AUTO_RETRY 4L
#define OPTION_NO_RENEGOTIATION ((uint64_t)1 << 30)
#define KEY_UPDATE_NOT_REQUESTED 0
#define KEY_UPDATE_REQUESTED 1

/* name, result, parameters */
#define OPENSSL_FUNCTIONS(F)                                                                       \
    F(SSL_get_rbio, void *, (const void *))                                                        \
    F(SSL_get_wbio, void *, (const void *))                                                        \
    F(SSL_set0_rbio, void, (void *, void *))                                                       \
    F(SSL_set0_wbio, void, (void *, void *))                                                       \
    F(SSL_ctrl, long, (void *, int, long, void *))                                                 \
    F(SSL_set_options, uint64_t, (void *, uint64_t))                                               \
    F(SSL_read, int, (void *, void *, int))                                                        \
    F(SSL_peek, int, (void *, void *, int))                                                        \
    F(SSL_write, int, (void *, const void *, int))                                                 \
    F(SSL_pending, int, (const void *))                                                            \
    F(SSL_shutdown, int, (void *))                                                                 \
    F(SSL_key_update, int, (void *, int))                                                          \
    F(SSL_do_handshake, int, (void *))                                                             \
    F(SSL_get_error, int, (const void *, int))                                                     \
    F(BIO_s_mem, const void *, (void))                                                             \
    F(BIO_s_null, const void *, (void))                                                            \
    F(BIO_new, void *, (const void *))                                                             \
    F(BIO_free, int, (void *))                                                                     \
    F(BIO_read, int, (void *, void *, int))                                                        \
    F(BIO_write, int, (void *, const void *, int))                                                 \
    F(BIO_ctrl, long, (void *, int, long, void *))                                                 \
    F(ERR_peek_error, unsigned long, (void))                                                       \
    F(ERR_reason_error_string, const char *, (unsigned long))                                      \
    F(ERR_clear_error, void, (void))

static struct {
    OPENSSL_FUNCTIONS(PYKTLS_MEMBER)
    int open;
} openssl;

int pyktls_half_open(void) {
    if (openssl.open) {
        return PYKTLS_HALF_OK;
    }
#define F(name, result, parameters) PYKTLS_FIND(name, PYKTLS_HALF_NOT_OPEN)
    OPENSSL_FUNCTIONS(F)
#undef F
    openssl.open = 1;
    return PYKTLS_HALF_OK;
}

/* OpenSSL's words for what went wrong, and an empty queue of errors. */
static const char *take_reason(void) {
    unsigned long error = openssl.ERR_peek_error();
    const char *reason = error == 0 ? NULL : openssl.ERR_reason_error_string(error);
    openssl.ERR_clear_error();
    return reason;
}

int pyktls_half_begin(void *ssl, int direction) {
    if (!openssl.open) {
        return PYKTLS_HALF_NOT_OPEN;
    }
    void *in = openssl.BIO_new(openssl.BIO_s_mem());
    /* What one that only reads would write is lost: its caller hears of it from the tap. */
    void *out = openssl.BIO_new(direction == PYKTLS_HALF_WRITES ? openssl.BIO_s_mem()
                                                               : openssl.BIO_s_null());
    if (in == NULL || out == NULL) {
        openssl.BIO_free(in);
        openssl.BIO_free(out);
        openssl.ERR_clear_error();
        return PYKTLS_HALF_FAILED;
    }
    /* Nothing there means "not yet", not the end of the stream. */
    openssl.BIO_ctrl(in, BIO_SET_MEMORY_EOF_RETURN, -1, NULL);
    openssl.SSL_set0_rbio(ssl, in);
    openssl.SSL_set0_wbio(ssl, out);
    /* Reading returns after each record that is no data, so that it is heard of in time. */
    openssl.SSL_ctrl(ssl, CTRL_CLEAR_MODE, MODE_AUTO_RETRY, NULL);
    /* A handshake takes both directions. */
    openssl.SSL_set_options(ssl, OPTION_NO_RENEGOTIATION);
    return PYKTLS_HALF_OK;
}

int pyktls_half_feed(void *ssl, const void *data, size_t size) {
    if (!openssl.open) {
        return PYKTLS_HALF_NOT_OPEN;
    }
    int length = size > INT_MAX ? -1 : (int)size;
    if (length < 0 || openssl.BIO_write(openssl.SSL_get_rbio(ssl), data, length) != length) {
        openssl.ERR_clear_error();
        return PYKTLS_HALF_FAILED;
    }
    return PYKTLS_HALF_OK;
}

int64_t pyktls_half_read(void *ssl, void *out, size_t room, int peek, const char **reason) {
    *reason = NULL;
    if (!openssl.open) {
        return PYKTLS_HALF_NOT_OPEN;
    }
    int size = room > INT_MAX ? INT_MAX : (int)room;
    openssl.ERR_clear_error(); /* what is left there by others would be taken for ours */
    int result = peek ? openssl.SSL_peek(ssl, out, size) : openssl.SSL_read(ssl, out, size);
    int error = openssl.SSL_get_error(ssl, result);
    const char *words = take_reason(); /* a success may leave some too, for others to find */
    if (result > 0) {
        return result;
    }
    switch (error) {
    case ERROR_WANT_READ:
        return PYKTLS_HALF_WANTS_MORE;
    case ERROR_ZERO_RETURN:
        return PYKTLS_HALF_CLOSED;
    default:
        *reason = words;
        return PYKTLS_HALF_FAILED;
    }
}

size_t pyktls_half_pending(const void *ssl) {
    int pending = openssl.open ? openssl.SSL_pending(ssl) : 0;
    return pending > 0 ? (size_t)pending : 0;
}

int pyktls_half_write(void *ssl, const void *data, size_t size, const char **reason) {
    *reason = NULL;
    if (!openssl.open) {
        return PYKTLS_HALF_NOT_OPEN;
    }
    int length = size > INT_MAX ? -1 : (int)size;
    openssl.ERR_clear_error();
    int done = length > 0 && openssl.SSL_write(ssl, data, length) == length;
    const char *words = take_reason();
    *reason = done ? NULL : words;
    return done ? PYKTLS_HALF_OK : PYKTLS_HALF_FAILED;
}

int pyktls_half_close_notify(void *ssl) {
    if (!openssl.open) {
        return PYKTLS_HALF_NOT_OPEN;
    }
    /* 0: sent, and the peer's has not come. */
    int result = openssl.SSL_shutdown(ssl);
    openssl.ERR_clear_error();
    return result < 0 ? PYKTLS_HALF_FAILED : PYKTLS_HALF_OK;
}

int pyktls_half_key_update(void *ssl, int request_peer) {
    if (!openssl.open) {
        return PYKTLS_HALF_NOT_OPEN;
    }
    int kind = request_peer ? KEY_UPDATE_REQUESTED : KEY_UPDATE_NOT_REQUESTED;
    int done = openssl.SSL_key_update(ssl, kind) > 0 && openssl.SSL_do_handshake(ssl) > 0;
    openssl.ERR_clear_error();
    return done ? PYKTLS_HALF_OK : PYKTLS_HALF_FAILED;
}

size_t pyktls_half_made(void *ssl) {
    long made =
        openssl.open ? openssl.BIO_ctrl(openssl.SSL_get_wbio(ssl), BIO_PENDING, 0, NULL) : 0;
    return made > 0 ? (size_t)made : 0;
}

int pyktls_half_take(void *ssl, void *out, size_t size) {
    if (!openssl.open) {
        return PYKTLS_HALF_NOT_OPEN;
    }
    int length = size > INT_MAX ? -1 : (int)size;
    if (length < 0 || openssl.BIO_read(openssl.SSL_get_wbio(ssl), out, length) != length) {
        openssl.ERR_clear_error();
        return PYKTLS_HALF_FAILED;
    }
    return PYKTLS_HALF_OK;
}
