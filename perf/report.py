#!/usr/bin/env python3
"""Runs the benchmarks and keeps their figures with the machine that they were made on."""

import contextlib
import io
import json
import sys
from pathlib import Path

import tap_bulk
import tap_cost
from bench_lab import machine

RESULTS = Path(__file__).resolve().parent / "results"


class Tee(io.StringIO):
    """Text that is printed at once and kept."""

    def write(self, text):
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        return super().write(text)


def main():
    text = Tee()
    with contextlib.redirect_stdout(text):
        where = machine()
        print(f"kernel {where['kernel']}, {where['cpu']}, {where['cpus']} CPUs, commit {where['commit']}\n")
        figures = {"machine": where, "tap_cost": tap_cost.main()}
        print()
        figures["tap_bulk"] = tap_bulk.main()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tap.txt").write_text(text.getvalue())
    (RESULTS / "tap.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
