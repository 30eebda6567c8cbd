#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# test/unpacked.sh: unpacks each archive of build/dist into an empty folder and runs what is in it: --version, --licenses, --check
# on the samples, and the demo. Other systems' binaries run in emulators: qemu for ARM, wine for Windows.
set -u
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
version=$(sed -n 's/^.define VERSION "\(.*\)".*/\1/p' butler_webhook.c)
roots=$(awk '$1 == "certdata" { print $3 }' vendor/lock)
top=butler_webhook-$version
export WINEPREFIX=${WINEPREFIX:-$PWD/build/wine} WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml=' # no windows of its installer
failed=0

# try NAME COMMAND...: runs it without an input; shows its output if it fails.
try() {
    local name=$1 out
    shift
    out=$("$@" 2>&1 </dev/null) && return
    failed=$((failed + 1))
    printf 'FAILED %s: %s\n%s\n' "$name" "$*" "$out"
}

says_version() { [ "$("$run" --version | tr -d '\r')" = "butler_webhook $version, root certificates of $roots" ]; }
says_licences() { "$run" --licenses | tr -d '\r' | cmp - <(tr -d '\r' <NOTICES.txt); }
demo() {
    local binary=$run
    [ ! -e butler_webhook.exe ] || binary=$PWD/butler_webhook.exe
    BUTLER_BINARY=$binary python3 "$repo/test/demo.py"
}

repo=$PWD
found=0
for archive in "$repo/build/dist/$top"-*.tar.gz "$repo/build/dist/$top"-*.zip; do
    [ -e "$archive" ] || continue
    found=$((found + 1))
    name=${archive##*/"$top"-}
    name=${name%%.*}
    mkdir -p "$tmp/$name"
    case $archive in
    *.zip) try "unpack $name" unzip -q "$archive" -d "$tmp/$name" ;;
    *) try "unpack $name" tar -xzf "$archive" -C "$tmp/$name" ;;
    esac
    cd "$tmp/$name/$top" 2>/dev/null || cd "$tmp/$name/butler_webhook" || exit 1
    run=$tmp/$name/run
    case $name in
    linux-x64) printf '#!/bin/sh\nexec "%s" "$@"\n' "$PWD/butler_webhook" >"$run" ;;
    linux-arm64) printf '#!/bin/sh\nexec qemu-aarch64-static "%s" "$@"\n' "$PWD/butler_webhook" >"$run" ;;
    windows-x64) printf '#!/bin/sh\nexec timeout 120 wine "%s" "$@"\n' "$PWD/butler_webhook.exe" >"$run" ;;
    esac
    chmod 755 "$run"
    before=$failed
    try "$name: --version" says_version
    try "$name: --licenses are those of NOTICES.txt" says_licences
    for sample in samples/*.yaml; do
        try "$name: --check $sample" "$run" --check "$sample"
    done
    # The demo runs an exe in wine by itself.
    try "$name: the demo" demo
    [ $failed != $before ] || echo "$name: unpacked, and it runs"
    cd "$repo" || exit 1
done
# The commands of README.md for Linux, where somebody has downloaded to.
mkdir "$tmp/downloads"
cp build/dist/SHA256SUMS "build/dist/$top-linux-x64.tar.gz" "$tmp/downloads/"
# shellcheck disable=SC2016 # the backticks are README.md's
sed -n '/^```sh syntax unpack$/,/^```$/{/^```/!p}' README.md >"$tmp/unpack.sh"
try "README's commands unpack the archive" test -s "$tmp/unpack.sh"
try "README's commands unpack the archive" env -C "$tmp/downloads" bash -e "$tmp/unpack.sh"
[ $found -gt 0 ] || { echo "no archive in build/dist" && exit 1; }
[ $failed = 0 ]
