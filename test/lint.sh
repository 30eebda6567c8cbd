#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test/lint.sh FLAGS...: the form and the static checks of our own C files and scripts, with the Makefile's compiler flags.
cd "$(dirname "$0")/.." || exit 1
passed=0
failed=0

# check NAME COMMAND...: shows the command's output only if it fails.
check() {
    name=$1
    shift
    if out=$("$@" 2>&1); then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED %s\n%s\n' "$name" "$out"
    fi
}

tidy='-*,bugprone-*,performance-*,portability-*,misc-redundant-expression,misc-unused-parameters'
tidy="$tidy,-bugprone-easily-swappable-parameters,-bugprone-implicit-widening-of-multiplication-result"
tidy="$tidy,-bugprone-reserved-identifier,-bugprone-sizeof-expression"

# Only the section that hides the system may ask which one it is.
asks=$(awk '/^\/\* ==== / { platform = $4 == "Platform" } /_WIN32([^A-Za-z_]|$)/ && !platform { print FILENAME ":" FNR ": " $0 }' \
    butler_webhook.c)
check "_WIN32 in the platform section only${asks:+: $asks}" [ -z "$asks" ]
# Only the loop's thread calls Mbed TLS.
locks=$(grep -n MBEDTLS_THREADING butler_webhook.c vendor/mbedtls_config.h Makefile test/test.mk)
check "Mbed TLS without locks${locks:+: $locks}" [ -z "$locks" ]

mkdir -p build
check "no warning of GCC's" "${MAKE:-make}" --no-print-directory build/linux/warnings.o
check clang-tidy clang-tidy --quiet --warnings-as-errors='*' --checks="$tidy" butler_webhook.c -- "$@"

# shellcheck disable=SC2046
check form clang-format --dry-run -Werror butler_webhook.c $(find test -name '*.[ch]')
for f in vendor/*.sh test/*.sh .ci/run; do
    case $(head -n 1 "$f") in
    *bash*) check "syntax of $f" bash -n "$f" ;;
    *) check "syntax of $f" sh -n "$f" ;;
    esac
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
