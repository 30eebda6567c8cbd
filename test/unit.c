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
#include "../butler_webhook.c"
#undef main

#include <cJSON.h>
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
    char *copy = x_check(malloc(s.len ? s.len : 1));

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

/* An address, from its text. */
static struct plat_addr
address(const char *text, int port)
{
    struct plat_addr addr = {0};
    const char *why;

    if (plat_resolve(text, port, true, &addr, 1, &why) != 1)
        check(false, "%s is no address", text);
    return addr;
}

/* The same as a listener keeps it. */
static void
address_bytes(const char *text, uint8_t out[16])
{
    struct plat_addr addr = address(text, 1);

    plat_addr_bytes(&addr, out);
}

/* ==== 2. Platform =========================================================== */

static void
test_platform(void)
{
    static const struct {
        const char *path;
        size_t folder_len;
        bool absolute;
    } paths[] = {
        {"", 0, false},
        {"a.yaml", 0, false},
        {"./a.yaml", 2, false},
        {"conf/a.yaml", 5, false},
        {"/a.yaml", 1, true},
        {"/etc/butler/a.yaml", 12, true},
        {"/etc/butler/", 12, true},
    };
    struct plat_addr addr[ADDRESSES_MAX];
    const char *why = NULL;
    char text[64], path[400], *data;
    uint8_t bytes[16];
    size_t len;

    for (size_t i = 0; i < COUNT(paths); i++) {
        check_number((long long)plat_path_folder_len(paths[i].path), (long long)paths[i].folder_len,
            paths[i].path);
        check(plat_path_is_absolute(paths[i].path) == paths[i].absolute, "%s absolute",
            paths[i].path);
    }

    check(plat_read_file(folder, 100, &data, &len) != 0 && errno == EISDIR, "a folder is read");
    check(plat_read_file("/nonexistent/file", 100, &data, &len) != 0 && errno == ENOENT, "no file");
    if (check(plat_read_file(write_file("ten",
                                 SLICE("0123\0"
                                       "56789")),
                  10, &data, &len) == 0,
            "a file of the largest size")) {
        check_bytes((struct slice){data, len},
            SLICE("0123\0"
                  "56789"),
            "its bytes");
        check(data[len] == '\0', "a NUL behind them");
        free(data);
    }
    check(plat_read_file(write_file("eleven", SLICE("0123456789a")), 10, &data, &len) != 0 &&
            errno == EFBIG,
        "a file one byte too large");
    if (check(plat_read_file(write_file("none", SLICE("")), 10, &data, &len) == 0 && len == 0,
            "an empty file"))
        free(data);

    check_number(plat_resolve("LocalHost", 80, false, addr, ADDRESSES_MAX, &why), 2, "localhost");
    plat_addr_text(&addr[0], true, text);
    check_text(text, "127.0.0.1:80", "its first address");
    plat_addr_text(&addr[1], true, text);
    check_text(text, "[::1]:80", "its second address");
    plat_addr_text(&addr[1], false, text);
    check_text(text, "::1", "without port");
    check_number(plat_resolve("localhost", 80, false, addr, 1, &why), 1, "room for one address");
    check_number(plat_resolve("localhost", 80, true, addr, 1, &why), -1, "a name is no address");
    check(why && *why, "the resolver's word");

    snprintf(path, sizeof path, "%s/a/b/c", folder);
    check(plat_make_folder(path, false) == 0 && plat_make_folder(path, true) == 0,
        "folders are made, and may be there");
    check(plat_folder_is_open(path), "others may look into them");
    check(plat_make_folder("/", false) == 0, "the root is there");
    snprintf(path, sizeof path, "%s", write_file("a/file", SLICE("")));
    check(plat_make_folder(path, false) != 0 && errno == ENOTDIR, "a file in the folder's place");
    unlink(path);
    for (const char *const *name = (const char *const[]){"a/b/c", "a/b", "a", NULL}; *name;
         name++) {
        snprintf(path, sizeof path, "%s/%s", folder, *name);
        check(rmdir(path) == 0, "%s was made", *name);
    }

    addr[0] = address("10.1.2.3", 9998);
    plat_addr_bytes(&addr[0], bytes);
    check_bytes((struct slice){(char *)bytes, 16},
        SLICE("\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\x01\x02\x03"), "IPv4 as IPv6");
    addr[0] = address("::ffff:10.1.2.3", 9998);
    plat_addr_bytes(&addr[0], bytes);
    check_bytes((struct slice){(char *)bytes, 16},
        SLICE("\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\x01\x02\x03"), "mapped IPv4");
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
        bool surrogate = c >= 0xd800 && c <= 0xdfff;
        uint32_t again = 0;
        b.len = 0;
        utf8_add(&b, c);
        if (utf8_read(b.data, b.len, &again) != b.len || again != (surrogate ? 0xfffd : c))
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
        struct slice in, out;
    } decode[] = {
        {S(""), S("")},
        {S("abc"), S("abc")},
        {S("%41%62%63"), S("Abc")},
        {S("%c3%A5"), S("\xc3\xa5")},
        {S("%00"), S("\0")},
        {S("%"), S("%")},
        {S("%4"), S("%4")},
        {S("%4g%g4"), S("%4g%g4")},
        {S("%%41"), S("%A")},
        {S("%2541"), S("%41")},
        {S("a+b"), S("a+b")},
        {S("100%"), S("100%")},
        {S("%\xc3\xa5"), S("%\xc3\xa5")},
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
    } base64[] = {
        {S(""), S("")},
        {S("f"), S("Zg==")},
        {S("fo"), S("Zm8=")},
        {S("foo"), S("Zm9v")},
        {S("foob"), S("Zm9vYg==")},
        {S("foobar"), S("Zm9vYmFy")},
        {S("\0\xff\xfe:"), S("AP/+Og==")},
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
    struct arena arena = {0};
    struct err e;
    char all[256], *copy;

    for (size_t i = 0; i < COUNT(decode); i++) {
        struct slice in = exact(decode[i].in);
        percent_decode(&b, in);
        check_buf(&b, decode[i].out, "percent_decode");
        exact_free(in);
    }
    for (int c = 0; c < 256; c++)
        all[c] = (char)c;
    for (int c = 0; c < 256; c++)
        percent_add(&b, (unsigned char)c);
    check_number((long long)b.len, 3 * 256, "every byte as %XX");
    check_bytes((struct slice){b.data + 3 * 0xc5, 3}, SLICE("%C5"), "upper-case digits");
    struct buf back = {0};
    percent_decode(&back, (struct slice){b.data, b.len});
    check_buf(&back, (struct slice){all, 256}, "every byte there and back");
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
    for (size_t i = 0; i < COUNT(base64); i++) {
        base64_add(&b, base64[i].in.data, base64[i].in.len);
        check_buf(&b, base64[i].out, "base64");
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

    err_set(&e, "%0*d", 2000, 1);
    check_number((long long)strlen(e.text), (long long)sizeof e.text - 1, "a long error is cut");
    err_set(&e, "why");
    err_prefix(&e, "who %d: ", 7);
    check_text(e.text, "who 7: why", "err_prefix");
    err_set(&e, "%0*d", 600, 1);
    err_prefix(&e, "%0*d", 600, 2);
    check(strlen(e.text) < sizeof e.text && e.text[599] == '2', "prefix and text over the room");
    err_prefix(&e, "%0*d", 2000, 3);
    check(strlen(e.text) < sizeof e.text, "a prefix over the room");

    copy = arena_copy(&arena, "a\0b", 3);
    check_bytes((struct slice){copy, 4}, SLICE("a\0b\0"), "arena_copy");
    check(*(char *)arena_alloc(&arena, 100000) == 0, "arena memory is zeroed");
    check((uintptr_t)arena_alloc(&arena, 1) % _Alignof(max_align_t) == 0, "and aligned");
    arena_done(&arena);
    check(!arena.blocks, "an arena can be used again");
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
    free(the_log.folder);
    log_init(level);
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
    struct err e;

    log_begin(LOG_INFO);
    the_log.folder = x_strdup(folder);
    for (size_t i = 0; i < COUNT(files); i++)
        write_file(files[i].name, SLICE("x"));
    check_number(log_open_file(noon, &e), 0, "log_open_file");
    for (size_t i = 0; i < COUNT(files); i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i].name);
        check((access(path, F_OK) == 0) == files[i].stays, "%s %s", files[i].name,
            files[i].stays ? "is gone" : "is still there");
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/butler_webhook.2026-11-22.log", folder);
    check(access(path, F_OK) == 0, "the day's file");
    int handle = the_log.file;
    check(
        log_open_file(noon + 3600000, &e) == 0 && the_log.file == handle, "the same file that day");
    snprintf(old, sizeof old, "%s", path);
    check_number(log_open_file(noon + day, &e), 0, "the next day");
    snprintf(path, sizeof path, "%s/butler_webhook.2026-11-23.log", folder);
    check(access(path, F_OK) == 0 && access(old, F_OK) == 0, "a new file, the old one kept");
    check_number(log_open_file(noon + 31 * day, &e), 0, "31 days later");
    check(access(old, F_OK) != 0 && access(path, F_OK) == 0,
        "the oldest is deleted, the next is not");
    unlink(path);
    snprintf(path, sizeof path, "%s/butler_webhook.2026-12-23.log", folder);
    unlink(path);
    plat_file_close(the_log.file);
    the_log.file = -1;
    free(the_log.folder);
    the_log.folder = x_strdup("/nonexistent");
    check(log_open_file(noon, &e) != 0 &&
            strstr(e.text, "/nonexistent/butler_webhook.2026-11-22.log"),
        "a folder that is not there is named");
    log_begin(LOG_INFO);
}

/* A console that nobody reads for a while: in the end it tells how many lines are missing. */
static void
test_log_console(void)
{
    struct buf lines = {0}, shown = {0};
    int pipes[2], console, total = 0, whole = 0, missing = 0;
    char room[4096];

    log_begin(LOG_INFO);
    if (!check(pipe(pipes) == 0, "a pipe"))
        return;
    fcntl(pipes[0], F_SETFL, O_NONBLOCK);
    fflush(stdout);
    console = dup(STDOUT_FILENO);
    dup2(pipes[1], STDOUT_FILENO);
    for (int round = 0; round < 6; round++) {
        lines.len = 0;
        for (int i = 0; i < (round == 0 ? 3000 : 3); i++)
            buf_format(&lines, "this is line number %07d of many\n", total++);
        log_write_console(&lines);
        for (ssize_t n; round == 2 && (n = read(pipes[0], room, sizeof room)) > 0;)
            buf_add(&shown, room, (size_t)n); /* now somebody reads */
    }
    dup2(console, STDOUT_FILENO);
    close(console);
    close(pipes[1]);
    for (ssize_t n; (n = read(pipes[0], room, sizeof room)) > 0;)
        buf_add(&shown, room, (size_t)n);
    close(pipes[0]);
    for (char *line = strtok(shown.data, "\n"); line; line = strtok(NULL, "\n")) {
        const char *note = strstr(line, " warn: ");
        whole += strncmp(line, "this is line number ", 20) == 0 && strlen(line) == 35;
        if (note && strstr(note, "log lines are missing here"))
            missing += atoi(note + 7);
    }
    check(whole > 1000 && missing > 1000 && whole + missing == total,
        "of %d lines %d are shown and %d told as missing", total, whole, missing);
    buf_free(&lines);
    buf_free(&shown);
}

static void
test_log(void)
{
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
    check_number(
        log_count("") + (long long)the_log.dropped, 40002, "each line is there or counted");
    log_begin(LOG_INFO);
    test_log_files();
    test_log_console();
}

/* ==== 5. Alert ============================================================== */

#define TASK_ID "dec2a02a-1680-44ef-8dc2-e2bfb180af87"
#define APP_ID "e7af59a0-c243-480d-9571-08727551a66f"
#define RUN_ID "4831c6a5-34f6-45bb-9d40-73a6e6992670"
#define ZERO_ID "00000000-0000-0000-0000-000000000000"
#define WHEN "2026-11-22 10:50:04,735"
#define IDS TASK_ID ";" APP_ID ";" WHEN ";INFO;" RUN_ID
#define FAILED "/scheduler-reload-failed/"
#define ABORTED "/scheduler-reload-aborted/"

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
        buf_add(out, alert->field[order[i]].data, alert->field[order[i]].len);
    }
}

static const char *const SORTS[] = {"ours", "ignored", "unknown", "malformed"};

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
    {S(ABORTED ";QS1;T;A;LAB\\g;" IDS ";M"), "aborted", S(FIELDS("T|A|LAB\\g", "M"))},
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
    {S(FAILED "\0;QS1;T;A;u;" IDS ";M"), "unknown", S(FAILED "\\x00")},

    /* too few or wrong fields */
    {S(FAILED), "malformed", S("")},
    {S(FAILED ";"), "malformed", S("")},
    {S(FAILED ";QS1"), "malformed", S("")},
    {S(FAILED ";QS1;" IDS ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;" IDS ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;" IDS ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN ";INFO"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" WHEN ";INFO;" RUN_ID ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN ";NOTE;" RUN_ID ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN ";;" RUN_ID ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";" APP_ID ";" WHEN "; INFO;" RUN_ID ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID "x;" APP_ID ";" WHEN ";INFO;" RUN_ID ";M"), "malformed", S("")},
    {S(FAILED ";QS1;T;A;u;" TASK_ID ";(NULL);" WHEN ";INFO;" RUN_ID ";M"), "malformed", S("")},
    {S(FAILED ";;;;;;;;;;;"), "malformed", S("")},

    /* the smallest that counts, and empty fields */
    {S(FAILED ";;;;;;" APP_ID ";;INFO;"), "failure", S("|||||" APP_ID "||INFO||")},
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
    {S(ABORTED ";QS1;Run backup;;u;" TASK_ID ";{" ZERO_ID "};" WHEN ";INFO;" RUN_ID ";M"),
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
    {S(FAILED ";QS1;T;A;u;" IDS ";\r\nM\0"), "failure", S(FIELDS("T|A|u", "\r\nM\0"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";M\0\n"), "failure", S(FIELDS("T|A|u", "M\0"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";MSystem.Exception: x\r\n   at y"), "failure",
        S(FIELDS("T|A|u", "MSystem.Exception: x\r\n   at y"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";M\n" ABORTED ";QS2;T2;A2;u2;" IDS ";M2\n"), "failure",
        S(FIELDS("T|A|u", "M\n" ABORTED ";QS2;T2;A2;u2;" IDS ";M2"))},
    {S(FAILED ";QS1;T;A;u;" IDS ";" IDS ";M"), "failure", S(FIELDS("T|A|u", IDS ";M"))},

    /* control characters in names are kept */
    {S(FAILED ";QS1;T\r\n1;A\0\t;u\x1b;" IDS ";M"), "failure",
        S(FIELDS("T\r\n1|A\0\t|u\x1b", "M"))},

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
    {S(ABORTED ";QS1;a\\\\b;A;LAB\\\\g;" IDS ";M"), "aborted", S(FIELDS("a\\\\b|A|LAB\\\\g", "M"))},

    /* encodings: UTF-8, with a mark, or Windows-1252 if one byte is not UTF-8 */
    {S("\xef\xbb\xbf" FAILED ";QS1;\xc3\xa5;A;u;" IDS ";M"), "failure",
        S(FIELDS("\xc3\xa5|A|u", "M"))},
    {S(FAILED ";QS1;\xe5;A;u;" IDS ";M"), "failure", S(FIELDS("\xc3\xa5|A|u", "M"))},
    {S(FAILED ";QS1;\xc3\xa5\xe5;A;u;" IDS ";M"), "failure",
        S(FIELDS("\xc3\x83\xc2\xa5\xc3\xa5|A|u", "M"))},
    {S(FAILED ";QS1;\x80\x81\x8d\x8f\x90\x9d\x9f\xa0\xff;A;u;" IDS ";M"), "failure",
        S(FIELDS("\xe2\x82\xac\xc2\x81\xc2\x8d\xc2\x8f\xc2\x90\xc2\x9d\xc5\xb8\xc2\xa0\xc3\xbf|A|u",
            "M"))},
    {S("\xff\xfe" FAILED ";QS1;T;A;u;" IDS ";M"), "unknown", S("\xc3\xbf\xc3\xbe" FAILED)},
};

/* Checks what alert_parse makes of a datagram. */
static void
check_alert(struct slice datagram, const char *sort, struct slice want, const char *what)
{
    struct slice in = exact(datagram);
    struct alert *alert = NULL;
    struct buf got = {0};
    struct err e = {""};
    enum alert_sort result = alert_parse(in, &alert, &e);

    exact_free(in); /* the alert must not need it */
    check_text(result == ALERT_OURS ? KINDS[alert->kind].name : SORTS[result], sort, what);
    check((alert != NULL) == (result == ALERT_OURS), "%s: an alert only if it is ours", what);
    if (alert) {
        fields(alert, &got);
        check_buf(&got, want, what);
        check_bytes(alert->field[FIELD_EVENT], slice_of(KINDS[alert->kind].event), "event");
    } else
        check(memmem(e.text, strlen(e.text), want.data, want.len) != NULL,
            "%s: \"%s\" tells no \"%s\"", what, e.text, show(want));
    alert_free(alert);
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
        {S("\xff\xfe/\0\0\0"), S("/\0")},
        {S("/\0\xff\xfe"), S("/\xef\xbb\xbf")}, /* U+FEFF inside stays */
        {S("\xff\xfe"), S("\xc3\xbf\xc3\xbe")}, /* no id behind the mark */
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
    int64_t began_ms = plat_now_ms();
    struct alert *alert = NULL;
    struct err e;
    check(alert_parse((struct slice){b.data, b.len}, &alert, &e) == ALERT_OURS, "is ours");
    alert_free(alert);
    check(plat_now_ms() - began_ms < 1000, "and takes no second");
    b.len = 0;
    for (int i = 0; i < 100; i++) /* over CUT_TOKENS_MAX pieces */
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
    const char *file = cJSON_GetObjectItem(row, "file")->valuestring;
    const cJSON *want = cJSON_GetObjectItem(row, "fields");
    struct alert *alert = NULL;
    struct err e;
    enum alert_sort sort = alert_parse(datagram, &alert, &e);

    check_text(sort == ALERT_OURS ? KINDS[alert->kind].name : SORTS[sort],
        cJSON_GetObjectItem(row, "verdict")->valuestring, file);
    for (int i = 1; alert && i < ALERT_FIELDS; i++) {
        const cJSON *value = cJSON_GetObjectItem(want, FIELD_NAMES[i]);
        struct slice got = alert->field[i];
        uint8_t hash[32];
        char hex[65] = "";
        if (strcmp(file, "051-a-control-chars.bin") == 0 &&
            (i == FIELD_TASK_NAME || i == FIELD_APP_NAME))
            continue; /* nothing tells that the ";" in its escape sequence belongs to the name */
        if (cJSON_IsString(value)) { /* cJSON ends a text at its first NUL */
            size_t len = strlen(value->valuestring);
            check(strncmp(got.data, value->valuestring, len) == 0 &&
                    (got.len == len || got.data[len] == '\0'),
                "%s: %s is \"%s\", not \"%s\"", file, FIELD_NAMES[i], show(got),
                value->valuestring);
            continue;
        }
        mbedtls_sha256((const unsigned char *)got.data, got.len, hash, 0);
        for (int k = 0; k < 32; k++)
            snprintf(hex + 2 * k, 3, "%02x", hash[k]);
        check_text(hex, cJSON_GetObjectItem(value, "sha256")->valuestring, file);
    }
    alert_free(alert);
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

/* The alert of a datagram that is ours; the caller's. */
static struct alert *
new_alert(struct slice datagram)
{
    struct alert *alert = NULL;
    struct err e;

    if (alert_parse(datagram, &alert, &e) == ALERT_OURS)
        return alert;
    check(false, "\"%s\" should be ours: %s", show(datagram), e.text);
    abort();
}

/* One value off the front of a text, a member of an object, a string. */
static void
test_json_parts(void)
{
    static const struct {
        struct slice text, value;
    } takes[] = {
        {S("\"a\" , 1"), S("\"a\"")},
        {S("\"a\\\"b\\\\\":1"), S("\"a\\\"b\\\\\"")},
        {S("12.5e-3}"), S("12.5e-3")},
        {S("true]"), S("true")},
        {S("null"), S("null")},
        {S("1 2"), S("1")},
        {S("{},x"), S("{}")},
        {S("{\"a\":[1,{\"b\":\"}]\"}]},x"), S("{\"a\":[1,{\"b\":\"}]\"}]}")},
        {S("[ 1 , [ ] ]]"), S("[ 1 , [ ] ]")},
        {S(""), S("")},
        {S(","), S("")},
        {S("}"), S("")},
        {S(" 1"), S("")},
        {S("\""), S("")},
        {S("\"a"), S("")},
        {S("\"a\\\""), S("")},
        {S("\"a\\"), S("")},
        {S("{"), S("")},
        {S("{\"a\":1"), S("")},
        {S("[\"]\""), S("")},
        {S("[[[["), S("")},
        {S("\0"), S("")},
    };
    static const struct {
        struct slice object;
        const char *key;
        struct slice value;
    } gets[] = {
        {S("{\"a\":1,\"b\":\"x\"}"), "b", S("\"x\"")},
        {S(" {\r\n\t\"a\" : 1 , \"b\" : [ 2 ] } "), "b", S("[ 2 ]")},
        {S("{\"x\":{\"a\":1},\"a\":2}"), "a", S("2")},
        {S("{\"x\":\"\\\",\\\"a\\\":1\",\"a\":2}"), "a", S("2")},
        {S("{\"ab\":1,\"a\":2}"), "a", S("2")},
        {S("{\"a\":1,\"a\":2}"), "a", S("1")},
        {S("{\"a\":1}"), "", S("")},
        {S("{\"a\":1}"), "b", S("")},
        {S("{\"A\":1}"), "a", S("")},
        {S("{}"), "a", S("")},
        {S("{\"a\"}"), "a", S("")},
        {S("{\"a\":}"), "a", S("")},
        {S("{\"a\":"), "a", S("")},
        {S("{\"b\":1 \"a\":2}"), "a", S("")},
        {S("{\"b\":,\"a\":2}"), "a", S("2")}, /* each value is for those who read it */
        {S("{b:1,\"a\":2}"), "a", S("")},
        {S("[\"a\",1]"), "a", S("")},
        {S("\"a\":1"), "a", S("")},
        {S("a"), "a", S("")},
        {S("{"), "a", S("")},
        {S(""), "a", S("")},
        {S("{\"a\":\"\0\"}"), "a", S("\"\0\"")},
    };

    for (size_t i = 0; i < COUNT(takes); i++) {
        struct slice text = exact(takes[i].text), rest = text;
        check_bytes(json_take(&rest), takes[i].value, show(text));
        check(takes[i].value.len == 0 || rest.data == text.data + takes[i].value.len,
            "what is left of %s", show(text));
        exact_free(text);
    }
    for (size_t i = 0; i < COUNT(gets); i++) {
        struct slice object = exact(gets[i].object);
        check_bytes(json_get(object, gets[i].key), gets[i].value, show(object));
        exact_free(object);
    }
}

static void
test_json_strings(void)
{
    static const struct {
        struct slice raw;
        bool ok;
        struct slice text;
    } rows[] = {
        {S("\"\""), true, S("")},
        {S("\"a b\xc3\xa5\xf0\x9f\x9a\x80\""), true, S("a b\xc3\xa5\xf0\x9f\x9a\x80")},
        {S("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""), true, S("\"\\/\b\f\n\r\t")},
        {S("\"\\u0000\\u001f\\u0041\\u00E5\\u20aC\""), true,
            S("\0\x1f"
              "A\xc3\xa5\xe2\x82\xac")},
        {S("\"\\ud83d\\ude80\""), true, S("\xf0\x9f\x9a\x80")},
        {S("\"\\uDBFF\\uDFFF\""), true, S("\xf4\x8f\xbf\xbf")},
        {S("\"\\ud83d\""), true, S("\xef\xbf\xbd")},
        {S("\"\\ude80\""), true, S("\xef\xbf\xbd")},
        {S("\"\\ude80\\ud83d\""), true, S("\xef\xbf\xbd\xef\xbf\xbd")},
        {S("\"\\ud83dA\""), true,
            S("\xef\xbf\xbd"
              "A")},
        {S("\"\\ud83d\\n\""), true, S("\xef\xbf\xbd\n")},
        {S("\"\\ud83d\\u0041\""), true,
            S("\xef\xbf\xbd"
              "A")},
        {S("\"\\ud83d\\ud83d\\ude80\""), true, S("\xef\xbf\xbd\xf0\x9f\x9a\x80")},
        {S("\"\\ud83d\\u12\""), false, S("")},
        {S("\"\x7f\""), true, S("\x7f")},
        {S(""), false, S("")},
        {S("\""), false, S("")},
        {S("a"), false, S("")},
        {S("\"a"), false, S("")},
        {S("a\""), false, S("")},
        {S("\"a\"b"), false, S("")},
        {S("\"a\"b\""), false, S("")},
        {S("\"\\\""), false, S("")},
        {S("\"\\x\""), false, S("")},
        {S("\"\\\0\""), false, S("")},
        {S("\"\\u\""), false, S("")},
        {S("\"\\u123\""), false, S("")},
        {S("\"\\u123g\""), false, S("")},
        {S("\"\\u 123\""), false, S("")},
        {S("\"\\U0041\""), false, S("")},
        {S("\"\n\""), false, S("")},
        {S("\"\0\""), false, S("")},
        {S("\"\x1f\""), false, S("")},
        {S("\"\xc3\""), false, S("")},
        {S("\"\xed\xa0\x80\""), false, S("")},
        {S("\"\xff\""), false, S("")},
        {S("12"), false, S("")},
        {S("null"), false, S("")},
        {S("{}"), false, S("")},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct slice raw = exact(rows[i].raw);
        struct buf out = {0};
        check((json_read_string(raw, &out) == 0) == rows[i].ok, "string %s", show(raw));
        if (rows[i].ok)
            check_bytes((struct slice){out.data, out.len}, rows[i].text, show(raw));
        buf_free(&out);
        exact_free(raw);
    }
}

/* Adds random text: mostly what JSON has to escape, or characters of several bytes. */
static void
add_random_text(struct buf *b)
{
    static const uint32_t below[] = {0x20, 0x80, 0x800, 0xd800, 0x110000};
    static const char special[] = "\"\\/{}[]:,u\0\t\n";

    for (uint32_t n = random_below(30); n > 0; n--)
        if (random_below(3) == 0)
            buf_add_char(b, special[random_below(sizeof special)]);
        else
            utf8_add(b, random_below(below[random_below(COUNT(below))]));
}

/* Alerts of random text: written, read, and read by another reader. */
static void
test_json_round_trip(void)
{
    int wrong = 0, others = 0;

    for (int round = 0; round < 1000; round++) {
        struct alert alert = {.kind = (enum alert_kind)(round % ALERT_KINDS)}, *back;
        struct buf json = {0}, field[ALERT_FIELDS] = {{0}};
        for (int i = 0; i < ALERT_FIELDS; i++) {
            buf_add(&field[i], "", 0);
            if (i != FIELD_EVENT)
                add_random_text(&field[i]);
            alert.field[i] = (struct slice){field[i].data, field[i].len};
        }
        alert.field[FIELD_EVENT] = slice_of(KINDS[alert.kind].event);
        alert_add_json(&alert, &json);
        cJSON *other = cJSON_ParseWithLength(json.data, json.len);
        struct slice copy = exact((struct slice){json.data, json.len});
        back = alert_read_json(copy);
        exact_free(copy);
        wrong += !back || back->kind != alert.kind;
        for (int i = 0; i < ALERT_FIELDS; i++) {
            const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(other, FIELD_NAMES[i]));
            wrong += !back || !same(back->field[i], alert.field[i]);
            others += !text || memcmp(text, alert.field[i].data, alert.field[i].len) != 0;
        }
        cJSON_Delete(other);
        alert_free(back);
        for (int i = 0; i < ALERT_FIELDS; i++)
            buf_free(&field[i]);
        buf_free(&json);
    }
    check_number(wrong, 0, "1000 alerts of random text, read back: wrong fields");
    check_number(others, 0, "the same read by cJSON");
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
        {"event", "\"\"", false},
        {"event", NULL, false},
        {"logMessage", NULL, false},
        {"hostName", "1", false},
        {"hostName", "null", false},
        {"hostName", "[\"QS1\"]", false},
        {"hostName", "{\"hostName\":\"QS1\"}", false},
        {"hostName", "QS1", false},
        {"hostName", "", false},
        {"hostName", "\"\\q\"", false},
        {"hostName", "\"\t\"", false},
        {"hostName", "\"\xe5\"", false},
        {"hostName", "\"\"", true},
        {"hostName", " \"QS1\"\n", true},
        {"hostName", "\"QS1\",\"more\":{\"event\":[1,\"]\"]}", true},
    };
    cJSON *made = cJSON_CreateObject();
    struct alert *alert;
    struct buf json = {0};

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
        alert = alert_read_json((struct slice){json.data, json.len});
        check((alert != NULL) == rows[i].ok, "alert %s", json.data);
        alert_free(alert);
        if (rows[i].ok) /* whatever is cut off, it is none any more */
            for (size_t len = 0; len + 1 < json.len; len++) {
                struct slice part = exact((struct slice){json.data, len});
                alert = alert_read_json(part);
                check(!alert || json_get(part, FIELD_NAMES[FIELD_MESSAGE]).len > 0,
                    "alert cut off at %zu", len);
                alert_free(alert);
                exact_free(part);
            }
        buf_free(&json);
    }
    for (int i = ALERT_FIELDS; i-- > 0;) { /* in another order, with blanks, by another writer */
        cJSON_AddStringToObject(
            made, FIELD_NAMES[i], i == FIELD_EVENT ? KINDS[ALERT_ABORTED].event : FIELD_NAMES[i]);
        cJSON_AddNumberToObject(cJSON_AddObjectToObject(made, "other"), "event", i);
    }
    char *text = cJSON_Print(made);
    alert = alert_read_json(slice_of(text));
    if (check(alert && alert->kind == ALERT_ABORTED, "an alert as cJSON writes it"))
        for (int i = 1; i < ALERT_FIELDS; i++)
            check_bytes(alert->field[i], slice_of(FIELD_NAMES[i]), "its field");
    alert_free(alert);
    free(text);
    cJSON_Delete(made);
    check(!alert_read_json(SLICE("")) && !alert_read_json(SLICE("{}")) &&
            !alert_read_json(SLICE("[]")) && !alert_read_json(SLICE("\0")),
        "nothing at all");
}

static void
test_alert_json(void)
{
    static const struct {
        struct slice in, out;
    } strings[] = {
        {S(""), S("\"\"")},
        {S("a\"b\\c/d"), S("\"a\\\"b\\\\c/d\"")},
        {S("\b\t\n\f\r"), S("\"\\b\\t\\n\\f\\r\"")},
        {S("\0\x01\x0b\x1b\x1f"), S("\"\\u0000\\u0001\\u000b\\u001b\\u001f\"")},
        {S("\x7f\xc2\x80\xe2\x80\xa8\xe2\x80\xa9"), S("\"\x7f\xc2\x80\xe2\x80\xa8\xe2\x80\xa9\"")},
        {S("\xf0\x9f\x9a\x80<>&'"), S("\"\xf0\x9f\x9a\x80<>&'\"")},
    };
    static const char datagram[] = FAILED ";QS1;Reload \"S\"\n;S\xc3\xa5;LAB\\g;" IDS ";a\0b\\";
    static const char want[] =
        "{\"event\":\"Qlik Sense reload failed\",\"hostName\":\"QS1\","
        "\"user\":\"LAB\\\\g\",\"taskName\":\"Reload \\\"S\\\"\\n\",\"taskId\":\"" TASK_ID "\","
        "\"appName\":\"S\xc3\xa5\",\"appId\":\"" APP_ID "\",\"logTimeStamp\":\"" WHEN "\","
        "\"logLevel\":\"INFO\",\"executionId\":\"" RUN_ID "\",\"logMessage\":\"a\\u0000b\\\\\"}";
    struct buf b = {0}, all = {0};
    struct alert *alert;

    for (size_t i = 0; i < COUNT(strings); i++) {
        struct slice in = exact(strings[i].in);
        json_add_string(&b, in);
        check_buf(&b, strings[i].out, "json_add_string");
        exact_free(in);
    }
    for (uint32_t c = 1; c < 0x30000; c++) /* each character, read back by another reader */
        if (c < 0xd800 || c > 0xdfff)
            utf8_add(&all, c);
    json_add_string(&b, (struct slice){all.data, all.len});
    cJSON *text = cJSON_ParseWithLengthOpts(b.data, b.len + 1, NULL, true);
    if (check(cJSON_IsString(text), "a string of all characters is JSON"))
        check_bytes(
            slice_of(text->valuestring), (struct slice){all.data, all.len}, "and comes back");
    cJSON_Delete(text);
    buf_free(&b);
    buf_free(&all);

    alert = new_alert(SLICE(datagram));
    alert_add_json(alert, &b);
    check_buf(&b, SLICE(want), "alert_add_json");
    alert_free(alert);
    alert = new_alert(SLICE(ABORTED ";QS1;T;A;u;" IDS ";M"));
    alert_add_json(alert, &b);
    cJSON *body = cJSON_Parse(b.data);
    check_number(cJSON_GetArraySize(body), ALERT_FIELDS, "fields of the body");
    for (int i = 0; i < cJSON_GetArraySize(body) && i < ALERT_FIELDS; i++)
        check_text(cJSON_GetArrayItem(body, i)->string, FIELD_NAMES[i], "order of the fields");
    check_text(
        cJSON_GetObjectItem(body, "event")->valuestring, "Qlik Sense reload aborted", "event");
    cJSON_Delete(body);
    buf_free(&b);
    alert_free(alert);

    alert = alert_new_test(ALERT_ABORTED, "host1");
    alert_add_json(alert, &b);
    body = cJSON_Parse(b.data);
    check_text(
        cJSON_GetObjectItem(body, "taskName")->valuestring, "butler_webhook test", "test alert");
    check_text(cJSON_GetObjectItem(body, "hostName")->valuestring, "host1", "its host");
    check_text(cJSON_GetObjectItem(body, "taskId")->valuestring, ZERO_ID, "its task");
    check_text(cJSON_GetObjectItem(body, "appId")->valuestring, ZERO_ID, "its app");
    check_text(cJSON_GetObjectItem(body, "executionId")->valuestring, ZERO_ID, "its execution");
    check_number(
        (long long)strlen(cJSON_GetObjectItem(body, "logTimeStamp")->valuestring), 23, "its time");
    cJSON_Delete(body);
    buf_free(&b);
    alert_free(alert);
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
        bool skip;
        const char *query; /* behind the target */
    } rows[] = {
        {"/", false, "?" QUERY("M")},
        {"/a/b", false, "?" QUERY("M")},
        {"/?", false, QUERY("M")},
        {"/?z=1", false, "&" QUERY("M")},
        {"/?z=1&", false, QUERY("M")},
        {"/?event=1", false, "&" QUERY("M")},
        {"/?eventual=1", true, "&" QUERY("M")},
        {"/?z=event=", true, "&" QUERY("M")},
        {"/?a=b&" QUERY("x"), true, ""},
        {"/?logMessage&event&hostName&user&taskName&taskId&appName&appId&logTimeStamp&logLevel",
            true, "&executionId=" RUN_ID},
    };
    static const struct {
        struct slice in, out;
    } values[] = {
        {S(""), S("")},
        {S("azAZ09*-._"), S("azAZ09*-._")},
        {S(" +&=%~'()!,:;@/?#[]\"\\"),
            S("+%2B%26%3D%25%7E%27%28%29%21%2C%3A%3B%40%2F%3F%23%5B%5D%22%5C")},
        {S("\0\n\x7f"), S("%00%0A%7F")},
        {S("\xc3\xa5\xf0\x9f\x9a\x80"), S("%C3%A5%F0%9F%9A%80")},
    };
    static const struct {
        struct slice query;
        const char *name;
        bool has;
    } known[] = {
        {S(""), "user", false},
        {S("user"), "user", true},
        {S("user="), "user", true},
        {S("user&a"), "user", true},
        {S("a=1&user=2"), "user", true},
        {S("users=1"), "user", false},
        {S("auser=1"), "user", false},
        {S("a=user"), "user", false},
        {S("User=1"), "user", false},
        {S("use"), "user", false},
    };
    struct buf b = {0};
    struct alert *alert = new_alert(SLICE(FAILED ";QS1;T;A;LAB\\g;" IDS ";M"));

    for (size_t i = 0; i < COUNT(values); i++) {
        query_add_value(&b, values[i].in);
        check_buf(&b, values[i].out, "query_add_value");
    }
    for (size_t i = 0; i < COUNT(known); i++) {
        struct slice in = exact(known[i].query);
        check(query_has(in, known[i].name) == known[i].has, "query_has of \"%s\"", show(in));
        exact_free(in);
    }
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf want = {0};
        buf_format(&want, "%s%s", rows[i].target, rows[i].query);
        buf_add_text(&b, rows[i].target);
        alert_add_query(alert, &b, rows[i].skip, 0);
        check_buf(&b, (struct slice){want.data, want.len}, "alert_add_query");
        buf_free(&want);
    }
    alert_free(alert);
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
        struct alert *alert = new_alert((struct slice){datagram.data, datagram.len});
        buf_add_text(&whole, "/hook?a=1");
        alert_add_query(alert, &whole, false, 0);
        for (size_t max = GET_TARGET_MAX; max < GET_TARGET_MAX + 13; max++) {
            b.len = 0;
            buf_add_text(&b, "/hook?a=1");
            alert_add_query(alert, &b, false, max);
            check(b.len <= max && b.len + 24 > max, "%zu bytes of %zu for %s", b.len, max,
                show(slice_of(units[i])));
            check(
                memcmp(b.data, whole.data, b.len) == 0, "the cut target is the start of the whole");
            struct buf plain = {0};
            percent_decode(&plain, (struct slice){b.data, b.len});
            check(utf8_is_valid(plain.data, plain.len), "a character is cut: %s",
                show((struct slice){b.data + b.len - 12, 12}));
            buf_free(&plain);
        }
        b.len = 0;
        buf_add_text(&b, "/hook?a=1");
        alert_add_query(alert, &b, false, whole.len);
        check_bytes(
            (struct slice){b.data, b.len}, (struct slice){whole.data, whole.len}, "just fits");
        b.len = 0;
        buf_add_text(&b, "/hook?a=1");
        alert_add_query(alert, &b, false, 50);
        check(b.len > 12 && memcmp(b.data + b.len - 12, "&logMessage=", 12) == 0,
            "where nothing helps, the message is empty and the rest is there");
        alert_free(alert);
    }
    buf_free(&datagram);
    buf_free(&whole);
    buf_free(&b);
}

static void
test_alert(void)
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
    test_json_parts();
    test_json_strings();
    test_json_round_trip();
    test_json_alerts();
    test_alert_query();
    test_alert_query_cut();
}

/* ==== 6. URL ================================================================ */

/* What a URL is read as; origin NULL: it is refused. A user or password is "user:password". */
static const struct {
    struct slice text;
    const char *origin, *target, *auth, *shown; /* shown NULL: origin and target */
} URL_ROWS[] = {
    {S("http://h"), "http://h", "/", NULL, NULL},
    {S("http://h/"), "http://h", "/", NULL, NULL},
    {S("HTTP://EXAMPLE.com/A"), "http://example.com", "/A", NULL, NULL},
    {S("hTTpS://h:443/x"), "https://h", "/x", NULL, NULL},
    {S("https://h:80/"), "https://h:80", "/", NULL, NULL},
    {S("http://h:80/"), "http://h", "/", NULL, NULL},
    {S("http://h:443/"), "http://h:443", "/", NULL, NULL},
    {S("http://h:/"), "http://h", "/", NULL, NULL},
    {S("http://h:00081/"), "http://h:81", "/", NULL, NULL},
    {S("http://h:65535/"), "http://h:65535", "/", NULL, NULL},
    {S("http://h:65536/"), NULL, NULL, NULL, NULL},
    {S("http://h:0/"), NULL, NULL, NULL, NULL},
    {S("http://h:-1/"), NULL, NULL, NULL, NULL},
    {S("http://h:8a/"), NULL, NULL, NULL, NULL},
    {S("http://h:8 0/"), NULL, NULL, NULL, NULL},
    {S("http://h:port/some/path"), NULL, NULL, NULL, NULL},
    {S("http://h:99999999999999999999/"), NULL, NULL, NULL, NULL},

    /* what does not start with http:// or https:// */
    {S(""), NULL, NULL, NULL, NULL},
    {S(" \t\r\n"), NULL, NULL, NULL, NULL},
    {S("h"), NULL, NULL, NULL, NULL},
    {S("h/x"), NULL, NULL, NULL, NULL},
    {S("/x"), NULL, NULL, NULL, NULL},
    {S("//h/x"), NULL, NULL, NULL, NULL},
    {S("h:8080/x"), NULL, NULL, NULL, NULL},
    {S("127.0.0.1:8080/x"), NULL, NULL, NULL, NULL},
    {S("ftp://h/x"), NULL, NULL, NULL, NULL},
    {S("httpx://h/x"), NULL, NULL, NULL, NULL},
    {S("ws://h/x"), NULL, NULL, NULL, NULL},
    {S("file:///etc/passwd"), NULL, NULL, NULL, NULL},
    {S("data:,x"), NULL, NULL, NULL, NULL},
    {S("javascript:alert(1)"), NULL, NULL, NULL, NULL},
    {S("mailto:a@b"), NULL, NULL, NULL, NULL},
    {S("://h/"), NULL, NULL, NULL, NULL},
    {S("http"), NULL, NULL, NULL, NULL},
    {S("1http://h/"), NULL, NULL, NULL, NULL},

    /* blanks around, tabs and line ends inside, slashes of any number and kind */
    {S("  http://h/x \n"), "http://h", "/x", NULL, NULL},
    {S("\x01http://h/x\x1f"), "http://h", "/x", NULL, NULL},
    {S("ht\ntp:\t//h\r/a\tb\nc"), "http://h", "/abc", NULL, NULL},
    {S("http:h/x"), "http://h", "/x", NULL, NULL},
    {S("http:/h/x"), "http://h", "/x", NULL, NULL},
    {S("http:////h/x"), "http://h", "/x", NULL, NULL},
    {S("http:\\\\h\\a\\b"), "http://h", "/a/b", NULL, NULL},
    {S("http:/\\/h/x"), "http://h", "/x", NULL, NULL},

    /* path */
    {S("http://h/a b"), "http://h", "/a%20b", NULL, NULL},
    {S("http://h/\"<>`{}#x"), "http://h", "/%22%3C%3E%60%7B%7D", NULL, NULL},
    {S("http://h/|[]'~!$&()*+,;=:@-._"), "http://h", "/|[]'~!$&()*+,;=:@-._", NULL, NULL},
    {S("http://h/%zz%2f%41%"), "http://h", "/%zz%2f%41%", NULL, NULL},
    {S("http://h/\x01\x7f"), "http://h", "/%01%7F", NULL, NULL},
    {S("http://h/\xc3\xa5\xf0\x9f\x9a\x80"), "http://h", "/%C3%A5%F0%9F%9A%80", NULL, NULL},
    {S("http://h//a//b"), "http://h", "//a//b", NULL, NULL},
    {S("http://h/a\\b"), "http://h", "/a/b", NULL, NULL},
    {S("http://h\\a"), "http://h", "/a", NULL, NULL},
    {S("http://h/a/./b"), "http://h", "/a/b", NULL, NULL},
    {S("http://h/a/../b"), "http://h", "/b", NULL, NULL},
    {S("http://h/../../b"), "http://h", "/b", NULL, NULL},
    {S("http://h/a/b/.."), "http://h", "/a/", NULL, NULL},
    {S("http://h/a/b/../"), "http://h", "/a/", NULL, NULL},
    {S("http://h/a/b/."), "http://h", "/a/b/", NULL, NULL},
    {S("http://h/."), "http://h", "/", NULL, NULL},
    {S("http://h/.."), "http://h", "/", NULL, NULL},
    {S("http://h/a//../b"), "http://h", "/a/b", NULL, NULL},
    {S("http://h/%2e/a/%2E%2e/b"), "http://h", "/b", NULL, NULL},
    {S("http://h/a/.%2e/b"), "http://h", "/b", NULL, NULL},
    {S("http://h/a\\..\\b"), "http://h", "/b", NULL, NULL},
    {S("http://h/.../..a/b../%2e%2e%2e/."), "http://h", "/.../..a/b../%2e%2e%2e/", NULL, NULL},
    {S("http://h/.a"), "http://h", "/.a", NULL, NULL},

    /* query and fragment */
    {S("http://h?q"), "http://h", "/?q", NULL, "http://h/?..."},
    {S("http://h#f"), "http://h", "/", NULL, NULL},
    {S("http://h/a#f?q"), "http://h", "/a", NULL, NULL},
    {S("http://h/a?q#f"), "http://h", "/a?q", NULL, "http://h/a?..."},
    {S("http://h/a?x=1&y=2"), "http://h", "/a?x=1&y=2", NULL, "http://h/a?x=...&y=..."},
    {S("http://h/?a=b=c&d&e=&=f"), "http://h", "/?a=b=c&d&e=&=f", NULL,
        "http://h/?a=...&...&e=...&=..."},
    {S("http://h/?a b\"<>'"), "http://h", "/?a%20b%22%3C%3E%27", NULL, "http://h/?..."},
    {S("http://h/?`{}|^[]\\~%zz"), "http://h", "/?`{}|^[]\\~%zz", NULL, "http://h/?..."},
    {S("http://h/?\xc3\xa5\x7f"), "http://h", "/?%C3%A5%7F", NULL, "http://h/?..."},
    {S("http://h/?/../x"), "http://h", "/?/../x", NULL, "http://h/?..."},
    {S("http://h/??x"), "http://h", "/??x", NULL, "http://h/?..."},
    {S("http://h/a/..?b/../c"), "http://h", "/?b/../c", NULL, "http://h/?..."},

    /* user and password */
    {S("http://u:p@h/x"), "http://h", "/x", "u:p", NULL},
    {S("http://u@h/"), "http://h", "/", "u:", NULL},
    {S("http://:p@h/"), "http://h", "/", ":p", NULL},
    {S("http://@h/"), "http://h", "/", NULL, NULL},
    {S("http://:@h/"), "http://h", "/", NULL, NULL},
    {S("http://u%40x:p%3Aq%2f@h:81/"), "http://h:81", "/", "u@x:p:q/", NULL},
    {S("http://u:p:q@h/"), "http://h", "/", "u:p:q", NULL},
    {S("http://a@b@h/"), "http://h", "/", "a@b:", NULL},
    {S("http://a:b@c:d@h/"), "http://h", "/", "a:b@c:d", NULL},
    {S("http://u:p%zz%@h/"), "http://h", "/", "u:p%zz%", NULL},
    {S("http://\xc3\xbc:\xc3\x9f@h/"), "http://h", "/", "\xc3\xbc:\xc3\x9f", NULL},
    {S("http://u:p@[::1]:8080/"), "http://[::1]:8080", "/", "u:p", NULL},
    {S("http://h/@x"), "http://h", "/@x", NULL, NULL},
    {S("http://h?u:p@x"), "http://h", "/?u:p@x", NULL, "http://h/?..."},
    {S("http://u:p@/x"), NULL, NULL, NULL, NULL},
    {S("http://u:p@"), NULL, NULL, NULL, NULL},

    /* host names */
    {S("http://"), NULL, NULL, NULL, NULL},
    {S("http:///"), NULL, NULL, NULL, NULL},
    {S("http://:80/"), NULL, NULL, NULL, NULL},
    {S("http://?q"), NULL, NULL, NULL, NULL},
    {S("http://h h/"), NULL, NULL, NULL, NULL},
    {S("http://a%20b/"), NULL, NULL, NULL, NULL},
    {S("http://a%00b/"), NULL, NULL, NULL, NULL},
    {S("http://a%zzb/"), NULL, NULL, NULL, NULL},
    {S("http://a%25b/"), NULL, NULL, NULL, NULL},
    {S("http://a%0d%0ab/"), NULL, NULL, NULL, NULL},
    {S("http://a\x01/"), NULL, NULL, NULL, NULL},
    {S("http://a\x7f/"), NULL, NULL, NULL, NULL},
    {S("http://a<b/"), NULL, NULL, NULL, NULL},
    {S("http://a>b/"), NULL, NULL, NULL, NULL},
    {S("http://a^b/"), NULL, NULL, NULL, NULL},
    {S("http://a|b/"), NULL, NULL, NULL, NULL},
    {S("http://a[b/"), NULL, NULL, NULL, NULL},
    {S("http://a]b/"), NULL, NULL, NULL, NULL},
    {S("http://a:b:80/"), NULL, NULL, NULL, NULL},
    {S("http://%80/"), NULL, NULL, NULL, NULL},
    {S("http://\xff/"), NULL, NULL, NULL, NULL},
    {S("http://\xed\xa0\x80/"), NULL, NULL, NULL, NULL},
    {S("http://%65xample%2ecom/"), "http://example.com", "/", NULL, NULL},
    {S("http://a_b-c.d!$&'()*+,;=~/"), "http://a_b-c.d!$&'()*+,;=~", "/", NULL, NULL},
    {S("http://a..b/"), "http://a..b", "/", NULL, NULL},
    {S("http://example.com./"), "http://example.com.", "/", NULL, NULL},

    /* host names in other letters */
    {S("http://b\xc3\xbc"
       "cher.example/"),
        "http://xn--bcher-kva.example", "/", NULL, NULL},
    {S("http://B\xc3\x9c"
       "CHER.Example/"),
        "http://xn--bcher-kva.example", "/", NULL, NULL},
    {S("http://b%C3%BCcher.example/"), "http://xn--bcher-kva.example", "/", NULL, NULL},
    {S("http://XN--Bcher-KVA.example/"), "http://xn--bcher-kva.example", "/", NULL, NULL},
    {S("http://www.m\xc3\xbcnchen.de:81/"), "http://www.xn--mnchen-3ya.de:81", "/", NULL, NULL},
    {S("http://\xe4\xbe\x8b\xe3\x81\x88.\xe3\x83\x86\xe3\x82\xb9\xe3\x83\x88/"),
        "http://xn--r8jz45g.xn--zckzah", "/", NULL, NULL},
    {S("http://fa\xc3\x9f.de/"), "http://xn--fa-hia.de", "/", NULL, NULL},
    {S("http://3\xe5\xb9\xb4"
       "B\xe7\xb5\x84\xe9\x87\x91\xe5\x85\xab\xe5\x85\x88\xe7\x94\x9f/"),
        "http://xn--3b-ww4c5e180e575a65lsy2b", "/", NULL, NULL},
    {S("http://\xe4\xbb\x96\xe4\xbb\xac\xe4\xb8\xba\xe4\xbb\x80\xe4\xb9\x88\xe4\xb8\x8d\xe8\xaf\xb4\xe4\xb8\xad"
       "\xe6\x96\x87/"),
        "http://xn--ihqwcrb4cv8a8dqg056pqjye", "/", NULL, NULL},
    {S("http://\xd0\xbf\xd1\x80\xd0\xb0\xd0\xb2\xd0\xb4\xd0\xb0/"), "http://xn--80aafi6cg", "/",
        NULL, NULL},
    {S("http://\xf0\x9f\x9a\x80.example/"), "http://xn--158h.example", "/", NULL, NULL},
    {S("http://\xc3\x98RE.example/"), "http://xn--re-kka.example", "/", NULL,
        NULL}, /* upper case */
    {S("http://\xc4\x8c"
       "E\xc5\xa0TINA.example/"),
        "http://xn--etina-gya30d.example", "/", NULL, NULL},
    {S("http://\xc5\xbdI\xc5\xbdKOV.example/"), "http://xn--ikov-kbbb.example", "/", NULL, NULL},
    {S("http://\xc5\x81\xc3\x93"
       "D\xc5\xb9.example/"),
        "http://xn--d-uga0v4h.example", "/", NULL, NULL},
    {S("http://\xc5\x9aNIE\xc5\xbbKA.example/"), "http://xn--nieka-tcb8u.example", "/", NULL, NULL},
    {S("http://\xce\xa4\xce\x95\xce\xa3\xce\xa4/"), "http://xn--qxa2abc", "/", NULL, NULL},
    {S("http://\xd0\x81\xd0\x9b\xd0\x9a\xd0\x90/"), "http://xn--80atc1g", "/", NULL, NULL},

    /* IPv4 in all its forms */
    {S("http://127.0.0.1:8080/"), "http://127.0.0.1:8080", "/", NULL, NULL},
    {S("http://127.1/"), "http://127.0.0.1", "/", NULL, NULL},
    {S("http://1.2.3/"), "http://1.2.0.3", "/", NULL, NULL},
    {S("http://1.256/"), "http://1.0.1.0", "/", NULL, NULL},
    {S("http://0x7F.1/"), "http://127.0.0.1", "/", NULL, NULL},
    {S("http://0177.0.0.0x1/"), "http://127.0.0.1", "/", NULL, NULL},
    {S("http://2130706433/"), "http://127.0.0.1", "/", NULL, NULL},
    {S("http://0x/"), "http://0.0.0.0", "/", NULL, NULL},
    {S("http://0/"), "http://0.0.0.0", "/", NULL, NULL},
    {S("http://192.168.0.1./"), "http://192.168.0.1", "/", NULL, NULL},
    {S("http://%31%32%37.1/"), "http://127.0.0.1", "/", NULL, NULL},
    {S("http://4294967295/"), "http://255.255.255.255", "/", NULL, NULL},
    {S("http://4294967296/"), NULL, NULL, NULL, NULL},
    {S("http://99999999999999999999999/"), NULL, NULL, NULL, NULL},
    {S("http://0xfffffffffffffffffffffffffff/"), NULL, NULL, NULL, NULL},
    {S("http://256.1.1.1/"), NULL, NULL, NULL, NULL},
    {S("http://1.2.3.256/"), NULL, NULL, NULL, NULL},
    {S("http://1.2.65536/"), NULL, NULL, NULL, NULL},
    {S("http://1.2.3.4.5/"), NULL, NULL, NULL, NULL},
    {S("http://1..2/"), NULL, NULL, NULL, NULL},
    {S("http://a.1/"), NULL, NULL, NULL, NULL},
    {S("http://a.0x1/"), NULL, NULL, NULL, NULL},
    {S("http://1.2.3.08/"), NULL, NULL, NULL, NULL}, /* no octal, but it ends in a number */
    {S("http://a.09/"), NULL, NULL, NULL, NULL},
    {S("http://1.2.3.4x/"), "http://1.2.3.4x", "/", NULL, NULL},
    {S("http://1.2.3.a/"), "http://1.2.3.a", "/", NULL, NULL},
    {S("http://0xg/"), "http://0xg", "/", NULL, NULL},

    /* IPv6 */
    {S("http://[::1]/"), "http://[::1]", "/", NULL, NULL},
    {S("https://[2001:DB8:0:0:0:0:0:1]:8443/x"), "https://[2001:db8::1]:8443", "/x", NULL, NULL},
    {S("http://[::]:80"), "http://[::]", "/", NULL, NULL},
    {S("http://[1:2:3:4:5:6:7:8]:/"), "http://[1:2:3:4:5:6:7:8]", "/", NULL, NULL},
    {S("http://[]/"), NULL, NULL, NULL, NULL},
    {S("http://[::1/"), NULL, NULL, NULL, NULL},
    {S("http://[::1]x/"), NULL, NULL, NULL, NULL},
    {S("http://[::1]:80:80/"), NULL, NULL, NULL, NULL},
    {S("http://[::1]:x/"), NULL, NULL, NULL, NULL},
    {S("http://[fe80::1%25eth0]/"), NULL, NULL, NULL, NULL},
    {S("http://[fe80::1%eth0]/"), NULL, NULL, NULL, NULL},
    {S("http://[1::2::3]/"), NULL, NULL, NULL, NULL},
    {S("http://[g::1]/"), NULL, NULL, NULL, NULL},
    {S("http://[1.2.3.4]/"), NULL, NULL, NULL, NULL},
    {S("http://[1:2:3:4:5:6:7:8:9]/"), NULL, NULL, NULL, NULL},
    {S("http://::1/"), NULL, NULL, NULL, NULL},
    {S("http://x[::1]/"), NULL, NULL, NULL, NULL},

    /* NUL */
    {S("http://h/\0"), "http://h", "/", NULL, NULL}, /* at an end it is a blank like others */
    {S("http://h/a\0b"), NULL, NULL, NULL, NULL},
    {S("http://h\0.example/"), NULL, NULL, NULL, NULL},
};

/* References relative to http://u:p@h:8080/a/b/c?x=1. */
static const struct {
    struct slice text;
    const char *origin, *target;
    bool auth; /* user and password go along */
} RELATIVE_ROWS[] = {
    {S("d"), "http://h:8080", "/a/b/d", true},
    {S("./d"), "http://h:8080", "/a/b/d", true},
    {S("../d"), "http://h:8080", "/a/d", true},
    {S("../../../d"), "http://h:8080", "/d", true},
    {S("."), "http://h:8080", "/a/b/", true},
    {S(".."), "http://h:8080", "/a/", true},
    {S("../.."), "http://h:8080", "/", true},
    {S("d/../e"), "http://h:8080", "/a/b/e", true},
    {S("g;x=1/../y"), "http://h:8080", "/a/b/y", true},
    {S("/d"), "http://h:8080", "/d", true},
    {S("/"), "http://h:8080", "/", true},
    {S("\\d"), "http://h:8080", "/d", true},
    {S("/../d"), "http://h:8080", "/d", true},
    {S("?y=2"), "http://h:8080", "/a/b/c?y=2", true},
    {S("?"), "http://h:8080", "/a/b/c?", true},
    {S("#f"), "http://h:8080", "/a/b/c?x=1", true},
    {S("d?y#z"), "http://h:8080", "/a/b/d?y", true},
    {S("d?y=/../z"), "http://h:8080", "/a/b/d?y=/../z", true},
    {S("./d:e"), "http://h:8080", "/a/b/d:e", true},
    {S("?a:b"), "http://h:8080", "/a/b/c?a:b", true},
    {S(" d e "), "http://h:8080", "/a/b/d%20e", true},
    {S("http:d"), "http://h:8080", "/a/b/d",
        true}, /* the same scheme without a host is relative, too */
    {S("http:/d"), "http://h:8080", "/d", true},
    {S("//g/d"), "http://g", "/d", false},
    {S("///g/d"), "http://g", "/d", false},
    {S("\\\\g\\d"), "http://g", "/d", false},
    {S("/\\g"), "http://g", "/", false},
    {S("//g:81?q"), "http://g:81", "/?q", false},
    {S("//h:8080/d"), "http://h:8080", "/d", false},
    {S("http://g/d"), "http://g", "/d", false},
    {S("https://h:8080/"), "https://h:8080", "/", false},
    {S("https:g"), "https://g", "/", false},
    {S("HTTPS:/g"), "https://g", "/", false},
    {S(""), NULL, NULL, false},
    {S("//"), NULL, NULL, false},
    {S("//:80/"), NULL, NULL, false},
    {S("d:e"), NULL, NULL, false},
    {S("file:d"), NULL, NULL, false},
    {S("ftp://g/"), NULL, NULL, false},
    {S("d\0"), "http://h:8080", "/a/b/d", true},
    {S("d\0e"), NULL, NULL, false},
};

/* URLs that hold SECRET where it must not be told to anybody. */
static const char *const SECRET_ROWS[] = {
    "http://SECRET@h/",
    "http://u:SECRET@h/x",
    "http://u:a@SECRET@h/x",
    "http://h/x?key=SECRET",
    "http://h/x?a=1&key=SECRET=SECRET&b",
    "http://h/x?SECRET",
    "http://h/x?a=1&SECRET&",
    "http://h/x#SECRET",
    "http://h/x?a#SECRET=SECRET",
    "http://u:SECRET@h:99999/",
    "http://u:SECRET@h:x/",
    "http://u:SECRET@/",
    "http://u:SECRET@a b/",
    "http://u:SECRET@[::1/",
    "http://u:SECRET@256.1.1.1/",
    "ftp://u:SECRET@h/",
    "u:SECRET@h/",
    "SECRET",
    "http://h:SECRET/",
    "http://SECRET h/",
};

static void
check_url(
    const struct url *u, const char *origin, const char *target, const char *auth, const char *what)
{
    struct buf coded = {0}, full = {0};
    struct url again;
    struct err e;

    if (!check_text(u->origin, origin, what) || !check_text(u->target, target, what))
        return;
    if (auth)

        base64_add(&coded, auth, strlen(auth));
    check_text(u->auth, auth ? coded.data : "(none)", what);
    buf_format(&full, "%s%s", u->origin, u->target);
    if (check(url_parse((struct slice){full.data, full.len}, NULL, &again, &e) == 0, "%s again",
            what)) {
        check_text(again.origin, u->origin, "the same origin again");
        check_text(again.target, u->target, "the same target again");
        check(again.port == u->port && again.tls == u->tls && strcmp(again.host, u->host) == 0,
            "the same host and port again: %s", what);
        url_done(&again);
    }
    buf_free(&coded);
    buf_free(&full);
}

static void
test_url_parse(void)
{
    struct url u, base;
    struct buf b = {0};
    struct err e;

    for (size_t i = 0; i < COUNT(URL_ROWS); i++) {
        struct slice in = exact(URL_ROWS[i].text);
        const char *what = show(in);
        int result = url_parse(in, NULL, &u, &e);
        exact_free(in);
        if (!check((result == 0) == (URL_ROWS[i].origin != NULL), "%s is read as %s", what,
                result == 0 ? u.origin : e.text) ||
            result != 0) {
            url_done(&u);
            continue;
        }
        check_url(&u, URL_ROWS[i].origin, URL_ROWS[i].target, URL_ROWS[i].auth, what);
        buf_format(&b, "%s%s", URL_ROWS[i].origin, URL_ROWS[i].target);
        check_text(u.shown, URL_ROWS[i].shown ? URL_ROWS[i].shown : b.data, what);
        buf_free(&b);
        url_done(&u);
        check(!u.host && !u.target && !u.auth && !u.origin && !u.shown, "url_done leaves nothing");
    }
    check_number(url_parse(SLICE("http://u:p@h:8080/a/b/c?x=1"), NULL, &base, &e), 0, "base");
    for (size_t i = 0; i < COUNT(RELATIVE_ROWS); i++) {
        struct slice in = exact(RELATIVE_ROWS[i].text);
        const char *what = show(in);
        int result = url_parse(in, &base, &u, &e);
        exact_free(in);
        if (check((result == 0) == (RELATIVE_ROWS[i].origin != NULL), "%s is read as %s", what,
                result == 0 ? u.origin : e.text) &&
            result == 0)
            check_url(&u, RELATIVE_ROWS[i].origin, RELATIVE_ROWS[i].target,
                RELATIVE_ROWS[i].auth ? "u:p" : NULL, what);
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
    buf_free(&b);
    for (size_t n = 62; n < 66; n++) { /* labels around the longest that DNS has */
        buf_add_text(&b, "http://");
        for (size_t i = 0; i < n; i++)
            buf_add_char(&b, 'x');
        buf_add_text(&b, ".example/");
        check((url_parse((struct slice){b.data, b.len}, NULL, &u, &e) == 0) == (n <= 63),
            "a label of %zu letters", n);
        url_done(&u);
        buf_free(&b);
    }
    /* the same for labels in other letters: their ASCII form counts */
    size_t longest = 0;
    for (size_t n = 40; n < 60; n++) {
        buf_add_text(&b, "http://b\xe4\xbe\x8b\xe3\x81\x88");
        for (size_t i = 0; i < n; i++)
            buf_add_char(&b, 'x');
        buf_add_text(&b, "/");
        if (url_parse((struct slice){b.data, b.len}, NULL, &u, &e) == 0)
            longest = strlen(u.host) > longest ? strlen(u.host) : longest;
        url_done(&u);
        buf_free(&b);
    }
    check_number((long long)longest, 63, "the longest label in ASCII");
    buf_add_text(&b, "http://");
    for (int i = 0; i < 130; i++)
        buf_add_text(&b, "x.");
    check(
        url_parse((struct slice){b.data, b.len}, NULL, &u, &e) != 0, "a host name of 260 letters");
    buf_free(&b);
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
        {"http://h/", "h", true},
        {"http://h/", "H", true},
        {"http://h/", "g,h", true},
        {"http://h/", "g h", true},
        {"http://h/", "g,\t h ,i", true},
        {"http://h/", "hh", false},
        {"http://hh/", "h", false},
        {"http://a.example.com/", "example.com", false},
        {"http://a.example.com/", ".example.com", true},
        {"http://example.com/", ".example.com", false},
        {"http://a.example.com/", "*.example.com", true},
        {"http://example.com/", "*.example.com", false},
        {"http://badexample.com/", "*example.com", true},
        {"http://h/", "*", true},
        {"https://[::1]/", "*", true},
        {"http://h/", "g,*", true},
        {"http://h/", ".", false},
        {"http://h/", "h:80", true},
        {"https://h/", "h:80", false},
        {"https://h/", "h:443", true},
        {"http://h:8080/", "h:8080", true},
        {"http://h:8080/", "h:80", false},
        {"http://h:8080/", "h", true},
        {"http://a.b:81/", ".b:81", true},
        {"http://a.b:82/", ".b:81", false},
        {"http://127.0.0.1/", "127.0.0.1", true},
        {"http://127.1/", "127.0.0.1", true},
        {"http://127.0.0.1/", "127.0.0.0/8", false}, /* ranges are not known */
        {"http://[::1]/", "::1", true},
        {"http://[::1]/", "[::1]", true},
        {"http://[::1]:81/", "[::1]:81", true},
        {"http://[::1]:81/", "[::1]:82", false},
        {"http://[2001:db8::1]/", "2001:0db8::1", false},
        {"http://[2001:db8::1]/", "2001:db8::1", true},
    };
    static const struct {
        const char *url, *host;
    } hosts[] = {
        {"http://u:p@Example.com:80/x?y", "example.com"},
        {"http://h:81/", "h:81"},
        {"https://h:443/", "h"},
        {"https://[::1]:443/", "[::1]"},
        {"https://[::1]:81/", "[::1]:81"},
    };
    struct url u;
    struct err e;
    struct buf b = {0};

    for (size_t i = 0; i < COUNT(rows); i++) {
        check_number(url_parse(slice_of(rows[i].url), NULL, &u, &e), 0, rows[i].url);
        check(url_is_excepted(&u, rows[i].no_proxy) == rows[i].excepted, "%s with NO_PROXY \"%s\"",
            rows[i].url, rows[i].no_proxy);
        url_done(&u);
    }
    for (size_t i = 0; i < COUNT(hosts); i++) {
        check_number(url_parse(slice_of(hosts[i].url), NULL, &u, &e), 0, hosts[i].url);
        buf_add_text(&b, strstr(u.origin, "//") + 2);
        check_buf(&b, slice_of(hosts[i].host), "Host");
        url_done(&u);
    }
}

static void
test_url_lower(void)
{
    static const char *const pairs[][2] = {{"AZ", "az"}, {"\xc3\x80\xc3\x96", "\xc3\xa0\xc3\xb6"},
        {"\xc3\x97", "\xc3\x97"}, /* the multiplication sign */
        {"\xc3\x98\xc3\x9e\xc3\x9f", "\xc3\xb8\xc3\xbe\xc3\x9f"},
        {"\xc4\x80\xc4\xb9\xc5\x83\xc5\x8a\xc5\xb8\xc5\xb9",
            "\xc4\x81\xc4\xba\xc5\x84\xc5\x8b\xc3\xbf\xc5\xba"},
        {"\xce\x91\xce\xa9\xcf\x82", "\xce\xb1\xcf\x89\xcf\x82"},
        {"\xd0\x80\xd0\x90\xd0\xaf\xd1\x8f", "\xd1\x90\xd0\xb0\xd1\x8f\xd1\x8f"},
        {"\xe4\xbe\x8b", "\xe4\xbe\x8b"}};
    uint32_t again = 0;

    for (size_t i = 0; i < COUNT(pairs); i++) {
        struct buf b = {0};
        uint32_t point;
        for (size_t k = 0, len = strlen(pairs[i][0]); k < len;) {
            k += utf8_read(pairs[i][0] + k, len - k, &point);
            utf8_add(&b, url_lower(point));
        }
        check_buf(&b, slice_of(pairs[i][1]), "lower case");
    }
    for (uint32_t c = 0; c < 0x10000; c++)
        if (url_lower(url_lower(c)) != url_lower(c))
            again = c;
    check_number(again, 0, "the last letter whose lower case is not one");
}

static void
test_url(void)
{
    test_url_lower();

    test_url_parse();
    test_url_limits();
    test_url_excepted();
}

/* ==== 7. Configuration ====================================================== */

static const char *const PROXY_VARIABLES[] = {"http_proxy", "HTTP_PROXY", "https_proxy",
    "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"};

#define HOOKS                                                                                      \
    "Butler:\n  webhookNotification:\n    enable: true\n    reloadTaskFailure:\n      webhooks:\n"
#define HOOK HOOKS "        - webhookURL: http://127.0.0.1:1/\n          httpMethod: POST\n"
#define TLS_HOOK                                                                                   \
    HOOKS                                                                                          \
    "        - webhookURL: https://127.0.0.1:1/\n          httpMethod: POST\n          cert:\n"
#define OFF_HOOK                                                                                    \
    "Butler:\n  webhookNotification:\n    enable: false\n    reloadTaskFailure:\n      webhooks:\n" \
    "        - webhookURL: http://host.my.domain:port/some/path\n          httpMethod: POST\n"

/*
 * A file and the problems that it has, all of them and in this order: "LINE:COLUMN error: " or
 * "LINE:COLUMN warning: " and a part of the text.
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
    {S("\n# nothing\n\n"), {"1:1 error: the file is empty"}},
    {S("\xef\xbb\xbf"), {"1:1 error: the file is empty"}},
    {S("Butler:\n"), {"1:8 error: the file must start with \"Butler:\""}},
    {S("Butler: text\n"), {"1:9 error: the file must start with \"Butler:\""}},
    {S("butler:\n  logLevel: info\n"), {"1:1 error: the file must start with \"Butler:\""}},
    {S("- Butler\n"), {"1:1 error: the file must start with \"Butler:\""}},
    {S("text\n"), {"1:1 error: the file must start with \"Butler:\""}},
    {S("Butler:\n  logLevel: info\n"), {"2:3 error: Butler.webhookNotification is missing"}},
    {S("Butler:\n  webhookNotification:\n"), {"2:23 error: Butler.webhookNotification is missing"}},
    {S("Butler:\n  webhookNotification: off\n"),
        {"2:24 error: webhookNotification must hold keys"}},
    {S("Butler:\n  webhookNotification:\n    reloadTaskFailure:\n"),
        {"3:5 error: webhookNotification.enable is missing"}},
    {S(HOOK "---\n" HOOK), {"8:1 error: a second document starts here"}},

    /* not YAML */
    {S("Butler:\n\twebhookNotification:\n"),
        {"2:1 error: not valid YAML: found character that cannot start any "
         "token while scanning for the next token; a tab stands"}},
    {S("Butler:\n  logLevel: info\n   fileLogging: true\n"),
        {"3:15 error: not valid YAML: mapping values"}},
    {S("Butler:\n  logDirectory: \"C:\\path\"\n"),
        {"2:20 error: not valid YAML: found unknown escape character"}},
    {S("Butler:\n  logLevel: 'info\n"),
        {"2:13 error: not valid YAML: found unexpected end of stream"}},
    {S("Butler:\n  a: {b: 1\n"), {"error: not valid YAML"}},
    {S("Butler:\n  a: @b\n"), {"2:6 error: not valid YAML"}},
    {S("Butler:\n  a: b\n# \xff\n"),
        {"3:3 error: not valid YAML: invalid leading UTF-8 octet; save the file as UTF-8"}},
    {S("Butler:\n  a: b\n  c: \x01\n"),
        {"3:6 error: not valid YAML: control characters are not allowed"}},
    {S("Butler:\n  logDirectory: \"a\\0b\"\n  webhookNotification:\n    enable: true\n"),
        {"2:17 error: a NUL character may not stand in a value"}},
    {S("\xff\xfe"
       "B\0u\0t\0"),
        {"1:1 error: the file is UTF-16: save it as UTF-8"}},
    {S("\xfe\xff\0B\0u\0t"), {"1:1 error: the file is UTF-16: save it as UTF-8"}},
    {S("B\0u\0t\0"), {"1:1 error: the file is UTF-16: save it as UTF-8"}},
    {S("\0B\0u\0t"), {"1:1 error: the file is UTF-16: save it as UTF-8"}},

    /* keys twice, unknown, misspelt */
    {S(HOOK "    enable: true\n"), {"8:5 error: the key \"enable\" stands twice, first in line 3"}},
    {S(HOOK "    enable: true\n    enable: true\n"),
        {"8:5 error: the key \"enable\" stands twice, first in line 3",
            "9:5 error: the key \"enable\" stands twice, first in line 3"}},
    {S(HOOK "          httpMethod: PUT\n"),
        {"8:11 error: the key \"httpMethod\" stands twice, first in line 7"}},
    {S(HOOK
         "    reloadTaskFailure:\n      webhooks: [{webhookURL: 'http://h/', httpMethod: GET}]\n"),
        {"8:5 error: the key \"reloadTaskFailure\" stands twice, first in line 4"}},
    {S("x: {a: 1, a: 2}\n" HOOK), {"1:11 error: the key \"a\" stands twice, first in line 1"}},
    {S(HOOK "    enabel: true\n"),
        {"8:5 warning: unknown key \"enabel\" is ignored; did you mean \"enable\"?"}},
    {S(HOOK "    Enable: true\n"),
        {"8:5 warning: unknown key \"Enable\" is ignored; did you mean \"enable\"?"}},
    {S(HOOK "    something: 1\n"), {"8:5 warning: unknown key \"something\" is ignored"}},
    {S(HOOK "          URL: x\n"), {"8:11 warning: unknown key \"URL\" is ignored"}},
    {S(HOOK "          webhookUrl: x\n"),
        {"8:11 warning: unknown key \"webhookUrl\" is ignored; did you mean "
         "\"webhookURL\"?"}},
    {S(HOOK "    \"a\\nb\": x\n"), {"8:5 warning: unknown key \"a\\x0ab\" is ignored"}},
    {S(HOOK "  slackNotification:\n    enable: maybe\n"), {NULL}}, /* Butler's own */
    {S(HOOK "  logLevl: info\n"),
        {"8:3 warning: unknown key \"logLevl\" is ignored; did you mean \"logLevel\"?"}},
    {S(HOOK "    serviceMonitor: [1]\n    qlikSenseServerLicenseMonitor: 2\n"), {NULL}},
    {S("other: 1\n" HOOK), {NULL}},

    /* values */
    {S(HOOK "  fileLogging: True\n  logLevel: VERBOSE\n"), {NULL}},
    {S(HOOK "  fileLogging: FALSE\n  logLevel: 'debug'\n"), {NULL}},
    {S(HOOK "  fileLogging: 'true'\n"),
        {"8:16 error: fileLogging must be true or false, without quotes"}},
    {S(HOOK "  fileLogging: yes\n"), {"8:16 error: fileLogging must be true or false"}},
    {S(HOOK "  fileLogging: 1\n"), {"8:16 error: fileLogging must be true or false"}},
    {S(HOOK "  fileLogging: tRUE\n"), {"8:16 error: fileLogging must be true or false"}},
    {S(HOOK "  fileLogging: [true]\n"), {"8:16 error: fileLogging must be a single value"}},
    {S(HOOK "  fileLogging: ~\n  logLevel: null\n  logDirectory:\n"), {NULL}},
    {S(HOOK "  logLevel: all\n"),
        {"8:13 error: logLevel must be error, warn, info, verbose, debug or silly, not \"all\""}},
    {S(HOOK "  logLevel: {a: b}\n"), {"8:13 error: logLevel must be a single value"}},
    {S(HOOK "  logDirectory: \"C:\\temp\"\n"),
        {"8:17 error: logDirectory holds a control character"}},
    {S(HOOK "      rateLimit: 0\n"), {NULL}},
    {S(HOOK "     rateLimit: 0\n"), {"8:6 error: not valid YAML"}},
    {S("Butler:\n  webhookNotification:\n    enable: true\n    reloadTaskFailure:\n      rateLimit: -1\n"
       "    reloadTaskAborted:\n      rateLimit: 2147483648\n"),
        {"5:18 error: webhookNotification.reloadTaskFailure.rateLimit must be from 0 to 2147483647",
            "7:18 error: webhookNotification.reloadTaskAborted.rateLimit must be from 0 to 2147483647"}},
    {S(HOOK "    reloadTaskAborted:\n      rateLimit: '300'\n"),
        {"9:18 error: webhookNotification.reloadTaskAborted.rateLimit must be a whole number from 0 to 2147483647, "
         "without quotes"}},
    {S(HOOK "    reloadTaskAborted:\n      rateLimit: 3.5\n"),
        {"9:18 error: webhookNotification.reloadTaskAborted"
         ".rateLimit must be a whole number"}},
    {S(HOOK "    reloadTaskAborted:\n      rateLimit: 5 minutes\n"), {"9:18 error: "}},
    {S(HOOK "    reloadTaskAborted:\n      rateLimit: 1e3\n"), {"9:18 error: "}},
    {S(HOOK "    reloadTaskAborted:\n      rateLimit: 99999999999999999999999\n"),
        {"9:18 error: "}},
    {S(HOOK "    reloadTaskAborted:\n      rateLimit: --1\n"), {"9:18 error: "}},
    {S(HOOK "    reloadTaskAborted:\n      rateLimit: -\n"), {"9:18 error: "}},
    {S(HOOK "  udpServerConfig:\n    portTaskFailure: 0\n"),
        {"9:5 error: udpServerConfig.enable is missing",
            "9:22 error: udpServerConfig.portTaskFailure must be from 1 to 65535"}},
    {S(HOOK "  butlerWebhook: {port: 65536}\n"),
        {"8:25 error: butlerWebhook.port must be from 1 to 65535"}},
    {S(HOOK "  butlerWebhook: {port: 65535, serverHost: '::1', enable: true}\n"), {NULL}},
    {S(HOOK "  butlerWebhook: {enable: 'yes'}\n"),
        {"8:27 error: butlerWebhook.enable must be true or false"}},
    {S(HOOK "  butlerWebhook:\n"), {NULL}},
    {S(HOOK "  butlerWebhook: 9997\n"), {"8:18 error: butlerWebhook must hold keys"}},
    {S(HOOK "  udpServerConfig: {enable: true, maxMessageSize: 65508}\n"),
        {"8:51 error: udpServerConfig.maxMessageSize must be from 1 to 65507"}},
    {S(HOOK
         "  udpServerConfig: {enable: true, deduplication: {ttlMinutes: 0}, rateLimit: {maxMessagesPerMinute: 0}}\n"),
        {"8:63 error: udpServerConfig.deduplication.ttlMinutes must be from 1 to 525600",
            "8:101 error: udpServerConfig.rateLimit.maxMessagesPerMinute must be from 1"}},
    {S(HOOK "  udpServerConfig: {enable: true, messageQueue: 1, queueMetrics: [2]}\n"), {NULL}},

    /* hosts and sources */
    {S(HOOK "  butlerWebhook: {serverHost: ''}\n"),
        {"8:31 error: butlerWebhook.serverHost must be an address or a host"}},
    {S(HOOK "  butlerWebhook: {serverHost: '127.0.0.1:9998'}\n"),
        {"8:31 error: butlerWebhook.serverHost must be"}},
    {S(HOOK "  butlerWebhook: {serverHost: '[::1]'}\n"),
        {"8:31 error: butlerWebhook.serverHost must be"}},
    {S(HOOK "  butlerWebhook: {serverHost: 10.1.2}\n"),
        {"8:31 error: butlerWebhook.serverHost must be"}},
    {S(HOOK "  butlerWebhook: {serverHost: 10.1.2.256}\n"),
        {"8:31 error: butlerWebhook.serverHost must be"}},
    {S(HOOK "  butlerWebhook: {serverHost: 'http://h'}\n"),
        {"8:31 error: butlerWebhook.serverHost must be"}},
    {S(HOOK "  butlerWebhook: {serverHost: 'a b'}\n"),
        {"8:31 error: butlerWebhook.serverHost must be"}},
    {S(HOOK "  butlerWebhook: {serverHost: ~}\n"), {NULL}},
    {S(HOOK "  butlerWebhook: {serverHost: localhost}\n"), {NULL}},
    {S(HOOK "  butlerWebhook: {serverHost: 127.9.9.9}\n"), {NULL}},
    {S(HOOK "  butlerWebhook: {serverHost: '::1'}\n"), {NULL}},
    {S(HOOK "  butlerWebhook: {serverHost: qs-1.example}\n"),
        {NULL}}, /* looked up when it starts */
    {S(HOOK "  udpServerConfig: {enable: true, serverHost: 0.0.0.0}\n"),
        {"8:47 warning: listening on 0.0.0.0, beyond this machine"}},
    {S(HOOK "  udpServerConfig: {enable: true, serverHost: '::', enableSourceValidation: true,\n"
            "    allowedSources: [10.0.0.0/8]}\n"),
        {NULL}},
    {S(OFF_HOOK "  butlerWebhook: {serverHost: 0.0.0.0}\n"), {"6:23 warning: webhookURL is not"}},
    {S(HOOK
         "  udpServerConfig:\n    enable: true\n    enableSourceValidation: true\n    allowedSources:\n"),
        {"11:20 warning: udpServerConfig.allowedSources is empty: every sender is accepted"}},
    {S(HOOK "  udpServerConfig:\n    enable: true\n    enableSourceValidation: true\n"),
        {"9:5 warning: udpServerConfig.allowedSources is empty: every sender is accepted"}},
    {S(HOOK "  udpServerConfig: {enable: true, allowedSources: [10.0.0.0/33, a b, ~]}\n"),
        {"8:52 error: udpServerConfig.allowedSources: an entry must be",
            "8:65 error: ", "8:70 error: "}},
    {S(HOOK "  udpServerConfig: {enable: true, allowedSources: 10.0.0.1}\n"),
        {"8:51 error: udpServerConfig.allowedSources must be a list"}},

    /* webhooks */
    {S("Butler: {webhookNotification: {enable: true, reloadTaskFailure: {webhooks: []}}}\n"),
        {NULL}},
    {S("Butler: {webhookNotification: {enable: true, reloadTaskFailure: {webhooks: ~}}}\n"),
        {NULL}},
    {S("Butler: {webhookNotification: {enable: true, reloadTaskFailure: ~}}\n"), {NULL}},
    {S("Butler: {webhookNotification: {enable: true, reloadTaskFailure: {webhooks: {a: b}}}}\n"),
        {"1:76 error: webhookNotification.reloadTaskFailure.webhooks must be a list"}},
    {S("Butler: {webhookNotification: {enable: true, reloadTaskFailure: {webhooks: http://h/}}}\n"),
        {"1:76 error: webhookNotification.reloadTaskFailure.webhooks must be a list"}},
    {S(HOOKS "        - http://h/\n        -\n        - []\n"),
        {"6:11 error: a webhook needs the keys", "7:10 error: a webhook needs",
            "8:11 error: a webhook needs"}},
    {S(HOOKS "        - description: x\n"),
        {"6:11 error: webhookURL is missing", "6:11 error: httpMethod is missing"}},
    {S(HOOKS "        - webhookURL: ''\n          httpMethod: ''\n"),
        {"6:23 error: webhookURL has no value", "7:23 error: httpMethod has no value"}},
    {S(HOOKS "        - webhookURL:\n          httpMethod: ~\n"),
        {"6:22 error: webhookURL has no value", "7:23 error: httpMethod has no value"}},
    {S(HOOKS "        - webhookURL: h/x\n          httpMethod: PATCH\n"),
        {"6:23 error: webhookURL is not a URL: it must start with http:// or https://",
            "7:23 error: httpMethod must be GET, POST or PUT, not \"PATCH\""}},
    {S(HOOKS "        - webhookURL: [http://h/]\n          httpMethod: ' GET'\n"),
        {"6:23 error: webhookURL must be a single value", "7:23 error: httpMethod must be GET"}},
    {S(HOOKS "        - webhookURL: http://u:SECRET@h:port/x\n          httpMethod: post\n"),
        {"6:23 error: webhookURL is not a URL: the port is not a number"}},

    /* off: the webhooks' mistakes are warnings, unless our own enable says otherwise */
    {S(OFF_HOOK), {"6:23 warning: webhookURL is not a URL"}},
    {S(OFF_HOOK "  butlerWebhook: {enable: true}\n"), {"6:23 error: webhookURL is not a URL"}},
    {S(OFF_HOOK "  butlerWebhook: {enable: ~}\n"), {"6:23 warning: webhookURL is not a URL"}},
    {S(HOOKS "        - httpMethod: GET\n  butlerWebhook: {enable: false}\n"),
        {"6:11 warning: webhookURL is missing"}},
    {S(HOOKS "        - httpMethod: GET\n  udpServerConfig: {enable: false}\n"),
        {"6:11 warning: webhookURL is missing"}},
    {S(OFF_HOOK "    reloadTaskAborted:\n      rateLimit: -5\n"),
        {"6:23 warning: webhookURL is not a URL", "9:18 error: "}}, /* only the webhooks' */

    /* certificates; paths start at the file */
    {S(TLS_HOOK "            enable: true\n"),
        {"9:13 error: cert.enable is true, but cert.certCA names no file"}},
    {S(TLS_HOOK "            enable: true\n            certCA: ''\n"),
        {"10:21 error: cert.enable is true, but"}},
    {S(TLS_HOOK "            certCA: ca.pem\n"), {"9:13 error: cert.enable is missing"}},
    {S(TLS_HOOK "            enable: true\n            certCA: ca.pem\n"), {NULL}},
    {S(TLS_HOOK "            enable: true\n            certCA: absent.pem\n"),
        {"10:21 error: cert.certCA: cannot read "}},
    {S(TLS_HOOK "            enable: true\n            certCA: .\n"),
        {"10:21 error: cert.certCA: cannot read "}},
    {S(TLS_HOOK "            enable: true\n            certCA: text\n"),
        {"10:21 error: cert.certCA: "}},
    {S(TLS_HOOK "            enable: true\n            certCA: der\n"), {"it looks like DER"}},
    {S(TLS_HOOK "            enable: true\n            certCA: broken\n"),
        {"holds no certificate that can be read"}},
    {S(TLS_HOOK "            enable: true\n            certCA: half\n"),
        {"10:21 warning: cert.certCA: 1 of the certificates in "}},
    {S(TLS_HOOK "            enable: true\n            certCA: \"a\\tb\"\n"),
        {"10:21 error: cert.certCA holds a control character", "10:21 error: cert.enable is true"}},
    {S(TLS_HOOK "            enable: false\n            certCA: absent.pem\n"), {NULL}},
    {S(TLS_HOOK "            rejectUnauthorized: false\n"),
        {"9:33 warning: failure 1: rejectUnauthorized is false"}},
    {S(TLS_HOOK
         "            enable: true\n            rejectUnauthorized: false\n            certCA: absent.pem\n"),
        {"10:33 warning: failure 1: rejectUnauthorized",
            "11:21 warning: cert.certCA: cannot read "}},
    {S(TLS_HOOK "            enable: true\n            rejectUnauthorized: false\n"),
        {"10:33 warning: failure 1: "}},
    {S(HOOK "          cert: {enable: false, rejectUnauthorized: false}\n"),
        {NULL}}, /* http: nothing to check */
    {S(HOOK "          cert: true\n"), {"8:17 error: cert must hold keys"}},
    {S(HOOK "          cert:\n"), {NULL}},

    /* anchors, aliases, merge keys */
    {S(HOOKS
         "        - &a\n          webhookURL: http://h/\n          httpMethod: PUT\n        - *a\n"
         "        - <<: *a\n          httpMethod: GET\n        - {<<: [*a, {description: d}]}\n"),
        {NULL}},
    {S(HOOKS "        - *a\n"), {"6:11 error: the alias *a has no anchor &a before it"}},
    {S(HOOKS "        - &a\n          webhookURL: *a\n"),
        {"7:23 error: the alias *a stands inside its own anchor"}},
    {S(HOOKS "        - &a [*a]\n"), {"6:15 error: the alias *a stands inside its own anchor"}},
    {S(HOOKS "        - {<<: text, webhookURL: 'http://h/', httpMethod: GET}\n"),
        {"6:16 error: \"<<\" merges maps"}},
    {S("x: &x {httpMethod: NO}\n" HOOKS "        - {<<: *x, webhookURL: 'http://h/'}\n"),
        {"1:20 error: httpMethod must be GET"}},
    {S("x: &x {httpMethod: NO}\n" HOOKS
       "        - {<<: *x, webhookURL: 'http://h/', httpMethod: GET}\n"),
        {NULL}},
};

/* Loads text as a file of that name; config and reader are the caller's to end with cfg_done. */
static void
load(struct cfg_reader *r, struct config *c, struct slice text)
{
    cfg_load(r, write_file("butler.yaml", text), false, c);
}

/* All problems as text. */
static void
problems_text(const struct cfg_reader *r, struct buf *out)
{
    for (const struct problem *p = r->problems; p; p = p->next)
        buf_format(out, "%s%d:%d %s: %s", out->len ? " / " : "", p->line, p->column,
            p->is_error ? "error" : "warning", p->text);
}

static void
check_problems(const struct cfg_reader *r, const char *const *want, size_t most, const char *what)
{
    const struct problem *p = r->problems;
    struct buf all = {0};
    int errors = 0;
    size_t i = 0;
    bool ok = true;

    problems_text(r, &all);
    for (; i < most && want[i] && p; i++, p = p->next) {
        struct buf one = {0};
        buf_format(
            &one, "%d:%d %s: %s", p->line, p->column, p->is_error ? "error" : "warning", p->text);
        ok = ok && strstr(one.data, want[i]);
        errors += p->is_error;
        buf_free(&one);
    }
    check(ok && !p && (i == most || !want[i]), "%s: wanted \"%s\"%s, got \"%s\"", what,
        most && want[0] ? want[0] : "no problem", most > 1 && want[1] ? " and more" : "",
        all.data ? all.data : "");
    check(!ok || p || (r->errors == errors && r->warnings == (int)i - errors),
        "%s: %d errors, %d warnings", what, r->errors, r->warnings);
    check(!all.data || !strstr(all.data, "SECRET"), "a problem shows a password: %s", all.data);
    buf_free(&all);
}

/* Files that configurations name: certificates of all kinds. */
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
    write_file("der", SLICE("\x30\x82\x01\x0a"));
    write_file("broken", SLICE(text));
    buf_add(&half, pem, len);
    buf_add_text(&half, text);
    write_file("half", (struct slice){half.data, half.len});
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
        check_problems(&r, CONFIG_ROWS[i].problem, 4, show((struct slice){text.data, text.len}));
        cfg_done(&c);
        if (memchr(text.data, '\0', text.len))
            continue;
        crlf.len = 0; /* the same with the line ends of Windows */
        for (size_t k = 0; k < text.len; k++)
            buf_add_text(&crlf, text.data[k] == '\n' ? "\r\n" : (char[2]){text.data[k], '\0'});
        load(&r, &c, (struct slice){crlf.data, crlf.len});
        check_problems(&r, CONFIG_ROWS[i].problem, 4, "with CRLF");
        cfg_done(&c);
    }
    buf_free(&crlf);
}

/* Files whose size is the problem. */
static void
test_config_bounds(void)
{
    struct cfg_reader r;
    struct config c;
    struct buf b = {0};
    int64_t began_ms = plat_now_ms();

    buf_add_text(&b, HOOK);
    while (b.len < CONFIG_MAX - 1)
        buf_add_char(&b, '#');
    buf_add_char(&b, '\n');
    load(&r, &c, (struct slice){b.data, b.len});
    check_problems(&r, NULL, 0, "1 MiB");
    cfg_done(&c);
    buf_add_char(&b, '\n');
    load(&r, &c, (struct slice){b.data, b.len});
    check_problems(&r,
        (const char *const[]){"1:1 error: cannot read the configuration: it is over 1 MiB"}, 1,
        "one byte more");
    cfg_done(&c);
    cfg_load(&r, folder, false, &c);
    check_problems(&r,
        (const char *const[]){"1:1 error: cannot read the configuration: Is a directory"}, 1,
        "a folder");
    cfg_done(&c);
    cfg_load(&r, "/nonexistent.yaml", false, &c);
    check_problems(&r,
        (const char *const[]){"1:1 error: cannot read the configuration: No such file"}, 1,
        "no file");
    cfg_done(&c);

    for (int deep = CONFIG_DEPTH_MAX - 2; deep < CONFIG_DEPTH_MAX + 2;
         deep++) { /* the root is level 0 */
        b.len = 0;
        buf_add_text(&b, HOOK "  x: ");
        for (int i = 1; i < deep; i++)
            buf_add_char(&b, '[');
        for (int i = 1; i < deep; i++)
            buf_add_char(&b, ']');
        load(&r, &c, (struct slice){b.data, b.len});
        check_problems(&r, (const char *const[]){"nested more than 64 levels deep"},
            deep > CONFIG_DEPTH_MAX, "nested lists");
        cfg_done(&c);
    }
    b.len = 0;
    for (int i = 0; i < 200000; i++)
        buf_add_char(&b, '[');
    load(&r, &c, (struct slice){b.data, b.len});
    check_problems(
        &r, (const char *const[]){"nested more than 64 levels deep"}, 1, "200,000 brackets");
    cfg_done(&c);

    b.len = 0; /* a file of 600 bytes that stands for 10 to the 12th values */
    buf_add_text(&b, "a0: &a0 [1,2,3,4,5,6,7,8,9,10]\n");
    for (int i = 1; i < 12; i++) {
        buf_format(&b, "a%d: &a%d [", i, i);
        for (int k = 0; k < 10; k++)
            buf_format(&b, "%s*a%d", k ? "," : "", i - 1);
        buf_add_text(&b, "]\n");
    }
    load(&r, &c, (struct slice){b.data, b.len});
    check_problems(
        &r, (const char *const[]){"error: more than"}, 1, "aliases that expand without end");
    cfg_done(&c);

    b.len = 0; /* keys, each a duplicate of all others */
    buf_add_text(&b, HOOK "  x:\n");
    for (int i = 0; i < 5000; i++)
        buf_add_text(&b, "    a:\n");
    load(&r, &c, (struct slice){b.data, b.len});
    check_number(r.errors, 4999, "the same key 5,000 times: problems");
    cfg_done(&c);

    b.len = 0; /* merges of merges */
    buf_add_text(&b, "m0: &m0 {");
    for (int i = 0; i < 2000; i++)
        buf_format(&b, "k%d: 1, ", i);
    buf_add_text(&b, "}\n");
    for (int i = 1; i < 5000; i++)
        buf_format(&b, "m%d: {<<: *m0}\n", i);
    load(&r, &c, (struct slice){b.data, b.len});
    check_problems(&r, (const char *const[]){"error: more than"}, 1, "5,000 merges of 2,000 keys");
    cfg_done(&c);

    for (int hooks = CONFIG_WEBHOOKS_MAX; hooks <= CONFIG_WEBHOOKS_MAX + 1; hooks++) {
        b.len = 0;
        buf_add_text(&b, HOOKS);
        for (int i = 0; i < hooks; i++)
            buf_add_text(&b, "        - {webhookURL: 'http://h/', httpMethod: GET}\n");
        load(&r, &c, (struct slice){b.data, b.len});
        check_problems(&r, (const char *const[]){"has more than 200 entries"},
            hooks > CONFIG_WEBHOOKS_MAX, "200 webhooks");
        check(hooks > CONFIG_WEBHOOKS_MAX || c.webhooks[ALERT_FAILURE] == CONFIG_WEBHOOKS_MAX,
            "are read");
        cfg_done(&c);
    }
    for (int sources = SOURCES_MAX; sources <= SOURCES_MAX + 1; sources++) {
        b.len = 0;
        buf_add_text(&b, HOOK "  udpServerConfig:\n    enable: true\n    allowedSources:\n");
        for (int i = 0; i < sources; i++)
            buf_format(&b, "      - 10.0.%d.%d\n", i / 256, i % 256);
        load(&r, &c, (struct slice){b.data, b.len});
        check_problems(&r, (const char *const[]){"has more than 256 entries"},
            sources > SOURCES_MAX, "256 sources");
        cfg_done(&c);
    }
    buf_free(&b);
    check(plat_now_ms() - began_ms < 10000, "all that within ten seconds");
}

static void
test_config_defaults(void)
{
    struct cfg_reader r;
    struct config c;
    char text[300];

    load(&r, &c, SLICE("Butler: {webhookNotification: {enable: true}}\n"));
    check_problems(&r, NULL, 0, "the smallest file");
    check(c.enabled && c.udp_enable && c.webhook_enable, "enabled without udpServerConfig");
    check_number(c.log_level, LOG_INFO, "logLevel");
    check(!c.file_logging, "fileLogging");
    snprintf(text, sizeof text, "%s/log", folder);
    check_text(c.log_directory, text, "logDirectory is beside the file");
    check_text(c.udp_host, "127.0.0.1", "serverHost");
    check_number(c.udp_port, 9998, "portTaskFailure");
    check_number(c.max_message_size, 65507, "maxMessageSize");
    check(!c.source_validation && c.sources == 0, "allowedSources");
    check(!c.udp_rate_enable && c.udp_rate == 600, "rateLimit of udpServerConfig");
    check(c.dedup_enable && c.dedup_minutes == 10, "deduplication");
    check(
        c.rate_limit_s[ALERT_FAILURE] == 300 && c.rate_limit_s[ALERT_ABORTED] == 300, "rateLimit");
    check(c.webhooks[ALERT_FAILURE] == 0 && c.webhooks[ALERT_ABORTED] == 0, "no webhooks");
    check(!c.proxy[0].host && !c.proxy[1].host, "no proxy");
    cfg_listen_text(&c, text, sizeof text);
    check_text(text, "127.0.0.1:9998", "cfg_listen_text");
    cfg_done(&c);

    load(&r, &c,
        SLICE(
            "Butler: {webhookNotification: {enable: true}, butlerWebhook: {serverHost: '::'}}\n"));
    cfg_listen_text(&c, text, sizeof text);
    check_text(text, "[::]:9998", "cfg_listen_text for IPv6");
    cfg_done(&c);
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
        "    reloadTaskFailure:\n      rateLimit: 0\n      webhooks:\n"
        "        - description: \"first\\nhook\"\n          webhookURL: https://u:p@h.example/a?b=SECRET\n"
        "          httpMethod: get\n          cert: {enable: true, certCA: ca.pem}\n"
        "        - webhookURL: http://h/\n          httpMethod: Put\n"
        "    reloadTaskAborted:\n      rateLimit: 60\n      webhooks:\n"
        "        - {webhookURL: 'https://h/', httpMethod: POST, description: ''}\n"
        "        - {webhookURL: 'https://h/', httpMethod: POST, cert: {enable: false, rejectUnauthorized: false}}\n";
    struct cfg_reader r;
    struct config c;
    char path[300];

    load(&r, &c, SLICE(text));
    check_problems(&r,
        (const char *const[]){"29:98 warning: aborted 2: rejectUnauthorized is false"}, 1,
        "a file with all keys");
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
    if (check(c.webhooks[ALERT_FAILURE] == 2 && c.webhooks[ALERT_ABORTED] == 2, "webhooks")) {
        const struct webhook_config *w = c.webhook[ALERT_FAILURE];
        check_text(w[0].name, "failure 1 (\"first\\x0ahook\")", "name with description");
        check_text(w[0].url.shown, "https://h.example/a?b=...", "URL without secrets");
        check(w[0].method == METHOD_GET && w[1].method == METHOD_PUT, "methods in any case");
        check(w[0].trust == TRUST_OWN_CA && w[0].ca && w[0].ca_count == 1, "own CA");
        snprintf(path, sizeof path, "%s/ca.pem", folder);
        check_text(w[0].cert_ca, path, "certCA is beside the file");
        check(w[1].trust == TRUST_NONE && !w[1].ca && w[1].kind == ALERT_FAILURE, "plain http");
        check_text(w[1].name, "failure 2", "name without description");
        w = c.webhook[ALERT_ABORTED];
        check(w[0].trust == TRUST_PUBLIC && w[0].kind == ALERT_ABORTED, "public roots");
        check(w[1].trust == TRUST_UNCHECKED, "rejectUnauthorized false");
        check_text(w[0].name, "aborted 1", "an empty description");
        check(!w[0].proxy, "no proxy");
    }
    cfg_done(&c);
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
        b.len = 0;
        buf_format(&b, "Butler: {%swebhookNotification: {enable: %s}%s}\n", rows[i].udp,
            rows[i].webhook, rows[i].ours);
        load(&r, &c, (struct slice){b.data, b.len});
        check_problems(&r, NULL, 0, b.data);
        check(c.enabled == rows[i].enabled, "enabled: %s", b.data);
        cfg_done(&c);
    }
    buf_free(&b);
    load(&r, &c,
        SLICE(
            "Butler: {webhookNotification: {enable: true}, udpServerConfig: {enable: true, serverHost: 10.0.0.1,\n"
            "  portTaskFailure: 1}, butlerWebhook: {serverHost: 10.0.0.2, port: 2}}\n"));
    check_text(c.udp_host, "10.0.0.2", "our serverHost wins");
    check_number(c.udp_port, 2, "our port wins");
    cfg_done(&c);
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
    check_problems(&r, NULL, 0, "merge keys");
    check_number((long long)c.webhooks[ALERT_FAILURE], COUNT(want), "webhooks");
    for (size_t i = 0; i < COUNT(want) && i < c.webhooks[ALERT_FAILURE]; i++) {
        const struct webhook_config *w = &c.webhook[ALERT_FAILURE][i];
        struct buf got = {0};
        buf_format(&got, "%s %s %s", METHODS[w->method], w->url.shown, w->name);
        check_buf(&got, slice_of(want[i]), "merged");
    }
    cfg_done(&c);
}

static void
test_config_proxies(void)
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
            "the environment's http_proxy is not a proxy"},
        {{"HTTP_PROXY", "socks5://u:SECRET@p"}, NULL, NULL,
            "the environment's HTTP_PROXY is not a proxy"},
        {{"https_proxy", "https://p"}, NULL, "https://p",
            "the environment's https_proxy: a proxy is spoken to over http"},
        {{"http_proxy", "http://p", "NO_PROXY", "h"}, NULL, NULL, NULL},
        {{"http_proxy", "http://p", "no_proxy", "g,*"}, NULL, NULL, NULL},
    };
    struct cfg_reader r;
    struct config c;
    struct url plain, tls;
    struct err e;

    check(url_parse(SLICE("http://h/"), NULL, &plain, &e) == 0 &&
            url_parse(SLICE("https://h/"), NULL, &tls, &e) == 0,
        "URLs");
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (int k = 0; rows[i].set[k]; k += 2)
            setenv(rows[i].set[k], rows[i].set[k + 1], 1);
        load(&r, &c, SLICE(HOOK));
        check_problems(&r, &rows[i].problem, rows[i].problem ? 1 : 0, rows[i].set[1]);
        const struct url *http = cfg_proxy_for(&c, &plain), *https = cfg_proxy_for(&c, &tls);
        check_text(
            http ? http->origin : NULL, rows[i].http ? rows[i].http : "(none)", "proxy for http");
        check_text(https ? https->origin : NULL, rows[i].https ? rows[i].https : "(none)",
            "proxy for https");
        if (rows[i].http && c.webhooks[ALERT_FAILURE])
            check(c.webhook[ALERT_FAILURE][0].proxy != NULL, "a webhook's proxy");
        cfg_done(&c);
        for (int k = 0; rows[i].set[k]; k += 2)
            unsetenv(rows[i].set[k]);
    }
    url_done(&plain);
    url_done(&tls);
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
        {"test/data/config/butler-production.yaml", -1, true, 0},
        {"test/data/config/seed.yaml", 6, false, 6},
        {"samples/minimal.yaml", 0, true, 1},
        {"samples/full.yaml", -1, true, 0},
    };
    struct cfg_reader r;
    struct config c;
    struct buf told = {0};

    for (size_t i = 0; i < COUNT(rows); i++) {
        cfg_load(&r, rows[i].file, false, &c);
        struct buf all = {0};
        problems_text(&r, &all);
        check(r.errors == 0 && (rows[i].warnings < 0 || r.warnings == rows[i].warnings), "%s: %s",
            rows[i].file, all.data);
        check(c.enabled == rows[i].enabled, "%s enabled", rows[i].file);
        size_t hooks = c.webhooks[ALERT_FAILURE] + c.webhooks[ALERT_ABORTED];
        check(rows[i].hooks == 0 ? hooks > 0 : hooks == rows[i].hooks, "%s: %zu webhooks",
            rows[i].file, hooks);
        buf_free(&all);
        cfg_done(&c);
    }
    load(&r, &c, SLICE(OFF_HOOK "  fileLogging: no\n"));
    r.file = "a.yaml";
    cfg_add_problems(&told, &r);
    check(strncmp(told.data, "a.yaml:6:23: warning: webhookURL is not a URL", 45) == 0 &&
            strstr(told.data,
                "\na.yaml:8:16: error: fileLogging must be true or false, without quotes\n"),
        "cfg_add_problems: %s", told.data);
    buf_free(&told);
    cfg_done(&c);
}

static void
test_config(void)
{
    static const struct {
        const char *a, *b;
        int distance;
    } distances[] = {
        {"", "", 0},
        {"enable", "enable", 0},
        {"enabel", "enable", 1},
        {"enabl", "enable", 1},
        {"enablee", "enable", 1},
        {"enible", "enable", 1},
        {"nebale", "enable", 2},
        {"", "abc", 3},
        {"abcdefghijkl", "", 9},
        {"1234567890123456789012345678901234567890123456",
            "1234567890123456789012345678901234567890123456", 0},
        {"12345678901234567890123456789012345678901234567",
            "12345678901234567890123456789012345678901234567", 9},
    };

    for (size_t i = 0; i < COUNT(distances); i++)
        check_number(
            cfg_distance(distances[i].a, distances[i].b), distances[i].distance, distances[i].a);
    test_config_problems();
    test_config_bounds();
    test_config_defaults();
    test_config_values();
    test_config_overrides();
    test_config_merge();
    test_config_proxies();
    test_config_files();
}

/* ==== 8. Windows of time ==================================================== */

/* What listen_is_held_back does with one table: true if id is held back at now_ms. */
static bool
window_holds(struct window_table *t, struct slice id, int64_t now_ms)
{
    struct window_key key = window_key(id);
    struct window_entry *entry = window_find(t, &key, now_ms);

    if (entry) {
        entry->held++;
        return true;
    }
    window_open(t, &key, now_ms);
    return false;
}

/* The same for an id made of a number. */
static bool
window_holds_number(struct window_table *t, unsigned number, int64_t now_ms)
{
    char id[24];

    snprintf(id, sizeof id, "id %u", number);
    return window_holds(t, slice_of(id), now_ms);
}

static void
test_window_edges(void)
{
    static const int64_t length = 300000;
    static const struct {
        struct slice a, b;
        bool same;
    } keys[] = {
        {S(TASK_ID), S("DEC2A02A-1680-44EF-8DC2-E2BFB180AF87"), true},
        {S(TASK_ID), S("{" TASK_ID "}"), true},
        {S("{DEC2A02A-1680-44ef-8DC2-E2BFB180AF87}"), S(TASK_ID), true},
        {S(TASK_ID), S(APP_ID), false},
        {S(TASK_ID), S("{" TASK_ID), false},
        {S("run 1"), S("RUN 1"), true},
        {S("run 1"), S("run 1 "), false},
        {S("a\0b"), S("a\0c"), false},
        {S("{x}"), S("x"), false},
        {S("\xc3\xa5"), S("\xc3\xa4"), false},
    };
    struct window_table t = {.length_ms = length};
    struct window_key a_key = window_key(SLICE("a"));

    for (int64_t begin = 0; begin <= 1000000000000; begin += 500000000000) {
        check(!window_holds(&t, SLICE("a"), begin), "the first is let through");
        check(window_holds(&t, SLICE("a"), begin), "the second at the same moment is not");
        check(window_holds(&t, SLICE("a"), begin + length - 1), "nor one ms before the end");
        check_number(window_find(&t, &a_key, begin + length - 1)->held, 2, "held back so far");
        check(
            !window_holds(&t, SLICE("a"), begin + length), "at the end it is, and opens a new one");
        check(window_holds(&t, SLICE("a"), begin + 2 * length - 1), "that is as long");
        check_number(window_find(&t, &a_key, begin + length)->held, 1, "and counts anew");
        check(!window_holds(&t, SLICE("a"), begin + 2 * length),
            "what was held back did not extend it");
        check(!window_holds(&t, SLICE("b"), begin + 2 * length), "another id has its own");
    }
    window_done(&t);

    for (size_t i = 0; i < COUNT(keys); i++) {
        struct slice a = exact(keys[i].a), b = exact(keys[i].b);
        window_holds(&t, a, 0);
        check(window_holds(&t, b, 1) == keys[i].same, "\"%s\" and \"%s\"", show(a), show(b));
        window_done(&t);
        exact_free(a);
        exact_free(b);
    }
    check(!window_holds(&t, SLICE(""), 0) && !window_holds(&t, SLICE(""), 0),
        "an empty id is never held");
    check_number(t.count, 0, "and not kept");
    t.length_ms = 0;
    check(!window_holds(&t, SLICE("a"), 0) && !window_holds(&t, SLICE("a"), 0),
        "a length of 0 holds nothing");
    check(t.count == 0 && t.cap == 0, "and keeps nothing");
    t.length_ms = 1;
    check(!window_holds(&t, SLICE("a"), 5) && window_holds(&t, SLICE("a"), 5), "one ms");
    check(!window_holds(&t, SLICE("a"), 6), "is over the next");
    window_done(&t);
    window_done(&t); /* a second time is harmless */
}

static void
test_window_full(void)
{
    struct window_table t = {.length_ms = 1000000};
    struct window_key seventh = window_key(SLICE("id 7"));
    int wrong = 0;

    for (unsigned i = 0; i < WINDOW_MAX; i++)
        wrong += window_holds_number(&t, i, i);
    check_number(wrong, 0, "100,000 ids, each for the first time: held back");
    for (unsigned i = 0; i < WINDOW_MAX; i++)
        wrong += !window_holds_number(&t, i, WINDOW_MAX);
    check_number(wrong, 0, "all again: let through");
    check(!window_holds_number(&t, WINDOW_MAX, WINDOW_MAX), "one more is let through");
    check(window_holds_number(&t, WINDOW_MAX, WINDOW_MAX), "and kept");
    check(window_holds_number(&t, 1, WINDOW_MAX), "the second is still kept");
    check_number(t.count, WINDOW_MAX, "kept in all");
    check(!window_holds_number(&t, 0, WINDOW_MAX), "the oldest went");
    check(!window_holds_number(&t, 1, WINDOW_MAX), "then the second");
    check(window_holds_number(&t, 3, WINDOW_MAX), "the others are kept");

    uint32_t cap = t.cap;
    for (unsigned i = 0; i < 3 * WINDOW_MAX; i++)
        wrong += window_holds_number(&t, WINDOW_MAX + 1 + i, WINDOW_MAX + 1 + i);
    check_number(wrong, 0, "300,000 more: held back");
    check(t.cap == cap && t.count == WINDOW_MAX, "memory does not grow: %u places", t.cap);
    check((size_t)t.cap * (sizeof *t.entry + sizeof *t.chain) < 6 << 20, "under 6 MB");
    check(window_holds_number(&t, 4 * WINDOW_MAX, 4 * WINDOW_MAX), "the last is kept");
    check(!window_find(&t, &seventh, 100 * t.length_ms), "much later");
    check_number(t.count, 0, "all are over");
    window_done(&t);
}

/* Random ids and times, against a list that is searched from one end to the other. */
static void
test_window_random(void)
{
    struct window_table t = {.length_ms = 50};
    int64_t begin[200], now = 0;
    int wrong = 0, held = 0;

    for (size_t i = 0; i < COUNT(begin); i++)
        begin[i] = -1000;
    for (int i = 0; i < 20000; i++) {
        unsigned id = random_below(COUNT(begin));
        bool hold = now < begin[id] + t.length_ms;
        wrong += window_holds_number(&t, id, now) != hold;
        if (!hold)
            begin[id] = now;
        held += hold;
        now += random_below(3);
    }
    check_number(wrong, 0, "random ids and times: wrong answers");
    check(held > 1000 && held < 19000, "%d of 20,000 were held back", held);
    window_done(&t);
}

static void
test_windows(void)
{
    test_window_edges();
    test_window_full();
    test_window_random();
}

/* ==== 9. Journal ============================================================ */

/* CRC-32 bit by bit, as its definition says. */
static uint32_t
slow_crc(const void *data, size_t len)
{
    const unsigned char *p = data;
    uint32_t c = UINT32_MAX;

    for (size_t i = 0; i < 8 * len; i++) {
        uint32_t bit = (c ^ p[i / 8] >> i % 8) & 1;
        c = c >> 1 ^ (bit ? 0xedb88320u : 0);
    }
    return ~c;
}

static void
test_crc(void)
{
    static const struct {
        struct slice data;
        uint32_t crc;
    } rows[] = {
        {S(""), 0},
        {S("a"), 0xe8b7be43},
        {S("abc"), 0x352441c2},
        {S("123456789"), 0xcbf43926}, /* the check value of CRC-32/ISO-HDLC, zlib's */
        {S("The quick brown fox jumps over the lazy dog"), 0x414fa339},
        {S("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), 0x190a55ad},
    };
    unsigned char random[64];

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct slice data = exact(rows[i].data);
        check_number(crc_of(data.data, data.len), rows[i].crc, show(data));
        exact_free(data);
    }
    for (size_t i = 0; i < sizeof random; i++)
        random[i] = (unsigned char)random_next();
    for (size_t from = 0; from < 9; from++)
        for (size_t len = 0; len <= 50; len++)
            check_number(
                crc_of(random + from, len), slow_crc(random + from, len), "CRC of random bytes");
}

/* Adds a line of the journal, made of what stands behind the CRC; without its LF. */
static void
add_line(struct buf *b, struct slice rest)
{
    buf_format(b, "%08x\t", slow_crc(rest.data, rest.len));
    buf_add(b, rest.data, rest.len);
}

#define MSG(c) "msg_" c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c
#define KEY1 "0123456789abcdef0123456789abcdef"

/* Every word: what stands behind the CRC, and its fields. */
static const struct {
    enum journal_word word;
    const char *text;
    const char *field[JOURNAL_FIELDS];
} LINE_ROWS[] = {
    {JOURNAL_ACCEPTED,
        "accepted\t1795339800123\t" KEY1 ":" MSG("a") "," KEY1 ":" MSG("b") "\t{\"event\":\"x\"}",
        {"1795339800123", KEY1 ":" MSG("a") "," KEY1 ":" MSG("b"), "{\"event\":\"x\"}"}},
    {JOURNAL_WAITING, "waiting\t0\t" KEY1 ":" MSG("a") "\t{}", {"0", KEY1 ":" MSG("a"), "{}"}},
    {JOURNAL_RETRY, "retry\t" MSG("a") "\t3\t1795339800123\t1795339860123\t\"status 500\"",
        {MSG("a"), "3", "1795339800123", "1795339860123", "\"status 500\""}},
    {JOURNAL_DELIVERED, "delivered\t" MSG("a"), {MSG("a")}},
    {JOURNAL_DEAD, "dead\t" MSG("b"), {MSG("b")}},
    {JOURNAL_DROPPED, "dropped\t" MSG("c"), {MSG("c")}},
    {JOURNAL_WEBHOOK, "webhook\t" KEY1 "\tfailure\t1\t2\t\"\xc3\xa5\"",
        {KEY1, "failure", "1", "2", "\"\xc3\xa5\""}},
    {JOURNAL_WINDOW, "window\taborted\tseen\t1795339800123\t" KEY1,
        {"aborted", "seen", "1795339800123", KEY1}},
};

/* Whether two records are the same, by what they say. */
static bool
same_record(const struct journal_line *a, const struct journal_line *b)
{
    bool ok = a->word == b->word;

    for (int i = 0; i < JOURNAL_FIELDS; i++)
        ok = ok && same(a->field[i], b->field[i]);
    return ok;
}

static void
test_journal_lines(void)
{
    static const struct slice bad[] = {S(""), S("\t"), S("delivered"), S("delivered\t"),
        S("delivered\t" MSG("a") "\tx"), S("delivered " MSG("a")), S("deliver\t" MSG("a")),
        S("\tdelivered\t" MSG("a")), S("DELIVERED\t"), S("unknown\tx"), S("accepted\t1"),
        S("accepted\t1\t2"), S("accepted\t1\t2\t3\t4"), S("retry\t1\t2\t3\t4"),
        S("retry\t1\t2\t3\t4\t5\t6"), S("webhook\t1\t2\t3\t4"), S("window\t1\t2\t3"),
        S("window\t1\t2\t3\t4\t5"), S("\0\tx")};
    static const char changes[] = "\0\t\n 0f\xff";
    struct journal_line record, other;
    struct buf b = {0};

    for (size_t i = 0; i < COUNT(LINE_ROWS); i++) {
        add_line(&b, slice_of(LINE_ROWS[i].text));
        struct slice line = exact((struct slice){b.data, b.len});
        if (check(journal_read_line(line, &record) == 0 && record.word == LINE_ROWS[i].word,
                "the word of %s", LINE_ROWS[i].text))
            for (int k = 0; k < JOURNAL_FIELDS; k++)
                check_bytes(record.field[k],
                    slice_of(LINE_ROWS[i].field[k] ? LINE_ROWS[i].field[k] : ""), "its field");
        int wrong = 0;
        for (size_t at = 0; at < b.len; at++)
            for (size_t how = 0; how < 8 + sizeof changes; how++) {
                char was = b.data[at];
                b.data[at] = how < 8 ? (char)(was ^ 1 << how) : changes[how - 8];
                /* digits of the CRC may be read in any case */
                if (b.data[at] != was &&
                    journal_read_line((struct slice){b.data, b.len}, &other) == 0)
                    wrong += at >= 8 || tolower(b.data[at]) != was || !same_record(&record, &other);
                b.data[at] = was;
            }
        check_number(wrong, 0, "damaged in each byte: good");
        for (size_t len = 0; len < line.len; len++) {
            struct slice part = exact((struct slice){line.data, len});
            wrong += journal_read_line(part, &other) == 0;
            exact_free(part);
        }
        check_number(wrong, 0, "cut off at each byte: good");
        exact_free(line);
        buf_free(&b);
    }
    for (size_t i = 0; i < COUNT(bad); i++) {
        add_line(&b, bad[i]);
        check(journal_read_line((struct slice){b.data, b.len}, &record) != 0, "no record: %s",
            show(bad[i]));
        buf_free(&b);
    }
}

/* What the program writes. */
static void
test_journal_writes(void)
{
    struct webhook_config w = {
        .key = KEY1, .kind = ALERT_ABORTED, .place = 1, .description = "a \"b\"\t\n"};
    struct buf want = {0}, got = {0}, targets = {0};

    buf_add_text(&targets, KEY1 ":" MSG("a"));
    add_line(&want, SLICE("waiting\t1795339800123\t" KEY1 ":" MSG("a") "\t{\"a\":1}"));
    buf_add_char(&want, '\n');
    journal_add_alert(&got, JOURNAL_WAITING, 1795339800123, &targets, SLICE("{\"a\":1}"));
    add_line(&want, SLICE("dead\t" MSG("b")));
    buf_add_char(&want, '\n');
    journal_add_outcome(&got, JOURNAL_DEAD, MSG("b"));
    add_line(&want, SLICE("retry\t" MSG("b") "\t2\t1000\t2000\t\"a\\tb\\n\xc3\xa5\""));
    buf_add_char(&want, '\n');
    journal_add_retry(&got, &(struct journal_retry){MSG("b"), 2, 1000, 2000, "a\tb\n\xc3\xa5"});
    add_line(&want, SLICE("webhook\t" KEY1 "\taborted\t2\t3\t\"a \\\"b\\\"\\t\\n\""));
    buf_add_char(&want, '\n');
    journal_add_webhook(&got, &w, 3);
    w.description = NULL;
    add_line(&want, SLICE("webhook\t" KEY1 "\taborted\t2\t3\t\"\""));
    buf_add_char(&want, '\n');
    journal_add_webhook(&got, &w, 3);
    check_buf(&got, (struct slice){want.data, want.len}, "lines that the program writes");
    buf_free(&want);
    buf_free(&targets);
}

/* Good records inside of a damaged line. */
static void
test_salvage(void)
{
    /*
     * The parts that a line is glued of. A to H: a row of LINE_ROWS; x: a record with a damaged
     * CRC; any other byte: itself.
     */
    static const struct {
        const char *parts, *found;
    } rows[] = {
        {"", ""},
        {"junk", ""},
        {"A", "A"},
        {"?D", "D"},
        {"A?D", "AD"}, /* the LF has become another byte */
        {"AD", "AD"},  /* or is gone */
        {"ADCB", "ADCB"},
        {"A?A?A", "AAA"},
        {"ABCDEFGHABCDEFGH?A?B?C?D?E?F?G?H", "ABCDEFGHABCDEFGHABCDEFGH"},
        {"D?E?F?D?E", "DEFDE"},
        {"B?C?G?H", "BCGH"},
        {"x?D", "D"},
        {"xD", "D"},
        {"D?x", "D"},
        {"D?x?E", "DE"},
        {"x", ""},
        {"x?x", ""},
        {"junk\tA", "A"},
        {"00000000\tD", "D"},
        {"\t\t\t\tD", "D"},
        {"deadbeef\tdeadbeef\tE", "E"},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf line = {0}, found = {0};
        size_t from = 0, begin, len;
        buf_add(&line, "", 0);
        for (const char *p = rows[i].parts; *p; p++)
            if ((*p >= 'A' && *p <= 'H') || *p == 'x') {
                size_t at = line.len;
                add_line(&line, slice_of(LINE_ROWS[*p == 'x' ? 3 : *p - 'A'].text));
                line.data[at] = *p != 'x' ? line.data[at] : line.data[at] == '0' ? '1' : '0';
            } else
                buf_add_char(&line, *p);
        struct slice whole = exact((struct slice){line.data, line.len});
        while ((begin = journal_salvage(whole, from, &len)) != SIZE_MAX) {
            struct journal_line record;
            if (!check(begin >= from && begin + len <= whole.len &&
                        journal_read_line((struct slice){whole.data + begin, len}, &record) == 0,
                    "a record of %s at %zu", rows[i].parts, begin))
                break;
            for (int k = 0; k < (int)COUNT(LINE_ROWS); k++)
                if (same(slice_of(LINE_ROWS[k].text),
                        (struct slice){whole.data + begin + 9, len - 9}))
                    buf_add_char(&found, 'A' + k);
            from = begin + len;
        }
        buf_add(&found, "", 0);
        check_buf(&found, slice_of(rows[i].found), show(slice_of(rows[i].parts)));
        exact_free(whole);
        buf_free(&line);
    }
}

/* Lines made to take long. */
static void
test_salvage_hostile(void)
{
    static const char *const pieces[] = {"00000000\t", "\t", "0", "0\t", "00000000\t\xff"};
    int64_t begin = plat_now_ms();

    for (size_t i = 0; i < COUNT(pieces); i++) {
        struct buf line = {0};
        size_t len;
        while (line.len < JOURNAL_LINE_MAX)
            buf_add_text(&line, pieces[i]);
        check(journal_salvage((struct slice){line.data, line.len}, 0, &len) == SIZE_MAX,
            "a mebibyte of %s", show(slice_of(pieces[i])));
        buf_free(&line);
    }
    check(plat_now_ms() - begin < 20000, "five of them take %lld ms",
        (long long)(plat_now_ms() - begin));
}

/* Reads a file line by line and checks each line against the file's bytes; gives how many. */
static int
count_lines(struct slice content, const char *what)
{
    struct line_reader r = {.file = plat_state_open(write_file("lines", content), true, false)};
    struct slice line;
    int64_t at = 0;
    int n = 0, got, wrong = 0;

    while ((got = line_read(&r, &line)) > 0) {
        bool last = at + (int64_t)line.len == (int64_t)content.len;
        wrong += r.line_at != at || !same(line, (struct slice){content.data + at, line.len});
        wrong += !r.cut && (last || content.data[at + (int64_t)line.len] != '\n');
        wrong += r.cut && !last && line.len <= JOURNAL_LINE_MAX;
        wrong += line.len > 0 && memchr(line.data, '\n', line.len) != NULL;
        at += (int64_t)line.len + !r.cut;
        n++;
    }
    check(got == 0 && line_read(&r, &line) == 0, "%s: the end is the end", what);
    check(wrong == 0 && at == (int64_t)content.len, "%s: %d lines are wrong, the last ends at %lld",
        what, wrong, (long long)at);
    buf_free(&r.in);
    plat_file_close(r.file);
    return n;
}

static void
test_line_read(void)
{
    static const struct {
        struct slice content;
        int lines;
    } rows[] = {
        {S(""), 0},
        {S("\n"), 1},
        {S("a"), 1},
        {S("a\n"), 1},
        {S("a\nb"), 2},
        {S("a\n\n\nb\n"), 4},
        {S("\0\n\0"), 2},
        {S("\0\0\0\0"), 1},
        {S("a\r\nb\r\n"), 2},
    };
    static const size_t lens[] = {JOURNAL_READ - 2, JOURNAL_READ - 1, JOURNAL_READ,
        JOURNAL_READ + 1, 2 * JOURNAL_READ, JOURNAL_LINE_MAX - 1, JOURNAL_LINE_MAX};
    struct line_reader r = {.file = -1};
    struct slice line;
    struct buf b = {0};

    for (size_t i = 0; i < COUNT(rows); i++)
        check_number(
            count_lines(rows[i].content, show(rows[i].content)), rows[i].lines, "lines of it");
    for (size_t i = 0; i < COUNT(lens); i++)
        for (int end = 0; end < 2; end++) {
            buf_add_text(&b, "a\n");
            for (size_t k = 0; k < lens[i]; k++)
                buf_add_char(&b, "0123456789"[k % 7]);
            if (end)
                buf_add_text(&b, "\nb\n");
            check_number(count_lines((struct slice){b.data, b.len}, "a long line"), end ? 3 : 2,
                "lines with a long one");
            buf_free(&b);
        }
    for (int i = 0; i < 60; i++) { /* lines of random lengths, one far too long */
        uint32_t len = i == 30 ? 3 * JOURNAL_LINE_MAX + 12345 : random_below(i % 3 ? 200 : 150000);
        while (len-- > 0)
            buf_add_char(&b, "\0ab\t"[random_below(4)]);
        buf_add_char(&b, '\n');
    }
    check_number(
        count_lines((struct slice){b.data, b.len}, "random lines"), 60 + 2, "pieces of 60 lines");
    buf_free(&b);
    check(line_read(&r, &line) < 0 && errno == EBADF, "a file that cannot be read");
    buf_free(&r.in);
}

static void
test_journal(void)
{
    test_crc();
    test_journal_lines();
    test_journal_writes();
    test_salvage();
    test_salvage_hostile();
    test_line_read();
}

/* ==== 10. HTTP client ======================================================= */

/* A client whose other end is a list of bytes instead of a socket. */
struct player {
    struct http_client client; /* first, so that conn->client leads here */
    struct slice answer[8];    /* one for each request; the last is followed by the end */
    size_t turn, at;
    size_t step; /* most bytes that one read or write takes; 0: any number */
    bool random; /* a random number up to step */
    bool asked;  /* before that nothing comes */
    struct buf wrote;
    size_t write_most; /* then writing fails; 0: never */
};

static int
player_read(struct conn *conn, void *data, size_t len)
{
    struct player *p = (struct player *)(void *)conn->client;
    struct slice answer = p->answer[p->turn];
    size_t n = p->asked ? answer.len - p->at : 0;

    if (len == 1 && n == 0) /* only conn_is_fresh asks for a single byte */
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
player_write(struct conn *conn, const void *data, size_t len)
{
    struct player *p = (struct player *)(void *)conn->client;
    const struct slice *next = &p->answer[p->turn];

    if (p->step > 0 && len > p->step)
        len = p->step;
    if (p->write_most && p->wrote.len + len > p->write_most) {
        errno = EPIPE;
        return -1;
    }
    if (p->at > 0 && p->at == next->len && p->turn + 1 < COUNT(p->answer)) {
        p->turn++; /* the answer before was read: this is another request */
        p->at = 0;
    }
    p->asked = true;
    buf_add(&p->wrote, data, len);
    return (int)len;
}

/* Connects a client to a player. */
static void
player_begin(struct player *p, struct http_peer *peer, const char *origin)
{
    http_client_init(&p->client, peer);
    p->client.conn.sock = INT_MAX; /* no such file */
    p->client.conn.read = player_read;
    p->client.conn.write = player_write;
    p->client.conn.origin = x_strdup(origin);
    p->client.deadline_ms = plat_now_ms() + 60000;
}

static void
player_done(struct player *p)
{
    http_client_done(&p->client);
    buf_free(&p->wrote);
}

/*
 * Reads an answer as http_call and http_drain do. Gives "STATUS kept", "STATUS closed", "STATUS but
 * what is wrong with the body", or "no: why it is no answer".
 */
static void
play(struct slice stream, size_t step, bool random, struct buf *out)
{
    struct player p = {.answer = {stream}, .step = step, .random = random, .asked = true};
    bool began = false;
    struct err e = {""};

    player_begin(&p, NULL, "http://h");
    if (http_read_head(&p.client.conn, &p.client.head, &began, &e) != 0) {
        buf_format(out, "no: %s", e.text);
        check(began == (stream.len > 0), "whether it began");
    } else {
        buf_format(out, "%d ", p.client.head.status);
        if (http_drain(&p.client, &e) != 0)
            buf_format(out, "but %s", e.text);
        else
            buf_add_text(out, p.client.conn.sock >= 0 && p.at == stream.len ? "kept" : "closed");
    }
    player_done(&p);
}

#define OK "HTTP/1.1 200 OK\r\n"
#define OK2 OK "Content-Length: 2\r\n"

/* Each stream, and what play says of it; of "no" and "but" only the start counts. */
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
    {S("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"), "200 kept"},
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
    {S("HTTP/1.1 100 Continue\r\n\r\n"), "no: connection closed before the whole answer"},
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
    {S(OK "Content-Length:\r\n 2\r\n\r\nok"), "200 kept"},
    {S(OK "Connection: keep-alive,\r\n close\r\nContent-Length: 2\r\n\r\nok"), "200 closed"},
    {S("HTTP/1.1 200 OK\r\n first\r\nContent-Length: 2\r\n\r\nok"), "200 kept"},
    {S(OK "A:\r\nB:\r\nContent-Length: 2\r\nC: : :\r\n\r\nok"), "200 kept"},

    /* lengths */
    {S(OK2 "\r\no"), "200 but its body ended early"},
    {S(OK2 "\r\nok and more"), "200 closed"},
    {S(OK2 "\r\nokHTTP/1.1 500 x\r\n\r\n"), "200 closed"},
    {S(OK2 "Content-Length: 2\r\n\r\nok"), "200 kept"},
    {S(OK2 "Content-Length: 02\r\n\r\nok"), "200 kept"},
    {S(OK2 "Content-Length: 3\r\n\r\nok!"), "200 but two different Content-Lengths"},
    {S(OK "Content-Length: -2\r\n\r\nok"), "200 but Content-Length is not a length"},
    {S(OK "Content-Length: +2\r\n\r\nok"), "200 but Content-Length is not a length"},
    {S(OK "Content-Length: 2x\r\n\r\nok"), "200 but Content-Length is not a length"},
    {S(OK "Content-Length: \r\n\r\nok"), "200 but Content-Length is not a length"},
    {S(OK "Content-Length: 2 2\r\n\r\nok"), "200 but Content-Length is not a length"},
    {S(OK "Content-Length: 0x2\r\n\r\nok"), "200 but Content-Length is not a length"},
    {S(OK "Content-Length: 18446744073709551618\r\n\r\nok"),
        "200 but Content-Length is not a length"},
    {S(OK "Content-Length: 99999999999999999999999999999999\r\n\r\nok"),
        "200 but Content-Length is not"},

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
    {S(OK "Transfer-Encoding: gzip, Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "200 kept"},
    {S(OK "Transfer-Encoding: gzip,\r\n chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "200 kept"},
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
    {S(OK "Transfer-Encoding: chunked\r\n\r\n"), "200 but its body ended early"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2"), "200 but its body ended early"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\r\no"), "200 but its body ended early"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"), "200 but its body ended early"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"), "200 but its body ended early"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x"), "200 but its body ended early"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\nok"), "200 but its chunks are broken"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n\r\nok"), "200 but its chunks are broken"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n-2\r\nok"), "200 but its chunks are broken"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n0x2\r\nok"), "200 but its chunks are broken"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\0\r\nok"), "200 but its chunks are broken"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n"), "200 but its chunks are broken"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nok"),
        "200 but its chunks are broken"},
    {S(OK "Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\nok\r\n0\r\n\r\n"),
        "200 but its chunks are broken"},
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
    bool start_only = strncmp(want, "no:", 3) == 0 || strstr(want, " but ");

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
    for (int headers = HEADERS_MAX; headers <= HEADERS_MAX + 1; headers++) {
        buf_add_text(&b, OK2);
        for (int i = 1; i < headers; i++)
            buf_add_text(&b, "A: b\r\n");
        buf_add_text(&b, "\r\nok");
        check_answer((struct slice){b.data, b.len},
            headers > HEADERS_MAX ? "no: the answer is not HTTP: too many headers" : "200 kept",
            "many headers");
        buf_free(&b);
    }
    for (int interim = INTERIM_MAX; interim <= INTERIM_MAX + 1; interim++) {
        for (int i = 0; i < interim; i++)
            buf_add_text(&b, "HTTP/1.1 100 Continue\r\n\r\n");
        buf_add_text(&b, OK2 "\r\nok");
        check_answer((struct slice){b.data, b.len},
            interim > INTERIM_MAX ? "no: the answer is not HTTP: more than 32 interim answers"
                                  : "200 kept",
            "interim answers");
        buf_free(&b);
    }
    for (int form = 0; form < 3; form++) /* bodies below and above DRAIN_MAX */
        for (int size = 60000; size <= 120000; size += 60000) {
            if (form == 0)
                buf_format(&b, OK "Content-Length: %d\r\n\r\n", size);
            else if (form == 1)
                buf_format(&b, OK "Transfer-Encoding: chunked\r\n\r\n%x\r\n", (unsigned)size);
            else
                buf_add_text(&b, OK "\r\n");
            for (int i = 0; i < size; i++)
                buf_add_char(&b, '0');
            if (form == 1)
                buf_add_text(&b, "\r\n0\r\n\r\n");
            check_answer((struct slice){b.data, b.len},
                size > DRAIN_MAX ? "200 but its body is longer than 65536"
                    : form == 2  ? "200 closed"
                                 : "200 kept",
                "a large body");
            buf_free(&b);
        }
}

/* Bodies of random chunks, fed in random pieces: the same end, and not a byte more. */
static void
test_http_chunks(void)
{
    int wrong = 0;

    for (int round = 0; round < 2000; round++) {
        struct http_body body = {.kind = BODY_CHUNKED};
        enum body_step step = BODY_MORE;
        struct buf b = {0};
        size_t at = 0, end;
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
        while (step == BODY_MORE && at < b.len) {
            size_t used = 0, piece = 1 + random_below(20);
            if (piece > b.len - at)
                piece = b.len - at;
            struct slice in = exact((struct slice){b.data + at, piece});
            step = http_feed_body(&body, in, &used);
            exact_free(in);
            wrong += used > piece || (step == BODY_MORE && used != piece);
            at += used;
        }
        wrong += step != BODY_DONE || at != end;
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
        int locations;
        const char *retry_after;
    } rows[] = {
        {S(""), NULL, 0, NULL}, {S("Location: /x\r\n"), "/x", 1, NULL},
        {S("LOCATION:\t http://h/ x \t\r\n"), "http://h/ x", 1, NULL},
        {S("Location:\r\n"), "", 1, NULL}, {S("Location:\r\n /x\r\n"), "/x", 1, NULL},
        {S("Location: /a\r\nLocation: /b\r\n"), "/b", 2, NULL},
        {S("Location: a:b\r\nLocations: /c\r\nX-Location: /d\r\n"), "a:b", 1, NULL},
        {S("Retry-After: 120\r\n"), NULL, 0, "120"},
        {S("Retry-After: 1\r\nretry-after: 2\r\n"), NULL, 0, "1"},
        {S("Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), NULL, 0,
            "Sun, 06 Nov 1994 08:49:37 GMT"},
        {S("A: b\r\n Location: /x\r\n"), NULL, 0, NULL}, /* continues A */
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
            check_number(h.locations, rows[i].locations, what);
            check((h.retry_after.data != NULL) == (rows[i].retry_after != NULL),
                "%s: Retry-After or none", what);
            if (rows[i].retry_after)
                check_bytes(h.retry_after, slice_of(rows[i].retry_after), what);
        }
        exact_free(head);
        buf_free(&b);
    }
    check_number(
        (long long)http_head_end(SLICE("HTTP/1.1 200 OK\r\n\r\n"), 0), 19, "end of a head");
    check_number((long long)http_head_end(SLICE("HTTP/1.1 200 OK\r\n\r"), 0), 0, "not yet");
    check_number((long long)http_head_end(SLICE("A\n\nB\n\n"), 0), 3, "the first end");
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
        {S("Sun, 06 Nov 9999 08:49:37 GMT"), 3600},
        {S("Sun, 06 Nov 1994 08:49:36 GMT"), 0},
        {S("Thu, 01 Jan 1970 00:00:00 GMT"), 0},
        {S("Sun, 06 Nov 1994 08:50:60 GMT"), 83}, /* a leap second */
        {S("sun, 06 NOV 1994 08:50:37 GMT"), 60},
        {S("Sunday, 06-Nov-94 08:50:37 GMT"), 60}, /* RFC 850 */
        {S("Sunday, 06-Nov-93 08:50:37 GMT"), 0},
        {S("Sunday, 06-Nov-94 08:50:37"), -1},
        {S("Sun Nov  6 08:50:37 1994"), 60}, /* asctime */
        {S("Sun Nov 06 08:50:37 1994"), 60},
        {S("Sun, 06 Nov 1994 08:50:37"), -1}, /* no zone, or another one */
        {S("Sun, 06 Nov 1994 08:50:37 CET"), -1},
        {S("Sun, 06 Nov 1994 08:50:37 +0100"), -1},
        {S("Sun, 06 Nov 1994 08:50:37 GMT!"), -1},
        {S("Sun, 06 Nov 1994 8:5"), -1},
        {S("Sun, 00 Nov 1994 08:50:37 GMT"), -1},
        {S("Sun, 32 Nov 1994 08:50:37 GMT"), -1},
        {S("Sun, 06 Nuv 1994 08:50:37 GMT"), -1},
        {S("Sun, 06 ovd 1994 08:50:37 GMT"), -1},
        {S("Sun, 06 No 1994 08:50:37 GMT"), -1},
        {S("Sun, 06 Nov 1994 24:50:37 GMT"), -1},
        {S("Sun, 06 Nov 1994 08:60:37 GMT"), -1},
        {S("Sun, 06 Nov 1994 08:50:61 GMT"), -1},
        {S("Sun, 06 Nov 1994 -8:50:37 GMT"), -1},
        {S("Sun, -6 Nov 1994 08:50:37 GMT"), -1},
        {S("Sun, 06 Nov -994 08:50:37 GMT"), -1},
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
        int year = (int)(1970 + random_below(300)), month = (int)(1 + random_below(12));
        int day = (int)(1 + random_below(28));
        struct tm t = {.tm_year = year - 1900, .tm_mon = month - 1, .tm_mday = day};
        wrong += http_seconds(year, month, day) != timegm(&t);
    }
    check_number(wrong, 0, "20,000 random dates: other than the C library says");
}

static void
test_http_addresses(void)
{
    static const struct {
        const char *text;
        bool local;
    } rows[] = {
        {"127.0.0.1", true},
        {"127.255.255.254", true},
        {"126.255.255.255", false},
        {"128.0.0.1", false},
        {"0.0.0.0", true},
        {"0.1.2.3", true},
        {"1.0.0.0", false},
        {"169.254.169.254", true},
        {"169.253.1.1", false},
        {"169.255.1.1", false},
        {"10.0.0.1", false},
        {"192.168.0.1", false},
        {"255.255.255.255", false},
        {"::1", true},
        {"::", true},
        {"::2", false},
        {"fe80::1", true},
        {"febf::1", true},
        {"fec0::1", false},
        {"fe7f::1", false},
        {"fd00::1", false},
        {"2001:db8::1", false},
        {"1::", false},
        {"::ffff:127.0.0.1", true},
        {"::ffff:0.0.0.0", true},
        {"::ffff:169.254.0.1", true},
        {"::ffff:10.0.0.1", false},
        {"::fffe:127.0.0.1", false},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct plat_addr addr = address(rows[i].text, 80);
        check(http_is_local(&addr) == rows[i].local, "%s is %slocal", rows[i].text,
            rows[i].local ? "" : "not ");
    }
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
    /* from, Location headers, then where it leads: origin and target, or the reason why not */
    static const struct {
        const char *from, *locations, *origin, *target, *auth, *reason;
    } rows[] = {
        {"http://h/a", "Location: /b\r\n", "http://h", "/b", NULL, NULL},
        {"http://h/a/b?c", "Location: d\r\n", "http://h", "/a/d", NULL, NULL},
        {"http://u:p@h/a", "Location: /b\r\n", "http://h", "/b", "u:p", NULL},
        {"http://u:p@h/a", "Location: http://h/b\r\n", "http://h", "/b", "u:p", NULL},
        {"http://u:p@h/a", "Location: HTTP://H:80/b\r\n", "http://h", "/b", "u:p", NULL},
        {"http://u:p@h/a", "Location: http://x:y@h/b\r\n", "http://h", "/b", "x:y", NULL},
        {"http://u:p@h/a", "Location: http://g/b\r\n", "http://g", "/b", NULL, NULL},
        {"http://u:p@h/a", "Location: http://h:81/b\r\n", "http://h:81", "/b", NULL, NULL},
        {"http://u:p@h/a", "Location: https://h/b\r\n", "https://h", "/b", NULL, NULL},
        {"http://u:p@h/a", "Location: http://x:y@g/b\r\n", "http://g", "/b", NULL, NULL},
        {"https://u:p@h/a", "Location: https://h:443/b#c\r\n", "https://h", "/b", "u:p", NULL},
        {"https://h/a", "Location: //g/b\r\n", "https://g", "/b", NULL, NULL},
        {"https://h/a", "Location: http://h/b\r\n", NULL, NULL, NULL,
            "leads from https to http://h/b, refused"},
        {"https://h/a", "Location: http://u:SECRET@h/b?c=SECRET\r\n", NULL, NULL, NULL, "refused"},
        {"http://h/a", "", NULL, NULL, NULL, "no Location"},
        {"http://h/a", "Location:\r\n", NULL, NULL, NULL, "no Location"},
        {"http://h/a", "Location: /b\r\nLocation: /c\r\n", NULL, NULL, NULL,
            "more than one Location"},
        {"http://h/a", "Location: http://\r\n", NULL, NULL, NULL,
            "a Location that cannot be called"},
        {"http://h/a", "Location: file:///etc/passwd\r\n", NULL, NULL, NULL, "cannot be called"},
        {"http://h/a", "Location: data:,x\r\n", NULL, NULL, NULL, "cannot be called"},
        {"http://h/a", "Location: http://u:SECRET@h:99999/\r\n", NULL, NULL, NULL,
            "cannot be called"},
    };
    struct http_client c = {0};
    struct http_result res;
    struct url u, moved = {0};
    struct err e;

    for (size_t i = 0; i < COUNT(statuses); i++)
        check(http_is_redirect(statuses[i].status, METHOD_GET) == statuses[i].get &&
                http_is_redirect(statuses[i].status, METHOD_POST) == statuses[i].post &&
                http_is_redirect(statuses[i].status, METHOD_PUT) == statuses[i].put,
            "which methods follow %d", statuses[i].status);
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf head = {0};
        buf_format(&head, "HTTP/1.1 307 Temporary Redirect\r\n%s\r\n", rows[i].locations);
        check_number(http_parse_head((struct slice){head.data, head.len}, &c.head, &e), 0,
            rows[i].locations);
        check_number(url_parse(slice_of(rows[i].from), NULL, &u, &e), 0, rows[i].from);
        res = (struct http_result){.end = HTTP_ANSWERED, .status = 307};
        bool followed = http_follow(&c, &u, 0, &moved, &res);
        check(followed == (rows[i].origin != NULL) && res.refused == !followed, "%s from %s",
            rows[i].locations, rows[i].from);
        if (followed && rows[i].origin)
            check_url(&moved, rows[i].origin, rows[i].target, rows[i].auth, rows[i].locations);
        else
            check(rows[i].reason && strstr(res.reason.text, rows[i].reason) &&
                    !strstr(res.reason.text, "SECRET"),
                "%s: %s", rows[i].locations, res.reason.text);
        check(
            followed || send_judge(&res) == VERDICT_DEAD, "what is not followed is a dead letter");
        url_done(&moved);
        res = (struct http_result){.end = HTTP_ANSWERED, .status = 307};
        check(!http_follow(&c, &u, REDIRECTS_MAX, &moved, &res) && res.refused,
            "the sixth is not followed");
        check(!moved.host, "and leads nowhere");
        url_done(&u);
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
        {200, "", "status 200", ""},
        {301, "Location: http://u:SECRET@g/b?c=SECRET\r\n", "status 301",
            "moved to http://g/b?c=..., change webhookURL"},
        {302, "Location: /b\r\n", "status 302", "moved to http://h/b, change webhookURL"},
        {303, "Location: b\r\n", "status 303", "moved to http://h/a/b, change webhookURL"},
        {303, "", "status 303", ""},
        {301, "Location: ftp://g/\r\n", "status 301", ""},
        {401, "", "status 401", "check the credentials"},
        {403, "", "status 403", "check the credentials"},
        {404, "", "status 404", "check webhookURL"},
        {407, "", "status 407", "check the proxy's password"},
        {410, "", "status 410", "gone: remove or change webhookURL"},
        {418, "", "status 418", ""},
        {500, "", "status 500", "look at the log of the webhook's server"},
    };
    struct http_client c = {0};
    struct url u;
    struct err e;

    check_number(url_parse(SLICE("http://h/a/x"), NULL, &u, &e), 0, "URL");
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct http_result res = {.end = HTTP_ANSWERED, .status = rows[i].status};
        struct buf head = {0};
        buf_format(&head, "HTTP/1.1 %d X\r\n%s\r\n", rows[i].status, rows[i].location);
        check_number(http_parse_head((struct slice){head.data, head.len}, &c.head, &e), 0, "head");
        http_explain_status(&c, &u, &res);
        check_text(res.reason.text, rows[i].reason, "reason");
        check(strncmp(res.hint.text, rows[i].hint, strlen(rows[i].hint)) == 0 &&
                (*rows[i].hint || !*res.hint.text),
            "hint of %d: \"%s\"", rows[i].status, res.hint.text);
        buf_free(&head);
    }
    url_done(&u);
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
        {MBEDTLS_X509_BADCERT_EXT_KEY_USAGE, "it is not meant for a server"},
        {MBEDTLS_X509_BADCERT_BAD_KEY, "too weak"},
        {1u << 31, "it cannot be used"},
    };
    struct tls_fault f = {
        .subject = "CN=a", .issuer = "CN=b", .from = "2025-01-02", .until = "2026-03-04"};
    struct http_result res = {0};

    for (size_t i = 0; i < COUNT(rows); i++) {
        f.flags = rows[i].flags;
        tls_explain_fault(&f, "h.example", &res);
        check(strstr(res.reason.text, rows[i].reason) && *res.hint.text, "%08x: %s", f.flags,
            res.reason.text);
        check(strstr(res.reason.text, "CN=a") && strstr(res.reason.text, "issued by \"CN=b\"") &&
                strstr(res.reason.text, "2025-01-02") && strstr(res.reason.text, "2026-03-04") &&
                strstr(res.reason.text, "h.example"),
            "which certificate: %s", res.reason.text);
    }
    f.self_signed = true;
    tls_explain_fault(&f, "h", &res);
    check(strstr(res.reason.text, "issued by itself"), "self-signed: %s", res.reason.text);
    tls_explain_error(MBEDTLS_ERR_SSL_INVALID_RECORD, &res);
    check(strstr(res.reason.text, "does not speak TLS"), "%s", res.reason.text);
    tls_explain_error(-0x1234, &res);
    check(strstr(res.reason.text, "-0x1234"), "an unknown error: %s", res.reason.text);
}

/* A peer whose webhook is described by text; ends with peer_done. */
struct test_peer {
    struct cfg_reader reader;
    struct config config;
    struct tls_store store;
    struct http_peer peer;
};

static void
peer_begin(struct test_peer *t, const char *method, const char *url)
{
    struct buf b = {0};
    struct err e;

    buf_format(&b, HOOKS "        - {httpMethod: %s, webhookURL: '%s'}\n", method, url);
    load(&t->reader, &t->config, (struct slice){b.data, b.len});
    check_problems(&t->reader, NULL, 0, b.data);
    buf_free(&b);
    check_number(
        http_peer_init(&t->peer, &t->config, t->config.webhook[ALERT_FAILURE], &t->store, &e), 0,
        "peer");
}

static void
peer_done(struct test_peer *t)
{
    http_peer_done(&t->peer);
    cfg_done(&t->config);
}

/* A call with the alert of a datagram that is ours; ends with request_done. */
static struct http_request
request_of(struct slice datagram, bool is_test)
{
    struct alert *alert = new_alert(datagram);
    struct buf json = {0};

    alert_add_json(alert, &json);
    alert_free(alert);
    return (struct http_request){{json.data, json.len}, 1, "msg_1", is_test};
}

static void
request_done(struct http_request *q)
{
    exact_free(q->json);
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
        const char *proxy, *method, *url;
        bool is_test;
        const char *request;
    } rows[] = {
        {NULL, "POST", "http://h:81/a?b#c", false,
            "POST /a?b HTTP/1.1\r\nHost: h:81\r\n" COMMON
            "Content-Type: application/json\r\nContent-Length: 322\r\n" IDENTITY "\r\n" BODY},
        {NULL, "PUT", "http://u:p@H/", true,
            "PUT / HTTP/1.1\r\nHost: h\r\n" COMMON
            "Authorization: Basic dTpw\r\nContent-Type: application/json\r\n"
            "Content-Length: 322\r\n" IDENTITY "webhook-test: true\r\n\r\n" BODY},
        {NULL, "GET", "http://[::1]/a b", false,
            "GET /a%20b?" QUERY("M") " HTTP/1.1\r\nHost: [::1]\r\n" COMMON IDENTITY "\r\n"},
        {"http://x:y@p", "GET", "http://u:p@h:80/?z=1", false,
            "GET http://h/?z=1&" QUERY("M") " HTTP/1.1\r\nHost: h\r\n" COMMON
                                            "Authorization: Basic dTpw\r\n"
                                            "Proxy-Authorization: Basic eDp5\r\n" IDENTITY "\r\n"},
    };
    check_number((long long)strlen(BODY), 322, "length of the body");
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct test_peer t = {0};
        struct http_client c;
        struct buf out = {0};
        struct http_request q = request_of(
            SLICE(FAILED ";QS1;T;A;LAB\\g;" IDS ";M"), rows[i].is_test);
        if (rows[i].proxy)
            setenv("http_proxy", rows[i].proxy, 1);
        peer_begin(&t, rows[i].method, rows[i].url);
        unsetenv("http_proxy");
        http_client_init(&c, &t.peer);
        size_t len = http_add_request(&c, &q, &t.peer.webhook->url, false, 0, &out);
        const char *target = strchr(strchr(out.data, ' ') + (rows[i].proxy ? 9 : 0), '/');
        check_number((long long)len, (long long)strcspn(target, " "), "length of the target");
        hide_timestamps(&out);
        check_buf(&out, slice_of(rows[i].request), rows[i].url);
        http_client_done(&c);
        peer_done(&t);
        request_done(&q);
    }
}

/* Writing in pieces, and what is said when it fails. */
static void
test_http_write(void)
{
    struct buf out = {0};
    bool wrote;

    for (int i = 0; i < 1000; i++)
        buf_format(&out, "%d ", i);
    for (size_t step = 0; step < 5; step++)
        for (int fails = 0; fails < 3; fails++) {
            struct player p = {.step = step, .write_most = fails == 0 ? 0 : fails == 1 ? 1 : 2000};
            player_begin(&p, NULL, "http://h");
            if (fails == 1 && step == 0)
                p.step = 2; /* nothing goes at all */
            wrote = false;
            int result = conn_write_all(&p.client.conn, &out, &wrote);
            check((result == 0) == (fails == 0), "writing in pieces of %zu", step);
            check(wrote == (p.wrote.len > 0), "whether anything was written");
            check(result != 0 ||
                    same((struct slice){p.wrote.data, p.wrote.len},
                        (struct slice){out.data, out.len}),
                "all of it, in order");
            player_done(&p);
        }
    buf_free(&out);
}

/* Calls with answers that are made up; no redirects to elsewhere, so nothing is connected to. */
static void
test_http_calls(void)
{
    static const struct {
        const char *method, *url;
        struct slice answer[8];
        enum http_end end;
        int status;
        int64_t retry_after_s;
        const char *reason, *hint;
        const char *lines; /* first lines of the requests */
    } rows[] = {
        {"POST", "http://h/a", {S(OK2 "\r\nok")}, HTTP_ANSWERED, 200, -1, "status 200", "",
            "POST /a HTTP/1.1\n"},
        {"POST", "http://h/a", {S("HTTP/1.1 503 X\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n")},
            HTTP_ANSWERED, 503, 7, "status 503", "look at the log of the webhook's server",
            "POST /a HTTP/1.1\n"},
        {"POST", "http://h/a",
            {S("HTTP/1.1 307 X\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n"), S(OK2 "\r\nok")},
            HTTP_ANSWERED, 200, -1, "status 200", "", "POST /a HTTP/1.1\nPOST /b HTTP/1.1\n"},
        {"PUT", "http://h/a",
            {S("HTTP/1.1 301 X\r\nLocation: b?c\r\nContent-Length: 2\r\n\r\nno"), S(OK2 "\r\nok")},
            HTTP_ANSWERED, 200, -1, "status 200", "", "PUT /a HTTP/1.1\nPUT /b?c HTTP/1.1\n"},
        {"POST", "http://h/a", {S("HTTP/1.1 301 X\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n")},
            HTTP_ANSWERED, 301, -1, "status 301", "moved to http://h/b, change webhookURL",
            "POST /a HTTP/1.1\n"},
        {"GET", "http://h/a?x=1",
            {S("HTTP/1.1 303 X\r\nLocation: /b?logMessage=z\r\nContent-Length: 0\r\n\r\n"),
                S(OK2 "\r\nok")},
            HTTP_ANSWERED, 200, -1, "status 200", "",
            "GET /a?x=1&" QUERY(
                "M") " HTTP/1.1\nGET /b?logMessage=z&event=Qlik+Sense+reload+failed&hostName=QS1&"
                     "user=LAB%5Cg&taskName=T&taskId=" TASK_ID "&appName=A&appId=" APP_ID
                     "&logTimeStamp=2026-11-22+10%3A50%3A04"
                     "%2C735&logLevel=INFO&executionId=" RUN_ID " HTTP/1.1\n"},
        {"PUT", "http://h/a",
            {S("HTTP/1.1 308 X\r\nLocation: /1\r\nContent-Length: 0\r\n\r\n"),
                S("HTTP/1.1 308 X\r\nLocation: /2\r\nContent-Length: 0\r\n\r\n"),
                S("HTTP/1.1 308 X\r\nLocation: /3\r\nContent-Length: 0\r\n\r\n"),
                S("HTTP/1.1 308 X\r\nLocation: /4\r\nContent-Length: 0\r\n\r\n"),
                S("HTTP/1.1 308 X\r\nLocation: /5\r\nContent-Length: 0\r\n\r\n"), S(OK2 "\r\nok")},
            HTTP_ANSWERED, 200, -1, "status 200", "",
            "PUT /a HTTP/1.1\nPUT /1 HTTP/1.1\nPUT /2 HTTP/1.1\nPUT /3 HTTP/1.1\nPUT /4 HTTP/1.1\n"
            "PUT /5 HTTP/1.1\n"},
        {"PUT", "http://h/a",
            {S("HTTP/1.1 308 X\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n"),
                S("HTTP/1.1 308 X\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n"),
                S("HTTP/1.1 308 X\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n"),
                S("HTTP/1.1 308 X\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n"),
                S("HTTP/1.1 308 X\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n"),
                S("HTTP/1.1 308 X\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n")},
            HTTP_ANSWERED, 308, -1, "status 308: more than 5 redirects", "change webhookURL",
            "PUT /a HTTP/1.1\nPUT /a HTTP/1.1\nPUT /a HTTP/1.1\n"
            "PUT /a HTTP/1.1\nPUT /a HTTP/1.1\nPUT /a HTTP/1.1\n"},
        {"POST", "http://h/a", {S("")}, HTTP_BROKEN, 0, -1, "connection closed before an answer",
            "", "POST /a HTTP/1.1\n"},
        {"POST", "http://h/a", {S("junk")}, HTTP_BROKEN, 0, -1,
            "the answer is not HTTP: it starts with \"junk\"", "", "POST /a HTTP/1.1\n"},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct http_request q = request_of(SLICE(FAILED ";QS1;T;A;LAB\\g;" IDS ";M"), false);
        struct test_peer t = {0};
        struct player p = {.step = i % 3};
        struct http_result res;
        struct buf lines = {0};
        struct err e;
        memcpy(p.answer, rows[i].answer, sizeof p.answer);
        peer_begin(&t, rows[i].method, rows[i].url);
        player_begin(&p, &t.peer, t.peer.webhook->url.origin);
        http_call(&p.client, &q, &res);
        http_drain(&p.client, &e);
        check(res.end == rows[i].end && res.status == rows[i].status, "%s: end %d, status %d",
            rows[i].lines, (int)res.end, res.status);
        check_number(res.retry_after_s, rows[i].retry_after_s, "Retry-After");
        check_text(res.reason.text, rows[i].reason, "reason");
        check_text(res.hint.text, rows[i].hint, "hint");
        for (char *at = p.wrote.data; at; at = strstr(at + 1, rows[i].method)) {
            buf_add(&lines, at, strcspn(at, "\r"));
            buf_add_char(&lines, '\n');
        }
        check_buf(&lines, slice_of(rows[i].lines), "requests");
        player_done(&p);
        peer_done(&t);
        request_done(&q);
    }
}

/* A GET that is refused for its length is sent once more, cut; any other is not. */
static void
test_http_too_long(void)
{
    static const struct {
        const char *method;
        size_t message; /* bytes */
        int status;
        int requests;
    } rows[] = {
        {"GET", 3000, 404, 2},
        {"GET", 3000, 400, 2},
        {"GET", 3000, 414, 2},
        {"GET", 3000, 431, 2},
        {"GET", 3000, 403, 1},
        {"GET", 3000, 500, 1},
        {"GET", 3000, 200, 1},
        {"GET", 100, 404, 1},
        {"POST", 3000, 414, 1},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct test_peer t = {0};
        struct player p = {0};
        struct http_result res;
        struct buf datagram = {0}, answer = {0};
        struct err e;
        int requests = 0;
        buf_add_text(&datagram, FAILED ";QS1;T;A;LAB\\g;" IDS ";");
        for (size_t k = 0; k < rows[i].message; k++)
            buf_add_char(&datagram, 'x');
        buf_format(&answer, "HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n", rows[i].status);
        struct http_request q = request_of((struct slice){datagram.data, datagram.len}, false);
        p.answer[0] = p.answer[1] = p.answer[2] = (struct slice){answer.data, answer.len};
        peer_begin(&t, rows[i].method, "http://h/a");
        player_begin(&p, &t.peer, "http://h");
        http_call(&p.client, &q, &res);
        http_drain(&p.client, &e);
        check_number(res.status, rows[i].status, "the status that counts");
        for (char *at = p.wrote.data; at && (at = strstr(at, " HTTP/1.1\r\n")); at++)
            requests++;
        check(requests == rows[i].requests, "%s answered %d: %d requests", rows[i].method,
            rows[i].status, requests);
        if (requests == 2) {
            const char *second = strstr(p.wrote.data + 4, "GET ");
            check(second && strcspn(second + 4, " ") == GET_TARGET_MAX,
                "the second target is %zu bytes long", second ? strcspn(second + 4, " ") : 0);
        }
        player_done(&p);
        peer_done(&t);
        request_done(&q);
        buf_free(&datagram);
        buf_free(&answer);
    }
    log_forget();
}

/* A result that no call has had. */
static struct http_result
made_result(enum http_end end, int status, int64_t retry_after_s)
{
    struct http_result res = {.end = end, .status = status, .retry_after_s = retry_after_s};

    err_set(&res.reason, "because");
    return res;
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
        {"http://p", "https://h/", S("HTTP/1.1 200 OK\r\n\r\n\x16\x03\x01"),
            "proxy http://p/: it sent data before", "", NULL},
        {"http://p", "https://h/", S("HTTP/1.1 200 OK\r\n"),
            "proxy http://p/: connection closed before the whole", "", NULL},
        {"http://p", "https://h/", S(""), "proxy http://p/: connection closed before an answer", "",
            NULL},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct player p = {.answer = {rows[i].answer}};
        struct http_result res = {0};
        struct url proxy, u;
        struct err e;
        check(url_parse(slice_of(rows[i].proxy), NULL, &proxy, &e) == 0 &&
                url_parse(slice_of(rows[i].url), NULL, &u, &e) == 0,
            "URLs");
        player_begin(&p, NULL, u.origin);
        check((http_open_tunnel(&p.client, &proxy, &u, &res) == 0) == !rows[i].reason,
            "CONNECT: %s", show(rows[i].answer));
        check(strncmp(res.reason.text, rows[i].reason ? rows[i].reason : "",
                  rows[i].reason ? strlen(rows[i].reason) : 1) == 0,
            "%s: \"%s\"", show(rows[i].answer), res.reason.text);
        check_text(res.hint.text, rows[i].hint, "hint");
        if (rows[i].request)
            check_bytes(
                (struct slice){p.wrote.data, p.wrote.len}, slice_of(rows[i].request), "request");
        player_done(&p);
        url_done(&proxy);
        url_done(&u);
    }
}

/* Redirects to this machine, with a proxy, too. */
static void
test_http_local(void)
{
    static const struct {
        const char *url, *proxy;
        bool home, home_is_local;
        int addresses;
    } rows[] = {
        {"http://127.0.0.1/", NULL, true, false, 1}, /* the webhook itself may be anywhere */
        {"http://127.0.0.1/", NULL, false, false, 0},
        {"http://127.0.0.1/", NULL, false, true, 1},
        {"http://2130706433/", NULL, false, false, 0},
        {"http://localhost/", NULL, false, false, 0},
        {"http://localhost/", NULL, false, true, 2},
        {"http://[::1]/", NULL, false, false, 0},
        {"http://[::ffff:127.0.0.1]/", NULL, false, false, 0},
        {"http://169.254.169.254/latest", NULL, false, false, 0},
        {"http://[fe80::1]/", NULL, false, false, 0},
        {"http://10.0.0.1/", NULL, false, false, 1},
        {"http://127.0.0.1/", "http://10.0.0.9", false, false, 0},
        {"http://localhost/", "http://10.0.0.9", false, false, 0},
        {"http://[::1]/", "http://10.0.0.9", false, false, 0},
        {"http://10.0.0.1/", "http://127.0.0.1:3128", false, false, 1}, /* a proxy may be local */
        {"http://h.example/", "http://127.0.0.1:3128", false, false, 1},
        {"http://127.0.0.1/", "http://10.0.0.9", false, true, 1},
        {"http://localhost/", "http://10.0.0.9", true, false, 1},
        {"http://10.0.0.1/", "http://127.0.0.1:3128", true, true, 1},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct http_client c;
        struct http_result res = {0};
        struct plat_addr addr[ADDRESSES_MAX];
        struct url u, proxy = {0};
        struct err e;
        http_client_init(&c, NULL);
        c.home_is_local = rows[i].home_is_local;
        c.deadline_ms = plat_now_ms() + 10000;
        check(url_parse(slice_of(rows[i].url), NULL, &u, &e) == 0, "%s", rows[i].url);
        if (rows[i].proxy)
            check(url_parse(slice_of(rows[i].proxy), NULL, &proxy, &e) == 0, "%s", rows[i].proxy);
        int n = http_find_addresses(
            &c, &u, rows[i].proxy ? &proxy : NULL, rows[i].home, addr, &res);
        check(n == rows[i].addresses && res.refused == (n == 0), "%s through %s: %d addresses",
            rows[i].url, rows[i].proxy ? rows[i].proxy : "no proxy", n);
        check(n > 0 || strstr(res.reason.text, "refused"), "why: %s", res.reason.text);
        if (rows[i].home && rows[i].proxy)
            check(c.home_is_local == (strcmp(u.host, "localhost") == 0), "where the webhook is");
        http_client_done(&c);
        url_done(&u);
        url_done(&proxy);
    }
    for (int proxied = 0; proxied < 2; proxied++) {
        struct http_client c;
        struct http_result res = {0};
        struct plat_addr addr[ADDRESSES_MAX];
        struct url u;
        struct err e;
        http_client_init(&c, NULL);
        check(url_parse(SLICE("http://no..name/"), NULL, &u, &e) == 0, "a name that nobody has");
        check_number(
            http_find_addresses(&c, &u, proxied ? &u : NULL, true, addr, &res), 0, "no address");
        check(strncmp(res.reason.text, "host name no..name not found: ", 30) == 0 && !res.refused,
            "why: %s", res.reason.text);
        check((strstr(res.hint.text, "webhookURL") == NULL) == (proxied == 1), "hint: %s",
            res.hint.text);
        http_client_done(&c);
        url_done(&u);
    }
}

/* Of two addresses one refuses and one never answers: that one is named. */
static void
test_http_dial(void)
{
    struct http_client c = {.deadline_ms = plat_now_ms() + 10000};
    struct plat_addr addr[2] = {address("127.0.0.1", 0), address("127.0.0.1", 0)};
    intptr_t filler[4];
    int server[2];
    char text[64];
    struct buf want = {0};
    struct err e;

    http_client_init(&c, NULL);
    for (int i = 0; i < 2; i++) {
        server[i] = socket(AF_INET, SOCK_STREAM, 0);
        check(bind(server[i], (const void *)&addr[i].ss, addr[i].len) == 0 &&
                getsockname(server[i], (void *)&addr[i].ss, &addr[i].len) == 0,
            "a port");
    }
    check(listen(server[0], 0) == 0, "listens");
    check_number(conn_dial(&c.conn, addr, 2, &e), 0, "the first one answers");
    check_number(plat_tcp_connected(c.conn.sock), 0, "connected");
    conn_close(&c.conn);
    for (size_t i = 0; i < COUNT(filler); i++) /* then it is too busy to answer any more */
        filler[i] = plat_tcp_connect(&addr[0]);
    c.deadline_ms = plat_now_ms() + 2 * CONNECT_STAGGER_MS;
    check_number(conn_dial(&c.conn, addr, 2, &e), -1, "nobody answers");
    plat_addr_text(&addr[0], true, text);
    buf_format(&want, "cannot connect to %s: no answer in time", text);
    check_text(e.text, want.data, "who did not answer");
    check_number(conn_dial(&c.conn, addr + 1, 1, &e), -1, "no time left");
    check_text(e.text, "no connection in time", "no time left");
    c.deadline_ms = plat_now_ms() + 10000;
    check_number(conn_dial(&c.conn, addr + 1, 1, &e), -1, "refused");
    plat_addr_text(&addr[1], true, text);
    check(strstr(e.text, text) && !strstr(e.text, "no answer"), "who refused: %s", e.text);
    addr[0] = address("::1", 0);
    check_number(conn_dial(&c.conn, (struct plat_addr[2]){addr[1], addr[0]}, 2, &e), -1, "no IPv6");
    check(strstr(e.text, text) != NULL, "the first address is named: %s", e.text);
    for (size_t i = 0; i < COUNT(filler); i++)
        plat_close(filler[i]);
    plat_close(server[0]);
    plat_close(server[1]);
    buf_free(&want);
    http_client_done(&c);
}

static void
test_http_timeouts(void)
{
    struct config config = {.timeout_s = 10};
    struct http_peer peer = {.config = &config};
    struct http_client c = {.peer = &peer, .deadline_ms = plat_now_ms() + 60000};
    struct http_result res = made_result(HTTP_BROKEN, 0, -1);

    check(http_time_left(&c) > 50000 && http_time_left(&c) <= 60000, "time left");
    http_explain_timeout(&c, &res);
    check_text(res.reason.text, "because", "no timeout");
    c.deadline_ms = INT64_MAX;
    check_number(http_time_left(&c), INT_MAX, "without a deadline");
    c.deadline_ms = plat_now_ms() - 1;
    check_number(http_time_left(&c), 0, "the time is over");
    res = made_result(HTTP_UNSENT, 0, -1);
    http_explain_timeout(&c, &res);
    check_text(res.reason.text, "because", "not reached in time: the connection says why");
    res = made_result(HTTP_BROKEN, 0, -1);
    http_explain_timeout(&c, &res);
    check_text(res.reason.text, "no answer within 10 s", "a timeout");
    atomic_store(&stop_at_ms, plat_now_ms() - 1);
    c.deadline_ms = plat_now_ms() + 60000;
    check_number(http_time_left(&c), 0, "all calls must end");
    http_explain_timeout(&c, &res);
    check_text(res.reason.text, "no answer before the program stopped", "a stop");
    atomic_store(&stop_at_ms, 0);
}

static void
test_http(void)
{
    log_begin(LOG_INFO);
    for (size_t i = 0; i < COUNT(ANSWER_ROWS); i++)
        check_answer(ANSWER_ROWS[i].stream, ANSWER_ROWS[i].want, show(ANSWER_ROWS[i].stream));
    test_http_bounds();
    test_http_chunks();
    test_http_heads();
    test_http_dates();
    test_http_addresses();
    test_http_redirects();
    test_http_statuses();
    test_tls_words();
    test_http_requests();
    test_http_write();
    test_http_calls();
    test_http_too_long();
    test_http_tunnel();
    test_http_local();
    test_http_dial();
    test_http_timeouts();
}

/* ==== 11. Delivery ========================================================== */

#define TEST_KEY "000102030405060708090a0b0c0d0e0f"
#define MAX_AGE (72 * AGE_UNIT_MS)

/* A webhook that starts no senders, and what its deliveries are made of. */
struct test_hook {
    struct config config;
    struct webhook_config webhook;
    struct journal journal;
    struct counters counters;
    struct id_pool ids;
    struct webhook w;
};

static void
hook_begin(struct test_hook *t)
{
    *t = (struct test_hook){
        .config = {.max_concurrent = 4, .max_age_hours = 72, .max_state_mb = 1024},
        .webhook = {.name = "failure 1", .key = TEST_KEY}};
    t->config.webhooks[ALERT_FAILURE] = 1;
    journal_init(&t->journal, &t->config);
    send_init(&t->w, &t->config, &t->webhook, &t->counters, &t->journal);
    t->w.idle = 1; /* so that no sender is started */
    log_begin(LOG_VERBOSE);
}

/* Forgets all that a webhook has, and checks that nothing is left. */
static void
hook_forget_all(struct webhook *w)
{
    while (w->oldest) {
        if (!w->oldest->in_flight)
            send_detach_locked(w, w->oldest);
        send_forget_locked(w, w->oldest);
    }
    check(!w->newest && !w->fresh && !w->unsaved && !w->copying, "nothing is left in the list");
    check(w->fresh_count == 0 && w->heap_count == 0, "nothing waits");
    check(w->held == 0 && w->held_bytes == 0, "%zu payloads, %zu bytes of an empty queue", w->held,
        w->held_bytes);
}

static void
hook_done(struct test_hook *t)
{
    hook_forget_all(&t->w);
    send_done(&t->w);
    journal_done(&t->journal);
}

static size_t
hook_waiting(struct test_hook *t)
{
    return send_waiting_locked(&t->w);
}

/* A new alert's delivery, added as send_add would; at: of its line in the journal, -1: none. */
static struct delivery *
hook_add(struct test_hook *t, struct slice json, int64_t due_ms, int64_t at)
{
    struct delivery *d = send_new(atomic_fetch_add(&t->counters.numbers, 1) + 1, plat_now_ms());
    struct payload *payload = NULL;

    d->due_ms = due_ms;
    send_make_id(&t->ids, d->id);
    send_append_locked(&t->w, d, &(struct send_source){json, at, 100}, &payload);
    payload_free(payload);
    return d;
}

/* The same, to be tried for the first time, in memory only. */
static struct delivery *
hook_push(struct test_hook *t, int64_t due_ms)
{
    return hook_add(t, SLICE("{\"event\":\"Qlik Sense reload failed\"}"), due_ms, -1);
}

/* The same, once tried already. */
static struct delivery *
hook_push_tried(struct test_hook *t, int64_t due_ms, int64_t tried_ms)
{
    struct delivery *d = hook_push(t, 0);

    if (t->w.fresh != d)
        check(false, "one that was never tried stands before one that was");
    send_detach_locked(&t->w, d);
    d->due_ms = due_ms;
    d->tried_ms = tried_ms;
    d->attempts = 1;
    d->failure = x_strdup("status 500");
    send_put_back_locked(&t->w, d);
    return d;
}

/* Takes what may be sent at now_ms. */
static struct delivery *
hook_take(struct test_hook *t, int64_t now_ms)
{
    int64_t wait_ms;

    return send_take_locked(&t->w, now_ms, &wait_ms);
}

/* Takes it and forgets it; the number of its alert, 0: there was nothing to take. */
static long long
hook_take_number(struct test_hook *t, int64_t now_ms)
{
    struct delivery *d = hook_take(t, now_ms);
    long long number = d ? (long long)d->number : 0;

    if (d)
        send_forget_locked(&t->w, d);
    return number;
}

static void
hook_settle(
    struct test_hook *t, struct delivery *d, enum http_end end, int status, int64_t retry_after_s)
{
    struct http_result res = made_result(end, status, retry_after_s);

    send_settle_locked(&t->w, d, &res);
}

static void
test_verdicts(void)
{
    static const struct {
        enum http_end end;
        int status;
        int64_t retry_after_s;
        bool refused;
        enum verdict verdict;
    } rows[] = {
        {HTTP_UNSENT, 0, -1, false, VERDICT_DOWN}, {HTTP_BROKEN, 0, -1, false, VERDICT_BROKEN},
        {HTTP_ANSWERED, 200, -1, false, VERDICT_DELIVERED},
        {HTTP_ANSWERED, 201, -1, false, VERDICT_DELIVERED},
        {HTTP_ANSWERED, 204, 60, false, VERDICT_DELIVERED},
        {HTTP_ANSWERED, 299, -1, false, VERDICT_DELIVERED},
        {HTTP_ANSWERED, 300, -1, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 301, -1, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 303, 60, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 304, -1, false, VERDICT_DEAD}, {HTTP_ANSWERED, 307, -1, true, VERDICT_DEAD},
        {HTTP_ANSWERED, 399, -1, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 400, -1, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 401, 60, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 403, -1, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 404, -1, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 407, -1, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 408, -1, false, VERDICT_RETRY},
        {HTTP_ANSWERED, 410, -1, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 425, -1, false, VERDICT_RETRY},
        {HTTP_ANSWERED, 429, -1, false, VERDICT_WAIT}, {HTTP_ANSWERED, 429, 0, false, VERDICT_WAIT},
        {HTTP_ANSWERED, 429, 60, false, VERDICT_WAIT},
        {HTTP_ANSWERED, 431, -1, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 499, -1, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 500, -1, false, VERDICT_RETRY},
        {HTTP_ANSWERED, 500, 60, false, VERDICT_RETRY},
        {HTTP_ANSWERED, 501, -1, false, VERDICT_RETRY},
        {HTTP_ANSWERED, 502, -1, false, VERDICT_RETRY},
        {HTTP_ANSWERED, 503, -1, false, VERDICT_RETRY},
        {HTTP_ANSWERED, 503, 0, false, VERDICT_WAIT},
        {HTTP_ANSWERED, 503, 3600, false, VERDICT_WAIT},
        {HTTP_ANSWERED, 504, -1, false, VERDICT_RETRY},
        {HTTP_ANSWERED, 599, -1, false, VERDICT_RETRY},
        {HTTP_ANSWERED, 600, -1, false, VERDICT_DEAD},
        {HTTP_ANSWERED, 999, -1, false, VERDICT_DEAD},
        {HTTP_UNSENT, 308, -1, true, VERDICT_DEAD}, /* a redirect to this machine's own address */
    };
    static const int64_t most[] = {
        1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000, 256000, 300000, 300000};

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct http_result res = made_result(rows[i].end, rows[i].status, rows[i].retry_after_s);
        res.refused = rows[i].refused;
        check(send_judge(&res) == rows[i].verdict, "status %d is judged %d", rows[i].status,
            (int)send_judge(&res));
    }
    for (size_t i = 0; i < COUNT(most); i++) {
        int64_t largest = 0, smallest = INT64_MAX;
        for (int k = 0; k < 20000; k++) {
            int64_t wait = send_backoff_ms((int)i + 1, random_next());
            largest = wait > largest ? wait : largest;
            smallest = wait < smallest ? wait : smallest;
        }
        check(smallest >= 0 && smallest < most[i] / 20 && largest <= most[i] &&
                largest > most[i] - most[i] / 20,
            "%zu failures: wait %lld to %lld", i + 1, (long long)smallest, (long long)largest);
        check_number(send_backoff_ms((int)i + 1, (uint32_t)most[i]), most[i], "the longest wait");
    }
    check(send_backoff_ms(INT_MAX, UINT32_MAX) <= BACKOFF_MAX_MS, "after very many failures");
}

/* Random pushes and pops, against a list that is searched from one end to the other. */
static void
test_heap(void)
{
    struct test_hook t;
    struct delivery *list[300];
    size_t n = 0, wrong = 0;

    hook_begin(&t);
    for (int i = 0; i < 20000; i++) {
        bool grow = n == 0 || (n < COUNT(list) && random_below(100) < (i / 2000 % 2 ? 30 : 70));
        if (grow)
            list[n++] = hook_push_tried(&t, random_below(50), 1);
        else {
            struct delivery *d;
            size_t first = 0, at = random_below(4) ? 0 : random_below((uint32_t)t.w.heap_count);
            for (size_t k = 1; k < n; k++)
                if (list[k]->due_ms < list[first]->due_ms ||
                    (list[k]->due_ms == list[first]->due_ms && list[k]->order < list[first]->order))
                    first = k;
            wrong += t.w.heap[0] != list[first];
            d = send_detach_locked(&t.w, t.w.heap[at]);
            for (size_t k = 0; k < n; k++)
                if (list[k] == d) {
                    list[k] = list[--n];
                    send_forget_locked(&t.w, d);
                    break;
                }
        }
        for (size_t k = 0; k < t.w.heap_count; k++)
            wrong += t.w.heap[k]->heap_at != k;
        wrong += t.w.heap_count != n || t.w.held != n;
    }
    check_number((long long)wrong, 0, "20,000 random pushes and pops: wrong");
    hook_done(&t);
}

/* Which delivery is taken, and when. */
static void
test_take(void)
{
    struct test_hook t;
    int64_t wait_ms;

    hook_begin(&t);
    check(
        !send_take_locked(&t.w, 0, &wait_ms) && wait_ms == -1, "nothing to take: wait until woken");
    hook_push_tried(&t, 100, 30);
    hook_push_tried(&t, 50, 1);
    hook_push_tried(&t, 50, 1);
    check(!send_take_locked(&t.w, 40, &wait_ms) && wait_ms == 10, "not due yet: wait %lld ms",
        (long long)wait_ms);
    t.w.in_flight = t.w.limit;
    check(!send_take_locked(&t.w, 60, &wait_ms) && wait_ms == -1,
        "the limit is reached: wait until woken");
    t.w.in_flight = t.w.limit - 1;
    check_number(hook_take_number(&t, 50), 2, "the first that is due");
    check_number(hook_take_number(&t, 1000), 3, "of two, the one that was added first");
    t.w.in_flight = 0;

    hook_push_tried(&t, 2000, 10); /* 4 */
    hook_push(&t, 3000);           /* 5, never tried; 1 was tried at 30 */
    t.w.state = WEBHOOK_DOWN;
    t.w.wait_until_ms = 500;
    check(!send_take_locked(&t.w, 499, &wait_ms) && wait_ms == 1,
        "down: not before the probe's time");
    t.w.in_flight = 1;
    check(!send_take_locked(&t.w, 500, &wait_ms) && wait_ms == -1, "down: one probe at a time");
    t.w.in_flight = 0;
    static const int order[] = {5, 4, 1};
    for (size_t i = 0; i < COUNT(order); i++)
        check_number(hook_take_number(&t, 500), order[i], "the probe is the one tried longest ago");
    hook_push(&t, 0);
    t.w.stopping = true;
    check(!hook_take(&t, 500), "no probes while stopping");
    t.w.state = WEBHOOK_UP;
    check_number(hook_take_number(&t, 500), 6, "but what is due of one that is up");
    hook_done(&t);
}

/* In which order those that were never tried and those that were are taken. */
static void
test_take_order(void)
{
    static const struct {
        int64_t tried[3]; /* when they are due, 0: there is none */
        int64_t fresh[3];
        enum webhook_state state;
        const char *order; /* their numbers: the tried ones come first */
    } rows[] = {
        {{0}, {5, 5, 5}, WEBHOOK_UP, "123"},
        {{0}, {5, 4, 3}, WEBHOOK_UP, "123"}, /* in the order of the list */
        {{3, 2, 1}, {0}, WEBHOOK_UP, "321"},
        {{2, 2, 2}, {0}, WEBHOOK_UP, "123"},
        {{9}, {5}, WEBHOOK_UP, "21"},
        {{5}, {9}, WEBHOOK_UP, "12"},
        {{5}, {5}, WEBHOOK_UP, "12"}, /* due at once: the one that was added first */
        {{7, 1}, {2, 3, 8}, WEBHOOK_UP, "23415"},
        {{7, 1}, {2, 3, 8}, WEBHOOK_DOWN, "34512"}, /* the never tried, then by last attempt */
        {{7, 1}, {2, 3, 8}, WEBHOOK_PACED, "34512"},
        {{3, 2, 1}, {0}, WEBHOOK_DOWN, "123"},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct test_hook t;
        struct buf got = {0};
        hook_begin(&t);
        for (int k = 0; k < 3 && rows[i].tried[k]; k++)
            hook_push_tried(&t, rows[i].tried[k], 10 + k);
        for (int k = 0; k < 3 && rows[i].fresh[k]; k++)
            hook_push(&t, rows[i].fresh[k]);
        t.w.state = rows[i].state;
        for (long long n; (n = hook_take_number(&t, 10)) > 0;)
            buf_format(&got, "%lld", n);
        check_buf(&got, slice_of(rows[i].order), "the order in which they are taken");
        hook_done(&t);
    }
}

/* What a call's result does to the webhook, the delivery, the counters and the log. */
static void
test_settle(void)
{
    struct test_hook t;
    struct delivery *d;
    int64_t now;

    hook_begin(&t);
    hook_push(&t, 0);
    d = hook_take(&t, 0);
    hook_settle(&t, d, HTTP_ANSWERED, 200, -1);
    check(t.counters.delivered == 1 && hook_waiting(&t) == 0, "200: done");
    check_number(
        log_count("info: alert 1 delivered to failure 1: 200 in 0 ms, attempt 1"), 1, "is told");

    hook_push(&t, 0);
    d = hook_take(&t, 0);
    now = plat_now_ms();
    hook_settle(&t, d, HTTP_ANSWERED, 500, -1);
    check(
        t.w.state == WEBHOOK_UP && hook_waiting(&t) == 1 && d->attempts == 1 && d->tried_ms >= now,
        "500: kept");
    check(d->due_ms >= now && d->due_ms <= plat_now_ms() + 1000, "due within a second");
    check_number(
        log_count("warn: alert 2 to failure 1: because; attempt 1, next in "), 1, "is told");
    for (int i = 2; i <= 12; i++) {
        d = hook_take(&t, INT64_MAX / 2);
        hook_settle(&t, d, HTTP_ANSWERED, 500, -1);
    }
    check(d->due_ms <= plat_now_ms() + BACKOFF_MAX_MS && d->attempts == 12,
        "backoff is at most five minutes");
    d = hook_take(&t, INT64_MAX / 2);
    hook_settle(&t, d, HTTP_ANSWERED, 404, -1);
    check(t.counters.dead == 1 && hook_waiting(&t) == 0, "404: a dead letter");
    check_number(
        log_count(
            "error: alert 2 given up for failure 1 after 13 attempts: because; alert: {\"event\":"),
        1, "is told with the whole alert");

    hook_push(&t, 0); /* 3 */
    hook_push(&t, 0); /* 4 */
    d = hook_take(&t, 0);
    now = plat_now_ms();
    hook_settle(&t, d, HTTP_UNSENT, 0, -1);
    check(
        t.w.state == WEBHOOK_DOWN && t.w.limit == 1 && hook_waiting(&t) == 2, "not reached: down");
    check(t.w.wait_until_ms >= now && t.w.wait_until_ms <= plat_now_ms() + 1000,
        "a probe within a second");
    check_number(log_count("warn: webhook failure 1 is down: because"), 1, "is told");
    d = hook_take(&t, t.w.wait_until_ms);
    check_number((long long)d->number, 4, "the next probe is the other alert");
    t.w.wait_until_ms = 0;
    hook_settle(&t, d, HTTP_UNSENT, 0, -1);
    check_number(log_count("is down"), 1, "is not told again");
    check(t.w.wait_until_ms <= plat_now_ms() + 2000, "the wait doubles");
    d = hook_take(&t, t.w.wait_until_ms);
    check_number((long long)d->number, 3, "then the first again");
    t.w.wait_until_ms = 0;
    hook_settle(&t, d, HTTP_ANSWERED, 200, -1);
    check(t.w.state == WEBHOOK_UP && t.w.failures == 0, "answered: up");
    check_number(log_count("info: webhook failure 1 is up again"), 1, "is told");
    check_number(t.w.limit, 1, "still one call at a time");
    d = hook_take(&t, INT64_MAX / 2);
    hook_settle(&t, d, HTTP_ANSWERED, 200, -1);
    check_number(t.w.limit, 2, "then two");
    for (int i = 0; i < 5; i++) {
        hook_push(&t, 0);
        hook_settle(&t, hook_take(&t, 0), HTTP_ANSWERED, 200, -1);
    }
    check_number(t.w.limit, t.w.most, "up to the most");
    hook_done(&t);
}

/* A webhook that asks for time. */
static void
test_settle_wait(void)
{
    struct test_hook t;
    struct delivery *d, *other, *third, *fourth;
    int64_t now, wait_ms;

    hook_begin(&t);
    for (int i = 0; i < 4; i++)
        hook_push(&t, 0);
    d = hook_take(&t, 0);
    other = hook_take(&t, 0);
    third = hook_take(&t, 0);
    fourth = hook_take(&t, 0);

    now = plat_now_ms();
    hook_settle(&t, d, HTTP_ANSWERED, 429, 30);
    check(t.w.state == WEBHOOK_PACED && t.w.wait_until_ms >= now + 30000 &&
            t.w.wait_until_ms <= plat_now_ms() + 30000,
        "429: the webhook waits as a whole");
    check_number(log_count("warn: webhook failure 1 asked to wait: 429, for 30.0 s"), 1, "is told");
    hook_settle(&t, other, HTTP_ANSWERED, 503, 100);
    check(t.w.wait_until_ms >= now + 100000 && t.w.wait_until_ms <= plat_now_ms() + 100000,
        "of two that were in flight the longer time counts");
    now = t.w.wait_until_ms;
    hook_settle(&t, third, HTTP_ANSWERED, 429, 5);
    check_number(t.w.wait_until_ms, now, "a shorter one does not");
    hook_settle(&t, fourth, HTTP_ANSWERED, 200, -1);
    check(t.w.state == WEBHOOK_PACED && t.w.wait_until_ms == now, "nor that one was taken");
    check(!send_take_locked(&t.w, now - 1, &wait_ms) && wait_ms == 1, "nothing goes before");
    d = hook_take(&t, now);
    t.w.in_flight = 1;
    check(d && !hook_take(&t, now), "then one probe");
    t.w.in_flight = 0;
    t.w.wait_until_ms = 0; /* as if that time had come */
    hook_settle(&t, d, HTTP_ANSWERED, 200, -1);
    check(t.w.state == WEBHOOK_UP, "answered: up");
    hook_done(&t);
}

/* Alerts without an HTTP answer: three different ones in a row, and the webhook is down. */
static void
test_settle_broken(void)
{
    struct test_hook t;
    struct delivery *d[3];

    hook_begin(&t);
    hook_push(&t, 0);
    for (int i = 0; i < 10; i++)
        hook_settle(&t, hook_take(&t, INT64_MAX / 2), HTTP_BROKEN, 0, -1);
    check(t.w.state == WEBHOOK_UP, "one alert alone makes no webhook down");
    hook_push(&t, 0);
    hook_push(&t, 0);
    for (int i = 0; i < 3; i++)
        d[i] = hook_take(&t, INT64_MAX / 2);
    hook_settle(&t, d[0], HTTP_BROKEN, 0, -1);
    check(t.w.state == WEBHOOK_UP, "two neither");
    hook_settle(&t, d[1], HTTP_ANSWERED, 500, -1);
    hook_settle(&t, d[2], HTTP_BROKEN, 0, -1);
    check(t.w.state == WEBHOOK_UP, "an answer between them counts");
    for (int i = 0; i < 3; i++)
        d[i] = hook_take(&t, INT64_MAX / 2);
    hook_settle(&t, d[0], HTTP_BROKEN, 0, -1);
    hook_settle(&t, d[1], HTTP_BROKEN, 0, -1);
    hook_settle(&t, d[2], HTTP_BROKEN, 0, -1);
    check(t.w.state == WEBHOOK_DOWN, "three in a row do");
    check_number(log_count("is down"), 1, "is told");
    hook_done(&t);
}

/* Whatever the state and the failure: a webhook is not called again and again without a pause. */
static void
test_pauses(void)
{
    static const struct {
        enum http_end end;
        int status;
        int64_t retry_after_s;
    } rows[] = {
        {HTTP_UNSENT, 0, -1},
        {HTTP_BROKEN, 0, -1},
        {HTTP_ANSWERED, 500, -1},
        {HTTP_ANSWERED, 429, -1},
        {HTTP_ANSWERED, 429, 0},
        {HTTP_ANSWERED, 503, 0},
    };
    static const enum webhook_state states[] = {WEBHOOK_UP, WEBHOOK_DOWN, WEBHOOK_PACED};
    static const char *const names[] = {"up", "down", "paced"};

    for (size_t i = 0; i < COUNT(rows); i++)
        for (size_t s = 0; s < COUNT(states); s++) {
            struct test_hook t;
            int64_t pauses = 0;
            hook_begin(&t);
            hook_push(&t, 0);
            t.w.state = states[s];
            for (int k = 0; k < 12; k++) {
                int64_t now = plat_now_ms(), wait_ms;
                struct delivery *d = send_take_locked(&t.w, now, &wait_ms);
                if (!d) {
                    pauses += wait_ms;
                    d = hook_take(&t, now + wait_ms);
                }
                hook_settle(&t, d, rows[i].end, rows[i].status, rows[i].retry_after_s);
                if (t.w.state != WEBHOOK_UP && t.w.wait_until_ms > plat_now_ms())
                    pauses += t.w.wait_until_ms - plat_now_ms(), t.w.wait_until_ms = plat_now_ms();
            }
            check(pauses > 1000,
                "end %d, status %d, Retry-After %lld, at first %s: 12 calls within %lld ms",
                (int)rows[i].end, rows[i].status, (long long)rows[i].retry_after_s, names[s],
                (long long)pauses);
            hook_done(&t);
        }
}

/* Bounds of the queue without a journal: the oldest goes, and is logged whole. */
static void
test_queue_full(void)
{
    struct test_hook t;
    struct delivery *d;
    struct buf large = {0};
    int told = 0;

    hook_begin(&t);
    d = hook_push(&t, 0);
    hook_settle(&t, hook_take(&t, 0), HTTP_ANSWERED, 500, -1);
    send_detach_locked(&t.w, d);
    d->due_ms = INT64_MAX; /* age counts, not when it is due */
    send_put_back_locked(&t.w, d);
    for (int i = 1; i < QUEUE_MAX_ALERTS; i++)
        hook_push(&t, 0);
    check(hook_waiting(&t) == QUEUE_MAX_ALERTS && t.counters.lost == 0, "10,000 alerts fit");
    hook_push(&t, 0);
    check(hook_waiting(&t) == QUEUE_MAX_ALERTS && t.counters.lost == 1,
        "one more takes the oldest one's place");
    check(t.w.oldest->order == 1 && t.w.heap_count == 0, "which is gone");
    check_number(
        log_count(
            "dropped for failure 1: its queue is full (10000 alerts); alert: {\"event\":\"Qlik Sense"),
        1, "is told with the whole alert");
    check(strncmp(t.w.oldest->id, "msg_", 4) == 0 && strlen(t.w.oldest->id) == 36 &&
            strspn(t.w.oldest->id + 4, "0123456789abcdef") == 32,
        "webhook-id: %s", t.w.oldest->id);
    check(strcmp(t.w.oldest->id, t.w.newest->id) != 0, "is another for each");
    hook_done(&t);

    hook_begin(&t);
    while (large.len < 60000)
        buf_add_char(&large, 'x');
    for (int i = 0; i < 200 && t.w.held_bytes <= QUEUE_MAX_BYTES; i++) {
        hook_add(&t, (struct slice){large.data, large.len}, 0, -1);
        told += log_count("its queue is full (8 MiB)");
        log_forget();
    }
    check(t.w.held_bytes <= QUEUE_MAX_BYTES, "large alerts: at most 8 MiB");
    check(hook_waiting(&t) + t.counters.lost == 200 && hook_waiting(&t) > 100, "%zu are kept",
        hook_waiting(&t));
    check_number(told, (long long)t.counters.lost, "is told");
    hook_done(&t);

    hook_begin(&t);
    while (large.len <= QUEUE_MAX_BYTES)
        buf_add_char(&large, 'x');
    hook_add(&t, (struct slice){large.data, large.len}, 0, -1);
    check(hook_waiting(&t) == 1 && t.counters.lost == 0, "one that is too large is kept alone");
    hook_push(&t, 0);
    check(hook_waiting(&t) == 1 && t.counters.lost == 1, "the next takes its place");
    buf_free(&large);
    hook_done(&t);
}

/* Bounds of the queue with a journal: what stands in it needs no memory. */
static void
test_make_room(void)
{
    struct test_hook t;
    struct delivery *d, *flying;
    size_t held = 0;

    hook_begin(&t);
    for (int i = 0; i < QUEUE_MAX_ALERTS + 500; i++)
        hook_add(&t, SLICE("{}"), 0, i);
    check(hook_waiting(&t) == QUEUE_MAX_ALERTS + 500 && t.counters.lost == 0,
        "in the journal there is room for more than in memory");
    check(t.w.held == QUEUE_MAX_ALERTS && t.w.oldest->payload && !t.w.newest->payload,
        "the first are held, the others are only there");
    check(!t.w.unsaved, "none is in memory only");
    flying = hook_take(&t, 0);
    d = hook_push(&t, 0);
    check(hook_waiting(&t) == QUEUE_MAX_ALERTS + 500 && t.w.held == QUEUE_MAX_ALERTS && d->payload,
        "one that the journal does not hold takes the place of the one in flight");
    d = hook_push(&t, 0);
    check(hook_waiting(&t) == QUEUE_MAX_ALERTS + 501 && t.counters.lost == 0 && t.w.held == 2,
        "for the next all payloads go that the journal holds");
    check(t.w.unsaved == d->older && !t.w.holds_saved, "what is in memory only is known");
    check(flying->payload, "a call in flight keeps its own");
    hook_settle(&t, flying, HTTP_ANSWERED, 500, -1);
    check(t.w.heap_count == 1 && t.w.held == 3 && t.w.holds_saved, "and has it when it is back");

    for (int i = 0; i < QUEUE_MAX_ALERTS - 2; i++)
        hook_push(&t, 0);
    check(t.counters.lost == 0 && t.w.held == QUEUE_MAX_ALERTS && !flying->payload,
        "its payload goes before any alert does");
    d = t.w.unsaved;
    uint64_t number = d->number;
    hook_push(&t, 0);
    check(t.counters.lost == 1 && t.w.held == QUEUE_MAX_ALERTS && t.w.unsaved->number > number,
        "then the oldest that is in memory only is dropped");
    check_number(log_count(" dropped for failure 1: its queue is full"), 1, "is told");
    for (d = t.w.oldest; d; d = d->newer)
        held += d->payload != NULL;
    check_number((long long)held, QUEUE_MAX_ALERTS, "payloads in all");

    t.w.unsaved->in_flight = true; /* it is in the hands of a sender */
    d = t.w.unsaved->newer;
    number = d->number;
    hook_push(&t, 0);
    check(t.counters.lost == 2 && t.w.unsaved->newer->number > number,
        "one in flight is not dropped, but the next");
    t.w.unsaved->in_flight = false;
    hook_done(&t);

    hook_begin(&t); /* a failed one is put back where there is no room */
    flying = hook_add(&t, SLICE("{}"), 0, 1);
    hook_take(&t, 0);
    for (int i = 0; i < QUEUE_MAX_ALERTS; i++)
        hook_push(&t, 0);
    hook_settle(&t, flying, HTTP_ANSWERED, 500, -1);
    check(!flying->payload && t.w.held == QUEUE_MAX_ALERTS && t.counters.lost == 0,
        "its payload is left to the journal");
    hook_done(&t);
}

/* Alerts that are too old. */
static void
test_expire(void)
{
    struct test_hook t;
    const int64_t now = plat_now_ms() + 10 * MAX_AGE;

    hook_begin(&t);
    for (int i = 0; i < 40; i++) { /* the older half is too old; the last quarter was never tried */
        struct delivery *d = i < 30 ? hook_push_tried(&t, random_below(1000), 1) : hook_push(&t, 0);
        d->accepted_ms = now - MAX_AGE + (i < 20 ? i - 19 : 1);
    }
    t.w.expire_ms = now + 1;
    send_expire_locked(&t.w, now);
    check_number((long long)hook_waiting(&t), 40, "it is looked at only from time to time");
    t.w.expire_ms = now;
    send_expire_locked(&t.w, now);
    check_number((long long)hook_waiting(&t), 20, "too young: kept");
    check_number((long long)t.counters.dead, 20, "too old and tried: dead letters");
    for (const struct delivery *d = t.w.oldest; d; d = d->newer)
        check(now - d->accepted_ms < MAX_AGE, "the right ones");
    check_number(log_count("given up for failure 1 after 1 attempt: not delivered for as long as "
                           "an alert is kept; status 500; alert: {"),
        20, "are told with the last failure");
    check(t.w.expire_ms > now && t.w.expire_ms <= now + MAX_AGE / 100,
        "and again some minutes later");
    hook_done(&t);

    hook_begin(&t); /* not before one attempt since the start */
    for (int i = 0; i < 3; i++) {
        struct delivery *d = hook_push(&t, 0);
        d->accepted_ms = now - 2 * MAX_AGE;
        d->attempts = i; /* before the start */
    }
    send_expire_locked(&t.w, now);
    check(hook_waiting(&t) == 3 && t.counters.dead == 0, "never tried since the start: kept");
    hook_settle(&t, hook_take(&t, 0), HTTP_ANSWERED, 500, -1);
    send_expire_locked(&t.w, now + MAX_AGE);
    check(hook_waiting(&t) == 2 && t.counters.dead == 1, "tried once: given up");
    check_number(log_count("alert 1 given up for failure 1 after 1 attempt"), 1, "the right one");
    hook_done(&t);

    hook_begin(&t); /* very many: not all at once, for the log's sake */
    for (int i = 0; i < EXPIRE_AT_ONCE + 50; i++)
        hook_push_tried(&t, 0, 1)->accepted_ms = now - MAX_AGE;
    struct delivery *flying = hook_take(&t, 0);
    send_expire_locked(&t.w, now);
    check_number((long long)t.counters.dead, EXPIRE_AT_ONCE, "dead letters in one go");
    check(t.w.expire_ms <= now + 1000, "the others soon");
    send_expire_locked(&t.w, t.w.expire_ms);
    check(hook_waiting(&t) == 0 && t.counters.dead == EXPIRE_AT_ONCE + 49,
        "all but the one in flight");
    send_forget_locked(&t.w, flying);
    hook_done(&t);
}

static void
test_delivery(void)
{
    test_verdicts();
    test_heap();
    test_take();
    test_take_order();
    test_settle();
    test_settle_wait();
    test_settle_broken();
    test_pauses();
    test_queue_full();
    test_make_room();
    test_expire();
    log_begin(LOG_ERROR);
}

/* ==== 12. Upkeep ============================================================ */

#define KEEP_WEBHOOKS 4

/* A program's state directory, with webhooks that start no senders. */
struct test_keep {
    struct cfg_reader reader;
    struct config config;
    struct counters counters;
    struct id_pool ids;
    struct journal journal;
    struct windows windows;
    struct webhook hook[KEEP_WEBHOOKS];
    struct keeper k;
};

/* Two for failures, one of them described, and one for aborts. */
static const char KEEP_YAML[] =
    "Butler:\n  butlerWebhook: {stateDirectory: state}\n  webhookNotification:\n    enable: true\n"
    "    reloadTaskFailure:\n      webhooks:\n"
    "        - {webhookURL: 'http://h/1', httpMethod: POST}\n"
    "        - {webhookURL: 'http://h/2', httpMethod: POST, description: Second}\n"
    "    reloadTaskAborted:\n      webhooks:\n"
    "        - {webhookURL: 'http://h/3', httpMethod: GET}\n";

/* Deletes a file of the state directory. */
static void
remove_state_file(const char *name, void *arg)
{
    char path[600];

    (void)arg;
    snprintf(path, sizeof path, "%s/state/%s", folder, name);
    unlink(path);
}

/* Deletes the state directory. */
static void
keep_clear(void)
{
    char path[300];

    snprintf(path, sizeof path, "%s/state", folder);
    plat_folder_each(path, remove_state_file, NULL);
    rmdir(path);
}

/* Writes a file of the state directory, made if need be. */
static void
write_state(const char *name, struct slice content)
{
    char path[300];

    snprintf(path, sizeof path, "%s/state", folder);
    check_number(plat_make_folder(path, true), 0, "the state directory");
    snprintf(path, sizeof path, "state/%s", name);
    write_file(path, content);
}

/* A file of the state directory, "" if there is none; the caller frees it. */
static struct buf
read_state(const char *name)
{
    struct buf b = {0};
    char path[300], *data;
    size_t len;

    buf_add(&b, "", 0);
    snprintf(path, sizeof path, "%s/state/%s", folder, name);
    if (plat_read_file(path, 64 << 20, &data, &len) == 0) {
        buf_add(&b, data, len);
        free(data);
    }
    return b;
}

/* Everything but loading. */
static void
keep_begin(struct test_keep *t, const char *yaml)
{
    struct err e = {""};
    size_t n = 0;

    *t = (struct test_keep){0};
    log_begin(LOG_VERBOSE);
    load(&t->reader, &t->config, slice_of(yaml));
    check_problems(&t->reader, NULL, 0, yaml);
    journal_init(&t->journal, &t->config);
    check(journal_open(&t->journal, &t->config, false, &e) == 0, "journal_open: %s", e.text);
    windows_init(&t->windows, &t->config);
    for (int kind = 0; kind < ALERT_KINDS; kind++)
        for (size_t i = 0; i < t->config.webhooks[kind] && n < KEEP_WEBHOOKS; i++) {
            send_init(
                &t->hook[n], &t->config, &t->config.webhook[kind][i], &t->counters, &t->journal);
            t->hook[n++].idle = 1; /* so that no sender is started */
        }
    t->k = (struct keeper){.config = &t->config,
        .journal = &t->journal,
        .windows = &t->windows,
        .counters = &t->counters,
        .webhook = t->hook,
        .webhooks = n};
}

/* The journal's counts against the lists, and each line that a delivery points to. */
static void
check_kept(struct test_keep *t, const char *what)
{
    struct journal *j = &t->journal;
    size_t live = 0, unsaved = 0, wrong = 0;
    int64_t bytes = 0;

    for (size_t i = 0; i < t->k.webhooks; i++) {
        struct webhook *w = &t->hook[i];
        size_t waiting = 0, held = 0;
        const struct delivery *first_unsaved = NULL;
        for (struct delivery *d = w->oldest; d; d = d->newer) {
            struct buf line = {0};
            struct slice json;
            live++;
            bytes += (int64_t)send_journal_end(w, d).len;
            waiting += !d->in_flight;
            held += !d->in_flight && d->payload;
            wrong += d->at[1 - w->now] >= 0 || w->now != j->now;
            if (!send_is_saved(w, d)) {
                unsaved++;
                first_unsaved = first_unsaved ? first_unsaved : d;
                wrong += !d->payload;
            } else if (journal_fetch(j, w->now, d->at[w->now], d->len[w->now], &line, &json) != 0 ||
                !memmem(line.data, line.len, d->id, strlen(d->id)) ||
                (d->payload && !same(json, (struct slice){d->payload->json, d->payload->len})))
                wrong++;
            buf_free(&line);
        }
        wrong += waiting != send_waiting_locked(w) || held != w->held;
        wrong += first_unsaved != w->unsaved;
        for (size_t n = 0; n < w->heap_count; n++)
            wrong += w->heap[n]->heap_at != n;
    }
    check(wrong == 0, "%s: %zu deliveries are wrong", what, wrong);
    check(live == j->live && unsaved == j->unsaved && bytes == j->live_bytes,
        "%s: %zu wait (counted %zu), %zu unsaved (%zu), %lld bytes (%lld)", what, live, j->live,
        unsaved, j->unsaved, (long long)bytes, (long long)j->live_bytes);
    check_number(plat_file_len(j->file[j->now]), j->end, "length of the journal");
}

static void
keep_end(struct test_keep *t)
{
    for (size_t i = 0; i < t->k.webhooks; i++) {
        hook_forget_all(&t->hook[i]);
        send_done(&t->hook[i]);
    }
    keep_done(&t->k);
    journal_done(&t->journal);
    windows_done(&t->windows);
    cfg_done(&t->config);
}

/* Starts, and loads what is there. */
static void
keep_start_load(struct test_keep *t, const char *yaml)
{
    struct err e = {""};

    keep_begin(t, yaml);
    check(keep_load(&t->k, false, &e) == 0, "keep_load: %s", e.text);
    keep_bury_gone(&t->k);
    check(!t->k.gone, "what waits for webhooks that are gone is buried");
    check_kept(t, "loaded");
}

/* What waits, as "ab3|c": for each webhook the letters of the ids, with the attempts if any. */
static void
waiting_text(const struct test_keep *t, struct buf *out)
{
    buf_add(out, "", 0);
    for (size_t i = 0; i < t->k.webhooks; i++) {
        if (i > 0)
            buf_add_char(out, '|');
        for (const struct delivery *d = t->hook[i].oldest; d; d = d->newer) {
            buf_add_char(out, d->id[4]);
            if (d->attempts > 0)
                buf_format(out, "%d", d->attempts);
        }
    }
}

static void
check_waiting(const struct test_keep *t, const char *want, const char *what)
{
    struct buf got = {0};

    waiting_text(t, &got);
    check_buf(&got, slice_of(want), what);
}

/* How often text stands in a file of the state directory. */
static int
count_in_state(const char *name, const char *text)
{
    struct buf b = read_state(name);
    int n = 0;

    for (const char *p = b.data; (p = strstr(p, text)) != NULL; p++)
        n++;
    buf_free(&b);
    return n;
}

static bool
is_in_state(const char *name)
{
    char path[300];

    snprintf(path, sizeof path, "%s/state/%s", folder, name);
    return access(path, F_OK) == 0;
}

/*
 * Makes a journal of lines without CRC, in which #a is a webhook-id, $1 to $3 the key of a webhook
 * of KEEP_YAML, $4 to $9 one that is in no configuration, @N the time N seconds ago, %J an alert. A
 * line that starts with ! stands there as it is; one that ends with ~ has a blank for its LF, or
 * none at all at the end of the file.
 */
static void
make_journal(const struct config *c, const char *text, struct buf *out)
{
    while (*text) {
        struct buf line = {0};
        size_t len = strcspn(text, "\n");
        bool raw = *text == '!', glued = len > 0 && text[len - 1] == '~';
        for (const char *p = text + raw; p < text + len - glued; p++)
            if (*p == '#') {
                buf_add_text(&line, "msg_");
                for (int i = 0; i < 32; i++)
                    buf_add_char(&line, p[1]);
                p++;
            } else if (*p == '$') {
                int n = *++p - '1';
                if (n < 3)
                    buf_add_text(&line,
                        n < 2 ? c->webhook[ALERT_FAILURE][n].key
                              : c->webhook[ALERT_ABORTED][0].key);
                else
                    for (int i = 0; i < 32; i++)
                        buf_add_char(&line, *p);
            } else if (*p == '@') {
                char *end;
                long long s = strtoll(p + 1, &end, 10);
                buf_format(&line, "%lld", (long long)plat_wall_ms() - s * 1000);
                p = end - 1;
            } else if (strncmp(p, "%J", 2) == 0) {
                struct alert *alert = new_alert(SLICE(FAILED ";QS1;T;A;u;" IDS ";M"));
                alert_add_json(alert, &line);
                alert_free(alert);
                p++;
            } else
                buf_add_char(&line, *p);
        buf_add(&line, "", 0);
        if (raw)
            buf_add(out, line.data, line.len);
        else
            add_line(out, (struct slice){line.data, line.len});
        text += len + (text[len] != '\0');
        if (!glued)
            buf_add_char(out, '\n');
        else if (*text)
            buf_add_char(out, ' ');
        buf_free(&line);
    }
}

/* Writes such a journal. */
static void
write_journal(const char *text)
{
    struct cfg_reader reader;
    struct config c;
    struct buf b = {0};

    load(&reader, &c, slice_of(KEEP_YAML));
    keep_clear();
    make_journal(&c, text, &b);
    write_state("journal", (struct slice){b.data ? b.data : "", b.len});
    buf_free(&b);
    cfg_done(&c);
}

#define BOTH "accepted\t@10\t$1:#a,$2:#b\t%J\n"
#define MORE "waiting\t@9\t$1:#c\t%J\nwaiting\t@8\t$3:#d\t%J\n"

/*
 * Journals, and what waits when they have been loaded: at once, after another start, after the
 * journal was rewritten, and after the start that follows.
 */
static void
test_keep_load(void)
{
    static const struct {
        const char *journal, *waiting;
        int damaged, letters;
        const char *log; /* a line of it, NULL: there is no warning or error */
    } rows[] = {
        {"", "||", 0, 0, NULL},
        {BOTH, "a|b|", 0, 0, NULL},
        {BOTH MORE, "ac|b|d", 0, 0, NULL},
        {BOTH MORE "delivered\t#a\ndead\t#b\ndropped\t#c\n", "||d", 0, 0, NULL},
        {BOTH "retry\t#a\t3\t@5\t@-5\t\"status 500\"\n", "a3|b|", 0, 0, NULL},
        {BOTH "retry\t#a\t3\t@5\t@4\t\"x\"\nretry\t#a\t4\t@3\t@2\t\"y\"\n", "a4|b|", 0, 0, NULL},
        {BOTH "retry\t#a\t3\t@5\t@4\t\"x\"\ndelivered\t#a\n", "|b|", 0, 0, NULL},
        {"delivered\t#a\nretry\t#b\t1\t@1\t@1\t\"\"\n" BOTH, "a|b|", 0, 0, NULL},
        {BOTH "delivered\t#z\ndead\t#y\n", "a|b|", 0, 0, NULL},
        {BOTH "delivered\t#a\ndelivered\t#a\n", "|b|", 0, 0, NULL},
        /* the same id: two journals were put together, or a letter was replayed */
        {BOTH BOTH, "a|b|", 0, 0, NULL},
        {BOTH "waiting\t@1\t$2:#a\t%J\n", "a|b|", 0, 0, NULL},
        {BOTH MORE "delivered\t#a\n" BOTH MORE, "ca|b|d", 0, 0, NULL},
        {BOTH "dead\t#a\nwaiting\t@1\t$1:#a\t%J\n", "a|b|", 0, 0, NULL},
        {BOTH MORE "dead\t#a\nwaiting\t@1\t$1:#a\t%J\ndead\t#a\n", "c|b|d", 0, 0, NULL},
        {BOTH "retry\t#a\t7\t@5\t@4\t\"x\"\ndead\t#a\nwaiting\t@1\t$1:#a\t%J\n", "a|b|", 0, 0,
            NULL},
        /* the end is torn */
        {BOTH "!0123~", "a|b|", 0, 0, "warn: journal: a torn last line (4 bytes) was cut off"},
        {BOTH "!~", "a|b|", 0, 0, NULL},
        {BOTH "delivered\t#a~", "|b|", 0, 0, NULL},
        {BOTH "waiting\t@1\t$3:#e\t%J~", "a|b|e", 0, 0, NULL},
        {"!00000000\taccepted\t17953~", "||", 0, 0, "a torn last line (23 bytes) was cut off"},
        {BOTH "!torn~\ndelivered\t#a~", "|b|", 1, 0,
            "error: journal: 1 damaged line set aside in "},
        /* damage */
        {"!junk\n" BOTH, "a|b|", 1, 0, "error: journal: 1 damaged line set aside in "},
        {BOTH "!\n!00000000\tdelivered\t#a\n", "a|b|", 2, 0, "2 damaged lines set aside in "},
        {BOTH "!00000000\tdelivered\t#a~\n" MORE, "ac|b|d", 1, 0, "1 damaged line"},
        {"waiting\t@1\t$1:#a\t%J~\nwaiting\t@1\t$1:#b\t%J~\nwaiting\t@1\t$1:#c\t%J\n", "abc||", 1,
            0, "1 damaged line"},
        {BOTH "news\tfrom the future\n", "a|b|", 1, 0, "1 damaged line"},
        {BOTH "delivered\t#a\tx\n", "a|b|", 1, 0, "1 damaged line"},
        /* nonsense with a good CRC */
        {"accepted\tx\t$1:#a\t%J\naccepted\t\t$1:#b\t%J\naccepted\t-1\t$1:#c\t%J\n", "abc||", 0, 0,
            NULL},
        {"accepted\t99999999999999999999\t$1:#a\t%J\naccepted\t@-100000\t$1:#b\tx\n", "ab||", 0, 0,
            NULL},
        {"accepted\t@1\t$1\t%J\naccepted\t@1\t:\t%J\naccepted\t@1\t,,$1:,$2:#b,\t%J\n", "|b|", 0, 0,
            NULL},
        {"accepted\t@1\t$1:#a#a\t%J\naccepted\t@1\t$1$1:#b\t%J\n", "||", 0, 0, NULL},
        {BOTH "retry\t#a\tx\ty\tz\tw\n", "a|b|", 0, 0, NULL},
        {BOTH "window\tfailure\trate\tx\t$4\nwindow\tfailure\trate\t@1\tx\n", "a|b|", 0, 0, NULL},
        /* webhooks that have changed */
        {"waiting\t@1\t$4:#a\t%J\n", "||", 0, 1,
            "given up for an unknown webhook after 0 attempts: its webhook is in the configuration "
            "no more; alert: {"},
        {"webhook\t$4\tfailure\t3\t3\t\"\"\nwaiting\t@1\t$4:#a\t%J\nwaiting\t@1\t$5:#b\t%J\n", "||",
            0, 2,
            "given up for failure 3 after 0 attempts: its webhook is in the configuration no"},
        {"webhook\t$4\tfailure\t3\t3\t\"\"\nwaiting\t@1\t$4:#a\t%J\ndelivered\t#a\n", "||", 0, 0,
            NULL},
        {"webhook\t$4\tfailure\t1\t2\t\"\"\nwaiting\t@1\t$4:#a\t%J\nwaiting\t@1\t$1:#b\t%J\n",
            "ab||", 0, 0,
            "warn: journal: 1 alerts wait for failure 1, which has changed: they go to failure 1 at"},
        {"webhook\t$4\tfailure\t1\t2\t\"\"\nwaiting\t@1\t$4:#a\t%J\nretry\t#a\t2\t@1\t@0\t\"x\"\n",
            "a2||", 0, 0,
            "warn: journal: 1 alerts wait for failure 1, which has changed: they go to failure 1"},
        {"webhook\t$4\tfailure\t1\t2\t\"\"\nwaiting\t@1\t$4:#a\t%J\ndelivered\t#a\n", "||", 0, 0,
            NULL},
        {"webhook\t$4\tfailure\t9\t9\t\"Second\"\nwaiting\t@1\t$4:#a\t%J\n", "|a|", 0, 0, NULL},
        {"webhook\t$4\taborted\t1\t1\t\"Second\"\nwaiting\t@1\t$4:#a\t%J\n", "||a", 0, 0,
            "warn: journal: 1 alerts wait for aborted 1 (\"Second\"), which has changed: they go to a"},
        {"webhook\t$4\tfailure\tx\ty\tz\nwaiting\t@1\t$4:#a\t%J\n", "||", 0, 1,
            "given up for failure"},
        /* the last word on a webhook counts */
        {"webhook\t$4\tfailure\t9\t9\t\"Second\"\nwebhook\t$4\tfailure\t1\t2\t\"\"\n"
         "waiting\t@1\t$4:#a\t%J\n",
            "a||", 0, 0, "warn: journal: 1 alerts wait for failure 1, which has changed"},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct test_keep t;
        struct err e = {""};
        const char *text = show(slice_of(rows[i].journal));
        write_journal(rows[i].journal);

        keep_begin(&t, KEEP_YAML); /* what --pending does changes nothing */
        struct buf before = read_state("journal"), after;
        check_number(keep_load(&t.k, true, &e), 0, "read only");
        after = read_state("journal");
        check_bytes((struct slice){after.data, after.len}, (struct slice){before.data, before.len},
            "the journal after reading only");
        check_waiting(&t, rows[i].waiting, "read only");
        buf_free(&before);
        buf_free(&after);
        keep_end(&t);

        keep_start_load(&t, KEEP_YAML);
        check_waiting(&t, rows[i].waiting, text);
        check(rows[i].log ? log_count(rows[i].log) == 1
                          : log_count(" warn: ") == 0 && log_count(" error: ") == 0,
            "row %zu: the log is %s", i, the_log.queue.data ? the_log.queue.data : "empty");
        check(t.journal.rewrite == (rows[i].damaged > 0), "after damage it is rewritten");
        keep_letters(&t.k);
        keep_write(&t.k);
        check_number(
            count_in_state("dead-letters.ndjson", "\n"), rows[i].letters, "dead letters of it");
        check_number(
            log_count("damaged line"), rows[i].damaged > 0, "damaged lines are told together");
        keep_end(&t);

        keep_start_load(&t, KEEP_YAML);
        check_waiting(&t, rows[i].waiting, "after another start");
        keep_letters(&t.k);
        check_number(
            count_in_state("dead-letters.ndjson", "\n"), rows[i].letters, "no other dead letters");
        check_number(keep_rewrite(&t.k), 0, "keep_rewrite");
        check_kept(&t, "rewritten");
        check_waiting(&t, rows[i].waiting, "rewritten");
        check_number(count_in_state("journal", "\twebhook\t"), 3, "one line for each webhook");
        check(count_in_state("journal", "\n") ==
                3 + (int)t.journal.live + count_in_state("journal", "\tretry\t") +
                    count_in_state("journal", "\twindow\t"),
            "row %zu: nothing but what waits and the windows", i);
        keep_end(&t);

        keep_start_load(&t, KEEP_YAML);
        check_waiting(&t, rows[i].waiting, "rewritten and loaded");
        check(
            log_count(" warn: ") == 0 && log_count(" error: ") == 0, "row %zu: nothing to tell", i);
        keep_end(&t);
    }
    keep_clear();
}

/* Ages, attempts and reasons across a start. */
static void
test_keep_times(void)
{
    struct test_keep t;
    struct err e;
    int64_t now;

    write_journal("accepted\t@100\t$1:#a\t%J\naccepted\t@-1000\t$1:#b\t%J\n"
                  "retry\t#a\t3\t@50\t@-70\t\"status 500\"\nretry\t#b\t1\t@50\t@40\t\"\"\n");
    keep_begin(&t, KEEP_YAML);
    check_number(keep_load(&t.k, true, &e), 0, "read only");
    now = plat_now_ms();
    const struct delivery *d = t.hook[0].oldest;
    if (check(d && d->newer, "two wait")) {
        check(llabs(now - d->accepted_ms - 100000) < 5000, "its age: %lld ms",
            (long long)(now - d->accepted_ms));
        check(llabs(now - d->tried_ms - 50000) < 5000, "its last attempt");
        check(llabs(d->due_ms - now - 70000) < 5000, "its next attempt");
        check_text(d->failure, "status 500", "why it failed");
        check(now - d->newer->accepted_ms >= 0 && now - d->newer->accepted_ms < 5000,
            "one from the future is not older than now");
        check_text(d->newer->failure, "(none)", "no reason");
    }
    keep_end(&t);

    keep_start_load(&t, KEEP_YAML);
    d = t.hook[0].oldest;
    check(d->attempts == 3 && d->tried_ms == 0, "attempts count, but none since the start");
    check_text(d->failure, "status 500", "why it failed last");
    check(t.hook[0].fresh == d && t.hook[0].fresh_count == 2, "both are tried at once");
    check(d->number == 1 && d->newer->number == 2, "they are numbered from 1 on");
    keep_end(&t);
    keep_clear();
}

/* Windows of time are open again after a start, and after rewriting. */
static void
test_keep_windows(void)
{
    static const struct {
        const char *journal;
        bool rate, seen; /* for the task and the execution of IDS: open */
    } rows[] = {
        {"", false, false},
        {"accepted\t@10\t$1:#a\t%J\n", true, true},
        {"accepted\t@10\t$1:#a\t%J\ndelivered\t#a\n", true, true},
        {"accepted\t@299\t$1:#a\t%J\n", true, true},
        {"accepted\t@301\t$1:#a\t%J\n", false, true},
        {"accepted\t@601\t$1:#a\t%J\n", false, false},
        {"accepted\t@-100\t$1:#a\t%J\n", true, true},
        {"waiting\t@10\t$1:#a\t%J\n", false, false},
        {"accepted\t@10\t$3:#a\t%J\n", false, false}, /* of the other kind */
        {"accepted\t@10\t$1:#a\t{\"taskId\":1,\"executionId\":}\n", false, false},
        {"window\tfailure\trate\t@299\t&t\n", true, false},
        {"window\tfailure\trate\t@301\t&t\n", false, false},
        {"window\tfailure\tseen\t@599\t&r\n", false, true},
        {"window\tfailure\tseen\t@601\t&r\n", false, false},
        {"window\taborted\tseen\t@10\t&r\n", false, false},
        {"window\tfailure\tother\t@10\t&r\n", false, false},
        {"window\tfailure\tseen\t@10\t&t\n", false, false},
        {"window\tfailure\tseen\t@10\t&r\nwindow\tfailure\tseen\t@590\t&r\n", false, true},
    };
    struct window_key task = window_key(SLICE(TASK_ID)), run = window_key(SLICE(RUN_ID));

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf text = {0};
        buf_add(&text, "", 0);
        for (const char *p = rows[i].journal; *p; p++)
            if (*p == '&') {
                char hex[33];
                hex_write(*++p == 't' ? task.bytes : run.bytes, 16, hex);
                buf_add_text(&text, hex);
            } else
                buf_add_char(&text, *p);
        write_journal(text.data);
        for (int start = 0; start < 3; start++) {
            struct test_keep t;
            keep_start_load(&t, KEEP_YAML);
            int64_t now = plat_now_ms();
            struct window_table *table = t.windows.table[ALERT_FAILURE];
            check((window_find(&table[WINDOW_RATE], &task, now) != NULL) == rows[i].rate,
                "row %zu, start %d: rate limit", i, start);
            check((window_find(&table[WINDOW_SEEN], &run, now) != NULL) == rows[i].seen,
                "row %zu, start %d: de-duplication", i, start);
            check(table[WINDOW_RATE].count <= 1 && table[WINDOW_SEEN].count <= 1, "once each");
            if (start == 1)
                check_number(keep_rewrite(&t.k), 0, "keep_rewrite");
            keep_end(&t);
        }
        buf_free(&text);
    }
    keep_clear();
}

/* Which webhook is the one of an earlier configuration. */
static void
test_keep_match(void)
{
    static const char yaml[] =
        "Butler:\n  butlerWebhook: {stateDirectory: state}\n  webhookNotification:\n    enable: true\n"
        "    reloadTaskFailure:\n      webhooks:\n"
        "        - {webhookURL: 'http://h/1', httpMethod: POST, description: One}\n"
        "        - {webhookURL: 'http://h/2', httpMethod: POST, description: Twin}\n"
        "        - {webhookURL: 'http://h/3', httpMethod: POST, description: Twin}\n"
        "    reloadTaskAborted:\n      webhooks:\n"
        "        - {webhookURL: 'http://h/1', httpMethod: POST, description: One}\n";
    static const struct {
        int key; /* that of this webhook; -1: another */
        enum alert_kind kind;
        const char *description;
        size_t place, listed;
        int found; /* -1: none */
        bool by_place;
    } rows[] = {
        {0, ALERT_FAILURE, NULL, 7, 9, 0, false},
        {2, ALERT_FAILURE, "One", 0, 3, 2, false}, /* the key says more than the description */
        {3, ALERT_FAILURE, "One", 0, 3, 3, false},
        {-1, ALERT_FAILURE, "One", 2, 3, 0, false}, /* that more than the place */
        {-1, ALERT_FAILURE, "One", 7, 9, 0, false},
        {-1, ALERT_ABORTED, "One", 7, 9, 3, false},
        {-1, ALERT_FAILURE, "one", 7, 9, -1, false},
        {-1, ALERT_FAILURE, "Twin", 7, 9, -1, false}, /* two have it */
        {-1, ALERT_FAILURE, "Twin", 0, 3, 0, true},
        {-1, ALERT_ABORTED, "Twin", 7, 9, -1, false},
        {-1, ALERT_FAILURE, "", 7, 9, -1, false},
        {-1, ALERT_FAILURE, NULL, 1, 3, 1, true},
        {-1, ALERT_FAILURE, "Other", 2, 3, 2, true},
        {-1, ALERT_FAILURE, NULL, 1, 2, -1, false}, /* the list was shorter */
        {-1, ALERT_FAILURE, NULL, 1, 4, -1, false},
        {-1, ALERT_FAILURE, NULL, 3, 3, -1, false},
        {-1, ALERT_ABORTED, NULL, 0, 1, 3, true},
        {-1, ALERT_ABORTED, NULL, 0, 3, -1, false},
        {-1, ALERT_FAILURE, NULL, SIZE_MAX, SIZE_MAX, -1, false},
    };
    struct test_keep t;

    keep_begin(&t, yaml);
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct webhook_config was = {.kind = rows[i].kind,
            .description = rows[i].description,
            .place = rows[i].place,
            .key = KEY1};
        bool by_place = true;
        if (rows[i].key >= 0)
            memcpy(was.key, t.hook[rows[i].key].peer.webhook->key, sizeof was.key);
        struct webhook *w = keep_match(&t.k, &was, rows[i].listed, &by_place);
        check_number(w ? w - t.hook : -1, rows[i].found, "the webhook that is meant");
        check(by_place == rows[i].by_place, "row %zu: by its place only", i);
    }
    keep_end(&t);
    keep_clear();
}

/* Accepts an alert for one webhook, as the dispatcher does. */
static void
keep_accept(struct test_keep *t, size_t i, bool saved)
{
    static unsigned count;
    struct journal *j = &t->journal;
    struct buf json = {0}, targets = {0}, line = {0};
    struct payload *payload = NULL;
    struct delivery *d;
    int64_t at = -1;

    buf_format(&json, "{\"number\":%u,\"text\":\"%.*s\"}", ++count, (int)random_below(300),
        "................................................................................"
        "................................................................................");
    d = send_new(count, plat_now_ms());
    send_make_id(&t->ids, d->id);
    buf_format(&targets, "%s:%s", t->hook[i].peer.webhook->key, d->id);
    journal_add_alert(
        &line, JOURNAL_ACCEPTED, plat_wall_ms(), &targets, (struct slice){json.data, json.len});
    plat_lock(&j->file_lock);
    if (saved)
        at = journal_write_locked(j, (struct slice){line.data, line.len}, random_below(2));
    journal_count(j, 1, at < 0 ? 0 : line.len - 1);
    send_add(
        &t->hook[i], d, &(struct send_source){{json.data, json.len}, at, line.len - 1}, &payload);
    plat_unlock(&j->file_lock);
    payload_free(payload);
    buf_free(&json);
    buf_free(&targets);
    buf_free(&line);
}

/* Something random that the dispatcher, a sender or the journal thread may do. */
static void
keep_do_something(struct test_keep *t)
{
    size_t i = random_below((uint32_t)t->k.webhooks);
    struct webhook *w = &t->hook[i];
    struct delivery *d = w->oldest;
    static const int status[] = {200, 204, 404, 500, 500};
    bool crowded = t->journal.live > 100;

    switch (crowded ? 4 + random_below(4) : random_below(8)) {
    case 0:
    case 1:
    case 2:
        keep_accept(t, i, true);
        break;
    case 3:
        keep_accept(t, i, false);
        break;
    case 4:
    case 5: /* a call is made */
        if (w->fresh || w->heap_count > 0) {
            int64_t wait_ms;
            d = send_take_locked(w, INT64_MAX / 2, &wait_ms);
            if (!d || send_fetch_locked(w, d) != 0) {
                check(false, "what is taken can be read");
                break;
            }
            struct http_result res = made_result(HTTP_ANSWERED, status[random_below(5)], -1);
            send_settle_locked(w, d, &res);
        }
        break;
    case 6:
        if (random_below(2))
            keep_letters(&t->k);
        keep_write(&t->k);
        break;
    case 7: /* memory is scarce */
        for (; d; d = d->newer)
            if (d->payload && !d->in_flight && send_is_saved(w, d) && random_below(2))
                send_release_locked(w, d);
        break;
    }
}

/* What stands in the journal, sorted, by ids. */
static int
compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void
saved_text(const struct test_keep *t, struct buf *out)
{
    const char *id[1000];
    size_t n = 0;

    buf_add(out, "", 0);
    for (size_t i = 0; i < t->k.webhooks; i++)
        for (const struct delivery *d = t->hook[i].oldest; d; d = d->newer)
            if (send_is_saved(&t->hook[i], d) && n < COUNT(id))
                id[n++] = d->id;
    check(n < COUNT(id), "too many wait for this test");
    if (n > 0)
        qsort(id, n, sizeof *id, compare_texts);
    for (size_t i = 0; i < n; i++)
        buf_format(out, "%s\n", id[i]);
}

/*
 * Rewriting in its parts, while alerts come and go between any two of them: each delivery still
 * finds its line, and what waits is there after the next start.
 */
static void
test_keep_rewrite(void)
{
    struct test_keep t;
    struct journal *j = &t.journal;
    struct buf want = {0}, got = {0};

    keep_clear();
    keep_start_load(&t, KEEP_YAML);
    for (int round = 0; round < 40; round++) {
        struct keep_rewrite rw = {.which = 1 - j->now, .below = 0};
        bool broken = round % 7 == 6;
        for (uint32_t n = random_below(60); n > 0; n--)
            keep_do_something(&t);
        check_kept(&t, "before it is rewritten");
        log_forget();

        rw.below = rw.copied = j->end;
        j->file[rw.which] = journal_open_file(j, "journal.new", false, true);
        keep_add_head(&t.k, &rw.lines);
        keep_add_windows(&t.k, &rw.lines);
        check_number(keep_put_lines(j, &rw), 0, "keep_put_lines");
        for (size_t i = 0; i < t.k.webhooks; i++) {
            struct webhook *w = &t.hook[i];
            int more = 1;
            for (w->copying = w->oldest; more > 0;) {
                struct send_copy c = {&rw.lines, rw.which, rw.end, rw.below, false, 0, 0};
                /* as if what was copied before had filled the piece but for a line or two */
                struct delivery *stop = w->copying ? w->copying->newer : NULL, *rest = NULL;
                if (stop) {
                    rest = stop;
                    stop->older->newer = NULL;
                }
                more = send_copy_locked(w, &c);
                if (rest) {
                    rest->older->newer = rest;
                    w->copying = rest;
                    more = 1;
                }
                rw.alerts += c.bytes;
                check(more >= 0 && keep_put_lines(j, &rw) == 0, "copied");
                if (random_below(3) == 0)
                    keep_do_something(&t);
            }
        }
        rw.base = rw.end;
        for (uint32_t n = random_below(20); n > 0; n--)
            keep_do_something(&t);
        check_number(keep_copy_tail(j, &rw, j->end), 0, "keep_copy_tail");
        for (uint32_t n = random_below(10); n > 0; n--)
            keep_do_something(&t);
        if (broken)
            keep_abandon(&t.k, rw.which);
        else
            check_number(keep_switch_locked(&t.k, &rw), 0, "keep_switch_locked");
        buf_free(&rw.lines);
        check_kept(&t, broken ? "abandoned" : "rewritten");
        check(!is_in_state("journal.new") && j->file[1 - j->now] < 0, "the other file is gone");
        if (round % 5 == 4) { /* what is in memory only is written down */
            check_number(keep_save_locked(&t.k, &t.hook[round % 3]), 0, "keep_save_locked");
            check_kept(&t, "saved");
            check(!t.hook[round % 3].unsaved, "none is in memory only");
        }
        if (round % 4 == 3) {
            keep_letters(&t.k);
            keep_write(&t.k);
            saved_text(&t, &want);
            for (size_t i = 0; i < t.k.webhooks; i++)
                check_number((long long)t.hook[i].in_flight, 0, "in flight");
            keep_end(&t);
            keep_start_load(&t, KEEP_YAML);
            check(log_count(" warn: ") + log_count(" error: ") == 0, "nothing is damaged");
            saved_text(&t, &got);
            check_buf(&got, (struct slice){want.data, want.len}, "what waits after the next start");
            buf_free(&want);
        }
    }
    keep_end(&t);
    keep_clear();
}

/*
 * What was in memory only is over after it was copied into the new journal: it must not wait there
 * for ever.
 */
static void
test_keep_rewrite_unsaved(void)
{
    for (int status = 200; status <= 404; status += 204) {
        struct test_keep t;
        struct journal *j = &t.journal;
        int64_t wait_ms;
        keep_clear();
        keep_start_load(&t, KEEP_YAML);
        keep_accept(&t, 0, false);
        keep_accept(&t, 1, false);
        struct keep_rewrite rw = {.which = 1 - j->now, .below = j->end, .copied = j->end};
        j->file[rw.which] = journal_open_file(j, "journal.new", false, true);
        keep_add_head(&t.k, &rw.lines);
        check(keep_put_lines(j, &rw) == 0 && keep_copy_waiting(&t.k, &rw) == 0, "copied");
        struct delivery *d = send_take_locked(&t.hook[0], INT64_MAX / 2, &wait_ms);
        struct http_result res = made_result(HTTP_ANSWERED, status, -1);
        send_settle_locked(&t.hook[0], d, &res);
        rw.base = rw.end;
        check_number(keep_switch_locked(&t.k, &rw), 0, "keep_switch_locked");
        buf_free(&rw.lines);
        check_kept(&t, "rewritten");
        check(j->live == 1 && j->unsaved == 0, "one waits, and is in the journal");
        keep_letters(&t.k);
        keep_write(&t.k);
        keep_end(&t);
        keep_start_load(&t, KEEP_YAML);
        check(!t.hook[0].oldest && t.hook[1].oldest,
            "status %d: what is over waits again after the next start", status);
        keep_end(&t);
    }
    keep_clear();
}

/* What cannot be written, and what cannot be read. */
static void
test_keep_failures(void)
{
    struct test_keep t;
    struct delivery *first, *second;
    struct journal *j = &t.journal;
    int64_t wait_ms;
    int file;

    keep_clear();
    keep_start_load(&t, KEEP_YAML);
    keep_accept(&t, 0, false);
    keep_accept(&t, 0, false);
    first = send_take_locked(&t.hook[0], INT64_MAX / 2, &wait_ms);
    second = first->newer;
    file = j->file[j->now];
    j->file[j->now] = open("/dev/null", O_RDONLY | O_CLOEXEC); /* every write fails */
    check(keep_save_locked(&t.k, &t.hook[0]) < 0 && j->failed, "they cannot be written");
    check(!send_is_saved(&t.hook[0], first) && !send_is_saved(&t.hook[0], second),
        "they are still in memory only");
    check(t.hook[0].unsaved == first, "the oldest of them is known, in flight or not");
    plat_file_close(j->file[j->now]);
    j->file[j->now] = file;
    j->failed = j->uncut = false;
    first->in_flight = false;
    send_put_back_locked(&t.hook[0], first);
    check_number(keep_save_locked(&t.k, &t.hook[0]), 0, "now they can");
    check(send_is_saved(&t.hook[0], first) && send_is_saved(&t.hook[0], second), "and are");
    check_number((long long)j->unsaved, 0, "in memory only");
    check_kept(&t, "saved");

    log_forget(); /* a line that was damaged after it was written */
    send_release_locked(&t.hook[0], first);
    send_release_locked(&t.hook[0], second);
    first->len[j->now]--;
    j->live_bytes--;
    send_detach_locked(&t.hook[0], first);
    check(send_fetch_locked(&t.hook[0], first) != 0 && errno == EBADMSG, "it is damaged");
    send_miss_locked(&t.hook[0], first);
    check_number(log_count("error: alert "), 1, "one is lost, which is told");
    check_number((long long)t.counters.lost, 1, "lost");
    second->len[j->now]--;
    j->live_bytes--;
    send_detach_locked(&t.hook[0], second);
    send_bury_locked(&t.hook[0], second, "because", "");
    check_number(log_count("cannot be read from the journal"), 2, "the other is given up");
    check(j->live == 0 && j->live_bytes == 0, "none waits: %zu, %lld bytes", j->live,
        (long long)j->live_bytes);
    keep_end(&t);
    keep_clear();
}

/* The file of dead letters: a torn line, and when it is full. */
static void
test_keep_letter_file(void)
{
    struct test_keep t;
    const struct slice line = S("{\"b\":2}\n");
    struct buf b;

    keep_clear();
    keep_begin(&t, KEEP_YAML);
    write_state("dead-letters.ndjson", SLICE("{\"a\":1}\n{\"torn"));
    check_number(keep_append_letters(&t.journal, line), 0, "keep_append_letters");
    b = read_state("dead-letters.ndjson");
    check_buf(&b, SLICE("{\"a\":1}\n{\"torn\n{\"b\":2}\n"), "behind a torn line");
    t.journal.letters_max = 30;
    check_number(keep_append_letters(&t.journal, line), 0, "the file is full");
    b = read_state("dead-letters.ndjson");
    check_buf(&b, SLICE("{\"b\":2}\n"), "a new one");
    b = read_state("dead-letters.1.ndjson");
    check_buf(&b, SLICE("{\"a\":1}\n{\"torn\n{\"b\":2}\n"), "the old one");
    check_number(log_count("warn: dead letters: the file is full and is now dead-letters.1.ndjson"),
        1, "is told");
    keep_end(&t);
    keep_clear();
}

/* Dead letters are sent again. */
static void
test_keep_replay(void)
{
    struct test_keep t;
    struct keep_replay rp;
    struct buf letters, b, line = {0};
    struct delivery *d;
    char id[40], json[600];
    int64_t wait_ms;

    write_journal("waiting\t@99\t$1:#a\t%J\nwaiting\t@99\t$2:#b\t%J\nwaiting\t@99\t$4:#c\t%J\n"
                  "waiting\t@99\t$1:#d\t%J\n");
    keep_start_load(&t, KEEP_YAML);
    for (int i = 0; i < 2; i++) { /* a and b are refused; c's webhook is gone */
        d = send_take_locked(&t.hook[i], INT64_MAX / 2, &wait_ms);
        struct http_result res = made_result(HTTP_ANSWERED, 404, -1);
        err_set(&res.hint, "check webhookURL");
        send_settle_locked(&t.hook[i], d, &res);
    }
    check_kept(&t, "buried");
    keep_letters(&t.k);
    keep_write(&t.k);
    letters = read_state("dead-letters.ndjson");
    check_number(count_in_state("dead-letters.ndjson", "\n"), 3, "dead letters");
    for (char *at = letters.data; *at; at += strcspn(at, "\n") + 1) { /* by another reader */
        static const char *const keys[] = {"webhookId", "webhookKey", "webhook", "description",
            "place", "count", "url", "reason", "attempts", "acceptedAt", "deadAt", "alert"};
        cJSON *letter = cJSON_ParseWithLength(at, strcspn(at, "\n"));
        check_number(cJSON_GetArraySize(letter), COUNT(keys), "members of a letter");
        for (int i = 0; i < (int)COUNT(keys) && cJSON_GetArrayItem(letter, i); i++)
            check_text(cJSON_GetArrayItem(letter, i)->string, keys[i], "their order");
        cJSON_Delete(letter);
    }
    check(strstr(letters.data,
              "\"description\":\"Second\",\"place\":2,\"count\":2,\"url\":\"http://h/2\","
              "\"reason\":\"because; check webhookURL\",\"attempts\":1,"),
        "what a letter says: %s", letters.data);

    /* besides: one that waits already, damaged ones, one for a place that is still there */
    b = letters;
    letters = (struct buf){0};
    snprintf(json, sizeof json, "%.*s", (int)strcspn(strstr(b.data, "\"alert\":"), "\n") - 1,
        strstr(b.data, "\"alert\":"));
    buf_add(&letters, b.data, b.len);
    buf_format(&letters, "{\"webhookId\":\"" MSG("d") "\",\"webhookKey\":\"%s\",%s}\n",
        t.hook[0].peer.webhook->key, json);
    buf_format(&letters, "{\"webhookId\":\"" MSG("e") "\",\"place\":1,\"count\":2,%s}\n", json);
    buf_format(&letters, "{\"webhookId\":\"msg_,\",\"place\":1,\"count\":2,%s}\n", json);
    buf_format(&letters, "{\"webhookId\":\"" MSG("f") "\",\"place\":1,\"count\":3,%s}\n", json);
    buf_add_text(&letters, "\n{\"damaged\n{\"webhookId\":\"" MSG("g") "\"}");
    write_state("dead-letters.ndjson", (struct slice){letters.data, letters.len});
    write_state("dead-letters.1.ndjson", SLICE("{\"old\"}\n"));
    buf_free(&b);
    buf_free(&letters);

    log_forget();
    t.hook[0].unsaved = NULL;
    keep_replay(&t.k, &rp);
    check_number((long long)rp.again, 4, "sent again: a, b, e, and d, which waits already");
    check_number((long long)rp.stayed, 6, "stay");
    check_number(log_count("info: dead letters: 4 sent again, 6 stay"), 1, "is told");
    check_waiting(&t, "dae|b|", "what waits after replaying");
    check_kept(&t, "replayed");
    d = t.hook[1].oldest;
    check(d->attempts == 0 && plat_now_ms() - d->accepted_ms < 5000, "as if it were new");
    check(d->number != t.hook[0].newest->number, "each has its number");
    b = read_state("dead-letters.ndjson");
    for (const char *const *stays = (const char *const[]){"{\"old\"}\n", MSG("c"), "msg_,",
             MSG("f"), "\n{\"damaged\n", MSG("g"), NULL};
         *stays; stays++)
        check(strstr(b.data, *stays) != NULL, "%s stays", show(slice_of(*stays)));
    check(!strstr(b.data, MSG("a")) && !strstr(b.data, MSG("d")) && !strstr(b.data, MSG("e")),
        "the others do not");
    buf_add(&line, b.data, b.len);
    buf_free(&b);
    keep_replay(&t.k, &rp);
    check(rp.again == 0 && rp.stayed == 6, "again: nothing more can be sent");
    b = read_state("dead-letters.ndjson");
    check_buf(&b, (struct slice){line.data, line.len}, "and the others stay as they are");
    check(!is_in_state("dead-letters.1.ndjson") && !is_in_state("dead-letters.new"),
        "no other file is left");
    buf_free(&line);
    memcpy(id, t.hook[0].newest->id, sizeof id);
    keep_end(&t);

    keep_start_load(&t, KEEP_YAML);
    check_waiting(&t, "dae|b|", "what waits after the next start");
    check_text(t.hook[0].newest->id, id, "with the same webhook-id");
    write_state("dead-letters.ndjson", SLICE(""));
    keep_replay(&t.k, &rp);
    check(rp.again == 0 && rp.stayed == 0, "no letters");
    keep_replay(&t.k, &rp);
    check(rp.again == 0 && rp.stayed == 0 && !rp.unread, "no file of letters");

    log_forget(); /* alerts that wait are not dropped for dead letters */
    buf_format(&letters, "{\"webhookId\":\"" MSG("f") "\",\"place\":1,\"count\":2,%s}\n", json);
    write_state("dead-letters.ndjson", (struct slice){letters.data, letters.len});
    buf_free(&letters);
    t.journal.live_max = t.journal.live_bytes + 100;
    keep_replay(&t.k, &rp);
    check(rp.again == 0 && rp.stayed == 1, "there is no room for it");
    check_number(log_count("error: dead letters: not all could be sent again"), 1, "is told");
    t.journal.live_max += 1000;
    keep_replay(&t.k, &rp);
    check(rp.again == 1 && rp.stayed == 0, "now there is");
    keep_end(&t);
    keep_clear();
}

static void
test_upkeep(void)
{
    test_keep_match();
    test_keep_load();
    test_keep_times();
    test_keep_windows();
    test_keep_rewrite();
    test_keep_rewrite_unsaved();
    test_keep_failures();
    test_keep_letter_file();
    test_keep_replay();
    log_begin(LOG_ERROR);
}

/* ==== 13. Listener ========================================================== */

static void
test_tellers(void)
{
    struct teller t = {0};
    uint8_t a[16], mapped[16], b[16];
    char text[32];
    int told = 0;

    address_bytes("10.0.0.1", a);
    address_bytes("::ffff:10.0.0.1", mapped);
    address_bytes("10.0.0.2", b);
    check(listen_may_tell(&t, a, 1000), "the first time");
    check(!listen_may_tell(&t, a, 1000), "not again");
    check(!listen_may_tell(&t, mapped, 1000), "nor from the same in another form");
    check(listen_may_tell(&t, b, 1000), "another address has its own minute");
    check(!listen_may_tell(&t, a, 1000 + TELL_MS - 1), "not one ms before the minute is over");
    check(listen_may_tell(&t, a, 1000 + TELL_MS), "when it is over");
    check(!listen_may_tell(&t, a, 1000 + 2 * TELL_MS - 1), "a new minute");
    for (int i = 0; i < 100000; i++) { /* a flood from everywhere */
        snprintf(text, sizeof text, "11.%d.%d.%d", i >> 16, i >> 8 & 255, i & 255);
        address_bytes(text, b);
        told += listen_may_tell(&t, b, 500000);
    }
    check(told <= SENDERS_TOLD_MAX && told > 0, "100,000 addresses in a minute: %d are told", told);
    check(t.count <= SENDERS_TOLD_MAX, "places are bounded");
    check(listen_may_tell(&t, a, 500000 + TELL_MS), "a minute later there is room");
}

static void
test_sources(void)
{
    static const struct {
        const char *source, *address;
        bool allowed;
    } rows[] = {
        {"10.1.2.3", "10.1.2.3", true},
        {"10.1.2.3", "10.1.2.4", false},
        {"10.1.2.3", "::ffff:10.1.2.3", true},
        {"::ffff:10.1.2.3", "10.1.2.3", true},
        {"10.1.2.3/32", "10.1.2.3", true},
        {"10.1.2.3/32", "10.1.2.2", false},
        {"10.1.2.2/31", "10.1.2.3", true},
        {"10.1.2.2/31", "10.1.2.4", false},
        {"10.1.0.0/16", "10.1.255.255", true},
        {"10.1.0.0/16", "10.2.0.0", false},
        {"10.1.2.3/16", "10.1.9.9", true}, /* bits behind the range do not count */
        {"10.0.0.0/8", "11.0.0.0", false},
        {"128.0.0.0/1", "255.1.2.3", true},
        {"128.0.0.0/1", "127.255.255.255", false},
        {"172.16.0.0/12", "172.31.255.255", true},
        {"172.16.0.0/12", "172.32.0.0", false},
        {"0.0.0.0/0", "1.2.3.4", true},
        {"0.0.0.0/0", "2001:db8::1", false},
        {"::/0", "2001:db8::1", true},
        {"::/0", "1.2.3.4", true},
        {"2001:db8::/32", "2001:db8:ffff::1", true},
        {"2001:db8::/32", "2001:db9::", false},
        {"2001:db8::/33", "2001:db8:8000::", false},
        {"2001:db8::/127", "2001:db8::1", true},
        {"2001:db8::/127", "2001:db8::2", false},
        {"fe80::/10", "febf::1", true},
        {"fe80::/10", "fec0::1", false},
        {"::1", "::1", true},
        {"::1", "127.0.0.1", false},
    };
    static const struct {
        const char *text;
        int result; /* of cfg_read_source; 1: a name */
    } forms[] = {{"10.0.0.0/33", -1}, {"10.0.0.0/-1", -1}, {"10.0.0.0/", -1}, {"10.0.0.0/8/8", -1},
        {"10.0.0.0/a", -1}, {"10.0.0", -1}, {"10", -1}, {"10.0.0.256", -1}, {"10.0.0.1.2", -1},
        {"", -1}, {"/8", -1}, {"::/129", -1}, {"name/8", -1}, {"a b", -1}, {"*", -1},
        {"*.example", -1}, {"10.0.0.1:80", -1}, {"[::1]", -1}, {"qs1", 1}, {"qs-1.example.com", 1},
        {"localhost", 1}, {"b\xc3\xbc.example", 1}, {"10.0.0.0/0", 0}};
    struct source source;

    for (size_t i = 0; i < COUNT(forms); i++) {
        int result = cfg_read_source(forms[i].text, &source);
        check(result == 0 ? (source.name != NULL) == forms[i].result && forms[i].result >= 0
                          : forms[i].result == -1,
            "source \"%s\"", forms[i].text);
    }
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct config c = {.source_validation = true, .source = &source, .sources = 1};
        struct listener l = {.config = &c, .source = &source};
        uint8_t from[16];
        address_bytes(rows[i].address, from);
        plat_mutex_init(&l.lock);
        check_number(cfg_read_source(rows[i].source, &source), 0, rows[i].source);
        check(listen_is_allowed(&l, from) == rows[i].allowed, "%s from %s", rows[i].address,
            rows[i].source);
        c.source_validation = false;
        check(listen_is_allowed(&l, from), "without validation everybody may send");
        c.source_validation = true;
        c.sources = 0;
        check(listen_is_allowed(&l, from), "an empty list is no check");
        plat_mutex_done(&l.lock);
    }
}

/* A listener without threads and socket, with one webhook for each kind. */
struct test_listener {
    struct test_peer peer;
    struct counters counters;
    struct listener l;
    struct windows windows;
    struct journal journal;
    struct webhook hook[3];
};

static void
listener_begin(struct test_listener *t, const char *udp)
{
    struct buf b = {0};

    *t = (struct test_listener){0};
    log_begin(LOG_VERBOSE);
    buf_format(&b,
        HOOK
        "        - {webhookURL: 'http://h/2', httpMethod: PUT}\n    reloadTaskAborted:\n      rateLimit: 60\n"
        "      webhooks: [{webhookURL: 'http://h/3', httpMethod: GET}]\n  udpServerConfig: {enable: true%s}\n",
        udp);
    load(&t->peer.reader, &t->peer.config, (struct slice){b.data, b.len});
    check_problems(&t->peer.reader, NULL, 0, udp);
    buf_free(&b);
    journal_init(&t->journal, &t->peer.config);
    windows_init(&t->windows, &t->peer.config);
    for (int i = 0; i < 3; i++) {
        send_init(&t->hook[i], &t->peer.config,
            i < 2 ? &t->peer.config.webhook[ALERT_FAILURE][i]
                  : &t->peer.config.webhook[ALERT_ABORTED][0],
            &t->counters, &t->journal);
        t->hook[i].idle = 1; /* so that no sender is started */
    }
    t->l = (struct listener){.config = &t->peer.config, .sock = -1};
    t->l.webhook = t->hook;
    t->l.webhooks = 3;
    t->l.windows = &t->windows;
    t->l.journal = &t->journal;
    t->l.counters = &t->counters;
    t->l.source = t->peer.config.source;
    t->l.last = &t->l.first;
    t->l.held_last = &t->l.held;
    plat_mutex_init(&t->l.lock);
    plat_cond_init(&t->l.wake);
}

static void
listener_done(struct test_listener *t)
{
    for (int i = 0; i < 3; i++) {
        hook_forget_all(&t->hook[i]);
        send_done(&t->hook[i]);
    }
    windows_done(&t->windows);
    journal_done(&t->journal);
    buf_free(&t->l.group.lines);
    buf_free(&t->l.group.told);
    plat_cond_done(&t->l.wake);
    plat_mutex_done(&t->l.lock);
    cfg_done(&t->peer.config);
}

static void
listener_gets(struct test_listener *t, const char *from, struct slice datagram, int64_t now_ms)
{
    struct inbox_item *item = x_calloc(1, sizeof *item + datagram.len);

    address_bytes(from, item->from);
    item->len = datagram.len;
    memcpy(item->data, datagram.data, datagram.len);
    listen_handle(&t->l, item, now_ms);
    listen_commit(&t->l);
    free(item);
}

/* The same with a failed event of a task and an execution. */
static void
listener_gets_event(struct test_listener *t, const char *id, int task, int run, int64_t now_ms)
{
    char text[400];

    snprintf(text, sizeof text,
        "%s;QS1;T;A;u;%08d-1680-44ef-8dc2-e2bfb180af87;" APP_ID ";" WHEN ";INFO;run %d;M", id, task,
        run);
    listener_gets(t, "10.0.0.1", slice_of(text), now_ms);
}

static void
test_dispatch(void)
{
    struct test_listener t;

    listener_begin(&t, "");
    listener_gets(&t, "10.0.0.1", SLICE(FAILED ";QS1;T\n;A;u;" IDS ";M"), 1000);
    check(t.counters.accepted == 1 && t.hook[0].fresh_count == 1 && t.hook[1].fresh_count == 1 &&
            t.hook[2].fresh_count == 0,
        "a failure goes to each webhook for failures");
    check_number(log_count("info: alert 1 accepted: reload failed, task \"T\\x0a\" (" TASK_ID
                           "), app \"A\", execution " RUN_ID ", for 2 webhooks"),
        1, "is told");
    check(t.hook[0].fresh->payload == t.hook[1].fresh->payload, "they share it");
    check(strcmp(t.hook[0].fresh->id, t.hook[1].fresh->id) != 0, "but not the webhook-id");
    listener_gets(&t, "10.0.0.1", SLICE(ABORTED ";QS1;T;A;u;" IDS ";M"), 1000);
    check(t.counters.accepted == 2 && t.hook[2].fresh_count == 1,
        "an abort of the same execution is another kind");
    check_number(log_count("info: alert 2 accepted: reload aborted, task \"T\""), 1, "is told");
    check_number(log_count(", for 1 webhook"), 1, "one webhook");
    listener_gets(&t, "10.0.0.1", SLICE("/scheduler-reload-success/;QS1;T;A;u;" IDS ";M"), 1000);
    check_number(log_count("verbose: ignored: /scheduler-reload-success/"), 1, "a success");
    listener_gets(&t, "10.0.0.1", SLICE("/x\x1b/;QS1"), 1000);
    listener_gets(&t, "10.0.0.1", SLICE("/y/"), 1001);
    listener_gets(&t, "10.0.0.2", SLICE("/z/"), 1002);
    check_number(
        log_count("warn: unknown message id \"/x\\x1b/\" from 10.0.0.1"), 1, "an unknown id");
    check_number(log_count("unknown message id"), 2, "once a minute for each sender");
    listener_gets(&t, "10.0.0.1", SLICE(FAILED ";a\nb"), 1000);
    check_number(log_count("warn: malformed datagram from 10.0.0.1: no taskId"), 1, "malformed");
    check_number(log_count(": \"" FAILED ";a\\x0ab\""), 1, "with its text");
    check(t.counters.accepted == 2 && t.counters.ignored == 1 && t.counters.unknown == 3 &&
            t.counters.malformed == 1 && t.counters.refused == 0,
        "what became of all");
    listener_done(&t);

    listener_begin(&t, ", maxMessageSize: 30");
    listener_gets(&t, "10.0.0.1", SLICE("/scheduler-reload-success/;123"), 1000);
    check_number(log_count("verbose: ignored"), 1, "a datagram of the largest size");
    listener_gets(&t, "10.0.0.1", SLICE("/scheduler-reload-success/;1234"), 1000);
    check_number(
        log_count(
            "error: datagram of 31 bytes from 10.0.0.1 dropped: larger than maxMessageSize (30)"),
        1, "one byte more");
    listener_done(&t);

    listener_begin(&t, ", enableSourceValidation: true, allowedSources: [10.0.0.0/24]");
    listener_gets(&t, "10.0.0.1", SLICE("/scheduler-reload-success/"), 1000);
    listener_gets(&t, "10.0.1.1", SLICE("/scheduler-reload-success/"), 1000);
    listener_gets(&t, "10.0.1.1", SLICE("/scheduler-reload-success/"), 1000);
    check_number(log_count("verbose: ignored"), 1, "who may send");
    check_number(log_count("warn: datagram from 10.0.1.1 ignored: not in allowedSources"), 1,
        "and who may not, told once");
    check_number((long long)t.counters.refused, 2, "but counted");
    listener_done(&t);
}

static void
test_held_back(void)
{
    static const struct {
        const char *id;
        int task, run;
        int64_t now_ms;
        const char *what; /* accepted, duplicate, limited */
    } rows[] = {
        {FAILED, 1, 1, 0, "accepted"},
        {FAILED, 1, 1, 0, "duplicate"},
        {ABORTED, 1, 1, 0, "accepted"},
        {ABORTED, 1, 6, 59999, "limited"}, /* 60 s for aborted ones */
        {ABORTED, 1, 7, 60000, "accepted"},
        {FAILED, 1, 2, 299999, "limited"},
        {FAILED, 2, 3, 299999, "accepted"},
        {FAILED, 1, 1, 299999, "duplicate"},
        {FAILED, 1, 4, 300000, "accepted"}, /* suppressed ones did not extend the window */
        {FAILED, 1, 5, 599999, "limited"},
        {FAILED, 1, 1, 599999, "duplicate"}, /* ten minutes since the first */
        {FAILED, 3, 1, 599999, "duplicate"}, /* by execution alone */
        {FAILED, 1, 1, 600000, "accepted"},
    };
    struct test_listener t;

    listener_begin(&t, "");
    for (size_t i = 0; i < COUNT(rows); i++) {
        log_forget();
        listener_gets_event(&t, rows[i].id, rows[i].task, rows[i].run, rows[i].now_ms);
        const char *got = log_count(" accepted: ")             ? "accepted"
            : log_count("info: duplicate ignored: ")           ? "duplicate"
            : log_count("info: held back by the rate limit: ") ? "limited"
                                                               : "nothing";
        check_number(log_count(""), 1, "one line for each");
        check(strcmp(got, rows[i].what) == 0, "row %zu, task %d, run %d at %lld: %s", i,
            rows[i].task, rows[i].run, (long long)rows[i].now_ms, got);
    }
    log_forget();
    listener_gets_event(&t, FAILED, 1, 100, 700000);
    listener_gets_event(&t, FAILED, 1, 101, 700001);
    check_number(
        log_count("task \"T\" (00000001-1680-44ef-8dc2-e2bfb180af87), 1 since the last alert"), 1,
        "counted");
    check_number(log_count(", 2 since the last alert"), 1, "and again");
    log_forget();
    for (int i = 0; i < 3; i++)
        listener_gets(&t, "10.0.0.1", SLICE(FAILED ";QS1;T;A;u;;" APP_ID ";;INFO;;M"), 0);
    check_number(
        log_count(" accepted: "), 3, "without taskId and executionId nothing is held back");
    listener_done(&t);

    listener_begin(&t, ", deduplication: {enable: false}");
    listener_gets(&t, "10.0.0.1", SLICE(FAILED ";QS1;T;A;u;" IDS ";M"), 0);
    listener_gets(&t, "10.0.0.1", SLICE(FAILED ";QS1;T;A;u;" IDS ";M"), 0);
    check_number(
        log_count("held back by the rate limit"), 1, "without de-duplication the rate limit holds");
    listener_done(&t);
}

static void
test_datagram_rate(void)
{
    struct test_listener t;

    listener_begin(&t, ", rateLimit: {enable: true, maxMessagesPerMinute: 3}");
    for (int i = 0; i < 10; i++)
        listener_gets(&t, "10.0.0.1", SLICE("/scheduler-reload-success/"), 100000 + i);
    check_number(log_count("verbose: ignored"), 3, "three in a minute");
    check_number(log_count("error: udpServerConfig.rateLimit: over 3 datagrams in a minute"), 1,
        "told once");
    listen_tell_rate(&t.l, 159999);
    check_number(log_count("dropped in the last minute"), 0, "the minute is not over");
    listen_tell_rate(&t.l, 160000);
    check_number(
        log_count("error: udpServerConfig.rateLimit: 7 datagrams dropped in the last minute"), 1,
        "it is");
    listen_tell_rate(&t.l, 170000);
    check_number(log_count("dropped in the last minute"), 1, "told once");
    listener_gets(&t, "10.0.0.1", SLICE("/scheduler-reload-success/"), 159999);
    check_number(log_count("verbose: ignored"), 3, "still the same minute");
    listener_gets(&t, "10.0.0.1", SLICE("/scheduler-reload-success/"), 160000);
    check_number(log_count("verbose: ignored"), 4, "a new one");
    t.l.minute_ms = plat_now_ms() - 60000;
    t.l.minute_dropped = 5;
    t.l.ready = true;
    listen_dispatch(&t.l);
    check_number(log_count("rateLimit: 5 datagrams dropped in the last minute"), 1,
        "told also if nothing more comes");
    listener_done(&t);
    listener_begin(&t, "");
    for (int i = 0; i < 5000; i++)
        listener_gets(&t, "10.0.0.1", SLICE("/scheduler-reload-success/"), 0);
    check_number(log_count("verbose: ignored"), 5000, "no limit unless asked for");
    listener_done(&t);
}

/* All that can be dispatched. */
static struct inbox_item *
take_all(struct listener *l)
{
    struct inbox_item *items;

    plat_lock(&l->lock);
    items = listen_take_locked(l);
    plat_unlock(&l->lock);
    return items;
}

/* The inbox: order, and its bound. */
static void
test_inbox(void)
{
    struct test_listener t;
    struct plat_batch *b = plat_batch_new();
    struct inbox_item *items;
    int n = 0;

    listener_begin(&t, "");
    for (int i = 0; i < RECV_BATCH; i++) {
        b->from[i] = address("10.0.0.1", 1);
        b->len[i] = (size_t)snprintf(b->data[i], DATAGRAM_ROOM, "datagram %d", i);
    }
    listen_store(&t.l, b, 3);
    listen_store(&t.l, b, 0);
    listen_store(&t.l, b, RECV_BATCH);
    items = take_all(&t.l);
    for (struct inbox_item *next; items; items = next, n++) {
        char want[32];
        snprintf(want, sizeof want, "datagram %d", n < 3 ? n : n - 3);
        check_bytes((struct slice){items->data, items->len}, slice_of(want), "in order");
        next = items->next;
        listen_free_item(&t.l, items);
    }
    check_number(n, 3 + RECV_BATCH, "all are there");
    check(t.l.bytes == 0 && !t.l.first, "the inbox is empty");

    t.l.bytes = INBOX_MAX_BYTES - 3 * listen_item_size(11) - 1;
    listen_store(&t.l, b, RECV_BATCH);
    check(t.l.bytes <= INBOX_MAX_BYTES && t.l.overflowed == RECV_BATCH - 3,
        "full: %llu did not fit", (unsigned long long)t.l.overflowed);
    items = take_all(&t.l);
    for (n = 0; items; n++) {
        struct inbox_item *next = items->next;
        listen_free_item(&t.l, items);
        items = next;
    }
    check_number(n, 3, "what fitted is there");
    t.l.drops_ms = plat_now_ms();
    listen_tell_drops(&t.l, false);
    check_number(log_count("the inbox was full"), 0, "told once a second");
    listen_tell_drops(&t.l, true);
    listen_tell_drops(&t.l, true);
    check_number(log_count("error: 29 datagrams dropped: the inbox was full"), 1, "or at the end");
    check_number((long long)t.counters.dropped, 29, "the others are counted");
    t.l.closed = true;
    check(!take_all(&t.l), "closed and empty");
    plat_batch_free(b);
    listener_done(&t);
}

/* Until names were looked up, datagrams that only a name may allow wait. */
static void
test_hold(void)
{
    struct test_listener t;
    struct inbox_item *items[3], *taken;

    listener_begin(
        &t, ", enableSourceValidation: true, allowedSources: [10.0.0.0/24, qs1.example]");
    t.l.has_names = true;
    for (int i = 0; i < 3; i++) {
        items[i] = x_calloc(1, sizeof **items + 1);
        address_bytes(i == 0 ? "10.0.0.1" : "10.9.9.9", items[i]->from);
        items[i]->len = 1;
    }
    check(!listen_hold(&t.l, items[0]), "an address that is allowed does not wait");
    check(listen_hold(&t.l, items[1]) && listen_hold(&t.l, items[2]), "others do");
    t.l.looked_up = true;
    taken = take_all(&t.l);
    check(taken == items[1] && taken->next == items[2] && !items[2]->next,
        "then they come, in order");
    check(!t.l.held && !t.l.first, "and none is left");
    check(!listen_hold(&t.l, items[1]), "from then on none waits");
    t.l.looked_up = false;
    t.l.closed = true;
    check(!listen_hold(&t.l, items[1]), "nor when no more can come");
    t.l.closed = false;
    t.l.has_names = false;
    check(!listen_hold(&t.l, items[1]), "nor without names");
    for (int i = 0; i < 3; i++)
        free(items[i]);
    listener_done(&t);
}

static void
test_listener(void)
{
    test_tellers();
    test_sources();
    test_dispatch();
    test_held_back();
    test_datagram_rate();
    test_inbox();
    test_hold();
    log_begin(LOG_ERROR);
}

/* ==== 14. Program and 15. Command line ====================================== */

/* Runs main in a process of its own. Gives its exit code (-1: it crashed), and what it wrote. */
static int
run_main(const char *const *args, struct buf *out, struct buf *err)
{
    char *argv[5] = {"butler_webhook", NULL}, out_path[300], err_path[300];
    int argc = 1, status = 0;
    pid_t child;

    while (argc < 4 && args[argc - 1]) {
        argv[argc] = x_strdup(args[argc - 1]);
        argc++;
    }
    snprintf(out_path, sizeof out_path, "%s/out", folder);
    snprintf(err_path, sizeof err_path, "%s/err", folder);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        if (!freopen(out_path, "w", stdout) || !freopen(err_path, "w", stderr))
            _exit(99);
        status = butler_webhook_main(argc, argv);
        fflush(stdout);
        fflush(stderr);
        _exit(status);
    }
    waitpid(child, &status, 0);
    for (int i = 1; i < argc; i++)
        free(argv[i]);
    for (int i = 0; i < 2; i++) {
        char *text;
        size_t len;
        if (plat_read_file(i ? err_path : out_path, 1 << 20, &text, &len) == 0) {
            buf_add(i ? err : out, text, len);
            free(text);
        }
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void
test_commands(void)
{
    static const char usage[] = "butler_webhook --check";
    /* GOOD, BAD, WARN and OFF stand for files; NULL: nothing at all is written there */
    static const struct {
        const char *args[4];
        int code;
        const char *out, *err;
    } rows[] = {
        {{NULL}, 2, NULL, usage},
        {{"--version"}, 0, "butler_webhook " VERSION "\n", NULL},
        {{"--help"}, 0, usage, NULL},
        {{"-h"}, 0, usage, NULL},
        {{"--licenses"}, 0, "Mbed TLS", NULL},
        {{"--nonsense"}, 2, NULL, "--nonsense"},
        {{"--pending"}, 2, NULL, usage},
        {{"--pending", "GOOD"}, 0, "0 waiting\n", NULL},
        {{"--pending", "--json", "GOOD"}, 0, "{\"waiting\":[],\n\"dead\":[]}\n", NULL},
        {{"--pending", "/nonexistent"}, 2, NULL, "/nonexistent:1:1: error: "},
        {{"--replay"}, 2, NULL, usage},
        {{"--json", "GOOD"}, 2, NULL, "--json"},
        {{"--check", "--json", "GOOD"}, 2, NULL, usage},
        {{"--version", "GOOD"}, 2, NULL, usage},
        {{"--check"}, 2, NULL, usage},
        {{"--check", "GOOD", "GOOD"}, 2, NULL, usage},
        {{"GOOD", "GOOD"}, 2, NULL, usage},
        {{"GOOD", "--check"}, 2, NULL, usage},
        {{"--check", "GOOD"}, 0, " is valid: 0 errors, 0 warnings\n", NULL},
        {{"--check", "WARN"}, 0, " is valid: 0 errors, 1 warning\n", "WARN:9:33: warning: "},
        {{"--check", "WARN"}, 0, "NOT CHECKED", "warning"},
        {{"--check", "BAD"}, 2, ": 2 errors, 0 warnings\n", "BAD:6:24: error: "},
        {{"--check", "TWICE"}, 2, ": 1 error, 0 warnings\n", "TWICE:9:5: error: the key "},
        {{"--check", "OFF"}, 0, "disabled by webhookNotification.enable: false",
            "OFF:6:23: warning: "},
        {{"--check", "/nonexistent"}, 2, ": 1 error, 0 warnings\n", "/nonexistent:1:1: error: "},
        {{"BAD"}, 2, NULL, "BAD:6:24: error: "},
        {{"/nonexistent"}, 2, NULL, "/nonexistent:1:1: error: "},
        {{"OFF"}, 0, "nothing to do", NULL},
        {{"--test", "BAD"}, 2, NULL, "BAD:6:24: error: "},
        {{"--test", "OFF"}, 2, NULL, "OFF:6:23: error: "},
        {{"--test", "GOOD"}, 1, "FAILED", NULL},
        {{"--test", "/nonexistent"}, 2, NULL, "/nonexistent:1:1: error: "},
    };
    char here[300];

    write_file("GOOD", SLICE(HOOK));
    write_file("WARN", SLICE(TLS_HOOK "            rejectUnauthorized: false\n"));
    write_file("BAD", SLICE(HOOKS "        - {webhookURL: x, httpMethod: NO}\n"));
    write_file("OFF", SLICE(OFF_HOOK));
    write_file("TWICE",
        SLICE(HOOK
            "  udpServerConfig: {enable: true, allowedSources: [10.0.0.1, 10.0.0.2, a, b, c],\n"
            "    allowedSources: [10.0.0.1]}\n"));
    check(getcwd(here, sizeof here) && chdir(folder) == 0, "the folder for tests");
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf out = {0}, err = {0}, what = {0};
        buf_add_text(&what, "butler_webhook");
        for (int k = 0; k < 4 && rows[i].args[k]; k++)
            buf_format(&what, " %s", rows[i].args[k]);
        int code = run_main(rows[i].args, &out, &err);
        buf_add(&out, "", 0);
        buf_add(&err, "", 0);
        check(code == rows[i].code, "%s: exit code %d, wanted %d", what.data, code, rows[i].code);
        check(rows[i].out ? strstr(out.data, rows[i].out) != NULL : out.len == 0,
            "%s prints \"%s\"", what.data, show((struct slice){out.data, out.len}));
        check(rows[i].err ? strstr(err.data, rows[i].err) != NULL : err.len == 0,
            "%s prints on stderr \"%s\"", what.data, show((struct slice){err.data, err.len}));
        buf_free(&out);
        buf_free(&err);
        buf_free(&what);
    }
    check(chdir(here) == 0, "back");
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
        {"2. Platform", test_platform},
        {"3. Base", test_utf8},
        {"3. Base", test_base},
        {"4. Log", test_log},
        {"5. Alert", test_alert},
        {"6. URL", test_url},
        {"7. Configuration", test_config},
        {"8. Windows of time", test_windows},
        {"9. Journal", test_journal},
        {"10. HTTP client", test_http},
        {"11. Delivery", test_delivery},
        {"12. Upkeep", test_upkeep},
        {"13. Listener", test_listener},
        {"14. Program and 15. Command line", test_commands},
    };

    for (size_t i = 0; i < COUNT(PROXY_VARIABLES); i++)
        unsetenv(PROXY_VARIABLES[i]);
    snprintf(folder, sizeof folder, "/tmp/butler_webhook-unit.%d", (int)getpid());
    if (!check(mkdir(folder, 0700) == 0, "%s is new", folder))
        return 1;
    crc_init();
    for (size_t i = 0; i < COUNT(tests); i++) {
        section = tests[i].name;
        tests[i].run();
        fflush(stdout);
    }
    section = "at the end";
    log_begin(LOG_ERROR);
    check(__lsan_do_recoverable_leak_check() == 0, "memory was not given back");
    plat_folder_each(folder, remove_file, NULL);
    check(rmdir(folder) == 0, "the folder for tests is empty");
    printf("%d passed, %d failed\n", passed, failed);
    fflush(stdout);
    _exit(failed ? 1 : 0); /* what is left was looked for above */
}
