#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# test/lint.sh FLAGS...: the form and the static checks of our own C files and scripts, with the Makefile's compiler flags.
# shellcheck source=test/checks.sh
. "$(dirname "$0")/checks.sh"

tidy='-*,bugprone-*,performance-*,portability-*,misc-redundant-expression,misc-unused-parameters'
tidy="$tidy,-bugprone-easily-swappable-parameters,-bugprone-implicit-widening-of-multiplication-result"
tidy="$tidy,-bugprone-reserved-identifier,-bugprone-sizeof-expression"

# Only the section that hides the system may ask which one it is.
asks=$(awk '/^\/\* ==== / { platform = $4 == "Platform" }
    /_WIN32([^A-Za-z_]|$)/ && !platform { print FILENAME ":" FNR ": " $0 }' butler_webhook.c)
check "_WIN32 in the platform section only${asks:+: $asks}" [ -z "$asks" ]
# Only the loop's thread calls Mbed TLS.
locks=$(grep -n MBEDTLS_THREADING butler_webhook.c vendor/mbedtls_config.h Makefile test/test.mk)
check "Mbed TLS without locks${locks:+: $locks}" [ -z "$locks" ]

check "no warning of GCC's" "${MAKE:-make}" --no-print-directory build/linux/warnings.o
check clang-tidy clang-tidy --quiet --warnings-as-errors='*' --checks="$tidy" butler_webhook.c -- "$@"

# shellcheck disable=SC2046
check form clang-format --dry-run -Werror butler_webhook.c $(find test -name '*.[ch]')

shells=".ci/run $(find test vendor -path vendor/cache -prune -o -name '*.sh' -print | LC_ALL=C sort)"
# shellcheck disable=SC2086
check shellcheck shellcheck -x $shells
# Debian's flake8 belongs to Debian's python3. E402: before its imports a script may say where they are, and that they leave no
# bytecode behind.
# shellcheck disable=SC2046
check flake8 /usr/bin/python3 -m flake8 --isolated --max-line-length 130 --extend-ignore E402 \
    $(find test vendor -path vendor/cache -prune -o -name '*.py' -print)
# shellcheck disable=SC2086
long=$(awk 'length > 130 { print FILENAME ":" FNR }' $shells &&
    awk 'length > 110 { print FILENAME ":" FNR }' Makefile test/test.mk &&
    awk 'length > 100 { print FILENAME ":" FNR }' butler_webhook.c)
check "line length${long:+: $long}" [ -z "$long" ]
check "the Makefile has at most 150 lines" [ "$(wc -l <Makefile)" -le 150 ]
finish
