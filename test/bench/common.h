/*
 * What all the benchmark tools share: a clock, numbers from the command line,
 * a way to give up, and the promise to end when the runner does.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS 1000000
#define NS_PER_S 1000000000

/* The one clock of a run: the blaster writes it into datagrams, the sink compares. */
static inline int64_t
now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

/* Ends the tool with exit code 2; the text of errno follows the message if it is set. */
__attribute__((noreturn, format(printf, 1, 2))) static inline void
die(const char *format, ...)
{
    int saved = errno;
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    if (saved != 0)
        fprintf(stderr, ": %s", strerror(saved));
    fputc('\n', stderr);
    exit(2);
}

/* Memory filled with zeros, or the end. */
static inline void *
new_array(size_t count, size_t size)
{
    void *p = calloc(count, size);

    if (p == NULL)
        die("out of memory (%zu times %zu bytes)", count, size);
    return p;
}

/* A whole number of 0 or more; anything else ends the tool. */
static inline long
parse_number(const char *text)
{
    char *end;
    long value;

    errno = 0;
    value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 0)
        die("'%s' is not a number of 0 or more", text);
    return value;
}

static inline uint16_t
parse_port(const char *text)
{
    long value = parse_number(text);

    if (value < 1 || value > UINT16_MAX)
        die("'%s' is not a port", text);
    return (uint16_t)value;
}

/* A killed runner must not leave its tools behind. */
static inline void
end_with_parent(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

#endif
