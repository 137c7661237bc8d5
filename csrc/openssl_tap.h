/*
 * Watches TLS connections inside the OpenSSL that CPython's _ssl module uses.
 *
 * Knows nothing of Python (objects reach it as SSL * and SSL_CTX * addresses) and needs neither
 * OpenSSL's headers nor its library at build time: everything is looked up, when first asked for,
 * in the very libraries the running _ssl module is bound to.
 *
 * What is gathered for each connection hangs on the SSL object itself and is wiped and freed with
 * it.
 */
#ifndef PYKTLS_OPENSSL_TAP_H
#define PYKTLS_OPENSSL_TAP_H

#include <stddef.h>
#include <stdint.h>

enum {
    PYKTLS_TAP_OK = 0,
    PYKTLS_TAP_NOT_LOADED = -1, /* the module file is not loaded in this process */
    PYKTLS_TAP_NO_SYMBOL = -2,  /* OpenSSL is hidden (linked statically) or too old */
    PYKTLS_TAP_NO_INDEX = -3,   /* OpenSSL gave no ex_data index */
    PYKTLS_TAP_NOT_OPEN = -4,   /* pyktls_tap_open has not succeeded */
    PYKTLS_TAP_REFUSED = -5,    /* OpenSSL did not take the callback or the data */
};

/* One direction of a connection. */
struct pyktls_tap_half {
    uint64_t sequence;    /* sequence number of the next record; means something while `live` */
    uint64_t record_bytes; /* bytes of every record so far, headers included, as OpenSSL parsed or
                              made them */
    uint64_t moved_bytes; /* bytes that crossed the BIO: equal to the above on a record boundary */
    int64_t handshake_bytes; /* TLS 1.3: bytes of handshake records less bytes of handshake
                                messages, since the present keys: 0 on a message boundary */
    int32_t live;            /* the count of `sequence` has begun: application keys are in use */
    int32_t secret_length;   /* TLS 1.3: bytes of the traffic secret in use; 0: none was seen */
    unsigned char secret[64];
};

struct pyktls_tap_snapshot {
    int32_t watched; /* our callbacks were on the context when the connection was made, and are on
                        the one that it uses now */
    int32_t keylog_replaced; /* another keylog callback has since taken the place of ours */
    int32_t version;         /* 0x0303, 0x0304, ... */
    int32_t suite;           /* IANA number of the cipher suite, -1 before there is one */
    int32_t server;
    int32_t in_init;  /* a handshake, or a post-handshake message, is under way */
    int32_t shutdown; /* 1: close_notify was sent, 2: one was received */
    int32_t pending;  /* bytes of plaintext that OpenSSL still holds */
    int32_t key_update_due; /* the peer asked for a KeyUpdate that has not been sent yet */
    int32_t compressed;
    int32_t early_data; /* early data was accepted */
    int32_t ktls_send;  /* OpenSSL has itself switched this direction to the kernel */
    int32_t ktls_recv;
    int32_t max_fragment;  /* bytes that a record may carry if the handshake agreed on fewer than
                              16384 (RFC 6066 section 4), else 0 */
    int32_t encrypt_then_mac; /* TLS 1.2: the ServerHello agreed on it (RFC 7366); -1: none was
                                 seen */
    int32_t master_length; /* TLS 1.2 only */
    unsigned char master[48];
    unsigned char client_random[32];
    unsigned char server_random[32];
    struct pyktls_tap_half read;
    struct pyktls_tap_half write;
};

/* Finds OpenSSL through the loaded module file `path`.  Call it under a lock; again is harmless. */
int pyktls_tap_open(const char *path);

/* The name of what pyktls_tap_open missed, after PYKTLS_TAP_NO_SYMBOL. */
const char *pyktls_tap_missing(void);

/* A function of that OpenSSL, for others that call it (openssl_apart.c); NULL if there is none. */
void *pyktls_tap_symbol(const char *name);

/* The options of a context: compared with what Python says, it shows that the address is right. */
uint64_t pyktls_tap_context_options(void *ssl_ctx);

/* Non-zero if `owner` is what CPython stored with this connection as its Python object. */
int pyktls_tap_owned_by(void *ssl, const void *owner);

/* Begins to watch the connections that will be made from this context. */
int pyktls_tap_watch(void *ssl_ctx);

/* Fills `out`, which holds secrets afterwards: wipe it. */
int pyktls_tap_read(void *ssl, struct pyktls_tap_snapshot *out);

/*
 * From now on keeps what the connection hears and says besides data: handshake messages and alerts.
 * PYKTLS_TAP_REFUSED for a connection that is not watched.
 */
int pyktls_tap_follow(void *ssl);

/*
 * Bytes that were kept and not yet taken.  PYKTLS_TAP_LOST, for good, if not all could be kept; and
 * for a connection that is not followed.
 */
enum { PYKTLS_TAP_LOST = -6 };
int64_t pyktls_tap_kept(void *ssl);

/*
 * Takes them: `out` has room for pyktls_tap_kept bytes.  Each message is 1 byte that is 1 if it was
 * sent and 0 if it was received, the content type in 1 byte, the length in 4 (big-endian), and the
 * message as OpenSSL saw it.
 */
void pyktls_tap_take(void *ssl, unsigned char *out);

/*
 * Bytes of every record that the connection has begun to read, headers included; 0 for one that is
 * not followed.
 */
uint64_t pyktls_tap_read_bytes(void *ssl);

/*
 * Marks the connection as properly closed, without a byte on the wire, so that freeing it later
 * neither sends anything nor throws its session out of the context's cache.
 */
int pyktls_tap_leave(void *ssl);

/* Overwrites memory that held a secret. */
void pyktls_tap_wipe(void *memory, size_t size);

#endif
