"""Files: atomic writing, and reading with one-line error messages."""

import codecs
import csv
import errno
import io
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from PIL import Image

from bevreshape.errors import REMEDIES, InputError, shown, system_error
from bevreshape.storage.lock import try_lock
from bevreshape.storage.store_path import DataPath, StorePath

MAX_TEXT_MB = 128
"""Largest text in megabytes."""

MAX_PARSED_MB = 1000
"""Largest memory of a JSON file's values, in MB; the poses of four cameras in 100,000 frames take 750 MB."""

_TAKEN = {"{": 72, "[": 72, ",": 40, ":": 250}
"""Bytes of memory per character of JSON: for an empty object or list, a number in a list, a key with its number."""

_ENCODINGS = (  # the byte order mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, and rename it at the end, so that the file is complete or absent.

    The temporary file is locked until then, so that :func:`remove_abandoned` keeps it.

    Args:
        path: of the file; its folder must exist.
        durable: wait for the disk, so that the file is whole after a power failure too.

    Raises:
        OSError: when it cannot be written; the old file, if any, is untouched.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            try_lock(file)
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_whole(path: Path, write: Callable[[BinaryIO], object], durable: bool = True) -> None:
    """Write a file by ``write``, see :func:`whole_file`."""
    with whole_file(path, durable) as file:
        write(file)


@contextmanager
def explained_errors(path: Path) -> Iterator[None]:
    """Explain errors of the system while ``path`` is written.

    Raises:
        InputError: when the disk is full or the folder cannot be written.
    """
    try:
        yield
    except Exception as error:
        cause = system_error(error)
        if cause is None:
            raise
        remedy = REMEDIES.get(cause.errno or 0, f"{cause.strerror}: choose another folder")
        raise InputError(f"cannot write {path}: {remedy}; nothing was half written") from error


def write_atomic(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file as :func:`write_whole` does, and create its folder if needed.

    Raises:
        InputError: when the disk is full or the folder cannot be written; the old file, if any, is untouched.
    """
    path = Path(path)
    with explained_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)


def remove_abandoned(*folders: Path) -> None:
    """Delete the partial files that this user's killed processes have left in these folders."""
    for folder in folders:
        for part in folder.glob(".*.part"):
            with suppress(FileNotFoundError, PermissionError), part.open("r+b") as file:
                if try_lock(file):
                    part.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file by ``text``, atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table atomically: a row per mapping, columns in the order in which keys first occur."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(key for row in rows for key in row)), restval="", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write a (height, width, 3) uint8 image, atomically."""
    write_atomic(path, lambda file: Image.fromarray(image).save(file, format="png"))


def open_regular(path: DataPath) -> BufferedReader:
    """Open a regular file for reading; others are refused, since a pipe or device might never end.

    Raises:
        OSError: when it cannot be read; ``strerror`` gives the reason.
        InputError: when the object store that it is in cannot be read.
    """
    if isinstance(path, StorePath):
        return path.open()
    try:
        mode = path.stat().st_mode
    except ValueError:
        raise OSError(errno.EINVAL, "its name holds a null character") from None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file")
    return path.open("rb")


def read_text(path: DataPath, missing: str = "there is no such file; copy it again") -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Args:
        path: of the file.
        missing: the message for a missing file, with the remedy.

    Raises:
        InputError: when the file is missing, no regular file, too large, or in another encoding.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_TEXT_MB * 10**6 + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: {missing}") from None
    except OSError as error:
        raise InputError(f"{path}: this text cannot be read ({error.strerror}); put a text file there") from None
    if len(content) > MAX_TEXT_MB * 10**6:
        raise InputError(f"{path}: the text is larger than {MAX_TEXT_MB} MB; split it")
    encoding = next((name for mark, name in _ENCODINGS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: the text is not {encoding.upper().removesuffix('-SIG')} at byte {error.start}; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise InputError(
            f"{path}: the text holds null characters, so it is damaged or in another encoding; save it as UTF-8"
        )
    return text


def parsed_mb(text: str) -> float:
    """Return an upper estimate of the memory of a JSON text's values in MB, in addition to the text's own."""
    return sum(text.count(sign) * taken for sign, taken in _TAKEN.items()) / 1e6


def read_json(
    path: DataPath, missing: str = "there is no such file; copy it again", most_mb: int = MAX_PARSED_MB
) -> Any:
    """Read a JSON file; see :func:`read_text`.

    Args:
        path: of the file.
        missing: the message for a missing file, with the remedy.
        most_mb: largest memory of its values, in MB, see :func:`parsed_mb`.

    Raises:
        InputError: as :func:`read_text`; when it is not JSON, too large or too deeply nested, or has a key twice in an
            object.
    """

    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise InputError(f"{path}: the key {shown(key)} occurs twice in one object; remove one")
            found[key] = value
        return found

    text = read_text(path, missing)
    if parsed_mb(text) > most_mb:
        raise InputError(
            f"{path}: its values would take about {parsed_mb(text):,.0f} MB of memory, more than {most_mb:,.0f}; is it "
            "the right file?"
        )
    try:
        return json.loads(text, object_pairs_hook=each_once)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the file is not JSON ({error}); write or copy it again") from None


@overload
def visible(folder: Path, pattern: str = "*") -> list[Path]: ...


@overload
def visible(folder: StorePath, pattern: str = "*") -> list[StorePath]: ...


def visible(folder: DataPath, pattern: str = "*") -> Sequence[DataPath]:
    """Return the files of a folder that match a pattern, sorted.

    Hidden files are left out, such as ``._a.jpg``, which copying from a Mac creates.

    Raises:
        InputError: when the folder cannot be listed.
    """
    try:
        return sorted(
            (path for path in folder.iterdir() if path.match(pattern) and not path.name.startswith(".")),
            key=lambda path: path.name,
        )
    except OSError as error:
        raise InputError(
            f"{folder}: the folder cannot be read ({error.strerror}); check its path and permissions"
        ) from None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
