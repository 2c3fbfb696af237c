"""A study in Markdown: the README of its folder, and the block in the package's README."""

from collections.abc import Sequence
from pathlib import Path

from bevreshape.experiments import task_rows
from bevreshape.experiments.article import CLAIMS, THEOREMS
from bevreshape.experiments.conclusion import CONCLUSION, FINDINGS
from bevreshape.experiments.curves import CURVES_TITLE, CURVES_WORDS
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
Every row compares two methods seed by seed, on the same samples. Its value is the geometric mean of the ratios of their errors, steps,
FLOPs or samples, with a 95 % interval (Student's t of the logarithms). The verdict is about the method it names: *ahead* if the whole
interval is more than 10 % in its favour, *behind* if it is more than 10 % against it. If the interval is within ± 10 %, both are
*alike*; otherwise the row is *open*, not decided by these seeds.

The six primary rows were named before anything was measured. Six rows are six chances to be wrong, so their verdicts follow Holm's
procedure, which keeps the probability of any wrong one below 5 %. Control rows must be *alike*: where the input does not hold the
pose, no method can be ahead; and an MLP is the same if its tokens and the columns of W are permuted alike before training. So is
attention with learned encodings, which is why its ratio in A12 is 1; what A12 measures is sinusoidal encodings, which stay in place.
Controls check the program; tests count on null data how often the rule itself is wrong.

A run that misses a threshold counts as "at least", and its interval has no end. The cost of reaching a threshold uses one recipe for
all seeds: of those that are best for some budget, the one that is cheapest in the mean. Attention has up to four of these and the MLP
of a fixed camera two, which can only favour attention.

Successive halving tunes every method for every budget of steps, on seeds that judge nothing: the learning rate; for all but the MLP
of a fixed map also warm-up and weight decay; for attention also the form of Q, learned directly or as a product with a learned matrix.
If the best rate is at an end of those tried, more are tried beyond it; where none has learned anything, none is dropped. For the
primary row on samples, every number of samples is tuned; elsewhere, a number of samples or a jitter between tuned ones has the recipe
of the nearest. With the pose in X, attention normalises its keys, unlike in the article, and the MLP reads the pose by sums over
channels, then over tokens. Each was chosen among 14 variants, on seeds that judge nothing, and has a lower error for it: with the
camera turning by 2°, by a factor of about seven (attention) and three (MLP).

Rates are constant and parameters averaged, so that every point of a curve is what a run of that length ends with. Errors are relative
to the variance of the target: predicting its mean has an error of 1, and 90 % of the variance is reached at an error of 0.1.
"""  # noqa: E501  # its lines are those of the committed page

CHART_TITLE = "Which method has the lower error, by jitter of the camera, training samples and steps"

CHART_WORDS = (
    "Which method has the lower error: the MLP where it is orange, attention where it is purple; darker means a larger "
    "ratio, up to 20 or more. Across: the jitter of the camera, the standard deviation of its yaw. Up: the number of "
    "training samples; ∞ means new ones in every step. A line marks equal errors, a dot a cell that these seeds do not "
    "decide. Left: the pose is not in the input, so that no method can follow it; at 0° the camera is fixed. Middle: "
    "channels of X hold the direction of each feature's ray. Right: the pose is given, to the MLP as three angles, to "
    "attention as the direction of each token's ray."
)


COSTS_WORDS = (
    "Of one sample of 8×16 features of 16 channels in a training batch: a multiply-add of a forward pass counts as two "
    "FLOPs, and bytes are those kept for the backward pass. A direct Q is learned itself; otherwise it is the product "
    "of a learned query per cell and a learned matrix."
)

INDEPENDENT_WORDS = (
    "Own geometry, own MLP, own attention, no line of this package. A figure agrees where both intervals overlap, or, "
    "where theirs has none, where it is within the study's; a wide interval agrees with almost anything. Steps to 90 % "
    "are counted with the recipe that is fastest, of any budget."
)


def primary_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and lines of the primary rows."""
    headings = ("", "measured", "MLP", "attention", "MLP / attention [95 %]", "verdict", "finding")
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
    words = progress_words(study)
    parts = [
        f"**{words}**" if words else "",
        _chart_with_words(f"{FULL_FOLDER}/crossover.png") if (study.records.folder / "crossover.png").exists() else "",
        markdown_table(headings, lines).strip() if lines else "",
        "" if words else CONCLUSION.of(rows),  # it is about all levels
        f"{THEOREMS} All rows, the rules, the costs: [{FULL_FOLDER}/README.md]({FULL_FOLDER}/README.md).",
    ]
    return "\n" + "".join(f"{part}\n\n" for part in parts if part)


def _chart_with_words(file: str) -> str:
    return f"![{CHART_TITLE}]({file})<br>\n{CHART_WORDS}"


def study_readme(study: Study, rows: Sequence[Row], chart: str | None, curves: str | None) -> str:
    """Return the README of a study's folder.

    Args:
        study: the study.
        rows: of the study.
        chart: file of the chart, if there is one.
        curves: likewise of the learning curves.
    """
    parts = [
        "# MLP or attention?\n",
        f"Written by `{command(study)}`, never by hand. The plan is [plan.yaml](plan.yaml), every result a line of "
        "[records.jsonl](records.jsonl); the command resumes them in any clone.\n",
        f"**{words}**\n" if (words := progress_words(study)) else "",
        f"{_chart_with_words(chart)}\n" if chart else "",
        f"## The primary rows\n\n{markdown_table(*primary_table(rows))}" if any(row.primary for row in rows) else "",
        f"{concluded}\n" if (concluded := CONCLUSION.of(rows)) else "",
        THEOREMS + "\n",
        "## The article's claims\n",
        markdown_table(("", "the article says", "what was found", "by"), _claims(rows, command(study))),
        f"## Curves\n\n![{CURVES_TITLE}]({curves})\n\n{CURVES_WORDS}\n" if curves else "",
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
    return ("claim", "question", "measured", "value [95 %]", "per method", "verdict"), lines


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
        finding = FINDINGS[claim.number].of(rows) if claim.number in FINDINGS else claim.answer
        own = [f"{row.question}: {_finding(row)}" for row in rows if row.claim == claim.number]
        answer = finding or "<br>".join(own) or "not done yet"
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
