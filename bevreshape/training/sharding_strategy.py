"""Training whose parameters, gradients and moments are shared out among the processes (FSDP)."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer

from bevreshape.ops.shards import shard_like, whole


class ShardingStrategy(DDPStrategy):
    """Train ``task.model`` by PyTorch's ``fully_shard`` (FSDP2; Zhao et al. 2023, arXiv:2304.11277).

    Every process holds a shard of each parameter, of its gradient and of its moments. A block is gathered while it
    computes; whatever belongs to no block is gathered for the whole step. Parameters keep their names and shapes.
    Weight decay, clipping by the global norm and mixed precision therefore act as in other runs, and a step gives the
    weights that DDP gives. Checkpoints hold whole tensors, as those of any other run.

    Lightning's own FSDPStrategy flattens parameters, refuses to clip by their norm, and stores running statistics in
    half precision.

    Args:
        blocks: names of parts of ``task.model`` that are gathered one at a time; the model must call each as a module.
    """

    def __init__(self, blocks: Sequence[str]) -> None:
        super().__init__()
        self._blocks = blocks

    def setup(self, trainer: Trainer) -> None:
        Strategy.setup(self, trainer)  # DDP's own would copy parameters between the processes

    def _setup_model(self, model: nn.Module) -> nn.Module:  # type: ignore[override]
        return model

    def model_to_device(self) -> None:
        """Shard the model block by block, so that no device holds all of it, and move the rest of the task."""
        assert self.lightning_module is not None
        model: Any = self.lightning_module.model
        if not isinstance(model, FSDPModule):  # as it is after the fit
            if self._layer_sync is not None:
                self._layer_sync.apply(self.lightning_module)
            for parameter in model.parameters():
                parameter.data = parameter.data.contiguous()  # not channels_last, which is refused
            mesh = init_device_mesh(self.root_device.type, (self.world_size,))
            for name in reversed(self._blocks):  # inner ones first
                fully_shard(model.get_submodule(name), mesh=mesh)
            fully_shard(model, mesh=mesh)
        super().model_to_device()

    def on_validation_start(self) -> None:
        self._share_statistics()

    def on_test_start(self) -> None:
        self._share_statistics()

    def _share_statistics(self) -> None:
        """Give every process the running statistics of the first one, which its checkpoints hold, as DDP does."""
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            if buffer.is_floating_point():
                distributed.broadcast(buffer, 0)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self._gathered(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: Any = super().optimizer_state(optimizer)
        return {**state, "state": {key: self._gathered(own) for key, own in state["state"].items()}}

    def _gathered(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state with whole tensors. Only the first process, which writes them, keeps these."""
        gathered = {}
        for key, value in state.items():
            found = whole(value) if isinstance(value, Tensor) else value
            if found is value or self.is_global_zero:
                gathered[key] = found if found is value else found.cpu()
        return gathered

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        sharded = []
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            moments = {
                number: {key: _shard_moment(value, parameters[number]) for key, value in own.items()}
                for number, own in state["state"].items()
            }
            sharded.append({**state, "state": moments})
        super().load_optimizer_state_dict({"optimizer_states": sharded})

    def teardown(self) -> None:
        """End the fit, but leave the shards on their devices: the last checkpoint and the test come after it."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        for part in (self.cluster_environment, self.precision_plugin, self.accelerator, self.checkpoint_io):
            part.teardown()


def _shard_moment(value: Any, parameter: Tensor) -> Any:
    """Return a moment as its parameter is sharded; counts of steps as they are."""
    return shard_like(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value
