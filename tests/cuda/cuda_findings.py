"""What the pretended device noticed, case by case."""

import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bevreshape

ROOT = Path(bevreshape.__file__).resolve().parents[1]


@dataclass(frozen=True)
class Finding:
    """One event.

    Attributes:
        kind: ``wait``, ``mixed``, ``value``, ``gradient`` or ``error``.
        what: the operation and its shapes, or the difference.
        where: file and function of the package, or of the library that was called.
    """

    kind: str
    what: str
    where: str


FOUND: list[Finding] = []
"""Those of the case that runs."""


def note(kind: str, what: str) -> None:
    """Record an event at the place that calls."""
    FOUND.append(Finding(kind, what, place()))


def forget_waits() -> None:
    """Drop the waits so far; all else stays."""
    FOUND[:] = [finding for finding in FOUND if finding.kind != "wait"]


def place() -> str:
    """Return the innermost function of the package on the stack; else of a library, of torch where it is no other."""
    frames = traceback.extract_stack()
    for frame in reversed(frames):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT / "bevreshape"):
            return f"{path.relative_to(ROOT)}:{frame.name}"
    libraries = [frame for frame in reversed(frames) if "site-packages" in frame.filename]
    libraries.sort(key=lambda frame: "/site-packages/torch/" in frame.filename)
    inner = [frame for frame in libraries if not frame.filename.endswith(("_python_dispatch.py", "eval_frame.py"))]
    return f"{inner[0].filename.partition('site-packages/')[2]}:{inner[0].name}" if inner else "autograd"


def take() -> list[dict[str, Any]]:
    """Return the findings of a case, each once, and forget them."""
    found = [asdict(finding) for finding in dict.fromkeys(FOUND)]
    FOUND.clear()
    return found
