"""Devices, precision and processes: what the machine cannot do is refused, not replaced in silence."""

import logging
import os
import re
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bevreshape.environment import make_console_safe
from bevreshape.errors import InputError, suggest
from bevreshape.training.callbacks import AtomicCheckpointIO
from bevreshape.training.processes import check_group, cluster_environment, group
from bevreshape.training.stopping import TrainingInterrupted
from bevreshape.training.trainer import check_options, lightning_options

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""What a network can be trained in; geometry stays in float32, which the ``-true`` half precisions would break."""


def make_trainer(cfg: Mapping[str, Any], **kwargs: Any) -> Trainer:
    """A Lightning Trainer of the ``trainer`` group; its own complaints become sentences.

    Raises:
        InputError: for a device, precision or value that cannot be had.
    """
    check_options(cfg)
    check_hardware(cfg)
    options = lightning_options(cfg, kwargs.get("default_root_dir"))
    plugins: list[Any] = [AtomicCheckpointIO(), cluster_environment()]
    try:
        return Trainer(
            **{**options, "accelerator": "cuda" if on_gpu(cfg) else "cpu", **kwargs},
            plugins=plugins,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error


def quiet() -> None:
    """Silence what Lightning says on every run and what says nothing about this one."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*your dataloader is not resumable.*",
        r".*`srun` command is available on your system but is not used.*",
        r".*is smaller than the logging interval.*",
        r".*isinstance\(treespec, LeafSpec\).* is deprecated.*",
        r".*It is recommended to use `self.log\(.*sync_dist=True.*",  # the metric adds up the processes itself
    ):
        warnings.filterwarnings("ignore", message)


def check_hardware(cfg: Mapping[str, Any]) -> None:
    """Compare what the ``trainer`` group asks for with what this machine has."""
    precision = str(cfg.get("precision", "32-true"))
    if precision not in PRECISIONS:
        raise InputError(f"trainer.precision={precision} is not offered; {suggest(precision, PRECISIONS)}")
    accelerator = cfg.get("accelerator", "auto")
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and gpus == 0:
        raise InputError(
            f"trainer.accelerator={accelerator}: this machine has no GPU that torch can use; set trainer.accelerator=cpu"
        )
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise InputError(
            f"trainer.accelerator={accelerator} is not offered; {suggest(str(accelerator), ('auto', 'cpu', 'gpu', 'cuda'))}"
        )
    gpu = on_gpu(cfg)
    if precision == "16-mixed" and not gpu:
        raise InputError(
            "trainer.precision=16-mixed needs a GPU (a CPU has no float16 autocast); set trainer.precision=bf16-mixed or 32-true"
        )
    if precision == "bf16-mixed" and gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(
            "trainer.precision=bf16-mixed: this GPU has no bfloat16; set trainer.precision=16-mixed or 32-true"
        )
    count = process_count(cfg)
    check_group(count, cfg.get("num_nodes", 1))
    if gpu and count > gpus:
        raise InputError(
            f"trainer.devices={cfg.get('devices')}: this machine has {gpus} GPU(s); set trainer.devices={gpus}"
        )
    if count > 1 and accelerator == "auto" and not gpu:
        raise InputError(
            f"trainer.devices={cfg.get('devices')}: this machine has no GPU; set trainer.devices=1, or trainer.accelerator=cpu "
            f"to train in {count} CPU processes"
        )


def process_count(cfg: Mapping[str, Any]) -> int:
    """How many processes on this machine the ``trainer`` group asks for.

    Raises:
        InputError: when ``devices`` is not a number, a list of numbers, or ``auto``.
    """
    devices = cfg.get("devices", 1)
    if isinstance(devices, str) and re.fullmatch("-?[0-9]+", devices):
        devices = int(devices)
    if devices in ("auto", -1):
        on_cpu = cfg.get("accelerator") == "cpu"
        return 1 if on_cpu else max(torch.cuda.device_count(), 1)
    if isinstance(devices, list) and devices and all(isinstance(d, int) and d >= 0 for d in devices):
        return len(devices)
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise InputError(f"trainer.devices={devices!r} must be a number of devices, a list of their indices, or auto")
    return devices


def in_processes(count: int, main: Callable[..., Any], *args: Any) -> Any:
    """Call ``main(*args)`` here, or in ``count`` processes of one distributed group on this machine.

    The processes are torch's elastic agents' and know nothing of the command line, so a sweep's job can use several.

    Returns:
        What ``main`` returned on rank 0.

    Raises:
        InputError: when a process failed; it has said why.
    """
    if count == 1 or group() is not None:
        return main(*args)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    try:
        results = elastic_launch(config, _speak)(main, *args)
    except ChildFailedError as error:
        message = error.get_first_failure()[1].message
        sentence = message["message"] if isinstance(message, dict) else message
        raise InputError(
            f"{len(error.failures)} of {count} processes failed: {sentence.removeprefix('InputError: ')}"
        ) from None
    except SignalException:
        raise KeyboardInterrupt from None  # the processes have saved and said so
    if isinstance(results[0], TrainingInterrupted):
        raise results[0]
    return results[0]


def _speak(main: Callable[..., Any], *args: Any) -> Any:
    """In a child process: an error of the user's making is a sentence there too."""
    from bevreshape.config.cli import explain, say

    make_console_safe()
    try:
        return main(*args)
    except TrainingInterrupted as stopped:
        if os.environ["LOCAL_RANK"] == "0":
            say(str(stopped))
        return stopped
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            traceback.print_exc()
        get_error_handler().record_exception(error if sentence is None else InputError(sentence))
        raise SystemExit(1) from None


def on_gpu(cfg: Mapping[str, Any]) -> bool:
    """Whether the ``trainer`` group trains on a GPU of this machine."""
    accelerator = cfg.get("accelerator", "auto")
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.device_count() > 0)


def out_of_memory(error: BaseException) -> bool:
    """Whether torch found no room for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def read_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for a GPU where there is one.

    Raises:
        InputError: when it cannot be had.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # which meta, that computes nothing, refuses
    except (NotImplementedError, RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device={name} cannot be had here ({str(error).splitlines()[0]}); set device=cpu") from error
    return device
