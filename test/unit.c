/* SPDX-License-Identifier: MIT
 *
 * test/unit.c: the program's own functions, one by one. The program is included with its main
 * renamed, so that every static function can be called. Each section has rows of input and expected
 * value, under the program's own banners and in their order. Runs in the repository's folder.
 *
 * Prints a line for each failed check, and at the end `N passed, N failed`; exit code 1 if any
 * failed.
 */

int butler_webhook_main(int argc, char **argv);
#define main butler_webhook_main
#define exit main_exit
#define pthread_create thread_create
#include "../butler_webhook.c"
#undef main
#undef exit
#undef pthread_create
#include "done.h"

#include <dirent.h>
#include <sanitizer/lsan_interface.h>
#include <sys/wait.h>

static int passed, failed;
static const char *section = "";
static char folder[64]; /* for files that tests write */
static bool no_threads; /* the system gives none */

int pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

/* The program's pthread_create. */
int
thread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*entry)(void *), void *arg)
{
    return no_threads ? EAGAIN : pthread_create(thread, attr, entry, arg);
}

/* A slice of a literal, NULs included; the first form is for tables. */
#define S(text)                                                                                    \
    {                                                                                              \
        text, sizeof(text) - 1                                                                     \
    }
#define SLICE(text) ((struct slice)S(text))
#define COUNT(rows) (sizeof(rows) / sizeof *(rows))

__attribute__((format(printf, 2, 3))) static bool
check(bool ok, const char *format, ...)
{
    va_list args;

    if (ok) {
        passed++;
        return true;
    }
    failed++;
    printf("FAILED %s: ", section);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    return false;
}

/* Bytes for a person, in one line; the last four results stay valid. */
static const char *
show(struct slice s)
{
    static char room[4][400];
    static unsigned turn;
    char *out = room[turn++ % 4], *p = out;

    for (size_t i = 0; i < s.len && p < out + 380; i++) {
        unsigned char c = (unsigned char)s.data[i];
        if (c >= 0x20 && c < 0x7f)
            *p++ = (char)c;
        else
            p += snprintf(p, 6, "\\x%02x", c);
    }
    *p = '\0';
    if (p >= out + 380)
        snprintf(p, 20, "... (%zu)", s.len);
    return out;
}

static bool
same(struct slice a, struct slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* Checks bytes against what they should be; what names the row. */
static bool
check_bytes(struct slice got, struct slice want, const char *what)
{
    return check(same(got, want), "%s: got \"%s\", wanted \"%s\"", what, show(got), show(want));
}

static bool
check_text(const char *got, const char *want, const char *what)
{
    return check_bytes(slice_of(got ? got : "(none)"), slice_of(want), what);
}

static bool
check_number(long long got, long long want, const char *what)
{
    return check(got == want, "%s: got %lld, wanted %lld", what, got, want);
}

static bool
check_count(size_t got, size_t want, const char *what)
{
    return check(got == want, "%s: got %zu, wanted %zu", what, got, want);
}

static void
check_has(const char *text, const char *part, const char *what)
{
    check(strstr(text, part) != NULL, "%s: \"%s\" does not hold \"%s\"", what, text, part);
}

static struct slice
held(const struct buf *b)
{
    return (struct slice){b->data, b->len};
}

static bool
check_buf(struct buf *b, struct slice want, const char *what)
{
    bool ok = check_bytes(held(b), want, what);

    buf_free(b);
    return ok;
}

static void
add_many(struct buf *b, int count, const char *text)
{
    for (int i = 0; i < count; i++)
        buf_add_text(b, text);
}

static void
add_slice(struct buf *b, struct slice s)
{
    buf_add(b, s.data, s.len);
}

/*
 * A copy in memory of just that size, so that the sanitizer sees each byte read beyond it; the last
 * four stay valid.
 */
static struct slice
exact(struct slice s)
{
    static char *copies[4];
    static unsigned turn;
    char **copy = &copies[turn++ % 4];

    free(*copy);
    *copy = x_malloc(s.len ? s.len : 1);
    memcpy(*copy, s.len ? s.data : "", s.len);
    return (struct slice){*copy, s.len};
}

/* A formatted text of up to 1,000 bytes; the last 32 stay valid. */
__attribute__((format(printf, 1, 2))) static const char *
textf(const char *format, ...)
{
    static char texts[32][1000];
    static unsigned turn;
    char *text = texts[turn++ % 32];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof *texts, format, args);
    va_end(args);
    return text;
}

/* Random numbers below n that are the same in each run (xorshift). */
static uint32_t
random_below(uint32_t n)
{
    static uint32_t state = 2463534242u;

    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % n;
}

static const char *
in_folder(const char *name)
{
    return textf("%s/%s", folder, name);
}

static const char *
write_file(const char *name, struct slice content)
{
    const char *path = in_folder(name);
    FILE *f = x_check(fopen(path, "wb"));

    fwrite(content.data, 1, content.len, f);
    fclose(f);
    return path;
}

/* The size of a file; -1: there is none. */
static int64_t
file_len(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 ? (int64_t)st.st_size : -1;
}

/* Reads a file, "" if there is none; the caller frees it. */
static struct buf
read_file(const char *path)
{
    struct buf b = {0};
    char *data;
    size_t len;

    buf_add(&b, "", 0);
    if (plat_read_file(path, (size_t)file_len(path), &data, &len) == 0) {
        buf_add(&b, data, len);
        free(data);
    }
    return b;
}

static void
folder_each(const char *path, void (*each)(const char *, void *), void *arg)
{
    DIR *dir = opendir(path);

    for (struct dirent *d; dir && (d = readdir(dir)) != NULL;)
        each(d->d_name, arg);
    if (dir)
        closedir(dir);
}

static struct plat_addr
address(const char *text, int port)
{
    struct plat_addr addr = {0};

    check(plat_numeric(text, &addr, 1) == 1, "%s is an address", text);
    plat_set_port(&addr, 1, port);
    return addr;
}

/* ---- Tables ---- */

#define TASK_ID "dec2a02a-1680-44ef-8dc2-e2bfb180af87"
#define APP_ID "e7af59a0-c243-480d-9571-08727551a66f"
#define RUN_ID "4831c6a5-34f6-45bb-9d40-73a6e6992670"
#define ZERO_ID "00000000-0000-0000-0000-000000000000"
#define WHEN "2026-11-22 10:50:04,735"
#define IDS TASK_ID ";" APP_ID ";" WHEN ";INFO;" RUN_ID
#define WANT_IDS "|" TASK_ID "|" APP_ID "|" WHEN "|INFO|" RUN_ID "|"
#define FAILED "/scheduler-reload-failed/"
#define ABORTED_ID "/scheduler-reload-aborted/"

#define HOOKS                                                                                      \
    "Butler:\n  webhookNotification:\n    enable: true\n    reloadTaskFailure:\n      webhooks:\n"
#define HOOK HOOKS "        - webhookURL: http://127.0.0.1:1/\n          httpMethod: POST\n"
#define TLS_HOOK                                                                                   \
    HOOKS                                                                                          \
    "        - webhookURL: https://127.0.0.1:1/\n          httpMethod: POST\n          cert:\n"
#define OFF_HOOK                                                                                    \
    "Butler:\n  webhookNotification:\n    enable: false\n    reloadTaskFailure:\n      webhooks:\n" \
    "        - webhookURL: http://host.my.domain:port/some/path\n          httpMethod: POST\n"

/* In one line. */
#define ON "Butler: {webhookNotification: {enable: true}, "
#define CALLS                                                                                      \
    "Butler: {udpServerConfig: {enable: true}, webhookNotification: {enable: true, "               \
    "reloadTaskFailure: {webhooks: [{webhookURL: 'http://h/', httpMethod: GET}, "                  \
    "{webhookURL: 'https://h/', httpMethod: GET}]}}}"

#define OK "HTTP/1.1 200 OK\r\n"
#define OK2 OK "Content-Length: 2\r\n"

#define QUERY(message)                                                                             \
    "event=Qlik+Sense+reload+failed&hostName=QS1&user=LAB%5Cg&taskName=T&taskId=" TASK_ID          \
    "&appName=A&appId=" APP_ID                                                                     \
    "&logTimeStamp=2026-11-22+10%3A50%3A04%2C735&logLevel=INFO&executionId=" RUN_ID                \
    "&logMessage=" message

static const struct {
    const char *name, *text;
} TABLE_TEXTS[] = {{"TASK", TASK_ID}, {"APP", APP_ID}, {"RUN", RUN_ID}, {"ZERO", ZERO_ID},
    {"WHEN", WHEN}, {"IDS", IDS}, {"WANT_IDS", WANT_IDS}, {"FAILED", FAILED},
    {"ABORTED", ABORTED_ID}, {"FOLDER", folder}, {"ON", ON}, {"CALLS", CALLS}, {"OK", OK},
    {"OK2", OK2}, {"CHUNKED", OK "Transfer-Encoding: chunked\r\n\r\n"}, {"FINE", OK2 "\r\nok"},
    {"NO_BODY", "\r\nContent-Length: 0\r\n\r\n"}, {"QUERY", QUERY("M")}, {"AGENT", USER_AGENT},
    {"VERSION", VERSION}, {"ROOTS_DATE", ROOTS_DATE}};

/*
 * A file of test/data/unit: a row on each line, its fields between tabs. \n, \r, \t, \0, \\ and
 * \xHH stand for a byte, ${NAME} for one of TABLE_TEXTS, "" for an empty field, - for none. A line
 * that begins with "# " is a comment.
 */
struct table {
    struct buf file;
    char *at;               /* the next line */
    struct slice field[12]; /* of this row, each with a NUL behind it */
    int rows;
};

static struct slice
table_field(struct slice raw)
{
    static const char escapes[] = "n\nr\rt\t\\\\0\0";
    struct buf b = {0};

    if (same(raw, SLICE("-")))
        return (struct slice){0};
    buf_add(&b, "", 0);
    for (size_t i = same(raw, SLICE("\"\"")) ? 2 : 0; i < raw.len; i++) {
        const char *p = raw.data + i;
        uint8_t byte = (uint8_t)*p;
        if (p[0] == '$' && p[1] == '{') {
            size_t len = strcspn(p, "}"), k = 0;
            while (strncmp(TABLE_TEXTS[k].name, p + 2, len - 2) || TABLE_TEXTS[k].name[len - 2])
                k++;
            buf_add_text(&b, TABLE_TEXTS[k].text);
            i += len;
            continue;
        }
        if (p[0] == '\\' && p[1] == 'x')
            i += hex_read((struct slice){p + 2, 2}, &byte, 1) == 0 ? 3 : 0;
        else if (p[0] == '\\') {
            byte = (uint8_t)strchr(escapes, p[1])[1];
            i++;
        }
        buf_add_char(&b, byte);
    }
    return held(&b);
}

/* Goes on to the next row of the table with that name; false: there is none, and all is freed. */
static bool
table_next(struct table *t, const char *name)
{
    if (!t->at) {
        t->file = read_file(textf("test/data/unit/%s.txt", name));
        t->at = t->file.data;
        t->rows = 0;
    }
    for (size_t i = 0; i < COUNT(t->field); i++)
        free((void *)(uintptr_t)t->field[i].data);
    memset(t->field, 0, sizeof t->field);
    while (strncmp(t->at, "# ", 2) == 0)
        t->at = strchr(t->at, '\n') + 1;
    if (*t->at == '\0') {
        check(t->rows > 3, "%s: %d rows; run in the repository's folder", name, t->rows);
        buf_free(&t->file);
        t->at = NULL;
        return false;
    }
    for (size_t i = 0, end = 0; !end; i++) {
        size_t len = strcspn(t->at, "\t\n");
        end = t->at[len] == '\n';
        t->field[i] = table_field((struct slice){t->at, len});
        t->at += len + 1;
    }
    t->rows++;
    return true;
}

static long long
field_number(struct slice field)
{
    return strtoll(field.data, NULL, 10);
}

static bool
field_yes(struct slice field)
{
    return field.data[0] == 'y';
}

/* ==== 3. Base =============================================================== */

static void
test_utf8(void)
{
    struct table t = {0};
    struct buf b = {0};
    int wrong = 0;

    while (table_next(&t, "utf8")) { /* bytes, and the character that they are, if any */
        struct slice in = exact(t.field[0]);
        bool valid = t.field[1].data != NULL;
        uint32_t point = 0;
        size_t n = utf8_read(in.data, in.len, &point);
        check(n == (valid ? in.len : 0), "utf8_read of \"%s\" gives %zu", show(in), n);
        if (valid)
            check_text(textf("%x", point), t.field[1].data, "its character");
        check(utf8_is_valid(in.data, in.len) == valid, "utf8_is_valid of \"%s\"", show(in));
    }
    for (uint32_t c = 0; c <= 0x10ffff; c++) {
        bool replaced = c == 0 || (c >= 0xd800 && c <= 0xdfff);
        uint32_t again = 0;
        b.len = 0;
        utf8_add(&b, c);
        if (utf8_read(b.data, b.len, &again) != b.len || again != (replaced ? 0xfffd : c))
            wrong++;
    }
    check_number(wrong, 0, "characters that do not survive utf8_add and utf8_read");
    buf_free(&b);
    check(utf8_is_valid("a\xc3\xa5\xf0\x9f\x9a\x80z", 8), "mixed lengths");
    check(!utf8_is_valid("a\xc3\xa5\xf0\x9f\x9a\x80z", 6), "cut inside the last character");
    check(utf8_is_valid("", 0), "nothing is UTF-8");
}

static void
test_slices(void)
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    struct table t = {0};
    struct buf b = {0};

    while (table_next(&t, "encode")) { /* a text, what stays in it, and what it becomes */
        percent_encode(&b, exact(t.field[0]), t.field[1].data);
        check_buf(&b, t.field[2], "percent_encode");
    }
    while (table_next(&t, "numbers")) /* a text, the largest allowed, and the number */
        check_number(slice_number(exact(t.field[0]), field_number(t.field[1])),
            field_number(t.field[2]), t.field[0].data);
    for (int c = -128; c < 256; c++) {
        const char *at = c > 0 ? strchr(digits, c) : NULL;
        check_number(hex_value(c), at ? (at - digits) % 16 : -1, textf("hex_value(%d)", c));
    }
    while (table_next(&t, "trim"))
        check_bytes(slice_trim(exact(t.field[0]), " \t"), t.field[1], "slice_trim");
    check(slice_is(SLICE("cOnTent-LENGTH"), "Content-Length"), "slice_is knows no case");
    check(!slice_is(SLICE("Content-Lengt"), "Content-Length"), "slice_is: too short");
    check(!slice_is(SLICE("Content-Length "), "Content-Length"), "slice_is: too long");
    check(!slice_is(SLICE("a\0b"), "a"), "slice_is: a NUL is a letter");
}

static void
test_buffers(void)
{
    struct buf b = {0};
    struct err e;

    for (int i = 0; i < 1000; i++)
        buf_format(&b, "%d;", i);
    check(b.len == 3890 && b.data[b.len] == '\0', "a buffer that grows by formats");
    buf_free(&b);
    buf_add(&b, "", 0);
    check(b.data && b.data[0] == '\0', "adding nothing makes an empty text");
    buf_free(&b);
    for (size_t n = 60; n < 70; n++) { /* around the first allocation */
        buf_format(&b, "%0*d", (int)n, 7);
        check(b.len == n && strlen(b.data) == n && b.data[n - 1] == '7', "%zu bytes", n);
        buf_free(&b);
    }
    buf_format(&b, "%d %d %lld %lld %llu %zu%s", INT_MIN, 0, LLONG_MIN, LLONG_MAX, ULLONG_MAX,
        (size_t)10, "");
    check_buf(&b,
        SLICE("-2147483648 0 -9223372036854775808 9223372036854775807 18446744073709551615 10"),
        "formats of whole numbers");
    buf_format(&b, "%s|%.2s|%s|%d%%, %s", "a", "bcd", "", 5, "e"); /* some are left to printf */
    check_buf(&b, SLICE("a|bc||5%, e"), "formats of both kinds");
    buf_add_text(&b, "abcdef");
    buf_drop(&b, 4);
    check_text(b.data, "ef", "buf_drop");
    buf_drop(&b, 2);
    check(b.len == 0 && b.data[0] == '\0', "of all");
    buf_free(&b);
    err_set(&e, "%0*d", 2000, 1);
    check_count(strlen(e.text), sizeof e.text - 1, "a long error is cut");
    err_set(&e, "why");
    err_set(&e, "%s not: %s", e.text, e.text);
    check_text(e.text, "why not: why", "err_set with its own text");
    err_set(&e, "%0*d%s", 2000, 1, e.text);
    check(strlen(e.text) < sizeof e.text, "words over the room");
}

/* ==== 4. Log ================================================================ */

/* Sets the log up with nobody who writes it, at a level. */
static void
log_begin(enum log_level level)
{
    buf_free(&the_log.queue);
    buf_free(&the_log.events);
    the_log = (struct log){.level = level, .file = -1};
    plat_monitor_init(&the_log.lock);
}

/* How many lines of the queue hold text. */
static int
log_count(const char *text)
{
    struct slice rest = held(&the_log.queue);
    int n = 0;

    while (rest.len > 0) {
        size_t len = (size_t)((char *)memchr(rest.data, '\n', rest.len) - rest.data);
        n += memmem(rest.data, len, text, strlen(text)) != NULL;
        rest.data += len + 1;
        rest.len -= len + 1;
    }
    return n;
}

static bool
check_log(long long want, const char *text)
{
    return check_number(log_count(text), want, text);
}

static void
log_forget(void)
{
    buf_free(&the_log.queue);
    buf_free(&the_log.events);
}

static void
test_log_files(void)
{
    static const int64_t day = 86400000, noon = 1795339800123; /* 2026-11-22 */
    static const char *const files[] = {"butler_webhook.2026-10-22.log",
        "butler_webhook.2025-12-31.log", /* these go, the others stay: the third is 30 days old */
        "butler_webhook.2026-10-23.log", "butler_webhook.2026-11-21.log",
        "butler_webhook.2025-12-31.log.gz", "butler_webhook.2025-12-31.txt",
        "butler.2025-12-31.log"};
    const char *first = in_folder("butler_webhook.2026-11-22.log");
    const char *second = in_folder("butler_webhook.2026-11-23.log");

    the_log.folder = folder;
    for (size_t i = 0; i < COUNT(files); i++)
        write_file(files[i], SLICE("x"));
    check_number(log_open_file(noon), 0, "log_open_file");
    for (size_t i = 0; i < COUNT(files); i++) {
        check((access(in_folder(files[i]), F_OK) == 0) == (i > 1), "%s stays or not", files[i]);
        unlink(in_folder(files[i]));
    }
    check(access(first, F_OK) == 0, "the day's file");
    int handle = the_log.file;
    check(log_open_file(noon + 3600000) == 0 && the_log.file == handle, "the same file that day");
    check_number(log_open_file(noon + day), 0, "the next day");
    check(access(second, F_OK) == 0 && access(first, F_OK) == 0, "a new file, the old one kept");
    check_number(log_open_file(noon + 31 * day), 0, "31 days later");
    check(access(first, F_OK) != 0 && access(second, F_OK) == 0, "only the oldest is deleted");
    unlink(second);
    unlink(in_folder("butler_webhook.2026-12-23.log"));
    plat_file_close(the_log.file);
    the_log.file = -1;
    the_log.folder = "/nonexistent";
    check(log_open_file(noon) != 0, "a folder that is not there");
}

/*
 * A console that nobody reads for a while: how many lines are missing is logged when it is read.
 * The file has the same.
 */
static void
test_log_thread(void)
{
    static const int total = 40000; /* more than a batch and the queue hold */
    struct buf shown = {0}, file;
    char when[32], room[4096];
    int pipes[2], console, whole = 0, told = 0;
    struct err e;

    check(log_start(LOG_INFO, "/proc/none", &e) != 0, "no folder");
    check_has(e.text, "/proc/none", "which one");
    no_threads = true;
    check(log_start(LOG_INFO, NULL, &e) != 0, "no thread");
    check_text(e.text, "cannot start the log thread", "why");
    no_threads = false;
    if (!check(pipe(pipes) == 0 && log_start(LOG_INFO, folder, &e) == 0, "log_start to a pipe"))
        return;
    log_time(plat_wall_ms(), when);
    fcntl(pipes[0], F_SETFL, O_NONBLOCK);
    fflush(stdout);
    console = dup(STDOUT_FILENO);
    dup2(pipes[1], STDOUT_FILENO);
    for (int i = 0; i < total; i++)
        log_line(LOG_INFO, "this is line number %d of many", 1000000 + i);
    usleep(10 * LOG_GATHER_MS * 1000);
    check(!log_stop(plat_now_ms() + 10), "log_stop while it hangs");
    for (int turns = 0; turns < 20000; turns++) {
        bool done = the_log.unwritten == 0;
        ssize_t n = read(pipes[0], room, sizeof room);
        if (n > 0)
            buf_add(&shown, room, (size_t)n);
        else if (done)
            break;
        else
            usleep(1000);
    }
    bool stopped = log_stop(plat_now_ms() + 10000);
    dup2(console, STDOUT_FILENO);
    for (int i = 0; i < 3; i++)
        close((int[]){console, pipes[0], pipes[1]}[i]);
    check(stopped && the_log.unwritten == 0, "log_stop");
    file = read_file(textf("%s/butler_webhook.%.10s.log", folder, when));
    check(same(held(&file), held(&shown)), "the file has the same");
    buf_free(&file);
    buf_add(&shown, "", 0);
    for (char *line = strtok(shown.data, "\n"); line; line = strtok(NULL, "\n")) {
        const char *text = strstr(line, "Z info: this is line number "), *n;
        whole += text && strlen(text) == 43;
        n = strstr(line, "Z error: ");
        if (n && check(strstr(n, " log lines are missing: "), "an error: %s", n)) {
            check_number(told, 0, "told once");
            told = atoi(n + 9);
        }
    }
    int extra = whole + told - total; /* a warning that found no room counts, too */
    check(whole > 10000 && told > 500 && (extra == 0 || extra == 1),
        "of %d lines %d are shown and %d counted", total, whole, told);
    buf_free(&shown);
}

static void
test_log_text(void)
{
    struct buf b = {0};

    check_text(log_text(SLICE("a\nb")).text, "a\\x0ab", "log_text");
    check_text(log_text((struct slice){0}).text, "", "log_text of nothing");
    add_many(&b, 2 * LOG_NAME_MAX, "\x7f");
    check_count(strlen(log_text(held(&b)).text), LOG_NAME_MAX + 3, "log_text of what grows most");
    b.len = 0;
    add_many(&b, LOG_NAME_MAX, "x");
    check_text(log_text(held(&b)).text, b.data, "log_text just fits");
    const char *want = textf("%s...", b.data);
    buf_add_char(&b, 'y');
    check_text(log_text(held(&b)).text, want, "one over");
    for (int lead = 0; lead < 8; lead++) { /* cut at each place of a character and of an escape */
        b.len = 0;
        for (int i = 0; i < lead; i++)
            buf_add_char(&b, i % 2 ? 'x' : '\n');
        add_many(&b, 60, "\xf0\x9f\x9a\x80");
        struct log_text cut = log_text(held(&b));
        check(utf8_is_valid(cut.text, strlen(cut.text)), "a character is cut, %d before it", lead);
        check(strlen(cut.text) <= LOG_NAME_MAX + 3, "log_text is bounded");
    }
    buf_free(&b);
}

static void
test_log(void)
{
    struct table t = {0};
    struct buf b = {0};
    char when[32];

    while (table_next(&t, "clean")) {
        log_add_clean(&b, exact(t.field[0]));
        check_buf(&b, t.field[1], "log_add_clean");
    }
    while (table_next(&t, "times")) {
        log_time(field_number(t.field[0]), when);
        check_text(when, t.field[1].data, "log_time");
    }
    log_line(LOG_VERBOSE, "not wanted");
    log_line(LOG_INFO, "a %s", "b\nc");
    log_line(LOG_ERROR, "e");
    check_log(2, "");
    check_log(1, "Z info: a b\\x0ac");
    check_log(1, "Z error: e");
    for (int i = 0; i < 40000; i++)
        log_line(LOG_WARN, "this line is one of very many, number %d", i);
    check(the_log.queue.len <= LOG_QUEUE_MAX, "the queue is bounded");
    check(the_log.queue.len > LOG_QUEUE_MAX - 100, "and full");
    check_log((long long)the_log.lines, "");
    check_number((long long)the_log.unwritten, 40002, "none is written");
}

/* The event log gets the last of each minute, with the count. */
static void
test_log_events(void)
{
    static const char told[] = "\6one 1\0\6one 4 (the last of 3 within a minute)\0\7other\0"
                               "\5up (the last of 2 within a minute)";
    struct log_event one = {0}, other = {0};

    log_begin(LOG_ERROR);
    for (int i = 1; i <= 4; i++) {
        log_event(&one, PLAT_GIVEN_UP, LOG_INFO, "one %d", i);
        log_report(1000 + i);
    }
    log_report(1001 + MINUTE_MS);
    log_report(1002 + MINUTE_MS);
    log_event(&other, PLAT_DISK_FAILED, LOG_ERROR, "other");
    log_report(1002 + MINUTE_MS);
    log_report(1002 + 2 * MINUTE_MS);
    log_event(&other, PLAT_WEBHOOK_DOWN, LOG_ERROR, "down");
    log_event(&other, PLAT_WEBHOOK_UP, LOG_ERROR, "up");
    log_report(1002 + 3 * MINUTE_MS);
    check(the_log.events.len == sizeof told && memcmp(the_log.events.data, told, sizeof told) == 0,
        "%s", show(held(&the_log.events)));
    check_log(3, ""); /* whatever logLevel is */
    buf_free(&the_log.events);
    buf_free(&one.text);
    buf_free(&other.text);
}

/* ==== 5. Alert ============================================================== */

#define DATAGRAM FAILED ";QS1;T;A;LAB\\g;" IDS ";M"
#define SHORT_DATAGRAM FAILED ";QS1;T;A;u;" IDS ";M"
#define SHORT_ABORT ABORTED_ID ";QS1;T;A;u;" IDS ";M"

/* Adds the fields from the host name on, in the datagram's order. */
static void
fields(const struct alert *alert, struct buf *out)
{
    static const enum alert_field order[] = {FIELD_HOST_NAME, FIELD_TASK_NAME, FIELD_APP_NAME,
        FIELD_USER, FIELD_TASK_ID, FIELD_APP_ID, FIELD_TIME, FIELD_LEVEL, FIELD_EXECUTION_ID,
        FIELD_MESSAGE};

    for (size_t i = 0; i < COUNT(order); i++) {
        if (i > 0)
            buf_add_char(out, '|');
        buf_add_text(out, alert->field[order[i]]);
    }
}

/* What a datagram is: "failure" and "aborted" are ours. */
static const char *
sort_of(enum listen_fate fate, const struct alert *alert)
{
    static const char *const sorts[] = {"ours", "ignored", "malformed", "unknown"};

    return fate == LISTEN_ACCEPTED ? KINDS[alert->kind].name : sorts[fate];
}

/* Checks what alert_parse makes of a datagram: the fields, or a part of the error. */
static void
check_alert(struct slice datagram, const char *sort, struct slice want, const char *what)
{
    static struct alert alert; /* one for all */
    struct slice in = exact(datagram);
    struct buf got = {0};
    struct err e = {""};
    enum listen_fate fate = alert_parse(in, &alert, &e);

    memset((char *)(uintptr_t)in.data, 'x', in.len); /* the alert must not need it */
    check_text(sort_of(fate, &alert), sort, what);
    if (fate == LISTEN_ACCEPTED) {
        fields(&alert, &got);
        check_buf(&got, want, what);
        check_text(alert.field[FIELD_EVENT], KINDS[alert.kind].event, "event");
    } else
        check(memmem(e.text, strlen(e.text), want.data, want.len) != NULL,
            "%s: \"%s\" tells no \"%s\"", what, e.text, show(want));
    buf_free(&alert.text);
}

static void
test_alerts(void)
{
    struct table t = {0};
    struct buf b = {0};

    while (table_next(&t, "decode")) {
        alert_decode(exact(t.field[0]), &b);
        check_buf(&b, t.field[1], "alert_decode");
    }
    while (table_next(&t, "alerts"))
        check_alert(t.field[0], t.field[1].data, t.field[2], show(t.field[0]));
}

static void
test_alert_large(void)
{
    struct buf b = {0}, want = {0};
    struct alert alert = {0};
    struct err e;

    buf_add_text(&b, FAILED ";QS1;T;A;u;" IDS ";");
    buf_add_text(&want, "QS1|T|A|u" WANT_IDS);
    add_many(&want, (int)(DATAGRAM_MAX - b.len), "\xc3\xa5");
    add_many(&b, (int)(DATAGRAM_MAX - b.len), "\xe5"); /* two bytes each in UTF-8 */
    check_alert(held(&b), "failure", held(&want), "the largest datagram");
    b.len = want.len = 0;
    buf_add_text(&b, FAILED ";QS1");
    add_many(&b, (int)(DATAGRAM_MAX - 200 - b.len), ";");
    buf_add_text(&b, IDS ";M");
    clock_t began = clock();
    check(alert_parse(held(&b), &alert, &e) == LISTEN_ACCEPTED, "65,000 times \";\"");
    buf_free(&alert.text);
    check((clock() - began) / CLOCKS_PER_SEC < 1, "and takes no second");
    b.len = 0;
    for (int i = 0; i < 100; i++) /* over CUT_PLACES_MAX pieces */
        buf_format(&b, "%s%d", i ? ";" : FAILED ";QS1;n", i);
    buf_add_text(&b, ";" IDS ";M");
    buf_add_text(&want, "QS1|n0|1");
    for (int i = 2; i < 99; i++)
        buf_format(&want, ";%d", i);
    buf_add_text(&want, "|99" WANT_IDS "M");
    check_alert(held(&b), "failure", held(&want), "100 pieces of names");
    buf_free(&b);
    buf_free(&want);
}

/* Alerts, and the events that the real log4net was given. */
static void
test_alert_events(void)
{
    struct buf text = read_file("test/data/datagrams/index.json");
    cJSON *index = json_read(held(&text));
    const cJSON *row;

    check(cJSON_GetArraySize(index) > 50, "datagrams; run in the repository's folder");
    cJSON_ArrayForEach(row, index)
    {
        const char *file = json_text(row, "file");
        bool cut = strcmp(file, "051-a-control-chars.bin") == 0; /* a name holds a ";" */
        struct buf data = read_file(textf("test/data/datagrams/%s", file));
        struct alert alert = {0};
        struct err e;
        enum listen_fate fate = alert_parse(held(&data), &alert, &e);
        check_text(sort_of(fate, &alert), json_text(row, "verdict"), file);
        for (int i = 1; fate == LISTEN_ACCEPTED && i < ALERT_FIELDS; i++) {
            const cJSON *want = cJSON_GetObjectItem(
                cJSON_GetObjectItem(row, "fields"), FIELD_NAMES[i]);
            const char *got = alert.field[i];
            uint8_t hash[32];
            char hex[65] = "";
            if (cJSON_IsString(want)) { /* cJSON ends a text at its first NUL, which we replace */
                size_t len = strlen(want->valuestring);
                bool ok = strncmp(got, want->valuestring, len) == 0 &&
                    (got[len] == '\0' || strncmp(got + len, "\xef\xbf\xbd", 3) == 0);
                check(ok || (cut && (i == FIELD_TASK_NAME || i == FIELD_APP_NAME)),
                    "%s: %s is \"%s\", not \"%s\"", file, FIELD_NAMES[i], got, want->valuestring);
                continue;
            }
            mbedtls_sha256((const unsigned char *)got, strlen(got), hash, 0);
            hex_write(hash, sizeof hash, hex);
            check_text(hex, json_text(want, "sha256"), file);
        }
        buf_free(&alert.text);
        buf_free(&data);
    }
    cJSON_Delete(index);
    buf_free(&text);
}

/* The alert of a datagram that is ours. The caller frees its text. */
static struct alert
alert_of(struct slice datagram)
{
    struct alert alert = {0};
    struct err e;

    if (alert_parse(datagram, &alert, &e) == LISTEN_ACCEPTED)
        return alert;
    check(false, "\"%s\" should be ours: %s", show(datagram), e.text);
    abort();
}

static void
test_json(void)
{
    struct table t = {0};
    struct buf b = {0};
    cJSON *value;

    while (table_next(&t, "stringify")) {
        value = cJSON_CreateObject();
        json_put(value, "k", t.field[0].data);
        json_print(value, &b);
        check_buf(&b, t.field[1], "json_print");
        cJSON_Delete(value);
    }
    buf_add_text(&b, "x");
    json_print(NULL, &b);
    check(b.cap < 1000, "nothing to print takes no memory");
    check_buf(&b, SLICE("x"), "json_print of nothing");
    while (table_next(&t, "json")) {
        value = json_read(exact(t.field[0]));
        check((value != NULL) == field_yes(t.field[1]), "json_read of %s", show(t.field[0]));
        cJSON_Delete(value);
    }
    value = json_read(SLICE("{\"A\":\"upper\",\"a\":\"x\",\"b\":1,\"a\":\"y\"}"));
    check_text(json_text(value, "a"), "x", "the first of its name");
    check_text(json_text(value, "b"), "", "no text");
    check_text(json_text(value, "c"), "", "none at all");
    check_text(json_text(NULL, "a"), "", "of nothing");
    cJSON_Delete(value);
}

/* True if text is an alert. */
static bool
is_json_alert(struct slice text)
{
    struct alert alert = {0};
    cJSON *json = json_read(text);
    bool is_alert = alert_read_json(json, &alert) == 0;

    cJSON_Delete(json);
    return is_alert;
}

static void
test_json_alerts(void)
{
    struct table t = {0};
    struct buf json = {0};
    int wrong = 0;

    while (table_next(&t, "json_alerts")) { /* a field, its JSON if it has one; if that is read */
        buf_add_char(&json, '{');
        for (int k = 0; k < ALERT_FIELDS; k++) {
            const char *value = k == 0 ? "\"Qlik Sense reload failed\"" : "\"x\"";
            if (strcmp(FIELD_NAMES[k], t.field[0].data) == 0)
                value = t.field[1].data;
            if (value)
                buf_format(&json, "%s\"%s\":%s", json.len > 1 ? "," : "", FIELD_NAMES[k], value);
        }
        buf_add_char(&json, '}');
        check(is_json_alert(held(&json)) == field_yes(t.field[2]), "%s", json.data);
        for (size_t len = 0; len < json.len; len++) /* cut off, it is none any more */
            wrong += is_json_alert(exact((struct slice){json.data, len}));
        buf_free(&json);
    }
    check_number(wrong, 0, "alerts that were cut off and are read");
}

static void
test_alert_json(void)
{
    static const char datagram[] = FAILED ";QS1;Reload \"S\"\n;S\xc3\xa5;LAB\\g;" IDS ";a\0b\\";
    static const char want[] =
        "{\"event\":\"Qlik Sense reload failed\",\"hostName\":\"QS1\","
        "\"user\":\"LAB\\\\g\",\"taskName\":\"Reload \\\"S\\\"\\n\",\"taskId\":\"" TASK_ID "\","
        "\"appName\":\"S\xc3\xa5\",\"appId\":\"" APP_ID "\",\"logTimeStamp\":\"" WHEN "\","
        "\"logLevel\":\"INFO\",\"executionId\":\"" RUN_ID "\",\"logMessage\":\"a\xef\xbf\xbd"
        "b\\\\\"}";
    static const char test[] =
        "host1|butler_webhook test|butler_webhook test|butler_webhook|" ZERO_ID "|" ZERO_ID "|20";
    struct buf b = {0};
    struct alert alert = alert_of(SLICE(datagram));

    alert_add_json(&alert, false, &b);
    check_buf(&b, SLICE(want), "alert_add_json");
    buf_free(&alert.text);
    alert_add_test(ALERT_ABORTED, "host1", &b);
    cJSON *json = json_read(slice_of(b.data));
    check_number(alert_read_json(json, &alert), 0, "the test alert");
    buf_free(&b);
    fields(&alert, &b);
    check(strncmp(b.data, test, sizeof test - 1) == 0, "the test alert: %s", b.data);
    check_has(b.data, "|INFO|" ZERO_ID "|Test of this webhook", "and its end");
    check_count(strlen(alert.field[FIELD_TIME]), 23, "its time");
    check_text(alert.field[FIELD_EVENT], "Qlik Sense reload aborted", "its event");
    buf_free(&b);
    cJSON_Delete(json);
}

static void
test_alert_about(void)
{
    struct table t = {0};
    char about[ALERT_ABOUT_LEN];

    while (table_next(&t, "about")) {
        struct alert alert = {.field = {[FIELD_EXECUTION_ID] = t.field[0].data}};
        alert_about(&alert, SLICE("abc"), about);
        check_text(about, t.field[1].data, t.field[0].data);
    }
    struct alert aborted = {.kind = ALERT_ABORTED, .field = {[FIELD_EXECUTION_ID] = RUN_ID}};
    alert_about(&aborted, SLICE(""), about);
    check_text(about, "4831c6a534f645bb9d4073a6e6992670_a", "aborted");
}

/* The template of the standard query. The caller frees it with free. */
static struct template_piece *
standard_query(void)
{
    return template_read(
        "event={{event}}&hostName={{hostName}}&user={{user}}&taskName={{taskName}}&taskId={{taskId}}"
        "&appName={{appName}}&appId={{appId}}&logTimeStamp={{logTimeStamp}}&logLevel={{logLevel}}"
        "&executionId={{executionId}}&logMessage={{logMessage}}");
}

/* Makes b the target with the standard query of an alert, at most that long; max 0: all of it. */
static void
make_query(struct buf *b, const char *target, const struct alert *alert, size_t max)
{
    struct template_piece *query = standard_query();
    struct slice values[TEMPLATE_FIELDS];

    for (int i = 0; i < ALERT_FIELDS; i++)
        values[i] = slice_of(alert->field[i]);
    b->len = 0;
    buf_add_text(b, target);
    template_add(b, TEMPLATE_QUERY, query, values);
    if (max > 0)
        template_cut_query(b, max);
    free(query);
}

static void
test_alert_query(void)
{
    struct table t = {0};
    struct buf b = {0};
    struct alert alert = alert_of(SLICE(DATAGRAM));

    while (table_next(&t, "queries")) { /* a message, as it is then */
        struct alert one = alert;
        one.field[FIELD_MESSAGE] = t.field[0].data;
        make_query(&b, "/?", &one, 0);
        check_text(b.data, textf("/?%s%s", QUERY(""), t.field[1].data), t.field[0].data);
    }
    buf_free(&b);
    buf_free(&alert.text);
}

/* A message that is cut so that the target fits: at a whole character, and no more than needed. */
static void
test_alert_query_cut(void)
{
    static const char *const units[] = {"x", " ", "\"", "\xc3\xa5", "\xe2\x82\xac",
        "\xf0\x9f\x9a\x80", "a\xf0\x9f\x9a\x80 \xc3\xa5;"};
    struct buf datagram = {0}, whole = {0}, b = {0};

    for (size_t i = 0; i < COUNT(units); i++) {
        datagram.len = 0;
        buf_add_text(&datagram, FAILED ";QS1;T;A;LAB\\g;" IDS ";");
        while (datagram.len < 5000)
            buf_add_text(&datagram, units[i]);
        struct alert alert = alert_of(held(&datagram));
        make_query(&whole, "/hook?a=1&", &alert, 0);
        for (size_t max = GET_TARGET_MAX; max < GET_TARGET_MAX + 13; max++) {
            make_query(&b, "/hook?a=1&", &alert, max);
            check(b.len <= max && b.len + 24 > max, "%zu bytes of %zu, row %zu", b.len, max, i);
            check(memcmp(b.data, whole.data, b.len) == 0, "it is the start of the whole");
            const char *next = whole.data + b.len; /* no second byte of a character begins here */
            check(next[-1] != '%' && next[-2] != '%' && (*next != '%' || !strchr("89AB", next[1])),
                "a character is cut: %s", b.data);
        }
        make_query(&b, "/hook?a=1&", &alert, whole.len);
        check_bytes(held(&b), held(&whole), "just fits");
        make_query(&b, "/hook?a=1&", &alert, 50);
        check(memcmp(b.data + b.len - 12, "&logMessage=", 12) == 0, "else the message is empty");
        buf_free(&alert.text);
    }
    buf_free(&datagram);
    buf_free(&whole);
    buf_free(&b);
}

static void
test_alert_matches(void)
{
    struct buf patterns[ALERT_FIELDS] = {{0}};
    struct alert alert = alert_of(SLICE(FAILED ";QS1;T;A;LAB\\g;" IDS ";M"));
    struct buf text = {0}, pattern = {0};
    struct table t = {0};

    while (table_next(&t, "patterns"))
        check(alert_text_matches(t.field[0].data, t.field[1].data) == field_yes(t.field[2]),
            "\"%s\" and \"%s\"", show(t.field[0]), t.field[1].data);
    check(alert_matches(&alert, patterns), "no field is named");
    buf_add(&patterns[FIELD_TASK_NAME], "x\0t", 4);
    buf_add(&patterns[FIELD_USER], "lab*", 5);
    check(alert_matches(&alert, patterns), "one of a field's, and each field");
    patterns[FIELD_USER].data[3] = '?';
    check(!alert_matches(&alert, patterns), "one field does not match");
    buf_free(&patterns[FIELD_TASK_NAME]);
    buf_free(&patterns[FIELD_USER]);
    buf_free(&alert.text);
    add_many(&text, DATAGRAM_MAX, "a"); /* the worst that can be does not take for ever */
    for (size_t stars = 1; stars < 200 / 2; stars += 200 / 2 - 2) {
        int64_t began_ms = plat_now_ms();
        pattern.len = 0;
        add_many(&pattern, (int)stars, "*a");
        add_many(&pattern, (int)(200 - 1 - pattern.len), "a");
        buf_add_text(&pattern, "b");
        check(!alert_text_matches(text.data, pattern.data), "almost");
        check(plat_now_ms() - began_ms < 4000, "%d ms", (int)(plat_now_ms() - began_ms));
    }
    buf_free(&text);
    buf_free(&pattern);
}

/* ==== 6. URL ================================================================ */

/* Parses a URL; what is wrong is a failure. The caller ends it with url_done. */
static struct url
url_of(const char *text)
{
    struct url u;
    const char *wrong = url_parse(slice_of(text), NULL, &u);

    check(!wrong, "%s: %s", text, wrong);
    return u;
}

/* Checks what a URL was read as; auth is "user:password". What it was read as is read the same. */
static void
check_url(
    const struct url *u, const char *origin, const char *target, const char *auth, const char *what)
{
    unsigned char base64[200] = "";
    size_t n;

    if (!check_text(u->origin, origin, what) || !check_text(u->target, target, what))
        return;
    if (auth)
        mbedtls_base64_encode(base64, sizeof base64, &n, (const unsigned char *)auth, strlen(auth));
    check_text(u->auth, auth ? textf("Basic %s", base64) : "(none)", what);
    struct url again = url_of(textf("%s%s", u->origin, u->target));
    check_text(again.origin, u->origin, "the same origin again");
    check_text(again.target, u->target, "the same target again");
    check_text(again.host, u->host, "the same host again");
    check(again.port == u->port && again.tls == u->tls, "the same port again: %s", what);
    url_done(&again);
}

static void
test_url_parse(void)
{
    struct table t = {0};
    struct url u, base = url_of("http://u:p@h:8080/a/b/c?x=1");
    const char *wrong;

    while (table_next(&t, "urls")) { /* a shown URL, if not the origin and the target */
        struct slice in = exact(t.field[0]);
        const char *what = t.field[0].data, *shown = t.field[4].data;
        wrong = url_parse(in, NULL, &u);
        if (check(!wrong, "%s: %s", what, wrong)) {
            check_url(&u, t.field[1].data, t.field[2].data, t.field[3].data, what);
            check_text(
                u.shown, shown ? shown : textf("%s%s", t.field[1].data, t.field[2].data), what);
            url_done(&u);
        }
    }
    while (table_next(&t, "urls_bad")) {
        struct slice in = exact(t.field[0]);
        if (!check(url_parse(in, NULL, &u) != NULL, "%s is read as %s", show(in), u.shown))
            url_done(&u);
        check(!u.host && !u.target && !u.auth && !u.origin && !u.shown, "an error leaves nothing");
    }
    while (table_next(&t, "urls_relative")) { /* to the base (RFC 3986, 5.4); or an error */
        struct slice in = exact(t.field[0]);
        const char *what = t.field[0].data, *origin = t.field[1].data;
        wrong = url_parse(in, &base, &u);
        if (check(!wrong == (origin != NULL), "%s is read or not", what) && origin)
            check_url(&u, origin, t.field[2].data, NULL, what);
        url_done(&u);
    }
    url_done(&base);
    while (table_next(&t, "urls_secret")) { /* nobody may see SECRET */
        wrong = url_parse(t.field[0], NULL, &u);
        if (!wrong)
            check(!strstr(u.shown, "SECRET"), "shown as %s", u.shown);
        check(!wrong || !strstr(wrong, "SECRET"), "the error shows it: %s", wrong);
        url_done(&u);
    }
}

static void
test_url_limits(void)
{
    struct buf b = {0};
    struct url u;

    buf_add_text(&b, "http://h/");
    add_many(&b, URL_MAX - 9, "\xe5");
    u = url_of(b.data);
    check_count(strlen(u.target), 1 + 3 * (URL_MAX - 9), "the target of the longest URL");
    url_done(&u);
    buf_add_char(&b, 'x');
    check(url_parse(held(&b), NULL, &u) != NULL, "one byte longer");
    b.len = 0;
    buf_add_text(&b, "http://");
    for (int i = 0; i < HOST_MAX; i++)
        buf_add_char(&b, i % 2 ? '.' : 'x');
    u = url_of(b.data);
    url_done(&u);
    buf_add_text(&b, "x");
    check(url_parse(held(&b), NULL, &u) != NULL, "a host name one byte too long");
    b.len = 0;
    buf_add_text(&b, "http://h/");
    add_many(&b, 1000, "a/../");
    u = url_of(b.data);
    check_text(u.target, "/", "1,000 times up and down");
    url_done(&u);
    buf_free(&b);
}

static void
test_url_excepted(void)
{
    struct table t = {0};

    while (table_next(&t, "urls_excepted")) {
        struct url u = url_of(t.field[0].data);
        check(url_is_excepted(&u, t.field[1].data) == field_yes(t.field[2]),
            "%s with NO_PROXY \"%s\"", t.field[0].data, t.field[1].data);
        url_done(&u);
    }
}

/* ==== 7. Configuration ====================================================== */

#define CONFIGS "test/data/config"
#define NO_UDP "2:3: warning: udpServerConfig is missing: listening on 127.0.0.1:9998\n"

/* What was loaded last. */
static struct cfg_reader the_reader;
static struct config the_config;

/* Loads text as a file in the folder for tests. The caller ends that with loaded_done. */
static void
load(struct slice text)
{
    cfg_load(&the_reader, write_file("butler.yaml", text), false, &the_config);
}

static void
loaded_done(void)
{
    cfg_done(&the_reader);
}

/* True if "..." in a pattern can stand for what makes it the text. */
static bool
matches(const char *text, const char *pattern)
{
    const char *dots = strstr(pattern, "...");
    size_t len = dots ? (size_t)(dots - pattern) : strlen(pattern) + 1;

    if (strncmp(text, pattern, len) != 0)
        return false;
    for (const char *rest = text + len; dots && !matches(rest, dots + 3); rest++)
        if (*rest == '\0')
            return false;
    return true;
}

/* Checks all that was found: lines as in NAME.problems, each with its end. */
static void
check_problems(const char *want, const char *what)
{
    struct buf got = {0}, pattern = {0};
    int lines = 0;

    buf_add(&pattern, "", 0);
    for (size_t len; *want; want += len, lines++) {
        len = strcspn(want, "\n") + 1;
        buf_format(&pattern, "%s:%.*s", the_reader.file, (int)len, want);
    }
    buf_add(&got, "", 0);
    cfg_add_problems(&got, &the_reader);
    check(
        matches(got.data, pattern.data), "%s: \"%s\" is not \"%s\"", what, got.data, pattern.data);
    check_number(the_reader.errors + the_reader.warnings, lines, what);
    buf_free(&got);
    buf_free(&pattern);
}

/* Checks what the configuration holds, all of it, as text. */
static void
check_values(const char *want, const char *what)
{
    const struct config *c = &the_config;
    struct buf got = {0};
    char address[33];

    buf_format(&got, "%s on %s%s, level %d, file %d in %s, state in %s: %d MB, %d h\n",
        c->disabled_by ? c->disabled_by : "runs", c->listens_on, c->is_local ? " (local)" : "",
        (int)c->log_level, c->file_logging, c->log_directory,
        c->state_directory ? c->state_directory : "memory", (int)c->max_state_mb,
        (int)c->max_age_hours);
    buf_format(&got,
        "%d bytes, rate %d %d, duplicates %d %d, limits %d %d, calls %d s, %d at once\n",
        (int)c->max_message_size, c->udp_rate_enable, (int)c->udp_rate, c->dedup_enable,
        (int)c->dedup_minutes, (int)c->rate_limit_s[ALERT_FAILURE],
        (int)c->rate_limit_s[ALERT_ABORTED], (int)c->timeout_s, (int)c->max_concurrent);
    buf_format(&got, "%zu sources%s\n", c->sources, c->source_validation ? ", checked" : "");
    for (size_t i = 0; i < c->sources; i++) {
        const struct source *s = &c->source[i];
        hex_write(s->address[0], sizeof *s->address, address);
        buf_format(&got, "%s/%d\n", s->name ? s->name : address, s->addresses ? s->bits : -1);
    }
    for (size_t i = 0; i < c->webhooks; i++) {
        const struct webhook_config *w = &c->webhook[i];
        buf_format(&got, "%s of %zu: %s %s, cert %d %d %s %d, %s, proxy %s\n", w->name, w->listed,
            METHODS[w->method], w->url.host ? w->url.shown : "(none)", w->cert_enable,
            w->reject_unauthorized, w->cert_ca ? w->cert_ca : "-", w->ca_count, w->key,
            w->proxy ? w->proxy->origin : "-");
    }
    check(matches(got.data, want), "%s: \"%s\" is not \"%s\"", what, got.data, want);
    buf_free(&got);
}

/* The files that test_config.py checks with the program; some have their values in NAME.values. */
static void
check_config_file(const char *name, void *count)
{
    size_t len = strlen(name) - strlen(strstr(name, ".problems") ? ".problems" : "");
    struct buf problems, values;
    const char *path = textf(CONFIGS "/%.*s.yaml", (int)len, name);

    if (name[len] == '\0')
        return;
    problems = read_file(textf(CONFIGS "/%s", name));
    values = read_file(textf(CONFIGS "/%.*s.values", (int)len, name));
    cfg_load(&the_reader, path, false, &the_config);
    check_problems(problems.data, path);
    check_values(values.len ? values.data : "...", path);
    loaded_done();
    buf_free(&problems);
    buf_free(&values);
    ++*(int *)count;
}

static void
test_configs(void)
{
    struct table t = {0};
    char **environment = environ;
    int files = 0;

    folder_each(CONFIGS, check_config_file, &files);
    check(files > 70, "%d files; run in the repository's folder", files);
    while (table_next(&t, "configs")) { /* an environment, a file, its problems, its values */
        char *variables[3] = {strtok((char *)(uintptr_t)t.field[0].data, ";")};
        variables[1] = variables[0] ? strtok(NULL, ";") : NULL;
        environ = variables;
        load(t.field[1]);
        environ = environment;
        check_problems(t.field[2].data, t.field[1].data);
        check_values(t.field[3].data, t.field[1].data);
        loaded_done();
    }
    cfg_load(&the_reader, CONFIGS "/off.yaml", true, &the_config);
    check_problems("6:23: error: webhookURL is not a URL: ...\n", "strict, though off");
    loaded_done();
    cfg_load(&the_reader, CONFIGS "/client.yaml", false, &the_config);
    check_bytes(held(&the_reader.files),
        SLICE(CONFIGS "/ca.pem\0" CONFIGS "/minimal.yaml\0" CONFIGS "/half-damaged.pem\0" CONFIGS
                      "/bom-crlf-three.pem\0"),
        "files that --install lets the service read");
    loaded_done();
}

#define UNREADABLE "1:1: error: cannot read the configuration (at most 512 KB): "
#define LISTS " must be a list, each entry starting with \"- \", their number from 0 to "

#define BEYOND                                                                                     \
    "error: nested more than 64 levels deep, as by an alias inside its own anchor, or more than "  \
    "1000 anchors, or more than 20000 values, counting what aliases stand for\n"

/* The bounds, each on both sides; what goes far over them is in test_config.py. */
static void
test_config_bounds(void)
{
    static const char hook[] = "        - {webhookURL: 'http://h/', httpMethod: GET}\n";
    static const char sources[] = HOOK
        "  udpServerConfig:\n    enable: true\n    allowedSources:\n";
    static const struct {
        const char *begin, *unit;
        int count; /* of unit, and of end */
        const char *end, *want;
    } rows[] = {{HOOK, "#", CONFIG_MAX - sizeof HOOK + 1, "", NO_UDP},
        {HOOK, "#", CONFIG_MAX - sizeof HOOK + 2, "", UNREADABLE "File too large\n"},
        {HOOKS, hook, CONFIG_WEBHOOKS_MAX, "", NO_UDP},
        {HOOKS, hook, CONFIG_WEBHOOKS_MAX + 1, "",
            NO_UDP "6:9: error: webhookNotification.reloadTaskFailure.webhooks" LISTS "200\n"},
        {sources, "      - 10.0.0.1\n", 256, "", ""},
        {sources, "      - 10.0.0.1\n", 257, "",
            "11:7: error: udpServerConfig.allowedSources" LISTS "256\n"},
        /* lists whose value is on level 2 */
        {HOOK "  x: ", "[", CONFIG_DEPTH_MAX - 1, "]", NO_UDP},
        {HOOK "  x: ", "[", CONFIG_DEPTH_MAX, "]", "8:69: " BEYOND},
        {HOOK "  x: ", "[", CONFIG_DEPTH_MAX + 1, "]", "8:69: " BEYOND},
        {"", "[", 2000, "", "1:1026: " BEYOND},
        /* 17 values stand in HOOK; an alias counts as itself and what it stands for */
        {HOOK "  x:\n", "  - 1\n", CONFIG_NODES_MAX - 17, "", NO_UDP},
        {HOOK "  x:\n", "  - 1\n", CONFIG_NODES_MAX - 16, "", "9:3: " BEYOND},
        {"a: &a {k: [1, 2]}\nb:\n", "- *a\n", (CONFIG_NODES_MAX - 8) / 5, "",
            "1:1: error: the file must start...\n"},
        {"a: &a {k: [1, 2]}\nb:\n", "- *a\n", CONFIG_NODES_MAX / 5, "", "1:4: " BEYOND},
        /* they are counted before they are looked at */
        {"a:\n", "- &a 1\n", CONFIG_ANCHORS_MAX, "",
            "...second occurrence found duplicate anchor...\n"},
        {"a:\n", "- &a 1\n", CONFIG_ANCHORS_MAX + 1, "", "1003:1: " BEYOND}};
    struct buf b = {0};

    cfg_load(&the_reader, folder, false, &the_config);
    check_problems(UNREADABLE "Is a directory\n", "a folder");
    loaded_done();
    cfg_load(&the_reader, "/nonexistent.yaml", false, &the_config);
    check_problems(UNREADABLE "No such file or directory\n", "no file");
    loaded_done();
    for (size_t i = 0; i < COUNT(rows); i++) {
        buf_add_text(&b, rows[i].begin);
        add_many(&b, rows[i].count, rows[i].unit);
        add_many(&b, rows[i].count, rows[i].end);
        load(held(&b));
        check_problems(rows[i].want, rows[i].begin);
        loaded_done();
        b.len = 0;
    }
    buf_free(&b);
}

/* Loads a webhook with these lines more. The caller ends that with loaded_done. */
static const struct webhook_config *
template_of(const char *method, const char *lines)
{
    load(slice_of(textf(HOOKS "        - webhookURL: http://h/\n          httpMethod: %s\n"
                              "          description: ''\n%s\n",
        method, lines)));
    check_problems(NO_UDP, lines);
    return &the_config.webhook[0];
}

/* What a template makes of an alert with this task and message. The caller frees it. */
static struct buf
template_filled(const struct webhook_config *w, const char *task, const char *message)
{
    struct alert alert = alert_of(SLICE(DATAGRAM));
    struct slice values[TEMPLATE_FIELDS];
    struct buf b = {0};

    if (!check(w->template != NULL, "there is a template"))
        abort();
    alert.field[FIELD_TASK_NAME] = task;
    alert.field[FIELD_MESSAGE] = message;
    for (int i = 0; i < ALERT_FIELDS; i++)
        values[i] = slice_of(alert.field[i]);
    values[FIELD_KIND] = SLICE("failure");
    values[FIELD_SUPPRESSED] = SLICE("3");
    values[FIELD_RECEIVED_AT] = SLICE("2026-11-22T09:30:00.123Z");
    values[FIELD_WEBHOOK_ID] = SLICE("msg_1");
    template_add(&b, w->form, w->template, values);
    buf_free(&alert.text);
    return b;
}

/* A method, lines of a webhook, a message; what is sent. A body from a map or list is JSON. */
static void
test_templates(void)
{
    struct table t = {0};

    setenv("UNIT_HOSTILE", "\"{{event}}\\${env:HOME}", 1);
    while (table_next(&t, "templates")) {
        const struct webhook_config *w = template_of(t.field[0].data, t.field[1].data);
        struct buf b = template_filled(w, "T", t.field[2].data);
        cJSON *value = json_read(held(&b));
        check(value || w->form != TEMPLATE_JSON, "%s is JSON", b.data);
        cJSON_Delete(value);
        check_buf(&b, t.field[3], t.field[1].data);
        loaded_done();
    }
    unsetenv("UNIT_HOSTILE");
}

/* Whatever a field holds, a reader of the JSON gets just that, or its first characters. */
static void
test_template_random(void)
{
    static const char *const units[] = {"\"", "\\", "\\u0041", "{{event}}", "}}", "${env:HOME}",
        "\n", "\x01", "\x7f", "\xc3\xa5", "\xe2\x80\xa8", "\xf0\x9f\x9a\x80", "\xef\xbf\xbd",
        "e\xcc\x81", " "};
    const struct webhook_config *w = template_of("PUT",
        "          body: {a: '\"{{logMessage}}{{taskName}}', '{{event}}': ['{{logMessage | 7 }}']}");
    struct buf message = {0}, task = {0};

    for (int i = 0; i < 500; i++) {
        size_t chars = 0, seventh = 0;
        message.len = task.len = 0;
        buf_add(&message, "", 0);
        buf_add(&task, "", 0);
        for (uint32_t n = random_below(12); n > 0; n--)
            buf_add_text(&message, units[random_below(COUNT(units))]);
        for (uint32_t n = random_below(3); n > 0; n--)
            utf8_add(&task, random_below(n == 1 ? 0x110000 : 0x80));
        struct buf b = template_filled(w, task.data, message.data);
        cJSON *value = json_read(held(&b));
        const char *cut = cJSON_GetStringValue(cJSON_GetArrayItem(cJSON_GetArrayItem(value, 1), 0));
        check_text(json_text(value, "a"), textf("\"%s%s", message.data, task.data), "the whole");
        for (size_t at = 0; at < message.len; at++)
            if ((message.data[at] & 0xc0) != 0x80 && ++chars == 7)
                seventh = at;
        check_text(cut,
            chars > 7 ? textf("%.*s\xe2\x80\xa6", (int)seventh, message.data) : message.data,
            "cut at 7 characters");
        cJSON_Delete(value);
        buf_free(&b);
    }
    buf_free(&message);
    buf_free(&task);
    loaded_done();
}

/* Fields that are too large for many uses are cut, and what is sent stays bounded and valid. */
static void
test_template_bounds(void)
{
    const struct webhook_config *w;
    struct buf lines = {0}, message = {0};

    add_many(&message, DATAGRAM_MAX, "\x01");
    buf_add_text(&lines, "          body: ['");
    add_many(&lines, 50, "{{logMessage}}");
    buf_add_text(&lines, "','{{logMessage|9}}{{taskName}}']");
    w = template_of("POST", lines.data);
    struct buf b = template_filled(w, "", message.data);
    cJSON *value = json_read(held(&b));
    const char *text = cJSON_GetStringValue(cJSON_GetArrayItem(value, 0));
    check(b.len > 6 * TEMPLATE_MAX && b.len < UNSENT_MAX - 200000, "%zu bytes", b.len);
    check(text && strspn(text, "\x01") == 4 * DATAGRAM_MAX + TEMPLATE_MAX % DATAGRAM_MAX,
        "whole as long as there is room");
    check_text(cJSON_GetStringValue(cJSON_GetArrayItem(value, 1)), "\xe2\x80\xa6", "none is left");
    cJSON_Delete(value);
    buf_free(&b);
    loaded_done();
    lines.len = 0;
    buf_add_text(&lines, HOOK "          body: '");
    add_many(&lines, TEMPLATE_MAX / 16, "{{user}}-----------");
    buf_add_text(&lines, "'\n");
    load(held(&lines));
    check_problems(NO_UDP "8:17: error: body is too long: ...\n", "a template too long");
    loaded_done();
    buf_free(&lines);
    buf_free(&message);
}

/* ==== 8. Windows of time ==================================================== */

static struct windows the_windows; /* 1.9 MB */

static void
windows_begin(int64_t length_ms)
{
    memset(&the_windows, 0, sizeof the_windows);
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        for (int use = 0; use < WINDOW_USES; use++)
            the_windows.table[kind][use].length_ms = length_ms;
}

static struct window_key
key_of(const char *id)
{
    return window_key(&(struct alert){.field = {[FIELD_EXECUTION_ID] = id}}, WINDOW_SEEN);
}

/* What the listener does with one table: true if id is held back at now_ms. */
static bool
window_holds(struct window_table *t, const char *id, int64_t now_ms)
{
    struct window_key key = key_of(id);
    struct window_entry *entry = window_find(t, &key, now_ms);

    if (entry) {
        entry->held++;
        return true;
    }
    window_open(t, &key, now_ms);
    return false;
}

/* The same for an id made of a number: a GUID, or any text. */
static bool
window_holds_number(struct window_table *t, unsigned number, int64_t now_ms)
{
    char id[40];

    snprintf(id, sizeof id, number % 2 ? "4831c6a5-34f6-45bb-9d40-73a6e6%06x" : "id %u", number);
    return window_holds(t, id, now_ms);
}

static void
test_window_edges(void)
{
    static const int64_t length = 300000;
    struct window_table *t = &the_windows.table[ALERT_FAILURE][WINDOW_RATE];
    struct table keys = {0};
    struct window_key a_key = key_of("a");

    check(key_of("").none && key_of(ZERO_ID).none && key_of("{" ZERO_ID "}").none, "no id");
    check(!key_of(RUN_ID).none && !key_of("0x").none, "an id");
    windows_begin(length);
    for (int64_t begin = -1000000; begin <= 1000000000000; begin += 500000000000) {
        check(!window_holds(t, "a", begin), "the first is let through");
        check(window_holds(t, "a", begin), "the second at the same moment is not");
        check(window_holds(t, "a", begin + length - 1), "nor one ms before the end");
        check_number(window_find(t, &a_key, begin + length - 1)->held, 2, "held back so far");
        check(!window_holds(t, "a", begin + length), "at the end it is, and opens a new one");
        check(window_holds(t, "a", begin + 2 * length - 1), "that is as long");
        check_number(window_find(t, &a_key, begin + length)->held, 1, "and counts anew");
        check(!window_holds(t, "a", begin + 2 * length), "what was held back did not extend it");
        check(!window_holds(t, "b", begin + 2 * length), "another id has its own");
    }
    check(!window_holds(&the_windows.table[ALERT_ABORTED][WINDOW_RATE], "a", 0), "another kind");
    while (table_next(&keys, "window_keys")) { /* two ids, and whether they are the same */
        const char *a = keys.field[0].data, *b = keys.field[1].data;
        windows_begin(length);
        window_holds(t, a, 0);
        check(window_holds(t, b, 1) == field_yes(keys.field[2]), "%s and %s", a, b);
    }
    windows_begin(length);
    check_number(window_open(t, &a_key, 0), 0, "nothing was held back before the first");
    window_find(t, &a_key, 1)->held = HELD_MAX;
    window_holds(t, "b", 1);
    check_number(window_open(t, &a_key, length), HELD_MAX, "by the one before");
    check_number(window_open(t, &a_key, 9 * length), 0, "not by the one before that");
    window_find(t, &a_key, 9 * length)->held = 2;
    for (unsigned i = 1; i < WINDOW_MAX; i++)
        window_holds_number(t, i, 10 * length);
    check_number(window_open(t, &a_key, 10 * length), 2, "as long as its place is not needed");
    windows_begin(1);
    check(!window_holds(t, "a", 5) && window_holds(t, "a", 5), "one ms");
    check(!window_holds(t, "a", 6) && t->last == 2, "is over the next: another one");
    check(!window_holds(t, "", 6) && !window_holds(t, "", 6), "an empty id is never held");
    check_count(t->last, 2, "and not kept");
    memset(&the_windows, 0, sizeof the_windows);
    for (int use = 0; use < WINDOW_USES; use++) {
        t = &the_windows.table[ALERT_ABORTED][use];
        check(!window_holds(t, "a", 0) && !window_holds(t, "a", 0), "no length holds nothing");
        check(t->last == 0, "and keeps nothing");
    }
}

static void
test_window_full(void)
{
    struct window_table *t = &the_windows.table[ALERT_FAILURE][WINDOW_SEEN];
    struct window_key seventh = key_of("id 6");
    int wrong = 0;

    windows_begin(1000000);
    for (unsigned i = 0; i < WINDOW_MAX; i++)
        wrong += window_holds_number(t, i, i);
    check_number(wrong, 0, "ids, each for the first time: held back");
    check_number(t->entry[7].begin_ms, 6, "the seventh");
    check(memcmp(t->entry[7].key.bytes, seventh.bytes, 16) == 0, "its key");
    for (unsigned i = 0; i < WINDOW_MAX; i++)
        wrong += !window_holds_number(t, i, WINDOW_MAX);
    check_number(wrong, 0, "all again: let through");
    check(!window_holds_number(t, WINDOW_MAX, WINDOW_MAX), "one more is let through");
    check(window_holds_number(t, WINDOW_MAX, WINDOW_MAX), "and kept");
    check(window_holds_number(t, 1, WINDOW_MAX), "the second is still kept");

    check(!window_holds_number(t, 0, WINDOW_MAX), "the oldest went");
    check(!window_holds_number(t, 1, WINDOW_MAX), "then the second");
    check(window_holds_number(t, 3, WINDOW_MAX), "the others are kept");
    clock_t began = clock();
    for (unsigned i = 0; i < 20 * WINDOW_MAX; i++)
        wrong += window_holds_number(t, WINDOW_MAX + 1 + i, WINDOW_MAX + 1 + i);
    check_number(wrong, 0, "many more: held back");
    check((clock() - began) / CLOCKS_PER_SEC < 4, "and the full table is quick");
    check(window_holds_number(t, 21 * WINDOW_MAX, 21 * WINDOW_MAX), "the last is kept");
    check(!window_find(t, &seventh, 100 * t->length_ms), "much later");
}

/* ==== 9. Journal ============================================================ */

/* Has the disk thread do all that it is asked; has_failed: until a rewriting has healed that. */
static void
state_settle(struct journal *j, bool has_failed)
{
    uint64_t number = j->synced_number + 1;

    for (int i = 0; i < 5000; i++) {
        int64_t until_ms = INT64_MAX;
        journal_take_results(j);
        journal_upkeep(j, number, plat_now_ms(), &until_ms);
        if (!j->disk || (!j->asked && (j->failed ? !has_failed : j->synced_number == number)))
            return;
        usleep(1000);
    }
    check(false, "the disk thread does not settle");
}

/* Has all synced, as the end of loop_stop does. True: it is on the disk. */
static bool
journal_stop(struct journal *j)
{
    journal_write(j);
    j->retry_ms = j->failed ? 0 : INT64_MAX;
    j->sync_all = true;
    state_settle(j, false);
    return !j->failed;
}

/* Closes what journal_open has opened, as a process that ends would. */
static void
journal_done(struct journal *j)
{
    plat_file_close(j->lock);
    plat_file_close(j->file);
    plat_file_close(j->new_file);
    line_reader_done(&j->replay);
    buf_free(&j->out);
    buf_free(&j->letters);
    buf_free(&j->event.text);
    *j = (struct journal){0};
}

#define KEY1 "0123456789abcdef0123456789abcdef"

/* Adds a line made of what stands behind its CRC, without its LF. */
static void
add_record_line(struct buf *b, const char *rest)
{
    char crc[9];

    crc_write(rest, strlen(rest), crc);
    buf_add_texts(b, crc, "\t", rest, NULL);
}

static void
test_journal_records(void)
{
    struct table t = {0};
    struct journal_record r;
    struct buf line = {0}, again = {0}, text = {0};

    while (table_next(&t, "records")) { /* numbers, key, text; the line behind its CRC */
        const char *what = t.field[3].data;
        int wrong = 0;
        add_record_line(&line, what);
        check(journal_read_record(exact(held(&line)), &r, &text) == 0, "reading %s", what);
        check_text(textf("%d %d %d %lld %zu", (int)r.word, (int)r.kind, (int)r.number,
                       (long long)r.wall_ms, r.count),
            t.field[0].data, "its numbers");
        check_bytes(r.key, t.field[1], "its key");
        check_bytes(r.text, t.field[2], "its text");
        journal_add_record(&again, &r);
        check_buf(&again, slice_of(textf("%s\n", line.data)), "written again");
        for (size_t bit = 0; bit < 8 * line.len; bit++) {
            line.data[bit / 8] = (char)(line.data[bit / 8] ^ 1 << bit % 8);
            wrong += journal_read_record(held(&line), &r, &text) == 0;
            line.data[bit / 8] = (char)(line.data[bit / 8] ^ 1 << bit % 8);
        }
        for (size_t len = 0; len < line.len; len++)
            wrong += journal_read_record(exact((struct slice){line.data, len}), &r, &text) == 0;
        check_number(wrong, 0, "damaged, or cut off, at each byte: good");
        buf_free(&line);
    }
    while (table_next(&t, "records_bad")) {
        add_record_line(&line, t.field[0].data);
        check(journal_read_record(held(&line), &r, &text) != 0, "%s", t.field[0].data);
        buf_free(&line);
    }
    buf_free(&text);
}

/* Reads a file line by line, and checks how many there are, and each byte. */
static void
check_lines(struct slice content, int want)
{
    struct line_reader r = {.file = plat_state_open(write_file("lines", content), O_RDONLY)};
    struct buf again = {0};
    struct slice line;
    int n = 0, wrong = 0;

    for (; line_read(&r, &line) > 0; n++) {
        add_slice(&again, line);
        if (again.len < content.len && content.data[again.len] == '\n')
            buf_add_char(&again, '\n');
        else
            wrong += again.len < content.len && line.len <= JOURNAL_LINE_MAX;
    }
    check_number(n, want, show(content));
    check_number(wrong, 0, "short pieces");
    check(line_read(&r, &line) == 0, "it stays at the end");
    check_buf(&again, content, "all lines");
    line_reader_done(&r);
}

static void
test_line_read(void)
{
    struct table t = {0};
    struct buf b = {0};

    while (table_next(&t, "lines"))
        check_lines(t.field[0], (int)field_number(t.field[1]));
    for (int i = 0; i < 60; i++) { /* lines of random lengths, one far too long: in three pieces */
        uint32_t len = i == 30 ? 3 * JOURNAL_LINE_MAX + 12345 : random_below(i % 3 ? 200 : 150000);
        while (len-- > 0)
            buf_add_char(&b, "\0ab\t"[random_below(4)]);
        buf_add_char(&b, '\n');
    }
    check_lines(held(&b), 60 + 2);
    buf_free(&b);
}

/* ---- A state directory ---- */

static char state_folder[80]; /* in the folder for tests */

static const struct config STATE_CONFIG = {.state_directory = state_folder, .max_state_mb = 256};

/* The path of a file of the state directory, as textf gives it. */
static const char *
in_state(const char *name)
{
    return textf("%s/%s", state_folder, name);
}

static void
remove_state_file(const char *name, void *arg)
{
    (void)arg;
    plat_remove(in_state(name));
}

static void
state_clear(void)
{
    folder_each(state_folder, remove_state_file, NULL);
    rmdir(state_folder);
}

static void
write_state(const char *name, struct slice content)
{
    check_number(plat_make_folder(state_folder, true), 0, "the state directory");
    write_file(textf("state/%s", name), content);
}

static bool
is_in_state(const char *name)
{
    return file_len(in_state(name)) >= 0;
}

static int
state_lines(const char *name)
{
    struct buf b = read_file(in_state(name));
    int n = 0;

    for (const char *p = b.data; (p = strchr(p, '\n')); p++)
        n++;
    buf_free(&b);
    return n;
}

/* Puts a folder in the way of a file of the state directory. */
static void
state_block(const char *name)
{
    check_number(mkdir(in_state(name), 0700), 0, name);
}

static void
state_unblock(const char *name)
{
    check_number(rmdir(in_state(name)), 0, name);
}

/*
 * Opens the state directory and checks which records stand in the journal: a letter and the number
 * of each, w waiting, a accepted, e end.
 */
static void
state_open(struct journal *j, bool read_only, const char *records)
{
    struct buf got = {0};
    struct err e = {""};
    struct journal_record r;

    log_begin(LOG_VERBOSE);
    check(journal_open(j, &STATE_CONFIG, read_only, &e) == 0, "journal_open: %s", e.text);
    buf_add(&got, "", 0);
    while (journal_read_next(j, &r) > 0)
        if (r.word != JOURNAL_WEBHOOK)
            buf_format(&got, "%c%d", JOURNAL_WORDS[r.word][0], (int)r.number);
    check_buf(&got, slice_of(records), "records of the journal");
}

static void
state_close(struct journal *j, const char *records)
{
    journal_done(j);
    state_open(j, true, records);
    journal_done(j);
}

/* Writes a record; result: what journal_write should return. */
static void
state_write(struct journal *j, enum journal_word word, unsigned number, int result)
{
    journal_note(j,
        (struct journal_record){
            .word = word, .number = number, .key = S(KEY1), .text = S("{\"event\":\"x\"}")});
    check_number(journal_write(j), result, "journal_write");
}

/* Rewrites the journal so that it holds one alert. */
static void
state_rewrite(struct journal *j, unsigned number)
{
    journal_rewrite_begin(j);
    if (j->new_file >= 0) {
        journal_rewrite_add(j,
            (struct journal_record){
                .word = JOURNAL_WAITING, .number = number, .key = S(KEY1), .text = S("{}")});
        journal_rewrite_flush(j);
    }
}

static void
test_journal_appends(void)
{
    struct journal j, second;
    int64_t until_ms = INT64_MAX, now_ms;
    struct err e;

    state_open(&j, true, ""); /* no folder: nothing waits */
    check(!journal_wants_rewrite(&j, 0, INT64_MAX) && journal_write(&j) != 0, "read only");
    journal_done(&j);
    check(!is_in_state(""), "read only makes nothing");
    state_open(&j, false, "");
    check(journal_open(&second, &STATE_CONFIG, false, &e) != 0, "a second process");
    check_has(e.text, "is used by another butler_webhook", "why");
    journal_done(&second);
    journal_done(&j);
    no_threads = true;
    check(journal_open(&second, &STATE_CONFIG, false, &e) != 0, "no thread for the disk");
    check_has(e.text, "cannot start the disk thread", "why");
    no_threads = false;
    free(second.disk);
    journal_done(&second);
    state_open(&j, false, "");
    state_write(&j, JOURNAL_ACCEPTED, 1, 0);
    state_settle(&j, false);
    check_number(journal_write(&j), 0, "nothing to be written");
    state_write(&j, JOURNAL_END, 1, 0);
    now_ms = plat_now_ms();
    journal_upkeep(&j, j.synced_number, now_ms + 2 * SYNC_MS, &until_ms);
    check(!j.asked && until_ms == INT64_MAX, "nothing waits: no sync");
    state_write(&j, JOURNAL_ACCEPTED, 3, 0);
    journal_upkeep(&j, 3, now_ms, &until_ms);
    check(!j.asked && until_ms == now_ms + SYNC_MS, "a sync is due later");
    journal_upkeep(&j, 3, now_ms + SYNC_MS, &until_ms);
    check(j.asked, "now it is due");
    state_write(&j, JOURNAL_ACCEPTED, 4, 0);
    check(journal_stop(&j) && j.synced_number == 4, "journal_stop");
    state_close(&j, "a1e1a3a4");
}

/* What a start makes of a journal, and what a record written after it looks like then. */
static void
test_journal_damage(void)
{
    struct table t = {0};
    struct journal j;

    while (table_next(&t, "journals_damaged")) {
        state_clear();
        write_state("journal", t.field[0]);
        write_state("journal.new", SLICE("left over"));
        if (field_yes(t.field[5]))
            state_block("journal.damaged");
        state_open(&j, false, t.field[1].data);
        check_count(j.out.len, 0, "left over for the journal that is written anew");
        check_number(j.len, file_len(in_state("journal")), "its length");
        check(!is_in_state("journal.new"), "journal.new is deleted");
        struct buf aside = read_file(in_state("journal.damaged"));
        check_buf(&aside, t.field[3], "set aside");
        check_log(t.field[4].data != NULL, t.field[4].data ? t.field[4].data : "damaged line");
        check(journal_wants_rewrite(&j, 0, plat_now_ms()), "it wants to be rewritten");
        state_write(&j, JOURNAL_ACCEPTED, 9, 0);
        check(journal_stop(&j), "journal_stop");
        state_close(&j, t.field[2].data);
        if (field_yes(t.field[5]))
            state_unblock("journal.damaged");
    }
}

static void
test_journal_rewriting(void)
{
    struct journal j;

    state_open(&j, false, "");
    state_rewrite(&j, 0);
    state_settle(&j, false);
    state_write(&j, JOURNAL_ACCEPTED, 1, 0);
    check(!journal_wants_rewrite(&j, 0, plat_now_ms()), "it is small");
    j.len = REWRITE_MIN + 201;
    check(!journal_wants_rewrite(&j, 101, plat_now_ms()), "twice what waits and 8 MiB");
    check(journal_wants_rewrite(&j, 100, plat_now_ms()), "twice what waits and 8 MiB");
    state_rewrite(&j, 2);
    state_write(&j, JOURNAL_ACCEPTED, 3, 0);
    check(!journal_wants_rewrite(&j, 0, plat_now_ms()), "it is under way");
    state_settle(&j, false);
    state_write(&j, JOURNAL_ACCEPTED, 4, 0);
    state_settle(&j, false);
    check(!is_in_state("journal.new"), "it is in place");
    state_close(&j, "w2a3a4");
    /* where it cannot be rewritten it has its share: journal.new must have room beside it */
    state_open(&j, false, "w2a3a4");
    j.rewrite_failed = true;
    j.len = j.max / 5 * 2;
    state_write(&j, JOURNAL_ACCEPTED, 5, 0);
    state_write(&j, JOURNAL_ACCEPTED, 6, -1);
    check_log(1, "error: disk: cannot write the journal: No space left on device; ");
    journal_fail(&j, &j.letters_failed, "dead-letters.ndjson", ENOSPC);
    check_log(1, "disk: dead-letters.ndjson: "); /* in spite of the other failure */
    state_close(&j, "w2a3a4a5");
    /* a write that fails: nothing is appended until a rewriting has succeeded */
    state_open(&j, false, "w2a3a4a5");
    state_settle(&j, false);
    int full = open("/dev/full", O_WRONLY);
    dup2(full, j.file);
    close(full);
    state_write(&j, JOURNAL_ACCEPTED, 5, -1);
    state_write(&j, JOURNAL_ACCEPTED, 6, -1);
    check_log(1, "error: disk: cannot write the journal");
    check(j.failed && !journal_wants_rewrite(&j, 0, plat_now_ms()), "not at once");
    check(journal_wants_rewrite(&j, 0, plat_now_ms() + HEAL_MS), "but soon");
    state_block("journal.new");
    state_rewrite(&j, 7);
    check(j.rewrite_failed && !journal_wants_rewrite(&j, 0, plat_now_ms()), "it cannot be made");
    state_unblock("journal.new");
    state_rewrite(&j, 8);
    state_write(&j, JOURNAL_ACCEPTED, 9, -1);
    j.retry_ms = 0;
    state_settle(&j, true);
    state_write(&j, JOURNAL_ACCEPTED, 10, 0);
    check_log(1, "info: disk: journal: works again");
    check_log(1, "error: ");
    state_close(&j, "w8a9a10");
    /* a journal.new that cannot take the journal's place, nor the old one be opened again */
    state_open(&j, false, "w8a9a10");
    state_settle(&j, false);
    state_rewrite(&j, 11);
    unlink(in_state("journal"));
    state_block("journal");
    journal_place(&j);
    check(j.failed && j.rewrite_failed && j.new_file < 0, "both have failed");
    check_log(1, "error: disk: cannot open the journal: ");
    state_write(&j, JOURNAL_ACCEPTED, 12, -1);
    state_unblock("journal");
    state_rewrite(&j, 12);
    j.retry_ms = 0;
    state_settle(&j, true);
    check_log(1, "info: disk: journal: works again");
    state_close(&j, "w12");
}

static void
test_journal_links(void)
{
    struct journal j;
    struct err e;

    for (int i = 0; i < 8; i++) {
        const char *path = in_state(i < 4 ? "journal" : "lock");
        const char *target = write_file("target", SLICE("precious\n"));
        state_clear();
        plat_make_folder(state_folder, true);
        check_number(i % 4 == 0 ? symlink(target, path)
                : i % 4 == 1    ? link(target, path)
                : i % 4 == 2    ? mkfifo(path, 0600)
                                : mkdir(path, 0700),
            0, path);
        check(journal_open(&j, &STATE_CONFIG, false, &e) != 0, "%s, %d", path, i % 4);
        check_has(e.text, "butlerWebhook.stateDirectory: cannot ", path);
        check_has(e.text, "it is a link, or no plain file", path);
        struct stat st;
        check(stat(target, &st) == 0 && st.st_size == 9, "the target is as it was");
        journal_done(&j);
        rmdir(path);
    }
}

/* ---- Dead letters ---- */

static void
test_letters(void)
{
    struct table t = {0};
    struct webhook_config was;
    struct alert alert = {0};
    struct buf json = {0};
    struct buf line = read_file("test/data/unit/letter.json");
    char *alert_json = strstr(line.data, "{\"event\"");
    cJSON *letter;

    line.data[--line.len] = '\0'; /* its LF */
    letter = journal_read_letter(held(&line), &was, &alert);
    check_text(json_text(letter, "reason"), "status 404", "reason");
    check_text(was.key, KEY1, "key");
    check_text(was.description, "a", "description");
    check(was.kind == ALERT_ABORTED && was.place == 1 && was.listed == 3, "its place");
    alert_add_json(&alert, false, &json);
    buf_add_char(&json, '}');
    check_buf(&json, slice_of(alert_json), "the alert");
    cJSON_Delete(letter);
    const char *text = textf("{\"place\":\"2\",\"alert\":%s", alert_json);
    letter = journal_read_letter(slice_of(text), &was, &alert);
    check(letter && was.place == SIZE_MAX && was.listed == 0 && !*was.key && !*was.description,
        "one that says nothing of its webhook");
    cJSON_Delete(letter);
    while (table_next(&t, "letters_bad"))
        check(!journal_read_letter(t.field[0], &was, &alert), "no letter: %s", show(t.field[0]));
    buf_free(&line);
}

/* Gives the disk thread a batch, and checks if it could write that. */
static void
state_give(struct journal *j, const char *lines, bool works)
{
    if (check(!j->asked, "it takes letters"))
        buf_add_text(&j->letters, lines);
    state_settle(j, false);
    check((j->letters.len == 0) == works, "a batch of letters: %s", lines);
}

static void
state_add_letter(struct slice line, void *arg)
{
    add_slice(arg, line);
    buf_add_char(arg, '|');
}

static void
check_letters(struct journal *j, bool handed_over, const char *want)
{
    struct buf got = {0};
    struct err e = {""};
    const char *const *files = handed_over ? REPLAY_FILES : LETTER_FILES;

    buf_add(&got, "", 0);
    check(journal_each_letter(j, files, state_add_letter, &got, &e) >= 0, "%s", e.text);
    check_buf(&got, slice_of(want), handed_over ? "handed over" : "dead letters");
}

static void
check_hand_over(struct journal *j, int want, const char *error)
{
    struct err e = {""};

    check_number(journal_hand_over(j, &e), want, "handed over");
    check_has(e.text, error, "why not");
}

static void
test_letters_files(void)
{
    static const char current[] = "dead-letters.ndjson", old[] = "dead-letters.1.ndjson";
    struct journal j, cli;
    struct slice line;
    int64_t now_ms = plat_now_ms() + 2 * LOOK_MS;

    write_state(current, SLICE("one\ntor"));
    state_open(&j, false, "");
    state_give(&j, "two\nthree\n", true);
    check_letters(&j, false, "one|tor|two|three|");
    check_number(truncate(in_state(current), LETTERS_FILE_MAX - 4), 0, "a full file");
    state_give(&j, "four\n", true);
    check(!is_in_state(current), "it has become the old one");
    check_number(
        file_len(in_state(old)), LETTERS_FILE_MAX + 2, "with a LF that was missing, and the batch");
    write_state(old, SLICE("old\n"));
    state_block(current);
    state_give(&j, "five\n", false);
    state_settle(&j, false);
    check_log(1, "error: disk: dead-letters.ndjson: it is a link");
    state_unblock(current);
    state_settle(&j, false);
    check(j.letters.len > 0, "not at once again");
    j.retry_ms = 0;
    state_give(&j, "", true);
    check_log(1, "disk: dead-letters.ndjson: works again");
    state_open(&cli, true, "");
    check_hand_over(&cli, 2, "");
    check_letters(&cli, false, "");
    check_letters(&cli, true, "old|five|");
    state_give(&j, "six\n", true);
    check_hand_over(&cli, -1, "a replay is under way");
    check(journal_replay_next(&j, j.look_ms - 1, &line) == 0 && !j.sync_all, "not looked for yet");
    for (int i = 0; i < 2; i++, now_ms += 2 * LOOK_MS) {
        check_number(journal_replay_next(&j, now_ms, &line), 1, "a line");
        check_bytes(line, i ? SLICE("five") : SLICE("old"), "the line");
        check(journal_replay_next(&j, now_ms, &line) == 0 && j.replay_is_read, "the end");
        check(j.sync_all, "what was replayed is synced before the file is deleted");
        check_number(journal_replay_next(&j, now_ms, &line), 0, "it is read once");
        j.replay.unread = 1;
        check(!journal_replay_end(&j), "a part that could not be read");
        check_log(1, "; trying again");
        j.replay.unread = 0;
        check(journal_replay_end(&j), "journal_replay_end");
        log_begin(LOG_VERBOSE);
        check_number(is_in_state("replay.1.ndjson") + is_in_state("replay.ndjson"), 1 - i, "files");
    }
    check(journal_replay_next(&j, now_ms, &line) == 0 && !j.replay_is_read, "none is left");
    check_hand_over(&cli, 1, "");
    check_hand_over(&cli, -1, "");
    remove_state_file("replay.ndjson", NULL);
    check_hand_over(&cli, 0, "");
    check_number(symlink("/etc/passwd", in_state(current)), 0, "a link");
    check_hand_over(&cli, -1, "it is a link");
    journal_done(&cli);
    journal_done(&j);
}

/* ==== 10. HTTP client ======================================================= */

/*
 * Ends all calls and connections; no results come from them any more. Returns the owner of
 * the last call that had none yet.
 */
static void *
http_cut(struct http *h)
{
    void *owner = NULL;

    for (; h->calls > 0; h->calls--) {
        struct call *call = h->call[h->calls - 1];
        owner = call->owner ? call->owner : owner;
        conn_close(&call->conn);
        url_done(&call->moved);
        free(call);
    }
    h->busy = 0;
    return owner;
}

static void
http_done(struct http *h)
{
    http_cut(h);
    free(h->call);
    buf_free(&h->request);
    mbedtls_x509_crt_free(&h->roots);
}

/* Frees what the calls of one webhook shared, after http_done. */
static void
peer_done(struct peer *p)
{
    mbedtls_ssl_config_free(&p->tls);
    mbedtls_ssl_session_free(&p->session);
}

/*
 * A call whose other end is a list of bytes in place of a socket. Its states are
 * stepped here as call_step does, but that a look-up and a connect always succeed.
 */
struct player {
    struct peer peer; /* first, so that conn->peer leads here */
    struct http http;
    struct config config;
    struct webhook_config webhook;
    struct url proxy;
    struct call call;
    struct slice answer[8]; /* one for each request; the last is followed by the end */
    size_t requests, at;
    size_t step; /* most bytes that one read takes; 0: any number */
    struct buf wrote;
};

static int
player_read(struct conn *conn, void *data, size_t len)
{
    struct player *p = (struct player *)(void *)conn->peer;
    struct slice answer = p->answer[p->requests ? p->requests - 1 : 0];
    size_t n = answer.len - p->at;

    if (len == 1 && n == 0) /* only call_idle asks for a single byte */
        return PLAT_AGAIN;
    if (n > len)
        n = len;
    if (p->step > 0 && n > p->step)
        n = p->step;
    if (n > 0)
        memcpy(data, answer.data + p->at, n);
    p->at += n;
    return (int)n;
}

static int
player_write(void *arg, const unsigned char *data, size_t len)
{
    struct conn *conn = arg;
    struct player *p = (struct player *)(void *)conn->peer;

    check(p->requests < COUNT(p->answer), "no more requests than answers");
    p->requests++;
    p->at = 0;
    buf_add(&p->wrote, data, len);
    return (int)len;
}

static void
player_connect(struct player *p, enum call_state state)
{
    p->call.conn = (struct conn){.peer = &p->peer,
        .sock = INT_MAX, /* no such file */
        .read = player_read,
        .write = player_write,
        .to_origin = strcmp(p->call.url->origin, p->webhook.url.origin) == 0};
    call_enter(&p->call, state, p->call.deadline_ms);
}

/* Readies a player for a webhook with this URL, for a state that its call begins with. */
static void
player_begin(struct player *p, const char *method, const char *url, enum call_state state)
{
    p->config.timeout_s = 10;
    while (strcmp(METHODS[p->webhook.method], method) != 0)
        p->webhook.method++;
    p->webhook.url = url_of(url);
    p->webhook.proxy = p->proxy.host ? &p->proxy : NULL;
    p->webhook.form = TEMPLATE_QUERY;
    p->webhook.template = p->webhook.method == METHOD_GET ? standard_query() : NULL;
    p->http.config = &p->config;
    p->peer = (struct peer){.http = &p->http, .webhook = &p->webhook};
    p->call.conn.peer = &p->peer;
    p->call.res.retry_after_s = -1;
    p->call.owner = p;
    p->call.url = &p->webhook.url;
    p->call.proxy = p->webhook.proxy;
    p->call.deadline_ms = plat_now_ms() + 60000;
    player_connect(p, state);
}

static void
player_done(struct player *p)
{
    conn_close(&p->call.conn);
    url_done(&p->call.moved);
    url_done(&p->webhook.url);
    free((void *)(uintptr_t)p->webhook.template);
    url_done(&p->proxy);
    http_done(&p->http);
    peer_done(&p->peer);
    buf_free(&p->wrote);
}

/* Steps the call until it has come to its end or rests. */
static void
player_run(struct player *p)
{
    static enum call_next (*const states[])(struct call *, int64_t) = {
        [CALL_RECEIVE] = call_receive, [CALL_BODY] = call_read_body};
    struct call *call = &p->call;
    int steps = 0;

    while (call->state != CALL_IDLE && call->state != CALL_CLOSED && steps++ < 1000000) {
        if (call->state == CALL_RESOLVE) {
            call->res.end = HTTP_UNSENT;
            conn_close(&call->conn);
            player_connect(p, CALL_CONNECT);
            call_send(call);
        }
        if (states[call->state](call, plat_now_ms()) == CALL_FAILED)
            call_fail(call, plat_now_ms());
    }
    check(steps < 1000000, "the call comes to an end");
}

/* Gives the call one end of a pair of sockets; returns the other one. */
static int
player_pair(struct player *p)
{
    int pair[2];

    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0, "sockets");
    p->call.conn.sock = pair[0];
    p->call.conn.read = conn_plain_read;
    return pair[1];
}

/*
 * Plays an answer in one piece, and in small ones. Wanted is "STATUS kept" or "STATUS closed", which
 * the connection is then, or the start of "no: why it is no answer".
 */
static void
check_answer(struct slice stream, const char *want)
{
    static const size_t steps[] = {0, 1, 2, 5, 40};

    for (size_t i = 0; i < COUNT(steps); i++) {
        struct player p = {.answer = {stream}, .step = steps[i]};
        const struct http_result *res = &p.call.res;
        player_begin(&p, "POST", "http://h/", CALL_RECEIVE);
        player_run(&p);
        /* what is behind the answer may have come with it, or waits */
        bool kept = p.call.state == CALL_IDLE && p.at == stream.len;
        const char *got = res->end == HTTP_ANSWERED
            ? textf("%d %s", res->status, kept ? "kept" : "closed")
            : textf("no: %s", res->reason.text);
        check(strncmp(got, want, strlen(want)) == 0,
            "%s in pieces of %zu: got \"%s\", wanted \"%s\"", show(stream), steps[i], got, want);
        player_done(&p);
    }
}

static void
test_http_answers(void)
{
    static const struct {
        const char *begin;
        int zeros; /* between */
        const char *end, *want;
    } rows[] = {{OK2 "Long: ", HEAD_MAX - 46, "\r\n\r\nok", "200 kept"},
        {OK2 "Long: ", HEAD_MAX - 45, "\r\n\r\nok", "no: the answer is not HTTP: it starts with"},
        {OK2 "Long: ", HEAD_MAX, "", "no: the answer is not HTTP: it starts with"},
        {OK "Transfer-Encoding: chunked\r\n\r\nea60\r\n", 60000, "\r\n0\r\n\r\n", "200 kept"},
        {OK "Transfer-Encoding: chunked\r\n\r\n1d4c0\r\n", 120000, "\r\n0\r\n\r\n", "200 closed"}};
    struct table t = {0};

    while (table_next(&t, "answers"))
        check_answer(t.field[0], t.field[1].data);
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf b = {0};
        buf_add_text(&b, rows[i].begin);
        add_many(&b, rows[i].zeros, "0");
        buf_add_text(&b, rows[i].end);
        check_answer(held(&b), rows[i].want);
        buf_free(&b);
    }
}

static void
test_http_heads(void)
{
    struct table t = {0};
    struct http_head h;
    struct err e;

    while (table_next(&t, "heads")) {
        const char *what = t.field[0].data;
        struct slice head = exact(slice_of(textf("HTTP/1.1 302 Found\r\n%s\r\n", what)));
        if (check(http_parse_head(head, &h, &e) == 0, "%s: %s", what, e.text)) {
            check_number(h.status, 302, what);
            check_bytes(h.location, t.field[1], what);
            check_bytes(h.retry_after, t.field[2], what);
            check(!h.location.data == !t.field[1].data, "%s: a location or none", what);
            check(!h.retry_after.data == !t.field[2].data, "%s: a time or none", what);
        }
    }
}

static void
test_http_dates(void)
{
    struct table t = {0};

    while (table_next(&t, "dates")) { /* as in a head, where more follows */
        struct slice text = slice_of(textf("%s\r\n", t.field[0].data));
        int64_t now = t.field[2].data ? field_number(t.field[2]) : 784111777; /* Sun, 06 Nov 1994 */
        text.len -= 2;
        check_number(http_read_retry_after(text, now), field_number(t.field[1]), t.field[0].data);
    }
}

/* Checks the start of a text; want "": there is none. */
static void
check_start(const char *got, const char *want, const char *what)
{
    check(strncmp(got, want, strlen(want)) == 0 && (*want || !*got), "%s: \"%s\"", what, got);
}

static void
test_tls_faults(void)
{
    struct table t = {0};

    while (table_next(&t, "tls_faults")) { /* error, flags of the certificate; reason, hint */
        int code = (int)strtol(t.field[0].data, NULL, 0);
        uint32_t flags = (uint32_t)strtoul(t.field[1].data, NULL, 0);
        for (int by_us = 0; by_us < 2; by_us++) { /* found by us, or by the library later */
            struct conn c = {.about = {"\"CN=a\", issued by itself"}, .faults = by_us ? flags : 0};
            struct http_result res = {0};
            tls_explain(&c, code, by_us ? UINT32_MAX : flags, "h.example", &res);
            check_text(res.reason.text, t.field[2].data, "reason");
            check_text(res.hint.text, t.field[3].data, "hint");
        }
    }
}

/* The JSON of the alert that a datagram holds, with the fields. buf_free frees it. */
static struct buf
json_of(struct slice datagram)
{
    struct alert alert = alert_of(datagram);
    struct buf json = {0};

    alert_add_json(&alert, true, &json);
    json.len = strlen(json.data);
    buf_free(&alert.text);
    return json;
}

static void
test_http_requests(void)
{
    struct table t = {0};
    struct buf json = json_of(SLICE(DATAGRAM));

    while (table_next(&t, "requests")) { /* proxy, method, URL; if it is a test; the request */
        const char *proxy = t.field[0].data, *url = t.field[2].data;
        struct player p = {.proxy = proxy ? url_of(proxy) : (struct url){0}};
        player_begin(&p, t.field[1].data, url, CALL_RESOLVE);
        p.call.request = (struct http_request){
            .json = held(&json), .id = "msg_1", .is_test = field_yes(t.field[3])};
        call_send(&p.call);
        buf_add(&p.wrote, "", 0);
        const char *target = strchr(strchr(p.wrote.data, ' ') + (proxy ? 9 : 0), '/');
        check_count(p.call.target_len, strcspn(target, " "), "length of the target");
        char *time = strstr(p.wrote.data, "webhook-timestamp: ") + 19, *end;
        long long seconds = strtoll(time, &end, 10);
        check(llabs(seconds - plat_wall_ms() / 1000) < 30 && *end == '\r', "time %lld", seconds);
        memmove(time, end, strlen(end) + 1); /* hidden */
        p.wrote.len = strlen(p.wrote.data);
        check_buf(&p.wrote, t.field[4], url);
        player_done(&p);
    }
    buf_free(&json);
}

/* A connection whose other end reads slowly, is gone, is silent, or reads nothing. */
static void
test_conn(void)
{
    struct buf sent = {0}, came = {0};
    struct player p = {0};
    struct call *call = &p.call;
    struct conn *conn = &call->conn;
    int n = 0;

    for (int i = 0; i < 200000; i++)
        buf_format(&sent, "%d ", i);
    player_begin(&p, "POST", "http://h/", CALL_CLOSED);
    int other = player_pair(&p);
    conn_plain_write(conn, (unsigned char *)sent.data, sent.len / 2);
    check(conn->out.len > 0, "not all is taken at once");
    conn_plain_write(conn, (unsigned char *)sent.data + sent.len / 2, sent.len - sent.len / 2);
    for (int i = 0; came.len < sent.len && i < 100000; i++) {
        buf_reserve(&came, 50000);
        n = plat_recv(other, came.data + came.len, 50000);
        came.len += n > 0 ? (size_t)n : 0;
        call_step(call, 0);
    }
    check_count(conn->out.cap, 0, "nothing waits");
    check_buf(&came, held(&sent), "all of it, in order");
    conn_plain_write(conn, (unsigned char *)sent.data, sent.len);
    check(conn->out.len > 0, "something waits again");
    plat_close(other);
    call_step(call, 0);
    check_count(conn->out.cap, 0, "it is dropped: reading says why");
    plat_close(conn->sock);
    other = player_pair(&p);
    call_enter(call, CALL_RECEIVE, call->deadline_ms);
    check_number(call_receive(call, call->until_ms - 1), CALL_WAIT, "there is time");
    check_number(call_receive(call, call->until_ms), CALL_FAILED, "there is none");
    check_text(call->res.reason.text, "no answer within 10 s", "a timeout");
    check_number(call_idle(call, plat_now_ms()), CALL_WAIT, "it rests");
    for (int i = 0; i < 1000 && n >= 0; i++) /* as the answers of the TLS library to a flood */
        n = conn_plain_write(conn, (unsigned char *)sent.data, 10000);
    check(n < 0 && conn->out.len <= UNSENT_MAX + 10000, "%zu bytes wait", conn->out.len);
    check_number(call_idle(call, plat_now_ms()), CALL_GO_ON, "it does not rest with that");
    check_number(call->state, CALL_CLOSED, "it is closed");
    plat_close(other);
    other = player_pair(&p);
    call->head = (struct http_head){.length = 5, .keep = true};
    call_enter(call, CALL_BODY, call->deadline_ms);
    check_number(call_read_body(call, call->until_ms), CALL_GO_ON, "the body did not come");
    check(call->state == CALL_CLOSED && conn->sock < 0, "closed");
    player_done(&p);
    buf_free(&sent);
    plat_close(other);
}

static void
test_http_calls(void)
{
    static const char *const ends[] = {"unsent", "ours", "broken", "answered"};
    struct table t = {0};

    /* method, URL, how long the message is; the result, where it ends, the requests; the answers */
    for (size_t step = 0; table_next(&t, "calls"); step = (step + 1) % 3) {
        struct player p = {.step = step};
        const struct http_result *res = &p.call.res;
        const char *method = t.field[0].data;
        struct buf datagram = {0}, lines = {0};
        buf_add_text(&datagram, FAILED ";QS1;T;A;LAB\\g;" IDS ";");
        add_many(&datagram, (int)field_number(t.field[2]), "M");
        struct buf json = json_of(held(&datagram));
        memcpy(p.answer, t.field + 6, 6 * sizeof *p.answer);
        player_begin(&p, method, t.field[1].data, CALL_RESOLVE);
        p.call.request = (struct http_request){.json = held(&json), .id = "msg_1"};
        player_run(&p);
        check_text(textf("%s %d %d|%s|%s", ends[res->end], res->status, (int)res->retry_after_s,
                       res->reason.text, res->hint.text),
            t.field[3].data, "result");
        check_text(p.call.url->origin, t.field[4].data, "where it ends");
        for (char *at = p.wrote.data; at; at = strstr(at + 1, method)) {
            char target[4000] = "", password[100] = "";
            check(strncmp(at, method, strlen(method)) == 0, "method %s", method);
            sscanf(at,
                "%*s %3999s HTTP/1.1 Host: %*s User-Agent: %*s Accept: %*s %*s %*s "
                "Authorization: Basic %99s",
                target, password);
            if (strlen(target) > 1000)
                buf_format(&lines, "%zu bytes\n", strlen(target));
            else
                buf_format(&lines, "%s%s%s\n", target, *password ? " " : "", password);
        }
        check_buf(&lines, t.field[5], "requests");
        player_done(&p);
        buf_free(&json);
        buf_free(&datagram);
    }
}

static void
test_http_tunnel(void)
{
    struct table t = {0};

    while (table_next(&t, "tunnels")) { /* without a reason the tunnel is open */
        struct player p = {.answer = {t.field[2]}, .proxy = url_of(t.field[0].data)};
        struct call *call = &p.call;
        const char *what = show(t.field[2]), *reason = t.field[3].data;
        player_begin(&p, "POST", t.field[1].data, CALL_TUNNEL);
        check(call_ask_proxy(call) == CALL_WAIT, "the request is sent");
        enum call_next next = call_receive(call, plat_now_ms());
        check_number(next, *reason ? CALL_FAILED : CALL_GO_ON, what);
        check((call->state == CALL_HANDSHAKE) == !*reason, "%s: its state", what);
        if (next == CALL_FAILED)
            call_fail(call, plat_now_ms());
        check_start(call->res.reason.text, reason, what);
        check_text(call->res.hint.text, t.field[4].data, "hint");
        check_bytes(held(&p.wrote), t.field[5], "request");
        player_done(&p);
    }
}

/* A server for the tests below: a listening socket whose port is put into addr. */
static intptr_t
listen_on(struct plat_addr *addr, int backlog)
{
    int server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

    check(bind(server, (const void *)&addr->ss, addr->len) == 0 &&
            getsockname(server, (void *)&addr->ss, &addr->len) == 0 &&
            (backlog < 0 || listen(server, backlog) == 0),
        "a port");
    return server;
}

/* Connects to one of the addresses, waiting for it. Gives the call's last word. */
static enum call_next
dial(struct player *p, const struct plat_addr *addr, int n, int64_t ms)
{
    struct call *call = &p->call;
    enum call_next next;
    struct plat_poll poll;

    conn_close(&call->conn);
    memcpy(call->addr, addr, (size_t)n * sizeof *addr);
    call->addresses = n;
    call->at = 0;
    call->res = (struct http_result){0};
    call->deadline_ms = plat_now_ms() + ms;
    call_enter(call, CALL_CONNECT, call->deadline_ms);
    while ((next = call_connect(call, plat_now_ms())) == CALL_WAIT && call->state == CALL_CONNECT) {
        poll.count = 0;
        plat_poll_add(&poll, call->conn.sock, POLLOUT);
        plat_poll(&poll, call->until_ms - plat_now_ms());
        call->ready = poll.slot[0].revents;
    }
    if (next == CALL_FAILED)
        call_fail(call, plat_now_ms());
    return next == CALL_WAIT ? CALL_GO_ON : next; /* the request was sent */
}

/* An address for a person, as textf gives it. */
static const char *
addr_text(const struct plat_addr *addr)
{
    char text[64];

    plat_addr_text(addr, text);
    return textf("%s", text);
}

/* Of two addresses one refuses and one never answers: the first is named. */
static void
test_http_dial(void)
{
    struct player p = {0};
    struct call *call = &p.call;
    struct plat_addr addr[3] = {
        address("127.0.0.1", 0), address("127.0.0.1", 0), address("::1", 1)};
    intptr_t sock[6] = {listen_on(&addr[0], 1), listen_on(&addr[1], -1)};
    struct plat_addr swapped[2] = {addr[1], addr[0]};
    const char *reason = call->res.reason.text;

    player_begin(&p, "POST", "http://localhost:81/", CALL_CONNECT);
    check_number(dial(&p, addr, 2, 10000), CALL_GO_ON, "the first one answers");
    check(call->at == 0 && call->state == CALL_RECEIVE && call->conn.to_origin, "it is connected");
    check(memcmp(&p.peer.worked.ss, &addr[0].ss, addr[0].len) == 0, "which one worked");
    check_number(dial(&p, swapped, 2, 10000), CALL_GO_ON, "the second one answers");
    check_number(call->at, 1, "the second one");
    conn_close(&call->conn);
    for (size_t i = 2; i < COUNT(sock); i++) /* then it is too busy to answer any more */
        sock[i] = plat_tcp_connect(&addr[0]);
    int64_t began_ms = plat_now_ms();
    check_number(dial(&p, addr, 2, 2000), CALL_FAILED, "nobody answers");
    check(plat_now_ms() - began_ms < 1900, "the first has only its share");
    check_has(reason, addr_text(&addr[0]), "who");
    check_has(reason, ": no answer in time", "why");
    check_has(call->res.hint.text, "host and port in webhookURL", "hint");
    check_number(dial(&p, addr + 1, 1, -1), CALL_FAILED, "no time left");
    check_number(dial(&p, addr + 1, 1, 10000), CALL_FAILED, "refused");
    check_has(reason, addr_text(&addr[1]), "who refused");
    check(!strstr(reason, "no answer"), "why: %s", reason);
    check_number(dial(&p, addr + 1, 2, 10000), CALL_FAILED, "nor is there any IPv6");
    check_has(reason, addr_text(&addr[1]), "the first address is named");
    struct call open = {.conn.sock = INT_MAX}, *all[CONNECTIONS_MAX];
    for (size_t i = 0; i < COUNT(all); i++)
        all[i] = &open;
    p.http.call = all;
    p.http.calls = COUNT(all);
    check_number(dial(&p, addr, 1, 10000), CALL_FAILED, "too many connections");
    check(call->res.end == HTTP_OURS, "that is our own want: %s", reason);
    p.http.call = NULL;
    p.http.calls = 0;
    no_threads = true;
    player_done(&p);
    player_begin(&p, "POST", "http://a.invalid/", CALL_RESOLVE);
    check_number(call_resolve(call, 0), CALL_FAILED, "a look-up without a thread");
    check_has(reason, "host name a.invalid not found: no descriptor, memory or thread", "why");
    check(call->res.end == HTTP_OURS, "our own want again");
    no_threads = false;
    player_done(&p);
    player_begin(&p, "POST", "http://localhost:81/", CALL_CONNECT);
    p.peer.worked = address("::1", 81); /* is tried first */
    check_number(call_resolve(call, 0), CALL_GO_ON, "localhost needs no look-up");
    check_number(call->addresses, 2, "its addresses");
    check_text(addr_text(&call->addr[0]), "[::1]:81", "the first one");
    check_text(addr_text(&call->addr[1]), "127.0.0.1:81", "the other one");
    for (size_t i = 0; i < COUNT(sock); i++)
        plat_close(sock[i]);
    player_done(&p);
}

/* The results that http_step has given: how many, how many are no 200, and the last one. */
static struct {
    int count, odd;
    struct http_result last;
} results;

static void
take_result(void *owner, const struct http_result *res)
{
    check(owner == &results, "the owner of a result");
    results.count++;
    results.odd += res->end != HTTP_ANSWERED || res->status != 200;
    results.last = *res;
}

static void
http_round(struct http *h, struct plat_poll *poll)
{
    int64_t until_ms = plat_now_ms() + 20;

    poll->count = 0;
    http_poll_add(h, poll, plat_now_ms(), &until_ms);
    plat_poll(poll, until_ms > plat_now_ms() ? until_ms - plat_now_ms() : 0);
    http_step(h, poll, take_result);
}

#define MOVED "HTTP/1.1 307 Moved\r\nLocation: /moved\r\nContent-Length: 0\r\n\r\n"

/* Many calls over a few connections to a server that answers in between. */
static void
test_http_loop(void)
{
    static struct plat_poll poll; /* as large as the program's */
    struct plat_addr addr = address("127.0.0.1", 0);
    intptr_t server = listen_on(&addr, 16), client[16];
    struct config config = {.timeout_s = 10};
    struct webhook_config webhook = {
        .method = METHOD_POST, .url = url_of(textf("http://%s/", addr_text(&addr)))};
    struct buf json = json_of(SLICE(DATAGRAM));
    struct http_request q = {.json = held(&json), .id = "msg_1"};
    struct http h = {.config = &config};
    struct peer peer = {.http = &h, .webhook = &webhook};
    int begun = 0, clients = 0;

    for (int target = 40; target <= 41; target++) {
        for (int i = 0; i < 5000 && results.count < target; i++) {
            http_round(&h, &poll);
            for (size_t k = 0; k < h.calls; k++)
                check(h.left > 0 || h.call[k]->slot == POLL_MAX, "what poll said counts once");
            for (; begun < target && begun - results.count < 4; begun++)
                call_begin(&peer, &q, &results, plat_now_ms());
            if (clients < 16 &&
                (client[clients] = accept4((int)server, NULL, NULL, SOCK_NONBLOCK)) >= 0)
                setsockopt((int)client[clients++], IPPROTO_TCP, TCP_NODELAY, &(int){1}, 4);
            for (int k = 0; k < clients; k++) {
                char request[4000];
                if (plat_recv(client[k], request, sizeof request) > 0)
                    plat_send(client[k], OK2 "\r\nok", strlen(OK2 "\r\nok"));
            }
        }
        check_number(results.count, target, "results");
        check_number(results.odd, 0, "odd results");
        check_number(clients, target - 36, "connections, one more for the last call");
        if (target == 41)
            break;
        check(h.calls == 4 && h.busy == 0, "all rest: %zu, %zu", h.calls, h.busy);
        for (int i = 0; i < 4; i++) /* none of these is the answer to the next request */
            plat_send(client[i], "HTTP/1.1 404 Stale\r\n\r\n", 22);
        /* Not even if the time of http_step was over before it looked at them. */
        http_poll_add(&h, &poll, plat_now_ms(), &(int64_t){INT64_MAX});
        call_begin(&peer, &q, &results, plat_now_ms());
        begun++;
    }
    call_begin(&peer, &q, &results, plat_now_ms());
    http_round(&h, &poll); /* it is redirected before it breaks */
    for (int i = 0; i < clients; i++) {
        char request[4000];
        if (plat_recv(client[i], request, sizeof request) > 0)
            plat_send(client[i], MOVED, strlen(MOVED));
        plat_close(client[i]);
    }
    for (int i = 0; i < 2000 && results.count < 42; i++) {
        http_round(&h, &poll);
        plat_close(accept4((int)server, NULL, NULL, SOCK_NONBLOCK));
    }
    check_number(results.count, 42, "results at the end");
    check(results.last.end == HTTP_BROKEN, "the call breaks: %s", results.last.reason.text);
    check(h.calls == 0 && h.busy == 0, "nothing is left: %zu, %zu", h.calls, h.busy);
    http_done(&h);
    peer_done(&peer);
    url_done(&webhook.url);
    buf_free(&json);
    plat_close(server);
}

/* ==== 11. Delivery ========================================================== */

/* Two webhooks for failures, one of them described, and one for aborts; nobody is there. */
#define BACKLOG_YAML(state)                                                                        \
    "Butler:\n  butlerWebhook: {stateDirectory: " state "}\n  webhookNotification:\n"              \
    "    enable: true\n    reloadTaskFailure:\n      webhooks:\n"                                  \
    "        - {webhookURL: 'http://127.0.0.1:1/1', httpMethod: POST}\n"                           \
    "        - {webhookURL: 'http://127.0.0.1:1/2', httpMethod: PUT, description: Second}\n"       \
    "    reloadTaskAborted:\n      rateLimit: 60\n      webhooks:\n"                               \
    "        - {webhookURL: 'http://127.0.0.1:1/3', httpMethod: GET}\n"
#define IN_MEMORY BACKLOG_YAML("''")
#define ON_DISK BACKLOG_YAML("state")
#define LIMITED                                                                                    \
    "Butler:\n  butlerWebhook: {stateDirectory: ''}\n  webhookNotification:\n    enable: true\n"   \
    "    reloadTaskFailure:\n      webhooks:\n"                                                    \
    "        - {webhookURL: 'http://127.0.0.1:1/1', httpMethod: PUT, maxCallsPerMinute: 3}\n"      \
    "        - {webhookURL: 'http://127.0.0.1:1/2', httpMethod: PUT}\n"
#define WITH_UDP(more) "  udpServerConfig: {enable: true" more "}\n"

#define LONG_AFTER (plat_now_ms() + 40 * BACKOFF_MAX_MS) /* what is put off is due */

static struct app app; /* its configuration is the one loaded last */
static struct backlog *const backlog = &app.backlog;
static struct webhook *hook; /* those of the backlog */
static int64_t begin_ms;     /* when webhook_begin wants to be called again */

/* Does what loop_start does, but for the socket and the log. */
static void
app_start(const char *yaml)
{
    struct err e = {""};

    memset(&app, 0, sizeof app);
    log_begin(LOG_VERBOSE);
    load(slice_of(yaml));
    check(the_reader.errors == 0, "%s", yaml);
    check(journal_open(&app.journal, &the_config, false, &e) == 0, "journal_open: %s", e.text);
    app.config = the_config;
    app.http.config = &the_config;
    backlog_init(backlog, &the_config, &app.journal, &app.http);
    hook = backlog->webhook;
    backlog_load(backlog, false);
    app.listener = (struct listener){.backlog = backlog, .sock = -1};
}

/* Checks the links and counts of all that waits. */
static void
check_backlog(const char *what)
{
    const struct payload *older = NULL;
    size_t wrong = 0, bytes = 0, unended = 0;

    for (const struct payload *p = backlog->oldest; p; older = p, p = p->newer) {
        size_t left = 0;
        for (size_t i = 0; i < p->targets; i++)
            left += p->delivery[i].state != DELIVERY_ENDED;
        wrong += p->older != older || (older && older->number >= p->number) || left != p->left ||
            left == 0 || p->json.data[p->json.len] != '\0';
        bytes += p->size;
        unended += left;
    }
    wrong += backlog->newest != older || bytes != backlog->bytes || unended != backlog->waiting;
    for (size_t i = 0; i <= backlog->webhooks; i++) { /* the lists of the webhooks, of the dead */
        const struct webhook *w = i < backlog->webhooks ? &hook[i] : NULL;
        const struct delivery_list *list = w ? &w->list : &backlog->dead;
        const struct delivery *before = NULL;
        size_t count = 0, in_call = 0;
        bytes = 0;
        for (const struct delivery *d = list->oldest; d; before = d, d = d->newer) {
            wrong += d->older != before;
            wrong += w && before && before->payload->number > d->payload->number;
            wrong += w ? d->webhook != w || d->state > DELIVERY_IN_CALL : d->state != DELIVERY_DEAD;
            in_call += d->state == DELIVERY_IN_CALL;
            bytes += d->payload->size;
            count++;
        }
        wrong += list->newest != before || count != list->count;
        wrong += w ? w->calls != in_call : bytes != backlog->dead_bytes;
        unended -= count;
    }
    check(wrong == 0 && unended == 0, "%s: %zu links and counts are wrong", what, wrong);
}

/* Stops: what stands in the journal stays there. */
static void
app_finish(void)
{
    http_cut(&app.http);
    check_backlog("at the end");
    check(app.listener.inbox.cap <= 1 && app.listener.sorted == 0, "the inbox is empty");
    check(journal_stop(&app.journal), "journal_stop");
    http_done(&app.http);
    for (size_t i = 0; i < backlog->known; i++)
        peer_done(&hook[i].peer);
    backlog_done(backlog);
    buf_free(&app.listener.inbox);
    buf_free(&app.listener.accepted);
    buf_free(&app.listener.alert.text);
    journal_done(&app.journal);
    loaded_done();
}

/* Adds an alert for all webhooks of its kind as the listener does. */
static struct payload *
get(enum alert_kind kind, const char *message)
{
    struct alert alert = alert_of(
        slice_of(textf("%s;QS1;T;A;u;" IDS ";%s", kind ? ABORTED_ID : FAILED, message)));
    struct webhook *to[3];
    size_t n = 0;

    for (size_t i = 0; i < backlog->webhooks; i++)
        if (hook[i].config->kind == kind)
            to[n++] = &hook[i];
    struct payload *p = backlog_add(backlog, &alert, to, n, JOURNAL_ACCEPTED);
    buf_free(&alert.text);
    return p;
}

/* Begins one call, if one may be begun now; its result is made up. */
static struct delivery *
take(struct webhook *w, int64_t now_ms)
{
    the_config.max_concurrent = (int64_t)w->calls + 1;
    begin_ms = INT64_MAX;
    webhook_begin(w, now_ms, &begin_ms);
    return http_cut(&app.http);
}

/* A result: unsent, ours, broken, or a status, with Retry-After behind a "/". */
static struct http_result
result_of(const char *text)
{
    static const char *const ends[] = {"unsent", "ours", "broken"}; /* as enum http_end */
    struct http_result res = {HTTP_ANSWERED, atoi(text), -1, {"because"}, {""}, 0};

    for (size_t i = 0; i < COUNT(ends); i++)
        if (strcmp(text, ends[i]) == 0)
            res.end = (enum http_end)i;
    if (strchr(text, '/'))
        res.retry_after_s = atoi(strchr(text, '/') + 1);
    return res;
}

static void
settle(struct delivery *d, const char *result)
{
    struct http_result res = result_of(result);

    webhook_settle(d, &res);
}

/* Takes what is next, whenever it is due. */
static void
settle_next(struct webhook *w, const char *result)
{
    settle(take(w, LONG_AFTER), result);
}

static uint64_t
newest_number(void)
{
    return backlog->newest ? backlog->newest->number : 0;
}

/* Has the disk thread do all that it is asked for what waits. */
static void
settle_disk(void)
{
    struct journal *j = &app.journal;
    int64_t until_ms = INT64_MAX;

    for (int i = 0; i < 5000; i++) {
        journal_take_results(j);
        journal_upkeep(j, newest_number(), plat_now_ms(), &until_ms);
        if (!j->asked && j->new_file < 0 && newest_number() <= j->synced_number)
            return;
        usleep(1000);
    }
    check(false, "the disk thread does not settle");
}

/* Writes and syncs what was noted, and writes all dead letters. */
static void
write_all(void)
{
    for (int i = 0; i < 3 || (backlog->dead.count && i < 1000); i++) {
        backlog_write_letters(backlog);
        check_number(journal_write(&app.journal), 0, "journal_write");
        settle_disk();
    }
    check(!backlog->dead.count && backlog->dead_bytes == 0, "all dead letters are written");
}

static void
test_webhook_judge(void)
{
    static const char *const verdicts[] = {"delivered", "dead", "retry", "sick", "wait", "down"};
    const struct webhook_config plain = {0};
    struct table t = {0};

    while (table_next(&t, "verdicts")) { /* a result, the last status; the verdict */
        struct http_result res = result_of(t.field[0].data);
        for (; res.status <= field_number(t.field[1]); res.status++)
            check_text(
                verdicts[webhook_judge(&plain, &res)], t.field[2].data, textf("%d", res.status));
    }
}

static void
test_webhook_backoff(void)
{
    static const int64_t most[] = {
        1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000, 256000, 300000, 300000};

    for (size_t i = 0; i < COUNT(most); i++) {
        int64_t largest = 0, smallest = INT64_MAX;
        for (int k = 0; k < 2000; k++) {
            int64_t wait_ms = webhook_backoff_ms((int)i + 1);
            largest = wait_ms > largest ? wait_ms : largest;
            smallest = wait_ms < smallest ? wait_ms : smallest;
        }
        check(smallest >= 0 && smallest < most[i] / 20, "failure %zu: the least", i + 1);
        check(largest <= most[i] && largest > most[i] - most[i] / 20, "failure %zu: most", i + 1);
    }
    check(webhook_backoff_ms(INT_MAX) <= BACKOFF_MAX_MS, "after very many failures");
}

static void
test_webhook_begin(void)
{
    struct delivery *d[4];
    int64_t now_ms = plat_now_ms() + 1000;

    app_start(IN_MEMORY);
    struct webhook *w = &hook[0];
    check(!take(w, now_ms) && begin_ms == INT64_MAX, "nothing waits");
    for (int i = 0; i < 4; i++)
        get(ALERT_FAILURE, "M");
    check(hook[1].list.count == 4 && hook[2].list.count == 0, "all webhooks of a kind");
    for (uint64_t i = 0; i < 4; i++)
        check((d[i] = take(w, now_ms)) && d[i]->payload->number == i + 1, "by number");
    for (int i = 0; i < 4; i++) { /* the fourth is tried longest ago */
        settle(d[i], "408");
        d[i]->due_ms = now_ms + i / 2;
        d[i]->tried_ms = 100 - i;
    }
    check(!take(w, now_ms - 1) && begin_ms == now_ms, "none is due yet");
    the_config.max_concurrent = 1;
    webhook_begin(w, now_ms, &begin_ms);
    webhook_begin(w, now_ms, &begin_ms);
    check(app.http.busy == 1 && w->calls == 1, "at most maxConcurrent at a time");
    check(http_cut(&app.http) == d[0], "of two due at once the older one");
    settle(d[0], "unsent");
    check(w->state == WEBHOOK_DOWN && hook[1].state == WEBHOOK_UP, "down, but no other");
    w->wait_until_ms = now_ms + 500;
    check(!take(w, now_ms + 499) && begin_ms == now_ms + 500, "a probe has a time");
    for (int i = 3; i > 0; i--) {
        check(take(w, LONG_AFTER) == d[i], "the one tried longest ago, %d", i);
        check(!take(w, LONG_AFTER), "one probe at a time");
        w->wait_until_ms = 0;
        settle(d[i], "unsent");
    }
    backlog->stopping = true;
    check(!take(w, LONG_AFTER), "no probe while stopping");
    check(take(&hook[1], now_ms) != NULL, "but what is due of one that is up");
    backlog->ended = true;
    check(!take(&hook[1], LONG_AFTER), "and in the end nothing");
    app_finish();
}

/*
 * maxCallsPerMinute: never more calls in any minute, in order, whatever happens to them; and
 * no fewer than may be. Other webhooks, and what comes meanwhile, change nothing.
 */
static void
test_webhook_limit(void)
{
    int64_t began_ms[30], start_ms, now_ms;
    uint64_t number = 0;
    int wrong = 0;

    app_start(LIMITED);
    struct webhook *w = &hook[0];
    for (int i = 0; i < 30; i++)
        get(ALERT_FAILURE, "M");
    now_ms = start_ms = plat_now_ms();
    for (int i = 0; i < 30; i++) {
        int64_t least_ms = i < 3 ? now_ms : began_ms[i - 3] + CALLS_MINUTE_MS;
        struct delivery *d = take(w, now_ms);
        if (least_ms > now_ms) {
            wrong += d != NULL || begin_ms != least_ms || w->state != WEBHOOK_UP;
            w->quiet_until_ms = 0; /* as after an alert that came meanwhile, or a result */
            wrong += take(w, least_ms - 1) != NULL || begin_ms != least_ms;
            d = take(w, now_ms = least_ms);
        }
        wrong += !d || d->payload->number != ++number;
        if (!d)
            break;
        began_ms[i] = now_ms;
        settle(d, i % 4 ? "200" : "404"); /* some at once, some a while later */
        now_ms += i % 5 * CALLS_MINUTE_MS / 7;
    }
    check(wrong == 0, "%d of 30 calls began wrong", wrong);
    for (int i = 0; i < 30; i++)
        wrong += take(&hook[1], start_ms) == NULL;
    check(wrong == 0 && !hook[1].begun_ms, "another webhook has no limit");
    app_finish();
}

/* What waits: for each webhook the alerts' numbers, with the attempts, if any. */
static void
waiting_text(struct buf *out)
{
    buf_add(out, "", 0);
    for (size_t i = 0; i < backlog->webhooks; i++) {
        buf_add_text(out, i > 0 ? "|" : "");
        for (const struct delivery *d = hook[i].list.oldest; d; d = d->newer) {
            buf_format(out, "%s%d", d->older ? " " : "", (int)d->payload->number);
            if (d->attempts > 0)
                buf_format(out, "*%d", d->attempts);
        }
    }
}

static void
check_waiting(const char *want, const char *what)
{
    struct buf got = {0};

    waiting_text(&got);
    check_buf(&got, slice_of(want), what);
}

/*
 * What results mean for a webhook and for four alerts, a to d, whose calls may be in flight
 * side by side. "-" stands for a pause, as long as the webhook wants.
 */
static void
test_webhook_settle(void)
{
    static const char *const states[] = {"up", "down", "paced"};
    struct table t = {0};

    while (table_next(&t, "results")) {
        const char *what = textf("%s", t.field[0].data);
        struct delivery *d = NULL;
        int64_t now_ms = 0;
        app_start(IN_MEMORY);
        struct webhook *w = &hook[2];
        for (int i = 0; i < 4; i++)
            get(ALERT_ABORTED, "M");
        for (char *p = strtok((char *)(uintptr_t)t.field[0].data, " "); p; p = strtok(NULL, " ")) {
            if (*p == '-') {
                w->wait_until_ms = 0;
                continue;
            }
            for (d = w->list.oldest; d->payload->number != (uint64_t)(*p - 'a' + 1);)
                d = d->newer;
            d->state = DELIVERY_IN_CALL; /* as in webhook_begin */
            w->calls++;
            now_ms = plat_now_ms();
            settle(d, p + 2);
        }
        check_text(textf("%s %d %llu %llu", states[w->state], w->failures, backlog->delivered,
                       backlog->given_up),
            t.field[1].data, what);
        check_waiting(t.field[2].data, what);
        if (t.field[3].data) { /* seconds until d is sent again: the least and the most */
            int64_t next_ms = d->due_ms > w->wait_until_ms ? d->due_ms : w->wait_until_ms;
            check(d->tried_ms >= now_ms && next_ms >= now_ms + field_number(t.field[3]) * 1000 &&
                    next_ms <= plat_now_ms() + field_number(t.field[4]) * 1000,
                "%s: again in %lld ms", what, (long long)(next_ms - now_ms));
        }
        check(!t.field[5].data || log_count(t.field[5].data) == 1, "%s is logged", what);
        check(!t.field[6].data || log_count(t.field[6].data) == 0, "%s is not logged", what);
        app_finish();
    }
}

/* Whatever the state and the failure: no webhook is called again and again without a pause. */
static void
test_webhook_pauses(void)
{
    static const char *const texts[] = {"unsent", "broken", "500", "408", "429", "429/0", "503/0"};

    for (size_t i = 0; i < 3 * COUNT(texts); i++) {
        int64_t pauses_ms = 0;
        app_start(IN_MEMORY);
        struct webhook *w = &hook[2];
        get(ALERT_ABORTED, "M");
        w->state = (enum webhook_state)(i % 3);
        for (int k = 0; k < 12; k++) {
            int64_t now_ms = plat_now_ms();
            struct delivery *d = take(w, now_ms);
            if (!d) {
                pauses_ms += begin_ms - now_ms;
                d = take(w, begin_ms);
            }
            settle(d, texts[i / 3]);
            if (w->state != WEBHOOK_UP && w->wait_until_ms > plat_now_ms()) {
                pauses_ms += w->wait_until_ms - plat_now_ms();
                w->wait_until_ms = plat_now_ms();
            }
        }
        check(pauses_ms > 1000, "%s: 12 calls in %d ms", texts[i / 3], (int)pauses_ms);
        app_finish();
    }
}

static void
make_room(size_t room)
{
    backlog->room = room;
    backlog_make_room(backlog);
}

/* No room: the oldest alert of the webhook with most waiting goes. */
static void
test_backlog_room(void)
{
    app_start(IN_MEMORY);
    get(ALERT_ABORTED, "M");
    for (int i = 0; i < 9; i++)
        get(ALERT_FAILURE, "M");
    make_room(backlog->bytes * 10 / 8); /* 80 % of it is used */
    backlog_make_room(backlog);
    check_log(1, "warn: state directory: 80 % of its room is used (19 alerts wait)");
    make_room(backlog->bytes);
    check_waiting("2 3 4 5 6 7 8 9 10|2 3 4 5 6 7 8 9 10|1", "what there is room for stays");
    struct delivery *in_call = take(&hook[0], LONG_AFTER);
    make_room(backlog->bytes - 1);
    check_waiting("2 5 6 7 8 9 10|4 5 6 7 8 9 10|1",
        "the oldest go in turn until all of one is gone, but not one in a call");
    check(log_count("given up for failure 1 after 0 attempts: no room: too many alerts wait; see "
                    "butlerWebhook.maxStateMB; alert: {") == 2,
        "logged");
    check_backlog("less room");
    make_room(1);
    check(hook[0].list.oldest == in_call && backlog->given_up == 18, "only the call stays");
    make_room(backlog->bytes * 2);
    make_room(backlog->bytes);
    check_log(2, "% of its room is used");
    app_finish();
}

static void
test_webhook_expire(void)
{
    int64_t now_ms = plat_now_ms();

    app_start(IN_MEMORY);
    struct webhook *w = &hook[2];
    for (int i = 0; i < 6; i++)
        get(ALERT_ABORTED, "M")->accepted_ms = now_ms - 72 * AGE_UNIT_MS + i / 2;
    webhook_expire(w, now_ms + AGE_UNIT_MS - 1000);
    check_waiting("||1 2 3 4 5 6", "none goes in the first hour");
    backlog->grace_until_ms = 0;
    settle_next(w, "408");
    w->list.oldest->due_ms = LONG_AFTER; /* whatever its backoff */
    struct delivery *in_call = take(w, now_ms + 60000);
    webhook_expire(w, now_ms);
    check_waiting("||2 3 4 5 6", "the first is too old, the second in a call");
    check_log(1,
        "alert 1 given up for aborted 1 after 1 attempt: not delivered for as long as an "
        "alert is kept; because");
    webhook_expire(w, now_ms + 1);
    check_waiting("||2 5 6", "one in a call stays");
    settle(in_call, "200");
    app_finish();
}

static void
test_dead_letters(void)
{
    static const char *const parts[] = {"\"webhook\":\"failure 2 (\\\"Second\\\")\"",
        "\"attempts\":1,\"deadAt\":\"2", "\"reason\":\"because\",\"webhookKey\":\"",
        "\"description\":\"Second\",\"place\":2,\"count\":2,",
        "\"url\":\"http://127.0.0.1:1/2\",\"alert\":{", "\"logMessage\":\"one\""};
    struct buf letters, large = {0};
    int n = 0;

    app_start(ON_DISK);
    get(ALERT_FAILURE, "one");
    get(ALERT_FAILURE, "two");
    settle_next(&hook[1], "404");
    check(backlog->dead.count && backlog->waiting == 4, "it waits for the disk");
    check_waiting("1 2|2|", "it is not sent any more");
    check_log(1, "error: alert 1 given up for failure 2 (\"Second\") after 1 attempt: because");
    check_log(0, "\"logMessage\""); /* not whole */
    check_backlog("one is dead");
    state_block("dead-letters.ndjson");
    backlog_write_letters(backlog);
    journal_write(&app.journal);
    settle_disk();
    backlog_write_letters(backlog);
    check(backlog->dead.count > 0 && backlog->waiting == 4, "it still waits");
    state_unblock("dead-letters.ndjson");
    app.journal.retry_ms = 0;
    write_all();
    check(backlog->waiting == 3 && backlog->newest->left == 2, "it has ended");
    letters = read_file(in_state("dead-letters.ndjson"));
    check_start(letters.data, "{\"webhookId\":\"msg_4831c6a534f645bb9d4073a6e6992670_f_", "letter");
    for (size_t i = 0; i < COUNT(parts); i++)
        check_has(letters.data, parts[i], "the letter");
    buf_free(&letters);
    settle_next(&hook[1], "404");
    backlog->ended = true;
    backlog_write_letters(backlog);
    check(backlog->dead.count == 1 && backlog->batch == 0 && app.journal.letters.len == 0,
        "at the end of a stop no letter begins");
    backlog->ended = false;
    write_all();
    app.journal.letters_failed = true; /* a disk that has failed for long */
    add_many(&large, 250, "x");
    for (; backlog->dead_bytes + 1000 < LETTERS_WAIT_MAX; n++) {
        get(ALERT_ABORTED, large.data);
        settle_next(&hook[2], "404");
    }
    buf_free(&large);
    log_forget();
    for (int i = 0; i < 10; i++) {
        get(ALERT_ABORTED, "end");
        settle_next(&hook[2], "404");
    }
    check(log_count("too many dead letters wait for the disk; alert: {") > 0, "logged");
    check(log_count("\"logMessage\":\"end\"") > 0, "whole");
    check(backlog->dead_bytes <= LETTERS_WAIT_MAX, "beyond 8 MiB");
    write_all();
    check(n > 1000 && backlog->waiting == 2, "all are written");
    app_finish();
}

/*
 * Writes a journal of records in short: a letter of the word (a accepted, w waiting, t
 * attempt, e delivered, d dead, r window of the rate limit, s of de-duplication, k
 * webhook, K one described "Second"), the number, :keys (1 to 3 those of ON_DISK, 4 to 9 one
 * that is gone), *count, @seconds ago. An alert for webhook 3 only is an abort.
 */
static void
write_journal(const char *text)
{
    static const char letters[] = "awtedrskK";
    static const enum journal_word words[] = {JOURNAL_ACCEPTED, JOURNAL_WAITING, JOURNAL_ATTEMPT,
        JOURNAL_END, JOURNAL_END, JOURNAL_WINDOW, JOURNAL_WINDOW, JOURNAL_WEBHOOK, JOURNAL_WEBHOOK};
    struct buf records = {0}, keys = {0};
    struct buf json[2] = {json_of(SLICE(SHORT_DATAGRAM)), json_of(SLICE(SHORT_ABORT))};

    buf_add(&records, "", 0);
    load(slice_of(ON_DISK));
    for (char *p = (char *)(uintptr_t)text; *p; p += *p == ' ') {
        char letter = *p++, hex[33];
        struct journal_record r = {.word = words[strchr(letters, letter) - letters]};
        r.number = strtoull(p, &p, 10);
        r.kind = *p == ':' && p[1] == '3';
        keys.len = 0;
        for (p += *p == ':'; *p >= '1' && *p <= '9'; p++)
            buf_add_texts(&keys, keys.len > 0 ? "," : "",
                *p <= '3' ? the_config.webhook[*p - '1'].key : textf("%032d", *p), NULL);
        if (*p == '*')
            r.count = strtoull(p + 1, &p, 10);
        if (r.word != JOURNAL_WEBHOOK)
            r.wall_ms = plat_wall_ms() - (*p == '@' ? strtoll(p + 1, &p, 10) * 1000 : 0);
        if (r.word == JOURNAL_ACCEPTED || r.word == JOURNAL_WAITING)
            r.text = held(&json[r.kind]);
        else
            r.text = slice_of(letter == 'K' ? "Second" : letter == 't' ? "status 500" : "");
        if (r.word == JOURNAL_END)
            r.count = letter == 'd';
        if (r.word == JOURNAL_WINDOW) {
            struct window_key key = key_of(letter == 'r' ? TASK_ID : RUN_ID);
            hex_write(key.bytes, sizeof key.bytes, hex);
            buf_add_text(&keys, hex);
            r.count = letter == 'r' ? WINDOW_RATE : WINDOW_SEEN;
        }
        r.key = held(&keys);
        journal_add_record(&records, &r);
    }
    write_state("journal", held(&records));
    loaded_done();
    buf_free(&records);
    buf_free(&keys);
    buf_free(&json[0]);
    buf_free(&json[1]);
}

static void
test_backlog_match(void)
{
    static struct webhook_config now[] = {{.key = "aa", .place = 0, .listed = 3, .description = ""},
        {.key = "bb", .place = 1, .listed = 3, .description = "Two"},
        {.key = "cc", .place = 2, .listed = 3, .description = "Same"},
        {.key = "dd", .kind = ALERT_ABORTED, .place = 0, .listed = 2, .description = "Same"},
        {.key = "ee", .kind = ALERT_ABORTED, .place = 1, .listed = 2, .description = "Same"},
        {.key = "ff", .is_special = true, .place = 5, .listed = 6, .description = ""}};
    struct webhook webhook[COUNT(now)] = {0};
    struct backlog b = {.webhook = webhook, .webhooks = COUNT(now)};
    struct table t = {0};

    for (size_t i = 0; i < COUNT(now); i++)
        webhook[i] = (struct webhook){
            .config = &now[i], .today = i == 1 || i == 4 ? &webhook[i] : NULL};
    while (table_next(&t, "matches")) /* key, if aborts, place, listed, description; two keys: */
        for (int waiting = 0; waiting < 2; waiting++) { /* now; for what waits in a journal */
            struct webhook_config was = {.kind = field_yes(t.field[1]),
                .place = (size_t)field_number(t.field[2]),
                .listed = (size_t)field_number(t.field[3]),
                .description = (char *)(uintptr_t)t.field[4].data};
            snprintf(was.key, sizeof was.key, "%s", t.field[0].data);
            const struct webhook *w = backlog_match(&b, &was, waiting);
            check_text(w ? w->config->key : "none", t.field[5 + waiting].data,
                textf("row %d, waiting %d", t.rows, waiting));
        }
}

/*
 * Journals, and what waits after a start, another one, and one after rewriting; dead letters;
 * the open windows for failures: r rate limit, s de-duplication.
 */
static void
test_backlog_load(void)
{
    struct window_key task = key_of(TASK_ID), run = key_of(RUN_ID);
    struct table t = {0};

    while (table_next(&t, "journals")) {
        const char *what = t.field[0].data;
        long long dead = field_number(t.field[2]);
        state_clear();
        write_journal(what);
        for (int start = 0; start < 4; start++) {
            app_start(ON_DISK);
            check_waiting(t.field[1].data, what);
            check_log(start == 0 ? dead : 0, " error: ");
            check_log(start == 0 ? dead : 0, "its webhook is not in the configuration any more");
            struct window_table *windows = backlog->windows->table[ALERT_FAILURE];
            bool rate = window_find(&windows[WINDOW_RATE], &task, plat_now_ms()) != NULL;
            bool seen = window_find(&windows[WINDOW_SEEN], &run, plat_now_ms()) != NULL;
            check_text(textf("%s%s", rate ? "r" : "", seen ? "s" : ""), t.field[3].data, what);
            write_all();
            if (start == 2) {
                app.journal.wants_rewrite = true;
                check(journal_wants_rewrite(&app.journal, INT32_MAX, plat_now_ms()), "it wants to");
                backlog_rewrite(backlog, plat_now_ms());
                settle_disk();
            }
            app_finish();
        }
        check_number(state_lines("dead-letters.ndjson"), dead, what);
    }
}

/* Ages and attempts after a start. */
static void
test_backlog_times(void)
{
    write_journal("a1:1@100 t1:1*3@50 a2:1@-1000");
    app_start(ON_DISK);
    int64_t now_ms = plat_now_ms();
    const struct delivery *d = hook[0].list.oldest;
    check(llabs(now_ms - d->payload->accepted_ms - 100000) < 5000, "its age");
    check(llabs(now_ms - d->tried_ms - 50000) < 5000, "its last attempt");
    check_text(d->why, "status 500", "why");
    check(llabs(d->due_ms - now_ms) < 5000, "its next attempt: at once after a start");
    check(llabs(now_ms - d->newer->payload->accepted_ms) < 5000, "nothing is from the future");
    app_finish();
}

/* One random step of a webhook's life. flying: up to four calls without a result yet. */
static void
backlog_step(struct delivery **flying)
{
    static const char *const texts[] = {"unsent", "broken", "200", "200", "200", "404", "408",
        "429", "429/0", "429/7", "500", "503", "503/3"};
    struct webhook *w = &hook[random_below(3)];
    struct delivery **slot = &flying[random_below(4)];
    int64_t now_ms = plat_now_ms(), ignored = INT64_MAX;
    uint32_t step = random_below(8);

    if (step < 2)
        get(random_below(3) == 0, "M");
    else if (step < 5 && *slot) {
        settle(*slot, texts[random_below(COUNT(texts))]);
        *slot = NULL;
    } else if (step < 5)
        *slot = take(w, LONG_AFTER);
    else if (step == 5) {
        backlog->grace_until_ms = 0;
        if (w->list.oldest && random_below(4) == 0)
            w->list.oldest->payload->accepted_ms = now_ms - 73 * AGE_UNIT_MS;
        webhook_expire(w, now_ms);
    } else if (step == 6) {
        backlog_write_letters(backlog);
        journal_write(&app.journal);
        journal_upkeep(&app.journal, newest_number(), now_ms, &ignored);
        journal_take_results(&app.journal);
    } else {
        journal_write(&app.journal);
        app.journal.wants_rewrite |= random_below(20) == 0;
        if (journal_wants_rewrite(&app.journal, (int64_t)backlog->bytes, now_ms))
            backlog_rewrite(backlog, now_ms);
    }
}

static void
test_backlog_random(void)
{
    struct buf waiting = {0};

    buf_add_text(&waiting, "||");
    for (int start = 0; start < 15; start++) {
        struct delivery *flying[4] = {NULL};
        app_start(ON_DISK);
        check_waiting(waiting.data, "what waited at the end before");
        for (int i = 0; i < 300; i++) {
            backlog_step(flying);
            check_backlog("after a step");
        }
        write_all(); /* letters that are not yet written would wait again */
        buf_free(&waiting);
        waiting_text(&waiting);
        app_finish();
    }
    check(waiting.len > 20, "something waits: %s", waiting.data);
    buf_free(&waiting);
}

/*
 * What --replay has handed over waits again, or is a dead letter again; none is lost. Letters: g
 * good, x of a webhook that is gone, l large; d a damaged line, e one at the end.
 */
static void
test_backlog_replay(void)
{
    struct buf message = {0}, json[2] = {json_of(SLICE(SHORT_DATAGRAM))}, lines = {0};
    struct table t = {0};

    add_many(&message, 60000, "x");
    buf_format(&json[1], "%.*s%s\"}", (int)json[0].len - 3, json[0].data, message.data);
    while (table_next(&t, "replays")) { /* the letters; how many wait again, how many stay */
        size_t again = (size_t)field_number(t.field[1]);
        state_clear();
        app_start(ON_DISK);
        lines.len = 0;
        for (const char *p = t.field[0].data; *p; p++)
            if (*p == 'd' || *p == 'e')
                buf_add_text(&lines, *p == 'd' ? "{\"damaged\n" : "\n{\"damaged");
            else
                buf_format(&lines, "{\"webhookKey\":\"%s\",\"place\":9,\"count\":9,\"alert\":%s}\n",
                    *p == 'x' ? KEY1 : hook[1].config->key, json[*p == 'l'].data);
        write_state("replay.ndjson", held(&lines));
        backlog->room = 5000;
        settle_disk();
        get(ALERT_ABORTED, "M"); /* delivered at once, it needs no sync */
        settle_next(&hook[2], "200");
        journal_write(&app.journal);
        settle_disk();
        int64_t now_ms = plat_now_ms(), ignored;
        for (int k = 0; k < 400 && is_in_state("replay.ndjson"); k++) {
            now_ms += 2 * LOOK_MS;
            journal_take_results(&app.journal);
            backlog->stopping = app.journal.replay_is_read; /* a stop ends what was read */
            backlog_replay(backlog, now_ms, &ignored);
            backlog_write_letters(backlog);
            journal_write(&app.journal);
            journal_upkeep(&app.journal, newest_number(), now_ms, &ignored);
            usleep(3000);
        }
        check(!is_in_state("replay.ndjson"), "it comes to an end");
        check_log(1,
            textf("info: dead letters: %s taken back to be sent again, %s stay", t.field[1].data,
                t.field[2].data));
        check(hook[1].list.count == again && backlog->waiting == again, "only they wait again");
        app_finish();
        check_number(
            state_lines("dead-letters.ndjson"), field_number(t.field[2]), "letters that stay");
        app_start(ON_DISK);
        check_count(hook[1].list.count, again, "they still wait after a start");
        app_finish();
    }
    buf_free(&message);
    buf_free(&lines);
    buf_free(&json[0]);
    buf_free(&json[1]);
}

/* ==== 12. Listener ========================================================== */

#define SUCCESS SLICE("/scheduler-reload-success/")

static struct listener *const listener = &app.listener;
static const unsigned long long *const fates = app.listener.count;

static void
listener_stores(const char *from, struct slice datagram)
{
    struct inbox_head head = {.len = (uint32_t)datagram.len};
    struct plat_addr addr = address(from, 1);

    plat_addr_bytes(&addr, head.from);
    buf_add(&listener->inbox, &head, sizeof head);
    add_slice(&listener->inbox, datagram);
    listener->received++;
    listener->unsorted++;
}

static void
listener_gets(const char *from, struct slice datagram, int64_t now_ms)
{
    listener_stores(from, datagram);
    listen_sort(listener, now_ms);
    listen_log_accepted(listener, journal_write(&app.journal) == 0);
}

static void
test_listen_sources(void)
{
    struct table t = {0};

    while (table_next(&t, "sources")) { /* allowedSources, a sender; if that is allowed */
        bool allowed = field_yes(t.field[2]);
        app_start(textf(IN_MEMORY WITH_UDP(", enableSourceValidation: true, allowedSources: [%s]"),
            t.field[0].data));
        listener_gets(t.field[1].data, SUCCESS, 1000);
        check(fates[LISTEN_REFUSED] == !allowed && fates[LISTEN_IGNORED] == allowed, "%s to %s",
            t.field[1].data, t.field[0].data);
        check_log(!allowed, "warn: datagram ignored, its sender is not in allowedSources, from ");
        app_finish();
    }
}

/*
 * An alert of a kind that has no webhook is counted and logged, too, and has its number. One
 * that matches none of those that there are is worth a warning, once a minute.
 */
static void
test_listen_no_webhook(void)
{
    app_start(HOOK "  butlerWebhook: {stateDirectory: ''}\n" WITH_UDP(""));
    listener_gets("10.0.0.1", SLICE(SHORT_ABORT), 1000);
    listener_gets("10.0.0.1", SLICE(SHORT_DATAGRAM), 1000);
    check_log(1, "info: alert 1 accepted: reload aborted, ");
    check_log(1, ", for 0 webhooks");
    check_log(1, "info: alert 2 accepted: reload failed, ");
    check(fates[LISTEN_ACCEPTED] == 2 && backlog->waiting == 1, "only one waits");
    check_log(0, "match");
    app_finish();
    app_start(HOOK "          match: {user: nobody}\n" WITH_UDP(
        ", deduplication: {enable: false}") "  butlerWebhook: {stateDirectory: ''}\n");
    listener_gets("10.0.0.1", SLICE(SHORT_DATAGRAM), 1000);
    listener_gets("10.0.0.1", SLICE(SHORT_DATAGRAM), 1000 + 300000); /* behind the rate limit */
    listener_gets("10.0.0.1", SLICE(SHORT_ABORT), 1000);
    check(fates[LISTEN_UNMATCHED] == 2 && backlog->waiting == 0, "none waits");
    for (int minute = 0; minute < 4; minute++)
        listen_log_counts(listener, 1000 + minute * MINUTE_MS, false);
    check_log(1, "warn: not sent, as no webhook's match fits: reload failed, task \"T\"");
    check_log(1, "warn: 1 more in the last minute: not sent, as no webhook's match fits");
    app_finish();
}

/* Names in allowedSources are looked up meanwhile. Only what may come counts for rateLimit. */
static void
test_listen_names(void)
{
    int64_t now_ms = 1000000;

    app_start(
        IN_MEMORY WITH_UDP(", enableSourceValidation: true, allowedSources: [10.0.0.1, localhost], "
                           "rateLimit: {enable: true, maxMessagesPerMinute: 3}"));
    const struct source *source = &the_config.source[1];
    for (int i = 0; i < 3000 && source->addresses == 0; i++) {
        listen_look_up(&the_config, now_ms);
        usleep(source->addresses == 0 ? 1000 : 0);
    }
    check_number(source->again_ms, now_ms + LOOKUP_MS, "found: not again for long");
    listener_gets("10.0.0.1", SUCCESS, now_ms);
    listener_gets("127.0.0.1", SUCCESS, now_ms);
    listener_gets("10.0.0.2", SUCCESS, now_ms);
    check(fates[LISTEN_IGNORED] == 2 && fates[LISTEN_REFUSED] == 1, "who may send");
    listen_look_up(&the_config, now_ms + LOOKUP_MS - 1);
    check_number(source->again_ms, now_ms + LOOKUP_MS, "not yet again");
    listen_look_up(&the_config, now_ms + LOOKUP_MS);
    listener_gets("127.0.0.1", SUCCESS, now_ms);
    check(fates[LISTEN_IGNORED] == 3, "meanwhile the old answer counts");
    for (int i = 0; i < 7; i++)
        listener_gets("10.0.0.1", SUCCESS, now_ms + i);
    check_log(7, "error: datagram dropped, over udpServerConfig.rateLimit, from 10.0.0.1");
    listener_gets("10.0.0.1", SUCCESS, now_ms + MINUTE_MS - 1);
    check(fates[LISTEN_IGNORED] == 3, "three in a minute, of those that may send");
    listener_gets("10.0.0.1", SUCCESS, now_ms + MINUTE_MS);
    check(fates[LISTEN_IGNORED] == 4, "a new minute");
    app_finish();
}

static void
test_listen_sort(void)
{
    static const char *const names[] = {"accepted", "ignored", "malformed", "unknown", "refused",
        "oversize", "over rate", "duplicate", "held back", "unmatched"}; /* as enum listen_fate */
    unsigned long long want[LISTEN_FATES] = {0};
    struct table t = {0};

    app_start(IN_MEMORY WITH_UDP(", maxMessageSize: 400"));
    while (table_next(&t, "datagrams")) { /* a time, a sender, a datagram; its fate, the log */
        log_forget();
        listener_gets(t.field[1].data, exact(t.field[2]), field_number(t.field[0]));
        for (int i = 0; i < LISTEN_FATES; i++)
            want[i] += strcmp(names[i], t.field[3].data) == 0;
        check(memcmp(fates, want, sizeof want) == 0, "row %d: %s", t.rows, show(t.field[2]));
        check(log_count("") == 1 && log_count(t.field[4].data) == 1, "row %d: %s", t.rows,
            show(held(&the_log.queue)));
    }
    check_number((long long)listener->received, t.rows, "received");
    check_text(backlog->oldest->about, "4831c6a534f645bb9d4073a6e6992670_f", "its webhook-id");
    check_waiting("1 3 4 7 8 9 10 11 12|1 3 4 7 8 9 10 11 12|2 5 6",
        "each webhook for failures has those, that for aborts the others");
    app_finish();
    app_start(IN_MEMORY WITH_UDP(", deduplication: {enable: false}"));
    listener_gets("10.0.0.1", SLICE(SHORT_DATAGRAM), 0);
    listener_gets("10.0.0.1", SLICE(SHORT_DATAGRAM), 0);
    check_log(1, "held back by the rate limit");
    app_finish();
}

static void
test_listen_throttle(void)
{
    const uint8_t from[16] = {0};
    int64_t now = 5000000;

    app_start(IN_MEMORY WITH_UDP(""));
    listen_log_counts(listener, now, false);
    for (int i = 0; i < 3 * LOG_MINUTE_MAX; i++) {
        listener_gets("::", SLICE("/x/"), now);
        listener_gets("::", SLICE(FAILED ";x"), now);
    }
    check_log(LOG_MINUTE_MAX, "warn: unknown message id: /x/, from ::");
    check_log(LOG_MINUTE_MAX, "warn: malformed datagram: "); /* of each kind */
    listen_log_counts(listener, now + MINUTE_MS - 1, false);
    check_log(0, "more in");
    listen_log_counts(listener, now + MINUTE_MS, false);
    check_log(1, "warn: 40 more in the last minute: unknown message id");
    check_log(1, "warn: 40 more in the last minute: malformed datagram");
    for (int i = 0; i <= LOG_MINUTE_MAX; i++)
        listen_log(listener, LISTEN_UNKNOWN, from, "y");
    check_log(LOG_MINUTE_MAX, "unknown message id: y, from ::");
    listen_log_counts(listener, now + MINUTE_MS + 1, true);
    check_log(1, "warn: 1 more in the last minute: unknown message id");
    now += MINUTE_MS;
    for (int i = 0; i < 100; i++) { /* few have a line each */
        listen_log(listener, LISTEN_UNKNOWN, from, "z");
        listen_log_counts(listener, now += MINUTE_MS / 10, false);
    }
    check_log(100, "unknown message id: z, from ::");
    listen_log_counts(listener, now, true);
    check_log(2, "more in the last minute: unknown message id");
    app_finish();
}

/* What a round takes. Alerts are logged when it is known whether the journal holds them. */
static void
test_listen_inbox(void)
{
    app_start(ON_DISK WITH_UDP(", deduplication: {enable: false}"));
    backlog->windows->table[ALERT_FAILURE][WINDOW_RATE].length_ms = 0;
    for (int i = 0; i < 4 * SORT_ROUND; i++) /* every fifth datagram is none of ours */
        listener_stores("10.0.0.1",
            slice_of(textf("%s;QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN ";INFO;;%d",
                i % 5 ? FAILED : "/scheduler-reload-success/", i)));
    for (int i = 1; i <= 4; i++) {
        listen_sort(listener, 0);
        check_number((int)fates[LISTEN_ACCEPTED], i < 4 ? i * SORT_ROUND : 4 * SORT_ROUND - 26,
            "alerts of a round");
    }
    check_log(0, "accepted");
    for (int i = 0; i < 2; i++) {
        listen_log_accepted(listener, journal_write(&app.journal) == 0);
        check_log(4 * SORT_ROUND - 26, "accepted"); /* once */
    }
    check_log(1, "alert 102 accepted: ");
    check_log(0, "in memory only");
    for (const struct delivery *d = hook[0].list.oldest; d; d = d->newer) {
        int n = (int)d->payload->number; /* from 1 */
        check_has(d->payload->json.data, textf("\"logMessage\":\"%d\"}", n + (n - 1) / 4), "order");
    }
    check(fates[LISTEN_IGNORED] == 26, "the others");
    for (int i = 0; i < RECV_ROUND + 10; i++)
        listener_stores("10.0.0.1", SUCCESS);
    listen_sort(listener, 0);
    check_number((int)fates[LISTEN_IGNORED], 26 + RECV_ROUND, "with the datagrams of a round");
    listen_sort(listener, 0);
    app_finish();
}

static int
port_of(const struct plat_addr *addr)
{
    return ntohs(((const struct sockaddr_in *)(const void *)&addr->ss)->sin_port);
}

static void
send_to(intptr_t sender, const struct plat_addr *to, const char *text)
{
    sendto((int)sender, text, strlen(text), 0, (const void *)&to->ss, to->len);
}

/* A real socket: what was sent is received, but stays in the system when the inbox is full. */
static void
test_listen_socket(void)
{
    struct plat_addr to = {.len = sizeof to.ss};
    struct err e = {""};
    struct listener other;
    struct rlimit files;
    intptr_t sender = socket(AF_INET, SOCK_DGRAM, 0);

    app_start(IN_MEMORY WITH_UDP(", enableSourceValidation: true, allowedSources: [127.0.0.0/8]"));
    the_config.udp_port = 0;
    check(listen_open(listener, &the_config, &e) == 0, "listen_open: %s", e.text);
    check(getsockname((int)listener->sock, (void *)&to.ss, &to.len) == 0, "its port");
    check_log(1, "info: listening on 127.0.0.1:0 (UDP), receive buffer ");
    for (int i = 0; i < 64; i++)
        send_to(sender, &to, textf("/scheduler-reload-success/%d", i));
    listener->inbox.len = INBOX_MAX;
    listen_receive(listener, 0, false);
    check(listener->received == 0 && listener->more, "no room: they stay in the system");
    listener->inbox.len = 0;
    while (listener->more)
        listen_receive(listener, 0, false);
    check(listener->received == 64 && !listener->failed, "received");
    listen_sort(listener, 0);
    check(fates[LISTEN_UNKNOWN] + fates[LISTEN_IGNORED] == 64, "sorted, none refused");
    the_config.udp_port = port_of(&to);
    check(listen_open(&other, &the_config, &e) != 0, "the port is taken");
    check_has(e.text, "in use; if another program listens there", "why");
    getrlimit(RLIMIT_NOFILE, &files);
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){3, files.rlim_max});
    check(listen_open(&other, &the_config, &e) != 0, "no descriptor is left");
    check_has(e.text, strerror(EMFILE), "why");
    setrlimit(RLIMIT_NOFILE, &files);
    setsockopt((int)listener->sock, SOL_SOCKET, SO_RCVBUF, &(int){1}, sizeof(int));
    for (int i = 0; i < 64; i++)
        send_to(sender, &to, "/scheduler-reload-success/");
    listen_receive(listener, 1000, false);
#ifdef __x86_64__ /* qemu counts none */
    check_log(1, textf("error: %d datagrams dropped by the", 128 - (int)listener->received));
#endif
    listen_receive(listener, 2000, false);
    check_log(listener->drops > 0, "datagrams dropped");
    listen_sort(listener, 2000);
    plat_close(listener->sock);
    for (int i = 0; i < 2; i++) {
        listen_receive(listener, 2999, false);
        check(listener->failed && !listener->more, "it cannot receive");
        check_log(1, "error: cannot receive: ");
    }
    plat_close(sender);
    app_finish();
}

/* ==== 13. Loop ============================================================== */

/* Without this the sanitizer itself would end a program that wants too much memory. */
const char *__asan_default_options(void);
const char *
__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

/*
 * The program's exit(3): ends a child before its sanitizer looks for leaks, as the
 * parent's other threads are not there.
 */
void
main_exit(int code)
{
    fflush(stdout);
    fflush(stderr);
    _exit(code);
}

/*
 * Runs main with these words in a process of its own, in the folder for tests, where it writes
 * into the files out and err.
 */
static pid_t
main_start(const char *words)
{
    char *argv[5] = {"butler_webhook"}, text[100];
    int argc = 1;

    fflush(stdout);
    pid_t child = fork();
    if (child != 0)
        return child;
    snprintf(text, sizeof text, "%s", words);
    for (char *word = strtok(text, " "); word && argc < 4; word = strtok(NULL, " "))
        argv[argc++] = word;
    if (!freopen(in_folder("out"), "w", stdout) || !freopen(in_folder("err"), "w", stderr) ||
        chdir(folder) != 0)
        _exit(99);
    signal(SIGINT, SIG_DFL); /* in the background, a shell may have it ignored, and so would we */
    butler_webhook_main(argc, argv);
    _exit(98); /* not reached */
}

static void
main_ends(pid_t child, long long code, const char *what)
{
    int status = 0;

    waitpid(child, &status, 0);
    check_number(WIFEXITED(status) ? WEXITSTATUS(status) : -1, code, what);
}

/* Memory that is out ends the program. */
static void
test_memory_out(void)
{
    volatile size_t much = SIZE_MAX / 2;

    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(freopen(in_folder("err"), "w", stderr) && x_malloc(much) ? 98 : 99);
    main_ends(child, 1, "without memory");
    struct buf said = read_file(in_folder("err"));
    check_text(
        said.data + (said.len > 30 ? said.len - 30 : 0), "butler_webhook: out of memory\n", "why");
    buf_free(&said);
}

static void
main_logs(const char *text)
{
    bool found = false;

    for (int i = 0; i < 1000 && !found; i++) {
        struct buf b = read_file(in_folder("out"));
        found = strstr(b.data, text) != NULL;
        buf_free(&b);
        usleep(found ? 0 : 10000);
    }
    check(found, "the log does not say \"%s\"", text);
}

/* Receives a call on a new connection, answers it and closes; checks that the call holds text. */
static void
main_calls(intptr_t server, const char *text, const char *answer)
{
    struct buf request = {0};
    char data[4000];
    int client = -1, n;

    for (int i = 0; i < 1000 && (client = accept((int)server, NULL, NULL)) < 0; i++)
        usleep(10000);
    if (!check(client >= 0, "a call comes"))
        return;
    buf_add(&request, "", 0);
    while (!strstr(request.data, "\"}") && (n = (int)recv(client, data, sizeof data, 0)) > 0)
        buf_add(&request, data, (size_t)n);
    check_has(request.data, text, "the call");
    plat_send(client, answer, strlen(answer));
    plat_close(client);
    buf_free(&request);
}

static void
test_loop_run(void)
{
    struct plat_addr addr = address("127.0.0.1", 0), udp = address("127.0.0.1", 0);
    intptr_t server = listen_on(&addr, 4), sender = socket(AF_INET, SOCK_DGRAM, 0);
    int port = socket(AF_INET, SOCK_DGRAM, 0), late; /* finds one that is free */

    check(bind(port, (void *)&udp.ss, udp.len) == 0 &&
            getsockname(port, (void *)&udp.ss, &udp.len) == 0,
        "a free port");
    plat_close(port);
    write_file("RUN",
        slice_of(textf(HOOKS "        - {webhookURL: 'http://%s/', httpMethod: POST}\n"
                             "  butlerWebhook: {stateDirectory: state}\n"
                             "  udpServerConfig: {enable: true, portTaskFailure: %d}\n",
            addr_text(&addr), port_of(&udp))));
    pid_t child = main_start("RUN");
    main_logs("0 alerts wait");
    send_to(sender, &udp, FAILED ";QS1;T;A;u;" IDS ";one");
    main_calls(server, "\r\nwebhook-id: msg_4831c6a534f645bb9d4073a6e6992670_f_",
        OK "Content-Length: 0\r\n\r\n");
    main_logs("alert 1 delivered to failure 1: 200");
    send_to(sender, &udp, FAILED ";QS1;T;A;u;;" APP_ID ";;INFO;;two");
    main_calls(server, "\"logMessage\":\"two\"}", "no HTTP\r\n\r\n");
    main_logs("alert 2 to failure 1: the answer is not HTTP");
    kill(child, SIGTERM);
    main_ends(child, 0, "after SIGTERM");
    main_logs("stopped: 2 received, 2 accepted, 1 delivered, 0 given up, 0 lost, 1 waiting");
    while ((late = accept((int)server, NULL, NULL)) >= 0) /* its second attempt may have begun */
        plat_close(late);
    child = main_start("RUN");
    main_logs("1 alert waits");
    main_calls(server, "\"logMessage\":\"two\"}", OK "Content-Length: 0\r\n\r\n");
    main_logs("alert 2 delivered to failure 1: 200");
    kill(child, SIGINT);
    main_ends(child, 0, "after SIGINT");
    main_logs("stopped: 0 received, 0 accepted, 1 delivered, 0 given up, 0 lost, 0 waiting");
    plat_close(server);
    plat_close(sender);
}

/*
 * A stop begins what is due. What it leaves undone is lost unless the journal holds it; logged
 * while there is time.
 */
static void
test_loop_stop(void)
{
    static const int lost[] = {3, 1, 0}; /* by the newest number that the journal holds */

    app_start(IN_MEMORY WITH_UDP(""));
    listener->sock = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    get(ALERT_FAILURE, "M"); /* for two webhooks */
    get(ALERT_ABORTED, "M");
    for (size_t i = 0; i < 2 * COUNT(lost); i++) {
        bool late = i % 2;
        log_forget();
        app.lost = 0;
        backlog->safe_number = i / 2;
        loop_log_lost(&app, late ? 0 : INT64_MAX);
        check_number((int)app.lost, lost[i / 2], "lost");
        check_log(late ? 0 : lost[i / 2], ": stopped before it was delivered; alert: {\"event\":");
    }
    check_number(loop_stop(&app, plat_now_ms()), 0, "loop_stop");
    check_log(3, " is down: ");
    check_log(1, "stopped: 0 received, 0 accepted, 0 delivered, 0 given up, 0 lost, 3 waiting");
    app_finish();
}

/* ==== 14. Command line ====================================================== */

static void
test_commands(void)
{
    struct buf letters = read_file("test/data/unit/letter.json");
    struct table t = {0};

    write_journal("a1:1 t1:1*3@5 w2:4");
    buf_add_text(&letters, "{\"damaged\n");
    write_state("dead-letters.ndjson", held(&letters));
    buf_free(&letters);
    write_file("GOOD", SLICE(HOOK WITH_UDP("")));
    write_file("WARN", SLICE(TLS_HOOK "            rejectUnauthorized: false\n" WITH_UDP("")));
    write_file("BAD", SLICE(HOOKS "        - {webhookURL: x, httpMethod: NO}\n" WITH_UDP("")));
    write_file("OFF", SLICE(OFF_HOOK));
    write_file("STATE", SLICE(ON_DISK WITH_UDP("")));
    while (table_next(&t, "commands")) { /* words, exit code, parts of stdout and stderr, if any */
        main_ends(main_start(t.field[0].data), field_number(t.field[1]), t.field[0].data);
        for (int i = 0; i < 2; i++) {
            struct buf got = read_file(in_folder(i ? "err" : "out"));
            const char *want = t.field[2 + i].data;
            check(want ? strstr(got.data, want) != NULL : got.len == 0, "%s prints on %s \"%s\"",
                t.field[0].data, i ? "stderr" : "stdout", show(held(&got)));
            buf_free(&got);
        }
    }
}

static void
remove_file(const char *name, void *arg)
{
    (void)arg;
    unlink(in_folder(name));
}

int
main(void)
{
    static const struct {
        const char *name;
        void (*run[20])(void);
    } sections[] = {{"3. Base", {test_utf8, test_slices, test_buffers}},
        {"4. Log", {test_log, test_log_text, test_log_events, test_log_files, test_log_thread}},
        {"5. Alert",
            {test_alerts, test_alert_large, test_alert_events, test_alert_json, test_alert_about,
                test_json, test_json_alerts, test_alert_query, test_alert_query_cut,
                test_alert_matches}},
        {"6. URL", {test_url_parse, test_url_limits, test_url_excepted}},
        {"7. Configuration",
            {test_configs, test_config_bounds, test_templates, test_template_random,
                test_template_bounds}},
        {"8. Windows of time", {test_window_edges, test_window_full}},
        {"9. Journal",
            {test_journal_records, test_line_read, test_journal_appends, test_journal_damage,
                test_journal_rewriting, test_journal_links, test_letters, test_letters_files}},
        {"10. HTTP client",
            {test_http_answers, test_http_heads, test_http_dates, test_tls_faults,
                test_http_requests, test_conn, test_http_calls, test_http_tunnel, test_http_dial,
                test_http_loop}},
        {"11. Delivery",
            {test_webhook_judge, test_webhook_backoff, test_webhook_begin, test_webhook_limit,
                test_webhook_settle, test_webhook_pauses, test_backlog_room, test_webhook_expire,
                test_dead_letters, test_backlog_match, test_backlog_load, test_backlog_times,
                test_backlog_random, test_backlog_replay}},
        {"12. Listener",
            {test_listen_sources, test_listen_no_webhook, test_listen_names, test_listen_sort,
                test_listen_throttle, test_listen_inbox, test_listen_socket}},
        {"13. Loop", {test_memory_out, test_loop_run, test_loop_stop}},
        {"14. Command line", {test_commands}}};
    static const char *const proxies[] = {"http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY",
        "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"};

    for (size_t i = 0; i < COUNT(proxies); i++)
        unsetenv(proxies[i]);
    snprintf(folder, sizeof folder, "/tmp/butler_webhook-unit.%d", (int)getpid());
    snprintf(state_folder, sizeof state_folder, "%s/state", folder);
    if (!check(mkdir(folder, 0700) == 0, "%s is new", folder))
        return 1;
    signal(SIGPIPE, SIG_IGN); /* as plat_init does */
    cJSON_InitHooks(&(cJSON_Hooks){x_malloc, free});
    psa_crypto_init();
    for (size_t i = 0; i < COUNT(sections); i++) {
        section = sections[i].name;
        for (void (*const *run)(void) = sections[i].run; *run; run++) {
            log_begin(LOG_INFO);
            (*run)();
            state_clear();
        }
        fflush(stdout);
    }
    section = "at the end";
    log_begin(LOG_ERROR);
    check(__lsan_do_recoverable_leak_check() == 0, "memory was not given back");
    folder_each(folder, remove_file, NULL);
    check(rmdir(folder) == 0, "the folder for tests is empty");
    printf("%d passed, %d failed\n", passed, failed);
    fflush(stdout);
    _exit(failed ? 1 : 0); /* what is left was looked for above */
}
