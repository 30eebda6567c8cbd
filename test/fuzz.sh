#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test/fuzz.sh BINARY...: runs each fuzzer for FUZZ_SECONDS (10), one on each core, from the seeds in test/data/fuzz/NAME or
# test/data/NAME if there are any. What it finds stays in build/fuzz/NAME.found/.
cd "$(dirname "$0")/.." || exit 1

# run BINARY: runs one; says how many inputs it tried, or what it found.
run() {
    name=${1##*/}
    found=build/fuzz/$name.found
    mkdir -p "$found" "build/fuzz/$name.corpus"
    seeds=$(ls -d "test/data/fuzz/$name" "test/data/$name" 2>/dev/null)
    # shellcheck disable=SC2086
    if "$1" -max_total_time="${FUZZ_SECONDS:-10}" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0 \
        -artifact_prefix="$found/" "build/fuzz/$name.corpus" $seeds >"build/fuzz/$name.log" 2>&1; then
        echo "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "build/fuzz/$name.log") inputs"
    else
        echo "FAILED fuzzer $name, see $found and build/fuzz/$name.log:
$(grep -aE 'ERROR|SUMMARY|runtime error' "build/fuzz/$name.log")"
    fi
}

if [ "${1-}" = --one ]; then
    run "$2"
    exit
fi
[ $# -gt 0 ] || { echo "FAILED: no fuzzer was built" && exit 1; }
said=$(printf '%s\n' "$@" | xargs -P "$(nproc)" -n 1 test/fuzz.sh --one)
echo "$said"
passed=$(echo "$said" | grep -cE '^[a-z_]+: [1-9][0-9]* inputs$')
echo "$passed passed, $(($# - passed)) failed"
[ "$passed" = $# ]
