"""Usual mistakes in the first samples of any data source are refused or logged; correct samples pass."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from oracle import intrinsics, pose

from bevreshape.data import check_samples
from bevreshape.data.batch import Meta, Sample
from bevreshape.data.check_samples import check_first_samples
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid

K = intrinsics(100, 100, 64, 30)
FRONT, LEFT = pose(0, 4, [1.5, 0.1, 1.4]), pose(80, 3, [0.9, 0.5, 1.6])
BEHIND_THE_BUMPER = pose(0, 4, [-1.2, 0.1, 1.4])
"""The ego origin at the front bumper: the inverse of this pose is above the ground."""


class Own:
    """A source of another package, whose second camera is right."""

    grid, classes, camera_names = BEVGrid((-30, 30), (-30, 30), 0.5), ("road",), ("main", "side")

    def __init__(self, given: np.ndarray, k: np.ndarray = K, present: bool = True, image_size=(64, 128)) -> None:
        self.given, self.k, self.present, self.image_size = given, k, present, image_size

    def prepare(self, splits): ...

    def make_targets(self, batch):
        return batch

    def split(self, name: str) -> Any:
        return [
            Sample(
                torch.zeros(2, 3, 64, 128, dtype=torch.uint8),
                torch.from_numpy(np.stack([self.k, K])).float(),
                torch.from_numpy(np.stack([self.given, LEFT])).float(),
                Meta("frame 7", 0),
                camera_mask=torch.tensor([self.present, True]),
            )
        ]


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The logged warnings; every test is a process of its own."""
    check_samples._warn.cache_clear()
    monkeypatch.setattr(logging.getLogger("bevreshape"), "propagate", True)
    return caplog


@pytest.mark.parametrize("right", [FRONT, LEFT, BEHIND_THE_BUMPER, pose(180, 10, [-1, 0, 1.2]), pose(0, 89, [1, 0, 2])])
def test_correct_poses_pass_without_a_word(right: np.ndarray, warnings: pytest.LogCaptureFixture) -> None:
    check_first_samples(Own(right), ("train", "val"))
    assert not warnings.records


@pytest.mark.parametrize("right", [FRONT, LEFT, BEHIND_THE_BUMPER])
def test_an_inverted_pose_is_refused_by_the_datamodule(right: np.ndarray) -> None:
    with pytest.raises(InputError) as caught:
        BEVDataModule(Own(np.linalg.inv(right)), batch_size=1).prepare_data()
    message = str(caught.value)
    assert message.startswith("data: Own, train[0] (frame 7), camera 'main': ego_from_cam looks given the wrong way")
    assert "invert it" in message
    assert f"{right[2, 3]:.2f} m above the ground" in message


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (np.diag([1, -1, 1, 1.0]) @ FRONT, "mirrored"),
        (FRONT @ np.diag([-1, 1, 1, 1.0]), "mirrored"),
        (pose(0, 4, [1500, 100, 1400]), "divide its last column by 1000"),
        (FRONT.T, "last row"),
        (pose(0, 4, [1.5, 0, -0.3]), "-0.30 m above the ground"),
        (FRONT * np.nan, "NaN"),
    ],
)
def test_other_certain_mistakes_are_refused(wrong: np.ndarray, reason: str) -> None:
    with pytest.raises(InputError, match=r"^data: Own, test\[0\] \(frame 7\), camera 'main': ") as caught:
        check_first_samples(Own(wrong), ("test",))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("doubted", "reason"),
    [
        (pose(0, 40, [0, 0, 20.0]), "20.00 m above the ground"),
        (pose(0, 4, [1.5, 0.1, 1.4], 180), "camera axes look like x right, y up"),
        (pose(0, 4, [1.5, 0.1, 1.4], 90), "rolled by about 90°"),
        (np.eye(4), "identity"),
    ],
)
def test_what_some_rig_may_have_is_logged_once(
    doubted: np.ndarray, reason: str, warnings: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        check_first_samples(Own(doubted), ("val",))
    (record,) = warnings.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("data: Own, val[0] (frame 7), camera 'main': ")
    assert reason in record.getMessage()


def test_a_crop_below_the_horizon_passes() -> None:
    check_first_samples(Own(FRONT, K - [[0, 0, 0], [0, 0, 60], [0, 0, 0]]), ("train",))


def test_the_calibration_of_a_missing_camera_is_not_read(warnings: pytest.LogCaptureFixture) -> None:
    check_first_samples(Own(FRONT * 0, present=False), ("train",))
    assert not warnings.records


def test_samples_that_do_not_fit_their_source_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"images are \(2, 3, 64, 128\) but .* ask for \(2, 3, 32, 64\)"):
        check_first_samples(Own(FRONT, image_size=(32, 64)), ("train",))
    monkeypatch.setattr(Own, "split", lambda self, name: [{"images": 1}])
    with pytest.raises(InputError, match=r"train\[0\] is a dict; return a bevreshape.data.batch.Sample"):
        check_first_samples(Own(FRONT), ("train",))


def test_reading_a_sample_does_not_move_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Own.split
    monkeypatch.setattr(Own, "split", lambda self, name: (torch.rand(3), split(self, name))[1])
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    check_first_samples(Own(FRONT), ("train",))
    assert torch.equal(torch.rand(1), expected)
