"""Distortion models against OpenCV."""

import cv2
import numpy as np
import pytest
import torch

from bevreshape.errors import InputError
from bevreshape.geometry import DistortionModel, pinhole_intrinsics
from bevreshape.geometry.distortion import source_pixels

SIZE = (120, 200)
K = ((150.0, 0.0, 104.2), (0.0, 148.0, 57.6), (0.0, 0.0, 1.0))
LONG = ((215.0, 0.0, 97.0), (0.0, 215.0, 61.1), (0.0, 0.0, 1.0))

LENSES = {
    "barrel": DistortionModel("opencv", (-0.28, 0.07, 0.001, -0.0015), K, SIZE),
    "pincushion": DistortionModel("opencv", (0.11, -0.02, -0.002, 0.001, 0.004), K, SIZE),
    "mustache": DistortionModel("opencv", (0.04, -0.33, 0.001, -0.0016, 0.0), LONG, SIZE),
    "rational": DistortionModel("opencv", (0.3, 0.1, 0.0005, 0.0002, 0.01, 0.62, 0.2, 0.03), K, SIZE),
    "fisheye": DistortionModel(
        "fisheye", (0.04, -0.01, 0.003, -0.0005), ((90.0, 0.0, 98.0), (0.0, 91.0, 61.0), (0, 0, 1.0)), SIZE
    ),
}


def opencv(distortion: DistortionModel, points: np.ndarray) -> np.ndarray:
    """Return the stored pixels of points (p, 2) on the plane z = 1."""
    k, coefficients, zero = np.array(distortion.intrinsics), np.array(distortion.coefficients), np.zeros(3)
    rays = np.column_stack([points, np.ones(len(points))])[:, None]
    if distortion.model == "fisheye":
        return cv2.fisheye.projectPoints(rays, zero, zero, k, coefficients)[0][:, 0]
    return cv2.projectPoints(rays, zero, zero, k, coefficients)[0][:, 0]


@pytest.mark.parametrize("distortion", LENSES.values(), ids=LENSES)
def test_distortion_equals_opencv(distortion: DistortionModel) -> None:
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (500, 2))
    np.testing.assert_allclose(
        distortion.distort(torch.from_numpy(points)).numpy(), opencv(distortion, points), atol=1e-6
    )


@pytest.mark.parametrize("distortion", LENSES.values(), ids=LENSES)
def test_undistortion_inverts_every_pixel(distortion: DistortionModel) -> None:
    pixels = np.random.default_rng(1).uniform(0, [SIZE[1] - 1, SIZE[0] - 1], (500, 2))
    points, found = distortion.undistort(torch.from_numpy(pixels))
    assert found.all()
    np.testing.assert_allclose(opencv(distortion, points.numpy()), pixels, atol=1e-4)


@pytest.mark.parametrize("distortion", LENSES.values(), ids=LENSES)
def test_pinhole_image_is_the_largest_with_a_source_for_every_pixel(distortion: DistortionModel) -> None:
    intrinsics = pinhole_intrinsics(distortion)
    sources = source_pixels(distortion, intrinsics, SIZE).numpy()
    assert sources.min() > -0.01
    assert (sources.max((0, 1)) < [SIZE[1] - 1 + 0.01, SIZE[0] - 1 + 0.01]).all()
    ends = [sources[..., 0].min(), sources[..., 1].min(), *(np.array(SIZE[::-1]) - 1 - sources.max((0, 1)))]
    assert max(ends) < 0.1, "it touches the stored image's edge on all four sides"


def test_pinhole_intrinsics_equal_opencv_up_to_its_coarser_edges() -> None:
    for name in ("barrel", "mustache"):
        distortion = LENSES[name]
        theirs, _ = cv2.getOptimalNewCameraMatrix(
            np.array(distortion.intrinsics), np.array(distortion.coefficients), SIZE[::-1], 0
        )
        np.testing.assert_allclose(pinhole_intrinsics(distortion).numpy(), theirs, atol=1.5)


@pytest.mark.parametrize("model", ["opencv"])
def test_zero_distortion_is_the_identity(model: str) -> None:
    distortion = DistortionModel(model, (0.0,) * 5, K, SIZE)
    np.testing.assert_allclose(pinhole_intrinsics(distortion).numpy(), K, atol=1e-9)
    sources = source_pixels(distortion, pinhole_intrinsics(distortion), SIZE).numpy()
    np.testing.assert_allclose(sources, np.stack(np.meshgrid(np.arange(200), np.arange(120)), -1), atol=1e-9)


def test_skew_is_applied_after_distortion() -> None:
    k = ((150.0, 0.7, 104.2), (0.0, 148.0, 57.6), (0.0, 0.0, 1.0))
    points = np.random.default_rng(2).uniform(-0.5, 0.5, (50, 2))
    straight = opencv(
        DistortionModel("opencv", LENSES["barrel"].coefficients, ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)), SIZE), points
    )
    expected = (np.column_stack([straight, np.ones(50)]) @ np.array(k).T)[:, :2]
    distortion = DistortionModel("opencv", LENSES["barrel"].coefficients, k, SIZE)
    np.testing.assert_allclose(distortion.distort(torch.from_numpy(points)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("distortion", "expected"),
    [
        (
            DistortionModel("opencv", (-0.8, 0.0, 0.0, 0.0), K, SIZE),
            r"opencv \[-0.8, 0, 0, 0\] cannot be inverted from pixel \(0, 0\) to \(0, 119\)",
        ),
        (DistortionModel("opencv", (-1.2, 0.5, 0.0, 0.0), K, SIZE), "cannot be inverted from pixel"),
        (
            DistortionModel("fisheye", (0.0, 0.0, 0.0, 0.0), ((50.0, 0, 99.5), (0, 50.0, 59.5), (0, 0, 1.0)), SIZE),
            "cannot be inverted",
        ),
        (
            DistortionModel(
                "fisheye", (0.0, 0.0, 0.0, 0.0), ((68.0, 0, 99.5), (0, 68.0, 29.5), (0, 0, 1.0)), (60, 200)
            ),
            "focal lengths of",
        ),
        (
            DistortionModel(
                "opencv", LENSES["barrel"].coefficients, K, SIZE, chosen=((90.0, 0, 99), (0, 90.0, 59), (0, 0, 1.0))
            ),
            "outside",
        ),
    ],
)
def test_non_invertible_distortion_is_refused(distortion: DistortionModel, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        pinhole_intrinsics(distortion)


def test_a_wide_fisheye_is_read_with_chosen_intrinsics() -> None:
    """No pinhole image shows all of 190 degrees; one of 90 degrees is correct for its part."""
    k = ((60.0, 0.0, 99.5), (0.0, 60.0, 59.5), (0.0, 0.0, 1.0))
    chosen = ((100.0, 0.0, 99.5), (0.0, 100.0, 70.0), (0.0, 0.0, 1.0))
    distortion = DistortionModel("fisheye", (0.01, 0.0, 0.0, 0.0), k, SIZE, chosen)
    np.testing.assert_array_equal(pinhole_intrinsics(distortion).numpy(), chosen)
    rays = np.random.default_rng(3).uniform([-0.99, -0.7], [0.99, 0.49], (100, 2))
    pixels = (np.column_stack([rays, np.ones(100)]) @ np.array(chosen).T)[:, :2].round()
    sources = source_pixels(distortion, torch.tensor(chosen, dtype=torch.float64), SIZE).numpy()
    rays = (pixels - [99.5, 70.0]) / 100
    found = np.array([sources[int(v), int(u)] for u, v in pixels])
    np.testing.assert_allclose(found, opencv(distortion, rays), atol=1e-6)


def test_corners_may_fold() -> None:
    """A real calibration of five coefficients folds at 0.669 focal lengths; the corner is at 0.70."""
    k = ((1157.5, 0.0, 675.4), (0.0, 1151.9, 386.7), (0.0, 0.0, 1.0))
    distortion = DistortionModel("opencv", (-0.2671, 0.10326, -0.00088, 0.00081, -0.19605), k, (720, 1280))
    _, found = distortion.undistort(torch.tensor([[0.0, 0.0], [0.0, 386.0]]))
    assert found.tolist() == [False, True]
    intrinsics = pinhole_intrinsics(distortion)
    sources = source_pixels(distortion, intrinsics, distortion.image_size).numpy()
    assert sources.min() > -0.01
    assert (np.diff(sources[..., 0], axis=1) > 0.5).all(), "neighbours stay neighbours"
    assert (np.diff(sources[..., 1], axis=0) > 0.5).all()
    theirs, _ = cv2.getOptimalNewCameraMatrix(np.array(k), np.array(distortion.coefficients), (1280, 720), 0)
    np.testing.assert_allclose(intrinsics.numpy(), theirs, atol=8)
