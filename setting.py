"""Your teachers: for each dataset a list of (architecture, checkpoint). Edit this file.

The first --teacher_num of the list are used. What is listed below is what these commands write:
    python train_teacher.py --model resnet32x4 --dataset cifar100 --trial 0    (likewise 1 and 2)
    sh scripts/quickstart.sh                                       (digits, --image_size 16)
Teachers may be of different architectures; `python train_student.py --teachers PATH[:ARCH] …` overrides the list.
One with a mean, std, size or channels of its own, or that knows some of the classes, see docs/teachers.md:
    Teacher("resnet56", "x.pth", mean=0.5, std=0.5, size=48, channels="BGR", classes=["cat", "dog"])
None in place of a checkpoint stands for the published weights of a timm/…, hf/… or torchvision/… network.
"""

from helper.teachers.record import Teacher

TEACHERS: dict[str, list[tuple[str, str | None] | Teacher]] = {
    "cifar100": [
        ("resnet32x4", "save/teachers/resnet32x4-cifar100-trial=0/last.pth"),
        ("resnet32x4", "save/teachers/resnet32x4-cifar100-trial=1/last.pth"),
        ("resnet32x4", "save/teachers/resnet32x4-cifar100-trial=2/last.pth"),
    ],
    "cifar10": [
        ("resnet56", "save/teachers/resnet56-cifar10-trial=0/last.pth"),
        ("resnet56", "save/teachers/resnet56-cifar10-trial=1/last.pth"),
        ("resnet56", "save/teachers/resnet56-cifar10-trial=2/last.pth"),
    ],
    "tinyimagenet": [
        ("resnet32x4", "save/teachers/resnet32x4-tinyimagenet-trial=0/last.pth"),
        ("resnet32x4", "save/teachers/resnet32x4-tinyimagenet-trial=1/last.pth"),
        ("resnet32x4", "save/teachers/resnet32x4-tinyimagenet-trial=2/last.pth"),
    ],
    "digits": [
        ("resnet14", "save/teachers/resnet14-digits@76f69b-image_size=16-epochs=8-trial=0/last.pth"),
        ("resnet14", "save/teachers/resnet14-digits@76f69b-image_size=16-epochs=8-trial=1/last.pth"),
        ("resnet14", "save/teachers/resnet14-digits@76f69b-image_size=16-epochs=8-trial=2/last.pth"),
    ],
}
