"""Tabulate many runs: runs that differ only in their seed form a row, mean ± standard deviation.

    python tools/compare_runs.py sweeps/2026-01-31/12-00-00
    python tools/compare_runs.py runs sweeps --choose optimizer.lr      # of rows that differ in that alone, val's best
    python tools/compare_runs.py sweeps --markdown                      # for a README

A run is a folder with config.yaml and metrics.json, anywhere below the given folders.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from bevreshape.config.arguments import Parser
from bevreshape.console import run_script
from bevreshape.reporting.runs import chosen, grouped, read_runs, tabulated
from bevreshape.reporting.tables import markdown_table, print_table


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs or sweeps")
    parser.add_argument(
        "--choose", metavar="KEY", help="keep, of rows that differ in KEY alone, the best on validation"
    )
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    given = parser.parse_args()
    compare(given.folders, given.choose, given.markdown)


def compare(folders: Sequence[Path], choose: str | None, markdown: bool) -> None:
    """Read, group and print."""
    rows = grouped([run for folder in folders for run in read_runs(folder)])
    if choose is not None:
        rows = chosen(rows, choose)
    rows.sort(key=lambda runs: -statistics.mean(run.metrics["test/iou/mean"] for run in runs))
    headings, cells = tabulated(rows)
    if markdown:
        print(markdown_table(headings, cells), end="")
        return
    table = Table(*headings)
    for line in cells:
        table.add_row(*line)
    print_table(table)


if __name__ == "__main__":
    run_script(main)
