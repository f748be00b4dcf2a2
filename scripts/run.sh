#!/bin/sh
# The published commands: teachers, the student alone, and under every ensemble method. Repeat it to continue.
#
#   sh scripts/run.sh                                                    resnet32x4 → resnet8x4 on CIFAR-100, 240 epochs
#   TEACHER=vgg13 STUDENT=vgg8 SEEDS="0 1 2" sh scripts/run.sh           another row of the papers
#   TEACHER=resnet20 STUDENT=resnet8 EPOCHS=10 EXTRA="--precision bf16" sh scripts/run.sh      hours instead of weeks
#
# Everything goes to save/; the table and figures to results/<DATASET>-<TEACHER>-<STUDENT>/.
# shellcheck disable=SC2086 # the variables are lists of words
set -eu
cd -- "$(dirname -- "$0")/.."
. scripts/setup.sh

DATASET=${DATASET:-cifar100}
TEACHER=${TEACHER:-resnet32x4}
STUDENT=${STUDENT:-resnet8x4}
SEEDS=${SEEDS:-0}
EPOCHS=${EPOCHS:-240}
TEACHER_NUM=${TEACHER_NUM:-3}
EXTRA=${EXTRA:-} # more options, for teachers and students

set_up requirements.txt
log=$(mktemp)
trap 'rm -f "$log" "$log.failed"' EXIT
trap 'exit 130' INT TERM
teachers=
folders=

# train SCRIPT OPTION…: $folder becomes the run's folder, the first word of the script's last line
train() {
    say "python $* --resume"
    # the pipe would hide a failure
    { "$python" "$@" --resume || echo $? >"$log.failed"; } | tee "$log"
    if [ -e "$log.failed" ]; then exit "$(cat "$log.failed")"; fi
    folder=$(tail -n 1 "$log" | cut -d ' ' -f 1)
    folder=${folder%:}
}

# distil OPTION…: the student under a method, once per seed
distil() {
    for seed in $SEEDS; do
        train train_student.py --model_s "$STUDENT" --dataset "$DATASET" --teachers $teachers "$@" \
            --nesterov -r 1 -a 1 --epochs "$EPOCHS" --trial "$seed" $EXTRA
        folders="$folders $folder"
    done
}

trial=0
while [ "$trial" -lt "$TEACHER_NUM" ]; do
    train train_teacher.py --model "$TEACHER" --dataset "$DATASET" --epochs "$EPOCHS" --trial "$trial" $EXTRA
    teachers="$teachers $folder/last.pth:$TEACHER"
    trial=$((trial + 1))
done

for seed in $SEEDS; do
    train train_teacher.py --model "$STUDENT" --dataset "$DATASET" --nesterov --epochs "$EPOCHS" --trial "$seed" $EXTRA
    folders="$folders $folder"
done
distil --distill kd --ensemble_method AVERAGE_LOSS -b 0
distil --distill hint --ensemble_method AVERAGE_LOSS -b 100 # FitNet-MKD
distil --distill kd --ensemble_method EBKD -b 0
distil --distill kd --ensemble_method AEKD -b 0
distil --distill inter --ensemble_method CAMKD -b 50

"$python" -m scripts.report --folders $folders --out "results/$DATASET-$TEACHER-$STUDENT"
say "done"
