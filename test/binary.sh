#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# test/binary.sh: what kind of file build/butler_webhook is, and what it needs to run. What is inside: test_readme.py. That the
# same sources give the same bytes: dist.sh.
# shellcheck source=test/checks.sh
. "$(dirname "$0")/checks.sh"

check_elf binary build/butler_webhook X86-64 0x1000 680000
finish
