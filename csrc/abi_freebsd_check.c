/*
 * Holds abi_freebsd.h to FreeBSD's own headers, at compile time, on FreeBSD and when compiling for
 * it; on other systems to what is known of the layout.
 *
 * Done as in abi_linux_check.c: the system's value of each constant is caught in an enum, its macro
 * removed, and our header brought in with the structs under other names.  What FreeBSD 13.0 does not
 * define yet is passed over there.  This file defines no code and no data.
 */
#include <stddef.h>
#include <stdint.h>

#if defined(__FreeBSD__)
#include <sys/param.h>
#include <sys/socket.h>

/* 13.0's sys/ktls.h wants the kernel's headers before anything else. */
#if __FreeBSD_version >= 1400000
#define PYKTLS_HAVE_SYSTEM_ABI 1
#elif defined(__has_include)
#if __has_include(<sys/ktls.h>)
#define PYKTLS_HAVE_SYSTEM_ABI 1
#include <sys/refcount.h>
#include <sys/_task.h>
#endif
#endif
#endif

#ifdef PYKTLS_HAVE_SYSTEM_ABI
#include <crypto/cryptodev.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ktls.h>

#define CATCH(name) enum { system_##name = (int)(name) };

CATCH(TCP_TXTLS_ENABLE)
#undef TCP_TXTLS_ENABLE
CATCH(TCP_TXTLS_MODE)
#undef TCP_TXTLS_MODE
CATCH(TCP_RXTLS_ENABLE)
#undef TCP_RXTLS_ENABLE
CATCH(TCP_RXTLS_MODE)
#undef TCP_RXTLS_MODE
CATCH(TCP_TLS_MODE_NONE)
#undef TCP_TLS_MODE_NONE
CATCH(TCP_TLS_MODE_SW)
#undef TCP_TLS_MODE_SW
CATCH(TCP_TLS_MODE_IFNET)
#undef TCP_TLS_MODE_IFNET
CATCH(TCP_TLS_MODE_TOE)
#undef TCP_TLS_MODE_TOE
CATCH(TLS_SET_RECORD_TYPE)
#undef TLS_SET_RECORD_TYPE
CATCH(TLS_GET_RECORD)
#undef TLS_GET_RECORD
CATCH(CRYPTO_AES_CBC)
#undef CRYPTO_AES_CBC
CATCH(CRYPTO_AES_NIST_GCM_16)
#undef CRYPTO_AES_NIST_GCM_16
CATCH(CRYPTO_SHA1_HMAC)
#undef CRYPTO_SHA1_HMAC
CATCH(CRYPTO_SHA2_256_HMAC)
#undef CRYPTO_SHA2_256_HMAC
CATCH(CRYPTO_SHA2_384_HMAC)
#undef CRYPTO_SHA2_384_HMAC
CATCH(TLS_MAJOR_VER_ONE)
#undef TLS_MAJOR_VER_ONE
CATCH(TLS_MINOR_VER_ZERO)
#undef TLS_MINOR_VER_ZERO
CATCH(TLS_MINOR_VER_ONE)
#undef TLS_MINOR_VER_ONE
CATCH(TLS_MINOR_VER_TWO)
#undef TLS_MINOR_VER_TWO
CATCH(TLS_MINOR_VER_THREE)
#undef TLS_MINOR_VER_THREE
CATCH(TLS_RLTYPE_APP)
#undef TLS_RLTYPE_APP
CATCH(TLS_MAX_MSG_SIZE_V10_2)
#undef TLS_MAX_MSG_SIZE_V10_2
CATCH(TLS_MAX_PARAM_SIZE)
#undef TLS_MAX_PARAM_SIZE
CATCH(TLS_AEAD_GCM_LEN)
#undef TLS_AEAD_GCM_LEN
CATCH(TLS_1_3_GCM_IV_LEN)
#undef TLS_1_3_GCM_IV_LEN
CATCH(TLS_CBC_IMPLICIT_IV_LEN)
#undef TLS_CBC_IMPLICIT_IV_LEN

/* Not in 13.0. */
#ifdef TLS_CHACHA20_IV_LEN
CATCH(CRYPTO_CHACHA20_POLY1305)
#undef CRYPTO_CHACHA20_POLY1305
CATCH(TLS_CHACHA20_IV_LEN)
#undef TLS_CHACHA20_IV_LEN
#define HAVE_CHACHA20
#else
#undef CRYPTO_CHACHA20_POLY1305
#endif
#ifdef TLS_RLTYPE_ALERT
CATCH(TLS_RLTYPE_ALERT)
#undef TLS_RLTYPE_ALERT
#define HAVE_RLTYPE_ALERT
#endif
#ifdef TLS_RLTYPE_HANDSHAKE
CATCH(TLS_RLTYPE_HANDSHAKE)
#undef TLS_RLTYPE_HANDSHAKE
#define HAVE_RLTYPE_HANDSHAKE
#endif

/* Gone from newer ones, which keep them for themselves. */
#ifdef CRYPTO_AES_128_NIST_GMAC
CATCH(CRYPTO_AES_128_NIST_GMAC)
#undef CRYPTO_AES_128_NIST_GMAC
CATCH(CRYPTO_AES_192_NIST_GMAC)
#undef CRYPTO_AES_192_NIST_GMAC
CATCH(CRYPTO_AES_256_NIST_GMAC)
#undef CRYPTO_AES_256_NIST_GMAC
#define HAVE_GMAC
#endif

#define tls_enable ours_tls_enable
#define tls_get_record ours_tls_get_record
#include "abi_freebsd.h"
#undef tls_enable
#undef tls_get_record

#define SAME(name) _Static_assert(system_##name == (int)(name), #name " differs from the system's")
SAME(TCP_TXTLS_ENABLE);
SAME(TCP_TXTLS_MODE);
SAME(TCP_RXTLS_ENABLE);
SAME(TCP_RXTLS_MODE);
SAME(TCP_TLS_MODE_NONE);
SAME(TCP_TLS_MODE_SW);
SAME(TCP_TLS_MODE_IFNET);
SAME(TCP_TLS_MODE_TOE);
SAME(TLS_SET_RECORD_TYPE);
SAME(TLS_GET_RECORD);
SAME(CRYPTO_AES_CBC);
SAME(CRYPTO_AES_NIST_GCM_16);
SAME(CRYPTO_SHA1_HMAC);
SAME(CRYPTO_SHA2_256_HMAC);
SAME(CRYPTO_SHA2_384_HMAC);
SAME(TLS_MAJOR_VER_ONE);
SAME(TLS_MINOR_VER_ZERO);
SAME(TLS_MINOR_VER_ONE);
SAME(TLS_MINOR_VER_TWO);
SAME(TLS_MINOR_VER_THREE);
SAME(TLS_RLTYPE_APP);
SAME(TLS_MAX_MSG_SIZE_V10_2);
SAME(TLS_MAX_PARAM_SIZE);
SAME(TLS_AEAD_GCM_LEN);
SAME(TLS_1_3_GCM_IV_LEN);
SAME(TLS_CBC_IMPLICIT_IV_LEN);
#ifdef HAVE_CHACHA20
SAME(CRYPTO_CHACHA20_POLY1305);
SAME(TLS_CHACHA20_IV_LEN);
#endif
#ifdef HAVE_GMAC
SAME(CRYPTO_AES_128_NIST_GMAC);
SAME(CRYPTO_AES_192_NIST_GMAC);
SAME(CRYPTO_AES_256_NIST_GMAC);
#endif
#ifdef HAVE_RLTYPE_ALERT
SAME(TLS_RLTYPE_ALERT);
#endif
#ifdef HAVE_RLTYPE_HANDSHAKE
SAME(TLS_RLTYPE_HANDSHAKE);
#endif
_Static_assert(IPPROTO_TCP == 6, "the level of all options and control messages");

#define SAME_FIELD(type, field)                                                                    \
    _Static_assert(offsetof(struct type, field) == offsetof(struct ours_##type, field) &&          \
                       sizeof(((struct type *)0)->field) ==                                        \
                           sizeof(((struct ours_##type *)0)->field),                               \
                   #type "." #field " differs from the system's")
#define SAME_SIZE(type)                                                                            \
    _Static_assert(sizeof(struct type) == sizeof(struct ours_##type) &&                            \
                       _Alignof(struct type) == _Alignof(struct ours_##type),                      \
                   #type " has another size than the system's")
SAME_SIZE(tls_enable);
SAME_FIELD(tls_enable, cipher_key);
SAME_FIELD(tls_enable, iv);
SAME_FIELD(tls_enable, auth_key);
SAME_FIELD(tls_enable, cipher_algorithm);
SAME_FIELD(tls_enable, cipher_key_len);
SAME_FIELD(tls_enable, iv_len);
SAME_FIELD(tls_enable, auth_algorithm);
SAME_FIELD(tls_enable, auth_key_len);
SAME_FIELD(tls_enable, flags);
SAME_FIELD(tls_enable, tls_vmajor);
SAME_FIELD(tls_enable, tls_vminor);
SAME_FIELD(tls_enable, rec_seq);
SAME_SIZE(tls_get_record);
SAME_FIELD(tls_get_record, tls_type);
SAME_FIELD(tls_get_record, tls_vmajor);
SAME_FIELD(tls_get_record, tls_vminor);
SAME_FIELD(tls_get_record, tls_length);
#else
#define tls_enable ours_tls_enable
#define tls_get_record ours_tls_get_record
#include "abi_freebsd.h"
#endif

/* What holds everywhere: three pointers, six ints, ten bytes, and the padding of the pointers. */
_Static_assert(offsetof(struct ours_tls_enable, rec_seq) ==
                   3 * sizeof(void *) + 6 * sizeof(int32_t) + 2,
               "the fields of tls_enable follow each other without gaps");
_Static_assert(sizeof(struct ours_tls_enable) == (sizeof(void *) == 8 ? 64 : 48),
               "tls_enable is 64 bytes with 64-bit pointers, 48 with 32-bit ones");
_Static_assert(sizeof(struct ours_tls_get_record) == 6 &&
                   offsetof(struct ours_tls_get_record, tls_length) == 4 &&
                   _Alignof(struct ours_tls_get_record) == 2,
               "tls_get_record is the same everywhere");
