"""CUDA's rules: which operations mix devices, and which make the host wait for the device."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

COPIES = {"aten._to_copy", "aten.copy_", "aten._copy_from"}
INDEXING = {"aten.index", "aten.index_put", "aten.index_put_", "aten._unsafe_index", "aten._index_put_impl_"}
READS_A_VALUE = {"aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.equal"}
SHAPED_BY_VALUES = {
    "aten.nonzero", "aten._unique2", "aten.unique_dim", "aten.unique_consecutive", "aten.masked_select",
    "aten.bincount",
}  # fmt: skip
"""Operations whose result has a size that only the device knows."""


class Call(NamedTuple):
    """One operation.

    Attributes:
        name: ``aten.…``, without its overload.
        args: arguments by position.
        kwargs: arguments by name.
        ours: the operands on the pretended device.
        others: the operands on the CPU.
    """

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    ours: list[Tensor]
    others: list[Tensor]

    @property
    def first_is_ours(self) -> bool:
        """Return whether the first argument is on the device."""
        return any(self.args and self.args[0] is one for one in self.ours)


def mixed(call: Call) -> str | None:
    """Return why CUDA refuses the operands, or ``None``. It accepts scalars of the CPU, and indices."""
    if not call.ours or call.name in COPIES:
        return None
    if call.name in INDEXING:
        return None if call.first_is_ours else f"{call.name} of a CPU tensor by CUDA indices"
    large = [tuple(one.shape) for one in call.others if one.ndim > 0]
    return f"{call.name}: {[tuple(one.shape) for one in call.ours][:3]} with {large[:3]} of the CPU" if large else None


def wait(call: Call) -> str | None:
    """Return why the host waits for the device, or ``None``.

    A copy from ordinary memory that is not ``non_blocking`` synchronizes the stream, in both directions.
    """
    name, device = call.name, call.kwargs.get("device")
    target = None if device is None else torch.device(device).type
    if name == "aten._to_copy" and not call.kwargs.get("non_blocking"):
        if call.ours and target == "cpu":
            return f"copy of {tuple(call.ours[0].shape)} to the host"
        if call.others and target == "cuda":
            return f"copy of {tuple(call.others[0].shape)} to the device"
    if name == "aten.copy_" and call.ours and call.others and not (len(call.args) > 2 and call.args[2]):
        return f"copy_ of {tuple(call.args[0].shape)} between host and device"
    if not call.ours:
        return None
    if name in READS_A_VALUE or name in SHAPED_BY_VALUES:
        return name
    if name in INDEXING and call.others:
        return f"{name} by indices of the CPU"
    if name in INDEXING and any(one.dtype == torch.bool for one in _indices(call)):
        return f"{name} by a mask"
    if name == "aten.repeat_interleave" and call.kwargs.get("output_size") is None:
        return name
    return None


def _indices(call: Call) -> list[Tensor]:
    return [one for one in call.args[1] if isinstance(one, Tensor)]
