/*
 * The user-space interface of FreeBSD kernel TLS, as numbers and layouts of our own.
 *
 * The names are those of sys/ktls.h, netinet/tcp.h and crypto/cryptodev.h; the values are the same
 * in every release from 13.0 on.  They stand here for the reasons that abi_linux.h gives, and for
 * one more: FreeBSD 13.0's header lacks some of them and cannot be included without the kernel's.
 * abi_freebsd_check.c holds every one of them to the system's definition on FreeBSD itself, and
 * where the tests cross-compile for it.
 *
 * TLS_SET_RECORD_TYPE is Linux's name too, and its number: the two definitions are one.  The level
 * it goes with differs (IPPROTO_TCP here, SOL_TLS there).
 */
#ifndef PYKTLS_ABI_FREEBSD_H
#define PYKTLS_ABI_FREEBSD_H

#include <stddef.h>
#include <stdint.h>

/* Options at level IPPROTO_TCP: a struct tls_enable to set, an int to ask for the mode. */
#define TCP_TXTLS_ENABLE 39
#define TCP_TXTLS_MODE 40
#define TCP_RXTLS_ENABLE 41
#define TCP_RXTLS_MODE 42

/* Who does the record protection of a direction. */
#define TCP_TLS_MODE_NONE 0
#define TCP_TLS_MODE_SW 1    /* the kernel */
#define TCP_TLS_MODE_IFNET 2 /* the network card, record by record */
#define TCP_TLS_MODE_TOE 3   /* the network card, which does all of TCP */

/* Control messages at level IPPROTO_TCP: one byte to send, a struct tls_get_record received. */
#define TLS_SET_RECORD_TYPE 1
#define TLS_GET_RECORD 2

/* cipher_algorithm */
#define CRYPTO_AES_CBC 11
#define CRYPTO_AES_NIST_GCM_16 25
#define CRYPTO_CHACHA20_POLY1305 41

/* auth_algorithm: 0 for the AEADs, the HMAC's hash for AES-CBC. */
#define CRYPTO_SHA1_HMAC 7
#define CRYPTO_SHA2_256_HMAC 18
#define CRYPTO_SHA2_384_HMAC 19
/* Passed with AES-GCM by programs of FreeBSD 12's time; kernels with COMPAT_FREEBSD12 overlook it. */
#define CRYPTO_AES_128_NIST_GMAC 26
#define CRYPTO_AES_192_NIST_GMAC 27
#define CRYPTO_AES_256_NIST_GMAC 28

/* tls_vmajor and tls_vminor.  TLS 1.3 is 3.4 here, although its records say 3.3. */
#define TLS_MAJOR_VER_ONE 3
#define TLS_MINOR_VER_ZERO 1
#define TLS_MINOR_VER_ONE 2
#define TLS_MINOR_VER_TWO 3
#define TLS_MINOR_VER_THREE 4

/* Record types that the kernel has names for. */
#define TLS_RLTYPE_ALERT 21
#define TLS_RLTYPE_HANDSHAKE 22
#define TLS_RLTYPE_APP 23

/* Lengths in bytes. */
#define TLS_MAX_MSG_SIZE_V10_2 16384
#define TLS_MAX_PARAM_SIZE 1024
#define TLS_AEAD_GCM_LEN 4
#define TLS_1_3_GCM_IV_LEN 12
#define TLS_CHACHA20_IV_LEN 12
#define TLS_CBC_IMPLICIT_IV_LEN 16

/*
 * The value of TCP_TXTLS_ENABLE and TCP_RXTLS_ENABLE.  The kernel copies what the pointers name
 * during the call.
 */
struct tls_enable {
    const uint8_t *cipher_key;
    const uint8_t *iv;
    const uint8_t *auth_key;
    int cipher_algorithm;
    int cipher_key_len;
    int iv_len;
    int auth_algorithm;
    int auth_key_len;
    int flags; /* 0: none is defined */
    uint8_t tls_vmajor;
    uint8_t tls_vminor;
    uint8_t rec_seq[8]; /* number of the next record, big-endian, at an odd place */
};

/* What comes with the first bytes of each received record. */
struct tls_get_record {
    uint8_t tls_type; /* in TLS 1.3 the inner one */
    uint8_t tls_vmajor;
    uint8_t tls_vminor;
    uint16_t tls_length; /* of the plaintext, big-endian */
};

#endif
