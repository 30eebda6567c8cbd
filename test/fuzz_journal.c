/* SPDX-License-Identifier: MIT
 *
 * test/fuzz_journal.c: any bytes as a journal, as one of its lines, and as a dead letter. What is
 * read must lie within its line, and be read again the same after it was written; a start with it
 * must go well.
 *
 * Few bytes have a good CRC-32, so a journal is made of the input: a line gets its CRC unless it
 * starts with "!"; "$1" is a key, "~" at the end of a line takes its LF away. The input is read as
 * it stands, too.
 */

#include "fuzz.h"
#include "done.h"

#include <sys/mman.h>

static bool
same(struct slice a, struct slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* A record is written as one line, and read again. */
static void
check_record(const struct journal_record *r)
{
    struct journal_record again;
    struct buf written = {0}, text = {0};

    journal_add_record(&written, r);
    struct slice rest = {written.data, written.len}, line = slice_take(&rest, '\n');
    require(line.len + 1 == written.len, "a record", "not one line");
    require(journal_read_record(line, &again, &text) == 0, "a record", "not read again");
    require(again.word == r->word && again.kind == r->kind && again.number == r->number &&
            again.wall_ms == r->wall_ms && again.count == r->count && same(again.key, r->key) &&
            same(again.text, r->text),
        "a record", "another one");
    buf_free(&written);
    buf_free(&text);
}

/* A journal with that content, as journal_open leaves it. */
static struct journal
open_journal(struct slice content)
{
    struct journal j = {
        .folder = "/nonexistent", .aside = -1, .file = memfd_create("journal", MFD_CLOEXEC)};

    require(plat_write(j.file, content.data, content.len) == 0, "memfd", strerror(errno));
    j.reader.file = j.file;
    return j;
}

/* Reads a whole journal. */
static void
check_journal(struct slice content)
{
    struct journal j = open_journal(content);
    struct journal_record r;

    while (journal_read_next(&j, &r) > 0)
        check_record(&r);
    require(j.len == (int64_t)content.len, "a journal", "its length");
    plat_file_close(j.file);
}

/* A start with such a journal: what waits is where it should be, and can be given back. */
static void
check_load(struct slice content)
{
    struct webhook_config webhook[2] = {
        {.listed = 2, .description = ""}, {.place = 1, .listed = 2, .description = ""}};
    const struct config config = {.webhook = webhook, .webhooks = 2, .max_state_mb = 16};
    struct journal j = open_journal(content);
    struct backlog b;
    size_t waiting = 0, left = 0;

    for (int i = 0; i < 2; i++)
        memset(webhook[i].key, '1' + i, 32);
    backlog_init(&b, &config, &j, NULL);
    backlog_load(&b, false);
    for (size_t i = 0; i < b.known; i++) {
        const struct webhook *w = &b.webhook[i];
        for (const struct delivery *d = w->list.oldest; d; d = d->newer, waiting++)
            require(d->webhook == w && d->state == DELIVERY_WAITS, "a list", "state");
        require(i < 2 || (!w->list.oldest && w->list.count == 0), "a webhook that is gone",
            "something waits");
        require(memchr(w->config->key, '\0', sizeof w->config->key), "key", w->config->name);
    }
    for (const struct payload *p = b.oldest; p; p = p->newer) {
        left += p->left;
        require(!p->newer || p->newer->number > p->number, "numbers", "not ascending");
    }
    require(waiting + b.dead.count == left && left == b.waiting, "counts", "what waits");
    backlog_done(&b);
    plat_file_close(j.file);
}

/* Makes a journal of the input, as said above. */
static void
make_journal(struct slice input, struct buf *out)
{
    buf_add_text(out, "");
    while (input.len > 0) {
        struct slice text = slice_take(&input, '\n');
        bool raw = text.len > 0 && text.data[0] == '!';
        bool glued = text.len > 0 && text.data[text.len - 1] == '~';
        size_t begin = out->len;
        char crc[9];
        buf_add_text(out, raw ? "" : "00000000\t");
        for (size_t i = raw; i + glued < text.len; i++) {
            bool is_key = text.data[i] == '$' && i + 1 + glued < text.len;
            i += is_key;
            for (int k = 0; k < (is_key ? 32 : 1); k++)
                buf_add_char(out, text.data[i]);
        }
        if (!raw) {
            crc_write(out->data + begin + 9, out->len - begin - 9, crc);
            memcpy(out->data + begin, crc, 8);
        }
        buf_add_text(out, glued ? "" : "\n");
    }
}

/* What is read from a dead letter is an alert of ours. */
static void
check_letter(struct slice line)
{
    struct webhook_config webhook;
    struct alert alert = {0}, twin = {0};
    struct buf json = {0};
    cJSON *letter = journal_read_letter(line, &webhook, &alert), *again = NULL;

    if (letter) {
        alert_add_json(&alert, false, &json);
        again = json_read(slice_of(json.data));
        require(webhook.kind == alert.kind && strlen(webhook.key) < sizeof webhook.key &&
                webhook.description && alert_read_json(again, &twin) == 0,
            "a letter", "no alert");
    }
    cJSON_Delete(letter);
    cJSON_Delete(again);
    buf_free(&json);
}

static void
fuzz(struct slice input)
{
    struct buf made = {0}, text = {0};
    struct journal_record r;

    for (struct slice rest = input; rest.len > 0;) {
        struct slice line = slice_take(&rest, '\n');
        if (journal_read_record(line, &r, &text) == 0)
            require(r.key.data >= line.data && r.key.data + r.key.len <= line.data + line.len,
                "a record", "its key");
        check_letter(line);
    }
    make_journal(input, &made);
    check_journal(input);
    check_journal((struct slice){made.data, made.len});
    check_load((struct slice){made.data, made.len});
    buf_free(&made);
    buf_free(&text);
}
