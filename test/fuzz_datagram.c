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

    alert_add_json(alert, false, &json);
    for (size_t k = 0; k < json.len; k++)
        require((unsigned char)json.data[k] >= 0x20, "a control character in the body", json.data);
    /* this asks for UTF-8, and that nothing stands behind it */
    cJSON *object = json_read(slice_of(json.data));
    require(alert_read_json(object, &back) == 0, "not read back", json.data);
    for (const cJSON *field = object->child; field; field = field->next, i++) {
        const char *name = i < ALERT_FIELDS ? FIELD_NAMES[i] : "";
        require(strcmp(field->string, name) == 0, "a wrong name", field->string);
        require(cJSON_IsString(field) && strcmp(field->valuestring, alert->field[i]) == 0 &&
                strcmp(back.field[i], alert->field[i]) == 0,
            "a value that is not the field", name);
    }
    require(cJSON_IsObject(object) && i == ALERT_FIELDS, "a field is missing", json.data);
    cJSON_Delete(object);
    buf_free(&json);
}

/* The query holds the fields, in order; cut to max, only the message's end is missing. */
static void
check_query(const struct alert *alert, size_t max)
{
    struct buf target = {0}, want = {0}, got = {0}, text = {0};
    struct slice values[TEMPLATE_FIELDS];
    struct template_piece *query;

    for (int i = 0; i < ALERT_FIELDS; i++) {
        buf_format(&text, "&%s={{%s}}", FIELD_NAMES[i], FIELD_NAMES[i]);
        values[i] = slice_of(alert->field[i]);
    }
    query = template_read(text.data);
    buf_add_text(&target, "/x?a=b");
    template_add(&target, TEMPLATE_QUERY, query, values);
    if (max > 0)
        template_cut_query(&target, max);
    free(query);
    buf_free(&text);
    require(strspn(target.data,
                "/?&=%+*-._ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") ==
            target.len,
        "a character that may not stand in a query", target.data);
    /* Decoded, with a NUL, which is in no field, for each & and = */
    for (int i = 0; i < ALERT_FIELDS; i++) {
        buf_add(&want, "", 1);
        buf_add(&want, FIELD_NAMES[i], strlen(FIELD_NAMES[i]) + 1);
        buf_add_text(&want, alert->field[i]);
    }
    for (const char *p = target.data + 6, *end = target.data + target.len; p < end; p++) {
        uint8_t c = *p == '&' || *p == '=' ? '\0' : *p == '+' ? ' ' : (uint8_t)*p;
        if (c == '%' && hex_read((struct slice){p + 1, (size_t)(end - p) - 1}, &c, 1) == 0)
            p += 2;
        buf_add_char(&got, c);
    }
    size_t message = strlen(alert->field[FIELD_MESSAGE]), missing = want.len - got.len;
    require(got.len <= want.len && memcmp(got.data, want.data, got.len) == 0,
        "a value that is not the field", target.data);
    require(missing <= (max ? message : 0), "a field is missing", target.data);
    if (missing > 0 && missing < message)
        require(
            target.len <= max && target.len + 12 > max, "cut too much or not enough", target.data);
    require(utf8_is_valid(got.data, got.len), "a character is cut", target.data);
    buf_free(&target);
    buf_free(&want);
    buf_free(&got);
}

static void
fuzz(struct slice datagram)
{
    static struct alert alert; /* one for all, as in the program */
    struct log_text shown = log_text(datagram);
    char about[ALERT_ABOUT_LEN];
    uint8_t app[16];
    struct err e = {""};

    cJSON_InitHooks(&(cJSON_Hooks){x_malloc, free});
    require(strlen(shown.text) <= LOG_NAME_MAX + 3, "a text for the log is too long", shown.text);
    require_plain(shown.text, 0, "a text for the log");
    if (alert_parse(datagram, &alert, &e) != LISTEN_ACCEPTED) {
        require_plain(e.text, 0, "an error");
        return;
    }
    for (int i = 0; i < ALERT_FIELDS; i++)
        require(utf8_is_valid(alert.field[i], strlen(alert.field[i])), "not UTF-8", FIELD_NAMES[i]);
    require(*alert.field[FIELD_APP_ID] && alert_read_id(slice_of(alert.field[FIELD_APP_ID]), app),
        "an alert without app", alert.field[FIELD_APP_ID]);
    alert_about(&alert, datagram, about);
    require(strspn(about, "0123456789abcdef") == 32 && strlen(about) == 34, "about", about);
    check_json(&alert);
    check_query(&alert, 0);
    check_query(&alert, GET_TARGET_MAX);
}
