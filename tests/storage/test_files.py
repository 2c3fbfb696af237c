"""Files are complete or absent."""

import codecs
import csv
import errno
import json
import math
import os
import resource
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from users import unreadable

from bevreshape.errors import InputError
from bevreshape.storage.files import (
    MAX_PARSED_MB,
    MAX_TEXT_MB,
    parsed_mb,
    read_json,
    read_text,
    remove_abandoned,
    visible,
    write_atomic,
    write_csv,
    write_text,
)


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


def test_a_file_instead_of_the_folder(tmp_path: Path) -> None:
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


WORDS = '{"a": "möglich", "b": [1, 2.5, null]}'


@pytest.mark.parametrize(
    "content",
    [
        WORDS.encode("utf-8"),
        WORDS.encode("utf-8-sig"),
        codecs.BOM_UTF16_LE + WORDS.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + WORDS.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + WORDS.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + WORDS.encode("utf-32-be"),
    ],
)
def test_text_is_read_in_every_encoding_that_says_which_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    assert read_text(path) == WORDS
    assert read_json(path) == {"a": "möglich", "b": [1, 2.5, None]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (WORDS.encode("latin-1"), "the text is not UTF-8 at byte 8; save it as UTF-8"),
        (WORDS.encode("utf-16-le").replace(b"\xf6", b"o"), "null characters"),
        (b"\xff\xfea", "the text is not UTF-16 at byte 2"),
        (b"[1, 2", "not JSON"),
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON .*recursion"),
        (b'{"a":' * 100_000, "not JSON .*recursion"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' occurs twice in one object"),
        (b"[1" + b"0" * 5000 + b"]", "not JSON .*digits"),
    ],
)
def test_unreadable_text_is_a_one_line_error(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as refused:
        read_json(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert len(str(refused.value)) < 300 + len(str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        "{},",
        "[],",
        "1.5,",
        '{"a":1},',
        "[[1]],",
        '{"ab":{"c":[]}},',
        "[1,2,3,4],",
        '"k%d":1,',
        '"k%d":[1],',
        '"k%d":{"a":2.5},',
    ],
)
def test_parsed_megabytes_are_no_less_than_what_parsing_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    path = tmp_path / "a.json"
    units = "".join(unit % number if "%" in unit else unit for number in range(30_000)).rstrip(",")
    path.write_text("{" + units + "}" if "%" in unit else "[" + units + "]")
    text = path.read_text()
    monkeypatch.setattr("bevreshape.storage.files.MAX_TEXT_MB", 1)  # the buffer of which is not what is measured
    tracemalloc.start()
    read_json(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < parsed_mb(text) * 1e6 + 2 * len(text) + 10**6


@pytest.mark.parametrize("unit", ["{},", "[],", '{"a":1},'])
def test_values_that_would_fill_the_memory_are_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a":[' + unit * 10_000_000 + "1]}")
    monkeypatch.setattr(json, "loads", lambda *args, **kwargs: pytest.fail("it was parsed"))
    with pytest.raises(InputError, match=r"a\.json: its values would take about .* MB of memory, more than 1,000"):
        read_json(path)


def test_calibration_of_100_000_frames_has_room() -> None:
    """Each with the poses of four cameras, in as many digits as Python writes."""
    pose = [[math.sin(4 * row + column) for column in range(4)] for row in range(4)]
    frame = {f"camera_{number}": {"ego_from_cam": pose} for number in range(4)}
    text = json.dumps({f"{number:06d}": frame for number in range(1000)})
    assert 100 * parsed_mb(text) < MAX_PARSED_MB
    short = json.dumps(json.loads(text, parse_float=lambda digits: round(float(digits), 4)))
    assert 100 * len(short) < MAX_TEXT_MB * 10**6


def test_only_regular_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "linked").symlink_to("text")
    (tmp_path / "text").write_text("a\n")
    for name, says in (
        ("pipe", "it is a pipe, not a "
                 "file"), ("folder", "it is a folder"), ("zeros", "it is a device"), ("loop", "links"),
        ("text/below", "cannot be "
                       "read"), ("a\0b", "null character"), ("x" * 3000, "too long"), ("none", "there is none"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            read_text(tmp_path / name, "there is none")
    assert read_text(tmp_path / "linked") == "a\n"
    monkeypatch.setattr("bevreshape.storage.files.MAX_TEXT_MB", 0)
    with pytest.raises(InputError, match="larger than"):
        read_text(tmp_path / "text")


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "._a.png", ".DS_Store", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in visible(tmp_path, "*.png")] == ["a.png", "b.png"]
    with pytest.raises(InputError, match="none: the folder cannot be read"):
        visible(tmp_path / "none")


def test_system_error_behind_torchs_own_is_named(tmp_path: Path) -> None:
    """The kernel refuses a write in the midst of a checkpoint; torch raises something of its own over it."""
    path = tmp_path / "last.ckpt"
    write_text(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write .*last\.ckpt: it would be larger than files may be"):
            write_atomic(path, lambda file: torch.save({"weights": torch.ones(10**6)}, file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_only_abandoned_files_are_removed(tmp_path: Path) -> None:
    code = (
        "import sys; from bevreshape.storage.files import write_atomic\n"
        "def wait(file): file.write(b'x'); print(flush=True); sys.stdin.read()\n"
        f"write_atomic({str(tmp_path / 'other.txt')!r}, wait)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    writers[0].kill()
    writers[0].communicate()
    assert len(list(tmp_path.iterdir())) == 2
    remove_abandoned(tmp_path, tmp_path / "nowhere")
    assert len(list(tmp_path.iterdir())) == 1
    writers[1].communicate()
    assert [p.name for p in tmp_path.iterdir()] == ["other.txt"]


def test_partial_files_of_other_users_are_kept(public_folder: Path) -> None:
    part = public_folder / ".x.1.part"
    part.write_bytes(b"half")
    with unreadable(part):
        remove_abandoned(public_folder)
    assert part.exists()
    remove_abandoned(public_folder)
    assert not part.exists()


def test_a_table_has_every_column_of_its_rows(tmp_path: Path) -> None:
    rows = [{"step": 1, "a": "x, y"}, {"step": 2, "b": 'say "z"', "a": 0.5}]
    write_csv(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"step": "1", "a": "x, y", "b": ""},
            {"step": "2", "a": "0.5", "b": 'say "z"'},
        ]
    assert b"\r" not in (tmp_path / "t.csv").read_bytes()
