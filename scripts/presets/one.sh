#!/bin/sh
# ONE (Lan et al. 2018): one network alone and three branches with a gate, 300 epochs.
# EPOCHS, SEEDS, DATASET, JOBS, EXTRA, SAVE and OUT are those of scripts/run.sh.
set -eu
cd -- "$(dirname -- "$0")/../.."

ONLINE="alone:resnet32,recipe=ONE ONE:resnet32 alone:resnet110_bottleneck,recipe=ONE ONE:resnet110_bottleneck"
export ONLINE
OUT=${OUT:-results/one} exec sh scripts/run.sh 'DATASET=cifar10 STUDENTS=' 'DATASET=cifar100 STUDENTS='
