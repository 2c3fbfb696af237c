"""What decoders have in common."""

from jaxtyping import Float
from torch import Tensor, nn


class Head(nn.Module):
    """A decoder from BEV features to class logits, and in training to maps of objects too.

    Args:
        classes: k.
        instances: m classes whose objects' centres are found too: a logit of the heat and the way to the centre, three maps
            for each, which only the loss sees.
    """

    def __init__(self, classes: int, instances: int) -> None:
        super().__init__()
        self.classes, self.maps = classes, classes + 3 * instances
        self._instances: Tensor | None = None

    def logits(self, maps: Float[Tensor, "b maps rows cols"]) -> Float[Tensor, "b k rows cols"]:
        """The classes' maps; in training the others are kept for :meth:`pop_instances`."""
        if self.training and self.maps > self.classes:
            self._instances = maps[:, self.classes :]
        return maps[:, : self.classes]

    def pop_instances(self) -> Float[Tensor, "b maps rows cols"] | None:
        """(b, 3·m, rows, cols): the m heats' logits, then m times cells ahead and to the left; of the latest forward pass, once."""
        found, self._instances = self._instances, None
        return found
