#!/bin/sh
# The papers' ImageNet experiments. Repeat a command to continue; on a cluster, see scripts/slurm.sbatch.
#
#   sh scripts/imagenet.sh aekd       AE-KD: three ResNet50 → ResNet18, and ResNet18 with the average and alone
#   sh scripts/imagenet.sh okddip     OKDDip: ResNet34, three peers and their leader
#   sh scripts/imagenet.sh boc        BOC: EfficientNet-B0 and four thinner students
#   PROCESSES=8 DATA_DIR=… SAVE_DIR=… TRIAL=1 EXTRA="--num_workers 12" sh scripts/imagenet.sh aekd
#
# DATA_DIR (or its folder imagenet) holds train/<class>/* and val/<class>/*. PROCESSES: one for each visible GPU.
# TEACHER, TEACHER_NUM, STUDENT, PEERS and THINNED name other networks; EPOCHS, DROPS and BATCH_SIZE, another schedule;
# EXTRA has more options for all runs, OUT is the report's folder.
#
# Published, as far as the authors' files tell: the networks, the losses and their constants (AE-KD: r = 1, a = 0.9,
# T = 4, C = 0.6; OKDDip: 4 branches, T = 3, α = 1, ramp-up over 80 of 300 epochs; BOC: 5 students, T = 3, Adam 0.001,
# weight decay 1e-4, ×0.5 after 50, 70 and 90 of 100 epochs, batch 128, from the released configuration). Chosen here,
# since their files do not say: three teachers; for the ResNets the usual schedule, SGD 0.1, ×0.1 after 30 and 60 of 90
# epochs, weight decay 1e-4, batch 256; for BOC c = 1, 1, 1, the default of its code. Crops and flips are those of everyone
# (RandomResizedCrop 224; 256 → 224 to test); BOC's code resizes to 224, pads by 50, turns by up to 10° and crops.
set -eu
cd -- "$(dirname -- "$0")/.."
. scripts/setup.sh

# How many GPUs the runs may see: CUDA_VISIBLE_DEVICES hides the others.
gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        # shellcheck disable=SC2086 # it is divided at its commas
        (set -f; IFS=,; set -- $CUDA_VISIBLE_DEVICES; echo $#)
    else
        nvidia-smi -L 2>/dev/null | grep -c ^GPU || :
    fi
}

PROCESSES=${PROCESSES:-$(gpus)}
if [ "${PROCESSES:-0}" = 0 ]; then PROCESSES=1; fi
SAVE=${SAVE_DIR:-}
DATA=${DATA_DIR:-}
DATASET=imagenet
TEACHER=${TEACHER:-torchvision/resnet50}
TEACHER_NUM=${TEACHER_NUM:-3}
SEEDS=${TRIAL:-0}
STUDENTS=
METHODS=
ONLINE=
recipe=${1:-}
# the usual schedule of ImageNet's ResNets
schedule="--learning_rate 0.1 --lr_decay_epochs ${DROPS:-30,60} --weight_decay 1e-4"
batch=256
case $recipe in
aekd)
    EPOCHS=${EPOCHS:-90}
    STUDENTS=${STUDENT:-torchvision/resnet18}
    METHODS="kd:AEKD,alpha=0.9 kd:AVERAGE_LOSS,alpha=0.9"
    ;;
okddip)
    EPOCHS=${EPOCHS:-90}
    ONLINE="OKDDip:${PEERS:-torchvision/resnet34},num_branches=4"
    ;;
boc)
    # Its students differ in width, so that each needs its own statistics of BatchNorm over enough images: --sync_bn
    # where a GPU has few.
    EPOCHS=${EPOCHS:-100}
    ONLINE="BOC:${THINNED:-torchvision/efficientnet_b0},num_students=5"
    batch=128
    schedule="--learning_rate 0.001 --weight_decay 1e-4 --lr_decay_epochs ${DROPS:-50,70,90} --lr_decay_rate 0.5"
    ;;
*) die "which one? aekd, okddip or boc, not '$recipe'" ;;
esac
EXTRA="--batch_size ${BATCH_SIZE:-$batch} $schedule ${EXTRA:-}"
OUT=${OUT:-results/runs/imagenet-$recipe}

set_up requirements.txt
export PROCESSES SAVE DATA DATASET TEACHER TEACHER_NUM SEEDS STUDENTS METHODS ONLINE EPOCHS EXTRA OUT
exec "$python" -m scripts.run_all
