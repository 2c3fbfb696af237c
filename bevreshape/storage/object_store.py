"""Read data from an object store, such as ``s3://bucket/mine``, through a cache on this machine's disk.

Stores are those of fsspec. A file is fetched when it is first read, and then read from the cache, which all processes
of the machine share. The name of a file in the cache depends on its address and on what the store lists of it
(checksum, time, size), so a changed file is fetched again: each process lists a folder once, before it reads a file
from there.

The caches of fsspec are not used. Both ``simplecache`` and ``filecache`` write a file in place, where another process
may read its first half; the first does not notice changes, and the second keeps a JSON of all files in every process.
``universal_pathlib`` is kept well, but each of its methods would have to be wrapped for messages and for the cache, and
sources of data use few of them.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

from bevreshape.errors import InputError
from bevreshape.storage.files import remove_abandoned, write_whole
from bevreshape.storage.store_path import DataPath, StorePath

log = logging.getLogger(__name__)

VARIABLE = "BEVRESHAPE_CACHE"
"""Environment variable that names the folder of the cache."""

SPARED = 0.05
"""Share of the cache's disk that is left free."""

_MARKS = (
    "ETag", "etag", "md5Hash", "blob_id", "generation", "LastModified", "last_modified", "mtime", "created", "size",
)  # fmt: skip
"""Keys in a store's listing that change with a file; which are there depends on the store."""


def data_path(path: str | Path) -> DataPath:
    """Return a folder of data by its path on this machine or its address, such as ``s3://bucket/mine``.

    Raises:
        InputError: when the library of the store is missing, or the cache's folder cannot be written.
    """
    if "://" not in (text := str(path)):
        return Path(path)
    address = text.rstrip("/")
    protocol = address.partition("://")[0]
    if protocol in ("file", "local"):
        return Path(_own_path(address))
    with _explained(address):
        _filesystem(protocol)
    return StorePath(address, ObjectStore(protocol, cache_folder()))


def cache_folder() -> Path:
    """Return the folder of the cache, after partial files of killed processes were removed.

    It is ``$BEVRESHAPE_CACHE``, by default ``bevreshape`` in the user's folder of caches.

    Raises:
        InputError: when it cannot be written.
    """
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    folder = Path(os.environ.get(VARIABLE) or user / "bevreshape").expanduser()
    try:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder / "parts")
    except OSError as error:
        raise InputError(
            f"{folder}: the cache of object stores cannot be written ({error.strerror}); set the environment variable "
            f"{VARIABLE} to a folder on a local disk"
        ) from None
    return folder


class ObjectStore:
    """Read files through the cache.

    Nothing is removed from the cache: an epoch reads every file once, so it would not be read again before most others.
    Files that would leave less than a share of 0.05 of the disk free are read from the store in every epoch.

    Args:
        protocol: of the store, such as ``s3``.
        folder: of the cache.
    """

    def __init__(self, protocol: str, folder: Path) -> None:
        self._protocol = protocol
        self._folder = folder
        self._listings: dict[str, Mapping[str, str | None]] = {}

    def listed(self, address: str) -> Mapping[str, str | None]:
        """Return the fingerprint of each file in a folder by its name, ``None`` for a folder; empty without one.

        Raises:
            InputError: when the store cannot be read.
        """
        if address not in self._listings:
            filesystem = _filesystem(self._protocol)
            own = _own_path(address)
            try:
                with _explained(address):
                    entries = filesystem.ls(address, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            inside = [(entry["name"].rstrip("/"), entry) for entry in entries]
            self._listings[address] = {
                name.rpartition("/")[2]: None if entry["type"] == "directory" else _fingerprint(entry)
                for name, entry in inside
                if name.strip("/") != own.strip("/")  # a store lists a file as itself, and some a folder in itself
            }
        return self._listings[address]

    def open(self, address: str, fingerprint: str) -> BufferedReader:
        """Open a file of the cache, after it was fetched if needed.

        Args:
            address: of the file in the store.
            fingerprint: of its version; empty if there is one version only.

        Raises:
            FileNotFoundError: when there is no such file.
            InputError: when the store cannot be read.
        """
        digest = hashlib.sha256(f"{address}\0{fingerprint}".encode()).hexdigest()
        path = self._folder / digest[:3] / digest
        try:
            file = path.open("rb")
            if os.fstat(file.fileno()).st_size:  # a power failure may leave an empty file
                return file
            file.close()
        except (FileNotFoundError, PermissionError):  # of another user, to whom alone it is readable
            pass
        with _explained(address):
            content = _filesystem(self._protocol).cat_file(address)
        self._keep(path, content)
        return BufferedReader(BytesIO(content))

    def _keep(self, path: Path, content: bytes) -> None:
        """Store a file in the cache, in one step, if the disk has room."""
        try:
            disk = shutil.disk_usage(self._folder)
            if disk.free - len(content) < SPARED * disk.total:
                _warn_once(self._folder, f"its disk is full but for {100 * SPARED:g} %")
                return
            part = self._folder / "parts" / f".{path.name}.part"
            path.parent.mkdir(exist_ok=True)
            write_whole(part, lambda file: file.write(content), durable=False)
            os.replace(part, path)
        except FileNotFoundError:
            return  # another process has fetched the same file at the same time, or the cache was deleted
        except OSError as error:
            _warn_once(self._folder, str(error.strerror))


@cache
def _warn_once(folder: Path, reason: str) -> None:
    log.warning(
        "%s: this cache takes no more files (%s); others are read from the store in every epoch; free some space, or "
        "set %s to a folder on another disk",
        folder, reason, VARIABLE,
    )  # fmt: skip


def _fingerprint(entry: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={entry[key]}" for key in _MARKS if entry.get(key) is not None)


def _filesystem(protocol: str) -> Any:
    """Return fsspec's file system of a store, one for each process."""
    import fsspec  # of lightning, but not needed for help

    options = {"max_concurrency": 1} if protocol == "s3" else {}  # otherwise it asks for the size of each file first
    return fsspec.filesystem(protocol, use_listings_cache=False, **options)


def _own_path(address: str) -> str:
    """Return what a store itself calls an address, such as ``bucket/mine``."""
    import fsspec

    return str(fsspec.core.strip_protocol(address))


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Raise one-line messages for the errors of a store's library, except for missing files.

    Every library has its own errors, so all are caught.
    """
    protocol = address.partition("://")[0]
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except ImportError as error:
        extra = "'bevreshape[s3]'" if protocol == "s3" else "the library that it names"
        raise InputError(f"{address}: {protocol}:// cannot be read ({error}); pip install {extra}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{address}: the store cannot be read ({reason}); check the address, the network and the credentials "
            "(data/README.md, Object stores)"
        ) from None
