"""``python -m bevreshape.report RUN_FOLDERS``: finished runs as one HTML page that opens from disk."""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from bevreshape import __version__, cli
from bevreshape.build import Frame, build_data, load_model
from bevreshape.costs import count_flops, ring
from bevreshape.data.batch import Batch, cameras_of
from bevreshape.drawing import draw_sample
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.lab.charts import sections
from bevreshape.lab.claims import claims
from bevreshape.lab.experiments import Place
from bevreshape.lab.order import PermutedReshaper
from bevreshape.lab.page.explorer import Cells, Exhibit, Explorer, Scene, View, choose_cells, explorer_data
from bevreshape.lab.page.report import FIGURE_STYLE, MOST_BYTES, Chart, Claim, Report, Section, Table, render, write
from bevreshape.lab.plan import PLAN_FILE, Plan, is_number, units
from bevreshape.lab.records import Study
from bevreshape.lab.results import Results
from bevreshape.lab.runs import UNCOUNTED, Run, differing, grouped, mean_spread, read_runs, tabulated
from bevreshape.lab.weights import attention_weights, jacobian_norm
from bevreshape.model import BEVModel
from bevreshape.reshapers import GeometricReshaper, Reshaper

IOU = "iou/mean"

CLAIMS_TEXT = (
    "Values are means over the seeds with the interval that holds the true mean with 95 % confidence. A claim holds where the "
    "whole interval follows the rule beside its measurement, does not hold where the whole interval breaks it, and is "
    "undecided otherwise. Runs that never got to a threshold are censored: they took at least as long as they ran."
)

PER_SAMPLE = ("image", "intrinsics", "ego_from_cam", "camera_mask")


@dataclass(frozen=True)
class Shown:
    """A configuration and its first seed's model."""

    label: str
    runs: Sequence[Run]
    model: BEVModel
    frame: Frame

    @property
    def data(self) -> dict[str, Any]:
        """What its test samples depend on."""
        apart = (*UNCOUNTED, "data.batch_size", "data.scenes.train", "data.scenes.val")
        return {
            key: value for key, value in self.runs[0].settings.items() if key.startswith("data.") and key not in apart
        }

    @property
    def reshaper(self) -> Reshaper:
        """Its view transformer.

        Raises:
            InputError: when it is of a foreign kind.
        """
        found = self.model.reshaper
        if not isinstance(found, Reshaper):
            raise InputError(f"{self.label}: its reshaper is a {type(found).__name__}; derive it from Reshaper")
        return found


def main(
    folders: Sequence[Path],
    out: Path,
    samples: int = 3,
    cells: int = 20,
    probes: int = 2,
    trust: Sequence[str] = (),
) -> None:
    """Collect the runs, and of studies the claims and figures, and write the page."""
    for key, value in (("--samples", samples), ("--cells", cells), ("--probes", probes)):
        if value < 1:
            raise InputError(f"{key} {value} must be at least 1")
    rows = grouped([run for folder in folders for run in read_runs(folder)])
    rows.sort(key=lambda runs: -_mean(runs))
    shown, remarks = comparable(rows, trust)
    reference = shown[0].runs[0]
    batch, true = first_batch(reference, samples), cameras_of(first_batch(reference, samples, calibration="exact"))
    headings, lines = tabulated(rows)
    style: Any = FIGURE_STYLE  # its keys are spelt out in types of their own
    with matplotlib.rc_context(style):
        studies = [study_results(folder) for folder in folders if (folder / PLAN_FILE).is_file()]
        found = [
            *(section for study in studies for section in sections(study)),
            Section("Results", table=Table(tuple(headings), tuple(map(tuple, lines)))),
            curves(rows),
            costs(shown),
            *sweeps(rows),
            examples(shown, batch),
        ]
        page = Report(
            title="View transformers compared",
            text="IoU is that of the test split at probability 0.5, the mean of the classes where none is named, ± the "
            "standard deviation of the seeds.",
            claims_text=CLAIMS_TEXT,
            claims=[
                Claim(
                    row.number,
                    row.claim,
                    row.measurement,
                    "\n".join(row.lines),
                    row.verdict.replace(" · ", "\n"),
                    row.holds,
                )
                for study in studies
                for row in claims(study.plan, study.records)
            ],
            sections=[section for section in found if section is not None],
            explorer=None,
            source=f"Made by bevreshape {__version__} of {sum(map(len, rows))} runs.",
        )
        whole = explorer(shown, batch, true, cells, probes)
        fitted, left_out = fitting(whole, MOST_BYTES - len(render(page).encode()))
        remarks += left_out
        write(replace(page, explorer=fitted, source=" ".join([page.source, *remarks])), out)
    for remark in remarks:
        Console(stderr=True).print(remark, markup=False, highlight=False, soft_wrap=True)
    Console().print(f"{out}", highlight=False, soft_wrap=True)


def study_results(folder: Path) -> Results:
    """What a study has found.

    Raises:
        InputError: when its runs are not all done.
    """
    plan = Plan(**yaml.safe_load((folder / PLAN_FILE).read_text(encoding="utf-8")))
    records = Study(plan, Place(folder, torch.device("cpu"))).records()
    left = [unit.name for unit in units(plan, records) if unit.name not in records]
    if left:
        raise InputError(
            f"{folder} lacks {len(left)} of its records, such as {left[0]}; run the study again, it goes on"
        )
    return Results(plan, records)


def comparable(rows: Sequence[list[Run]], trust: Sequence[str]) -> tuple[list[Shown], list[str]]:
    """Those of the configurations that look through the same cameras at the same cells as the best one that can be loaded,
    and why the others are not compared.

    Raises:
        InputError: when none can be loaded.
    """
    keys = differing(rows)
    shown: list[Shown] = []
    remarks: list[str] = []
    for runs in rows:
        label = _label(runs[0], keys)
        try:
            model, frame, _ = load_model(str(runs[0].checkpoint), trust)
            one = Shown(label, runs, model, frame)
            one.reshaper  # noqa: B018  # refused here if it is of a foreign kind
        except InputError as error:
            remarks.append(f"Not compared: {label}, {error}.")
            continue
        if shown and frame != shown[0].frame:
            remarks.append(
                f"Not compared: {label}, whose cameras, pictures, classes or cells are others than those of {shown[0].label}."
            )
            continue
        if shown and one.data != shown[0].data:
            remarks.append(f"{label} was trained on other data than {shown[0].label}, whose test samples are shown.")
        shown.append(one)
    if not shown:
        raise InputError("report: no run can be shown. " + " ".join(remarks))
    return shown, remarks


def first_batch(run: Run, samples: int, **changes: Any) -> Batch:
    """The first samples of a run's test split, on the CPU.

    Args:
        run: whose.
        samples: how many.
        changes: to the settings of its data that it has.
    """
    config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))["data"]
    config |= {key: value for key, value in changes.items() if key in config}
    data = build_data({"data": {**config, "loader_workers": 0}, "seed": 0})
    data.source.prepare(("test",))
    data.batch_size = samples
    return data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)


def curves(rows: Sequence[list[Run]]) -> Section | None:
    """IoU on the validation split while training."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    keys = differing(rows)
    drawn = 0
    for runs in rows:
        steps: dict[int, list[float]] = {}
        for run in runs:
            for step, value in run.curve(f"val/{IOU}"):
                steps.setdefault(step, []).append(value)
        whole = {step: values for step, values in sorted(steps.items()) if len(values) == len(runs)}
        if len(whole) < 2:
            continue
        drawn += 1
        means = [statistics.mean(values) for values in whole.values()]
        (line,) = axes.plot(list(whole), means, label=_label(runs[0], keys))
        low, high = ([pick(values) for values in whole.values()] for pick in (min, max))
        axes.fill_between(list(whole), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    if not drawn:
        return None
    axes.set(xlabel="optimizer steps", ylabel="validation IoU, mean of classes", ylim=(0, None))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    alt = f"Validation IoU against optimizer steps for {drawn} configurations."
    return Section("Learning curves", "Bands span the seeds.", (Chart(figure, alt),))


def costs(shown: Sequence[Shown]) -> Section:
    """IoU against operations of the view transformer."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    lines = []
    for one in shown:
        flops = _flops(one.reshaper) / 1e6
        parameters = sum(p.numel() for p in one.reshaper.parameters())
        axes.errorbar(flops, _mean(one.runs), yerr=_spread(one.runs), fmt="o", capsize=2)
        axes.annotate(one.label, (flops, _mean(one.runs)), xytext=(5, 3), textcoords="offset points", fontsize=7)
        lines.append((one.label, f"{parameters:,}", f"{flops:,.1f}", mean_spread(one.runs, f"test/{IOU}")))
    axes.set(xscale="log", xlabel="MFLOP of the view transformer, a sample", ylabel="test IoU, mean of classes")
    alt = "Test IoU against the operations that each view transformer takes."
    table = Table(("run", "parameters", "MFLOP", "mean IoU"), tuple(lines))
    return Section("Cost against IoU", "", (Chart(figure, alt),), table)


def sweeps(rows: Sequence[list[Run]]) -> list[Section]:
    """IoU against every number that was swept, such as calibration jitter or the number of training scenes; of numbers that
    were swept together against the first."""
    sections = []
    axes_of: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for key in differing(rows):
        values = [str(runs[0].settings.get(key)) for runs in rows]
        partition = sorted({tuple(i for i, value in enumerate(values) if value == own) for own in values})
        axes_of.setdefault(tuple(partition), []).append(key)
    for together in axes_of.values():
        swept = [key for key in together if all(is_number(runs[0].settings.get(key)) for runs in rows)]
        if not swept:
            continue
        key, others = swept[0], [other for other in differing(rows) if other not in together]
        groups: dict[str, dict[float, list[Run]]] = {}
        for runs in rows:
            groups.setdefault(_label(runs[0], others), {})[float(runs[0].settings[key])] = runs
        lines = {label: dict(sorted(points.items())) for label, points in groups.items() if len(points) > 1}
        if not lines:
            continue
        figure = Figure(figsize=(7, 4))
        axes = figure.subplots()
        for label, points in lines.items():
            means = [_mean(runs) for runs in points.values()]
            spread = [_spread(runs) for runs in points.values()]
            axes.errorbar(list(points), means, yerr=spread, fmt="o-", capsize=2, label=label)
        axes.set(xlabel=key, ylabel="test IoU, mean of classes")
        axes.legend(fontsize=7)
        alt = f"Test IoU against {key} for {', '.join(lines)}."
        text = "Bars are the standard deviation of the seeds."
        if len(together) > 1:
            text += f" With it went {', '.join(other for other in together if other != key)}."
        sections.append(Section(f"IoU against {key}", text, (Chart(figure, alt),)))
    return sections


def examples(shown: Sequence[Shown], batch: Batch) -> Section:
    """Picture, target and prediction of the first sample."""
    charts = []
    for one in shown:
        found = _sample(batch, 0)
        with torch.no_grad():
            bev = one.model(found["image"], cameras_of(found)).sigmoid()[0]
        picture = draw_sample(
            batch["image"][0], batch["target"][0], bev, batch["valid"][0], one.frame.classes,
            ego_from_cam=batch["ego_from_cam"][0],
        )  # fmt: skip
        charts.append(Chart(picture, f"Input, target and prediction of {one.label}.", one.label))
    return Section("Example predictions", f"The first test sample, {batch['name'][0]}.", tuple(charts))


def explorer(shown: Sequence[Shown], batch: Batch, true: Cameras, cells: int, probes: int) -> Explorer:
    """W of every model on every sample, and with tokens permuted where no calibration says where they are.

    Args:
        shown: the models.
        batch: the samples, with the calibration that the models are told.
        true: their cameras as they really are.
        cells: along a side.
        probes: of a cell.
    """
    samples = [_sample(batch, i) for i in range(len(batch["name"]))]
    scenes = [
        Scene(name, one["image"][0], _camera_of(true, i), batch["target"][i].float(), batch["valid"][i])
        for i, (name, one) in enumerate(zip(batch["name"], samples, strict=True))
    ]
    exhibits = []
    for one in track(shown, "weights", console=Console(stderr=True), transient=True):
        reshaper = one.reshaper
        assert isinstance(reshaper.grid, BEVGrid)
        chosen = choose_cells(reshaper.grid, cells)
        orders = {"in order": reshaper}
        if not isinstance(reshaper, GeometricReshaper) and len(reshaper.sources) == 1:
            permutation = torch.randperm(reshaper.source.tokens, generator=torch.Generator().manual_seed(0))
            orders["permuted"] = PermutedReshaper(reshaper, permutation)
        views = [
            {order: view(one.model, ordered, sample, chosen, probes) for order, ordered in orders.items()}
            for sample in samples
        ]
        kinds = len(views[0]["in order"].heads)
        attention = ("attention, mean", *(f"attention, head {number + 1}" for number in range(kinds - 2)))
        heads = ("effective weights", *attention) if kinds > 1 else ("effective weights",)
        exhibits.append(Exhibit(one.label, reshaper.source, chosen, views, heads))
    frame = shown[0].frame
    return Explorer(scenes, exhibits, frame.classes, frame.grid, frame.camera_names)


def view(model: BEVModel, reshaper: Reshaper, sample: Batch, cells: Cells, probes: int) -> View:
    """Prediction and W with ``reshaper`` in the model; W is of tokens where they lie in the picture: the Jacobian's norm, and
    of attention its matrix too, the mean of the heads and head by head."""
    cameras = cameras_of(sample)
    with torch.no_grad():
        features = model.encoder(sample["image"])
        bev = model.head(reshaper(features, cameras)).sigmoid()[0]
    at = [divmod(number, cells.grid.cols) for number in cells.queries.tolist()]
    weights = jacobian_norm(reshaper, features, cameras, cells=at, probes=probes)  # 1 q n h w
    if hasattr(reshaper, "attention_weights"):
        heads = attention_weights(reshaper, features, cameras, cells=at)[0].abs()  # a q n h w
        weights = torch.cat([weights, heads.mean(0, keepdim=True), heads])
    return View(bev, weights)


def fitting(whole: Explorer, most_bytes: int) -> tuple[Explorer, list[str]]:
    """As much of an explorer as fits: samples are left out first, then the reshapers of the lowest IoU.

    Returns:
        What is left, and remarks about what is not.

    Raises:
        InputError: when not even one reshaper on one sample fits.
    """
    found, remarks = whole, []
    while (size := len(json.dumps(explorer_data(found)))) > most_bytes:
        if len(found.scenes) > 1:
            count = len(found.scenes) - 1
            exhibits = [replace(one, views=one.views[:count]) for one in found.exhibits]
            found = replace(found, scenes=found.scenes[:count], exhibits=exhibits)
        elif len(found.exhibits) > 1:
            remarks.append(
                f"Not in the explorer, to keep the page below {MOST_BYTES / 1e6:.0f} MB: {found.exhibits[-1].name}."
            )
            found = replace(found, exhibits=found.exhibits[:-1])
        else:
            raise InputError(
                f"report: one reshaper on one sample takes {size / 1e6:.1f} MB and {most_bytes / 1e6:.1f} MB are left for it; set "
                "--cells to fewer, or name fewer folders"
            )
    if len(found.scenes) < len(whole.scenes):
        remarks.insert(
            0, f"The explorer has {len(found.scenes)} of {len(whole.scenes)} samples, to keep the page small."
        )
    return found, remarks


def _camera_of(cameras: Cameras, number: int) -> Cameras:
    mask = None if cameras.mask is None else cameras.mask[number : number + 1]
    one = slice(number, number + 1)
    return Cameras(cameras.intrinsics[one], cameras.ego_from_cam[one], cameras.image_size, mask)


def _sample(batch: Batch, number: int) -> Batch:
    return {key: batch[key][number : number + 1] for key in PER_SAMPLE}


def _flops(reshaper: Reshaper) -> int:
    source = reshaper.source
    size = (round(source.height * source.stride), round(source.width * source.stride))
    rig = ring(source.cameras, size, 1, torch.device("cpu"))
    features = [torch.randn(1, s.cameras, s.channels, s.height, s.width) for s in reshaper.sources]
    with torch.no_grad():
        return count_flops(lambda: reshaper.eval()(features if len(features) > 1 else features[0], rig))


def _label(run: Run, keys: Sequence[str]) -> str:
    told = [f"{key.rpartition('.')[2]}={run.settings[key]}" for key in keys if key in run.settings]
    return " ".join([run.kind, *told])


def _mean(runs: Sequence[Run]) -> float:
    return statistics.mean(run.metrics[f"test/{IOU}"] for run in runs)


def _spread(runs: Sequence[Run]) -> float:
    return statistics.stdev(run.metrics[f"test/{IOU}"] for run in runs) if len(runs) > 1 else 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser("bevreshape.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs or sweeps")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (report.html)")
    parser.add_argument("--samples", type=int, default=3, help="test samples in the explorer (3)")
    parser.add_argument("--cells", type=int, default=20, help="cells along a side whose weights are shown (20)")
    parser.add_argument("--probes", type=int, default=2, help="random probes a cell (2)")
    parser.add_argument("--trust", nargs="+", default=(), help="packages whose classes the checkpoints may call")
    given = parser.parse_args()
    cli.speaking(main, given.folders, given.out, given.samples, given.cells, given.probes, given.trust)
