/*
 * The user-space interface of Linux kernel TLS, as numbers and layouts of our own.
 *
 * The names are those of include/uapi/linux/tls.h, linux/tcp.h and linux/inet_diag.h, the values
 * those of Linux 7.3.  They stand here, and are not taken from the system, because the headers a
 * package is built with say nothing about the kernel it will run on: old headers must not cost a
 * new kernel's features, and the structs must be usable on any machine.  abi_linux_check.c holds
 * every one of them to the system's own definition wherever the build machine has it.
 *
 * All fields are bytes except version and cipher_type, which are in host byte order.  No struct has
 * padding; the alignment of each is 2.
 */
#ifndef PYKTLS_ABI_LINUX_H
#define PYKTLS_ABI_LINUX_H

#include <stdint.h>

/* setsockopt level and option that attach the upper layer protocol "tls" to a socket. */
#define TCP_ULP 31
#define SOL_TLS 282 /* only in the kernel's private headers: user space has to know it */

/* Options at level SOL_TLS. */
#define TLS_TX 1
#define TLS_RX 2
#define TLS_TX_ZEROCOPY_RO 3
#define TLS_RX_EXPECT_NO_PAD 4
#define TLS_TX_MAX_PAYLOAD_LEN 5

/* Control messages at level SOL_TLS. */
#define TLS_SET_RECORD_TYPE 1
#define TLS_GET_RECORD_TYPE 2

#define TLS_1_2_VERSION 0x0303
#define TLS_1_3_VERSION 0x0304

/* cipher_type, and for each the sizes of the fields of its struct. */
#define TLS_CIPHER_AES_GCM_128 51
#define TLS_CIPHER_AES_GCM_256 52
#define TLS_CIPHER_AES_CCM_128 53
#define TLS_CIPHER_CHACHA20_POLY1305 54
#define TLS_CIPHER_SM4_GCM 55
#define TLS_CIPHER_SM4_CCM 56
#define TLS_CIPHER_ARIA_GCM_128 57
#define TLS_CIPHER_ARIA_GCM_256 58

/* sock_diag: how a direction is done (TLS_INFO_TXCONF, TLS_INFO_RXCONF). */
#define TLS_CONF_BASE 1
#define TLS_CONF_SW 2
#define TLS_CONF_HW 3
#define TLS_CONF_HW_RECORD 4

/* sock_diag: attributes nested in INET_ULP_INFO_TLS. */
#define TLS_INFO_VERSION 1
#define TLS_INFO_CIPHER 2
#define TLS_INFO_TXCONF 3
#define TLS_INFO_RXCONF 4
#define TLS_INFO_ZC_RO_TX 5
#define TLS_INFO_RX_NO_PAD 6
#define TLS_INFO_TX_MAX_PAYLOAD_LEN 7

/* sock_diag: the reply attribute that carries the above, and the two nested in it. */
#define INET_DIAG_ULP_INFO 19
#define INET_ULP_INFO_NAME 1
#define INET_ULP_INFO_TLS 2

struct tls_crypto_info {
    uint16_t version;
    uint16_t cipher_type;
};

#define PYKTLS_CRYPTO_INFO(name, iv_size, key_size, salt_size)                                     \
    struct name {                                                                                  \
        struct tls_crypto_info info;                                                               \
        unsigned char iv[iv_size];                                                                 \
        unsigned char key[key_size];                                                               \
        unsigned char salt[salt_size];                                                             \
        unsigned char rec_seq[8];                                                                  \
    }

PYKTLS_CRYPTO_INFO(tls12_crypto_info_aes_gcm_128, 8, 16, 4);
PYKTLS_CRYPTO_INFO(tls12_crypto_info_aes_gcm_256, 8, 32, 4);
PYKTLS_CRYPTO_INFO(tls12_crypto_info_aes_ccm_128, 8, 16, 4);
PYKTLS_CRYPTO_INFO(tls12_crypto_info_sm4_gcm, 8, 16, 4);
PYKTLS_CRYPTO_INFO(tls12_crypto_info_sm4_ccm, 8, 16, 4);
PYKTLS_CRYPTO_INFO(tls12_crypto_info_aria_gcm_128, 8, 16, 4);
PYKTLS_CRYPTO_INFO(tls12_crypto_info_aria_gcm_256, 8, 32, 4);

/* The only cipher whose 12-byte IV is not split: a salt of size 0, so no salt member here. */
struct tls12_crypto_info_chacha20_poly1305 {
    struct tls_crypto_info info;
    unsigned char iv[12];
    unsigned char key[32];
    unsigned char rec_seq[8];
};

#undef PYKTLS_CRYPTO_INFO

/* The largest of them, for buffers. */
#define PYKTLS_CRYPTO_INFO_MAX 56

#endif
