#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test/run.sh [-jN] PART...: runs `make check-PART` for each, N at the same time, but the part `alone` after the others; says at
# the end what was skipped, and why, and what failed; and adds up what part.sh wrote. A part that did not build has failed.
cd "$(dirname "$0")/.." || exit 1
jobs=-j1
case $1 in -j*) jobs=$1 && shift ;; esac
RESULTS=$(mktemp) # a part may run this script, too
export RESULTS
trap 'rm -f "$RESULTS"' EXIT
targets=
for part; do
    [ "$part" = alone ] || targets="$targets check-$part"
done
# shellcheck disable=SC2086
"${MAKE:-make}" --no-print-directory -k "$jobs" -Otarget $targets
case " $* " in *' alone '*) "${MAKE:-make}" --no-print-directory check-alone ;; esac
for part; do
    grep -q "^$part " "$RESULTS" || printf '%-8s %5d passed %3d failed: it did not build\n' "$part" 0 1 >>"$RESULTS"
done
echo '=='
grep -E '^(SKIPPED|skipped|FAILED)' "$RESULTS" | sort -u
grep -vE '^(SKIPPED|skipped|FAILED)' "$RESULTS"
awk '$3 == "passed" { passed += $2; failed += $4 }
    END { print passed + 0 " passed, " failed + 0 " failed"; exit failed > 0 }' "$RESULTS"
