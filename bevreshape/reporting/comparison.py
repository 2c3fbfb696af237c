"""What a comparison writes: table, charts and README of its folder, and the console's table with the answer."""

import re
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console

from bevreshape.comparison.answer import find_answer
from bevreshape.comparison.outcome import Outcome
from bevreshape.comparison.sentence import answer_sentence
from bevreshape.console import print_line
from bevreshape.reporting.comparison_rows import candidate_rows
from bevreshape.reporting.comparison_sections import finding_sections, method_sections
from bevreshape.reporting.comparison_table import console_table, csv_rows, markdown
from bevreshape.reporting.page import FIGURE_STYLE, Section
from bevreshape.reporting.tables import markdown_table, print_table
from bevreshape.storage.files import write_atomic, write_csv, write_text

CHART_DPI = 200


def write_comparison(folder: Path, outcome: Outcome) -> None:
    """Write ``table.md``, ``table.csv``, ``README.md`` and its charts again."""
    answer = find_answer(outcome)
    rows = candidate_rows(answer)
    write_text(folder / "table.md", markdown(rows))
    write_csv(folder / "table.csv", csv_rows(rows))
    style: Any = FIGURE_STYLE  # matplotlib types its keys as literals
    with matplotlib.rc_context(style):
        sections = [*finding_sections(outcome, answer), *method_sections(outcome)]
        parts = [f"# {outcome.title}\n", f"> {answer_sentence(outcome, answer)}\n"]
        parts += [_markdown(folder, section) for section in sections]
    write_text(folder / "README.md", "\n".join(parts).replace(outcome.command, f"```bash\n{outcome.command}\n```"))


def print_comparison(outcome: Outcome) -> None:
    """Print the table, and the answer below it."""
    answer = find_answer(outcome)
    print_table(console_table(outcome, answer, Console().width))
    print_line(answer_sentence(outcome, answer))


def _markdown(folder: Path, section: Section) -> str:
    """Return a section in Markdown; its charts are written next to it, under the names of what they show."""
    parts = [f"## {section.title}\n"]
    if section.text:
        parts.append(f"{section.text}\n")
    links = []
    for chart in section.charts:
        shown = chart.alt.partition(".")[0].lower()
        name = f"{re.sub(r'[^a-z0-9]+', '_', shown).strip('_')}.png"
        write_atomic(folder / name, partial(chart.figure.savefig, format="png", dpi=CHART_DPI))
        links.append(f'<img src="{name}" width="{round(96 * chart.figure.get_figwidth())}" alt="{escape(chart.alt)}">')
    if links:
        parts.append("\n".join(links) + "\n")
    if section.table is not None:
        parts.append(markdown_table(section.table.columns, section.table.rows))
    return "\n".join(parts)
