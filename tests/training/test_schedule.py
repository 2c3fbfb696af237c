"""Steps, batches and validations of a run, for many combinations of sizes, against plain counting."""

import csv
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import outputs_of
from lightning.pytorch import Callback
from torch import Tensor, nn

from bevreshape.data.batch import SPLITS, BEVBatch, Meta, Sample
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.data.targets import BEVTarget
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import Outputs
from bevreshape.objectives.losses import BCE
from bevreshape.storage.checkpoint import FORMAT
from bevreshape.training.callbacks import BestCheckpoint, FinalValidation, History, LastCheckpoint
from bevreshape.training.optimizer import AdamWOneCycle
from bevreshape.training.schedule import make_early_stop, resolve_schedule
from bevreshape.training.task import BEVTask
from bevreshape.training.trainer import make_trainer, silence_lightning

pytestmark = pytest.mark.slow

GRID = BEVGrid((0, 2), (-1, 1), 1.0)


class Dots:
    """A source of images of one pixel, of any number."""

    grid, classes, camera_names, image_size = GRID, ("a",), ("front",), (1, 1)

    def __init__(self, train: int, val: int = 2) -> None:
        self.samples = {"train": train, "val": val, "test": val}

    def prepare(self, splits: Sequence[str] = SPLITS) -> None:
        """Nothing is missing."""

    def split(self, name: str) -> Any:
        return [self._sample(index) for index in range(self.samples[name])]

    def make_targets(self, batch: BEVBatch) -> BEVBatch:
        return batch

    def _sample(self, index: int) -> Sample:
        image = torch.full((1, 3, 1, 1), index, dtype=torch.uint8)
        target = torch.tensor([[[index % 2, 1], [0, index % 3 == 0]]], dtype=torch.bool)
        eye = torch.eye(4)[None]
        targets = {"segmentation": BEVTarget(target, torch.ones_like(target))}
        return Sample(image, eye[:, :3, :3], eye, Meta(str(index), index), targets)


class Net(nn.Module):
    """A few weights, and dropout, so that random numbers count."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 4))

    def forward(self, image: Tensor, cameras: object) -> Outputs:
        return outputs_of(self.layers(image.flatten(1)).view(-1, 1, 2, 2))


@dataclass
class Recorder(Callback):
    """What training did. Of every batch: its samples, loss, epoch, the optimizer steps done behind it, and the learning
    rate."""

    batches: list[tuple[Any, ...]] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    """Optimizer steps done, and the loss."""
    killed_in: int | None = None
    """Batch, counted from 0, in the middle of which the process dies."""

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx == self.killed_in:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        indices = tuple(meta.index for meta in batch.meta)
        self.batches.append((indices, outputs["loss"].item(), trainer.current_epoch, trainer.global_step, rate))

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        self.validations.append((trainer.global_step, trainer.callback_metrics["val/loss"].item()))

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Case:
    """Sizes of a run, and how often it saves."""

    samples: int
    batch_size: int = 1
    accumulated: int = 1
    steps: int = -1
    epochs: int = -1
    every: int = 2
    patience: int | None = None
    compiled: bool = False
    saves: int = 1

    @property
    def group(self) -> dict[str, Any]:
        """The ``trainer`` group."""
        return {
            "accelerator": "cpu",
            "max_steps": self.steps,
            "max_epochs": self.epochs,
            "val_check_interval": self.every,
            "accumulate_grad_batches": self.accumulated,
            "early_stopping": {"monitor": "val/loss", "patience": self.patience},
            "enable_progress_bar": False,
        }

    @classmethod
    def drawn(cls, draw: random.Random) -> "Case":
        """Any sizes that fill a step."""
        batch_size, accumulated = draw.randint(1, 3), draw.choice([1, 2, 3, 5])
        length = draw.choice(
            [(draw.randint(1, 9), -1), (-1, draw.randint(1, 3)), (draw.randint(1, 9), draw.randint(1, 3))]
        )
        return cls(
            draw.randint(batch_size * accumulated, 4 * batch_size * accumulated), batch_size, accumulated, *length,
            every=draw.randint(1, 6), patience=draw.choice([None, None, 1, 2]), saves=draw.randint(1, 3),
        )  # fmt: skip


def fit(case: Case, folder: Path, killed_in: int | None = None, resumed: bool = False) -> tuple[Recorder, BEVTask]:
    """Train as the command does, from the start or from where it was killed."""
    silence_lightning()
    torch.manual_seed(0)
    data = BEVDataModule(Dots(case.samples), batch_size=case.batch_size)
    task = BEVTask(
        Net(),
        {"segmentation": BCE(classes=("a",))},
        {"iou": BEVIoU(("a",), GRID)},
        AdamWOneCycle(lr=0.1),
        recipe={"format": FORMAT},
    )
    if case.compiled:
        task.compile_training()
    recorder = Recorder(killed_in=killed_in)
    last = folder / "checkpoints" / "last.ckpt"
    early_stop = make_early_stop(case.group, task)
    trainer = make_trainer(
        resolve_schedule(case.group, data),
        default_root_dir=folder,
        logger=False,
        callbacks=[
            recorder,
            History(folder / "history.csv"),
            FinalValidation(),
            *([early_stop] if early_stop else []),
            BestCheckpoint(last.parent),
            LastCheckpoint(last, case.saves),
        ],
    )
    try:
        trainer.fit(task, datamodule=data, ckpt_path=last if resumed else None, weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        assert killed_in is not None
    else:
        trainer.save_checkpoint(last)
    return recorder, task


def history(folder: Path) -> list[dict[str, str]]:
    """Rows of ``history.csv`` without times."""
    rows = csv.DictReader((folder / "history.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def expected(case: Case) -> tuple[list[tuple[int, int]], list[int]]:
    """Epoch of every batch and the steps done behind it, by walking through the samples; and the steps of
    validations."""
    batches: list[tuple[int, int]] = []
    steps, epoch = 0, 0
    while True:
        left = case.samples
        while left >= case.batch_size * case.accumulated:
            for _ in range(case.accumulated - 1):
                batches.append((epoch, steps))
            steps += 1
            batches.append((epoch, steps))
            left -= case.batch_size * case.accumulated
            if steps == case.steps:
                return batches, [step for step in range(1, steps + 1) if step % case.every == 0 or step == steps]
        epoch += 1
        if epoch == case.epochs:
            return batches, [step for step in range(1, steps + 1) if step % case.every == 0 or step == steps]


def patience_ends(losses: Sequence[float], patience: int) -> int | None:
    """After how many validations training stops early."""
    for number in range(1, len(losses) + 1):
        best = min(range(number), key=lambda i: losses[i])  # the first of equals
        if number - 1 - best >= patience:
            return number
    return None


def check(case: Case, run: Recorder) -> None:
    """Compare a whole run with what it should have done."""
    batches, validations = expected(case)
    losses = [loss for _, loss in run.validations]
    stopped = None if case.patience is None else patience_ends(losses, case.patience)
    if stopped is not None:
        assert len(losses) == stopped, case
        validations = validations[:stopped]
        batches = [batch for batch in batches if batch[1] < validations[-1]] + [
            next(batch for batch in batches if batch[1] == validations[-1])
        ]
    assert [(epoch, steps) for _, _, epoch, steps, _ in run.batches] == batches, case
    assert [steps for steps, _ in run.validations] == validations, case
    for epoch in {epoch for _, _, epoch, _, _ in run.batches}:
        seen = [index for indices, _, own, _, _ in run.batches for index in indices if own == epoch]
        assert len(seen) == len(set(seen)), case
        assert set(seen) <= set(range(case.samples)), case
    assert {len(indices) for indices, *_ in run.batches} == {case.batch_size}, case


def check_resumes(case: Case, whole: tuple[Recorder, BEVTask], folder: Path, killed_in: int) -> None:
    """Kill the run in a batch, resume it, and compare it with the uninterrupted one to the last bit."""
    fit(case, folder / "killed", killed_in)
    if not (folder / "killed" / "checkpoints" / "last.ckpt").exists():
        return
    resumed, task = fit(case, folder / "killed", resumed=True)
    done = len(whole[0].batches) - len(resumed.batches)
    assert resumed.batches == whole[0].batches[done:], (case, killed_in)
    assert 0 <= killed_in - done < case.saves * case.accumulated, (case, killed_in)
    for key, value in whole[1].state_dict().items():
        assert torch.equal(task.state_dict()[key], value), (case, killed_in, key)
    assert history(folder / "killed") == history(folder / "whole"), (case, killed_in)


@pytest.mark.parametrize(
    ("case", "validations"),
    [
        (Case(3, accumulated=2, steps=8, every=4), [4, 8]),
        (Case(3, accumulated=2, steps=4, every=4), [4]),
        (Case(3, accumulated=3, steps=5, every=2), [2, 4, 5]),
        (Case(12, batch_size=2, accumulated=2, epochs=2, every=100), [6]),
    ],
)
def test_validations_are_counted_in_steps(case: Case, validations: list[int], tmp_path: Path) -> None:
    run, _ = fit(case, tmp_path)
    assert [steps for steps, _ in run.validations] == validations
    check(case, run)


@pytest.mark.parametrize("seed", range(4))
def test_any_sizes_are_exact_and_resume_bit_for_bit(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    for number in range(6):
        case = Case.drawn(draw)
        folder = tmp_path / str(number)
        whole = fit(case, folder / "whole")
        check(case, whole[0])
        check_resumes(case, whole, folder, draw.randrange(len(whole[0].batches)))


def test_resumes_from_every_batch(tmp_path: Path) -> None:
    """Across the ends of epochs, validations and accumulations, where Lightning counts in different ways."""
    case = Case(9, batch_size=2, accumulated=2, steps=5, every=3)
    whole = fit(case, tmp_path / "whole")
    for killed_in in range(10):
        (tmp_path / str(killed_in)).mkdir()
        (tmp_path / str(killed_in) / "whole").symlink_to(tmp_path / "whole")
        check_resumes(case, whole, tmp_path / str(killed_in), killed_in)


def test_early_stop_is_remembered(tmp_path: Path) -> None:
    """A run that had stopped early and is resumed to be tested trains no further."""
    case = Case(6, steps=40, every=1, patience=1)
    run, task = fit(case, tmp_path)
    assert run.batches[-1][3] < 40
    check(case, run)
    resumed, again = fit(case, tmp_path, resumed=True)
    assert resumed.batches == []
    for key, value in task.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case(3, accumulated=4, steps=8), "3 training samples do not fill one step of 4 batches of 1"),
        (Case(6, batch_size=16, steps=8), "6 training samples do not fill one batch of 16"),
        (
            Case(6, batch_size=2, accumulated=4, epochs=2),
            r"lower loader\.batch_size or trainer\.accumulate_grad_batches",
        ),
    ],
)
def test_too_few_samples_for_a_step_are_refused(case: Case, words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve_schedule(case.group, BEVDataModule(Dots(case.samples), batch_size=case.batch_size))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_shorten_an_epoch(processes: int) -> None:
    group = Case(50, epochs=3, accumulated=2).group | {"devices": processes, "num_nodes": 2}
    found = resolve_schedule(group, BEVDataModule(Dots(50, 12), batch_size=4))
    steps = sum(1 for _ in range(3) for _ in range(2 * processes * 4 * 2, 51, 2 * processes * 4 * 2))
    assert (found["max_steps"], found["max_epochs"]) == (steps, -1)


def test_compiled_training_saves_the_same_checkpoint(tmp_path: Path) -> None:
    """The same names and sizes, nearly the same weights, and they resume bit for bit."""
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "c++"))):
        pytest.skip("there is no C++ compiler, which torch.compile needs on a CPU")
    case = Case(9, batch_size=2, accumulated=2, steps=4, every=2)
    _, plain = fit(case, tmp_path / "plain")
    case = replace(case, compiled=True)
    whole = fit(case, tmp_path / "whole")
    check(case, whole[0])
    check_resumes(case, whole, tmp_path, 5)
    found, expected = (
        torch.load(tmp_path / name / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "plain")
    )
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}
    assert not any("_orig_mod" in key for key in found)
    assert whole[1]._compiled is not None
    torch.testing.assert_close(dict(whole[1].model.named_parameters()), dict(plain.model.named_parameters()))
