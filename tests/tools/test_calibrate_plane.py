"""Test poses from marks that numpy projected, and from a real photograph's lane lines."""

import json
import re
import shlex
import sys

import calibrate_plane
import cv2
import numpy as np
import pytest
import torch
from commands import ROOT
from plane_pose.camera import Camera
from plane_pose.marks import from_lines, from_points

from bevreshape.console import run_script
from bevreshape.data.sources.folder.calibration import read_calibration
from bevreshape.geometry import DistortionModel

K = np.array([[900.0, 0, 645.0], [0, 905.0, 355.0], [0, 0, 1]])
SIZE = (720, 1280)
GROUND = [(5, 1.8), (5, -1.8), (20, 1.8), (14, -3.0), (9, 0.4)]


def camera(yaw_deg: float, pitch_deg: float, roll_deg: float, position: tuple[float, float, float]) -> np.ndarray:
    """Return ego_from_cam as a product of three rotations: to the left, down, clockwise."""

    def turn(axis: int, degrees: float) -> np.ndarray:
        vector = np.zeros(3)
        vector[axis] = np.radians(degrees)
        return cv2.Rodrigues(vector)[0]

    pose = np.eye(4)
    axes = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    pose[:3, :3] = turn(2, yaw_deg) @ turn(1, pitch_deg) @ axes @ turn(2, roll_deg)
    pose[:3, 3] = position
    return pose


def seen(pose: np.ndarray, x: float, y: float, distortion: list[float] | None = None) -> tuple[float, float]:
    cam_from_ego = np.linalg.inv(pose)
    turn, _ = cv2.Rodrigues(cam_from_ego[:3, :3])
    k = np.zeros(4) if distortion is None else np.array(distortion)
    return tuple(cv2.projectPoints(np.array([[x, y, 0.0]]), turn, cam_from_ego[:3, 3], K, k)[0].ravel())


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["calibrate_plane.py", *map(str, arguments)])
    try:
        run_script(calibrate_plane.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


GIVEN = ("--intrinsics", K[0, 0], K[1, 1], K[0, 2], K[1, 2], "--size", *SIZE)
POSES = [
    camera(0, 3, 0, (0, 0, 1.3)),
    camera(4, 8, -2, (0.4, -0.2, 1.5)),
    camera(-12, 15, 5, (-1.0, 0.6, 2.4)),
    camera(1, 5, 1, (1.2, 0.1, 0.6)),
]


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("count", [4, 5])
def test_exact_points_give_the_exact_pose(tmp_path, monkeypatch, capsys, pose, count) -> None:
    marks = [",".join(f"{value:.9f}" for value in (*seen(pose, x, y), x, y)) for x, y in GROUND[:count]]
    out = tmp_path / "calibration.json"
    assert run(monkeypatch, *GIVEN, "--points", *marks, "--out", out) == 0
    rig = read_calibration(out).of("any")
    np.testing.assert_allclose(rig.ego_from_cam[0].numpy(), pose, atol=2e-5)
    np.testing.assert_array_equal(rig.intrinsics[0].numpy(), K)
    assert "residual 0.00 pixels" in capsys.readouterr().out


def test_marks_off_by_a_pixel_give_the_pose_and_its_error(tmp_path, monkeypatch, capsys) -> None:
    random, pose = np.random.default_rng(0), POSES[1]
    places = [*GROUND, (7, -1), (12, 2.5), (17, 0), (8, 2.2)]
    marks = [",".join(map(str, (*(np.array(seen(pose, x, y)) + random.normal(0, 1, 2)), x, y))) for x, y in places]
    out = tmp_path / "calibration.json"
    assert run(monkeypatch, *GIVEN, "--points", *marks, "--out", out) == 0
    found = read_calibration(out).of("any").ego_from_cam[0].numpy()
    turned = np.degrees(np.arccos((np.trace(found[:3, :3].T @ pose[:3, :3]) - 1) / 2))
    assert turned < 0.7
    assert np.abs(found[:3, 3] - pose[:3, 3]).max() < 0.12
    said = capsys.readouterr().out
    residual = float(said.split("residual ")[1].split()[0])
    assert 0.4 < residual < 2.5


def test_a_distorted_camera_of_a_folder_gets_its_pose(tmp_path, monkeypatch, capsys) -> None:
    coefficients = [-0.25, 0.06, 0.001, 0.0005]
    entry = {
        "name": "phone",
        "image_size": list(SIZE),
        "intrinsics": K.tolist(),
        "distortion": {"model": "opencv", "coefficients": coefficients},
    }
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"version": 1, "note": "mine", "cameras": [entry], "labels": {"ids": {"0": "road"}}}))
    marks = [",".join(map(str, (*seen(POSES[1], x, y, coefficients), x, y))) for x, y in GROUND]
    assert run(monkeypatch, "--calibration", path, "--points", *marks, "--out", path) == 0
    calibration = read_calibration(path)
    np.testing.assert_allclose(calibration.of("any").ego_from_cam[0].numpy(), POSES[1], atol=1e-4)
    assert calibration.of("any").distortions[0] is not None
    assert calibration.labels is not None
    assert calibration.note.startswith("mine phone: ego_from_cam from ground points")


def line(pose: np.ndarray, y: float, distances: tuple[float, ...] = (6, 9, 25)) -> list[str]:
    return ["--line", *(",".join(map(str, seen(pose, x, y))) for x in distances)]


@pytest.mark.parametrize("yaw", [0, 5, -3])
def test_two_lines_give_yaw_pitch_and_height(tmp_path, monkeypatch, capsys, yaw) -> None:
    pose = camera(yaw, 6, 0, (0, 0, 1.35))
    out = tmp_path / "calibration.json"
    lines = [*line(pose, -1.2, (6, 20)), *line(pose, 2.3, (6, 20))]  # in any order
    assert run(monkeypatch, *GIVEN, *lines, "--spacing", 3.5, "--out", out) == 0
    np.testing.assert_allclose(read_calibration(out).of("any").ego_from_cam[0].numpy(), pose, atol=1e-5)
    said = capsys.readouterr().out
    assert "2 lines 3.5 m apart, roll assumed to be 0" in said
    assert re.search(
        rf"faces {abs(yaw):.2f}° ± 0\.\d\d° to the {'right' if yaw < 0 else 'left'}, 6\.00° ± 0\.\d\d° down", said
    )


@pytest.mark.parametrize("roll", [0, 3, -4])
def test_three_lines_give_the_roll_too(tmp_path, monkeypatch, roll) -> None:
    pose = camera(2, 5, roll, (0, 0, 1.5))
    out = tmp_path / "calibration.json"
    lines = [part for y in (5.0, 1.5, -2.0) for part in line(pose, y, (9, 13, 25))]
    assert run(monkeypatch, *GIVEN, *lines, "--spacing", 3.5, "--out", out) == 0
    np.testing.assert_allclose(read_calibration(out).of("any").ego_from_cam[0].numpy(), pose, atol=1e-4)


def marked(*marks: str) -> tuple[object, ...]:
    return (*GIVEN, "--points", *marks)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            marked("1,600,5,1", "600,600,5,-1", "1,500,9,1"),
            "3 different points were marked; yaw, pitch, roll and position need four",
        ),
        (marked("1,600,5,1", "300,550,6,1", "400,500,8,1", "450,480,9,1.0"), "4 points are on one line on the ground"),
        (marked("0,600,5,1", "300,600,6,2", "400,600,8,-1", "450,600,9,1"), "4 points are on one line in the image"),
        (
            marked("1,800,5,1", "300,550,6,2", "400,500,8,-1", "450,480,9,1"),
            r"mark \(1, 800\) is outside .* 1280×720",
        ),
        (marked("1;800", "1,1,1,1", "1,1,1,1", "1,1,1,1"), "mark '1;800' must be 4 numbers with commas between"),
        ((*GIVEN, "--line", "300,600", "--line", "600,600", "500,500"), "--line needs --spacing, the metres"),
        ((*GIVEN, "--line", "300,600", "--line", "600,600", "500,500", "--spacing", "3"), "2 lines of 1, 2 pixels"),
        ((*GIVEN, "--line", "300,600", "500,400", "--spacing", "3"), "1 lines of 2 pixels were marked; two lines"),
        (
            (*GIVEN, "--line", "300,600", "400,500", "--line", "500,600", "600,500", "--spacing", "3"),
            "parallel or the same in the image, so they show no horizon",
        ),
        (
            (*GIVEN, "--line", "300,300", "600,500", "--line", "900,300", "640,500", "--spacing", "3"),
            r"mark \(300, 300\) is above the horizon, row 5",
        ),
        (
            (*GIVEN, "--line", "300,600", "500,400", "--line", "900,600", "700,400", "--spacing", "-2"),
            "must be the metres between neighbouring lines, 0.001 to 1000",
        ),
        (("--points", "1,600,5,1"), "give the intrinsics"),
        (GIVEN, "mark the ground with either --points"),
    ],
)
def test_insufficient_marks_are_refused(tmp_path, monkeypatch, capsys, arguments, says) -> None:
    out = tmp_path / "calibration.json"
    assert run(monkeypatch, *arguments, "--out", out) == 1
    assert re.search(says, capsys.readouterr().err.replace("\n", " "))
    assert not out.exists()


def spreads(places: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(places), axis=0))


def pose_figures(found: np.ndarray, true: np.ndarray) -> list[float]:
    """Return errors of yaw and pitch, degrees, of x, y and z, metres, and of the point 30 m ahead."""
    yaw, true_yaw = (np.arctan2(pose[1, 2], pose[0, 2]) for pose in (found, true))
    ahead = np.array([np.cos(true_yaw), np.sin(true_yaw)])
    place = np.array([*(true[:2, 3] + 30 * ahead), 0, 1])
    ray = found[:3, :3] @ (np.linalg.inv(true) @ place)[:3]
    moved = (found[:3, 3] - ray * found[2, 3] / ray[2])[:2] - place[:2]
    pitch, true_pitch = (-np.arcsin(pose[2, 2]) for pose in (found, true))
    turned = np.degrees([yaw - true_yaw, pitch - true_pitch])
    return [*turned, *(found - true)[:3, 3], moved @ ahead, moved @ [-ahead[1], ahead[0]]]


def claimed(solution) -> list[float]:
    return [*solution.angles_error_deg[:2], *solution.position_error_m, *solution.ahead_error_m]


@pytest.mark.parametrize("coefficients", [None, [-0.25, 0.06, 0.001, 0.0005]])
def test_uncertainty_of_points_is_that_of_noisy_marks(coefficients) -> None:
    """Compare standard errors with OpenCV's poses from 1500 draws of marks that are 0.5 pixels off."""
    pose, random = POSES[1], np.random.default_rng(1)
    exact = np.array([seen(pose, x, y, coefficients) for x, y in GROUND])
    distortion = (
        None
        if coefficients is None
        else DistortionModel("opencv", tuple(coefficients), tuple(map(tuple, K.tolist())), SIZE)
    )
    solution = from_points(Camera(K, SIZE, distortion, 0.5), np.column_stack([exact, GROUND]))
    cam_from_ego = np.linalg.inv(pose)
    ground = np.column_stack([GROUND, np.zeros(len(GROUND))])
    errors = []
    for _ in range(1500):
        start = cv2.Rodrigues(cam_from_ego[:3, :3])[0], cam_from_ego[:3, 3:].copy()
        noisy = exact + random.normal(0, 0.5, exact.shape)
        distorted = np.zeros(4) if coefficients is None else np.array(coefficients)
        turn, move = cv2.solvePnPRefineLM(ground, noisy, K, distorted, *start)
        found = np.eye(4)
        found[:3, :3], found[:3, 3:] = cv2.Rodrigues(turn)[0], move
        errors.append(pose_figures(np.linalg.inv(found), pose))
    np.testing.assert_allclose(claimed(solution), spreads(np.array(errors)), rtol=0.08)


def test_uncertainty_grows_with_the_residuals() -> None:
    """For marks worse than stated, the errors grow by the standard deviation of the residuals."""
    random = np.random.default_rng(3)
    places = np.array([(x, y) for x in (5, 8, 12, 17, 25) for y in (-3, 0, 3)], dtype=float)
    exact = np.array([seen(POSES[0], x, y) for x, y in places])
    noisy = np.column_stack([exact + random.normal(0, 2, exact.shape), places])
    solution = from_points(Camera(K, SIZE), noisy)
    assert solution.redundancy == 2 * 15 - 6
    shown = np.sqrt(np.sum(solution.residuals_px**2) / solution.redundancy)
    assert 1.5 < shown < 2.6
    announced = from_points(Camera(K, SIZE, None, 10.0), noisy)
    np.testing.assert_allclose(np.array(claimed(announced)) / claimed(solution), 10 / shown, rtol=1e-6)


def test_uncertainty_of_two_lines_holds_a_roll_of_a_degree() -> None:
    """Compare with the closed formula of two lines, over draws of marks and of an unknown roll."""
    random, marks, spacing = np.random.default_rng(2), [(x, y) for y in (1.6, -1.9) for x in (5, 30)], 3.5
    true = camera(2, 4, 0, (0, 0, 1.4))
    exact = np.array([seen(true, x, y) for x, y in marks])
    solution = from_lines(Camera(K, SIZE, None, 0.3), [exact[:2], exact[2:]], spacing)
    errors = []
    for _ in range(3000):
        rolled = camera(2, 4, random.normal(0, 1), (0, 0, 1.4))
        pixels = np.array([seen(rolled, x, y) for x, y in marks]) + random.normal(0, 0.3, (4, 2))
        a, b, c, d = np.column_stack([pixels, np.ones(4)])
        across, down, ahead = np.linalg.solve(K, np.cross(np.cross(a, b), np.cross(c, d)))
        pitch = np.arctan(-down / ahead)  # the vanishing point is the direction x in a camera without roll
        yaw = np.arctan(across / ahead * np.cos(pitch))
        found = camera(np.degrees(yaw), np.degrees(pitch), 0, (0, 0, 1.0))
        rays = np.column_stack([pixels, np.ones(4)]) @ np.linalg.inv(K).T @ found[:3, :3].T
        lefts = rays[:, 1] / -rays[:, 2]
        found[2, 3] = spacing / (lefts[:2].mean() - lefts[2:].mean())
        errors.append(pose_figures(found, rolled))
    expected, figures = spreads(np.array(errors)), np.array(claimed(solution))
    np.testing.assert_allclose(figures[[0, 1, 4, 5, 6]], expected[[0, 1, 4, 5, 6]], rtol=0.08)
    np.testing.assert_allclose(solution.angles_error_deg[2], 1)
    assert solution.redundancy == 0


def test_printed_output(tmp_path, monkeypatch, capsys) -> None:
    pose = camera(-1.77, -2, -3, (0.5, -0.2, 1.3))
    marks = [",".join(map(str, (*seen(pose, x, y), x, y))) for x, y in GROUND]
    assert run(monkeypatch, *GIVEN, "--points", *marks, "--out", tmp_path / "c.json") == 0
    said = capsys.readouterr().out
    number = r"\d+\.\d+"
    assert re.search(
        rf"faces 1\.77° ± {number}° to the right, 2\.00° ± {number}° up, rolled 3\.00° ± {number}° counterclockwise",
        said,
    )
    assert re.search(rf"x = 0\.500 ± {number} m, y = -0\.200 ± {number} m, 1\.300 ± {number} m above the ground", said)
    assert re.search(rf"30 m ahead is located ± {number} m along, ± {number} m across", said)
    assert "doubt" not in said
    assert run(monkeypatch, "--calibration", tmp_path / "c.json", "--points", *marks, "--out", tmp_path / "c.json") == 0
    note = json.loads((tmp_path / "c.json").read_text())["note"]
    assert note.count("ego_from_cam from ground points") == 1  # the first one is replaced


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m[:, [0, 1, 3, 2]], "they would fit with x, ahead, and y, to the left, exchanged"),
        (lambda m: m * [1, 1, 1, -1], "they would fit with y, to the left, negated"),
        (
            lambda m: m[:, [1, 0, 2, 3]],
            r"mark \(.*\) is outside the image of 1280×720 pixels; u, the column, comes first",
        ),
        (lambda m: m * [1, -1, 1, 1] + [0, SIZE[0] - 1, 0, 0], "they would fit with rows counted from the top"),
        (lambda m: np.column_stack([m[[1, 0, 2, 3, 4], :2], m[:, 2:]]), r"with the pixels \(.*\) and \(.*\) exchanged"),
        (lambda m: m + np.outer([0, 0, 0, 0, 1], [60, -40, 0, 0]), "the marks fit no pose: .* is .* pixels off"),
        (lambda m: m * [1, 1, 20, 20], "26.00 m above the ground, not 0.05 to 5 m"),
        (lambda m: m * [1, 1, 0.01, 0.01], "0.01 m above the ground, not 0.05 to 5 m"),
        (lambda m: m * [1, 1, 1e4, 1e4], "is farther than 1000 m from the ego origin"),
        (lambda m: m[[0, 1, 2, 2]], "3 different points were marked; .* need four or more"),
        (lambda m: m[[0, 0, 0, 0]], "1 different points were marked"),
    ],
)
def test_marks_that_fit_nothing_plausible_write_nothing(tmp_path, monkeypatch, capsys, change, says) -> None:
    exact = np.array([(*seen(POSES[0], x, y), x, y) for x, y in [(5, 1.8), (5, -1.8), (20, 1.8), (14, -3.0), (9, 0.4)]])
    marks = [",".join(f"{value:.6f}" for value in mark) for mark in change(exact)]
    out = tmp_path / "calibration.json"
    assert run(monkeypatch, *GIVEN, "--points", *marks, "--out", out) == 1
    error = capsys.readouterr().err.replace("\n", " ")
    assert re.search(says, error), error
    assert not out.exists()


def test_marks_too_close_leave_the_pose_undetermined(tmp_path, monkeypatch, capsys) -> None:
    places = [10, 0] + 0.03 * (np.array(GROUND) - [10, 0])
    marks = [",".join(f"{value:.6f}" for value in (*seen(POSES[0], x, y), x, y)) for x, y in places]
    out = tmp_path / "calibration.json"
    assert run(monkeypatch, *GIVEN, "--points", *marks, "--out", out) == 1
    assert re.search("leave the pose undetermined|fit two poses", capsys.readouterr().err.replace("\n", " "))
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spacing", "arguments", "says", "code"),
    [
        ("200", (), "73.55 m above the ground, not 0.05 to 5 m", 1),
        ("36.6", (), "13.46 m above the ground, not 0.05 to 5 m", 1),
        ("36.6", ("--camera-height", "12", "15"), "13.461 ± .* m above the ground", 0),
        ("3.5", ("--camera-height", "1.4", "1.5"), "1.29 m above the ground, not 1.4 to 1.5 m", 1),
        ("3.5", ("--camera-height", "2", "1"), "must be two heights in metres, the lower first", 1),
        ("3.5", ("--camera-height", "nan", "2"), "must be two heights in metres, the lower first", 1),
        ("12", (), "doubt: 4.41 m is above the cameras of cars", 0),
        ("3.5", (), "doubt: these marks always fit some pose, so nothing checks them", 0),
        ("3.5", ("--mark-px", "0"), "--mark-px 0 must be pixels", 1),
        ("3.5", ("--mark-px", "60"), "leave the pose undetermined: yaw ± .*, pitch ± .*, height", 1),
        ("1e308", (), "must be the metres between neighbouring lines", 1),
        ("nan", (), "must be the metres between neighbouring lines", 1),
        ("1e-300", (), "must be the metres between neighbouring lines", 1),
        ("three", (), "argument --spacing: invalid float value: 'three'", 1),
        ("3.5", ("--spacin", "3"), "--spacin is unknown; did you mean --spacing?", 1),
        ("3.5", ("--points", "1,600,5,1"), "either --points u,v,x,y .* or --line", 1),
        ("3.5", ("--calibration", "x.json"), "give the intrinsics: --calibration FILE, or --intrinsics", 1),
        ("3.5", ("--line", "300,600", "300,600"), r"all pixels of a line are at \(300, 600\)", 1),
        ("3.5", ("--line", "302,608", "527,443"), "the marks fit no pose|leave the pose undetermined", 1),
    ],
)
def test_lines_of_any_spacing(tmp_path, monkeypatch, capsys, spacing, arguments, says, code) -> None:
    out = tmp_path / "calibration.json"
    given = ("--intrinsics", 1158, 1158, 640, 360, "--size", *SIZE, "--line", "302,608", "527,443", "--line", "978,609")
    assert run(monkeypatch, *given, "753,443", "--spacing", spacing, "--out", out, *arguments) == code
    said = " ".join("".join(capsys.readouterr()).split())
    assert re.search(says, said), said
    assert out.exists() == (code == 0)


ENTRY = {"name": "phone", "image_size": [720, 1280], "intrinsics": [[1158, 0, 640], [0, 1158, 360], [0, 0, 1]]}
MARKS = ("302,608,6,1.75", "978,609,6,-1.75", "527,443,18,1.75", "753,443,18,-1.75")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([ENTRY], "this is list; it must be an object with 'cameras'"),
        (
            {"version": 1, "cameras": [{**ENTRY, "name": None} | {"nam": "x"}]},
            "'nam' is an unknown key; did you mean name",
        ),
        ({"version": 1, "cameras": [{k: v for k, v in ENTRY.items() if k != "name"}]}, "'name' is missing"),
        (
            {"version": 1, "cameras": [{**ENTRY, "intrinsics": [[1, 0, 0], [0, 1, 0]]}]},
            "intrinsics is 2×3; it must be 3×3",
        ),
        ({"version": 1, "cameras": [{**ENTRY, "image_size": 640}]}, r"image_size is 640; it must be \[height, width\]"),
        ({"version": 1, "cameras": [ENTRY], "color": 1}, "'color' is an unknown key"),
    ],
)
def test_an_invalid_calibration_is_refused_and_kept(tmp_path, monkeypatch, capsys, content, says) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(content))
    assert run(monkeypatch, "--calibration", path, "--out", path, "--points", *MARKS) == 1
    assert re.search(says, capsys.readouterr().err.replace("\n", " "))
    assert json.loads(path.read_text()) == content


def test_the_commands_that_are_documented(tmp_path, monkeypatch, capsys) -> None:
    text = (ROOT / "data/README.md").read_text()
    commands = re.findall(r"python tools/calibrate_plane.py (.*?)(?:  +#.*)?\n(?!   +--)", text.replace("\\\n", " "))
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/mine").mkdir(parents=True)
    for line_of_readme in commands:
        (tmp_path / "data/mine/calibration.json").write_text(json.dumps({"version": 1, "cameras": [ENTRY]}))
        assert run(monkeypatch, *shlex.split(line_of_readme)) == 0
        said = capsys.readouterr().out
        assert float(said.split("residual ")[1].split()[0]) < 1
        height = read_calibration(tmp_path / "data/mine/calibration.json").of("any").ego_from_cam[0, 2, 3]
        assert height == pytest.approx(1.3, abs=0.05)


def test_dashes_of_a_real_motorway_have_the_legal_distance(tmp_path, monkeypatch, shared_data, capsys) -> None:
    """Lane lines of a photograph, marked by hand, are 12 feet apart; its dashes must come out 48 feet apart."""
    with np.load(shared_data / "udacity_lanes/calib_estimated.npz") as given:
        intrinsics, coefficients = given["K"].tolist(), given["D"].ravel().tolist()
    entry = {"name": "front", "image_size": [720, 1280], "intrinsics": intrinsics}
    entry["distortion"] = {"model": "opencv", "coefficients": coefficients}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"version": 1, "cameras": [entry]}))
    lines = (
        ["--line", "262,682", "380,600", "541,491", "571.8,468.8", "604.5,445.3"],
        ["--line", "1022,663", "834,546", "760,498.6", "725.5,475.5", "706.5,464.1", "694.3,456.1"],
        ["--line", "979,498", "1081,518.5", "845,466.5"],
    )
    marks = [part for each in lines for part in each]
    assert run(monkeypatch, "--calibration", path, "--out", path, *marks, "--spacing", 3.66) == 0
    assert float(capsys.readouterr().out.split("residual ")[1].split()[0]) < 1
    rig = read_calibration(path).of("straight_lines1")
    assert rig.ego_from_cam[0, 2, 3] == pytest.approx(1.22, abs=0.05)
    distortion = rig.distortions[0]
    assert distortion is not None
    middles = torch.tensor([[760.0, 498.6], [706.5, 464.1], [685.5, 451.0]])
    rays = (
        distortion.undistort(middles)[0].numpy() @ rig.ego_from_cam[0, :3, :2].numpy().T
        + rig.ego_from_cam[0, :3, 2].numpy()
    )
    ahead = rays[:, 0] * (rig.ego_from_cam[0, 2, 3].item() / -rays[:, 2])
    np.testing.assert_allclose(np.diff(ahead), 14.63, rtol=0.04)
