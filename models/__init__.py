"""Networks by name: ``model_dict[name](num_classes=…)``. One family per file; importing a file registers its names."""

from models import (
    densenet,
    huggingface,
    mobilenetv2,
    own_file,
    programs,
    resnet,
    resnetv2,
    shufflenetv1,
    shufflenetv2,
    timm_models,
    torchvision_models,
    vgg,
    wrn,
)
from models.base import StagedModel, model_dict

__all__ = ["StagedModel", "model_dict"]
