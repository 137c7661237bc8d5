/*
 * OpenSSL goes on with one direction of a connection whose other one the kernel has.
 *
 * It works on memory alone: whoever calls brings it the bytes from the socket, and takes to the
 * socket what it made.  So it can neither wait, nor write where the kernel would encrypt it once
 * more.  Knows nothing of Python; needs neither OpenSSL's headers nor its library at build time.
 *
 * What fails, and reading and writing in any case, empties the calling thread's queue of OpenSSL
 * errors.
 */
#ifndef PYKTLS_OPENSSL_HALF_H
#define PYKTLS_OPENSSL_HALF_H

#include <stddef.h>
#include <stdint.h>

enum {
    PYKTLS_HALF_OK = 0,
    PYKTLS_HALF_NOT_OPEN = -1, /* pyktls_half_open has not succeeded */
    PYKTLS_HALF_FAILED = -2,   /* OpenSSL did not do it; for reading, a record that it refuses */
    PYKTLS_HALF_WANTS_MORE = -3, /* it needs bytes that have not been brought yet */
    PYKTLS_HALF_CLOSED = -4,     /* it has seen close_notify */
};

/* What it does from now on: what the kernel does not. */
enum { PYKTLS_HALF_READS = 1, PYKTLS_HALF_WRITES = 2 };

/* Finds OpenSSL, once pyktls_tap_open has.  Again is harmless. */
int pyktls_half_open(void);

/*
 * Takes the socket away from the connection, and leaves it the one direction.  One that reads reads
 * from memory, and what it writes is discarded: if nothing is brought to it, the connection is apart
 * from everything.  The BIOs it had are released; a socket BIO of CPython's leaves its descriptor
 * open.
 */
int pyktls_half_begin(void *ssl, int direction);

/* Brings bytes from the socket.  PYKTLS_HALF_FAILED without memory. */
int pyktls_half_feed(void *ssl, const void *data, size_t size);

/*
 * Reads plaintext, at most `room` bytes (not 0), or looks at it with `peek`.  Returns the number of
 * bytes, or what is in the way, never 0; returns also after each message that was no data
 * (PYKTLS_HALF_WANTS_MORE).  `reason` is set to OpenSSL's words after PYKTLS_HALF_FAILED, or NULL.
 */
int64_t pyktls_half_read(void *ssl, void *out, size_t room, int peek, const char **reason);

/* Bytes of plaintext that are there without more from the socket. */
size_t pyktls_half_pending(const void *ssl);

/* Encrypts: one record for at most 16384 bytes, and not 0.  `reason` is as above. */
int pyktls_half_write(void *ssl, const void *data, size_t size, const char **reason);

/* Makes a close_notify. */
int pyktls_half_close_notify(void *ssl);

/* Makes a KeyUpdate, and what is written from then on is under the next keys. */
int pyktls_half_key_update(void *ssl, int request_peer);

/* Bytes for the socket that were made and not taken yet, and taking so many, if there are any. */
size_t pyktls_half_made(void *ssl);
int pyktls_half_take(void *ssl, void *out, size_t size);

#endif
