#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test/bench/peers.sh FOLDER: unpacks what a user would take instead of butler_webhook from Debian's packages into
# FOLDER/NAME. Nothing is installed and no service starts: rsyslog and syslog-ng could not be installed together. A peer
# that cannot be downloaded is left out, and the benchmark says so.
set -eu
folder=$1
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# unpack NAME PACKAGES...: unpacks them, and those they depend on that are not installed here.
unpack() {
    name=$1
    shift
    rm -rf "$folder/new"
    mkdir "$folder/new"
    more=$(apt-get -s install --no-install-recommends "$@" 2>/dev/null | awk '$1 == "Inst" { print $2 }')
    # shellcheck disable=SC2046,SC2086 # words
    (cd "$folder/new" && apt-get -qq download $(printf '%s\n' "$@" $more | sort -u) >download.log 2>&1) || return 1
    dpkg-deb -f "$folder/new/$1"_*.deb Version >"$folder/new/version"
    for package in "$folder"/new/*.deb; do
        dpkg -x "$package" "$folder/new"
        rm "$package"
    done
    mv "$folder/new" "$folder/$name"
    echo "unpacked $name into $folder/$name"
}

peer() {
    [ -e "$folder/$1" ] || unpack "$@" || echo "could not download $1; apt-get update may help" >&2
}

command -v apt-get >/dev/null || exit 0
peer rsyslog rsyslog rsyslog-elasticsearch
peer syslog-ng syslog-ng-core syslog-ng-mod-http
peer socat-curl socat curl
rm -rf "$folder/new"
