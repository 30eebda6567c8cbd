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

# check_elf NAME FILE MACHINE PAGE BYTES: a program for Linux that needs nothing of it, its segments laid out for pages of that
# size.
check_elf() {
    local header segments dynamic sections
    header=$(LC_ALL=C readelf -hW "$2")
    segments=$(LC_ALL=C readelf -lW "$2")
    dynamic=$(LC_ALL=C readelf -dW "$2")
    sections=$(LC_ALL=C readelf -SW "$2")
    check "$1: processor" has "$header" "Machine: .*$3"
    check "$1: position-independent" has "$header" 'Type: +DYN'
    check "$1: marked as a static one" has "$dynamic" 'FLAGS_1.* PIE'
    check "$1: no interpreter" has_not "$segments" 'INTERP'
    check "$1: no shared library" has_not "$dynamic" 'NEEDED'
    check "$1: relocations are read-only later" has "$segments" 'GNU_RELRO'
    check "$1: all bound at start" has "$dynamic" 'BIND_NOW'
    check "$1: stack not executable" has "$segments" 'GNU_STACK.* RW +0x'
    check "$1: nothing both writable and executable" has_not "$segments" ' (RWE|WE) '
    check "$1: stripped" has_not "$sections" '\.symtab|\.debug'
    check "$1: pages" has_not "$(grep LOAD <<<"$segments" | grep -v " $4\$")" .
    check_any "$1" "$2" "$5"
}

# copy_sources DIR: what a build needs, and in $tmp/vendor, which becomes VENDOR_DIR, what vendor/lock names, as downloaded.
copy_sources() {
    local name file from=${VENDOR_DIR:-vendor/cache}
    mkdir -p "$1/test" "$1/vendor" "$tmp/vendor"
    cp -r Makefile LICENSE README.md butler_webhook.c samples "$1/"
    cp test/install.sh test/test.mk "$1/test/"
    cp -r vendor/[!c]* "$1/vendor/" # not vendor/cache
    while read -r name _ _ _ _ file _; do
        case $name in '#'* | '') continue ;; esac
        cp "$from/$file" "$tmp/vendor/" 2>/dev/null || cp "vendor/cache/$file" "$tmp/vendor/"
    done <vendor/lock
    chmod -R a+rX "$tmp/vendor"
    export VENDOR_DIR="$tmp/vendor"
}

# finish: prints the count line, and ends with 1 if a check has failed.
finish() {
    printf '%d passed, %d failed' "$passed" "$failed"
    [ "$skipped" = 0 ] || printf ', %d skipped' "$skipped"
    echo
    exit $((failed > 0))
}
