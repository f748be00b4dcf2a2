#!/bin/sh
# AE-KD (Du et al. 2020): on logits and on feature maps beside the plain mean, -a 0.9, five teachers, 240 epochs. The
# students keep the learning rate 0.05, MobileNetV2 too; the teachers have Nesterov momentum. The exact solver, then the
# released one. ImageNet is in scripts/imagenet.sh.
# EPOCHS, SEEDS, DATASET, JOBS, EXTRA, SAVE and OUT are those of scripts/run.sh.
set -eu
cd -- "$(dirname -- "$0")/../.."

common=alpha=0.9,learning_rate=0.05
METHODS="kd:AVERAGE_LOSS,$common hint:AVERAGE_LOSS:100,$common kd:AEKD,$common kd:AEKD,$common,qp_solver=svm"
METHODS="$METHODS hint:AEKD:100,$common"
export METHODS
OUT=${OUT:-results/runs/ae_kd} exec sh scripts/run.sh \
    'DATASET=cifar10 TEACHER=resnet56,nesterov TEACHER_NUM=5 STUDENTS="resnet20 MobileNetV2"' \
    'DATASET=cifar100 TEACHER=resnet56,nesterov TEACHER_NUM=5 STUDENTS="resnet20 MobileNetV2"' \
    'DATASET=cifar100 TEACHER=ResNet50,nesterov TEACHER_NUM=3 STUDENTS=ResNet18' \
    'DATASET=cifar100 TEACHER=ResNet50,nesterov TEACHER_NUM=5 STUDENTS=ResNet18'
