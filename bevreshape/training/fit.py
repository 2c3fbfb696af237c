"""One process of a run: fit, test the best checkpoint, write ``metrics.json``."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.allowed import needed_trust
from bevreshape.config.build_data import build_data
from bevreshape.config.build_logger import make_logger
from bevreshape.config.build_model import build_model
from bevreshape.config.build_task import build_task
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.metrics import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.ops.compiled import any_number_of_models
from bevreshape.reporting.tables import write_metrics
from bevreshape.reshapers import FeatureShape
from bevreshape.storage.checkpoint import load_weights, read_checkpoint, read_resumable, restoring
from bevreshape.storage.plain_values import read_history
from bevreshape.training.callbacks import (
    BestCheckpoint,
    EarlyStop,
    FinalValidation,
    History,
    ImageLogger,
    LastCheckpoint,
    RunProgress,
)
from bevreshape.training.failures import explain_failure
from bevreshape.training.hardware import matmul_precision
from bevreshape.training.loggers import describe_model, log_settings, summarize
from bevreshape.training.optimizer import AdamWOneCycle
from bevreshape.training.processes import rank
from bevreshape.training.resume import check_callbacks, check_optimizer
from bevreshape.training.rig_geometry import fix_rig
from bevreshape.training.schedule import make_early_stop, resolve_schedule, score_of
from bevreshape.training.stopping import StopRequest
from bevreshape.training.strategy import choose_strategy
from bevreshape.training.task import BEVTask
from bevreshape.training.trainer import make_trainer, silence_lightning

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """Result of a run.

    Attributes:
        metrics: as written to ``metrics.json``.
        classes: names of the classes in the data.
        score: key of the validation score that selects the best checkpoint.
        tables: title and values of every metric other than IoU, on the test split.
        stopped_early: why training ended before its last step; ``None`` if it did not.
    """

    metrics: dict[str, float]
    classes: tuple[str, ...]
    score: str
    tables: tuple[tuple[str | None, dict[str, float]], ...]
    stopped_early: str | None

    @property
    def pace(self) -> str:
        """Return steps, seconds and samples per second, for the console."""
        steps, seconds, rate = (self.metrics[f"fit/{key}"] for key in ("steps", "seconds", "samples_per_second"))
        return f"{steps} steps in {_short(seconds)} s, {_short(rate)} samples/s"


@dataclass(frozen=True)
class _Parts:
    """The objects of one process of a run."""

    cfg: Mapping[str, Any]
    data: BEVDataModule
    spec: BEVSpec
    model: BEVModel
    task: BEVTask
    trainer: Trainer
    history: History
    keeper: LastCheckpoint
    early_stop: EarlyStop | None
    description: dict[str, Any] = field(default_factory=dict)


def train(cfg: dict[str, Any], folder: Path, resumed: bool = False, tested: bool = True) -> TrainingResult:
    """Fit, test the best checkpoint, and write ``metrics.json``.

    Args:
        cfg: the composed config as plain values.
        folder: the run folder.
        resumed: resume from ``folder/checkpoints/last.ckpt``.
        tested: leave the test split alone if false; the metrics are then those of the best validation.
    """
    with matmul_precision(cfg["trainer"]):
        return _train(_set_up(cfg, folder), folder, resumed, tested)


def _train(parts: _Parts, folder: Path, resumed: bool, tested: bool) -> TrainingResult:
    cfg, trainer = parts.cfg, parts.trainer
    if trainer.is_global_zero:
        log.info("%s · %s", summary(cfg["name"], parts.model, parts.spec), folder)
    outcome: dict[str, float] = {}
    try:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                log_settings(logger, {**cfg, "model": parts.description})
        metrics, stopped_early = _fit_and_test(parts, resumed, tested)
        outcome = metrics
    except RuntimeError as error:
        explained = explain_failure(error, cfg["trainer"])
        if explained is None:
            raise
        raise explained from error
    finally:
        for logger in trainer.loggers:
            summarize(logger, outcome or parts.history.best())
        if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            wandb.finish()  # otherwise the next job of a sweep would be added to this W&B run
    if trainer.is_global_zero:
        write_metrics(folder, metrics)
    title = getattr(parts.data.source, "protocol", None)
    tables = tuple((title, values) for values in parts.task.tables)
    return TrainingResult(metrics, parts.spec.classes, parts.history.score, tables, stopped_early)


def _set_up(cfg: dict[str, Any], folder: Path) -> _Parts:
    silence_lightning()
    data = build_data(cfg)
    spec = BEVSpec.of(data.source)
    strategy = choose_strategy(cfg, spec)
    seed_everything(cfg["seed"], verbose=False)
    model = build_model(cfg, spec)
    task = build_task(cfg, spec, model)
    if cfg["trainer"].get("static_rig"):
        fix_rig(task, data)
    description = describe_model(model, spec.image_size) if cfg["logger"] and rank() == 0 else {}
    if cfg["trainer"].get("compile"):
        task.compile_training(cuda_graphs=cfg["trainer"]["compile"] == "cuda_graphs")
    score = score_of(task.metrics["val"].values())
    history = History(folder / "history.csv", score)
    last = folder / "checkpoints" / "last.ckpt"
    keeper = LastCheckpoint(last, cfg["checkpoint_every_n_steps"], StopRequest(), needed_trust(cfg))
    early_stop = make_early_stop(cfg["trainer"], task)
    trainer = make_trainer(
        resolve_schedule(cfg["trainer"], data),
        strategy=strategy,
        default_root_dir=folder,
        logger=make_logger(cfg, folder),
        callbacks=[
            *([RunProgress()] if cfg["trainer"].get("enable_progress_bar", True) else []),
            history,
            ImageLogger(folder / "images", data.source.classes, **cfg["log_images"]),
            FinalValidation(),
            *([early_stop] if early_stop is not None else []),
            BestCheckpoint(keeper.path.parent, score),
            keeper,
        ],
    )
    return _Parts(cfg, data, spec, model, task, trainer, history, keeper, early_stop, description)


def _fit_and_test(parts: _Parts, resumed: bool, tested: bool) -> tuple[dict[str, float], str | None]:
    """Return the metrics, and the reason if training stopped early."""
    task, trainer, history, keeper = parts.task, parts.trainer, parts.history, parts.keeper
    if resumed:
        saved = _check_resumable(parts)
        if trainer.is_global_zero:
            log.info("%s", _how_resumed(parts, saved))
    with keeper.request:
        compiling = any_number_of_models() if parts.cfg["trainer"].get("compile") else nullcontext()
        with restoring(keeper.path, lambda: history.began or not resumed), compiling:
            trainer.fit(task, datamodule=parts.data, ckpt_path=keeper.path if resumed else None, weights_only=True)
        keeper.save(trainer)
        steps = trainer.fit_loop.epoch_loop.global_step
        metrics = history.best()
        if tested:
            metrics = test_best(trainer, task, parts.data, keeper.path.with_name("best.ckpt"))
    metrics |= {
        "fit/seconds": round(history.seconds, 2),
        "fit/samples_per_second": float(f"{history.samples / max(history.seconds, 1e-9):.4g}"),
        "fit/data_wait_share": round(history.waited / max(history.seconds, 1e-9), 4),
        "fit/steps": steps,
    }
    early_stop = parts.early_stop
    stopped_early = early_stop is not None and early_stop.exhausted and steps < trainer.max_steps
    if early_stop is not None:
        metrics["fit/stopped_early"] = float(stopped_early)
    for logger in trainer.loggers:
        logger.log_metrics({key: value for key, value in metrics.items() if key.startswith("fit/")})
    if early_stop is None or not stopped_early:
        return metrics, None
    return metrics, (
        f"stopped early, after {steps} of {trainer.max_steps} steps: {early_stop.monitor} has not improved in "
        f"{early_stop.wait_count} validations, the best is {float(early_stop.best_score):.4f}"
    )


def _check_resumable(parts: _Parts) -> Mapping[str, Any]:
    """Return the ``last.ckpt`` of the run; refuse one that does not fit it, before it is overwritten.

    Raises:
        InputError: when it does not fit; names the file and the difference.
    """
    task, trainer, path = parts.task, parts.trainer, parts.keeper.path
    saved = read_resumable(task, path, parts.cfg)
    if isinstance(task.optimizer, AdamWOneCycle):  # any other optimizer is checked when it is restored
        check_optimizer(saved, task.optimizer, task.model, trainer.max_steps, path)
    check_callbacks(saved, trainer.callbacks, path)  # type: ignore[attr-defined]  # set by its connector
    if parts.history.path.exists():
        read_history(parts.history.path)
    return saved


def _how_resumed(parts: _Parts, saved: Mapping[str, Any]) -> str:
    """Return the message about a resumed run: its training continues, or it is finished."""
    steps, stop = saved["global_step"], parts.early_stop
    if stop is not None and saved["callbacks"][stop.state_key]["wait_count"] >= stop.patience:
        return f"training is finished, it stopped early after {steps} steps; only its test is run"
    if steps >= parts.trainer.max_steps:
        return f"training is finished after {steps} steps; only its test is run"
    return f"resumes from {parts.keeper.path}"


def test_best(trainer: Trainer, task: BEVTask, data: BEVDataModule, best: Path) -> dict[str, float]:
    """Return validation and test metrics of the best checkpoint, the test also at the best validation thresholds."""
    load_weights(task.model, read_checkpoint(best), best)
    validated = trainer.validate(task, datamodule=data, verbose=False, weights_only=True)[0]
    for metric in task.metrics["test"].values():
        if isinstance(metric, BEVIoU):
            metric.chosen = {name: validated[f"val/best_threshold/{name}"] for name in metric.classes}
    tested = trainer.test(task, datamodule=data, verbose=False, weights_only=True)[0]
    return {key: float(value) for key, value in {**tested, **validated}.items()}


def summary(name: str, model: BEVModel, spec: BEVSpec) -> str:
    """Return a line with the parts of a model, their parameters and sizes."""
    encoder, reshaper, head = (
        sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.reshaper, model.heads)
    )
    sources: tuple[FeatureShape, ...] = model.encoder.sources  # type: ignore[assignment]
    features = " + ".join(f"{s.cameras}×{s.channels}×{s.height}×{s.width}" for s in sources)
    rows, cols = spec.grid.shape
    return (
        f"{name}: encoder {encoder:,} parameters → {features} → {type(model.reshaper).__name__} {reshaper:,} → "
        f"head {head:,} → {len(spec.classes)}×{rows}×{cols}"
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
