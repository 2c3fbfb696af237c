"""Attention through a few latents; every feature carries its ray."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Le
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bevreshape.config.options import Count, CountOrNone, Share, Width, checked
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.reshapers.attention import present_tokens
from bevreshape.reshapers.base import GeometricReshaper
from bevreshape.reshapers.latent_block import Block, CoordinateMLP
from bevreshape.reshapers.published_names import LARA

Query = Literal["coordinates", "fourier", "learned"]
LEARNED_WIDTH = 32
"""Channels of a cell's learned vector."""


class Embedded(NamedTuple):
    """Values that do not depend on the images.

    Attributes:
        rays: (b, t, ray_dim), embedded rays.
        queries: (1, R·C, dim), Q of the cells.
        present: (b, t), false for features of dropped cameras; ``None`` if all are present.
    """

    rays: Tensor
    queries: Tensor
    present: Tensor | None


@checked
class LatentAttention(GeometricReshaper):
    """A few latents attend to the features and to each other, and the cells attend to the latents.

    After LaRa (Bartoccioni et al., CoRL 2022), which follows Perceiver IO (Jaegle et al. 2021). With X the features of
    all cameras, E their rays, Z the learned latents and Ø the cells:

    - tokens ``T = [X, MLP(E)]``, (b, n·h·w, c + ray_dim); E is the camera's centre in metres and the unit direction
      of the feature's ray, both in the ego frame (with ``plucker`` also their cross product);
    - ``Z ← block(Z, T)``, then ``depth`` times ``Z ← block(Z, Z)``, (b, latents, dim);
    - ``O = block(MLP(Ø), Z)``, (b, R·C, dim), without the first residual, because positions are no features.

    A block is ``z ← z + softmax(Q·Kᵀ/√d)·V·W`` and ``z ← z + feedforward(z)``, with Q, K, V of normalised z and tokens.
    Cost and memory grow with tokens + cells, not with their product, and no tokens × latents matrix is kept. Cells are
    never projected into images: a cell that no camera sees still attends to the latents.

    A cell is represented by its ``coordinates`` and their distance from the vehicle, by ``fourier`` features of these,
    or by a ``learned`` vector. Coordinates are x forward and y left, with the vehicle at 0 and the farthest cell centre
    of either axis at ±1. On a grid around the vehicle these are the original's.

    Differences from the original:

    - It centres feature j on pixel ``stride·j``. Here it is ``stride·j + offset_px``.
    - Its Plücker rays of a batch of three are crossed along the batch (``torch.cross`` uses the first dimension of size
      3), and Fourier features mix up the cells of a grid that is not square. Neither happens here.
    - Its variants with camera indices are omitted.
    - Its rows and columns ascend with x and y. Here row 0 is farthest ahead and column 0 farthest left, as everywhere.

    ``reshaper.gather(features, reshaper.embed(rays, cells))`` accepts other rays and positions.

    Can it reproduce X at a cell that observes exactly one token? Nearly: through residuals (1e-4 of the variance is
    left after training), but only for as many tokens as there are latents.

    Args:
        source: the shape of its features.
        grid: the cells it fills.
        dim: channels of the latents and of the output (LaRa: 256).
        latents: number of latents (LaRa: 256).
        depth: number of self-attention blocks (LaRa: 4).
        read_heads: heads of the attention from latents to tokens (LaRa: 32).
        heads: heads of the attention among latents and from cells to latents (LaRa: 16).
        ray_dim: channels of an embedded ray (LaRa: 128); ``None`` is half of ``dim``.
        plucker: add the moment of rays, ``centre × direction``, as the authors later recommended.
        query: ``coordinates``, ``fourier`` or ``learned``.
        query_bands: frequencies per axis for ``fourier``, from 1 to half the cells of an axis.
        layer_scale: initial factor of the residuals among latents; 0 omits it (LaRa), 1e-5 is that of its smaller
            version.

    Raises:
        InputError: if the query is unknown, there are no latents, heads do not divide ``dim``, or the grid has no
            metres.
    """

    def __init__(
        self,
        source: FeatureShape,
        grid: BEVGrid | tuple[int, int],
        *,
        dim: Width = 64,
        latents: Width = 128,
        depth: CountOrNone = 4,
        read_heads: Count = 8,
        heads: Count = 4,
        ray_dim: Width | None = None,
        plucker: bool = False,
        query: Query = "coordinates",
        query_bands: Annotated[int, Ge(1), Le(32)] = 16,
        layer_scale: Share = 0.0,
    ) -> None:
        super().__init__(source, grid, dim)
        rows, cols = self.target_shape
        ray_dim = dim // 2 if ray_dim is None else ray_dim
        self.plucker = plucker
        self.query = query
        self.query_bands = query_bands
        self.embed_rays = CoordinateMLP(9 if plucker else 6, ray_dim)
        self.latents = nn.Parameter(torch.randn(latents, dim) * 0.02)
        self.read = Block(dim, read_heads, source.channels + ray_dim)
        self.think = nn.ModuleList(Block(dim, heads, scale=layer_scale) for _ in range(depth))
        self.cells = nn.Parameter(torch.randn(rows * cols, LEARNED_WIDTH)) if query == "learned" else None
        widths = {"coordinates": 3, "fourier": 2 + 4 * query_bands, "learned": LEARNED_WIDTH}
        self.embed_cells = CoordinateMLP(widths[query], dim)
        self.write = Block(dim, heads, dim)

    def locate(self, cameras: Cameras) -> Embedded:
        """Embed the cameras' rays and the cells, see :meth:`embed`."""
        pixels = self.source.pixels(cameras.intrinsics.device, cameras.intrinsics.dtype).flatten(0, 1)  # p 2
        directions = cameras.rays(pixels)  # b n p 3
        directions = directions / directions.square().sum(-1, keepdim=True).sqrt()
        centers = cameras.centers.unsqueeze(2).expand_as(directions)
        rays = torch.cat([centers, directions], dim=-1).flatten(1, 2)
        cells = self._coordinates(cameras.intrinsics.device, cameras.intrinsics.dtype)
        return self.embed(rays, cells, present_tokens(cameras, self.source.tokens))

    def embed(
        self, rays: Float[Tensor, "b t 6"], cells: Float[Tensor, "p 2"], present: Bool[Tensor, "b t"] | None = None
    ) -> Embedded:
        """Embed rays and cells.

        Args:
            rays: for every feature, camera by camera and row-major, a point on its ray in metres and a unit direction.
            cells: position of every cell, row-major, in units of the farthest cell.
            present: which features are present; ``None`` for all.
        """
        if present is not None:
            rays = torch.where(present.unsqueeze(-1), rays, 0.0)
        if self.plucker:
            rays = torch.cat([rays, torch.linalg.cross(rays[..., :3], rays[..., 3:])], dim=-1)
        queries = self.write.project(self.embed_cells(self._tell_apart(cells)).unsqueeze(0))
        return Embedded(self.embed_rays(rays), queries, present)

    def gather(self, features: Tensor, located: Embedded) -> Tensor:
        rays, q = (x.to(self.latents.dtype) for x in (located.rays, located.queries))  # autocast lowers their precision
        tokens = rearrange(features, "b n c h w -> b (n h w) c")
        b = tokens.shape[0]
        present = None if located.present is None else located.present.expand(b, -1)
        if present is not None:  # 0 · NaN would be NaN
            tokens = torch.where(present.unsqueeze(-1), tokens, 0.0)
        tokens = torch.cat([tokens, rays.expand(b, -1, -1)], dim=-1)  # b t c+ray_dim
        latents = self.read(self.latents.unsqueeze(0), tokens, present)
        for block in self.think:
            latents = block(latents, latents)
        bev = self.write.feed(self.write.attend(q, latents))
        return rearrange(bev, "b (R C) d -> b d R C", R=self.target_shape[0])

    def load_original(self, state: Mapping[str, Tensor]) -> "LatentAttention":
        """Load the weights of LaRa's ``latent_encoder`` and ``latent_decoder``.

        The widths must be the published ones: ``dim=256, latents=256, read_heads=32, heads=16, ray_dim=128`` on 128
        channels.

        Args:
            state: the state dict of LaRa or its checkpoint, names with any prefix; its image encoder and BEV decoder
                are skipped.

        Raises:
            InputError: if a weight is missing, left over or of another shape.
        """
        given: dict[str, Tensor] = {}
        for key, value in state.items():
            if not re.search(r"(^|\.)latent_(encoder|decoder)\.", key):
                continue
            for pattern, name in LARA:
                key = re.sub(pattern, name, key)
            if ".to_qkv." in key:
                given |= {key.replace("qkv", x): part for x, part in zip("qkv", value.chunk(3), strict=True)}
            else:
                given[key] = value
        self.check_original(given, "build it with the options that they were trained with")
        if "cells" in given:
            given["cells"] = given["cells"].unflatten(0, self.target_shape).flip(0, 1).flatten(0, 1)
        self.load_state_dict(given)
        return self

    def _coordinates(self, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "p 2"]:
        centers = self.grid.centers(device, torch.float64).flatten(0, 1)
        return torch.stack([centers[:, axis] / reach for axis, reach in enumerate(self._reach())], dim=-1).to(dtype)

    def _reach(self) -> tuple[float, float]:
        """Return the distance of the farthest cell centre from the vehicle along either axis, in metres."""
        half = self.grid.cell_m / 2
        x, y = (max(abs(edge) for edge in edges) - half for edges in (self.grid.forward_m, self.grid.left_m))
        return max(x, half), max(y, half)

    def _tell_apart(self, cells: Float[Tensor, "p 2"]) -> Float[Tensor, "p k"]:
        if self.cells is not None:
            return self.cells
        if self.query == "coordinates":
            return torch.cat([cells, cells.square().sum(-1, keepdim=True).sqrt()], dim=-1)
        # from -1 to 1 there are that many cells, and half as many waves are distinguishable
        phases = [
            math.pi * cells[:, axis, None] * torch.linspace(
                1, reach / self.grid.cell_m + 0.5, self.query_bands, device=cells.device, dtype=cells.dtype
            )
            for axis, reach in enumerate(self._reach())
        ]  # fmt: skip
        phase = torch.cat(phases, dim=-1)
        return torch.cat([cells, phase.sin(), phase.cos()], dim=-1)
