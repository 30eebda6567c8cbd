#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test/run.sh PART...: runs `make check-PART` for each, adds up their last lines `N passed, N failed`, and says at the end
# what was skipped, and why. A part that ends without such a line, or with an error that it did not count, counts as one failure.
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d) # a part may run this script, too
trap 'rm -rf "$tmp"' EXIT
passed=0
failed=0
for part; do
    echo "== $part"
    begin=$(date +%s)
    { "${MAKE:-make}" --no-print-directory "check-$part" 2>&1; echo "$?" >"$tmp/exit"; } | tee "$tmp/log"
    code=$(cat "$tmp/exit")
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$tmp/log" | tail -n 1)
    [ "${part%demo}" = "$part" ] || [ "$code" != 0 ] || line="1 passed, 0 failed"
    p=$(echo "${line:-0}" | sed 's/ .*//')
    f=$(echo "${line:-0 passed, 0 failed}" | sed -e 's/.*passed, //' -e 's/ failed.*//')
    if [ -z "$line" ] || { [ "$code" != 0 ] && [ "$f" = 0 ]; }; then
        echo "FAILED: make check-$part ended with $code"
        f=$((f + 1))
    fi
    passed=$((passed + p))
    failed=$((failed + f))
    printf '%-8s %5d passed %3d failed %4d s\n' "$part" "$p" "$f" $(($(date +%s) - begin)) >>"$tmp/table"
    grep -E '^(SKIPPED|skipped) ' "$tmp/log" >>"$tmp/skipped"
done
echo '=='
sort -u "$tmp/skipped"
cat "$tmp/table"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
