"""Exported programs against the model they come from."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import bevreshape
from bevreshape.analysis.costs import ring
from bevreshape.bev_spec import BEVSpec
from bevreshape.config.load_model import load_model
from bevreshape.deployment.inference import FixedInference, Inference
from bevreshape.deployment.program import FORMATS, export, open_program
from bevreshape.deployment.rigs import check_visibility, example, example_rig, fitted_rig, stored_rig
from bevreshape.encoders import TimmEncoder
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.heads import ConvHead
from bevreshape.model import BEVModel
from bevreshape.reshapers import IPM, FixedRig

GRID = BEVGrid((0, 16), (-8, 8), 2.0)

pytestmark = pytest.mark.usefixtures("no_shape_checks")


def calibration(folder: Path, pitch: float = 0.1) -> Path:
    """One camera 1.5 m above the ground, for images of 64×128."""
    sin, cos = float(np.sin(pitch)), float(np.cos(pitch))
    pose = [[0, -sin, cos, 1.0], [-1, 0, 0, 0.0], [0, -cos, -sin, 1.5], [0, 0, 0, 1]]
    camera = {
        "name": "front", "image_size": [64, 128], "ego_from_cam": pose,
        "intrinsics": [[80, 0, 63.5], [0, 80, 31.5], [0, 0, 1]],
    }  # fmt: skip
    path = folder / "calibration.json"
    path.write_text(json.dumps({"version": 1, "cameras": [camera]}))
    return path


def test_onnx_gives_the_models_probabilities(command, trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints" / "best.ckpt"
    ended = command("export", f"checkpoint={checkpoint}", "out=model.onnx")
    assert ended.code == 0, ended.err
    assert "image, intrinsics, ego_from_cam → probabilities" in ended.out
    model, _, _ = load_model(str(checkpoint))
    cameras = ring(1, (32, 64), 5, torch.device("cpu"))
    image = torch.rand(5, 1, 3, 32, 64)
    with torch.no_grad():
        expected = model(image, cameras).heads["segmentation"].sigmoid()
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [
        ("image", ["batch", 1, 3, 32, 64]), ("intrinsics", ["batch", 1, 3, 3]), ("ego_from_cam", ["batch", 1, 4, 4]),
    ]  # fmt: skip
    assert [(entry.name, entry.shape) for entry in session.get_outputs()] == [("probabilities", ["batch", 4, 16, 16])]
    inputs = {"image": image, "intrinsics": cameras.intrinsics, "ego_from_cam": cameras.ego_from_cam}
    (found,) = session.run(["probabilities"], {name: x.numpy() for name, x in inputs.items()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_a_fixed_rig_leaves_the_image_as_the_only_input(command, trained: Path, tmp_path: Path) -> None:
    arguments = (f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}", "format=pt2", "out=model.pt2", "repeats=2")
    ended = command("export", *arguments, f"calibration={calibration(tmp_path)}")
    assert ended.code == 0, ended.err
    assert "ms with the calibration as an input" in ended.out
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert program(torch.rand(2, 1, 3, 32, 64)).shape == (2, 4, 16, 16)


def geometric_model(grid: BEVGrid = GRID) -> BEVModel:
    torch.manual_seed(0)
    encoder = TimmEncoder(image_size=(32, 64), cameras=1, channels=8)
    return BEVModel(
        encoder, IPM(encoder.sources[0], grid), {"segmentation": ConvHead(8, 2, upsample=1, channels=8)}
    ).eval()


def test_the_folded_calibration_is_that_of_the_file(tmp_path: Path) -> None:
    """Images of 64×128 come to the model at half their size, with half their focal length."""
    model = geometric_model()
    pose = torch.tensor(json.loads(calibration(tmp_path).read_text())["cameras"][0]["ego_from_cam"])[None, None].float()
    intrinsics = torch.tensor([[40, 0, 31.5], [0, 40, 15.5], [0, 0, 1.0]])[None, None]
    image = torch.rand(3, 1, 3, 32, 64)
    with torch.no_grad():
        expected = (
            model(image, Cameras(intrinsics.expand(3, 1, 3, 3), pose.expand(3, 1, 4, 4), (32, 64)))
            .heads["segmentation"]
            .sigmoid()
        )
    spec = BEVSpec(GRID, ("a", "b"), ("front",), (32, 64))
    fixed = FixedInference(model, fitted_rig(stored_rig(tmp_path / "calibration.json", spec), spec))
    export(fixed, (image,), tmp_path / "fixed.onnx", "onnx")
    found = open_program(tmp_path / "fixed.onnx", "onnx")(image)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cell_m", [2.0, 0.1])
def test_export_example_uses_the_images(cell_m: float, tmp_path: Path) -> None:
    """Cameras of a car for a street, of a toy for a table: the compared programs must read images."""
    grid = BEVGrid((0, 8 * cell_m), (-4 * cell_m, 4 * cell_m), cell_m)
    spec = BEVSpec(grid, ("a", "b"), ("front",), (32, 64))
    image, intrinsics, ego_from_cam = example(spec, example_rig(spec))
    model = geometric_model(grid)
    error = export(Inference(model, (32, 64)), (image, intrinsics, ego_from_cam), tmp_path / "m.onnx", "onnx")
    assert error < 1e-4
    bev = model.reshaper(model.encoder(image), Cameras(intrinsics, ego_from_cam, (32, 64)))
    assert (bev != 0).any(1).float().mean() > 0.2


@pytest.mark.parametrize(("wrong", "shown"), [(1e-3, r"0\.001"), (float("nan"), "nan")])
def test_a_program_that_differs_is_not_written(
    wrong: float, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Inference(geometric_model(), (32, 64))
    spec = BEVSpec(GRID, ("a", "b"), ("front",), (32, 64))
    right = open_program

    def spoilt(*given):
        program = right(*given)
        return lambda *inputs: program(*inputs) + (wrong if len(inputs[0]) == 3 else 0)  # of one sample it is right

    monkeypatch.setattr("bevreshape.deployment.program.open_program", spoilt)
    with pytest.raises(InputError, match=f"differs from the model by {shown}"):
        export(model, example(spec, example_rig(spec)), tmp_path / "model.pt2", "pt2")
    assert not (tmp_path / "model.pt2").exists()


def test_torch_without_onnx_is_reported(tmp_path: Path, monkeypatch) -> None:
    def fails(*_, **__):
        try:
            raise NotImplementedError("aten.median has no translation\nand a long story")
        except NotImplementedError as error:
            raise torch.onnx.OnnxExporterError("Failed to convert.\nThis is step 3/3.") from error

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(
        InputError, match=r"as ONNX \(NotImplementedError: aten\.median has no translation\); .* format=pt2"
    ):
        export(torch.nn.Linear(3, 2), [torch.randn(3, 3)], tmp_path / "x.onnx", "onnx")
    assert not list(tmp_path.iterdir())


class Deciding(torch.nn.Module):
    """Its way depends on what it is given."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("format", FORMATS)
def test_untraceable_model_is_reported_with_torchs_reason(format: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"torch .* cannot export this model \(\w+: .+\); change") as caught:
        export(Deciding(), [torch.randn(3, 3)], tmp_path / f"x.{format}", format)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("grid", [BEVGrid((-16, 0), (-8, 8), 2.0), BEVGrid((-8, 8), (4, 20), 2.0)])
def test_camera_that_does_not_point_ahead(grid: BEVGrid) -> None:
    spec = BEVSpec(grid, ("a", "b"), ("rear",), (32, 64))
    rig = example_rig(spec)
    check_visibility(rig, grid)
    turned = torch.diag(torch.tensor([-1.0, -1, 1, 1])) @ rig.ego_from_cam
    with pytest.raises(InputError, match="observe 0% of the grid"):
        check_visibility(Cameras(rig.intrinsics, turned, (32, 64)), grid)


@pytest.mark.parametrize("format", FORMATS)
def test_exported_metadata(format: str, tmp_path: Path) -> None:
    spec = BEVSpec(GRID, ("a", "b"), ("front",), (32, 64))
    path = tmp_path / f"model.{format}"
    inputs = example(spec, example_rig(spec))
    export(Inference(geometric_model(), (32, 64)), inputs, path, format, spec)
    if format == "onnx":
        about = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map["bevreshape"]
    else:
        found = {"bevreshape.json": ""}
        torch.export.load(path, extra_files=found)
        about = found["bevreshape.json"]
    known = json.loads(about)
    assert BEVSpec.from_plain(known) == spec
    assert known["version"] == bevreshape.__version__
    assert known["inputs"]["image"] == {
        "shape": ["batch", 1, 3, 32, 64], "dtype": "float32", "channels": ["R", "G", "B"], "range": [0, 1],
    }  # fmt: skip
    assert list(known["inputs"]) == ["image", "intrinsics", "ego_from_cam"]
    assert known["outputs"]["probabilities"]["shape"] == ["batch", 2, 8, 8]
    assert known["cameras"] is None


def test_images_alone_on_a_fixed_rig() -> None:
    model, rig = geometric_model(), ring(1, (32, 64), 1, torch.device("cpu"))
    images = torch.rand(1, 1, 3, 32, 64)
    expected = model(images, rig).heads["segmentation"]
    assert isinstance(model.reshaper, IPM)
    fixed = BEVModel(model.encoder, FixedRig(model.reshaper, rig), model.heads)
    torch.testing.assert_close(fixed(images).heads["segmentation"], expected, atol=0, rtol=0)


def test_unexportable_models_are_reported(command, trained: Path, tmp_path: Path) -> None:
    checkpoint = f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"
    ended = command("export", checkpoint, "format=onx")
    assert (ended.code, "onnx" in ended.err) == (1, True)
    path = calibration(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "frames": {"a": {"front": {"image_size": [64, 128]}}}}))
    ended = command("export", checkpoint, f"calibration={path}")
    assert (ended.code, "rigs of their own" in ended.err) == (1, True)


def test_inputs_are_not_overwritten(command, trained: Path, tmp_path: Path) -> None:
    given = (trained / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "best.ckpt").write_bytes(given)
    (tmp_path / "link.ckpt").symlink_to("best.ckpt")
    (tmp_path / "calibration.json").write_text("{}")
    for arguments, words in (
        (("out=best.ckpt",), "out=best.ckpt is the checkpoint itself"),
        (("out=link.ckpt",), "out=link.ckpt is the checkpoint itself"),
        (("out=calibration.json", "calibration=calibration.json"), "out=calibration.json is the calibration itself"),
        (("out=best.onnx",), "out=best.onnx has the suffix of another format than format=pt2"),
    ):
        ended = command("export", "checkpoint=best.ckpt", "format=pt2", *arguments)
        assert (ended.code, "Traceback" in ended.err) == (1, False)
        assert words in ended.err
    assert (tmp_path / "best.ckpt").read_bytes() == given
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "best.ckpt",
        "calibration.json",
        "link.ckpt",
    ]
