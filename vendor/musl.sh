#!/bin/sh
# SPDX-License-Identifier: MIT
#
# vendor/musl.sh FOLDER COMPILER [ARGUMENT...]: builds musl from build/src/musl into FOLDER, in build, with these further
# arguments for its configure. What it prints goes to FOLDER.log. GCC finds the result by -specs=FOLDER/lib/musl-gcc.specs if it
# is run in the project's folder: the paths in there are relative, so that the name of that folder may have spaces.
set -eu
cd "$(dirname "$0")/.."
folder=$1
compiler=$2
shift 2

# Without musl's assembler memcpy for x86: `rep movs` takes a quarter of the program's time where it is slow, as on virtual
# machines.
rm -f build/src/musl/src/string/x86_64/memcpy.s build/src/musl/src/string/x86_64/memmove.s

echo "building $folder ($folder.log)"
unset MAKEFLAGS MAKEOVERRIDES MFLAGS # the CFLAGS of `make CFLAGS=...` are not musl's
rm -rf "$folder"
mkdir -p "$folder/obj"
(
    cd "$folder/obj" &&
        ../../src/musl/configure CC="$compiler" CFLAGS='-fPIE -fstack-protector-strong' --prefix="$folder" \
            --disable-shared --enable-wrapper=gcc "$@" &&
        make -j"$(nproc)" &&
        make install DESTDIR=../../../
) >"$folder.log" 2>&1 || {
    tail -n 20 "$folder.log" >&2
    exit 1
}
