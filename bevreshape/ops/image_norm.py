"""Batch normalisation of tokens by the statistics of the present images, in all processes."""

import torch
import torch.distributed.nn
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch import distributed as dist

Statistics = tuple[Tensor, Tensor, Tensor]
"""Mean and variance of every channel, and the number of values they are computed from."""


class ImageEmbedding(nn.Module):
    """``W · relu(BatchNorm(x))``; forward omits W, which :meth:`NormedLinear.of_embedded` applies."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, dim, bias=False)

    def forward(self, images: Float[Tensor, "p t c"], statistics: Statistics | None) -> Float[Tensor, "p t c"]:
        """Return ``relu(BatchNorm(x))``. Training needs the statistics of the images."""
        norm = self.norm
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        if norm.training:
            assert statistics is not None
            self._track(*statistics)
            mean, var, _ = statistics
        wide = images.dtype
        scale = norm.weight.to(wide) * torch.rsqrt(var.to(wide) + norm.eps)
        shift = norm.bias.to(wide) - mean.to(wide) * scale
        return torch.addcmul(shift, images, scale).relu()

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        momentum = (norm.momentum or 0.0) * (count > 0)  # a batch without images changes nothing
        for running, value in ((norm.running_mean, mean), (norm.running_var, var * count / (count - 1).clamp(min=1))):
            running.lerp_(value.to(running.dtype), momentum.to(running.dtype))
        norm.num_batches_tracked += 1


def statistics_of(
    images: Float[Tensor, "p t c"], present: Bool[Tensor, " p"] | None, group: dist.ProcessGroup | None = None
) -> Statistics:
    """Return mean and variance of the channels over the present images, in all processes of a group."""
    p, t, _ = images.shape
    if present is None and group is None:
        var, mean = torch.var_mean(images, (0, 1), correction=0)
        return mean, var, torch.full((), p * t, device=images.device, dtype=images.dtype)
    weights = torch.ones_like(images[:, 0, :1]) if present is None else present.to(images.dtype)[:, None]
    count = _total(weights.sum() * t, group)
    mean = _total((images.sum(1) * weights).sum(0), group) / count.clamp(min=1)
    var = _total(((images - mean).square().sum(1) * weights).sum(0), group) / count.clamp(min=1)
    return mean, var, count


def _total(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    return value if group is None else dist.nn.functional.all_reduce(value, group=group)


def synchronised(norm: nn.Module) -> dist.ProcessGroup | None:
    """Return the process group of a norm that ``sync_batchnorm`` converted, else ``None``."""
    if not isinstance(norm, nn.SyncBatchNorm) or not dist.is_initialized():
        return None
    return norm.process_group or dist.group.WORLD
