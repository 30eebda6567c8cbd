/* SPDX-License-Identifier: MIT
 *
 * For the unit tests where there is no leak sanitizer (make check-arm64): its question is answered with no.
 */
static inline int
__lsan_do_recoverable_leak_check(void)
{
    return 0;
}
