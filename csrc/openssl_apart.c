/*
 * What is asked of OpenSSL once the kernel has its connection: to take in a session ticket that
 * came later.
 *
 * Everything is looked up where openssl_tap.c found its own: in the running _ssl module's libraries.
 */
#include "openssl_apart.h"

#include <string.h>

#include "openssl_half.h"
#include "openssl_lookup.h"
#include "openssl_tap.h"

#define RECEIVED_SHUTDOWN 2
#define AEAD_SET_IV_LENGTH 0x9 /* EVP_CTRL_AEAD_SET_IVLEN and so on */
#define AEAD_GET_TAG 0x10
#define AEAD_SET_TAG 0x11
#define NONCE_SIZE 12
#define TAG_SIZE 16

/* name, result, parameters */
#define OPENSSL_FUNCTIONS(F)                                                                       \
    F(SSL_get_shutdown, int, (const void *))                                                       \
    F(SSL_set_shutdown, void, (void *, int))                                                       \
    F(ERR_clear_error, void, (void))                                                               \
    F(EVP_get_cipherbyname, const void *, (const char *))                                          \
    F(EVP_CIPHER_CTX_new, void *, (void))                                                          \
    F(EVP_CIPHER_CTX_free, void, (void *))                                                         \
    F(EVP_CIPHER_CTX_ctrl, int, (void *, int, int, void *))                                        \
    F(EVP_EncryptInit_ex, int,                                                                     \
      (void *, const void *, void *, const unsigned char *, const unsigned char *))                \
    F(EVP_EncryptUpdate, int, (void *, unsigned char *, int *, const unsigned char *, int))        \
    F(EVP_EncryptFinal_ex, int, (void *, unsigned char *, int *))

static struct {
    OPENSSL_FUNCTIONS(PYKTLS_MEMBER)
    int open;
} openssl;

int pyktls_apart_open(void) {
    if (openssl.open) {
        return PYKTLS_APART_OK;
    }
#define F(name, result, parameters) PYKTLS_FIND(name, PYKTLS_APART_NOT_OPEN)
    OPENSSL_FUNCTIONS(F)
#undef F
    openssl.open = 1;
    return PYKTLS_APART_OK;
}

int pyktls_apart_feed(void *ssl, const void *records, size_t size) {
    if (!openssl.open) {
        return PYKTLS_APART_NOT_OPEN;
    }
    if (pyktls_half_feed(ssl, records, size) != PYKTLS_HALF_OK) {
        return PYKTLS_APART_REFUSED;
    }
    /* A connection that has seen close_notify reads nothing. */
    int before = openssl.SSL_get_shutdown(ssl);
    openssl.SSL_set_shutdown(ssl, before & ~RECEIVED_SHUTDOWN);
    unsigned char byte;
    const char *reason;
    int64_t result = pyktls_half_read(ssl, &byte, sizeof(byte), 1, &reason);
    openssl.SSL_set_shutdown(ssl, before);
    /* All is taken in, and then there is nothing more to read. */
    return result == PYKTLS_HALF_WANTS_MORE ? PYKTLS_APART_OK : PYKTLS_APART_REFUSED;
}

static int seal_with(void *ctx, const void *cipher, int ccm, const unsigned char *key,
                     const unsigned char nonce[NONCE_SIZE], const void *additional,
                     int additional_size, const void *content, int size, unsigned char *out) {
    int done = 0;
    /* CCM wants the length of the tag before the key, and that of the content before all else. */
    return openssl.EVP_EncryptInit_ex(ctx, cipher, NULL, NULL, NULL) > 0 &&
           openssl.EVP_CIPHER_CTX_ctrl(ctx, AEAD_SET_IV_LENGTH, NONCE_SIZE, NULL) > 0 &&
           (!ccm || openssl.EVP_CIPHER_CTX_ctrl(ctx, AEAD_SET_TAG, TAG_SIZE, NULL) > 0) &&
           openssl.EVP_EncryptInit_ex(ctx, NULL, NULL, key, nonce) > 0 &&
           (!ccm || openssl.EVP_EncryptUpdate(ctx, NULL, &done, NULL, size) > 0) &&
           openssl.EVP_EncryptUpdate(ctx, NULL, &done, additional, additional_size) > 0 &&
           openssl.EVP_EncryptUpdate(ctx, out, &done, content, size) > 0 && done == size &&
           openssl.EVP_EncryptFinal_ex(ctx, out + size, &done) > 0 && done == 0 &&
           openssl.EVP_CIPHER_CTX_ctrl(ctx, AEAD_GET_TAG, TAG_SIZE, out + size) > 0;
}

int pyktls_apart_seal(const char *aead, const unsigned char *key, const unsigned char nonce[12],
                      const void *additional, size_t additional_size, const void *content,
                      size_t size, unsigned char *out) {
    if (!openssl.open) {
        return PYKTLS_APART_NOT_OPEN;
    }
    int length = (int)size;
    int additional_length = (int)additional_size;
    if (length < 0 || (size_t)length != size || additional_length < 0 ||
        (size_t)additional_length != additional_size) {
        return PYKTLS_APART_REFUSED;
    }
    const void *cipher = openssl.EVP_get_cipherbyname(aead);
    void *ctx = openssl.EVP_CIPHER_CTX_new();
    int sealed = cipher != NULL && ctx != NULL &&
                 seal_with(ctx, cipher, strstr(aead, "CCM") != NULL, key, nonce, additional,
                           additional_length, content, length, out);
    openssl.EVP_CIPHER_CTX_free(ctx); /* which wipes the key */
    openssl.ERR_clear_error();
    return sealed ? PYKTLS_APART_OK : PYKTLS_APART_REFUSED;
}
