#!/bin/sh
# ONE (Lan et al. 2018): one network alone and three branches with a gate, 300 epochs. What it calls resnet110 has 18
# bottleneck blocks in a stage: resnet164_bottleneck.
# EPOCHS, SEEDS, DATASET, JOBS, EXTRA, SAVE and OUT are those of scripts/run.sh.
set -eu
cd -- "$(dirname -- "$0")/../.."

ONLINE="alone:resnet32,recipe=ONE ONE:resnet32 alone:resnet164_bottleneck,recipe=ONE ONE:resnet164_bottleneck"
export ONLINE
OUT=${OUT:-results/runs/one} exec sh scripts/run.sh 'DATASET=cifar10 STUDENTS=' 'DATASET=cifar100 STUDENTS='
