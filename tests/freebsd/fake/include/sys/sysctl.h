/* The C library here may have no such header; calls.h declares what it would. */
