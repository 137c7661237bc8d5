/* The functions of libcrypto that csrc/openssl_*.c look up: see fake_libcrypto.h. */
#include "fake_libcrypto.h"

#include <stdlib.h>
#include <string.h>

#include "wipe.h"

#define PENDING 10
#define GET_KTLS_SEND 73
#define GET_KTLS_RECV 76
#define SET_MEMORY_EOF_RETURN 130
#define SET_IV_LENGTH 0x9
#define GET_TAG 0x10
#define SET_TAG 0x11
#define NONCE_SIZE 12
#define TAG_SIZE 16

struct openssl_script on_openssl = {.fail_at = -1, .code = FAKE_ERROR};
int fake_misuse;

void reset_openssl(void) {
    int bios = on_openssl.bios, ciphers = on_openssl.ciphers;
    memset(&on_openssl, 0, sizeof(on_openssl));
    on_openssl.fail_at = -1;
    on_openssl.fail_for = 1;
    on_openssl.code = FAKE_ERROR;
    on_openssl.bios = bios;
    on_openssl.ciphers = ciphers;
}

void fake_queue(int errors) {
    if (errors > 0 && on_openssl.errors == 0) {
        on_openssl.oldest = on_openssl.code;
    }
    on_openssl.errors += errors;
}

int fake_fails(const char *name) {
    int number = on_openssl.calls++;
    if (on_openssl.fail_at < 0 || number < on_openssl.fail_at ||
        number >= on_openssl.fail_at + on_openssl.fail_for) {
        return 0;
    }
    on_openssl.failed = name;
    fake_queue(!on_openssl.silently);
    return 1;
}

void ERR_clear_error(void);
void ERR_clear_error(void) {
    on_openssl.errors = 0;
}

unsigned long ERR_peek_error(void);
unsigned long ERR_peek_error(void) {
    return on_openssl.errors > 0 ? on_openssl.oldest : 0;
}

const char *ERR_reason_error_string(unsigned long code);
const char *ERR_reason_error_string(unsigned long code) {
    fake_misuse += code == 0;
    return code == FAKE_ERROR ? FAKE_REASON : code == FAKE_OLD_ERROR ? FAKE_OLD_REASON : NULL;
}

/* ---- BIOs ------------------------------------------------------------------------------------ */

#define BIO(pointer) ((struct fake_bio *)(pointer))

static const enum fake_method memory_method = FAKE_MEMORY, null_method = FAKE_NULL;

const void *BIO_s_mem(void);
const void *BIO_s_mem(void) {
    return &memory_method;
}

const void *BIO_s_null(void);
const void *BIO_s_null(void) {
    return &null_method;
}

void *BIO_new(const void *method);
void *BIO_new(const void *method) {
    struct fake_bio *bio = fake_fails(__func__) ? NULL : calloc(1, sizeof(*bio));
    if (bio != NULL) {
        bio->method = *(const enum fake_method *)method;
        bio->made = 1;
        bio->room = FAKE_ROOM;
        on_openssl.bios++;
    }
    return bio;
}

int BIO_free(void *bio) {
    if (bio == NULL) {
        return 0;
    }
    BIO(bio)->released++;
    if (BIO(bio)->made) {
        on_openssl.bios--;
        free(bio);
    }
    return 1;
}

int BIO_write(void *bio, const void *data, int length);
int BIO_write(void *bio, const void *data, int length) {
    if (fake_fails(__func__)) {
        return on_openssl.failure;
    }
    if (bio == NULL) {
        return 0;
    }
    size_t size = (size_t)length;
    BIO(bio)->last_length = length;
    if (BIO(bio)->method == FAKE_MEMORY) {
        size_t room = BIO(bio)->room - BIO(bio)->size;
        size = room < size ? room : size;
        memcpy(BIO(bio)->data + BIO(bio)->size, data, size);
        BIO(bio)->size += size;
    }
    BIO(bio)->written += size;
    return (int)size;
}

int BIO_read(void *bio, void *out, int length);
int BIO_read(void *bio, void *out, int length) {
    if (bio == NULL) {
        return -1;
    }
    BIO(bio)->last_length = length;
    if (fake_fails(__func__)) {
        return on_openssl.failure;
    }
    if (BIO(bio)->method != FAKE_MEMORY || BIO(bio)->size == 0) {
        return BIO(bio)->at_end;
    }
    size_t size = BIO(bio)->size < (size_t)length ? BIO(bio)->size : (size_t)length;
    memcpy(out, BIO(bio)->data, size);
    BIO(bio)->size -= size;
    memmove(BIO(bio)->data, BIO(bio)->data + size, BIO(bio)->size);
    BIO(bio)->read += size;
    return (int)size;
}

uint64_t BIO_number_read(void *bio);
uint64_t BIO_number_read(void *bio) {
    return BIO(bio)->read;
}

uint64_t BIO_number_written(void *bio);
uint64_t BIO_number_written(void *bio) {
    return BIO(bio)->written;
}

long BIO_ctrl(void *bio, int command, long argument, void *pointer);
long BIO_ctrl(void *bio, int command, long argument, void *pointer) {
    if (command == SET_MEMORY_EOF_RETURN && BIO(bio)->method == FAKE_MEMORY && pointer == NULL) {
        BIO(bio)->at_end = (int)argument;
        return 1;
    }
    if (command == PENDING && argument == 0 && pointer == NULL) {
        return bio == NULL ? -1 : (long)BIO(bio)->size;
    }
    int known = command == GET_KTLS_SEND || command == GET_KTLS_RECV;
    if (argument != 0 || pointer != NULL || !known) {
        fake_misuse++;
        return 0;
    }
    return command == GET_KTLS_SEND ? BIO(bio)->ktls_send : BIO(bio)->ktls_recv;
}

/* ---- sealing --------------------------------------------------------------------------------- */

const struct fake_aead fake_aeads[FAKE_AEADS] = {
    {"AES-128-GCM", 16, 0},
    {"AES-256-GCM", 32, 0},
    {"ChaCha20-Poly1305", 32, 0},
    {"AES-128-CCM", 16, 1},
};

/* FNV-1a, of the bytes and of their number. */
static uint64_t mix(uint64_t state, const void *data, size_t size) {
    const volatile unsigned char *bytes = data;
    for (size_t i = 0; i < size; i++) {
        state = (state ^ bytes[i]) * 1099511628211;
    }
    return (state ^ size) * 1099511628211;
}

static uint64_t mix_name(const struct fake_aead *aead) {
    return mix(14695981039346656037u, aead->name, strlen(aead->name));
}

static void encrypt(unsigned char *out, const unsigned char *content, size_t size) {
    for (size_t i = 0; i < size; i++) {
        out[i] = content[i] ^ 0x55;
    }
}

static void write_tag(unsigned char *out, uint64_t state) {
    for (int i = 0; i < TAG_SIZE; i++) {
        out[i] = (unsigned char)(state >> (i % 8 * 8)) ^ (unsigned char)i;
    }
}

void fake_seal(const struct fake_aead *aead, const unsigned char *key,
               const unsigned char nonce[12], const void *additional, size_t additional_size,
               const void *content, size_t size, unsigned char *out) {
    uint64_t state = mix(mix_name(aead), key, aead->key_size);
    state = mix(mix(state, nonce, NONCE_SIZE), additional, additional_size);
    encrypt(out, content, size);
    write_tag(out + size, mix(state, content, size));
}

/* An EVP_CIPHER_CTX: how far it is, and what went in. */
struct cipher {
    const struct fake_aead *aead;
    enum { EMPTY, NAMED, KEYED, ADDITIONAL_DONE, CONTENT_DONE, FINISHED } step;
    int has_nonce_size, has_tag_size;
    int length; /* of the content, announced; -1 as long as it is not */
    unsigned char key[32]; /* as the real one has it, until it is freed */
    uint64_t state;
};

/*
 * What a sealing call returns that the rules allow.  One that is said to fail has done its work
 * nevertheless: then nobody learns of the failure who does not look at the result.
 */
static int outcome(const char *name) {
    return fake_fails(name) ? on_openssl.failure : 1;
}

/* And the answer to what is against the rules. */
static int refuse(void) {
    fake_queue(1);
    return 0;
}

const void *EVP_get_cipherbyname(const char *name);
const void *EVP_get_cipherbyname(const char *name) {
    if (!fake_fails(__func__)) {
        for (size_t i = 0; i < FAKE_AEADS; i++) {
            if (strcmp(name, fake_aeads[i].name) == 0) {
                return &fake_aeads[i];
            }
        }
    }
    return NULL;
}

void *EVP_CIPHER_CTX_new(void);
void *EVP_CIPHER_CTX_new(void) {
    struct cipher *cipher = fake_fails(__func__) ? NULL : calloc(1, sizeof(*cipher));
    if (cipher != NULL) {
        cipher->length = -1;
        on_openssl.ciphers++;
    }
    return cipher;
}

void EVP_CIPHER_CTX_free(void *cipher);
void EVP_CIPHER_CTX_free(void *cipher) {
    if (cipher != NULL) {
        on_openssl.ciphers--;
        pyktls_wipe(cipher, sizeof(struct cipher));
        free(cipher);
    }
}

int EVP_CIPHER_CTX_ctrl(void *cipher, int command, int size, void *out);
int EVP_CIPHER_CTX_ctrl(void *cipher, int command, int size, void *out) {
    struct cipher *c = cipher;
    if (command == SET_IV_LENGTH && c->step == NAMED && size == NONCE_SIZE && out == NULL) {
        c->has_nonce_size = 1;
    } else if (command == SET_TAG && c->step == NAMED && size == TAG_SIZE && out == NULL &&
               c->aead->ccm) {
        c->has_tag_size = 1;
    } else if (command == GET_TAG && c->step == FINISHED && size == TAG_SIZE) {
        write_tag(out, c->state);
    } else {
        return refuse();
    }
    return outcome(__func__);
}

int EVP_EncryptInit_ex(void *cipher, const void *aead, void *engine, const unsigned char *key,
                       const unsigned char *nonce);
int EVP_EncryptInit_ex(void *cipher, const void *aead, void *engine, const unsigned char *key,
                       const unsigned char *nonce) {
    struct cipher *c = cipher;
    if (engine != NULL || (key == NULL) != (nonce == NULL)) {
        return refuse();
    }
    if (aead != NULL) {
        c->aead = aead;
        c->step = NAMED;
    }
    if (key != NULL) {
        if (c->step != NAMED || !c->has_nonce_size || (c->aead->ccm && !c->has_tag_size)) {
            return refuse();
        }
        pyktls_copy_secret(c->key, key, c->aead->key_size);
        c->state = mix(mix(mix_name(c->aead), c->key, c->aead->key_size), nonce, NONCE_SIZE);
        c->step = KEYED;
    }
    return outcome(__func__);
}

int EVP_EncryptUpdate(void *cipher, unsigned char *out, int *done, const unsigned char *in,
                      int size);
int EVP_EncryptUpdate(void *cipher, unsigned char *out, int *done, const unsigned char *in,
                      int size) {
    struct cipher *c = cipher;
    *done = size;
    if (out == NULL && in == NULL && c->step == KEYED && c->aead->ccm && c->length < 0) {
        c->length = size;
    } else if (out == NULL && in != NULL && c->step == KEYED && c->aead->ccm == (c->length >= 0)) {
        c->state = mix(c->state, in, (size_t)size);
        c->step = ADDITIONAL_DONE;
    } else if (out != NULL && in != NULL && c->step == ADDITIONAL_DONE &&
               (c->length < 0 || c->length == size)) {
        encrypt(out, in, (size_t)size);
        c->state = mix(c->state, in, (size_t)size);
        c->step = CONTENT_DONE;
        *done += on_openssl.update_extra;
    } else {
        return refuse();
    }
    return outcome(__func__);
}

int EVP_EncryptFinal_ex(void *cipher, unsigned char *out, int *done);
int EVP_EncryptFinal_ex(void *cipher, unsigned char *out, int *done) {
    struct cipher *c = cipher;
    if (on_openssl.during != NULL) {
        on_openssl.during();
    }
    if (out == NULL || c->step != CONTENT_DONE) {
        return refuse();
    }
    *done = on_openssl.final_extra;
    c->step = FINISHED;
    return outcome(__func__);
}
