/*
 * What the C library is asked for by the files of csrc/ that look up OpenSSL: each call is the real
 * one, counted, and refused where a test says so.
 */
#ifndef WATCHED_H
#define WATCHED_H

extern int opens, closes, open_mode;
extern int lookups;
extern int fail_lookup;         /* which of them finds nothing, from 0; -1: none */
extern const char *failed_name; /* what was looked up then */
extern int no_memory;           /* there is none */
extern int allocated, freed;
extern int freed_dirty; /* how many of those were not wiped before */

#endif
