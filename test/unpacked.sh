#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# test/unpacked.sh: unpacks each archive of build/dist into an empty folder and runs what is in it: --version, --licenses, --check
# on the samples, and the demo. Other systems' binaries run in emulators: qemu for ARM, wine for Windows.
# shellcheck source=test/checks.sh disable=SC2317 # check calls the functions
. "$(dirname "$0")/checks.sh"
roots=$(awk '$1 == "certdata" { print $3 }' vendor/lock)
top=butler_webhook-$version
repo=$PWD
export WINEPREFIX=${WINEPREFIX:-$PWD/build/wine} WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml=' # no windows of its installer

says_version() { [ "$("$run" --version | tr -d '\r')" = "butler_webhook $version, root certificates of $roots" ]; }
says_licences() { "$run" --licenses | tr -d '\r' | cmp - <(tr -d '\r' <NOTICES.txt); }

for name in linux-x64 linux-arm64 windows-x64; do
    mkdir "$tmp/$name"
    run=$tmp/$name/run
    if [ $name = windows-x64 ]; then
        check "$name: unpacks" unzip -q "build/dist/$top-$name.zip" -d "$tmp/$name"
        cd "$tmp/$name/butler_webhook" || exit 1
        emulator='timeout 120 wine' program=$PWD/butler_webhook.exe demo=$PWD/butler_webhook.exe # which runs it in wine by itself
    else
        check "$name: unpacks" tar -xzf "build/dist/$top-$name.tar.gz" -C "$tmp/$name"
        cd "$tmp/$name/$top" || exit 1
        emulator='' program=$PWD/butler_webhook demo=$run
        [ $name = linux-x64 ] || emulator=qemu-aarch64-static
    fi
    printf '#!/bin/sh\nexec %s "%s" "$@"\n' "$emulator" "$program" >"$run"
    chmod 755 "$run"
    check "$name: --version" says_version
    check "$name: --licenses are those of NOTICES.txt" says_licences
    for sample in samples/full.yaml samples/minimal.yaml; do
        check "$name: --check $sample" "$run" --check "$sample"
    done
    check "$name: the demo" env BUTLER_BINARY="$demo" python3 "$repo/test/demo.py"
    cd "$repo" || exit 1
done
# The commands of README.md for Linux, where somebody has downloaded to.
mkdir "$tmp/downloads"
cp build/dist/SHA256SUMS "build/dist/$top-linux-x64.tar.gz" "$tmp/downloads/"
# shellcheck disable=SC2016 # the backticks are README.md's
sed -n '/^```sh syntax unpack$/,/^```$/{/^```/!p}' README.md >"$tmp/unpack.sh"
check "README has commands that unpack the archive" test -s "$tmp/unpack.sh"
check "README's commands unpack the archive" env -C "$tmp/downloads" bash -e "$tmp/unpack.sh"

finish
