#!/bin/sh
# OKDDip (Chen et al. 2020): one network alone, independent branches, and every compared method, 300 epochs. Its ONE has
# four branches, a gradient through the target of the KL, and OKDDip's recipe.
# ImageNet is in scripts/imagenet.sh.
# EPOCHS, SEEDS, DATASET, JOBS, EXTRA, SAVE and OUT are those of scripts/run.sh.
set -eu
cd -- "$(dirname -- "$0")/../.."

row() {
    one="ONE:$2,num_branches=4,no-detach_targets,recipe=OKDDip"
    echo "DATASET=$1 STUDENTS= ONLINE='alone:$2 IND:$2 DML:$2 CLILR:$2 $one OKDDip:$2 OKDDip:$2,peers=networks'"
}
set --
for dataset in cifar10 cifar100; do
    for model in densenetd40k12 resnet32 vgg16_fc3 resnet110_bottleneck wide_resnet20_8; do
        set -- "$@" "$(row $dataset $model)"
    done
done
OUT=${OUT:-results/runs/okddip} exec sh scripts/run.sh "$@"
