"""``python -m bevreshape.report FOLDERS``: write finished runs as one HTML page that opens from disk.

A folder is that of a run, a sweep, a comparison or a study, or contains such folders. Options:
  out=report.html    the page
  samples=3          test samples in the explorer
  cells=20           cells along a side whose weights are shown
  probes=2           random probes a cell
  trust=[]           packages whose classes the checkpoints may call, in addition to bevreshape

Example: python -m bevreshape.report runs/2026-01-31 sweeps/2026-02-01 out=compared.html
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from bevreshape.config.arguments import Parser
from bevreshape.config.key_values import read_key_values
from bevreshape.config.settings import Report
from bevreshape.console import print_line, run_script
from bevreshape.environment import prepare_process
from bevreshape.errors import InputError

DEFAULTS: Report = {"out": "report.html", "samples": 3, "cells": 20, "probes": 2, "trust": []}


def read_arguments(arguments: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """Return the folders and the options; a folder's name may hold ``=``.

    Raises:
        InputError: when an argument is neither, or no folder is named.
    """
    keys = tuple(f"{key}=" for key in get_type_hints(Report))
    options = [one for one in arguments if one.startswith(keys) or not Path(one).is_dir()]
    folders = [Path(one) for one in arguments if one not in options]
    for one in options:
        if "=" not in one:
            raise InputError(f"{one}: there is no such folder; name folders of runs, or an option as KEY=VALUE")
    settings = read_key_values(Report, DEFAULTS, options)
    if not folders:
        raise InputError("report: no folder is named; name folders of runs or sweeps, such as runs/2026-01-31")
    return folders, settings


def command(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: write the page."""
    parser = Parser(__doc__)
    parser.add_argument("arguments", nargs="*", metavar="FOLDER|KEY=VALUE", help="at least one folder")
    folders, settings = read_arguments(parser.parse_args(arguments).arguments)
    from bevreshape.reporting.report import write_report

    write_report(folders, **settings)
    print_line(f"{settings['out']}")


if __name__ == "__main__":
    prepare_process()
    run_script(command, sys.argv[1:])
