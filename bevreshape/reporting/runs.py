"""Find finished runs and compare them; runs that differ only in their seed form a row."""

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bevreshape.errors import InputError
from bevreshape.storage.plain_values import read_history, read_json, read_yaml
from bevreshape.storage.run_folder import changeable

UNCOUNTED = ("seed", "name", "resume", "trainer.devices")
"""Settings that may differ between the seeds of a row, in addition to those that may change when a run resumes."""


def counts(key: str) -> bool:
    """Return whether another value of a setting makes another run, apart from its seed."""
    return key not in UNCOUNTED and not changeable(key)


@dataclass(frozen=True)
class Run:
    """Hold the settings and the results of a run.

    Attributes:
        folder: of the run.
        kind: its name without the seed.
        settings: its resolved config, flat: ``a.b.c``.
        metrics: as in its ``metrics.json``.
    """

    folder: Path
    kind: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]

    @property
    def checkpoint(self) -> Path:
        """Return the path of its best weights."""
        return self.folder / "checkpoints" / "best.ckpt"

    def curve(self, key: str) -> list[tuple[int, float]]:
        """Return steps and values of a metric logged in training, such as ``val/iou/mean``; empty if not stored."""
        if not (self.folder / "history.csv").is_file():
            return []
        return [
            (int(row["step"]), float(row[key])) for row in read_history(self.folder / "history.csv") if row.get(key)
        ]


def read_runs(folder: Path) -> list[Run]:
    """Read the finished runs below a folder.

    Raises:
        InputError: when there is none, or one cannot be read.
    """
    found = []
    for path in sorted(folder.rglob("metrics.json")):
        metrics = read_json(path)
        if "test/iou/mean" in metrics:
            _check_metrics(metrics, path)
            settings = _settings(path.with_name("config.yaml"))
            found.append(Run(path.parent, re.sub(r"-seed\d+$", "", settings["name"]), settings, metrics))
    if not found:
        raise InputError(
            f"{folder} has no finished run below it, no metrics.json with test/iou/mean; name another folder"
        )
    return found


def _check_metrics(metrics: Mapping[str, Any], path: Path) -> None:
    for key, value in metrics.items():
        known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not known and (value is not None or key == "test/iou/mean"):
            raise InputError(
                f"{path}: {key} is {value!r:.80}, not a number"
                + ("; no cell of its test split is labelled, or it is damaged" if value is None else "; it is damaged")
                + ", so name other folders"
            )


def _settings(path: Path) -> dict[str, Any]:
    """Return a run's resolved config, flat."""
    config = read_yaml(path)
    for key, kind in (("name", str), ("seed", int)):
        if type(config.get(key)) is not kind:
            what = "a text" if kind is str else "an integer"
            raise InputError(
                f"{path}: {key} is {config.get(key)!r:.80}, not {what}; it is damaged, so name other folders"
            )
    return flattened(config)


def flattened(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to ``a.b.c: value``."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {k: v for key, value in node.items() for k, v in flattened(value, f"{prefix}.{key}".strip(".")).items()}


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that differ only in their seed."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        asked = {key: value for key, value in run.settings.items() if counts(key)}
        groups.setdefault(json.dumps([run.kind, asked], sort_keys=True), []).append(run)
    for group in groups.values():
        seeds = [run.settings["seed"] for run in group]
        if len(set(seeds)) < len(seeds):
            raise InputError(f"{group[0].kind}: seeds {sorted(seeds)} occur more than once; name fewer folders")
    return list(groups.values())


def chosen(rows: Sequence[list[Run]], key: str) -> list[list[Run]]:
    """Return, of rows that differ in one setting alone, the row with the lowest loss on the validation split."""
    best: dict[str, list[Run]] = {}
    for runs in rows:
        if key not in runs[0].settings:
            raise InputError(
                f"--choose {key}: {runs[0].kind} has no such setting; write it as in its config.yaml, e.g. optimizer.lr"
            )
        others = {k: v for k, v in runs[0].settings.items() if counts(k) and k != key}
        rival = best.setdefault(json.dumps([runs[0].kind, others], sort_keys=True), runs)
        if _loss(runs) < _loss(rival):
            best[json.dumps([runs[0].kind, others], sort_keys=True)] = runs
    return list(best.values())


def differing(rows: Sequence[list[Run]]) -> list[str]:
    """Return the settings that distinguish rows.

    Options of a class, such as a reshaper or a data source, are compared among its own rows. A class in the name of the
    run's kind is left out.
    """
    keys = dict.fromkeys(key for runs in rows for key in runs[0].settings)
    return [key for key in keys if counts(key) and _differs(rows, key)]


def tabulated(rows: Sequence[list[Run]]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of a table, IoU as mean ± standard deviation of the seeds."""
    keys = differing(rows)
    figures = list(dict.fromkeys(k for runs in rows for k in runs[0].metrics if re.fullmatch(r"test/iou/[^/]+", k)))
    headings = ["run", *keys, "seeds", *(key.removeprefix("test/iou/") for key in figures)]
    cells = []
    for runs in rows:
        settings = [str(runs[0].settings.get(key, "")) for key in keys]
        cells.append([runs[0].kind, *settings, str(len(runs)), *(mean_spread(runs, key) for key in figures)])
    return headings, cells


def stopped_early(rows: Sequence[list[Run]]) -> str:
    """Return a sentence naming the runs ended by early stopping; empty if there are none."""
    found = [
        f"{run.kind} with seed {run.settings['seed']}" + (f" after {steps:.0f} steps" if steps is not None else "")
        for runs in rows
        for run in runs
        if run.metrics.get("fit/stopped_early")
        for steps in [run.metrics.get("fit/steps")]
    ]
    return f"Stopped early: {', '.join(found)}." if found else ""


def _differs(rows: Sequence[list[Run]], key: str) -> bool:
    values: dict[tuple[object, ...], set[str]] = {}
    group = key.split(".")[0]
    for runs in rows:
        run = runs[0]
        by_kind = (run.kind,) if group == "reshaper" or key.endswith("_target_") else ()
        of_class = () if key.endswith("_target_") else (run.settings.get(f"{group}._target_"),)
        if key in run.settings:
            values.setdefault((by_kind, of_class), set()).add(str(run.settings[key]))
    return any(len(found) > 1 for found in values.values())


def mean_spread(runs: Sequence[Run], key: str) -> str:
    """Format the mean and, for several seeds, the standard deviation of a metric."""
    found = [run.metrics[key] for run in runs if run.metrics.get(key) is not None]
    if not found:
        return ""
    mean = f"{statistics.mean(found):.3f}"
    return mean if len(found) == 1 else f"{mean} ± {statistics.stdev(found):.3f}"


def _loss(runs: Sequence[Run]) -> float:
    for run in runs:
        if run.metrics.get("val/loss") is None:
            raise InputError(
                f"{run.folder / 'metrics.json'} has no val/loss, which --choose compares; name other folders"
            )
    return statistics.mean(run.metrics["val/loss"] for run in runs)
