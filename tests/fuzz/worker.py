"""Tries cases one after another in one process of its own: ``python worker.py BASE RESULTS SEED FIRST LAST SECONDS``.

A line of JSON is written when a case begins, and one when it has ended. Every case has a folder of its own, limits of
time and memory, and leaves nothing behind.
"""

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
from cases import Attempt, Box, InsaneResult, draw, unchanged

from bevreshape.config.overrides import command_message
from bevreshape.errors import TrainingInterrupted

CPU_SECONDS, WALL_SECONDS = 60, 300
"""Most of a case: computing, and waiting, which a busy machine makes longer."""

MOST_BYTES = 2 << 30
"""Memory that a case may take in addition to that of the process."""

GOOD = ("ok", "message")


class TooLong(BaseException):
    """A case has used up its time; no ordinary handler catches it."""


def try_case(seed: int, number: int, box: Box) -> dict[str, Any]:
    """Draw a case and try it, or a command as it stands for a negative number; of several changes of a failure, the one
    that alone fails too is named."""
    name, attempt = unchanged(-number - 1, box) if number < 0 else draw(Random(f"{seed}/{number}"), box)
    outcome, detail = tried(attempt, range(len(attempt.changes)), box)
    changes = attempt.changes
    if outcome not in GOOD and len(changes) > 1:
        for one in range(len(changes)):
            alone, why = tried(attempt, [one], box)
            if alone == outcome:
                changes, detail = [changes[one]], why
                break
    return {
        "case": number, "kind": name, "outcome": outcome, "changes": changes, "notes": attempt.notes, "detail": detail,
    }  # fmt: skip


def tried(attempt: Attempt, numbers: Sequence[int], box: Box) -> tuple[str, str]:
    """The outcome of some of its changes, in an empty folder."""
    folder = box.base / "cases" / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    before, memory = listed(box), resident("VmRSS")
    with suppress(OSError):  # where the kernel lets a process reset its peak, it is counted from here
        Path("/proc/self/clear_refs").write_text("5")
    outcome, detail = called(attempt, numbers)
    if (folder / "canary").exists():
        outcome, detail = "foreign code", "the canary was called"
    changed = sorted(map(str, before.items() ^ listed(box).items()))
    if changed and outcome in GOOD:
        outcome, detail = "outside", f"files outside the case's folder changed: {changed[:3]}"
    grown = resident("VmHWM") - memory
    if grown > MOST_BYTES and outcome in GOOD:
        outcome, detail = "memory", f"{grown / 1e9:.1f} GB"
    os.chdir(box.base)
    shutil.rmtree(folder, ignore_errors=True)
    torch.set_num_threads(1)
    return outcome, detail


def called(attempt: Attempt, numbers: Sequence[int]) -> tuple[str, str]:
    """How one call ended."""
    try:
        with limited():
            refusal = attempt.call(numbers)
    except TooLong as error:
        return "hang", "".join(traceback.format_tb(error.__traceback__)[-4:])
    except InsaneResult as error:
        return "insane", str(error)
    except (TrainingInterrupted, KeyboardInterrupt) as error:
        return "stopped", str(error)
    except BaseException as error:
        message = command_message(error)
        if message is not None:
            return "message", message
        said = f"{traceback.format_exc()[-3000:]}"
        greedy = isinstance(error, MemoryError) or "allocate memory" in said or "MemoryError" in said
        return "memory" if greedy else "traceback", said
    if refusal is not None:
        return "message", refusal
    if attempt.must_refuse and len(numbers) == len(attempt.changes):
        return "ignored", "an unknown argument was accepted silently"
    return "ok", ""


@contextmanager
def limited() -> Iterator[None]:
    """Raise :class:`TooLong` in what takes too long."""

    def stop(number: int, frame: Any) -> None:
        raise TooLong

    for kind, timer, seconds in (
        (signal.SIGPROF, signal.ITIMER_PROF, CPU_SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, WALL_SECONDS),
    ):  # fmt: skip
        signal.signal(kind, stop)
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)


def resident(key: str) -> int:
    """Bytes that this process has in memory, now or at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def listed(box: Box) -> dict[str, tuple[int, int]]:
    """Size and time of every file that no case may change."""
    found = {}
    for top, folders, names in os.walk(box.base):
        if Path(top) == box.base:
            folders[:] = [name for name in folders if name != "cases" and not name.startswith("worlds")]
            names = [name for name in names if name != "results.jsonl"]
        for name in names:
            status = os.lstat(os.path.join(top, name))
            found[os.path.join(top, name)] = (status.st_size, status.st_mtime_ns)
    return found


def main(base: str, results: str, seed: str, first: str, last: str, seconds: str) -> None:
    """Try case after case until there are no more, or the time is over."""
    box, end = Box(Path(base)), time.monotonic() + float(seconds)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (resident("VmSize") + 2 * MOST_BYTES, resource.RLIM_INFINITY))
    with open(results, "a", encoding="utf-8") as file:
        for number in range(int(first), int(last)):
            if time.monotonic() > end:
                return
            print(json.dumps({"begun": number}), file=file, flush=True)
            print(json.dumps(try_case(int(seed), number, box)), file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
