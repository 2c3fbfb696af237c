"""Bilinear sampling of a volume above the grid."""

from collections.abc import Mapping

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bevreshape.config.options import Count, HeightRange, Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.ops.sampling import Positions, Taps, project_points, sample_features, taps_at
from bevreshape.reshapers.base import GeometricReshaper

COMPRESSOR = "bev_compressor."
"""What the original's names of the compressor's parameters begin with, in the state of its whole network."""

OTHERS = ("encoder.", "decoder.", "ce_weight", "center_weight", "offset_weight")
"""The rest of that network."""


@checked
class Bilinear(GeometricReshaper):
    """Every voxel above a cell reads the features where it appears, and a convolution folds the heights (Harley et al.,
    "Simple-BEV: What Really Matters for Multi-Sensor BEV Perception?", ICRA 2023).

    Space above the grid is cut into k heights. A voxel's centre x is projected into every camera n that sees it, n ∈
    N(x), the features F are read there bilinearly, π(x), and averaged; a voxel that nobody sees is 0::

        V(x) = 1/|N(x)| · Σ_{n ∈ N(x)} F_n(π_n(x))                          b·R·C·k voxels of c channels
        out  = GELU(InstanceNorm(Conv3×3(V)))     heights folded into channels, b (k·c) R C → b d R C

    There is no depth: all voxels along a ray read the same, and what stands there is for the head to find out. The
    convolution and its norm carry what is seen into neighbouring cells that no camera sees. With ``compress=False`` the
    heights are summed, which has no parameter and is what the original does with ``do_rgbcompress=False``.

    What differs from the original: a camera counts where it looks, in the original where, channel by channel, the value
    read is not exactly 0. Heights go upward and row 0 is farthest ahead, in the original it is farthest behind. And a
    feature is read at its centre, pixel ``stride·j + offset_px``, the nearest at the border. The original scales
    positions by w / (w − 1) and takes ½ off, reading up to half a feature beside the place, and lets features fade to 0
    at the border: it normalises for ``align_corners=True`` and samples without. :meth:`locate_original` reproduces that
    from its own positions, :meth:`load_original` takes its weights into this order.

    Can it reproduce X at a cell that looks at exactly one token? With ``compress=False`` yes. Otherwise, as in the
    original, up to each channel's mean and scale over the map, which the instance norm removes.

    Args:
        source: the features it will get, with their stride and offset.
        grid: the cells it fills.
        heights: k.
        height_m: lower and upper edge of the space that is cut into heights, in metres above the ground.
        compress: fold the heights by a convolution; else sum them.
        channels: d, of the convolution; those of the source by default.

    Raises:
        InputError: when the grid has no metres, there is no space to cut, or channels without a convolution.
    """

    def __init__(
        self,
        source: FeatureShape,
        grid: BEVGrid | tuple[int, int],
        *,
        heights: Count = 8,
        height_m: HeightRange = (-1.0, 3.0),
        compress: bool = True,
        channels: Width | None = None,
    ) -> None:
        super().__init__(source, grid, channels or source.channels)
        if not height_m[0] < height_m[1]:
            raise InputError(f"Bilinear: height_m={list(height_m)} must ascend; write the lower edge first")
        if channels is not None and not compress:
            raise InputError(
                f"Bilinear: channels={channels} with compress=false, which sums; leave channels out, or set "
                "compress=true"
            )
        low, high = height_m
        self.heights_m = tuple(low + (level + 0.5) * (high - low) / heights for level in range(heights))
        self.compressor = (
            nn.Sequential(
                nn.Conv2d(heights * source.channels, self.out_channels, kernel_size=3, padding=1, bias=False),
                nn.InstanceNorm2d(self.out_channels),
                nn.GELU(),
            )
            if compress
            else None
        )

    def locate(self, cameras: Cameras) -> Taps | Positions:
        """Project the voxels' centres into the cameras that see them, heights of a cell side by side."""
        return project_points(cameras, self.grid, self.heights_m, self.source)

    def gather(self, features: Tensor, located: Taps | Positions) -> Tensor:
        if self.compressor is None:
            cells = sample_features(features, located, together=len(self.heights_m)).to(features.dtype)
            return rearrange(cells, "b (R C) c -> b c R C", R=self.grid.rows)
        voxels = sample_features(features, located).to(features.dtype)
        # a view, channels last in memory
        return self.compressor(rearrange(voxels, "b (R C k) c -> b (k c) R C", R=self.grid.rows, k=len(self.heights_m)))

    def locate_original(self, positions: Float[Tensor, "b n Z Y X 2"], valid: Bool[Tensor, "b n Z Y X"]) -> Taps:
        """Return what :meth:`gather` takes, sampled as the original does.

        Args:
            positions: x and y that the original projects its voxels to, in features, before it normalises them. Its
                order is Z forward, Y down, X to the right.
            valid: where it takes them for seen.

        Returns:
            Located features; ``gather(features, located).flip(2)`` is the original's, whose rows go forward.
        """
        size = positions.new_tensor([self.source.width, self.source.height])
        places = positions * (size / (size - 1)) - 0.5
        # a voxel whose four taps are all outside reads 0, which the original does not count
        seen = valid & ((places > -1) & (places < size)).all(-1)
        return taps_at(
            rearrange(places.flip(2, 3), "b n Z Y X uv -> b n (Z X Y) uv"),
            rearrange(seen.flip(2, 3), "b n Z Y X -> b n (Z X Y)"),
            self.source,
            padding="zeros",
        )

    def load_original(self, state: Mapping[str, Tensor]) -> "Bilinear":
        """Take the weights of the original's compressor, turned into this class's order of heights and rows.

        Args:
            state: of its whole network ``Segnet``, of which encoder and decoder are left aside, or of its
                ``bev_compressor`` alone.

        Raises:
            InputError: when the compressor's weights are missing or of another shape, or others are left over.
        """
        if self.compressor is None:
            raise InputError("Bilinear: compress=false has no weights to load; build it with compress=true")
        given = {name.removeprefix(COMPRESSOR): value for name, value in state.items() if not name.startswith(OTHERS)}
        self.check_original(
            {f"compressor.{name}": value for name, value in given.items()},
            "give the state of Segnet for images alone, or of its bev_compressor, and build it with as many channels "
            "and heights",
        )
        turned = rearrange(given["0.weight"], "d (c Y) i j -> d Y c i j", Y=len(self.heights_m)).flip(1, 3)
        self.compressor.load_state_dict({"0.weight": rearrange(turned, "d Y c i j -> d (Y c) i j")})
        return self
