#!/bin/sh
# Three small teachers, a student under each ensemble method and peers under each online one, on scikit-learn's digits:
# about 2 minutes on 2 cores.
# The tables and figures go to results/quickstart/. Run again, it continues where it stopped.
set -eu
cd -- "$(dirname -- "$0")/.."
. scripts/setup.sh

set_up requirements.txt
exec "$python" -m scripts.quickstart "$@"
