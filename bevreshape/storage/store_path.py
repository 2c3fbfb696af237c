"""A path in an object store, with what sources of data use of :class:`pathlib.Path`."""

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable


@runtime_checkable
class Store(Protocol):
    """Lists folders and opens files by their addresses."""

    def listed(self, address: str) -> Mapping[str, str | None]:
        """Return the fingerprint of each file in a folder by its name, ``None`` for a folder; empty without one."""
        ...

    def open(self, address: str, fingerprint: str) -> BufferedReader:
        """Open a file with this fingerprint.

        Raises:
            FileNotFoundError: when there is no such file.
        """
        ...


@dataclass(frozen=True)
class StorePath:
    """A file or folder in an object store.

    Attributes:
        address: such as ``s3://bucket/mine/images``.
        store: that it is in.
        compared: whether a file in the cache is compared with the store's.
    """

    address: str
    store: Store
    compared: bool = True

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, part: str) -> "StorePath":
        return replace(self, address=f"{self.address}/{part}")

    @property
    def name(self) -> str:
        """Return the last part of the address."""
        return self.address.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """Return the name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """Return the suffix of the name, such as ``.png``."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "StorePath":
        """Return the folder that it is in."""
        return replace(self, address=self.address.rpartition("/")[0])

    def match(self, pattern: str) -> bool:
        """Return whether the name matches a pattern such as ``*.png``."""
        return PurePosixPath(self.name).match(pattern)

    def is_dir(self) -> bool:
        """Return whether it is a folder with anything in it; stores have no empty ones."""
        return bool(self.store.listed(self.address))

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return self.store.listed(self.parent.address).get(self.name) is not None

    def exists(self) -> bool:
        """Return whether it is a file or a folder."""
        return self.name in self.store.listed(self.parent.address) or self.is_dir()

    def iterdir(self) -> "Iterator[StorePath]":
        """Yield the files and folders in a folder.

        Raises:
            FileNotFoundError: when there is no such folder.
        """
        names = self.store.listed(self.address)
        if not names:
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", self.address)
        yield from (self / name for name in names)

    def open(self) -> BufferedReader:
        """Open a file for reading.

        Raises:
            OSError: when there is no such file, or it is a folder.
        """
        fingerprint: str | None = ""
        if self.compared:
            names = self.store.listed(self.parent.address)
            if self.name not in names:
                raise FileNotFoundError(errno.ENOENT, "there is no such file", self.address)
            fingerprint = names[self.name]
        if fingerprint is None:
            raise OSError(errno.EISDIR, "it is a folder, not a file", self.address)
        return self.store.open(self.address, fingerprint)

    def read_bytes(self) -> bytes:
        """Return the content of a file; see :meth:`open`."""
        with self.open() as file:
            return file.read()


DataPath = Path | StorePath
"""A file or folder of data, on this machine or in an object store."""


def unchanging(path: DataPath) -> DataPath:
    """Return a path whose files never change, for instance since their names depend on their content.

    In an object store they are then read from the cache without listing their folders.
    """
    return replace(path, compared=False) if isinstance(path, StorePath) else path
