/* SPDX-License-Identifier: MIT
 *
 * test/fuzz_config.c: any bytes as a configuration. Whatever it holds, problems come in the order
 * of the file, and one without errors can be used. Paths in it start at test/data/config.
 */

#include "fuzz.h"
#include "done.h"

/* Each problem has a place; as text they are lines. */
static void
check_problems(const struct cfg_reader *r)
{
    struct buf text = {0};
    int errors = 0, warnings = 0;

    for (const struct problem *p = r->problems, *q; p; p = q) {
        q = p->next;
        require(p->line >= 1 && p->column >= 1, "a problem without a place", p->text);
        require(*p->text != '\0', "a problem without a text", "");
        require(!q || p->line < q->line || (p->line == q->line && p->column <= q->column),
            "problems are not in order", p->text);
        errors += p->is_error;
        warnings += !p->is_error;
    }
    require(errors == r->errors && warnings == r->warnings, "problems are not counted", "");
    buf_add_text(&text, "");
    cfg_add_problems(&text, r);
    require_plain(text.data, errors + warnings, "problems");
    buf_free(&text);
}

/* A template with any fields makes valid JSON, or a query, of bounded size. */
static void
check_template(const struct webhook_config *w)
{
    struct slice values[TEMPLATE_FIELDS];
    struct buf b = {0};
    cJSON *value;

    for (int i = 0; i < TEMPLATE_FIELDS; i++)
        values[i] = slice_of(i % 2 ? w->name : "\"\\{{event}}\n\x01\xf0\x9f\x9a\x80&=");
    template_add(&b, w->form, w->template, values);
    require(b.len < UNSENT_MAX, "a template that is too long", w->name);
    value = json_read((struct slice){b.data, b.len});
    require(value || w->form != TEMPLATE_JSON, "a body that is not JSON", b.data);
    require(w->form != TEMPLATE_QUERY || strcspn(b.data, " \r\n#?\"") == b.len, "query", b.data);
    cJSON_Delete(value);
    buf_free(&b);
}

/* What the rest of the program counts on. */
static void
check_config(const struct config *c)
{
    require(c->udp_host && *c->udp_host, "no host to listen on", "");
    require(c->udp_port >= 1 && c->udp_port <= 65535, "port", c->listens_on);
    require(c->max_message_size >= 1 && c->max_message_size <= DATAGRAM_MAX, "maxMessageSize", "");
    require(c->log_level >= LOG_ERROR && c->log_level <= LOG_SILLY, "logLevel", "");
    require(c->dedup_minutes >= 1 && c->udp_rate >= 1, "deduplication or rateLimit", "");
    require(!c->file_logging || c->log_directory, "fileLogging without logDirectory", "");
    for (const struct source *s = c->source; s < c->source + c->sources; s++)
        require(s->bits >= 0 && s->bits <= 128 && (s->name || s->addresses == 1), "a source", "");
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        require(c->rate_limit_s[kind] >= 0, "a kind's rateLimit", KINDS[kind].name);
    for (size_t i = 0; i < c->webhooks; i++) {
        const struct webhook_config *w = &c->webhook[i];
        require(w->method >= METHOD_GET && w->method <= METHOD_PUT, "method", w->name);
        require(w->place < w->listed && (i == 0 || w[-1].kind <= w->kind), "place", w->name);
        require(utf8_is_valid(w->name, strlen(w->name)), "a webhook's name", w->name);
        if (c->disabled_by)
            continue;
        require(w->url.host && w->url.origin && w->url.shown, "a webhook without URL", w->name);
        require(strlen(w->key) == 32, "a webhook without key", w->name);
        if (w->template)
            check_template(w);
        if (w->url.tls && w->reject_unauthorized && w->cert_enable)
            require(w->ca && w->ca_count > 0, "a webhook without CA", w->name);
    }
}

static void
fuzz(struct slice input)
{
    struct config config = {.no_proxy = ""};
    struct cfg_reader r = {.file = "test/data/config/fuzz.yaml", .config = &config};
    char *text;

    if (input.len > CONFIG_MAX)
        return;
    text = x_malloc(input.len + 1); /* no longer: the sanitizer must see what is read behind it */
    memcpy(text, input.data, input.len);
    text[input.len] = '\0';
    cfg_read_text(&r, (struct slice){text, input.len});
    check_problems(&r);
    if (r.errors == 0)
        check_config(&config);
    free(text);
    cfg_done(&r);
}
