"""Map the bytes of label images to names, as ``calibration.json`` defines them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bevreshape.data.names import check_name
from bevreshape.data.sources.folder.entries import check_keys
from bevreshape.errors import InputError, shown, suggest
from bevreshape.geometry.ipm import UNLABELED
from bevreshape.storage.store_path import DataPath


@dataclass(frozen=True)
class LabelMap:
    """Map the bytes of a label image to names.

    Attributes:
        members: for every name, (256,) bool, its byte values.
        void: (256,) bool, values of unlabelled pixels.
        allowed: (256,) bool, values that may occur at all.
    """

    members: dict[str, Tensor]
    void: Tensor
    allowed: Tensor

    def any_of(self, names: Sequence[str], where: str) -> Tensor:
        """Return the values of all ``names``, (256,) bool.

        Raises:
            InputError: when a name is not one of the calibration's.
        """
        for name in names:
            if name not in self.members:
                raise InputError(f"{where}: {name!r} is not labelled in this folder; {suggest(name, self.members)}")
        return torch.stack([self.members[name] for name in names]).any(0)

    def check(self, labels: Tensor, path: DataPath) -> None:
        """Compare the values of a label image with the ones that may occur.

        Raises:
            InputError: naming the file and the values that the calibration does not define.
        """
        unknown = (torch.bincount(labels.flatten(), minlength=256) > 0) & ~self.allowed
        if unknown.any():
            ids = ", ".join(str(i) for i in unknown.nonzero().flatten().tolist())
            raise InputError(
                f"{path}: the label holds {ids}, which calibration.json does not define (it lists "
                f"{', '.join(self.members)}); add them there, to 'void' if they are unknown"
            )


def read_bev_label_map(bev: Any, where: str) -> LabelMap:
    """Return the label map of the section ``bev``: a bit for each class, or an id for each."""
    check_keys(bev, {"grid", "bits", "ids", "void"}, {"grid"}, where)
    if ("bits" in bev) == ("ids" in bev):
        raise InputError(f"{where} must have either 'bits' (names from bit 0 on) or 'ids' (a name for every id)")
    if "ids" in bev:
        return read_id_label_map({key: value for key, value in bev.items() if key != "grid"}, where)
    if "void" in bev:
        raise InputError(f"{where}: 'void' goes with 'ids'; every byte of 'bits' has a meaning, leave it out")
    if not isinstance(bev["bits"], list) or not 1 <= len(bev["bits"]) <= 8:
        raise InputError(
            f"{where}: bits is {shown(bev['bits'])}; it must be a list of one to eight names, from bit 0 on"
        )
    names = unique_names(bev["bits"], f"{where}: bits")
    values = torch.arange(256)
    members = {name: (values >> bit & 1).bool() for bit, name in enumerate(names)}
    return LabelMap(members, torch.zeros(256, dtype=torch.bool), values < 1 << len(names))


def unique_names(names: list[Any], where: str) -> tuple[str, ...]:
    """Return names, which must be unique."""
    for number, name in enumerate(names):
        if check_name(name, f"{where}: name") in names[:number]:
            raise InputError(f"{where}: {name!r} is named twice; rename or remove one")
    return tuple(names)


def read_id_label_map(labels: Any, where: str) -> LabelMap:
    """Return the label map of a section with ``ids``."""
    check_keys(labels, {"ids", "void"}, {"ids"}, where)
    given, void_ids = labels["ids"], labels.get("void", [])
    if not isinstance(given, dict) or not given:
        raise InputError(f'{where}: ids is {shown(given)}; it must map ids to names, such as {{"3": "road"}}')
    if not isinstance(void_ids, list):
        raise InputError(f"{where}: void is {shown(void_ids)}; it must be a list of ids, such as [11]")
    members: dict[str, Tensor] = {}
    named: dict[int, str] = {}
    for key, name in given.items():
        number = _byte(key, where)
        if number in named:
            raise InputError(f"{where}: id {number} is there twice, as {named[number]!r} and {shown(name)}; remove one")
        named[number] = check_name(name, f"{where}: id {number}: name")
        members.setdefault(name, torch.zeros(256, dtype=torch.bool))[number] = True
    void = torch.zeros(256, dtype=torch.bool)
    void[[UNLABELED, *(_byte(value, where) for value in void_ids)]] = True
    for name, values in members.items():
        if (values & void).any():
            raise InputError(
                f"{where}: an id of {name!r} is void as well ({UNLABELED} always is); number that class differently"
            )
    allowed = torch.stack([*members.values(), void]).any(0)
    return LabelMap(members, void, allowed)


def _byte(value: Any, where: str) -> int:
    written = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not re.fullmatch("[0-9]{1,3}", written) or int(written) > 255:
        raise InputError(f"{where}: {shown(value)} is not an id; ids are integers from 0 to 255")
    return int(written)
