"""A view transformer on a rig whose calibration does not change."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.reshapers.base import GeometricReshaper, Reshaper


class Buffers(nn.Module):
    """A (named) tuple of tensors, ``None`` and further tuples, stored in non-persistent buffers.

    Raises:
        InputError: if it is read after a cast to another precision.
    """

    def __init__(self, values: tuple[Any, ...]) -> None:
        super().__init__()
        self.kind = type(values)
        self.names = [f"field_{number}" for number in range(len(values))]
        self.dtypes = [value.dtype if isinstance(value, Tensor) else None for value in values]
        for name, value in zip(self.names, values, strict=True):
            if isinstance(value, tuple):
                self.add_module(name, Buffers(value))
            else:
                self.register_buffer(name, value, persistent=False)

    def forward(self) -> Any:
        values = []
        for name, dtype in zip(self.names, self.dtypes, strict=True):
            value = getattr(self, name)
            if isinstance(value, Buffers):
                value = value()
            elif value is not None and value.dtype != dtype:
                raise InputError(
                    f"FixedRig: its geometry was cast from {dtype} to {value.dtype}, which moves what it projects; "
                    "cast the reshaper first and wrap it then"
                )
            values.append(value)
        return tuple(values) if self.kind is tuple else self.kind(*values)


class FixedRig(Reshaper):
    """A reshaper with its calibration: ``fixed(features)`` equals ``reshaper(features, cameras)``.

    The geometry of a :class:`GeometricReshaper` is computed once, on construction. It may depend on the weights, so
    this is for inference: load weights and cast first, then wrap. The rig is stored in non-persistent buffers.

    Args:
        reshaper: in evaluation mode.
        cameras: one rig, b = 1, of the full-size images.

    Raises:
        InputError: if the reshaper is in training mode, or the calibration has several rigs or another number of
            cameras.
    """

    takes_scales: ClassVar[bool] = True

    def __init__(self, reshaper: Reshaper, cameras: Cameras) -> None:
        super().__init__(reshaper.sources, reshaper.grid, reshaper.out_channels)
        if cameras.batch_shape != (1, self.source.cameras):
            raise InputError(
                f"{reshaper.name}: the fixed rig is of {cameras.batch_shape} (batch, cameras); give one calibration of "
                f"{self.source.cameras} cameras"
            )
        if reshaper.training:
            raise InputError(f"{reshaper.name}: a rig is fixed for inference; call eval() first")
        reshaper.check_cameras(cameras)
        self.reshaper = reshaper
        self.image_size = cameras.image_size
        with torch.no_grad():
            if isinstance(reshaper, GeometricReshaper):
                self.rig = Buffers(reshaper.prepare(reshaper.locate(cameras)))
            else:
                self.rig = Buffers((cameras.intrinsics, cameras.ego_from_cam, cameras.camera_mask))
        self.eval()

    @property
    def name(self) -> str:
        """Return its name in messages."""
        return self.reshaper.name

    def checked(self, features: Any, cameras: Cameras | None) -> tuple[Tensor, ...]:
        """Compare the inputs with the shapes this was built for; see :meth:`Reshaper.checked`.

        Raises:
            InputError: as :meth:`Reshaper.forward`, and if a calibration is given or this is in training mode.
        """
        if cameras is not None:
            raise InputError(f"{self.name}: its rig is fixed; call it with features alone, or call the reshaper within")
        if self.training:
            raise InputError(f"{self.name}: a rig is fixed for inference; call eval(), or train the reshaper within")
        return super().checked(features, cameras)

    def reshape(self, features: tuple[Tensor, ...], cameras: Cameras | None) -> Tensor:
        given = features if self.reshaper.takes_scales else features[0]
        if isinstance(self.reshaper, GeometricReshaper):
            return self.reshaper.gather(given, self.rig())
        b = features[0].shape[0]  # len() would be a constant of an exported program
        intrinsics, ego_from_cam, mask = self.rig()
        mask = None if mask is None else mask.expand(b, -1)
        intrinsics, ego_from_cam = (x.expand(b, -1, -1, -1) for x in (intrinsics, ego_from_cam))
        return self.reshaper.reshape(given, Cameras(intrinsics, ego_from_cam, self.image_size, mask))
