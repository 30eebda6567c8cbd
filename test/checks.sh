# shellcheck shell=bash
# SPDX-License-Identifier: MIT
#
# test/checks.sh: what the scripts that test share. To be sourced by bash, which is then in the project's folder. $tmp is a folder
# that goes away at the end, with the processes of $pids.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck disable=SC2034 # the scripts use it
version=$(sed -n 's/^.define VERSION "\(.*\)".*/\1/p' butler_webhook.c)
passed=0
failed=0
skipped=0
pids=()
tmp=$(mktemp -d)
# shellcheck disable=SC2154 # p is the loop's
trap 'for p in "${pids[@]}"; do kill "$p" 2>/dev/null; done; rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

# check NAME COMMAND...: shows the command's output if it fails.
check() {
    local name=$1 out
    shift
    if out=$("$@" 2>&1 </dev/null); then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $name: $* ${out:+: $out}" | head -n 60
    fi
}

skip() {
    skipped=$((skipped + 1))
    echo "skipped $1: $2"
}

# add_up COMMAND...: shows what it prints but the last line, `N passed, N failed`, which is added to ours.
add_up() {
    local line
    "$@" >"$tmp/out" 2>&1
    line=$(tail -n 1 "$tmp/out")
    if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        failed=$((failed + BASH_REMATCH[2]))
        sed '$d' "$tmp/out"
    else
        failed=$((failed + 1))
        cat "$tmp/out"
    fi
}

# has TEXT PATTERN, has_not TEXT PATTERN: extended regular expressions, line by line.
has() { grep -qE -- "$2" <<<"$1"; }
has_not() { ! grep -E -- "$2" <<<"$1"; }

# check_any NAME FILE BYTES: what holds for each binary: its size, and no trace of where it was made.
check_any() {
    check "$1: at most $3 bytes" [ "$(stat -c %s "$2")" -le "$3" ]
    check "$1: no path of the machine that built it" has_not \
        "$(LC_ALL=C grep -aoE "($PWD|${HOME:-/root}/|/home/|/root/|/tmp/|/usr/lib/gcc|/usr/x86_64)[ -~]*" "$2")" .
}

# check_elf NAME FILE MACHINE PAGE BYTES: a static program for Linux that can be put anywhere in memory, whose stack and
# relocations are protected; stripped, its segments laid out for pages of that size.
check_elf() {
    local all pattern
    all=$(LC_ALL=C readelf -hldSW "$2")
    for pattern in "Machine: .*$3" 'Type: +DYN' 'FLAGS_1.* PIE' GNU_RELRO BIND_NOW 'GNU_STACK.* RW +0x'; do
        check "$1: has $pattern" has "$all" "$pattern"
    done
    for pattern in INTERP NEEDED ' (RWE|WE) ' '\.symtab|\.debug'; do
        check "$1: has no $pattern" has_not "$all" "$pattern"
    done
    check "$1: pages of $4" has_not "$(grep ' LOAD ' <<<"$all" | grep -v " $4\$")" .
    check_any "$1" "$2" "$5"
}

# finish: prints the count line, and ends with 1 if a check has failed.
finish() {
    printf '%d passed, %d failed' "$passed" "$failed"
    [ "$skipped" = 0 ] || printf ', %d skipped' "$skipped"
    echo
    exit $((failed > 0))
}
