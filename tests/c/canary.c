/* Faults on purpose, one for each name: run.py sees with them that a tool is awake. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile int one = 1;

int main(int count, char **words) {
    const char *fault = count > 1 ? words[1] : "";
    char *block = malloc(16);
    if (block == NULL) {
        return 0;
    }
    memset(block, 0, 16);
    if (strcmp(fault, "beyond the end") == 0) {
        ((volatile char *)block)[15 + one] = 1;
    } else if (strcmp(fault, "leak") == 0) {
        block = NULL;
    } else if (strcmp(fault, "overflow") == 0) {
        one = INT_MAX - one + 1 + one;
    } else if (strcmp(fault, "uninitialised") == 0) {
        volatile char never[8];
        if (never[one] > 3) {
            puts("more");
        }
    }
    free(block);
    return 0;
}
