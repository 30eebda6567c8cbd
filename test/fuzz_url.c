/* SPDX-License-Identifier: MIT
 *
 * test/fuzz_url.c: any bytes as a URL; behind a line end, as a reference relative to it. What is
 * read must stand in a request without doing harm, and must be the same when it is read again.
 */

#include "fuzz.h"

#define LETTERS "abcdefghijklmnopqrstuvwxyz"
#define CAPITALS "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define DIGITS "0123456789"

/* What is said of u, if it is not too long, is a URL that leads to the same origin, and target. */
static void
check_again(const char *text, const struct url *u, const char *target)
{
    struct url again;

    if (strlen(text) > URL_MAX)
        return;
    require(url_parse(slice_of(text), NULL, &again) == NULL, "not read again", text);
    require(strcmp(again.origin, u->origin) == 0 && strcmp(again.host, u->host) == 0 &&
            again.port == u->port && again.tls == u->tls,
        "it leads elsewhere when it is read again", text);
    require(!target || strcmp(again.target, target) == 0, again.target, text);
    require(!again.auth, "a user out of nowhere", text);
    url_done(&again);
}

/* Checks one URL that was read. */
static void
check_url(const struct url *u)
{
    struct buf full = {0};

    require(u->target[0] == '/', "the target has no slash at its start", u->target);
    for (const char *p = u->target; *p; p++)
        require(*p > 0x20 && *p < 0x7f && *p != '#', "the target", u->target);
    require(*u->host && strspn(u->host, LETTERS DIGITS "-._:") == strlen(u->host), "host", u->host);
    require(u->port > 0 && u->port <= 65535, "port", u->origin);
    if (u->auth)
        require(strncmp(u->auth, "Basic ", 6) == 0 &&
                strspn(u->auth + 6, CAPITALS LETTERS DIGITS "+/=") == strlen(u->auth + 6),
            "auth", u->auth);
    require(strncmp(u->shown, u->origin, strlen(u->origin)) == 0, "shown", u->shown);
    require(!strchr(u->origin, '@'), "a user is shown", u->shown);
    buf_add_texts(&full, u->origin, u->target, NULL);
    check_again(full.data, u, u->target);
    check_again(u->shown, u, NULL);
    buf_free(&full);
}

static void
fuzz(struct slice input)
{
    struct slice second = input, first = slice_take(&second, '\n');
    struct url base, u;

    if (first.len == input.len)
        second = first;
    if (url_parse(first, NULL, &base) != NULL) {
        require(!base.host && !base.target && !base.auth && !base.origin && !base.shown,
            "a failure leaves memory", "of a URL");
        require(url_parse(slice_of("http://user:password@h:8080/a/b/c?d=e"), NULL, &base) == NULL,
            "base", "is not read");
    } else {
        char list[251];
        check_url(&base);
        snprintf(list, sizeof list, "%.*s", (int)second.len, second.data);
        url_is_excepted(&base, list);
        require(url_is_excepted(&base, "*"), "NO_PROXY *", base.host);
        if (*base.host != '.')
            require(url_is_excepted(&base, base.host), "NO_PROXY with its own name", base.host);
    }
    if (url_parse(second, &base, &u) == NULL) {
        check_url(&u);
        require(
            !u.auth || strcmp(u.origin, base.origin) == 0 || memchr(second.data, '@', second.len),
            "a user goes along to another origin", u.origin);
        url_done(&u);
    }
    url_done(&base);
}
