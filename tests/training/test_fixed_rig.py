"""Training on a fixed rig: the same losses as with the cameras of every batch, and a check of these cameras."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from batches import batch_of

from bevreshape.analysis.costs import ring
from bevreshape.data.batch import BEVBatch
from bevreshape.data.one_rig import OneRig
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.model import BEVModel
from bevreshape.reshapers import IPM, CrossViewAttention, FeatureShape, KernelAttention, LatentAttention
from bevreshape.training.rig_geometry import RigGeometry, fix_rig
from bevreshape.training.task import BEVTask

SIZE = (16, 24)


def batch(seed: int = 0) -> BEVBatch:
    images = torch.rand(3, 2, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    return batch_of(images, ring(2, SIZE, 3, torch.device("cpu")))


@pytest.mark.parametrize("change", ["intrinsics", "ego_from_cam", "camera_mask"])
def test_another_rig_is_refused(change: str) -> None:
    rig, given = OneRig(), batch()
    rig.check(given)
    rig.check(batch(1))
    values = getattr(given.cameras, change).clone()
    values[2, 1] = False if change == "camera_mask" else values[2, 1] + 1e-6 * torch.eye(values.shape[-1])
    other = replace(given, cameras=replace(given.cameras, **{change: values}))
    with pytest.raises(InputError, match=r"sample 2 differ from those of sample sample 0; set trainer\.static"):
        rig.check(other)


def test_augmentation_of_cameras_is_refused() -> None:
    given = batch()
    OneRig().check_unmoved(given.cameras, replace(given, images=given.images / 2).cameras)
    with pytest.raises(InputError, match=r"augment changes the cameras; set augment\.flip_p=0"):
        OneRig().check_unmoved(given.cameras, given.flip([0, 1]).cameras)


@pytest.mark.parametrize("cls", [IPM, KernelAttention])
def test_steps_with_kept_geometry(cls: Any) -> None:
    """Also where the geometry was first needed in a validation, whose tensors are not for training."""
    torch.manual_seed(0)
    reshaper = cls(FeatureShape(8, 4, 6, 2, stride=4, offset_px=1.5), BEVGrid((-4.0, 4.0), (-4.0, 4.0), 1.0))
    geometry, cameras = RigGeometry(reshaper), batch().cameras
    with torch.inference_mode():
        geometry(cameras.map(torch.clone))
    for seed in range(2):
        x = torch.randn(3, 2, 8, 4, 6, generator=torch.Generator().manual_seed(seed))
        results = []
        for run in (reshaper, lambda x, cameras: reshaper.forward_located(x, cameras, geometry(cameras))):
            own = x.clone().requires_grad_()
            reshaper.zero_grad()
            out = run(own, cameras)
            out.square().sum().backward()
            results.append([out, own.grad, *(p.grad for p in reshaper.parameters())])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


class Shifted(IPM):
    """Projects to places that are trained."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def locate(self, cameras: Any) -> Any:
        located = super().locate(cameras)
        return type(located)(*(x + self.shift if x.is_floating_point() else x for x in located))


class Doubled(IPM):
    """Has a step besides its geometry."""

    def reshape(self, features: Any, cameras: Any) -> Any:
        return 2 * super().reshape(features, cameras)


class Offset(IPM):
    """Has a step around all others."""

    def forward(self, features: Any, cameras: Any = None) -> Any:
        return super().forward(features, cameras) + 1


@pytest.mark.usefixtures("no_shape_checks")  # task and data are stand-ins
@pytest.mark.parametrize("cls", [IPM, KernelAttention, CrossViewAttention, LatentAttention, Shifted, Doubled, Offset])
def test_results_and_gradients_do_not_depend_on_the_option(cls: Any) -> None:
    """Whether the geometry is kept, or depends on weights, or a class has steps of its own."""
    torch.manual_seed(0)
    reshaper = cls(FeatureShape(8, 4, 6, 2, stride=4, offset_px=1.5), BEVGrid((-4.0, 4.0), (-4.0, 4.0), 1.0))
    data = SimpleNamespace(one_rig=None)
    cameras = batch().cameras
    x = torch.randn(3, 2, 8, 4, 6, requires_grad=True)
    results = []
    for fixed in (False, True):
        task = BEVTask(BEVModel(torch.nn.Identity(), reshaper, {"bev": torch.nn.Identity()}), {}, {})
        if fixed:
            fix_rig(task, data)  # type: ignore[arg-type]
        for _ in range(2):
            reshaper.zero_grad()
            x.grad = None
            out = task(SimpleNamespace(images=x, cameras=cameras)).heads["bev"]
            (out.square().sum() + sum(p.sum() for p in reshaper.parameters())).backward()
        results.append([out.detach(), x.grad, *(p.grad for p in reshaper.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert data.one_rig is not None


@pytest.mark.parametrize(("cls", "kept"), [(IPM, True), (CrossViewAttention, False), (Shifted, False)])
def test_geometry_that_reads_weights_is_not_kept(cls: Any, kept: bool) -> None:
    """Also where it is first needed without gradients."""
    geometry = RigGeometry(
        cls(FeatureShape(8, 4, 6, 2, stride=4, offset_px=1.5), BEVGrid((-4.0, 4.0), (-4.0, 4.0), 1.0))
    )
    with torch.inference_mode():
        geometry(batch().cameras)
    assert (geometry(batch().cameras) is not None) == kept
