"""``trainer.strategy=fsdp``: where a run can be sharded, and by which blocks."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bevreshape.bev_spec import BEVSpec
from bevreshape.errors import InputError
from bevreshape.model import BEVModel
from bevreshape.ops.shards import is_view
from bevreshape.training.hardware import on_gpu, process_count
from bevreshape.training.optimizer import OptimizerSchedule, TorchOptimizer
from bevreshape.training.rehearsal import rehearse

BLOCK_PARAMETERS = 1_000_000
"""Parameters of the smallest block that is gathered by itself; a collective for less costs more than it frees."""

WHOLE_TENSORS = ("Adafactor", "Rprop")
"""Optimizers of torch whose steps fail on shards."""


def is_sharded(cfg: Mapping[str, Any]) -> bool:
    """Return whether the ``trainer`` group asks for FSDP."""
    return str(cfg.get("strategy")) == "fsdp"


def check_sharding(cfg: Mapping[str, Any]) -> None:
    """Refuse FSDP where the ``trainer`` group or this machine does not allow it.

    Raises:
        InputError: names the option, its value and the remedy.
    """
    if not is_sharded(cfg):
        return
    if not on_gpu(cfg):
        raise InputError(
            f"trainer.strategy=fsdp shards a model over several GPUs, but trainer.accelerator={cfg.get('accelerator')} "
            "trains on a CPU here; set trainer.strategy=ddp"
        )
    if process_count(cfg) * cfg.get("num_nodes", 1) == 1:
        raise InputError(
            f"trainer.strategy=fsdp shards a model over several GPUs, but trainer.devices={cfg.get('devices', 1)} is "
            "one; set trainer.devices=2 or more, or trainer.strategy=auto"
        )
    refused = {
        "compile": ("gathers shards between the parts of a step, which is compiled as one", "false", (None, False)),
        "static_rig": ("holds shards of the weights that some geometries depend on", "false", (None, False)),
        "inference_mode": ("validates with weights that are trained afterwards", "false", (None, False)),
        "precision": ("scales no losses", "bf16-mixed", (None, "32-true", "bf16-mixed")),
    }
    for key, (reason, remedy, possible) in refused.items():
        if cfg.get(key) not in possible:
            raise InputError(
                f"trainer.{key}={cfg[key]}: trainer.strategy=fsdp {reason}; set trainer.{key}={remedy}, or "
                "trainer.strategy=ddp"
            )


def check_evaluated_whole(cfg: Mapping[str, Any]) -> None:
    """Refuse FSDP outside of training.

    Raises:
        InputError: when the ``trainer`` group asks for it.
    """
    if is_sharded(cfg):
        raise InputError(
            "trainer.strategy=fsdp is for training; an evaluation has no gradients or moments to share out, and holds "
            "the model in every process; set trainer.strategy=auto"
        )


def check_shardable(model: nn.Module, optimizer: OptimizerSchedule) -> None:
    """Refuse a model or an optimizer that cannot be sharded.

    Raises:
        InputError: names the parameter or the optimizer, and the remedy.
    """
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise InputError(
            f"trainer.strategy=fsdp: the parameter {scalars[0]} has the shape (), which has no rows to share out; give "
            "it the shape (1,), or set trainer.strategy=ddp"
        )
    if isinstance(optimizer, TorchOptimizer):
        name = getattr(getattr(optimizer.optimizer, "func", optimizer.optimizer), "__name__", "")
        if name in WHOLE_TENSORS:
            raise InputError(
                f"optimizer.optimizer={name}: trainer.strategy=fsdp gives it shards, and its step needs whole tensors; "
                "choose another optimizer such as AdamW, or set trainer.strategy=ddp"
            )


def find_blocks(model: BEVModel, spec: BEVSpec) -> list[str]:
    """Return the names of the encoder's blocks to gather one at a time, outer ones first.

    They are elements of a sequence or a list that the encoder calls, with :data:`BLOCK_PARAMETERS` or more. All else
    of the model is gathered for the whole step; so is a block that returns a view, since an operation in place on it
    would undo the hook that gathers the block for its gradients.

    Args:
        model: whose running statistics change, so do not train it afterwards.
        spec: of its data.
    """
    called: set[str] = set()

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and not is_view(output):
            called.add(name)

    for name, part in model.encoder.named_modules(prefix="encoder"):
        part.register_forward_hook(lambda module, given, output, name=name: note(name, output))
    rehearse(model, spec, 2)
    return [
        f"{name}.{number}"
        for name, part in model.encoder.named_modules(prefix="encoder")
        if isinstance(part, nn.Sequential | nn.ModuleList)
        for number, element in part.named_children()
        if f"{name}.{number}" in called
        and sum(parameter.numel() for parameter in element.parameters()) >= BLOCK_PARAMETERS
    ]
