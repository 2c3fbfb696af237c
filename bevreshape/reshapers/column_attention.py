"""The column-wise attending view transformer of Translating Images into Maps."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from bevreshape.config.options import Count, CountOrNone, Depths, FocalLength, Length, Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.reshapers.base import GeometricReshaper
from bevreshape.reshapers.column_transformer import ColumnTransformer
from bevreshape.reshapers.polar import PolarMaps, PolarTaps, nominal_focal
from bevreshape.reshapers.published_names import tim_name

Encoding = Literal["published", "sincos"]


class RayGeometry(NamedTuple):
    """Values that depend on the calibration alone.

    Attributes:
        taps: of the polar maps.
        camera_mask: (b, n), false for a dropped camera; ``None`` if all are present.
    """

    taps: PolarTaps
    camera_mask: Tensor | None


@checked
class ColumnAttention(GeometricReshaper):
    """A transformer translates every image column into its ray on the ground.

    After Translating Images into Maps (Saha, Mendez, Russell and Bowden, ICRA 2022). A column's h tokens X attend to
    one another, ``M = encoder(X)``. Queries, one per depth bin, attend to one another and to the column,
    ``decoder(E, M)``. E is a sinusoidal encoding of the bin; a learned vector per bin is added to it for queries. All
    layers normalise after the sum (Vaswani et al. 2017). All columns and cameras share the weights. The map of columns
    × bins is sampled at the cells of the ground. With several scales each covers a band of depth, coarse ones near,
    fine ones far, with its own weights (see :class:`PolarMaps`). A cell that several cameras see is their average; a
    cell that no camera sees is 0.

    This is the published single-frame network between its backbone and its head. Its temporal models, auxiliary heads
    and monotonic attention are not its defaults and are omitted, as is dropout. As published
    (``encoding="published"``), keys include the features a second time: keys of the decoder are ``M + X + E``, those of
    the encoder's first layer ``2·X + E``; and in E both channels of a pair are the sine. With ``sincos`` only E is
    added, of sines and cosines.

    Other differences from the original:

    - It uses one learned vector for all bins, the first of a hundred. Here there is one per bin.
    - It crops the image's middle rows. Here all rows are tokens.
    - It places the polar map's columns between the image's borders, at depths evenly spaced over a band, regardless of
      the depths of the grid's rows. Here positions are exact (see also :class:`ColumnMLP`). To use the original's
      positions, pass the result of ``maps.corners`` to :meth:`gather`.

    Can it reproduce X at a cell that observes exactly one token? No: as in the original, layer norms after each sum
    remove a token's mean and length.

    Args:
        source: the shape of its features, one per scale, all of d channels.
        grid: the cells it fills.
        heads: number of heads of every attention.
        encoder_layers: number of encoder layers.
        decoder_layers: number of decoder layers, at least one.
        dim_feedforward: width of the feed-forwards, one number or one per scale; ``None`` for 2·d.
        encoding: ``published`` or ``sincos``.
        depth_m: borders of the bands, near first, one more than scales; ``None`` derives them.
        bin_m: length of a depth bin; ``None`` for that of a cell.
        focal_px: nominal focal length of the full-size image, for derived borders; ``None`` for 0.8 of its width.

    Raises:
        InputError: if the encoding is unknown, or widths, layers or borders do not fit.
    """

    takes_scales = True

    def __init__(
        self,
        source: FeatureShape | Sequence[FeatureShape],
        grid: BEVGrid | tuple[int, int],
        *,
        heads: Count = 4,
        encoder_layers: CountOrNone = 2,
        decoder_layers: Count = 2,
        dim_feedforward: Width | Sequence[Width] | None = None,
        encoding: Encoding = "published",
        depth_m: Depths | None = None,
        bin_m: Length | None = None,
        focal_px: FocalLength | None = None,
    ) -> None:
        first = source if isinstance(source, FeatureShape) else source[0]
        dim = first.channels
        super().__init__(source, grid, dim)
        if len({scale.channels for scale in self.sources}) > 1:
            raise InputError(
                f"ColumnAttention: its scales have {[scale.channels for scale in self.sources]} channels; all must "
                "have the same"
            )
        if dim % heads or dim % 2:
            raise InputError(
                f"ColumnAttention: {dim} channels cannot be divided among heads={heads} or into pairs; choose a "
                "multiple"
            )
        if dim_feedforward is None or isinstance(dim_feedforward, int):
            widths = [2 * dim if dim_feedforward is None else dim_feedforward] * len(self.sources)
        else:
            widths = list(dim_feedforward)
        if len(widths) != len(self.sources):
            raise InputError(
                f"ColumnAttention: dim_feedforward={dim_feedforward} must be one width, or {len(self.sources)}, one "
                "per scale"
            )
        focal = nominal_focal(self.sources[0]) if focal_px is None else focal_px
        self.maps = PolarMaps(self.name, self.sources, self.grid, depth_m, bin_m, focal)
        self.scales = nn.ModuleList(
            ColumnTransformer(dim, s.height, band.bins, heads, (encoder_layers, decoder_layers), width, encoding)
            for s, band, width in zip(self.sources, self.maps.bands, widths, strict=True)
        )

    def locate(self, cameras: Cameras) -> RayGeometry:
        """Return the tokens of the polar maps at the cells."""
        return RayGeometry(self.maps.locate(cameras), cameras.camera_mask)

    def gather(self, features: tuple[Tensor, ...], located: RayGeometry) -> Tensor:
        maps = []
        for x, scale in zip(features, self.scales, strict=True):
            n, w = x.shape[1], x.shape[4]
            if located.camera_mask is not None:
                x = torch.where(located.camera_mask[..., None, None, None], x, 0)
            columns = rearrange(x, "b n c h w -> (b n w) h c").contiguous()
            maps.append(rearrange(scale(columns), "(b n w) z d -> b n w z d", n=n, w=w))
        return self.maps.read(maps, located.taps)

    @torch.no_grad()
    def load_original(self, state: Mapping[str, Tensor]) -> "ColumnAttention":
        """Load the weights of a published ``Transformer``.

        For several scales they are those of the published network's ``tbev8``, ``tbev16`` and so on, in the order of
        this reshaper's scales from fine to coarse. The first row of ``query_embed.weight`` becomes the query of every
        bin, as in the original. It is not part of the ``Transformer``; without it the queries are kept. Other parts of
        the network must be left out.

        Raises:
            InputError: if weights are missing, left over or of another shape; it lists them.
        """
        names = sorted(
            {key.partition(".")[0] for key in state if key.startswith("tbev")}, key=lambda name: int(name[4:])
        )
        order = sorted(range(len(self.scales)), key=lambda scale: self.sources[scale].stride)
        number = {name: str(scale) for name, scale in zip(names, order, strict=False)}
        weights: dict[str, Tensor] = {}
        query = state.get("query_embed.weight")
        for name, own in self.named_parameters():
            if name.endswith(".query"):
                weights[name] = own if query is None else query[:1].expand_as(own)
        for key, value in state.items():
            if key != "query_embed.weight":
                name, _, rest = key.partition(".")
                where, rest = (number.get(name, name), rest) if name.startswith("tbev") else ("0", key)
                weights[f"scales.{where}.{tim_name(rest)}"] = value
        self.check_original(
            weights, "build it with as many scales and layers, and their widths, rows and bins of depth"
        )
        self.load_state_dict(weights)
        return self
