"""Draw tensors as RGB images: bird's-eye views, panels of a sample, and sheets. Pure functions; they write nothing.

All return (height, width, 3) uint8 arrays. In a bird's-eye view later classes cover earlier ones, ground
known to hold no class is dark, and unknown ground is grey. Ahead is up, left is left, as in the grid.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, pinhole_rays
from bevreshape.reporting.class_colors import RGBImage, class_palette, color_like, topmost
from bevreshape.reporting.painted_ground import paint_ground

GROUND = (24, 24, 28)
UNKNOWN = (128, 128, 128)
PAPER = (255, 255, 255)
INK = (0, 0, 0)
PANEL_PX = 256
"""Minimum height of a panel, pixels."""
TEXT_PX = 12
CAPTION_PX = 18
GAP_PX = 6
SHEET_PX = 720
"""Approximate height of a sheet with images and bird's-eye view, pixels; the legend is added."""


def draw_bev(
    bev: Float[Tensor, "_ _ _"] | Bool[Tensor, "_ _ _"],
    classes: Sequence[str],
    valid: Bool[Tensor, "_ _ _"] | None = None,
    *,
    threshold: float = 0.5,
    scale: int | None = None,
) -> RGBImage:
    """Draw the class map of one bird's-eye view.

    Args:
        bev: probabilities or labels, (k, rows, cols).
        classes: names of the k channels.
        valid: where each class is known, (k, rows, cols); elsewhere it is not drawn. A cell without any known class is
            grey.
        threshold: a class is drawn where its probability is at least this.
        scale: pixels of a cell's side; by default the image is 256 high.

    Raises:
        InputError: when the channels are not as many as the classes, or ``valid`` has another shape.
    """
    if len(bev) != len(classes) or (valid is not None and valid.shape != bev.shape):
        raise InputError(
            f"draw_bev: bev {tuple(bev.shape)} and valid {None if valid is None else tuple(valid.shape)} must both be "
            f"(k, rows, cols) with k={len(classes)} classes ({', '.join(classes)})"
        )
    known = torch.ones_like(bev, dtype=torch.bool) if valid is None else valid
    layer, covered = topmost((bev >= threshold) & known, classes)
    ground = torch.where(known.any(0)[..., None], color_like(GROUND, bev), color_like(UNKNOWN, bev))
    image = torch.where(covered[..., None], layer, ground).byte().cpu().numpy()
    scale = scale or math.ceil(PANEL_PX / image.shape[0])
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def draw_sample(
    image: Float[Tensor, "n 3 H W"],
    target: Float[Tensor, "k rows cols"] | Bool[Tensor, "k rows cols"],
    probabilities: Float[Tensor, "k rows cols"],
    valid: Bool[Tensor, "k rows cols"],
    classes: Sequence[str],
    *,
    ego_from_cam: Float[Tensor, "n 4 4"] | None = None,
    threshold: float = 0.5,
) -> RGBImage:
    """Draw input images, target and prediction side by side, with the legend below.

    Args:
        image: in 0..1.
        target: 0 or 1.
        probabilities: of the prediction.
        valid: where each class is known; target and prediction are drawn only there.
        classes: names of the k channels.
        ego_from_cam: arranges the cameras by their headings, front ones above and left ones on the left; without it
            they are in the rig's order, three in a row.
        threshold: a class is drawn as predicted where its probability is at least this.
    """
    labelled = draw_bev(target, classes, valid)
    predicted = draw_bev(probabilities, classes, valid, threshold=threshold)
    images = _tile(
        [*_bytes(image)], _in_order(len(image)) if ego_from_cam is None else arrange_by_heading(ego_from_cam)
    )
    size = (round(images.shape[1] * len(labelled) / len(images)), len(labelled))
    shown = np.asarray(Image.fromarray(images).resize(size, Image.Resampling.BILINEAR))
    panels = {"input": shown, "target": labelled, "prediction": predicted}
    width = sum(panel.shape[1] for panel in panels.values()) + GAP_PX * (len(panels) - 1)
    legend = _Legend(_meanings(classes), width, TEXT_PX)
    sheet = Image.new("RGB", (width, len(labelled) + CAPTION_PX + legend.height), PAPER)
    draw, left = ImageDraw.Draw(sheet), 0
    for caption, panel in panels.items():
        draw.text((left + 2, CAPTION_PX // 2), caption, fill=INK, anchor="lm", font=ImageFont.load_default(TEXT_PX))
        sheet.paste(Image.fromarray(panel), (left, CAPTION_PX))
        left += panel.shape[1] + GAP_PX
    legend.draw(draw, 0, CAPTION_PX + len(labelled))
    return np.asarray(sheet)


def overlay_on_images(
    images: Float[Tensor, "b n 3 H W"],
    bev: Float[Tensor, "b k rows cols"] | Bool[Tensor, "b k rows cols"],
    cameras: Cameras,
    grid: BEVGrid,
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    opacity: float = 0.5,
) -> list[RGBImage]:
    """Paint bird's-eye views onto the ground in the images, one image a sample, its cameras arranged by heading.

    Args:
        images: in 0..1.
        bev: probabilities or labels.
        cameras: of the images.
        grid: of the bird's-eye views.
        classes: names of the k channels.
        threshold: a class is painted where its probability is at least this.
        opacity: of the paint.
    """
    sheets = []
    for number, (given, poses) in enumerate(zip(images, cameras.ego_from_cam, strict=True)):
        painted = []
        for camera, image in enumerate(_bytes(given)):
            if cameras.full_mask[number, camera]:
                rays = partial(pinhole_rays, cameras.intrinsics[number, camera].double().cpu())
                image = paint_ground(
                    image, bev[number], rays, poses[camera], grid, classes, threshold=threshold, opacity=opacity
                )
            painted.append(image)
        sheets.append(_tile(painted, arrange_by_heading(poses)))
    return sheets


def overlay_sheet(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], ego_from_cam: Float[Tensor, "n 4 4"], classes: Sequence[str]
) -> RGBImage:
    """Arrange painted images of a rig by heading, in their own size, with a legend in the upper left corner."""
    sheet = Image.fromarray(_tile(images, arrange_by_heading(ego_from_cam)))
    size = min(max(min(images[0].shape[:2]) // 30, 9), 40)
    legend = _Legend(class_palette(classes), max(sheet.width // 2, min(sheet.width, 20 * size)), size)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((0, 0, legend.width, legend.height), fill=PAPER)
    legend.draw(draw, 0, 0)
    return np.asarray(sheet)


def bev_sheet(
    bev: Float[Tensor, "_ _ _"] | Bool[Tensor, "_ _ _"],
    classes: Sequence[str],
    valid: Bool[Tensor, "_ _ _"] | None = None,
    *,
    threshold: float = 0.5,
) -> RGBImage:
    """Draw :func:`draw_bev` with a legend below."""
    image = draw_bev(bev, classes, valid, threshold=threshold)
    legend = _Legend(_meanings(classes), max(image.shape[1], PANEL_PX), TEXT_PX)
    sheet = Image.new("RGB", (max(image.shape[1], legend.width), image.shape[0] + legend.height), PAPER)
    sheet.paste(Image.fromarray(image))
    legend.draw(ImageDraw.Draw(sheet), 0, image.shape[0])
    return np.asarray(sheet)


def image_scale(sizes: Sequence[tuple[int, int]], ego_from_cam: Float[Tensor, "n 4 4"]) -> float:
    """Return the factor by which images of (height, width) fill the height of :func:`prediction_sheet`."""
    return SHEET_PX / sum(max(sizes[i][0] for i in row) for row in arrange_by_heading(ego_from_cam))


def prediction_sheet(
    painted: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    ego_from_cam: Float[Tensor, "n 4 4"],
    bev: Float[Tensor, "_ _ _"] | Bool[Tensor, "_ _ _"],
    classes: Sequence[str],
    valid: Bool[Tensor, "_ _ _"] | None = None,
    *,
    threshold: float = 0.5,
) -> RGBImage:
    """Draw painted images of a rig on the left, :func:`draw_bev` on the right, and a legend below.

    Args:
        painted: images of the cameras, scaled by :func:`image_scale`.
        ego_from_cam: arranges the cameras by their headings.
        bev: probabilities or labels, (k, rows, cols).
        classes: names of the k channels.
        valid: where each class is known.
        threshold: a class is drawn where its probability is at least this.
    """
    images = _tile(painted, arrange_by_heading(ego_from_cam))
    drawn = draw_bev(bev, classes, valid, threshold=threshold, scale=max(1, SHEET_PX // bev.shape[-2]))
    if drawn.shape[0] > SHEET_PX:
        width = max(1, round(drawn.shape[1] * SHEET_PX / drawn.shape[0]))
        drawn = np.asarray(Image.fromarray(drawn).resize((width, SHEET_PX), Image.Resampling.BOX))
    width = images.shape[1] + GAP_PX + drawn.shape[1]
    height = max(images.shape[0], drawn.shape[0])
    legend = _Legend(_meanings(classes), width, SHEET_PX // 36)
    sheet = Image.new("RGB", (width, height + legend.height), PAPER)
    sheet.paste(Image.fromarray(images))
    sheet.paste(Image.fromarray(drawn), (images.shape[1] + GAP_PX, 0))
    legend.draw(ImageDraw.Draw(sheet), 0, height)
    return np.asarray(sheet)


def _bytes(images: Float[Tensor, "n 3 H W"]) -> UInt8[np.ndarray, "n H W 3"]:
    return (images.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _in_order(cameras: int) -> list[list[int]]:
    return [list(range(first, min(first + 3, cameras))) for first in range(0, cameras, 3)]


def arrange_by_heading(ego_from_cam: Float[Tensor, "n 4 4"]) -> list[list[int]]:
    """Return camera indices in rows: those that face ahead, then those that face back, each from left to right."""
    x, y = ego_from_cam[:, :2, 2].double().cpu().unbind(1)  # of the optical axes
    sideways = torch.atan2(y, x.abs())  # 90 degrees to the left, both ahead and back
    order = sideways.argsort(descending=True, stable=True).tolist()
    ahead, back = [i for i in order if x[i] >= 0], [i for i in order if x[i] < 0]
    return [row for row in (ahead, back) if row]


def _tile(images: Sequence[UInt8[np.ndarray, "_ _ 3"]], rows: list[list[int]]) -> RGBImage:
    """Arrange images in rows; empty positions stay white."""
    width = max(image.shape[1] for image in images)
    heights = [max(images[i].shape[0] for i in row) for row in rows]
    sheet = np.full((sum(heights), width * max(map(len, rows)), 3), 255, np.uint8)
    for row, height, below in zip(rows, heights, np.cumsum(heights), strict=True):
        for place, i in enumerate(row):
            image, top = images[i], below - height
            left = place * width
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def _meanings(classes: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return the colors of a bird's-eye view by their meaning."""
    return {**class_palette(classes), "none of them": GROUND, "unknown": UNKNOWN}


class _Legend:
    """Draw names next to their colors, in as many rows as necessary.

    Args:
        colors: by name.
        most: width in pixels; a longer name is cut.
        size: of the letters, in pixels.
    """

    def __init__(self, colors: Mapping[str, tuple[int, int, int]], most: int, size: int) -> None:
        self._font, self._size = ImageFont.load_default(size), size
        self._row_px = size * 3 // 2
        self._entries: list[tuple[str, tuple[int, int, int], int, int]] = []  # name, color, left, row
        left = row = self.width = 0
        for name, color in colors.items():
            name = self._cut(" ".join(name.split()), most - 2 * size)
            width = round(2 * size + self._font.getlength(name))
            if left and left + width > most:
                left, row = 0, row + 1
            self._entries.append((name, color, left, row))
            left += width
            self.width = max(self.width, left)
        self.height = (row + 1) * self._row_px

    def _cut(self, name: str, most: int) -> str:
        if self._font.getlength(name) <= most:
            return name
        kept = next((n for n in range(len(name), 0, -1) if self._font.getlength(name[:n] + "...") <= most), 1)
        return name[:kept] + "..."

    def draw(self, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
        """Draw the legend with its upper left corner at (left, top)."""
        half = round(0.4 * self._size)
        for name, color, x, row in self._entries:
            middle = top + row * self._row_px + self._row_px // 2
            x += left + 2
            draw.rectangle((x, middle - half, x + 2 * half, middle + half), fill=color)
            draw.text((x + round(1.2 * self._size), middle), name, fill=INK, anchor="lm", font=self._font)
