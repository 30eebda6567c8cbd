#!/bin/sh
# SPDX-License-Identifier: MIT
#
# vendor/fetch.sh [DIR]: fetches every file that vendor/lock names, checks its SHA-256, and with DIR unpacks all of them there.
# Needs no root. A file is looked for, in this order, in
#   1. the folder $VENDOR_DIR, for machines without a network (the files of vendor/lock, under their names there)
#   2. vendor/cache, where earlier downloads lie
#   3. its sources in vendor/lock, from left to right
# A file whose checksum is wrong ends it with exit 1, wherever the file came from. See vendor/README.md.
set -eu
umask 022
cd "$(dirname "$0")/.."
lock=${VENDOR_LOCK:-vendor/lock}
cache=vendor/cache
mkdir -p "$cache"
tmp=$(mktemp -d "$PWD/$cache/tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

die() {
    printf '%s\n' "vendor/fetch.sh: $*" >&2
    exit 1
}

. vendor/sources.sh
set -f # an address may contain a ?

# verify PATH SHA256 ORIGIN: returns if PATH has that checksum, else ends the script.
verify() {
    found=$(sha256 "$1")
    [ "$found" = "$2" ] || die "wrong checksum of ${1##*/} (from $3)
  expected $2
  found    $found
Nothing was unpacked. If the file is only damaged, delete it and try again."
}

# fetch SHA256 FILE SOURCE...: sets $got to the path of the verified file.
fetch() {
    sum=$1
    file=$2
    shift 2
    got=${VENDOR_DIR:-}/$file
    if [ -n "${VENDOR_DIR:-}" ] && [ -f "$got" ]; then
        verify "$got" "$sum" "$VENDOR_DIR"
        return
    fi
    got=$cache/$file
    if [ ! -f "$got" ]; then
        echo "fetching $file"
        from=
        for source; do
            ! get "$source" "$tmp/$file" || { from=$source && break; }
        done
        [ -n "$from" ] || die "$file was found nowhere: not in \$VENDOR_DIR (${VENDOR_DIR:-not set}), not in
$(printf '  %s\n' "$@")
Put it into a folder and set VENDOR_DIR to that; vendor/README.md tells how."
        verify "$tmp/$file" "$sum" "$from"
        echo "  from $from"
        mv "$tmp/$file" "$got"
    fi
    verify "$got" "$sum" "$cache"
}

[ -z "${VENDOR_DIR:-}" ] || [ -d "$VENDOR_DIR" ] || die "VENDOR_DIR: no such folder: $VENDOR_DIR"
while read -r name version date sum licence file sources; do
    case $name in '#'* | '') continue ;; esac
    [ -n "$sources" ] || die "$lock: a column is missing in the line of $name $version ($date, $licence)"
    # shellcheck disable=SC2086
    fetch "$sum" "$file" $sources </dev/null
    printf '%s %s\n' "$name" "$got" >>"$tmp/have"
done <"$lock"
[ $# -gt 0 ] || exit 0
rm -rf "$1"
while read -r name path; do
    unpack "$name" "$path" "$1"
done <"$tmp/have"
