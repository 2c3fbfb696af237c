"""What follows from the rows of the study for the choice of a view transformer."""

from collections.abc import Mapping, Sequence

from bevreshape.experiments.row import Row

RESTS_ON: Mapping[str, str] = {
    "fixed camera, error": "attention behind",
    "fixed camera, compute": "attention behind",
    "fixed camera, samples": "attention ahead",
    "moving camera, pose given": "attention ahead",
    "Attention converges later": "90%: attention open",
    "On the task, fixed camera: who learns faster?": "50%: attention behind; 75%: attention open",
    "On the task, moving camera, pose given: who is better?": "what looking adds, σ = 5°: attention ahead",
    "On the task, moving camera, pose not given: who is better?": "IoU, σ = 2°: attention alike",
    "On the task, cameras that move by σ = 5° in the test alone, pose given: who bears it?": (
        "trained at 2°: attention ahead"
    ),
    "On the task, does either reach IPM, which is given the geometry and has nothing to learn?": (
        "MLP, σ = 5°: IPM ahead"
    ),
}
"""A part of the verdict by question: with others, :data:`CONCLUSION` is left out."""

CONCLUSION = (
    "What to choose: the article is right that an MLP learns one fixed map, and that attention costs several times "
    "its computation. It is wrong that attention needs more samples, since it needs fewer, and that it converges "
    "later whatever the target: tuned, no delay is seen on the homography, and on the task one is certain only for "
    "its first half. The rest depends on the camera. In a flat world neither is seen to beat IPM, which is given "
    "the geometry and has nothing to learn. Beyond that, take the MLP if the camera is bolted on: it is cheaper, "
    "and not seen to be worse. If the camera moves by more than a degree or two, take an attention that is given "
    "the pose; it also bears angles that training has not shown. Without the pose, attention gains nothing on the "
    "task."
)


def conclusion(rows: Sequence[Row]) -> str:
    """Return the conclusion if the rows have all verdicts that it rests on; otherwise an empty text."""
    found = {row.question: row.verdict for row in rows}
    return CONCLUSION if all(part in found.get(question, "") for question, part in RESTS_ON.items()) else ""
