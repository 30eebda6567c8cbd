/* SPDX-License-Identifier: MIT
 *
 * test/fuzz_config.c: any bytes as a configuration. Whatever it holds, problems come in the order
 * of the file, and one without errors can be used. Paths in it start at test/data/config.
 */

#include "fuzz.h"
#include "done.h"

/* Each problem has a place; as text they are lines that are fit for a terminal. */
static void
check_problems(const struct cfg_reader *r)
{
    struct buf text = {0};
    int errors = 0, warnings = 0, lines = 0;

    for (const struct problem *p = r->problems; p; p = p->next) {
        require(p->line >= 1 && p->column >= 1, "a problem without a place", p->text);
        require(!p->next || p->line < p->next->line ||
                (p->line == p->next->line && p->column <= p->next->column),
            "problems are not in order", p->text);
        require(*p->text != '\0', "a problem without a text", "");
        errors += p->is_error;
        warnings += !p->is_error;
    }
    require(errors == r->errors && warnings == r->warnings, "problems are not counted", "");
    cfg_add_problems(&text, r);
    require(utf8_is_valid(text.len ? text.data : "", text.len), "not UTF-8", "");
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.data[i];
        require(
            c == '\n' || (c >= 0x20 && c != 0x7f), "a control character in a problem", text.data);
        lines += c == '\n';
    }
    require(lines == errors + warnings, "a problem is not a line", text.len ? text.data : "");
    buf_free(&text);
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
    for (size_t i = 0; i < c->sources; i++)
        require(c->source[i].bits >= 0 && c->source[i].bits <= 128 &&
                (c->source[i].name || c->source[i].addresses == 1),
            "a source", c->source[i].name ? c->source[i].name : "");
    require(c->rate_limit_s[ALERT_FAILURE] >= 0 && c->rate_limit_s[ALERT_ABORTED] >= 0, "rateLimit",
        "");
    for (size_t i = 0; i < c->webhooks; i++) {
        const struct webhook_config *w = &c->webhook[i];
        require(w->method >= METHOD_GET && w->method <= METHOD_PUT, "method", w->name);
        require(w->place < w->listed && (i == 0 || w[-1].kind <= w->kind), "place", w->name);
        require(utf8_is_valid(w->name, strlen(w->name)), "a webhook's name", w->name);
        require(c->disabled_by ||
                (w->url.host && w->url.origin && w->url.shown && strlen(w->key) == 32),
            "a webhook without URL or key", w->name);
        require(c->disabled_by || !w->url.tls || !w->reject_unauthorized || !w->cert_enable ||
                (w->ca && w->ca_count > 0),
            "a webhook without CA", w->name);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config config = {.no_proxy = ""};
    struct cfg_reader r = {.file = "test/data/config/fuzz.yaml", .config = &config};
    char *text = malloc(
        size + 1); /* of just that size, so that the sanitizer sees what is read behind it */

    if (!text || size > CONFIG_MAX) {
        free(text);
        return 0;
    }
    if (size > 0)
        memcpy(text, data, size);
    text[size] = '\0';
    cfg_read_text(&r, (struct slice){text, size});
    check_problems(&r);
    if (r.errors == 0)
        check_config(&config);
    free(text);
    cfg_done(&r);
    return 0;
}
