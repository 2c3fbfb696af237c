"""An encoder with permuted tokens, for a training that never has them in order (claim A12)."""

from typing import Any

import torch
from torch import Tensor

from bevreshape.analysis.permutation import permute_tokens
from bevreshape.encoders import TimmEncoder


class PermutedEncoder(TimmEncoder):
    """Permute the features of one scale, in the same way for all cameras and samples.

    Args:
        permutation: seed of the permutation.
        options: of the encoder.
    """

    permutation: Tensor

    def __init__(self, *, permutation: int, **options: Any) -> None:
        super().__init__(**options)
        (source,) = self.sources
        drawn = torch.randperm(source.tokens, generator=torch.Generator().manual_seed(permutation))
        self.register_buffer("permutation", drawn)

    def forward(self, image: Tensor) -> Tensor:
        features = super().forward(image)
        assert isinstance(features, Tensor)
        return permute_tokens(features, self.permutation)
