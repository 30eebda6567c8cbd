/* SPDX-License-Identifier: MIT
 *
 * test/fuzz_config.c: any bytes as a configuration. Whatever it holds, problems come in the order
 * of the file, and one without errors can be used. Paths in it start at test/data/config.
 */

#include "fuzz.h"

/* Each problem has a place, and a text that is fit for a terminal. */
static void
check_problems(const struct cfg_reader *r)
{
    int errors = 0, warnings = 0;

    for (const struct problem *p = r->problems; p; p = p->next) {
        require(p->line >= 1 && p->column >= 1, "a problem without a place", p->text);
        require(!p->next || p->line < p->next->line ||
                (p->line == p->next->line && p->column <= p->next->column),
            "problems are not in order", p->text);
        require(*p->text != '\0' && utf8_is_valid(p->text, strlen(p->text)), "a problem's text",
            p->text);
        for (const char *c = p->text; *c; c++)
            require((unsigned char)*c >= 0x20 && *c != 0x7f, "a control character in a problem",
                p->text);
        errors += p->is_error;
        warnings += !p->is_error;
    }
    require(errors == r->errors && warnings == r->warnings, "problems are not counted", "");
}

/* What the rest of the program counts on. */
static void
check_config(const struct config *c)
{
    char text[1024];

    require(c->udp_host && *c->udp_host, "no host to listen on", "");
    cfg_listen_text(c, text, sizeof text);
    require(c->udp_port >= 1 && c->udp_port <= 65535, "port", text);
    require(c->max_message_size >= 1 && c->max_message_size <= DATAGRAM_MAX, "maxMessageSize", "");
    require(c->log_level >= LOG_ERROR && c->log_level <= LOG_SILLY, "logLevel", "");
    require(c->dedup_minutes >= 1 && c->udp_rate >= 1, "deduplication or rateLimit", "");
    require(!c->file_logging || c->log_directory, "fileLogging without logDirectory", "");
    for (size_t i = 0; i < c->sources; i++)
        require(c->source[i].bits >= 0 && c->source[i].bits <= 128 &&
                (c->source[i].name || c->source[i].addresses == 1),
            "a source", c->source[i].name ? c->source[i].name : "");
    for (int kind = 0; kind < ALERT_KINDS; kind++) {
        require(c->rate_limit_s[kind] >= 0, "rateLimit", "");
        for (size_t i = 0; i < c->webhooks[kind]; i++) {
            const struct webhook_config *w = &c->webhook[kind][i];
            require(w->method >= METHOD_GET && w->method <= METHOD_PUT, "method", w->name);
            require(utf8_is_valid(w->name, strlen(w->name)), "a webhook's name", w->name);
            require(!c->enabled || (w->url.host && w->url.origin && w->url.shown),
                "a webhook without URL", w->name);
            require(!c->enabled || w->trust != TRUST_OWN_CA || (w->ca && w->ca_count > 0),
                "a webhook without CA", w->name);
        }
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config config = {.no_proxy = ""};
    struct cfg_reader r = {.file = "test/data/config/fuzz.yaml", .config = &config};
    char *text = malloc(size + 1); /* as plat_read_file gives it */
    const struct node *root;

    if (!text || size > CONFIG_MAX) {
        free(text);
        return 0;
    }
    if (size > 0)
        memcpy(text, data, size);
    text[size] = '\0';
    cfg_set_defaults(&r, CFG_KEYS, &config);
    root = cfg_read_document(&r, text, size);
    require(root || r.errors > 0, "nothing was read, and no error", "");
    if (root)
        cfg_read_root(&r, root);
    check_problems(&r);
    if (r.errors == 0)
        check_config(&config);
    free(text);
    cfg_done(&config);
    return 0;
}
