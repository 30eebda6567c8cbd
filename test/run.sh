#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test/run.sh PART...: runs `make check-PART` for each, and adds up their last lines `N passed, N failed`. A part that ends
# without such a line, or with an error that it did not count, counts as one failure.
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d) # a part may run this script, too
trap 'rm -rf "$tmp"' EXIT
passed=0
failed=0
table=
for part; do
    echo "== $part"
    begin=$(date +%s)
    { "${MAKE:-make}" --no-print-directory "check-$part" 2>&1; echo "$?" >"$tmp/exit"; } | tee "$tmp/log"
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$tmp/log" | tail -n 1)
    p=$(echo "${line:-0}" | sed 's/ .*//')
    f=$(echo "${line:-0 passed, 0 failed}" | sed -e 's/.*passed, //' -e 's/ failed.*//')
    [ "${part%demo}" = "$part" ] || [ "$(cat "$tmp/exit")" != 0 ] || { line="it ended well" && p=1; }
    if [ -z "$line" ] || { [ "$(cat "$tmp/exit")" != 0 ] && [ "$f" = 0 ]; }; then
        echo "FAILED: make check-$part ended with $(cat "$tmp/exit")"
        f=$((f + 1))
    fi
    passed=$((passed + p))
    failed=$((failed + f))
    skipped=$(echo "$line" | sed -n 's/.* failed, //p')
    table="$table$(printf '%-8s %5d passed %3d failed %4d s  %s' "$part" "$p" "$f" $(($(date +%s) - begin)) "$skipped")
"
done
printf '==\n%s' "$table"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
