"""The contract of view transformers, tested for every one in the package."""

import importlib
import pkgutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rounding import EXACT, rounding
from torch import Tensor, nn
from torch.func import functional_call

import bevreshape.reshapers as package
from bevreshape.deployment.program import export
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import FeatureShape, FixedRig, GeometricReshaper, Reshaper

BASES = (Reshaper, GeometricReshaper, FixedRig)
RESHAPERS: list[type[Reshaper]] = [
    member for name in package.__all__ if issubclass(member := getattr(package, name), Reshaper) and member not in BASES
]

DEPENDS_ON_CAMERA_ORDER = {
    "MLP": "has its own W for every camera",
    "CrossAttention": "learns a vector for every camera, so that several front views differ",
}
"""Reshapers whose output may change with the order of cameras, and the reason."""

COUPLES_SAMPLES_IN_TRAINING = {
    "KernelAttention": "normalises the cells of a batch together, as published",
    "CrossViewAttention": "has the original's BatchNorm with batch statistics",
}
"""Reshapers whose samples are independent only in evaluation, and the reason."""

GRID = BEVGrid((-4.0, 4.0), (-3.0, 3.0), 1.0)  # 8×6

every_reshaper = pytest.mark.parametrize("cls", RESHAPERS, ids=lambda cls: cls.__name__)
one_and_six = pytest.mark.parametrize("cameras", [1, 6])


def source(cameras: int) -> FeatureShape:
    return FeatureShape(channels=8, height=4, width=6, cameras=cameras, stride=8, offset_px=3.5)


def features(cameras: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, cameras, 8, 4, 6, generator=torch.Generator().manual_seed(1))


def wide(rigs: Cameras) -> Cameras:
    """Return the cameras in float64."""
    return replace(rigs, intrinsics=rigs.intrinsics.double(), ego_from_cam=rigs.ego_from_cam.double())


def build(cls: type[Reshaper], cameras: int, grid: BEVGrid = GRID) -> Reshaper:
    torch.manual_seed(0)
    return cls(source(cameras), grid)


def test_every_reshaper_of_the_package_is_exported() -> None:
    found = set()
    for module in pkgutil.iter_modules(package.__path__):
        for member in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
            if isinstance(member, type) and issubclass(member, Reshaper) and member not in BASES:
                found.add(member)
    assert found == set(RESHAPERS)


@every_reshaper
@one_and_six
@pytest.mark.parametrize(
    "grid", [GRID, BEVGrid((0.0, 5.0), (-3.5, 3.5), 1.0), BEVGrid((-1.0, 1.0), (-1.5, 1.5), 0.125)]
)
def test_shape(cls: type[Reshaper], cameras: int, grid: BEVGrid, rig) -> None:
    reshaper = build(cls, cameras, grid)
    bev = reshaper(features(cameras), rig(2, cameras))
    assert bev.shape == (2, reshaper.out_channels, *grid.shape)
    assert bev.isfinite().all()


@every_reshaper
@one_and_six
def test_gradients_reach_every_parameter_and_every_camera(cls: type[Reshaper], cameras: int, rig) -> None:
    reshaper = build(cls, cameras)
    x = features(cameras).requires_grad_()
    bev = reshaper(x, rig(2, cameras))
    bev.backward(torch.randn(bev.shape, generator=torch.Generator().manual_seed(2)))
    assert x.grad is not None
    assert (x.grad.abs().sum((2, 3, 4)) > 0).all()
    for name, parameter in reshaper.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.slow
@every_reshaper
@one_and_six
def test_gradients_are_those_of_finite_differences(cls: type[Reshaper], cameras: int, rig) -> None:
    torch.manual_seed(0)
    grid = BEVGrid((0.0, 2.0), (-1.0, 1.0), 1.0)
    reshaper = cls(FeatureShape(4, 2, 3, cameras, stride=16, offset_px=7.5), grid).double()
    names = [name for name, _ in reshaper.named_parameters()]
    rigs = rig(1, cameras)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(reshaper, dict(zip(names, parameters, strict=True)), (x, rigs))

    x = torch.randn(1, cameras, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *reshaper.parameters()), fast_mode=True)


@every_reshaper
@one_and_six
def test_precisions(cls: type[Reshaper], cameras: int, rig) -> None:
    reshaper, x, rigs = build(cls, cameras), features(cameras), rig(2, cameras)
    exact = reshaper.double()(x.double(), rigs)
    assert exact.dtype == torch.float64
    reshaper.float()
    torch.testing.assert_close(reshaper(x, rigs).double(), exact, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = reshaper(x, rigs)
    rounded = rounding(25, exact, torch.bfloat16)  # a layer rounds a few times; about as many follow one another
    torch.testing.assert_close(mixed.double(), exact, atol=rounded, rtol=0)
    half = reshaper.bfloat16()(x.bfloat16(), rigs)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, atol=rounded, rtol=0)


@every_reshaper
def test_seed_determines_initialisation(cls: type[Reshaper], rig) -> None:
    x, rigs = features(6), rig(2, 6)
    first, again = build(cls, 6)(x, rigs), build(cls, 6)(x, rigs)
    assert torch.equal(first, again)
    torch.manual_seed(1)
    other = cls(source(6), GRID)
    if any(parameter.ndim > 1 for parameter in other.parameters()):
        assert not torch.equal(other(x, rigs), first)


@every_reshaper
@one_and_six
def test_samples_of_a_batch_are_independent(cls: type[Reshaper], cameras: int, rig) -> None:
    x, rigs = features(cameras, 3).double(), wide(rig(3, cameras))
    first = Cameras(rigs.intrinsics[:1], rigs.ego_from_cam[:1], rigs.image_size)
    for training in (False, True):
        reshaper = build(cls, cameras).double().train(training)
        together, alone = reshaper(x, rigs), reshaper(x[:1], first)
        apart = torch.allclose(alone[0], together[0], **EXACT)
        assert apart != (training and cls.__name__ in COUPLES_SAMPLES_IN_TRAINING)


@every_reshaper
def test_cameras_are_interchangeable_with_their_calibration(cls: type[Reshaper], rig) -> None:
    reshaper, x, rigs = build(cls, 6).double(), features(6).double(), wide(rig(2, 6))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = Cameras(rigs.intrinsics[:, order], rigs.ego_from_cam[:, order], rigs.image_size)
    same = torch.allclose(reshaper(x[:, order], moved), reshaper(x, rigs), **EXACT)
    assert same != (cls.__name__ in DEPENDS_ON_CAMERA_ORDER)


@every_reshaper
def test_a_dropped_camera_contributes_nothing(cls: type[Reshaper], rig) -> None:
    reshaper, x = build(cls, 6), features(6).requires_grad_()
    mask = torch.tensor([[True, False, True, True, False, True], [False, True, True, True, True, True]])
    rigs = replace(rig(2, 6), camera_mask=mask)
    bev = reshaper(x, rigs)
    bev.square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad.abs().sum((2, 3, 4)) > 0, mask)
    other = torch.where(mask[..., None, None, None], x.detach(), torch.nan)
    torch.testing.assert_close(reshaper(other, rigs), bev)
    assert not torch.allclose(reshaper(x, rig(2, 6)), bev, atol=1e-3)


@every_reshaper
def test_rig_with_one_present_camera_equals_that_camera(cls: type[Reshaper], rig) -> None:
    options = {"token_encoding": "none"} if cls.__name__ == "CrossAttention" else {}
    torch.manual_seed(0)
    six = cls(source(6), GRID, **options).double()
    one = cls(source(1), GRID, **options).double()
    # MLP has one W a camera, which are stacked along the first dimension; all others share theirs
    own = {name: value[2:3] if cls.__name__ == "MLP" else value for name, value in six.state_dict().items()}
    one.load_state_dict(own)
    x, rigs = features(6).double(), wide(rig(2, 6))
    left = Cameras(rigs.intrinsics[:, 2:3], rigs.ego_from_cam[:, 2:3], rigs.image_size)
    only = replace(rigs, camera_mask=torch.arange(6).expand(2, 6) == 2)
    torch.testing.assert_close(six(x, only), one(x[:, 2:3], left), **EXACT)


@every_reshaper
def test_rig_without_cameras_gives_finite_values(cls: type[Reshaper], rig) -> None:
    no_camera = replace(rig(2, 6), camera_mask=torch.zeros(2, 6, dtype=torch.bool))
    reshaper, x = build(cls, 6), features(6).requires_grad_()
    bev = reshaper(x, no_camera)
    bev.sum().backward()
    assert bev.isfinite().all()
    assert x.grad is not None
    assert (x.grad == 0).all()


@every_reshaper
@pytest.mark.parametrize("shape", [(2, 6, 8, 4, 5), (2, 6, 8, 3, 6), (2, 6, 7, 4, 6), (2, 5, 8, 4, 6), (2, 8, 4, 6)])
def test_features_of_another_size_are_refused(cls: type[Reshaper], shape: tuple[int, ...], rig) -> None:
    n, c, h, w = shape[1:] if len(shape) == 5 else (1, *shape[1:])
    with pytest.raises(InputError, match=f"{n} cameras × {c} channels × {h}×{w} but it was built for 6 × 8 × 4×6"):
        build(cls, 6)(torch.zeros(shape), rig(2, n))


@every_reshaper
@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("shape", [(8, 4, 6), (2, 1, 1, 8, 4, 6)])
def test_features_of_another_number_of_dimensions_are_refused(cls: type[Reshaper], shape: tuple[int, ...], rig) -> None:
    with pytest.raises(InputError, match=r"must be \(b, n, c, h, w\)"):
        build(cls, 1).checked(torch.zeros(shape), rig(2, 1))


@every_reshaper
def test_the_calibration_of_another_rig_is_refused(cls: type[Reshaper], rig) -> None:
    with pytest.raises(InputError, match=r"\(2, 6\).*\(2, 5\)"):
        build(cls, 6)(features(6), rig(2, 5))


@every_reshaper
def test_plain_adapter_in_two_lines(cls: type[Reshaper]) -> None:
    x = torch.randn(2, 64, 16, 32)
    if not issubclass(cls, GeometricReshaper):
        bev = cls(FeatureShape(64, 16, 32), (20, 20))(x)
        assert bev.shape == (2, bev.shape[1], 20, 20)
        return
    with pytest.raises(InputError, match="pass a BEVGrid"):
        cls(FeatureShape(64, 16, 32), (20, 20))
    with pytest.raises(InputError, match=r"call it as reshaper\(features, cameras\)"):
        cls(FeatureShape(64, 16, 32), GRID)(x)


@every_reshaper
def test_geometry_refuses_images_that_features_do_not_cover(cls: type[Reshaper], rig) -> None:
    reshaper, x, rigs = build(cls, 6), features(6), rig(2, 6, (900, 1600))
    if issubclass(cls, GeometricReshaper):
        with pytest.raises(InputError, match=r"4×6 at stride 8.*900×1600"):
            reshaper(x, rigs)
        larger = cls(replace(source(6), height=90, width=160), GRID)  # of 720×1280, calibrated for images of 900×1600
        with pytest.raises(InputError, match=r"90×160 at stride 8 do not cover images of 900×1600"):
            larger(torch.zeros(1, 6, 8, 90, 160), rig(1, 6, (900, 1600)))
    else:
        assert torch.equal(reshaper(x, rigs), reshaper(x))


@every_reshaper
@one_and_six
@torch.no_grad()
def test_fixed_rig_gives_the_same_bits(cls: type[Reshaper], cameras: int, rig) -> None:
    reshaper, x, rigs = build(cls, cameras).eval(), features(cameras, 3), rig(1, cameras)
    fixed = FixedRig(reshaper, rigs)
    assert torch.equal(fixed(x[:1]), reshaper(x[:1], rigs))
    every = Cameras(rigs.intrinsics.expand(3, -1, -1, -1), rigs.ego_from_cam.expand(3, -1, -1, -1), rigs.image_size)
    torch.testing.assert_close(fixed(x), reshaper(x, every), atol=1e-5, rtol=1e-5)
    if cameras > 1:
        dropped = replace(rigs, camera_mask=torch.arange(cameras).unsqueeze(0) != 1)
        assert torch.equal(FixedRig(reshaper, dropped)(x[:1]), reshaper(x[:1], dropped))
    assert {f"reshaper.{name}" for name in reshaper.state_dict()} == fixed.state_dict().keys()


@every_reshaper
def test_fixed_rig_refuses(cls: type[Reshaper], rig) -> None:
    reshaper, x = build(cls, 6), features(6)
    with pytest.raises(InputError, match=r"call eval\(\) first"):
        FixedRig(reshaper, rig(1, 6))
    reshaper.eval()
    with pytest.raises(InputError, match=r"of \(3, 6\) \(batch, cameras\)"):
        FixedRig(reshaper, rig(3, 6))
    fixed = FixedRig(reshaper, rig(1, 6))
    with pytest.raises(InputError, match="its rig is fixed"):
        fixed(x, rig(2, 6))
    with pytest.raises(InputError, match="built for 6"):
        fixed(x[:, :5])
    with pytest.raises(InputError, match="fixed for inference"):
        fixed.train()(x)


@every_reshaper
@torch.no_grad()
def test_cast_of_a_fixed_rig_does_not_change_its_geometry(cls: type[Reshaper], rig) -> None:
    x, cast = features(6, 1).bfloat16(), build(cls, 6).eval().bfloat16()
    expected = cast(x, rig(1, 6))
    assert torch.equal(FixedRig(cast, rig(1, 6))(x), expected)
    too_late = FixedRig(build(cls, 6).eval(), rig(1, 6)).bfloat16()
    if any(buffer.is_floating_point() for buffer in too_late.rig.buffers()):
        with pytest.raises(InputError, match="cast the reshaper first"):
            too_late(x)
    else:
        assert torch.equal(too_late(x), expected)


@every_reshaper
def test_features_of_another_number_of_scales_are_refused(cls: type[Reshaper], rig) -> None:
    scales = (source(6), replace(source(6), height=2, width=3, stride=16, offset_px=7.5))
    x = features(6), torch.randn(2, 6, 8, 2, 3, generator=torch.Generator().manual_seed(3))
    if cls.takes_scales:
        torch.manual_seed(0)
        reshaper = cls(scales, GRID)
        assert reshaper(x, rig(2, 6)).shape[-2:] == GRID.shape
        with pytest.raises(InputError, match="1 scales but it was built for 2"):
            reshaper(x[0], rig(2, 6))
    with pytest.raises(InputError, match="2 scales but it was built for 1"):
        build(cls, 6)(x, rig(2, 6))


class FromTensors(nn.Module):
    """A reshaper with tensor inputs only, as in an exported program."""

    def __init__(self, reshaper: Reshaper) -> None:
        super().__init__()
        self.reshaper = reshaper

    def forward(self, x: Tensor, intrinsics: Tensor, ego_from_cam: Tensor) -> Tensor:
        return self.reshaper(x, Cameras(intrinsics, ego_from_cam, (32, 48)))


@pytest.mark.slow
@every_reshaper
@pytest.mark.usefixtures("no_shape_checks")
def test_export_with_any_batch(cls: type[Reshaper], rig) -> None:
    """Export for one camera; the ONNX test covers six."""
    module, rigs = FromTensors(build(cls, 1)).double().eval(), wide(rig(3, 1))
    inputs = (features(1, 3).double(), rigs.intrinsics, rigs.ego_from_cam)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(module, inputs, dynamic_shapes=(batch, batch, batch), strict=False)
    for size in (3, 2):
        cut = tuple(value[:size] for value in inputs)
        torch.testing.assert_close(program.module()(*cut), module(*cut), **EXACT)


@pytest.mark.slow
@every_reshaper
@pytest.mark.usefixtures("no_shape_checks")
def test_onnx_with_any_batch(cls: type[Reshaper], rig, tmp_path: Path) -> None:
    rigs = rig(3, 6)
    inputs = (features(6, 3), rigs.intrinsics, rigs.ego_from_cam)
    module = FromTensors(build(cls, 6)).eval()
    export(module, inputs, tmp_path / "reshaper.onnx", "onnx")
    compare_onnx(tmp_path / "reshaper.onnx", module, [x[:2] for x in inputs])


def compare_onnx(written: Path, module: nn.Module, inputs: list[Tensor]) -> None:
    """Compare with onnxruntime to 1e-4."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    (found,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), module(*inputs), atol=1e-4, rtol=0)


@pytest.mark.slow
@every_reshaper
@pytest.mark.usefixtures("no_shape_checks")
def test_export_of_a_fixed_rig(cls: type[Reshaper], rig, tmp_path: Path) -> None:
    reshaper = FixedRig(build(cls, 6).eval(), rig(1, 6))
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(reshaper, (features(6, 3),), dynamic_shapes=(batch,), strict=False)
    torch.testing.assert_close(program.module()(features(6)), reshaper(features(6)), atol=1e-4, rtol=1e-4)
    if issubclass(cls, GeometricReshaper):
        export(reshaper, (features(6, 3),), tmp_path / "fixed.onnx", "onnx")
        compare_onnx(tmp_path / "fixed.onnx", reshaper, [features(6)])


@pytest.mark.parametrize("name", ["MLP", "CrossAttention"])
@torch.no_grad()
def test_fixed_rig_of_a_reshaper_that_reads_the_calibration_by_option(name: str, rig) -> None:
    torch.manual_seed(0)
    reshaper = getattr(package, name)(source(6), GRID, calibration=True).eval()
    assert reshaper.needs_cameras
    assert not FixedRig(reshaper, rig(1, 6)).needs_cameras
    assert torch.equal(FixedRig(reshaper, rig(1, 6))(features(6, 1)), reshaper(features(6, 1), rig(1, 6)))


@every_reshaper
@pytest.mark.gpu
def test_on_cuda_as_on_the_cpu(cls: type[Reshaper], rig) -> None:
    reshaper, x, rigs = build(cls, 6).eval(), features(6).requires_grad_(), rig(2, 6)
    expected = reshaper(x, rigs)
    expected.square().sum().backward()
    on_device, y = build(cls, 6).eval().cuda(), features(6).cuda().requires_grad_()
    found = on_device(y, rigs.to("cuda"))
    found.square().sum().backward()
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(y.grad.cpu(), x.grad, atol=1e-3, rtol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        assert on_device(y, rigs.to("cuda")).isfinite().all()
    no_camera = replace(rigs.to("cuda"), camera_mask=torch.zeros(2, 6, dtype=torch.bool, device="cuda"))
    on_device.zero_grad()
    on_device(y, no_camera).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in on_device.parameters())
    if isinstance(on_device, GeometricReshaper):
        fixed = FixedRig(build(cls, 6).eval(), rig(1, 6)).cuda()
        every = rig(1, 6).to("cuda")
        torch.testing.assert_close(fixed(y[:1]), on_device(y[:1], every), atol=1e-4, rtol=1e-4)


def test_export_on_torch_2_6() -> None:
    """PyTorch 2.6 is supported but does not distinguish exporting from compiling; one function does it for all."""
    folder = Path(package.__path__[0])
    asking = {path.name for path in folder.glob("*.py") if "torch.compiler.is_exporting" in path.read_text()}
    assert asking <= {"base.py"}
