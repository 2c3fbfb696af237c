"""Conventions of cameras: frames, pixels, resizing, visibility, and refused calibrations."""

import numpy as np
import pytest
import torch
from oracle import intrinsics, meets_ground, pose, project, rig

from bevreshape.errors import InputError
from bevreshape.geometry import Cameras, check_calibration
from bevreshape.geometry.cameras import apply_homography, invert_intrinsics, invert_rigid

HD = (900, 1600)
FRONT = (intrinsics(1266.4, 1266.4, 816.3, 491.5), pose(0.3, 0.6, [1.70, 0.016, 1.51], 0.2))
BACK_LEFT = (intrinsics(809.2, 811.0, 829.2, 481.8, skew=0.4), pose(108.0, 1.5, [1.0, 0.48, 1.56], -0.5))


def ground_before(camera, count=300):
    """Return ground points 2 to 60 m from the camera's foot, within 25 degrees of its viewing direction."""
    position, (x, y) = camera[1][:2, 3], camera[1][:2, 2]
    random = np.random.default_rng(0)
    distance = np.concatenate([[2.0, 60.0], random.uniform(2, 60, count - 2)])
    angle = np.arctan2(y, x) + np.concatenate([[0, 0], random.uniform(-0.43, 0.43, count - 2)])
    around = np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)
    return np.concatenate([position + around, np.zeros((count, 1))], axis=1)


def test_convention_camera_looks_along_z_with_x_right_and_y_down():
    cameras = rig((intrinsics(100, 100, 50, 40), pose(0, 0, [0, 0, 1])), image_size=(81, 101))
    points = torch.tensor([[[10.0, 0, 1], [10, 1, 1], [10, 0, 2], [10, 0, 0]]], dtype=torch.float64)
    pixels, depth = cameras.project(points)  # straight ahead, to the left, above, on the ground
    assert torch.allclose(pixels[0, 0], torch.tensor([[50.0, 40], [40, 40], [50, 30], [50, 50]], dtype=torch.float64))
    assert torch.allclose(depth, torch.tensor(10.0, dtype=torch.float64))


def test_convention_image_extends_half_a_pixel_beyond_outer_centres():
    cameras = rig((intrinsics(10, 10, 5, 5), pose(0, 0, [0, 0, 1])), image_size=(20, 30))
    pixels = torch.tensor([[-0.5, 0], [-0.51, 0], [29.49, 0], [29.5, 0], [0, -0.5], [0, -0.51], [0, 19.49], [0, 19.5]])
    seen = cameras.sees(pixels.double()[None, None], torch.ones(1, 1, 8).double())
    assert seen.flatten().tolist() == [True, False] * 4


@pytest.mark.parametrize("camera", [FRONT, BACK_LEFT], ids=["front", "back_left"])
def test_projection_to_a_hundredth_of_a_pixel_in_float32(camera, record_property):
    points = ground_before(camera)
    expected = np.array([project(point, *camera) for point in points])
    assert (expected[:, 2] > 0.5).all()
    in_float32 = rig(camera, image_size=HD, dtype=torch.float32)
    pixels, depth = in_float32.project(torch.from_numpy(points).float()[None])
    on_ground, depth_on_ground = apply_homography(in_float32.pixel_from_ground, torch.from_numpy(points[:, :2]).float())
    errors = [np.abs(got[0, 0].double().numpy() - expected[:, :2]).max() for got in (pixels, on_ground)]
    record_property("largest_error_px", float(max(errors)))
    assert max(errors) < 0.01
    for got in (depth, depth_on_ground):
        assert np.abs(got[0, 0].double().numpy() - expected[:, 2]).max() < 1e-4


def test_projection_in_float64_is_exact():
    points = np.concatenate([ground_before(FRONT), ground_before(BACK_LEFT)])
    for number, camera in enumerate((FRONT, BACK_LEFT)):
        pixels, depth = rig(FRONT, BACK_LEFT, image_size=HD).project(torch.from_numpy(points)[None])
        for point, uv, d in zip(points, pixels[0, number].numpy(), depth[0, number].numpy(), strict=True):
            u, v, expected_depth = project(point, *camera)
            assert d == pytest.approx(expected_depth, abs=1e-9)
            if expected_depth > 1e-3:
                assert uv == pytest.approx((u, v), rel=1e-9, abs=1e-8)


def test_pixels_meet_the_ground_where_their_rays_do():
    cameras = rig(FRONT, BACK_LEFT, image_size=HD)
    pixels = torch.from_numpy(np.random.default_rng(1).uniform([0, 0], [1600, 900], (200, 2)))
    ground, side = apply_homography(cameras.ground_from_pixel, pixels)
    sides = set()
    for number, camera in enumerate((FRONT, BACK_LEFT)):
        for uv, xy, s in zip(pixels.numpy(), ground[0, number].numpy(), side[0, number].numpy(), strict=True):
            x, y, t = meets_ground(*uv, *camera)
            assert (s > 0) == (t > 0)
            sides.add(t > 0)
            if s > 1e-3:
                assert xy == pytest.approx((x, y), rel=1e-9)
    assert sides == {True, False}  # below and above the horizon


@pytest.mark.parametrize(("dtype", "tolerance_m"), [(torch.float64, 1e-9), (torch.float32, 2e-2)])
def test_ground_to_pixel_and_back_is_the_identity(dtype, tolerance_m):
    cameras = rig(FRONT, BACK_LEFT, image_size=HD, dtype=dtype)
    for number, camera in enumerate((FRONT, BACK_LEFT)):
        points = torch.from_numpy(ground_before(camera)[:, :2]).to(dtype)
        pixels, _ = apply_homography(cameras.pixel_from_ground[:, [number]], points)
        back, side = apply_homography(cameras.ground_from_pixel[:, [number]], pixels)
        assert (side > 0).all()
        assert (back - points).norm(dim=-1).max() < tolerance_m


def test_points_behind_the_camera_are_not_seen():
    """A point mirrored through the camera centre has the same pixel; only the sign of its depth differs."""
    camera = (intrinsics(300, 300, 160, 100), pose(0, 10, [0, 0, 1.5]))
    cameras = rig(camera, image_size=(200, 320))
    ahead = np.array([[8.0, 0.5, 0.0], [20.0, -2.0, 1.0], [5.0, 1.0, 0.5]])
    behind = 2 * camera[1][:3, 3] - ahead
    beside = camera[1][:3, 3] + 3 * camera[1][:3, 0]
    points = torch.from_numpy(np.concatenate([ahead, behind, [beside], [camera[1][:3, 3]]]))[None]
    assert [project(p, *camera)[:2] for p in behind] == [pytest.approx(project(p, *camera)[:2]) for p in ahead]
    pixels, depth = cameras.project(points)
    assert cameras.sees(pixels, depth).flatten().tolist() == [True] * 3 + [False] * 5
    assert torch.isfinite(pixels).all()


def test_a_dropped_camera_sees_nothing():
    cameras = rig(FRONT, FRONT, image_size=HD, mask=[True, False])
    seen = cameras.sees(*cameras.project(torch.tensor([[[20.0, 0.0, 0.0]]], dtype=torch.float64)))
    assert seen.flatten().tolist() == [True, False]
    assert rig(FRONT, image_size=HD).full_mask.all()


def dot(u, v, size, sigma):
    vv, uu = np.mgrid[0 : size[0], 0 : size[1]]
    return np.exp(-((uu - u) ** 2 + (vv - v) ** 2) / (2 * sigma**2))


def centroid(image):
    vv, uu = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    return (image * uu).sum() / image.sum(), (image * vv).sum() / image.sum()


@pytest.mark.parametrize("factor", [(2, 2), (4, 4), (2, 5), (8, 8)])
def test_convention_resized_intrinsics_follow_the_image(factor):
    """A dot drawn at a point's pixel and averaged over blocks is at the pixel that the resized cameras project to."""
    camera = (intrinsics(400, 410, 190, 110), pose(0, 12, [0, 0, 1.5]))
    size = (240, 400)
    point = np.array([7.0, -0.7, 0.0])
    u, v, _ = project(point, *camera)
    down, across = factor
    small = dot(u, v, size, 12.0).reshape(size[0] // down, down, size[1] // across, across).mean((1, 3))
    resized = rig(camera, image_size=size).resized(small.shape)
    seen_at = resized.project(torch.from_numpy(point)[None, None])[0].flatten().tolist()
    assert centroid(small) == pytest.approx(seen_at, abs=1e-3)
    assert resized.image_size == small.shape


@pytest.mark.parametrize("stride", [2, 8, 16])
def test_convention_feature_centers_of_a_resized_image(stride):
    """FeatureShape's rule with a resize's offset of (stride − 1)/2 is the inverse of the resize rule."""
    camera = (intrinsics(320, 300, 100, 70), pose(0, 10, [0, 0, 1.5]))
    full = rig(camera, image_size=(128, 256))
    small = full.resized((128 // stride, 256 // stride))
    cells = torch.tensor([[0.0, 0.0], [3.0, 5.0], [256 / stride - 1, 128 / stride - 1]], dtype=torch.float64)
    pixels = cells * stride + (stride - 1) / 2
    through_full = apply_homography(full.ground_from_pixel, pixels)[0]
    through_small = apply_homography(small.ground_from_pixel, cells)[0]
    assert torch.allclose(through_full, through_small)


def test_cropping_and_resizing_back():
    cameras = rig(FRONT, image_size=HD)
    point = torch.tensor([[[15.0, 1.0, 0.0]]], dtype=torch.float64)
    before = cameras.project(point)[0].flatten()
    cropped = cameras.cropped(top=46, left=100, image_size=(700, 1200))
    assert torch.allclose(cropped.project(point)[0].flatten(), before - torch.tensor([100.0, 46.0]))
    assert cropped.image_size == (700, 1200)
    assert torch.allclose(cameras.resized((224, 480)).resized(HD).intrinsics, cameras.intrinsics)


def test_closed_form_inverses():
    for k, p in (FRONT, BACK_LEFT):
        assert np.allclose(invert_intrinsics(torch.from_numpy(k)).numpy(), np.linalg.inv(k), rtol=1e-12, atol=1e-15)
        assert np.allclose(invert_rigid(torch.from_numpy(p)).numpy(), np.linalg.inv(p), rtol=1e-12, atol=1e-15)


def test_gradients_of_projection_with_respect_to_calibration_and_points():
    random = np.random.default_rng(3)
    points = torch.from_numpy(random.uniform([4, -2, 0], [20, 2, 1], (3, 3)))[None].requires_grad_()
    calibration = rig((intrinsics(30, 31, 16, 12), pose(5, 8, [1, 0, 1.5])), image_size=(24, 32))
    k, p = calibration.intrinsics.requires_grad_(), calibration.ego_from_cam.requires_grad_()

    def project_all(k, p, points):
        return Cameras(k, p, (24, 32)).project(points)

    def to_ground(k, p):
        return apply_homography(
            Cameras(k, p, (24, 32)).ground_from_pixel, torch.tensor([[3.0, 20.0], [30.0, 14.0]]).double()
        )

    assert torch.autograd.gradcheck(project_all, (k, p, points))
    assert torch.autograd.gradcheck(to_ground, (k, p))


def test_gradients_stay_finite_behind_the_camera():
    calibration = rig((intrinsics(30, 31, 16, 12), pose(0, 0, [0, 0, 1.5])), image_size=(24, 32))
    points = torch.tensor([[[-5.0, 0, 0], [0, 3, 1.5], [5e-4, 0, 1.5]]], dtype=torch.float64, requires_grad=True)
    pixels, depth = calibration.project(points)
    (pixels.sum() + depth.sum()).backward()
    assert torch.isfinite(points.grad).all()


def test_autocast_leaves_geometry_in_full_precision():
    cameras = rig(FRONT, image_size=HD, dtype=torch.float32)
    points = torch.from_numpy(ground_before(FRONT)).float()[None]
    expected = cameras.project(points)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = cameras.project(points)[0]
        back = apply_homography(cameras.ground_from_pixel, got)[0]
    assert got.dtype == back.dtype == torch.float32
    assert torch.equal(got, expected)


def test_cameras_refuse_inconsistent_shapes_and_dtypes():
    k, p = torch.eye(3).expand(2, 1, 3, 3), torch.eye(4).expand(2, 1, 4, 4)
    with pytest.raises(InputError, match=r"intrinsics \(2, 1, 3, 3\) and ego_from_cam \(1, 1, 4, 4\)"):
        Cameras(k, p[:1], HD)
    with pytest.raises(InputError, match=r"mask \(2,\) must be \(b, n\) = \(2, 1\)"):
        Cameras(k, p, HD, torch.ones(2, dtype=torch.bool))
    with pytest.raises(InputError, match=r"intrinsics is torch\.bfloat16"):
        Cameras(k.bfloat16(), p, HD)


def edited(matrix, **entries):
    result = matrix.copy()
    for key, value in entries.items():
        result[int(key[1]), int(key[2])] = value
    return result


def mirrored(matrix):
    result = matrix.copy()
    result[:3, 0] *= -1
    return result


K, POSE = FRONT


@pytest.mark.parametrize(
    ("k", "p", "message"),
    [
        (edited(K, m00=0.0), POSE, r"singular \(fx=0, fy=1266\.4\)"),
        (edited(K, m11=-1266.4), POSE, r"mirror the image \(fx=1266\.4, fy=-1266\.4\)"),
        (K.T.copy(), POSE, r"must be \[\[fx, skew, cx\], .* \(is it transposed\?\)"),
        (edited(K, m22=2.0), POSE, r"must be \[\[fx, skew, cx\]"),
        (edited(K, m02=np.nan), POSE, "NaN or infinity"),
        (K, edited(POSE, m03=np.inf), "NaN or infinity"),
        (
            K * [[2], [2], [1]],
            POSE,
            r"\(1632\.6, 983\) is outside the image of 1600×900 pixels; .*another image size",
        ),
        (K * [[0.5], [0.5], [1]], POSE, r"\(408\.15, 245\.75\) is in the upper left corner .*another image size"),
        (
            intrinsics(2000, 2000, 1599.0, 899.0),
            POSE,
            r"\(1599, 899\) is in the lower right corner .*about 3200×1800",
        ),
        (intrinsics(6.0, 6.0, 816.0, 491.0), POSE, "fx=6, fy=6 are tiny .*millimetres or normalised"),
        (intrinsics(0.8, 1.4, 0.5, 0.5), POSE, "tiny"),
        (K, mirrored(POSE), r"mirrored \(det=-1\.000\)"),
        (K, edited(POSE, m00=0.0, m10=0.0, m20=0.0), r"singular \(det=0\)"),
        (K, POSE * [[1.0], [1.0], [1.01], [1.0]], "not orthonormal .*remove scale and shear"),
        (K, POSE.T.copy(), r"last row of ego_from_cam is \[\[1\.7, 0\.016, 1\.51, 1\.0\]\].*transposed"),
        (K, POSE * [[1, 1, 1, 1000]] * [[1], [1], [1], [0.001]], "is 2273.* from the ego origin.*millimetres"),
    ],
)
def test_invalid_calibration_is_refused_with_file_and_values(k, p, message):
    with pytest.raises(InputError, match=f"^calibration.json, frame 7.*{message}"):
        check_calibration(torch.from_numpy(k), torch.from_numpy(p), HD, "calibration.json, frame 7")


def test_refusal_names_the_camera_of_a_rig():
    k = torch.from_numpy(np.stack([K, edited(K, m00=0.0)]))
    with pytest.raises(InputError, match=r"^rig, camera 1: "):
        check_calibration(k, torch.from_numpy(np.stack([POSE, POSE])), HD, "rig")
    with pytest.raises(InputError, match=r"intrinsics \(2, 3, 3\) and ego_from_cam \(1, 4, 4\) must be"):
        check_calibration(k, torch.from_numpy(POSE)[None], HD, "rig")


def test_real_calibrations_pass():
    for k, p in (FRONT, BACK_LEFT):
        check_calibration(torch.from_numpy(k), torch.from_numpy(p), HD, "rig")
        # written with six decimals, as files do
        check_calibration(torch.from_numpy(k.round(6)), torch.from_numpy(p.round(6)), HD, "rig")
    cropped = rig(FRONT, image_size=HD).cropped(top=400, left=0, image_size=(500, 1600))
    check_calibration(cropped.intrinsics[0], cropped.ego_from_cam[0], cropped.image_size, "cropped")


@pytest.mark.parametrize("camera", [FRONT, BACK_LEFT], ids=["front", "back_left"])
def test_rays_pass_through_the_points_of_their_pixels(camera):
    cameras = rig(camera, image_size=HD)
    points = ground_before(camera, 50)
    seen = np.array([project(point, *camera) for point in points])
    rays = cameras.rays(torch.from_numpy(seen[:, :2]))[0, 0].numpy()
    np.testing.assert_allclose(cameras.centers[0, 0].numpy() + seen[:, 2:] * rays, points, atol=1e-9)
