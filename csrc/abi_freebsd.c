/*
 * FreeBSD's struct tls_enable, filled: memory only, so on any system.
 */
#include "abi_freebsd.h"

#include <errno.h>
#include <string.h>

#include "kernel.h"

int pyktls_freebsd_fill(struct tls_enable *out, int version, int cipher_algorithm, const void *key,
                        size_t key_length, const void *iv, size_t iv_length, int auth_algorithm,
                        const void *auth_key, size_t auth_key_length, uint64_t rec_seq) {
    int minor = version & 0xff;
    if (version >> 8 != TLS_MAJOR_VER_ONE || minor < TLS_MINOR_VER_ZERO ||
        minor > TLS_MINOR_VER_THREE) {
        return -EINVAL;
    }
    if (key_length > TLS_MAX_PARAM_SIZE || iv_length > TLS_MAX_PARAM_SIZE ||
        auth_key_length > TLS_MAX_PARAM_SIZE) {
        return -EINVAL;
    }
    memset(out, 0, sizeof(*out)); /* the padding at the end too */
    out->cipher_algorithm = cipher_algorithm;
    out->cipher_key = key;
    out->cipher_key_len = (int)key_length;
    out->iv = iv_length > 0 ? iv : NULL;
    out->iv_len = (int)iv_length;
    out->auth_algorithm = auth_algorithm;
    out->auth_key = auth_key_length > 0 ? auth_key : NULL;
    out->auth_key_len = (int)auth_key_length;
    out->tls_vmajor = TLS_MAJOR_VER_ONE;
    out->tls_vminor = (uint8_t)minor;
    for (int i = 7; i >= 0; i--) {
        out->rec_seq[i] = (uint8_t)(rec_seq & 0xff);
        rec_seq >>= 8;
    }
    return 0;
}
