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
"""Prefix of the compressor's parameters in the state dict of the original network."""

OTHERS = ("encoder.", "decoder.", "ce_weight", "center_weight", "offset_weight")
"""Prefixes of the rest of that network."""


@checked
class Bilinear(GeometricReshaper):
    """Every voxel above a cell samples the features at its projection, and a convolution folds the heights.

    After Simple-BEV (Harley et al., "Simple-BEV: What Really Matters for Multi-Sensor BEV Perception?", ICRA 2023).
    Space above the grid is divided into k heights. A voxel's centre x is projected into every camera n that sees it, n
    ∈ N(x). The features F are sampled there bilinearly, at π(x), and averaged; a voxel that no camera sees is 0::

        V(x) = 1/|N(x)| · Σ_{n ∈ N(x)} F_n(π_n(x))                          b·R·C·k voxels of c channels
        out  = GELU(InstanceNorm(Conv3×3(V)))     heights folded into channels, b (k·c) R C → b d R C

    There is no depth: all voxels along a ray receive the same features, and the head must resolve the depth. The
    convolution and its norm also reach neighbouring cells that no camera sees. With ``compress=False`` the heights are
    summed without parameters, as the original does with ``do_rgbcompress=False``.

    Differences from the original:

    - A camera counts if it sees the voxel. In the original it counts, per channel, if the sampled value is not 0.
    - Heights go upward and row 0 is farthest ahead. In the original row 0 is farthest behind.
    - A feature is sampled at its centre, pixel ``stride·j + offset_px``, the nearest one at the border. The original
      normalises positions for ``align_corners=True`` but samples without it: it scales them by w / (w − 1), subtracts
      ½, is off by up to half a feature, and fades to 0 at the border. :meth:`locate_original` reproduces this from the
      original's positions; :meth:`load_original` converts its weights to this order.

    Can it reproduce X at a cell that observes exactly one token? With ``compress=False`` yes. Otherwise, as in the
    original, up to each channel's mean and scale over the map, which the instance norm removes.

    Args:
        source: the shape of its features, with their stride and offset.
        grid: the cells it fills.
        heights: k.
        height_m: lower and upper edge of the space that is divided into heights, in metres above the ground.
        compress: fold the heights by a convolution; else sum them.
        channels: d, of the convolution; those of the source by default.

    Raises:
        InputError: if the grid has no metres, ``height_m`` does not ascend, or channels are given without a
            convolution.
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
        """Project the voxels' centres into the cameras that see them; the heights of a cell are adjacent."""
        return project_points(cameras, self.grid, self.heights_m, self.source)

    def gather(self, features: Tensor, located: Taps | Positions) -> Tensor:
        if self.compressor is None:
            cells = sample_features(features, located, together=len(self.heights_m)).to(features.dtype)
            return rearrange(cells, "b (R C) c -> b c R C", R=self.grid.rows)
        voxels = sample_features(features, located).to(features.dtype)
        # a view, channels last in memory
        return self.compressor(rearrange(voxels, "b (R C k) c -> b (k c) R C", R=self.grid.rows, k=len(self.heights_m)))

    def locate_original(self, positions: Float[Tensor, "b n Z Y X 2"], valid: Bool[Tensor, "b n Z Y X"]) -> Taps:
        """Return input of :meth:`gather` that samples as the original does.

        Args:
            positions: projections x and y of the original's voxels, in features, before normalisation. Its order is Z
                forward, Y down, X to the right.
            valid: the original's visibility.

        Returns:
            The taps; ``gather(features, taps).flip(2)`` is the original's output, whose rows go forward.
        """
        size = positions.new_tensor([self.source.width, self.source.height])
        places = positions * (size / (size - 1)) - 0.5
        # a voxel with all four taps outside is 0, which the original does not count
        seen = valid & ((places > -1) & (places < size)).all(-1)
        return taps_at(
            rearrange(places.flip(2, 3), "b n Z Y X uv -> b n (Z X Y) uv"),
            rearrange(seen.flip(2, 3), "b n Z Y X -> b n (Z X Y)"),
            self.source,
            padding="zeros",
        )

    def load_original(self, state: Mapping[str, Tensor]) -> "Bilinear":
        """Load the weights of the original's compressor, converted to this class's order of heights and rows.

        Args:
            state: state dict of its ``bev_compressor``, or of the whole network ``Segnet``, whose encoder and decoder
                are skipped.

        Raises:
            InputError: if the compressor's weights are missing or of another shape, or others are left over.
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
