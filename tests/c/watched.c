/* The functions of the C library of replaced.h that are not system calls: see watched.h. */
#define TEST_REPLACES
#include "replaced.h"

#include <string.h>

#include "watched.h"

int opens, closes, open_mode, lookups, fail_lookup = -1;
const char *failed_name;

void *test_dlopen(const char *path, int mode) {
    void *handle = dlopen(path, mode);
    opens += handle != NULL;
    open_mode = mode;
    return handle;
}

int test_dlclose(void *handle) {
    closes++;
    return dlclose(handle);
}

void *test_dlsym(void *handle, const char *name) {
    if (lookups++ == fail_lookup) {
        failed_name = name;
        return NULL;
    }
    return dlsym(handle, name);
}

int no_memory, allocated, freed, freed_dirty;

#define BLOCKS 64
static struct {
    void *memory;
    size_t size;
} blocks[BLOCKS];

static void *watch(void *memory, size_t size) {
    for (size_t i = 0; memory != NULL && i < BLOCKS; i++) {
        if (blocks[i].memory == NULL) {
            blocks[i].memory = memory;
            blocks[i].size = size;
            break;
        }
    }
    allocated++;
    return memory;
}

void *test_calloc(size_t count, size_t size) {
    return no_memory ? NULL : watch(calloc(count, size), count * size);
}

void *test_malloc(size_t size) {
    void *memory = no_memory ? NULL : malloc(size);
    if (memory == NULL) {
        return NULL;
    }
    memset(memory, 0xee, size); /* as one that was used before */
    return watch(memory, size);
}

static int is_wiped(const unsigned char *memory, size_t size) {
    while (size > 0 && *memory == 0) {
        memory++;
        size--;
    }
    return size == 0;
}

void test_free(void *memory) {
    freed += memory != NULL;
    for (size_t i = 0; memory != NULL && i < BLOCKS; i++) {
        if (blocks[i].memory == memory) {
            freed_dirty += !is_wiped(memory, blocks[i].size);
            blocks[i].memory = NULL;
        }
    }
    free(memory);
}
