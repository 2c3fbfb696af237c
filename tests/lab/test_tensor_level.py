"""The tensor-level experiment against numpy's own projection and sampling."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from bevreshape.costs import ring
from bevreshape.data.synthetic.rig import Spread
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.lab.tensor_level import (
    Point,
    Reached,
    ReadOut,
    Result,
    Settings,
    homography_target,
    run,
    sampling_distance,
    sampling_matrix,
    smooth_fields,
)
from bevreshape.optimizer import AdamWOneCycle
from bevreshape.reshapers import IPM, MLP, CrossAttention, FeatureShape, Reshaper

SOURCE = FeatureShape(channels=4, height=4, width=8, stride=16, offset_px=7.5)
SMALL = Settings(
    source=SOURCE, grid=BEVGrid((0.0, 8.0), (-4.0, 4.0), 1.0), steps=60, batch=16, evaluate_every=20, held_out=32
)
MILD = Spread(yaw_deg=2.0, pitch_deg=2.0, roll_deg=1.0, height_m=0.05)
LINEAR = partial(MLP, activation="none")


def cameras(source: FeatureShape = SOURCE) -> Cameras:
    return ring(source.cameras, (source.height * source.stride, source.width * source.stride), 1, torch.device("cpu"))


def sampling_oracle(rig: Cameras, source: FeatureShape, grid: BEVGrid) -> np.ndarray:
    """Cell by cell and camera by camera: project the centre, weigh the four features around it."""
    height, width = rig.image_size
    matrix = np.zeros((grid.rows * grid.cols, source.cameras, source.height, source.width))
    for row in range(grid.rows):
        for col in range(grid.cols):
            x = grid.forward_m[1] - (row + 0.5) * grid.cell_m
            y = grid.left_m[1] - (col + 0.5) * grid.cell_m
            taps = []
            for camera in range(source.cameras):
                ego_from_cam = rig.ego_from_cam[0, camera].double().numpy()
                point = np.linalg.solve(ego_from_cam, [x, y, 0, 1])[:3]
                u, v, depth = rig.intrinsics[0, camera].double().numpy() @ point
                if depth <= 0.001:
                    continue
                u, v = u / depth, v / depth
                if not (-0.5 <= u < width - 0.5 and -0.5 <= v < height - 0.5):
                    continue
                column = np.clip((u - source.offset_px) / source.stride, 0, source.width - 1)
                line = np.clip((v - source.offset_px) / source.stride, 0, source.height - 1)
                taps.append((camera, line, column))
            for camera, line, column in taps:
                for i in range(source.height):
                    for j in range(source.width):
                        weight = max(0, 1 - abs(line - i)) * max(0, 1 - abs(column - j))
                        matrix[row * grid.cols + col, camera, i, j] += weight / len(taps)
    return matrix.reshape(len(matrix), -1)


RIGS = pytest.mark.parametrize(
    ("source", "grid"),
    [
        (SOURCE, SMALL.grid),
        (FeatureShape(2, 3, 5, stride=8, offset_px=0.0), BEVGrid((1.0, 7.0), (-2.0, 3.0), 0.5)),
        (FeatureShape(2, 3, 5, cameras=6, stride=16, offset_px=7.5), BEVGrid((-6.0, 6.0), (-5.0, 5.0), 1.0)),
    ],
    ids=["front", "other offset", "six that overlap"],
)


@RIGS
def test_sampling_matrix_is_that_of_numpy(source: FeatureShape, grid: BEVGrid) -> None:
    expected = sampling_oracle(cameras(source), source, grid)
    seen = expected.sum(1) > 0
    assert 0.2 < seen.mean() < 1
    np.testing.assert_allclose(sampling_matrix(cameras(source), source, grid).numpy(), expected, atol=2e-5)


@RIGS
def test_target_is_the_matrix_times_tokens(source: FeatureShape, grid: BEVGrid) -> None:
    x = torch.randn(3, source.cameras, source.channels, source.height, source.width)
    rig = cameras(source)
    three = Cameras(rig.intrinsics.expand(3, -1, -1, -1), rig.ego_from_cam.expand(3, -1, -1, -1), rig.image_size)
    target, valid = homography_target(x, three, source, grid)
    matrix = sampling_oracle(rig, source, grid)
    tokens = x.transpose(1, 2).flatten(2).double().numpy()  # b c nt
    np.testing.assert_allclose(target.flatten(2).numpy(), tokens @ matrix.T, atol=1e-4)
    np.testing.assert_array_equal(valid.flatten(1).numpy(), np.tile(matrix.sum(1) > 0, (3, 1)))


def test_sampling_distance_is_over_seen_cells() -> None:
    sampling = torch.tensor([[0.0, 0.0], [0.6, 0.4], [0.0, 1.0]])
    weights = torch.tensor([[9.0, 9.0], [0.6, 0.7], [0.4, 1.0]])
    assert sampling_distance(weights, sampling) == pytest.approx(0.5 / np.sqrt(1.52))
    with pytest.raises(InputError, match=r"weights \(2, 3\)"):
        sampling_distance(weights.T, sampling)


def test_a_matrix_is_of_one_rig() -> None:
    with pytest.raises(InputError, match=r"\(1, 1\).*source has 2"):
        sampling_matrix(cameras(), replace(SOURCE, cameras=2), SMALL.grid)


@pytest.mark.parametrize("length", [0, 0.7, 1.5, 3.0])
def test_fields_have_unit_variance_and_the_stated_correlation(length: float) -> None:
    source = FeatureShape(channels=10, height=5, width=6, cameras=2)
    fields = smooth_fields(2000, source, length, torch.Generator().manual_seed(5)).double().numpy()
    maps = fields.reshape(-1, 30)  # 40000 independent ones
    row, col = np.divmod(np.arange(30), 6)
    squared = (row[:, None] - row) ** 2 + (col[:, None] - col) ** 2
    expected = np.exp(-squared / (2 * length**2)) if length else np.eye(30)
    np.testing.assert_allclose(maps.T @ maps / len(maps), expected, atol=0.03)  # 4 standard errors
    np.testing.assert_allclose(maps.mean(0), 0, atol=0.025)
    across = np.einsum("bnchw,bmdhw->ncmd", fields, fields).reshape(20, 20) / 2000 / 30
    np.testing.assert_allclose(across, np.eye(20), atol=0.12)  # channels and cameras have nothing in common


def test_ipm_knows_all_when_told() -> None:
    six = replace(SMALL, source=replace(SOURCE, cameras=6), grid=BEVGrid((-6.0, 6.0), (-6.0, 6.0), 1.0), jitter=MILD)
    for settings in (SMALL, replace(SMALL, jitter=MILD), six):
        assert run(IPM, settings).final_error < 1e-8


def test_ipm_not_told_errs_with_the_jitter() -> None:
    errors = []
    for scale in (0.0, 0.5, 1.0, 2.0):
        jitter = Spread(yaw_deg=2 * scale, pitch_deg=2 * scale, roll_deg=scale, height_m=0.05 * scale)
        errors.append(run(IPM, replace(SMALL, jitter=jitter, calibration="nominal")).final_error)
    assert errors[0] < 1e-8
    assert 0.01 < errors[1] < errors[2] / 2 < errors[3] / 4


class Given(Reshaper):
    """Always the same, or what it is told to make."""

    def __init__(self, source, grid, value: float = 0.0) -> None:
        super().__init__(source, grid, source.channels)
        self.value = value

    def reshape(self, features, cameras):
        self.cameras = cameras
        return features.new_full((len(features), self.out_channels, *self.target_shape), self.value)


def test_error_is_in_parts_of_the_variance_about_the_mean_of_every_channel() -> None:
    x = torch.randn(20, 1, 4, 4, 8, generator=torch.Generator().manual_seed(0)) + torch.arange(4.0)[:, None, None]
    rig = cameras()
    twenty = Cameras(rig.intrinsics.expand(20, -1, -1, -1), rig.ego_from_cam.expand(20, -1, -1, -1), rig.image_size)
    target, valid = homography_target(x, twenty, SOURCE, SMALL.grid)
    values = target.transpose(0, 1)[:, valid].double().numpy()  # c cells
    variance = values.var(1).mean()
    for value in (0.0, 1.5):
        expected = ((values - value) ** 2).mean() / variance
        found = run(partial(Given, value=value), replace(SMALL, batch=7), features=(x, x))
        assert found.final_error == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("calibration", ["exact", "nominal", "none"])
def test_what_the_reshaper_is_told(calibration: str) -> None:
    told = run(Given, replace(SMALL, jitter=MILD, calibration=calibration)).network.reshaper.cameras
    if calibration == "none":
        assert told is None
        return
    off = (told.ego_from_cam - cameras().ego_from_cam).abs().amax((1, 2, 3))
    assert ((off > 1e-4) if calibration == "exact" else (off == 0)).all()


def test_jitter_has_the_stated_spread() -> None:
    settings = replace(SMALL, jitter=Spread(pitch_deg=3.0, height_m=0.2), held_out=2000, batch=2000)
    seen: list[torch.Tensor] = []

    class Watching(Given):
        def reshape(self, features, cameras):
            seen.append(cameras.ego_from_cam[:, 0])
            return super().reshape(features, cameras)

    run(Watching, settings)
    drawn, nominal = seen[0].double(), cameras().ego_from_cam[0, 0].double()
    assert (drawn[:, 2, 3] - nominal[2, 3]).std().item() == pytest.approx(0.2, rel=0.1)
    dip = torch.rad2deg(torch.asin(-drawn[:, 2, 2]))  # of the optical axis, below the horizon
    assert dip.mean().item() == pytest.approx(5.0, abs=0.3)
    assert dip.std().item() == pytest.approx(3.0, rel=0.1)


def test_the_sampling_matrix_is_what_an_mlp_must_learn() -> None:
    def solved(source, grid) -> MLP:
        mlp = LINEAR(source, grid)
        with torch.no_grad():
            mlp.layers[0].weight[0] = sampling_matrix(cameras(), source, grid)
        return mlp

    assert run(solved, SMALL).curve[0].error < 1e-8


def test_an_mlp_approaches_the_sampling_matrix() -> None:
    settings = replace(SMALL, correlation_length=0, steps=300, optimizer=AdamWOneCycle(lr=2e-2, weight_decay=0))
    result = run(LINEAR, settings)
    sampling = sampling_matrix(cameras(), SOURCE, SMALL.grid)
    torch.manual_seed(settings.seed)
    before = sampling_distance(LINEAR(SOURCE, SMALL.grid).layers[0].weight[0].detach(), sampling)
    after = sampling_distance(result.network.reshaper.layers[0].weight[0].detach(), sampling)
    errors = [point.error for point in result.curve]
    assert errors[0] > 0.9
    assert errors[-1] < 0.01
    assert before > 0.9
    assert after < 0.1


def test_attention_learns_a_fixed_camera() -> None:
    """The tokens themselves are its values; of normalised ones .089 would be left."""
    settings = Settings(
        source=FeatureShape(channels=16, height=8, width=16, stride=16, offset_px=7.5),
        grid=BEVGrid((0.0, 16.0), (-16.0, 16.0), 2.0),
        steps=300,
        batch=16,
        evaluate_every=300,
        optimizer=AdamWOneCycle(lr=3e-2),
    )
    assert run(CrossAttention, settings).final_error < 1e-3


def test_the_curve_says_where_the_training_stood() -> None:
    result = run(LINEAR, replace(SMALL, steps=50))
    assert [(point.steps, point.samples) for point in result.curve] == [(0, 0), (20, 320), (40, 640), (50, 800)]
    seconds = [point.seconds for point in result.curve]
    assert seconds[0] == 0
    assert seconds == sorted(set(seconds))
    assert result.final_error == result.curve[-1].error


def test_what_is_never_reached_is_censored() -> None:
    curve = tuple(Point(10 * i, 80 * i, 0.5 * i, error) for i, error in enumerate([1.0, 0.4, 0.2, 0.3]))
    result = Result(curve, 0, 0, ReadOut(Given(SOURCE, (2, 2)), SOURCE.channels))
    assert (Reached.of(result.curve, 0.4).at, Reached.of(result.curve, 0.4).censored) == (curve[1], False)
    assert (Reached.of(result.curve, 0.39).at, Reached.of(result.curve, 0.39).censored) == (curve[2], False)
    assert (Reached.of(result.curve, 0.1).at, Reached.of(result.curve, 0.1).censored) == (curve[3], True)
    diverged = replace(result, curve=(curve[0], replace(curve[1], error=float("nan"))))
    assert Reached.of(diverged.curve, 0.5).censored


def test_where_nothing_trains_the_curve_is_flat() -> None:
    result = run(IPM, replace(SMALL, jitter=MILD, calibration="nominal"))
    first, last = result.curve
    assert (first.steps, last.steps, last.samples) == (0, 60, 960)
    assert first.error == last.error
    assert Reached.of(result.curve, first.error / 2).at.steps == 60
    assert (result.parameters, Reached.of(result.curve, 1.0).at.steps) == (0, 0)


def test_parameters_and_operations_are_those_of_all_that_trains() -> None:
    result = run(LINEAR, replace(SMALL, steps=2))
    assert result.parameters == 64 * 32 + 64
    assert result.flops == 2 * 64 * 32 * 4
    wide = run(partial(LINEAR, channels=6), replace(SMALL, steps=2))  # projected to 6 before, read out to 4 behind
    assert wide.parameters == 64 * 32 + 64 + 4 * 6 + (6 * 4 + 4)
    assert wide.flops == 2 * (64 * 32 * 6 + 32 * 4 * 6 + 64 * 6 * 4)


def test_the_same_seeds_give_the_same_and_leave_the_global_random_state_alone() -> None:
    build = partial(CrossAttention, dim=8, heads=2)
    settings = replace(SMALL, jitter=MILD, training_samples=40, steps=10, evaluate_every=5)
    state = torch.get_rng_state()
    errors = [[point.error for point in run(build, settings).curve] for _ in range(2)]
    assert errors[0] == errors[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_is_that_of_weights_and_the_data_seed_that_of_fields() -> None:
    initial: list[torch.Tensor] = []
    given: list[torch.Tensor] = []

    class Watched(MLP):
        def reshape(self, features, cameras):
            given.append(features)
            return super().reshape(features, cameras)

    def build(source, grid) -> MLP:
        mlp = Watched(source, grid)
        initial.append(mlp.layers[0].weight.detach().clone())
        return mlp

    settings = replace(SMALL, steps=2, evaluate_every=2, held_out=16)  # measured, two steps, measured, one sample
    for seeds in ({}, {"seed": 1}, {"data_seed": 1, "held_out_seed": 1}):
        run(build, replace(settings, **seeds))
    first, seed, data = given[:5], given[5:10], given[10:]
    assert torch.equal(initial[0], initial[2])
    assert not torch.equal(initial[0], initial[1])
    assert all(torch.equal(x, y) for x, y in zip(first, seed, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(first, data, strict=True))
    assert torch.equal(first[0], first[3])  # held out
    assert len({x.sum().item() for x in torch.cat(first[:3])}) == 48


@pytest.mark.parametrize("own", [False, True])
def test_a_finite_number_of_training_samples(own: bool) -> None:
    seen: dict[float, torch.Tensor] = {}

    class Watched(MLP):
        def reshape(self, features, cameras):
            if self.training:
                seen.update((x.sum().item(), pose) for x, pose in zip(features, cameras.ego_from_cam, strict=True))
                again.extend((x.sum().item(), pose) for x, pose in zip(features, cameras.ego_from_cam, strict=True))
            return super().reshape(features, cameras)

    again: list[tuple[float, torch.Tensor]] = []
    features = (torch.randn(9, 1, 4, 4, 8), torch.randn(5, 1, 4, 4, 8)) if own else None
    run(Watched, replace(SMALL, jitter=MILD, training_samples=6, steps=10), features=features)
    assert len(seen) == 6
    assert all(torch.equal(seen[key], pose) for key, pose in again)  # each with its own pose
    if features is not None:
        sums = {x.sum().item() for x in features[0][:6]}
        assert sums == set(seen)


def test_more_training_samples_are_better() -> None:
    settings = replace(SMALL, steps=120, evaluate_every=120)
    few, many, fresh = (run(LINEAR, replace(settings, training_samples=n)).final_error for n in (4, 64, None))
    assert few > 2 * many
    assert many > fresh


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibration": "exct"}, "calibration=exct; did you mean exact"),
        ({"steps": 1}, "steps=1 must be a whole number of at least 2"),
        ({"training_samples": 0}, "training_samples=0"),
        ({"data_seed": -1}, "data_seed=-1 must be a whole number of at least 0"),
        ({"correlation_length": -1}, "correlation_length=-1"),
    ],
)
def test_settings_out_of_range(change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.randn(3, 1, 4, 4, 8)
    with pytest.raises(InputError, match=r"\(3, 1, 4, 4, 7\).*\(1, 4, 4, 8\)"):
        run(LINEAR, SMALL, features=(x, x[..., :7]))
    with pytest.raises(InputError, match="training_samples=5 but 3 are given"):
        run(LINEAR, replace(SMALL, training_samples=5), features=(x, x))
    with pytest.raises(InputError, match=r"\(1, 2\) \(batch, cameras\) but the source has 1"):
        run(LINEAR, SMALL, cameras=cameras(replace(SOURCE, cameras=2)))
    with pytest.raises(InputError, match="0 cells"):
        run(LINEAR, replace(SMALL, grid=BEVGrid((-9.0, -1.0), (-4.0, 4.0), 1.0)))
