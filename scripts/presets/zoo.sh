#!/bin/sh
# Every loss on one pair: of one teacher, and of three under every weighting, all at equal strength. 316 runs, which
# DRY_RUN=1 lists; LOSSES="kd at crd" and WEIGHTINGS="AVERAGE_LOSS AEKD" make them 13.
# TEACHER, STUDENTS, EPOCHS, SEEDS, DATASET, JOBS, EXTRA, SAVE and OUT are those of scripts/run.sh; fsp wants stages of
# equal width.
set -eu
cd -- "$(dirname -- "$0")/../.."
. scripts/losses.sh

WEIGHTINGS=${WEIGHTINGS:-AVERAGE_LOSS EBKD CAMKD MTKDRL RLW AEKD UPGRAD DUALPROJ CAGRAD IMTLG ALIGNEDMTL NASHMTL}
LOSSES=${LOSSES:-$(every_loss)}
one=$(words AVERAGE_LOSS $LOSSES)
three=
for weighting in $WEIGHTINGS; do
    for each in $(words "$weighting" $LOSSES); do
        three="$three $each,kd_scale=unit"
    done
done
OUT=${OUT:-results/runs/zoo} exec sh scripts/run.sh "TEACHER_NUM=1 METHODS='$one'" "TEACHER_NUM=3 METHODS='$three'"
