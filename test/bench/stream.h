/*
 * A TCP connection with or without TLS, as sink and floor need it. The socket
 * is non-blocking; requests and answers are so small that a healthy peer always
 * has room for them, so a write that would wait counts as a failure.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef BENCH_STREAM_H
#define BENCH_STREAM_H

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "common.h"

struct stream {
    int fd;
    SSL *ssl; /* NULL = plain */
};

/* How many bytes came; 0 = none for now; -1 = closed or broken. */
static inline ssize_t
stream_read(struct stream *s, void *into, size_t room)
{
    ssize_t n;

    if (s->ssl == NULL) {
        n = recv(s->fd, into, room, 0);
        if (n > 0)
            return n;
        return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    }
    ERR_clear_error();
    n = SSL_read(s->ssl, into, (int)room);
    if (n > 0)
        return n;
    return SSL_get_error(s->ssl, (int)n) == SSL_ERROR_WANT_READ ? 0 : -1;
}

/* 0 = all of it is on its way; -1 = it is not. */
static inline int
stream_write(struct stream *s, const void *bytes, size_t len)
{
    ssize_t n;

    if (s->ssl == NULL) {
        n = send(s->fd, bytes, len, MSG_NOSIGNAL);
    } else {
        ERR_clear_error();
        n = SSL_write(s->ssl, bytes, (int)len);
    }
    return n == (ssize_t)len ? 0 : -1;
}

#endif
