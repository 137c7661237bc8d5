#include "memory.h"

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define STACK_SIZE ((size_t)128 << 10)
#define WINDOW ((size_t)1 << 20)
#define REGIONS 256
#define LEFT_OUT 16

struct range {
    uintptr_t start, end;
};

static struct range left_out[LEFT_OUT];
static size_t left_out_count;

static void die(const char *what) {
    perror(what);
    exit(3);
}

static unsigned char *block(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        die("mmap");
    }
    return memory;
}

/* ---- the subject's stack --------------------------------------------------------------------- */

static ucontext_t here, there;
static void (*subject)(void);

static void on_signal(int number) {
    (void)number;
}

void spill_registers(void) {
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1);
}

/* The gap is for what the signal writes: it must not cover what the subject left behind. */
static void run_deeper(void) {
    static volatile size_t somewhere; /* or the compiler would make do with less than the whole */
    volatile unsigned char gap[STACK_SIZE / 4];
    gap[somewhere] = 0;
    subject();
    (void)gap[somewhere];
}

static void run_subject(void) {
    run_deeper();
    spill_registers();
}

void on_own_stack(void (*function)(void)) {
    static unsigned char *stack;
    if (stack == NULL) {
        stack = block(STACK_SIZE);
        signal(SIGUSR1, on_signal);
        spill_registers(); /* so that the calls it makes are bound, and touch no register later */
    }
    subject = function;
    memset(stack, 0, STACK_SIZE);
    if (getcontext(&there) != 0) {
        die("getcontext");
    }
    there.uc_stack.ss_sp = stack;
    there.uc_stack.ss_size = STACK_SIZE;
    there.uc_link = &here;
    makecontext(&there, run_subject, 0);
    if (swapcontext(&here, &there) != 0) {
        die("swapcontext");
    }
}

/* ---- the search ------------------------------------------------------------------------------ */

void leave_out(const void *start, size_t size) {
    if (left_out_count == LEFT_OUT) {
        die("leave_out");
    }
    left_out[left_out_count].start = (uintptr_t)start;
    left_out[left_out_count++].end = (uintptr_t)start + size;
}

void leave_nothing_out(void) {
    left_out_count = 0;
}

static int is_left_out(uintptr_t address) {
    for (size_t i = 0; i < left_out_count; i++) {
        if (address < left_out[i].end && address + PIECE > left_out[i].start) {
            return 1;
        }
    }
    return 0;
}

/* All that can be written and read, but for our own window. */
static size_t regions(struct range *out, char (*names)[64], const unsigned char *window) {
    char line[512];
    size_t count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    if (maps == NULL) {
        die("/proc/self/maps");
    }
    while (fgets(line, sizeof(line), maps) != NULL) {
        unsigned long start, end;
        char rights[5], name[64] = "";
        if (sscanf(line, "%lx-%lx %4s %*s %*s %*s %63s", &start, &end, rights, name) < 3 ||
            rights[0] != 'r' || rights[1] != 'w') {
            continue;
        }
        /* Two blocks side by side are one region. */
        uintptr_t hole = (uintptr_t)window;
        struct range parts[2] = {{start, end}, {0, 0}};
        if (hole >= start && hole < end) {
            parts[0].end = hole;
            parts[1].start = hole + WINDOW;
            parts[1].end = end;
        }
        for (int i = 0; i < 2; i++) {
            if (parts[i].start >= parts[i].end) {
                continue;
            }
            if (count == REGIONS) {
                die("too many regions");
            }
            memcpy(names[count], name, sizeof(name));
            out[count++] = parts[i];
        }
    }
    fclose(maps);
    return count;
}

/* Byte by byte and volatile, so that no register ever holds a piece. */
static int same(const unsigned char *memory, const unsigned char *secret) {
    const volatile unsigned char *a = memory, *b = secret;
    for (int i = 0; i < PIECE; i++) {
        if (a[i] != b[i]) {
            return 0;
        }
    }
    return 1;
}

static int is_piece(const unsigned char *memory, const unsigned char *secret, size_t size) {
    for (size_t i = 0; i + PIECE <= size; i++) {
        if (same(memory, secret + i)) {
            return 1;
        }
    }
    return 0;
}

size_t copies_of(const unsigned char *secret, size_t size, int report) {
    static struct range all[REGIONS];
    static char names[REGIONS][64];
    static unsigned char *window;
    size_t found = 0, read_in_all = 0;
    unsigned char begins[256] = {0};
    if (window == NULL) {
        window = block(WINDOW);
    }
    for (size_t i = 0; i + PIECE <= size; i++) {
        begins[secret[i]] = 1;
    }
    int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    if (memory < 0) {
        die("/proc/self/mem");
    }
    size_t count = regions(all, names, window);
    for (size_t r = 0; r < count; r++) {
        /* The next window begins PIECE - 1 bytes before this one's end. */
        for (uintptr_t at = all[r].start; at + PIECE <= all[r].end;) {
            size_t wanted = all[r].end - at < WINDOW ? all[r].end - at : WINDOW;
            ssize_t got = pread(memory, window, wanted, (off_t)at);
            if (got < PIECE) {
                die("cannot read all of /proc/self/mem");
            }
            read_in_all += (size_t)got;
            for (size_t i = 0; i + PIECE <= (size_t)got; i++) {
                if (begins[window[i]] && is_piece(window + i, secret, size) &&
                    !is_left_out(at + i)) {
                    found++;
                    if (report && found <= 4) {
                        printf("    a piece at %#lx, in %s\n", (unsigned long)(at + i), names[r]);
                    }
                }
            }
            at += (size_t)got - (PIECE - 1);
        }
    }
    close(memory);
    if (read_in_all < STACK_SIZE) {
        die("read too little");
    }
    memset(window, 0, WINDOW);
    return found;
}
