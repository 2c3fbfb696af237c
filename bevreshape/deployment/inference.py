"""Wrap a trained model as a module of tensors alone, for export as a graph."""

from torch import Tensor, nn

from bevreshape.data.batch import SEGMENTATION
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.model import BEVModel
from bevreshape.reshapers import FixedRig, Reshaper


def check_segmentation(model: BEVModel, checkpoint: str) -> None:
    """Refuse a model without segmentation.

    Raises:
        InputError: names the checkpoint and its heads.
    """
    if SEGMENTATION not in model.heads:
        raise InputError(
            f"checkpoint {checkpoint}: its heads are {', '.join(model.heads)}, but probabilities come from the head "
            f"{SEGMENTATION}; train with such a head, or call load_model and read the model's Outputs"
        )


class Inference(nn.Module):
    """Map images and calibration to probabilities, in tensors alone.

    Args:
        model: trained.
        image_size: (H, W) of the images.
    """

    def __init__(self, model: BEVModel, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size

    def forward(self, image: Tensor, intrinsics: Tensor, ego_from_cam: Tensor) -> Tensor:
        """Map (b, n, 3, H, W) in 0..1, (b, n, 3, 3) and (b, n, 4, 4) to (b, k, rows, cols)."""
        return self.model(image, Cameras(intrinsics, ego_from_cam, self.image_size)).heads[SEGMENTATION].sigmoid()


class FixedInference(Inference):
    """Map images of one rig to probabilities; the geometry is computed once, at construction.

    Args:
        model: trained.
        rig: its cameras, b = 1.
    """

    def __init__(self, model: BEVModel, rig: Cameras) -> None:
        assert isinstance(model.reshaper, Reshaper)
        super().__init__(BEVModel(model.encoder, FixedRig(model.reshaper, rig), model.heads), rig.image_size)

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]  # the rig is fixed
        """Map (b, n, 3, H, W) in 0..1 to (b, k, rows, cols)."""
        return self.model(image).heads[SEGMENTATION].sigmoid()
