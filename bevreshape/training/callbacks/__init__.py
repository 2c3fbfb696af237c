"""Callbacks of a run: progress, history, images, checkpoints, and a clean stop."""

from bevreshape.training.callbacks.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from bevreshape.training.callbacks.history import History
from bevreshape.training.callbacks.images import ImageLogger
from bevreshape.training.callbacks.progress import RunProgress
from bevreshape.training.callbacks.stop import EarlyStop, FinalValidation

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "EarlyStop",
    "FinalValidation",
    "History",
    "ImageLogger",
    "LastCheckpoint",
    "RunProgress",
]
