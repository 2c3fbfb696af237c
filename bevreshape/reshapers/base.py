"""The contract of a view transformer: ``reshaper(features, cameras) -> bev``."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.storage.checkpoint import differences


class Reshaper(nn.Module):
    """Base of all view transformers: holds source and target shapes, and compares its inputs with them.

    A subclass implements :meth:`reshape` on ``(b, n, c, h, w)``. Reshapers that use no geometry are also plain adapters
    for any h×w → R×C on ``(b, c, h, w)``, with no camera.

    Args:
        source: the shape of its features; a sequence of shapes for several scales.
        grid: the cells it fills, or only (R, C) for a plain adapter without metres.
        out_channels: d.
        needs_cameras: whether it reads the calibration. Then ``cameras`` is required and ``grid`` must be a
            :class:`BEVGrid`.

    Raises:
        InputError: if a reshaper that reads the calibration is given (R, C) instead of a grid, or if the scales belong
            to different rigs.
    """

    takes_scales: ClassVar[bool] = False
    """Whether it accepts several feature scales; then :meth:`reshape` receives a tuple, even for one scale."""

    worth_tuning: ClassVar[Mapping[str, Sequence[object]]] = {}
    """Values of options that ``bevreshape.compare`` tries in addition to the config's, by name of the option."""

    def __init__(
        self,
        source: FeatureShape | Sequence[FeatureShape],
        grid: BEVGrid | tuple[int, int],
        out_channels: int,
        *,
        needs_cameras: bool = False,
    ) -> None:
        super().__init__()
        if needs_cameras and not isinstance(grid, BEVGrid):
            raise InputError(
                f"{self.name}: the target is {grid} cells without metres; pass a BEVGrid, it projects them"
            )
        self.sources = (source,) if isinstance(source, FeatureShape) else tuple(source)
        if len({scale.cameras for scale in self.sources}) > 1:
            raise InputError(
                f"{self.name}: its scales are of {[scale.cameras for scale in self.sources]} cameras; they must be of "
                "the same rig"
            )
        self.source = self.sources[0]
        self.grid = grid
        self.out_channels = out_channels
        self._needs_cameras = needs_cameras

    @property
    def name(self) -> str:
        """Return its name in messages."""
        return type(self).__name__

    @property
    def needs_cameras(self) -> bool:
        """Return whether it reads the calibration."""
        return self._needs_cameras

    @property
    def target_shape(self) -> tuple[int, int]:
        """(R, C)."""
        return self.grid.shape if isinstance(self.grid, BEVGrid) else (self.grid[0], self.grid[1])

    def forward(
        self,
        features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "b n _ _ _"]],
        cameras: Cameras | None = None,
    ) -> Float[Tensor, "b d R C"]:
        """Turn camera features into a bird's-eye view.

        Args:
            features: (b, n, c, h, w), or (b, c, h, w) for one camera; a sequence of them, one per scale, for several
                scales.
            cameras: the calibration of the full-size images; optional if it is not read.

        Returns:
            (b, d, R, C).

        Raises:
            InputError: if the features do not have the shape this was built for, or a needed calibration is missing.
        """
        scales = self.checked(features, cameras)
        return self.reshape(scales if self.takes_scales else scales[0], cameras)

    def forward_with_auxiliary(
        self, features: Any, cameras: Cameras | None = None
    ) -> tuple[Float[Tensor, "b d R C"], dict[str, Tensor]]:
        """Return the bird's-eye view, and the method's own weighted losses by name. Training adds them.

        Methods with such losses override this; :class:`~bevreshape.model.BEVModel` calls it in training.
        """
        return self(features, cameras), {}

    def checked(
        self,
        features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "b n _ _ _"]],
        cameras: Cameras | None,
    ) -> tuple[Tensor, ...]:
        """Compare the inputs with the shapes this was built for.

        Returns:
            (b, n, c, h, w) of every scale, with zeros in dropped cameras.

        Raises:
            InputError: as :meth:`forward`.
        """
        scales = (features,) if isinstance(features, Tensor) else tuple(features)
        for x in scales:
            if x.ndim not in (4, 5):
                raise InputError(
                    f"{self.name}: features are {tuple(x.shape)}; they must be (b, n, c, h, w), or (b, c, h, w) of "
                    "one camera"
                )
        scales = tuple(x.unsqueeze(1) if x.ndim == 4 else x for x in scales)
        if len(scales) != len(self.sources):
            raise InputError(
                f"{self.name}: features are of {len(scales)} scales but it was built for {len(self.sources)}; rebuild "
                "it, or change encoder.strides"
            )
        for x, built in zip(scales, self.sources, strict=True):
            if tuple(x.shape[1:]) != (built.cameras, built.channels, built.height, built.width):
                n, c, h, w = x.shape[1:]
                raise InputError(
                    f"{self.name}: features are {n} cameras × {c} channels × {h}×{w} but it was built for "
                    f"{built.cameras} × {built.channels} × {built.height}×{built.width}; rebuild it with "
                    f"source=FeatureShape(channels={c}, height={h}, width={w}, cameras={n}), or change the encoder's "
                    "stride"
                )
        if self.needs_cameras:
            self.check_cameras(cameras)
        if cameras is not None and cameras.intrinsics.shape[:2] != scales[0].shape[:2]:
            raise InputError(
                f"{self.name}: features are of {tuple(scales[0].shape[:2])} (batch, cameras) but the calibration is of "
                f"{cameras.batch_shape}; give every image its camera"
            )
        return tuple(without_dropped(x, cameras) for x in scales)

    def check_cameras(self, cameras: Cameras | None) -> None:
        """Compare a required calibration with the shape this was built for.

        Raises:
            InputError: if it is missing, or belongs to images of another size.
        """
        if cameras is None:
            raise InputError(
                f"{self.name}: it projects through the calibration; call it as reshaper(features, cameras)"
            )
        for built in self.sources:
            built.check_covers(cameras.image_size, self.name)

    def reshape(self, features: Any, cameras: Cameras | None) -> Tensor:
        """Reshape (b, n, c, h, w), or a tuple for several scales → (b, d, R, C). The sizes are already compared."""
        raise NotImplementedError

    def check_original(self, weights: Mapping[str, Any], remedy: str) -> None:
        """Compare published weights, renamed, with this module's own.

        Raises:
            InputError: if names are missing, left over or of another shape; it lists them and the remedy.
        """
        wrong = differences(self.state_dict(), weights)
        if wrong:
            raise InputError(f"{self.name}: the original's weights do not fit: {wrong}; {remedy}")


class GeometricReshaper(Reshaper):
    """Base of view transformers that project: geometry is computed separately from the features.

    A subclass implements :meth:`locate`, which reads the cameras, :meth:`prepare`, which applies weights to its result
    if there are any, and :meth:`gather`, which samples features. On a fixed rig
    :class:`~bevreshape.reshapers.FixedRig` calls the first two once, and training calls :meth:`locate` once,
    unless its result depends on weights that are trained, or :meth:`reshape` or :meth:`forward` is overridden.
    """

    grid: BEVGrid

    def __init__(
        self, source: FeatureShape | Sequence[FeatureShape], grid: BEVGrid | tuple[int, int], out_channels: int
    ) -> None:
        super().__init__(source, grid, out_channels, needs_cameras=True)

    def locate(self, cameras: Cameras) -> Any:
        """Return the geometry of b rigs: a named tuple (or a tuple of them) of tensors."""
        raise NotImplementedError

    def prepare(self, located: Any) -> Any:
        """Return the input of :meth:`gather` for the result of :meth:`locate`; by default the result itself."""
        return located

    def gather(self, features: Any, located: Any) -> Tensor:
        """Turn features into a bird's-eye view.

        Args:
            features: (b, n, c, h, w), or a tuple of scales.
            located: from :meth:`prepare`, of b rigs or of one shared by all samples.

        Returns:
            (b, d, R, C).
        """
        raise NotImplementedError

    def reshape(self, features: Tensor | tuple[Tensor, ...], cameras: Cameras | None) -> Tensor:
        assert cameras is not None  # compared in forward
        return self.gather(features, self.prepare(self.locate(cameras)))

    def forward_located(self, features: Any, cameras: Cameras, located: Any) -> Float[Tensor, "b d R C"]:
        """Return what :meth:`forward` does, with geometry that :meth:`locate` returned before.

        Args:
            features: as of :meth:`forward`.
            cameras: as of :meth:`forward`; all samples have the same rig.
            located: the geometry of that rig, b = 1.
        """
        scales = self.checked(features, cameras)
        return self.gather(scales if self.takes_scales else scales[0], self.prepare(located))


def without_dropped(features: Tensor, cameras: Cameras | None) -> Tensor:
    """Return (b, n, c, h, w) with zeros in dropped cameras, even if they hold NaN."""
    if cameras is None or cameras.camera_mask is None:
        return features
    return torch.where(cameras.camera_mask[..., None, None, None], features, 0)


def present_weights(features: Tensor, cameras: Cameras | None) -> Tensor:
    """Return weights (b, n) that average over the present cameras; over all cameras without a mask."""
    b, n = features.shape[:2]
    if cameras is None or cameras.camera_mask is None:
        return features.new_full((b, n), 1.0 / n)
    present = cameras.camera_mask.to(features.dtype)
    return present / present.sum(1, keepdim=True).clamp(min=1)


def average_views(views: Tensor, cameras: Cameras | None) -> Tensor:
    """Average (b, n, d, R, C) → (b, d, R, C) over the present cameras."""
    return torch.einsum("bndrc,bn->bdrc", views, present_weights(views, cameras))
