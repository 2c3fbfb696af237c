"""A tiny folder in KITTI's schema, with random masks and boxes, and the benchmark's projection in plain numpy."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((38, 124), (37, 122), (38, 123))
P2 = np.array([[72.0, 0.0, 61.0, 4.5], [0.0, 72.0, 15.0, -0.06], [0.0, 0.0, 1.0, 0.003]])


def turned(x_deg: float, y_deg: float, z_deg: float) -> np.ndarray:
    """Rotation (3, 3) about x, then y, then z."""
    result = np.eye(3)
    for axis, degrees in enumerate((x_deg, y_deg, z_deg)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = [k for k in range(3) if k != axis]
        rotation = np.eye(3)
        rotation[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        result = rotation @ result
    return result


R0 = turned(0.3, -0.4, 0.6)
VELO = np.column_stack([turned(0.2, -0.5, 0.9) @ [[0, -1, 0], [0, 0, -1], [1, 0, 0]], [-0.004, -0.076, -0.272]])
ROAD = np.column_stack([turned(-0.7, -0.4, 0.3), [0.01, -1.6, 0.28]])
MATRICES = {"P0": P2, "P2": P2, "R0_rect": R0, "Tr_velo_to_cam": VELO, "Tr_cam_to_road": ROAD}


def square(matrix: np.ndarray) -> np.ndarray:
    """(3, 3) or (3, 4) as (4, 4)."""
    result = np.eye(4)
    result[:3, : matrix.shape[1]] = matrix
    return result


def pixel_of(point: np.ndarray | list[float], frame: str) -> np.ndarray | None:
    """Where a point of the ``road`` or the ``velodyne`` frame lies in the image, ``None`` behind the camera."""
    rectified = square(R0) @ (np.linalg.inv(square(ROAD)) if frame == "road" else square(VELO)) @ [*point, 1.0]
    u, v, w = P2 @ rectified
    return np.array([u / w, v / w]) if w > 0 else None


def write_calibration(root: Path, name: str, matrices: dict[str, np.ndarray] | None = None) -> Path:
    """``calib/<name>.txt``."""
    path = root / "training/calib" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        f"{key}: {' '.join(f'{v:.12e}' for v in m.flatten())}"
        for key, m in (MATRICES if matrices is None else matrices).items()
    )
    path.write_text("\n".join(lines) + "\n\n")
    return path


def write_image(root: Path, place: str, pixels: np.ndarray) -> Path:
    """A PNG below ``training``."""
    path = root / "training" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def road_folder(root: Path, names: tuple[str, ...], seed: int = 0) -> Path:
    """Road and, for ``um``, lane masks in blocks of a few pixels; what is not evaluated is black."""
    random = np.random.default_rng(seed)
    for number, name in enumerate(names):
        height, width = SIZES[number % len(SIZES)]
        category, _, digits = name.partition("_")
        write_image(root, f"image_2/{name}.png", random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        write_calibration(root, name)
        for what in ("road", "lane") if category == "um" else ("road",):
            blocks = random.integers(0, 4, (-(-height // 4), -(-width // 6)))
            blocks = np.kron(blocks, np.ones((4, 6), int))[:height, :width]
            colors = np.array([[0, 0, 0], [255, 0, 0], [255, 0, 255], [255, 0, 255]], np.uint8)
            write_image(root, f"gt_image_2/{category}_{what}_{digits}.png", colors[blocks])
    return root


def object_folder(root: Path, labels: dict[str, str]) -> Path:
    """Frames with the given lines of ``label_2``."""
    random = np.random.default_rng(0)
    for number, (name, lines) in enumerate(labels.items()):
        height, width = SIZES[number % len(SIZES)]
        write_image(root, f"image_2/{name}.png", random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        write_calibration(root, name)
        path = root / "training/label_2" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(lines)
    return root
