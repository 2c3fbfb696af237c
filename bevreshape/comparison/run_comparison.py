"""Running a comparison, and writing its results."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from bevreshape.bev_spec import BEVSpec
from bevreshape.comparison.comparison import SETTINGS_FILE, Comparison
from bevreshape.comparison.judging import iou_metric
from bevreshape.comparison.packages import own_packages
from bevreshape.comparison.winner import export_winner
from bevreshape.config.build_data import build_data
from bevreshape.console import print_line
from bevreshape.errors import InputError
from bevreshape.reporting.comparison import print_comparison, write_comparison
from bevreshape.reporting.report import write_report
from bevreshape.sharing import finish, left
from bevreshape.storage.files import write_text
from bevreshape.storage.plain_values import to_yaml
from bevreshape.storage.records import Entry
from bevreshape.training.hardware import with_counted_devices
from bevreshape.training.trainer import silence_lightning
from bevreshape.training.validate_config import validate_config

PAGE = "report.html"
"""File of the page in a comparison's folder."""

MOST_SAMPLES, MOST_VIEWS = 3, 12
"""Samples in the page's explorer, and samples × view transformers: computing a view takes seconds."""

SHOWN = ("data", "encoder", "reshapers", "head")
"""Parts of the settings whose classes the page and the export call."""

WRITTEN_S = 300.0
"""Seconds between updates of the results."""


def run_comparison(settings: Mapping[str, Any]) -> Comparison:
    """Do the remaining entries; write the results at intervals and at the end.

    Args:
        settings: of the command, see :class:`~bevreshape.config.settings.Compare`.

    Raises:
        InputError: when the settings fit no view transformer, or the folder holds records of other settings.
    """
    silence_lightning()
    settings = {**settings, "trainer": with_counted_devices(settings["trainer"])}
    comparison = Comparison(settings)
    check(comparison)
    left(comparison)  # refuse records of other settings before anything is written
    write_text(comparison.folder / SETTINGS_FILE, to_yaml(settings))
    finish([comparison], "comparison", partial(write, comparison), WRITTEN_S)
    write(comparison)
    return comparison


def check(comparison: Comparison) -> None:
    """Check the settings before anything is trained.

    Raises:
        InputError: when they fit none of the view transformers; one that they do not fit becomes a failed candidate.
    """
    if not comparison.names:
        raise InputError("reshaper=[] is no view transformer; give one at least, such as reshaper=mlp,ipm")
    reasons = []
    _ = comparison.device
    for number, name in enumerate(comparison.names):
        config = comparison.config(name, comparison.initial(name)[0], comparison.budget.judged[0])
        if number == 0:
            iou_metric(config, BEVSpec.of(build_data(config).source))
        try:
            validate_config(config)
        except InputError as error:
            reasons.append(str(error))
    if len(reasons) == len(comparison.names):
        raise InputError(reasons[0])


def write(comparison: Comparison) -> None:
    """Write tables, charts and README, unless another process is writing them."""
    with comparison.records.claimed(Entry("results", {})) as ours:
        if ours:
            write_comparison(comparison.folder, comparison.outcome())


def print_results(comparison: Comparison) -> None:
    """Print the table, the answer and where everything is; export the winner if it is asked for."""
    outcome, lines = comparison.outcome(), []
    print_comparison(outcome)
    if comparison.settings["export"]:
        with comparison.records.claimed(Entry("winner", {})) as ours:
            lines += export_winner(outcome, comparison.folder, _trusted(comparison)) if ours else []
    for line in (*lines, str(comparison.folder / "README.md")):
        print_line(line)


def _trusted(comparison: Comparison) -> list[str]:
    """Return the packages that the command line has named."""
    return own_packages({part: comparison.settings[part] for part in SHOWN})


def write_page(comparison: Comparison) -> None:
    """Write the page, unless another process is writing it or has written it since the last change; print its path."""
    page, changed = comparison.folder / PAGE, (comparison.records.path, comparison.folder / SETTINGS_FILE)
    with comparison.records.claimed(Entry("page", {})) as ours:
        if ours and not (page.exists() and all(page.stat().st_mtime > one.stat().st_mtime for one in changed)):
            samples = min(MOST_SAMPLES, max(1, MOST_VIEWS // len(comparison.names)))
            write_report([comparison.folder], page, samples, trust=_trusted(comparison))
            print_line(f"{page}")
