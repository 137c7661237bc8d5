/*
 * A door of the tests' own into an _ssl module whose OpenSSL is hidden: the addresses of those
 * functions that tests/support/tls.py calls.  Their names stay hidden.
 */
#include <openssl/bio.h>
#include <openssl/ssl.h>
#include <string.h>

#define DOOR(name)                                                                                 \
    if (strcmp(wanted, #name) == 0) {                                                              \
        return (void *)name;                                                                       \
    }

__attribute__((visibility("default"))) void *pyktls_test_door(const char *wanted) {
    DOOR(BIO_number_read)
    DOOR(SSL_CTX_set_ciphersuites)
    DOOR(SSL_get_key_update_type)
    DOOR(SSL_get_rbio)
    DOOR(SSL_key_update)
    DOOR(SSL_session_reused)
    DOOR(SSL_set_read_ahead)
    return NULL;
}
