/* SPDX-License-Identifier: MIT
 *
 * test/fuzz_url.c: any bytes as a URL; behind a line end, as a reference relative to it. What is
 * read must stand in a request without doing harm, and must be the same when it is read again.
 */

#include "fuzz.h"

/* Checks one URL that was read. */
static void
check_url(const struct url *u)
{
    struct buf full = {0}, host = {0};
    struct url again;
    struct err e;

    require(u->target[0] == '/', "the target has no slash at its start", u->target);
    for (const char *p = u->target; *p; p++)
        require(*p > 0x20 && *p < 0x7f && *p != '#', "the target", u->target);
    require(strspn(u->host, "abcdefghijklmnopqrstuvwxyz0123456789-._:") == strlen(u->host),
        "the host", u->host);
    require(*u->host != '\0' && u->port > 0 && u->port <= 65535, "host or port", u->origin);
    require(!u->auth ||
            strspn(u->auth, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=") ==
                strlen(u->auth),
        "auth", u->auth);
    require(strncmp(u->shown, u->origin, strlen(u->origin)) == 0, "shown", u->shown);
    require(!strchr(u->origin, '@'), "a user is shown", u->shown);
    buf_add_text(&host, strstr(u->origin, "//") + 2);
    require(strlen(host.data) == host.len && host.len > 0, "Host", u->origin);

    buf_format(&full, "%s%s", u->origin, u->target);
    if (full.len <= URL_MAX) {
        require(url_parse((struct slice){full.data, full.len}, NULL, &again, &e) == 0,
            "not read again", full.data);
        require(strcmp(again.origin, u->origin) == 0, again.origin, u->origin);
        require(strcmp(again.target, u->target) == 0, again.target, u->target);
        require(strcmp(again.host, u->host) == 0 && again.port == u->port && again.tls == u->tls,
            "host, port", u->origin);
        require(!again.auth, "a user out of nowhere", full.data);
        url_done(&again);
    }
    if (strlen(u->shown) <= URL_MAX) {
        require(url_parse(slice_of(u->shown), NULL, &again, &e) == 0, "what is shown is no URL",
            u->shown);
        require(strcmp(again.origin, u->origin) == 0, "what is shown leads elsewhere", u->shown);
        url_done(&again);
    }
    buf_free(&full);
    buf_free(&host);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct slice text = {(const char *)data, size}, first = text, second = text;
    const char *end = memchr(data, '\n', size);
    struct url base, u;
    struct err e = {""};

    if (end) {
        first.len = (size_t)(end - first.data);
        second = (struct slice){end + 1, size - first.len - 1};
    }
    if (url_parse(first, NULL, &base, &e) != 0) {
        require(!base.host && !base.target && !base.auth && !base.origin && !base.shown,
            "a failure leaves memory", e.text);
        require(url_parse(slice_of("http://user:password@h:8080/a/b/c?d=e"), NULL, &base, &e) == 0,
            "base", e.text);
    } else {
        char list[300];
        check_url(&base);
        snprintf(
            list, sizeof list, "%.*s", (int)(second.len < 250 ? second.len : 250), second.data);
        url_is_excepted(&base, list);
        require(url_is_excepted(&base, "*"), "NO_PROXY *", base.host);
        if (strspn(base.host, ".") == 0)
            require(url_is_excepted(&base, base.host), "NO_PROXY with its own name", base.host);
    }
    if (url_parse(second, &base, &u, &e) == 0) {
        check_url(&u);
        require(
            !u.auth || strcmp(u.origin, base.origin) == 0 || memchr(second.data, '@', second.len),
            "a user goes along to another origin", u.origin);
        url_done(&u);
    }
    url_done(&base);
    return 0;
}
