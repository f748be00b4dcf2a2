#!/bin/sh
# When does it matter how teachers are weighted? One student under four sets of three teachers: alike, unequal, one of
# them taught with 40 % wrong labels, and specialists that saw a tenth of the images of two thirds of the classes. Every
# weighting of `kd` at equal strength, and the set's first teacher alone (the strong one of the unequal ones); a report
# for each set, and a figure of all. 141 runs with three seeds.
#   SETS        alike unequal wrong specialists         WEIGHTINGS  METHOD[,option=value] …
#   TEACHER     resnet20, of most sets                  STRONG, WEAK   wrn_40_2 and resnet8, of the unequal ones
#   STRENGTHS   values of -a instead of 1: each row is at the one that is best on a tenth of the training images, held out
# STUDENTS, EPOCHS, SEEDS, DATASET, JOBS, EXTRA, SAVE and OUT are those of scripts/run.sh.
set -eu
cd -- "$(dirname -- "$0")/../.."

TEACHER=${TEACHER:-resnet20}
three() {
    case "$1" in
    alike) echo "$TEACHER $TEACHER $TEACHER" ;;
    unequal) echo "${STRONG:-wrn_40_2} $TEACHER ${WEAK:-resnet8}" ;;
    wrong) echo "$TEACHER $TEACHER $TEACHER,wrong_labels=0.4" ;;
    specialists) echo "$TEACHER,specialist=1of3 $TEACHER,specialist=2of3 $TEACHER,specialist=3of3" ;;
    *)
        printf '%s: error: SETS: %s is none of: alike unequal wrong specialists\n' "$0" "$1" >&2
        exit 2
        ;;
    esac
}

WEIGHTINGS=${WEIGHTINGS:-AVERAGE_LOSS RLW EBKD CAMKD AEKD AEKD,C=1 UPGRAD CAGRAD IMTLG MTKDRL}
methods= alone= students=
for strength in ${STRENGTHS:-1}; do
    options=kd_scale=unit${STRENGTHS:+,alpha=$strength}
    alone="$alone kd:AVERAGE_LOSS,$options"
    for each in $WEIGHTINGS; do
        methods="$methods kd:$each,$options"
    done
done
for each in ${STUDENTS:-resnet8}; do
    students="$students $each${STRENGTHS:+,validation=0.1}"
done
export STUDENTS="$students" EPOCHS="${EPOCHS:-30}" SEEDS="${SEEDS:-0 1 2}"
OUT=${OUT:-results/runs/when}
failed=0
set --
for set in ${SETS:-alike unequal wrong specialists}; do
    teachers=$(three "$set")
    set -- "$@" "$OUT/$set"
    OUT=$OUT/$set sh scripts/run.sh \
        "TEACHER='${teachers%% *}' TEACHER_NUM=1 METHODS='$alone'" \
        "TEACHER='$teachers' METHODS='$methods'" || failed=$?
    case $failed in
    75 | 1[0-9][0-9]) exit "$failed" ;; # stopped; of other failures the remaining sets know nothing
    esac
done
if [ "$failed" != 0 ] || [ -n "${DRY_RUN:-}" ]; then
    exit "$failed"
fi
. scripts/setup.sh
set_up requirements.txt
if [ -n "${STRENGTHS:-}" ]; then
    for report; do
        "$python" -m scripts.report --folders "$report" --choose alpha --out "$report"
    done
fi
exec "$python" -m scripts.differences "$@" --out "$OUT/differences.png"
