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

/*
 * recvmsg(2) into one buffer, always with room for the control message that tells the record's
 * type.  *record_type is that type, or PYKTLS_NO_RECORD_TYPE where the kernel gave none: at the end
 * of the stream, and on a socket without kernel TLS for receiving.  *msg_flags is msg_flags as the
 * kernel returned it (MSG_EOR: the end of a record was reached).
 */
ssize_t pyktls_recv_record(int fd, void *buffer, size_t size, int flags, int *record_type,
                           int *msg_flags);

/*
 * sendmsg(2) of a gathered buffer.  With PYKTLS_NO_RECORD_TYPE it is an ordinary send, which the
 * kernel makes application data of; any other record_type goes along in a control message.
 */
ssize_t pyktls_send_record(int fd, const struct iovec *iov, size_t iov_count, int flags,
                           int record_type);

/* ---- Linux ----------------------------------------------------------------------------------- */

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

/* Packs and hands to setsockopt(SOL_TLS, TLS_TX or TLS_RX) in one go; no copy of the key stays. */
int pyktls_linux_set_keys(int fd, int direction, uint16_t version, uint16_t cipher_type,
                          const void *key, size_t key_length, const unsigned char iv[12],
                          uint64_t rec_seq);

#endif
