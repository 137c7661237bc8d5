/*
 * What the kernel layer offers: one interface, one file per system behind it.
 *
 * This layer knows option numbers, struct layouts and errno.  It knows nothing of Python, and
 * nothing of OpenSSL.  Every function that makes a system call returns what the call returned, or
 * -errno.  None of them waits, prints or keeps state.
 */
#ifndef PYKTLS_KERNEL_H
#define PYKTLS_KERNEL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* Stands for "no record type": the kernel gave none, or none is to be given. */
#define PYKTLS_NO_RECORD_TYPE (-1)

/* Which file is behind this interface. */
#define PYKTLS_LINUX 1
#define PYKTLS_FREEBSD 2
int pyktls_system(void);

/*
 * recvmsg(2) into one buffer, always with room for the control message that tells the record's
 * type.  *record_type is that type, or PYKTLS_NO_RECORD_TYPE where the kernel gave none: at the end
 * of the stream, and on a socket without kernel TLS for receiving.  *msg_flags is msg_flags as the
 * kernel returned it (MSG_EOR: the end of a record was reached).
 *
 * Where the buffer is too short for a record, Linux gives the type with every part of it, FreeBSD
 * with the first part only.
 */
ssize_t pyktls_recv_record(int fd, void *buffer, size_t size, int flags, int *record_type,
                           int *msg_flags);

/* The same into several buffers, one after the other. */
ssize_t pyktls_recv_record_vector(int fd, const struct iovec *iov, size_t iov_count, int flags,
                                  int *record_type, int *msg_flags);

/*
 * sendmsg(2) of a gathered buffer.  With PYKTLS_NO_RECORD_TYPE it is an ordinary send, which the
 * kernel makes application data of; any other record_type goes along in a control message.
 */
ssize_t pyktls_send_record(int fd, const struct iovec *iov, size_t iov_count, int flags,
                           int record_type);

/* ---- Linux: the structs are filled on any system (abi_linux.c) ------------------------------- */

/* Bytes of the crypto_info struct of a TLS_CIPHER_ number, 0 for a number that is not known. */
size_t pyktls_linux_crypto_info_size(uint16_t cipher_type);

/*
 * Fills `out` with the crypto_info struct of `cipher_type`.  `iv` is the 12-byte nonce base: for
 * ChaCha20-Poly1305, and for every cipher of TLS 1.3, the write IV; for the others in TLS 1.2 the 4
 * bytes of implicit IV and after them the 8 bytes of the first record's explicit nonce.  Returns
 * the struct's size, or -EINVAL for an unknown cipher, a key of another length, or too little room.
 */
int pyktls_linux_pack(void *out, size_t out_size, uint16_t version, uint16_t cipher_type,
                      const void *key, size_t key_length, const unsigned char iv[12],
                      uint64_t rec_seq);

/* The same, backwards.  Returns the key's length, or -EINVAL; `key` has room for 32 bytes. */
int pyktls_linux_unpack(const void *info, size_t info_size, uint16_t *version,
                        uint16_t *cipher_type, unsigned char key[32], unsigned char iv[12],
                        uint64_t *rec_seq);

/* Only on Linux: packs and hands to setsockopt(SOL_TLS, TLS_TX or TLS_RX) in one go; no copy of the key stays. */
int pyktls_linux_set_keys(int fd, int direction, uint16_t version, uint16_t cipher_type,
                          const void *key, size_t key_length, const unsigned char iv[12],
                          uint64_t rec_seq);

/* ---- FreeBSD: the struct is filled on any system (abi_freebsd.c) ----------------------------- */

struct tls_enable;

/*
 * Fills `out`, which then points to the caller's buffers.  `version` is the protocol's number,
 * 0x0301 to 0x0304.  What a suite wants in `iv` and `auth_key` differs; an empty one is a length of
 * 0.  Returns 0, or -EINVAL for another version or a length that the kernel would never take.
 */
int pyktls_freebsd_fill(struct tls_enable *out, int version, int cipher_algorithm, const void *key,
                        size_t key_length, const void *iv, size_t iv_length, int auth_algorithm,
                        const void *auth_key, size_t auth_key_length, uint64_t rec_seq);

/* The rest only on FreeBSD. */

/* Fills, hands to setsockopt(IPPROTO_TCP, TCP_TXTLS_ENABLE or TCP_RXTLS_ENABLE), and wipes. */
int pyktls_freebsd_set_keys(int fd, int option, int version, int cipher_algorithm, const void *key,
                            size_t key_length, const void *iv, size_t iv_length, int auth_algorithm,
                            const void *auth_key, size_t auth_key_length, uint64_t rec_seq);

/* TCP_TXTLS_MODE or TCP_RXTLS_MODE: returns the TCP_TLS_MODE_ number. */
int pyktls_freebsd_get_mode(int fd, int option);

/* TCP_TXTLS_MODE; the kernel can move a socket between software and the network card. */
int pyktls_freebsd_set_tx_mode(int fd, int mode);

/*
 * pyktls_recv_record with everything that the control message says.  *version is the one in the
 * record's header (0x0303), *length the bytes of plaintext in the whole record; both are -1 where
 * there was no control message.
 */
ssize_t pyktls_freebsd_recv(int fd, void *buffer, size_t size, int flags, int *record_type,
                            int *version, int *length, int *msg_flags);

/*
 * sendfile(2) of `count` bytes of `file` from `offset` on (0: up to its end), with what is to go
 * before and after them.  *sent is the number of bytes that were taken in any case, also where an
 * error ended it.
 */
int pyktls_freebsd_sendfile(int file, int fd, int64_t offset, size_t count,
                            const struct iovec *headers, size_t header_count,
                            const struct iovec *trailers, size_t trailer_count, int flags,
                            int64_t *sent);

/* sysctlbyname(3), reading.  *size is the room at `value`, then what was used of it. */
int pyktls_freebsd_sysctl(const char *name, void *value, size_t *size);

#endif
