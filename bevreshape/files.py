"""Files that are either whole or not there."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from bevreshape.errors import InputError


def write_atomic(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file that takes its name only when it is complete.

    Raises:
        InputError: when the disk is full or the folder cannot be written; the old file, if any, is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        remedy = {
            errno.ENOSPC: "the disk is full: free some space or choose another folder",
            errno.EDQUOT: "your quota is used up: free some space or choose another folder",
            errno.EACCES: "permission is denied: choose another folder",
            errno.EROFS: "the file system is read-only: choose another folder",
        }.get(error.errno or 0, f"{error.strerror}: choose another folder")
        raise InputError(f"cannot write {path}: {remedy}; nothing was half written") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file by ``text``, atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a (height, width, 3) uint8 picture, atomically."""
    write_atomic(path, lambda file: Image.fromarray(picture).save(file, format="png"))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
