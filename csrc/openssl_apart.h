/*
 * OpenSSL's connection after the switch, apart from its socket.  Knows nothing of Python; needs
 * neither OpenSSL's headers nor its library at build time.
 */
#ifndef PYKTLS_OPENSSL_APART_H
#define PYKTLS_OPENSSL_APART_H

#include <stddef.h>

enum {
    PYKTLS_APART_OK = 0,
    PYKTLS_APART_NOT_OPEN = -1, /* pyktls_apart_open has not succeeded */
    PYKTLS_APART_REFUSED = -2,  /* OpenSSL did not do it */
};

/*
 * Finds OpenSSL, once pyktls_tap_open has.  Again is harmless.  Feeding needs pyktls_half_open as
 * well.
 */
int pyktls_apart_open(void);

/*
 * Gives a connection without a socket (pyktls_half_begin) the bytes of whole records that hold
 * post-handshake messages, and lets it take them in.  PYKTLS_APART_REFUSED if it did not take all
 * of them, or did not like what it read: then a part may be left in it, and nothing more may be
 * fed.  Empties the calling thread's queue of OpenSSL errors.
 */
int pyktls_apart_feed(void *ssl, const void *records, size_t size);

/*
 * Seals a record's content with the AEAD of that name ("AES-128-GCM", "AES-256-GCM", "AES-128-CCM",
 * "ChaCha20-Poly1305"), tag of 16 bytes.  `additional` is the record's header; `out` has room for
 * size + 16 bytes, and what is in it is of no use unless the result is PYKTLS_APART_OK.  Empties
 * the calling thread's queue of OpenSSL errors.
 */
int pyktls_apart_seal(const char *aead, const unsigned char *key, const unsigned char nonce[12],
                      const void *additional, size_t additional_size, const void *content,
                      size_t size, unsigned char *out);

#endif
