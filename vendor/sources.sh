# shellcheck shell=sh
# SPDX-License-Identifier: MIT
#
# vendor/sources.sh: where the files of vendor/lock come from, for fetch.sh and update.sh, which read this file. $tmp is a folder.
#
# A source is one of
#   pool:PATH         a file in the pool of the machine's own Debian mirror, as its apt settings name it, or of $VENDOR_POOL
#   https://ADDRESS   the project's own address, or $VENDOR_MIRROR/ADDRESS
# and with #MEMBER at its end one file out of that tar archive.
# shellcheck disable=SC2154 # tmp

# Prints the mirrors of apt's settings, one URI a line: those that end in /debian if there are any, else all.
apt_mirrors() {
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
    done | sed 's|/*$||' | awk '!seen[$0]++' >"$tmp/mirrors"
    grep '/debian$' "$tmp/mirrors" || cat "$tmp/mirrors"
}

# download URL OUT: 0 if OUT is there. apt's own helper comes first, because it knows the proxy of apt's settings.
download() {
    case $1 in
    file:*) cp "${1#file:}" "$2" 2>/dev/null ;;
    */pool/main/*) [ -x $helper ] && $helper -qq -o APT::Sandbox::User=root download-file "$1" "$2" >"$tmp/log" 2>&1 ;;
    *)
        if command -v curl >/dev/null; then
            curl -fsSL --connect-timeout 20 -o "$2" "$1" 2>"$tmp/log"
        else
            wget -q -T 20 -O "$2" "$1" 2>"$tmp/log"
        fi
        ;;
    esac
}

# download_source SOURCE OUT: the file, without regard to #MEMBER.
download_source() {
    case $1 in
    pool:*)
        for uri in $pools; do
            ! download "$uri/pool/main/${1#pool:}" "$2" || return 0
        done
        return 1
        ;;
    https://*) download "${VENDOR_MIRROR:-https:/}/${1#https://}" "$2" ;;
    *) return 1 ;;
    esac
}

# diff_only <PATCH: what a patch changes, in a form that is the same whoever prints it: no message, no statistics, no names of
# blobs, no line numbers. `patch` finds the place by the lines around it.
diff_only() {
    awk '
        /^diff --git / { on = 1 }
        /^-- $/ { on = 0 }
        !on || /^index / { next }
        /^@@ / { $0 = "@@ " place($2) " " place($3) " @@" }
        { print }
        function place(range) {
            if (range ~ /^[-+]0,0$/)
                return range
            return substr(range, 1, 1) "1" (range ~ /,/ ? substr(range, index(range, ",")) : "")
        }'
}

# get SOURCE OUT: 0 if OUT is there, in the form that vendor/lock has the checksum of; *.diff: only what the patch changes. The
# archive that a member came from stays at OUT.archive.
get() {
    case $1 in
    *#*) download_source "${1%%#*}" "$2.archive" && tar -xOf "$2.archive" "${1#*#}" >"$2" 2>"$tmp/log" ;;
    *) download_source "$1" "$2" ;;
    esac || { rm -f "$2" && return 1; }
    case $2 in
    *.diff)
        diff_only <"$2" >"$2.only"
        mv "$2.only" "$2"
        ;;
    esac
    [ -s "$2" ] || { rm -f "$2" && return 1; }
}

# sha256 FILE
sha256() {
    sha256sum <"$1" | sed 's/ .*//'
}

# unpack NAME FILE DIR
unpack() {
    mkdir -p "$3"
    case $2 in
    *.diff) patch -s -F0 --no-backup-if-mismatch -p1 -d "$3/musl" <"$2" ;;
    *.txt) cp "$2" "$3/$1.txt" ;;
    *)
        mkdir "$3/$1"
        tar -xf "$2" -C "$3/$1" --strip-components=1 --no-same-owner --exclude='*/tests' --exclude='*/.github'
        ;;
    esac
    [ "$1" != musl ] || static_pie "$3/musl/tools/musl-gcc.specs.sh"
}

# static_pie FILE: teaches musl's wrapper for gcc to link static programs that are position-independent.
static_pie() {
    # shellcheck disable=SC2016
    sed -i -e 's|^%{!shared: \(\$libdir/Scrt1.o\)}|%{shared:;static-pie:$libdir/rcrt1.o; :\1}|' \
        -e 's|%{static:-static} %{rdynamic|%{static:-static} %{static-pie:-static -pie --no-dynamic-linker} %{rdynamic|' "$1"
    [ "$(grep -c 'static-pie' "$1")" = 2 ] || die "musl's ${1##*/} has changed: vendor/sources.sh cannot teach it static-pie"
}

helper=/usr/lib/apt/apt-helper
pools=${VENDOR_POOL-$(apt_mirrors)}
