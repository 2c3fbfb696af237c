"""Cross-attention from a learned output query of the wanted shape."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.config.options import Count, CountOrNone, Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.ops.linear import Linear
from bevreshape.reshapers.attention import Attention, FeedForward, Kernel, present_tokens
from bevreshape.reshapers.base import Reshaper
from bevreshape.reshapers.positional import Encoding, PositionalEncoding, RayEncoding, RotaryEncoding


@checked
class CrossAttention(Reshaper):
    """``O = softmax(Q·Kᵀ/√d)·V`` with K, V projected from the tokens X and Q from a learned query Ø of R×C cells.

    With ``kernel="linear"``, ``attention_only`` and no encodings this is ``O = Ø·Wq·Wkᵀ·(XᵀX)·Wv`` (divided by the
    number of tokens, unless ``divide_by_tokens`` is off). XᵀX does not depend on the order of the tokens. The mapping
    from tokens to cells depends on the image. One softmax covers the tokens of all present cameras.

    Unless ``attention_only``, Q and K are projected from normalised queries and tokens (pre-norm, Xiong et al. 2020).
    The output is projected, added to Ø, and followed by a feed-forward with its own residual (Vaswani et al. 2017). V
    is projected from the tokens without normalisation. Encodings are added to keys and queries, not to values (DETR,
    Carion et al. 2020): they determine positions, not content.

    Can it reproduce X at a cell that observes exactly one token? Yes, the output is linear in that token if the
    feed-forward adds nothing. With ``normalise_values`` it cannot: the token's mean and length do not reach the output,
    and with 16 channels .089 of the variance is lost.

    Args:
        source: the shape of its features.
        grid: the cells it fills, or (R, C).
        dim: d, channels of Ø and of the output.
        heads: number of heads.
        kernel: ``softmax``, or ``linear``, whose cost grows with tokens + cells, not with their product.
        divide_by_tokens: see :class:`Attention`.
        token_encoding: ``none``, ``sinusoidal``, ``learned`` or ``rotary``. With several cameras the learned encoding
            differs between cameras, and the others add a learned vector per camera; the order of cameras then matters.
            ``rotary`` rotates Q and K instead of adding to them (:class:`RotaryEncoding`), with the image stretched
            over the cells.
        query_encoding: the same for the cells; ``rotary`` for both or for neither.
        mlp_ratio: width of the feed-forward relative to ``dim``; 0 omits it.
        normalise_values: project V from the normalised tokens, which lack each token's mean and length, instead of from
            X; no effect with ``attention_only``.
        attention_only: the equation alone, without norms, output projection, residuals and feed-forward.
        calibration: add the direction of every token's ray in the ego frame to the keys, see :class:`RayEncoding`, so
            that A follows the camera's pose. Values do not change. Cameras and a grid are then required.

    Raises:
        InputError: if the kernel or an encoding is unknown, only one side is rotary, or widths do not fit.
    """

    def __init__(
        self,
        source: FeatureShape,
        grid: BEVGrid | tuple[int, int],
        *,
        dim: Width = 64,
        heads: Count = 4,
        kernel: Kernel = "softmax",
        divide_by_tokens: bool = True,
        token_encoding: Encoding = "sinusoidal",
        query_encoding: Encoding = "sinusoidal",
        mlp_ratio: CountOrNone = 2,
        normalise_values: bool = False,
        attention_only: bool = False,
        calibration: bool = False,
    ) -> None:
        super().__init__(source, grid, dim, needs_cameras=calibration)
        if (token_encoding == "rotary") != (query_encoding == "rotary"):
            raise InputError(
                f"CrossAttention: token_encoding={token_encoding} and query_encoding={query_encoding} do not go "
                "together; a rotation encodes the distance of token and cell only if both are rotated: set both to "
                "rotary, or neither"
            )
        rows, cols = self.target_shape
        self.attention_only = attention_only
        self.normalise_values = normalise_values
        # if Ø is normalised for its queries, its own part of the output can start small
        self.query = nn.Parameter(torch.randn(rows * cols, dim) * (1.0 if attention_only else 0.02))
        self.encode_tokens = PositionalEncoding(
            token_encoding, (source.height, source.width), source.channels, source.cameras
        )
        self.encode_rays = RayEncoding(source) if calibration else None
        self.encode_queries = PositionalEncoding(query_encoding, (rows, cols), dim)
        rotary = None
        if token_encoding == "rotary":
            rotary = RotaryEncoding((rows, cols), (source.height, source.width), dim // heads, source.cameras)
        self.attention = Attention(dim, source.channels, dim, heads, kernel, divide_by_tokens, rotary=rotary)
        if not attention_only:
            self.norm_tokens = nn.LayerNorm(source.channels)
            self.norm_query = nn.LayerNorm(dim)
            self.out = Linear(dim, dim)
            self.feedforward = nn.Sequential(nn.LayerNorm(dim), FeedForward(dim, mlp_ratio)) if mlp_ratio else None

    def reshape(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        queries, keys, values, present = self._looking(features, cameras)
        bev = self.attention(queries, keys, values, present)
        if not self.attention_only:
            bev = self.query + self.out(bev)
            if self.feedforward is not None:
                bev = bev + self.feedforward(bev)
        return rearrange(bev, "b (R C) d -> b d R C", R=self.target_shape[0])

    def attention_weights(
        self,
        features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "b n _ _ _"]],
        cameras: Cameras | None = None,
    ) -> Float[Tensor, "b a q n h w"]:
        """Return the attention of each of the R·C cells (row-major) to every token, per head.

        Raises:
            InputError: as :meth:`forward`.
        """
        (x,) = self.checked(features, cameras)
        queries, keys, _, present = self._looking(x, cameras)
        n, _, h, _ = x.shape[1:]
        return rearrange(self.attention.matrix(queries, keys, present), "b a q (n h w) -> b a q n h w", n=n, h=h)

    def _looking(self, features: Tensor, cameras: Cameras | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return queries, keys, values, and which tokens are present."""
        tokens, query = rearrange(features, "b n c h w -> b (n h w) c"), self.query
        values = tokens
        if not self.attention_only:
            tokens, query = self.norm_tokens(tokens), self.norm_query(query)
        if self.normalise_values:
            values = tokens
        keys = self.encode_tokens(tokens)
        if self.encode_rays is not None:
            assert cameras is not None  # compared in forward
            keys = self.encode_rays(keys, cameras)
        present = present_tokens(cameras, self.source.tokens)
        return self.encode_queries(query)[None], keys, values, present
