#!/bin/sh
# Lint, types, tests. Arguments go to pytest: `sh scripts/test.sh -k options`.
# `sh scripts/test.sh --all` tests every loss under every weighting, every network and the like, not some of each.
# `sh scripts/test.sh --faults` kills, tells, damages and fills up disks instead, for about ten minutes on two cores; see tests/faults.
set -eu
cd -- "$(dirname -- "$0")/.."
. scripts/setup.sh

set_up requirements.txt scripts/requirements-test.txt
# Only what is ours: what somebody keeps here besides need not be typed, tidy or even Python.
files=$("$python" tests/checkout.py)
# shellcheck disable=SC2046,SC2086 # one word per file
if [ -n "$files" ]; then
    say "ruff"
    "$python" -m ruff check $files
    "$python" -m ruff format --check $files
    say "mypy"
    "$python" -m mypy --follow-imports silent $(printf '%s\n' "$files" | sed '/^tests\//d')
else
    say "not a git checkout, so that our files and yours cannot be told apart: without ruff and mypy"
fi
case " $* " in *" --faults "*) set -- tests/faults "$@" ;; esac
say "pytest"
# one thread per process: the tests' networks are too small to share
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$python" -m pytest -n auto --maxprocesses 8 "$@"
say "all passed"
