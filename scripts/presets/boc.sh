#!/bin/sh
# Online ensemble compression (Walawalkar et al. 2020): five students at once, and each alone; 350 or 400 epochs.
# ImageNet is in scripts/imagenet.sh.
# EPOCHS, SEEDS, DATASET, JOBS, EXTRA, SAVE and OUT are those of scripts/run.sh.
set -eu
cd -- "$(dirname -- "$0")/../.."

row() {
    echo "DATASET=$1 STUDENTS= ONLINE='BOC:$2 $(for j in 0 1 2 3 4; do printf 'BOC:%s,single_student=%s ' "$2" $j; done)'"
}
set --
for dataset in cifar10 cifar100; do
    for model in resnet20 resnet32 resnet44 resnet56 resnet110 densenetd100k12; do
        set -- "$@" "$(row $dataset $model)"
    done
done
OUT=${OUT:-results/runs/boc} exec sh scripts/run.sh "$@"
