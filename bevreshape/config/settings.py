"""The keys of every command. Other keys are refused before anything is read, built or written."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Gt, Le, Len
from pydantic import AfterValidator
from typing_extensions import TypedDict, is_typeddict

from bevreshape.config.options import (
    BatchSize,
    Count,
    CountOrNone,
    Length,
    LocalPath,
    OpenShare,
    Seed,
    Share,
    Steps,
    Width,
)
from bevreshape.errors import InputError

Node = Mapping[str, Any]
"""A group, checked by its class; the ``trainer`` group has its own checks."""

Split = Literal["train", "val", "test"]
Device = str
"""``auto`` or a device name of torch, checked when it is used."""

Trust = str | Sequence[str]
"""Packages whose classes may be called."""


def metric_key(key: str) -> str:
    """Return the key of a metric.

    Raises:
        InputError: when no metric of a run has such a key.
    """
    if not key.startswith(("val/", "test/", "fit/")):
        raise InputError("is not the key of a metric; name one of metrics.json, such as val/iou/mean")
    return key


Angles = Sequence[Annotated[float, Ge(0), Le(180)]]
Limit = Annotated[float, Gt(0), Le(1e15)]
"""An upper limit."""
Sizes = Annotated[Sequence[Width], Len(2, 2)]
"""Rows and columns."""


class LogImages(TypedDict):
    """Images drawn while training."""

    every_n_validations: Steps
    num_samples: Count


class Loader(TypedDict):
    """Options of the data loader."""

    batch_size: BatchSize
    num_workers: CountOrNone


class Sweep(TypedDict):
    """What a sweep optimizes."""

    metric: Annotated[str, AfterValidator(metric_key)] | None


class Training(TypedDict):
    """Groups of a training, but for its view transformer, and options of its monitoring."""

    data: Node
    loader: Loader
    augment: Node | None
    encoder: Node
    head: Node
    objective: Node
    metric: Node
    optimizer: Node
    trainer: Node
    logger: Node | None
    checkpoint_every_n_steps: Steps
    log_images: LogImages


class Train(Training):
    """Keys of ``bevreshape.train``."""

    reshaper: Node
    seed: Seed
    name: str
    resume: LocalPath | None
    trust: Trust
    sweep: Sweep


OF_THE_COMMAND = ("resume", "trust", "sweep")
"""Keys of :class:`Train` that say nothing about the run itself; its folder does not store them."""


class Evaluate(TypedDict):
    """Keys of ``bevreshape.evaluate``."""

    data: Node
    loader: Loader
    metric: Node
    trainer: Node
    checkpoint: LocalPath
    split: Split
    drop_each_camera: bool
    trust: Trust
    seed: Seed


class Predict(TypedDict):
    """Keys of ``bevreshape.predict``."""

    checkpoint: LocalPath
    input: LocalPath
    calibration: LocalPath | None
    out: LocalPath
    frames: bool | None
    video: bool | None
    every: Count
    fps: Annotated[float, Ge(0.1), Le(1000)] | None
    batch_size: BatchSize
    num_workers: CountOrNone
    device: Device
    trust: Trust
    threshold: OpenShare


class Export(TypedDict):
    """Keys of ``bevreshape.export``."""

    checkpoint: LocalPath
    format: Literal["onnx", "pt2", "hub"]
    out: LocalPath | None
    calibration: LocalPath | None
    trust: Trust
    repeats: Count


class Turns(TypedDict, total=False):
    """Rotations of cameras in degrees."""

    yaw_deg: Angles
    pitch_deg: Angles
    roll_deg: Angles


class Errors(Turns, total=False):
    """Calibration errors."""

    height_m: Sequence[Annotated[float, Ge(0), Le(100)]]


class Corruptions(TypedDict, total=False):
    """Strengths of image corruptions."""

    darkness: Sequence[Share]
    noise: Sequence[Share]
    blur: Sequence[Annotated[float, Ge(0), Le(100)]]
    occlusion: Sequence[Share]


class Diagnose(TypedDict):
    """Keys of ``bevreshape.diagnose``."""

    data: Node
    loader: Loader
    metric: Node
    logger: Node | None
    checkpoint: LocalPath
    split: Split
    device: Device
    trust: Trust
    name: str
    samples: Annotated[int, Ge(2), Le(1024)]  # a spread needs two
    cells: Count
    probes: Count | None
    errors: Errors
    rigs: Turns
    corruptions: Corruptions


Precision = Literal["32-true", "bf16-mixed"]
Compiled = bool | Literal["cuda_graphs"]


class Benchmark(TypedDict):
    """Keys of ``bevreshape.benchmark``; every combination of lists is measured."""

    encoder: Node
    head: Node
    reshapers: Mapping[str, Node]
    batch: BatchSize | Sequence[BatchSize]
    cameras: Count | Sequence[Count]
    channels: Width | Sequence[Width]
    features: Sizes | Sequence[Sizes]
    cells: Sizes | Sequence[Sizes]
    device: Device | Sequence[Device]
    precision: Precision | Sequence[Precision] | None
    compile: Compiled | Sequence[Compiled] | None
    stride: Count
    cell_m: Length
    scaling: Literal["cells", "tokens", "cameras"] | None
    factors: Count | Sequence[Count]
    full_model: bool
    static_rig: bool
    backward: bool
    repeats: Count
    threads: Count | None
    results: LocalPath | None


class Study(TypedDict):
    """Keys of ``bevreshape.study``."""

    plan: Node
    name: str
    folder: LocalPath
    worker: CountOrNone


class Compare(Training):
    """Keys of ``bevreshape.compare``; the budget is checked by its class."""

    reshapers: Mapping[str, Node]
    budget: Node
    latency_ms: Limit | None
    memory_mb: Limit | None
    parameters: Limit | None
    device: Device
    margin: Share
    export: bool
    results: LocalPath | None
    name: str
    folder: LocalPath
    worker: CountOrNone
    command: str


class Report(TypedDict):
    """Options of ``bevreshape.report``, in addition to folders."""

    out: LocalPath
    samples: Count
    cells: Count
    probes: Count
    trust: Trust


FIXED_GROUPS = frozenset(
    key
    for command in (Train, Evaluate, Predict, Export, Diagnose, Benchmark, Study, Compare)
    for key, kind in get_type_hints(command).items()
    if is_typeddict(kind)
)
"""Groups with a fixed set of keys."""
