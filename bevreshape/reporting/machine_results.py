"""Costs by machine: a CSV for every machine, device and precision, with a row per view transformer and case."""

import csv
import inspect
import io
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bevreshape.analysis.benchmark import Measured
from bevreshape.bev_spec import BEVSpec
from bevreshape.config.build_model import upsampling
from bevreshape.config.construct import TARGET, locate
from bevreshape.errors import InputError
from bevreshape.storage.files import read_text, write_csv
from bevreshape.storage.lock import locked
from bevreshape.training.hardware import conditions, machine_name

CASE = (
    "reshaper", "options", "subject", "encoder", "head", "form", "static_rig", "image_size", "cameras", "features",
    "grid", "batch", "threads",
)  # fmt: skip
"""Columns that identify a row; a newer measurement of the same replaces it."""

MEASURED = (
    "forward_ms", "spread_ms", "samples_per_s", "step_ms", "memory_mb", "parameters", "flops", "load", "torch", "date",
)  # fmt: skip
"""The other columns: medians of forward and of forward and backward, half the interquartile range of the first, peak
memory of the forward pass in 10⁶ bytes, the machine's busy cores, and what measured it when."""

PRECISIONS = {"32-true": "float32", "bf16-mixed": "bfloat16"}

Row = dict[str, str]


def results_path(folder: Path, device: torch.device, precision: str) -> Path:
    """Return the file of this machine, such as ``benchmark-amd-epyc-2cores-float32.csv``.

    Args:
        folder: of all machines' files.
        device: on which was measured; a GPU is named without its machine.
        precision: a key of :data:`PRECISIONS`.
    """
    return folder / f"benchmark-{machine_name(device)}-{PRECISIONS[precision]}.csv"


def add_results(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a file, in place of older ones of the same :data:`CASE`; several processes may do so.

    Raises:
        InputError: when the file is not such a CSV.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.stem}.lock")):
        known = {_case(row): row for row in (read_results(path) if path.exists() else [])}
        texts = [{key: _text(row.get(key)) for key in (*CASE, *MEASURED)} for row in rows]
        write_csv(path, list((known | {_case(row): row for row in texts}).values()))


def read_results(path: Path) -> list[Row]:
    """Read the rows of a file.

    Raises:
        InputError: when it is missing or not such a CSV; names the column or line.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        missing = [key for key in (*CASE, *MEASURED) if key not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path} has no column {missing[0]}; name a CSV that bevreshape.benchmark wrote")
        rows = []
        for row in reader:
            if None in row or None in row.values() or _number(row["forward_ms"]) is None:
                raise InputError(f"{path}: line {reader.line_num} is no row of costs; remove it")
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path} is no CSV ({error}); name one that bevreshape.benchmark wrote") from None
    return rows


def keep_benchmark(settings: Mapping[str, Any], found: Measured) -> Path:
    """Add the costs of one case of the benchmark to the file of this machine; return its path.

    Args:
        settings: of ``bevreshape.benchmark``, with a folder of ``results``.
        found: costs.
    """
    case = found.case
    device = torch.device(case.device)
    path = results_path(Path(settings["results"]), device, case.precision)
    add_results(path, _benchmark_rows(settings, found.rows, device))
    return path


def _benchmark_rows(
    settings: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], device: torch.device
) -> list[dict[str, Any]]:
    whole = settings["full_model"]
    finer = upsampling(settings["head"]) if whole else 1
    return [
        {
            "reshaper": row["reshaper"],
            "options": shown_options(settings["reshapers"][row["reshaper"]]),
            "subject": "model" if whole else "reshaper",
            **_around(settings if whole else {}),
            "form": row["form"],
            "static_rig": str(settings["static_rig"]).lower(),
            "image_size": _size((row["height"] * row["stride"], row["width"] * row["stride"])),
            "cameras": row["cameras"],
            "features": "" if whole else f"{row['channels']}x{row['height']}x{row['width']}",
            "grid": _size((row["rows"] * finer, row["cols"] * finer)),
            "batch": row["batch"],
            **_made_with(device),
            "forward_ms": row["forward_s"] * 1e3,
            "spread_ms": row["forward_spread_s"] * 1e3,
            "samples_per_s": row["batch"] / row["forward_s"],
            "step_ms": row["step_s"] * 1e3,
            "memory_mb": row["forward_bytes"] / 1e6,
            "parameters": row["parameters"],
            "flops": row["flops"],
        }
        for row in rows
    ]


def comparison_rows(
    measured: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]], spec: BEVSpec, device: torch.device
) -> list[dict[str, Any]]:
    """Return the costs of a comparison with the columns of a file, a row for each model and form.

    Args:
        measured: as :func:`~bevreshape.comparison.costing.measure_costs` returns it.
        configs: of the models' trainings, by name.
        spec: of the data; one sample was measured.
        device: on which.
    """
    return [
        {
            "reshaper": name,
            "options": shown_options(configs[name]["reshaper"]),
            "subject": "model",
            **_around(configs[name]),
            "form": form,
            "static_rig": "false",
            "image_size": _size(spec.image_size),
            "cameras": len(spec.camera_names),
            "grid": _size(spec.grid.shape),
            "batch": 1,
            **_made_with(device),
            "load": measured.get("load"),
            "forward_ms": latency_ms,
            "samples_per_s": 1e3 / latency_ms,
            "memory_mb": cost["memory_mb"] if form == "eager" else None,
            "parameters": cost["parameters"],
            "flops": cost["flops"],
        }
        for name, cost in measured["costs"].items()
        for form, latency_ms in cost["latency_ms"].items()
    ]


def shown_options(node: Mapping[str, Any]) -> str:
    """Return the options of a node that differ from its class's own, such as ``kernel=linear``."""
    parameters = inspect.signature(locate(str(node[TARGET]))).parameters
    return " ".join(
        f"{key}={_plain(value)}"
        for key, value in node.items()
        if key != TARGET and (key not in parameters or _plain(parameters[key].default) != _plain(value))
    )


def compared(first: Sequence[Row], second: Sequence[Row]) -> list[tuple[Row, Row, float]]:
    """Return the rows that two machines have in common, and the second's time relative to the first's.

    A case measured with several numbers of threads is represented by its fastest row.
    """
    ours, theirs = _fastest(first), _fastest(second)
    return [
        (row, theirs[case], float(theirs[case]["forward_ms"]) / float(row["forward_ms"]))
        for case, row in ours.items()
        if case in theirs
    ]


def mean_ratio(pairs: Sequence[tuple[Row, Row, float]]) -> float:
    """Return the geometric mean of the ratios."""
    return math.exp(statistics.mean(math.log(ratio) for _, _, ratio in pairs))


def _fastest(rows: Sequence[Row]) -> dict[tuple[str, ...], Row]:
    found: dict[tuple[str, ...], Row] = {}
    for row in sorted(rows, key=lambda row: -float(row["forward_ms"])):
        found[_case(row)[:-1]] = row
    return {case: found[case] for case in dict.fromkeys(_case(row)[:-1] for row in rows)}


def _case(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[key] for key in CASE)


def _around(config: Mapping[str, Any]) -> dict[str, str]:
    """Return class and options of the encoder and the heads in a config; nothing for a reshaper alone."""
    if not config:
        return {"encoder": "", "head": ""}
    heads = (f"{name}: {_described(node)}" for name, node in config["head"].items())
    return {"encoder": _described(config["encoder"]), "head": "; ".join(heads)}


def _described(node: Mapping[str, Any]) -> str:
    return f"{str(node[TARGET]).rpartition('.')[2]} {shown_options(node)}".strip()


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _made_with(device: torch.device) -> dict[str, Any]:
    return {
        **conditions(device),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _plain(value: Any) -> str:
    """Return a value without blanks; a tuple like a list."""
    return str(list(value) if isinstance(value, tuple) else value).replace(" ", "")


def _text(value: Any) -> str:
    """Return a figure with four digits; nothing for an unknown one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(text: str) -> float | None:
    """Return a positive number; ``None`` for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None
