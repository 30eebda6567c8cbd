#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test/fuzz.sh BINARY...: runs each fuzzer for FUZZ_SECONDS (10), from the seeds in test/data/fuzz/NAME if there are any. What it
# finds stays in build/fuzz/NAME.found/.
cd "$(dirname "$0")/.." || exit 1
passed=0
failed=0
for fuzzer; do
    name=${fuzzer##*/}
    found=build/fuzz/$name.found
    mkdir -p "$found" "build/fuzz/$name.corpus"
    seeds=test/data/fuzz/$name
    [ -d "$seeds" ] || seeds=
    # shellcheck disable=SC2086
    if "$fuzzer" -max_total_time="${FUZZ_SECONDS:-10}" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0 \
        -artifact_prefix="$found/" "build/fuzz/$name.corpus" $seeds >"build/fuzz/$name.log" 2>&1; then
        passed=$((passed + 1))
        echo "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "build/fuzz/$name.log") inputs"
    else
        failed=$((failed + 1))
        echo "FAILED fuzzer $name, see $found and build/fuzz/$name.log:"
        grep -E 'ERROR|SUMMARY|runtime error' "build/fuzz/$name.log"
    fi
done
[ $# -gt 0 ] || { echo "FAILED: no fuzzer was built" && failed=1; }
echo "$passed passed, $failed failed"
[ $failed = 0 ]
