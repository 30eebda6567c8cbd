/* SPDX-License-Identifier: MIT
 *
 * test/done.h: frees what the program leaves to the system at its end, so that a test can look for
 * leaks. Comes after the program. Not every test uses all of it, hence the inline.
 */

/* Frees the texts of a table's keys in base. Of two rows for one field the first does. */
static inline void
cfg_free_texts(const struct cfg_key *keys, void *base)
{
    for (const struct cfg_key *k = keys; k->name; k++)
        if (k->type == CFG_TEXT || k->type == CFG_PATH || k->type == CFG_HOST) {
            char **text = (char **)((char *)base + k->offset);
            free(*text);
            *text = NULL;
        }
}

/* Frees what a configuration and its reader hold. */
static inline void
cfg_done(struct cfg_reader *r)
{
    struct config *c = r->config;

    for (size_t i = 0; i < c->webhooks; i++) {
        url_done(&c->webhook[i].url);
        url_done(&c->webhook[i].proxy_url);
        mbedtls_x509_crt_free(c->webhook[i].ca);
        free(c->webhook[i].ca);
        mbedtls_x509_crt_free(c->webhook[i].client_crt);
        free(c->webhook[i].client_crt);
        mbedtls_pk_free(c->webhook[i].client_pk);
        free(c->webhook[i].client_pk);
        for (struct header *h = c->webhook[i].header; h && h->label; h++) {
            free((char *)(uintptr_t)h->label);
            free((char *)(uintptr_t)h->value);
        }
        free(c->webhook[i].header);
        for (int k = 0; k < ALERT_FIELDS; k++)
            buf_free(&c->webhook[i].match[k]);
        free((void *)(uintptr_t)c->webhook[i].template);
        free(c->webhook[i].template_text);
        buf_free(&c->webhook[i].hidden);
        cfg_free_texts(CFG_WEBHOOK_KEYS, &c->webhook[i]);
    }
    for (size_t i = 0; i < c->sources; i++)
        free(c->source[i].name);
    for (struct problem *p = r->problems, *next; p; p = next) {
        next = p->next;
        free(p->text);
        free(p);
    }
    buf_free(&c->heartbeat.hidden);
    url_done(&c->heartbeat.url);
    url_done(&c->proxy[0]);
    url_done(&c->proxy[1]);
    cfg_free_texts(CFG_KEYS, c);
    free(c->webhook);
    free(c->source);
    buf_free(&r->files);
}

/* Frees what a backlog holds, but not what its journal and its calls do. */
static inline void
backlog_done(struct backlog *b)
{
    for (struct payload *p = b->oldest, *next; p; p = next) {
        next = p->newer;
        for (size_t i = 0; i < p->targets; i++)
            free(p->delivery[i].why);
        free(p);
    }
    for (size_t i = b->webhooks + 1; i < b->known; i++) { /* gone ones, but for the unknown one */
        free((void *)(uintptr_t)b->webhook[i].config->description);
        free((void *)(uintptr_t)b->webhook[i].config);
    }
    for (size_t i = 0; i < b->known; i++) {
        free(b->webhook[i].begun_ms);
        buf_free(&b->webhook[i].event_state.text);
        buf_free(&b->webhook[i].event_given_up.text);
    }
    free(b->webhook);
    free(b->windows);
    buf_free(&b->text);
}
