/* SPDX-License-Identifier: MIT
 *
 * test/fuzz.h: what each fuzzer starts with. The program is included with its main renamed, so that
 * every static function can be called.
 */

int butler_webhook_main(int argc, char **argv);
#define main butler_webhook_main
#include "../butler_webhook.c"
#undef main

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Ends the fuzzer with a finding. */
static void
require(bool ok, const char *what, const char *more)
{
    if (ok)
        return;
    fprintf(stderr, "ERROR: %s: %s\n", what, more);
    abort();
}
