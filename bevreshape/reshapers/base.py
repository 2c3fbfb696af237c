"""The contract of a view transformer: ``reshaper(features, cameras) -> bev``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.storage.checkpoint import differences

# PyTorch 2.6 has only the wider question
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def constant(values: Sequence[Any], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers on the device of another tensor, of its kind if none is named, sent without waiting for the device."""
    return torch.tensor(values, dtype=dtype or like.dtype).to(like.device, non_blocking=True)


def numbered(index: Tensor, samples: int, each: int) -> Tensor:
    """Numbers that count from 0 in every sample, (samples or 1, m), as flat ones of samples of ``each`` laid one after
    another."""
    return (index + torch.arange(samples, device=index.device, dtype=index.dtype)[:, None] * each).flatten()


@dataclass(frozen=True)
class FeatureShape:
    """What an encoder delivers and a reshaper is built for.

    Attributes:
        channels: c.
        height: h, rows of the feature map.
        width: w, columns of the feature map.
        cameras: n.
        stride: pixels between the centres of neighbouring features.
        offset_px: pixel on which feature 0 is centred; feature j is centred on pixel ``stride·j + offset_px``.
    """

    channels: int
    height: int
    width: int
    cameras: int = 1
    stride: int = 1
    offset_px: float = 0.0

    @property
    def tokens(self) -> int:
        """Features of one camera, h·w."""
        return self.height * self.width

    def pixels(
        self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "h w 2"]:
        """Pixel (u, v) of the image on which every feature is centred."""
        v, u = torch.meshgrid(
            torch.arange(self.height, device=device, dtype=torch.float64),
            torch.arange(self.width, device=device, dtype=torch.float64),
            indexing="ij",
        )
        return (torch.stack([u, v], dim=-1) * self.stride + self.offset_px).to(dtype)

    def check_covers(self, image_size: tuple[int, int], who: str) -> None:
        """Refuse images of (H, W) pixels that these features cannot be of.

        Raises:
            InputError: naming ``who`` asks.
        """
        # padding and unpadded convolutions make features cover a little more or less than the image
        for cells, pixels in zip((self.height, self.width), image_size, strict=True):
            if abs(cells * self.stride - pixels) > 2 * self.stride:
                raise InputError(
                    f"{who}: features of {self.height}×{self.width} at stride {self.stride} do not cover images of "
                    f"{image_size[0]}×{image_size[1]}; set FeatureShape's stride, or call it with cameras.resized(...) to "
                    "the size that the encoder sees"
                )


class Reshaper(nn.Module):
    """Base of all view transformers: knows its source and its target, compares them with what it is given.

    A subclass implements :meth:`reshape` on ``(b, n, c, h, w)``. Reshapers that use no geometry are also plain adapters
    for any h×w → R×C on ``(b, c, h, w)``, with no camera.

    Args:
        source: the features it will get; a sequence of them where it takes several scales.
        grid: the cells it fills, or just (R, C) for a plain adapter that knows no metres.
        out_channels: d.

    Raises:
        InputError: when a geometric reshaper is given (R, C) in place of a grid, or its scales are of different rigs.
    """

    needs_cameras: ClassVar[bool] = False
    """Whether it reads the calibration; then ``cameras`` must be given and ``grid`` be a :class:`BEVGrid`."""

    takes_scales: ClassVar[bool] = False
    """Whether it can take several feature scales; then :meth:`reshape` gets a tuple, also of one."""

    def __init__(
        self, source: FeatureShape | Sequence[FeatureShape], grid: BEVGrid | tuple[int, int], out_channels: int
    ) -> None:
        super().__init__()
        if self.needs_cameras and not isinstance(grid, BEVGrid):
            raise InputError(
                f"{self.name}: the target is {grid} cells without metres; pass a BEVGrid, it projects them"
            )
        self.sources = (source,) if isinstance(source, FeatureShape) else tuple(source)
        if len({scale.cameras for scale in self.sources}) > 1:
            raise InputError(
                f"{self.name}: its scales are of {[scale.cameras for scale in self.sources]} cameras; they must be of the same rig"
            )
        self.source = self.sources[0]
        self.grid = grid
        self.out_channels = out_channels
        self.auxiliary_loss: Tensor | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return type(self).__name__

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
            features: (b, n, c, h, w), or (b, c, h, w) for one camera; a sequence of them, one a scale, where several
                scales are taken.
            cameras: the calibration, of the full-size images; may be left out where it is not read.

        Returns:
            (b, d, R, C).

        Raises:
            InputError: when the features are not what this was built for, or a needed calibration is missing.
        """
        scales = self.checked(features, cameras)
        return self.reshape(scales if self.takes_scales else scales[0], cameras)

    def checked(
        self,
        features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "b n _ _ _"]],
        cameras: Cameras | None,
    ) -> tuple[Tensor, ...]:
        """Compare what is given with what this was built for.

        Returns:
            (b, n, c, h, w) of every scale, with zeros in dropped cameras.

        Raises:
            InputError: as :meth:`forward`.
        """
        scales = (features,) if isinstance(features, Tensor) else tuple(features)
        for x in scales:
            if x.ndim not in (4, 5):
                raise InputError(
                    f"{self.name}: features are {tuple(x.shape)}; they must be (b, n, c, h, w), or (b, c, h, w) of one camera"
                )
        scales = tuple(x.unsqueeze(1) if x.ndim == 4 else x for x in scales)
        if len(scales) != len(self.sources):
            raise InputError(
                f"{self.name}: features are of {len(scales)} scales but it was built for {len(self.sources)}; rebuild it, or "
                "change encoder.strides"
            )
        for x, built in zip(scales, self.sources, strict=True):
            if tuple(x.shape[1:]) != (built.cameras, built.channels, built.height, built.width):
                n, c, h, w = x.shape[1:]
                raise InputError(
                    f"{self.name}: features are {n} cameras × {c} channels × {h}×{w} but it was built for {built.cameras} × "
                    f"{built.channels} × {built.height}×{built.width}; rebuild it with source=FeatureShape(channels={c}, "
                    f"height={h}, width={w}, cameras={n}), or change the encoder's stride"
                )
        if self.needs_cameras:
            self._check_cameras(cameras)
        if cameras is not None and cameras.intrinsics.shape[:2] != scales[0].shape[:2]:
            raise InputError(
                f"{self.name}: features are of {tuple(scales[0].shape[:2])} (batch, cameras) but the calibration is of "
                f"{cameras.batch_shape}; give every image its camera"
            )
        return tuple(without_dropped(x, cameras) for x in scales)

    def _check_cameras(self, cameras: Cameras | None) -> None:
        if cameras is None:
            raise InputError(
                f"{self.name}: it projects through the calibration; call it as reshaper(features, cameras)"
            )
        for built in self.sources:
            built.check_covers(cameras.image_size, self.name)

    def reshape(self, features: Any, cameras: Cameras | None) -> Tensor:
        """(b, n, c, h, w), a tuple of them where several scales are taken → (b, d, R, C), sizes already compared."""
        raise NotImplementedError

    def check_original(self, weights: Mapping[str, Any], remedy: str) -> None:
        """Compare published weights, renamed, with this module's own.

        Raises:
            InputError: naming what is missing, left over or of another shape, and the remedy.
        """
        wrong = differences(self.state_dict(), weights)
        if wrong:
            raise InputError(f"{self.name}: the original's weights do not fit: {wrong}; {remedy}")

    def pop_auxiliary_loss(self) -> Tensor | None:
        """What the method itself adds to the loss of the latest forward in training, weighted, once; ``None``: nothing."""
        auxiliary, self.auxiliary_loss = self.auxiliary_loss, None
        return auxiliary


class GeometricReshaper(Reshaper):
    """Base of view transformers that look through the calibration: what follows from it is kept apart from the images.

    A subclass implements :meth:`locate`, all that depends on cameras (and weights) alone, and :meth:`gather`, which
    brings it together with the features. On a fixed rig :meth:`precompute` does the first once and for all.
    """

    needs_cameras: ClassVar[bool] = True
    grid: BEVGrid

    def __init__(
        self, source: FeatureShape | Sequence[FeatureShape], grid: BEVGrid | tuple[int, int], out_channels: int
    ) -> None:
        super().__init__(source, grid, out_channels)
        self._located: tuple[Tensor, ...] = ()
        self.register_load_state_dict_pre_hook(_forget_rig)

    def locate(self, cameras: Cameras) -> tuple[Tensor, ...]:
        """What the calibration decides, of b rigs: the tensors that :meth:`gather` takes."""
        raise NotImplementedError

    def gather(self, features: Any, located: Any) -> Tensor:
        """(b, n, c, h, w), or a tuple of scales, and what :meth:`locate` found, of b rigs or of one → (b, d, R, C)."""
        raise NotImplementedError

    @torch.no_grad()
    def precompute(self, cameras: Cameras) -> "GeometricReshaper":
        """Fix the rig: from now on features alone are given, and geometry costs nothing per frame.

        For inference: what is kept may follow from the weights too, so training or loading weights ends it, after which
        the calibration must be given again. It is in no checkpoint, and keeps its precision whatever the module is cast to.

        Args:
            cameras: of one rig, b = 1.

        Raises:
            InputError: in training, or when the calibration is of several rigs.
        """
        if cameras.batch_shape != (1, self.source.cameras):
            raise InputError(
                f"{self.name}: the fixed rig is of {cameras.batch_shape} (batch, cameras); give one calibration of "
                f"{self.source.cameras} cameras"
            )
        if self.training:
            raise InputError(f"{self.name}: a rig is fixed for inference; call eval() first")
        super()._check_cameras(cameras)
        self._located = self.locate(cameras)
        return self

    def train(self, mode: bool = True) -> "GeometricReshaper":
        """Switch between training and inference; training ends a fixed rig."""
        if mode:
            self._located = ()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GeometricReshaper":
        super()._apply(fn, recurse)
        self._located = tuple(value.to(fn(value).device) for value in self._located)
        return self

    def _check_cameras(self, cameras: Cameras | None) -> None:
        if not self._located:
            super()._check_cameras(cameras)
        elif cameras is not None:
            raise InputError(
                f"{self.name}: its rig was fixed by precompute; call it with features alone, or build a new one"
            )

    def reshape(self, features: Tensor | tuple[Tensor, ...], cameras: Cameras | None) -> Tensor:
        return self.gather(features, self._located if cameras is None else self.locate(cameras))


def _forget_rig(module: nn.Module, *_: Any) -> None:
    assert isinstance(module, GeometricReshaper)
    module._located = ()


def without_dropped(features: Tensor, cameras: Cameras | None) -> Tensor:
    """(b, n, c, h, w) with zeros in dropped cameras, whatever they hold, NaN too."""
    if cameras is None or cameras.camera_mask is None:
        return features
    return torch.where(cameras.camera_mask[..., None, None, None], features, 0)


def present_weights(features: Tensor, cameras: Cameras | None) -> Tensor:
    """(b, n) weights that average over the cameras that are there; all cameras when no mask is given."""
    b, n = features.shape[:2]
    if cameras is None or cameras.camera_mask is None:
        return features.new_full((b, n), 1.0 / n)
    present = cameras.camera_mask.to(features.dtype)
    return present / present.sum(1, keepdim=True).clamp(min=1)


def average_views(views: Tensor, cameras: Cameras | None) -> Tensor:
    """(b, n, d, R, C) → (b, d, R, C), averaged over the cameras that are there."""
    return torch.einsum("bndrc,bn->bdrc", views, present_weights(views, cameras))
