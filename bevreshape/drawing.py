"""Tensors as RGB pictures: bird's-eye views, panels of a sample, and overlays. Pure functions; they write nothing.

All return (height, width, 3) uint8 arrays. In a bird's-eye view later classes lie on top of earlier ones, ground that is
known to hold no class is dark, and what nobody knows is grey. The view is as the grid lays it: ahead is up, left is left.
"""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, bev_to_picture

Picture = UInt8[np.ndarray, "height width 3"]

GROUND = (24, 24, 28)
UNKNOWN = (128, 128, 128)
PAPER = (255, 255, 255)
INK = (0, 0, 0)
# after Okabe and Ito (2008), whose colours the colour-blind can tell apart; the usual first class, road, is large and calm
COLOURS = (
    (92, 106, 158),
    (240, 228, 66),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
)
PANEL_PX = 256
"""Least height of a panel."""
CAPTION_PX = 18
GAP_PX = 6


def class_palette(classes: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """A colour for every class, a function of its position."""
    more = (colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.55, 0.9) for number in range(len(classes) - len(COLOURS)))
    colours = [*COLOURS, *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in more)]
    return dict(zip(classes, colours, strict=False))


def draw_bev(
    bev: Float[Tensor, "_ _ _"] | Bool[Tensor, "_ _ _"],
    classes: Sequence[str],
    valid: Bool[Tensor, "_ _ _"] | None = None,
    *,
    threshold: float = 0.5,
    scale: int | None = None,
) -> Picture:
    """The class map of one bird's-eye view.

    Args:
        bev: probabilities or truth, (k, rows, cols).
        classes: names of the k channels.
        valid: where each class is known, (k, rows, cols); elsewhere it is not drawn, and a cell of which nothing is
            known is grey.
        threshold: a class is there where its probability is at least this.
        scale: pixels of a cell's side; left out, as many as make the picture 256 high.

    Raises:
        InputError: when the channels are not as many as the classes, or ``valid`` has another shape.
    """
    if len(bev) != len(classes) or (valid is not None and valid.shape != bev.shape):
        raise InputError(
            f"draw_bev: bev {tuple(bev.shape)} and valid {None if valid is None else tuple(valid.shape)} must both be "
            f"(k, rows, cols) with k={len(classes)} classes ({', '.join(classes)})"
        )
    known = torch.ones_like(bev, dtype=torch.bool) if valid is None else valid
    layer, covered = _paint((bev >= threshold) & known, classes)
    ground = torch.where(known.any(0)[..., None], _colour(GROUND, bev), _colour(UNKNOWN, bev))
    picture = torch.where(covered[..., None], layer, ground).byte().cpu().numpy()
    scale = scale or math.ceil(PANEL_PX / picture.shape[0])
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def draw_sample(
    image: Float[Tensor, "n 3 H W"],
    target: Float[Tensor, "k rows cols"] | Bool[Tensor, "k rows cols"],
    probabilities: Float[Tensor, "k rows cols"],
    valid: Bool[Tensor, "k rows cols"],
    classes: Sequence[str],
    *,
    ego_from_cam: Float[Tensor, "n 4 4"] | None = None,
    threshold: float = 0.5,
) -> Picture:
    """Input pictures, target and prediction side by side, with the legend below.

    Args:
        image: in 0..1.
        target: 0 or 1.
        probabilities: of the prediction.
        valid: where each class is known; nothing else is drawn, in target and prediction alike.
        classes: names of the k channels.
        ego_from_cam: arranges the cameras as they look, those ahead above and the left ones on the left; without it they
            lie in the rig's order, three in a row.
        threshold: from which probability a class is drawn as predicted.
    """
    truth = draw_bev(target, classes, valid)
    predicted = draw_bev(probabilities, classes, valid, threshold=threshold)
    pictures = _tile(_bytes(image), _in_order(len(image)) if ego_from_cam is None else as_they_look(ego_from_cam))
    size = (round(pictures.shape[1] * len(truth) / len(pictures)), len(truth))
    shown = np.asarray(Image.fromarray(pictures).resize(size, Image.Resampling.BILINEAR))
    panels = {"input": shown, "target": truth, "prediction": predicted}
    width = sum(panel.shape[1] for panel in panels.values()) + GAP_PX * (len(panels) - 1)
    sheet = Image.new("RGB", (width, len(truth) + 2 * CAPTION_PX), PAPER)
    draw, left = ImageDraw.Draw(sheet), 0
    for caption, panel in panels.items():
        draw.text((left + 2, CAPTION_PX // 2), caption, fill=INK, anchor="lm", font=ImageFont.load_default(12))
        sheet.paste(Image.fromarray(panel), (left, CAPTION_PX))
        left += panel.shape[1] + GAP_PX
    _legend(draw, classes, sheet.height - CAPTION_PX // 2)
    return np.asarray(sheet)


def overlay_on_pictures(
    images: Float[Tensor, "b n 3 H W"],
    bev: Float[Tensor, "b k rows cols"] | Bool[Tensor, "b k rows cols"],
    cameras: Cameras,
    grid: BEVGrid,
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    opacity: float = 0.5,
) -> list[Picture]:
    """Bird's-eye views painted onto the ground that the cameras see, one picture a sample, its cameras arranged as they look.

    Args:
        images: in 0..1.
        bev: probabilities or truth.
        cameras: of the pictures.
        grid: of the bird's-eye views.
        classes: names of the k channels.
        threshold: a class is painted where its probability is at least this.
        opacity: of the paint.
    """
    layers, covered = zip(*(_paint(one >= threshold, classes) for one in bev), strict=True)
    cover = torch.stack(covered).float()[:, None]  # b 1 rows cols
    colour = rearrange(torch.stack(layers), "b rows cols c -> b c rows cols").float() / 255
    # nearest, so that what is seen are the cells themselves
    paint, _ = bev_to_picture(torch.cat([colour, cover], dim=1), cameras, grid, mode="nearest")  # b n 4 H W
    painted = torch.lerp(images, paint[:, :, :3], opacity * paint[:, :, 3:])
    return [_tile(_bytes(one), as_they_look(pose)) for one, pose in zip(painted, cameras.ego_from_cam, strict=True)]


def _paint(there: Bool[Tensor, "k rows cols"], classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Colours (rows, cols, 3) of the topmost class, and where there is any."""
    layer = torch.zeros(*there.shape[1:], 3, dtype=torch.uint8, device=there.device)
    for plane, colour in zip(there, class_palette(classes).values(), strict=True):
        layer[plane] = _colour(colour, there)
    return layer, there.any(0)


def _colour(colour: tuple[int, int, int], like: Tensor) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8, device=like.device)


def _bytes(images: Float[Tensor, "n 3 H W"]) -> UInt8[np.ndarray, "n H W 3"]:
    return (images.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _in_order(cameras: int) -> list[list[int]]:
    return [list(range(first, min(first + 3, cameras))) for first in range(0, cameras, 3)]


def as_they_look(ego_from_cam: Float[Tensor, "n 4 4"]) -> list[list[int]]:
    """Camera numbers in rows: those that look ahead, then those that look back, each from left to right."""
    x, y = ego_from_cam[:, :2, 2].double().cpu().unbind(1)  # of the optical axes
    sideways = torch.atan2(y, x.abs())  # 90 degrees to the left, whether ahead or back
    order = sideways.argsort(descending=True, stable=True).tolist()
    ahead, back = [i for i in order if x[i] >= 0], [i for i in order if x[i] < 0]
    return [row for row in (ahead, back) if row]


def _tile(pictures: UInt8[np.ndarray, "n H W 3"], rows: list[list[int]]) -> Picture:
    """Pictures in rows; a place that is left over stays white."""
    columns = max(len(row) for row in rows)
    white = np.full_like(pictures[0], 255)
    return np.concatenate(
        [np.concatenate([*pictures[row], *[white] * (columns - len(row))], axis=1) for row in rows], axis=0
    )


def _legend(draw: ImageDraw.ImageDraw, classes: Sequence[str], middle: int) -> None:
    font, left = ImageFont.load_default(12), 2.0
    for name, colour in {**class_palette(classes), "none of them": GROUND, "unknown": UNKNOWN}.items():
        draw.rectangle((left, middle - 5, left + 10, middle + 5), fill=colour)
        draw.text((left + 14, middle), name, fill=INK, anchor="lm", font=font)
        left += 14 + draw.textlength(name, font=font) + 12
