"""Tabulate the costs of view transformers on two machines: cases that both have measured, and their ratio.

    python tools/compare_machines.py FIRST.csv SECOND.csv

The files are those of `python -m bevreshape.benchmark results=FOLDER`. A ratio below 1 means that the second is faster.
"""

from pathlib import Path

from rich.table import Table

from bevreshape.config.arguments import Parser
from bevreshape.console import run_script
from bevreshape.errors import InputError
from bevreshape.reporting.machine_results import compared, mean_ratio, read_results
from bevreshape.reporting.tables import markdown_table, print_table

CASE = ("reshaper", "options", "subject", "form", "image_size", "grid", "batch")
"""Columns that are shown of a case."""


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("files", nargs=2, type=Path, help="two CSVs")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    given = parser.parse_args()
    first, second = given.files
    compare(first, second, given.markdown)


def compare(first: Path, second: Path, markdown: bool) -> None:
    """Read, pair and print.

    Raises:
        InputError: when the files have no case in common.
    """
    ours, theirs = read_results(first), read_results(second)
    pairs = compared(ours, theirs)
    if not pairs:
        raise InputError(
            f"{first} ({len(ours)} rows) and {second} ({len(theirs)}) have no case in common; measure both with the "
            "same reshaper=, features=, cells= and batch="
        )
    headings = [*(key.replace("_", " ") for key in CASE), f"ms {first.stem}", f"ms {second.stem}", "ratio", "MB ratio"]
    cells = [
        [*(a[key] for key in CASE), a["forward_ms"], b["forward_ms"], f"{ratio:.2f}", _memory_ratio(a, b)]
        for a, b, ratio in pairs
    ]
    result = f"geometric mean of {len(pairs)} ratios: {mean_ratio(pairs):.2f}"
    if markdown:
        print(f"{markdown_table(headings, cells)}\n{result}")
        return
    table = Table(*headings, caption=result)
    for line in cells:
        table.add_row(*line)
    print_table(table)


def _memory_ratio(first: dict[str, str], second: dict[str, str]) -> str:
    known = first["memory_mb"] and second["memory_mb"] and float(first["memory_mb"])
    return f"{float(second['memory_mb']) / float(first['memory_mb']):.2f}" if known else ""


if __name__ == "__main__":
    run_script(main)
