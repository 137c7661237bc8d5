/*
 * Looks for a secret in all memory that this process can write: data, heap, stacks, the libraries'.
 *
 * How this works.  The regions come from /proc/self/maps, their bytes from /proc/self/mem, so that
 * also a part of memory that no pointer leads to any more is read.  A secret counts as found where
 * PIECE bytes of it in a row stand anywhere: half a copy is a copy, and so is one that a register
 * of 16 bytes was written out from.
 *
 * The looking must not make copies itself, nor cover up what it looks for:
 * - the subject runs on a stack of its own (on_own_stack), which nothing touches afterwards, while
 *   the search runs on the ordinary one;
 * - what is read from /proc/self/mem goes into a block that is left out of the search;
 * - of the secret only its caller's own copy exists (`own`), and bytes are compared one by one.
 */
#ifndef MEMORY_H
#define MEMORY_H

#include <stddef.h>

#define PIECE 8

/* Runs `function` on a stack that was cleared before, and then writes the registers out to it. */
void on_own_stack(void (*function)(void));

/*
 * All registers are written to the stack: by the kernel, to which a signal is sent.  The dynamic
 * linker does the like at the first call of a function, so what is in a register is in memory.
 */
void spill_registers(void);

/* A range that may hold the secret: the caller's own copy, or one that a library has to have. */
void leave_out(const void *start, size_t size);
void leave_nothing_out(void);

/* In how many places of PIECE bytes it is, besides the ranges left out; prints where, if asked. */
size_t copies_of(const unsigned char *secret, size_t size, int report);

#endif
