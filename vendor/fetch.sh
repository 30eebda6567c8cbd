#!/bin/sh
# SPDX-License-Identifier: MIT
#
# vendor/fetch.sh [DIR]: fetches every file that vendor/lock names, checks its SHA-256, and with DIR unpacks all of them there.
# Needs no root. A file is looked for, in this order, in
#   1. the folder $VENDOR_DIR, for machines without a network (the files of vendor/lock, under their names there)
#   2. vendor/cache, where earlier downloads lie
#   3. the pool of the machine's own Debian mirror, as its apt settings name it
#   4. the source packages of stable, testing and sid on that mirror, with package lists of our own
#   5. the project's own address
# A file whose checksum is wrong ends it with exit 1, wherever the file came from.
set -eu
umask 022
cd "$(dirname "$0")/.."
lock=${VENDOR_LOCK:-vendor/lock}
cache=vendor/cache
helper=/usr/lib/apt/apt-helper
mkdir -p "$cache"
tmp=$(mktemp -d "$PWD/$cache/tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

die() {
    printf '%s\n' "vendor/fetch.sh: $*" >&2
    exit 1
}

# verify PATH SHA256 ORIGIN: returns if PATH has that checksum, else ends the script.
verify() {
    found=$(sha256sum <"$1")
    found=${found%% *}
    [ "$found" = "$2" ] && return
    die "wrong checksum of ${1##*/} (from $3)
  expected $2
  found    $found
Nothing was unpacked. If the file is only damaged, delete it and try again."
}

# Prints the mirrors of apt's settings, one URI a line: those that end in /debian if there are any, else all.
mirrors() {
    {
        for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
            [ ! -r "$f" ] || sed -n -e 's/#.*//' -e 's/\[[^]]*\]//' \
                -e 's/^[[:space:]]*deb\(-src\)\{0,1\}[[:space:]]\{1,\}\([^[:space:]]*\).*/\2/p' "$f"
        done
        for f in /etc/apt/sources.list.d/*.sources; do
            [ ! -r "$f" ] || awk '
                function flush() { if (!off) printf "%s", uris; uris = ""; off = 0; key = "" }
                /^[ \t]*$/ { flush(); next }
                /^#/ { next }
                /^[^ \t]/ { key = tolower($1); $1 = "" }
                key == "uris:" { for (i = 1; i <= NF; i++) if ($i != "") uris = uris $i "\n" }
                key == "enabled:" && /no/ { off = 1 }
                END { flush() }' "$f"
        done
    } | while read -r uri; do
        case $uri in
        mirror+file:*) sed -n 's/^\([a-z]*:[^[:space:]]*\).*/\1/p' "${uri#mirror+file:}" 2>/dev/null || : ;;
        http:* | https:* | file:*) echo "$uri" ;;
        esac
    done | sed 's|/*$||' | awk '!seen[$0]++' >"$tmp/all"
    grep '/debian$' "$tmp/all" || cat "$tmp/all"
}

# download URI OUT: 0 if OUT is there.
download() {
    case $1 in
    file:*) cp "${1#file:}" "$2" 2>/dev/null ;;
    *) [ -x $helper ] && $helper -qq -o APT::Sandbox::User=root download-file "$1" "$2" >"$tmp/log" 2>&1 ;;
    esac
}

# from_source PACKAGE FILE OUT: the same file out of a source package, with lists that need no root.
from_source() {
    command -v apt-get >/dev/null || return 1
    lists=$tmp/apt
    apt="-qq -o Dir::State::lists=$lists/lists -o Dir::Cache=$lists/cache -o Dir::Etc::sourceparts=/dev/null
         -o Dir::Etc::sourcelist=$lists/src.sources -o APT::Sandbox::User=root"
    if [ ! -d "$lists" ]; then
        mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial"
        for uri in $(mirrors); do
            printf 'Types: deb-src\nURIs: %s\nSuites: stable testing sid\nComponents: main\nSigned-By: %s\n\n' \
                "$uri" /usr/share/keyrings/debian-archive-keyring.gpg
        done >"$lists/src.sources"
        # shellcheck disable=SC2086
        apt-get $apt update >"$tmp/log" 2>&1 || :
    fi
    # shellcheck disable=SC2086
    version=$(apt-cache $apt showsrc "$1" 2>/dev/null | awk -v file="$2" '
        $1 == "Version:" { version = $2 }
        $3 == file { print version; exit }')
    [ -n "$version" ] || return 1
    # shellcheck disable=SC2086
    (cd "$lists" && apt-get $apt source --download-only "$1=$version" >"$tmp/log" 2>&1) || :
    [ -f "$lists/$2" ] && mv "$lists/$2" "$3"
}

# from_upstream URL OUT
from_upstream() {
    [ "$1" != - ] || return 1
    if command -v curl >/dev/null; then
        curl -fsSL --connect-timeout 20 -o "$2" "$1" 2>"$tmp/log"
    elif command -v wget >/dev/null; then
        wget -q -T 20 -O "$2" "$1" 2>"$tmp/log"
    else
        return 1
    fi
}

# fetch NAME SHA256 FILE POOL URL: sets $got to the path of the verified file.
fetch() {
    got=${VENDOR_DIR:-}/$3
    if [ -n "${VENDOR_DIR:-}" ] && [ -f "$got" ]; then
        verify "$got" "$2" "$VENDOR_DIR"
        return
    fi
    got=$cache/$3
    if [ ! -f "$got" ]; then
        echo "fetching $3"
        from=
        for uri in $(mirrors); do
            ! download "$uri/pool/main/$4/$3" "$tmp/$3" || { from=$uri && break; }
        done
        [ -n "$from" ] || ! from_source "${4##*/}" "$3" "$tmp/$3" || from="the source packages of the Debian mirror"
        [ -n "$from" ] || ! from_upstream "$5" "$tmp/$3" || from=$5
        [ -n "$from" ] || die "$3 was found nowhere: not in \$VENDOR_DIR (${VENDOR_DIR:-not set}), not on the machine's Debian \
mirror, not at its project's address ($5)
Put it into a folder and set VENDOR_DIR to that; vendor/lock has its checksum."
        verify "$tmp/$3" "$2" "$from"
        echo "  from $from"
        mv "$tmp/$3" "$got"
    fi
    verify "$got" "$2" "$cache"
}

# unpack NAME FILE DIR
unpack() {
    case $1 in
    musl-patches)
        mkdir -p "$3/$1"
        tar -xf "$2" -C "$3/$1"
        # Written without a blank or comment line: each line is a patch.
        while read -r p; do
            patch -s -p1 -d "$3/musl" <"$3/$1/debian/patches/$p"
        done <"$3/$1/debian/patches/series"
        ;;
    *)
        mkdir -p "$3/$1"
        tar -xf "$2" -C "$3/$1" --strip-components=1 --no-same-owner --exclude='*/tests' --exclude='*/.github'
        ;;
    esac
}

[ -z "${VENDOR_DIR:-}" ] || [ -d "$VENDOR_DIR" ] || die "VENDOR_DIR: no such folder: $VENDOR_DIR"
while read -r name version sum licence file pool url; do
    case $name in '#'* | '') continue ;; esac
    [ -n "$url" ] || die "$lock: a column is missing in the line of $name $version ($licence)"
    fetch "$name" "$sum" "$file" "$pool" "$url" </dev/null
    printf '%s %s\n' "$name" "$got" >>"$tmp/have"
done <"$lock"
[ $# -gt 0 ] || exit 0
rm -rf "$1"
while read -r name path; do
    unpack "$name" "$path" "$1"
done <"$tmp/have"
