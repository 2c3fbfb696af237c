"""Archives that torch might read differently from the checks are refused before it reads them."""

import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bevreshape.errors import InputError
from bevreshape.storage import archive
from bevreshape.storage.checkpoint import FORMAT, read_checkpoint

TAKING = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\xc0\x00\x85R."
"""A pickle that takes 3 GB."""

CHECKPOINT = {"bevreshape": {"format": FORMAT, "config": {}}, "state_dict": {"model.weight": torch.arange(6.0)}}


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No entry is read, by Python or torch."""
    opened = zipfile.ZipFile.open

    def written_alone(self: zipfile.ZipFile, name: Any, mode: str = "r", **kwargs: Any) -> Any:
        assert mode == "w", "an entry was read"
        return opened(self, name, mode, **kwargs)

    monkeypatch.setattr(zipfile.ZipFile, "open", written_alone)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was loaded"))


def written(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def saved(path: Path) -> tuple[bytes, bytes]:
    """A checkpoint as torch writes it: its entries, and the directory with their places."""
    torch.save(CHECKPOINT, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        return whole[: file.start_dir], whole[file.start_dir : -98]


def directory_of(name: str, content: bytes, at: int) -> bytes:
    sizes = zlib.crc32(content), len(content), len(content)
    return (
        struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 33, *sizes, len(name), 0, 0, 0, 0, 0, at)
        + name.encode()
    )


def entry_of(name: str, content: bytes) -> bytes:
    sizes = zlib.crc32(content), len(content), len(content)
    return struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 0, 0, 33, *sizes, len(name), 0) + name.encode() + content


def record_of(entries: int, size: int, start: int) -> bytes:
    return struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, entries, entries, size, start)


def locator_of(place: int) -> bytes:
    return struct.pack("<IIQI", 0x07064B50, 0, place, 1)


def end_of(entries: int, size: int, start: int, comment: bytes = b"") -> bytes:
    return struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, entries, entries, size, start, len(comment)) + comment


def with_second_directory(path: Path) -> None:
    """Python's directory is that of a checkpoint, torch's has a pickle of another kind under the same name."""
    entries, first = saved(path)
    count = first.count(b"PK\x01\x02")
    hidden = b"".join(
        entry_of(f"{path.stem}/{name}", part) for name, part in (("data.pkl", TAKING), ("version", b"3\n"))
    )
    second = directory_of(f"{path.stem}/data.pkl", TAKING, len(entries))
    second += directory_of(f"{path.stem}/version", b"3\n", len(entries) + hidden.index(b"PK", 4))
    whole = entries + hidden + second
    record = len(whole)
    whole += record_of(2, len(second), record - len(second))
    start = len(whole)
    whole += first + record_of(count, len(first), start)
    path.write_bytes(whole + locator_of(record) + end_of(count, 0xFFFFFFFF, 0xFFFFFFFF))


def test_second_directory_is_refused(tmp_path: Path, untouched: None) -> None:
    path = tmp_path / "two.ckpt"
    with_second_directory(path)
    assert torch._C.PyTorchFileReader(str(path)).get_record("data.pkl") == TAKING
    with pytest.raises(
        InputError, match=r"two\.ckpt has a table of its entries that is not at its end, or more than one"
    ):
        read_checkpoint(path)


def test_torch_must_find_what_python_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second lock, where the first is open."""
    path = tmp_path / "two.ckpt"
    with_second_directory(path)
    monkeypatch.setattr(archive, "_check_directory", lambda *args: None)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match=r"two\.ckpt is an archive of which torch reads other entries"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "names", [["DATA.PKL"], ["data.pkl", "DATA.PKL"], ["data.pkl", "data.pkL"], ["Data.pkl", "version"]]
)
def test_names_that_torch_does_not_distinguish(tmp_path: Path, untouched: None, names: list[str]) -> None:
    path = written(tmp_path / "a.ckpt", {f"archive/{name}": TAKING for name in names} | {"archive/version": b"3\n"})
    assert torch._C.PyTorchFileReader(str(path)).get_record("data.pkl") == TAKING
    with pytest.raises(InputError, match=r"a\.ckpt holds (an entry twice|its entries not in one folder)"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "names",
    [["data.pkl"], ["a/data.pkl", "b/data.pkl"], ["a/data.pkl", "version"], ["a/data.pkl", "a/größe"],
    ["a/data.pkl", "a/" + "x" * 999], []],
    ids=["bare", "two folders", "beside", "not ASCII", "long", "none"],
)  # fmt: skip
def test_entries_are_in_one_folder(tmp_path: Path, untouched: None, names: list[str]) -> None:
    path = written(tmp_path / "a.ckpt", dict.fromkeys(names, b"N."))
    with pytest.raises(
        InputError, match=r"a\.ckpt holds (its entries not in one folder|an entry of the name)"
    ) as refusal:
        read_checkpoint(path)
    assert len(str(refusal.value)) < 250 + len(str(path))


def test_only_the_end_that_torch_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    entries, first = saved(path)
    count, size, start = first.count(b"PK\x01\x02"), len(first), len(entries)
    after = start + size
    record, locator, end = record_of(count, size, start), locator_of(after), end_of(count, size, start)
    for tail in (record + locator + end, record + locator + end_of(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), end):
        path.write_bytes(entries + first + tail)
        assert read_checkpoint(path)["state_dict"]["model.weight"].tolist() == [0, 1, 2, 3, 4, 5]
    for tail in (
        record + locator + end_of(count, size, start, b"a comment"),
        record + locator + end_of(count - 1, size, start),
        record + locator_of(after - 1) + end,
        record_of(count - 1, size, start) + locator + end_of(count - 1, size, start),
        b"\0" * 8 + record + locator_of(after + 8) + end,
        record.replace(b"\x2c", b"\x2d", 1) + locator + end,
        b"\0" * 4 + end,
    ):
        path.write_bytes(entries + first + tail)
        with pytest.raises(
            InputError, match=r"a\.ckpt (has a table of its entries|does not begin|is truncated|cannot be read)"
        ):
            read_checkpoint(path)


def test_entry_that_torch_would_leave_unread(tmp_path: Path, untouched: None) -> None:
    """Torch takes an entry with the attribute of a folder for an empty one, and what its memory held for the
    content."""
    path = tmp_path / "a.ckpt"
    entries, first = saved(path)
    changed = bytearray(first)
    changed[38] |= 0x10  # of the first entry
    path.write_bytes(entries + changed + end_of(first.count(b"PK\x01\x02"), len(first), len(entries)))
    with pytest.raises(InputError, match=r"a\.ckpt holds 'a/data\.pkl' as a folder"):
        read_checkpoint(path)


def test_entry_with_more_than_its_sizes(tmp_path: Path, untouched: None) -> None:
    """A second name for it, which newer versions of Python take instead of the first."""
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        entry = zipfile.ZipInfo("a/data.pkl")
        entry.extra = struct.pack("<HHBI", 0x7075, 9, 1, zlib.crc32(b"a/data.pkl")) + b"a/xy"
        file.writestr(entry, b"N.")
    with pytest.raises(InputError, match=r"a\.ckpt holds ('a/data\.pkl' with more|an entry of the name 'a/xy')"):
        read_checkpoint(path)


def test_values_of_a_pickle_are_counted_only_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of a pickle may be a mapping, of which a million take 100 MB."""
    path = written(tmp_path / "a.ckpt", {"a/data.pkl": b"\x80\x02](" + b"}" * 1_000_000 + b"e.", "a/version": b"3\n"})
    seen, genops = [0], pickletools.genops

    def counted(content: bytes) -> Iterator[Any]:
        for operation in genops(content):
            seen[0] += 1
            yield operation

    monkeypatch.setattr(pickletools, "genops", counted)
    monkeypatch.setattr(archive, "MOST_OPCODES", 1000)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match=r"a\.ckpt holds more than 1,000 values in addition to its tensors"):
        read_checkpoint(path)
    assert seen == [1001]


def test_checkpoint_of_ten_thousand_parameters_has_room(tmp_path: Path) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(50)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(
        {**CHECKPOINT, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.ckpt"
    )
    with zipfile.ZipFile(tmp_path / "a.ckpt") as file:
        opcodes = sum(1 for _ in pickletools.genops(file.read("a/data.pkl")))
    assert 10_000 * opcodes / 100 < archive.MOST_OPCODES  # two parameters a layer
