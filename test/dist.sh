#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# test/dist.sh NAME...: checks the archives of these platforms in build/dist, the binaries and the lists of parts in them, and
# that a build in another folder, by another user, with another umask, time zone and language gives the same bytes.
# SOURCE_DATE_EPOCH is the date that the archives were made with.
# shellcheck source=test/checks.sh
. "$(dirname "$0")/checks.sh"

# The archives as they are.
check "SHA256SUMS" env -C build/dist sha256sum --strict --quiet -c SHA256SUMS
check "SHA256SUMS names all" [ "$(sed 's/^[0-9a-f]\{64\}  //' build/dist/SHA256SUMS | tr '\n' ' ')" = \
    "$(cd build/dist && LC_ALL=C && echo butler_webhook*) " ]
add_up python3 test/archives.py build/dist "$version" "$@"
check_elf linux-x64 build/butler_webhook X86-64 0x1000 680000
check_elf linux-arm64 build/butler_webhook-arm64 AArch64 0x10000 750000
check_any windows-x64 build/butler_webhook.exe 730000
for object in build/{linux,arm64,windows}/{butler_webhook,mbedtls/library/ssl_tls,libyaml/src/scanner,cjson/cJSON}.o; do
    check "$object has a stack protector" grep -q __stack_chk_fail "$object"
done

# Another folder and all that, without a download.
copy=$tmp/another_folder_with_a_longer_path/butler
mkdir -p "$copy/test" "$tmp/vendor"
cp -r Makefile LICENSE README.md butler_webhook.c samples vendor "$copy/"
rm -rf "$copy/vendor/cache"
cp test/install.sh test/test.mk "$copy/test/"
find vendor/cache "${VENDOR_DIR:-vendor/cache}" -maxdepth 1 -type f -exec cp {} "$tmp/vendor/" \;
chmod -R a+rX "$tmp"
chmod g+s "$copy" # as on a folder that a team shares
user=()
if [ "$(id -u)" = 0 ]; then
    user=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
    chown -R nobody:nogroup "$copy"
else
    skip "the same bytes for another user" "only root can become another user; this one builds again"
fi
language=$(locale -a | grep -vE '^(C|POSIX)' | tail -n 1)
[ -n "$language" ] || skip "the same bytes in another language" "the machine has none"
again=$(umask 077 && unset HOME && TZ=Asia/Kathmandu LC_ALL=${language:-C.UTF-8} VENDOR_DIR=$tmp/vendor \
    "${user[@]}" make -C "$copy" -j"$(nproc)" archives 2>&1)
check "builds in another folder" [ $? = 0 ]
[ -e "$copy/build/dist/SHA256SUMS" ] || tail -n 20 <<<"$again"
check "builds from a local folder alone" has_not "$again" '^fetching'
check "the same archives in another folder" diff build/dist/SHA256SUMS "$copy/build/dist/SHA256SUMS"

finish
