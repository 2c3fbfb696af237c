"""Check a camera folder, print its content, and draw its images with the ground, and the ground from the images.

In the overlay the lines on the ground are straight and a round number of metres apart. The calibration is right if
the left column's lines are on the road, and if the right column's lane lines are straight, parallel and of equal width
near and far. Labels are drawn into both columns, 3D boxes with a stroke from their middle to their front. Several
cameras are also projected onto one ground plane, where their images must match. Images are shown undistorted.

A probable mistake is printed as a doubt: an inverse, boxes below the ground or between cells' centres, an image in two
splits. Unusable data is a fault: the last lines name every one, and the exit code is 1.

    python tools/check_data.py data/duckietown_fixed --out overlay.png
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch
from folder_check.boxes import box_doubts, categories, describe_boxes
from folder_check.cameras import camera_mistakes, default_grid, describe_cameras, describe_lenses, twins
from folder_check.frames import boxes_of, check_frames
from folder_check.overlay import overlay
from folder_check.splits import check_splits

from bevreshape.config.arguments import Parser
from bevreshape.config.options import LocalPath, read_value
from bevreshape.console import print_line, run_script
from bevreshape.data.image_io import ImageMode
from bevreshape.data.sources.folder.boxes import Boxes
from bevreshape.data.sources.folder.calibration import Calibration, read_calibration
from bevreshape.data.sources.folder.dataset import CameraFolderDataset
from bevreshape.data.sources.folder.labels import BEVLabels, ImageLabels
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import (
    BEVGrid,
)
from bevreshape.reporting.tables import print_table
from bevreshape.storage.files import write_atomic

TRAINING_CELL_M = 0.5
"""Default length of a cell of data=folder."""


def doubts(frames: CameraFolderDataset, grid: BEVGrid, boxes: Mapping[str, Boxes]) -> list[str]:
    """Return sentences on probable mistakes."""
    sentences = []
    for number, name in enumerate(frames.calibration.cameras):
        for frame in frames.names:
            mistakes = camera_mistakes(frames.calibration.of(frame), number, grid)
            if mistakes:
                sentences += [f"camera {name!r}, frame {frame!r}: {mistake}" for mistake in mistakes]
                break
    sentences += twins(frames.calibration)
    unknown = sorted(set(frames.calibration.frames) - set(frames.names))
    if unknown:
        sentences.append(
            f"calibration.json calibrates {len(unknown)} frames that have no image, first {unknown[0]!r}; is it the "
            "frames' names?"
        )
    yaws = torch.cat([each.yaws.rad2deg() for each in boxes.values()]) if boxes else torch.zeros(0)
    if len(yaws) >= 5 and yaws.abs().max() <= math.pi and yaws.abs().max() > 0:
        sentences.append(f"boxes: no yaw_deg of {len(yaws)} is above {yaws.abs().max():.2f}; are they radians?")
    return sentences


def check(
    root: Path, grid: BEVGrid | None, frame: str | None, out: Path | None, image_mode: str = "rgb"
) -> tuple[list[str], list[str]]:
    """Run all checks; return faults and doubts, one sentence each."""
    calibration = read_calibration(root / "calibration.json")
    targets = grid or _target_grid(calibration)
    grid = grid or default_grid(calibration)
    calibration.check_views(grid)
    frames = CameraFolderDataset(root / "images", calibration, (32, 32), allow_missing=True, image_mode=image_mode)
    if frame is not None and frame not in frames.names:
        raise InputError(f"{root}: there is no frame {frame!r}; {suggest(frame, frames.names)}")
    images = bev_labels = None
    if calibration.labels is not None:
        images = ImageLabels(root / "labels", calibration, {name: [name] for name in calibration.labels.members})
    if calibration.bev is not None and calibration.bev_grid is not None:
        own = {name: [name] for name in calibration.bev.members}
        bev_labels = BEVLabels(root / "bev", calibration, own, calibration.bev_grid)
    boxes = root / "boxes" if calibration.boxes is not None else None
    counts = f"{len(frames)} frames, {len(calibration.cameras)} cameras"
    print_line((str(root), "bold"), f": {counts}. {calibration.note}")
    print_table(describe_cameras(frames, grid))
    for line in describe_lenses(frames):
        print_line(line)
    splits, faults, remarkable = check_splits(root, frames)
    if splits.row_count:
        print_table(splits)
    else:
        print_line("no splits/*.txt: list frames there, one a line, or in data.splits")
    labels, found, broken = check_frames(frames, images, bev_labels, boxes)
    faults += broken
    if labels.row_count:
        print_table(labels)
    by_category = categories(found, targets)
    if by_category:
        print_table(describe_boxes(by_category, targets))
    doubted = [*remarkable, *doubts(frames, grid, found), *box_doubts(frames, targets, by_category)]
    for sentence in doubted:
        print_line(("doubt:", "yellow"), f" {sentence}")
    if out is not None:
        try:
            _draw(frames, frame, grid, images, bev_labels, boxes, out)
            print_line(f"wrote {out}: are the lines on the road, straight and parallel from above?")
        except InputError as error:
            faults.append(f"{out} cannot be drawn: {error}")
    return faults, doubted


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _target_grid(calibration: Calibration) -> BEVGrid:
    """Return the cells of data=folder where they match, or the BEV labels' own."""
    drawn = default_grid(calibration)
    spans = [high - low for low, high in (drawn.forward_m, drawn.left_m)]
    whole = all(math.isclose(span, round(span / TRAINING_CELL_M) * TRAINING_CELL_M) for span in spans)
    return BEVGrid(drawn.forward_m, drawn.left_m, TRAINING_CELL_M) if whole else drawn


def _draw(
    frames: CameraFolderDataset,
    frame: str | None,
    grid: BEVGrid,
    images: ImageLabels | None,
    bev_labels: BEVLabels | None,
    boxes: Path | None,
    out: Path,
) -> None:
    index = frames.names.index(frame) if frame else 0
    drawn = None if boxes is None else boxes_of(frames, index, boxes)
    fitting = bev_labels if grid == frames.calibration.bev_grid else None
    figure = overlay(frames, index, grid, images, fitting, drawn)
    write_atomic(out, lambda file: figure.savefig(file, dpi=90, format="png"))


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("folder", help="camera folder")
    parser.add_argument("--out", type=Path, help="PNG to draw the overlay of one frame to")
    parser.add_argument("--frame", help="which frame; the first by default")
    parser.add_argument("--forward", type=float, nargs=2, metavar=("FROM", "TO"), help="metres to draw")
    parser.add_argument("--left", type=float, nargs=2, metavar=("FROM", "TO"), help="metres to draw; right is negative")
    parser.add_argument("--cell", type=float, help="metres a cell")
    parser.add_argument(
        "--image-mode", choices=get_args(ImageMode), default="rgb", help="how images are read; grey of one channel"
    )
    args = parser.parse_args()
    given = [value is not None for value in (args.forward, args.left, args.cell)]
    if any(given) and not all(given):
        raise InputError("--forward, --left and --cell describe a grid together; give all three")
    grid = BEVGrid(tuple(args.forward), tuple(args.left), args.cell) if all(given) else None
    folder = Path(read_value("folder", LocalPath, args.folder))
    faults, doubted = check(folder, grid, args.frame, args.out, args.image_mode)
    for fault in faults:
        print_line(("fault:", "red"), f" {fault}", stderr=True)
    counted = [
        _counted(len(sentences), what) for sentences, what in ((faults, "fault"), (doubted, "doubt")) if sentences
    ]
    print_line(f"{' and '.join(counted)}, named above" if counted else "no fault found", stderr=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    run_script(main)
