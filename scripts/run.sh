#!/bin/sh
# A table of results: trains the teachers, the students alone and under every method, and peers, as far as they are
# missing, then reports. Repeat it to go on where it stopped; what is finished is skipped. Keep SAVE where it is, or
# relative: students are named after their teachers' paths, and under other paths all of them are trained again.
#
#   sh scripts/run.sh                                                  resnet32x4 → resnet8x4 on CIFAR-100, 240 epochs
#   TEACHER=vgg13 STUDENTS="vgg8 MobileNetV2" SEEDS="0 1 2" sh scripts/run.sh
#   TEACHER=resnet20 STUDENT=resnet8 EPOCHS=10 METHODS="kd:AVERAGE_LOSS kd:AEKD,qp_solver=svm" sh scripts/run.sh
#   STUDENTS= ONLINE="alone:resnet32 OKDDip:resnet32 BOC:resnet20,num_students=3" sh scripts/run.sh
#   sh scripts/presets/ca_mkd.sh                                       the rows of a paper; EPOCHS=10 shortens them
#
#   DATASET    cifar100                          TEACHER    resnet32x4[,option=value…], of which TEACHER_NUM, 3;
#                                                           or several words, of each one: "resnet8 resnet20"
#   STUDENTS   resnet8x4[,option=value…] …       METHODS    LOSS:WEIGHTING[:b][,option=value…] …, CA-MKD's table
#   ONLINE     METHOD:MODEL[,option=value…] …    SEEDS      0
#   EPOCHS     each recipe's own, 240 to 400     EXTRA      options for every run
#   JOBS       runs at a time: one per GPU, or one per core of the CPU up to 4, which share its threads
#   SAVE       save, for runs                    OUT        results/runs/<DATASET>-<TEACHER>-<STUDENTS>, for the report
#   DATA       data, for datasets                PROCESSES  each run in so many under torchrun, one run at a time
#   CACHE      0 asks the teachers in each run anew instead of keeping their logits in SAVE/cache
#   DRY_RUN    1 only lists the commands and says how many there are
#
# Arguments are rows of such variables, each in a word of its own, over those of the environment.
set -eu
cd -- "$(dirname -- "$0")/.."
. scripts/setup.sh

set_up requirements.txt
exec "$python" -m scripts.run_all "$@"
