"""Self-attention, which keeps the shape, followed by a resize."""

from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.config.options import Count, CountOrNone, Width, checked
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.ops.linear import Linear
from bevreshape.reshapers.attention import Attention, FeedForward
from bevreshape.reshapers.base import Reshaper, average_views, present_weights
from bevreshape.reshapers.positional import Encoding, PositionalEncoding, RotaryEncoding


@checked
class SelfAttention(Reshaper):
    """``softmax(Q·Kᵀ/√d)·V`` with Q, K and V projected from the same tokens X, then a bilinear resize to R×C.

    Self-attention keeps h×w; the resize changes the shape and stretches the image over the cells. Without an encoding
    it is equivariant to the order of the tokens. Every camera is processed separately, with the same weights, and the
    present cameras are averaged.

    Unless ``attention_only``, tokens are normalised, the output is projected back to c channels, added to X, and
    followed by a feed-forward with its own residual. Encodings are added to queries and keys, not to values.

    Can it reproduce X at a cell that observes exactly one token? Yes, through the residual, at a cell that coincides
    with a token after the resize.

    Args:
        source: the shape of its features.
        grid: the cells it fills, or (R, C).
        dim: channels of Q, K and V; with ``attention_only`` also of the output, which otherwise has c.
        heads: number of heads.
        token_encoding: ``none``, ``sinusoidal``, ``learned`` or ``rotary``, the same for all cameras; ``rotary``
            rotates Q and K instead of adding to them (:class:`RotaryEncoding`).
        mlp_ratio: width of the feed-forward relative to c; 0 omits it.
        attention_only: the equation alone, without norms, output projection, residuals and feed-forward.

    Raises:
        InputError: if the encoding is unknown, or widths do not fit.
    """

    def __init__(
        self,
        source: FeatureShape,
        grid: BEVGrid | tuple[int, int],
        *,
        dim: Width = 64,
        heads: Count = 4,
        token_encoding: Encoding = "sinusoidal",
        mlp_ratio: CountOrNone = 2,
        attention_only: bool = False,
    ) -> None:
        c = source.channels
        super().__init__(source, grid, dim if attention_only else c)
        self.attention_only = attention_only
        shape = (source.height, source.width)
        self.encode = PositionalEncoding(token_encoding, shape, c)
        rotary = RotaryEncoding(shape, shape, dim // heads) if token_encoding == "rotary" else None
        self.attention = Attention(c, c, dim, heads, rotary=rotary)
        if not attention_only:
            self.norm = nn.LayerNorm(c)
            self.out = Linear(dim, c)
            self.feedforward = nn.Sequential(nn.LayerNorm(c), FeedForward(c, mlp_ratio)) if mlp_ratio else None

    def reshape(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        x, placed, values = self._looking(features)
        found = self.attention(placed, placed, values)
        if self.attention_only:
            x = found
        else:
            x = x + self.out(found)
            if self.feedforward is not None:
                x = x + self.feedforward(x)
        return average_views(rearrange(self._resized(x), "(b n) d R C -> b n d R C", n=features.shape[1]), cameras)

    def attention_weights(
        self,
        features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "b n _ _ _"]],
        cameras: Cameras | None = None,
    ) -> Float[Tensor, "b a q n h w"]:
        """Return the attention of each of the R·C cells (row-major) to every token, per head.

        It includes the resize and the average of cameras, but not the residual.

        Raises:
            InputError: as :meth:`forward`.
        """
        (x,) = self.checked(features, cameras)
        n, _, h, w = x.shape[1:]
        _, placed, _ = self._looking(x)
        of_tokens = self.attention.matrix(placed, placed)  # bn a q t
        of_cells = self._resized(rearrange(of_tokens, "bn a q t -> bn q (a t)"))  # bn (a t) R C
        of_cells = rearrange(of_cells, "(b n) (a h w) R C -> b a (R C) n h w", n=n, h=h, w=w)
        return of_cells * present_weights(x, cameras)[:, None, None, :, None, None]

    def _looking(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens of every image, queries or keys, and values, (bn, hw, c) each."""
        tokens = rearrange(features, "b n c h w -> (b n) (h w) c")
        values = tokens if self.attention_only else self.norm(tokens)
        return tokens, self.encode(values), values

    def _resized(self, tokens: Tensor) -> Tensor:
        """Resize (bn, hw, d) → (bn, d, R, C)."""
        x = rearrange(tokens, "bn (h w) d -> bn d h w", h=self.source.height)
        return F.interpolate(x, self.target_shape, mode="bilinear", align_corners=False)
