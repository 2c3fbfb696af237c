"""Checks of a checkpoint's archive before torch reads it."""

import pickletools
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from bevreshape.errors import InputError, shown
from bevreshape.ops.internals import archive_offsets

KINDS = (
    "Float",
    "Double",
    "Half",
    "BFloat16",
    "Long",
    "Int",
    "Short",
    "Char",
    "Byte",
    "Bool",
    "ComplexFloat",
    "ComplexDouble",
)

NAMED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"} | {
    f"torch {kind}Storage" for kind in KINDS
}
"""The only names in a checkpoint of this program: tensors and their parts. Torch allows more, such as
``bytearray``, which takes any amount of memory."""

MOST_PICKLE_BYTES = 64 << 20
"""Largest pickle of a checkpoint, which excludes the values of its tensors."""

MOST_OPCODES = 2_000_000
"""Most opcodes of the pickle. A parameter with its moments takes 127; an opcode may take 100 bytes of memory."""

BLOCK_BYTES = 1 << 20

LONGEST_NAME = 500
"""Most characters of an entry's name; torch truncates longer names."""

LOCAL = struct.Struct("<4sHHHHHIIIHH")
"""Header of an entry: signature, version, flags, method, time, date, checksum, two sizes, lengths of name and extra
fields."""

END = struct.Struct("<4sHHHHIIH")
"""End record: signature, disks, entries here and in all, size and start of the directory, length of a comment."""

LOCATOR = struct.Struct("<4sIQI")
"""Zip64 locator: signature, disk, position of the zip64 record, disks."""

RECORD = struct.Struct("<4sQHHIIQQQQ")
"""Zip64 record: signature, bytes that follow, versions, disks, then as in the end record."""

FOLDER = 0x10
"""DOS attribute of a folder. For such an entry miniz, torch's archive reader, leaves the content uninitialized."""


def check_archive(file: BinaryIO, path: Path) -> None:
    """Refuse an archive that is damaged or not as torch writes it: unique entries, uncompressed, without overlap.

    Nothing is unpacked. Entries are read block by block to compare their checksums, which torch does not do.

    Raises:
        InputError: when the archive is refused; names the entry and the reason.
    """
    if not zipfile.is_zipfile(file):  # torch.save writes one; other pickles are not read
        raise InputError(f"checkpoint {path} is truncated or not a checkpoint; name a complete .ckpt of bevreshape")
    with zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        folder = _check_names(entries, path)
        if entries[0].header_offset != 0:
            raise InputError(
                f"checkpoint {path} does not begin with its first entry; it is damaged or not a checkpoint"
            )
        _check_directory(file, len(entries), archive.start_dir, path)
        starts = _check_places(file, entries, archive.start_dir, path)
        for entry in entries:
            try:
                with archive.open(entry) as part:
                    while part.read(BLOCK_BYTES):
                        pass
            except (zipfile.BadZipFile, EOFError) as error:
                raise InputError(
                    f"checkpoint {path} is damaged: {entry.filename!r} differs from its checksum; copy it again or use "
                    "another one"
                ) from error
        _check_named(archive, archive.getinfo(f"{folder}/data.pkl"), path)
    file.seek(0)
    offsets = archive_offsets(file)
    if offsets is None:
        raise InputError(
            f"checkpoint {path} cannot be checked: torch {torch.__version__} does not report which entries it reads; "
            "install the version that bevreshape requires"
        )
    if {f"{folder}/{name}": start for name, start in offsets.items()} != starts:
        raise _unlike(path, "is an archive of which torch reads other entries than Python")


def _unlike(path: Path, how: str) -> InputError:
    return InputError(f"checkpoint {path} {how}, which torch does not write; it is refused")


def _check_names(entries: Sequence[zipfile.ZipInfo], path: Path) -> str:
    """Return the folder of all entries. Torch ignores case: ``DATA.PKL`` would be read as ``data.pkl``."""
    names = [entry.orig_filename for entry in entries]
    odd = [name for name in names if not name.isascii() or not name.isprintable() or len(name) > LONGEST_NAME]
    odd += [entry.filename for entry in entries if entry.filename != entry.orig_filename]
    if odd:
        raise _unlike(path, f"holds an entry of the name {shown(odd[0])}")
    if len({name.lower() for name in names}) < len(names):
        raise _unlike(path, "holds an entry twice")
    folder = names[0].partition("/")[0] if names else ""
    if f"{folder}/data.pkl" not in names or not all(name.startswith(f"{folder}/") for name in names):
        raise _unlike(path, f"holds its entries not in one folder {shown(folder)} with data.pkl")
    return folder


def _check_directory(file: BinaryIO, entries: int, start: int, path: Path) -> None:
    """Refuse an archive in which torch might find another directory than Python.

    Torch uses the zip64 record at the locator's offset, Python the record just before the locator.

    Args:
        file: the archive.
        entries: number of entries that Python has read.
        start: of the directory that Python has read, in bytes.
        path: of the archive, for messages.
    """
    end = file.seek(0, 2) - END.size
    kind, _, _, _, *short, comment = _unpacked(file, end, END)
    whole, consistent = short, kind == b"PK\x05\x06" and comment == 0
    if end >= LOCATOR.size + RECORD.size:
        kind, _, place, _ = _unpacked(file, end - LOCATOR.size, LOCATOR)
        if kind == b"PK\x06\x07":
            end -= LOCATOR.size + RECORD.size
            kind, rest, _, _, _, _, _, *whole = _unpacked(file, end, RECORD)
            consistent &= kind == b"PK\x06\x06" and rest == RECORD.size - 12 and place == end
            limits = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)  # stand for a value that only the zip64 record holds
            consistent &= all(one in pair for one, *pair in zip(short, whole, limits, strict=True))
    if not consistent or whole != [entries, end - start, start]:
        raise _unlike(path, "has a table of its entries that is not at its end, or more than one")


def _check_places(file: BinaryIO, entries: Sequence[zipfile.ZipInfo], end: int, path: Path) -> dict[str, int]:
    """Return the start of each entry's content in bytes; refuse entries that overlap or are compressed.

    ``entries`` are sorted by their position, and end at ``end``.
    """
    size, starts = file.seek(0, 2), {}
    for entry, after in zip(entries, [*(entry.header_offset for entry in entries[1:]), end], strict=True):
        name = entry.filename
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise InputError(
                f"checkpoint {path} holds {name!r} compressed or encrypted, which torch does not write; unpacked it "
                f"would have {entry.file_size:,} bytes, so it is refused"
            )
        if name.endswith("/") or entry.external_attr & FOLDER:
            raise _unlike(path, f"holds {name!r} as a folder")
        if entry.extra and (
            len(entry.extra) < 4 or struct.unpack_from("<HH", entry.extra) != (1, len(entry.extra) - 4)
        ):
            raise _unlike(path, f"holds {name!r} with more than its sizes")
        *_, letters, extra = _unpacked(file, entry.header_offset, LOCAL)
        starts[name] = entry.header_offset + LOCAL.size + letters + extra
        if entry.file_size != entry.compress_size or starts[name] + entry.file_size > after:
            raise InputError(
                f"checkpoint {path} says that {name!r} has {entry.file_size:,} bytes, for which there is no room in "
                f"its {size:,}; it is damaged"
            )
    return starts


def _unpacked(file: BinaryIO, at: int, kind: struct.Struct) -> tuple[Any, ...]:
    file.seek(at)
    return kind.unpack(file.read(kind.size))


def _check_named(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Refuse a pickle that names anything but tensors or is too large, without executing it."""
    if entry.file_size > MOST_PICKLE_BYTES:
        raise InputError(
            f"checkpoint {path} holds {entry.file_size:,} bytes in addition to its tensors, at most "
            f"{MOST_PICKLE_BYTES:,} are read; use a file that bevreshape wrote"
        )
    for number, (opcode, argument, _) in enumerate(pickletools.genops(archive.read(entry))):
        if number >= MOST_OPCODES:
            raise InputError(
                f"checkpoint {path} holds more than {MOST_OPCODES:,} values in addition to its tensors; use a file "
                "that bevreshape wrote"
            )
        named = opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST") or opcode.name.startswith("EXT")
        if named and (opcode.name != "GLOBAL" or argument not in NAMED):
            what = str(argument or opcode.name).replace(" ", ".")
            raise InputError(
                f"checkpoint {path} holds Python objects that loading would execute ({what[:80]!r}); it is refused"
            )
