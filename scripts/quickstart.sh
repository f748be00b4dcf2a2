#!/bin/sh
# Three small teachers and a student under each ensemble method, on scikit-learn's digits: about 3 minutes on 2 cores.
# The table and figures go to results/quickstart/. Run again, it continues where it stopped.
set -eu
cd -- "$(dirname -- "$0")/.."
. scripts/setup.sh

set_up requirements.txt
"$python" -m scripts.quickstart "$@"
say "done"
