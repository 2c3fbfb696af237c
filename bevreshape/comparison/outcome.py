"""Results of a comparison as plain dataclasses: what the engine produces and the answer, tables and charts read."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Constraints:
    """Upper limits of the whole model on the target device; ``None`` for no limit.

    Attributes:
        latency_ms: of a forward pass of one sample, in the fastest measured form.
        memory_mb: peak memory beyond module and input in a forward pass of one sample, in 10⁶ bytes.
        parameters: trainable parameters.
    """

    latency_ms: float | None = None
    memory_mb: float | None = None
    parameters: float | None = None


@dataclass(frozen=True)
class Run:
    """One judged training; its seed was not used for tuning.

    Attributes:
        seed: of the training. Candidates are paired by it.
        validation: best mean IoU on the validation split.
        iou: IoU on the test split by class, and ``mean``.
        bands: mean IoU on the test split by distance band, such as ``0-10m``.
        curve: step and mean validation IoU.
        changed: mean IoU on the test split by change of the input, such as ``yaw_deg=1`` or ``without front``.
        seconds: of training.
        folder: run folder, relative to the comparison's.
    """

    seed: int
    validation: float
    iou: Mapping[str, float]
    bands: Mapping[str, float]
    curve: tuple[tuple[int, float], ...]
    changed: Mapping[str, float]
    seconds: float
    folder: str


@dataclass(frozen=True)
class Trial:
    """A combination that was tried while tuning.

    Attributes:
        values: by config key, such as ``{"optimizer.lr": 0.002}``.
        steps: of training, in the last rung that it reached.
        validation: mean IoU on the validation split there, over the tuning seeds; ``None`` if it failed.
    """

    values: Mapping[str, object]
    steps: int
    validation: float | None


@dataclass(frozen=True)
class ModelCost:
    """Costs of the whole model for one sample on the target device.

    Attributes:
        parameters: trainable parameters.
        flops: of a forward pass; a multiply-add counts as two.
        latency_ms: median by form: ``eager``, ``compiled``, ``exported``; forms that cannot be made are absent.
        unmeasured: reasons by absent form.
        memory_mb: peak memory beyond module and input in a forward pass, in 10⁶ bytes; NaN if it is unknown.
    """

    parameters: int
    flops: int
    latency_ms: Mapping[str, float]
    unmeasured: Mapping[str, str]
    memory_mb: float


@dataclass(frozen=True)
class Candidate:
    """A view transformer of the comparison.

    Attributes:
        name: as in ``reshaper=NAME``.
        tuned: the chosen values by config key, such as ``optimizer.lr``.
        tried: all combinations, in the order in which they were tried.
        runs: judged trainings by seed; empty if it failed.
        cost: costs; ``None`` if they are not measured.
        reason: why it failed or diverged; ``None`` if it did not.
        unmeasured: why its costs could not be measured, although it was trained; ``None`` if they were.
    """

    name: str
    tuned: Mapping[str, object]
    tried: tuple[Trial, ...]
    runs: tuple[Run, ...]
    cost: ModelCost | None
    reason: str | None = None
    unmeasured: str | None = None


@dataclass(frozen=True)
class Outcome:
    """A comparison, complete or not.

    Attributes:
        title: its name.
        candidates: in the order of the command line.
        constraints: of the user.
        device: name of the target device or processor.
        classes: in the order of the data.
        protocol: what all candidates share, by word, such as steps, samples, seeds, encoder, data.
        margin: difference in mean IoU within which two candidates are alike.
        command: that repeats or resumes it, as typed.
        planned: number of results.
        missing: number of results that are not done yet.
    """

    title: str
    candidates: tuple[Candidate, ...]
    constraints: Constraints
    device: str
    classes: tuple[str, ...]
    protocol: Mapping[str, str]
    margin: float
    command: str
    planned: int
    missing: int = 0
