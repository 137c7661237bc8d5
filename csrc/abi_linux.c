/*
 * The crypto_info structs of Linux, filled and taken apart: bytes only, so on any system.
 */
#include "kernel.h"

#include <errno.h>
#include <string.h>

#include "abi_linux.h"
#include "wipe.h"

struct layout {
    uint16_t cipher_type;
    uint8_t size;
    uint8_t iv;
    uint8_t iv_size;
    uint8_t key;
    uint8_t key_size;
    uint8_t salt; /* offset; unused where salt_size is 0 */
    uint8_t salt_size;
    uint8_t rec_seq;
};

#define SIZE_OF(type, field) ((uint8_t)sizeof(((struct type *)0)->field))
#define OFFSET_OF(type, field) ((uint8_t)offsetof(struct type, field))
#define WITH_SALT(number, type)                                                                    \
    {                                                                                              \
        number, (uint8_t)sizeof(struct type), OFFSET_OF(type, iv), SIZE_OF(type, iv),              \
            OFFSET_OF(type, key), SIZE_OF(type, key), OFFSET_OF(type, salt), SIZE_OF(type, salt),  \
            OFFSET_OF(type, rec_seq)                                                               \
    }
#define WITHOUT_SALT(number, type)                                                                 \
    {                                                                                              \
        number, (uint8_t)sizeof(struct type), OFFSET_OF(type, iv), SIZE_OF(type, iv),              \
            OFFSET_OF(type, key), SIZE_OF(type, key), 0, 0, OFFSET_OF(type, rec_seq)               \
    }

static const struct layout layouts[] = {
    WITH_SALT(TLS_CIPHER_AES_GCM_128, tls12_crypto_info_aes_gcm_128),
    WITH_SALT(TLS_CIPHER_AES_GCM_256, tls12_crypto_info_aes_gcm_256),
    WITH_SALT(TLS_CIPHER_AES_CCM_128, tls12_crypto_info_aes_ccm_128),
    WITHOUT_SALT(TLS_CIPHER_CHACHA20_POLY1305, tls12_crypto_info_chacha20_poly1305),
    WITH_SALT(TLS_CIPHER_SM4_GCM, tls12_crypto_info_sm4_gcm),
    WITH_SALT(TLS_CIPHER_SM4_CCM, tls12_crypto_info_sm4_ccm),
    WITH_SALT(TLS_CIPHER_ARIA_GCM_128, tls12_crypto_info_aria_gcm_128),
    WITH_SALT(TLS_CIPHER_ARIA_GCM_256, tls12_crypto_info_aria_gcm_256),
};

static const struct layout *layout_of(uint16_t cipher_type) {
    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
        if (layouts[i].cipher_type == cipher_type) {
            return &layouts[i];
        }
    }
    return NULL;
}

size_t pyktls_linux_crypto_info_size(uint16_t cipher_type) {
    const struct layout *layout = layout_of(cipher_type);
    return layout == NULL ? 0 : layout->size;
}

int pyktls_linux_pack(void *out, size_t out_size, uint16_t version, uint16_t cipher_type,
                      const void *key, size_t key_length, const unsigned char iv[12],
                      uint64_t rec_seq) {
    const struct layout *layout = layout_of(cipher_type);
    if (layout == NULL || key_length != layout->key_size || out_size < layout->size) {
        return -EINVAL;
    }
    unsigned char *bytes = out;
    const struct tls_crypto_info info = {version, cipher_type};
    memcpy(bytes, &info, sizeof(info));
    pyktls_copy_secret(bytes + layout->salt, iv, layout->salt_size);
    pyktls_copy_secret(bytes + layout->iv, iv + layout->salt_size, layout->iv_size);
    pyktls_copy_secret(bytes + layout->key, key, key_length);
    for (int i = 7; i >= 0; i--) {
        bytes[layout->rec_seq + i] = (unsigned char)(rec_seq & 0xff);
        rec_seq >>= 8;
    }
    return layout->size;
}

int pyktls_linux_unpack(const void *info, size_t info_size, uint16_t *version,
                        uint16_t *cipher_type, unsigned char key[32], unsigned char iv[12],
                        uint64_t *rec_seq) {
    struct tls_crypto_info head;
    if (info_size < sizeof(head)) {
        return -EINVAL;
    }
    memcpy(&head, info, sizeof(head));
    const struct layout *layout = layout_of(head.cipher_type);
    if (layout == NULL || info_size != layout->size) {
        return -EINVAL;
    }
    const unsigned char *bytes = info;
    *version = head.version;
    *cipher_type = head.cipher_type;
    pyktls_copy_secret(key, bytes + layout->key, layout->key_size);
    pyktls_copy_secret(iv, bytes + layout->salt, layout->salt_size);
    pyktls_copy_secret(iv + layout->salt_size, bytes + layout->iv, layout->iv_size);
    *rec_seq = 0;
    for (int i = 0; i < 8; i++) {
        *rec_seq = *rec_seq << 8 | bytes[layout->rec_seq + i];
    }
    return layout->key_size;
}
