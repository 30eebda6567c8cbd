#!/bin/sh
# SPDX-License-Identifier: MIT
#
# vendor/release/dist.sh 'LIBRARY...' [NAME FILE COMPILER]...: makes the archives in build/dist, for each platform NAME
# (linux-x64, linux-arm64, windows-x64) one around the binary FILE, which COMPILER made with those libraries of vendor/lock; then
# the parts list of all of them, and SHA256SUMS. VERSION and SOURCE_DATE_EPOCH, the date of all files in the archives, are in
# the environment. Nothing of the machine, the user, the folder, the umask, the time zone or the language gets into an archive.
set -eu
cd "$(dirname "$0")/../.."
umask 022
: "${SOURCE_DATE_EPOCH:?git does not tell the date of the last commit: set it}"
export LC_ALL=C TZ=UTC VERSION SOURCE_DATE_EPOCH
unset ZIPOPT ZIP GZIP TAR_OPTIONS
libraries=$1
shift
top=butler_webhook-$VERSION
dist=$PWD/build/dist
rm -rf "$dist"
mkdir -p "$dist"
tmp=$(mktemp -d "$PWD/build/dist.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

while [ $# -gt 0 ]; do
    name=$1
    file=$2
    compiler=$3
    shift 3
    # Unpacked into C:\Program Files, the one for Windows makes the folder that stays there from version to version.
    case $name in
    windows-*) inside=butler_webhook ;;
    *) inside=$top ;;
    esac
    folder=$tmp/$name/$inside
    mkdir -p "$folder/samples/receivers"
    cp LICENSE README.md "$folder/"
    (cd samples && cp LocalLogConfig*.xml butler_webhook.service ./*.yaml "$folder/samples/")
    cp samples/receivers/README.md samples/receivers/*.yaml "$folder/samples/receivers/"
    # shellcheck disable=SC2086
    python3 vendor/release/sbom.py platform "$name" "$compiler" $libraries >"$tmp/$name.cdx.json"
    cp "$tmp/$name.cdx.json" "$folder/sbom.cdx.json"
    case $name in
    windows-*)
        cp "$file" "$folder/butler_webhook.exe"
        vendor/notices.sh build/src windows text >"$folder/NOTICES.txt"
        rm "$folder"/samples/*.service
        # The Notepad of Windows Server 2012 R2 shows text with other line ends as one line.
        sed -i 's/\r*$/\r/' "$folder/README.md" "$folder/LICENSE" "$folder/NOTICES.txt"
        find "$folder/samples" -type f -exec sed -i 's/\r*$/\r/' {} +
        ;;
    *)
        cp "$file" "$folder/butler_webhook"
        vendor/notices.sh build/src linux text >"$folder/NOTICES.txt"
        ;;
    esac
    chmod -R a-s,u=rwX,go=rX "$folder"
    find "$folder" -type f ! -name 'butler_webhook*' -exec chmod 644 {} +
    chmod 755 "$folder"/butler_webhook*
    find "$tmp/$name" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
    case $name in
    windows-*) (cd "$tmp/$name" && find "$inside" -type f | sort | zip -q -9 -X -@ "$dist/$top-$name.zip") ;;
    *)
        tar -C "$tmp/$name" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
            -cf - "$inside" | gzip -n -9 >"$dist/$top-$name.tar.gz"
        ;;
    esac
    printf '%s\n' "$name" >>"$tmp/names"
done

cd "$dist"
while read -r name; do
    set -- "$@" "$tmp/$name.cdx.json" "$(ls "$top-$name".*)"
done <"$tmp/names"
python3 ../../vendor/release/sbom.py release "$@" >"$top.cdx.json"
sha256sum "$top"* >SHA256SUMS
cat SHA256SUMS
