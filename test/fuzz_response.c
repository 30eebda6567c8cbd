/* SPDX-License-Identifier: MIT
 *
 * test/fuzz_response.c: any bytes as what a webhook's server sends. Read in one piece and in
 * random pieces the result must be the same.
 */

#include "fuzz.h"

/* A call whose other end is a list of bytes instead of a socket. */
struct player {
    struct peer peer; /* first, so that conn->peer leads here */
    struct http http;
    struct config config;
    struct webhook_config webhook;
    struct call call;
    struct slice stream;
    size_t at;
    uint32_t random; /* 0: as much as is asked for */
};

static int
player_read(struct conn *conn, void *data, size_t len)
{
    struct player *p = (struct player *)(void *)conn->peer;
    size_t n = p->stream.len - p->at, most = len;

    if (p->random) {
        p->random = p->random * 1664525u + 1013904223u;
        most = 1 + (p->random >> 20) % 64;
        most = most < len ? most : len;
    }
    n = n < most ? n : most;
    memcpy(data, p->stream.data + p->at, n);
    p->at += n;
    return (int)n;
}

/* Checks what the program reads out of the first head, which may be all of the input. */
static void
check_head(struct slice stream)
{
    struct http_head h;
    struct err e;

    stream.len = http_head_len(stream);
    if (stream.len == 0 || http_parse_head(stream, &h, &e) != 0)
        return;
    require(h.status >= 100 && h.status <= 999, "status", "out of range");
    require(!h.keep || h.chunked || h.length != -1, "kept", "although it has no length");
    int64_t after = http_read_retry_after(h.retry_after, 784111777);
    require(after >= -1 && after <= RETRY_AFTER_MAX_S, "Retry-After", "out of range");
}

/*
 * Reads an answer as a call does, and says what came out; random: see struct player. A redirect
 * that would be followed counts as such: there is nobody to connect to.
 */
static void
play(struct slice stream, uint32_t random, struct buf *out)
{
    struct player p = {.stream = stream, .random = random, .config = {.timeout_s = 10}};
    struct call *call = &p.call;

    p.webhook.method = METHOD_PUT;
    require(
        url_parse(slice_of("https://h/a/b"), NULL, &p.webhook.url) == NULL, "URL", "is not read");
    p.peer = (struct peer){.http = &p.http, .webhook = &p.webhook};
    p.http.config = &p.config;
    call->conn = (struct conn){
        .peer = &p.peer, .sock = INT_MAX, .read = player_read, .to_origin = true};
    call->url = &p.webhook.url;
    call->res.end = HTTP_BROKEN;
    call_enter(call, CALL_RECEIVE, call->deadline_ms = INT64_MAX);
    if (call_receive(call, 0) == CALL_FAILED) {
        char *shown = strstr(call->res.reason.text, "it starts with"); /* with as much as came */
        if (shown)
            *shown = '\0';
        buf_format(out, "no answer: %s", call->res.reason.text);
    } else {
        bool followed = call->state == CALL_RESOLVE;
        if (call->state == CALL_BODY)
            call_read_body(call, BODY_MS);
        require(followed || call->state == CALL_CLOSED || call->state == CALL_IDLE, "state",
            "neither over nor at rest");
        require(!strpbrk(call->url->target, "\r\n \t"), "Location", call->url->target);
        /* bytes behind the answer may have come with it, or wait: closed now, or before a call */
        buf_format(out, "%d keep %d chunked %d, %s%s, %s", call->res.status, call->head.keep,
            call->head.chunked, call->res.reason.text, followed ? "followed" : "",
            call->state == CALL_IDLE && p.at == stream.len ? "kept" : "closed");
    }
    conn_close(&call->conn);
    url_done(&call->moved);
    url_done(&p.webhook.url);
}

static void
fuzz(struct slice stream)
{
    struct buf whole = {0}, pieces = {0};
    uint32_t hash = 2166136261u;

    if (stream.len > 60000) /* beyond, bounds end the reading, and where depends on the pieces */
        return;
    for (size_t i = 0; i < stream.len; i++)
        hash = (hash ^ (uint8_t)stream.data[i]) * 16777619u;
    check_head(stream);
    play(stream, 0, &whole);
    play(stream, hash | 1, &pieces);
    require(strcmp(whole.data, pieces.data) == 0, whole.data, pieces.data);
    buf_free(&whole);
    buf_free(&pieces);
}
