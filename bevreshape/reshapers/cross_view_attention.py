"""Cross-view attention with camera-aware positional embeddings, the view transformer of CVT."""

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers.attention import FeedForward
from bevreshape.reshapers.base import FeatureShape, GeometricReshaper
from bevreshape.reshapers.joint_attention import joint_attention

Statistics = tuple[Tensor, Tensor, Tensor]
"""Mean and variance of every channel, and how many values they are of."""


class NormedLinear(nn.Module):
    """``W · LayerNorm(x) + b``."""

    def __init__(self, dim: int, out: int, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))

    def of_embedded(self, tokens: Float[Tensor, "p k t"], embed: Float[Tensor, "d k"]) -> Float[Tensor, "p t out"]:
        """The same of ``x = E·z`` for tokens z, without x, which is several times as wide as z.

        With P, which subtracts the mean, ``LayerNorm(x)`` is ``g · PEz / √(zᵀ(PE)ᵀ(PE)z/d + ε) + h``: all but the
        square root is linear, and is multiplied into one matrix.
        """
        wide = tokens.dtype
        with torch.autocast(tokens.device.type, enabled=False):
            centred = embed - embed.mean(0)
            gram = centred.mT @ centred / len(embed)  # k k
            gain, shift, w = (x.to(wide) for x in (self.norm.weight, self.norm.bias, self.linear.weight))
            weight, bias = (w * gain) @ centred, w @ shift
            if self.linear.bias is not None:
                bias = bias + self.linear.bias.to(wide)
            variance = (tokens * (gram @ tokens)).sum(1, keepdim=True).clamp(min=0)  # p 1 t
            tokens = tokens * torch.rsqrt(variance + self.norm.eps)
        narrow = self.linear.weight.dtype
        weight = weight.mT.to(narrow).expand(tokens.shape[0], -1, -1)
        return torch.baddbmm(bias.to(narrow), tokens.mT.to(narrow), weight)


class PictureEmbedding(nn.Module):
    """BatchNorm and ReLU of pictures' features; their projection to the attention's width is left to who reads them."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, dim, bias=False)

    def forward(self, pictures: Float[Tensor, "p c t"], statistics: Statistics | None) -> Float[Tensor, "p c t"]:
        """``relu(BatchNorm(x))``; the statistics are those of the pictures, needed in training."""
        norm = self.norm
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        if norm.training:
            assert statistics is not None
            self._track(*statistics)
            mean, var, _ = statistics
        wide = pictures.dtype
        scale = norm.weight.to(wide) * torch.rsqrt(var.to(wide) + norm.eps)
        shift = norm.bias.to(wide) - mean.to(wide) * scale
        return torch.addcmul(shift[:, None], pictures, scale[:, None]).relu()

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        momentum = (norm.momentum or 0.0) * (count > 0)  # a batch without pictures says nothing
        for running, value in ((norm.running_mean, mean), (norm.running_var, var * count / (count - 1).clamp(min=1))):
            running.lerp_(value.to(running.dtype), momentum.to(running.dtype))
        norm.num_batches_tracked += 1


def statistics_of(pictures: Float[Tensor, "p c t"], present: Bool[Tensor, " p"] | None) -> Statistics:
    """Mean and variance of the channels of those pictures that are there."""
    p, _, t = pictures.shape
    if present is None:
        var, mean = torch.var_mean(pictures, (0, 2), correction=0)
        return mean, var, torch.full((), p * t, device=pictures.device, dtype=pictures.dtype)
    weights = present.to(pictures.dtype)[:, None]
    count = weights.sum() * t
    mean = (pictures.sum(2) * weights).sum(0) / count.clamp(min=1)
    var = ((pictures - mean[:, None]).square().sum(2) * weights).sum(0) / count.clamp(min=1)
    return mean, var, count


class CrossView(nn.Module):
    """One scale: BEV queries, aware of the cameras, look up its tokens."""

    def __init__(
        self, channels: int, dim: int, heads: int, dim_head: int, qkv_bias: bool, skip: bool, image_features: bool
    ) -> None:
        super().__init__()
        self.heads, self.skip = heads, skip
        self.embed_key = PictureEmbedding(channels, dim) if image_features else None
        self.embed_value = PictureEmbedding(channels, dim)
        self.embed_ground = nn.Linear(2, dim)
        self.embed_ray = nn.Linear(4, dim, bias=False)
        self.embed_camera = nn.Linear(4, dim, bias=False)
        self.to_q, self.to_k, self.to_v = (NormedLinear(dim, heads * dim_head, qkv_bias) for _ in range(3))
        self.project = nn.Linear(heads * dim_head, dim)
        self.prenorm, self.postnorm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, 2)

    def _ray_weight(self, wide: torch.dtype) -> Float[Tensor, "d 7"]:
        """Of (ray, centre, 1): ``W_ray·(centre + ray, 1) − W_camera·(centre, 1)``."""
        ray, camera = self.embed_ray.weight.to(wide), self.embed_camera.weight.to(wide)
        return torch.cat([ray[:, :3], ray - camera], dim=1)

    def locate(
        self, rays: Float[Tensor, "b n t 3"], centers: Float[Tensor, "b n 3"], ground: Float[Tensor, "q 2"]
    ) -> tuple[Float[Tensor, "b n 7 t"], Float[Tensor, "b n q d"]]:
        """What, times ``_ray_weight``, is the unit embedding of every ray, and the unit embedding of every cell."""
        wide = torch.promote_types(self.embed_ray.weight.dtype, rays.dtype)
        rays, centers, ground = (x.to(wide) for x in (rays, centers, ground))
        centers = F.pad(centers, (0, 1), value=1.0)  # b n 4
        rays = torch.cat([rays.mT, centers.unsqueeze(-1).expand(-1, -1, -1, rays.shape[2])], dim=2)  # b n 7 t
        weight = self._ray_weight(wide)
        square = (rays * (weight.mT @ weight @ rays)).sum(2, keepdim=True)  # b n 1 t
        # |Wz| = √(zᵀWᵀWz), kept from 0, where its gradient would be infinite
        rays = rays / (square.clamp(min=1e-20).sqrt() + 1e-7)
        bias = None if self.embed_ground.bias is None else self.embed_ground.bias.to(wide)
        cells = F.linear(ground, self.embed_ground.weight.to(wide), bias)  # q d
        cells = cells - F.linear(centers, self.embed_camera.weight.to(wide)).unsqueeze(2)  # b n q d
        return rays, cells / (cells.norm(dim=-1, keepdim=True) + 1e-7)

    def forward(
        self,
        bev: Float[Tensor, "b q d"],
        features: Float[Tensor, "b n c h w"],
        rays: Float[Tensor, "#b n 7 t"],
        cells: Float[Tensor, "#b n q d"],
        present: Bool[Tensor, "b n"] | None,
    ) -> Float[Tensor, "b q d"]:
        b, n = features.shape[:2]
        keys, values = self._tokens(features, rays.expand(b, -1, -1, -1), present)
        queries = self.to_q(cells.to(bev.dtype) + bev.unsqueeze(1))  # b n q (a e)
        q, k, v = (rearrange(x, "b n t (a e) -> b n a t e", a=self.heads) for x in (queries, keys, values))
        found = self.project(rearrange(joint_attention(q, k, v, present), "b a q e -> b q (a e)"))
        bev = self.prenorm(bev + found if self.skip else found)
        return self.postnorm(bev + self.feedforward(bev))

    def _tokens(self, features: Tensor, rays: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values, (b, n, t, heads · e) each."""
        wide = torch.promote_types(features.dtype, torch.float32)
        pictures = features.flatten(3).flatten(0, 1).to(wide)  # p c t
        there = None if present is None else present.flatten()
        if there is not None:
            pictures = torch.where(there[:, None, None], pictures, 0.0)
        with torch.autocast(features.device.type, enabled=False):
            statistics = statistics_of(pictures, there) if self.training else None
            keys, embed = rays.flatten(0, 1).to(wide), self._ray_weight(wide)
            if self.embed_key is not None:
                keys = torch.cat([self.embed_key(pictures, statistics), keys], dim=1)
                embed = torch.cat([self.embed_key.linear.weight.to(wide), embed], dim=1)
            values = self.embed_value(pictures, statistics)
        k = self.to_k.of_embedded(keys, embed)
        v = self.to_v.of_embedded(values, self.embed_value.linear.weight.to(wide))
        size = features.shape[:2]
        return k.unflatten(0, size), v.unflatten(0, size)


class CrossViewAttention(GeometricReshaper):
    """docs"""

    takes_scales = True

    def __init__(
        self,
        source: FeatureShape | Sequence[FeatureShape],
        grid: BEVGrid | tuple[int, int],
        *,
        dim: int = 64,
        heads: int = 4,
        dim_head: int = 16,
        qkv_bias: bool = True,
        skip: bool = True,
        image_features: bool = True,
        middle: int | Sequence[int] = 2,
    ) -> None:
        super().__init__(source, grid, dim)
        blocks = [middle] * len(self.sources) if isinstance(middle, int) else list(middle)
        if len(blocks) != len(self.sources) or min(blocks) < 0:
            raise InputError(
                f"{self.name}: middle={middle} must say how many blocks, 0 or more, follow each of {len(self.sources)} scales"
            )
        if any(blocks) and dim % 4:
            raise InputError(
                f"{self.name}: the blocks after a scale are a quarter as wide inside, but dim={dim} is no multiple of 4; "
                "choose one, or middle=0"
            )
        if min(dim, heads, dim_head) < 1:
            raise InputError(f"{self.name}: dim={dim}, heads={heads} and dim_head={dim_head} must be at least 1")
        self.prior = nn.Parameter(torch.randn(dim, *self.target_shape))
        self.views = nn.ModuleList(
            CrossView(scale.channels, dim, heads, dim_head, qkv_bias, skip, image_features) for scale in self.sources
        )
        self.middle = nn.ModuleList(
            nn.Sequential(*(Bottleneck(dim, dim // 4) for _ in range(count))) for count in blocks
        )

    def locate(self, cameras: Cameras) -> tuple[Tensor, ...]:
        device, dtype = cameras.intrinsics.device, cameras.intrinsics.dtype
        rays = [cameras.rays(scale.pixels(device, dtype).flatten(0, 1)) for scale in self.sources]
        return self.encode(rays, cameras.centers, self.grid.centers(device, dtype), cameras.mask)

    def encode(
        self,
        rays: Sequence[Float[Tensor, "b n _ 3"]],
        centers: Float[Tensor, "b n 3"],
        ground: Float[Tensor, "R C 2"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> tuple[Tensor, ...]:
        """What :meth:`gather` takes."""
        if mask is not None:  # not even an impossible calibration may show
            rays = [torch.where(mask[..., None, None], x, 0.0) for x in rays]
            centers = torch.where(mask[..., None], centers, 0.0)
        located: list[Tensor] = [] if mask is None else [mask]
        with torch.autocast(centers.device.type, enabled=False):
            for view, scale in zip(self.views, rays, strict=True):
                located.extend(view.locate(scale, centers, ground.flatten(0, 1)))
        return tuple(located)

    def gather(self, features: tuple[Tensor, ...], located: tuple[Tensor, ...]) -> Tensor:
        b = features[0].shape[0]
        present = None
        if len(located) % 2:
            present, located = located[0].expand(b, -1), located[1:]
        bev = self.prior.expand(b, -1, -1, -1)  # b d R C
        for number, (view, blocks) in enumerate(zip(self.views, self.middle, strict=True)):
            rays, cells = located[2 * number : 2 * number + 2]
            queries = rearrange(bev, "b d R C -> b (R C) d")
            queries = view(queries, features[number], rays, cells, present)
            bev = blocks(rearrange(queries, "b (R C) d -> b d R C", R=self.target_shape[0]))
        return bev
