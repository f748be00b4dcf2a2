#!/bin/sh
# CA-MKD (Zhang et al. 2022): three teachers on CIFAR-100, seven pairs, every compared method, 240 epochs.
# EPOCHS, SEEDS, DATASET, JOBS, EXTRA, SAVE and OUT are those of scripts/run.sh.
set -eu
cd -- "$(dirname -- "$0")/../.."

OUT=${OUT:-results/runs/ca_mkd} exec sh scripts/run.sh \
    'TEACHER=wrn_40_2 STUDENTS=ShuffleV1' \
    'TEACHER=resnet56 STUDENTS=MobileNetV2' \
    'TEACHER=vgg13 STUDENTS="vgg8 MobileNetV2"' \
    'TEACHER=resnet32x4 STUDENTS="resnet8x4 ShuffleV2 vgg8"'
