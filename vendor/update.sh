#!/bin/sh
# SPDX-License-Identifier: MIT
#
# vendor/update.sh: finds the newest release of all that vendor/lock names, shows what changed, and rewrites vendor/lock (or
# $VENDOR_LOCK). Newest is the highest version that the Debian mirror's lists or the tags of the project's git repository name.
# All sources of a new file that can be reached must give the same bytes; pool sources that do not have it are left out.
# Ends with 1 if something is left to be done by hand; it says what. See vendor/README.md.
set -eu
umask 022
cd "$(dirname "$0")/.."
lock=${VENDOR_LOCK:-vendor/lock}
cache=vendor/cache
mkdir -p "$cache"
tmp=$(mktemp -d "$PWD/$cache/tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
by_hand=0

die() {
    printf '%s\n' "vendor/update.sh: $*" >&2
    exit 1
}

. vendor/sources.sh
set -f # an address may contain a ?

# todo TEXT: says what is left to be done by hand.
todo() {
    by_hand=1
    echo "  BY HAND: $*"
}

# The lists of the mirror's source packages, in folders of our own, which needs no root. They are signed; those of $VENDOR_POOL
# need not be.
apt="-qq -o Dir::State::lists=$tmp/apt/lists -o Dir::Cache=$tmp/apt/cache -o Dir::Etc::sourceparts=/dev/null
     -o Dir::Etc::sourcelist=$tmp/apt/src.sources -o APT::Sandbox::User=root"
get_lists() {
    mkdir -p "$tmp/apt/lists/partial" "$tmp/apt/cache/archives/partial"
    signed='Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg'
    [ -z "${VENDOR_POOL:-}" ] || signed='Trusted: yes'
    for uri in $pools; do
        for suite in stable testing sid; do
            printf 'Types: deb-src\nURIs: %s\nSuites: %s\nComponents: main\n%s\n\n' "$uri" $suite "$signed"
        done
    done >"$tmp/apt/src.sources"
    # shellcheck disable=SC2086
    [ -z "$pools" ] || ! command -v apt-get >/dev/null || apt-get $apt update >"$tmp/log" 2>&1 || :
}

# pool_files PACKAGE: the files of all versions of a source package, as paths in the pool.
pool_files() {
    command -v apt-cache >/dev/null || return 0
    # shellcheck disable=SC2086
    apt-cache $apt showsrc --only-source "$1" 2>/dev/null | awk '
        function flush(    i) { for (i = 1; i <= n; i++) print dir "/" file[i]; n = 0 }
        $1 == "Directory:" { dir = $2; sub(/^pool\/main\//, "", dir) }
        /^[^ ]/ { on = ($1 == "Checksums-Sha256:") }
        on && NF == 3 { file[++n] = $3 }
        /^$/ { flush() }
        END { flush() }' | sort -u
}

# versions NAME: all releases, the newest last. Of Mbed TLS only those of the branch with long-term support that we use.
versions() {
    package=$1
    number='[0-9]+(\.[0-9]+)+'
    case $1 in
    mbedtls) repository=github.com/Mbed-TLS/mbedtls tag='mbedtls-(3\.6\.[0-9]+)' number='3\.6\.[0-9]+' ;;
    cjson) repository=github.com/DaveGamble/cJSON tag="v($number)" ;;
    libyaml) repository=github.com/yaml/libyaml tag="($number)" ;;
    musl) repository=git.musl-libc.org/git/musl tag="v($number)" ;;
    certdata) package=nss repository=github.com/nss-dev/nss tag='NSS_([0-9]+(_[0-9]+)+)_RTM' ;;
    *) die "$lock: nothing is known of $1" ;;
    esac
    {
        pool_files "$package" | sed -E -n "s,.*/${package}_($number)\.orig\.tar\.[a-z0-9]+\$,\1,p"
        GIT_TERMINAL_PROMPT=0 git ls-remote --tags "${VENDOR_MIRROR:-https:/}/$repository" 2>"$tmp/log" |
            sed -E -n "s,.*refs/tags/$tag\$,\1,p" | tr _ . || :
    } | sort -u -V
}

# released FILE [MEMBER]: the day of the youngest file in an archive, or of that one.
released() {
    TZ=UTC tar --full-time -tvf "$1" ${2:+"$2"} 2>/dev/null | awk '{ print $4 }' | sort | tail -n 1
}

# shown_roots FILE DATE: the names of the root certificates that are built in.
shown_roots() {
    awk -v names=1 -v date="$2" -f vendor/roots.awk "$1" | sort
}

# update_release VERSION: sets $line to the line of the lock for another version of $name, and puts the file into the cache.
# Returns 1 if that fails.
update_release() {
    new_file=$(swap "$1" "$file")
    new_sources=
    new_sum=
    new_date=
    aside=
    aside_sum=
    number=0
    for source in $sources; do
        case $source in
        pool:c/ca-certificates/*)
            source="pool:$(pool_files ca-certificates | grep '\.tar\.xz$' | sort -V | tail -n 1)#${source#*#}" ;;
        *) source=$(swap "$1" "$source") ;;
        esac
        number=$((number + 1))
        mkdir "$tmp/$name.$number"
        out=$tmp/$name.$number/$new_file
        if ! get "$source" "$out"; then
            echo "  cannot be had: $source"
            case $source in https:*) new_sources="$new_sources $source" ;; esac
            continue
        fi
        found=$(sha256 "$out")
        case $source in
        pool:c/ca-certificates/*)
            # It has no versions of NSS in its name: it is a source if it has the same bytes as another one.
            aside=$source aside_sum=$found
            continue
            ;;
        esac
        echo "  $found $source"
        if [ -n "$new_sum" ] && [ "$found" != "$new_sum" ]; then
            todo "$name $1: its sources differ"
            return 1
        fi
        new_sum=$found
        new_sources="$new_sources $source"
        cp "$out" "$tmp/$new_file"
        case $source in
        *#*) new_date=$(released "$out.archive" "${source#*#}") ;;
        *.tar.*) new_date=$(released "$out") ;;
        esac
    done
    [ -z "$aside" ] || [ "$aside_sum" != "$new_sum" ] || new_sources=" $aside$new_sources"
    if [ -z "$new_sum" ] || [ -z "$new_date" ]; then
        todo "$name $1 is out, but ${new_sum:+its date }was found nowhere"
        return 1
    fi
    line="$name $1 $new_date $new_sum $licence $new_file$new_sources"
}

# swap VERSION TEXT: TEXT with that version in place of the present one.
swap() {
    printf '%s\n' "$2" | sed -e "s,$(printf %s "$version" | sed 's/\./\\./g'),$1,g" \
        -e "s,$(printf %s "$version" | tr . _),$(printf %s "$1" | tr . _),g"
}

# read_series VERSION: the patches of the newest Debian package of that version of musl: $tmp/series has for each the checksum of
# what it changes, its source, its commit (or -) and its day; $tmp/SHA256.diff is what it changes.
read_series() {
    : >"$tmp/series"
    packaging=$(pool_files musl | grep "/musl_$1-.*\.debian\.tar\.xz\$" | sort -V | tail -n 1)
    [ -n "$packaging" ] && download_source "pool:$packaging" "$tmp/packaging" || return 0
    for patch in $(tar -xOf "$tmp/packaging" debian/patches/series 2>/dev/null | sed 's/#.*//'); do
        case $patch in
        # sources.sh does the first; nothing of ours calls renameat2.
        static-pie.patch | renameat2.patch) continue ;;
        esac
        tar -xOf "$tmp/packaging" "debian/patches/$patch" >"$tmp/patch"
        diff_only <"$tmp/patch" >"$tmp/one.diff"
        patch_sum=$(sha256 "$tmp/one.diff")
        mv "$tmp/one.diff" "$tmp/$patch_sum.diff"
        commit=$(sed -n 's/^From \([0-9a-f]\{40\}\) .*/\1/p' "$tmp/patch" | head -n 1)
        day=$(date -u -d "$(sed -n 's/^Date: //p' "$tmp/patch" | head -n 1)" +%F)
        echo "$patch_sum pool:$packaging#debian/patches/$patch ${commit:--} $day" >>"$tmp/series"
    done
}

# Prints the lines of musl's patches in the lock, and after them the new ones. Patches that a new release has, too, go.
# Those that were known are recognized by what they change.
update_patches() {
    while read -r name version date sum licence file sources; do
        case $name in musl-*) ;; *) continue ;; esac
        known="${known:-} $sum"
        if [ -d "$tmp/musl" ]; then
            old=$cache/$file
            [ -f "$old" ] || for source in $sources; do
                old=$tmp/$file
                ! get "$source" "$old" || break
            done
            if patch -s -R -F0 -f -p1 --dry-run -d "$tmp/musl" <"$old" >"$tmp/log" 2>&1; then
                echo "$name: musl $musl has it" >&3
                continue
            fi
            patch -s -F0 -f -p1 -d "$tmp/musl" <"$old" >"$tmp/log" 2>&1 || echo "$name does not apply to musl $musl" >>"$tmp/todo"
        fi
        pool=$(awk -v sum="$sum" '$1 == sum { print $2 }' "$tmp/series")
        # shellcheck disable=SC2086
        upstream=$(printf '%s\n' $sources | grep -v '^pool:' | xargs)
        # Without the pool's lists, what the lock has stays.
        # shellcheck disable=SC2086
        [ -n "$pool" ] || [ -s "$tmp/series" ] || pool=$(printf '%s\n' $sources | grep '^pool:' | xargs)
        echo "$name $version $date $sum $licence $file${pool:+ $pool} $upstream"
    done <"$lock"
    while read -r sum source commit day; do
        case " ${known:-} " in *" $sum "*) continue ;; esac
        echo "${source##*/}: new in Debian's package" >&3
        if [ "$commit" = - ]; then
            echo "${source#*#} of ${source%%#*} names no commit of musl: see what it is" >>"$tmp/todo"
            continue
        fi
        short=$(printf %.8s "$commit")
        url="https://git.musl-libc.org/cgit/musl/patch/?id=$commit"
        if ! get "$url" "$tmp/musl-$short.diff"; then
            echo "$url cannot be had: see whether musl-$short is a commit of musl under that name" >>"$tmp/todo"
        elif [ "$(sha256 "$tmp/musl-$short.diff")" != "$sum" ]; then
            echo "$url is not what Debian's package has as musl-$short" >>"$tmp/todo"
        fi
        echo "musl-$short $commit $day $sum MIT musl-$short.diff $source $url"
    done <"$tmp/series"
}

get_lists
exec 3>&1
: >"$tmp/todo"
while IFS= read -r line <&4; do
    # shellcheck disable=SC2086
    set -- $line
    case ${1:-#} in
    '#'*) ;;
    musl-*)
        [ -z "${patches:-}" ] || continue
        patches=yes
        line=$(update_patches)
        [ -n "$line" ] || continue
        ;;
    *)
        name=$1 version=$2 date=$3 licence=$5 file=$6
        shift 6
        sources=$*
        newest=$({ echo "$version" && versions "$name"; } | sort -V | tail -n 1)
        if [ "$newest" = "$version" ]; then
            echo "$name $version ($date) is the newest"
        else
            echo "$name $version ($date) -> $newest"
            if update_release "$newest"; then
                if [ "$name" = certdata ]; then
                    old=$cache/$file
                    [ -f "$old" ] || for source in $sources; do
                        old=$tmp/old.txt
                        ! get "$source" "$old" || break
                    done
                    shown_roots "$old" "$date" >"$tmp/roots.old"
                    shown_roots "$tmp/$new_file" "$new_date" >"$tmp/roots.new"
                    comm -13 "$tmp/roots.old" "$tmp/roots.new" | sed 's/^/  + /'
                    comm -23 "$tmp/roots.old" "$tmp/roots.new" | sed 's/^/  - /'
                fi
                [ "$name" != musl ] || unpack musl "$tmp/$new_file" "$tmp"
                mv "$tmp/$new_file" "$cache/$new_file"
            else
                newest=$version
            fi
        fi
        if [ "$name" = musl ]; then
            musl=$newest
            read_series "$newest"
        fi
        ;;
    esac
    printf '%s\n' "$line" >>"$tmp/lock"
done 4<"$lock"
while read -r what; do
    todo "$what"
done <"$tmp/todo"
if cmp -s "$lock" "$tmp/lock"; then
    echo "$lock stays as it is"
else
    diff -U0 "$lock" "$tmp/lock" | sed -n '/^[-+][^-+]/p' || :
    cat "$tmp/lock" >"$lock"
    echo "$lock is new. Read what the projects say of these releases; then make check"
fi
exit $by_hand
