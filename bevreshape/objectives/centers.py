"""Compute the loss on objects' centres."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.config.options import Weight, checked
from bevreshape.data.batch import BEVBatch
from bevreshape.data.targets import ObjectCenters
from bevreshape.errors import InputError
from bevreshape.model import Outputs
from bevreshape.objectives.base import compared
from bevreshape.objectives.losses import Focal, masked_mean


@checked
class CentersLoss(nn.Module):
    """Add the focal loss of the heat map and the L1 loss of the offset to the centre.

    The focal loss (γ = 2, no α) is CVT's, with weight 0.1. The offset is counted in cells, on the objects' cells, as in
    FIERY (Hu et al. 2021) and Simple-BEV.

    Args:
        center: weight of the focal loss, the mean over valid cells.
        offset: weight of the L1, the mean over valid cells of objects.
        task: name of the head and of the :class:`~bevreshape.data.targets.ObjectCenters`.

    Raises:
        InputError: when both weights are 0.
    """

    def __init__(self, center: Weight = 0.1, offset: Weight = 0.0, task: str = "centers") -> None:
        super().__init__()
        if not center and not offset:
            raise InputError(
                "CentersLoss: center=0 and offset=0 leave no loss; set one of them, or leave the objective out"
            )
        self.center, self.offset, self.task = center, offset, task
        self.focal = Focal()

    def forward(self, outputs: Outputs, batch: BEVBatch) -> Float[Tensor, ""]:
        """Return the weighted sum of both losses.

        The head's output is (b, 3·m, rows, cols): for each class the heat's logit, and cells ahead and to the left.

        Raises:
            InputError: when the number of maps is not three for each class of the target.
        """
        maps, target = compared(outputs, batch, self.task)
        assert isinstance(target, ObjectCenters)
        m = target.value.shape[1]
        if maps.shape[1] != 3 * m:
            raise InputError(
                f"CentersLoss: the head {self.task!r} makes {maps.shape[1]} maps but the data has {m} classes of "
                f"objects, of three maps each; set head.{self.task}.out_channels={3 * m}"
            )
        with torch.autocast(maps.device.type, enabled=False):
            found = maps.float().unflatten(1, (m, 3))
            away = (found[:, :, 1:] - target.value[:, :, 1:]).abs().sum(2)  # b m rows cols
            heat = self.focal.masked(found[:, :, 0], target.value[:, :, 0], target.valid)
            return self.center * heat + self.offset * masked_mean(away, target.inside & target.valid).mean()
