#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# test/binary.sh: checks on the binary itself, build/butler_webhook: what kind of file it is, what it needs to run, and what is
# inside. That the same sources give the same bytes is dist.sh's.
# shellcheck source=test/checks.sh
. "$(dirname "$0")/checks.sh"

check_elf binary build/butler_webhook X86-64 0x1000 680000
add_up /usr/bin/python3 -m pytest --binary-test=build/butler_webhook test/test_binary.py
finish
