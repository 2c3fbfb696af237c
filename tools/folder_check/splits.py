"""Check the lists of a folder's splits."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bevreshape.data.batch import SPLITS
from bevreshape.data.sources.folder.dataset import CameraFolderDataset
from bevreshape.data.sources.folder.source import read_split
from bevreshape.errors import InputError
from bevreshape.storage.files import visible


def check_splits(root: Path, frames: CameraFolderDataset) -> tuple[Table, list[str], list[str]]:
    """Check the lists under ``splits/``; return a table of them, faults, and doubts."""
    table, faults, remarkable = Table("split", "frames", "remark", box=SIMPLE_HEAD), [], []
    seen: dict[str, str] = {}
    paths = visible(root / "splits", "*.txt") if (root / "splits").exists() else []
    for path in paths:
        try:
            names = read_split(path)
        except InputError as error:
            faults.append(str(error))
            table.add_row(path.stem, "", "cannot be used")
            continue
        unknown = sorted(set(names) - set(frames.names))
        shared = sorted(name for name in names if name in seen)
        found = [f"{_listed(unknown)} without an image"] if unknown else []
        found += [f"{_listed(shared)} also in {seen[shared[0]]}: results would be too good"] if shared else []
        faults += [f"{path}: {remark}" for remark in found]
        seen |= dict.fromkeys(names, path.stem)
        table.add_row(path.stem, str(len(names)), "; ".join(found))
    unused = [name for name in frames.names if name not in seen]
    if paths and unused:
        table.caption = f"in no split: {_listed(unused)}"
    given = {path.stem for path in paths}
    if "train" in given and set(SPLITS) - given:
        missing = ", ".join(f"{name}.txt" for name in SPLITS if name not in given)
        remarkable.append(f"splits: there is no {missing}; training needs it, or data.splits")
    for one, other in _copies(frames, seen):
        remarkable.append(
            f"splits: {one!r} of {seen[one]} and {other!r} of {seen[other]} have the same image: results would be too "
            "good"
        )
    return table, faults, remarkable


def _copies(frames: CameraFolderDataset, splits: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield frames of different splits whose first images are the same file, byte for byte."""
    paths: dict[str, Path] = {}
    for index, name in enumerate(frames.names):
        found = (frames.image_path(index, number) for number in range(len(frames.calibration.cameras)))
        path = next((path for path in found if path is not None), None)
        if name in splits and isinstance(path, Path):
            paths[name] = path
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, path in paths.items():
        by_size[path.stat().st_size].append(name)
    for names in by_size.values():
        first: dict[bytes, str] = {}
        for name in names if len({splits[name] for name in names}) > 1 else ():
            original = first.setdefault(hashlib.blake2b(paths[name].read_bytes()).digest(), name)
            if splits[original] != splits[name]:
                yield original, name


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
