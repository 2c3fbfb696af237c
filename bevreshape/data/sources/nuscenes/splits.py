"""Split keyframes: the official splits, or regions that do not overlap."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bevreshape.data.sources.nuscenes.maps import reach
from bevreshape.data.sources.nuscenes.prepared import Index
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid

Division = Literal["official", "geographic"]

SHARES = {"val": 0.15, "test": 0.15}
"""Shares of the keyframes of every city; the rest is for training."""

Numbers = NDArray[np.intp]


def split_keyframes(index: Index, split: str, grid: BEVGrid) -> Mapping[str, Numbers]:
    """Return indices of the keyframes of ``train``, ``val`` and ``test``.

    ``official`` is the release's own. The labels of its test split are not public, so ``test`` is ``val``, as in all
    published figures. Training and validation share streets: the training drives cover most places of the validation
    split. ``geographic`` cuts every city twice from north to south: the western 15 % of keyframes are for test, the
    next 15 % for validation, all others for training. Keyframes whose cells might cross a cut are left out, so the
    splits share no ground.

    Raises:
        InputError: when a split would be empty.
    """
    of_scene = index.scene_of()
    if split == "official":
        named = np.array([scene["split"] for scene in index.scenes])[of_scene]
        chosen = {"train": np.flatnonzero(named == "train"), "val": np.flatnonzero(named == "val")}
        chosen["test"] = chosen["val"]
    else:
        chosen = _apart(index, of_scene, reach(grid))
    for name, numbers in chosen.items():
        if not len(numbers):
            raise InputError(
                f"data.split={split}: no keyframe is left for {name}; prepare a larger release, or set data.split="
                f"{'geographic' if split == 'official' else 'official'}"
            )
    return chosen


def _apart(index: Index, of_scene: Numbers, reach_m: float) -> dict[str, Numbers]:
    cities = np.array([scene["location"] for scene in index.scenes])[of_scene]
    labelled = np.array([scene["split"] != "test" for scene in index.scenes])[of_scene]
    found: dict[str, list[Numbers]] = {"train": [], "val": [], "test": []}
    for city in sorted(set(cities)):
        own = np.flatnonzero((cities == city) & labelled)
        if not len(own):
            continue
        east = index.places[own, 0]
        first, second = np.quantile(east, [SHARES["test"], SHARES["test"] + SHARES["val"]])
        found["test"].append(own[east < first - reach_m])
        found["val"].append(own[(east >= first + reach_m) & (east < second - reach_m)])
        found["train"].append(own[east >= second + reach_m])
    return {name: np.concatenate([np.empty(0, np.intp), *parts]) for name, parts in found.items()}
