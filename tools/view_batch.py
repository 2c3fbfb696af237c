"""Draw samples of any data source as the network receives them, to inspect before training.

From left to right: the images with the target painted onto the ground, the images projected onto the ground plane with
the target's outlines, and the target with unknown cells in grey. Outlines off their objects mean that calibration,
target and image disagree. In the middle, objects above the ground are smeared away from the camera.

    python tools/view_batch.py data=synthetic data.rig=surround --out batch.png
    python tools/view_batch.py data=duckietown_jitter --split train --samples 8
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bevreshape.config.arguments import Parser, integer
from bevreshape.config.build_data import build_data
from bevreshape.config.compose import compose_training
from bevreshape.console import run_script
from bevreshape.data.batch import SEGMENTATION, SPLITS, BEVBatch, collate
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, image_to_bev
from bevreshape.reporting.class_colors import RGBImage, class_palette
from bevreshape.reporting.drawing import draw_bev, overlay_on_images
from bevreshape.storage.files import write_png

CELL_PX = 8
GAP_PX = 6


def outlined_ground(batch: BEVBatch, grid: BEVGrid, classes: tuple[str, ...]) -> Tensor:
    """Project the images onto the ground plane, (b, 3, CELL_PX·rows, CELL_PX·cols), with outlines of the target."""
    fine = BEVGrid(grid.forward_m, grid.left_m, grid.cell_m / CELL_PX)
    views, seen = image_to_bev(batch.images, batch.cameras, fine)
    ground = views.sum(1) / seen.sum(1, keepdim=True).clamp(min=1)  # b 3 R C
    for k, color in enumerate(class_palette(classes).values()):
        target = batch.targets[SEGMENTATION]
        there = target.value[:, k] & target.valid[:, k]
        cells = there.repeat_interleave(CELL_PX, 1).repeat_interleave(CELL_PX, 2)
        edge = torch.zeros_like(cells)
        edge[:, 1:] |= cells[:, 1:] != cells[:, :-1]
        edge[:, :, 1:] |= cells[:, :, 1:] != cells[:, :, :-1]
        painted = torch.tensor(color, dtype=ground.dtype)[:, None, None] / 255
        ground = torch.where(edge[:, None], painted, ground)
    return ground


def sheet(batch: BEVBatch, grid: BEVGrid, classes: tuple[str, ...]) -> RGBImage:
    """Draw a batch, one row for each sample."""
    target, valid = batch.targets[SEGMENTATION].value, batch.targets[SEGMENTATION].valid
    overlays = overlay_on_images(batch.images, (target & valid).float(), batch.cameras, grid, classes)
    grounds = (outlined_ground(batch, grid, classes) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    rows = []
    for overlay, ground, cells, known in zip(overlays, grounds, target, valid, strict=True):
        width = round(overlay.shape[1] * len(ground) / len(overlay))
        seen = np.asarray(Image.fromarray(overlay).resize((width, len(ground)), Image.Resampling.BILINEAR))
        gap = np.full((len(ground), GAP_PX, 3), 255, np.uint8)
        bev_labels = draw_bev(cells, classes, known, scale=CELL_PX)
        row = np.concatenate([seen, gap, ground, gap, bev_labels], axis=1)
        rows += [row, np.full((GAP_PX, row.shape[1], 3), 255, np.uint8)]
    return np.concatenate(rows[:-1])


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("overrides", nargs="*", help="as of bevreshape.train, such as data=folder")
    parser.add_argument("--split", choices=SPLITS, default="val", help="of the samples (val)")
    parser.add_argument(
        "--first", type=integer(0, 2**31), default=0, help="position in the split of the first sample (0)"
    )
    parser.add_argument("--samples", type=integer(1, 1024), default=4, help="number of samples, a row each (4)")
    parser.add_argument("--out", type=Path, default=Path("batch.png"), help="PNG to write (batch.png)")
    args = parser.parse_intermixed_args()
    data = build_data(compose_training(args.overrides))
    source = data.source
    source.prepare((args.split,))
    split = source.split(args.split)
    count: int = len(split)  # type: ignore[arg-type]
    if args.first >= count:
        raise InputError(f"--first {args.first} is not among the {count} samples of {args.split}, which count from 0")
    stop = min(args.first + args.samples, count)
    batch = collate([split[index] for index in range(args.first, stop)])
    batch = source.make_targets(replace(batch, images=batch.images.float() / 255))
    write_png(args.out, sheet(batch, source.grid, source.classes))
    print(f"wrote {args.out}: {', '.join(batch.names)}")


if __name__ == "__main__":
    run_script(main)
