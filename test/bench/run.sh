#!/bin/sh
# Builds the benchmark's tools into build/bench, unpacks its peers there, then measures; see README.md here.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
out=build/bench
flags="-std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra"

if ! printf '#include <openssl/ssl.h>\n' | cc -E - >/dev/null 2>&1; then
    echo "the benchmark needs: apt-get install gcc libc6-dev libssl-dev openssl python3 gnuplot-nox" >&2
    exit 2
fi
mkdir -p "$out"
for tool in blast launch sink floor; do
    libs=
    case $tool in sink | floor) libs="-lssl -lcrypto" ;; esac
    # shellcheck disable=SC2086 # flags and libs are lists of words
    cc $flags -o "$out/$tool" "$here/$tool.c" $libs
done
"$here/peers.sh" "$out/peers"
exec python3 "$here/bench.py" "$@"
