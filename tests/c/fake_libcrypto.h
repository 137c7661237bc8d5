/*
 * The libcrypto of the OpenSSL without TLS (fake_libssl.h): BIOs, the queue of errors, and an AEAD
 * that hides nothing but has the rules of the real ones.
 *
 * For a new function: define it in fake_libcrypto.c, or fake_libssl.c if it is one of those, with
 * the types of its caller.  One that can fail asks `fake_fails` whether it has to.
 */
#ifndef FAKE_LIBCRYPTO_H
#define FAKE_LIBCRYPTO_H

#include <stddef.h>
#include <stdint.h>

#define FAKE_ROOM 512

/* Codes of errors, and their words; other codes have none. */
#define FAKE_ERROR 1
#define FAKE_OLD_ERROR 2
#define FAKE_REASON "the fake one refuses"
#define FAKE_OLD_REASON "somebody else's"

/*
 * What a test tells all calls that can fail, and what they tell the test.  They are counted from 0
 * on; those that fail leave an error in the queue, unless they do it silently.
 */
struct openssl_script {
    int fail_at;          /* which one fails; -1: none */
    int fail_for;         /* and how many in a row */
    int failure;          /* what it returns, where that is a number */
    int silently;
    unsigned long code;   /* of the errors that are left; FAKE_ERROR as long as nobody changes it */
    int update_extra;     /* EVP_EncryptUpdate says that it made so many more of content */
    int final_extra;      /* and so does EVP_EncryptFinal_ex */
    void (*during)(void); /* called before the end of sealing, if there is one */

    int calls;
    const char *failed; /* the last one that did */
    int errors;         /* in the queue */
    unsigned long oldest; /* the code of the first of them */
    int bios, ciphers;  /* that were made, and not freed yet */
};

extern struct openssl_script on_openssl;
/* No call fails, and the queue is empty.  What was made is still counted. */
void reset_openssl(void);

/* Calls that must never be made: a control that is not known here, asking for the words of none. */
extern int fake_misuse;

/* For the fake's functions.  Whether a call has to fail, by its name. */
int fake_fails(const char *name);
/* Leaves errors in the queue. */
void fake_queue(int errors);

enum fake_method { FAKE_SOCKET, FAKE_MEMORY, FAKE_NULL };

struct fake_bio {
    enum fake_method method;
    uint64_t read, written;
    long ktls_send, ktls_recv;
    int made;        /* by BIO_new, and to be freed by BIO_free */
    int released;    /* how often BIO_free was called */
    int last_length; /* of BIO_write or BIO_read */
    /* FAKE_MEMORY: */
    unsigned char data[FAKE_ROOM];
    size_t size; /* of what is in it */
    size_t room; /* for so much in all */
    int at_end;  /* what reading it returns when it is empty: 0 is the end of all, -1 is not */
};

int BIO_free(void *bio);

struct fake_aead {
    const char *name;
    size_t key_size;
    int ccm; /* with its rules: the length of the tag before the key, that of the content before
                the additional data; the others know neither */
};

#define FAKE_AEADS 4
extern const struct fake_aead fake_aeads[FAKE_AEADS];

/* What sealing has to give: size + 16 bytes that depend on every byte that goes in. */
void fake_seal(const struct fake_aead *aead, const unsigned char *key,
               const unsigned char nonce[12], const void *additional, size_t additional_size,
               const void *content, size_t size, unsigned char *out);

#endif
