#!/bin/sh
# RepDistiller (Tian et al. 2020): thirteen pairs on CIFAR-100, one teacher, thirteen losses, 240 epochs: 177 runs, which
# DRY_RUN=1 lists. fsp wants stages of equal width, which only six pairs have. RepDistiller's fsp and ab initialise the
# student and end; here they stand beside the cross-entropy.
# EPOCHS, SEEDS, DATASET, JOBS, EXTRA, SAVE and OUT are those of scripts/run.sh.
set -eu
cd -- "$(dirname -- "$0")/../.."
. scripts/losses.sh

without_fsp=$(words AVERAGE_LOSS kd hint at sp cc vid rkd pkt ab ft nst crd)
with_fsp="$without_fsp$(words AVERAGE_LOSS fsp)"
row() {
    echo "TEACHER_NUM=1 TEACHER=$1 STUDENTS=\"$2\" METHODS=\"$3\""
}
OUT=${OUT:-results/runs/repdistiller} exec sh scripts/run.sh \
    "$(row wrn_40_2 wrn_16_2,no-nesterov "$with_fsp")" \
    "$(row wrn_40_2 'wrn_40_1,no-nesterov ShuffleV1,no-nesterov' "$without_fsp")" \
    "$(row resnet56 resnet20,no-nesterov "$with_fsp")" \
    "$(row resnet110 'resnet20,no-nesterov resnet32,no-nesterov' "$with_fsp")" \
    "$(row resnet32x4 resnet8x4,no-nesterov "$with_fsp")" \
    "$(row resnet32x4 'ShuffleV1,no-nesterov ShuffleV2,no-nesterov' "$without_fsp")" \
    "$(row vgg13 vgg8,no-nesterov "$with_fsp")" \
    "$(row vgg13 MobileNetV2,no-nesterov "$without_fsp")" \
    "$(row ResNet50 'MobileNetV2,no-nesterov vgg8,no-nesterov' "$without_fsp")"
