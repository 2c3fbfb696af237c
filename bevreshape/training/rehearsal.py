"""A training step on random images before a run begins, which finds errors of training early."""

import torch
from torch import Tensor, nn

from bevreshape.analysis.costs import ring
from bevreshape.bev_spec import BEVSpec
from bevreshape.errors import InputError


def rehearse(model: nn.Module, spec: BEVSpec, samples: int, backward: bool = False) -> list[str]:
    """Run a model in training mode. Its running statistics change, so do not train it afterwards.

    Args:
        model: on the CPU.
        spec: of the data that the model was built for.
        samples: b.
        backward: find the parameters that get no gradient, such as those of an encoder's unused branches.

    Returns:
        The names of the parameters without a gradient; empty without ``backward``.

    Raises:
        InputError: when a normalisation gets a single value per channel.
    """
    cameras = len(spec.camera_names)
    image = torch.rand(samples, cameras, 3, *spec.image_size)
    entered = ""

    def enter(name: str) -> None:
        nonlocal entered
        entered = name

    hooks = [
        part.register_forward_pre_hook(lambda module, given, name=name: enter(name))
        for name, part in model.named_modules()
    ]
    model.train()
    try:
        with torch.set_grad_enabled(backward):
            loss = model(image, ring(cameras, spec.image_size, samples, image.device)).total()
    except ValueError as error:
        if "Expected more than 1" not in str(error):
            raise
        raise InputError(
            f"loader.batch_size={samples}: {entered} normalises over a single value per channel in training ({error}); "
            "set loader.batch_size=2, or choose larger images or a smaller stride"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not backward:
        return []
    loss.backward()
    return [name for name, own in model.named_parameters() if own.requires_grad and own.grad is None]


def check_compiler(device: torch.device) -> None:
    """Compile a small function, to find a machine without a compiler before a run begins.

    Raises:
        InputError: when torch cannot compile here, with its reason.
    """
    try:
        torch.compile(_small)(torch.zeros(2, device=device))
    except RuntimeError as error:
        raise InputError(compile_failure(error)) from error


def of_compiler(error: BaseException) -> bool:
    """Return whether torch's compiler raised an error."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def compile_failure(error: BaseException) -> str:
    """Return why torch could not compile, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return (
        f"trainer.compile=true: torch {torch.__version__} cannot compile here ({reason[:200]}); set "
        f"trainer.compile=false"
    )


def _small(x: Tensor) -> Tensor:
    return x.sin() + 1
