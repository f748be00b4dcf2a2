"""Batch normalisation over the batches of all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from helper.distributed import differentiable_stack


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Normalises with the mean and variance of the global batch (torch's own class of this name refuses CPU tensors).

    Inputs ``[B, C]`` or ``[B, C, …]``. Evaluation is that of any BatchNorm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [B, C, …], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        # autocast would round the statistics
        with torch.autocast(input.device.type, enabled=False):
            return self._normalise(input.float() if input.dtype != torch.float64 else input).to(input.dtype)

    def _normalise(self, input: Tensor) -> Tensor:
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        mean, variance, count = self._moments(input, axes)
        self._follow(mean, variance, count)
        normalised = (input - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if not self.affine:
            return normalised
        return normalised * self.weight.view(shape) + self.bias.view(shape)

    @staticmethod
    def _moments(input: Tensor, axes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean ``[C]``, biased variance ``[C]`` and number of values of a channel, over all processes."""
        channels = input.shape[1]
        here = torch.full((1,), input.numel() / channels, dtype=input.dtype, device=input.device)
        variances, means = torch.var_mean(input, axes, correction=0)
        stacked = differentiable_stack(torch.cat([means, variances, here]))  # [processes, 2C + 1]
        means, variances, counts = stacked.split([channels, channels, 1], dim=1)
        share = counts.detach() / counts.detach().sum()  # [processes, 1]
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean).square())).sum(0)
        return mean, variance, counts.detach().sum()

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics; the running variance is the unbiased one."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor: Any = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), factor)


def synchronise(network: nn.Module) -> None:
    """Let every BatchNorm in ``network`` be a :class:`SyncBatchNorm`; in place: weights, statistics and names stay."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = SyncBatchNorm
