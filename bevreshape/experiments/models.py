"""The methods of the study: each is ``O = A·X·Wv`` with values X and one linear read-out Wv.

They differ only in A, cells by tokens:

========== ===================================================== ======================
name       A                                                     depends on
========== ===================================================== ======================
mlp        W, parameters                                         nothing
adaptive   W·(R ⊗ C), R and C from the pose by a small MLP        the pose
positional softmax(Q·Kᵀ/√d), K from place                         nothing
attention  softmax(Q·Kᵀ/√d), K from content and place             X
posed      softmax(Q·Kᵀ/√d), K from content, place and direction  X and the pose
continuous attention, Q a function of the cell's place in metres X
========== ===================================================== ======================

``attention`` is the article's cross-attention, ``mlp`` its single fully connected layer without σ. ``adaptive`` is
:class:`bevreshape.reshapers.mlp.Rectify` written as a matrix. If the pose is in X, ``adaptive`` reads it by linear maps
of X, which mix channels and then tokens, and the keys of an attention are normalised, unlike in the article. Each was
chosen among 14 variants.

Q is learned in one of two forms (:data:`Query`). Both can represent the same matrices, but train differently. The
better form depends on the setting, so it is tuned like a learning rate.

Every parameter has a leading dimension s: runs with different seeds, learning rates, forms or data are trained side by
side, independently.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.experiments.world import Batch, World
from bevreshape.reshapers.positional import sinusoidal

Encoding = Literal["sinusoidal", "learned", "none"]

Query = Literal["projected", "direct"]
"""Forms of Q: the product of a learned query per cell and a learned matrix Wq, as in the article, or Q itself (direct).

Both can represent any matrix, but gradient descent moves a product differently. Errors after 300 steps of 16 samples
(geometric mean over six seeds, each form at the better of the rates .01 and .03): for a fixed camera 8.5e-5 direct and
1.5e-3 projected, whose seeds range from 1e-4 to 1e-2 since single cells attend to a wrong position; for a moving camera
(σ = 2°) with the pose given 5.2e-3 direct and 2.2e-3 projected, with the pose in X .045 and 5.7e-3 (four seeds, rates
up to .04).
"""


def called(method: str, query: Query) -> str:
    """Return the name of a method with a form of Q; the article's form is not mentioned."""
    return method if query == "projected" else f"{method}, direct Q"


class ViewTransformer(nn.Module):
    """Base of all methods: values and read-out.

    Args:
        world: determines the shapes.
        seeds: of the initialisation, one per run.
    """

    def __init__(self, world: World, seeds: Sequence[int]) -> None:
        super().__init__()
        self.world = world
        self.runs = len(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.cells, self.tokens, self.channels = len(world.cells), world.source.tokens, world.in_channels
        self.read_out = self.draw(self.channels, world.source.channels, std=self.channels**-0.5)

    def draw(self, *shape: int, std: float) -> nn.Parameter:
        """Draw a parameter (s, *shape) of independent normal values."""
        return nn.Parameter(
            torch.stack([torch.randn(shape, generator=generator) * std for generator in self._generators])
        )

    def weights(self, batch: Batch) -> Float[Tensor, "s #b q t"]:
        """A."""
        raise NotImplementedError

    def permute(self, orders: Sequence[Tensor]) -> None:
        """Put what is learned for single tokens into each run's order of tokens, so that it is of the same tokens.

        If that is all that A knows of places, training then differs from that in order by rounding alone.
        """

    def forward(self, batch: Batch) -> Float[Tensor, "s b q o"]:
        values = torch.einsum("sbtc,sco->sbto", batch.x, self.read_out)
        a = self.weights(batch)
        if a.shape[1] == 1:
            return torch.einsum("sqt,sbto->sbqo", a[:, 0], values)
        return torch.einsum("sbqt,sbto->sbqo", a, values)


class MLP(ViewTransformer):
    """A = W."""

    def __init__(self, world: World, seeds: Sequence[int]) -> None:
        super().__init__(world, seeds)
        self.w = self.draw(self.cells, self.tokens, std=0.1 * self.tokens**-0.5)

    def weights(self, batch: Batch) -> Tensor:
        return self.w[:, None]

    def permute(self, orders: Sequence[Tensor]) -> None:
        with torch.no_grad():
            self.w.copy_(torch.stack([w[:, order] for w, order in zip(self.w, orders, strict=True)]))


class AdaptiveMLP(MLP):
    """A = W·(R ⊗ C), where R (h×h) and C (w×w) are the identity plus the output of a small MLP of the pose.

    The pose is three angles, each with sine and cosine at five frequencies. If the pose is in X, six features replace
    the angles. Each is a learned sum of channels, then a learned weighted sum over tokens, as MLP-Mixer (Tolstikhin et
    al. 2021) mixes channels and tokens in turn. Channel weights begin near zero, token weights are equal.

    With the pose given (σ = 2°, 300 steps of 16 samples, the better of two or three rates, geometric mean over four
    tuning seeds) the error is 6.1e-3 with a warm-up of 50 steps, 6.9e-3 without it; with 64 hidden units 7.3e-3 and
    7.9e-3; on four other seeds the first is 7.1e-3 and the last 8.0e-3. No other form of the function was better by a
    fifth: 256 hidden units (7.6e-3), ``outer`` drawn at random (7.8e-3), 2 or 3 octaves (9.6e-3, 8.6e-3), W ten times
    as large or small (2.0e-2, 7.9e-3), the pose's term three times as large or small (7.7e-3, 7.4e-3).

    With the pose in X the error is .0113, against .0295 if the six features are one linear map of all 2,560 entries of
    X (σ = 2°, a warm-up of 50 steps, the best of two or three rates, seeds as above). At σ = 8° it is .090 against
    .121, for a fixed camera 5.0e-5 against 2.0e-4, and on four other seeds at σ = 2° .0135 against .0412. It is one of
    14 variants, as many as for attention, each an MLP. The others: token weights drawn at random (.0120; with layer
    normalisation of the hidden units .0141, and with weights three times as large .0136); sums over channels
    initialised as in an ordinary layer, too (.0218; normalised .0166, of 16 features .0175, of 32 ten times as large
    without sines .0170); a small MLP of 64 hidden units at every token, its weighted sum over tokens mapped to six
    features (.090) or used directly, without sines (.0232, normalised .0192); and the one linear map with normalised
    hidden units (.0258), with the six features normalised (.0288), or to 32 features without sines, normalised (.0266).
    """

    HIDDEN = 128
    OCTAVES = 5
    NUMBERS = 6

    def __init__(self, world: World, seeds: Sequence[int]) -> None:
        super().__init__(world, seeds)
        self.sizes = world.source.height, world.source.width
        self.from_x = world.pose == "visible"
        numbers = self.NUMBERS if self.from_x else 3
        if self.from_x:
            self.of_channels = self.draw(self.channels, numbers, std=0.02)
            self.of_tokens = nn.Parameter(torch.full((self.runs, self.tokens, numbers), 0.1))
        inputs = numbers * (1 + 2 * self.OCTAVES)
        self.inner = self.draw(inputs, self.HIDDEN, std=inputs**-0.5)
        self.bias = self.draw(1, self.HIDDEN, std=0.0)
        self.outer = self.draw(self.HIDDEN, sum(size**2 for size in self.sizes), std=0.0)

    def read_from(self, x: Float[Tensor, "s b t c"]) -> Float[Tensor, "s b n"]:
        """Return the features that replace the angles; since Adam moves all token weights alike, the sum is small."""
        mixed = torch.einsum("sbtc,scn->sbtn", x, self.of_channels)
        return torch.einsum("sbtn,stn->sbn", mixed, self.of_tokens) * self.tokens**-0.5

    def weights(self, batch: Batch) -> Tensor:
        h, w = self.sizes
        numbers = self.read_from(batch.x) if self.from_x else batch.pose * 4  # s b n
        angles = numbers[..., None] * 2.0 ** torch.arange(self.OCTAVES, device=numbers.device)
        described = torch.cat([numbers, angles.sin().flatten(2), angles.cos().flatten(2)], -1)
        found = F.gelu(described @ self.inner + self.bias) @ self.outer  # s b (hh ww)
        rows = found[..., : h * h].unflatten(-1, (h, h)) + torch.eye(h, device=found.device)
        cols = found[..., h * h :].unflatten(-1, (w, w)) + torch.eye(w, device=found.device)
        fixed = self.w.unflatten(-1, (h, w))  # s q h w
        moved = torch.einsum("sqij,sbjl->sbqil", fixed, cols)
        return torch.einsum("sbqil,sbik->sbqkl", moved, rows).flatten(-2)


class Attention(ViewTransformer):
    """A = softmax(Q·Kᵀ/√d) with a learned query per cell; K depends on content, position and ray direction as enabled.

    If a model has both forms of Q, its direct runs have the constant Wq = 1. A model with only direct runs has no Wq.

    If the pose is in X, a key is normalised to mean 0 and variance 1 over its d channels: layer normalisation without
    parameters (of queries and keys: Dehghani et al. 2023). With it the error is 5.7e-3, without it .042; on four other
    seeds 5.2e-3 and .032 (σ = 2°, 300 steps of 16 samples, projected Q, a warm-up of 50 steps, the best of up to three
    rates from .01 to .03, geometric mean over four tuning seeds). Keys from content by a small MLP of 64 hidden units
    (6.7e-3, on the others 5.0e-3) are as good, with more parameters. Worse are sines of six features of content
    (8.9e-3), content's rate three times as large (.032; with smaller queries .030, with d = 128 .19) or small (.086),
    and logits four times as large (.069). At σ = 8° it is 7.6e-3 against .035; for a fixed camera, each at its best
    form of Q, 8.7e-5 against 7.8e-5. With the pose given it is no better (2.4e-3 against 2.0e-3). There, and if the
    pose is unknown, K is as in the article.

    Args:
        world: determines the shapes.
        seeds: of the initialisation, one per run.
        forms: of Q, one per run; all projected by default.
        content: K depends on X.
        direction: K depends on the direction of every token's ray.
        encoding: of positions.
        dim: d.
    """

    places: Tensor
    projected: Tensor

    def __init__(
        self,
        world: World,
        seeds: Sequence[int],
        *,
        forms: Sequence[Query] | None = None,
        content: bool = True,
        direction: bool = False,
        encoding: Encoding = "sinusoidal",
        dim: int = 64,
    ) -> None:
        super().__init__(world, seeds)
        self.dim = dim
        self.draw_queries()
        self.content = self.draw(self.channels, dim, std=self.channels**-0.5) if content else None
        self.place: nn.Parameter | None = None
        if encoding != "none":
            self.place = self.draw(dim, dim, std=dim**-0.5)
            if encoding == "learned":
                self.places = self.draw(self.tokens, dim, std=math.sqrt(0.5))
            else:
                self.register_buffer("places", sinusoidal(world.source.height, world.source.width, dim)[None])
        self.direction = self.draw(dim, dim, std=dim**-0.5) if direction else None
        # last, so that both forms have the same initial values of all other parameters
        projected = [form == "projected" for form in forms or ["projected"] * self.runs]
        self.register_buffer("projected", torch.tensor(projected)[:, None, None])
        self.to_q = self.draw(dim, dim, std=dim**-0.5) if any(projected) else None

    def permute(self, orders: Sequence[Tensor]) -> None:
        if self.place is not None and isinstance(self.places, nn.Parameter):  # sinusoidal ones stay where they are
            with torch.no_grad():
                self.places.copy_(torch.stack([own[order] for own, order in zip(self.places, orders, strict=True)]))

    def draw_queries(self) -> None:
        """Initialise the parameters of :meth:`queries`."""
        self.query = self.draw(self.cells, self.dim, std=1.0)

    def queries(self) -> Float[Tensor, "s q d"]:
        """Return a query per cell, before Wq."""
        return self.query

    def q(self) -> Float[Tensor, "s q d"]:
        """Q."""
        if self.to_q is None:
            return self.queries()
        return self.queries() @ torch.where(self.projected, self.to_q, torch.eye(self.dim, device=self.to_q.device))

    def keys(self, batch: Batch) -> Float[Tensor, "s #b t d"]:
        """Return K, the sum of its parts; normalised if the pose is in X."""
        parts: list[Tensor] = []
        if self.content is not None:
            parts.append(torch.einsum("sbtc,scd->sbtd", batch.x, self.content))
        if self.place is not None:
            parts.append((self.places @ self.place)[:, None])
        if self.direction is not None:
            parts.append(torch.einsum("sbtc,scd->sbtd", waves(batch.directions, self.dim), self.direction))
        keys = sum(parts[1:], parts[0])
        return F.layer_norm(keys, (self.dim,)) if self.world.pose == "visible" else keys

    def weights(self, batch: Batch) -> Tensor:
        return (self.q()[:, None] @ self.keys(batch).mT * self.dim**-0.5).softmax(-1)


class ContinuousAttention(Attention):
    """Queries from sines and cosines of the cell's position by a small MLP, defined at every position.

    Wavelengths form a geometric series, from four cells of the training grid, so that queries can be interpolated
    between cells, to twice the grid's longer side.
    """

    HIDDEN = 128
    WAVES = 16

    omega: Tensor

    def draw_queries(self) -> None:
        grid = self.world.grid
        shortest, longest = 4 * grid.cell_m, 2 * grid.cell_m * max(grid.shape)
        lengths_m = shortest * (longest / shortest) ** torch.linspace(0, 1, self.WAVES)
        self.register_buffer("omega", 2 * math.pi / lengths_m)
        inputs = 4 * self.WAVES
        self.inner = self.draw(inputs, self.HIDDEN, std=inputs**-0.5)
        self.bias = self.draw(1, self.HIDDEN, std=0.0)
        self.outer = self.draw(self.HIDDEN, self.dim, std=(2 / self.HIDDEN) ** 0.5)

    def queries(self) -> Tensor:
        phase = (self.world.cells.to(self.omega)[..., None] * self.omega).flatten(-2)
        described = torch.cat([phase.sin(), phase.cos()], -1)
        return F.gelu(described @ self.inner + self.bias) @ self.outer

    def on(self, world: World) -> "ContinuousAttention":
        """Return the same parameters with queries for the cells of another grid."""
        other = copy(self)
        other.world, other.cells = world, len(world.cells)
        return other


def waves(angles: Float[Tensor, "s b t 2"], dim: int) -> Float[Tensor, "s b t d"]:
    """Return sine and cosine of both angles at dim/4 frequencies, a geometric series from 1 to 40 per radian.

    The longest wave does not repeat in a view of 80°. Half of the shortest, 4.5°, is the width of a feature.
    """
    omega = 40.0 ** torch.linspace(0, 1, dim // 4, device=angles.device)
    phase = (angles[..., None] * omega).flatten(-2)
    return torch.cat([phase.sin(), phase.cos()], -1)


METHODS: dict[str, Callable[..., ViewTransformer]] = {
    "mlp": MLP,
    "adaptive": AdaptiveMLP,
    "positional": lambda world, seeds, **given: Attention(world, seeds, content=False, **given),
    "attention": Attention,
    "posed": lambda world, seeds, **given: Attention(world, seeds, direction=True, **given),
    "continuous": ContinuousAttention,
}
"""By name: ``METHODS[name](world, seeds)``."""
