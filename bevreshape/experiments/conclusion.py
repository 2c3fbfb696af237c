"""What the rows of the study say together, for somebody who must choose."""

from collections.abc import Mapping, Sequence

from bevreshape.experiments.row import Row

RESTS_ON: Mapping[str, str] = {
    "fixed camera, error": "attention behind",
    "fixed camera, compute": "attention behind",
    "fixed camera, samples": "attention ahead",
    "moving camera, pose given": "attention ahead",
    "moving camera, pose visible": "attention ahead",
    "Attention converges later": "50%: attention open; 75%: attention open; 90%: attention open; 95%: attention open",
}
"""Verdicts by question: with others, :data:`CONCLUSION` is not said."""

CONCLUSION = (
    "What to choose: the article is right that an MLP learns one fixed map, and that attention costs several times its "
    "computation. For a fixed camera it is wrong about the rest: both learn the same homography, attention's W hardly "
    "changes with X, once tuned it is not seen to converge later, and it needs fewer samples, not more. It depends on "
    "the camera. If it is bolted on and there are samples enough, take the MLP, or IPM, which has nothing to learn; if "
    "it moves by more than about a degree, or samples are few, take attention, and give it the pose."
)


def conclusion(rows: Sequence[Row]) -> str:
    """Return the conclusion if the rows have all verdicts that it rests on; otherwise an empty text."""
    found = {row.question: row.verdict for row in rows}
    return CONCLUSION if all(found.get(question) == verdict for question, verdict in RESTS_ON.items()) else ""
