"""A tensor that says it is on ``cuda:0`` and holds a real CPU tensor, and a mode in which the device exists."""

from typing import Any

import torch
from cuda_findings import note
from cuda_rules import Call, mixed, wait
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
HALF = (torch.float16, torch.bfloat16)


class PretendedTensor(Tensor):
    """A tensor on the pretended device; its values are those of ``held``."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "PretendedTensor":
        out = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=CUDA, requires_grad=False,
        )  # fmt: skip
        out.held = held
        return out

    def __repr__(self) -> str:
        return f"PretendedTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        note("wait", "tolist")
        return self.held.tolist()


class Machine(TorchDispatchMode):
    """Inside of it, whatever is made with ``device="cuda"`` is a :class:`PretendedTensor`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the held values; note what CUDA would refuse or wait for."""
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    ours = [one for one in tensors if isinstance(one, PretendedTensor)]
    call = Call(name_of(func), args, kwargs, ours, [one for one in tensors if not isinstance(one, PretendedTensor)])
    refused = mixed(call)
    if refused is not None:
        note("mixed", refused)
        raise RuntimeError(f"two devices, cuda:0 and cpu: {refused}")
    waited = wait(call)
    if waited is not None:
        note("wait", waited)
    device = kwargs.get("device")
    on_device = bool(ours) if device is None else torch.device(device).type == "cuda"
    result = compute(func, call.name, *held((args, kwargs)), on_device)
    if not on_device:
        return result
    known = {id(one.held): one for one in ours}  # an operation in place returns its argument
    return tree_map(lambda made: known[id(made)] if id(made) in known else on_cuda(made), result)


def compute(func: Any, name: str, args: Any, kwargs: dict[str, Any], on_device: bool) -> Any:
    """Run an operation on the CPU; in float32 where the CPU has no kernel of 16 bits."""
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": CPU}
    if on_device:
        kwargs.pop("pin_memory", None)
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError):
        if not on_device:
            raise
        half = [one.dtype for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor) and one.dtype in HALF]
        if name in ("aten._softmax_backward_data", "aten._log_softmax_backward_data"):
            half, args = [args[3]], (*args[:3], torch.float32)
        if name in ("aten._softmax", "aten._log_softmax"):  # from 16 bits to float32, on CUDA alone
            return func(args[0].float(), args[1], False)
        if not half:
            raise
        args, kwargs = tree_map(widened, (args, kwargs))
        return tree_map(
            lambda one: one.to(half[0]) if isinstance(one, Tensor) and one.is_floating_point() else one,
            func(*args, **kwargs),
        )


def widened(value: Any) -> Any:
    """Return a tensor of 16 bits in float32; other values as they are."""
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def name_of(func: Any) -> str:
    """Return the name of an operation without its overload."""
    return str(func).rsplit(".", 1)[0] if str(func).count(".") > 1 else str(func)


def held(values: Any) -> Any:
    """Return nested values with the held tensors."""
    return tree_map(lambda one: one.held if isinstance(one, PretendedTensor) else one, values)


def on_cuda(value: Any) -> Any:
    """Return a tensor on the pretended device; other values as they are."""
    return PretendedTensor(value) if isinstance(value, Tensor) and not isinstance(value, PretendedTensor) else value
