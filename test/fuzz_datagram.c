/* SPDX-License-Identifier: MIT
 *
 * test/fuzz_datagram.c: any bytes as a datagram. What comes out of one that is ours must be JSON
 * and a query string that hold its very fields; what is told of any other must be fit for a log.
 */

#include "fuzz.h"

/* Four hexadecimal digits. */
static uint32_t
read_hex4(const char *p)
{
    uint32_t c = 0;

    for (int i = 0; i < 4; i++) {
        require(hex_value(p[i]) >= 0, "\\u without four digits", "");
        c = c << 4 | (uint32_t)hex_value(p[i]);
    }
    return c;
}

/* Reads one JSON string (RFC 8259) at *p, which moves behind it. */
static void
read_string(const char **p, struct buf *out)
{
    static const char escapes[] = "\"\\/bfnrt", plain[] = "\"\\/\b\f\n\r\t";

    require(*(*p)++ == '"', "a string must start with a quote", "");
    while (**p != '"') {
        unsigned char c = (unsigned char)*(*p)++;
        require(c >= 0x20, "a control character in a string", "");
        if (c != '\\') {
            buf_add_char(out, c);
            continue;
        }
        const char *at = **p ? strchr(escapes, **p) : NULL;
        if (at)
            buf_add_char(out, plain[at - escapes]);
        else {
            require(**p == 'u', "an unknown escape", "");
            utf8_add(out, read_hex4(*p + 1));
            *p += 4;
        }
        ++*p;
    }
    ++*p;
}

static bool
holds(const struct buf *b, struct slice s)
{
    return b->len == s.len && (s.len == 0 || memcmp(b->data, s.data, s.len) == 0);
}

/* The body is an object of the eleven fields, in order. */
static void
check_json(const struct alert *alert)
{
    struct buf json = {0}, text = {0};
    const char *p;

    alert_add_json(alert, &json);
    require(utf8_is_valid(json.data, json.len), "the body is not UTF-8", "");
    require(strlen(json.data) == json.len, "a NUL in the body", "");
    p = json.data;
    for (int i = 0; i < ALERT_FIELDS; i++) {
        require(*p++ == (i ? ',' : '{'), "no brace or comma", "");
        text.len = 0;
        read_string(&p, &text);
        require(holds(&text, slice_of(FIELD_NAMES[i])), "a wrong name", "");
        require(*p++ == ':', "no colon", "");
        text.len = 0;
        read_string(&p, &text);
        require(holds(&text, alert->field[i]), "a value that is not the field", "");
    }
    require(strcmp(p, "}") == 0, "no closing brace, or more behind it", "");
    buf_free(&json);
    buf_free(&text);
}

/* The query holds the fields, in order; cut to max, only the message's end is missing. */
static void
check_query(const struct alert *alert, size_t max)
{
    struct buf target = {0}, text = {0};
    const char *p;

    buf_add_text(&target, "/x?a=b");
    alert_add_query(alert, &target, false, max);
    buf_add(&target, "", 0); /* ends it where it was cut */
    require(strspn(target.data,
                "/?&=%+*-._ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") ==
            target.len,
        "a character that may not stand in a query", "");
    p = target.data + 6;
    for (int i = 0; i < ALERT_FIELDS; i++) {
        size_t name = strlen(FIELD_NAMES[i]), len;
        require(*p++ == '&', "no &", "");
        require(strncmp(p, FIELD_NAMES[i], name) == 0 && p[name] == '=', "a wrong name", "");
        p += name + 1;
        len = strcspn(p, "&");
        for (char *plus = target.data + (p - target.data); plus < p + len; plus++)
            if (*plus == '+')
                *plus = ' ';
        text.len = 0;
        percent_decode(&text, (struct slice){p, len});
        struct slice want = alert->field[i];
        if (i == FIELD_MESSAGE && max && text.len < want.len) {
            require(target.len <= max || text.len == 0, "not cut enough", "");
            require(target.len + 24 > max || text.len == 0, "cut too much", "");
            want.len = text.len;
        }
        require(holds(&text, want), "a value that is not the field", "");
        require(utf8_is_valid(text.data ? text.data : "", text.len), "a character is cut", "");
        p += len;
    }
    require(*p == '\0', "more behind the last field", "");
    buf_free(&target);
    buf_free(&text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct slice datagram = {(const char *)data, size};
    struct alert *alert = NULL;
    struct err e = {""};
    struct log_text shown = log_text(datagram);

    require(strlen(shown.text) <= LOG_NAME_MAX + 3, "a text for the log is too long", "");
    for (const char *p = shown.text; *p; p++)
        require((unsigned char)*p >= 0x20 && *p != 0x7f,
            "a control character in a text for the log", "");
    if (alert_parse(datagram, &alert, &e) != ALERT_OURS) {
        require(!alert, "an alert that is not ours", "");
        for (const char *p = e.text; *p; p++)
            require((unsigned char)*p >= 0x20 && *p != 0x7f, "a control character in an error", "");
        return 0;
    }
    for (int i = 0; i < ALERT_FIELDS; i++)
        require(
            utf8_is_valid(alert->field[i].data, alert->field[i].len), "a field is not UTF-8", "");
    require(alert_guid(alert->field[FIELD_APP_ID]).len == 36, "an alert without app", "");
    require(alert_is_level(alert->field[FIELD_LEVEL]), "an alert without level", "");
    check_json(alert);
    check_query(alert, 0);
    check_query(alert, GET_TARGET_MAX);
    alert_free(alert);
    return 0;
}
