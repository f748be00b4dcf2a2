"""Batch normalisation over the batches of all processes, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from helper.distributed import differentiable_stack
from helper.errors import UsageError


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


class SyncBatchNormAct(SyncBatchNorm):
    """With what follows the normalisation in timm's ``BatchNormAct2d``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.act(self.drop(super().forward(input)))
        return output


KNOWN: dict[str, type[SyncBatchNorm]] = {
    "torch.nn.modules.batchnorm._BatchNorm.forward": SyncBatchNorm,
    "torch.nn.modules.batchnorm.SyncBatchNorm.forward": SyncBatchNorm,
    "timm.layers.norm_act.BatchNormAct2d.forward": SyncBatchNormAct,
}
"""Whose forward → what does the same over all processes; by name, since timm need not be here."""


def synchronise(network: nn.Module) -> None:
    """Let every BatchNorm in ``network`` be a :class:`SyncBatchNorm`; in place: weights, statistics and names stay.

    Raises:
        UsageError: as :func:`replacements`; nothing has been changed.
    """
    for module, kind in replacements(network):
        module.__class__ = kind


def replacements(network: nn.Module) -> list[tuple[nn.Module, type[SyncBatchNorm]]]:
    """Every BatchNorm in ``network``, and what takes its place.

    Raises:
        UsageError: one of them has a forward of its own make.
    """
    found: list[tuple[nn.Module, type[SyncBatchNorm]]] = []
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, SyncBatchNorm):
            forward: Callable[..., Any] = type(module).forward
            kind = KNOWN.get(f"{forward.__module__}.{forward.__qualname__}")
            if kind is None:
                what = f"batch normalisations of its own make ({type(module).__name__})"
                raise UsageError(f"--sync_bn: the network has {what}; leave it out")
            found.append((module, kind))
    return found
