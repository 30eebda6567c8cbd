#!/bin/sh
# SPDX-License-Identifier: MIT
#
# vendor/notices.sh SRC linux|windows [text]: prints notices.h, the licences of all that is inside the binary for that system, out
# of the files that the sources in SRC bring along; with `text`, the licences themselves, as --licenses prints them.
set -eu
LC_ALL=C
export LC_ALL
src=$1
system=$2
here=$(dirname "$0")

# version NAME: out of the lock file.
version() {
    awk -v name="$1" '$1 == name { print $2 }' "$here/lock"
}

title() {
    printf '\n\n%s\n%s\n\n' "$1" "$(printf '%s' "$1" | sed 's/./=/g')"
}

text() {
    cat <<TEXT
butler_webhook is made of the parts below. Each is followed by its licence.
TEXT
    title "butler_webhook"
    cat "$here/../LICENSE"
    title "Mbed TLS $(version mbedtls) (under the Apache License 2.0)"
    echo "Copyright The Mbed TLS Contributors; X25519 in it: Copyright 2016-2018 INRIA and Microsoft Corporation"
    echo
    sed -n '/^ *Apache License$/,/^ *END OF TERMS/p' "$src/mbedtls/LICENSE"
    title "libyaml $(version libyaml)"
    cat "$src/libyaml/License"
    title "cJSON $(version cjson)"
    cat "$src/cjson/LICENSE"
    if [ "$system" = windows ]; then
        title "mingw-w64's run-time library"
        cat "$here/mingw-w64.txt"
    else
        title "musl $(version musl), with later commits of it: $(sed -n 's/^musl-\([0-9a-f]*\) .*/\1/p' "$here/lock" | xargs)"
        cat "$src/musl/COPYRIGHT"
    fi
    title "Mozilla's list of root certificates (NSS $(version certdata))"
    cat <<TEXT
Copyright Mozilla Contributors

This part is subject to the terms of the Mozilla Public License, v. 2.0. A copy of that licence is at
https://mozilla.org/MPL/2.0/. Its source is the file lib/ckfw/builtins/certdata.txt of Mozilla's NSS $(version certdata):
$(sed -n 's/^certdata .* \(https:[^ #]*\/certdata\.txt\)\( .*\)*$/\1/p' "$here/lock")
The binary holds its certificates in DER, unchanged.
TEXT
    title "GCC's run-time library ($([ "$system" != windows ] || echo "libssp, ")libgcc)"
    cat <<TEXT
Copyright Free Software Foundation, Inc.

Small helpers that the compiler adds, under the GNU General Public License, version 3, with the GCC Runtime Library Exception,
version 3.1, which lets them be part of a program under any licence. https://gcc.gnu.org/
TEXT
}

if [ "${3:-}" = text ]; then
    text | sed 's/\r//g'
    exit
fi

# As one C string; ? is escaped because of trigraphs.
echo "static const char notices_txt[] ="
text | sed -e 's/\\/\\\\/g' -e 's/["?]/\\&/g' -e 's/	/\\t/g' -e 's/\r//g' -e 's/^/    "/' -e 's/$/\\n"/'
echo "    ;"
