#!/usr/bin/env python3
"""Compiles the named Python files with warnings as errors, and writes nothing."""

import pathlib
import sys
import warnings

warnings.simplefilter("error")
for name in sys.argv[1:]:
    compile(pathlib.Path(name).read_text(encoding="utf-8"), name, "exec")
