"""Tensors of which every process holds a shard, as ``torch.distributed.fsdp.fully_shard`` leaves them (DTensor)."""

from typing import Any

from torch import Tensor


def is_view(value: Tensor) -> bool:
    """Return whether autograd tracks a tensor as a view of another one."""
    return value._base is not None


def whole(value: Tensor) -> Tensor:
    """Return a tensor with all of its values; all processes must call it for a shard. Others are returned as given."""
    gather: Any = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def shard_like(value: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor sharded as another of its shape, on its device; as given if the other is no shard.

    All processes must call it. They get the values of the first one.
    """
    mesh: Any = getattr(other, "device_mesh", None)
    if mesh is None:
        return value
    from torch.distributed.tensor import distribute_tensor  # slow to import

    return distribute_tensor(value.to(other.device).contiguous(), mesh, other.placements)  # type: ignore[attr-defined]
