#!/bin/sh
# PCL (Wu and Gong 2021): one network alone and every compared method, three peers each, 300 epochs of one recipe. Its
# table does not say which of KDCL's targets it has: here it is MinLogit.
# EPOCHS, SEEDS, DATASET, JOBS, EXTRA, SAVE and OUT are those of scripts/run.sh.
set -eu
cd -- "$(dirname -- "$0")/../.."

row() {
    same="num_branches=3,recipe=OKDDip"
    first="alone:$2 DML:$2,num_branches=3 CLILR:$2,num_branches=3 ONE:$2,$same FFL:$2,$same OKDDip:$2,num_branches=3"
    echo "DATASET=$1 STUDENTS= ONLINE='$first KDCL:$2,$same PCL:$2'"
}
set --
for dataset in cifar10 cifar100; do
    for model in densenetd40k12 resnet32 vgg16_fc3 resnet110_bottleneck wide_resnet20_8; do
        set -- "$@" "$(row $dataset $model)"
    done
done
OUT=${OUT:-results/runs/pcl} exec sh scripts/run.sh "$@"
