"""Networks by name: ``model_dict[name](num_classes=…)``. One family per file; importing a file registers its names."""

from models import (
    densenet,  # noqa: F401
    mobilenetv2,  # noqa: F401
    resnet,  # noqa: F401
    resnetv2,  # noqa: F401
    shufflenetv1,  # noqa: F401
    shufflenetv2,  # noqa: F401
    torchvision_models,  # noqa: F401
    vgg,  # noqa: F401
    wrn,  # noqa: F401
)
from models.base import StagedModel, model_dict

__all__ = ["StagedModel", "model_dict"]
