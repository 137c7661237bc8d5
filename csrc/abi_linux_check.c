/*
 * Holds abi_linux.h to the system's own headers, at compile time and as far as the system has them.
 *
 * The system's value of each constant is caught in an enum, its macro removed and ours brought in
 * instead; the structs come in under other names.  What the system's headers do not know (they are
 * older than the constant, or absent) is passed over: the tests hold those to the documented bytes.
 * This file defines no code and no data.
 */
#include <stddef.h>
#include <stdint.h>

#if defined(__linux__) && defined(__has_include)
#if __has_include(<linux/tls.h>) && __has_include(<linux/inet_diag.h>)
#define PYKTLS_HAVE_SYSTEM_ABI 1
#endif
#endif

#ifdef PYKTLS_HAVE_SYSTEM_ABI
#include <linux/inet_diag.h>
#include <linux/tcp.h>
#include <linux/tls.h>

#define CATCH(name) enum { system_##name = (int)(name) };

CATCH(TCP_ULP)
#undef TCP_ULP
CATCH(TLS_TX)
#undef TLS_TX
CATCH(TLS_RX)
#undef TLS_RX
CATCH(TLS_SET_RECORD_TYPE)
#undef TLS_SET_RECORD_TYPE
CATCH(TLS_GET_RECORD_TYPE)
#undef TLS_GET_RECORD_TYPE
CATCH(TLS_1_2_VERSION)
#undef TLS_1_2_VERSION
CATCH(TLS_1_3_VERSION)
#undef TLS_1_3_VERSION
CATCH(TLS_CIPHER_AES_GCM_128)
#undef TLS_CIPHER_AES_GCM_128
CATCH(TLS_CIPHER_AES_GCM_256)
#undef TLS_CIPHER_AES_GCM_256
CATCH(TLS_CIPHER_AES_CCM_128)
#undef TLS_CIPHER_AES_CCM_128
CATCH(TLS_CONF_BASE)
#undef TLS_CONF_BASE
CATCH(TLS_CONF_SW)
#undef TLS_CONF_SW
CATCH(TLS_CONF_HW)
#undef TLS_CONF_HW
CATCH(TLS_CONF_HW_RECORD)
#undef TLS_CONF_HW_RECORD
/* These are enumerators in the system's headers, so there is no macro to remove. */
CATCH(TLS_INFO_VERSION)
CATCH(TLS_INFO_CIPHER)
CATCH(TLS_INFO_TXCONF)
CATCH(TLS_INFO_RXCONF)
CATCH(INET_DIAG_ULP_INFO)
CATCH(INET_ULP_INFO_NAME)
CATCH(INET_ULP_INFO_TLS)
/*
 * Nor can a macro tell whether these younger ones are there: `make abi` says that they are, and that
 * there is no attribute beyond ours.
 */
#ifdef PYKTLS_NEWEST_ABI
CATCH(TLS_INFO_ZC_RO_TX)
CATCH(TLS_INFO_RX_NO_PAD)
CATCH(TLS_INFO_TX_MAX_PAYLOAD_LEN)
CATCH(TLS_INFO_MAX)
#endif

/* Younger than the header set of some supported build systems. */
#ifdef TLS_TX_ZEROCOPY_RO
CATCH(TLS_TX_ZEROCOPY_RO)
#undef TLS_TX_ZEROCOPY_RO
#define HAVE_TLS_TX_ZEROCOPY_RO
#endif
#ifdef TLS_RX_EXPECT_NO_PAD
CATCH(TLS_RX_EXPECT_NO_PAD)
#undef TLS_RX_EXPECT_NO_PAD
#define HAVE_TLS_RX_EXPECT_NO_PAD
#endif
#ifdef TLS_TX_MAX_PAYLOAD_LEN
CATCH(TLS_TX_MAX_PAYLOAD_LEN)
#undef TLS_TX_MAX_PAYLOAD_LEN
#define HAVE_TLS_TX_MAX_PAYLOAD_LEN
#endif
#ifdef TLS_CIPHER_CHACHA20_POLY1305
CATCH(TLS_CIPHER_CHACHA20_POLY1305)
#undef TLS_CIPHER_CHACHA20_POLY1305
#define HAVE_CHACHA20_POLY1305
#endif
#ifdef TLS_CIPHER_SM4_GCM
CATCH(TLS_CIPHER_SM4_GCM)
#undef TLS_CIPHER_SM4_GCM
CATCH(TLS_CIPHER_SM4_CCM)
#undef TLS_CIPHER_SM4_CCM
#define HAVE_SM4
#endif
#ifdef TLS_CIPHER_ARIA_GCM_128
CATCH(TLS_CIPHER_ARIA_GCM_128)
#undef TLS_CIPHER_ARIA_GCM_128
CATCH(TLS_CIPHER_ARIA_GCM_256)
#undef TLS_CIPHER_ARIA_GCM_256
#define HAVE_ARIA
#endif

#define tls_crypto_info ours_tls_crypto_info
#define tls12_crypto_info_aes_gcm_128 ours_aes_gcm_128
#define tls12_crypto_info_aes_gcm_256 ours_aes_gcm_256
#define tls12_crypto_info_aes_ccm_128 ours_aes_ccm_128
#define tls12_crypto_info_chacha20_poly1305 ours_chacha20_poly1305
#define tls12_crypto_info_sm4_gcm ours_sm4_gcm
#define tls12_crypto_info_sm4_ccm ours_sm4_ccm
#define tls12_crypto_info_aria_gcm_128 ours_aria_gcm_128
#define tls12_crypto_info_aria_gcm_256 ours_aria_gcm_256
#include "abi_linux.h"
#undef tls_crypto_info
#undef tls12_crypto_info_aes_gcm_128
#undef tls12_crypto_info_aes_gcm_256
#undef tls12_crypto_info_aes_ccm_128
#undef tls12_crypto_info_chacha20_poly1305
#undef tls12_crypto_info_sm4_gcm
#undef tls12_crypto_info_sm4_ccm
#undef tls12_crypto_info_aria_gcm_128
#undef tls12_crypto_info_aria_gcm_256

#define SAME(name) _Static_assert(system_##name == (int)(name), #name " differs from the system's")
SAME(TCP_ULP);
SAME(TLS_TX);
SAME(TLS_RX);
SAME(TLS_SET_RECORD_TYPE);
SAME(TLS_GET_RECORD_TYPE);
SAME(TLS_1_2_VERSION);
SAME(TLS_1_3_VERSION);
SAME(TLS_CIPHER_AES_GCM_128);
SAME(TLS_CIPHER_AES_GCM_256);
SAME(TLS_CIPHER_AES_CCM_128);
SAME(TLS_CONF_BASE);
SAME(TLS_CONF_SW);
SAME(TLS_CONF_HW);
SAME(TLS_CONF_HW_RECORD);
SAME(TLS_INFO_VERSION);
SAME(TLS_INFO_CIPHER);
SAME(TLS_INFO_TXCONF);
SAME(TLS_INFO_RXCONF);
SAME(INET_DIAG_ULP_INFO);
SAME(INET_ULP_INFO_NAME);
SAME(INET_ULP_INFO_TLS);
#ifdef PYKTLS_NEWEST_ABI
SAME(TLS_INFO_ZC_RO_TX);
SAME(TLS_INFO_RX_NO_PAD);
SAME(TLS_INFO_TX_MAX_PAYLOAD_LEN);
_Static_assert(system_TLS_INFO_MAX == TLS_INFO_TX_MAX_PAYLOAD_LEN, "there is a younger attribute");
#if !defined(HAVE_TLS_TX_ZEROCOPY_RO) || !defined(HAVE_TLS_RX_EXPECT_NO_PAD) ||                      \
    !defined(HAVE_TLS_TX_MAX_PAYLOAD_LEN) || !defined(HAVE_CHACHA20_POLY1305) ||                   \
    !defined(HAVE_SM4) || !defined(HAVE_ARIA)
#error "PYKTLS_NEWEST_ABI with headers that are not the newest"
#endif
#endif
#ifdef HAVE_TLS_TX_ZEROCOPY_RO
SAME(TLS_TX_ZEROCOPY_RO);
#endif
#ifdef HAVE_TLS_RX_EXPECT_NO_PAD
SAME(TLS_RX_EXPECT_NO_PAD);
#endif
#ifdef HAVE_TLS_TX_MAX_PAYLOAD_LEN
SAME(TLS_TX_MAX_PAYLOAD_LEN);
#endif

#define SAME_FIELD(cipher, field)                                                                  \
    _Static_assert(offsetof(struct tls12_crypto_info_##cipher, field) ==                           \
                           offsetof(struct ours_##cipher, field) &&                                \
                       sizeof(((struct tls12_crypto_info_##cipher *)0)->field) ==                  \
                           sizeof(((struct ours_##cipher *)0)->field),                             \
                   #cipher "." #field " differs from the system's")
#define SAME_STRUCT(cipher)                                                                        \
    _Static_assert(sizeof(struct tls12_crypto_info_##cipher) == sizeof(struct ours_##cipher),      \
                   #cipher " has another size than the system's");                                 \
    SAME_FIELD(cipher, iv);                                                                        \
    SAME_FIELD(cipher, key);                                                                       \
    SAME_FIELD(cipher, rec_seq)
#define SAME_STRUCT_WITH_SALT(cipher)                                                              \
    SAME_STRUCT(cipher);                                                                           \
    SAME_FIELD(cipher, salt)

_Static_assert(sizeof(struct tls_crypto_info) == sizeof(struct ours_tls_crypto_info) &&
                   offsetof(struct tls_crypto_info, cipher_type) ==
                       offsetof(struct ours_tls_crypto_info, cipher_type),
               "tls_crypto_info differs from the system's");
SAME_STRUCT_WITH_SALT(aes_gcm_128);
SAME_STRUCT_WITH_SALT(aes_gcm_256);
SAME_STRUCT_WITH_SALT(aes_ccm_128);
#ifdef HAVE_CHACHA20_POLY1305
SAME(TLS_CIPHER_CHACHA20_POLY1305);
SAME_STRUCT(chacha20_poly1305);
#endif
#ifdef HAVE_SM4
SAME(TLS_CIPHER_SM4_GCM);
SAME(TLS_CIPHER_SM4_CCM);
SAME_STRUCT_WITH_SALT(sm4_gcm);
SAME_STRUCT_WITH_SALT(sm4_ccm);
#endif
#ifdef HAVE_ARIA
SAME(TLS_CIPHER_ARIA_GCM_128);
SAME(TLS_CIPHER_ARIA_GCM_256);
SAME_STRUCT_WITH_SALT(aria_gcm_128);
SAME_STRUCT_WITH_SALT(aria_gcm_256);
#endif
#else
#include "abi_linux.h"
#endif

/* What holds on every machine: no padding anywhere, so the sizes are the sums of the fields. */
#define SIZE_IS(name, size)                                                                        \
    _Static_assert(sizeof(struct name) == (size) && (size) <= PYKTLS_CRYPTO_INFO_MAX,              \
                   #name " is not " #size " bytes")
#ifdef PYKTLS_HAVE_SYSTEM_ABI
SIZE_IS(ours_aes_gcm_128, 40);
SIZE_IS(ours_aes_gcm_256, 56);
SIZE_IS(ours_chacha20_poly1305, 56);
#else
SIZE_IS(tls12_crypto_info_aes_gcm_128, 40);
SIZE_IS(tls12_crypto_info_aes_gcm_256, 56);
SIZE_IS(tls12_crypto_info_chacha20_poly1305, 56);
#endif
