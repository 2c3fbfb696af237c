"""A study in Markdown: the README of its folder, and the block in the package's README."""

from collections.abc import Sequence
from pathlib import Path

from bevreshape.experiments import task_rows
from bevreshape.experiments.article import CLAIMS, THEOREMS
from bevreshape.experiments.conclusion import conclusion
from bevreshape.experiments.independent import compared
from bevreshape.experiments.levels import Study
from bevreshape.experiments.models import METHODS, called
from bevreshape.experiments.row import Row
from bevreshape.experiments.runs import Setting
from bevreshape.experiments.tensor_results import Results
from bevreshape.reporting.tables import markdown_table

BEGIN, END = "<!-- study: begin, written by python -m bevreshape.study -->", "<!-- study: end -->"
"""Markers around the block in the package's README."""

FULL = Path(__file__).parent / "results" / "full"
"""Folder of the committed study, which the package's README shows."""

FULL_FOLDER = "bevreshape/experiments/results/full"
"""The same folder in links and commands."""

RULES = """\
Every row compares two methods seed by seed: both get the same samples of a seed, and what counts is the logarithm of the ratio of
their errors, steps, FLOPs or samples, with its sign. The interval holds the true mean of these logarithms with 95 % confidence
(Student's t), turned back into a ratio. A method is *ahead* where the whole interval lies beyond 10 % in its favour, *behind* where
it lies beyond 10 % against it, and both are *alike* where the interval lies within ± 10 %; anything else is *open*: these seeds do
not decide it. The six primary rows were named before anything was measured; since six chances to be wrong are more than one, their
verdicts are by Holm's procedure, which keeps the probability of any wrong one among them below 5 %. Control rows have an answer that
is known beforehand, *alike*: where the pose of the camera is nowhere to be found no method can be ahead, and an MLP whose tokens and
columns of W come in another order from the start is the same MLP. So is an attention whose learned encodings do: its row of A12 is 1
by symmetry, and what is measured there is the other side, sinusoidal encodings, which stay where they are. These controls check the
program; how often the rule itself is wrong is counted on null data by its tests. A run that never got to a threshold counts as "at
least": its interval has no end. What is needed to get to a threshold is counted with one recipe for all seeds, out of those that are
best for some budget: the cheapest in the mean. Attention has up to four of these and the MLP of a fixed camera two, which can only
favour attention.

Every method gets its learning rate, all but the MLP of a fixed map also warm-up and weight decay, and attention whether its queries
are learned themselves or as a product with a learned matrix, by successive halving on seeds that nothing is judged on, for every
budget of steps anew; a best rate at an end of those tried with this budget is extended. Where X shows the pose, attention has
normalised keys, which are not in the article, and the MLP that follows the pose reads it from X by sums over channels, then over
tokens. Either was chosen among 14 variants of its side, on seeds that nothing is judged on; before, with the camera turning by 2°,
attention's error was about seven times as high and the MLP's about three times. Rates are constant and parameters averaged, so that
every point of a curve is what a run of that length ends with. An error is relative to the variance of the target: 1 is what its mean
would get, and 90 % of what can be had is an error of 0.1.
"""  # noqa: E501  # its lines are those of the committed page

CHART_WORDS = (
    "Who is ahead, over the jitter of the camera, the samples to train on and the steps: orange where the MLP's error "
    "is lower, purple where the attention's is. The line is where both are alike, a dot where these seeds do not "
    "decide it. In the left panel no method can know the pose; in the middle one X shows it, channels with the "
    "direction of every feature's ray; in the right one it is given: to the MLP as three angles, to attention as the "
    "direction of every token."
)


COSTS_WORDS = (
    "Of one sample of 8×16 features of 16 channels: a multiply-add of a forward pass counts as two FLOPs, and bytes "
    "are those kept for the backward pass. Direct, Q is what is learned; otherwise it is the product of a learned "
    "query a cell and a learned matrix."
)

INDEPENDENT_WORDS = (
    "Own geometry, own MLP, own attention, no line of this package. A figure agrees where both intervals overlap, or, "
    "where theirs has none, where it is within the study's."
)


def primary_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and lines of the primary rows."""
    headings = ("", "measured", "MLP", "attention", "MLP / attention [95 %]", "verdict", "in a sentence")
    lines = [
        (
            row.question, row.measured, row.absolute["MLP"], row.absolute["attention"], *row.value.values(),
            row.verdict,
            row.sentence,
        )
        for row in rows
        if row.primary
    ]  # fmt: skip
    return headings, lines


def block(study: Study, rows: Sequence[Row]) -> str:
    """Return the study's block in the package's README: chart, primary rows, conclusion and theorems."""
    headings, lines = primary_table(rows)
    chosen = (0, 2, 3, 4, 5, 6)
    words = progress_words(study)
    parts = [
        f"**{words}**" if words else "",
        f"![{CHART_WORDS}]({FULL_FOLDER}/crossover.png)" if (study.records.folder / "crossover.png").exists() else "",
        markdown_table([headings[i] for i in chosen], [[line[i] for i in chosen] for line in lines]).strip()
        if lines
        else "",
        "" if words else conclusion(rows),  # it is about all levels
        f"{THEOREMS} All rows, the rules, the costs: [{FULL_FOLDER}/README.md]({FULL_FOLDER}/README.md).",
    ]
    return "\n" + "".join(f"{part}\n\n" for part in parts if part)


def study_readme(study: Study, rows: Sequence[Row], chart: str | None) -> str:
    """Return the README of a study's folder.

    Args:
        study: the study.
        rows: of the study.
        chart: file of the chart, if there is one.
    """
    parts = [
        "# MLP or attention?\n",
        f"Written by `{command(study)}`, never by hand. The plan is [plan.yaml](plan.yaml), every result a line of "
        "[records.jsonl](records.jsonl); the command resumes them in any clone.\n",
        f"**{words}**\n" if (words := progress_words(study)) else "",
        f"![{CHART_WORDS}]({chart})\n\n{CHART_WORDS}\n" if chart else "",
        f"## The primary rows\n\n{markdown_table(*primary_table(rows))}" if any(row.primary for row in rows) else "",
        f"{concluded}\n" if (concluded := conclusion(rows)) else "",
        THEOREMS + "\n",
        "## The article's claims\n",
        markdown_table(("", "the article says", "what was found", "by"), _claims(rows, command(study))),
        "## All rows\n",
        markdown_table(*rows_table(rows)),
        "## How it is judged\n",
        RULES,
        task_rows.RULES if study.plan.task else "",
    ]
    if study.tensor is not None:
        results = study.tensor.results()
        parts += [
            "## What a method costs\n",
            COSTS_WORDS + "\n",
            markdown_table(*costs_table(results)),
            "## Compared with an independent re-implementation\n",
            INDEPENDENT_WORDS + "\n",
            markdown_table(*compared(results)),
        ]
    return "\n".join(part for part in parts if part)


def rows_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and lines of all rows, by claim."""
    ordered = sorted(
        rows, key=lambda row: (not row.claim.startswith("A"), int(row.claim[1:]) if row.claim[1:].isdigit() else 0)
    )
    lines: list[tuple[str, ...]] = [
        (
            row.claim, row.question, row.measured,
            "<br>".join(f"{name}: {value}" if name else value for name, value in row.value.items()),
            "<br>".join(f"{name}: {value}" for name, value in row.absolute.items()), row.verdict,
        )
        for row in ordered
    ]  # fmt: skip
    return ("claim", "question", "measured", "value [95 %]", "each", "verdict"), lines


def command(study: Study) -> str:
    """Return the command that runs the study."""
    given = f" plan=full folder={FULL_FOLDER}" if study.records.folder.resolve() == FULL else ""
    return f"python -m bevreshape.study{given}"


def costs_table(results: Results) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and lines of the costs of methods."""
    figures = ("parameters", "flops", "bytes")
    lines: list[tuple[str, ...]] = []
    for setting in map(Setting, METHODS):
        for query in setting.queries:
            found = results.costs[setting, query]
            lines.append((called(setting.method, query), *(f"{found[what]:,}" for what in figures)))
    return ("method", "parameters", "FLOPs", "bytes"), lines


def _claims(rows: Sequence[Row], study: str) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for claim in CLAIMS:
        own = [f"{row.question}: {_finding(row)}" for row in rows if row.claim == claim.number]
        answer = claim.answer or "<br>".join(own) or "not done yet"
        found.append((claim.number, claim.text, answer, f"`{claim.command or study}`"))
    return found


def _finding(row: Row) -> str:
    """Return the verdict, or the measured values if there is no rule for a verdict."""
    return (
        "; ".join(f"{name}: {value}" for name, value in row.value.items()) if row.verdict == "measured" else row.verdict
    )


def progress_words(study: Study) -> str:
    """Return how much of the study is done; empty if it is complete."""
    missing, planned = len(study.missing), len(study.planned)
    if not missing:
        return ""
    return (
        f"Not complete: {planned - missing} of {planned} entries are done. Rows whose entries are missing are left "
        "out; started again, the study resumes."
    )
