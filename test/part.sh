#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test/part.sh NAME COMMAND...: runs a part of the tests, whose last line `N passed, N failed` counts. One that ends without such
# a line, or with an error that it did not count, has failed once more. For run.sh its counts, its time, what it skipped, and what
# failed go to the file $RESULTS.
name=$1
shift
[ -n "${RESULTS:-}" ] || exec "$@"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'cat "$log"; exit 1' INT TERM
begin=$(date +%s)
"$@" >"$log" 2>&1
code=$?
line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
passed=$(echo "${line:-0 passed}" | sed 's/ passed.*//')
failed=$(echo "${line:-0 passed, 0 failed}" | sed -e 's/^[^,]*, //' -e 's/ failed.*//')
if [ -z "$line" ] || { [ "$code" != 0 ] && [ "$failed" = 0 ]; }; then
    echo "FAILED: it ended with $code" >>"$log"
    failed=$((failed + 1))
fi
echo "== $name" && cat "$log"
{
    printf '%-8s %5d passed %3d failed %4d s\n' "$name" "$passed" "$failed" $(($(date +%s) - begin))
    grep -E '^(SKIPPED|skipped|FAILED)' "$log"
} >>"$RESULTS"
[ "$failed" = 0 ]
