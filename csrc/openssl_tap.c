/*
 * Two callbacks see all that is needed:
 *
 * - the keylog callback gets a line at each change of keys.  For TLS 1.3 the line
 *   CLIENT_TRAFFIC_SECRET_x or SERVER_TRAFFIC_SECRET_x (x is 0, then N at each KeyUpdate) carries
 *   the new secret of one direction and comes exactly where records under it begin, so it also sets
 *   that direction's sequence number to 0.
 * - the message callback gets the header of each record, sent or received, in order with the lines
 *   above.  Each header counts one record and 5 + length bytes.  For TLS 1.2 the ChangeCipherSpec
 *   record begins the count.
 *
 * The byte count is the ledger: it equals what crossed the socket BIO exactly when OpenSSL holds no
 * part of a record, neither one half read nor one half written.  No other public call tells that
 * for every state.
 *
 * OpenSSL's types are opaque pointers here and its constants are written down below: they are part
 * of its stable interface (1.1.1 to 4.0).
 */
#include "openssl_tap.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "openssl_lookup.h"
#include "wipe.h"

#define VERSION_TLS_1_2 0x0303
#define VERSION_TLS_1_3 0x0304
#define RECORD_CHANGE_CIPHER_SPEC 20
#define RECORD_ALERT 21
#define RECORD_HANDSHAKE 22
#define RECORD_APPLICATION_DATA 23
#define EVENT_RECORD_HEADER 256      /* SSL3_RT_HEADER */
#define EVENT_INNER_CONTENT_TYPE 257 /* SSL3_RT_INNER_CONTENT_TYPE */
#define RECORD_HEADER_SIZE 5
#define TLS_1_3_OVERHEAD 17 /* inner content type and tag */
#define MESSAGE_SERVER_HELLO 2
#define EXTENSION_ENCRYPT_THEN_MAC 22
#define EX_INDEX_SSL 0
#define EX_INDEX_SSL_CTX 1
#define BIO_GET_KTLS_SEND 73
#define BIO_GET_KTLS_RECV 76
#define EARLY_DATA_ACCEPTED 2
#define KEY_UPDATE_NONE (-1)
#define KEPT_HEADER_SIZE 6
#define KEPT_MOST 0x100000 /* more comes in no record */

typedef void (*keylog_callback)(const void *ssl, const char *line);
typedef void (*message_callback)(int write, int version, int content_type, const void *data,
                                 size_t size, void *ssl, void *argument);
typedef void (*info_callback)(const void *ssl, int where, int result);
typedef void (*ex_free_callback)(void *parent, void *pointer, void *ex_data, int index,
                                 long argument_long, void *argument_pointer);

/* name, result, parameters */
#define OPENSSL_FUNCTIONS(F)                                                                       \
    F(CRYPTO_get_ex_new_index, int, (int, long, void *, void *, void *, ex_free_callback))         \
    F(SSL_CTX_get_ex_data, void *, (const void *, int))                                            \
    F(SSL_CTX_set_ex_data, int, (void *, int, void *))                                             \
    F(SSL_CTX_get_options, uint64_t, (const void *))                                               \
    F(SSL_CTX_get_keylog_callback, keylog_callback, (const void *))                                \
    F(SSL_CTX_set_keylog_callback, void, (void *, keylog_callback))                                \
    F(SSL_CTX_set_msg_callback, void, (void *, message_callback))                                  \
    F(SSL_CTX_get_info_callback, info_callback, (const void *))                                    \
    F(SSL_CTX_set_info_callback, void, (void *, info_callback))                                    \
    F(SSL_set_msg_callback, void, (void *, message_callback))                                      \
    F(SSL_get_ex_data, void *, (const void *, int))                                                \
    F(SSL_set_ex_data, int, (void *, int, void *))                                                 \
    F(SSL_get_SSL_CTX, void *, (const void *))                                                     \
    F(SSL_version, int, (const void *))                                                            \
    F(SSL_is_server, int, (const void *))                                                          \
    F(SSL_in_init, int, (const void *))                                                            \
    F(SSL_get_shutdown, int, (const void *))                                                       \
    F(SSL_set_shutdown, void, (void *, int))                                                       \
    F(SSL_pending, int, (const void *))                                                            \
    F(SSL_get_key_update_type, int, (const void *))                                                \
    F(SSL_get_rbio, void *, (const void *))                                                        \
    F(SSL_get_wbio, void *, (const void *))                                                        \
    F(SSL_get_current_cipher, const void *, (const void *))                                        \
    F(SSL_CIPHER_get_protocol_id, uint16_t, (const void *))                                        \
    F(SSL_get_current_compression, const void *, (const void *))                                   \
    F(SSL_get_early_data_status, int, (const void *))                                              \
    F(SSL_get_client_random, size_t, (const void *, unsigned char *, size_t))                      \
    F(SSL_get_server_random, size_t, (const void *, unsigned char *, size_t))                      \
    F(SSL_get_session, void *, (const void *))                                                     \
    F(SSL_SESSION_get_max_fragment_length, uint8_t, (const void *))                                \
    F(SSL_SESSION_get_master_key, size_t, (const void *, unsigned char *, size_t))                 \
    F(BIO_number_read, uint64_t, (void *))                                                         \
    F(BIO_number_written, uint64_t, (void *))                                                      \
    F(BIO_ctrl, long, (void *, int, long, void *))

static struct {
    OPENSSL_FUNCTIONS(PYKTLS_MEMBER)
    int connection_index; /* ex_data of an SSL: its struct tap */
    int context_index;    /* ex_data of an SSL_CTX: its struct chain */
    void *module; /* what all of these were looked up in */
    int open;
    const char *missing;
} openssl;

/* What hangs on an SSL. */
struct tap {
    struct pyktls_tap_half read;
    struct pyktls_tap_half write;
    size_t last_read_length; /* of the record that is being read */
    int broken;              /* something came that the counts do not cover */
    int server_hello_seen;
    int encrypt_then_mac; /* the last ServerHello had the extension */
    int follows;
    int lost; /* something that had to be kept could not be, and from then on nothing is */
    unsigned char *kept;
    size_t kept_size;
};

/* What hangs on an SSL_CTX that is watched: the callbacks that were there before ours. */
struct chain {
    keylog_callback previous;
    info_callback previous_info;
};

/* ---- the callbacks --------------------------------------------------------------------------- */

static void forget_kept(struct tap *tap) {
    if (tap->kept != NULL) {
        pyktls_wipe(tap->kept, tap->kept_size);
        free(tap->kept);
    }
    tap->kept = NULL;
    tap->kept_size = 0;
}

/* A message for pyktls_tap_take.  Not realloc(3), which would leave a copy behind. */
static void keep(struct tap *tap, int write, int content_type, const void *message, size_t size) {
    size_t before = tap->kept_size;
    unsigned char *kept = NULL;
    if (!tap->lost && size <= KEPT_MOST && before <= KEPT_MOST) {
        kept = malloc(before + KEPT_HEADER_SIZE + size);
    }
    if (kept == NULL) {
        tap->lost = 1;
        forget_kept(tap);
        return;
    }
    if (before > 0) {
        memcpy(kept, tap->kept, before);
    }
    kept[before] = write ? 1 : 0;
    kept[before + 1] = (unsigned char)content_type;
    for (size_t i = 0; i < 4; i++) {
        kept[before + 2 + i] = (unsigned char)(size >> (8 * (3 - i)));
    }
    if (size > 0) {
        memcpy(kept + before + KEPT_HEADER_SIZE, message, size);
    }
    forget_kept(tap);
    tap->kept = kept;
    tap->kept_size = before + KEPT_HEADER_SIZE + size;
}

static void free_tap(void *parent, void *pointer, void *ex_data, int index, long argument_long,
                     void *argument_pointer) {
    (void)parent;
    (void)ex_data;
    (void)index;
    (void)argument_long;
    (void)argument_pointer;
    struct tap *tap = pointer;
    if (tap != NULL) {
        forget_kept(tap);
        pyktls_wipe(tap, sizeof(*tap));
        free(tap);
    }
}

static void free_chain(void *parent, void *pointer, void *ex_data, int index, long argument_long,
                       void *argument_pointer) {
    (void)parent;
    (void)ex_data;
    (void)index;
    (void)argument_long;
    (void)argument_pointer;
    free(pointer);
}

/* The connection's tap, made at its first event.  NULL without memory: then it is unwatched. */
static struct tap *tap_of(void *ssl) {
    struct tap *tap = openssl.SSL_get_ex_data(ssl, openssl.connection_index);
    if (tap == NULL) {
        tap = calloc(1, sizeof(*tap));
        if (tap != NULL && !openssl.SSL_set_ex_data(ssl, openssl.connection_index, tap)) {
            free(tap);
            tap = NULL;
        }
    }
    return tap;
}

static struct chain *chain_of(const void *ssl_ctx) {
    return openssl.SSL_CTX_get_ex_data(ssl_ctx, openssl.context_index);
}

/* The tap of a connection that is watched, else NULL: in pyktls_tap_snapshot is what that means. */
static struct tap *watched_tap(void *ssl) {
    struct tap *tap = openssl.SSL_get_ex_data(ssl, openssl.connection_index);
    int watched =
        tap != NULL && !tap->broken && chain_of(openssl.SSL_get_SSL_CTX(ssl)) != NULL;
    return watched ? tap : NULL;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    if (c >= 'A' && c <= 'F') {
        return c - 'A' + 10;
    }
    return -1;
}

/*
 * What follows the last space of a line, NULL where there is none.  Not strrchr(3), nor strlen(3)
 * below: they take the digits through vector registers (wipe.h).
 */
static const volatile char *last_field(const char *line) {
    const volatile char *field = NULL;
    for (const volatile char *c = line; *c != '\0'; c++) {
        if (*c == ' ') {
            field = c + 1;
        }
    }
    return field;
}

/*
 * Returns the number of bytes, 0 where `hex` is no even row of at most 2 * room digits.  What `out`
 * held before is gone in any case.
 */
static int32_t take_hex(unsigned char *out, size_t room, const volatile char *hex) {
    int32_t size = 0;
    pyktls_wipe(out, room);
    for (; hex[0] != '\0'; hex += 2) {
        int high = hex_digit(hex[0]);
        int low = high < 0 ? -1 : hex_digit(hex[1]);
        if (low < 0 || (size_t)size == room) {
            pyktls_wipe(out, room);
            return 0;
        }
        out[size++] = (unsigned char)(high << 4 | low);
    }
    return size;
}

static int begins_with(const char *line, const char *label) {
    return strncmp(line, label, strlen(label)) == 0;
}

static void on_keylog(const void *ssl, const char *line) {
    int of_server = begins_with(line, "SERVER_TRAFFIC_SECRET_");
    if (of_server || begins_with(line, "CLIENT_TRAFFIC_SECRET_")) {
        /* None if the message callback has not seen a record: the counts would be wrong. */
        struct tap *tap = openssl.SSL_get_ex_data(ssl, openssl.connection_index);
        const volatile char *hex = last_field(line);
        if (tap != NULL && hex != NULL) {
            int written_by_us = of_server == (openssl.SSL_is_server(ssl) != 0);
            struct pyktls_tap_half *half = written_by_us ? &tap->write : &tap->read;
            half->secret_length = take_hex(half->secret, sizeof(half->secret), hex);
            half->sequence = 0;
            half->handshake_bytes = 0;
            half->live = 1;
        }
    }
    const struct chain *chain = chain_of(openssl.SSL_get_SSL_CTX(ssl));
    if (chain != NULL && chain->previous != NULL) {
        chain->previous(ssl, line);
    }
}

static void on_record_header(struct tap *tap, struct pyktls_tap_half *half, int version,
                             const unsigned char *header, size_t size) {
    if (size != RECORD_HEADER_SIZE) { /* an SSLv2 ClientHello: no such record is counted */
        tap->broken = 1;
        return;
    }
    size_t length = (size_t)header[3] << 8 | header[4];
    half->record_bytes += RECORD_HEADER_SIZE + length;
    if (half == &tap->read) {
        tap->last_read_length = length;
    }
    int type = header[0];
    if (version == VERSION_TLS_1_3) {
        /* A ChangeCipherSpec record is only there for middleboxes (RFC 8446 appendix D.4). */
        if (half->live && type == RECORD_APPLICATION_DATA) {
            half->sequence++;
        }
    } else if (type == RECORD_CHANGE_CIPHER_SPEC) {
        half->sequence = 0;
        half->live = 1;
    } else if (half->live) {
        half->sequence++;
    }
}

/*
 * Whether a ServerHello, given whole with its 4-byte header, carries an extension (RFC 5246 section
 * 7.4.1.3).  What does not add up is none: OpenSSL refuses it.
 */
static int server_hello_has(const unsigned char *message, size_t size, unsigned extension) {
    size_t at = 4 + 2 + 32; /* header, version, random; then the session's id */
    if (size <= at) {
        return 0;
    }
    at += 1 + (size_t)message[at] + 2 + 1 + 2; /* suite, compression, length of the extensions */
    while (at + 4 <= size) {
        if (((unsigned)message[at] << 8 | message[at + 1]) == extension) {
            return 1;
        }
        at += 4 + ((size_t)message[at + 2] << 8 | message[at + 3]);
    }
    return 0;
}

static void on_message(int write, int version, int content_type, const void *data, size_t size,
                       void *ssl, void *argument) {
    (void)version; /* the record's, which TLS 1.3 froze at 1.2 */
    (void)argument;
    struct tap *tap = tap_of(ssl);
    if (tap == NULL) {
        return;
    }
    struct pyktls_tap_half *half = write ? &tap->write : &tap->read;
    int negotiated = openssl.SSL_version(ssl);
    if (content_type == RECORD_HANDSHAKE && size > 0 &&
        *(const unsigned char *)data == MESSAGE_SERVER_HELLO) {
        tap->server_hello_seen = 1;
        tap->encrypt_then_mac = server_hello_has(data, size, EXTENSION_ENCRYPT_THEN_MAC);
    }
    if (tap->follows && (content_type == RECORD_ALERT || content_type == RECORD_HANDSHAKE)) {
        keep(tap, write, content_type, data, size);
    }
    if (content_type == EVENT_RECORD_HEADER) {
        on_record_header(tap, half, negotiated, data, size);
    } else if (!write && negotiated == VERSION_TLS_1_3 && tap->read.live) {
        /*
         * A handshake message may begin in one record and end in a later one.  The kernel must not
         * take over in between, so the bytes that came are held against the messages they made.
         */
        if (content_type == EVENT_INNER_CONTENT_TYPE && size == 1 &&
            *(const unsigned char *)data == RECORD_HANDSHAKE) {
            tap->read.handshake_bytes += (int64_t)tap->last_read_length - TLS_1_3_OVERHEAD;
        } else if (content_type == RECORD_HANDSHAKE) {
            tap->read.handshake_bytes -= (int64_t)size;
        }
    }
}

/*
 * CPython takes the message callback off a connection whose context is changed (sni_callback).
 * This one belongs to the context, so it comes at the next step of the handshake, before another
 * record is sent or received, and puts ours back.
 */
static void on_info(const void *ssl, int where, int result) {
    if (openssl.SSL_get_ex_data(ssl, openssl.connection_index) != NULL) {
        openssl.SSL_set_msg_callback((void *)ssl, on_message);
    }
    const struct chain *chain = chain_of(openssl.SSL_get_SSL_CTX(ssl));
    if (chain != NULL && chain->previous_info != NULL) {
        chain->previous_info(ssl, where, result);
    }
}

/* ---- what kernel.h's neighbours call ---------------------------------------------------------- */

int pyktls_tap_open(const char *path) {
    if (openssl.open) {
        return PYKTLS_TAP_OK;
    }
    /* Looked up in the module, then breadth-first in what it is linked to; never loaded anew. */
    void *module = dlopen(path, RTLD_NOLOAD | RTLD_NOW);
    if (module == NULL) {
        return PYKTLS_TAP_NOT_LOADED;
    }
#define F(name, result, parameters)                                                                \
    {                                                                                              \
        void *symbol = dlsym(module, #name);                                                       \
        if (symbol == NULL) {                                                                      \
            openssl.missing = #name;                                                               \
            dlclose(module);                                                                       \
            return PYKTLS_TAP_NO_SYMBOL;                                                           \
        }                                                                                          \
        PYKTLS_FILL(name, symbol);                                                                 \
    }
    OPENSSL_FUNCTIONS(F)
#undef F
    openssl.connection_index =
        openssl.CRYPTO_get_ex_new_index(EX_INDEX_SSL, 0, NULL, NULL, NULL, free_tap);
    openssl.context_index =
        openssl.CRYPTO_get_ex_new_index(EX_INDEX_SSL_CTX, 0, NULL, NULL, NULL, free_chain);
    if (openssl.connection_index < 0 || openssl.context_index < 0) {
        dlclose(module);
        return PYKTLS_TAP_NO_INDEX;
    }
    openssl.module = module; /* it stays open: the pointers are used for as long as we live */
    openssl.open = 1;
    return PYKTLS_TAP_OK;
}

const char *pyktls_tap_missing(void) {
    return openssl.missing;
}

void *pyktls_tap_symbol(const char *name) {
    return openssl.open ? dlsym(openssl.module, name) : NULL;
}

uint64_t pyktls_tap_context_options(void *ssl_ctx) {
    return openssl.open ? openssl.SSL_CTX_get_options(ssl_ctx) : 0;
}

int pyktls_tap_owned_by(void *ssl, const void *owner) {
    return openssl.open && openssl.SSL_get_ex_data(ssl, 0) == owner;
}

int pyktls_tap_watch(void *ssl_ctx) {
    if (!openssl.open) {
        return PYKTLS_TAP_NOT_OPEN;
    }
    struct chain *chain = chain_of(ssl_ctx);
    if (chain == NULL) {
        chain = calloc(1, sizeof(*chain));
        if (chain == NULL) {
            return PYKTLS_TAP_REFUSED;
        }
        if (!openssl.SSL_CTX_set_ex_data(ssl_ctx, openssl.context_index, chain)) {
            free(chain);
            return PYKTLS_TAP_REFUSED;
        }
    }
    keylog_callback present = openssl.SSL_CTX_get_keylog_callback(ssl_ctx);
    if (present != on_keylog) {
        chain->previous = present;
        openssl.SSL_CTX_set_keylog_callback(ssl_ctx, on_keylog);
    }
    info_callback present_info = openssl.SSL_CTX_get_info_callback(ssl_ctx);
    if (present_info != on_info) {
        chain->previous_info = present_info;
        openssl.SSL_CTX_set_info_callback(ssl_ctx, on_info);
    }
    openssl.SSL_CTX_set_msg_callback(ssl_ctx, on_message);
    /* cppcheck-suppress memleak ; the context has it now, and free_chain frees it */
    return PYKTLS_TAP_OK;
}

int pyktls_tap_read(void *ssl, struct pyktls_tap_snapshot *out) {
    memset(out, 0, sizeof(*out));
    out->encrypt_then_mac = -1;
    if (!openssl.open) {
        return PYKTLS_TAP_NOT_OPEN;
    }
    const struct tap *tap = watched_tap(ssl);
    if (tap != NULL) {
        out->watched = 1;
        out->encrypt_then_mac = tap->server_hello_seen ? tap->encrypt_then_mac : -1;
        pyktls_copy_secret(&out->read, &tap->read, sizeof(out->read));
        pyktls_copy_secret(&out->write, &tap->write, sizeof(out->write));
    }
    const void *context = openssl.SSL_get_SSL_CTX(ssl);
    out->keylog_replaced = openssl.SSL_CTX_get_keylog_callback(context) != on_keylog;
    out->version = openssl.SSL_version(ssl);
    const void *cipher = openssl.SSL_get_current_cipher(ssl);
    out->suite = cipher == NULL ? -1 : openssl.SSL_CIPHER_get_protocol_id(cipher);
    out->server = openssl.SSL_is_server(ssl) != 0;
    out->in_init = openssl.SSL_in_init(ssl) != 0;
    out->shutdown = openssl.SSL_get_shutdown(ssl);
    out->pending = openssl.SSL_pending(ssl);
    out->key_update_due = openssl.SSL_get_key_update_type(ssl) != KEY_UPDATE_NONE;
    out->compressed = openssl.SSL_get_current_compression(ssl) != NULL;
    out->early_data = openssl.SSL_get_early_data_status(ssl) == EARLY_DATA_ACCEPTED;

    void *read_bio = openssl.SSL_get_rbio(ssl);
    void *write_bio = openssl.SSL_get_wbio(ssl);
    if (read_bio != NULL) {
        out->read.moved_bytes = openssl.BIO_number_read(read_bio);
        out->ktls_recv = openssl.BIO_ctrl(read_bio, BIO_GET_KTLS_RECV, 0, NULL) > 0;
    }
    if (write_bio != NULL) {
        out->write.moved_bytes = openssl.BIO_number_written(write_bio);
        out->ktls_send = openssl.BIO_ctrl(write_bio, BIO_GET_KTLS_SEND, 0, NULL) > 0;
    }

    openssl.SSL_get_client_random(ssl, out->client_random, sizeof(out->client_random));
    openssl.SSL_get_server_random(ssl, out->server_random, sizeof(out->server_random));
    const void *session = openssl.SSL_get_session(ssl);
    if (session != NULL) {
        /* The extension's own codes: 1 stands for 2^9 bytes, 4 for 2^12; 0 for no agreement. */
        int code = openssl.SSL_SESSION_get_max_fragment_length(session);
        out->max_fragment = code == 0 ? 0 : 1 << (8 + code);
    }
    if (session != NULL && out->version == VERSION_TLS_1_2) {
        out->master_length = (int32_t)openssl.SSL_SESSION_get_master_key(session, out->master,
                                                                         sizeof(out->master));
    }
    return PYKTLS_TAP_OK;
}

int pyktls_tap_follow(void *ssl) {
    if (!openssl.open) {
        return PYKTLS_TAP_NOT_OPEN;
    }
    struct tap *tap = watched_tap(ssl);
    if (tap == NULL) {
        return PYKTLS_TAP_REFUSED;
    }
    tap->follows = 1;
    return PYKTLS_TAP_OK;
}

/* The tap of a connection that is followed. */
static struct tap *followed(void *ssl) {
    struct tap *tap =
        openssl.open ? openssl.SSL_get_ex_data(ssl, openssl.connection_index) : NULL;
    return tap != NULL && tap->follows ? tap : NULL;
}

int64_t pyktls_tap_kept(void *ssl) {
    const struct tap *tap = followed(ssl);
    if (tap == NULL || tap->lost) {
        return PYKTLS_TAP_LOST;
    }
    return (int64_t)tap->kept_size;
}

void pyktls_tap_take(void *ssl, unsigned char *out) {
    struct tap *tap = followed(ssl);
    if (tap != NULL && tap->kept_size > 0) {
        memcpy(out, tap->kept, tap->kept_size);
        forget_kept(tap);
    }
}

uint64_t pyktls_tap_read_bytes(void *ssl) {
    const struct tap *tap = followed(ssl);
    return tap == NULL ? 0 : tap->read.record_bytes;
}

int pyktls_tap_leave(void *ssl) {
    if (!openssl.open) {
        return PYKTLS_TAP_NOT_OPEN;
    }
    openssl.SSL_set_shutdown(ssl, 1 | 2);
    return PYKTLS_TAP_OK;
}

void pyktls_tap_wipe(void *memory, size_t size) {
    pyktls_wipe(memory, size);
}
