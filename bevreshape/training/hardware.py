"""Devices, precision and processes: an option that the machine cannot provide is an error, never replaced silently."""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bevreshape.errors import InputError, suggest
from bevreshape.training.processes import check_group

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Precisions of training. Geometry stays in float32, which the half precisions ending in ``-true`` would break."""


ALL_DEVICES = ("auto", -1)
"""Values of ``trainer.devices`` that mean all GPUs of this machine."""


def check_hardware(cfg: Mapping[str, Any]) -> None:
    """Check that this machine has the devices and the precision of the ``trainer`` group."""
    precision = str(cfg.get("precision", "32-true"))
    if precision not in PRECISIONS:
        raise InputError(f"trainer.precision={precision} is not supported; {suggest(precision, PRECISIONS)}")
    accelerator = cfg.get("accelerator", "auto")
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and gpus == 0:
        raise InputError(
            f"trainer.accelerator={accelerator}: this machine has no GPU that torch can use; set "
            "trainer.accelerator=cpu"
        )
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise InputError(
            f"trainer.accelerator={accelerator} is not supported; "
            f"{suggest(str(accelerator), ('auto', 'cpu', 'gpu', 'cuda'))}"
        )
    gpu = on_gpu(cfg)
    if cfg.get("compile") == "cuda_graphs" and not gpu:
        raise InputError("trainer.compile=cuda_graphs needs a GPU; set trainer.compile=true or false")
    if precision == "16-mixed" and not gpu:
        raise InputError(
            "trainer.precision=16-mixed needs a GPU (a CPU has no float16 autocast); set trainer.precision=bf16-mixed "
            "or 32-true"
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
            f"trainer.devices={cfg.get('devices')}: this machine has no GPU; set trainer.devices=1, or "
            f"trainer.accelerator=cpu to train in {count} CPU processes"
        )


def process_count(cfg: Mapping[str, Any]) -> int:
    """Return the number of processes on this machine that the ``trainer`` group asks for.

    Raises:
        InputError: when ``devices`` is not a number, a list of numbers, or ``auto``.
    """
    devices = cfg.get("devices", 1)
    if isinstance(devices, str) and re.fullmatch("-?[0-9]+", devices):
        devices = int(devices)
    if devices in ALL_DEVICES:
        on_cpu = cfg.get("accelerator") == "cpu"
        return 1 if on_cpu else max(torch.cuda.device_count(), 1)
    if isinstance(devices, list) and devices and all(isinstance(d, int) and d >= 0 for d in devices):
        return len(devices)
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise InputError(f"trainer.devices={devices!r} must be a number of devices, a list of their indices, or auto")
    return devices


def with_counted_devices(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``trainer`` group with the number of devices where it says ``auto``.

    On a machine with another number, the same command would train with another batch, and another run.
    """
    return {**cfg, **({"devices": process_count(cfg)} if cfg.get("devices") in (*ALL_DEVICES, "-1") else {})}


def on_gpu(cfg: Mapping[str, Any]) -> bool:
    """Return whether the ``trainer`` group trains on a GPU of this machine."""
    accelerator = cfg.get("accelerator", "auto")
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.device_count() > 0)


@contextmanager
def matmul_precision(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Set the precision of float32 products in the block, on a GPU alone: on a CPU results do not change."""
    before = torch.get_float32_matmul_precision()
    if on_gpu(cfg):
        torch.set_float32_matmul_precision(cfg.get("matmul_precision", "highest"))
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def read_device(name: str) -> torch.device:
    """Return the device ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` is a GPU where there is one.

    Raises:
        InputError: when the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # fails on the device meta, which computes nothing
    except (NotImplementedError, RuntimeError, AssertionError, ImportError) as error:
        raise InputError(
            f"device={name} is not available here ({str(error).splitlines()[0]}); set device=cpu"
        ) from error
    return device


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def machine_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor with its number of cores, such as ``amd-epyc-2cores``."""
    plain = re.sub(r"\((r|tm)\)", "", device_name(device).lower())
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return f"{name}-{os.cpu_count()}cores" if device.type == "cpu" else name


def conditions(device: torch.device) -> dict[str, Any]:
    """Return what a time depends on apart from the model and its input: the machine, and torch's threads and version.

    A GPU is named without its machine.
    """
    return {"machine": machine_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__}


def processor_name() -> str:
    """Return the model name of the processor; its architecture if the system does not report one."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
