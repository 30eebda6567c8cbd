/* SPDX-License-Identifier: MIT
 *
 * test/fuzz.h: what all fuzzers share. The program is included with its main renamed, so that every
 * static function can be called.
 */

int butler_webhook_main(int argc, char **argv);
#define main butler_webhook_main
#include "../butler_webhook.c"
#undef main

/* Each fuzzer's own: tries one input, in memory of just its size. */
static void fuzz(struct slice input);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz((struct slice){(const char *)data, size});
    return 0;
}

/* Ends the fuzzer with a finding. */
static void
require(bool ok, const char *what, const char *more)
{
    struct buf text = {0};

    if (ok)
        return;
    buf_add_texts(&text, "ERROR: ", what, ": ", NULL);
    log_add_clean(&text, slice_of(more)); /* else grep takes the fuzzer's log for a binary file */
    fprintf(stderr, "%s\n", text.data);
    abort();
}

/* A text must be fit for a terminal: UTF-8, with that many LFs, and no other control character. */
static inline void
require_plain(const char *text, int lines, const char *what)
{
    require(utf8_is_valid(text, strlen(text)), what, "it is not UTF-8");
    for (const char *p = text; *p; lines -= *p++ == '\n')
        require(*p == '\n' || ((unsigned char)*p >= 0x20 && *p != 0x7f), what,
            "it has a control character");
    require(lines == 0, what, "it has too few or too many line ends");
}
