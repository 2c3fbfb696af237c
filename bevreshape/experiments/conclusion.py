"""What follows from the rows of the study: for each claim of the article, and for the choice of a view transformer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bevreshape.experiments.row import Row

HOMOGRAPHY = {
    "fixed camera, error": "attention behind",
    "fixed camera, steps": "open",
    "fixed camera, compute": "attention behind",
    "fixed camera, samples": "open",
    "Which converges sooner?": "50%: open; 75%: open; 90%: open; 95%: open",
}
"""Verdicts on a fixed camera's homography."""

TASK_FIXED = {
    "On the task, fixed camera: which is better after 1000 steps?": "IoU: open; gain: open",
    "On the task, fixed camera: which learns faster?": "50%: attention behind; 75%: open; 90%: open; 95%: open",
}
"""Verdicts on a fixed camera's segmentation."""

TASK_MOVING = {
    "On the task, moving camera, pose given: which is better?": (
        "IoU, σ = 1°: attention alike; gain, σ = 1°: open; IoU, σ = 2°: attention alike; gain, σ = 2°: open; "
        "IoU, σ = 5°: open; gain, σ = 5°: attention ahead"
    ),
    "On the task, moving camera, pose not given: which is better?": (
        "IoU, σ = 1°: attention alike; gain, σ = 1°: open; IoU, σ = 2°: attention alike; gain, σ = 2°: open; "
        "IoU, σ = 5°: open; gain, σ = 5°: open"
    ),
    "On the task, cameras that move by σ = 5° only in the test, pose given: which generalises better?": (
        "trained at 1°: attention ahead; trained at 2°: attention ahead"
    ),
}
"""Verdicts on a moving camera's segmentation."""


@dataclass(frozen=True)
class Finding:
    """A text and the verdicts that it rests on.

    Attributes:
        text: the finding.
        rests_on: a part of the verdict, by question.
    """

    text: str
    rests_on: Mapping[str, str]

    def of(self, rows: Sequence[Row]) -> str:
        """Return the text if the rows have all these verdicts; otherwise an empty text."""
        found = {row.question: row.verdict for row in rows}
        return self.text if all(part in found.get(question, "") for question, part in self.rests_on.items()) else ""


FINDINGS: Mapping[str, Finding] = {
    "A7": Finding(
        "The MLP's W is fixed. For a fixed camera so is attention's: on features it learns an A that does not change "
        "with X. On the task its A changes with X.",
        {
            "Is the MLP's W fixed after training, and does the attention's change with X?": "A does not change",
            "Encoder features: is the MLP's W fixed after training, and does the attention's change with X?": (
                "A does not change"
            ),
            "On the task: is the MLP's W fixed after training, and does the attention's change with X?": "A changes",
        },
    ),
    "A8": Finding(
        "Both learn one fixed mapping, the MLP more exactly. Attention needs several times as much computation. That "
        "it converges later is not seen on the homography; on the task it is, up to half of IPM's IoU, nearly all of "
        "which takes no look at the image. That it needs more samples is not seen.",
        {**HOMOGRAPHY, **TASK_FIXED},
    ),
    "A9": Finding(
        "Only where the pose is known: given, or in X with normalised keys, attention has the lower error from about "
        "one degree of jitter on. On the task with the pose given both are alike up to 2°, and at 5° attention gains "
        "more from the image. Without the pose no advantage is seen.",
        {
            "moving camera, pose given": "attention ahead",
            "moving camera, pose in X": "attention ahead",
            "The pose is not in the input: no method can be ahead": "attention alike",
            **TASK_MOVING,
        },
    ),
    "A11": Finding(
        "It does: without one its error is much higher, on encoder features too, where zero padding leaks position. "
        "On the task these seeds do not decide it.",
        {
            "Does attention need positional encoding?": "without encoding behind",
            "Encoder features: does attention need positional encoding even where zero padding leaks position?": (
                "without encoding behind"
            ),
            "On the task, does attention need positional encoding?": "open",
        },
    ),
    "A12": Finding(
        "After training it destroys the result of both. Fixed before training, it changes nothing for the MLP and for "
        "attention with learned encodings, and harms attention with sinusoidal ones.",
        {
            "Does a permutation that is fixed before training harm attention?": (
                "sinusoidal: permuted behind; learned: permuted alike"
            ),
            "Tokens and the columns of W are permuted alike before training: the same MLP": "permuted alike",
            "On the task, does a permutation after training destroy the result?": (
                "MLP: destroyed; attention: destroyed"
            ),
        },
    ),
}
"""By the number of the article's claim."""

CONCLUSION = Finding(
    "What to choose, as far as a synthetic world with flat ground tells: if the camera is calibrated, take `ipm`: "
    "neither method is seen to beat it, and it has nothing to learn. If the mapping must be learned and the camera is "
    "fixed, take `mlp`: its reshaping needs several times less computation, a whole model a quarter less, and its IoU "
    "is not seen to be lower. But its W grows with features times cells, for six cameras of nuScenes to 403 million "
    "parameters against 2.6. If the pose varies by several degrees and is known, take `cross_attention` with "
    "`reshaper.calibration=true`: at a jitter of 5° it gains more from the image, and it generalises better to angles "
    "larger than in training; at 1° and 2° both are alike. If the pose is not known, no gain from attention is seen. "
    "The article is right that an MLP learns one fixed mapping, and that attention needs more computation. That "
    "attention converges later is seen on the task alone, up to half of IPM's IoU, nearly all of which takes no look "
    "at the image. That it needs more samples is not seen.",
    {
        **HOMOGRAPHY,
        **TASK_FIXED,
        **TASK_MOVING,
        "Capacity on paper: six cameras of nuScenes": "631 samples",
        "On the task, does either reach IPM, which knows the geometry and learns nothing of it?": (
            "attention, σ = 0°: IPM alike; MLP, σ = 0°: IPM alike; attention, σ = 1°: open; MLP, σ = 1°: open; "
            "attention, σ = 2°: open; MLP, σ = 2°: open; attention, σ = 5°: open; MLP, σ = 5°: IPM ahead"
        ),
    },
)
