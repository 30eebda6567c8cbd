#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# test/dist.sh NAME...: checks the archives of these platforms in build/dist, the binaries and the lists of parts in them, and
# that a build in another folder, by another user, with another umask, time zone and language gives the same bytes.
# SOURCE_DATE_EPOCH is the date that the archives were made with.
# shellcheck source=test/checks.sh
. "$(dirname "$0")/checks.sh"
top=butler_webhook-$version

# check_pe NAME FILE: a program for Windows that needs nothing but what each Windows has.
check_pe() {
    local header sections
    header=$(LC_ALL=C x86_64-w64-mingw32-objdump -p "$2")
    sections=$(LC_ALL=C x86_64-w64-mingw32-objdump -h "$2")
    check "$1: for x86-64" has "$header" 'file format pei-x86-64'
    for flag in DYNAMIC_BASE HIGH_ENTROPY_VA NX_COMPAT; do
        check "$1: $flag" has "$header" "^[[:space:]]+$flag\$"
    done
    check "$1: can be relocated" has_not "$header" 'relocations stripped'
    check "$1: has relocations" has "$sections" ' \.reloc +0*[1-9a-f]'
    check "$1: a console program" has "$header" 'Subsystem.*Windows CUI'
    check "$1: imports" has "$header" 'DLL Name: KERNEL32.dll'
    check "$1: imports nothing but the system's" has_not \
        "$(grep 'DLL Name:' <<<"$header" | grep -viE ' (KERNEL32|ADVAPI32|WS2_32|msvcrt)\.dll$')" .
    check "$1: stripped" has "$header" 'symbols stripped'
    check "$1: stripped of debugging" has_not "$sections" '\.debug'
    check_any "$1" "$2" 730000
}

# The archives as they are.
check "SHA256SUMS" env -C build/dist sha256sum --strict --quiet -c SHA256SUMS
check "SHA256SUMS names all" [ "$(sed 's/^[0-9a-f]\{64\}  //' build/dist/SHA256SUMS | tr '\n' ' ')" = \
    "$(cd build/dist && LC_ALL=C && echo butler_webhook*) " ]
add_up python3 test/archives.py build/dist "$version" "$@"
for name; do
    mkdir "$tmp/$name"
    case $name in
    windows-*)
        check "$name: unpacks" unzip -q "build/dist/$top-$name.zip" -d "$tmp/$name"
        objects=build/windows
        check_pe "$name" "$tmp/$name/butler_webhook/butler_webhook.exe"
        ;;
    linux-*)
        check "$name: unpacks" tar -xzf "build/dist/$top-$name.tar.gz" -C "$tmp/$name"
        objects=build/linux about='X86-64 0x1000 680000'
        [ "$name" = linux-x64 ] || objects=build/arm64 about='AArch64 0x10000 750000'
        # shellcheck disable=SC2086
        check_elf "$name" "$tmp/$name/$top/butler_webhook" $about
        ;;
    esac
    for object in butler_webhook mbedtls/library/ssl_tls libyaml/src/scanner cjson/cJSON; do
        check "$name: $object has a stack protector" grep -q __stack_chk_fail "$objects/$object.o"
    done
done

# Another folder and all that, without a download.
copy=$tmp/another_folder_with_a_longer_path/butler
copy_sources "$copy"
chmod g+s "$copy" # as on a folder that a team shares
user=()
if [ "$(id -u)" = 0 ]; then
    user=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
    chown -R nobody:nogroup "$copy"
    chmod 755 "$tmp"
else
    skip "the same bytes for another user" "only root can become another user; this one builds again"
fi
language=$(locale -a | grep -vE '^(C|POSIX)' | tail -n 1)
[ -n "$language" ] || skip "the same bytes in another language" "the machine has none"
again=$(umask 077 && unset HOME && TZ=Asia/Kathmandu LC_ALL=${language:-C.UTF-8} \
    "${user[@]}" make -C "$copy" -j"$(nproc)" archives 2>&1)
code=$?
check "builds in another folder" [ $code = 0 ]
[ $code = 0 ] || tail -n 20 <<<"$again"
check "builds from a local folder alone" has_not "$again" '^fetching'
check "the same archives in another folder" diff build/dist/SHA256SUMS "$copy/build/dist/SHA256SUMS"

finish
