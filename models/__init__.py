"""Networks by name: ``model_dict[name](num_classes=…)``. One family per file; importing a file registers its names."""

from models import (
    densenet,
    mobilenetv2,
    resnet,
    resnetv2,
    shufflenetv1,
    shufflenetv2,
    torchvision_models,
    vgg,
    wrn,
)
from models.base import StagedModel, model_dict

__all__ = ["StagedModel", "model_dict"]
