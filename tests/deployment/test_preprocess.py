"""Test the numpy-only preparation of raw images against the package's own."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from commands import ROOT
from PIL import Image

from bevreshape.bev_spec import BEVSpec
from bevreshape.data.sources.folder.calibration import read_calibration
from bevreshape.data.sources.folder.dataset import open_frames
from bevreshape.deployment import preprocess as deploy
from bevreshape.deployment.inference import FixedInference
from bevreshape.deployment.metadata import metadata
from bevreshape.deployment.program import export
from bevreshape.deployment.rigs import fitted_rig, stored_rig
from bevreshape.encoders import TimmEncoder
from bevreshape.geometry import BEVGrid
from bevreshape.heads import ConvHead
from bevreshape.model import BEVModel
from bevreshape.reshapers import IPM

GRID = BEVGrid((0, 16), (-8, 8), 2.0)
POSE = [[0, -0.1, 0.995, 1.0], [-1, 0, 0, 0.0], [0, -0.995, -0.1, 1.5], [0, 0, 0, 1]]
LENSES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "opencv": {"model": "opencv", "coefficients": [-0.3, 0.1, 1e-3, -2e-3, -0.02]},
    "rational": {"model": "opencv", "coefficients": [0.2, 0.05, 0, 1e-3, 0.01, 0.5, 0.1, 0.02]},
    "fisheye": {"model": "fisheye", "coefficients": [-0.02, 0.01, -0.003, 0.0005]},
}
SIZES = [((376, 1241), (128, 416)), ((900, 1600), (256, 704)), ((480, 640), (480, 640)), ((60, 100), (64, 96))]


def scene(size: tuple[int, int]) -> np.ndarray:
    """Return an image with smooth areas, sharp edges and noise."""
    v, u = np.mgrid[: size[0], : size[1]]
    generator = np.random.default_rng(0)
    image = np.stack([u * 255 / size[1], v * 255 / size[0], 255.0 * ((u // 17 + v // 11) % 2)], axis=-1)
    return np.clip(image + generator.normal(0, 20, image.shape), 0, 255).astype(np.uint8)


def folder(root: Path, size: tuple[int, int], distortion: dict[str, Any] | None, image: np.ndarray) -> Path:
    """Write a camera folder of one frame."""
    focal = 0.7 * size[1]
    camera = {
        "name": "front", "image_size": list(size), "ego_from_cam": orthonormal(),
        "intrinsics": [[focal, 0, size[1] / 2 - 3], [0, focal, size[0] / 2 + 2], [0, 0, 1]],
    }  # fmt: skip
    if distortion is not None:
        camera["distortion"] = distortion
    (root / "images").mkdir()
    Image.fromarray(image).save(root / "images" / "a.png")
    (root / "calibration.json").write_text(json.dumps({"version": 1, "cameras": [camera]}))
    return root / "calibration.json"


def orthonormal() -> list[list[float]]:
    pose = np.array(POSE)
    pose[:3, :3] = np.linalg.qr(pose[:3, :3])[0] * np.sign(np.diag(np.linalg.qr(pose[:3, :3])[1]))
    return pose.tolist()


def spec_of(size: tuple[int, int], image_mode: str = "rgb") -> BEVSpec:
    return BEVSpec(GRID, ("a", "b"), ("front",), size, image_mode)


@pytest.mark.parametrize(("stored", "wanted"), SIZES)
@pytest.mark.parametrize("distortion", LENSES)
def test_images_of_a_fixed_rig_equal_the_packages(stored, wanted, distortion: str, tmp_path: Path) -> None:
    image = scene(stored)
    path = folder(tmp_path, stored, LENSES[distortion], image)
    expected = open_frames(tmp_path / "images", wanted, calibration=path)[0].images[0].numpy()
    spec = spec_of(wanted)
    about = json.dumps(metadata(spec, stored_rig(path, spec)))
    prepared = deploy.Preprocessing(about)({"front": image})
    assert list(prepared) == ["image"]
    assert prepared["image"].dtype == np.float32
    levels = prepared["image"][0, 0] * 255
    assert levels.shape == expected.shape
    assert np.abs(levels - expected).max() < 1.01
    assert np.abs(levels - expected).mean() < 0.1
    plain = Image.fromarray(image).resize(wanted[::-1], Image.Resampling.BILINEAR)
    if stored != wanted:  # a plain resize gives another image
        assert np.abs(np.asarray(plain).transpose(2, 0, 1) - expected.astype(float)).mean() > 1


@pytest.mark.parametrize(("stored", "wanted"), SIZES[:2])
def test_images_and_intrinsics_of_any_rig_equal_the_packages(stored, wanted, tmp_path: Path) -> None:
    image = scene(stored)
    path = folder(tmp_path, stored, None, image)
    expected = open_frames(tmp_path / "images", wanted, calibration=path)[0]
    prepare = deploy.Preprocessing(metadata(spec_of(wanted)))
    cameras = json.loads(path.read_text())["cameras"]
    prepared = prepare({"front": image}, cameras)
    assert list(prepared) == ["image", "intrinsics", "ego_from_cam"]
    assert np.abs(prepared["image"][0] * 255 - expected.images.numpy()).max() < 1.01
    for key in ("intrinsics", "ego_from_cam"):
        np.testing.assert_allclose(prepared[key][0], getattr(expected, key).numpy(), rtol=1e-6, atol=1e-4)
    cameras[0]["distortion"] = LENSES["opencv"]
    with pytest.raises(ValueError, match=r"camera front: its distortion has no intrinsics .* calibration=FILE"):
        prepare({"front": image}, cameras)
    chosen = read_calibration(path).of("a").intrinsics[0] * torch.tensor([[1.4], [1.4], [1]])
    cameras[0]["distortion"] = {**LENSES["opencv"], "intrinsics": chosen.tolist()}
    path.write_text(json.dumps({"version": 1, "cameras": cameras}))
    expected = open_frames(tmp_path / "images", wanted, calibration=path)[0]
    prepared = prepare({"front": image}, cameras)
    assert np.abs(prepared["image"][0] * 255 - expected.images.numpy()).max() < 1.01
    np.testing.assert_allclose(prepared["intrinsics"][0], expected.intrinsics.numpy(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_images_equal_the_packages(mode: str, tmp_path: Path) -> None:
    image = scene((90, 160))
    image = np.asarray(Image.fromarray(image).convert(mode))
    path = folder(tmp_path, (90, 160), None, image)
    expected = open_frames(tmp_path / "images", (40, 64), calibration=path, image_mode="grey")[0].images[0].numpy()
    spec = spec_of((40, 64), "grey")
    prepare = deploy.Preprocessing(metadata(spec, stored_rig(path, spec)))
    assert np.abs(prepare({"front": image})["image"][0, 0] * 255 - expected).max() < 1.01


def test_the_file_works_alone_without_torch(tmp_path: Path) -> None:
    program = "import sys, bevreshape.deployment.preprocess; assert not {'torch', 'kornia', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    copy = tmp_path / "prepare.py"
    copy.write_text(Path(deploy.__file__).read_text())
    spec = importlib.util.spec_from_file_location("prepare", copy)
    assert spec is not None
    assert spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    about = metadata(spec_of((32, 64)))
    assert alone.Preprocessing(about).names == ["front"]


@pytest.mark.usefixtures("no_shape_checks")
def test_prepared_inputs_run_in_an_onnx_session(tmp_path: Path) -> None:
    image = scene((64, 128))
    path, spec = folder(tmp_path, (64, 128), LENSES["opencv"], image), spec_of((32, 64))
    torch.manual_seed(0)
    encoder = TimmEncoder(image_size=spec.image_size, cameras=1, channels=8)
    model = BEVModel(
        encoder, IPM(encoder.sources[0], GRID), {"segmentation": ConvHead(8, 2, upsample=1, channels=8)}
    ).eval()
    rig = stored_rig(path, spec)
    given = open_frames(tmp_path / "images", spec.image_size, calibration=path)[0]
    pixels = given.images[None].float() / 255
    with torch.no_grad():
        expected, mirrored = (
            model(x, fitted_rig(rig, spec)).heads["segmentation"].sigmoid() for x in (pixels, pixels.flip(-1))
        )
    fixed = FixedInference(model, fitted_rig(rig, spec))
    export(fixed, (pixels.repeat(3, 1, 1, 1, 1),), tmp_path / "fixed.onnx", "onnx", spec, rig)
    session = onnxruntime.InferenceSession(str(tmp_path / "fixed.onnx"), providers=["CPUExecutionProvider"])
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [("image", ["batch", 1, 3, 32, 64])]
    prepare = deploy.Preprocessing(session.get_modelmeta().custom_metadata_map["bevreshape"])
    (found,) = session.run(["probabilities"], prepare({"front": image}))
    # single grey levels hardly change the output
    assert np.abs(found - expected.numpy()).max() < 0.1 * (mirrored - expected).abs().max().item()


@pytest.mark.parametrize(
    ("images", "cameras", "message"),
    [
        ({"rear": scene((64, 128))}, None, r"images are for \['rear'\] but the program is for \['front'\]"),
        ({"front": scene((64, 120))}, None, "camera front: the image is 64×120 but the program is for 64×128"),
        ({"front": scene((64, 128)) / 255}, None, "float64 .* give uint8"),
        ({"front": scene((64, 128))[..., 0]}, None, r"uint8 \(64, 128\); give uint8 of \(h, w, 3\) in RGB"),
        ({"front": scene((64, 128))}, [], "has a fixed rig"),
    ],
)
def test_mismatched_inputs_are_refused(images, cameras, message: str, tmp_path: Path) -> None:
    path, spec = folder(tmp_path, (64, 128), None, scene((64, 128))), spec_of((32, 64))
    prepare = deploy.Preprocessing(metadata(spec, stored_rig(path, spec)))
    with pytest.raises(ValueError, match=message):
        prepare(images, cameras)


def test_metadata_of_another_program_are_refused() -> None:
    for about in ("null", json.dumps({"format": 2}), "[1]"):
        with pytest.raises(ValueError, match="this file reads 1"):
            deploy.Preprocessing(about)
