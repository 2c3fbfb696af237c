"""Object stores of tests: in the memory of this process, and S3's protocol from moto's server on this machine."""

import dataclasses
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import torch
from torch.utils.data import Dataset

Upload = Callable[[Path], str]
"""Copies a folder into a store, and returns its address."""


def upload(folder: Path, address: str) -> str:
    """Copy the files of a folder to an address, which is returned."""
    filesystem = fsspec.filesystem(address.partition("://")[0])
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            filesystem.pipe_file(f"{address}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return address


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """Start moto's server; yield its endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as file:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 120
        while not _answers(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, "moto's server does not answer"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def assert_same_samples(one: Dataset[Any], other: Dataset[Any]) -> None:
    """Compare all samples of two data sets, to the bit."""
    count = len(one)  # type: ignore[arg-type]
    assert count == len(other) > 0  # type: ignore[arg-type]
    for index in range(count):
        assert same(one[index], other[index]), f"sample {index}"


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, with the tensors in them."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)
        )
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
