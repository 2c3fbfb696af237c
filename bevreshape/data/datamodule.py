"""Load splits in batches; targets and augmentation are computed on the device."""

import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import replace

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from bevreshape.config.options import BatchSize, CountOrNone, Seed, checked
from bevreshape.data.batch import SPLITS, BEVBatch, BEVSource, Sample, collate, seeded
from bevreshape.data.check_samples import check_first_samples
from bevreshape.data.one_rig import OneRig
from bevreshape.errors import InputError, data_errors
from bevreshape.training.stopping import Loader

Augmentation = Callable[[BEVBatch, int, int], BEVBatch]
"""``augment(batch, seed, epoch)``: every sample's change is a function of seed, epoch and the sample's index."""


class ResumableShuffleSampler(Sampler[int]):
    """Shuffle training samples as a function of seed and epoch alone, so that a run resumes within an epoch.

    Batch g of an epoch is the same set of samples on one process with batch size B·world and on ``world`` processes
    with batch size B each. Samples that do not fill an optimizer step are left out of the epoch, different ones in
    each. Every step thus accumulates the same number of batches, and none extends into the next epoch.

    Args:
        length: samples in the split.
        batch_size: per process.
        seed: of the order.
        rank: number of this process.
        world: number of processes.
        epoch: the first epoch to iterate.
        start: batches of that first epoch to skip; they were trained on before.
        accumulated: batches per optimizer step.

    Raises:
        InputError: when the split does not fill one optimizer step.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        epoch: int = 0,
        start: int = 0,
        accumulated: int = 1,
    ) -> None:
        self.steps = length // (batch_size * world * accumulated)
        self.batches = self.steps * accumulated
        if self.steps == 0:
            several = accumulated > 1
            raise InputError(
                f"data: {length} training samples do not fill one "
                f"{f'step of {accumulated} batches' if several else 'batch'} of {batch_size} on {world} process(es); "
                f"lower loader.batch_size{' or trainer.accumulate_grad_batches' if several else ''}, or add samples"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.epoch, self.start = rank, world, epoch, start

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this when one begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.length, generator=seeded(self.seed, self.epoch))
        mine = order[: len(self) * self.world].view(-1, self.world)[:, self.rank]
        start, self.start = self.start, 0
        return _integers(mine[start * self.batch_size :].clone())  # the clone frees the order of other processes


def _integers(values: Tensor) -> Iterator[int]:
    """Yield the values of a tensor. A list of all of them would take 36 bytes for each."""
    for part in values.split(4096):
        yield from part.tolist()


def evaluation_sampler(dataset: Sized, rank: int, world: int) -> range:
    """Give each sample to exactly one process: shares may differ in length, and metrics add up exactly.

    Lightning's sampler for this makes a list of all samples in every process.

    Raises:
        InputError: when there are more processes than samples.
    """
    if len(dataset) < world:
        raise InputError(
            f"data: {len(dataset)} samples cannot be shared by {world} processes; "
            f"set trainer.devices={max(len(dataset), 1)}"
        )
    return range(rank, len(dataset), world)


@checked
class BEVDataModule(LightningDataModule):
    """Load batches of a :class:`~bevreshape.data.batch.BEVSource`.

    Args:
        source: of the samples.
        batch_size: samples per process.
        num_workers: processes that read samples; 0 reads in the training process.
        augment: changes training batches on the device; ``None`` does not change them.
        seed: of order and augmentation.

    ``one_rig`` checks that all samples have the same cameras; ``None`` does not. ``tested_split`` is the split of
    ``trainer.test``. ``camera_order`` selects and orders the cameras of batches; ``None`` keeps those of the source.
    ``arrived_s`` is the time when the latest batch left its loader, by ``time.perf_counter``, before any work on the
    device.
    """

    def __init__(
        self,
        source: BEVSource,
        *,
        batch_size: BatchSize,
        num_workers: CountOrNone = 0,
        augment: Augmentation | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.source = source
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.seed = seed
        self.tested_split = "test"
        self.camera_order: Sequence[int] | None = None
        self.arrived_s: float | None = None
        self.one_rig: OneRig | None = None

    def prepare_data(self) -> None:
        only_tests = self.trainer is not None and self.trainer.state.fn == "test"
        splits = (self.tested_split,) if only_tests else SPLITS
        with data_errors():
            self.source.prepare(splits)
            check_first_samples(self.source, splits)

    def train_dataloader(self) -> DataLoader[Sample]:
        dataset = self.source.split("train")
        epoch, start = 0, 0
        rank, world = self._place()
        accumulated = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        order = ResumableShuffleSampler(
            len(dataset),  # type: ignore[arg-type]
            self.batch_size,
            self.seed,
            rank,
            world,
            accumulated=accumulated,
        )
        if self.trainer is not None:
            # A checkpoint taken after the last batch of an epoch still carries that epoch's number.
            done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            epoch = self.trainer.current_epoch + (done >= order.batches)
            start = 0 if done >= order.batches else done
        order.epoch, order.start = epoch, start
        return self._loader(dataset, order)

    def val_dataloader(self) -> DataLoader[Sample]:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        return self._evaluation(self.tested_split)

    def on_before_batch_transfer(self, batch: BEVBatch, dataloader_idx: int) -> BEVBatch:
        self.arrived_s = time.perf_counter()
        if self.one_rig is not None:
            self.one_rig.check(batch)
        return batch

    def on_after_batch_transfer(self, batch: BEVBatch, dataloader_idx: int) -> BEVBatch:
        with data_errors():
            batch = self.source.make_targets(replace(batch, images=batch.images.float() / 255))
        if self.augment is not None and self.trainer is not None and self.trainer.training:
            given = batch.cameras
            batch = self.augment(batch, self.seed, self.trainer.current_epoch)
            if self.one_rig is not None:
                self.one_rig.check_unmoved(given, batch.cameras)
        return batch if self.camera_order is None else batch.select_cameras(self.camera_order)

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _evaluation(self, split: str) -> DataLoader[Sample]:
        dataset = self.source.split(split)
        return self._loader(dataset, evaluation_sampler(dataset, *self._place()))  # type: ignore[arg-type]

    def _loader(self, dataset, sampler: Sampler[int] | range) -> DataLoader[Sample]:
        return Loader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the loader's own draws must not move the global random state
        )
