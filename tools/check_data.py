"""Check a camera folder, print what is in it, and draw its pictures with the ground, and the ground from the pictures.

In the overlay the lines on the ground are straight and a round number of metres apart. The calibration is right where the
left column's lines lie on the road, and where, in the right column, lane lines are straight, parallel and as wide near as
far. What is labelled is drawn into both.

    python tools/check_data.py data/duckietown_fixed --out overlay.png
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table
from torch import Tensor

from bevreshape.data.calibration import Calibration, read_calibration
from bevreshape.data.folder import read_split
from bevreshape.data.frames import Frames
from bevreshape.data.pictures import read_picture
from bevreshape.data.truth import MapTruth, PictureTruth
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, Cameras, bev_to_picture, ground_pixels, picture_to_bev

COLOURS = ("#ff3b30", "#34c7ff", "#ffd60a", "#30d158", "#bf5af2", "#ff9f0a", "#64d2ff", "#ff7bd5")


def camera_of(calibration: Calibration, frame: str, number: int) -> Cameras:
    """One camera of a frame, for its stored picture."""
    rig = calibration.of(frame)
    return Cameras(rig.intrinsics[None, [number]].float(), rig.ego_from_cam[None, [number]].float(), rig.sizes[number])


def default_grid(calibration: Calibration) -> BEVGrid:
    """The truth's own grid, or 40 m ahead of one camera and 30 m around several."""
    if calibration.bev_grid is not None:
        return calibration.bev_grid
    if len(calibration.cameras) == 1:
        return BEVGrid((0.0, 40.0), (-20.0, 20.0), 0.1)
    return BEVGrid((-30.0, 30.0), (-30.0, 30.0), 0.15)


def describe_cameras(frames: Frames, grid: BEVGrid) -> Table:
    """What every camera is and sees; a range where the frames differ."""
    columns = ("frames", "size", "height", "left°", "down°", "horizon", "view°", "sees")
    table = Table("camera", *(Column(name, no_wrap=True) for name in columns), box=SIMPLE_HEAD, collapse_padding=True)
    for number, camera in enumerate(frames.calibration.cameras):
        facts = torch.tensor([_facts(camera_of(frames.calibration, name, number), grid) for name in frames.names])
        pictures = sum(frames.picture(index, number) is not None for index in range(len(frames)))
        sizes = sorted({frames.calibration.of(name).sizes[number] for name in frames.names})
        height, left, down, horizon, across, upright, coverage = facts.unbind(1)
        table.add_row(
            camera,
            f"{pictures}/{len(frames)}",
            "\n".join(f"{high}×{wide}" for high, wide in sizes),
            f"{_range(height, 2)}m",
            _range(left),
            _range(down, 1),
            _range(horizon),
            f"{_range(across)}×{_range(upright)}",
            f"{_range(coverage)}%",
        )
    table.caption = (
        "left, down: where it looks. horizon: its row at half width. "
        f"sees: of forward {grid.forward_m}, left {grid.left_m} m."
    )
    return table


def _facts(camera: Cameras, grid: BEVGrid) -> list[float]:
    """Height, yaw and pitch, row of the horizon, field of view across and upright, percentage of the grid seen."""
    height, width = camera.image_size
    pose, k = camera.ego_from_cam[0, 0], camera.intrinsics[0, 0]
    ahead = pose[:3, 2]
    # A pixel's third coordinate on the ground is linear in (u, v) and zero on the horizon.
    a, b, c = camera.ground_from_pixel[0, 0, 2].tolist()
    return [
        pose[2, 3].item(),
        math.degrees(math.atan2(ahead[1], ahead[0])),
        math.degrees(math.asin(-ahead[2])),
        -(a * (width - 1) / 2 + c) / b if b else math.nan,
        math.degrees(2 * math.atan(width / 2 / k[0, 0])),
        math.degrees(2 * math.atan(height / 2 / k[1, 1])),
        100 * ground_pixels(camera, grid)[1].float().mean().item(),
    ]


def _range(values: Tensor, digits: int = 0) -> str:
    low, high = (f"{value.item():z.{digits}f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low}…{high}"


def check_frames(frames: Frames, pictures: PictureTruth | None, truth: MapTruth | None) -> tuple[Table, int]:
    """Decode every picture and label once.

    Returns:
        How often every label occurs, and how many files are at fault, each named on the console.
    """
    console = Console(stderr=True)
    pixels, cells, faults = torch.zeros(256), torch.zeros(256), 0
    for index in track(range(len(frames)), "checking", console=console):
        try:
            sample = frames[index]
            if pictures is not None:
                pixels += _count(pictures.read(sample["name"], sample["camera_mask"]))
            if truth is not None:
                cells += _count(truth.read(sample["name"]))
        except InputError as error:
            faults += 1
            console.print(f"[red]{escape(str(error))}")
    table = Table("labels", "name", "values", "share", box=SIMPLE_HEAD)
    codes = frames.calibration
    for what, counts, meaning in (("pixels", pixels, codes.labels), ("cells", cells, codes.bev)):
        if meaning is None or not counts.any():
            continue
        for name, values in [*meaning.members.items(), ("(void)", meaning.void)]:
            members = values.nonzero().flatten().tolist()
            share = (counts[values].sum() / counts.sum()).item()
            written = ", ".join(map(str, members[:5])) + (" …" if len(members) > 5 else "")
            table.add_row(what, name, written, f"{share:.2%}")
    return table, faults


def _count(values: Tensor) -> Tensor:
    return torch.bincount(values.flatten(), minlength=256).float()


def check_splits(root: Path, frames: Frames) -> tuple[Table, int]:
    """The lists under ``splits/``, and how many are at fault: unknown frames, or frames of another split."""
    table, faults = Table("split", "frames", "remark", box=SIMPLE_HEAD), 0
    seen: dict[str, str] = {}
    for path in sorted((root / "splits").glob("*.txt")):
        names = read_split(path)
        unknown = sorted(set(names) - set(frames.names))
        shared = sorted(name for name in names if name in seen)
        remarks = [f"no picture of {unknown[0]} and {len(unknown) - 1} more"] if unknown else []
        remarks += [f"{len(shared)} also in {seen[shared[0]]}: results would be too good"] if shared else []
        faults += len(remarks)
        seen |= dict.fromkeys(names, path.stem)
        table.add_row(path.stem, str(len(names)), "; ".join(remarks))
    return table, faults


def overlay(frames: Frames, index: int, grid: BEVGrid, pictures: PictureTruth | None, truth: MapTruth | None) -> Figure:
    """A frame's cameras, one a row: the picture with the ground's lines, and the ground from the picture."""
    name, count = frames.names[index], len(frames.calibration.cameras)
    figure = Figure(figsize=(15, 5.2 * count), layout="constrained")
    mask = torch.tensor([frames.picture(index, number) is not None for number in range(count)])
    ids = None if pictures is None else pictures.read(name, mask)
    for row, axes in enumerate(figure.subplots(count, 2, squeeze=False, width_ratios=(1.5, 1))):
        path = frames.picture(index, row)
        if path is None:
            continue
        camera, image = camera_of(frames.calibration, name, row), read_picture(path).float() / 255
        bev, seen = picture_to_bev(image[None, None], camera, grid)
        planes: dict[str, Tensor] = {}
        if pictures is not None and ids is not None:
            height, width = camera.image_size
            laid = pictures.lay(ids[None, [row], :height, :width], camera, grid)
            planes = {f"{key} (IPM)": plane[0].float() for key, (plane, _) in laid.items() if plane.any()}
        if truth is not None:
            laid = truth.lay(truth.read(name)[None])
            planes |= {f"{key} (truth)": plane[0].float() for key, (plane, _) in laid.items() if plane.any()}
        _draw_picture(axes[0], image, camera, grid, planes, f"{frames.calibration.cameras[row]} · {name}")
        _draw_bev(axes[1], bev[0, 0], seen[0, 0], grid, planes)
    return figure


def _draw_picture(
    axes: Axes, image: Tensor, camera: Cameras, grid: BEVGrid, planes: dict[str, Tensor], title: str
) -> None:
    height, width = camera.image_size
    axes.imshow(image.permute(1, 2, 0).numpy())
    for number, plane in enumerate(planes.values()):
        drawn = bev_to_picture(plane[None, None], camera, grid)[0][0, 0, 0]
        axes.contour(drawn.numpy(), [0.5], colors=COLOURS[number % len(COLOURS)], linewidths=0.9)
    for points, label in _ground_lines(grid):
        on_ground = torch.tensor(points, dtype=torch.float32)
        pixels, depth = camera.project(torch.cat([on_ground, torch.zeros(len(points), 1)], dim=1)[None])
        seen = camera.sees(pixels, depth)[0, 0]
        line = torch.where(seen[:, None], pixels[0, 0], torch.nan).numpy()
        axes.plot(line[:, 0], line[:, 1], color="white", linewidth=0.7, alpha=0.8)
        if seen.any():
            lowest = line[np.nanargmax(line[:, 1])]
            axes.annotate(label, lowest, color="white", fontsize=7, backgroundcolor="#0006")
    axes.set(title=title, xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xlabel="u, pixels", ylabel="v, pixels")


def _draw_bev(axes: Axes, bev: Tensor, seen: Tensor, grid: BEVGrid, planes: dict[str, Tensor]) -> None:
    extent = (grid.left_m[1], grid.left_m[0], grid.forward_m[0], grid.forward_m[1])
    shown = torch.where(seen, bev, torch.full_like(bev, 0.5))
    axes.imshow(shown.permute(1, 2, 0).numpy(), extent=extent)
    centers = grid.centers().numpy()
    for number, (name, plane) in enumerate(planes.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.contour(centers[0, :, 1], centers[:, 0, 0], plane.numpy(), [0.5], colors=colour, linewidths=0.9)
        axes.plot([], [], color=colour, label=name)
    if planes:
        axes.legend(fontsize=7, loc="upper right")
    step = _step(grid)
    axes.set_xticks(_multiples(grid.left_m, step))
    axes.set_yticks(_multiples(grid.forward_m, step))
    axes.grid(color="white", linewidth=0.4, alpha=0.6)
    axes.set(title="the ground, from this picture", xlabel="left, m", ylabel="forward, m", aspect="equal")
    axes.set(xlim=extent[:2], ylim=extent[2:])


def _ground_lines(grid: BEVGrid) -> Iterator[tuple[list[tuple[float, float]], str]]:
    step = _step(grid)
    (back, front), (right, left) = grid.forward_m, grid.left_m
    xs, ys = np.linspace(back, front, 400), np.linspace(right, left, 400)
    for x in _multiples(grid.forward_m, step):
        yield [(x, y) for y in ys], f"{x:.3g} m"
    for y in _multiples(grid.left_m, step):
        yield [(x, y) for x in xs], f"{abs(y):.3g} m {'left' if y > 0 else 'right'}" if y else "ahead"


def _multiples(bounds: Sequence[float], step: float) -> np.ndarray:
    return np.arange(math.ceil(bounds[0] / step), math.floor(bounds[1] / step + 1e-6) + 1) * step


def _step(grid: BEVGrid) -> float:
    """Metres between two lines: 1, 2 or 5 times a power of ten, for about six of them."""
    span = max(grid.rows, grid.cols) * grid.cell_m / 6
    power = 10 ** math.floor(math.log10(span))
    return power * max(factor for factor in (1, 2, 5) if factor * power <= span)


def check(root: Path, grid: BEVGrid | None, frame: str | None, out: Path | None) -> int:
    """All of it; returns the number of faults."""
    console = Console()
    calibration = read_calibration(root / "calibration.json")
    grid = grid or default_grid(calibration)
    calibration.check_views(grid)
    frames = Frames(root / "images", calibration, (32, 32), allow_missing=True)
    pictures = truth = None
    if calibration.labels is not None:
        pictures = PictureTruth(root / "labels", calibration, {name: [name] for name in calibration.labels.members})
    if calibration.bev is not None and calibration.bev_grid is not None:
        own = {name: [name] for name in calibration.bev.members}
        truth = MapTruth(root / "bev", calibration, own, calibration.bev_grid)
    console.print(
        f"[bold]{root}[/]: {len(frames)} frames, {len(calibration.cameras)} cameras. {escape(calibration.note)}"
    )
    console.print(describe_cameras(frames, grid))
    splits, faults = check_splits(root, frames)
    console.print(splits)
    if out is not None:
        if frame is not None and frame not in frames.names:
            raise InputError(f"{root}: there is no frame {frame!r}; {suggest(frame, frames.names)}")
        index = frames.names.index(frame) if frame else 0
        overlay(frames, index, grid, pictures, truth if grid == calibration.bev_grid else None).savefig(out, dpi=90)
        console.print(f"wrote {out}: are the lines on the road, straight and parallel from above?")
    labels, bad_files = check_frames(frames, pictures, truth)
    if labels.row_count:
        console.print(labels)
    return faults + bad_files


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="PNG to draw the overlay of one frame to")
    parser.add_argument("--frame", help="which frame; the first by default")
    parser.add_argument("--forward", type=float, nargs=2, metavar=("FROM", "TO"), help="metres to draw")
    parser.add_argument("--left", type=float, nargs=2, metavar=("FROM", "TO"), help="metres to draw; right is negative")
    parser.add_argument("--cell", type=float, help="metres a cell")
    args = parser.parse_args()
    given = [args.forward, args.left, args.cell]
    try:
        if any(given) and not all(given):
            raise InputError("check_data: --forward, --left and --cell describe a grid together; give all three")
        grid = BEVGrid(tuple(args.forward), tuple(args.left), args.cell) if all(given) else None
        faults = check(args.folder, grid, args.frame, args.out)
    except InputError as error:
        parser.exit(1, f"{error}\n")
    parser.exit(1 if faults else 0, f"{faults} faults\n" if faults else "no fault found\n")


if __name__ == "__main__":
    main()
