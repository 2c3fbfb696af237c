"""The chosen view transformer's checkpoint and ONNX program, next to the results."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bevreshape.comparison.answer import find_answer
from bevreshape.comparison.outcome import Outcome
from bevreshape.deployment.export import export_checkpoint
from bevreshape.errors import InputError
from bevreshape.storage.files import write_atomic

NAME = "winner"
"""Name of both files, without suffix."""


def export_winner(outcome: Outcome, folder: Path, trust: Sequence[str]) -> list[str]:
    """Write the checkpoint of the choice's best seed, by its validation IoU, and its ONNX program.

    Args:
        outcome: of the comparison.
        folder: of the comparison.
        trust: packages of classes that the checkpoint may name; none is taken from the files of the folder.

    Returns:
        Lines on both files, or why there are none.
    """
    choice = find_answer(outcome).choice
    if choice is None:
        return ["no winner to export"]
    run = max(choice.runs, key=lambda one: one.validation)
    best, out = folder / run.folder / "checkpoints" / "best.ckpt", folder / f"{NAME}.ckpt"
    if not best.is_file():
        return [f"no winner to export: {best} is not here"]
    with best.open("rb") as file:
        write_atomic(out, partial(shutil.copyfileobj, file))
    lines = [f"{out} · {choice.name}, seed {run.seed}"]
    try:
        lines += export_checkpoint(
            {
                "checkpoint": str(out),
                "format": "onnx",
                "out": None,
                "calibration": None,
                "trust": [*trust],
                "repeats": 1,
            }
        )
    except InputError as error:
        lines.append(f"no ONNX program: {error}")
    return lines
