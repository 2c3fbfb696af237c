"""Records of a study or a comparison: a line of JSON per entry, so that git can hold them and a clone can resume.

Several processes and machines with access to the folder share the work. A lock per entry, which the system releases at
the end of its process, prevents that two of them do the same entry.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bevreshape.errors import InputError
from bevreshape.storage.lock import locked


@dataclass(frozen=True)
class Entry:
    """A result that is planned.

    Attributes:
        name: readable, and unique in its folder.
        made_with: plain values of everything that the result depends on.
    """

    name: str
    made_with: Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """``records.jsonl`` of a folder.

    Attributes:
        folder: of a study or a comparison.
    """

    folder: Path

    @property
    def path(self) -> Path:
        """Path of the file, whose lines are in the order in which entries were done."""
        return self.folder / "records.jsonl"

    def read(self) -> dict[str, dict[str, Any]]:
        """Read all lines, by name, but a last line that was cut off: it is being written, or its writer was killed.

        Raises:
            InputError: when the file cannot be read, a line is damaged, or a name has two different results.
        """
        found: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return found
        try:
            lines = _whole_lines(self.path.read_bytes()).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{self.path} cannot be read ({error}); restore a copy, or begin another one with name="
            ) from None
        for number, line in enumerate(lines, 1):
            record = _record(line)
            if record is None:
                raise InputError(f"{self.path}, line {number}: it is damaged; delete this line to repeat the entry")
            name = record["name"]
            if name in found and found[name]["result"] != record["result"]:
                raise InputError(
                    f"{self.path}, line {number}: {name} occurs twice with different results; delete one of them"
                )
            found[name] = record
        return found

    def get(self, records: Mapping[str, dict[str, Any]], entry: Entry) -> dict[str, Any] | None:
        """Return the result of an entry; ``None`` if it is not done.

        A value that is not there is like ``None``: versions differ in the options that they know.

        Raises:
            InputError: when it was made with other values.
        """
        record = records.get(entry.name)
        if record is None:
            return None
        made = record["made_with"]
        wanted = json.loads(json.dumps(entry.made_with)) if made != entry.made_with else made
        key = next((key for key in {**wanted, **made} if wanted.get(key) != made.get(key)), None)
        if key is not None:
            raise InputError(
                f"{self.path}: {entry.name} was made with {key}={made.get(key)} but the plan says {wanted.get(key)}; "
                "begin another one with name=, or delete its line"
            )
        return dict(record["result"])

    def add(self, entry: Entry, result: Mapping[str, Any]) -> None:
        """Append a result as one line, instead of a last line that was cut off."""
        line = json.dumps({"name": entry.name, "made_with": entry.made_with, "result": result}, allow_nan=False)
        with locked(self._lock("records")), self.path.open("ab+") as file:
            file.seek(0)
            whole = _whole_lines(file.read())
            file.truncate(len(whole))
            file.write((b"" if whole.endswith(b"\n") or not whole else b"\n") + line.encode() + b"\n")
            file.flush()

    @contextmanager
    def claimed(self, entry: Entry) -> Iterator[bool]:
        """Claim an entry until the block ends; yield whether no other process has claimed it."""
        name = hashlib.sha256(entry.name.encode()).hexdigest()[:16]
        with locked(self._lock(name), wait=False) as ours:
            yield ours

    def _lock(self, name: str) -> Path:
        return self.folder / "locks" / name


def _record(line: str | bytes) -> dict[str, Any] | None:
    """Return the record in a line; ``None`` if it is damaged."""
    try:
        record = json.loads(line)
        kinds = [type(record[key]) for key in ("name", "made_with", "result")]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if kinds == [str, dict, dict] else None


def _whole_lines(content: bytes) -> bytes:
    """Return the content of a file of records without a last line that was cut off.

    A last line without its end is complete if it is a record: an editor may have left out the end.
    """
    lines, last = content[: (end := content.rfind(b"\n") + 1)], content[end:]
    return lines if _record(last) is None else content
