#!/bin/sh
# Lint, types, tests. Arguments go to pytest: `sh scripts/test.sh -k options`.
# `sh scripts/test.sh --faults` kills, tells, damages and fills up disks instead, for about ten minutes on two cores; see tests/faults.
set -eu
cd -- "$(dirname -- "$0")/.."
. scripts/setup.sh

set_up requirements.txt scripts/requirements-test.txt
say "ruff"
"$python" -m ruff check .
"$python" -m ruff format --check .
say "mypy"
"$python" -m mypy
case " $* " in *" --faults "*) set -- tests/faults "$@" ;; esac
say "pytest"
# one thread per process: the tests' networks are too small to share
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$python" -m pytest -n auto --maxprocesses 8 "$@"
say "all passed"
