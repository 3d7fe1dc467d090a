#!/usr/bin/env bash
# Runs one named step of a make target and says how long it took.
#
#   tests/step.sh NAME COMMAND…     tests/step.sh --total
#
# `--total` ends a make target: it prints the time since the make process was started.
set -euo pipefail

if [ "$1" = --total ]; then
	printf -- '--- make: all of it passed, %s s in total\n' "$(ps -o etimes= -p "$PPID" | tr -d ' ')"
	exit 0
fi

name=$1
shift
printf -- '--- %s: %s\n' "$name" "$*"
started=$SECONDS
status=0
"$@" || status=$?
if [ "$status" -eq 0 ]; then
	printf -- '--- %s: passed in %d s\n' "$name" "$((SECONDS - started))"
else
	printf -- '--- %s: FAILED after %d s (exit code %d)\n' "$name" "$((SECONDS - started))" "$status" >&2
fi
exit "$status"
