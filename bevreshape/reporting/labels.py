"""What runs are called in tables and figures: what tells them apart, in few words."""

from collections.abc import Collection, Sequence
from typing import Any

from bevreshape.reporting.runs import Run, differing
from bevreshape.reporting.tables import short_names
from bevreshape.training.loggers import snake_case

GROUPS = ("reshaper", "data", "encoder", "head", "objective", "metric", "optimizer", "augment", "trainer")
"""Of settings, the first of which says most about a run."""

LONGEST = 28
"""Characters of a value in a name."""


def labels(rows: Sequence[list[Run]], without: Collection[str] = ()) -> list[str]:
    """A name for every row of runs: its kind, and of the settings as few as tell the rows of a kind apart.

    Args:
        rows: runs that differ in nothing but their seed each.
        without: settings that are not told; rows that differ in these alone share a name.
    """
    keys = sorted((key for key in differing(rows) if key not in without), key=_rank)
    kinds = _shortened_kinds([runs[0].kind for runs in rows])
    told = [{key: _written(key, runs[0]) for key in keys} for runs in rows]
    chosen: dict[str, list[str]] = {}
    for kind in dict.fromkeys(kinds):
        own = [
            {key: value and _cut(value) for key, value in values.items()}
            for values, of in zip(told, kinds, strict=True)
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
    for kind, values in zip(kinds, told, strict=True):
        identity = (kind, *(str(values[key]) for key in keys))
        parts = [f"{names[key]}={_cut(value)}" for key in chosen[kind] if (value := values[key]) is not None]
        name = " ".join([kind, *parts])
        if identity not in found:
            same = sum(other == name or other.startswith(f"{name} #") for other in found.values())
            found[identity] = f"{name} #{same + 1}" if same else name
        result.append(found[identity])
    return result


def told_apart(rows: Sequence[list[Run]]) -> list[str]:
    """Of every row all settings in which the rows differ, as ``key=value``."""
    keys = sorted(differing(rows), key=_rank)
    names = short_names([key.removesuffix("._target_") for key in keys])
    written = [[(name, _written(key, runs[0])) for key, name in zip(keys, names, strict=True)] for runs in rows]
    return [", ".join(f"{name}={value}" for name, value in values if value is not None) for values in written]


def figure_text(text: str) -> str:
    """Text on one line that matplotlib draws as it is: dollars begin no formula there, nor do underscores hide it."""
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
    """Without the words at the end that all have, such as the data's name."""
    parts = [kind.split("-") for kind in kinds]
    while len(set(kinds)) > 1 and all(len(words) > 1 for words in parts) and len({words[-1] for words in parts}) == 1:
        parts = [words[:-1] for words in parts]
    return ["-".join(words) for words in parts]
