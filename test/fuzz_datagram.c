/* SPDX-License-Identifier: MIT
 *
 * test/fuzz_datagram.c: any bytes as a datagram. What comes out of one that is ours must be JSON
 * and a query string that hold its very fields; what is told of any other must be fit for a log.
 */

#include "fuzz.h"

/* The body is an object of the eleven fields, in order, to cJSON and to us. */
static void
check_json(const struct alert *alert)
{
    struct buf json = {0};
    struct alert back = {0};
    int i = 0;

    alert_add_json(alert, &json);
    require(utf8_is_valid(json.data, json.len), "the body is not UTF-8", "");
    for (size_t k = 0; k < json.len; k++)
        require((unsigned char)json.data[k] >= 0x20, "a control character in the body", "");
    cJSON *body = cJSON_ParseWithLengthOpts(json.data, json.len + 1, NULL, true);
    require(cJSON_IsObject(body), "the body is no object", json.data);
    for (const cJSON *field = body->child; field; field = field->next, i++) {
        require(i < ALERT_FIELDS && strcmp(field->string, FIELD_NAMES[i]) == 0, "a wrong name",
            field->string);
        require(cJSON_IsString(field) && strcmp(field->valuestring, alert->field[i]) == 0,
            "a value that is not the field", field->string);
    }
    require(i == ALERT_FIELDS, "a field is missing", json.data);
    cJSON_Delete(body);
    require(alert_read_json((struct slice){json.data, json.len}, &back) == 0, "not read back", "");
    for (i = 0; i < ALERT_FIELDS; i++)
        require(strcmp(back.field[i], alert->field[i]) == 0, "a field that is not read back", "");
    alert_done(&back);
    buf_free(&json);
}

/* The query holds the fields, in order; cut to max, only the message's end is missing. */
static void
check_query(const struct alert *alert, size_t max)
{
    struct buf target = {0}, text = {0};
    const char *p;

    buf_add_text(&target, "/x?a=b");
    alert_add_query(alert, &target, max);
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
        buf_add(&text, "", 0);
        for (size_t k = 0; k < len; k++) {
            uint8_t c = (uint8_t)p[k];
            if (c == '%' && hex_read((struct slice){p + k + 1, len - k - 1}, &c, 1) == 0)
                k += 2;
            buf_add_char(&text, c);
        }
        size_t want = strlen(alert->field[i]);
        if (i == FIELD_MESSAGE && max && text.len < want) {
            require(target.len <= max || text.len == 0, "not cut enough", "");
            require(target.len + 12 > max || text.len == 0, "cut too much", "");
            want = text.len;
        }
        require(text.len == want && memcmp(text.data, alert->field[i], want) == 0,
            "a value that is not the field", "");
        require(utf8_is_valid(text.data, text.len), "a character is cut", "");
        p += len;
    }
    require(*p == '\0', "more behind the last field", "");
    buf_free(&target);
    buf_free(&text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct alert alert; /* one for all, as in the program */
    struct slice datagram = {(const char *)data, size};
    struct log_text shown = log_text(datagram);
    char about[ALERT_ABOUT_LEN];
    uint8_t app[16];
    struct err e = {""};

    cJSON_InitHooks(&(cJSON_Hooks){x_malloc, free});
    require(strlen(shown.text) <= LOG_NAME_MAX + 3, "a text for the log is too long", "");
    for (const char *p = shown.text; *p; p++)
        require((unsigned char)*p >= 0x20 && *p != 0x7f,
            "a control character in a text for the log", "");
    if (alert_parse(datagram, &alert, &e) != LISTEN_ACCEPTED) {
        for (const char *p = e.text; *p; p++)
            require((unsigned char)*p >= 0x20 && *p != 0x7f, "a control character in an error", "");
        return 0;
    }
    for (int i = 0; i < ALERT_FIELDS; i++)
        require(utf8_is_valid(alert.field[i], strlen(alert.field[i])), "a field is not UTF-8", "");
    require(*alert.field[FIELD_APP_ID] && alert_read_id(slice_of(alert.field[FIELD_APP_ID]), app),
        "an alert without app", "");
    alert_about(&alert, datagram, about);
    require(strspn(about, "0123456789abcdef") == 32 && strlen(about) == 34, "about", about);
    check_json(&alert);
    check_query(&alert, 0);
    check_query(&alert, GET_TARGET_MAX);
    return 0;
}
