"""What a study's runs leave behind, and who does which.

A run's record is a JSON file that takes its name when the run is over, so a study goes on where it was stopped; a file
lock, which the system frees when the last process of a run ends, keeps two studies off the same run.
"""

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bevreshape.errors import InputError
from bevreshape.files import write_text
from bevreshape.lab.experiments import Place, task_result, tensor_result
from bevreshape.lab.plan import Plan, Unit, is_number, units
from bevreshape.stored import read_json


@dataclass(frozen=True)
class Study:
    """A plan and the place where its runs leave their records.

    Attributes:
        plan: of the runs.
        place: where they happen.
    """

    plan: Plan
    place: Place

    def records(self) -> dict[str, dict[str, Any]]:
        """Results of the units of this plan that are done.

        Raises:
            InputError: when a record was made with other settings.
        """
        found: dict[str, dict[str, Any]] = {}
        while True:  # what is done tells what else there is
            new = [unit for unit in units(self.plan, found) if unit.name not in found and self._path(unit).exists()]
            if not new:
                return found
            found |= {unit.name: self._read(unit) for unit in new}

    def _path(self, unit: Unit) -> Path:
        return self.place.folder / "records" / f"{unit.name}.json"

    def _read(self, unit: Unit) -> dict[str, Any]:
        path = self._path(unit)
        try:
            record = read_json(path)
        except InputError as error:
            raise InputError(f"{error}; delete it, and the run is made anew") from None
        made, result = record.get("settings"), record.get("result")
        if not isinstance(made, dict) or not isinstance(result, dict) or not _is_result(result, unit.settings["level"]):
            raise InputError(f"{path} is damaged: it is no record of a run; delete it, and the run is made anew")
        wanted = json.loads(json.dumps(unit.settings))
        if made != wanted:
            key = next(key for key in {**wanted, **made} if wanted.get(key) != made.get(key))
            raise InputError(
                f"{path} was made with {key}={made.get(key)} by another plan or version, but the plan says {wanted.get(key)} by this "
                "one; begin another study with name=, or delete it"
            )
        return result

    @contextmanager
    def claimed(self, name: str) -> Iterator[int | None]:
        """A lock of a unit, or of something else that is done once: its file descriptor, ``None`` if it is not ours.

        It lasts as long as a process that has the descriptor, so that nobody goes on with a run whose study was killed
        before the run itself has ended.
        """
        path = self.place.folder / "records" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield lock.fileno()

    def has(self, unit: Unit) -> bool:
        """Whether it is done."""
        return self._path(unit).exists()

    def run(self, unit: Unit, lock: int) -> dict[str, Any]:
        """Do a unit and keep its record.

        Args:
            unit: which.
            lock: as :meth:`claimed` gives it, handed on to the processes that do it.
        """
        settings, place, began = unit.settings, self.place, time.time()
        tensor = settings["level"] == "tensor"
        result = tensor_result(self.plan, settings, place) if tensor else task_result(unit, place, lock)
        result["machine"] = f"{platform.node()}, {place.device}, {torch.get_num_threads()} threads"
        result |= {"process": [platform.node(), os.getpid()], "began": began, "ended": time.time()}
        write_text(self._path(unit), json.dumps({"settings": settings, "result": result}, indent=1) + "\n")
        return result


def _is_result(result: dict[str, Any], level: str) -> bool:
    """Whether it has what the claims ask of a run: a curve of figures, and measurements by name."""
    if not isinstance(result.get("curve"), list) or not result["curve"]:
        return False
    axes, value = (("steps", "samples", "seconds"), "error") if level == "tensor" else (("steps",), "iou")
    for point in result["curve"]:
        if not isinstance(point, dict) or not all(is_number(point.get(axis)) for axis in axes):
            return False
        if value not in point or not (point[value] is None or is_number(point[value])):
            return False
    groups = [result.get("examined", {})] if level == "tensor" else [result.get("metrics"), result.get("diagnosis")]
    return all(isinstance(group, dict) for group in groups) and (level != "tensor" or is_number(result.get("flops")))
