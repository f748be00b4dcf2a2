"""Knowledge Distillation with the Reused Teacher Classifier (Chen et al., CVPR 2022)."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from distiller_zoo.base import FeatureDistiller, Pair, distill_dict
from distiller_zoo.maps import bottleneck, narrower, pooled


@distill_dict.register("simkd")
class SimKD(FeatureDistiller):
    """Mean squared error between the last maps; the student answers through the teacher's classifier.

    The student's map passes a 1×1, a 3×3 and a 1×1 convolution, each with BN and ReLU; of two sizes the larger map is
    pooled to the smaller. Predictions, in evaluation and export too, are ``head_t`` of that map: its mean over the
    positions through the teacher's classifier. Of K teachers they are the weighted sum of the K heads' logits, with the
    weights that the teachers had on average in the last hundred or so steps of training.

    ``-r`` and ``-a`` act on the student's own classifier, whose answers nobody asks for: the published
    ``-r 0 -a 0 -b 1`` leaves it untrained.

    Args:
        pair: the networks' shapes.
        factor: how much narrower than the teacher the bottleneck is.
    """

    predicts = True

    def __init__(
        self,
        pair: Pair,
        *,
        factor: Annotated[int, "the bottleneck is so many times narrower than the teacher"] = 2,
    ) -> None:
        super().__init__(pair)
        width, teacher_width = self.student_shape[0], self.teacher_shape[0]
        self.embed = bottleneck(width, narrower(teacher_width, factor), teacher_width)

    def adapt(self, student_map: Tensor) -> Tensor:
        return self.embed(_pooled(student_map, self.teacher_shape[1:]))

    def distance(self, adapted: Tensor, teacher_map: Tensor) -> Tensor:
        height, width = adapted.shape[2:]
        return super().distance(adapted, _pooled(teacher_map, (height, width)))

    def as_teacher_reads(self, prepared: Tensor) -> Tensor:
        return prepared


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps ``[B, C, H, W]`` pooled to ``size`` where they are larger."""
    return pooled(maps, (min(maps.shape[2], size[0]), min(maps.shape[3], size[1])))
