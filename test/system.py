#!/usr/bin/env python3
"""The system tests: the real binary against real and scripted receivers. --help lists the options."""

import importlib
import importlib.util
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness

MODULES = ('sys_calls', 'sys_http', 'sys_tls', 'sys_config')


def main():
    present = [name for name in MODULES if importlib.util.find_spec(name)]
    return harness.run_modules([importlib.import_module(name) for name in present])


if __name__ == '__main__':
    sys.exit(main())
