#!/bin/sh
# The papers' ImageNet experiments. Repeat a command to continue; on a cluster, see scripts/slurm.sbatch.
#
#   sh scripts/imagenet.sh aekd       AE-KD: three ResNet50 → ResNet18, and ResNet18 with the average and alone
#   sh scripts/imagenet.sh okddip     OKDDip: ResNet34, three peers and their leader
#   sh scripts/imagenet.sh boc        BOC: EfficientNet-B0 and four thinner students
#   PROCESSES=8 DATA_DIR=… SAVE_DIR=… TRIAL=1 EXTRA="--num_workers 12" sh scripts/imagenet.sh aekd
#
# DATA_DIR (or its folder imagenet) holds train/<class>/* and val/<class>/*. PROCESSES: one for each GPU of this machine.
#
# Published, as far as the authors' files tell: the networks, the losses and their constants (AE-KD: r = 1, a = 0.9,
# T = 4, C = 0.6; OKDDip: 4 branches, T = 3, α = 1, ramp-up over 80 of 300 epochs; BOC: 5 students, Adam 0.001, weight
# decay 1e-4, ×0.5 after 50, 70 and 90 of 100 epochs, from the released configuration). Chosen here, since their files do
# not say: three teachers; for the ResNets the usual schedule, SGD 0.1, ×0.1 after 30 and 60 of 90 epochs, weight decay
# 1e-4; for BOC the loss of its CIFAR-100 recipe for deep networks (c = 0.7, 0.15, 0.15, T = 2); batch 256 for all. Crops
# and flips are those of everyone (RandomResizedCrop 224; 256 → 224 to test).
# shellcheck disable=SC2086 # EXTRA is a list of words
set -eu
cd -- "$(dirname -- "$0")/.."
. scripts/setup.sh

PROCESSES=${PROCESSES:-$(nvidia-smi -L 2>/dev/null | grep -c ^GPU || :)}
if [ "${PROCESSES:-0}" = 0 ]; then PROCESSES=1; fi
DATA_DIR=${DATA_DIR:-data}
SAVE_DIR=${SAVE_DIR:-save}
TRIAL=${TRIAL:-0} # also the seed
BATCH_SIZE=${BATCH_SIZE:-256}
TEACHER=${TEACHER:-torchvision/resnet50}
TEACHER_NUM=${TEACHER_NUM:-3}
STUDENT=${STUDENT:-torchvision/resnet18}
PEERS=${PEERS:-torchvision/resnet34}
THINNED=${THINNED:-torchvision/efficientnet_b0}
EXTRA=${EXTRA:-} # more options, for all
recipe=${1:-}
case $recipe in
aekd | okddip) EPOCHS=${EPOCHS:-90} ;;
boc) EPOCHS=${EPOCHS:-100} ;;
*) die "which one? aekd, okddip or boc, not '$recipe'" ;;
esac

set_up requirements.txt
log=$(mktemp)
trap 'rm -f "$log" "$log.failed"' EXIT
trap 'exit 130' INT TERM

# train SCRIPT OPTION…: $folder becomes the run's folder, the first word of the script's last line
train() {
    set -- "$@" --dataset imagenet --data_dir "$DATA_DIR" --save_dir "$SAVE_DIR" --batch_size "$BATCH_SIZE" \
        --epochs "$EPOCHS" $EXTRA --resume
    say "torchrun --nproc_per_node $PROCESSES $*"
    # the pipe would hide a failure
    { "$python" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" "$@" || echo $? >"$log.failed"; } |
        tee "$log"
    if [ -e "$log.failed" ]; then exit "$(cat "$log.failed")"; fi
    folder=$(tail -n 1 "$log" | cut -d ' ' -f 1)
    folder=${folder%:}
}

# resnet SCRIPT OPTION…: with the usual schedule of ImageNet's ResNets
resnet() {
    train "$@" --learning_rate 0.1 --lr_decay_epochs "${DROPS:-30,60}" --weight_decay 1e-4
}

aekd() {
    teachers=
    number=0
    while [ "$number" -lt "$TEACHER_NUM" ]; do
        resnet train_teacher.py --model "$TEACHER" --trial "$number"
        teachers="$teachers $folder/last.pth:$TEACHER"
        number=$((number + 1))
    done
    resnet train_teacher.py --model "$STUDENT" --nesterov --trial "$TRIAL"
    for method in AEKD AVERAGE_LOSS; do
        resnet train_student.py --model_s "$STUDENT" --teachers $teachers --distill kd --ensemble_method "$method" \
            -r 1 -a 0.9 -b 0 --nesterov --trial "$TRIAL"
    done
}

okddip() {
    resnet train_online.py --method OKDDip --model "$PEERS" --num_branches 4 --trial "$TRIAL"
}

# Its students differ in width, so that each needs its own statistics of BatchNorm over enough images: --sync_bn where a
# GPU has few.
boc() {
    train train_online.py --method BOC --model "$THINNED" --num_students 5 --learning_rate 0.001 --weight_decay 1e-4 \
        --lr_decay_epochs "${DROPS:-50,70,90}" --lr_decay_rate 0.5 --trial "$TRIAL"
}

"$recipe"
say "done"
