"""The check that all samples have the same cameras."""

import torch
from torch import Tensor

from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras


class OneRig:
    """Compare the cameras of every batch, on the host, with those of the first sample."""

    def __init__(self) -> None:
        self._first: tuple[Cameras, str] | None = None

    def check(self, batch: BEVBatch) -> None:
        """Compare a batch as it leaves its loader.

        Raises:
            InputError: when calibration or missing cameras differ; names the sample.
        """
        if self._first is None:
            self._first = batch.cameras[:1].map(torch.clone), batch.names[0]
        rig, name = self._first
        same = (_flat(batch.cameras) == _flat(rig)).all(1)
        if not same.all():
            other = batch.names[int((~same).nonzero()[0])]
            raise InputError(
                f"trainer.static_rig=true: the calibration or the missing cameras of sample {other} differ from those "
                f"of sample {name}; set trainer.static_rig=false"
            )

    def check_unmoved(self, before: Cameras, after: Cameras) -> None:
        """Compare the cameras of a batch before and after augmentation.

        Raises:
            InputError: when augmentation has changed them.
        """
        if after is not before:
            raise InputError(
                "trainer.static_rig=true: augment changes the cameras; set augment.flip_p=0 augment.zoom=[1,1], or "
                "trainer.static_rig=false"
            )


def _flat(cameras: Cameras) -> Tensor:
    parts = cameras.intrinsics, cameras.ego_from_cam, cameras.full_mask
    return torch.cat([part.flatten(1).double() for part in parts], dim=1)
