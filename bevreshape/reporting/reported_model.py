"""Load the models that a report compares: those of the first seed of each finished configuration."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.allowed import check_cache, read_config
from bevreshape.config.build_data import build_data
from bevreshape.config.load_model import load_model
from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError
from bevreshape.model import BEVModel
from bevreshape.reporting.labels import labels
from bevreshape.reporting.runs import Run, counts
from bevreshape.reshapers import Reshaper

IOU = "iou/mean"


@dataclass(frozen=True)
class ReportedModel:
    """Hold a configuration and the model of its first seed."""

    label: str
    runs: Sequence[Run]
    model: BEVModel
    spec: BEVSpec

    @property
    def data(self) -> dict[str, Any]:
        """Return the settings of its test samples."""
        apart = ("data.scenes.train", "data.scenes.val")
        settings = self.runs[0].settings
        return {
            key: value
            for key, value in settings.items()
            if key.startswith("data.") and counts(key) and key not in apart
        }

    @property
    def reshaper(self) -> Reshaper:
        """Return its view transformer.

        Raises:
            InputError: when it is not a ``Reshaper``.
        """
        found = self.model.reshaper
        if not isinstance(found, Reshaper):
            raise InputError(f"{self.label}: its reshaper is a {type(found).__name__}; derive it from Reshaper")
        return found


def comparable(rows: Sequence[list[Run]], trust: Sequence[str]) -> tuple[list[ReportedModel], list[str]]:
    """Return the configurations with the cameras and cells of the best loadable one, and remarks on the others.

    Raises:
        InputError: when none can be loaded.
    """
    shown: list[ReportedModel] = []
    remarks: list[str] = []
    for runs, label in zip(rows, labels(rows), strict=True):
        try:
            model, spec, _ = load_model(str(runs[0].checkpoint), trust)
            one = ReportedModel(label, runs, model, spec)
            one.reshaper  # noqa: B018  # refused here if it is not a Reshaper
        except InputError as error:
            remarks.append(f"Not compared: {label}, {error}.")
            continue
        if shown and spec != shown[0].spec:
            remarks.append(
                f"Not compared: {label}, whose cameras, images, classes or cells differ from those of {shown[0].label}."
            )
            continue
        if shown and one.data != shown[0].data:
            remarks.append(f"{label} was trained on other data than {shown[0].label}, whose test samples are shown.")
        shown.append(one)
    if not shown:
        raise InputError("report: no run can be shown. " + " ".join(remarks))
    return shown, remarks


def first_batch(run: Run, samples: int, trust: Sequence[str] = (), **changes: Any) -> BEVBatch:
    """Return the first samples of a run's test split, on the CPU.

    Args:
        run: of the test split.
        samples: their number.
        trust: packages whose classes its config may call, in addition to bevreshape.
        changes: of settings of its data.
    """
    config = stored_data(run, trust)
    config |= {key: value for key, value in changes.items() if key in config}
    data = build_data({"data": config, "loader": {"batch_size": samples, "num_workers": 0}, "seed": 0})
    data.source.prepare(("test",))
    return data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)


def stored_data(run: Run, trust: Sequence[str]) -> dict[str, Any]:
    """Return the ``data`` group of a run.

    Raises:
        InputError: when its config is damaged, names a class that is not allowed, or a path to write to.
    """
    path = run.folder / "config.yaml"
    data = read_config(path, trust, needed=("data",), only=True)["data"]
    check_cache(data, str(path))
    return dict(data)


def mean_iou(runs: Sequence[Run]) -> float:
    """Return mean IoU on the test split, over classes and seeds."""
    return statistics.mean(run.metrics[f"test/{IOU}"] for run in runs)
