"""The geometry of a rig whose calibration does not change, kept between the steps of a training."""

from typing import Any

import torch

from bevreshape.data.datamodule import BEVDataModule
from bevreshape.data.one_rig import OneRig
from bevreshape.geometry import Cameras
from bevreshape.model import BEVModel
from bevreshape.reshapers import GeometricReshaper
from bevreshape.training.task import BEVTask


class RigGeometry:
    """Locate the rig of the first batch once, and return this geometry for all others.

    Args:
        reshaper: its :meth:`GeometricReshaper.locate` reads no weights.
    """

    def __init__(self, reshaper: GeometricReshaper) -> None:
        self._reshaper = reshaper
        self._located: Any = None

    def __call__(self, cameras: Cameras) -> Any:
        """Return the geometry of the first rig that was given."""
        if self._located is None:
            with torch.inference_mode(False), torch.no_grad():  # a validation's tensors could not be trained with
                self._located = self._reshaper.locate(cameras[:1].map(torch.clone))
        return self._located


def fix_rig(task: BEVTask, data: BEVDataModule) -> None:
    """Keep the geometry of the rig between steps, and check that all samples have this rig.

    Reshapers without a geometry, and those whose geometry reads weights, compute it in every step as before.
    """
    data.one_rig = OneRig()
    reshaper = task.model.reshaper if isinstance(task.model, BEVModel) else None
    if (
        isinstance(reshaper, GeometricReshaper)
        and not reshaper.locates_by_weights
        and type(reshaper).forward_with_auxiliary is GeometricReshaper.forward_with_auxiliary  # no losses of its own
    ):
        task.rig_geometry = RigGeometry(reshaper)
