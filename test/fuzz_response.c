/* SPDX-License-Identifier: MIT
 *
 * test/fuzz_response.c: any bytes as what a webhook's server sends. Read in one piece and in
 * random pieces the result must be the same.
 */

#include "fuzz.h"

/* A client whose other end is a list of bytes instead of a socket. */
struct player {
    struct http_client client; /* first, so that conn->client leads here */
    struct slice stream;
    size_t at;
    uint32_t random; /* 0: as much as is asked for */
};

static int
player_read(struct conn *conn, void *data, size_t len)
{
    struct player *p = (struct player *)(void *)conn->client;
    size_t n = p->stream.len - p->at;

    if (n > len)
        n = len;
    if (p->random && n > 0) {
        p->random = p->random * 1664525u + 1013904223u;
        size_t most = 1 + (p->random >> 20) % 64;
        n = n < most ? n : most;
    }
    if (n > 0)
        memcpy(data, p->stream.data + p->at, n);
    p->at += n;
    return (int)n;
}

/* What the program reads out of the headers, checked. */
static void
check_head(const struct http_head *h)
{
    struct url base, to;
    struct err e;

    require(h->status >= 200 && h->status <= 999, "status", "out of range");
    require(!h->framing || !h->keep || h->body.kind == BODY_NONE, "kept",
        "although its length is not known");
    if (h->retry_after.data) {
        int64_t after = http_read_retry_after(h->retry_after, 784111777);
        require(after >= -1 && after <= RETRY_AFTER_MAX_S, "Retry-After", "out of range");
    }
    if (!h->location.data || url_parse(slice_of("https://h/a/b"), NULL, &base, &e) != 0)
        return;
    if (url_parse(h->location, &base, &to, &e) == 0) {
        require(strspn(to.target, "\r\n \t") == 0 && !strpbrk(to.target, "\r\n \t"), "Location",
            to.target);
        url_done(&to);
    }
    url_done(&base);
}

/* Reads an answer as a call does, and says what came out, and where the reader stopped. */
static void
play(struct slice stream, uint32_t random, struct buf *out)
{
    struct player p = {.stream = stream, .random = random};
    struct conn *conn = &p.client.conn;
    bool began = false;
    struct err e = {""};

    http_client_init(&p.client, NULL);
    conn->sock = INT_MAX; /* no such file */
    conn->read = player_read;
    p.client.deadline_ms = INT64_MAX;
    if (http_read_head(conn, &p.client.head, &began, &e) != 0) {
        char *shown = strstr(e.text, "it starts with"); /* with as much as had come */
        if (shown)
            *shown = '\0';
        buf_format(out, "no answer: %s; began %d", e.text, began);
    } else {
        const struct http_head *h = &p.client.head;
        check_head(h);
        buf_format(out, "%d keep %d kind %d locations %d: ", h->status, h->keep, (int)h->body.kind,
            h->locations);
        int drained = http_drain(&p.client, &e);
        buf_format(out, "%s, ", drained != 0 ? e.text : "whole");
        /* bytes behind the answer may have come with it, or wait: closed now, or before a call */
        buf_add_text(out, conn->sock >= 0 && p.at == stream.len ? "kept" : "closed");
    }
    http_client_done(&p.client);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf whole = {0}, pieces = {0};
    uint32_t hash = 2166136261u;

    if (size > 60000) /* beyond, bounds end the reading, and where depends on the pieces */
        return 0;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ data[i]) * 16777619u;
    struct slice stream = {(const char *)data, size};
    play(stream, 0, &whole);
    play(stream, hash | 1, &pieces);
    require(strcmp(whole.data, pieces.data) == 0, whole.data, pieces.data);
    buf_free(&whole);
    buf_free(&pieces);
    return 0;
}
