#!/bin/bash
# `make bench`: what the tap costs production, beside tc mirred, in network namespaces of its own.
# QUICK=1 takes about two minutes. Prints, and keeps the figures in perf/results/.
set -euo pipefail
cd "$(dirname "$0")/.."

export XTEE=${XTEE:-$PWD/target/release/xtee}
target=$(dirname "$XTEE")
cargo build --locked --release --example flood
export FLOOD=${FLOOD:-$target/examples/flood}

mkdir -p perf/results
# Ahead of whatever else runs on this machine, all sides of a comparison alike; they inherit it.
exec nice -n -20 python3 perf/report.py
