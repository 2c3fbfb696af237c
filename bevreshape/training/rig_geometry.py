"""The geometry of a rig whose calibration does not change, kept between the steps of a training."""

from typing import Any

import torch

from bevreshape.data.datamodule import BEVDataModule
from bevreshape.data.one_rig import OneRig
from bevreshape.geometry import Cameras
from bevreshape.model import BEVModel
from bevreshape.reshapers import GeometricReshaper
from bevreshape.training.task import BEVTask

USES = ("forward", "forward_with_auxiliary", "reshape")
"""Methods that :meth:`GeometricReshaper.forward_located` stands for."""


class RigGeometry:
    """Locate the rig of the first batch once, and return this geometry for all others.

    Args:
        reshaper: its :meth:`GeometricReshaper.reshape` is not overridden.
    """

    def __init__(self, reshaper: GeometricReshaper) -> None:
        self._reshaper = reshaper
        self._located: Any = None
        self._trained = False

    def __call__(self, cameras: Cameras) -> Any:
        """Return the geometry of the first rig that was given; ``None`` if it depends on weights that are trained."""
        if self._located is None and not self._trained:
            with torch.inference_mode(False), torch.enable_grad():  # a validation's tensors could not be trained with
                located = self._reshaper.locate(cameras[:1].map(torch.clone))
            self._trained = _requires_grad(located)
            self._located = None if self._trained else located
        return self._located


def fix_rig(task: BEVTask, data: BEVDataModule) -> None:
    """Keep the geometry of the rig between steps, and check that all samples have this rig.

    Reshapers without a geometry, and those whose geometry depends on trained weights, compute it in every step as
    before; so do those that override a method by which the base class uses the geometry.
    """
    data.one_rig = OneRig()
    reshaper = task.model.reshaper if isinstance(task.model, BEVModel) else None
    if isinstance(reshaper, GeometricReshaper) and all(
        getattr(type(reshaper), name) is getattr(GeometricReshaper, name) for name in USES
    ):
        task.rig_geometry = RigGeometry(reshaper)


def _requires_grad(located: Any) -> bool:
    """Return whether any tensor of a geometry, also within tuples, requires gradients."""
    if isinstance(located, tuple):
        return any(_requires_grad(one) for one in located)
    return isinstance(located, torch.Tensor) and located.requires_grad
