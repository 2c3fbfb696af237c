"""Cases of the benchmark: shapes, devices and precisions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from bevreshape.analysis.costs import Form
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.reshapers import FeatureShape
from bevreshape.training.hardware import read_device


@dataclass(frozen=True)
class Case:
    """One shape on one device at one precision."""

    batch: int
    cameras: int
    channels: int
    height: int
    width: int
    rows: int
    cols: int
    device: str
    precision: str
    stride: int
    cell_m: float
    around: bool
    form: Form = "eager"

    @property
    def source(self) -> FeatureShape:
        """Return the shape of the features, with the centres of a resized image."""
        offset_px = (self.stride - 1) / 2
        return FeatureShape(self.channels, self.height, self.width, self.cameras, self.stride, offset_px)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.height * self.stride, self.width * self.stride

    def grid(self, upsample: int = 1) -> BEVGrid:
        """Return cells ahead of or around the vehicle; ``upsample`` times finer for a full model."""
        length, width = self.rows * self.cell_m, self.cols * self.cell_m
        nearest = -length / 2 if self.around else 0.0
        return BEVGrid((nearest, nearest + length), (-width / 2, width / 2), self.cell_m / upsample)

    @property
    def title(self) -> str:
        """Return its name in tables."""
        return (
            f"{self.batch} × {self.cameras} cameras × {self.channels} × {self.height}×{self.width} → "
            f"{self.rows}×{self.cols}, {self.device}, {self.precision}, {self.form.replace('_', ' ')}"
        )


def read_cases(cfg: Mapping[str, Any]) -> list[Case]:
    """Return every combination of the listed shapes, devices and precisions; with ``scaling`` one case at every size.

    Raises:
        InputError: if a value is not a positive number, or a device or precision is not available.
    """
    devices = [str(read_device(str(name))) for name in _listed(cfg["device"])]
    batches, cameras, channels = (_listed(cfg[key]) for key in ("batch", "cameras", "channels"))
    shapes = list(product(_pairs(cfg["features"]), _pairs(cfg["cells"])))
    cases = [
        Case(
            b,
            n,
            c,
            *features,
            *cells,
            device,
            precision,
            cfg["stride"],
            cfg["cell_m"],
            n > 1 or cfg["scaling"] == "cameras",
            form,
        )
        for b, n, c, (features, cells) in product(batches, cameras, channels, shapes)
        for device in devices
        for precision, form in product(_precisions(cfg, device), _forms(cfg, device))
    ]
    if not cases:
        raise InputError(
            "benchmark: a list is empty; give batch, cameras, channels, features, cells, device, precision and compile "
            "a value"
        )
    if cfg["scaling"] is None:
        return cases
    if len(cases) > 1:
        raise InputError(
            f"scaling={cfg['scaling']} starts from one case but {len(cases)} are listed; give one value each"
        )
    return [_grown(cases[0], cfg["scaling"], factor) for factor in _listed(cfg["factors"])]


def _precisions(cfg: Mapping[str, Any], device: str) -> list[str]:
    """Return the listed precisions; by default float32, on a GPU bfloat16 too."""
    if cfg["precision"] is None:
        return ["32-true", "bf16-mixed"] if device.startswith("cuda") and not cfg["scaling"] else ["32-true"]
    return [str(name) for name in _listed(cfg["precision"])]


def _forms(cfg: Mapping[str, Any], device: str) -> list[Form]:
    """Return the listed forms; by default eager, on a GPU compiled too.

    Raises:
        InputError: when CUDA graphs are wanted without a GPU.
    """
    if cfg["compile"] is None:
        return ["eager", "compiled"] if device.startswith("cuda") and not cfg["scaling"] else ["eager"]
    wanted = _listed(cfg["compile"])
    if "cuda_graphs" in wanted and not device.startswith("cuda"):
        raise InputError(f"compile=cuda_graphs: device={device} has no CUDA graphs; set compile=true, or device=cuda")
    names: dict[bool | str, Form] = {False: "eager", True: "compiled", "cuda_graphs": "cuda_graphs"}
    return [names[one] for one in wanted]


def _grown(case: Case, key: str, factor: int) -> Case:
    if key == "cameras":
        return replace(case, cameras=case.cameras * factor)
    if key == "tokens":
        return replace(case, width=case.width * factor)
    return replace(
        case, rows=case.rows * factor, cols=case.cols * factor, cell_m=case.cell_m / factor
    )  # the same area of ground


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _pairs(value: Any) -> list[tuple[int, int]]:
    pairs = value if value and isinstance(value[0], list) else [value]
    return [(rows, cols) for rows, cols in pairs]
