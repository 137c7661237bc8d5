/*
 * Functions of OpenSSL, found by name.  A file lists those that it calls,
 *
 *   #define OPENSSL_FUNCTIONS(F) F(name, result, parameters) ...
 *
 * and has pointers to them as members of a struct.
 */
#ifndef PYKTLS_OPENSSL_LOOKUP_H
#define PYKTLS_OPENSSL_LOOKUP_H

#include <string.h>

/* The pointer. */
#define PYKTLS_MEMBER(name, result, parameters) result(*name) parameters;

/*
 * Fills the pointer of the struct `openssl` from `symbol`.  Copied, for ISO C converts no pointer
 * to an object into one to a function.
 */
#define PYKTLS_FILL(name, symbol) memcpy(&openssl.name, &(symbol), sizeof(symbol))

/* Finds it where openssl_tap.c found its own; `return missing` if it is not there. */
#define PYKTLS_FIND(name, missing)                                                                 \
    {                                                                                              \
        void *found = pyktls_tap_symbol(#name);                                                    \
        if (found == NULL) {                                                                       \
            return missing;                                                                        \
        }                                                                                          \
        PYKTLS_FILL(name, found);                                                                  \
    }

#endif
