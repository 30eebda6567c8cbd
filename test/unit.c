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
#include "../butler_webhook.c"
#undef main
#undef exit
#include "done.h"

#include <dirent.h>
#include <sanitizer/lsan_interface.h>
#include <sys/wait.h>

static int passed, failed;
static const char *section = "";
static char folder[64]; /* for files that tests write */

/* A slice of a literal, NULs included; the first form is for tables. */
#define S(text)                                                                                    \
    {                                                                                              \
        text, sizeof(text) - 1                                                                     \
    }
#define SLICE(text) ((struct slice)S(text))
#define COUNT(rows) (sizeof(rows) / sizeof *(rows))

/* Counts a check; says what failed. */
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

/* Checks what a buffer holds, and empties it. */
static bool
check_buf(struct buf *b, struct slice want, const char *what)
{
    bool ok = check_bytes((struct slice){b->data, b->len}, want, what);

    buf_free(b);
    return ok;
}

/* A copy in memory of just that size, so that the sanitizer sees each byte read beyond it. */
static struct slice
exact(struct slice s)
{
    char *copy = x_malloc(s.len ? s.len : 1);

    memcpy(copy, s.data, s.len);
    return (struct slice){copy, s.len};
}

static void
exact_free(struct slice s)
{
    free((void *)(uintptr_t)s.data);
}

/* Random numbers that are the same in each run (xorshift). */
static uint32_t
random_next(void)
{
    static uint32_t state = 2463534242u;

    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static uint32_t
random_below(uint32_t n)
{
    return random_next() % n;
}

/* Writes a file into the folder for tests and gives its path; the last result is overwritten. */
static const char *
write_file(const char *name, struct slice content)
{
    static char path[300];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    f = x_check(fopen(path, "wb"));
    fwrite(content.data, 1, content.len, f);
    fclose(f);
    return path;
}

/* Calls each(name, arg) for all names in a folder. */
static void
folder_each(const char *path, void (*each)(const char *, void *), void *arg)
{
    DIR *dir = opendir(path);

    for (struct dirent *d; dir && (d = readdir(dir)) != NULL;)
        each(d->d_name, arg);
    if (dir)
        closedir(dir);
}

/* An address, from its text. */
static struct plat_addr
address(const char *text, int port)
{
    struct plat_addr addr = {0};

    check(plat_numeric(text, &addr, 1) == 1, "%s is an address", text);
    plat_set_port(&addr, 1, port);
    return addr;
}

/* The same as a listener keeps it. */
static void
address_bytes(const char *text, uint8_t out[16])
{
    struct plat_addr addr = address(text, 1);

    plat_addr_bytes(&addr, out);
}

/* ==== 3. Base =============================================================== */

static const struct {
    struct slice bytes;
    uint32_t point; /* UINT32_MAX: not UTF-8 */
} UTF8_ROWS[] = {
    {S("\0"), 0},
    {S("A"), 'A'},
    {S("\x7f"), 0x7f},
    {S("\xc2\x80"), 0x80},
    {S("\xdf\xbf"), 0x7ff},
    {S("\xe0\xa0\x80"), 0x800},
    {S("\xe2\x82\xac"), 0x20ac},
    {S("\xed\x9f\xbf"), 0xd7ff},
    {S("\xee\x80\x80"), 0xe000},
    {S("\xef\xbf\xbf"), 0xffff},
    {S("\xf0\x90\x80\x80"), 0x10000},
    {S("\xf4\x8f\xbf\xbf"), 0x10ffff},
    {S("\x80"), UINT32_MAX}, /* begins with a continuation */
    {S("\xbf\x80"), UINT32_MAX},
    {S("\xc0\x80"), UINT32_MAX}, /* overlong */
    {S("\xc1\xbf"), UINT32_MAX},
    {S("\xe0\x80\x80"), UINT32_MAX},
    {S("\xe0\x9f\xbf"), UINT32_MAX},
    {S("\xf0\x80\x80\x80"), UINT32_MAX},
    {S("\xf0\x8f\xbf\xbf"), UINT32_MAX},
    {S("\xed\xa0\x80"), UINT32_MAX}, /* surrogates */
    {S("\xed\xbf\xbf"), UINT32_MAX},
    {S("\xf4\x90\x80\x80"), UINT32_MAX}, /* over 0x10ffff */
    {S("\xf5\x80\x80\x80"), UINT32_MAX},
    {S("\xf8\x88\x80\x80\x80"), UINT32_MAX},
    {S("\xfe"), UINT32_MAX},
    {S("\xff"), UINT32_MAX},
    {S("\xc2"), UINT32_MAX}, /* cut off */
    {S("\xe2\x82"), UINT32_MAX},
    {S("\xf0\x9f\x98"), UINT32_MAX},
    {S("\xc2\x41"), UINT32_MAX}, /* no continuation */
    {S("\xe2\x82\xc0"), UINT32_MAX},
    {S("\xe2\x41\x80"), UINT32_MAX},
    {S("\xf0\x9f\x98\x41"), UINT32_MAX},
};

static void
test_utf8(void)
{
    struct buf b = {0};
    int wrong = 0;

    for (size_t i = 0; i < COUNT(UTF8_ROWS); i++) {
        struct slice in = exact(UTF8_ROWS[i].bytes);
        uint32_t point = 0;
        size_t n = utf8_read(in.data, in.len, &point);
        bool valid = UTF8_ROWS[i].point != UINT32_MAX;
        check(n == (valid ? in.len : 0), "utf8_read of \"%s\" gives %zu", show(in), n);
        check(!valid || point == UTF8_ROWS[i].point, "\"%s\" is U+%04X", show(in), point);
        check(utf8_is_valid(in.data, in.len) == valid, "utf8_is_valid of \"%s\"", show(in));
        exact_free(in);
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
test_base(void)
{
    static const struct {
        struct slice in;
        const char *plain;
        struct slice out;
    } encode[] = {
        {S(""), "", S("")},
        {S("azAZ09"), "", S("azAZ09")},
        {S("a/b c"), "/", S("a/b%20c")},
        {S("a b+c"), " ", S("a+b%2Bc")},
        {S("\0\x7f%"), "*-._ ", S("%00%7F%25")},
        {S("\xc3\xa5"), "", S("%C3%A5")},
    };
    static const struct {
        struct slice in;
        int64_t max, out;
    } number[] = {
        {S("0"), 10, 0},
        {S("10"), 10, 10},
        {S("11"), 10, -1},
        {S("00010"), 10, 10},
        {S(""), 10, -1},
        {S("-1"), 10, -1},
        {S("+1"), 10, -1},
        {S(" 1"), 10, -1},
        {S("1 "), 10, -1},
        {S("1\0"), 10, -1},
        {S("0x1"), 10, -1},
        {S("1e1"), 10, -1},
        {S("\xd9\xa1"), 10, -1}, /* a digit, but not one of ours */
        {S("576460752303423487"), INT64_MAX / 16, INT64_MAX / 16},
        {S("576460752303423488"), INT64_MAX / 16, -1},
        {S("99999999999999999999999999999999"), INT64_MAX / 16, -1},
    };
    static const struct {
        struct slice in, out;
    } trim[] = {
        {S(""), S("")},
        {S(" \t "), S("")},
        {S(" a b\t"), S("a b")},
        {S("a"), S("a")},
        {S("\na "), S("\na")},
        {S("\0a\0"), S("\0a\0")},
    };
    struct buf b = {0};
    struct err e;

    for (size_t i = 0; i < COUNT(encode); i++) {
        struct slice in = exact(encode[i].in);
        percent_encode(&b, in, encode[i].plain);
        buf_add(&b, "", 0);
        check_buf(&b, encode[i].out, "percent_encode");
        exact_free(in);
    }
    for (int c = 1; c < 256; c++)
        percent_encode(&b, (struct slice){(char[]){(char)c}, 1}, "");
    check_number((long long)b.len, 62 + 3 * (255 - 62), "every byte, encoded");
    buf_free(&b);

    for (size_t i = 0; i < COUNT(number); i++) {
        struct slice in = exact(number[i].in);
        check_number(slice_number(in, number[i].max), number[i].out, show(in));
        exact_free(in);
    }
    for (int c = -128; c < 256; c++) {
        const char *digits = "0123456789abcdef0123456789ABCDEF";
        const char *at = c > 0 ? strchr(digits, c) : NULL;
        if (hex_value(c) != (at ? (int)(at - digits) % 16 : -1))
            check(false, "hex_value(%d) is %d", c, hex_value(c));
    }
    for (size_t i = 0; i < COUNT(trim); i++) {
        struct slice in = exact(trim[i].in);
        check_bytes(slice_trim(in, " \t"), trim[i].out, "slice_trim");
        exact_free(in);
    }
    check(slice_is(SLICE("cOnTent-LENGTH"), "Content-Length"), "slice_is knows no case");
    check(!slice_is(SLICE("Content-Lengt"), "Content-Length"), "slice_is: too short");
    check(!slice_is(SLICE("Content-Length "), "Content-Length"), "slice_is: too long");
    check(!slice_is(SLICE("a\0b"), "a"), "slice_is: a NUL is a letter");

    for (int i = 0; i < 1000; i++)
        buf_format(&b, "%d;", i);
    check_number((long long)b.len, 3890, "a buffer that grows by formats");
    check(b.data[b.len] == '\0', "is NUL-ended");
    buf_free(&b);
    buf_add(&b, "", 0);
    check(b.data && b.data[0] == '\0', "adding nothing makes an empty text");
    buf_free(&b);
    for (size_t n = 60; n < 70; n++) { /* around the first allocation */
        buf_format(&b, "%0*d", (int)n, 7);
        check(
            b.len == n && strlen(b.data) == n && b.data[n - 1] == '7', "a format of %zu bytes", n);
        buf_free(&b);
    }

    buf_format(&b, "%d %d %lld %lld %llu %zu%s", INT_MIN, 0, LLONG_MIN, LLONG_MAX, ULLONG_MAX,
        (size_t)10, "");
    check_text(b.data,
        "-2147483648 0 -9223372036854775808 9223372036854775807 18446744073709551615 10",
        "formats of whole numbers");
    buf_free(&b);
    buf_format(&b, "%s|%.2s|%s|%d%%, %s", "a", "bcd", "", 5, "e"); /* some are left to printf */
    check_text(b.data, "a|bc||5%, e", "formats of both kinds");
    buf_free(&b);

    buf_add_text(&b, "abcdef");
    buf_drop(&b, 4);
    check_text(b.data, "ef", "buf_drop");
    buf_drop(&b, 2);
    check(b.len == 0 && b.data[0] == '\0', "of all");
    buf_free(&b);

    err_set(&e, "%0*d", 2000, 1);
    check_number((long long)strlen(e.text), (long long)sizeof e.text - 1, "a long error is cut");
    err_set(&e, "why");
    err_set(&e, "%s not: %s", e.text, e.text);
    check_text(e.text, "why not: why", "err_set with its own text");
    err_set(&e, "%0*d%s", 2000, 1, e.text);
    check(strlen(e.text) < sizeof e.text, "words over the room");
}

static void
test_03(void)
{
    test_utf8();
    test_base();
}

/* ==== 4. Log ================================================================ */

static const struct {
    struct slice in, out;
} CLEAN_ROWS[] = {
    {S(""), S("")},
    {S("plain text, \"quotes\" and \\"), S("plain text, \"quotes\" and \\")},
    {S("\xc3\xa5\xe2\x82\xac\xf0\x9f\x9a\x80"), S("\xc3\xa5\xe2\x82\xac\xf0\x9f\x9a\x80")},
    {S("a\nb\r\tc"), S("a\\x0ab\\x0d\\x09c")},
    {S("\0"), S("\\x00")},
    {S("\x1b[31mred\x07\x7f"), S("\\x1b[31mred\\x07\\u007f")},
    {S("\xc2\x80\xc2\x9b\xc2\x9f\xc2\xa0"), S("\\u0080\\u009b\\u009f\xc2\xa0")}, /* C1 */
    {S("\xe2\x80\xa8\xe2\x80\xa9"), S("\\u2028\\u2029")},                        /* line ends */
    {S("\xe2\x80\xaa\xe2\x80\xae"), S("\\u202a\\u202e")},                        /* embeddings */
    {S("\xe2\x81\xa6\xe2\x81\xa9"), S("\\u2066\\u2069")},                        /* isolates */
    {S("\xe2\x80\x8e\xe2\x80\x8f\xd8\x9c"), S("\\u200e\\u200f\\u061c")},         /* marks */
    {S("\xe2\x80\xa7\xe2\x80\xaf"), S("\xe2\x80\xa7\xe2\x80\xaf")},              /* beside them */
    {S("\xc3"), S("\\xc3")},                                                     /* not UTF-8 */
    {S("caf\xe9!"), S("caf\\xe9!")},
    {S("\xe2\x82"), S("\\xe2\\x82")},
    {S("\xed\xa0\x80"), S("\\xed\\xa0\\x80")},
    {S("\xff\xfe/\0"), S("\\xff\\xfe/\\x00")},
};

/* Sets the log up with nobody who writes it, at a level. */
static void
log_begin(enum log_level level)
{
    buf_free(&the_log.queue);
    the_log = (struct log){.level = level, .file = -1};
    plat_monitor_init(&the_log.lock);
}

/* How many lines wait or are missing. */
static long long
log_waiting(void)
{
    return (long long)the_log.unwritten;
}

/* How many lines of the queue hold text. */
static int
log_count(const char *text)
{
    struct slice rest = {the_log.queue.data, the_log.queue.len};
    int n = 0;

    while (rest.len > 0) {
        size_t len = (size_t)((char *)memchr(rest.data, '\n', rest.len) - rest.data);
        n += memmem(rest.data, len, text, strlen(text)) != NULL;
        rest.data += len + 1;
        rest.len -= len + 1;
    }
    return n;
}

/* Empties the log's queue. */
static void
log_forget(void)
{
    buf_free(&the_log.queue);
}

static void
test_log_files(void)
{
    static const int64_t day = 86400000, noon = 1795339800123; /* 2026-11-22 */
    static const struct {
        const char *name;
        bool stays;
    } files[] = {
        {"butler_webhook.2026-10-22.log", false},
        {"butler_webhook.2026-10-23.log", true}, /* 30 days before */
        {"butler_webhook.2026-11-21.log", true},
        {"butler_webhook.2025-12-31.log", false},
        {"butler_webhook.2025-12-31.log.gz", true}, /* not ours */
        {"butler_webhook.2025-12-31.txt", true},
        {"butler.2025-12-31.log", true},
    };
    char path[400], old[400];

    log_begin(LOG_INFO);
    the_log.folder = folder;
    for (size_t i = 0; i < COUNT(files); i++)
        write_file(files[i].name, SLICE("x"));
    check_number(log_open_file(noon), 0, "log_open_file");
    for (size_t i = 0; i < COUNT(files); i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i].name);
        check((access(path, F_OK) == 0) == files[i].stays, "%s %s", files[i].name,
            files[i].stays ? "is gone" : "is still there");
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/butler_webhook.2026-11-22.log", folder);
    check(access(path, F_OK) == 0, "the day's file");
    int handle = the_log.file;
    check(log_open_file(noon + 3600000) == 0 && the_log.file == handle, "the same file that day");
    snprintf(old, sizeof old, "%s", path);
    check_number(log_open_file(noon + day), 0, "the next day");
    snprintf(path, sizeof path, "%s/butler_webhook.2026-11-23.log", folder);
    check(access(path, F_OK) == 0 && access(old, F_OK) == 0, "a new file, the old one kept");
    check_number(log_open_file(noon + 31 * day), 0, "31 days later");
    check(access(old, F_OK) != 0 && access(path, F_OK) == 0,
        "the oldest is deleted, the next is not");
    unlink(path);
    snprintf(path, sizeof path, "%s/butler_webhook.2026-12-23.log", folder);
    unlink(path);
    plat_file_close(the_log.file);
    the_log.file = -1;
    the_log.folder = "/nonexistent";
    check(log_open_file(noon) != 0, "a folder that is not there");
    log_begin(LOG_INFO);
}

/* Adds what can be read of a pipe now. */
static void
read_pipe(int fd, struct buf *b)
{
    char room[4096];

    for (ssize_t n; (n = read(fd, room, sizeof room)) > 0;)
        buf_add(b, room, (size_t)n);
}

/* A console that nobody reads for a while: how many lines are missing is logged when it is read. */
static void
test_log_console(void)
{
    static const int total = 40000; /* more than a batch and the queue hold */
    struct buf shown = {0};
    int pipes[2], console, whole = 0, told = 0;
    struct err e;

    log_begin(LOG_INFO);
    if (!check(pipe(pipes) == 0, "a pipe") ||
        !check(log_start(LOG_INFO, NULL, &e) == 0, "log_start"))
        return;
    fcntl(pipes[0], F_SETFL, O_NONBLOCK);
    fflush(stdout);
    console = dup(STDOUT_FILENO);
    dup2(pipes[1], STDOUT_FILENO);
    for (int i = 0; i < total; i++)
        log_line(LOG_INFO, "this is line number %d of many", 1000000 + i);
    usleep(10 * LOG_GATHER_MS * 1000);
    check(!log_stop(plat_now_ms() + 10), "log_stop while it hangs");
    while (log_waiting() > 0) {
        read_pipe(pipes[0], &shown);
        usleep(1000);
    }
    bool stopped = log_stop(plat_now_ms() + 10000);
    dup2(console, STDOUT_FILENO);
    close(console);
    close(pipes[1]);
    read_pipe(pipes[0], &shown);
    close(pipes[0]);
    check(stopped && log_waiting() == 0, "log_stop");
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
    log_begin(LOG_INFO);
}

/* The thread writes the file, to the last line. */
static void
test_log_thread(void)
{
    char when[32], path[200], *text;
    struct err e;
    size_t len, lines = 0;
    int console = dup(STDOUT_FILENO), none = open("/dev/null", O_WRONLY);

    log_begin(LOG_INFO);
    if (!check(log_start(LOG_INFO, folder, &e) == 0, "log_start: %s", e.text))
        return;
    fflush(stdout);
    dup2(none, STDOUT_FILENO);
    log_time(plat_wall_ms(), when);
    for (int i = 0; i < 1000; i++)
        log_line(LOG_INFO, "line %d", i);
    bool stopped = log_stop(plat_now_ms() + 10000);
    dup2(console, STDOUT_FILENO);
    close(console);
    close(none);
    check(stopped, "log_stop");
    check_number(log_waiting(), 0, "all is written");
    snprintf(path, sizeof path, "%s/butler_webhook.%.10s.log", folder, when);
    if (check(plat_read_file(path, 1 << 20, &text, &len) == 0, "%s", path)) {
        for (const char *p = text; (p = strchr(p, '\n')); p++)
            lines++;
        check_number((long long)lines, 1000, "lines of the file");
        check(strstr(text, "info: line 0\n") && strstr(text, "info: line 999\n"),
            "the first and the last");
        free(text);
    }
    unlink(path);
    log_begin(LOG_INFO);
    check(log_start(LOG_INFO, "/proc/none", &e) != 0 && strstr(e.text, "/proc/none"),
        "no folder: %s", e.text);
    log_begin(LOG_INFO);
}

static void
test_log(void)
{
    char most[2 * LOG_NAME_MAX];
    static const struct {
        int64_t ms;
        const char *text;
    } times[] = {
        {0, "1970-01-01T00:00:00.000Z"},
        {999, "1970-01-01T00:00:00.999Z"},
        {951782400000, "2000-02-29T00:00:00.000Z"},
        {1795339800123, "2026-11-22T09:30:00.123Z"},
        {4107542399999, "2100-02-28T23:59:59.999Z"},
        {4107542400000, "2100-03-01T00:00:00.000Z"},
        {-1, "1970-01-01T00:00:00.000Z"},
        {INT64_MAX, "1970-01-01T00:00:00.000Z"},
        {253402300799999, "9999-12-31T23:59:59.999Z"},
    };
    struct buf b = {0}, long_text = {0};
    char when[32];

    for (size_t i = 0; i < COUNT(CLEAN_ROWS); i++) {
        struct slice in = exact(CLEAN_ROWS[i].in);
        log_add_clean(&b, in);
        check_buf(&b, CLEAN_ROWS[i].out, "log_add_clean");
        exact_free(in);
    }
    for (size_t i = 0; i < COUNT(times); i++) {
        log_time(times[i].ms, when);
        check_text(when, times[i].text, "log_time");
    }

    check_text(log_text(SLICE("a\nb")).text, "a\\x0ab", "log_text");
    check_text(log_text((struct slice){0}).text, "", "log_text of nothing");
    memset(most, 0x7f, sizeof most);
    check_number((int)strlen(log_text((struct slice){most, sizeof most}).text), LOG_NAME_MAX + 3,
        "log_text of what grows most");
    for (int i = 0; i < LOG_NAME_MAX; i++)
        buf_add_char(&long_text, 'x');
    check_text(log_text((struct slice){long_text.data, long_text.len}).text, long_text.data,
        "log_text just fits");
    buf_add_char(&long_text, 'y');
    buf_add(&b, long_text.data, LOG_NAME_MAX);
    buf_add_text(&b, "...");
    check_text(log_text((struct slice){long_text.data, long_text.len}).text, b.data, "one over");
    buf_free(&b);
    for (int lead = 0; lead < 8; lead++) { /* cut at each place of a character and of an escape */
        long_text.len = 0;
        for (int i = 0; i < lead; i++)
            buf_add_char(&long_text, i % 2 ? 'x' : '\n');
        for (int i = 0; i < 60; i++)
            buf_add_text(&long_text, "\xf0\x9f\x9a\x80");
        struct log_text cut = log_text((struct slice){long_text.data, long_text.len});
        check(utf8_is_valid(cut.text, strlen(cut.text)), "log_text cuts a character, %d before it",
            lead);
        check(strlen(cut.text) <= LOG_NAME_MAX + 3, "log_text is bounded");
    }
    buf_free(&long_text);

    log_begin(LOG_INFO);
    log_line(LOG_VERBOSE, "not wanted");
    log_line(LOG_INFO, "a %s", "b\nc");
    log_line(LOG_ERROR, "e");
    check_number(log_count(""), 2, "lines wanted at level info");
    check(log_count("Z info: a b\\x0ac") == 1, "a line end inside a line: %s",
        show((struct slice){the_log.queue.data, the_log.queue.len}));
    check_number(log_count("Z error: e"), 1, "level error");
    for (int i = 0; i < 40000; i++)
        log_line(LOG_WARN, "this line is one of very many, number %d", i);
    check(the_log.queue.len <= LOG_QUEUE_MAX, "the queue is bounded");
    check(the_log.queue.len > LOG_QUEUE_MAX - 100, "and full");
    check_number(log_count(""), (long long)the_log.lines, "lines that are there");
    check_number(log_waiting(), 40002, "none is written");
    log_begin(LOG_INFO);
}

static void
test_04(void)
{
    test_log();
    test_log_files();
    test_log_console();
    test_log_thread();
}

/* ==== 5. Alert ============================================================== */

#define TASK_ID "dec2a02a-1680-44ef-8dc2-e2bfb180af87"
#define APP_ID "e7af59a0-c243-480d-9571-08727551a66f"
#define RUN_ID "4831c6a5-34f6-45bb-9d40-73a6e6992670"
#define ZERO_ID "00000000-0000-0000-0000-000000000000"
#define WHEN "2026-11-22 10:50:04,735"
#define IDS TASK_ID ";" APP_ID ";" WHEN ";INFO;" RUN_ID
#define FAILED "/scheduler-reload-failed/"
#define ABORTED_ID "/scheduler-reload-aborted/"

/* What fields() says of an alert: the fields from the host name on, in the datagram's order. */
#define FIELDS(names, message)                                                                     \
    "QS1|" names "|" TASK_ID "|" APP_ID "|" WHEN "|INFO|" RUN_ID "|" message

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

static const char *const SORTS[] = {"ours", "ignored", "malformed", "unknown"};

/* Each datagram, what it is ("failure" and "aborted" are ours), and its fields. */
static const struct {
    struct slice datagram;
    const char *sort;
    struct slice fields; /* or the error */
} ALERT_ROWS[] = {
    /* ids */
    {S(FAILED ";QS1;T;A;LAB\\g;" IDS ";M"), "failure", S(FIELDS("T|A|LAB\\g", "M"))},
    {S("/scheduler-task-failed/;QS1;T;A;LAB\\g;" IDS ";M"), "failure",
        S(FIELDS("T|A|LAB\\g", "M"))},
    {S("/scheduler-reloadtask-failed/;QS1;T;A;u;" IDS ";M"), "failure", S(FIELDS("T|A|u", "M"))},
    {S("/Scheduler-RELOAD-Failed/;QS1;T;A;u;" IDS ";M"), "failure", S(FIELDS("T|A|u", "M"))},
    {S(ABORTED_ID ";QS1;T;A;LAB\\g;" IDS ";M"), "aborted", S(FIELDS("T|A|LAB\\g", "M"))},
    {S("/SCHEDULER-TASK-ABORTED/;QS1;T;A;u;" IDS ";M"), "aborted", S(FIELDS("T|A|u", "M"))},
    {S("/scheduler-reload-success/;QS1;T;A;u;" IDS ";M"), "ignored",
        S("/scheduler-reload-success/")},
    {S("/scheduler-task-success/;x"), "ignored", S("/scheduler-task-success/")},
    {S("/scheduler-task-success//;x"), "ignored", S("/scheduler-task-success//")},
    {S("/scheduler-reloadtask-success/;x"), "ignored", S("/scheduler-reloadtask-success/")},
    {S("/scheduler-reload-complete/;x"), "ignored", S("/scheduler-reload-complete/")},
    {S("/scheduler-distribute/;x"), "ignored", S("/scheduler-distribute/")},
    {S("/engine-reload-failed/;x"), "ignored", S("/engine-reload-failed/")},
    {S("/Engine-Reload-FAILED/"), "ignored", S("/Engine-Reload-FAILED/")},
    {S(""), "unknown", S("")},
    {S(";"), "unknown", S("")},
    {S("\n"), "unknown", S("")},
    {S("/scheduler-reload-failed;QS1;T;A;u;" IDS ";M"), "unknown", S("/scheduler-reload-failed")},
    {S(" " FAILED ";QS1;T;A;u;" IDS ";M"), "unknown", S(" " FAILED)},
    {S("/user-event/;x"), "unknown", S("/user-event/")},
    {S("\x1b[2J;x"), "unknown", S("\\x1b[2J")},
    {S(FAILED "\0;QS1;T;A;u;" IDS ";M"), "unknown", S(FAILED "\xef\xbf\xbd")},

    /* too few or wrong fields */
    {S(FAILED), "malformed", S("")},
    {S(FAILED ";"), "malformed", S("")},
    {S(FAILED ";QS1"), "malformed", S("")},
    {S(FAILED ";QS1;" IDS ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;" IDS ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;" IDS ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN ";INFO"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" WHEN ";INFO;" RUN_ID ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID "x;" APP_ID ";" WHEN ";INFO;" RUN_ID ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";(NULL);" WHEN ";INFO;" RUN_ID ";M"), "malformed", S("")},
    {S(FAILED ";;;;;;;;;;;"), "malformed", S("")},

    /* ten semicolons: whatever the level holds; more: one of log4net's */
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN ";NOTE;" RUN_ID ";M"), "failure",
        S("QS1|T|A|u|" TASK_ID "|" APP_ID "|" WHEN "|NOTE|" RUN_ID "|M")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN ";;" RUN_ID ";M"), "failure",
        S("QS1|T|A|u|" TASK_ID "|" APP_ID "|" WHEN "||" RUN_ID "|M")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN "; INFO;" RUN_ID ";M"), "failure",
        S("QS1|T|A|u|" TASK_ID "|" APP_ID "|" WHEN "| INFO|" RUN_ID "|M")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN ";NOTE;" RUN_ID ";M;N"), "malformed",
        S("")},
    {S(FAILED ";QS1;;T;A;u;" TASK_ID ";" APP_ID ";" WHEN ";NOTE;" RUN_ID), "malformed", S("")},
    {S(FAILED ";QS1;T;1;A;u;" IDS), "failure", S(FIELDS("T|1;A|u", ""))},

    /* the smallest that counts, and empty fields */
    {S(FAILED ";;;;;;" APP_ID ";;INFO;"), "malformed", S("")},
    {S(FAILED ";;;;;;" APP_ID ";;INFO;;"), "failure", S("|||||" APP_ID "||INFO||")},
    {S(FAILED ";QS1;T;A;u;" IDS), "failure", S(FIELDS("T|A|u", ""))},
    {S(FAILED ";QS1;T;A;u;" IDS ";"), "failure", S(FIELDS("T|A|u", ""))},
    {S(FAILED ";(null);(null);(null);(null);(null);" APP_ID ";(null);INFO;(null);M"), "failure",
        S("|||||" APP_ID "||INFO||M")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" APP_ID ";;INFO;;M"), "failure",
        S("QS1|T|A|u|" TASK_ID "|" APP_ID "||INFO||M")},
    {S(FAILED ";QS1;(null) ;A;u;" IDS ";M"), "failure", S(FIELDS("(null) |A|u", "M"))},

    /* no app: not a reload */
    {S(FAILED ";QS1;Run backup;;u;" TASK_ID ";;" WHEN ";INFO;" RUN_ID ";M"), "ignored",
        S("Run backup")},
    {S(FAILED ";QS1;Run backup;(null);u;" TASK_ID ";(null);" WHEN ";INFO;" RUN_ID ";M"), "ignored",
        S("Run backup")},
    {S(FAILED ";QS1;Run backup;;u;" TASK_ID ";" ZERO_ID ";" WHEN ";INFO;" RUN_ID ";M"), "ignored",
        S("Run backup")},
    {S(ABORTED_ID ";QS1;Run backup;;u;" TASK_ID ";{" ZERO_ID "};" WHEN ";INFO;" RUN_ID ";M"),
        "ignored", S("Run backup")},
    {S(FAILED ";QS1;T;A;u;" ZERO_ID ";" APP_ID ";" WHEN ";INFO;" RUN_ID ";M"), "failure",
        S("QS1|T|A|u|" ZERO_ID "|" APP_ID "|" WHEN "|INFO|" RUN_ID "|M")},

    /* GUIDs stay as they came; the execution's may be anything */
    {S(FAILED
         ";QS1;T;A;u;{DEC2A02A-1680-44EF-8DC2-E2BFB180AF87};{E7AF59A0-C243-480D-9571-08727551A66F};"
         ";WARN;{run};M"),
        "failure",
        S("QS1|T|A|u|{DEC2A02A-1680-44EF-8DC2-E2BFB180AF87}|{E7AF59A0-C243-480D-9571-08727551A66F}||WARN|"
          "{run}|M")},
    {S(FAILED ";QS1;T;A;u;{" TASK_ID ";" APP_ID ";" WHEN ";INFO;" RUN_ID ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID "};" APP_ID ";" WHEN ";INFO;" RUN_ID ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;(" TASK_ID ");" APP_ID ";" WHEN ";INFO;" RUN_ID ";M"), "malformed",
        S("")},
    {S(FAILED ";QS1;T;A;u;dec2a02a168044ef8dc2e2bfb180af87;" APP_ID ";" WHEN ";INFO;" RUN_ID ";M"),
        "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;dec2a02a-1680-44ef-8dc2e-2bfb180af87;" APP_ID ";" WHEN ";INFO;" RUN_ID
              ";M"),
        "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;gec2a02a-1680-44ef-8dc2-e2bfb180af87;" APP_ID ";" WHEN ";INFO;" RUN_ID
              ";M"),
        "malformed", S("")},

    /* the message: everything behind the first run of ids, but line ends at the very end */
    {S(FAILED ";QS1;T;A;u;" IDS ";a;b; c;;"), "failure", S(FIELDS("T|A|u", "a;b; c;;"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";M\r\n"), "failure", S(FIELDS("T|A|u", "M"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";M\n\r\n\r"), "failure", S(FIELDS("T|A|u", "M"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";\r\n"), "failure", S(FIELDS("T|A|u", ""))},
    {S(FAILED ";QS1;T;A;u;" IDS ";M \n \t\r\n"), "failure", S(FIELDS("T|A|u", "M \n \t"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";\r\nM\0"), "failure", S(FIELDS("T|A|u", "\r\nM\xef\xbf\xbd"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";M\0\n"), "failure", S(FIELDS("T|A|u", "M\xef\xbf\xbd"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";MSystem.Exception: x\r\n   at y"), "failure",
        S(FIELDS("T|A|u", "MSystem.Exception: x\r\n   at y"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";M\n" ABORTED_ID ";QS2;T2;A2;u2;" IDS ";M2\n"), "failure",
        S(FIELDS("T|A|u", "M\n" ABORTED_ID ";QS2;T2;A2;u2;" IDS ";M2"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";" IDS ";M"), "failure", S(FIELDS("T|A|u", IDS ";M"))},

    /* control characters in names are kept */
    {S(FAILED ";QS1;T\r\n1;A\0\t;u\x1b;" IDS ";M"), "failure",
        S(FIELDS("T\r\n1|A\xef\xbf\xbd\t|u\x1b", "M"))},

    /* ";" in names: the task name ends with the app name */
    {S(FAILED ";QS1;Reload of S;EU;S;EU;u;" IDS ";M"), "failure",
        S(FIELDS("Reload of S;EU|S;EU|u", "M"))},
    {S(FAILED ";QS1;S;EU;S;EU;u;" IDS ";M"), "failure", S(FIELDS("S;EU|S;EU|u", "M"))},
    {S(FAILED ";QS1;Reload of A; B;A; B;LAB;g;" IDS ";M"), "failure",
        S(FIELDS("Reload of A; B|A; B|LAB;g", "M"))},
    {S(FAILED ";QS1;My A;A; g;x;" IDS ";M"), "failure", S(FIELDS("My A|A| g;x", "M"))},
    {S(FAILED ";QS1;Of App;App;UserDirectory=LAB; UserId=g;" IDS ";M"), "failure",
        S(FIELDS("Of App|App|UserDirectory=LAB; UserId=g", "M"))},
    {S(FAILED ";QS1;X;X;X;X;" IDS ";M"), "failure", S(FIELDS("X|X|X;X", "M"))},
    {S(FAILED ";QS1;T;(null);(null);u;" IDS ";M"), "failure", S(FIELDS("T|(null);(null)|u", "M"))},

    /* else: not where a blank follows */
    {S(FAILED ";QS1;Reload; Sales; EU;App 2;LAB\\g;" IDS ";M"), "failure",
        S(FIELDS("Reload; Sales; EU|App 2|LAB\\g", "M"))},
    {S(FAILED ";QS1;T;App 2; b;LAB\\g;" IDS ";M"), "failure", S(FIELDS("T|App 2; b|LAB\\g", "M"))},
    {S(FAILED ";QS1;T;App 2;UserDirectory=LAB; UserId=g;" IDS ";M"), "failure",
        S(FIELDS("T|App 2|UserDirectory=LAB; UserId=g", "M"))},
    {S(FAILED ";QS1;T; A; u;" IDS ";M"), "failure", S(FIELDS("T| A| u", "M"))},

    /* else: the shortest task name and the shortest user */
    {S(FAILED ";QS1;T;Sales;EU;;LAB\\g;" IDS ";M"), "failure",
        S(FIELDS("T|Sales;EU;|LAB\\g", "M"))},
    {S(FAILED ";QS1;T;;u;v;" IDS ";M"), "failure", S(FIELDS("T|;u|v", "M"))},
    {S(FAILED ";QS1;;;;" IDS ";M"), "failure", S(FIELDS("||", "M"))},

    /* in a failed event one backslash of two, in the user alone */
    {S(FAILED ";QS1;a\\\\b;A\\\\;LAB\\\\g\\\\\\h\\;" IDS ";C:\\\\x"), "failure",
        S(FIELDS("a\\\\b|A\\\\|LAB\\g\\\\h\\", "C:\\\\x"))},
    {S(ABORTED_ID ";QS1;a\\\\b;A;LAB\\\\g;" IDS ";M"), "aborted",
        S(FIELDS("a\\\\b|A|LAB\\\\g", "M"))},

    /* encodings: UTF-8, with a mark, or Windows-1252 if one byte is not UTF-8 */
    {S("\xef\xbb\xbf" FAILED ";QS1;\xc3\xa5;A;u;" IDS ";M"), "failure",
        S(FIELDS("\xc3\xa5|A|u", "M"))},
    {S(FAILED ";QS1;\xe5;A;u;" IDS ";M"), "failure", S(FIELDS("\xc3\xa5|A|u", "M"))},
    {S(FAILED ";QS1;\xc3\xa5\xe5;A;u;" IDS ";M"), "failure",
        S(FIELDS("\xc3\x83\xc2\xa5\xc3\xa5|A|u", "M"))},
    {S(FAILED ";QS1;\x80\x81\x8d\x8f\x90\x9d\x9f\xa0\xff;A;u;" IDS ";M"), "failure",
        S(FIELDS("\xe2\x82\xac\xc2\x81\xc2\x8d\xc2\x8f\xc2\x90\xc2\x9d\xc5\xb8\xc2\xa0\xc3\xbf|A|u",
            "M"))},
    {S("\xff\xfe" FAILED ";QS1;T;A;u;" IDS ";M"), "failure", S(FIELDS("T|A|u", "M"))},
    {S("\xef\xbb\xbf" FAILED ";QS1;\xe5;A;u;" IDS ";M"), "failure", S(FIELDS("\xc3\xa5|A|u", "M"))},
};

/* Checks what alert_parse makes of a datagram; one alert is used for all. */
static void
check_alert(struct slice datagram, const char *sort, struct slice want, const char *what)
{
    static struct alert alert;
    struct slice in = exact(datagram);
    struct buf got = {0};
    struct err e = {""};
    enum listen_fate result = alert_parse(in, &alert, &e);

    exact_free(in); /* the alert must not need it */
    check_text(result == LISTEN_ACCEPTED ? KINDS[alert.kind].name : SORTS[result], sort, what);
    if (result == LISTEN_ACCEPTED) {
        fields(&alert, &got);
        check_buf(&got, want, what);
        check_text(alert.field[FIELD_EVENT], KINDS[alert.kind].event, "event");
    } else
        check(memmem(e.text, strlen(e.text), want.data, want.len) != NULL,
            "%s: \"%s\" tells no \"%s\"", what, e.text, show(want));
    alert_done(&alert);
}

/* Adds UTF-8 text as UTF-16, with or without a byte order mark. */
static void
add_utf16(struct buf *b, struct slice s, bool big, bool mark)
{
    uint32_t c = 0xfeff;

    for (size_t i = 0, n = 0; i < s.len || mark; i += n, mark = false) {
        uint32_t unit[2];
        int units = 1;
        n = mark ? 0 : utf8_read(s.data + i, s.len - i, &c);
        unit[0] = c;
        if (c > 0xffff) {
            unit[0] = 0xd800 + ((c - 0x10000) >> 10);
            unit[1] = 0xdc00 + ((c - 0x10000) & 0x3ff);
            units = 2;
        }
        for (int k = 0; k < units; k++) {
            buf_add_char(b, (int)(big ? unit[k] >> 8 : unit[k] & 0xff));
            buf_add_char(b, (int)(big ? unit[k] & 0xff : unit[k] >> 8));
        }
    }
}

static void
test_alert_encodings(void)
{
    static const struct {
        struct slice bytes, text;
    } odd[] = {
        {S("/\0;\0\0\xd8;\0"), S("/;\xef\xbf\xbd;")}, /* lone surrogates */
        {S("/\0;\0\0\xdc;\0"), S("/;\xef\xbf\xbd;")},
        {S("/\0\0\xd8"), S("/\xef\xbf\xbd")},
        {S("/\0\0\xd8\0\xd8\0\xdc"), S("/\xef\xbf\xbd\xf0\x90\x80\x80")},
        {S("/\0;"), S("/\xef\xbf\xbd")}, /* half a character */
        {S("\0/\xd8\x3d\xde\x80"), S("/\xf0\x9f\x9a\x80")},
        {S("\xff\xfe/\0\0\0"), S("/\xef\xbf\xbd")}, /* NUL */
        {S("\0;\0\xc3\xa5"), S("\xef\xbf\xbd;\xef\xbf\xbd\xc3\xa5")},
        {S("\0\xe5"), S("\xef\xbf\xbd\xc3\xa5")},
        {S("/\0\xff\xfe"), S("/\xef\xbb\xbf")}, /* U+FEFF inside stays */
        {S("\xff\xfe"), S("")},
        {S("\xef\xbb\xbf\xef\xbb\xbf/"), S("\xef\xbb\xbf/")},
        {S("\xef\xbb\xbf"), S("")},
        {S("\xef\xbb"), S("\xc3\xaf\xc2\xbb")},
        {S("/"), S("/")},
    };
    static const char text[] = FAILED
        ";QS1;S\xc3\xa5;\xe5\xa3\xb2\xe4\xb8\x8a \xf0\x9f\x9a\x80;u;" IDS ";\xe2\x82\xac\r\n";
    static const char want[] = FIELDS(
        "S\xc3\xa5|\xe5\xa3\xb2\xe4\xb8\x8a \xf0\x9f\x9a\x80|u", "\xe2\x82\xac");
    struct buf b = {0};

    for (size_t i = 0; i < COUNT(odd); i++) {
        struct slice in = exact(odd[i].bytes);
        alert_decode(in, &b);
        check_buf(&b, odd[i].text, "alert_decode");
        exact_free(in);
    }
    for (int form = 0; form < 4; form++) {
        add_utf16(&b, SLICE(text), form & 1, form & 2);
        check_alert((struct slice){b.data, b.len}, "failure", SLICE(want), "UTF-16");
        buf_free(&b);
    }
    for (int c = 0x80; c < 0x100; c++) { /* each byte of Windows-1252 becomes one character */
        char byte[2] = {(char)c, '.'};
        uint32_t point = 0;
        alert_decode((struct slice){byte, 2}, &b);
        size_t n = utf8_read(b.data, b.len, &point);
        check(n + 1 == b.len && (c >= 0xa0 ? point == (uint32_t)c : point >= 0x80), "byte %02x", c);
        buf_free(&b);
    }
}

/* Datagrams of the largest size, and those that are made to cost much. */
static void
test_alert_large(void)
{
    struct buf b = {0}, want = {0};

    buf_add_text(&b, FAILED ";QS1;T;A;u;" IDS ";");
    buf_add_text(&want, FIELDS("T|A|u", ""));
    while (b.len < DATAGRAM_MAX) {
        buf_add_char(&b, '\xe5'); /* two bytes each in UTF-8 */
        buf_add_text(&want, "\xc3\xa5");
    }
    check_alert((struct slice){b.data, b.len}, "failure", (struct slice){want.data, want.len},
        "the largest datagram");
    b.len = want.len = 0;
    buf_add_text(&b, FAILED ";QS1");
    while (b.len < DATAGRAM_MAX - 200)
        buf_add_char(&b, ';');
    buf_add_text(&b, IDS ";M");
    check(b.len < DATAGRAM_MAX, "65,000 times \";\"");
    clock_t began = clock();
    struct alert alert = {0};
    struct err e;
    check(alert_parse((struct slice){b.data, b.len}, &alert, &e) == LISTEN_ACCEPTED, "is ours");
    alert_done(&alert);
    check((clock() - began) / CLOCKS_PER_SEC < 1, "and takes no second");
    b.len = 0;
    for (int i = 0; i < 100; i++) /* over CUT_PLACES_MAX pieces */
        buf_format(&b, "%s%d", i ? ";" : FAILED ";QS1;n", i);
    buf_add_text(&b, ";" IDS ";M");
    buf_add_text(&want, "QS1|n0|1");
    for (int i = 2; i < 99; i++)
        buf_format(&want, ";%d", i);
    buf_add_text(&want, "|99|" TASK_ID "|" APP_ID "|" WHEN "|INFO|" RUN_ID "|M");
    check_alert((struct slice){b.data, b.len}, "failure", (struct slice){want.data, want.len},
        "100 pieces of names");
    buf_free(&b);
    buf_free(&want);
}

/* Checks an alert against the event that the real log4net was given. */
static void
check_event(const cJSON *row, struct slice datagram)
{
    const char *file = json_text(row, "file");
    const cJSON *want = cJSON_GetObjectItem(row, "fields");
    struct alert alert = {0};
    struct err e;
    enum listen_fate sort = alert_parse(datagram, &alert, &e);

    check_text(sort == LISTEN_ACCEPTED ? KINDS[alert.kind].name : SORTS[sort],
        json_text(row, "verdict"), file);
    for (int i = 1; sort == LISTEN_ACCEPTED && i < ALERT_FIELDS; i++) {
        const cJSON *value = cJSON_GetObjectItem(want, FIELD_NAMES[i]);
        const char *got = alert.field[i];
        uint8_t hash[32];
        char hex[65] = "";
        if (strcmp(file, "051-a-control-chars.bin") == 0 &&
            (i == FIELD_TASK_NAME || i == FIELD_APP_NAME))
            continue; /* nothing tells that the ";" in its escape sequence belongs to the name */
        if (cJSON_IsString(value)) { /* cJSON ends a text at its first NUL, which we replace */
            size_t len = strlen(value->valuestring);
            check(strncmp(got, value->valuestring, len) == 0 &&
                    (got[len] == '\0' || strncmp(got + len, "\xef\xbf\xbd", 3) == 0),
                "%s: %s is \"%s\", not \"%s\"", file, FIELD_NAMES[i], got, value->valuestring);
            continue;
        }
        mbedtls_sha256((const unsigned char *)got, strlen(got), hash, 0);
        hex_write(hash, sizeof hash, hex);
        check_text(hex, json_text(value, "sha256"), file);
    }
    alert_done(&alert);
}

/* The datagrams of test/data. */
static void
test_alert_events(void)
{
    char *text, path[200];
    size_t len;

    if (!check(plat_read_file("test/data/datagrams/index.json", 1 << 20, &text, &len) == 0,
            "test/data/datagrams/index.json: run in the repository's folder"))
        return;
    cJSON *index = cJSON_Parse(text);
    const cJSON *row;
    check(cJSON_GetArraySize(index) > 50, "rows of index.json");
    cJSON_ArrayForEach(row, index)
    {
        char *data;
        snprintf(path, sizeof path, "test/data/datagrams/%s",
            cJSON_GetObjectItem(row, "file")->valuestring);
        if (!check(plat_read_file(path, DATAGRAM_MAX, &data, &len) == 0, "%s", path))
            continue;
        check_event(row, (struct slice){data, len});
        free(data);
    }
    cJSON_Delete(index);
    free(text);
}

/* The alert of a datagram that is ours. The caller ends it with alert_done. */
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

/* Texts, and what JSON.stringify of Node.js 20 made of {k: text}. */
static void
test_json_stringify(void)
{
    struct buf b = {0};
    char *text;
    size_t len;

    if (!check(plat_read_file("test/data/stringify.json", 1 << 20, &text, &len) == 0,
            "test/data/stringify.json: run in the repository's folder"))
        return;
    cJSON *rows = json_read((struct slice){text, len});
    const cJSON *row;
    check(cJSON_GetArraySize(rows) > 100, "rows of stringify.json");
    cJSON_ArrayForEach(row, rows)
    {
        uint8_t bytes[256];
        const char *hex = json_text(row, "utf8");
        size_t n = strlen(hex) / 2;
        cJSON *object = cJSON_CreateObject();
        check(n < sizeof bytes && hex_read(slice_of(hex), bytes, n) == 0, "%s", hex);
        bytes[n] = '\0';
        json_put(object, "k", (const char *)bytes);
        json_print(object, &b);
        check_text(b.data, json_text(row, "json"), hex);
        buf_free(&b);
        cJSON_Delete(object);
    }
    cJSON_Delete(rows);
    free(text);
    buf_add_text(&b, "x");
    json_print(NULL, &b);
    check(b.cap < 1000, "nothing to print takes no memory");
    check_buf(&b, SLICE("x"), "json_print of nothing");
}

static void
test_json_read(void)
{
    static const struct {
        struct slice text;
        bool ok;
    } rows[] = {
        {S("{\"a\":1}"), true}, {S(" \t\r\n[] \t\r\n"), true}, {S("\"\xc3\xa5\""), true},
        {S("\"\\ud83d\\ude80\""), true}, {S(""), false}, {S(" "), false}, {S("{}x"), false},
        {S("{}\0"), false}, {S("{\"a\":1"), false}, {S("\"a"), false}, {S("\"\\u12\""), false},
        {S("\"\\ud83d\""), false}, {S("\"\xe5\""), false}, {S("\"\xed\xa0\x80\""), false},
        {S("[[[[[[[[1]]]]]]]]"), true}, {S("[[[[[[[[[1]]]]]]]]]"), false}, /* CJSON_NESTING_LIMIT */
    };
    cJSON *value;

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct slice in = exact(rows[i].text);
        value = json_read(in);
        check((value != NULL) == rows[i].ok, "json_read of %s", show(in));
        cJSON_Delete(value);
        exact_free(in);
    }
    value = json_read(SLICE("{\"A\":\"upper\",\"a\":\"x\",\"b\":1,\"a\":\"y\"}"));
    check_text(json_text(value, "a"), "x", "the first of its name");
    check_text(json_text(value, "b"), "", "no text");
    check_text(json_text(value, "c"), "", "none at all");
    check_text(json_text(NULL, "a"), "", "of nothing");
    cJSON_Delete(value);
}

/* Adds random text: mostly what JSON has to escape, or characters of several bytes. */
static void
add_random_text(struct buf *b)
{
    static const uint32_t below[] = {0x20, 0x80, 0x800, 0xd800, 0x110000};
    static const char special[] = "\"\\/{}[]:,u\x1f\t\n";

    for (uint32_t n = random_below(30); n > 0; n--)
        if (random_below(3) == 0)
            buf_add_char(b, special[random_below(sizeof special - 1)]);
        else
            utf8_add(b, 1 + random_below(below[random_below(COUNT(below))] - 1));
}

/* Alerts of random text, written and read. */
static void
test_json_round_trip(void)
{
    int wrong = 0;
    struct alert back = {0};

    for (int round = 0; round < 1000; round++) {
        struct alert alert = {.kind = (enum alert_kind)(round % ALERT_KINDS)};
        struct buf json = {0}, field[ALERT_FIELDS] = {{0}};
        for (int i = 0; i < ALERT_FIELDS; i++) {
            buf_add(&field[i], "", 0);
            if (i != FIELD_EVENT)
                add_random_text(&field[i]);
            alert.field[i] = field[i].data;
        }
        alert.field[FIELD_EVENT] = KINDS[alert.kind].event;
        alert_add_json(&alert, &json);
        struct slice copy = exact((struct slice){json.data, json.len});
        wrong += alert_read_json(copy, &back) != 0 || back.kind != alert.kind;
        exact_free(copy);
        for (int i = 0; i < ALERT_FIELDS; i++) {
            wrong += strcmp(back.field[i], alert.field[i]) != 0;
            buf_free(&field[i]);
        }
        buf_free(&json);
    }
    alert_done(&back);
    check_number(wrong, 0, "1000 alerts of random text, read back: wrong fields");
}

/* What is not the JSON of an alert, and what is although it looks otherwise. */
static void
test_json_alerts(void)
{
    static const struct {
        const char *field;
        const char *json; /* of that field; NULL: it has none */
        bool ok;
    } rows[] = {
        {"event", "\"Qlik Sense reload failed\"", true},
        {"event", "\"Qlik Sense reload aborted\"", true},
        {"event", "\"Qlik Sense \\u0072eload failed\"", true},
        {"event", "\"Qlik Sense reload succeeded\"", false},
        {"event", NULL, false},
        {"logMessage", NULL, true},
        {"hostName", "1", true},
        {"hostName", "null", true},
        {"hostName", "[\"QS1\"]", true},
        {"hostName", "QS1", false},
        {"hostName", "", false},
        {"hostName", "\"\\q\"", false},
        {"hostName", "\"\xe5\"", false},
        {"hostName", "\"\"", true},
        {"hostName", " \"QS1\"\n", true},
        {"hostName", "\"QS1\",\"more\":{\"event\":[1,\"]\"]}", true},
    };
    struct alert alert = {0};
    struct buf json = {0};
    int wrong = 0;

    for (size_t i = 0; i < COUNT(rows); i++) {
        buf_add_char(&json, '{');
        for (int k = 0; k < ALERT_FIELDS; k++) {
            bool is = strcmp(FIELD_NAMES[k], rows[i].field) == 0;
            if (is && !rows[i].json)
                continue;
            buf_format(&json, "%s\"%s\":%s", json.len > 1 ? "," : "", FIELD_NAMES[k],
                is           ? rows[i].json
                    : k == 0 ? "\"Qlik Sense reload failed\""
                             : "\"x\"");
        }
        buf_add_char(&json, '}');
        check((alert_read_json((struct slice){json.data, json.len}, &alert) == 0) == rows[i].ok,
            "alert %s", json.data);
        for (size_t len = 0; len < json.len; len++) { /* cut off, it is none any more */
            struct slice part = exact((struct slice){json.data, len});
            wrong += alert_read_json(part, &alert) == 0;
            exact_free(part);
        }
        buf_free(&json);
    }
    check_number(wrong, 0, "alerts that were cut off and are read");
    alert_done(&alert);
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
    struct buf b = {0};
    struct alert alert = alert_of(SLICE(datagram));

    alert_add_json(&alert, &b);
    check_buf(&b, SLICE(want), "alert_add_json");
    alert_done(&alert);
    alert_add_test(ALERT_ABORTED, "host1", &b);
    check_number(alert_read_json((struct slice){b.data, b.len}, &alert), 0, "the test alert");
    buf_free(&b);
    fields(&alert, &b);
    check(strstr(b.data,
              "host1|butler_webhook test|butler_webhook test|butler_webhook|" ZERO_ID "|" ZERO_ID
              "|20") == b.data &&
            strstr(b.data, "|INFO|" ZERO_ID "|Test of this webhook"),
        "the test alert: %s", b.data);
    check_number((long long)strlen(alert.field[FIELD_TIME]), 23, "its time");
    check_text(alert.field[FIELD_EVENT], "Qlik Sense reload aborted", "its event");
    buf_free(&b);
    alert_done(&alert);
}

/* Adds what %XX stands for, and the rest as it is. */
static void
decode(struct slice s, struct buf *b)
{
    for (size_t i = 0; i < s.len; i++) {
        uint8_t c = (uint8_t)s.data[i];
        if (c == '%' && hex_read((struct slice){s.data + i + 1, s.len - i - 1}, &c, 1) == 0)
            i += 2;
        buf_add_char(b, c);
    }
}

static void
test_alert_about(void)
{
    static const struct {
        const char *run, *about;
    } rows[] = {
        {RUN_ID, "4831c6a534f645bb9d4073a6e6992670_f"},
        {"{4831C6A5-34F6-45BB-9D40-73A6E6992670}", "4831c6a534f645bb9d4073a6e6992670_f"},
        {ZERO_ID, "ba7816bf8f01cfea414140de5dae2223_f"},
        {"", "ba7816bf8f01cfea414140de5dae2223_f"}, /* the SHA-256 of "abc" begins so */
        {"(null)", "ba7816bf8f01cfea414140de5dae2223_f"},
        {"4831c6a534f645bb9d4073a6e6992670", "ba7816bf8f01cfea414140de5dae2223_f"},
    };
    char about[ALERT_ABOUT_LEN];

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct alert alert = {.field = {[FIELD_EXECUTION_ID] = rows[i].run}};
        alert_about(&alert, SLICE("abc"), about);
        check_text(about, rows[i].about, rows[i].run);
    }
    alert_about(&(struct alert){.kind = ALERT_ABORTED, .field = {[FIELD_EXECUTION_ID] = RUN_ID}},
        SLICE(""), about);
    check_text(about, "4831c6a534f645bb9d4073a6e6992670_a", "aborted");
}

#define QUERY(message)                                                                             \
    "event=Qlik+Sense+reload+failed&hostName=QS1&user=LAB%5Cg&taskName=T&taskId=" TASK_ID          \
    "&appName=A&appId=" APP_ID                                                                     \
    "&logTimeStamp=2026-11-22+10%3A50%3A04%2C735&logLevel=INFO&executionId=" RUN_ID                \
    "&logMessage=" message

static void
test_alert_query(void)
{
    static const struct {
        const char *target;
        const char *query; /* behind the target */
    } rows[] = {
        {"/", "?" QUERY("M")},
        {"/a/b", "?" QUERY("M")},
        {"/?", QUERY("M")},
        {"/?z=1", "&" QUERY("M")},
        {"/?z=1&", "&" QUERY("M")},
        {"/?z=?", "&" QUERY("M")},
        {"/?event=1", "&" QUERY("M")},
    };
    static const struct {
        const char *in, *out;
    } values[] = {
        {"", ""},
        {"azAZ09*-._", "azAZ09*-._"},
        {" +&=%~'()!,:;@/?#[]\"\\",
            "+%2B%26%3D%25%7E%27%28%29%21%2C%3A%3B%40%2F%3F%23%5B%5D%22%5C"},
        {"\x01\n\x7f", "%01%0A%7F"},
        {"\xc3\xa5\xf0\x9f\x9a\x80", "%C3%A5%F0%9F%9A%80"},
    };
    struct buf b = {0};
    struct alert alert = alert_of(SLICE(FAILED ";QS1;T;A;LAB\\g;" IDS ";M"));

    for (size_t i = 0; i < COUNT(values); i++) {
        struct alert one = alert;
        struct buf want = {0};
        one.field[FIELD_MESSAGE] = values[i].in;
        buf_add_text(&b, "/");
        alert_add_query(&one, &b, 0);
        buf_format(&want, "%s%s", "/?" QUERY(""), values[i].out);
        check_text(b.data, want.data, "the form of a value");
        buf_free(&want);
        buf_free(&b);
    }
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf want = {0};
        buf_format(&want, "%s%s", rows[i].target, rows[i].query);
        buf_add_text(&b, rows[i].target);
        alert_add_query(&alert, &b, 0);
        check_buf(&b, (struct slice){want.data, want.len}, "alert_add_query");
        buf_free(&want);
    }
    alert_done(&alert);
}

/* A message that is cut so that the target fits: at a whole character, and no more than needed. */
static void
test_alert_query_cut(void)
{
    static const char *const units[] = {"x", " ", "\"", "\xc3\xa5", "\xe2\x82\xac",
        "\xf0\x9f\x9a\x80", "a\xf0\x9f\x9a\x80 \xc3\xa5;"};
    struct buf datagram = {0}, whole = {0}, b = {0};

    for (size_t i = 0; i < COUNT(units); i++) {
        datagram.len = whole.len = 0;
        buf_add_text(&datagram, FAILED ";QS1;T;A;LAB\\g;" IDS ";");
        while (datagram.len < 5000)
            buf_add_text(&datagram, units[i]);
        struct alert alert = alert_of((struct slice){datagram.data, datagram.len});
        buf_add_text(&whole, "/hook?a=1");
        alert_add_query(&alert, &whole, 0);
        for (size_t max = GET_TARGET_MAX; max < GET_TARGET_MAX + 13; max++) {
            b.len = 0;
            buf_add_text(&b, "/hook?a=1");
            alert_add_query(&alert, &b, max);
            check(b.len <= max && b.len + 24 > max, "%zu bytes of %zu for %s", b.len, max,
                show(slice_of(units[i])));
            check(
                memcmp(b.data, whole.data, b.len) == 0, "the cut target is the start of the whole");
            struct buf plain = {0};
            decode((struct slice){b.data, b.len}, &plain);
            check(utf8_is_valid(plain.data, plain.len), "a character is cut: %s",
                show((struct slice){b.data + b.len - 12, 12}));
            buf_free(&plain);
        }
        b.len = 0;
        buf_add_text(&b, "/hook?a=1");
        alert_add_query(&alert, &b, whole.len);
        check_bytes(
            (struct slice){b.data, b.len}, (struct slice){whole.data, whole.len}, "just fits");
        b.len = 0;
        buf_add_text(&b, "/hook?a=1");
        alert_add_query(&alert, &b, 50);
        check(b.len > 12 && memcmp(b.data + b.len - 12, "&logMessage=", 12) == 0,
            "where nothing helps, the message is empty and the rest is there");
        alert_done(&alert);
    }
    buf_free(&datagram);
    buf_free(&whole);
    buf_free(&b);
}

static void
test_05(void)
{
    static const char *const levels[] = {"INFO", "WARN", "ERROR", "FATAL", "DEBUG", "OFF",
        "EMERGENCY", "ALERT", "CRITICAL", "SEVERE", "NOTICE", "TRACE", "FINE", "FINER", "FINEST",
        "VERBOSE", "ALL", "log4net:DEBUG", "info", "Warn"};

    for (size_t i = 0; i < COUNT(ALERT_ROWS); i++)
        check_alert(ALERT_ROWS[i].datagram, ALERT_ROWS[i].sort, ALERT_ROWS[i].fields,
            show(ALERT_ROWS[i].datagram));
    for (size_t i = 0; i < COUNT(levels); i++) {
        struct buf b = {0}, want = {0};
        buf_format(&b, FAILED ";QS1;T;A;u;" TASK_ID ";" APP_ID ";;%s;r;M", levels[i]);
        buf_format(&want, "QS1|T|A|u|" TASK_ID "|" APP_ID "||%s|r|M", levels[i]);
        check_alert((struct slice){b.data, b.len}, "failure", (struct slice){want.data, want.len},
            levels[i]);
        buf_free(&b);
        buf_free(&want);
    }
    test_alert_encodings();
    test_alert_large();
    test_alert_events();
    test_alert_json();
    test_alert_about();
    test_json_stringify();
    test_json_read();
    test_json_round_trip();
    test_json_alerts();
    test_alert_query();
    test_alert_query_cut();
}

/* ==== 6. URL ================================================================ */

/* What a URL is read as. A user or password is "user:password"; shown NULL: origin and target. */
static const struct {
    const char *text, *origin, *target, *auth, *shown;
} URL_ROWS[] = {
    {"http://h", "http://h", "/", NULL, NULL},
    {"HTTP://EXAMPLE.com/A", "http://example.com", "/A", NULL, NULL},
    {"hTTpS://h:443/x", "https://h", "/x", NULL, NULL},
    {"https://h:80/", "https://h:80", "/", NULL, NULL},
    {"http://h:80/", "http://h", "/", NULL, NULL},
    {"http://h:443/", "http://h:443", "/", NULL, NULL},
    {"http://h:/", "http://h", "/", NULL, NULL},
    {"http://h:00081/", "http://h:81", "/", NULL, NULL},
    {"http://h:65535/", "http://h:65535", "/", NULL, NULL},
    {" \t\r\n http://h/x \n", "http://h", "/x", NULL, NULL},

    /* path */
    {"http://h/a b", "http://h", "/a%20b", NULL, NULL},
    {"http://h/\"<>`/{}^#x", "http://h", "/%22%3C%3E%60/%7B%7D%5E", NULL, NULL},
    {"http://h/|[]'~!$&()*+", "http://h", "/|[]'~!$&()*+", NULL, NULL},
    {"http://h/,;=:@-._%zz%2f%", "http://h", "/,;=:@-._%zz%2f%", NULL, NULL},
    {"http://h/\xc3\xa5\xf0\x9f\x9a\x80", "http://h", "/%C3%A5%F0%9F%9A%80", NULL,
        "http://h/%C3%\xe2\x80\xa6"},
    {"http://h//a//b", "http://h", "//a//b", NULL, NULL},
    {"http://h/a/./b", "http://h", "/a/b", NULL, NULL},
    {"http://h/a/../b", "http://h", "/b", NULL, NULL},
    {"http://h/../../b", "http://h", "/b", NULL, NULL},
    {"http://h/a/b/..", "http://h", "/a/", NULL, NULL},
    {"http://h/a/b/.", "http://h", "/a/b/", NULL, NULL},
    {"http://h/..", "http://h", "/", NULL, NULL},
    {"http://h/a//../b", "http://h", "/a/b", NULL, NULL},
    {"http://h/a/..", "http://h", "/", NULL, NULL},
    {"http://h/.../..a/b../%2e%2e/.a", "http://h", "/.../..a/b../%2e%2e/.a", NULL, NULL},

    /* query and fragment */
    {"http://h?q", "http://h", "/?q", NULL, "http://h/?\xe2\x80\xa6"},
    {"http://h#f", "http://h", "/", NULL, NULL},
    {"http://h/a#f?q", "http://h", "/a", NULL, NULL},
    {"http://h/a?#f", "http://h", "/a?", NULL, "http://h/a?\xe2\x80\xa6"},
    {"http://h/a?x=1&y=2", "http://h", "/a?x=1&y=2", NULL, "http://h/a?\xe2\x80\xa6"},
    {"http://h/?a=b=c&d&e=&=f", "http://h", "/?a=b=c&d&e=&=f", NULL, "http://h/?\xe2\x80\xa6"},
    {"http://h/?a b\"<>'\xc3\xa5", "http://h", "/?a%20b%22%3C%3E%27%C3%A5", NULL,
        "http://h/?\xe2\x80\xa6"},
    {"http://h/?`{}|^[]~%zz", "http://h", "/?`{}|^[]~%zz", NULL, "http://h/?\xe2\x80\xa6"},
    {"http://h/?/../x?y=z/q", "http://h", "/?/../x?y=z/q", NULL, "http://h/?\xe2\x80\xa6"},

    /* what may be a secret in the path */
    {"http://h/123456789012345/x", "http://h", "/123456789012345/x", NULL, NULL},
    {"http://h/a/1234567890123456/x?y=z", "http://h", "/a/1234567890123456/x?y=z", NULL,
        "http://h/a/1234\xe2\x80\xa6/x?\xe2\x80\xa6"},
    {"http://h/T0123456789abcdefghij", "http://h", "/T0123456789abcdefghij", NULL,
        "http://h/T012\xe2\x80\xa6"},

    /* user and password */
    {"http://u:p@h/x", "http://h", "/x", "u:p", NULL},
    {"http://u@h/", "http://h", "/", "u:", NULL},
    {"http://:p@h/", "http://h", "/", ":p", NULL},
    {"http://@h/", "http://h", "/", NULL, NULL},
    {"http://u%40x:p%3Aq%2f@h:81/", "http://h:81", "/", "u@x:p:q/", NULL},
    {"http://a:b@c:d@h/", "http://h", "/", "a:b@c:d", NULL},
    {"http://u:p%zz%@h/", "http://h", "/", "u:p%zz%", NULL},
    {"http://\xc3\xbc:l \xc3\x9f@h/", "http://h", "/", "\xc3\xbc:l \xc3\x9f", NULL},
    {"http://u:p@[::1]:8080/", "http://[::1]:8080", "/", "u:p", NULL},
    {"http://h/@x", "http://h", "/@x", NULL, NULL},
    {"http://h?u:p@x", "http://h", "/?u:p@x", NULL, "http://h/?\xe2\x80\xa6"},

    /* hosts */
    {"http://a_b-c.d/", "http://a_b-c.d", "/", NULL, NULL},
    {"http://example.com./", "http://example.com.", "/", NULL, NULL},
    {"http://XN--Bcher-KVA.example/", "http://xn--bcher-kva.example", "/", NULL, NULL},
    {"http://127.0.0.1:8080/", "http://127.0.0.1:8080", "/", NULL, NULL},
    {"http://1.2.3.4x/", "http://1.2.3.4x", "/", NULL, NULL},
    {"http://3com/", "http://3com", "/", NULL, NULL},
    {"https://[2001:DB8:0:0:0:0:0:1]:8443/x", "https://[2001:db8::1]:8443", "/x", NULL, NULL},
    {"http://[1:2:3:4:5:6:7:8]:/", "http://[1:2:3:4:5:6:7:8]", "/", NULL, NULL},
    {"http://[::FFFF:127.0.0.1]:81/", "http://[::ffff:127.0.0.1]:81", "/", NULL, NULL},
    {"http://[::ffff:7f00:1]/", "http://[::ffff:127.0.0.1]", "/", NULL, NULL},
};

/* What cannot be called. */
static const struct slice URL_ERRORS[] = {
    /* not http:// or https:// */
    S(""),
    S(" \t\r\n"),
    S("h"),
    S("/x"),
    S("//h/x"),
    S("h:8080/x"),
    S("127.0.0.1:8080/x"),
    S("ftp://h/x"),
    S("httpx://h/x"),
    S("file:///etc/passwd"),
    S("mailto:a@b"),
    S("://h/"),
    S("http"),
    S("http:"),
    S("http:/"),
    S("1http://h/"),
    S("http:h/x"),
    S("http:/h/x"),
    /* ports */
    S("http://h:65536/"),
    S("http://h:0/"),
    S("http://h:-1/"),
    S("http://h:8a/"),
    S("http://h:8 0/"),
    S("http://h:port/some/path"),
    S("http://h:99999999999999999999/"),
    /* hosts */
    S("http://"),
    S("http:///h/"),
    S("http://:80/"),
    S("http://?q"),
    S("http://u:p@"),
    S("http://u:p@/x"),
    S("http://h h/"),
    S("http://a%20b/"),
    S("http://%65xample.com/"),
    S("http://a<b/"),
    S("http://a^b/"),
    S("http://a|b/"),
    S("http://a[b/"),
    S("http://a]b/"),
    S("http://a:b:80/"),
    S("http://a!b/"),
    S("http://\xff/"),
    S("http://b\xc3\xbcr/"),
    /* addresses */
    S("http://127.1/"),
    S("http://0x7F.1/"),
    S("http://0177.0.0.1/"),
    S("http://2130706433/"),
    S("http://0x7f000001/"),
    S("http://256.1.1.1/"),
    S("http://1.2.3.256/"),
    S("http://1.2.3.4.5/"),
    S("http://1..2/"),
    S("http://a.1/"),
    S("http://1.2.3.08/"),
    S("http://192.168.0.1./"),
    S("http://[]/"),
    S("http://[::1/"),
    S("http://[::1]x/"),
    S("http://[::1]:80:80/"),
    S("http://[::1]:x/"),
    S("http://[fe80::1%25eth0]/"),
    S("http://[fe80::1%eth0]/"),
    S("http://[1::2::3]/"),
    S("http://[g::1]/"),
    S("http://[1.2.3.4]/"),
    S("http://[h]/"),
    S("http://[1:2:3:4:5:6:7:8:9]/"),
    S("http://::1/"),
    S("http://a::1:80/"),
    S("http://x[::1]/"),
    /* what only browsers take */
    S("http:\\\\h\\a"),
    S("http://h\\a"),
    S("http://h/a\\b"),
    S("http://h/?\\"),
    S("http://h/a\tb"),
    S("ht\ntp://h/"),
    S("http://h/\x01"),
    S("http://h/\x7f"),
    S("http://h/\0"),
    S("http://h\0.x/"),
};

/* References relative to http://u:p@h:8080/a/b/c?x=1 (RFC 3986, 5.4); origin NULL: an error. */
static const struct {
    const char *text, *origin, *target;
} RELATIVE_ROWS[] = {
    {"d", "http://h:8080", "/a/b/d"},
    {"./d", "http://h:8080", "/a/b/d"},
    {"../d", "http://h:8080", "/a/d"},
    {"../../../d", "http://h:8080", "/d"},
    {".", "http://h:8080", "/a/b/"},
    {"../..", "http://h:8080", "/"},
    {"d/../e", "http://h:8080", "/a/b/e"},
    {"g;x=1/../y", "http://h:8080", "/a/b/y"},
    {"/d", "http://h:8080", "/d"},
    {"/../d", "http://h:8080", "/d"},
    {"?y=2", "http://h:8080", "/a/b/c?y=2"},
    {"?", "http://h:8080", "/a/b/c?"},
    {"#f", "http://h:8080", "/a/b/c?x=1"},
    {"d?y=/../z#f", "http://h:8080", "/a/b/d?y=/../z"},
    {"./d:e", "http://h:8080", "/a/b/d:e"},
    {"?a:b", "http://h:8080", "/a/b/c?a:b"},
    {" d e ", "http://h:8080", "/a/b/d%20e"},
    {"//g/d", "http://g", "/d"},
    {"//g:81?q", "http://g:81", "/?q"},
    {"//h:8080/d", "http://h:8080", "/d"},
    {"http://g/d", "http://g", "/d"},
    {"https://h:8080/", "https://h:8080", "/"},
    {"", NULL, NULL},
    {"//", NULL, NULL},
    {"///g/d", NULL, NULL},
    {"http:d", NULL, NULL},
    {"d:e", NULL, NULL},
    {"ftp://g/", NULL, NULL},
    {"\\d", NULL, NULL},
};

/* URLs that hold SECRET where nobody may see it. */
static const char *const SECRET_ROWS[] = {"http://SECRET@h/", "http://u:SECRET@h/x",
    "http://u:a@SECRET@h/x", "http://h/x?key=SECRET", "http://h/x?a=1&key=SECRET=SECRET&b",
    "http://h/x?SECRET", "http://h/x?a=1&SECRET&", "http://h/x#SECRET",
    "http://h/x?a#SECRET=SECRET", "http://h/services/0123456789SECRET", "http://u:SECRET@h:99999/",
    "http://u:SECRET@h:x/", "http://u:SECRET@/", "http://u:SECRET@a b/", "http://u:SECRET@[::1/",
    "http://u:SECRET@256.1.1.1/", "ftp://u:SECRET@h/", "u:SECRET@h/", "SECRET", "http://h:SECRET/",
    "http://SECRET h/"};

static void
check_url(
    const struct url *u, const char *origin, const char *target, const char *auth, const char *what)
{
    struct buf full = {0};
    struct url again;
    struct err e;

    if (!check_text(u->origin, origin, what) || !check_text(u->target, target, what))
        return;
    check((u->auth != NULL) == (auth != NULL), "a user in %s", what);
    if (u->auth) {
        unsigned char plain[200];
        size_t n = 0;
        check_number(mbedtls_base64_decode(
                         plain, sizeof plain, &n, (const unsigned char *)u->auth, strlen(u->auth)),
            0, "base64");
        check_bytes((struct slice){(char *)plain, n}, slice_of(auth ? auth : ""), what);
    }
    buf_format(&full, "%s%s", u->origin, u->target);
    if (check(url_parse((struct slice){full.data, full.len}, NULL, &again, &e) == 0, "%s again",
            what)) {
        check_text(again.origin, u->origin, "the same origin again");
        check_text(again.target, u->target, "the same target again");
        check(again.port == u->port && again.tls == u->tls && strcmp(again.host, u->host) == 0,
            "the same host and port again: %s", what);
        url_done(&again);
    }
    buf_free(&full);
}

static void
test_url_parse(void)
{
    struct url u, base;
    struct buf b = {0};
    struct err e;

    for (size_t i = 0; i < COUNT(URL_ROWS); i++) {
        struct slice in = exact(slice_of(URL_ROWS[i].text));
        const char *what = URL_ROWS[i].text;
        int result = url_parse(in, NULL, &u, &e);
        exact_free(in);
        if (!check(result == 0, "%s: %s", what, e.text))
            continue;
        check_url(&u, URL_ROWS[i].origin, URL_ROWS[i].target, URL_ROWS[i].auth, what);
        buf_format(&b, "%s%s", URL_ROWS[i].origin, URL_ROWS[i].target);
        check_text(u.shown, URL_ROWS[i].shown ? URL_ROWS[i].shown : b.data, what);
        buf_free(&b);
        url_done(&u);
    }
    for (size_t i = 0; i < COUNT(URL_ERRORS); i++) {
        struct slice in = exact(URL_ERRORS[i]);
        if (!check(url_parse(in, NULL, &u, &e) != 0, "%s is read as %s", show(in), u.shown))
            url_done(&u);
        check(!u.host && !u.target && !u.auth && !u.origin && !u.shown, "an error leaves nothing");
        exact_free(in);
    }
    url_parse(SLICE("http://b\xc3\xbc.de/"), NULL, &u, &e);
    check(strstr(e.text, "xn--") != NULL, "a name beyond ASCII: %s", e.text);
    check_number(url_parse(SLICE("http://u:p@h:8080/a/b/c?x=1"), NULL, &base, &e), 0, "base");
    for (size_t i = 0; i < COUNT(RELATIVE_ROWS); i++) {
        struct slice in = exact(slice_of(RELATIVE_ROWS[i].text));
        const char *what = RELATIVE_ROWS[i].text;
        int result = url_parse(in, &base, &u, &e);
        exact_free(in);
        if (check((result == 0) == (RELATIVE_ROWS[i].origin != NULL), "%s is read as %s", what,
                result == 0 ? u.origin : e.text) &&
            result == 0)
            check_url(&u, RELATIVE_ROWS[i].origin, RELATIVE_ROWS[i].target, NULL, what);
        url_done(&u);
    }
    url_done(&base);

    for (size_t i = 0; i < COUNT(SECRET_ROWS); i++) {
        err_set(&e, "none");
        if (url_parse(slice_of(SECRET_ROWS[i]), NULL, &u, &e) == 0)
            check(!strstr(u.shown, "SECRET"), "%s is shown as %s", SECRET_ROWS[i], u.shown);
        check(!strstr(e.text, "SECRET"), "%s: the error shows it: %s", SECRET_ROWS[i], e.text);
        url_done(&u);
    }
}

static void
test_url_limits(void)
{
    struct buf b = {0};
    struct url u;
    struct err e;

    buf_add_text(&b, "http://h/");
    while (b.len < URL_MAX)
        buf_add_char(&b, '\xe5');
    if (check(url_parse((struct slice){b.data, b.len}, NULL, &u, &e) == 0, "the longest URL"))
        check_number((long long)strlen(u.target), 1 + 3 * (URL_MAX - 9), "its target");
    url_done(&u);
    buf_add_char(&b, 'x');
    check(url_parse((struct slice){b.data, b.len}, NULL, &u, &e) != 0, "one byte longer");
    b.len = 0;
    buf_add_text(&b, "http://");
    for (int i = 0; i < HOST_MAX; i++)
        buf_add_char(&b, i % 2 ? '.' : 'x');
    check(url_parse((struct slice){b.data, b.len}, NULL, &u, &e) == 0, "the longest host name");
    url_done(&u);
    buf_add_text(&b, "x");
    check(url_parse((struct slice){b.data, b.len}, NULL, &u, &e) != 0, "one byte longer");
    b.len = 0;
    buf_add_text(&b, "http://h/");
    for (int i = 0; i < 1000; i++)
        buf_add_text(&b, "a/../");
    if (check(
            url_parse((struct slice){b.data, b.len}, NULL, &u, &e) == 0, "1,000 times up and down"))
        check_text(u.target, "/", "is where it began");
    url_done(&u);
    buf_free(&b);
}

static void
test_url_excepted(void)
{
    static const struct {
        const char *url, *no_proxy;
        bool excepted;
    } rows[] = {
        {"http://h/", "", false},
        {"http://h/", " , ,", false},
        {"http://h/", "H", true},
        {"http://h/", "g,\t h ,i", true},
        {"http://h/", "g h", true},
        {"http://h/", "hh", false},
        {"http://hh/", "h", false},
        {"http://h/", "*", true},
        {"https://[::1]/", "g,*", true},
        {"http://h/", ".", false},
        /* names with their subdomains */
        {"http://example.com/", "example.com", true},
        {"http://a.example.com/", "example.com", true},
        {"http://badexample.com/", "example.com", false},
        {"http://a.example.com/", ".example.com", true},
        {"http://example.com/", ".example.com", true},
        {"http://badexample.com/", ".example.com", false},
        {"http://a.example.com/", "*.example.com", true},
        {"http://badexample.com/", "*.example.com", false},
        /* ports */
        {"http://h/", "h:80", true},
        {"https://h/", "h:80", false},
        {"https://h/", "h:443", true},
        {"http://h:8080/", "h:8080", true},
        {"http://h:8080/", "h", true},
        {"http://a.b:81/", ".b:81", true},
        {"http://a.b:82/", ".b:81", false},
        {"http://[::1]:81/", "[::1]:81", true},
        {"http://[::1]:81/", "[::1]:82", false},
        {"http://127.0.0.1:81/", "127.0.0.0/8:81", true},
        /* addresses and ranges */
        {"http://127.0.0.1/", "127.0.0.1", true},
        {"http://127.0.0.1/", "127.0.0.10", false},
        {"http://127.0.0.1/", "0.0.1", false},
        {"http://127.0.0.1/", ".0.0.1", false},
        {"http://[::ffff:127.0.0.1]/", "127.0.0.0/8", true},
        {"http://h/", "*:80", true},
        {"http://h/", "*:81", false},
        {"http://10.1.2.3/", "10.0.0.0/8", true},
        {"http://11.1.2.3/", "10.0.0.0/8", false},
        {"http://11.1.2.3/", "10.0.0.0/7", true},
        {"http://10.1.2.3/", "10.1.2.4/32", false},
        {"http://10.1.2.3/", "10.1.2.3/32", true},
        {"http://10.1.2.3/", "0.0.0.0/0", true},
        {"http://10.1.2.3/", "10.0.0.0/33", false},
        {"http://10.1.2.3/", "10.0.0.0/x", false},
        {"http://10.1.2.3/", "::/0", true},
        {"http://[::1]/", "0.0.0.0/0", false},
        {"http://h/", "0.0.0.0/0", false},
        {"http://[::1]/", "::1", true},
        {"http://[::1]/", "[::1]", true},
        {"http://[2001:db8::1]/", "2001:0db8::1", true},
        {"http://[2001:db8::1]/", "2001:db8::/32", true},
        {"http://[2001:db9::1]/", "2001:db8::/32", false},
        {"http://[fd12::1]/", "fc00::/7", true},
        {"http://[fe80::1]/", "fc00::/7", false},
    };
    struct url u;
    struct err e;

    for (size_t i = 0; i < COUNT(rows); i++) {
        check_number(url_parse(slice_of(rows[i].url), NULL, &u, &e), 0, rows[i].url);
        check(url_is_excepted(&u, rows[i].no_proxy) == rows[i].excepted, "%s with NO_PROXY \"%s\"",
            rows[i].url, rows[i].no_proxy);
        url_done(&u);
    }
}

static void
test_06(void)
{
    test_url_parse();
    test_url_limits();
    test_url_excepted();
}

/* ==== 7. Configuration ====================================================== */

#define HOOKS                                                                                      \
    "Butler:\n  webhookNotification:\n    enable: true\n    reloadTaskFailure:\n      webhooks:\n"
#define HOOK HOOKS "        - webhookURL: http://127.0.0.1:1/\n          httpMethod: POST\n"
#define TLS_HOOK                                                                                   \
    HOOKS                                                                                          \
    "        - webhookURL: https://127.0.0.1:1/\n          httpMethod: POST\n          cert:\n"
#define OFF_HOOK                                                                                    \
    "Butler:\n  webhookNotification:\n    enable: false\n    reloadTaskFailure:\n      webhooks:\n" \
    "        - webhookURL: http://host.my.domain:port/some/path\n          httpMethod: POST\n"

/* A CA that may sign for example.com only: a critical extension that mbedTLS does not know. */
static const char CONSTRAINED_CA[] =
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBojCCAUigAwIBAgIUAO/4g98DFgyMEtVbFbnSmoMBz/IwCgYIKoZIzj0EAwIw\n"
    "FjEUMBIGA1UEAwwLQ29uc3RyYWluZWQwIBcNMjYxMTI5MDQzNTU0WhgPMjEyNjEx\n"
    "MDUwNDM1NTRaMBYxFDASBgNVBAMMC0NvbnN0cmFpbmVkMFkwEwYHKoZIzj0CAQYI\n"
    "KoZIzj0DAQcDQgAEkh0eltQkRRRxc47J52ao+c3PjCCtWR2XTOaQYvdpSvZ4CGd+\n"
    "25c9Md1lS+jeicnB45t3YTogwTU8teFEyHY1IqNyMHAwHQYDVR0OBBYEFIwWM3MF\n"
    "12h6kRd3DEefV9iqApvIMB8GA1UdIwQYMBaAFIwWM3MF12h6kRd3DEefV9iqApvI\n"
    "MA8GA1UdEwEB/wQFMAMBAf8wHQYDVR0eAQH/BBMwEaAPMA2CC2V4YW1wbGUuY29t\n"
    "MAoGCCqGSM49BAMCA0gAMEUCIDgBwM7qRrNbnMaxyUKd0dKXrIsu0Ih8yES8wkLW\n"
    "9dFNAiEAli2G/3vTC3sncr1bg7IMIaT9qD+uaYD5+So+7t6eeHg=\n"
    "-----END CERTIFICATE-----\n";

/*
 * A file and the problems that it has, all of them and in this order: "LINE:COLUMN error: " or
 * "LINE:COLUMN warning: " and a part of the text. Nearly all have no udpServerConfig, for short: its
 * warning is left out.
 */
static const struct {
    struct slice text;
    const char *problem[4];
} CONFIG_ROWS[] = {
    {S(HOOK), {NULL}},
    {S("\xef\xbb\xbf" HOOK), {NULL}},
    {S("---\n" HOOK "...\n"), {NULL}},

    /* not such a file at all */
    {S(""), {"1:1 error: the file is empty"}},
    {S("Butler:\n"), {"1:8 error: the file must start with \"Butler:\""}},
    {S("Butler:\n  logLevel: info\n"), {"2:3 error: webhookNotification is missing"}},
    {S("Butler:\n  webhookNotification:\n"),
        {"2:23 error: webhookNotification is missing, or has no value"}},
    {S("Butler:\n  webhookNotification: off\n"),
        {"2:24 error: webhookNotification must hold keys"}},
    {S("Butler:\n  webhookNotification:\n    reloadTaskFailure:\n"),
        {"3:5 error: webhookNotification.enable is missing"}},
    {S(HOOK "---\n" HOOK), {"8:1 error: a second document starts here"}},

    /* not YAML */
    {S("Butler:\n\twebhookNotification:\n"),
        {"2:1 error: not valid YAML: found character that cannot start any token"}},
    {S("Butler:\n  logLevel: info\n   fileLogging: true\n"),
        {"3:15 error: not valid YAML: mapping values"}},
    {S("Butler:\n  logLevel: info\n fileLogging: true\n"),
        {"3:2 error: not valid YAML: did not find expected key while parsing a block"}},
    {S("Butler:\n  logDirectory: \"C:\\path\"\n"),
        {"2:20 error: not valid YAML: found unknown escape character"}},
    {S("Butler:\n  a: b\n# \xff\n"), {"3:3 error: not valid YAML: invalid leading UTF-8 octet"}},
    {S("Butler:\n  a: b\n  c: \x01\n"),
        {"3:6 error: not valid YAML: control characters are not allowed"}},
    {S("B\0u\0t\0"), {"1:2 error: not valid YAML: control characters are not allowed"}},
    {S(HOOK "  logDirectory: \"a\\0b\"\n"), {"8:17 error: a NUL character may not stand"}},

    /* keys twice, unknown */
    {S(HOOK "    enable: true\n    enable: true\n"),
        {"8:5 error: the key \"enable\" stands twice, first in line 3",
            "9:5 error: the key \"enable\" stands twice, first in line 3"}},
    {S("x: {a: 1, a: 2}\n" HOOK), {"1:11 error: the key \"a\" stands twice, first in line 1"}},
    {S("x: {[a]: 1, [a]: 2, {b: c}: 3}\n" HOOK), {NULL}},
    {S(HOOK "    Enable: true\n"),
        {"8:5 warning: unknown key \"Enable\" is ignored; known here: enable, reloadTaskFailure,"}},
    {S(HOOK "          URL: x\n"),
        {"8:11 warning: unknown key \"URL\" is ignored; known here: description, webhookURL, "
         "httpMethod, cert"}},
    {S(HOOK "  udpServerConfig: {enable: true, rateLimit.enable: true}\n"),
        {"8:35 warning: unknown key \"rateLimit.enable\" is ignored"}},
    {S(HOOK "    \"a\\nb\": x\n"), {"8:5 warning: unknown key \"a\nb\" is ignored"}},
    {S(HOOK "  slackNotification:\n    enable: maybe\n  logLevl: 7\n"), {NULL}}, /* Butler's own */
    {S(HOOK "    serviceMonitor: [1]\n    qlikSenseServerLicenseMonitor: 2\n"), {NULL}},

    /* values */
    {S(HOOK "  fileLogging: True\n  logLevel: VERBOSE\n"), {NULL}},
    {S(HOOK "  fileLogging: 'true'\n"),
        {"8:16 error: fileLogging must be true or false, without quotes"}},
    {S(HOOK "  fileLogging: ~\n  logLevel: null\n  logDirectory:\n"), {NULL}},
    {S(HOOK "  logLevel: all\n"),
        {"8:13 error: logLevel must be error, warn, info, verbose, debug or silly"}},
    {S(HOOK "  logDirectory: \"C:\\temp\"\n"),
        {"8:17 warning: logDirectory must be a single value without control characters"}},
    {S(HOOK "  logDirectory: [a]\n"), {"8:17 warning: logDirectory must be a single value"}},
    {S(HOOK "  fileLogging: true\n  logDirectory: \"C:\\temp\"\n"),
        {"9:17 error: logDirectory must be a single value without control characters"}},
    {S("Butler:\n  webhookNotification:\n    enable: true\n    reloadTaskFailure:\n      rateLimit: -1\n"
       "    reloadTaskAborted:\n      rateLimit: 2147483648\n"),
        {"5:18 error: webhookNotification.reloadTaskFailure.rateLimit must be a whole number from 0 to 2147483647",
            "7:18 error: webhookNotification.reloadTaskAborted.rateLimit must be a whole number"}},
    {S(HOOK "    reloadTaskAborted:\n      rateLimit: '300'\n"),
        {"9:18 error: webhookNotification.reloadTaskAborted.rateLimit must be a whole number from 0 to 2147483647, "
         "without quotes"}},
    {S(HOOK "    reloadTaskAborted:\n      rateLimit: 3.5\n"), {"9:18 error: "}},
    {S(HOOK "  udpServerConfig:\n    portTaskFailure: 0\n"),
        {"9:5 error: udpServerConfig.enable is missing",
            "9:22 error: udpServerConfig.portTaskFailure must be a whole number from 1 to 65535"}},
    {S(HOOK "  butlerWebhook: {port: 65535, serverHost: '::1', enable: true}\n"), {NULL}},
    {S(HOOK "  butlerWebhook: {maxStateMB: 15}\n"),
        {"8:31 error: butlerWebhook.maxStateMB must be a whole number from 16 to 4096"}},
    {S(HOOK "  butlerWebhook: 9997\n"), {"8:18 error: butlerWebhook must hold keys"}},

    /* hosts and sources */
    {S(HOOK "  butlerWebhook: {serverHost: ''}\n"), {NULL}}, /* the default */
    {S(HOOK "  butlerWebhook: {serverHost: a b}\n"),
        {"8:31 error: butlerWebhook.serverHost must be an address or a host"}},
    {S(HOOK "  butlerWebhook: {serverHost: '127.0.0.1:9998'}\n"),
        {"8:31 error: butlerWebhook.serverHost must be"}},
    {S(HOOK "  butlerWebhook: {serverHost: 10.1.2.256}\n"),
        {"8:31 error: butlerWebhook.serverHost must be"}},
    {S(HOOK "  butlerWebhook: {serverHost: qs-1.example}\n"), /* looked up at the start */
        {"8:31 warning: listening on qs-1.example, beyond this machine"}},
    {S(HOOK "  udpServerConfig: {enable: true, serverHost: 0.0.0.0}\n"),
        {"8:47 warning: listening on 0.0.0.0, beyond this machine"}},
    {S(HOOK "  udpServerConfig: {enable: true, serverHost: '::', enableSourceValidation: true,\n"
            "    allowedSources: [10.0.0.0/8]}\n"),
        {NULL}},
    {S(OFF_HOOK "  butlerWebhook: {serverHost: 0.0.0.0}\n"), {"6:23 warning: webhookURL is not"}},
    {S(HOOK
         "  udpServerConfig:\n    enable: true\n    enableSourceValidation: true\n    allowedSources:\n"),
        {"11:20 warning: udpServerConfig.allowedSources is empty: every sender is accepted"}},
    {S(HOOK "  udpServerConfig: {enable: true, allowedSources: [a b, ~, [c], ok]}\n"),
        {"8:52 error: udpServerConfig.allowedSources: an entry must be",
            "8:57 error: ", "8:60 error: "}},
    {S(HOOK "  udpServerConfig: {enable: true, allowedSources: 10.0.0.1}\n"),
        {"8:51 error: udpServerConfig.allowedSources must be a list"}},

    /* webhooks */
    {S("Butler: {webhookNotification: {enable: true, reloadTaskFailure: {webhooks: ~}}}\n"),
        {NULL}},
    {S(HOOKS "        - http://h/\n        - - webhookURL: http://h/\n"),
        {"6:11 error: webhookURL is missing", "6:11 error: httpMethod is missing",
            "7:11 error: webhookURL is missing", "7:11 error: httpMethod is missing"}},
    {S(HOOKS "        -\n"),
        {"6:10 error: webhookURL is missing", "6:10 error: httpMethod is missing"}},
    {S(HOOKS "        - description: x\n"),
        {"6:11 error: webhookURL is missing", "6:11 error: httpMethod is missing"}},
    {S(HOOKS "        - webhookURL: ''\n          httpMethod: ~\n"),
        {"6:23 error: webhookURL is missing, or has no value",
            "7:23 error: httpMethod is missing, or has no value"}},
    {S(HOOKS "        - webhookURL: h/x\n          httpMethod: PATCH\n"),
        {"6:23 error: webhookURL is not a URL: it must start with http:// or https://",
            "7:23 error: httpMethod must be GET, POST or PUT"}},
    {S(HOOKS "        - webhookURL: http://u:SECRET@h:port/x\n          httpMethod: post\n"),
        {"6:23 error: webhookURL is not a URL: the port is not a number"}},

    /* off: the webhooks' mistakes are warnings, unless our own enable says otherwise */
    {S(OFF_HOOK), {"6:23 warning: webhookURL is not a URL"}},
    {S(OFF_HOOK "  butlerWebhook: {enable: true}\n"), {"6:23 error: webhookURL is not a URL"}},
    {S(HOOKS "        - httpMethod: GET\n  butlerWebhook: {enable: false}\n"),
        {"6:11 warning: webhookURL is missing"}},
    {S(HOOKS "        - httpMethod: GET\n  udpServerConfig: {enable: false}\n"),
        {"6:11 warning: webhookURL is missing"}},
    {S(HOOKS "        - httpMethod: GET\n  udpServerConfig: {enable: 'false'}\n"),
        {"6:11 error: webhookURL is missing", "7:29 error: udpServerConfig.enable must be"}},
    {S(OFF_HOOK "    reloadTaskAborted:\n      rateLimit: -5\n"),
        {"6:23 warning: webhookURL is not a URL", "9:18 error: "}}, /* only the webhooks' */

    /* certificates; paths start at the file */
    {S(TLS_HOOK "            enable: true\n"),
        {"9:13 error: cert.enable is true, but cert.certCA names no file"}},
    {S(TLS_HOOK "            certCA: ca.pem\n"), {"9:13 error: cert.enable is missing"}},
    {S(TLS_HOOK "            enable: true\n            certCA: ca.pem\n"), {NULL}},
    {S(TLS_HOOK "            enable: true\n            certCA: text\n"),
        {"text: no PEM certificate"}},
    {S(TLS_HOOK "            enable: true\n            certCA: broken\n"),
        {"broken cannot be used: it is damaged"}},
    {S(TLS_HOOK "            enable: true\n            certCA: half\n"),
        {"half cannot be used: it is damaged"}},
    {S(TLS_HOOK "            enable: true\n            certCA: constrained\n"),
        {"constrained cannot be used: it has a critical extension"}},
    {S(TLS_HOOK "            enable: true\n            certCA: \"a\\tb\"\n"),
        {"10:21 error: cert.certCA must be a single value", "10:21 error: cert.enable is true"}},
    {S(TLS_HOOK
         "            enable: true\n            rejectUnauthorized: false\n            certCA: absent.pem\n"),
        {"10:33 warning: failure 1: rejectUnauthorized is false", "absent.pem: No such file"}},
    {S(HOOK "          cert: {enable: false, rejectUnauthorized: false}\n"),
        {"8:53 warning: failure 1: rejectUnauthorized is false"}}, /* http may redirect to https */
    {S(HOOK "          cert: {enable: true, certCA: absent.pem}\n"),
        {"8:40 warning: cert.certCA: /"}},
    {S(HOOK "          cert: {enable: true}\n"), {"8:17 warning: cert.enable is true, but"}},
    {S(HOOK "          cert: true\n"), {"8:17 error: cert must hold keys"}},

    /* anchors, aliases, merge keys */
    {S(HOOKS "        - *a\n"), {"6:11 error: not valid YAML: found undefined alias"}},
    {S("a: &a 1\nb: &a 2\n" HOOK),
        {"2:4 error: not valid YAML: second occurrence found duplicate anchor"}},
    {S(HOOKS "        - &a\n          webhookURL: *a\n"), {"an alias inside its own anchor"}},
    {S(HOOKS "        - &a [*a]\n"), {"an alias inside its own anchor"}},
    {S("x: &x {httpMethod: NO}\n" HOOKS "        - {<<: *x, webhookURL: 'http://h/'}\n"),
        {"1:20 error: httpMethod must be GET"}},
    {S("x: &x {httpMethod: NO, webhookURL: 'http://h/'}\n" HOOKS "        - *x\n        - *x\n"),
        {"1:20 error: httpMethod must be GET"}}, /* once */
    {S("x: &x {httpMethod: NO}\n" HOOKS
       "        - {<<: *x, webhookURL: 'http://h/', httpMethod: GET}\n"),
        {NULL}},
};

/* Loads text as a file in the folder for tests. The caller ends r with cfg_done. */
static void
load(struct cfg_reader *r, struct config *c, struct slice text)
{
    cfg_load(r, write_file("butler.yaml", text), false, c);
}

/* Loads a formatted text, and empties it. */
static void
load_buf(struct cfg_reader *r, struct config *c, struct buf *b)
{
    load(r, c, (struct slice){b->data, b->len});
    b->len = 0;
}

/* Checks the problems of a file, but for the one that says that udpServerConfig is missing. */
static void
check_problems(const struct cfg_reader *r, const char *const *want, size_t most, const char *what)
{
    struct buf all = {0};
    size_t i = 0;
    int errors = 0, warnings = 0;
    bool ok = true;

    for (const struct problem *p = r->problems; p; p = p->next) {
        size_t begin = all.len;
        errors += p->is_error;
        warnings += !p->is_error;
        if (strncmp(p->text, "udpServerConfig is missing", 26) == 0)
            continue;
        buf_format(
            &all, "%d:%d %s: %s\n", p->line, p->column, p->is_error ? "error" : "warning", p->text);
        ok = ok && i < most && want[i] && strstr(all.data + begin, want[i]);
        i++;
    }
    check(ok && (i == most || !want[i]), "%s: wanted \"%s\"%s, got \"%s\"", what,
        most && want[0] ? want[0] : "no problem", most > 1 && want[1] ? " and more" : "",
        all.data ? all.data : "");
    check(r->errors == errors && r->warnings == warnings, "%s: %d errors, %d warnings", what,
        r->errors, r->warnings);
    check(!all.data || !strstr(all.data, "SECRET"), "a problem shows a password: %s", all.data);
    buf_free(&all);
}

static void
check_problem(const struct cfg_reader *r, const char *want, const char *what)
{
    check_problems(r, &want, want ? 1 : 0, what);
}

/* Writes files that configurations name: certificates of all kinds. */
static void
write_certificates(void)
{
    static const char text[] =
        "-----BEGIN CERTIFICATE-----\nthis is none\n-----END CERTIFICATE-----\n";
    char *pem = NULL;
    size_t len = 0;
    struct buf half = {0};

    if (!check(plat_read_file("test/data/config/ca.pem", CERT_FILE_MAX, &pem, &len) == 0, "ca.pem"))
        return;
    write_file("ca.pem", (struct slice){pem, len});
    write_file("text", SLICE("no certificate"));
    write_file("broken", SLICE(text));
    buf_add(&half, pem, len);
    buf_add_text(&half, text);
    write_file("half", (struct slice){half.data, half.len});
    write_file("constrained", slice_of(CONSTRAINED_CA));
    buf_free(&half);
    free(pem);
}

static void
test_config_problems(void)
{
    struct cfg_reader r;
    struct config c;
    struct buf crlf = {0};

    write_certificates();
    for (size_t i = 0; i < COUNT(CONFIG_ROWS); i++) {
        struct slice text = CONFIG_ROWS[i].text;
        load(&r, &c, text);
        check_problems(&r, CONFIG_ROWS[i].problem, 4, show(text));
        cfg_done(&r);
        if (memchr(text.data, '\0', text.len))
            continue;
        for (size_t k = 0; k < text.len; k++) /* the same with the line ends of Windows */
            buf_add_text(&crlf, text.data[k] == '\n' ? "\r\n" : (char[2]){text.data[k], '\0'});
        load_buf(&r, &c, &crlf);
        check_problems(&r, CONFIG_ROWS[i].problem, 4, "with CRLF");
        cfg_done(&r);
    }
    buf_free(&crlf);
    load(&r, &c, SLICE(HOOK));
    check(r.warnings == 1 && r.problems->line == 2 && r.problems->column == 3, "udpServerConfig");
    cfg_done(&r);
    load(&r, &c, SLICE(HOOK "  butlerWebhook: {port: 9997}\n"));
    check_number(r.warnings, 0, "no udpServerConfig, but a port of ours");
    cfg_done(&r);
}

static void
add_many(struct buf *b, int count, const char *text)
{
    for (int i = 0; i < count; i++)
        buf_add_text(b, text);
}

/* Files whose size is the problem. */
static void
test_config_bounds(void)
{
    struct cfg_reader r;
    struct config c;
    struct buf b = {0};
    clock_t began = clock();

    for (int more = 0; more < 2; more++) {
        buf_add_text(&b, HOOK);
        add_many(&b, (int)(CONFIG_MAX - b.len) + more, "#");
        load_buf(&r, &c, &b);
        check_problem(&r,
            more ? "1:1 error: cannot read the configuration (at most 512 KB): File too large"
                 : NULL,
            "512 KB");
        cfg_done(&r);
    }
    cfg_load(&r, folder, false, &c);
    check_problem(&r, "1:1 error: cannot read the configuration (at most 512 KB): Is a directory",
        "a folder");
    cfg_done(&r);
    cfg_load(&r, "/nonexistent.yaml", false, &c);
    check_problem(
        &r, "1:1 error: cannot read the configuration (at most 512 KB): No such file", "no file");
    cfg_done(&r);

    for (int deep = CONFIG_DEPTH_MAX - 2; deep < CONFIG_DEPTH_MAX + 3; deep++) {
        buf_add_text(&b, HOOK "  x: "); /* its value is on level 2 */
        add_many(&b, deep - 1, "[");
        add_many(&b, deep - 1, "]");
        load_buf(&r, &c, &b);
        check_problem(
            &r, deep > CONFIG_DEPTH_MAX ? "nested more than 64 levels deep" : NULL, "nested lists");
        cfg_done(&r);
    }
    add_many(&b, 200000, "[");
    load_buf(&r, &c, &b);
    check_problem(&r, "1:1026 error: nested more than 64 levels deep", "200,000 brackets");
    cfg_done(&r);

    for (int anchors = CONFIG_ANCHORS_MAX; anchors <= CONFIG_ANCHORS_MAX + 1; anchors++) {
        for (int i = 0; i < anchors; i++)
            buf_format(&b, "a%d: &a%d\n", i, i);
        buf_add_text(&b, HOOK);
        load_buf(&r, &c, &b);
        check_problem(&r, anchors > CONFIG_ANCHORS_MAX ? "more than 1000 anchors" : NULL, "1,000");
        cfg_done(&r);
    }

    buf_add_text(&b, "a0: &a0 [1,2,3,4,5,6,7,8,9,10]\n"); /* stands for 10 to the 12th values */
    for (int i = 1; i < 12; i++) {
        buf_format(&b, "a%d: &a%d [*a%d", i, i, i - 1);
        for (int k = 1; k < 10; k++)
            buf_format(&b, ",*a%d", i - 1);
        buf_add_text(&b, "]\n");
    }
    load_buf(&r, &c, &b);
    check_problem(&r, "or more than 20000 values", "aliases that expand without end");
    cfg_done(&r);

    buf_add_text(&b, HOOK "  x:\n");
    add_many(&b, 5000, "    a:\n");
    load_buf(&r, &c, &b);
    check_number(r.errors, 4999, "the same key 5,000 times: problems");
    cfg_done(&r);

    buf_add_text(&b, "m: &m {");
    for (int i = 0; i < 2000; i++)
        buf_format(&b, "k%d: 1, ", i);
    buf_add_text(&b, "}\n");
    for (int i = 1; i < 100; i++)
        buf_format(&b, "m%d: {<<: *m}\n", i);
    load_buf(&r, &c, &b);
    check_problem(&r, "or more than 20000 values", "100 merges of 2,000 keys");
    cfg_done(&r);

    for (int more = 0; more < 2; more++) {
        buf_add_text(&b, HOOKS);
        add_many(&b, CONFIG_WEBHOOKS_MAX + more,
            "        - {webhookURL: 'http://h/', httpMethod: GET}\n");
        load_buf(&r, &c, &b);
        check_problem(&r,
            more ? "a list, each entry starting with \"- \", their number from 0 to 200" : NULL,
            "200 webhooks");
        check_number((long long)c.webhooks, more ? 0 : CONFIG_WEBHOOKS_MAX, "webhooks");
        cfg_done(&r);
        buf_add_text(&b, HOOK "  udpServerConfig:\n    enable: true\n    allowedSources:\n");
        add_many(&b, 256 + more, "      - 10.0.0.1\n");
        load_buf(&r, &c, &b);
        check_problem(&r,
            more ? "a list, each entry starting with \"- \", their number from 0 to 256" : NULL,
            "256 sources");
        cfg_done(&r);
    }
    buf_free(&b);
    check((clock() - began) / CLOCKS_PER_SEC < 10, "all that within ten seconds");
}

static void
test_config_defaults(void)
{
    struct cfg_reader r;
    struct config c;
    char text[300];

    load(&r, &c, SLICE("Butler: {webhookNotification: {enable: true}}\n"));
    check_problem(&r, NULL, "the smallest file");
    check(!c.disabled_by && c.udp_enable && c.webhook_enable, "enabled without udpServerConfig");
    check_number(c.log_level, LOG_INFO, "logLevel");
    check(!c.file_logging, "fileLogging");
    snprintf(text, sizeof text, "%s/log", folder);
    check_text(c.log_directory, text, "logDirectory is beside the file");
    check_number(c.max_message_size, 65507, "maxMessageSize");
    check(!c.source_validation && c.sources == 0, "allowedSources");
    check(!c.udp_rate_enable && c.udp_rate == 600, "rateLimit of udpServerConfig");
    check(c.dedup_enable && c.dedup_minutes == 10, "deduplication");
    check(
        c.rate_limit_s[ALERT_FAILURE] == 300 && c.rate_limit_s[ALERT_ABORTED] == 300, "rateLimit");
    check(c.max_state_mb == 256 && c.max_age_hours == 72 && c.timeout_s == 10 &&
            c.max_concurrent == 4,
        "butlerWebhook");
    check(c.webhook && c.webhooks == 0, "no webhooks");
    check(!c.proxy[0].host && !c.proxy[1].host, "no proxy");
    check_text(c.listens_on, "127.0.0.1:9998", "listens_on");
    cfg_done(&r);

    load(&r, &c,
        SLICE(
            "Butler: {webhookNotification: {enable: true}, butlerWebhook: {serverHost: '::'}}\n"));
    check_text(c.listens_on, "[::]:9998", "listens_on for IPv6");
    cfg_done(&r);
}

static void
test_config_values(void)
{
    static const char text[] =
        "Butler:\n  logLevel: Debug\n  fileLogging: true\n  logDirectory: /var/log/b\n"
        "  udpServerConfig:\n    enable: true\n    serverHost: 0.0.0.0\n    portTaskFailure: 1234\n"
        "    maxMessageSize: 1000\n    enableSourceValidation: true\n    allowedSources: [10.0.0.0/8, qs1]\n"
        "    rateLimit: {enable: true, maxMessagesPerMinute: 7}\n    deduplication: {enable: false, ttlMinutes: 3}\n"
        "  webhookNotification:\n    enable: true\n"
        "    reloadTaskAborted:\n      rateLimit: 60\n      webhooks:\n"
        "        - {webhookURL: 'https://h/', httpMethod: POST, description: ''}\n"
        "        - {webhookURL: 'https://h/', httpMethod: POST, cert: {enable: false, rejectUnauthorized: false}}\n"
        "    reloadTaskFailure:\n      rateLimit: 0\n      webhooks:\n"
        "        - description: \"first\\nhook\"\n          webhookURL: https://u:p@h.example/a?b=SECRET\n"
        "          httpMethod: get\n          cert: {enable: true, certCA: ca.pem}\n"
        "        - webhookURL: http://h/\n          httpMethod: Put\n"
        "  butlerWebhook: {maxStateMB: 16, maxAgeHours: 1, timeoutSeconds: 300, maxConcurrent: 16, stateDirectory: x/y}\n";
    struct cfg_reader r;
    struct config c;
    char path[300];

    load(&r, &c, SLICE(text));
    check_problem(
        &r, "20:98 warning: aborted 2: rejectUnauthorized is false", "a file with all keys");
    check_number(c.log_level, LOG_DEBUG, "logLevel");
    check(c.file_logging, "fileLogging");
    check_text(c.log_directory, "/var/log/b", "an absolute logDirectory");
    check_text(c.udp_host, "0.0.0.0", "serverHost");
    check_number(c.udp_port, 1234, "portTaskFailure");
    check_number(c.max_message_size, 1000, "maxMessageSize");
    check(c.source_validation && c.sources == 2, "allowedSources");
    check(!c.source[0].name && c.source[0].bits == 104, "a range");
    check_text(c.source[1].name, "qs1", "a name");
    check(c.udp_rate_enable && c.udp_rate == 7, "rateLimit of udpServerConfig");
    check(!c.dedup_enable && c.dedup_minutes == 3, "deduplication");
    check(c.rate_limit_s[ALERT_FAILURE] == 0 && c.rate_limit_s[ALERT_ABORTED] == 60, "rateLimit");
    check(c.max_state_mb == 16 && c.max_age_hours == 1 && c.timeout_s == 300 &&
            c.max_concurrent == 16,
        "butlerWebhook");
    snprintf(path, sizeof path, "%s/x/y", folder);
    check_text(c.state_directory, path, "stateDirectory is beside the file");
    if (check(c.webhooks == 4, "webhooks: failures first")) {
        const struct webhook_config *w = c.webhook;
        check_text(w[0].name, "failure 1 (\"first\\x0ahook\")", "name with description");
        check_text(w[0].url.shown, "https://h.example/a?\xe2\x80\xa6", "URL without secrets");
        check(w[0].method == METHOD_GET && w[1].method == METHOD_PUT, "methods in any case");
        check(w[0].cert_enable && w[0].reject_unauthorized && w[0].ca && w[0].ca_count == 1,
            "own CA");
        snprintf(path, sizeof path, "%s/ca.pem", folder);
        check_text(w[0].cert_ca, path, "certCA is beside the file");
        check(!w[1].url.tls && !w[1].ca, "plain http");
        check(w[1].kind == ALERT_FAILURE && w[1].place == 1 && w[1].listed == 2, "place");
        check_text(w[1].name, "failure 2", "name without description");
        check(w[2].reject_unauthorized && !w[2].cert_enable && w[2].kind == ALERT_ABORTED &&
                w[2].place == 0,
            "public roots");
        check_text(w[2].name, "aborted 1", "an empty description");
        check(!w[3].reject_unauthorized && w[3].place == 1, "rejectUnauthorized false");
        check(!w[0].proxy, "no proxy");
        check(strlen(w[2].key) == 32 && strcmp(w[2].key, w[3].key) != 0, "twins have two keys");
    }
    cfg_done(&r);
}

/* The key of a webhook must not change from version to version: alerts wait under it. */
static void
test_config_key(void)
{
    struct cfg_reader r;
    struct config c;

    load(&r, &c, SLICE(HOOK));
    check_text(c.webhook[0].key, "21b5525bb06c19883cb4e6359ccd1397",
        "SHA-256 of failure, POST, http://127.0.0.1:1/ and 0");
    cfg_done(&r);
}

/* Who wins: Butler's enable, serverHost and port, or ours. */
static void
test_config_overrides(void)
{
    static const struct {
        const char *udp, *webhook, *ours;
        bool enabled;
    } rows[] = {
        {"", "true", "", true},
        {"", "false", "", false},
        {"udpServerConfig: {enable: true}, ", "true", "", true},
        {"udpServerConfig: {enable: false}, ", "true", "", false},
        {"udpServerConfig: ~, ", "true", "", true},
        {"udpServerConfig: {enable: false}, ", "false", ", butlerWebhook: {enable: true}", true},
        {"udpServerConfig: {enable: true}, ", "true", ", butlerWebhook: {enable: false}", false},
        {"", "true", ", butlerWebhook: {enable: ~}", true},
        {"", "false", ", butlerWebhook: {port: 1}", false},
    };
    struct cfg_reader r;
    struct config c;
    struct buf b = {0};

    for (size_t i = 0; i < COUNT(rows); i++) {
        buf_format(&b, "Butler: {%swebhookNotification: {enable: %s}%s}\n", rows[i].udp,
            rows[i].webhook, rows[i].ours);
        load_buf(&r, &c, &b);
        check_problem(&r, NULL, b.data);
        check(!c.disabled_by == rows[i].enabled, "enabled: %s", b.data);
        cfg_done(&r);
    }
    buf_free(&b);
    load(&r, &c,
        SLICE(
            "Butler: {webhookNotification: {enable: true}, udpServerConfig: {enable: true, serverHost: 10.0.0.1,\n"
            "  portTaskFailure: 1}, butlerWebhook: {serverHost: 10.0.0.2, port: 2}}\n"));
    check_text(c.udp_host, "10.0.0.2", "our serverHost wins");
    check_number(c.udp_port, 2, "our port wins");
    cfg_done(&r);
    cfg_load(&r, write_file("butler.yaml", SLICE(OFF_HOOK)), true, &c);
    check_problem(&r, "6:23 error: webhookURL is not a URL", "strict, though off");
    cfg_done(&r);
}

/* Merge keys: a map's own keys win, then those of the first map in the list. */
static void
test_config_merge(void)
{
    static const char text[] =
        "a: &a {webhookURL: 'http://a/', httpMethod: GET, description: from a}\n"
        "b: &b {webhookURL: 'http://b/', httpMethod: PUT}\n"
        "c: &c {<<: *a, httpMethod: POST}\n"
        "Butler: {webhookNotification: {enable: true, reloadTaskFailure: {webhooks: [\n"
        "  *a, {<<: *a, webhookURL: 'http://own/'}, {<<: [*b, *a]}, *c, {httpMethod: PUT, <<: *c},\n"
        "  {<<: *b, <<: *a}]}}}\n";
    static const char *const want[] = {"GET http://a/ failure 1 (\"from a\")",
        "GET http://own/ failure 2 (\"from a\")", "PUT http://b/ failure 3 (\"from a\")",
        "POST http://a/ failure 4 (\"from a\")", "PUT http://a/ failure 5 (\"from a\")",
        "PUT http://b/ failure 6 (\"from a\")"};
    struct cfg_reader r;
    struct config c;

    load(&r, &c, SLICE(text));
    check_problem(&r, NULL, "merge keys");
    check_number((long long)c.webhooks, COUNT(want), "webhooks");
    for (size_t i = 0; i < COUNT(want) && i < c.webhooks; i++) {
        const struct webhook_config *w = &c.webhook[i];
        struct buf got = {0};
        buf_format(&got, "%s %s %s", METHODS[w->method], w->url.shown, w->name);
        check_buf(&got, slice_of(want[i]), "merged");
    }
    cfg_done(&r);
}

static void
test_config_sources(void)
{
    static const struct {
        const char *text;
        int result, bits;    /* bits -1: a name */
        const char *same_as; /* the address, as IPv4 */
    } rows[] = {
        {"10.1.2.3", 0, 128, "10.1.2.3"},
        {"10.0.0.0/8", 0, 104, "10.0.0.0"},
        {"0.0.0.0/0", 0, 96, "0.0.0.0"},
        {"::ffff:10.0.0.0/104", 0, 104, "10.0.0.0"},
        {"::ffff:10.0.0.0/8", 0, 104, "10.0.0.0"},
        {"::ffff:a00:0/128", 0, 128, "10.0.0.0"},
        {"::ffff:10.0.0.0/64", -1, 0, NULL},
        {"::/0", 0, 0, NULL},
        {"fe80::/10", 0, 10, NULL},
        {"::1", 0, 128, NULL},
        {"qs1.example", 0, -1, NULL},
        {"10.0.0.0/33", -1, 0, NULL},
        {"10.0.0.0/", -1, 0, NULL},
        {"10.0.0.0/8/9", -1, 0, NULL},
        {"::1/129", -1, 0, NULL},
        {"qs1/24", -1, 0, NULL},
        {"10.1.2", -1, 0, NULL},
        {"0x7f.1", -1, 0, NULL},
        {"010.0.0.1", -1, 0, NULL},
        {"fe80::1%eth0", -1, 0, NULL},
        {"", -1, 0, NULL},
        {"/8", -1, 0, NULL},
    };
    struct cfg_reader r;
    struct config c;
    struct buf b = {0};

    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *text = rows[i].text;
        uint8_t want[16];
        buf_format(
            &b, HOOK "  udpServerConfig: {enable: true, allowedSources: ['%s', 10.9.9.9]}\n", text);
        load_buf(&r, &c, &b);
        check_problem(
            &r, rows[i].result ? "8:52 error: udpServerConfig.allowedSources: an" : NULL, text);
        if (check_number((long long)c.sources, rows[i].result ? 1 : 2, text) && c.sources == 2) {
            const struct source *s = &c.source[0];
            check(rows[i].bits < 0 ? s->name && !s->addresses && strcmp(s->name, text) == 0
                                   : !s->name && s->addresses == 1 && s->bits == rows[i].bits,
                "%s: %d bits", text, s->bits);
            if (rows[i].same_as)
                address_bytes(rows[i].same_as, want);
            check(!rows[i].same_as || memcmp(want, s->address[0], 16) == 0, "%s: IPv4", text);
        }
        cfg_done(&r);
    }
    buf_free(&b);
}

static void
test_config_environment(void)
{
    static const struct {
        const char *set[5]; /* name, value ...; no more than two */
        const char *http, *https, *problem;
    } rows[] = {
        {{"http_proxy", "http://p:3128"}, "http://p:3128", NULL, NULL},
        {{"HTTPS_PROXY", "p:3128"}, NULL, "http://p:3128", NULL},
        {{"http_proxy", "http://a", "HTTP_PROXY", "http://b"}, "http://a", NULL, NULL},
        {{"http_proxy", "", "HTTP_PROXY", "http://b"}, "http://b", NULL, NULL},
        {{"all_proxy", "u:p@10.0.0.1:81"}, "http://10.0.0.1:81", "http://10.0.0.1:81", NULL},
        {{"ALL_PROXY", "http://all", "https_proxy", "http://s"}, "http://all", "http://s", NULL},
        {{"http_proxy", "http://u:SECRET@p:99999"}, NULL, NULL,
            "1:1 warning: the environment's http_proxy is not a proxy"},
        {{"all_proxy", "socks5://u:SECRET@p"}, NULL, NULL,
            "1:1 warning: the environment's all_proxy is not a proxy"},
        {{"https_proxy", "https://p"}, NULL, NULL,
            "1:1 warning: the environment's https_proxy is not a proxy"},
        {{"http_proxy", "http://p", "NO_PROXY", "h"}, NULL, NULL, NULL},
        {{"http_proxy", "http://p", "no_proxy", "g,*"}, NULL, NULL, NULL},
    };
    static const char *const places[][2] = {
        {"/a:/b", "/a"}, {"/a b", "/a b"}, {"C:\\a", ""}, {"", ""}};
    struct cfg_reader r;
    struct config c;
    char path[300];

    for (size_t i = 0; i < COUNT(rows); i++) {
        for (int k = 0; rows[i].set[k]; k += 2)
            setenv(rows[i].set[k], rows[i].set[k + 1], 1);
        load(&r, &c,
            SLICE(HOOKS "        - {webhookURL: 'http://h/', httpMethod: GET}\n"
                        "        - {webhookURL: 'https://h/', httpMethod: GET}\n"));
        check_problem(&r, rows[i].problem, rows[i].set[1]);
        for (int tls = 0; tls < 2; tls++) {
            const char *want = tls ? rows[i].https : rows[i].http;
            const struct url *proxy = c.webhook[tls].proxy;
            check_text(proxy ? proxy->origin : NULL, want ? want : "(none)", "proxy of a webhook");
        }
        cfg_done(&r);
        for (int k = 0; rows[i].set[k]; k += 2)
            unsetenv(rows[i].set[k]);
    }
    for (size_t i = 0; i < COUNT(places); i++) {
        setenv("STATE_DIRECTORY", places[i][0], 1);
        load(&r, &c, SLICE(HOOK));
        snprintf(path, sizeof path, "%s/%s", folder, "butler_webhook.state");
        check_text(c.state_directory, *places[i][1] ? places[i][1] : path, "STATE_DIRECTORY");
        cfg_done(&r);
        load(&r, &c, SLICE(HOOK "  butlerWebhook: {stateDirectory: ''}\n"));
        check(!c.state_directory, "stateDirectory ''");
        cfg_done(&r);
        unsetenv("STATE_DIRECTORY");
    }
}

static void
test_config_files(void)
{
    static const struct {
        const char *file;
        int warnings;
        bool enabled;
        size_t hooks;
    } rows[] = {
        {"test/data/config/butler-production.yaml", 0, true, 4},
        {"test/data/config/seed.yaml", 6, false, 6},
        {"samples/minimal.yaml", 0, true, 1},
        {"samples/full.yaml", 0, true, 2},
    };
    struct cfg_reader r;
    struct config c;
    struct buf told = {0};

    for (size_t i = 0; i < COUNT(rows); i++) {
        cfg_load(&r, rows[i].file, false, &c);
        cfg_add_problems(&told, &r);
        check(r.errors == 0 && r.warnings == rows[i].warnings, "%s: %s", rows[i].file,
            told.len ? told.data : "no warning");
        check(!c.disabled_by == rows[i].enabled, "%s enabled", rows[i].file);
        check_number((long long)c.webhooks, (long long)rows[i].hooks, rows[i].file);
        told.len = 0;
        cfg_done(&r);
    }
    load(&r, &c, SLICE(OFF_HOOK "  fileLogging: no\n    \n"));
    r.file = "a.yaml";
    cfg_add_problems(&told, &r);
    check(strncmp(told.data, "a.yaml:6:23: warning: webhookURL is not a URL", 45) == 0 &&
            strstr(told.data,
                "\na.yaml:8:16: error: fileLogging must be true or false, without quotes\n"),
        "cfg_add_problems: %s", told.data);
    told.len = 0;
    cfg_done(&r);
    load(&r, &c, SLICE(HOOK "    \"a\\nb\\e[31m\": x\n"));
    r.file = "a.yaml";
    cfg_add_problems(&told, &r);
    check(
        strstr(told.data, "unknown key \"a\\x0ab\\x1b[31m\" is ignored"), "cleaned: %s", told.data);
    buf_free(&told);
    cfg_done(&r);
}

/* Who listens where others can send is warned, unless the senders are checked. */
static void
test_config_local(void)
{
    static const struct {
        const char *host;
        bool local;
    } rows[] = {{"127.0.0.1", true}, {"127.255.0.9", true}, {"128.0.0.1", false},
        {"0.0.0.0", false}, {"::1", true}, {"::", false}, {"::ffff:127.0.0.1", true},
        {"::127.0.0.1", false}, {"localhost", true}, {"qs1.example", false}};
    struct cfg_reader r;
    struct config c;
    struct buf b = {0};

    for (size_t i = 0; i < COUNT(rows); i++) {
        buf_format(&b, HOOK "  butlerWebhook: {serverHost: '%s'}\n", rows[i].host);
        load_buf(&r, &c, &b);
        check_problem(&r, rows[i].local ? NULL : "8:31 warning: listening on ", rows[i].host);
        check(c.is_local == rows[i].local, "%s is local", rows[i].host);
        cfg_done(&r);
    }
    buf_free(&b);
}

static void
test_07(void)
{
    test_config_problems();
    test_config_bounds();
    test_config_defaults();
    test_config_values();
    test_config_key();
    test_config_overrides();
    test_config_merge();
    test_config_sources();
    test_config_environment();
    test_config_files();
    test_config_local();
}

/* ==== 8. Windows of time ==================================================== */

static struct windows the_windows; /* 1.9 MB */

/* Makes the tables new, their windows that long. */
static void
windows_begin(int64_t length_ms)
{
    memset(&the_windows, 0, sizeof the_windows);
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        for (int use = 0; use < WINDOW_USES; use++)
            the_windows.table[kind][use].length_ms = length_ms;
}

/* The key of an alert with this id. */
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

    check(key_of("").none && key_of(ZERO_ID).none && key_of("{" ZERO_ID "}").none, "no id");
    check(!key_of(RUN_ID).none && !key_of("0x").none, "an id");
    static const struct {
        const char *a, *b;
        bool same;
    } keys[] = {
        {TASK_ID, "DEC2A02A-1680-44EF-8DC2-E2BFB180AF87", true},
        {TASK_ID, "{" TASK_ID "}", true},
        {"{DEC2A02A-1680-44ef-8DC2-E2BFB180AF87}", TASK_ID, true},
        {TASK_ID, APP_ID, false},
        {TASK_ID, "{" TASK_ID, false},
        {"run 1", "run 1", true},
        {"run 1", "run 1 ", false},
        {"{x}", "x", false},
        {"\xc3\xa5", "\xc3\xa4", false},
    };
    struct window_table *t = &the_windows.table[ALERT_FAILURE][WINDOW_RATE];
    struct window_key a_key = key_of("a");

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
    check(!window_holds(&the_windows.table[ALERT_ABORTED][WINDOW_RATE], "a", 0),
        "so has another kind");

    for (size_t i = 0; i < COUNT(keys); i++) {
        windows_begin(length);
        window_holds(t, keys[i].a, 0);
        check(window_holds(t, keys[i].b, 1) == keys[i].same, "\"%s\" and \"%s\"", keys[i].a,
            keys[i].b);
    }
    windows_begin(1);
    check(!window_holds(t, "a", 5) && window_holds(t, "a", 5), "one ms");
    check(!window_holds(t, "a", 6), "is over the next");
    check_number(t->count, 1, "and forgotten");
    check(!window_holds(t, "", 6) && !window_holds(t, "", 6), "an empty id is never held");
    check_number(t->count, 1, "and not kept");

    memset(&the_windows, 0, sizeof the_windows);
    for (int use = 0; use < WINDOW_USES; use++) {
        t = &the_windows.table[ALERT_ABORTED][use];
        check(!window_holds(t, "a", 0) && !window_holds(t, "a", 0), "no length holds nothing");
        check(t->count == 0, "and keeps nothing");
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
    check_number(window_at(t, 6)->begin_ms, 6, "the seventh");
    check_bytes((struct slice){(const char *)window_at(t, 6)->key.bytes, 16},
        (struct slice){(const char *)seventh.bytes, 16}, "its key");
    for (unsigned i = 0; i < WINDOW_MAX; i++)
        wrong += !window_holds_number(t, i, WINDOW_MAX);
    check_number(wrong, 0, "all again: let through");
    check(!window_holds_number(t, WINDOW_MAX, WINDOW_MAX), "one more is let through");
    check(window_holds_number(t, WINDOW_MAX, WINDOW_MAX), "and kept");
    check(window_holds_number(t, 1, WINDOW_MAX), "the second is still kept");
    check_number(t->count, WINDOW_MAX, "kept in all");
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
    check_number(t->count, 0, "all are over");
}

/* Random ids and times, against a list that is searched from one end to the other. */
static void
test_window_random(void)
{
    int64_t begin[200], now = 0;
    int wrong = 0, held = 0;

    windows_begin(50);
    for (size_t i = 0; i < COUNT(begin); i++)
        begin[i] = -1000;
    for (int i = 0; i < 20000; i++) {
        unsigned id = random_below(COUNT(begin));
        bool hold = now < begin[id] + 50;
        wrong += window_holds_number(&the_windows.table[0][0], id, now) != hold;
        if (!hold)
            begin[id] = now;
        held += hold;
        now += random_below(3);
    }
    check_number(wrong, 0, "random ids and times: wrong answers");
    check(held > 1000 && held < 19000, "%d of 20,000 were held back", held);
}

static void
test_08(void)
{
    test_window_edges();
    test_window_full();
    test_window_random();
}

/* ==== 9. Journal ============================================================ */

/* Has all synced, as the end of loop_stop does. True: it is on the disk. */
static bool
journal_stop(struct journal *j)
{
    int64_t until_ms;

    journal_write(j, plat_now_ms());
    j->retry_ms = j->failed ? 0 : INT64_MAX;
    j->sync_all = true;
    for (int i = 0; i < 5000; i++) {
        journal_take_results(j, plat_now_ms());
        journal_upkeep(j, UINT64_MAX, plat_now_ms(), &until_ms);
        if (!j->asked)
            return !j->failed;
        usleep(1000);
    }
    return false;
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
    *j = (struct journal){0};
}

#define KEY1 "0123456789abcdef0123456789abcdef"
#define KEY2 "11111111111111111111111111111111"

/* Records, and their lines behind the CRC. */
static const struct {
    struct journal_record record;
    const char *line;
} RECORD_ROWS[] = {
    {{.number = 2, .count = 3, .key = S(KEY1), .text = S("a \"b\"\t\n")},
        "webhook\t2\tfailure\t0\t3\t" KEY1 "\t\"a \\\"b\\\"\\t\\n\""},
    {{JOURNAL_ACCEPTED, ALERT_FAILURE, 7, 1795339800123, 0, S(KEY1 "," KEY2), S("{\"\xc3\xa5\"}")},
        "accepted\t7\tfailure\t1795339800123\t0\t" KEY1 "," KEY2 "\t{\"\xc3\xa5\"}"},
    {{JOURNAL_WAITING, ALERT_ABORTED, 8, 1, 0, S(KEY2), S("{}")},
        "waiting\t8\taborted\t1\t0\t" KEY2 "\t{}"},
    {{JOURNAL_ATTEMPT, ALERT_FAILURE, 7, 1000, 2, S(KEY1), S("status 500")},
        "attempt\t7\tfailure\t1000\t2\t" KEY1 "\t\"status 500\""},
    {{JOURNAL_END, ALERT_FAILURE, 7, 0, 1, S(KEY2), S("")},
        "end\t7\tfailure\t0\t1\t" KEY2 "\t\"\""},
    {{JOURNAL_WINDOW, ALERT_ABORTED, 0, 5, WINDOW_SEEN, S(KEY1), S("")},
        "window\t0\taborted\t5\t1\t" KEY1 "\t\"\""},
};

/* Adds a line made of what stands behind its CRC, without its LF. */
static void
add_record_line(struct buf *b, struct slice rest)
{
    char crc[9];

    crc_write(rest.data, rest.len, crc);
    buf_add_texts(b, crc, "\t", NULL);
    buf_add(b, rest.data, rest.len);
}

static bool
same_record(const struct journal_record *a, const struct journal_record *b)
{
    return a->word == b->word && a->kind == b->kind && a->number == b->number &&
        a->wall_ms == b->wall_ms && a->count == b->count && same(a->key, b->key) &&
        same(a->text, b->text);
}

static void
test_journal_records(void)
{
    static const char *const bad[] = {"", "\t", "end", "end\t7\tfailure\t0\t0\t" KEY1,
        "end\t7\tfailure\t0\t0\t" KEY1 "\t\"\"\tx", "end\t7\tfailure\t0\t0\t\t\"\"",
        "end\t-1\tfailure\t0\t0\t" KEY1 "\t\"\"", "end\t7\tother\t0\t0\t" KEY1 "\t\"\"",
        "end\t7\tfailure\tx\t0\t" KEY1 "\t\"\"", "end\t7\tfailure\t0\t0\t" KEY1 "\t",
        "end\t7\tfailure\t0\t9999999999\t" KEY1 "\t\"\"", "ends\t7\tfailure\t0\t0\tk\t\"\"",
        "attempt\t7\tfailure\t0\t1\tk\t{}", "attempt\t7\tfailure\t0\t1\tk\t\"\xff\"",
        "attempt\t7\tfailure\t0\t1\tk\t\"a\"b", "webhook\t1\tfailure\t0\t1\tk\tnull"};
    struct journal_record record;
    struct buf line = {0}, got = {0}, text = {0};
    char crc[9];

    crc_write("123456789", 9, crc);
    check_text(crc, "cbf43926", "the check value of CRC-32/ISO-HDLC");
    for (size_t i = 0; i < COUNT(RECORD_ROWS); i++) {
        const struct journal_record *want = &RECORD_ROWS[i].record;
        struct slice whole;
        int wrong = 0;
        add_record_line(&line, slice_of(RECORD_ROWS[i].line));
        whole = exact((struct slice){line.data, line.len});
        check(journal_read_record(whole, &record, &text) == 0 && same_record(&record, want),
            "reading %s", show(whole));
        journal_add_record(&got, want);
        check(got.len == line.len + 1 && memcmp(got.data, line.data, line.len) == 0,
            "writing %s: %s", show(whole), show((struct slice){got.data, got.len}));
        for (size_t at = 0; at < line.len; at++)
            for (int bit = 0; bit < 8; bit++) {
                line.data[at] = (char)(line.data[at] ^ 1 << bit);
                wrong += journal_read_record((struct slice){line.data, line.len}, &record, &text) ==
                    0;
                line.data[at] = (char)(line.data[at] ^ 1 << bit);
            }
        for (size_t len = 0; len < line.len; len++) {
            struct slice part = exact((struct slice){line.data, len});
            wrong += journal_read_record(part, &record, &text) == 0;
            exact_free(part);
        }
        check_number(wrong, 0, "damaged, or cut off, at each byte: good");
        exact_free(whole);
        buf_free(&line);
        buf_free(&got);
    }
    for (size_t i = 0; i < COUNT(bad); i++) {
        add_record_line(&line, slice_of(bad[i]));
        check(journal_read_record((struct slice){line.data, line.len}, &record, &text) != 0,
            "no record: %s", bad[i]);
        buf_free(&line);
    }
    buf_free(&text);
}

/* Reads a file line by line and checks each byte; returns how many lines. */
static int
count_lines(struct slice content)
{
    const char *path = write_file("lines", content);
    struct line_reader r = {.file = plat_state_open(path, O_RDONLY), .is_complete = true};
    struct slice line;
    size_t at = 0;
    int n = 0, wrong = 0;

    for (; line_read(&r, &line) > 0; n++) {
        wrong += !same(line, (struct slice){content.data + at, line.len});
        at += line.len;
        wrong += r.is_complete && (at == content.len || content.data[at++] != '\n');
        wrong += !r.is_complete && at < content.len && line.len <= JOURNAL_LINE_MAX;
    }
    check(wrong == 0 && at == content.len && line_read(&r, &line) == 0,
        "%d lines are wrong, the last ends at %zu of %zu", wrong, at, content.len);
    check(r.is_complete == (content.len == 0 || content.data[content.len - 1] == '\n'),
        "the last line of %zu bytes is complete or not", content.len);
    line_reader_done(&r);
    unlink(path);
    return n;
}

static void
test_line_read(void)
{
    static const struct {
        struct slice content;
        int lines;
    } rows[] = {{S(""), 0}, {S("\n"), 1}, {S("a"), 1}, {S("a\n"), 1}, {S("a\nb"), 2},
        {S("a\n\n\nb\n"), 4}, {S("\0\n\0"), 2}, {S("\0\0\0\0"), 1}};
    struct buf b = {0};

    for (size_t i = 0; i < COUNT(rows); i++)
        check_number(count_lines(rows[i].content), rows[i].lines, show(rows[i].content));
    for (int i = 0; i < 60; i++) { /* lines of random lengths, one far too long */
        uint32_t len = i == 30 ? 3 * JOURNAL_LINE_MAX + 12345 : random_below(i % 3 ? 200 : 150000);
        while (len-- > 0)
            buf_add_char(&b, "\0ab\t"[random_below(4)]);
        buf_add_char(&b, '\n');
    }
    check_number(count_lines((struct slice){b.data, b.len}), 60 + 2, "pieces of 60 lines");
    buf_free(&b);
}

/* ---- A state directory ---- */

static char state_folder[80]; /* in the folder for tests */

static struct webhook_config state_webhooks[] = {
    {.key = KEY1, .kind = ALERT_FAILURE, .place = 0, .listed = 2, .description = ""},
    {.key = KEY2, .kind = ALERT_FAILURE, .place = 1, .listed = 2, .description = "Second"},
};
static const struct config STATE_CONFIG = {
    .state_directory = state_folder, .max_state_mb = 256, .webhook = state_webhooks, .webhooks = 2};

static void
remove_state_file(const char *name, void *arg)
{
    (void)arg;
    plat_remove(state_path(state_folder, name).text);
}

/* Deletes the state directory. */
static void
state_clear(void)
{
    snprintf(state_folder, sizeof state_folder, "%s/state", folder);
    folder_each(state_folder, remove_state_file, NULL);
    rmdir(state_folder);
}

/* Writes a file of the state directory, which is made if need be. */
static void
write_state(const char *name, struct slice content)
{
    char path[100];

    check_number(plat_make_folder(state_folder, true), 0, "the state directory");
    snprintf(path, sizeof path, "state/%s", name);
    write_file(path, content);
}

/* A file of the state directory, "" if there is none; the caller frees it. */
static struct buf
read_state(const char *name)
{
    struct buf b = {0};
    char *data;
    size_t len;

    buf_add(&b, "", 0);
    if (plat_read_file(state_path(state_folder, name).text, 128 << 20, &data, &len) == 0) {
        buf_add(&b, data, len);
        free(data);
    }
    return b;
}

static bool
is_in_state(const char *name)
{
    return plat_path_len(state_path(state_folder, name).text) >= 0;
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

/* Ends, and checks what the next start would find. */
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
    check_number(journal_write(j, plat_now_ms()), result, "journal_write");
}

/* Has the disk thread do all that it is asked; failed: until a rewriting has healed that. */
static void
state_settle(struct journal *j, bool has_failed)
{
    uint64_t number = j->synced_number + 1;

    for (int i = 0; i < 5000; i++) {
        int64_t until_ms = INT64_MAX;
        journal_take_results(j, plat_now_ms());
        journal_upkeep(j, number, plat_now_ms(), &until_ms);
        if (!j->asked && (j->failed ? !has_failed : j->synced_number == number))
            return;
        usleep(1000);
    }
    check(false, "the disk thread does not settle");
}

/* Rewrites the journal so that it holds one alert. */
static void
state_rewrite(struct journal *j, unsigned number)
{
    if (journal_rewrite_begin(j, plat_now_ms()) == 0) {
        journal_rewrite_add(j,
            (struct journal_record){
                .word = JOURNAL_WAITING, .number = number, .key = S(KEY1), .text = S("{}")});
        journal_rewrite_flush(j);
    }
}

/* Appending, and when it is synced. */
static void
test_journal_appends(void)
{
    struct journal j, second;
    int64_t until_ms = INT64_MAX, now_ms;
    struct err e;

    state_clear();
    state_open(&j, true, ""); /* no folder: nothing waits */
    check(!journal_wants_rewrite(&j, 0, INT64_MAX) && journal_write(&j, 0) != 0, "read only");
    journal_done(&j);
    check(!is_in_state(""), "read only makes nothing");
    state_open(&j, false, "");
    check(journal_open(&second, &STATE_CONFIG, false, &e) != 0 &&
            strstr(e.text, "is used by another butler_webhook") != NULL,
        "a second process: %s", e.text);
    journal_done(&second);
    state_write(&j, JOURNAL_ACCEPTED, 1, 0);
    state_settle(&j, false);
    state_write(&j, JOURNAL_END, 1, 0);
    now_ms = plat_now_ms();
    journal_upkeep(&j, j.synced_number, now_ms + 2 * SYNC_MS, &until_ms);
    check(!j.asked, "nothing waits: no sync");
    state_write(&j, JOURNAL_ACCEPTED, 3, 0);
    until_ms = INT64_MAX;
    journal_upkeep(&j, 3, now_ms, &until_ms);
    check(!j.asked && until_ms == now_ms + SYNC_MS, "a sync is due later");
    journal_upkeep(&j, 3, now_ms + SYNC_MS, &until_ms);
    check(j.asked, "now it is due");
    state_write(&j, JOURNAL_ACCEPTED, 4, 0);
    check(journal_stop(&j) && j.synced_number > 4, "journal_stop");
    journal_done(&j);
    state_open(&j, false, "a1e1a3a4"); /* nobody has the lock */
    journal_done(&j);
}

/* What a start makes of a journal, and what a record written after it looks like then. */
static void
test_journal_damage(void)
{
    static const struct {
        const char *content, *records, *later; /* 1-5: a row of RECORD_ROWS */
        int damaged, torn;
    } rows[] = {
        {"1\n", "a7", "a7a9", 0, 0},
        {"1", "a7", "a7a9", 0, 0},
        {"1\n0000", "a7", "a7a9", 0, 1},
        {"1\nx\n4\n", "a7e7", "a7e7a9", 1, 0},
        {"x\ny\nz\n1\n0000", "a7", "a7a9", 3, 1},
        {"", "", "a9", 0, 0},
        {"\n", "", "a9", 0, 0},
    };
    struct journal j;
    struct buf b = {0}, aside;
    char text[60];

    for (size_t i = 0; i < COUNT(rows); i++) {
        for (const char *p = rows[i].content; *p; p++)
            if (*p >= '1' && *p <= '5')
                add_record_line(&b, slice_of(RECORD_ROWS[*p - '0'].line));
            else
                buf_add_char(&b, *p);
        state_clear();
        write_state("journal", (struct slice){b.data ? b.data : "", b.len});
        write_state("journal.new", SLICE("left over"));
        buf_free(&b);
        state_open(&j, false, rows[i].records);
        check_number(
            (int)j.out.len, 0, "nothing is left over for the journal that is written anew");
        check(!is_in_state("journal.new"), "journal.new is deleted");
        snprintf(text, sizeof text, "journal: %d damaged line%s set aside", rows[i].damaged,
            rows[i].damaged == 1 ? "" : "s");
        check_number(log_count(text), rows[i].damaged > 0, text);
        check_number(log_count("a torn last line (4 bytes)"), rows[i].torn, rows[i].content);
        check(journal_wants_rewrite(&j, 0, plat_now_ms()), "it wants to be rewritten");
        aside = read_state("journal.damaged");
        check_number((int)(aside.len / 2), rows[i].damaged, "lines in journal.damaged");
        buf_free(&aside);
        state_write(&j, JOURNAL_ACCEPTED, 9, 0);
        check(journal_stop(&j), "journal_stop");
        state_close(&j, rows[i].later);
    }
    state_clear();
    write_state("journal", SLICE("x\n"));
    mkdir(state_path(state_folder, "journal.damaged").text, 0700);
    state_open(&j, false, "");
    check_number(
        log_count("journal: 1 damaged line skipped; cannot open"), 1, "a folder in the way");
    journal_done(&j);
    rmdir(state_path(state_folder, "journal.damaged").text);
}

static void
test_journal_rewriting(void)
{
    struct journal j;

    state_clear();
    state_open(&j, false, "");
    state_rewrite(&j, 0);
    state_settle(&j, false);
    state_write(&j, JOURNAL_ACCEPTED, 1, 0);
    check(!journal_wants_rewrite(&j, 0, plat_now_ms()), "it is small");
    j.len = REWRITE_MIN + 201;
    check(!journal_wants_rewrite(&j, 101, plat_now_ms()) &&
            journal_wants_rewrite(&j, 100, plat_now_ms()),
        "twice what waits and 8 MiB");
    state_rewrite(&j, 2);
    state_write(&j, JOURNAL_ACCEPTED, 3, 0);
    check(!journal_wants_rewrite(&j, 0, plat_now_ms()), "it is under way");
    state_settle(&j, false);
    state_write(&j, JOURNAL_ACCEPTED, 4, 0);
    state_settle(&j, false);
    check(!is_in_state("journal.new"), "it is in place");
    state_close(&j, "w2a3a4");

    j.failed = true;
    journal_fail(&j, &j.letters_failed, "cannot write dead-letters.ndjson", ENOSPC, 0);
    check_number(log_count("cannot write dead-letters.ndjson"), 1, "logged in spite of the other");
    j.failed = j.letters_failed = false;

    /* a write that fails: nothing is appended until a rewriting has succeeded */
    state_open(&j, false, "w2a3a4");
    state_settle(&j, false);
    int full = open("/dev/full", O_WRONLY);
    dup2(full, j.file);
    close(full);
    state_write(&j, JOURNAL_ACCEPTED, 5, -1);
    state_write(&j, JOURNAL_ACCEPTED, 6, -1);
    check_number(log_count("error: state directory: cannot write the journal"), 1, "logged once");
    check(j.failed && !journal_wants_rewrite(&j, 0, plat_now_ms()), "not at once");
    check(journal_wants_rewrite(&j, 0, plat_now_ms() + HEAL_MS), "but soon");
    check_number(mkdir(state_path(state_folder, "journal.new").text, 0700), 0, "in its way");
    state_rewrite(&j, 7);
    check(j.rewrite_failed && !journal_wants_rewrite(&j, 0, plat_now_ms()), "it cannot be made");
    rmdir(state_path(state_folder, "journal.new").text);
    state_rewrite(&j, 8);
    state_write(&j, JOURNAL_ACCEPTED, 9, -1);
    j.retry_ms = 0;
    state_settle(&j, true);
    state_write(&j, JOURNAL_ACCEPTED, 10, 0);
    check_number(log_count("info: state directory: works again"), 1, "logged once");
    check_number(log_count("error: "), 1, "no other error");
    state_close(&j, "w8a9a10");

    /* a journal.new that cannot take the journal's place, nor the old one be opened again */
    state_open(&j, false, "w8a9a10");
    state_settle(&j, false);
    state_rewrite(&j, 11);
    unlink(state_path(state_folder, "journal").text);
    check_number(mkdir(state_path(state_folder, "journal").text, 0700), 0, "in its way");
    journal_place(&j, plat_now_ms());
    check(j.failed && j.rewrite_failed && j.new_file < 0, "both have failed");
    check_number(
        log_count("error: state directory: cannot open the journal: "), 1, "which is told");
    state_write(&j, JOURNAL_ACCEPTED, 12, -1);
    rmdir(state_path(state_folder, "journal").text);
    state_rewrite(&j, 12);
    j.retry_ms = 0;
    state_settle(&j, true);
    check_number(log_count("info: state directory: works again"), 1, "told, too");
    state_close(&j, "w12");
}

/* Links, hard links, folders and FIFOs in the place of our files. */
static void
test_journal_links(void)
{
    static const char *const names[] = {"journal", "lock"};
    const char *target = write_file("target", SLICE("precious\n"));
    struct state_path path;
    struct journal j;
    struct err e;

    for (size_t i = 0; i < COUNT(names); i++)
        for (int how = 0; how < 4; how++) {
            state_clear();
            plat_make_folder(state_folder, true);
            path = state_path(state_folder, names[i]);
            check_number(how == 0 ? symlink(target, path.text)
                    : how == 1    ? link(target, path.text)
                    : how == 2    ? mkfifo(path.text, 0600)
                                  : mkdir(path.text, 0700),
                0, path.text);
            check(journal_open(&j, &STATE_CONFIG, false, &e) != 0 &&
                    strncmp(e.text, "butlerWebhook.stateDirectory: cannot ", 37) == 0 &&
                    strstr(e.text, "it is a link, or no plain file") != NULL,
                "%s, %d: %s", names[i], how, e.text);
            journal_done(&j);
            rmdir(path.text);
        }
    check_number(plat_path_len(target), 9, "the target is as it was");
    unlink(target);
}

/* ---- Dead letters ---- */

#define ALERT_JSON                                                                                 \
    "{\"event\":\"Qlik Sense reload aborted\",\"hostName\":\"QS1\",\"user\":\"LAB\\\\g\","         \
    "\"taskName\":\"T\",\"taskId\":\"\",\"appName\":\"A\",\"appId\":\"\",\"logTimeStamp\":\"\","   \
    "\"logLevel\":\"INFO\",\"executionId\":\"\",\"logMessage\":\"M \xf0\x9f\x9a\x80\\n\"}"

#define LETTER_LINE                                                                                \
    "{\"webhookId\":\"msg_1_a_01234567\",\"webhookKey\":\"" KEY1                                   \
    "\",\"webhook\":\"aborted 2 (\\\"a\\\")\",\"description\":\"a\",\"place\":2,\"count\":3,"      \
    "\"url\":\"http://h/\",\"reason\":\"status 404\",\"attempts\":2,"                              \
    "\"acceptedAt\":\"2026-11-22T09:30:00.123Z\",\"deadAt\":\"2026-11-22T09:31:00.123Z\","         \
    "\"alert\":" ALERT_JSON "}"

static void
test_letters(void)
{
    static const char *const bad[] = {"", "x", "{}", "{\"alert\":{}}", "{\"alert\":\"x\"}", "[]",
        "{\"alert\":{\"event\":\"other\"}}", "{\"webhookId\":\"\xff\",\"alert\":" ALERT_JSON "}",
        "[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]"};
    struct webhook_config was;
    struct alert alert = {0};
    struct buf json = {0};
    cJSON *letter = journal_read_letter(SLICE(LETTER_LINE), &was, &alert);

    check_text(json_text(letter, "reason"), "status 404", "reason");
    check_text(was.key, KEY1, "key");
    check_text(was.description, "a", "description");
    check(was.kind == ALERT_ABORTED && was.place == 1 && was.listed == 3, "its place");
    alert_add_json(&alert, &json);
    check_buf(&json, SLICE(ALERT_JSON), "the alert");
    cJSON_Delete(letter);
    for (size_t i = 0; i < COUNT(bad); i++)
        check(!journal_read_letter(slice_of(bad[i]), &was, &alert), "no letter: %s", bad[i]);
    letter = journal_read_letter(SLICE("{\"place\":\"2\",\"alert\":" ALERT_JSON "}"), &was, &alert);
    check(letter && was.place == SIZE_MAX && was.listed == 0 && !*was.key && !*was.description,
        "one that says nothing of its webhook");
    cJSON_Delete(letter);
    alert_done(&alert);
}

/* Gives the disk thread a batch and returns what became of it. */
static int
state_give(struct journal *j, const char *lines)
{
    if (check(!j->asked, "it takes letters"))
        buf_add_text(&j->letters, lines);
    state_settle(j, false);
    return j->letters.len == 0 ? 1 : -1;
}

static void
state_add_letter(struct slice line, void *arg)
{
    buf_add(arg, line.data, line.len);
    buf_add_char(arg, '|');
}

/* Checks the lines of the dead letters, or of those handed over. */
static void
check_letters(struct journal *j, bool handed_over, const char *want)
{
    struct buf got = {0};
    struct err e = {""};

    buf_add(&got, "", 0);
    check(journal_each_letter(
              j, handed_over ? REPLAY_FILES : LETTER_FILES, state_add_letter, &got, &e) >= 0,
        "%s", e.text);
    check_buf(&got, slice_of(want), handed_over ? "handed over" : "dead letters");
}

static void
test_letters_files(void)
{
    struct journal j, cli;
    struct slice line;
    struct err e;
    struct state_path path;
    int64_t now_ms = plat_now_ms() + 2 * LOOK_MS;

    state_clear();
    write_state("dead-letters.ndjson", SLICE("one\ntor"));
    state_open(&j, false, "");
    check_number(state_give(&j, "two\nthree\n"), 1, "a batch");
    check_letters(&j, false, "one|tor|two|three|");
    path = state_path(state_folder, "dead-letters.ndjson");
    check_number(truncate(path.text, LETTERS_FILE_MAX - 4), 0, "a full file");
    check_number(state_give(&j, "four\n"), 1, "a batch");
    check_number(plat_path_len(path.text), -1, "it has become the old one");
    check_number(plat_path_len(state_path(state_folder, "dead-letters.1.ndjson").text),
        LETTERS_FILE_MAX + 2, "with a LF that was missing, and the batch");
    write_state("dead-letters.1.ndjson", SLICE("old\n"));
    mkdir(path.text, 0700);
    check_number(state_give(&j, "five\n"), -1, "a folder");
    state_settle(&j, false);
    check(log_count("error: state directory: cannot write dead-letters.ndjson: it is a link") == 1,
        "it is logged");
    rmdir(path.text);
    state_settle(&j, false);
    check(j.letters.len > 0, "not at once again");
    j.retry_ms = 0;
    check_number(state_give(&j, ""), 1, "again");
    check_number(log_count("dead-letters.ndjson can be written again"), 1, "it is logged");

    state_open(&cli, true, "");
    check_number(journal_hand_over(&cli, &e), 2, "handed over");
    check_letters(&cli, false, "");
    check_letters(&cli, true, "old|five|");
    check_number(state_give(&j, "six\n"), 1, "a new file");
    check(journal_hand_over(&cli, &e) < 0 && strstr(e.text, "a replay is under way"), "%s", e.text);
    check_number(journal_replay_next(&j, j.look_ms - 1, &line), 0, "not looked for yet");
    for (int i = 0; i < 2; i++, now_ms += 2 * LOOK_MS) {
        check_number(journal_replay_next(&j, now_ms, &line), 1, "a line");
        check_bytes(line, i ? SLICE("five") : SLICE("old"), "the line");
        check(journal_replay_next(&j, now_ms, &line) == 0 && j.replay_is_read, "the end");
        check_number(journal_replay_next(&j, now_ms, &line), 0, "it is read once");
        j.replay.unread = 1;
        check(!journal_replay_end(&j) && log_count("ndjson and delete it: ") == 1 &&
                log_count("; it stays") == 1,
            "a part that could not be read");
        j.replay.unread = 0;
        check(journal_replay_end(&j), "journal_replay_end");
        log_begin(LOG_VERBOSE);
        check_number(is_in_state("replay.1.ndjson") + is_in_state("replay.ndjson"), 1 - i, "files");
    }
    check(journal_replay_next(&j, now_ms, &line) == 0 && !j.replay_is_read, "none is left");
    check_number(journal_hand_over(&cli, &e), 1, "the rest");
    check_number(journal_hand_over(&cli, &e), -1, "not yet read");
    remove_state_file("replay.ndjson", NULL);
    check_number(journal_hand_over(&cli, &e), 0, "none");
    path = state_path(state_folder, "dead-letters.ndjson");
    check_number(symlink("/etc/passwd", path.text), 0, "a link");
    check(journal_hand_over(&cli, &e) < 0 && strstr(e.text, "it is a link"), "%s", e.text);
    journal_done(&cli);
    journal_done(&j);
}

static void
test_09(void)
{
    test_journal_records();
    test_line_read();
    test_journal_appends();
    test_journal_damage();
    test_journal_rewriting();
    test_journal_links();
    test_letters();
    test_letters_files();
    state_clear();
    log_begin(LOG_ERROR);
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

/* Frees the client with all calls and connections. */
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
    struct call call;
    struct slice answer[8]; /* one for each request; the last is followed by the end */
    size_t requests, at;
    size_t step; /* most bytes that one read takes; 0: any number */
    bool random; /* a random number up to step */
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
        n = p->random ? 1 + random_below((uint32_t)p->step) : p->step;
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

/* Connects the call to the player, in a state. */
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

/* Readies a player for a webhook with this URL; a state that the call begins with. */
static void
player_begin(struct player *p, int method, const char *url, enum call_state state)
{
    struct err e = {""};

    p->config.timeout_s = 10;
    p->webhook.method = method;
    check(url_parse(slice_of(url), NULL, &p->webhook.url, &e) == 0, "%s: %s", url, e.text);
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
    http_done(&p->http);
    peer_done(&p->peer);
    buf_free(&p->wrote);
}

/* Steps the call until it has come to its end or rests. */
static void
player_run(struct player *p)
{
    static enum call_next (*const states[])(struct call *, int64_t) = {
        [CALL_RECEIVE] = call_receive, [CALL_SKIP] = call_skip};
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

/*
 * Reads an answer as a call does. Gives "STATUS kept", "STATUS closed", or
 * "no: why it is no answer".
 */
static void
play(struct slice stream, size_t step, bool random, struct buf *out)
{
    struct player p = {.answer = {stream}, .step = step, .random = random};
    struct call *call = &p.call;

    player_begin(&p, METHOD_POST, "http://h/", CALL_RECEIVE);
    call->res.end = HTTP_BROKEN;
    player_run(&p);
    check(call->state > CALL_RECEIVE, "there is a result");
    if (call->res.end != HTTP_ANSWERED)
        buf_format(out, "no: %s", call->res.reason.text);
    else /* what is behind the answer may have come with it, or waits */
        buf_format(out, "%d %s", call->res.status,
            call->state == CALL_IDLE && p.at == stream.len ? "kept" : "closed");
    player_done(&p);
}

#define OK "HTTP/1.1 200 OK\r\n"
#define OK2 OK "Content-Length: 2\r\n"

/* Each stream, and what play says of it; of "no" only the start counts. */
static const struct {
    struct slice stream;
    const char *want;
} ANSWER_ROWS[] = {
    {S(OK2 "\r\nok"), "200 kept"},
    {S(OK "Content-Length: 0\r\n\r\n"), "200 kept"},
    {S("HTTP/1.1 200\r\ncontent-length:2\r\n\r\nok"), "200 kept"},
    {S("HTTP/1.1 200 \r\nCONTENT-LENGTH:\t 2 \t\r\n\r\nok"), "200 kept"},
    {S("HTTP/1.1 404 Not Found\nContent-Length: 2\n\nno"), "404 kept"},
    {S("HTTP/1.1 200 \xe5\xff\r\nContent-Length: 0\r\n\r\n"), "200 kept"},
    {S(OK "\r\n"), "200 closed"},
    {S(OK "\r\nwhatever comes"), "200 closed"},
    {S("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"), "200 closed"},
    {S("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"), "200 closed"},
    {S("HTTP/1.9 200 OK\r\nContent-Length: 2\r\n\r\nok"), "200 kept"},
    {S(OK2 "Connection: close\r\n\r\nok"), "200 closed"},
    {S(OK2 "Connection: Foo , CLOSE,bar\r\n\r\nok"), "200 closed"},
    {S(OK2 "Connection: Keep-Alive\r\n\r\nok"), "200 kept"},
    {S(OK2 "Connection: closed\r\n\r\nok"), "200 kept"},
    {S(OK2 "Connection: close\r\nConnection: keep-alive\r\n\r\nok"),
        "200 closed"}, /* RFC 9112, 9.3 */
    {S(OK2 "Connection: close, keep-alive\r\n\r\nok"), "200 closed"},
    {S(OK2 "Connection: ,,\r\nConnection:\r\n\r\nok"), "200 kept"},

    /* 1xx before the answer */
    {S("HTTP/1.1 100 Continue\r\n\r\n" OK2 "\r\nok"), "200 kept"},
    {S("HTTP/1.1 102 Processing\r\nA: b\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" OK2 "\r\nok"),
        "200 kept"},
    {S("HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n" OK2 "\r\nok"), "200 kept"},
    {S("HTTP/1.1 100 Continue\r\n\r\n"), "no: connection closed before an answer"},
    {S("HTTP/1.1 100 Continue\r\n\r\njunk"), "no: the answer is not HTTP"},
    {S("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
        "no: the answer is not HTTP: it switches"},

    /* no HTTP at all */
    {S(""), "no: connection closed before an answer"},
    {S("H"), "no: connection closed before the whole answer"},
    {S("HTTP/1.1 20"), "no: connection closed before the whole answer"},
    {S(OK "A: b\r\n"), "no: connection closed before the whole answer"},
    {S(OK "A: b\r\n\r"), "no: connection closed before the whole answer"},
    {S("x"), "no: the answer is not HTTP: it starts with \"x\""},
    {S("HTTPr"), "no: the answer is not HTTP"},
    {S("<html>\r\n\r\n"), "no: the answer is not HTTP"},
    {S("\r\n" OK2 "\r\nok"), "no: the answer is not HTTP"},
    {S("\0"), "no: the answer is not HTTP"},
    {S("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "no: the answer is not HTTP"},
    {S("\x15\x03\x01\x00\x02\x02\x50"), "no: the answer is not HTTP"},
    {S("220 mail.example ESMTP\r\n"), "no: the answer is not HTTP"},
    {S("http/1.1 200 OK\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/2 200\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1 200 OK\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.1\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.11 200 OK\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.1  200 OK\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.1 2000 OK\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.1 200X\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.1 20\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.1 -12 OK\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.1 000 OK\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.1 099 OK\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.1 11111111111111111111111111111111111111111111111111 OK\r\n\r\n"),
        "no: the answer is not HTTP"},
    {S("HTTP/1.11111111111111111111111111111111111111111111111 200 OK\r\n\r\n"),
        "no: the answer is not HTTP"},
    {S("HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"), "999 kept"},

    /* headers */
    {S(OK "A: b\0c\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.1 200 O\0K\r\n\r\n"), "no: the answer is not HTTP"},
    {S("HTTP/1.1 200 O\rK\r\n\r\n"), "no: the answer is not HTTP"},
    {S(OK "A: b\rc\r\n\r\n"), "no: the answer is not HTTP"},
    {S(OK "A: b\r\r\n\r\n"), "no: the answer is not HTTP"},
    {S(OK "no colon\r\n\r\n"), "no: the answer is not HTTP"},
    {S(OK ": no name\r\n\r\n"), "no: the answer is not HTTP"},
    {S(OK2 "A: b\r\n\tfolded\r\n more\r\n\r\nok"), "200 kept"},
    {S(OK "Content-Length:\r\n 2\r\n\r\nok"), "200 closed"},
    {S(OK "Connection: keep-alive,\r\n close\r\nContent-Length: 2\r\n\r\nok"), "200 kept"},
    {S("HTTP/1.1 200 OK\r\n first\r\nContent-Length: 2\r\n\r\nok"), "200 kept"},
    {S(OK "A:\r\nB:\r\nContent-Length: 2\r\nC: : :\r\n\r\nok"), "200 kept"},

    /* lengths */
    {S(OK2 "\r\no"), "200 closed"},
    {S(OK2 "\r\nok and more"), "200 closed"},
    {S(OK2 "\r\nokHTTP/1.1 500 x\r\n\r\n"), "200 closed"},
    {S(OK2 "Content-Length: 2\r\n\r\nok"), "200 kept"},
    {S(OK2 "Content-Length: 02\r\n\r\nok"), "200 kept"},
    {S(OK2 "Content-Length: 3\r\n\r\nok!"), "200 closed"},
    {S(OK "Content-Length: -2\r\n\r\nok"), "200 closed"},
    {S(OK "Content-Length: +2\r\n\r\nok"), "200 closed"},
    {S(OK "Content-Length: 2x\r\n\r\nok"), "200 closed"},
    {S(OK "Content-Length: \r\n\r\nok"), "200 closed"},
    {S(OK "Content-Length: 2 2\r\n\r\nok"), "200 closed"},
    {S(OK "Content-Length: 0x2\r\n\r\nok"), "200 closed"},
    {S(OK "Content-Length: 18446744073709551618\r\n\r\nok"), "200 closed"},
    {S(OK "Content-Length: 99999999999999999999999999999999\r\n\r\nok"), "200 closed"},

    /* no body */
    {S("HTTP/1.1 204 No Content\r\n\r\n"), "204 kept"},
    {S("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"), "204 kept"},
    {S("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"), "204 kept"},
    {S("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"), "304 kept"},
    {S("HTTP/1.1 204 No Content\r\n\r\njunk"), "204 closed"},

    /* chunks */
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "200 kept"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "200 kept"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\nok\n0\n\n"), "200 kept"},
    {S(OK "Transfer-Encoding: gzip, Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "200 closed"},
    {S(OK "Transfer-Encoding: gzip,\r\n chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        "200 kept"},
    {S(OK "Content-Length: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        "200 kept"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n1;a=\"b;\"\r\no\r\n1 ; c\r\nk\r\n0;x\r\n\r\n"),
        "200 kept"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\nMore: y\r\n\r\n"), "200 kept"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n"), "200 kept"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n0A\r\n0123456789\r\n00\r\n\r\n"), "200 kept"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\na\r\n01234\r\n789\r\n0\r\n\r\n"), "200 kept"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nmore"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\r\no"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\nok"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\nok\r\n"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\nok"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nok"), "200 closed"},
    {S(OK "Content-Length: 65537\r\n\r\nok"), "200 closed"},
    {S(OK "Connection: close\r\nContent-Length: x\r\n\r\nok"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n\r\nok"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n-2\r\nok"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n0x2\r\nok"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\0\r\nok"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nok"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\nok\r\n0\r\n\r\n"), "200 closed"},
    {S(OK "Transfer-Encoding: chunked, gzip\r\n\r\n2\r\nok"), "200 closed"},
    {S(OK "Transfer-Encoding: notchunked\r\n\r\n2\r\nok"), "200 closed"},
    {S(OK2 "Transfer-Encoding: identity\r\n\r\nok to the end"), "200 closed"},
};

/* Plays a stream in one piece, byte by byte, and in random pieces: always with the same result. */
static void
check_answer(struct slice stream, const char *want, const char *what)
{
    static const struct {
        size_t step;
        bool random;
    } ways[] = {{0, false}, {1, false}, {2, false}, {7, true}, {40, true}};
    bool start_only = strncmp(want, "no:", 3) == 0;

    for (size_t i = 0; i < COUNT(ways); i++) {
        struct buf got = {0};
        play(stream, ways[i].step, ways[i].random, &got);
        bool ok = start_only ? strncmp(got.data, want, strlen(want)) == 0
                             : strcmp(got.data, want) == 0;
        check(ok, "%s in pieces of %zu: got \"%s\", wanted \"%s\"", what, ways[i].step, got.data,
            want);
        buf_free(&got);
        if (!ok)
            return;
    }
}

/* Answers whose size is what matters. */
static void
test_http_bounds(void)
{
    struct buf b = {0};

    for (int size = 18000; size <= 100000; size += 82000) {
        buf_add_text(&b, OK2 "Long: ");
        for (int i = 0; i < size; i++)
            buf_add_char(&b, 'x');
        buf_add_text(&b, "\r\n\r\nok");
        check_answer((struct slice){b.data, b.len},
            size == 18000 ? "200 kept" : "no: the answer is not HTTP: its head is longer",
            "a long header");
        buf_free(&b);
    }
    for (size_t over = 0; over < 2; over++) { /* a head of just the largest size */
        buf_add_text(&b, OK2 "Long: ");
        while (b.len < HEAD_MAX - 4 + over)
            buf_add_char(&b, 'x');
        buf_add_text(&b, "\r\n\r\nok");
        check_answer((struct slice){b.data, b.len},
            over ? "no: the answer is not HTTP: its head is longer" : "200 kept",
            "the longest head");
        buf_free(&b);
    }
    buf_add_text(&b, OK2);
    for (int i = 1; i < 1000; i++)
        buf_add_text(&b, "A: b\r\n");
    buf_add_text(&b, "\r\nok");
    check_answer((struct slice){b.data, b.len}, "200 kept", "many headers");
    buf_free(&b);
    for (int i = 0; i < 100; i++)
        buf_add_text(&b, "HTTP/1.1 100 Continue\r\n\r\n");
    buf_add_text(&b, OK2 "\r\nok");
    check_answer((struct slice){b.data, b.len}, "200 kept", "interim answers");
    buf_free(&b);
    for (int form = 0; form < 3; form++) /* bodies below and above SKIP_MAX */
        for (int size = 60000; size <= 120000; size += 60000) {
            if (form == 0)
                buf_format(&b, OK "Content-Length: %d\r\n\r\n", size);
            else if (form == 1)
                buf_format(&b, OK "Transfer-Encoding: chunked\r\n\r\n%x\r\n", (unsigned)size);
            else
                buf_add_text(&b, OK "Transfer-Encoding: chunked\r\n\r\n");
            for (int i = 0; i < size; i++)
                buf_add_char(&b, '0');
            if (form > 0)
                buf_add_text(&b, "\r\n0\r\n\r\n");
            check_answer((struct slice){b.data, b.len},
                form == 2 || size > SKIP_MAX ? "200 closed" : "200 kept", "a large body");
            buf_free(&b);
        }
}

/* Bodies of random chunks, fed in random pieces: the same end, and not a byte more. */
static void
test_http_chunks(void)
{
    int wrong = 0;

    for (int round = 0; round < 2000; round++) {
        struct http_head h = {.chunked = true};
        int64_t len = BODY_MORE;
        struct buf b = {0};
        size_t have = 0, end;
        for (uint32_t chunks = random_below(5); chunks > 0; chunks--) {
            uint32_t size = 1 + random_below(40);
            buf_format(&b, random_below(2) ? "%x" : "%04X", size);
            buf_add_text(&b, random_below(3) ? "" : ";x=\"0\"");
            buf_add_text(&b, random_below(2) ? "\r\n" : "\n");
            for (uint32_t i = 0; i < size; i++)
                buf_add_char(&b, "0\r\n;"[random_below(4)]);
            buf_add_text(&b, random_below(2) ? "\r\n" : "\n");
        }
        buf_add_text(&b, random_below(2) ? "0\r\n" : "000\n");
        buf_add_text(&b, random_below(2) ? "A: b\r\nC\n" : "");
        buf_add_text(&b, random_below(2) ? "\r\n" : "\n");
        end = b.len;
        buf_add_text(&b, "0\r\n\r\nmore");
        while (len == BODY_MORE && have < b.len) {
            have += 1 + random_below(20);
            have = have > b.len ? b.len : have;
            struct slice in = exact((struct slice){b.data, have});
            len = http_body_len(&h, in);
            exact_free(in);
        }
        wrong += len != (int64_t)end;
        buf_free(&b);
    }
    check_number(wrong, 0, "2,000 bodies of random chunks: wrong ends");
}

static void
test_http_heads(void)
{
    static const struct {
        struct slice headers;
        const char *location;
        const char *retry_after;
    } rows[] = {
        {S(""), NULL, NULL}, {S("Location: /x\r\n"), "/x", NULL},
        {S("LOCATION:\t http://h/ x \t\r\n"), "http://h/ x", NULL}, {S("Location:\r\n"), "", NULL},
        {S("Location:\r\n /x\r\n"), "", NULL}, {S("Location: /a\r\nLocation: /b\r\n"), "", NULL},
        {S("Location: a:b\r\nLocations: /c\r\nX-Location: /d\r\n"), "a:b", NULL},
        {S("Retry-After: 120\r\n"), NULL, "120"},
        {S("Retry-After: 1\r\nretry-after: 2\r\n"), NULL, "1"},
        {S("Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), NULL,
            "Sun, 06 Nov 1994 08:49:37 GMT"},
        {S("A: b\r\n Location: /x\r\n"), NULL, NULL}, /* continues A */
    };
    struct http_head h;
    struct err e;
    struct buf b = {0};

    for (size_t i = 0; i < COUNT(rows); i++) {
        buf_add_text(&b, "HTTP/1.1 302 Found\r\n");
        buf_add(&b, rows[i].headers.data, rows[i].headers.len);
        buf_add_text(&b, "\r\n");
        struct slice head = exact((struct slice){b.data, b.len});
        const char *what = show(rows[i].headers);
        if (check(http_parse_head(head, &h, &e) == 0, "%s: %s", what, e.text)) {
            check_number(h.status, 302, what);
            check((h.location.data != NULL) == (rows[i].location != NULL), "%s: a location or none",
                what);
            if (rows[i].location)
                check_bytes(h.location, slice_of(rows[i].location), what);
            check((h.retry_after.data != NULL) == (rows[i].retry_after != NULL),
                "%s: Retry-After or none", what);
            if (rows[i].retry_after)
                check_bytes(h.retry_after, slice_of(rows[i].retry_after), what);
        }
        exact_free(head);
        buf_free(&b);
    }
    check_number((long long)http_head_len(SLICE("HTTP/1.1 200 OK\r\n\r\n")), 19, "end of a head");
    check_number((long long)http_head_len(SLICE("HTTP/1.1 200 OK\r\n\r")), 0, "not yet");
    check_number((long long)http_head_len(SLICE("A\n\nB\n\n")), 3, "the first end");
}

static void
test_http_dates(void)
{
    static const int64_t now = 784111777; /* Sun, 06 Nov 1994 08:49:37 GMT */
    static const struct {
        struct slice text;
        int64_t after;
    } rows[] = {
        {S("0"), 0},
        {S("1"), 1},
        {S("120"), 120},
        {S("0120"), 120},
        {S("3600"), 3600},
        {S("3601"), 3600},
        {S("4294967297"), 3600},
        {S("99999999999999999999999999999999"), 3600},
        {S(""), -1},
        {S("-1"), -1},
        {S("+1"), -1},
        {S("1.5"), -1},
        {S("1e3"), -1},
        {S("0x10"), -1},
        {S("10 s"), -1},
        {S("soon"), -1},
        {S("Sun, 06 Nov 1994 08:49:37 GMT"), 0},
        {S("Sun, 06 Nov 1994 08:50:37 GMT"), 60},
        {S("Sun, 06 Nov 1994 09:49:37 GMT"), 3600},
        {S("Mon, 07 Nov 1994 00:00:00 GMT"), 3600},
        {S("Sun, 06 Nov 2138 08:49:37 GMT"), 3600},
        {S("Sat, 36 Nov 1994 99:99:99 GMT"), 3600}, /* no such time, but bounded */
        {S("Sun, 06 Nov 1994 08:49:36 GMT"), 0},
        {S("Thu, 01 Jan 1970 00:00:00 GMT"), 0},
        {S("Sun, 06 Nov 1994 08:50:60 GMT"), 83}, /* a leap second */
        {S("sun, 06 Nov 1994 08:50:37 GMT"), 60},
        {S("Sun, 06 NOV 1994 08:50:37 GMT"), -1},
        {S("Sunday, 06-Nov-94 08:50:37 GMT"), -1}, /* RFC 850 */
        {S("Sun Nov  6 08:50:37 1994"), -1},       /* asctime */
        {S("Sun, 06 Nov 1994 08:50:37"), -1},      /* no zone, or another one */
        {S("Sun, 06 Nov 1994 08:50:37 CET"), -1},
        {S("Sun, 06 Nov 1994 08:50:37 +0100"), -1},
        {S("Sun, 06 Nov 1994 08:50:37 GMT!"), -1},
        {S("Sun, 06 Nov 1994 8:5"), -1},
        {S("Sun, 06 Nuv 1994 08:50:37 GMT"), -1},
        {S("Sun, 06 No 1994 08:50:37 GMT"), -1},
        {S("1994-11-06T08:50:37Z"), -1},
        {S("Sunsunsunsunsunsunsunsunsunsunsunsunsunsunsun, 06 Nov 1994 08:50:37 GMT"), -1},
    };
    int wrong = 0;

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf line = {0}; /* as in a head, where more follows */
        buf_add(&line, rows[i].text.data, rows[i].text.len);
        buf_add_text(&line, "\r\n");
        check_number(http_read_retry_after((struct slice){line.data, rows[i].text.len}, now),
            rows[i].after, show(rows[i].text));
        buf_free(&line);
    }
    for (int i = 0; i < 20000; i++) {
        struct tm t = {.tm_year = (int)(70 + random_below(300)),
            .tm_mon = (int)random_below(12),
            .tm_mday = (int)(1 + random_below(28)),
            .tm_hour = (int)random_below(24)};
        char text[64];
        int64_t s = timegm(&t);
        strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &t);
        wrong += http_read_retry_after(slice_of(text), s - 77) != 77;
    }
    check_number(wrong, 0, "20,000 random dates: other than the C library says");
}

static void
test_http_redirects(void)
{
    static const struct {
        int status;
        bool get, post, put;
    } statuses[] = {{300, false, false, false}, {301, true, false, true}, {302, true, false, true},
        {303, true, false, false}, {304, false, false, false}, {305, false, false, false},
        {307, true, true, true}, {308, true, true, true}, {309, false, false, false},
        {200, false, false, false}, {404, false, false, false}};
    /* from, Location headers, then where it leads: origin, target, user, or the reason why not */
    static const struct {
        const char *from, *locations, *origin, *target, *auth, *reason;
    } rows[] = {
        {"http://h/a", "Location: /b\r\n", "http://h", "/b", NULL, NULL},
        {"http://h/a/b?c", "Location: d\r\n", "http://h", "/a/d", NULL, NULL},
        {"http://u:p@h/a", "Location: /b\r\n", "http://h", "/b", NULL, NULL},
        {"http://u:p@h/a", "Location: http://h/b\r\n", "http://h", "/b", NULL, NULL},
        {"http://u:p@h/a", "Location: HTTP://H:80/b\r\n", "http://h", "/b", NULL, NULL},
        {"http://u:p@h/a", "Location: http://x:y@h/b\r\n", "http://h", "/b", "x:y", NULL},
        {"http://u:p@h/a", "Location: https://h:80/b\r\n", "https://h:80", "/b", NULL, NULL},
        {"http://u:p@h/a", "Location: http://h:81/b\r\n", NULL, NULL, NULL, "another port"},
        {"http://u:p@h/a", "Location: https://h/b\r\n", NULL, NULL, NULL, "another port"},
        {"http://u:SECRET@h/a", "Location: http://g/b\r\n", NULL, NULL, NULL, "another host"},
        {"http://h/a", "Location: http://h:81/b\r\n", "http://h:81", "/b", NULL, NULL},
        {"http://h/a", "Location: https://h/b\r\n", "https://h", "/b", NULL, NULL},
        {"http://h/a", "Location: http://h.example/b\r\n", NULL, NULL, NULL, "another host"},
        {"http://h/a", "Location: http://h./b\r\n", NULL, NULL, NULL, "another host"},
        {"https://u:p@h/a", "Location: https://h:443/b#c\r\n", "https://h", "/b", NULL, NULL},
        {"https://h/a", "Location: //g/b\r\n", NULL, NULL, NULL, "another host"},
        {"https://h/a", "Location: http://h/b\r\n", NULL, NULL, NULL, "from https to http"},
        {"https://h/a", "Location: http://u:SECRET@h/b?c=SECRET\r\n", NULL, NULL, NULL, "refused"},
        {"http://h/a", "", NULL, NULL, NULL, "with no Location"},
        {"http://h/a", "Location:\r\n", NULL, NULL, NULL, "with no Location"},
        {"http://h/a", "Location: /b\r\nLocation: /c\r\n", NULL, NULL, NULL, "several"},
        {"http://h/a", "Location: http://\r\n", NULL, NULL, NULL, "cannot be called"},
        {"http://h/a", "Location: file:///etc/passwd\r\n", NULL, NULL, NULL, "cannot be called"},
        {"http://h/a", "Location: data:,x\r\n", NULL, NULL, NULL, "cannot be called"},
        {"http://h/a", "Location: http://u:SECRET@h:99999/\r\n", NULL, NULL, NULL,
            "cannot be called"},
    };
    struct err e;

    for (size_t i = 0; i < 3 * COUNT(statuses); i++) {
        struct player p = {0};
        int status = statuses[i / 3].status, method = (int)(i % 3);
        bool want = method == METHOD_GET ? statuses[i / 3].get
            : method == METHOD_POST      ? statuses[i / 3].post
                                         : statuses[i / 3].put;
        player_begin(&p, method, "http://h/a", CALL_RECEIVE);
        p.call.head = (struct http_head){.status = status, .location = slice_of("/b")};
        check(call_judge(&p.call) == want, "%s follows %d", METHODS[method], status);
        player_done(&p);
    }
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct player p = {0};
        struct call *call = &p.call;
        struct buf head = {0};
        buf_format(&head, "HTTP/1.1 307 Temporary Redirect\r\n%s\r\n", rows[i].locations);
        player_begin(&p, METHOD_POST, rows[i].from, CALL_RECEIVE);
        check_number(http_parse_head((struct slice){head.data, head.len}, &call->head, &e), 0,
            rows[i].locations);
        bool followed = call_follow(call);
        check(followed == (rows[i].origin != NULL), "%s from %s", rows[i].locations, rows[i].from);
        if (followed && rows[i].origin) {
            check_url(call->url, rows[i].origin, rows[i].target, rows[i].auth, rows[i].locations);
            check_text(call->res.hint.text, "", "no hint");
        } else
            check(rows[i].reason && strstr(call->res.reason.text, rows[i].reason) &&
                    !strstr(call->res.reason.text, "SECRET") &&
                    !strstr(call->res.hint.text, "SECRET") &&
                    strstr(call->res.hint.text, "change webhookURL"),
                "%s: %s; %s", rows[i].locations, call->res.reason.text, call->res.hint.text);
        call->hops = REDIRECTS_MAX;
        check(!call_follow(call) && call->hops == REDIRECTS_MAX, "the sixth is not followed");
        player_done(&p);
        buf_free(&head);
    }
}

static void
test_http_statuses(void)
{
    static const struct {
        int status;
        const char *location, *reason, *hint;
    } rows[] = {
        {200, "", "", ""},
        {300, "Location: /b\r\n", "status 300", ""},
        {301, "Location: http://u:SECRET@g/b?c=SECRET\r\n", "status 301 leads to another host",
            "moved to http://g/b?\xe2\x80\xa6"},
        {302, "Location: /b\r\n", "status 302", "moved to http://h/b, change webhookURL"},
        {303, "Location: b\r\n", "status 303", "moved to http://h/a/b, change webhookURL"},
        {303, "", "status 303 with no Location", "change webhookURL"},
        {301, "Location: ftp://g/\r\n", "status 301 with no Location, several, or one that cannot",
            "change webhookURL"},
        {304, "", "status 304", ""},
        {401, "", "status 401", "check the credentials"},
        {403, "", "status 403", "check the credentials"},
        {404, "", "status 404", "check webhookURL"},
        {407, "", "status 407", "check the proxy's password"},
        {410, "", "status 410", "gone: remove or change webhookURL"},
        {418, "", "status 418", ""},
        {500, "", "status 500", ""},
    };
    struct err e;

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct player p = {0};
        struct http_result *res = &p.call.res;
        struct buf head = {0};
        player_begin(&p, METHOD_POST, "http://h/a/x", CALL_RECEIVE);
        buf_format(&head, "HTTP/1.1 %d X\r\n%s\r\n", rows[i].status, rows[i].location);
        check_number(
            http_parse_head((struct slice){head.data, head.len}, &p.call.head, &e), 0, "head");
        check(!call_judge(&p.call), "%d is final", rows[i].status);
        check_number(res->status, rows[i].status, "status");
        check(strncmp(res->reason.text, rows[i].reason, strlen(rows[i].reason)) == 0,
            "reason of %d: \"%s\"", rows[i].status, res->reason.text);
        check(strncmp(res->hint.text, rows[i].hint, strlen(rows[i].hint)) == 0 &&
                (*rows[i].hint || !*res->hint.text),
            "hint of %d: \"%s\"", rows[i].status, res->hint.text);
        player_done(&p);
        buf_free(&head);
    }
}

static void
test_tls_words(void)
{
    static const struct {
        uint32_t flags;
        const char *reason;
    } rows[] = {
        {MBEDTLS_X509_BADCERT_EXPIRED, "it has expired"},
        {MBEDTLS_X509_BADCERT_EXPIRED | MBEDTLS_X509_BADCERT_NOT_TRUSTED, "it has expired"},
        {MBEDTLS_X509_BADCERT_FUTURE, "it is not valid yet"},
        {MBEDTLS_X509_BADCERT_NOT_TRUSTED, "nobody that is trusted has signed it"},
        {MBEDTLS_X509_BADCERT_CN_MISMATCH, "it is not for this host name"},
        {MBEDTLS_X509_BADCERT_CN_MISMATCH | MBEDTLS_X509_BADCERT_NOT_TRUSTED,
            "nobody that is trusted"},
        {MBEDTLS_X509_BADCERT_EXT_KEY_USAGE, "it is too weak, or not meant for a server"},
        {MBEDTLS_X509_BADCERT_BAD_KEY, "it is too weak"},
        {1u << 31, "it is too weak"},
    };
    struct conn c = {.about = {"\"CN=a\", issued by itself"}};
    struct http_result res = {0};

    for (size_t i = 0; i < COUNT(rows) * 2; i++) { /* found by us, or by the library later */
        uint32_t flags = rows[i / 2].flags;
        c.faults = i % 2 ? flags : 0;
        tls_explain(&c, MBEDTLS_ERR_X509_CERT_VERIFY_FAILED, flags, "h.example", &res);
        check(strstr(res.reason.text, rows[i / 2].reason) && *res.hint.text, "%08x: %s", flags,
            res.reason.text);
        check(strstr(res.reason.text,
                  "certificate not trusted: \"CN=a\", issued by itself, "
                  "shown by h.example: "),
            "which certificate: %s", res.reason.text);
    }
    tls_explain(&c, MBEDTLS_ERR_SSL_INVALID_RECORD, 0, "h", &res);
    check(strstr(res.reason.text, "does not speak TLS"), "%s", res.reason.text);
    tls_explain(&c, -0x1234, 0, "h", &res);
    check(strstr(res.reason.text, "-0x1234") != NULL, "an unknown error: %s", res.reason.text);
}

/* The JSON of the alert that a datagram holds. The caller frees it with buf_free. */
static struct buf
json_of(struct slice datagram)
{
    struct alert alert = alert_of(datagram);
    struct buf json = {0};

    alert_add_json(&alert, &json);
    alert_done(&alert);
    return json;
}

/* Replaces the seconds behind webhook-timestamp with N, after a look at them. */
static void
hide_timestamps(struct buf *b)
{
    static const char name[] = "webhook-timestamp: ";
    struct buf out = {0};
    char *at, *from = b->data;

    while ((at = memmem(from, b->len - (size_t)(from - b->data), name, strlen(name)))) {
        char *digits = at + strlen(name), *end;
        long long seconds = strtoll(digits, &end, 10);
        check(llabs(seconds - plat_wall_ms() / 1000) < 30 && *end == '\r',
            "webhook-timestamp: %lld", seconds);
        buf_add(&out, from, (size_t)(digits - from));
        buf_add_char(&out, 'N');
        from = end;
    }
    buf_add(&out, from, b->len - (size_t)(from - b->data));
    buf_free(b);
    *b = out;
}

#define COMMON "User-Agent: " USER_AGENT "\r\nAccept: application/json, text/plain, */*\r\n"
#define IDENTITY "webhook-id: msg_1\r\nwebhook-timestamp: N\r\n"
#define BODY                                                                                                 \
    "{\"event\":\"Qlik Sense reload failed\",\"hostName\":\"QS1\",\"user\":\"LAB\\\\g\",\"taskName\":\"T\"," \
    "\"taskId\":\"" TASK_ID "\",\"appName\":\"A\",\"appId\":\"" APP_ID                                       \
    "\",\"logTimeStamp\":\"" WHEN "\","                                                                      \
    "\"logLevel\":\"INFO\",\"executionId\":\"" RUN_ID "\",\"logMessage\":\"M\"}"

static void
test_http_requests(void)
{
    static const struct {
        const char *proxy;
        int method;
        const char *url;
        bool is_test;
        const char *request;
    } rows[] = {
        {NULL, METHOD_POST, "http://h:81/a?b#c", false,
            "POST /a?b HTTP/1.1\r\nHost: h:81\r\n" COMMON
            "Content-Type: application/json\r\nContent-Length: 322\r\n" IDENTITY "\r\n" BODY},
        {NULL, METHOD_PUT, "http://u:p@H/", true,
            "PUT / HTTP/1.1\r\nHost: h\r\n" COMMON
            "Authorization: Basic dTpw\r\nContent-Type: application/json\r\n"
            "Content-Length: 322\r\n" IDENTITY "webhook-test: true\r\n\r\n" BODY},
        {NULL, METHOD_GET, "http://[::1]/a b", false,
            "GET /a%20b?" QUERY("M") " HTTP/1.1\r\nHost: [::1]\r\n" COMMON IDENTITY "\r\n"},
        {"http://x:y@p", METHOD_GET, "http://u:p@h:80/?z=1", false,
            "GET http://h/?z=1&" QUERY("M") " HTTP/1.1\r\nHost: h\r\n" COMMON
                                            "Authorization: Basic dTpw\r\n"
                                            "Proxy-Authorization: Basic eDp5\r\n" IDENTITY "\r\n"},
    };
    struct buf json = json_of(SLICE(FAILED ";QS1;T;A;LAB\\g;" IDS ";M"));

    check_number((long long)strlen(BODY), 322, "length of the body");
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct player p = {0};
        struct url proxy = {0};
        struct err e;
        if (rows[i].proxy) {
            check_number(url_parse(slice_of(rows[i].proxy), NULL, &proxy, &e), 0, "proxy");
            p.webhook.proxy = &proxy;
        }
        player_begin(&p, rows[i].method, rows[i].url, CALL_RESOLVE);
        p.call.request = (struct http_request){{json.data, json.len}, "msg_1", rows[i].is_test};
        call_send(&p.call);
        const char *target = strchr(strchr(p.wrote.data, ' ') + (rows[i].proxy ? 9 : 0), '/');
        check_number(
            (long long)p.call.target_len, (long long)strcspn(target, " "), "length of the target");
        hide_timestamps(&p.wrote);
        check_buf(&p.wrote, slice_of(rows[i].request), rows[i].url);
        player_done(&p);
        url_done(&proxy);
    }
    buf_free(&json);
}

/* What a socket does not take at once is sent later, in order; when it breaks it is dropped. */
static void
test_conn_flush(void)
{
    struct buf sent = {0}, came = {0};

    for (int i = 0; i < 200000; i++)
        buf_format(&sent, "%d ", i);
    for (int breaks = 0; breaks < 2; breaks++) {
        struct player p = {0};
        struct conn *conn = &p.call.conn;
        int pair[2], rounds = 0;
        player_begin(&p, METHOD_POST, "http://h/", CALL_CLOSED);
        check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0, "sockets");
        conn->sock = pair[0];
        conn_plain_write(conn, (unsigned char *)sent.data, sent.len / 2);
        check(conn->out.len > 0, "not all is taken at once");
        conn_plain_write(conn, (unsigned char *)sent.data + sent.len / 2, sent.len - sent.len / 2);
        while (came.len < sent.len && pair[1] >= 0 && rounds++ < 100000) {
            buf_reserve(&came, 50000);
            int n = plat_recv(pair[1], came.data + came.len, 50000);
            came.len += n > 0 ? (size_t)n : 0;
            if (breaks && rounds == 3) {
                plat_close(pair[1]);
                pair[1] = -1;
            }
            call_step(&p.call, 0);
        }
        check_number((long long)conn->out.cap, 0, "nothing waits");
        if (!breaks)
            check(same((struct slice){came.data, came.len}, (struct slice){sent.data, sent.len}),
                "all of it, in order");
        buf_free(&came);
        player_done(&p);
        plat_close(pair[1]);
    }
    buf_free(&sent);
}

/* Where nobody reads, a flood of answers of the TLS library ends the call; nothing of it rests. */
static void
test_conn_bounds(void)
{
    struct player p = {0};
    struct conn *conn = &p.call.conn;
    unsigned char data[10000] = {0};
    int pair[2], n = 0, rounds = 0;

    player_begin(&p, METHOD_POST, "http://h/", CALL_IDLE);
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0, "sockets");
    conn->sock = pair[0];
    conn->read = conn_plain_read;
    check_number(call_idle(&p.call, plat_now_ms()), CALL_WAIT, "it rests");
    do
        n = conn_plain_write(conn, data, sizeof data);
    while (n == sizeof data && ++rounds < 1000);
    check(n < 0 && conn->out.len <= UNSENT_MAX + sizeof data, "%d after %d rounds: %zu bytes wait",
        n, rounds, conn->out.len);
    check(call_idle(&p.call, plat_now_ms()) == CALL_GO_ON && p.call.state == CALL_CLOSED,
        "it does not rest with that");
    player_done(&p);
    plat_close(pair[1]);
}

#define MOVED(to) S("HTTP/1.1 308 X\r\nLocation: " to "\r\nContent-Length: 0\r\n\r\n")

/* Calls with answers that are made up. */
static void
test_http_calls(void)
{
    static const struct {
        int method;
        const char *url;
        struct slice answer[8];
        enum http_end end;
        int status;
        int64_t retry_after_s;
        const char *reason, *hint;
        const char *lines; /* first lines of the requests */
    } rows[] = {
        {METHOD_POST, "http://h/a", {S(OK2 "\r\nok")}, HTTP_ANSWERED, 200, -1, "", "",
            "POST /a HTTP/1.1\n"},
        {METHOD_POST, "http://h/a",
            {S("HTTP/1.1 503 X\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n")}, HTTP_ANSWERED,
            503, 7, "status 503", "", "POST /a HTTP/1.1\n"},
        {METHOD_POST, "http://h/a",
            {S("HTTP/1.1 307 X\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n"), S(OK2 "\r\nok")},
            HTTP_ANSWERED, 200, -1, "", "", "POST /a HTTP/1.1\nPOST /b HTTP/1.1\n"},
        {METHOD_PUT, "http://h/a",
            {S("HTTP/1.1 301 X\r\nLocation: b?c\r\nContent-Length: 2\r\n\r\nno"), S(OK2 "\r\nok")},
            HTTP_ANSWERED, 200, -1, "", "", "PUT /a HTTP/1.1\nPUT /b?c HTTP/1.1\n"},
        {METHOD_POST, "http://h/a",
            {S("HTTP/1.1 301 X\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n")}, HTTP_ANSWERED, 301,
            -1, "status 301", "moved to http://h/b, change webhookURL", "POST /a HTTP/1.1\n"},
        {METHOD_GET, "http://h/a?x=1",
            {S("HTTP/1.1 303 X\r\nLocation: /b?z=1\r\nContent-Length: 0\r\n\r\n"), S(OK2 "\r\nok")},
            HTTP_ANSWERED, 200, -1, "", "",
            "GET /a?x=1&" QUERY("M") " HTTP/1.1\nGET /b?z=1&" QUERY("M") " HTTP/1.1\n"},
        {METHOD_PUT, "http://h/a",
            {MOVED("/1"), MOVED("/2"), MOVED("/3"), MOVED("/4"), MOVED("/5"), S(OK2 "\r\nok")},
            HTTP_ANSWERED, 200, -1, "", "",
            "PUT /a HTTP/1.1\nPUT /1 HTTP/1.1\nPUT /2 HTTP/1.1\nPUT /3 HTTP/1.1\nPUT /4 HTTP/1.1\n"
            "PUT /5 HTTP/1.1\n"},
        {METHOD_PUT, "http://h/a",
            {MOVED("/a"), MOVED("/a"), MOVED("/a"), MOVED("/a"), MOVED("/a"), MOVED("/a")},
            HTTP_ANSWERED, 308, -1, "status 308, too many redirects",
            "moved to http://h/a, change webhookURL",
            "PUT /a HTTP/1.1\nPUT /a HTTP/1.1\nPUT /a HTTP/1.1\n"
            "PUT /a HTTP/1.1\nPUT /a HTTP/1.1\nPUT /a HTTP/1.1\n"},
        {METHOD_POST, "http://h/a", {S("")}, HTTP_BROKEN, 0, -1,
            "connection closed before an answer", "", "POST /a HTTP/1.1\n"},
        {METHOD_POST, "http://h/a", {S("junk")}, HTTP_BROKEN, 0, -1,
            "the answer is not HTTP: it starts with \"junk\"", "", "POST /a HTTP/1.1\n"},
        {METHOD_GET, "http://h/a?x=1", /* the new query has the fields */
            {S("HTTP/1.1 307 X\r\nLocation: /b?executionId=1\r\nContent-Length: 0\r\n\r\n"),
                S(OK2 "\r\nok")},
            HTTP_ANSWERED, 200, -1, "", "",
            "GET /a?x=1&" QUERY("M") " HTTP/1.1\nGET /b?executionId=1 HTTP/1.1\n"},
        {METHOD_GET, "http://h/a?executionId=1", {S(OK2 "\r\nok")}, HTTP_ANSWERED, 200, -1, "", "",
            "GET /a?executionId=1&" QUERY("M") " HTTP/1.1\n"},
    };
    struct buf json = json_of(SLICE(FAILED ";QS1;T;A;LAB\\g;" IDS ";M"));

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct player p = {.step = i % 3};
        const struct http_result *res = &p.call.res;
        struct buf lines = {0};
        memcpy(p.answer, rows[i].answer, sizeof p.answer);
        player_begin(&p, rows[i].method, rows[i].url, CALL_RESOLVE);
        p.call.request = (struct http_request){{json.data, json.len}, "msg_1", false};
        player_run(&p);
        check(res->end == rows[i].end && res->status == rows[i].status, "%s: end %d, status %d",
            rows[i].lines, (int)res->end, res->status);
        check_number(res->retry_after_s, rows[i].retry_after_s, "Retry-After");
        check_text(res->reason.text, rows[i].reason, "reason");
        check_text(res->hint.text, rows[i].hint, "hint");
        for (char *at = p.wrote.data; at; at = strstr(at + 1, METHODS[rows[i].method])) {
            buf_add(&lines, at, strcspn(at, "\r"));
            buf_add_char(&lines, '\n');
        }
        check_buf(&lines, slice_of(rows[i].lines), "requests");
        player_done(&p);
    }
    buf_free(&json);
}

/* A GET that is refused for its length is sent once more, cut; any other is not. */
static void
test_http_too_long(void)
{
    static const struct {
        int method;
        size_t message; /* bytes */
        int status;
        size_t requests;
    } rows[] = {
        {METHOD_GET, 3000, 404, 2},
        {METHOD_GET, 3000, 400, 2},
        {METHOD_GET, 3000, 414, 2},
        {METHOD_GET, 3000, 431, 2},
        {METHOD_GET, 3000, 403, 1},
        {METHOD_GET, 3000, 500, 1},
        {METHOD_GET, 3000, 200, 1},
        {METHOD_GET, 100, 404, 1},
        {METHOD_POST, 3000, 414, 1},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct player p = {0};
        struct buf datagram = {0}, answer = {0};
        buf_add_text(&datagram, FAILED ";QS1;T;A;LAB\\g;" IDS ";");
        for (size_t k = 0; k < rows[i].message; k++)
            buf_add_char(&datagram, 'x');
        buf_format(&answer, "HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n", rows[i].status);
        struct buf json = json_of((struct slice){datagram.data, datagram.len});
        p.answer[0] = p.answer[1] = p.answer[2] = (struct slice){answer.data, answer.len};
        player_begin(&p, rows[i].method, "http://h/a", CALL_RESOLVE);
        p.call.request = (struct http_request){{json.data, json.len}, "msg_1", false};
        player_run(&p);
        check_number(p.call.res.status, rows[i].status, "the status that counts");
        check(p.requests == rows[i].requests, "%s answered %d: %zu requests",
            METHODS[rows[i].method], rows[i].status, p.requests);
        if (p.requests == 2) {
            const char *second = strstr(p.wrote.data + 4, "GET ");
            check(second && strcspn(second + 4, " ") == GET_TARGET_MAX,
                "the second target is %zu bytes long", second ? strcspn(second + 4, " ") : 0);
        }
        player_done(&p);
        buf_free(&json);
        buf_free(&datagram);
        buf_free(&answer);
    }
    log_forget();
}

/* A proxy's answers to CONNECT. */
static void
test_http_tunnel(void)
{
    static const struct {
        const char *proxy, *url;
        struct slice answer;
        const char *reason, *hint; /* NULL: the tunnel is open */
        const char *request;
    } rows[] = {
        {"http://p:3128", "https://h/x", S("HTTP/1.1 200 Connection established\r\n\r\n"), NULL, "",
            "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\nUser-Agent: " USER_AGENT "\r\n\r\n"},
        {"http://u:p@p", "https://w:z@[::1]:8443/x?y", S("HTTP/1.0 204 No Content\r\nA: b\r\n\r\n"),
            NULL, "",
            "CONNECT [::1]:8443 HTTP/1.1\r\nHost: [::1]:8443\r\nUser-Agent: " USER_AGENT
            "\r\nProxy-Authorization: Basic dTpw\r\n\r\n"},
        {"http://p", "https://h/", S("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), NULL,
            "", NULL},
        {"http://p", "https://h/", S("HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n"),
            "proxy http://p/: it answered CONNECT with status 405", "", NULL},
        {"http://p", "https://h/", S("HTTP/1.1 400 No\r\n\r\n<html>no</html>"),
            "proxy http://p/: it answered CONNECT with status 400", "", NULL},
        {"http://u:SECRET@p", "https://h/", S("HTTP/1.1 407 No\r\n\r\n"),
            "proxy http://p/: it answered CONNECT with status 407", "check the proxy's password",
            NULL},
        {"http://p", "https://h/", S("HTTP/1.1 301 No\r\nLocation: http://g/\r\n\r\n"),
            "proxy http://p/: it answered CONNECT with status 301", "", NULL},
        {"http://p", "https://h/", S("HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n"),
            "proxy http://p/: the answer is not HTTP", "", NULL},
        {"http://p", "https://h/", S("HTTP/1.1 200 OK\r\n\r\n\x16\x03\x01"), NULL, "", NULL},
        {"http://p", "https://h/", S("HTTP/1.1 200 OK\r\n"),
            "proxy http://p/: connection closed before the whole", "", NULL},
        {"http://p", "https://h/", S(""), "proxy http://p/: connection closed before an answer", "",
            NULL},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct player p = {.answer = {rows[i].answer}};
        struct call *call = &p.call;
        struct url proxy;
        struct err e;
        check_number(url_parse(slice_of(rows[i].proxy), NULL, &proxy, &e), 0, "proxy");
        p.webhook.proxy = &proxy;
        player_begin(&p, METHOD_POST, rows[i].url, CALL_TUNNEL);
        check(call_ask_proxy(call) == CALL_WAIT, "the request is sent");
        enum call_next next = call_receive(call, plat_now_ms());
        check(next == (rows[i].reason ? CALL_FAILED : CALL_GO_ON) &&
                (call->state == CALL_HANDSHAKE) == !rows[i].reason,
            "CONNECT: %s", show(rows[i].answer));
        if (next == CALL_FAILED)
            call_fail(call, plat_now_ms());
        check(strncmp(call->res.reason.text, rows[i].reason ? rows[i].reason : "",
                  rows[i].reason ? strlen(rows[i].reason) : 1) == 0,
            "%s: \"%s\"", show(rows[i].answer), call->res.reason.text);
        check_text(call->res.hint.text, rows[i].hint, "hint");
        if (rows[i].request)
            check_bytes(
                (struct slice){p.wrote.data, p.wrote.len}, slice_of(rows[i].request), "request");
        player_done(&p);
        url_done(&proxy);
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
    call->ready = false;
    if (next == CALL_FAILED)
        call_fail(call, plat_now_ms());
    return next == CALL_WAIT ? CALL_GO_ON : next; /* the request was sent */
}

/* The address that worked is tried first. */
static void
test_http_worked(void)
{
    struct player p = {0};
    struct plat_addr addr = address("::1", 81);
    char text[64];

    player_begin(&p, METHOD_POST, "http://localhost:81/", CALL_RESOLVE);
    p.peer.worked = addr;
    check_number(call_resolve(&p.call, 0), CALL_GO_ON, "localhost needs no look-up");
    check_number(p.call.addresses, 2, "its addresses");
    plat_addr_text(&p.call.addr[0], text);
    check_text(text, "[::1]:81", "the first one");
    plat_addr_text(&p.call.addr[1], text);
    check_text(text, "127.0.0.1:81", "the other one");
    player_done(&p);
}

/* Of two addresses one refuses and one never answers: the first is named. */
static void
test_http_dial(void)
{
    struct player p = {0};
    struct plat_addr addr[3] = {address("127.0.0.1", 0), address("127.0.0.1", 0)};
    intptr_t server[2] = {listen_on(&addr[0], 1), listen_on(&addr[1], -1)}, filler[4];
    const char *reason = p.call.res.reason.text;
    char text[2][64];

    for (int i = 0; i < 2; i++)
        plat_addr_text(&addr[i], text[i]);
    player_begin(&p, METHOD_POST, "http://h/", CALL_CONNECT);
    check_number(dial(&p, addr, 2, 10000), CALL_GO_ON, "the first one answers");
    check(
        p.call.at == 0 && p.call.state == CALL_RECEIVE && p.call.conn.to_origin, "it is connected");
    check(memcmp(&p.peer.worked.ss, &addr[0].ss, addr[0].len) == 0, "which one worked");
    check_number(dial(&p, (struct plat_addr[2]){addr[1], addr[0]}, 2, 10000), CALL_GO_ON,
        "the second one answers");
    check_number(p.call.at, 1, "the second one");
    conn_close(&p.call.conn);
    for (size_t i = 0; i < COUNT(filler); i++) /* then it is too busy to answer any more */
        filler[i] = plat_tcp_connect(&addr[0]);
    int64_t began_ms = plat_now_ms();
    check_number(dial(&p, addr, 2, 2000), CALL_FAILED, "nobody answers");
    check(plat_now_ms() - began_ms < 1900, "the first has only its share");
    check(strstr(reason, text[0]) && strstr(reason, ": no answer in time"), "who: %s", reason);
    check(strstr(p.call.res.hint.text, "host and port in webhookURL") != NULL, "hint: %s",
        p.call.res.hint.text);
    check_number(dial(&p, addr + 1, 1, -1), CALL_FAILED, "no time left");
    check_number(dial(&p, addr + 1, 1, 10000), CALL_FAILED, "refused");
    check(strstr(reason, text[1]) && !strstr(reason, "no answer"), "who refused: %s", reason);
    addr[2] = address("::1", 1);
    check_number(
        dial(&p, (struct plat_addr[2]){addr[1], addr[2]}, 2, 10000), CALL_FAILED, "no IPv6");
    check(strstr(reason, text[1]) != NULL, "the first address is named: %s", reason);
    struct call open = {.conn.sock = INT_MAX}, *all[CONNECTIONS_MAX];
    for (size_t i = 0; i < COUNT(all); i++)
        all[i] = &open;
    p.http.call = all;
    p.http.calls = COUNT(all);
    check_number(dial(&p, addr, 1, 10000), CALL_FAILED, "too many connections");
    check(p.call.res.end == HTTP_OURS, "that is our own want: %s", reason);
    p.http.call = NULL;
    p.http.calls = 0;
    for (size_t i = 0; i < COUNT(filler); i++)
        plat_close(filler[i]);
    plat_close(server[0]);
    plat_close(server[1]);
    player_done(&p);
}

/* The results that http_step has given: how many, how many are no 200, and the last one. */
static struct {
    int count, odd;
    void *owner;
    struct http_result res;
} results;

static void
take_result(void *owner, const struct http_result *res)
{
    results.count++;
    results.odd += res->end != HTTP_ANSWERED || res->status != 200;
    results.owner = owner;
    results.res = *res;
}

/* Many calls over a few connections to a server that answers in between. */
static void
test_http_loop(void)
{
    static struct plat_poll poll; /* as large as the program's */
    struct plat_addr addr = address("127.0.0.1", 0);
    intptr_t server = listen_on(&addr, 16), client[16];
    struct config config = {.timeout_s = 10};
    struct webhook_config webhook = {.method = METHOD_POST};
    struct buf url = {0}, json = json_of(SLICE(FAILED ";QS1;T;A;LAB\\g;" IDS ";M"));
    int owner[41], begun = 0, clients = 0;
    struct http h = {.config = &config};
    struct peer peer = {.http = &h, .webhook = &webhook};
    struct err e;
    char text[64];

    plat_addr_text(&addr, text);
    buf_format(&url, "http://%s/", text);
    check(url_parse((struct slice){url.data, url.len}, NULL, &webhook.url, &e) == 0, "set up");
    results.count = results.odd = 0;
    for (int target = 40; target <= 41; target++) {
        int64_t end_ms = plat_now_ms() + 10000;
        while (results.count < target && plat_now_ms() < end_ms) {
            int64_t until_ms = plat_now_ms() + 20;
            poll.count = 0;
            http_poll_add(&h, &poll, plat_now_ms(), &until_ms);
            plat_poll(&poll, until_ms > plat_now_ms() ? until_ms - plat_now_ms() : 0);
            http_step(&h, &poll, take_result);
            for (size_t i = 0; i < h.calls; i++)
                check(h.left > 0 || h.call[i]->slot == POLL_MAX, "what poll said counts once");
            while (begun < target && begun - results.count < 4) {
                struct http_request q = {{json.data, json.len}, "msg_1", false};
                call_begin(&peer, &q, &owner[begun++], plat_now_ms());
            }
            if (clients < 16 &&
                (client[clients] = accept4((int)server, NULL, NULL, SOCK_NONBLOCK)) >= 0)
                setsockopt((int)client[clients++], IPPROTO_TCP, TCP_NODELAY, &(int){1}, 4);
            for (int i = 0; i < clients; i++) {
                char request[4000];
                if (plat_recv(client[i], request, sizeof request) > 0)
                    plat_send(client[i], OK2 "\r\nok", strlen(OK2 "\r\nok"));
            }
        }
        check_number(results.count, target, "results");
        check_number(results.odd, 0, "odd results");
        if (target == 41)
            break;
        check_number(clients, 4, "connections");
        check(h.calls == 4 && h.busy == 0, "all rest: %zu, %zu", h.calls, h.busy);
        for (int i = 0; i < 4; i++) /* none of these is the answer to the next request */
            plat_send(client[i], "HTTP/1.1 404 Stale\r\n\r\n", 22);
        /* Not even if the time of http_step was over before it looked at them. */
        int64_t until_ms = INT64_MAX;
        http_poll_add(&h, &poll, plat_now_ms(), &until_ms);
        struct http_request q = {{json.data, json.len}, "msg_1", false};
        call_begin(&peer, &q, &owner[begun++], plat_now_ms());
    }
    check_number(clients, 5, "connections, one more for the last call");
    struct http_request q = {{json.data, json.len}, "msg_1", false};
    call_begin(&peer, &q, &owner[0], plat_now_ms());
    for (int i = 0; i < clients; i++)
        plat_close(client[i]);
    for (int i = 0; i < 2000 && results.owner != &owner[0]; i++) {
        int64_t until_ms = plat_now_ms() + 20;
        poll.count = 0;
        http_poll_add(&h, &poll, plat_now_ms(), &until_ms);
        plat_poll(&poll, until_ms > plat_now_ms() ? until_ms - plat_now_ms() : 0);
        http_step(&h, &poll, take_result);
        plat_close(accept4((int)server, NULL, NULL, SOCK_NONBLOCK));
    }
    check(results.owner == &owner[0] && results.res.end == HTTP_BROKEN, "the call breaks: %s",
        results.res.reason.text);
    check(h.calls == 0 && h.busy == 0, "nothing is left: %zu, %zu", h.calls, h.busy);
    http_done(&h);
    peer_done(&peer);
    url_done(&webhook.url);
    buf_free(&url);
    buf_free(&json);
    plat_close(server);
}

/* What a call says that has waited too long. */
static void
test_http_timeouts(void)
{
    struct player p = {0};
    struct call *call = &p.call;
    int pair[2];

    player_begin(&p, METHOD_POST, "http://h/", CALL_RECEIVE);
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0, "sockets");
    call->conn.sock = pair[0];
    call->conn.read = conn_plain_read;
    check_number(call_receive(call, call->until_ms - 1), CALL_WAIT, "there is time");
    check_number(call_receive(call, call->until_ms), CALL_FAILED, "there is none");
    check_text(call->res.reason.text, "no answer within 10 s", "a timeout");
    call->head = (struct http_head){.length = 5};
    call_enter(call, CALL_SKIP, call->deadline_ms);
    check_number(call_skip(call, call->until_ms), CALL_GO_ON, "the body did not come");
    check(call->state == CALL_CLOSED && call->conn.sock < 0, "closed");
    plat_close(pair[1]);
    player_done(&p);
}

static void
test_10(void)
{
    log_begin(LOG_INFO);
    for (size_t i = 0; i < COUNT(ANSWER_ROWS); i++)
        check_answer(ANSWER_ROWS[i].stream, ANSWER_ROWS[i].want, show(ANSWER_ROWS[i].stream));
    test_http_bounds();
    test_http_chunks();
    test_http_heads();
    test_http_dates();
    test_http_redirects();
    test_http_statuses();
    test_tls_words();
    test_http_requests();
    test_conn_flush();
    test_conn_bounds();
    test_http_calls();
    test_http_too_long();
    test_http_tunnel();
    test_http_worked();
    test_http_dial();
    test_http_timeouts();
    test_http_loop();
    log_forget();
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

#define LONG_AFTER (plat_now_ms() + 40 * BACKOFF_MAX_MS) /* what is put off is due */

/* All that loop_start makes, but for the socket. */
struct test_backlog {
    struct cfg_reader reader;
    struct config config;
    struct journal journal;
    struct http http;
    struct windows windows;
    struct backlog b;
    struct webhook *w; /* the backlog's webhooks */
    int64_t until_ms;  /* what the last call said */
};

/* Starts without loading. */
static void
backlog_start(struct test_backlog *t, const char *yaml)
{
    struct err e = {""};

    *t = (struct test_backlog){0};
    log_begin(LOG_VERBOSE);
    load(&t->reader, &t->config, slice_of(yaml));
    check(t->reader.errors == 0, "%s", yaml);
    check(journal_open(&t->journal, &t->config, false, &e) == 0, "journal_open: %s", e.text);
    t->http.config = &t->config;
    backlog_init(&t->b, &t->config, &t->journal, &t->windows, &t->http);
    t->w = t->b.webhook;
}

/* Starts, and loads what stands in the journal. */
static void
backlog_start_load(struct test_backlog *t)
{
    backlog_start(t, ON_DISK);
    backlog_load(&t->b, false);
}

/* Checks a webhook's list and what is counted of it; returns how much of both is wrong. */
static size_t
webhook_wrong(const struct webhook *w)
{
    const struct delivery *older = NULL;
    size_t wrong = 0, waiting = 0, in_call = 0;

    for (const struct delivery *d = w->list.oldest; d; older = d, d = d->newer) {
        wrong += d->older != older || d->webhook != w;
        wrong += older && older->payload->number > d->payload->number;
        wrong += d->state != DELIVERY_WAITS && d->state != DELIVERY_IN_CALL;
        in_call += d->state == DELIVERY_IN_CALL;
        waiting++;
    }
    wrong += w->list.newest != older || waiting != w->list.count || w->calls != in_call;
    return wrong;
}

/* Checks everything that is linked, and what is counted. */
static void
check_backlog(const struct backlog *b, const char *what)
{
    const struct payload *older = NULL;
    size_t wrong = 0, bytes = 0, all = 0, waiting = 0, dead = 0;

    for (const struct payload *p = b->oldest; p; older = p, p = p->newer) {
        size_t left = 0;
        for (size_t i = 0; i < p->targets; i++)
            left += p->delivery[i].state != DELIVERY_ENDED;
        wrong += p->older != older || (older && older->number >= p->number) || left != p->left ||
            left == 0 || p->json.data[p->json.len] != '\0';
        bytes += payload_size(p);
        all += left;
    }
    wrong += b->newest != older || bytes != b->bytes || all != b->waiting;
    for (size_t i = 0; i < b->webhooks; i++) {
        wrong += webhook_wrong(&b->webhook[i]);
        waiting += b->webhook[i].list.count;
    }
    bytes = 0;
    for (const struct delivery *d = b->dead.oldest; d; d = d->newer) {
        wrong += d->state != DELIVERY_DEAD;
        bytes += payload_size(d->payload);
        dead++;
    }
    wrong += bytes != b->dead_bytes || waiting + dead != all;
    check(wrong == 0, "%s: %zu links and counts are wrong", what, wrong);
}

/* Cuts calls that were begun short, as their results are made up here. Returns one's delivery. */
static struct delivery *
backlog_cut(struct test_backlog *t)
{
    return http_cut(&t->http);
}

/* Stops: what stands in the journal stays there. */
static void
backlog_finish(struct test_backlog *t)
{
    struct backlog *b = &t->b;

    backlog_cut(t);
    check_backlog(b, "at the end");
    check(journal_stop(&t->journal), "journal_stop");
    for (struct payload *p = b->oldest, *next; p; p = next) {
        next = p->newer;
        for (size_t i = 0; i < p->targets; i++)
            free(p->delivery[i].why);
        free(p);
    }
    http_done(&t->http);
    for (size_t i = 0; i < b->webhooks; i++)
        peer_done(&t->w[i].peer);
    for (size_t i = b->webhooks + 1; i < b->known; i++) {
        free((void *)(uintptr_t)t->w[i].config->description);
        free((void *)(uintptr_t)t->w[i].config);
    }
    free(b->webhook);
    buf_free(&b->keys);
    buf_free(&b->text);
    journal_done(&t->journal);
    cfg_done(&t->reader);
}

/* Adds an alert for all webhooks of its kind as the listener does. */
static struct payload *
backlog_gets(struct test_backlog *t, enum alert_kind kind, const char *message)
{
    struct webhook *to[3];
    char text[300];
    size_t n = 0;

    snprintf(text, sizeof text, "%s;QS1;T;A;u;" IDS ";%s", kind ? ABORTED_ID : FAILED, message);
    struct alert alert = alert_of(slice_of(text));
    for (size_t i = 0; i < t->b.webhooks; i++)
        if (t->w[i].config->kind == kind)
            to[n++] = &t->w[i];
    struct payload *p = backlog_add(&t->b, &alert, to, n, JOURNAL_ACCEPTED);
    alert_done(&alert);
    return p;
}

/* Begins one call, if one may be begun now; until_ms says when else. */
static struct delivery *
backlog_take(struct test_backlog *t, struct webhook *w, int64_t now_ms)
{
    t->config.max_concurrent = (int64_t)w->calls + 1;
    t->until_ms = INT64_MAX;
    webhook_begin(w, now_ms, &t->until_ms);
    return backlog_cut(t);
}

static struct http_result
made_result(enum http_end end, int status, int64_t retry_after_s)
{
    return (struct http_result){
        .end = end, .status = status, .retry_after_s = retry_after_s, .reason = {"because"}};
}

static void
backlog_answers(struct delivery *d, enum http_end end, int status, int64_t retry_after_s)
{
    struct http_result res = made_result(end, status, retry_after_s);

    webhook_settle(d, &res);
}

/* The number of the newest alert that waits, 0: none. */
static uint64_t
backlog_newest(const struct backlog *b)
{
    return b->newest ? b->newest->number : 0;
}

/* Has the disk thread do all that it is asked for what waits. */
static void
backlog_settle(struct test_backlog *t)
{
    struct journal *j = &t->journal;
    int64_t until_ms = INT64_MAX;

    for (int i = 0; i < 5000; i++) {
        journal_take_results(j, plat_now_ms());
        journal_upkeep(j, backlog_newest(&t->b), plat_now_ms(), &until_ms);
        if (!j->asked && j->new_file < 0 && backlog_newest(&t->b) <= j->synced_number)
            return;
        usleep(1000);
    }
    check(false, "the disk thread does not settle");
}

/* Writes and syncs what was noted, and writes all dead letters. */
static void
backlog_write_all(struct test_backlog *t)
{
    for (int i = 0; i < 3 || (t->b.dead.count && i < 1000); i++) {
        backlog_write_letters(&t->b);
        check_number(journal_write(&t->journal, plat_now_ms()), 0, "journal_write");
        backlog_settle(t);
    }
    check(!t->b.dead.count && t->b.dead_bytes == 0, "all dead letters are written");
}

static void
test_webhook_judge(void)
{
    static const struct {
        enum http_end end;
        int from, to; /* statuses */
        int64_t retry_after_s;
        enum verdict verdict;
    } rows[] = {
        {HTTP_UNSENT, 0, 0, -1, VERDICT_DOWN},
        {HTTP_OURS, 0, 0, -1, VERDICT_RETRY},
        {HTTP_BROKEN, 0, 0, -1, VERDICT_SICK},
        {HTTP_ANSWERED, 200, 299, -1, VERDICT_DELIVERED},
        {HTTP_ANSWERED, 200, 299, 60, VERDICT_DELIVERED},
        {HTTP_ANSWERED, 300, 407, -1, VERDICT_DEAD},
        {HTTP_ANSWERED, 300, 407, 60, VERDICT_DEAD},
        {HTTP_ANSWERED, 408, 408, -1, VERDICT_RETRY},
        {HTTP_ANSWERED, 409, 424, -1, VERDICT_DEAD},
        {HTTP_ANSWERED, 425, 425, -1, VERDICT_RETRY},
        {HTTP_ANSWERED, 426, 428, -1, VERDICT_DEAD},
        {HTTP_ANSWERED, 429, 429, -1, VERDICT_WAIT},
        {HTTP_ANSWERED, 429, 429, 0, VERDICT_WAIT},
        {HTTP_ANSWERED, 429, 429, 60, VERDICT_WAIT},
        {HTTP_ANSWERED, 430, 499, -1, VERDICT_DEAD},
        {HTTP_ANSWERED, 500, 599, -1, VERDICT_SICK},
        {HTTP_ANSWERED, 500, 502, 60, VERDICT_SICK},
        {HTTP_ANSWERED, 503, 503, 0, VERDICT_WAIT},
        {HTTP_ANSWERED, 503, 503, 3600, VERDICT_WAIT},
        {HTTP_ANSWERED, 504, 599, 60, VERDICT_SICK},
        {HTTP_ANSWERED, 600, 999, -1, VERDICT_DEAD},
    };

    for (size_t i = 0; i < COUNT(rows); i++)
        for (int status = rows[i].from; status <= rows[i].to; status++) {
            struct http_result res = made_result(rows[i].end, status, rows[i].retry_after_s);
            check(webhook_judge(&res) == rows[i].verdict, "row %zu, status %d: %d", i, status,
                (int)webhook_judge(&res));
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
        check(smallest >= 0 && smallest < most[i] / 20 && largest <= most[i] &&
                largest > most[i] - most[i] / 20,
            "%zu failures: wait %lld to %lld", i + 1, (long long)smallest, (long long)largest);
    }
    check(webhook_backoff_ms(INT_MAX) <= BACKOFF_MAX_MS, "after very many failures");
}

/* Which delivery is sent next, and when. */
static void
test_webhook_begin(void)
{
    static struct test_backlog t;
    struct webhook *w;
    struct delivery *d[4];
    int64_t now_ms = plat_now_ms() + 1000;

    backlog_start(&t, IN_MEMORY);
    w = &t.w[0];
    check(!backlog_take(&t, w, now_ms) && t.until_ms == INT64_MAX, "nothing waits");
    for (int i = 0; i < 4; i++)
        backlog_gets(&t, ALERT_FAILURE, "M");
    check(t.w[1].list.count == 4 && t.w[2].list.count == 0, "all webhooks of a kind");
    for (uint64_t i = 0; i < 4; i++)
        check((d[i] = backlog_take(&t, w, now_ms)) && d[i]->payload->number == i + 1, "by number");
    for (int i = 3; i >= 0; i--)
        backlog_answers(d[i], HTTP_ANSWERED, 408, -1); /* so the fourth is tried longest ago */
    for (int i = 0; i < 4; i++) {
        d[i]->due_ms = now_ms + i / 2;
        d[i]->tried_ms = 100 - i;
    }
    check(!backlog_take(&t, w, now_ms - 1) && t.until_ms == now_ms, "none is due yet");
    t.config.max_concurrent = 1;
    webhook_begin(w, now_ms, &t.until_ms);
    webhook_begin(w, now_ms, &t.until_ms);
    check(t.http.busy == 1 && w->calls == 1, "at most maxConcurrent at a time");
    check(backlog_cut(&t) == d[0], "of two due at once the older one");
    backlog_answers(d[0], HTTP_UNSENT, 0, -1);
    check(w->state == WEBHOOK_DOWN, "down");
    check(t.w[1].state == WEBHOOK_UP, "no other webhook is");
    w->wait_until_ms = now_ms + 500;
    check(!backlog_take(&t, w, now_ms + 499) && t.until_ms == now_ms + 500, "a probe has a time");
    for (int i = 3; i > 0; i--) {
        check(backlog_take(&t, w, LONG_AFTER) == d[i], "the one tried longest ago, %d", i);
        check(!backlog_take(&t, w, LONG_AFTER), "one probe at a time");
        w->wait_until_ms = 0;
        backlog_answers(d[i], HTTP_UNSENT, 0, -1);
    }
    t.b.stopping = true;
    check(!backlog_take(&t, w, LONG_AFTER), "no probe while stopping");
    check(backlog_take(&t, &t.w[1], now_ms) != NULL, "but what is due of one that is up");
    t.b.ended = true;
    check(!backlog_take(&t, &t.w[1], LONG_AFTER), "and in the end nothing");
    backlog_finish(&t);
}

/* What the result of a call does to webhook, delivery, counters and log. */
static void
test_webhook_settle(void)
{
    static struct test_backlog t;
    struct webhook *w;
    struct delivery *d;
    int64_t now_ms;

    backlog_start(&t, IN_MEMORY);
    w = &t.w[2];
    backlog_gets(&t, ALERT_ABORTED, "M");
    backlog_answers(backlog_take(&t, w, LONG_AFTER), HTTP_ANSWERED, 200, -1);
    check(t.b.delivered == 1 && w->list.count == 0 && !t.b.oldest, "200: it is done");
    check_number(
        log_count("info: alert 1 delivered to aborted 1: 200 in 0 ms, attempt 1"), 1, "logged");

    backlog_gets(&t, ALERT_ABORTED, "M");
    for (int i = 1; i <= 12; i++) {
        now_ms = plat_now_ms();
        d = backlog_take(&t, w, LONG_AFTER);
        backlog_answers(d, HTTP_ANSWERED, 500, -1);
        check(w->state == WEBHOOK_UP && d->attempts == i && d->tried_ms >= now_ms,
            "one alert alone makes no webhook down");
        check(d->due_ms >= now_ms && d->due_ms <= plat_now_ms() + (i == 1 ? 1000 : BACKOFF_MAX_MS),
            "its backoff");
    }
    check_number(log_count("warn: alert 2 to aborted 1: because; attempt 1, next in "), 1, "500");
    struct http_result ours = made_result(HTTP_OURS, 0, -1);

    webhook_settle(backlog_take(&t, w, LONG_AFTER), &ours);
    check(w->state == WEBHOOK_UP && d->attempts == 12, "our own want is no attempt");
    check_number(log_count("attempt 12, next in 0.0 s"), 0, "it waits a moment");
    backlog_answers(backlog_take(&t, w, LONG_AFTER), HTTP_ANSWERED, 404, -1);
    check(t.b.given_up == 1 && !t.b.oldest, "404: given up");
    check_number(log_count("error: alert 2 given up for aborted 1 after 13 attempts: because"), 1,
        "and logged whole, as there is no state directory");
    check_number(log_count("\"logMessage\":\"M\""), 1, "the whole alert");

    backlog_gets(&t, ALERT_ABORTED, "M");
    for (int i = 1; i <= 10; i++) {
        now_ms = plat_now_ms();
        w->wait_until_ms = 0;
        backlog_answers(backlog_take(&t, w, LONG_AFTER), HTTP_UNSENT, 0, -1);
        check(w->state == WEBHOOK_DOWN && w->failures == i, "not reached: down");
        check(w->wait_until_ms >= now_ms &&
                w->wait_until_ms <= plat_now_ms() + (i == 1 ? 1000 : BACKOFF_MAX_MS),
            "when the next probe goes");
    }
    check_number(log_count("warn: webhook aborted 1 is down: because"), 1, "logged once");
    w->wait_until_ms = 0;
    backlog_answers(backlog_take(&t, w, LONG_AFTER), HTTP_ANSWERED, 200, -1);
    check(w->state == WEBHOOK_UP && w->failures == 0, "answered: up");
    check_number(log_count("info: webhook aborted 1 is up again"), 1, "logged");
    backlog_finish(&t);
}

/* A webhook that asks for time, while four calls are in flight. */
static void
test_webhook_paced(void)
{
    static struct test_backlog t;
    struct webhook *w;
    struct delivery *d[4];
    int64_t now_ms, until_ms;

    backlog_start(&t, IN_MEMORY);
    w = &t.w[2];
    for (int i = 0; i < 4; i++) {
        backlog_gets(&t, ALERT_ABORTED, "M");
        d[i] = backlog_take(&t, w, LONG_AFTER);
    }
    now_ms = plat_now_ms();
    backlog_answers(d[0], HTTP_ANSWERED, 429, 30);
    check(w->state == WEBHOOK_PACED && w->wait_until_ms >= now_ms + 30000 &&
            w->wait_until_ms <= plat_now_ms() + 30000,
        "429: the webhook waits as a whole");
    check_number(log_count("warn: webhook aborted 1 asked to wait: 429, for 30.0 s"), 1, "logged");
    backlog_answers(d[1], HTTP_ANSWERED, 503, 100);
    until_ms = w->wait_until_ms;
    check(until_ms >= now_ms + 100000 && until_ms <= plat_now_ms() + 100000,
        "of two in flight the longer time counts");
    backlog_answers(d[2], HTTP_ANSWERED, 429, 5);
    check_number(w->wait_until_ms, until_ms, "a shorter one does not");
    backlog_answers(d[3], HTTP_ANSWERED, 200, -1);
    check(w->state == WEBHOOK_PACED && w->wait_until_ms == until_ms, "nor that one was taken");
    check(!backlog_take(&t, w, until_ms - 1) && t.until_ms == until_ms, "nothing goes before");
    d[0] = backlog_take(&t, w, until_ms);
    check(d[0] && !backlog_take(&t, w, until_ms), "then one probe");
    w->wait_until_ms = 0;
    backlog_answers(d[0], HTTP_ANSWERED, 200, -1);
    check(w->state == WEBHOOK_UP && !log_count("is up again"), "answered: up; it was never down");
    backlog_finish(&t);
}

/* Three different alerts in a row that fail after they were sent: the webhook is down. */
static void
test_webhook_suspects(void)
{
    static const struct {
        const char *order; /* alerts a, b, c; in upper case answered with middle, else failing */
        int middle;
        bool is_down;
    } rows[] = {
        {"aaaaaaa", 0, false},
        {"ababab", 0, false},
        {"abc", 0, true},
        {"aabbc", 0, true},
        {"abAc", 408, false},
        {"abAbc", 408, false},
        {"abAbca", 408, true},
        {"abAc", 500, true}, /* 500 is no better than none */
        {"aBc", 404, false},
        {"aBc", 200, false},
    };

    for (size_t i = 0; i < 2 * COUNT(rows); i++) {
        bool sick = i % 2; /* failing: status 500, or no HTTP answer */
        static struct test_backlog t;
        backlog_start(&t, IN_MEMORY);
        struct webhook *w = &t.w[2];
        for (int k = 0; k < 3; k++)
            backlog_gets(&t, ALERT_ABORTED, "M");
        for (const char *p = rows[i / 2].order; *p; p++) {
            bool middle = *p < 'a';
            struct delivery *d = w->list.oldest;
            while (d && d->payload->number != (uint64_t)(*p - (middle ? 'A' : 'a') + 1))
                d = d->newer;
            if (!d)
                continue;
            d->state = DELIVERY_IN_CALL; /* as in webhook_begin */
            w->calls++;
            if (middle)
                backlog_answers(d, HTTP_ANSWERED, rows[i / 2].middle, -1);
            else
                backlog_answers(d, sick ? HTTP_ANSWERED : HTTP_BROKEN, sick ? 502 : 0, -1);
        }
        check((w->state == WEBHOOK_DOWN) == rows[i / 2].is_down, "row %zu, \"%s\", %s", i / 2,
            rows[i / 2].order, sick ? "502" : "broken");
        check_number(log_count("is down"), rows[i / 2].is_down, "logged once");
        backlog_finish(&t);
    }
}

/* Whatever the state and the failure: no webhook is called again and again without a pause. */
static void
test_webhook_pauses(void)
{
    static const struct {
        enum http_end end;
        int status;
        int64_t retry_after_s;
    } rows[] = {{HTTP_UNSENT, 0, -1}, {HTTP_BROKEN, 0, -1}, {HTTP_ANSWERED, 500, -1},
        {HTTP_ANSWERED, 408, -1}, {HTTP_ANSWERED, 429, -1}, {HTTP_ANSWERED, 429, 0},
        {HTTP_ANSWERED, 503, 0}};

    for (size_t i = 0; i < 3 * COUNT(rows); i++) {
        static struct test_backlog t;
        int64_t pauses_ms = 0;
        backlog_start(&t, IN_MEMORY);
        struct webhook *w = &t.w[2];
        backlog_gets(&t, ALERT_ABORTED, "M");
        w->state = (enum webhook_state)(i % 3);
        for (int k = 0; k < 12; k++) {
            int64_t now_ms = plat_now_ms();
            struct delivery *d = backlog_take(&t, w, now_ms);
            if (!d) {
                pauses_ms += t.until_ms - now_ms;
                d = backlog_take(&t, w, t.until_ms);
            }
            backlog_answers(d, rows[i / 3].end, rows[i / 3].status, rows[i / 3].retry_after_s);
            if (w->state != WEBHOOK_UP && w->wait_until_ms > plat_now_ms()) {
                pauses_ms += w->wait_until_ms - plat_now_ms();
                w->wait_until_ms = plat_now_ms();
            }
        }
        check(pauses_ms > 1000, "row %zu, state %zu: 12 calls in %lld ms", i / 3, i % 3,
            (long long)pauses_ms);
        backlog_finish(&t);
    }
}

/* No room: the oldest alert of the webhook with most waiting goes. */
static void
test_backlog_room(void)
{
    static struct test_backlog t;
    struct delivery *in_call;

    backlog_start(&t, IN_MEMORY);
    backlog_gets(&t, ALERT_ABORTED, "M");
    for (int i = 0; i < 9; i++)
        backlog_gets(&t, ALERT_FAILURE, "M");
    t.b.room = t.b.bytes * 10 / 8; /* 80 % of it is used */
    backlog_make_room(&t.b);
    backlog_make_room(&t.b);
    check_number(log_count("warn: state directory: 80 % of its room is used (19 alerts wait)"), 1,
        "a warning, once");
    t.b.room = t.b.bytes;
    backlog_make_room(&t.b);
    check(t.w[0].list.count == 9 && t.w[1].list.count == 9, "what there is room for stays");
    in_call = backlog_take(&t, &t.w[0], LONG_AFTER);
    t.b.room--;
    backlog_make_room(&t.b);
    check(t.w[2].list.count == 1 && t.w[0].list.count == 7 && t.w[1].list.count == 7,
        "the oldest go in turn until all of one is gone: %zu, %zu", t.w[0].list.count,
        t.w[1].list.count);
    check(t.w[0].list.oldest == in_call && t.w[0].list.oldest->newer->payload->number > 3,
        "but not one in a call");
    check(log_count("given up for failure 1 after 0 attempts: no room: too many alerts wait; see "
                    "butlerWebhook.maxStateMB; alert: {") > 0,
        "logged");
    check_backlog(&t.b, "less room");
    t.b.room = 1;
    backlog_make_room(&t.b);
    check(t.b.waiting == 1 && t.w[0].list.oldest == in_call, "no room at all: only the call stays");
    check_number((long long)t.b.given_up, 18, "counted");
    t.b.room = t.b.bytes * 2;
    backlog_make_room(&t.b);
    t.b.room = t.b.bytes;
    backlog_make_room(&t.b);
    check_number(log_count("% of its room is used"), 2, "a warning again");
    backlog_finish(&t);
}

static void
test_webhook_expire(void)
{
    static struct test_backlog t;
    int64_t now_ms = plat_now_ms();

    backlog_start(&t, IN_MEMORY);
    for (int i = 0; i < 6; i++)
        backlog_gets(&t, ALERT_ABORTED, "M")->accepted_ms = now_ms - 72 * AGE_UNIT_MS + i / 2;
    webhook_expire(&t.w[2], now_ms + AGE_UNIT_MS - 1000);
    check_number((int)t.w[2].list.count, 6, "not in the first hour");
    t.b.grace_until_ms = 0;
    backlog_answers(backlog_take(&t, &t.w[2], LONG_AFTER), HTTP_ANSWERED, 408, -1);
    t.w[2].list.oldest->due_ms = LONG_AFTER; /* whatever its backoff */
    struct delivery *in_call = backlog_take(&t, &t.w[2], now_ms + 60000);
    check_number((long long)in_call->payload->number, 2, "the second one is in a call");
    webhook_expire(&t.w[2], now_ms);
    check_number((int)t.w[2].list.count, 5, "the first is too old");
    check_number(log_count("alert 1 given up for aborted 1 after 1 attempt: not delivered for as "
                           "long as an alert is kept; because"),
        1, "logged with the last failure");
    webhook_expire(&t.w[2], now_ms + 1);
    check(t.w[2].list.count == 3 && t.w[2].list.oldest == in_call, "one in a call stays");
    backlog_answers(in_call, HTTP_ANSWERED, 200, -1);
    backlog_finish(&t);
}

/* Dead letters: their deliveries end when the letters are on the disk. */
static void
test_dead_letters(void)
{
    static struct test_backlog t;
    struct buf letters;
    struct state_path path;
    int n = 0;

    state_clear();
    path = state_path(state_folder, "dead-letters.ndjson");
    backlog_start_load(&t);
    backlog_gets(&t, ALERT_FAILURE, "one");
    backlog_gets(&t, ALERT_FAILURE, "two");
    backlog_answers(backlog_take(&t, &t.w[1], LONG_AFTER), HTTP_ANSWERED, 404, -1);
    check(
        t.b.dead.count > 0 && t.b.waiting == 4 && t.w[1].list.count == 1, "it waits for the disk");
    check_number(log_count("error: alert 1 given up for failure 2 (\"Second\") after 1 attempt: "
                           "because"),
        1, "logged");
    check_number(log_count("\"logMessage\""), 0, "but not whole");
    check_backlog(&t.b, "one is dead");
    check_number(mkdir(path.text, 0700), 0, "a folder in the way");
    backlog_write_letters(&t.b);
    journal_write(&t.journal, plat_now_ms());
    backlog_settle(&t);
    backlog_write_letters(&t.b);
    check(t.b.dead.count > 0 && t.b.waiting == 4, "it still waits");
    rmdir(path.text);
    t.journal.retry_ms = 0;
    backlog_write_all(&t);
    check(t.b.waiting == 3 && t.b.newest->left == 2, "it has ended");
    letters = read_state("dead-letters.ndjson");
    check(strstr(letters.data, "{\"webhookId\":\"msg_4831c6a534f645bb9d4073a6e6992670_f_") ==
                letters.data &&
            strstr(letters.data, "\"webhook\":\"failure 2 (\\\"Second\\\")\"") &&
            strstr(letters.data, "\"attempts\":1,\"deadAt\":\"2") &&
            strstr(letters.data, "\"reason\":\"because\",\"webhookKey\":\"") &&
            strstr(letters.data,
                "\"description\":\"Second\",\"place\":2,\"count\":2,"
                "\"url\":\"http://127.0.0.1:1/2\",\"alert\":{") &&
            strstr(letters.data, "\"logMessage\":\"one\""),
        "the letter: %s", letters.data);
    buf_free(&letters);

    backlog_answers(backlog_take(&t, &t.w[1], LONG_AFTER), HTTP_ANSWERED, 404, -1);
    t.b.ended = true;
    backlog_write_letters(&t.b);
    check(t.b.dead.count == 1 && t.b.batch == 0 && t.journal.letters.len == 0,
        "at the end of a stop no letter begins");
    t.b.ended = false;
    backlog_write_all(&t);

    struct buf large = {0}; /* a disk that has failed for long */
    t.b.journal->letters_failed = true;
    while (large.len < 250)
        buf_add_char(&large, 'x');
    for (; t.b.dead_bytes + 1000 < LETTERS_WAIT_MAX; n++) {
        backlog_gets(&t, ALERT_ABORTED, large.data);
        backlog_answers(backlog_take(&t, &t.w[2], LONG_AFTER), HTTP_ANSWERED, 404, -1);
    }
    log_forget();
    for (int i = 0; i < 10; i++) {
        backlog_gets(&t, ALERT_ABORTED, "end");
        backlog_answers(backlog_take(&t, &t.w[2], LONG_AFTER), HTTP_ANSWERED, 404, -1);
    }
    check(log_count("too many dead letters wait for the disk; alert: {") > 0 &&
            log_count("\"logMessage\":\"end\"") > 0 && t.b.dead_bytes <= LETTERS_WAIT_MAX,
        "letters beyond 8 MiB are logged whole");
    backlog_write_all(&t);
    check(n > 1000 && t.b.waiting == 2, "all are written");
    buf_free(&large);
    backlog_finish(&t);
}

/* What waits: for each webhook the alerts' numbers, with the attempts, if any. */
static void
waiting_text(const struct backlog *b, struct buf *out)
{
    buf_add(out, "", 0);
    for (size_t i = 0; i < b->webhooks; i++) {
        buf_add_text(out, i > 0 ? "|" : "");
        for (const struct delivery *d = b->webhook[i].list.oldest; d; d = d->newer) {
            buf_format(out, "%s%d", d->older ? " " : "", (int)d->payload->number);
            if (d->attempts > 0)
                buf_format(out, "*%d", d->attempts);
        }
    }
}

static void
check_waiting(const struct backlog *b, const char *want, const char *what)
{
    struct buf got = {0};

    waiting_text(b, &got);
    check_buf(&got, slice_of(want), what);
}

/* Rewrites the journal, and waits until the new one is in place. */
static void
backlog_rewrite_all(struct test_backlog *t)
{
    journal_write(&t->journal, plat_now_ms());
    t->journal.wants_rewrite = true;
    check(journal_wants_rewrite(&t->journal, INT32_MAX, plat_now_ms()), "it wants to");
    backlog_rewrite(&t->b, plat_now_ms());
    backlog_settle(t);
}

/* A key in the journals below: 1 to 3 those of ON_DISK, 4 to 9 one that is gone. */
static void
add_key(struct buf *b, const struct config *c, char digit)
{
    if (digit <= '3')
        buf_add_text(b, c->webhook[digit - '1'].key);
    for (int i = 0; i < 32 && digit > '3'; i++)
        buf_add_char(b, digit);
}

/*
 * Writes a journal of records in short: a letter of the word (a accepted, w waiting, t
 * attempt, e delivered, d dead, r window of the rate limit, s of de-duplication, k
 * webhook, K one described "Second"), the number, :keys, *count, @seconds ago. An alert
 * for webhook 3 only is an abort.
 */
static void
write_journal(const char *text)
{
    static const enum journal_word words[] = {['a'] = JOURNAL_ACCEPTED,
        ['w'] = JOURNAL_WAITING,
        ['t'] = JOURNAL_ATTEMPT,
        ['e'] = JOURNAL_END,
        ['d'] = JOURNAL_END,
        ['r'] = JOURNAL_WINDOW,
        ['s'] = JOURNAL_WINDOW,
        ['k'] = JOURNAL_WEBHOOK,
        ['K'] = JOURNAL_WEBHOOK};
    struct cfg_reader reader;
    struct config c;
    struct buf all = {0}, json[2] = {{0}}, keys = {0};

    state_clear();
    load(&reader, &c, slice_of(ON_DISK));
    for (int kind = 0; kind < ALERT_KINDS; kind++) {
        struct alert alert = alert_of(
            kind ? SLICE(ABORTED_ID ";QS1;T;A;u;" IDS ";M") : SLICE(FAILED ";QS1;T;A;u;" IDS ";M"));
        alert_add_json(&alert, &json[kind]);
        alert_done(&alert);
    }
    for (char *p = (char *)(uintptr_t)text; *p; p += *p == ' ') {
        char letter = *p++;
        long long number = strtoll(p, &p, 10), count = 0, age_s = 0;
        struct journal_record r = {.word = words[(unsigned char)letter], .kind = *p && p[1] == '3'};
        for (keys.len = 0; *p == ':' || (*p >= '1' && *p <= '9'); p++)
            if (*p != ':') {
                buf_add_text(&keys, keys.len > 0 ? "," : "");
                add_key(&keys, &c, *p);
            }
        if (*p == '*')
            count = strtoll(p + 1, &p, 10);
        if (*p == '@')
            age_s = strtoll(p + 1, &p, 10);
        if (r.word == JOURNAL_WINDOW) {
            struct window_key key = key_of(letter == 'r' ? TASK_ID : RUN_ID);
            char hex[33];
            hex_write(key.bytes, sizeof key.bytes, hex);
            buf_add_text(&keys, hex);
            r.count = letter == 'r' ? WINDOW_RATE : WINDOW_SEEN;
        } else if (r.word == JOURNAL_WEBHOOK) {
            r.number = (uint64_t)number;
            r.count = (size_t)count;
            r.text = slice_of(letter == 'K' ? "Second" : "");
        } else {
            r.number = (uint64_t)number;
            r.count = r.word == JOURNAL_ATTEMPT ? (size_t)count : letter == 'd';
            if (r.word <= JOURNAL_WAITING)
                r.text = (struct slice){json[r.kind].data, json[r.kind].len};
            else if (r.word == JOURNAL_ATTEMPT)
                r.text = slice_of("status 500");
        }
        r.wall_ms = r.word == JOURNAL_WEBHOOK ? 0 : plat_wall_ms() - age_s * 1000;
        r.key = (struct slice){keys.data, keys.len};
        journal_add_record(&all, &r);
    }
    write_state("journal", (struct slice){all.data ? all.data : "", all.len});
    cfg_done(&reader);
    buf_free(&all);
    buf_free(&keys);
    buf_free(&json[0]);
    buf_free(&json[1]);
}

/* Which webhook of a changed configuration is meant. */
static void
test_backlog_match(void)
{
    static struct webhook_config now[] = {
        {.key = "aa", .place = 0, .listed = 3, .description = ""},
        {.key = "bb", .place = 1, .listed = 3, .description = "Two"},
        {.key = "cc", .place = 2, .listed = 3, .description = "Same"},
        {.key = "dd", .kind = ALERT_ABORTED, .place = 0, .listed = 2, .description = "Same"},
        {.key = "ee", .kind = ALERT_ABORTED, .place = 1, .listed = 2, .description = "Same"},
    };
    static const struct {
        struct webhook_config was;
        int now, waiting; /* -1: none; waiting: the journal knows those of index 1 and 4 */
    } rows[] = {
        {{.key = "bb", .place = 7, .listed = 9, .description = ""}, 1, 1},
        {{.key = "x", .place = 0, .listed = 3, .description = ""}, 0, 0},
        {{.key = "x", .place = 0, .listed = 2, .description = ""}, -1, -1},
        {{.key = "x", .place = 0, .listed = 3, .description = "Two"}, 1, 0},
        {{.key = "x", .place = 1, .listed = 3, .description = "Two"}, 1, -1},
        {{.key = "x", .place = 9, .listed = 9, .description = "Same"}, 2, 2},
        {{.key = "x", .kind = ALERT_ABORTED, .place = 1, .listed = 2, .description = "Same"}, 4,
            -1},
        {{.key = "x", .kind = ALERT_ABORTED, .place = 2, .listed = 3, .description = "Same"}, -1,
            -1},
        {{.key = "x", .kind = ALERT_ABORTED, .place = 2, .listed = 3, .description = "Two"}, -1,
            -1},
    };
    struct webhook webhook[COUNT(now)] = {0};
    struct backlog b = {.webhook = webhook, .webhooks = COUNT(now)};

    for (size_t i = 0; i < COUNT(now); i++)
        webhook[i] = (struct webhook){
            .config = &now[i], .today = i == 1 || i == 4 ? &webhook[i] : NULL};
    for (size_t i = 0; i < COUNT(rows); i++)
        for (int waiting = 0; waiting < 2; waiting++) {
            int want = waiting ? rows[i].waiting : rows[i].now;
            check(backlog_match(&b, &rows[i].was, waiting) == (want < 0 ? NULL : &webhook[want]),
                "row %zu of backlog_match, %d", i, waiting);
        }
}

/* Journals, and what waits after a start, another one, and one after rewriting. */
static void
test_backlog_load(void)
{
    static const struct {
        const char *journal, *waiting;
        int dead;
    } rows[] = {
        {"", "||", 0}, {"a1:12 a2:2 w3:3", "1|1 2|3", 0},
        {"a1:12 w7:1 w9:12 e1:1 d1:2 e9:2", "7 9||", 0}, {"a1:12 t1:1*3", "1*3|1|", 0},
        {"a1:12 t1:1*3 t1:1*4 t1:2*1 e1:1", "|1*1|", 0},
        {"e1:1 t1:2*2 a1:12", "1|1|", 0}, /* of an alert that was damaged */
        {"a5:12 e4:1 e6:1 t4:1*1 t6:1*1", "5|5|", 0},
        {"a2:1 a1:1 a2:2 a3:1", "2 3||", 0}, /* a number is used once */
        {"a1:12 e1:1 e1:1 e1:2 e1:2 a2:1", "2||", 0},
        /* webhooks that have changed */
        {"k3:4*3 w1:4", "||", 1}, {"k3:4*3 w1:14", "1||", 1}, {"k3:4*3 w1:4 e1:4", "||", 0},
        {"k1:4*2 w1:4 w2:1 t1:4*2", "1*2 2||", 0}, /* by its place */
        {"K9:4*9 w1:4", "|1|", 0},                 /* by its description */
        {"k2:4*2 k9:5*9 w1:145 w2:5", "1|1|", 2},
        {"k1:1*2 k1:4*2 w1:4 w2:1", "2||", 1}, /* another one stands in its place, as before */
        {"k2:2*2 K9:9*9 w1:92", "|1|", 1},     /* or has its description */
        {"k1:4*2 k1:5*2 w1:4 w2:5", "1||", 1}, /* one becomes one */
        {"w1:14 w2:5 w3:1 e2:5", "1 3||", 1},  /* of which nothing is known */
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        static struct test_backlog t;
        struct buf letters;
        int dead = 0;
        write_journal(rows[i].journal);
        for (int start = 0; start < 4; start++) {
            backlog_start_load(&t);
            check_waiting(&t.b, rows[i].waiting, rows[i].journal);
            check_number(log_count(" error: "), start == 0 ? rows[i].dead : 0, "logged");
            check_number(log_count("its webhook is not in the configuration any more"),
                start == 0 ? rows[i].dead : 0, "why");
            backlog_write_all(&t);
            check_backlog(&t.b, rows[i].journal);
            if (start == 2)
                backlog_rewrite_all(&t);
            backlog_finish(&t);
        }
        letters = read_state("dead-letters.ndjson");
        for (const char *p = letters.data; (p = strchr(p, '\n')); p++)
            dead++;
        check_number(dead, rows[i].dead, "dead letters");
        buf_free(&letters);
    }
}

/* Ages and attempts, for --pending and after a start. */
static void
test_backlog_times(void)
{
    static struct test_backlog t;
    int64_t now_ms;

    write_journal("a1:1@100 t1:1*3@50 a2:1@-1000");
    for (int read_only = 1; read_only >= 0; read_only--) {
        backlog_start(&t, ON_DISK);
        backlog_load(&t.b, read_only);
        now_ms = plat_now_ms();
        const struct delivery *d = t.w[0].list.oldest;
        check(llabs(now_ms - d->payload->accepted_ms - 100000) < 5000, "its age");
        check(llabs(now_ms - d->tried_ms - 50000) < 5000, "its last attempt");
        check_text(d->why, "status 500", "why");
        check(llabs(d->due_ms - now_ms) < 5000, "its next attempt: at once after a start");
        check(llabs(now_ms - d->newer->payload->accepted_ms) < 5000, "nothing is from the future");
        backlog_finish(&t);
    }
}

/* Windows of time are open again after a start, and after rewriting. */
static void
test_backlog_windows(void)
{
    static const struct {
        const char *journal;
        bool rate, seen; /* open for the task and the execution of IDS */
    } rows[] = {
        {"a1:1@10", true, true},
        {"a1:1@10 e1:1", true, true},
        {"a1:1@280", true, true},
        {"a1:1@301", false, true},
        {"a1:1@601", false, false},
        {"a1:1@-100", true, true},
        {"w1:1@10", false, false}, /* rewritten: it has records of its own */
        {"a1:3@10", false, false}, /* of the other kind */
        {"r0@280", true, false},
        {"r0@301", false, false},
        {"s0@580 s0@10", false, true},
    };
    struct window_key task = key_of(TASK_ID), run = key_of(RUN_ID);

    for (size_t i = 0; i < COUNT(rows); i++) {
        write_journal(rows[i].journal);
        for (int start = 0; start < 3; start++) {
            static struct test_backlog t;
            backlog_start_load(&t);
            struct window_table *table = t.windows.table[ALERT_FAILURE];
            int64_t now_ms = plat_now_ms();
            check((window_find(&table[WINDOW_RATE], &task, now_ms) != NULL) == rows[i].rate &&
                    (window_find(&table[WINDOW_SEEN], &run, now_ms) != NULL) == rows[i].seen,
                "row %zu, start %d: open or not", i, start);
            if (start == 1)
                backlog_rewrite_all(&t);
            backlog_finish(&t);
        }
    }
}

/* One random step of a webhook's life. flying: up to four calls without a result yet. */
static void
backlog_step(struct test_backlog *t, struct delivery **flying)
{
    static const int statuses[] = {200, 200, 201, 404, 408, 429, 500, 503};
    struct webhook *w = &t->w[random_below(3)];
    struct delivery **slot = &flying[random_below(4)];
    int64_t ignored = INT64_MAX;

    switch (random_below(8)) {
    case 0:
    case 1:
        backlog_gets(t, random_below(3) == 0, "M");
        break;
    case 2:
    case 3:
    case 4:
        if (*slot) {
            uint32_t how = random_below(8);
            backlog_answers(*slot,
                how == 0       ? HTTP_UNSENT
                    : how == 1 ? HTTP_BROKEN
                               : HTTP_ANSWERED,
                statuses[random_below(COUNT(statuses))], (int64_t)random_below(9) - 1);
            *slot = NULL;
        } else
            *slot = backlog_take(t, w, LONG_AFTER);
        break;
    case 5:
        t->b.grace_until_ms = 0;
        if (w->list.oldest && random_below(4) == 0)
            w->list.oldest->payload->accepted_ms = plat_now_ms() - 73 * AGE_UNIT_MS;
        webhook_expire(w, plat_now_ms());
        break;
    case 6:
        backlog_write_letters(&t->b);
        journal_write(&t->journal, plat_now_ms());
        journal_upkeep(&t->journal, backlog_newest(&t->b), plat_now_ms(), &ignored);
        journal_take_results(&t->journal, plat_now_ms());
        break;
    default:
        journal_write(&t->journal, plat_now_ms());
        if (random_below(20) == 0)
            t->journal.wants_rewrite = true;
        if (journal_wants_rewrite(&t->journal, (int64_t)t->b.bytes, plat_now_ms()))
            backlog_rewrite(&t->b, plat_now_ms());
    }
}

/* Random steps over many starts: each start finds what waited at the end before. */
static void
test_backlog_random(void)
{
    struct buf waiting = {0};

    state_clear();
    buf_add_text(&waiting, "||");
    for (int start = 0; start < 15; start++) {
        static struct test_backlog t;
        struct delivery *flying[4] = {NULL};
        backlog_start_load(&t);
        check_waiting(&t.b, waiting.data, "what waited at the end before");
        for (int i = 0; i < 300; i++) {
            backlog_step(&t, flying);
            check_backlog(&t.b, "after a step");
        }
        backlog_write_all(&t); /* letters that are not yet written would wait again */
        buf_free(&waiting);
        waiting_text(&t.b, &waiting);
        backlog_finish(&t);
    }
    check(waiting.len > 20, "something waits: %s", waiting.data);
    buf_free(&waiting);
}

/* What --replay has handed over: it waits again, or is a dead letter again; none is lost. */
static void
test_backlog_replay(void)
{
    static const struct {
        int good, gone, large; /* letters, in their order */
        bool damaged;          /* the line between */
        int again, stay;
    } rows[] = {
        {2, 0, 0, false, 2, 0},
        {3, 2, 0, true, 3, 3},
        {0, 200, 0, false, 0, 200}, /* more than one round takes: some while others are written */
        {1, 1, 70, false, 1, 71},
        {0, 0, 0, true, 0, 1},
    };
    struct buf message = {0};

    while (message.len < 60000)
        buf_add_char(&message, 'x');
    for (size_t i = 0; i < COUNT(rows); i++) {
        static struct test_backlog t;
        struct buf lines = {0}, json = {0};
        struct alert alert = alert_of(SLICE(FAILED ";QS1;T;A;u;" IDS ";M"));
        int64_t now_ms = plat_now_ms(), until_ms;
        char text[80];
        int n = 0;

        state_clear();
        backlog_start_load(&t);
        for (int k = 0; k < rows[i].good + rows[i].gone + rows[i].large; k++) {
            bool gone = k >= rows[i].good && k < rows[i].good + rows[i].gone;
            if (k >= rows[i].good + rows[i].gone)
                alert.field[FIELD_MESSAGE] = message.data;
            json.len = 0;
            alert_add_json(&alert, &json);
            buf_format(&lines, "{\"webhookKey\":\"%s\",\"place\":9,\"count\":9,\"alert\":%s}\n",
                gone ? KEY1 : t.w[1].config->key, json.data);
            if (k == 1 && rows[i].damaged)
                buf_add_text(&lines, "{\"damaged\n");
        }
        if (lines.len == 0)
            buf_add_text(&lines, "\n{\"damaged");
        write_state("replay.ndjson", (struct slice){lines.data, lines.len});
        t.b.room = 5000;
        backlog_settle(&t);
        backlog_gets(&t, ALERT_ABORTED, "M"); /* delivered at once, it needs no sync */
        backlog_answers(backlog_take(&t, &t.w[2], LONG_AFTER), HTTP_ANSWERED, 200, -1);
        journal_write(&t.journal, plat_now_ms());
        backlog_settle(&t);
        for (int k = 0; k < 400 && is_in_state("replay.ndjson"); k++) {
            now_ms += 2 * LOOK_MS;
            journal_take_results(&t.journal, now_ms);
            t.b.stopping = t.journal.replay_is_read; /* a stop ends what was read */
            backlog_replay(&t.b, now_ms, &until_ms);
            backlog_write_letters(&t.b);
            journal_write(&t.journal, now_ms);
            journal_upkeep(&t.journal, backlog_newest(&t.b), now_ms, &until_ms);
            usleep(3000);
        }
        check(!is_in_state("replay.ndjson"), "row %zu: it comes to an end", i);
        snprintf(text, sizeof text, "info: dead letters: %d taken back to be sent again, %d stay",
            rows[i].again, rows[i].stay);
        check_number(log_count(text), 1, text);
        check((int)t.w[1].list.count == rows[i].again && t.b.waiting == t.w[1].list.count,
            "row %zu: %zu wait again", i, t.b.waiting);
        check_backlog(&t.b, "replayed");
        backlog_finish(&t);
        buf_free(&lines);
        lines = read_state("dead-letters.ndjson");
        for (const char *p = lines.data; (p = strchr(p, '\n')); p++)
            n++;
        check_number(n, rows[i].stay, "letters that stay");
        buf_free(&lines);
        buf_free(&json);
        alert_done(&alert);
        backlog_start_load(&t);
        check_number((int)t.w[1].list.count, rows[i].again, "they still wait after a start");
        backlog_finish(&t);
    }
    buf_free(&message);
}

static void
test_11(void)
{
    test_webhook_judge();
    test_webhook_backoff();
    test_webhook_begin();
    test_webhook_settle();
    test_webhook_paced();
    test_webhook_suspects();
    test_webhook_pauses();
    test_backlog_room();
    test_webhook_expire();
    test_dead_letters();
    test_backlog_match();
    test_backlog_load();
    test_backlog_times();
    test_backlog_windows();
    test_backlog_random();
    test_backlog_replay();
    state_clear();
    log_begin(LOG_ERROR);
}

/* ==== 12. Listener ========================================================== */

/* A listener without a socket, over the backlog of BACKLOG_YAML. */
struct test_listener {
    struct test_backlog t;
    struct listener l;
};

/* Readies one as listen_open and loop_start do. udp: more of udpServerConfig. */
static void
listener_start(struct test_listener *x, const char *yaml, const char *udp)
{
    struct buf b = {0};

    buf_format(&b, "%s  udpServerConfig: {enable: true%s}\n", yaml, udp);
    backlog_start(&x->t, b.data);
    backlog_load(&x->t.b, false);
    buf_free(&b);
    x->l = (struct listener){.backlog = &x->t.b, .sock = -1};
}

static void
listener_finish(struct test_listener *x)
{
    struct listener *l = &x->l;

    check(l->inbox.cap <= 1 && l->sorted == 0, "the inbox is empty");
    buf_free(&l->inbox);
    alert_done(&l->alert);
    buf_free(&l->accepted);
    backlog_finish(&x->t);
}

/* Puts one datagram into the inbox. */
static void
listener_stores(struct test_listener *x, const char *from, struct slice datagram)
{
    struct inbox_head head = {.len = (uint32_t)datagram.len};
    struct plat_addr addr = address(from, 1);

    plat_addr_bytes(&addr, head.from);
    buf_add(&x->l.inbox, &head, sizeof head);
    buf_add(&x->l.inbox, datagram.data, datagram.len);
    x->l.received++;
    x->l.unsorted++;
}

/* Has one datagram come and sorted. */
static void
listener_gets(struct test_listener *x, const char *from, struct slice datagram, int64_t now_ms)
{
    listener_stores(x, from, datagram);
    listen_sort(&x->l, now_ms);
    listen_log_accepted(&x->l, journal_write(&x->t.journal, now_ms) == 0);
}

/* The same with an event of a task and an execution. */
static void
listener_gets_event(struct test_listener *x, const char *id, int task, int run, int64_t now_ms)
{
    char text[400];

    snprintf(text, sizeof text,
        "%s;QS1;T;A;u;%08d-1680-44ef-8dc2-e2bfb180af87;" APP_ID ";" WHEN
        ";INFO;%08d-34f6-45bb-9d40-73a6e6992670;M",
        id, task, run);
    listener_gets(x, "10.0.0.1", slice_of(text), now_ms);
}

#define SUCCESS SLICE("/scheduler-reload-success/")

static void
test_listen_sources(void)
{
    static const struct {
        const char *sources, *from;
        bool allowed;
    } rows[] = {
        {"10.1.2.3", "10.1.2.3", true}, {"10.1.2.3", "10.1.2.2", false},
        {"10.1.2.3", "::ffff:10.1.2.3", true}, {"'::ffff:10.1.2.3'", "10.1.2.3", true},
        {"10.1.2.3/32", "10.1.2.2", false}, {"10.1.2.2/31", "10.1.2.3", true},
        {"10.1.2.2/31", "10.1.2.4", false},
        {"10.1.2.3/16", "10.1.9.9", true}, /* bits behind the range do not count */
        {"10.1.0.0/16", "10.2.0.0", false}, {"128.0.0.0/1", "255.1.2.3", true},
        {"128.0.0.0/1", "127.255.255.255", false}, {"172.16.0.0/12", "172.31.255.255", true},
        {"172.16.0.0/12", "172.32.0.0", false}, {"0.0.0.0/0", "1.2.3.4", true},
        {"0.0.0.0/0", "2001:db8::1", false}, {"'::/0'", "1.2.3.4", false},
        {"'2001:db8::/33'", "2001:db8:7fff::", true}, {"'2001:db8::/33'", "2001:db8:8000::", false},
        {"'2001:db8::/127'", "2001:db8::1", true}, {"'2001:db8::/127'", "2001:db8::2", false},
        {"'fe80::/10'", "febf::1", true}, {"'fe80::/10'", "fec0::1", false},
        {"'::1'", "127.0.0.1", false}, {"10.0.0.1, 10.0.0.2, '::1'", "10.0.0.2", true},
        {"10.0.0.1, 10.0.0.2, '::1'", "10.0.0.3", false},
        {"qs1.example", "10.0.0.1", false}, /* a name that was not looked up yet */
        {"", "10.0.0.1", true},             /* an empty list is no check */
    };

    for (size_t i = 0; i < 2 * COUNT(rows); i++) {
        static struct test_listener x;
        bool checked = i % 2;
        char udp[200];
        snprintf(udp, sizeof udp, ", enableSourceValidation: %s, allowedSources: [%s]",
            checked ? "true" : "false", rows[i / 2].sources);
        listener_start(&x, IN_MEMORY, udp);
        listener_gets(&x, rows[i / 2].from, SUCCESS, 1000);
        check_number((int)x.l.count[LISTEN_REFUSED], checked && !rows[i / 2].allowed, udp);
        check_number((int)x.l.count[LISTEN_IGNORED], !checked || rows[i / 2].allowed, udp);
        check_number(
            log_count("warn: datagram ignored, its sender is not in allowedSources, from "),
            (int)x.l.count[LISTEN_REFUSED], "logged");
        listener_finish(&x);
    }
}

/* Names in allowedSources: who they are is found out beside everything else. */
static void
test_listen_names(void)
{
    static struct test_listener x;
    int64_t now_ms = 1000000;

    listener_start(
        &x, IN_MEMORY, ", enableSourceValidation: true, allowedSources: [10.0.0.1, localhost]");
    for (int i = 0; i < 3000 && x.t.config.source[1].addresses == 0; i++) {
        listen_look_up(&x.t.config, now_ms);
        usleep(x.t.config.source[1].addresses == 0 ? 1000 : 0);
    }
    check_number(x.t.config.source[1].again_ms, now_ms + LOOKUP_MS, "found: not again for long");
    listener_gets(&x, "10.0.0.1", SUCCESS, now_ms);
    listener_gets(&x, "127.0.0.1", SUCCESS, now_ms);
    listener_gets(&x, "10.0.0.2", SUCCESS, now_ms);
    check(x.l.count[LISTEN_IGNORED] == 2 && x.l.count[LISTEN_REFUSED] == 1, "who may send");
    listen_look_up(&x.t.config, now_ms + LOOKUP_MS - 1);
    check(!x.t.config.source[1].lookup, "not yet again");
    listen_look_up(&x.t.config, now_ms + LOOKUP_MS);
    listener_gets(&x, "127.0.0.1", SUCCESS, now_ms);
    check_number((int)x.l.count[LISTEN_IGNORED], 3, "meanwhile the old answer counts");
    listener_finish(&x);
}

/* An executionId may be anything, but the log line stays short. */
static void
test_listen_long_id(void)
{
    static struct test_listener x;
    char text[1000];

    listener_start(&x, IN_MEMORY, "");
    snprintf(
        text, sizeof text, "%s;QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN ";INFO;%0500d;M", FAILED, 0);
    listener_gets(&x, "10.0.0.1", slice_of(text), 1000);
    check_number(log_count("0..., for 2 webhooks"), 1, "cut in the log");
    listener_finish(&x);
}

/* What becomes of each kind of datagram. */
static void
test_listen_sort(void)
{
    static struct test_listener x;
    const unsigned long long *n = x.l.count;

    listener_start(&x, IN_MEMORY, ", maxMessageSize: 300");
    listener_gets(&x, "10.0.0.1", SLICE(FAILED ";QS1;T\n;A;u;" IDS ";M"), 1000);
    check(n[LISTEN_ACCEPTED] == 1 && x.t.w[0].list.count == 1 && x.t.w[1].list.count == 1 &&
            x.t.w[2].list.count == 0,
        "a failure goes to each webhook for failures");
    check_number(log_count("info: alert 1 accepted: reload failed, task \"T\\x0a\" (" TASK_ID
                           "), app \"A\", execution " RUN_ID ", for 2 webhooks, in memory only"),
        1, "logged");
    check_text(x.t.b.oldest->about, "4831c6a534f645bb9d4073a6e6992670_f", "its webhook-id");
    listener_gets(&x, "10.0.0.1", SLICE(ABORTED_ID ";QS1;T;A;u;" IDS ";M"), 1000);
    check(n[LISTEN_ACCEPTED] == 2 && x.t.w[2].list.count == 1, "an abort of the same execution");
    check_number(log_count("info: alert 2 accepted: reload aborted, task \"T\""), 1, "logged");
    check_number(log_count(", for 1 webhook, "), 1, "one webhook");
    listener_gets(&x, "10.0.0.1", SUCCESS, 1000);
    check_number(log_count("verbose: ignored: /scheduler-reload-success/"), 1, "a success");
    listener_gets(&x, "10.0.0.1", SLICE("/x\x1b/;QS1"), 1000);
    check_number(
        log_count("warn: unknown message id: /x\\x1b/, from 10.0.0.1"), 1, "an unknown id");
    listener_gets(&x, "::1", SLICE(FAILED ";a\nb\xe9"), 1000);
    check_number(log_count("warn: malformed datagram: no taskId"), 1, "malformed");
    check_number(
        log_count(": \"" FAILED ";a\\x0ab\xc3\xa9\", from ::1"), 1, "with its text, decoded");
    char large[301] = FAILED ";";
    memset(large + strlen(large), 'x', sizeof large - strlen(large));
    listener_gets(&x, "10.0.0.1", (struct slice){large, 300}, 1000);
    check(log_count("xxxx...\"") == 1 && n[LISTEN_MALFORMED] == 2, "the largest that is allowed");
    listener_gets(&x, "10.0.0.1", (struct slice){large, 301}, 1000);
    check_number(
        log_count("error: datagram dropped, larger than maxMessageSize: 301 bytes, from 10.0.0.1"),
        1, "one byte more");
    listener_gets(&x, "10.0.0.1", SLICE(""), 1000);
    check(x.l.received == 8 && n[LISTEN_ACCEPTED] == 2 && n[LISTEN_IGNORED] == 1 &&
            n[LISTEN_UNKNOWN] == 2 && n[LISTEN_MALFORMED] == 2 && n[LISTEN_OVERSIZE] == 1,
        "what became of all: %llu unknown, %llu malformed", n[LISTEN_UNKNOWN], n[LISTEN_MALFORMED]);
    listener_finish(&x);
}

/* Alerts are logged as accepted when it is known whether the journal holds them. */
static void
test_listen_accepted(void)
{
    static struct test_listener x;

    state_clear();
    listener_start(&x, ON_DISK, "");
    listener_stores(&x, "10.0.0.1", SLICE(FAILED ";QS1;T;A;u;" IDS ";M"));
    listener_stores(&x, "10.0.0.1", SLICE(ABORTED_ID ";QS1;T;A;u;" IDS ";M"));
    listen_sort(&x.l, 1000);
    check_number(log_count("accepted"), 0, "nothing is logged yet");
    listen_log_accepted(&x.l, journal_write(&x.t.journal, 1000) == 0);
    check(log_count("alert 1 accepted: ") == 1 && log_count("alert 2 accepted: ") == 1 &&
            log_count("in memory only") == 0,
        "both are");
    listen_log_accepted(&x.l, true);
    check_number(log_count("accepted"), 2, "once");
    listener_finish(&x);
    backlog_start_load(&x.t);
    check_waiting(&x.t.b, "1|1|2", "and stand in the journal");
    backlog_finish(&x.t);
    state_clear();
}

static void
test_listen_held_back(void)
{
    static const struct {
        const char *id;
        int task, run;
        int64_t now_ms;
        const char *what; /* accepted, duplicate, held */
    } rows[] = {
        {FAILED, 1, 1, 0, "accepted"}, {FAILED, 1, 1, 0, "duplicate"},
        {ABORTED_ID, 1, 1, 0, "accepted"},
        {ABORTED_ID, 1, 6, 59999, "held"}, /* 60 s for aborted ones */
        {ABORTED_ID, 1, 7, 60000, "accepted"}, {FAILED, 1, 2, 299999, "held"},
        {FAILED, 2, 3, 299999, "accepted"}, {FAILED, 1, 1, 299999, "duplicate"},
        {FAILED, 1, 4, 300000, "accepted"}, /* what was held back did not extend the window */
        {FAILED, 1, 5, 599999, "held"},
        {FAILED, 1, 1, 599999, "duplicate"}, /* ten minutes since the first */
        {FAILED, 3, 1, 599999, "duplicate"}, /* by execution alone */
        {FAILED, 1, 5, 600000, "accepted"},  /* what was held back is no duplicate */
    };
    static struct test_listener x;

    listener_start(&x, IN_MEMORY, "");
    for (size_t i = 0; i < COUNT(rows); i++) {
        log_forget();
        listener_gets_event(&x, rows[i].id, rows[i].task, rows[i].run, rows[i].now_ms);
        const char *got = log_count(" accepted: ")             ? "accepted"
            : log_count("info: duplicate ignored: ")           ? "duplicate"
            : log_count("info: held back by the rate limit: ") ? "held"
                                                               : "nothing";
        check(log_count("") == 1 && strcmp(got, rows[i].what) == 0,
            "row %zu, task %d, run %d at %lld: %s", i, rows[i].task, rows[i].run,
            (long long)rows[i].now_ms, got);
    }
    check(x.l.count[LISTEN_DUPLICATE] == 4 && x.l.count[LISTEN_HELD_BACK] == 3, "counted");
    listener_gets_event(&x, FAILED, 1, 100, 700000);
    listener_gets_event(&x, FAILED, 1, 101, 700001);
    check_number(
        log_count(", execution 00000101-34f6-45bb-9d40-73a6e6992670, 2 since the last alert"), 1,
        "how many of a task");
    log_forget();
    for (int i = 0; i < 3; i++)
        listener_gets(&x, "10.0.0.1", SLICE(FAILED ";QS1;T;A;u;;" APP_ID ";;INFO;;M"), 0);
    check_number(log_count(" accepted: "), 3, "without taskId and executionId none is held back");
    listener_finish(&x);

    listener_start(&x, IN_MEMORY, ", deduplication: {enable: false}");
    listener_gets_event(&x, FAILED, 1, 1, 0);
    listener_gets_event(&x, FAILED, 1, 1, 0);
    check_number(log_count("held back by the rate limit"), 1, "no de-duplication");
    listener_finish(&x);
}

/* udpServerConfig.rateLimit, and that what others can cause fills no log. */
static void
test_listen_limits(void)
{
    static struct test_listener x;

    listener_start(&x, IN_MEMORY,
        ", rateLimit: {enable: true, maxMessagesPerMinute: 3}, enableSourceValidation: true, "
        "allowedSources: [10.0.0.1]");
    for (int i = 0; i < 10; i++) {
        listener_gets(&x, "10.0.0.2", SUCCESS, 100000);
        listener_gets(&x, "10.0.0.1", SUCCESS, 100000 + i);
    }
    check_number((int)x.l.count[LISTEN_IGNORED], 3, "three in a minute, of those that may send");
    check_number(
        log_count("error: datagram dropped, over udpServerConfig.rateLimit, from 10.0.0.1"), 7,
        "logged");
    listener_gets(&x, "10.0.0.1", SUCCESS, 100000 + MINUTE_MS - 1);
    check_number((int)x.l.count[LISTEN_IGNORED], 3, "still the same minute");
    listener_gets(&x, "10.0.0.1", SUCCESS, 100000 + MINUTE_MS);
    check_number((int)x.l.count[LISTEN_IGNORED], 4, "a new one");
    listener_finish(&x);

    listener_start(&x, IN_MEMORY, "");
    listen_log_counts(&x.l, 100000, false); /* a minute begins */
    for (int i = 0; i < 1000; i++) {
        listener_gets(&x, "10.0.0.1", SLICE("/x/"), 100000);
        listener_gets(&x, "10.0.0.1", SLICE(FAILED ";x"), 100000);
    }
    check_number(log_count("warn: unknown message id: "), LOG_MINUTE_MAX, "lines in a minute");
    check_number(log_count("warn: malformed datagram: "), LOG_MINUTE_MAX, "of each kind");
    listen_log_counts(&x.l, 100000 + MINUTE_MS - 1, false);
    check_number(log_count(" more "), 0, "the minute is not over");
    listen_log_counts(&x.l, 100000 + MINUTE_MS, false);
    check_number(log_count("warn: 980 more in the last minute: malformed datagram") +
            log_count("warn: 980 more in the last minute: unknown message id"),
        2, "then the others are counted");
    listener_gets(&x, "10.0.0.1", SLICE("/x/"), 100000 + MINUTE_MS);
    check_number(log_count("unknown message id: /x/,"), LOG_MINUTE_MAX + 1, "and logged again");
    listener_finish(&x);
}

static void
test_listen_throttle(void)
{
    static struct listener l;
    const uint8_t from[16] = {0};
    int64_t now = 5000000;

    log_begin(LOG_INFO);
    listen_log_counts(&l, now, false);
    check_number(log_count("more in"), 0, "nothing to tell");
    for (int i = 0; i < 3 * LOG_MINUTE_MAX; i++)
        listen_log(&l, LISTEN_UNKNOWN, from, "x");
    check_number(log_count("unknown message id: x, from ::"), LOG_MINUTE_MAX, "lines in a minute");
    listen_log_counts(&l, now + MINUTE_MS - 1, false);
    check_number(log_count("more in"), 0, "not told before");
    listen_log_counts(&l, now + MINUTE_MS, false);
    check_number(log_count("warn: 40 more in the last minute: unknown message id"), 1, "the count");
    for (int i = 0; i <= LOG_MINUTE_MAX; i++)
        listen_log(&l, LISTEN_UNKNOWN, from, "y");
    check_number(log_count("unknown message id: y, from ::"), LOG_MINUTE_MAX, "the next minute");
    listen_log_counts(&l, now + MINUTE_MS + 1, true);
    check_number(log_count("warn: 1 more in the last minute: unknown message id"), 1,
        "the count at the end");
    now += MINUTE_MS;
    for (int i = 0; i < 100; i++) {
        listen_log(&l, LISTEN_UNKNOWN, from, "z");
        listen_log_counts(&l, now += MINUTE_MS / 10, false);
    }
    check_number(log_count("unknown message id: z, from ::"), 100, "few have a line each");
    listen_log_counts(&l, now, true);
    check_number(log_count("more in the last minute: unknown message id"), 2, "none");
}

/* The inbox: its order, and how much is sorted at a time. */
static void
test_listen_inbox(void)
{
    static struct test_listener x;
    unsigned long long before;

    listener_start(&x, IN_MEMORY, ", deduplication: {enable: false}");
    x.t.windows.table[ALERT_FAILURE][WINDOW_RATE].length_ms = 0;
    for (int i = 0; i < 4 * SORT_ROUND; i++) { /* every fifth datagram is none of ours */
        char text[300];
        snprintf(text, sizeof text, "%s%s%d", i % 5 ? FAILED : "/scheduler-reload-success/",
            ";QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN ";INFO;;", i);
        listener_stores(&x, "10.0.0.1", slice_of(text));
    }
    check_number((long long)x.l.received, 4 * SORT_ROUND, "stored");
    for (int i = 1; i <= 3; i++) {
        listen_sort(&x.l, 0);
        check_number((int)x.l.count[LISTEN_ACCEPTED], i * SORT_ROUND, "alerts of a round");
    }
    listen_sort(&x.l, 0);
    listen_log_accepted(&x.l, true);
    for (const struct delivery *d = x.t.w[0].list.oldest; d; d = d->newer) {
        char want[40];
        int n = (int)d->payload->number; /* from 1 */
        snprintf(want, sizeof want, "\"logMessage\":\"%d\"}", n + (n - 1) / 4);
        check(strstr(d->payload->json.data, want) != NULL, "in order: %s", want);
    }
    check_number((int)x.l.count[LISTEN_IGNORED], 26, "the others");
    check_number((int)x.t.w[0].list.count, 4 * SORT_ROUND - 26, "alerts");

    for (int i = 0; i < RECV_ROUND + 10; i++)
        listener_stores(&x, "10.0.0.1", SUCCESS);
    before = x.l.count[LISTEN_IGNORED];
    listen_sort(&x.l, 0);
    check_number(
        (long long)(x.l.count[LISTEN_IGNORED] - before), RECV_ROUND, "datagrams of a round");
    listen_sort(&x.l, 0);
    listener_finish(&x);
}

/* A real socket: what was sent is received, but stays in the system when the inbox is full. */
static void
test_listen_socket(void)
{
    static struct test_listener x;
    struct plat_addr to = {.len = sizeof to.ss};
    struct err e = {""};
    char text[64];
    intptr_t sender = socket(AF_INET, SOCK_DGRAM, 0);

    listener_start(&x, IN_MEMORY, ", enableSourceValidation: true, allowedSources: [127.0.0.0/8]");
    struct listener *l = &x.l, other;
    x.t.config.udp_port = 0;
    check(listen_open(l, &x.t.config, &e) == 0, "listen_open: %s", e.text);
    check(getsockname((int)l->sock, (void *)&to.ss, &to.len) == 0, "its port");
    l->backlog = &x.t.b;
    check_number(log_count("info: listening on 127.0.0.1:0 (UDP), receive buffer "), 1, "logged");
    for (int i = 0; i < 64; i++) {
        snprintf(text, sizeof text, "/scheduler-reload-success/%d", i);
        sendto((int)sender, text, strlen(text), 0, (void *)&to.ss, to.len);
    }
    l->inbox.len = INBOX_MAX;
    listen_receive(l, 0, false);
    check(l->received == 0 && l->more, "the inbox is full: they stay in the system's buffer");
    l->inbox.len = 0;
    while (l->more)
        listen_receive(l, 0, false);
    check(l->received == 64 && !l->failed, "received");
    listen_sort(l, 0);
    check_number((int)x.l.count[LISTEN_UNKNOWN] + (int)x.l.count[LISTEN_IGNORED], 64, "sorted");
    check_number((int)x.l.count[LISTEN_REFUSED], 0, "from this machine");
    x.t.config.udp_port = ntohs(((struct sockaddr_in *)(void *)&to.ss)->sin_port);
    check(listen_open(&other, &x.t.config, &e) != 0 &&
            strstr(e.text, "in use; if another program listens there"),
        "the port is taken: %s", e.text);
    plat_close(l->sock);
    plat_close(sender);
    listener_finish(&x);
}

static void
test_12(void)
{
    test_listen_sources();
    test_listen_names();
    test_listen_long_id();
    test_listen_sort();
    test_listen_accepted();
    test_listen_held_back();
    test_listen_limits();
    test_listen_throttle();
    test_listen_inbox();
    test_listen_socket();
    log_begin(LOG_ERROR);
}

/* ==== 13. Loop ============================================================== */

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

/* Runs main in a process of its own, which writes into the files out and err. */
static pid_t
main_start(const char *const *args)
{
    char *argv[5] = {"butler_webhook", NULL}, path[2][300];
    int argc = 1;
    pid_t child;

    for (; argc < 4 && args[argc - 1]; argc++)
        argv[argc] = (char *)(uintptr_t)args[argc - 1];
    snprintf(path[0], sizeof path[0], "%s/out", folder);
    snprintf(path[1], sizeof path[1], "%s/err", folder);
    fflush(stdout);
    child = fork();
    if (child != 0)
        return child;
    if (!freopen(path[0], "w", stdout) || !freopen(path[1], "w", stderr))
        _exit(99);
    signal(SIGINT, SIG_DFL); /* in the background, a shell may have it ignored, and so would we */
    butler_webhook_main(argc, argv);
    _exit(98); /* not reached */
}

/* Returns its exit code, -1: it crashed. */
static int
main_wait(pid_t child)
{
    int status = 0;

    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* What it wrote into a file; the caller frees it. */
static struct buf
main_wrote(const char *name)
{
    struct buf b = {0};
    char path[300], *text;
    size_t len;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    buf_add(&b, "", 0);
    if (plat_read_file(path, 1 << 20, &text, &len) == 0) {
        buf_add(&b, text, len);
        free(text);
    }
    return b;
}

/* Waits until its log holds text. */
static bool
main_logs(const char *text)
{
    bool found = false;

    for (int i = 0; i < 1000 && !found; i++) {
        struct buf b = main_wrote("out");
        found = strstr(b.data, text) != NULL;
        buf_free(&b);
        if (!found)
            usleep(10000);
    }
    return check(found, "the log does not say \"%s\"", text);
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
    check(strstr(request.data, text) != NULL, "it holds \"%s\": %s", text, request.data);
    plat_send(client, answer, strlen(answer));
    plat_close(client);
    buf_free(&request);
}

/* From a datagram to a call, and what waits over a stop and a start. */
static void
test_loop_run(void)
{
    struct plat_addr addr = address("127.0.0.1", 0), udp = {.len = sizeof udp.ss};
    intptr_t server = listen_on(&addr, 4), sender = socket(AF_INET, SOCK_DGRAM, 0);
    int port = socket(AF_INET, SOCK_DGRAM, 0); /* finds one that is free */
    const char *args[3] = {NULL};
    struct buf yaml = {0};
    char to[64], config[300];
    pid_t child;
    int again;

    state_clear();
    plat_addr_text(&addr, to);
    udp = address("127.0.0.1", 0);
    check(bind(port, (void *)&udp.ss, udp.len) == 0 &&
            getsockname(port, (void *)&udp.ss, &udp.len) == 0,
        "a free port");
    plat_close(port);
    buf_format(&yaml,
        HOOKS "        - {webhookURL: 'http://%s/', httpMethod: POST}\n"
              "  butlerWebhook: {stateDirectory: state}\n"
              "  udpServerConfig: {enable: true, portTaskFailure: %d}\n",
        to, ntohs(((struct sockaddr_in *)(void *)&udp.ss)->sin_port));
    snprintf(config, sizeof config, "%s",
        write_file("butler.yaml", (struct slice){yaml.data, yaml.len}));
    args[0] = config;

    child = main_start(args);
    main_logs("0 alerts wait");
    sendto((int)sender, FAILED ";QS1;T;A;u;" IDS ";one", strlen(FAILED ";QS1;T;A;u;" IDS ";one"), 0,
        (void *)&udp.ss, udp.len);
    main_calls(server, "\r\nwebhook-id: msg_4831c6a534f645bb9d4073a6e6992670_f_",
        OK "Content-Length: 0\r\n\r\n");
    main_logs("alert 1 delivered to failure 1: 200");
    sendto((int)sender, FAILED ";QS1;T;A;u;;" APP_ID ";;INFO;;two",
        strlen(FAILED ";QS1;T;A;u;;" APP_ID ";;INFO;;two"), 0, (void *)&udp.ss, udp.len);
    main_calls(server, "\"logMessage\":\"two\"}", "no HTTP\r\n\r\n");
    main_logs("alert 2 to failure 1: the answer is not HTTP");
    kill(child, SIGTERM);
    check_number(main_wait(child), 0, "exit code");
    main_logs("stopped: 2 received, 2 accepted, 1 delivered, 0 given up, 0 lost, 1 waiting");
    /* It may have called again: a backoff can be short. */
    while ((again = accept((int)server, NULL, NULL)) >= 0)
        plat_close(again);

    child = main_start(args);
    main_logs("1 alert waits");
    main_calls(server, "\"logMessage\":\"two\"}", OK "Content-Length: 0\r\n\r\n");
    main_logs("alert 2 delivered to failure 1: 200");
    kill(child, SIGINT);
    check_number(main_wait(child), 0, "exit code");
    main_logs("stopped: 0 received, 0 accepted, 1 delivered, 0 given up, 0 lost, 0 waiting");
    plat_close(server);
    plat_close(sender);
    buf_free(&yaml);
    state_clear();
}

/* What a stop leaves undone is lost unless the journal holds it; logged while there is time. */
static void
test_loop_lost(void)
{
    static const struct {
        uint64_t safe;
        bool late;
        int lost, logged;
    } rows[] = {{2, false, 0, 0}, {1, false, 1, 1}, {0, false, 3, 3}, {0, true, 3, 0}};

    for (size_t i = 0; i < COUNT(rows); i++) {
        static struct test_backlog t;
        static struct app app;
        backlog_start(&t, IN_MEMORY);
        backlog_gets(&t, ALERT_FAILURE, "M"); /* for two webhooks */
        backlog_gets(&t, ALERT_ABORTED, "M");
        app.backlog = t.b;
        app.lost = 0;
        app.backlog.safe_number = rows[i].safe;
        loop_log_lost(&app, rows[i].late ? 0 : INT64_MAX);
        check_number((long long)app.lost, rows[i].lost, "lost");
        check_number(log_count(": stopped before it was delivered; alert: {\"event\":"),
            rows[i].logged, "logged whole");
        backlog_finish(&t);
    }
}

static void
test_13(void)
{
    test_loop_run();
    test_loop_lost();
    log_begin(LOG_ERROR);
}

/* ==== 14. Command line ====================================================== */

#define UDP_ON "  udpServerConfig: {enable: true}\n"

/* Each command: its exit code, and what it prints. */
static void
test_14(void)
{
    static const char usage[] = "wrong usage";
    /* out, err: a part of it; NULL: nothing is written there */
    static const struct {
        const char *args[4];
        int code;
        const char *out, *err;
    } rows[] = {
        {{NULL}, 2, NULL, usage},
        {{"--version"}, 0, "butler_webhook " VERSION ", root certificates of " ROOTS_DATE "\n",
            NULL},
        {{"--help"}, 0, "butler_webhook --check", NULL},
        {{"--licenses"}, 0, "Mbed TLS", NULL},
        {{"--nonsense"}, 2, NULL, "wrong usage: --nonsense; see butler_webhook --help\n"},
        {{"--version", "GOOD"}, 2, NULL, usage},
        {{"--check"}, 2, NULL, usage},
        {{"--check", "GOOD", "GOOD"}, 2, NULL, usage},
        {{"--check", "--json", "GOOD"}, 2, NULL, usage},
        {{"--json", "GOOD"}, 2, NULL, usage},
        {{"GOOD", "GOOD"}, 2, NULL, usage},
        {{"GOOD", "--check"}, 2, NULL, usage},
        {{"--check", "GOOD"}, 0, " is valid: 0 errors, 0 warnings\n", NULL},
        {{"--check", "WARN"}, 0, " is valid: 0 errors, 1 warning\n", "WARN:9:33: warning: "},
        {{"--check", "WARN"}, 0, "NOT CHECKED", "warning"},
        {{"--check", "BAD"}, 2, ": 2 errors, 0 warnings\n", "BAD:6:24: error: "},
        {{"--check", "OFF"}, 0, "disabled by webhookNotification.enable: false",
            "OFF:6:23: warning: "},
        {{"--check", "/nonexistent"}, 2, ": 1 error, 0 warnings\n", "/nonexistent:1:1: error: "},
        {{"BAD"}, 2, NULL, "BAD:6:24: error: "},
        {{"OFF"}, 0, "nothing to do", NULL},
        {{"--test", "BAD"}, 2, NULL, "BAD:6:24: error: "},
        {{"--test", "OFF"}, 2, NULL, "OFF:6:23: error: "},
        {{"--test", "GOOD"}, 1, "FAILED", NULL},
        {{"--pending"}, 2, NULL, usage},
        {{"--pending", "/nonexistent"}, 2, NULL, "/nonexistent:1:1: error: "},
        {{"--pending", "GOOD"}, 0, "reason\nhanded over by --replay, to be sent again:\n", NULL},
        {{"--pending", "--json", "GOOD"}, 0, "{\"waiting\":[],\n\"dead\":[],\n\"handedOver\":[]}\n",
            NULL},
        {{"--replay", "GOOD"}, 0, "no dead letters\n", NULL},
        /* of a state directory with one that waits and two dead letters, one of them damaged */
        {{"--pending", "STATE"}, 0, "1 waiting: accepted, attempts, ", NULL},
        {{"--pending", "STATE"}, 0, "  failure 1  T: status 500\n", NULL},
        {{"--pending", "STATE"}, 0, "  T: status 404\nhanded over", NULL},
        {{"--pending", "--json", "STATE"}, 0, "\"attempts\":3,\"ageSeconds\":", NULL},
        {{"--pending", "--json", "STATE"}, 0, "\"reason\":\"status 404\",\"attempts\":2,", NULL},
        {{"--replay", "STATE"}, 0, "2 dead letters handed over: the service sends them within",
            NULL},
        {{"--replay", "STATE"}, 1, NULL, "a replay is under way"},
        {{"--pending", "STATE"}, 0, "to be sent again:\n2026-", NULL},
    };
    struct buf letters = {0};
    char here[300];

    write_file("GOOD", SLICE(HOOK UDP_ON));
    write_file("WARN", SLICE(TLS_HOOK "            rejectUnauthorized: false\n" UDP_ON));
    write_file("BAD", SLICE(HOOKS "        - {webhookURL: x, httpMethod: NO}\n" UDP_ON));
    write_file("OFF", SLICE(OFF_HOOK));
    write_file("STATE", SLICE(ON_DISK UDP_ON));
    write_journal("a1:1 t1:1*3@5");
    buf_add_text(&letters, LETTER_LINE "\n{\"damaged\n");
    write_state("dead-letters.ndjson", (struct slice){letters.data, letters.len});
    buf_free(&letters);
    check(getcwd(here, sizeof here) && chdir(folder) == 0, "the folder for tests");
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf out, err;
        char what[200] = "butler_webhook";
        int code = main_wait(main_start(rows[i].args));
        for (int k = 0; k < 4 && rows[i].args[k]; k++)
            snprintf(what + strlen(what), sizeof what - strlen(what), " %s", rows[i].args[k]);
        out = main_wrote("out");
        err = main_wrote("err");
        check_number(code, rows[i].code, what);
        check(rows[i].out ? strstr(out.data, rows[i].out) != NULL : out.len == 0,
            "%s prints \"%s\"", what, show((struct slice){out.data, out.len}));
        check(rows[i].err ? strstr(err.data, rows[i].err) != NULL : err.len == 0,
            "%s prints on stderr \"%s\"", what, show((struct slice){err.data, err.len}));
        buf_free(&out);
        buf_free(&err);
    }
    check(chdir(here) == 0, "back");
    state_clear();
}

/* Deletes a file of the folder for tests. */
static void
remove_file(const char *name, void *arg)
{
    char path[600];

    (void)arg;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
}

int
main(void)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {
        {"3. Base", test_03},
        {"4. Log", test_04},
        {"5. Alert", test_05},
        {"6. URL", test_06},
        {"7. Configuration", test_07},
        {"8. Windows of time", test_08},
        {"9. Journal", test_09},
        {"10. HTTP client", test_10},
        {"11. Delivery", test_11},
        {"12. Listener", test_12},
        {"13. Loop", test_13},
        {"14. Command line", test_14},
    };
    static const char *const proxies[] = {"http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY",
        "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"};

    for (size_t i = 0; i < COUNT(proxies); i++)
        unsetenv(proxies[i]);
    snprintf(folder, sizeof folder, "/tmp/butler_webhook-unit.%d", (int)getpid());
    if (!check(mkdir(folder, 0700) == 0, "%s is new", folder))
        return 1;
    signal(SIGPIPE, SIG_IGN); /* as plat_init does */
    cJSON_InitHooks(&(cJSON_Hooks){x_malloc, free});
    psa_crypto_init();
    for (size_t i = 0; i < COUNT(tests); i++) {
        section = tests[i].name;
        tests[i].run();
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
