"""``python -m bevreshape.benchmark``: what view transformers cost, side by side."""

if __name__ == "__main__":  # before anything loads torch
    from bevreshape.environment import prepare_process

    prepare_process()

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from bevreshape.analysis.costs import Cost, Workload, growth, measure, ring
from bevreshape.bev_spec import BEVSpec
from bevreshape.config import cli, settings
from bevreshape.config.build_model import build_model, build_reshaper, upsampling
from bevreshape.config.compose import plain_config
from bevreshape.config.options import read_settings
from bevreshape.config.stored import entry_point_reshapers
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid
from bevreshape.model import BEVModel
from bevreshape.reporting.labels import figure_text
from bevreshape.reporting.progress import Progress
from bevreshape.reporting.tables import print_table
from bevreshape.reshapers import FeatureShape, FixedRig, GeometricReshaper, Reshaper
from bevreshape.storage.files import write_atomic, write_csv
from bevreshape.training.launch import out_of_memory, read_device

AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16}
GROWTH = ("cells", "tokens", "cameras")


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

    @property
    def source(self) -> FeatureShape:
        """The features, as of a resized image."""
        offset_px = (self.stride - 1) / 2
        return FeatureShape(self.channels, self.height, self.width, self.cameras, self.stride, offset_px)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.height * self.stride, self.width * self.stride

    def grid(self, upsample: int = 1) -> BEVGrid:
        """Cells ahead of the vehicle or around it; ``upsample`` times finer for a whole model."""
        length, width = self.rows * self.cell_m, self.cols * self.cell_m
        nearest = -length / 2 if self.around else 0.0
        return BEVGrid((nearest, nearest + length), (-width / 2, width / 2), self.cell_m / upsample)

    @property
    def title(self) -> str:
        """How tables call it."""
        return (
            f"{self.batch} × {self.cameras} cameras × {self.channels} × {self.height}×{self.width} → "
            f"{self.rows}×{self.cols}, {self.device}, {self.precision}"
        )


def main(cfg: DictConfig) -> None:
    """Measure every reshaper on every case; print, write and draw."""
    plain = read_settings(settings.Benchmark, plain_config(cfg))
    folder = Path(HydraConfig.get().runtime.output_dir)
    if plain["threads"] is not None:
        torch.set_num_threads(plain["threads"])
    if plain["fixed"] and plain["backward"]:
        raise InputError("fixed=true is for inference, where geometry is computed once; set backward=false with it")
    cases = read_cases(plain)
    rows: list[dict[str, Any]] = []
    console = Console()
    rounds = len(cases) * plain["rounds"] * (2 if plain["backward"] else 1)
    with Progress("measuring: rounds", rounds) as progress:
        for case in cases:
            case, found, left_out = measure_case(plain, case, progress.advance)
            with progress.paused():
                print_table(cost_table(case, found, bool(plain["whole"])))
                for reason in left_out.values():
                    console.print(f"left out: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
            rows += [{"reshaper": name, **asdict(case), **asdict(cost)} for name, cost in found.items()]
            write_csv(folder / "benchmark.csv", rows)
    exponents = fitted_growth(rows, plain["growth"]) if plain["growth"] else {}
    if exponents:
        print_table(growth_table(plain["growth"], exponents))
    figure = draw(rows, plain["growth"])
    write_atomic(folder / "benchmark.png", lambda file: figure.savefig(file, format="png", dpi=150))
    console.print(f"{folder / 'benchmark.csv'} · benchmark.png", markup=False, highlight=False, soft_wrap=True)


def read_cases(cfg: Mapping[str, Any]) -> list[Case]:
    """Every combination of the listed shapes, devices and precisions; with ``growth`` the first one at every size.

    Raises:
        InputError: a value that is no positive number, or a device or precision that cannot be had.
    """
    devices = [str(read_device(str(name))) for name in _listed(cfg["device"])]
    precisions = [str(name) for name in _listed(cfg["precision"])]
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
            n > 1 or cfg["growth"] == "cameras",
        )
        for b, n, c, (features, cells) in product(batches, cameras, channels, shapes)
        for device, precision in product(devices, precisions)
    ]
    if not cases:
        raise InputError(
            "benchmark: a list is empty; give batch, cameras, channels, features, cells, device and precision a value"
        )
    if cfg["growth"] is None:
        return cases
    if len(cases) > 1:
        raise InputError(
            f"growth={cfg['growth']} starts from one case but {len(cases)} are listed; give one value each"
        )
    return [_grown(cases[0], cfg["growth"], factor) for factor in _listed(cfg["factors"])]


def measure_case(
    cfg: Mapping[str, Any], case: Case, each_round: Callable[[], object] | None = None
) -> tuple[Case, dict[str, Cost], dict[str, str]]:
    """Cost of every reshaper on one case; ``each_round`` is called after every round of measurements.

    Returns:
        The case, of whole models with the features that their encoder gives; costs; and why those that are missing are left
        out.

    Raises:
        InputError: when none is left.
    """
    device, autocast = torch.device(case.device), AUTOCAST[case.precision]
    cameras = ring(case.cameras, case.image_size, case.batch, device)
    workloads: dict[str, Workload] = {}
    left_out: dict[str, str] = {}
    shown = case
    for name, node in cfg["reshapers"].items():
        try:
            module, reshaper, features = _subject(cfg, node, case, device)
            workload = Workload(module, (features, cameras), autocast, into_input=not cfg["whole"])
            if cfg["fixed"] and isinstance(reshaper, GeometricReshaper):
                fixed = FixedRig(reshaper.eval(), ring(case.cameras, case.image_size, 1, device))
                module = BEVModel(module.encoder, fixed, module.heads) if isinstance(module, BEVModel) else fixed
                workload = Workload(module, (features, None), autocast)
            (workload.step if cfg["backward"] else workload.forward)()
        except InputError as error:
            left_out[name] = f"{name}: {str(error).replace('reshaper.', f'reshapers.{name}.', 1)}"
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            left_out[name] = f"{name}: the memory does not suffice; give it smaller features or cells"
        else:
            workloads[name] = workload
            built = reshaper.source
            shown = replace(case, channels=built.channels, height=built.height, width=built.width, stride=built.stride)
    if not workloads:
        raise InputError(f"{case.title}: no reshaper can be measured; " + "; ".join(left_out.values()))
    costs = measure(list(workloads.values()), cfg["rounds"], bool(cfg["backward"]), each_round)
    return shown, dict(zip(workloads, costs, strict=True)), left_out


def _subject(
    cfg: Mapping[str, Any], node: Any, case: Case, device: torch.device
) -> tuple[torch.nn.Module, Reshaper, torch.Tensor]:
    """A reshaper, twice, and features, or a whole model, its reshaper and images."""
    torch.manual_seed(0)
    if not cfg["whole"]:
        reshaper = build_reshaper(node, (case.source,), case.grid()).to(device).eval()
        shape = (case.batch, case.cameras, case.channels, case.height, case.width)
        return reshaper, reshaper, torch.randn(shape, device=device)
    names = tuple(f"camera{i}" for i in range(case.cameras))
    spec = BEVSpec(case.grid(upsampling(cfg["head"])), ("class",), names, case.image_size)
    model = build_model({**cfg, "reshaper": node}, spec).to(device).eval()
    assert isinstance(model.reshaper, Reshaper)
    return model, model.reshaper, torch.rand(case.batch, case.cameras, 3, *case.image_size, device=device)


def cost_table(case: Case, costs: Mapping[str, Cost], whole: bool = False) -> Table:
    """One case on the console: medians ± half the interquartile range."""
    rate = next(iter(costs.values())).matmul_flops_per_s
    table = Table(title=f"{case.title}; matrix products {rate / 1e9:.0f} GFLOP/s")
    table.add_column("reshaper", no_wrap=True)
    headings = ["params", "MFLOP", "forward ms", "fwd+bwd ms", "MiB", "fwd+bwd MiB", "of matmul", "fwd+bwd of it"]
    for heading in [*headings[:6], "frames/s"] if whole else headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, cost in costs.items():
        measured = not math.isnan(cost.step_s)
        shares = [f"{cost.of_matmul:.0%}", f"{cost.step_of_matmul:.0%}" if measured else ""]
        table.add_row(
            name,
            f"{cost.parameters / 1e3:,.1f}k",
            f"{cost.flops / 1e6:,.1f}",
            f"{cost.forward_s * 1e3:.2f} ± {cost.forward_spread_s * 1e3:.2f}",
            f"{cost.step_s * 1e3:.2f} ± {cost.step_spread_s * 1e3:.2f}" if measured else "",
            f"{cost.forward_bytes / 2**20:.1f}",
            f"{cost.step_bytes / 2**20:.1f}" if measured else "",
            *([f"{case.batch / cost.forward_s:.1f}"] if whole else shares),
        )
    return table


def fitted_growth(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """For every reshaper, the exponents of forward time, forward and backward time, and memory."""
    fitted: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["reshaper"] for row in rows):
        own = [row for row in rows if row["reshaper"] == name]
        sizes = [_size(row, key) for row in own]
        if len(own) == 1 < len({_size(row, key) for row in rows}):
            continue  # left out at the other sizes
        fitted[name] = {
            what: growth(sizes, [row[what] for row in own])
            for what in ("forward_s", "step_s", "forward_bytes", "step_bytes")
            if all(math.isfinite(row[what]) and row[what] > 0 for row in own)
        }
    return fitted


def growth_table(key: str, exponents: Mapping[str, Mapping[str, float]]) -> Table:
    """Exponents on the console."""
    table = Table(title=f"growth with {key}: exponent e of size^e")
    columns = {"forward_s": "forward", "step_s": "fwd+bwd", "forward_bytes": "memory", "step_bytes": "fwd+bwd memory"}
    for heading in ("reshaper", *columns.values()):
        table.add_column(heading, justify="left" if heading == "reshaper" else "right")
    for name, found in exponents.items():
        table.add_row(name, *(f"{found[what]:.2f}" if what in found else "" for what in columns))
    return table


def draw(rows: Sequence[Mapping[str, Any]], growth_key: str | None) -> Figure:
    """Bars of time and memory, a panel a case; with growth, lines over the size."""
    names = list(dict.fromkeys(row["reshaper"] for row in rows))
    panels = [("step_s", "forward and backward [ms]", 1e3), ("step_bytes", "its memory [MiB]", 2**-20)]
    if any(math.isnan(row["step_s"]) for row in rows):
        panels = []
    panels = [("forward_s", "forward [ms]", 1e3), ("forward_bytes", "its memory [MiB]", 2**-20), *panels]
    figure = Figure(figsize=(4 * len(panels), 1.5 + 0.35 * len(names) if not growth_key else 4), layout="constrained")
    for axes, (what, label, unit) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if growth_key:
            for name in names:
                own = [row for row in rows if row["reshaper"] == name]
                axes.plot(
                    [_size(row, growth_key) for row in own],
                    [row[what] * unit for row in own],
                    "o-",
                    label=figure_text(name),
                )
            axes.set(xscale="log", yscale="log", xlabel=growth_key, ylabel=label)
        else:
            cases = list(dict.fromkeys(_case_label(row) for row in rows))
            for number, case in enumerate(cases):
                bars = {row["reshaper"]: row[what] * unit for row in rows if _case_label(row) == case}
                places = [i + (number - (len(cases) - 1) / 2) * 0.8 / len(cases) for i in range(len(names))]
                axes.barh(places, [bars.get(name, math.nan) for name in names], 0.8 / len(cases), label=case)
            axes.set(xlabel=label, yticks=range(len(names)), yticklabels=[*map(figure_text, names)])
            axes.invert_yaxis()
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    return figure


def prepare(config_name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """``reshaper=a,b`` composes the config of each below ``reshapers``; without it, of all."""
    built_in = {path.stem for path in (cli.conf_dir() / "reshaper").glob("*.yaml")}
    known = sorted(built_in | set(entry_point_reshapers()))
    wanted = cli.typed_value(arguments, "reshaper") or "all"
    names = known if wanted == "all" else [name.strip() for name in wanted.strip("[]").split(",")]
    for name in names:
        if name not in known:
            raise InputError(f"reshaper={name} is unknown; {suggest(name, known)}")
    kept = [argument for argument in arguments if not argument.startswith("reshaper=")]
    return config_name, [*kept, *(f"+reshaper@reshapers.{name}={name}" for name in dict.fromkeys(names))]


def _grown(case: Case, key: str, factor: int) -> Case:
    if key == "cameras":
        return replace(case, cameras=case.cameras * factor)
    if key == "tokens":
        return replace(case, width=case.width * factor)
    return replace(
        case, rows=case.rows * factor, cols=case.cols * factor, cell_m=case.cell_m / factor
    )  # the same ground


def _size(row: Mapping[str, Any], key: str) -> int:
    if key == "cameras":
        return row["cameras"]
    return row["height"] * row["width"] if key == "tokens" else row["rows"] * row["cols"]


def _case_label(row: Mapping[str, Any]) -> str:
    return (
        f"{row['batch']}×{row['cameras']}×{row['channels']}×{row['height']}×{row['width']} → {row['rows']}×{row['cols']}, "
        f"{row['device']}, {row['precision']}"
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _pairs(value: Any) -> list[tuple[int, int]]:
    pairs = value if value and isinstance(value[0], list) else [value]
    return [(rows, cols) for rows, cols in pairs]


if __name__ == "__main__":
    cli.run(main, "benchmark", prepare)
