"""Files are whole or absent."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

import pytest

from bevreshape.errors import InputError
from bevreshape.files import write_atomic, write_text


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_text(path, "old")

    def half(file: BinaryIO) -> None:
        file.write(b"new, but only ha")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"kept\.txt: the disk is full"):
        write_atomic(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_other_errors_leave_nothing_either(tmp_path: Path) -> None:
    def wrong(file: BinaryIO) -> None:
        file.write(b"x")
        raise KeyError("bug")

    with pytest.raises(KeyError):
        write_atomic(tmp_path / "none", wrong)
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / "file" / "inner.txt", "x")


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
