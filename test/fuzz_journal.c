/* SPDX-License-Identifier: MIT
 *
 * test/fuzz_journal.c: any bytes as a journal, as one of its lines, and as a dead letter. What is
 * loaded must be counted, stand where the journal says, and come back when it is loaded again.
 *
 * Few bytes have a good CRC-32, so a journal is made of the input: a line gets its CRC unless it
 * starts with "!", "#c" is a webhook-id, "$c" a key ($1 and $2 are those of webhooks), "~" at the
 * end of a line glues the next one to it. The input is read as it stands, too.
 */

#include "fuzz.h"

#include <sys/mman.h>

#define HOOKS 2

/* What a program with two webhooks has; files in memory, and a folder that is not there. */
struct state {
    struct config config;
    struct webhook_config webhook[HOOKS];
    struct counters counters;
    struct journal journal;
    struct windows windows;
    struct webhook hook[HOOKS];
    struct keeper keeper;
};

static struct slice
slice_of_buf(const struct buf *b)
{
    return (struct slice){b->data ? b->data : "", b->len};
}

static bool
same(struct slice a, struct slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* A file in memory that is appended to. */
static int
memory_file(struct slice content)
{
    int file = memfd_create("journal", MFD_CLOEXEC);

    require(file >= 0 && fcntl(file, F_SETFL, O_APPEND) == 0 &&
            plat_write(file, content.data, content.len) == 0,
        "memfd", strerror(errno));
    return file;
}

static void
state_begin(struct state *s, struct slice content)
{
    *s = (struct state){.config = {.max_state_mb = 1,
                            .max_age_hours = 72,
                            .max_concurrent = 1,
                            .dedup_enable = true,
                            .dedup_minutes = 10,
                            .rate_limit_s = {300, 300},
                            .webhooks = {HOOKS}}};
    journal_init(&s->journal, &s->config);
    s->journal.folder = x_strdup("/nonexistent/butler_webhook.state");
    s->journal.file[0] = memory_file(content);
    s->journal.end = (int64_t)content.len;
    windows_init(&s->windows, &s->config);
    for (size_t i = 0; i < HOOKS; i++) {
        struct webhook_config *w = &s->webhook[i];
        w->place = i;
        w->description = i ? "Second" : NULL;
        memset(w->key, i ? '2' : '1', sizeof w->key - 1);
        snprintf(w->name, sizeof w->name, "failure %zu", i + 1);
        send_init(&s->hook[i], &s->config, w, &s->counters, &s->journal);
    }
    s->keeper = (struct keeper){.config = &s->config,
        .journal = &s->journal,
        .windows = &s->windows,
        .counters = &s->counters,
        .webhook = s->hook,
        .webhooks = HOOKS};
}

static void
state_done(struct state *s)
{
    for (size_t i = 0; i < HOOKS; i++)
        send_done(&s->hook[i]);
    keep_done(&s->keeper);
    windows_done(&s->windows);
    journal_done(&s->journal);
}

/* Lists and counts agree, and each delivery finds its line. */
static void
check_state(struct state *s)
{
    struct journal *j = &s->journal;
    size_t live = 0;
    int64_t bytes = 0;

    for (size_t i = 0; i < HOOKS; i++) {
        struct webhook *w = &s->hook[i];
        const struct delivery *older = NULL;
        size_t n = 0, held = 0, held_bytes = 0;
        for (struct delivery *d = w->oldest; d; older = d, d = d->newer) {
            struct buf line = {0};
            struct slice json;
            require(d->older == older && !d->in_flight && d->heap_at == NOT_IN_HEAP, "list", d->id);
            require(strlen(d->id) < sizeof d->id && d->number > 0, "id or number", d->id);
            require(d->accepted_ms <= plat_now_ms(), "accepted in the future", d->id);
            require(journal_fetch(j, 0, d->at[0], d->len[0], &line, &json) == 0, "fetch", d->id);
            require(d->payload && same(json, (struct slice){d->payload->json, d->payload->len}),
                "payload", d->id);
            held++;
            held_bytes += send_size(d);
            bytes += d->len[0];
            n++;
            buf_free(&line);
        }
        require(w->newest == older && w->fresh == w->oldest && !w->unsaved, "ends", w->name);
        require(w->fresh_count == n && w->heap_count == 0, "waiting", w->name);
        require(w->held == held && w->held_bytes == held_bytes, "held", w->name);
        live += n;
    }
    require(j->live == live && j->live_bytes == bytes && j->unsaved == 0, "counts", "journal");
}

/* Loads what the journal's file holds. */
static void
load(struct state *s, bool read_only)
{
    struct err e = {""};
    char last = '\n';

    require(keep_load(&s->keeper, read_only, &e) == 0, "keep_load", e.text);
    if (!read_only) {
        require(s->journal.end == plat_file_len(s->journal.file[0]), "length", "journal");
        require(plat_read_at(s->journal.file[0], &last, 1, s->journal.end - 1) == 1 && last == '\n',
            "the last line has no LF", "journal");
        buf_free(&the_log.queue); /* nobody writes it, and burying waits for room */
        keep_bury_gone(&s->keeper);
        require(!s->keeper.gone, "not all are buried", "journal");
        check_state(s);
    }
}

/* Whether the same waits in both, in the same order. */
static void
check_same(const struct state *a, const struct state *b, const char *what)
{
    for (size_t i = 0; i < HOOKS; i++) {
        const struct delivery *d = a->hook[i].oldest, *c = b->hook[i].oldest;
        for (; d && c; d = d->newer, c = c->newer) {
            require(strcmp(d->id, c->id) == 0, what, "another id");
            require(d->payload->len == c->payload->len &&
                    memcmp(d->payload->json, c->payload->json, d->payload->len) == 0,
                what, "another alert");
            require(d->attempts == c->attempts, what, "attempts");
            require(d->attempts <= 0 ||
                    strcmp(d->failure ? d->failure : "", c->failure ? c->failure : "") == 0,
                what, "failure");
        }
        require(!d && !c, what, "another number");
    }
}

/* What rewriting would leave of a journal. */
static void
rewrite(struct state *s, struct buf *lines)
{
    keep_add_head(&s->keeper, lines);
    keep_add_windows(&s->keeper, lines);
    for (size_t i = 0; i < HOOKS; i++) {
        struct webhook *w = &s->hook[i];
        int more = 1;
        for (w->copying = w->oldest; more > 0;) {
            struct buf piece = {0};
            struct send_copy c = {&piece, 1, (int64_t)lines->len, s->journal.end, false, 0, 0};
            more = send_copy_locked(w, &c);
            require(more >= 0, "copying", w->name);
            buf_add(lines, piece.data, piece.len);
            buf_free(&piece);
        }
    }
}

/* A journal: read only, read, read again, and rewritten. */
static void
check_journal(struct slice content)
{
    struct state first, again;
    struct buf lines = {0};

    state_begin(&first, content);
    load(&first, true);
    require(plat_file_len(first.journal.file[0]) == (int64_t)content.len, "changed", "read only");
    state_done(&first);

    state_begin(&first, content);
    load(&first, false);
    buf_reserve(&lines, (size_t)first.journal.end);
    lines.len = (size_t)plat_read_at(
        first.journal.file[0], lines.data, (size_t)first.journal.end, 0);
    state_begin(&again, slice_of_buf(&lines));
    load(&again, false);
    check_same(&first, &again, "loaded again");
    state_done(&again);

    lines.len = 0;
    rewrite(&first, &lines);
    state_begin(&again, slice_of_buf(&lines));
    load(&again, false);
    check_same(&first, &again, "rewritten");
    require(!again.journal.rewrite, "a rewritten journal is damaged", lines.data);
    state_done(&again);
    state_done(&first);
    buf_free(&lines);
}

/* Makes a journal of the input, as said above. */
static void
make_journal(struct slice input, struct buf *out)
{
    while (input.len > 0) {
        struct slice text = slice_take(&input, '\n');
        bool raw = text.len > 0 && text.data[0] == '!';
        bool glued = text.len > 0 && text.data[text.len - 1] == '~';
        struct buf line = {0};
        for (size_t i = raw; i + glued < text.len; i++) {
            bool more = i + 1 + glued < text.len;
            if (more && (text.data[i] == '#' || text.data[i] == '$')) {
                buf_add_text(&line, text.data[i] == '#' ? "msg_" : "");
                i++;
                for (int k = 0; k < 32; k++)
                    buf_add_char(&line, text.data[i]);
            } else
                buf_add_char(&line, text.data[i]);
        }
        if (!raw)
            buf_format(out, "%08x\t", crc_of(slice_of_buf(&line).data, line.len));
        buf_add(out, slice_of_buf(&line).data, line.len);
        if (!glued)
            buf_add_char(out, '\n');
        buf_free(&line);
    }
}

/* One line, with what may stand inside of it. */
static void
check_line(struct slice line)
{
    struct journal_line record;
    size_t from = 0, begin, len;

    if (journal_read_line(line, &record) == 0)
        for (int i = 0; i < JOURNAL_WORDS[record.word].fields; i++)
            require(record.field[i].data >= line.data &&
                    record.field[i].data + record.field[i].len <= line.data + line.len,
                "a field beyond its line", JOURNAL_WORDS[record.word].name);
    while ((begin = journal_salvage(line, from, &len)) != SIZE_MAX) {
        require(begin >= from && len > 0 && begin + len <= line.len, "salvage", "place");
        require(journal_read_line((struct slice){line.data + begin, len}, &record) == 0, "salvage",
            "no record");
        from = begin + len;
    }
}

/* The reader of lines gives each byte once, in order. */
static void
check_lines(struct slice content)
{
    struct line_reader r = {.file = memory_file(content)};
    struct slice line;
    size_t at = 0;

    while (line_read(&r, &line) > 0) {
        require(r.line_at == (int64_t)at && at + line.len <= content.len &&
                same(line, (struct slice){content.data + at, line.len}),
            "line_read", "other bytes");
        require(r.cut == (at + line.len == content.len) &&
                (r.cut || content.data[at + line.len] == '\n'),
            "line_read", "cut");
        at += line.len + !r.cut;
    }
    require(at == content.len, "line_read", "not all");
    buf_free(&r.in);
    plat_file_close(r.file);
}

/* Reads the alert of some JSON; what was read once is the same when it was written and read. */
static void
check_json(struct slice json)
{
    struct slice rest = json, value = json_take(&rest);
    struct buf text = {0}, again = {0};
    struct alert *alert = alert_read_json(json), *twin;

    require(value.len + rest.len == json.len || value.len == 0, "json_take", "length");
    if (json_read_string(value, &text) == 0) {
        require(utf8_is_valid(slice_of_buf(&text).data, text.len), "a string", "not UTF-8");
        json_add_string(&again, slice_of_buf(&text));
        text.len = 0;
        value = slice_of_buf(&again);
        require(json_read_string(value, &text) == 0, "a string", "not read again");
    }
    if (alert) {
        again.len = 0;
        alert_add_json(alert, &again);
        twin = alert_read_json(slice_of_buf(&again));
        require(twin && twin->kind == alert->kind, "an alert", "not read again");
        for (int i = 1; i < ALERT_FIELDS; i++)
            require(same(twin->field[i], alert->field[i]) &&
                    utf8_is_valid(alert->field[i].data, alert->field[i].len),
                "an alert's field", FIELD_NAMES[i]);
        alert_free(twin);
    }
    alert_free(alert);
    buf_free(&text);
    buf_free(&again);
}

/* A dead letter. */
static void
check_letter(const struct state *s, struct slice line)
{
    struct letter letter;

    if (keep_read_letter(&s->keeper, line, &letter) == 0) {
        struct alert *alert = alert_read_json(slice_of_buf(&letter.json));
        require(alert != NULL, "a letter's alert", letter.id);
        require(strncmp(letter.id, "msg_", 4) == 0 && strlen(letter.id) < sizeof letter.id,
            "a letter's id", letter.id);
        require(!letter.webhook || (letter.webhook >= s->hook && letter.webhook < s->hook + HOOKS),
            "a letter's webhook", letter.id);
        alert_free(alert);
    }
    buf_free(&letter.json);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct slice input = {(const char *)data, size}, rest = input;
    struct buf made = {0};
    struct state s;

    if (!crc_table[0][1]) {
        crc_init();
        log_init(LOG_SILLY);
    }
    state_begin(&s, (struct slice){"", 0});
    while (rest.len > 0) {
        struct slice line = slice_take(&rest, '\n');
        check_line(line);
        check_json(line);
        check_letter(&s, line);
    }
    state_done(&s);
    check_lines(input);
    check_journal(input);
    make_journal(input, &made);
    check_journal(slice_of_buf(&made));
    check_line(slice_of_buf(&made));
    buf_free(&made);
    buf_free(&the_log.queue);
    return 0;
}
