"""Name runs in tables and figures by their distinguishing settings."""

from collections.abc import Collection, Sequence
from typing import Any

from bevreshape.reporting.runs import Run, differing
from bevreshape.reporting.tables import short_names
from bevreshape.training.loggers import snake_case

GROUPS = ("reshaper", "data", "encoder", "head", "objective", "metric", "optimizer", "augment", "trainer")
"""Prefixes of settings, the most informative first."""

LONGEST = 28
"""Highest number of characters of a value in a name."""


def labels(rows: Sequence[list[Run]], without: Collection[str] = ()) -> list[str]:
    """Name every row of runs: its kind, and as few settings as distinguish the rows of a kind.

    Args:
        rows: runs of a row differ only in their seed.
        without: settings to leave out; rows that differ only in these share a name.
    """
    keys = sorted((key for key in differing(rows) if key not in without), key=_rank)
    kinds = _shortened_kinds([runs[0].kind for runs in rows])
    values_by_row = [{key: _written(key, runs[0]) for key in keys} for runs in rows]
    chosen: dict[str, list[str]] = {}
    for kind in dict.fromkeys(kinds):
        own = [
            {key: value and _cut(value) for key, value in values.items()}
            for values, of in zip(values_by_row, kinds, strict=True)
            if of == kind
        ]
        picked: list[str] = []
        for key in keys:
            if _count(own, [*picked, key]) > _count(own, picked):
                picked.append(key)
        chosen[kind] = picked
    every = list(dict.fromkeys(key for picked in chosen.values() for key in picked))
    names = dict(zip(every, short_names([key.removesuffix("._target_") for key in every]), strict=True))
    found: dict[tuple[str, ...], str] = {}
    result = []
    for kind, values in zip(kinds, values_by_row, strict=True):
        identity = (kind, *(str(values[key]) for key in keys))
        parts = [f"{names[key]}={_cut(value)}" for key in chosen[kind] if (value := values[key]) is not None]
        name = " ".join([kind, *parts])
        if identity not in found:
            same = sum(other == name or other.startswith(f"{name} #") for other in found.values())
            found[identity] = f"{name} #{same + 1}" if same else name
        result.append(found[identity])
    return result


def distinguishing_settings(rows: Sequence[list[Run]]) -> list[str]:
    """Return, for every row, all settings in which the rows differ, as ``key=value``."""
    keys = sorted(differing(rows), key=_rank)
    names = short_names([key.removesuffix("._target_") for key in keys])
    written = [[(name, _written(key, runs[0])) for key, name in zip(keys, names, strict=True)] for runs in rows]
    return [", ".join(f"{name}={value}" for name, value in values if value is not None) for values in written]


def figure_text(text: str) -> str:
    """Escape text for matplotlib, on one line: dollars begin no formula, and leading underscores do not hide it."""
    plain = " ".join(text.split()).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def _rank(key: str) -> tuple[int, bool]:
    group = key.split(".")[0]
    return GROUPS.index(group) if group in GROUPS else len(GROUPS), not key.endswith("_target_")


def _written(key: str, run: Run) -> str | None:
    if key not in run.settings:
        return None
    value: Any = run.settings[key]
    return snake_case(str(value).rpartition(".")[2]) if key.endswith("_target_") else " ".join(str(value).split())


def _count(rows: Sequence[dict[str, str | None]], keys: Sequence[str]) -> int:
    return len({tuple(values[key] for key in keys) for values in rows})


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _shortened_kinds(kinds: Sequence[str]) -> list[str]:
    """Remove the common words at the end, such as the data's name."""
    parts = [kind.split("-") for kind in kinds]
    while len(set(kinds)) > 1 and all(len(words) > 1 for words in parts) and len({words[-1] for words in parts}) == 1:
        parts = [words[:-1] for words in parts]
    return ["-".join(words) for words in parts]
