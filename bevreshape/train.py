"""``python -m bevreshape.train``: train a view transformer, test it, and leave a run folder."""

if __name__ == "__main__":  # before anything loads torch
    from bevreshape.environment import prepare_process

    prepare_process()

import math
import re
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import wandb
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig
from rich.console import Console

from bevreshape.bev_spec import BEVSpec
from bevreshape.config import cli, settings
from bevreshape.config.build_data import build_data
from bevreshape.config.build_logger import logger_options, make_logger
from bevreshape.config.build_model import build_model
from bevreshape.config.build_task import build_task
from bevreshape.config.compose import plain_config
from bevreshape.config.groups import check_nodes
from bevreshape.config.options import LocalPath, read_settings, read_value
from bevreshape.config.overrides import quoted
from bevreshape.config.stored import check_cache, read_config, read_history, typed_trust
from bevreshape.data.batch import SPLITS
from bevreshape.data.datamodule import BEVDataModule, ResumableShuffleSampler, evaluation_sampler
from bevreshape.errors import Divergence, InputError
from bevreshape.metrics import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reporting.tables import metrics_table, print_table, write_metrics
from bevreshape.reshapers import FeatureShape
from bevreshape.storage.checkpoint import load_weights, read_checkpoint, read_resumable, restoring
from bevreshape.storage.run_folder import CHANGEABLE, begin, check_same_run, held
from bevreshape.training.callbacks import (
    BestCheckpoint,
    EarlyStop,
    FinalValidation,
    History,
    ImageLogger,
    LastCheckpoint,
    RunProgress,
)
from bevreshape.training.launch import check_hardware, in_processes, make_trainer, on_gpu, process_count, quiet
from bevreshape.training.loggers import described, summarize
from bevreshape.training.optimizer import AdamWOneCycle
from bevreshape.training.processes import Group, group, rank
from bevreshape.training.rehearsal import check_compiler, compile_failure, rehearse
from bevreshape.training.resume import check_callbacks, check_optimizer
from bevreshape.training.stopping import StopRequest
from bevreshape.training.task import BEVTask
from bevreshape.training.trainer import check_options

NEEDED = (
    "data", "loader", "encoder", "reshaper", "head", "objective", "metric", "optimizer", "trainer", "seed", "name", "checkpoint_every_n_steps", "log_images",
)  # fmt: skip
"""What the config of a run that goes on must have."""


def main(cfg: DictConfig) -> None:
    """Prepare the data, then train and test in as many processes as the config asks for."""
    plain = read_settings(settings.Train, plain_config(cfg))
    folder = Path(HydraConfig.get().runtime.output_dir)
    resumed = plain.pop("resume") is not None
    del plain["trust"]  # it was asked before Hydra read the stored config
    if (launched := group()) is not None:
        _check_one_folder(launched)
    if not resumed:
        check_same_run(folder, plain)
    try:
        data = check(plain)
        data.prepare_data()
        resolve_schedule(plain["trainer"], data)  # the sizes of the splits, too
    except InputError:
        with suppress(OSError):
            folder.rmdir()  # Hydra has made it, and it is empty unless a run was begun there
        raise
    with held(folder) if rank() == 0 else nullcontext():
        if rank() == 0:
            if not resumed:
                check_same_run(folder, plain)  # once more: another process may have begun there meanwhile
            begin(folder, plain)
        # The first checkpoint is not written before all processes have come as far as this.
        resumed = (folder / "checkpoints" / "last.ckpt").exists()
        in_processes(process_count(plain["trainer"]), train, plain, folder, resumed)


def _check_one_folder(launched: Group) -> None:
    """Refuse what would give every process of a launcher a run folder of its own."""
    hydra = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:
        raise InputError(
            f"a sweep cannot be started {launched.world} times by {launched.launcher}; start it once, and set trainer.devices, "
            "so that each of its jobs starts its own processes"
        )
    if not any(override.startswith("hydra.run.dir=") for override in hydra.overrides.hydra):
        raise InputError(
            f"started {launched.world} times by {launched.launcher}: set hydra.run.dir=FOLDER, so that all processes share one "
            "run folder"
        )


def check(cfg: dict[str, Any]) -> BEVDataModule:
    """Build all parts once, so that what is wrong with any is said before scenes are generated or processes started."""
    for key in ("max_steps", "val_check_interval"):
        if cfg["trainer"].get(key) is None:
            raise InputError(f"trainer.{key} is missing; leave it in the config")
    check_options(cfg["trainer"])
    logger_options(cfg)
    check_nodes(cfg)
    check_hardware(cfg["trainer"])
    quiet()
    data = build_data(cfg)
    spec = BEVSpec.of(data.source)
    model = build_model(cfg, spec)
    build_task(cfg, spec, model)
    alone = process_count(cfg["trainer"]) == 1
    if alone:
        make_trainer(cfg["trainer"], logger=False)
    if data.batch_size == 1 and (alone or not cfg["trainer"].get("sync_batchnorm")):
        rehearse(model, spec, 1)
    if cfg["trainer"].get("compile"):
        check_compiler(torch.device("cuda" if on_gpu(cfg["trainer"]) else "cpu"))
    return data


def train(cfg: dict[str, Any], folder: Path, resumed: bool = False) -> dict[str, float]:
    """One run: fit, test the best checkpoint, write ``metrics.json``.

    Args:
        cfg: the composed config as plain values.
        folder: the run folder.
        resumed: go on from ``folder/checkpoints/last.ckpt``.

    Returns:
        The metrics, as written.
    """
    quiet()
    data = build_data(cfg)
    spec = BEVSpec.of(data.source)
    strategy = choose_strategy(cfg, spec)
    seed_everything(cfg["seed"], verbose=False)
    model = build_model(cfg, spec)
    task = build_task(cfg, spec, model)
    description = described(model, spec.image_size) if cfg["logger"] and rank() == 0 else {}
    if cfg["trainer"].get("compile"):
        task.compile_training()
    history = History(folder / "history.csv")
    keeper = LastCheckpoint(folder / "checkpoints" / "last.ckpt", cfg["checkpoint_every_n_steps"], StopRequest())
    early_stop = make_early_stop(cfg["trainer"])
    trainer = make_trainer(
        resolve_schedule(cfg["trainer"], data) | {"strategy": strategy},
        default_root_dir=folder,
        logger=make_logger(cfg, folder),
        callbacks=[
            *([RunProgress()] if cfg["trainer"].get("enable_progress_bar", True) else []),
            history,
            ImageLogger(folder / "images", data.source.classes, **cfg["log_images"]),
            FinalValidation(),
            *([early_stop] if early_stop is not None else []),
            BestCheckpoint(keeper.path.parent),
            keeper,
        ],
    )
    if trainer.is_global_zero:
        _print_summary(cfg, model, spec, folder)
        if resumed:
            Console(stderr=True).print(f"resumes from {keeper.path}", highlight=False, soft_wrap=True)
    outcome: dict[str, float] = {}
    try:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_hyperparams({**cfg, "model": description})
        if resumed:
            saved = read_resumable(task, keeper.path, cfg)
            if isinstance(task.optimizer, AdamWOneCycle):  # of one's own, only restoring it shows whether it fits
                check_optimizer(saved, task.optimizer, task.model, trainer.max_steps, keeper.path)
            check_callbacks(saved, trainer.callbacks, keeper.path)  # type: ignore[attr-defined]  # set by its connector
            del saved
            if history.path.exists():
                read_history(history.path)  # before anything could replace what cannot be read
        with keeper.request:
            with restoring(keeper.path, lambda: history.began or not resumed):
                trainer.fit(task, datamodule=data, ckpt_path=keeper.path if resumed else None, weights_only=True)
            keeper.save(trainer)
            steps = trainer.fit_loop.epoch_loop.global_step
            metrics = test_best(trainer, task, data, keeper.path.with_name("best.ckpt"))
        metrics |= {
            "fit/seconds": round(history.seconds, 2),
            "fit/samples_per_second": float(f"{history.samples / max(history.seconds, 1e-9):.4g}"),
            "fit/data_wait_share": round(history.waited / max(history.seconds, 1e-9), 4),
            "fit/steps": steps,
        }
        stopped_early = early_stop is not None and early_stop.exhausted and steps < trainer.max_steps
        if early_stop is not None:
            metrics["fit/stopped_early"] = float(stopped_early)
        for logger in trainer.loggers:
            logger.log_metrics({key: value for key, value in metrics.items() if key.startswith("fit/")})
        outcome = metrics
    except RuntimeError as error:
        sentence = torch_says(error, cfg["trainer"])
        if sentence is None:
            raise
        raise sentence from error
    finally:
        for logger in trainer.loggers:
            summarize(logger, outcome or history.best())
        if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            wandb.finish()  # or the next job of a sweep would go on in this W&B run
    if trainer.is_global_zero:
        write_metrics(folder, metrics)
        print_table(metrics_table(metrics, spec.classes, f"{cfg['name']}: test"))
        console = Console()
        if stopped_early and early_stop is not None:
            console.print(
                f"stopped early, after {steps} of {trainer.max_steps} steps: {early_stop.monitor} has not improved in "
                f"{early_stop.wait_count} validations, the best is {float(early_stop.best_score):.4f}",
                highlight=False,
                soft_wrap=True,
            )
        console.print(
            f"{steps} steps in {_short(metrics['fit/seconds'])} s, {_short(metrics['fit/samples_per_second'])} samples/s · {folder}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return metrics


def test_best(trainer: Trainer, task: BEVTask, data: BEVDataModule, best: Path) -> dict[str, float]:
    """Validation and test metrics of the best checkpoint, the test also at the thresholds best on the validation set."""
    load_weights(task.model, read_checkpoint(best), best)
    validated = trainer.validate(task, datamodule=data, verbose=False, weights_only=True)[0]
    for metric in task.metrics_of("test").values():
        if isinstance(metric, BEVIoU):
            metric.chosen = {name: validated[f"val/best_threshold/{name}"] for name in metric.classes}
    tested = trainer.test(task, datamodule=data, verbose=False, weights_only=True)[0]
    return {key: float(value) for key, value in {**tested, **validated}.items()}


def resolve_schedule(trainer: Mapping[str, Any], data: BEVDataModule) -> dict[str, Any]:
    """The ``trainer`` group with its length in optimizer steps, and its validations in batches, as Lightning counts them.

    ``max_epochs`` is turned into steps, of which an epoch has as many as it fills; where both are given the shorter holds.
    Validations fall on the multiples of ``val_check_interval`` and on the end
    (:class:`~bevreshape.training.callbacks.FinalValidation`).

    Raises:
        InputError: when a split is too small for the batch size, the processes, the batches that are accumulated, or the
            share of it that is asked for.
    """
    trainer = {"accumulate_grad_batches": 1, "max_epochs": -1, **trainer}
    accumulated, steps, epochs = (trainer[key] for key in ("accumulate_grad_batches", "max_steps", "max_epochs"))
    world = process_count(trainer) * trainer.get("num_nodes", 1)
    samples = {name: len(data.source.split(name)) for name in SPLITS}  # type: ignore[arg-type]
    order = ResumableShuffleSampler(samples["train"], data.batch_size, data.seed, world=world, accumulated=accumulated)
    for name in ("val", "test"):
        smallest = len(evaluation_sampler(range(samples[name]), world - 1, world))
        batches = math.ceil(smallest / data.batch_size)
        limit = trainer.get(f"limit_{name}_batches")
        if isinstance(limit, float) and int(batches * limit) == 0:
            raise InputError(
                f"trainer.limit_{name}_batches={limit} of {batches} batches is none; set it to a number of batches"
            )
    if epochs > 0:
        steps = min(order.steps * epochs, steps) if steps > 0 else order.steps * epochs
    every = min(trainer["val_check_interval"], steps)
    return {**trainer, "max_steps": steps, "max_epochs": -1, "val_check_interval": every * accumulated}


def choose_strategy(cfg: Mapping[str, Any], spec: BEVSpec) -> str:
    """The strategy of the ``trainer`` group, or the one that waits for no gradient of parameters which get none.

    Encoders may keep branches that are not read, and distributed training would wait for their gradients for ever.
    """
    trainer = cfg["trainer"]
    asked = str(trainer.get("strategy", "auto"))
    if process_count(trainer) * trainer.get("num_nodes", 1) == 1 or asked not in ("auto", "ddp"):
        return asked
    unused = rehearse(build_model(cfg, spec), spec, 2, backward=True)
    return "ddp_find_unused_parameters_true" if unused else asked


def torch_says(error: RuntimeError, trainer: Mapping[str, Any]) -> InputError | None:
    """The sentence for what torch raises in mid-training because of an option of the trainer; ``None`` for all else."""
    text = str(error)
    reason = (text.strip().splitlines() or [type(error).__name__])[0]
    compilers = ("torch._dynamo", "torch._inductor")
    if trainer.get("compile") and type(error).__module__.startswith(compilers):
        return InputError(compile_failure(error))
    if trainer.get("deterministic") and "deterministic" in text:
        return InputError(
            f"trainer.deterministic={trainer['deterministic']}: {reason}; set trainer.deterministic=false"
        )
    if trainer.get("detect_anomaly") and "returned nan values" in text:
        return Divergence(f"training: {reason}; lower optimizer.lr, or look at the batch")
    if "gloo" in text and re.search(r"closed by peer|reset by peer|Timed out waiting", text):
        return InputError(
            "training: another process of this run has ended, so this one cannot go on; its reason is in its own messages, and the "
            "same command with the same hydra.run.dir resumes"
        )
    if "Expected to have finished reduction" in text:
        return InputError(
            "trainer.strategy: some parameters get a gradient in some steps only; set "
            "trainer.strategy=ddp_find_unused_parameters_true"
        )
    return None


def make_early_stop(trainer: Mapping[str, Any]) -> EarlyStop | None:
    """What ends training early, where the ``trainer`` group asks for it."""
    node = {"monitor": "val/iou/mean", "patience": None, "min_delta": 0.0, **(trainer.get("early_stopping") or {})}
    return None if node["patience"] is None else EarlyStop(**node)


def prepare(config_name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """With ``resume=FOLDER``, make that run's config the primary one and point Hydra at its folder.

    Raises:
        InputError: when the folder is no run, or an argument would make it another one.
    """
    folder = cli.typed_value(arguments, "resume")
    if folder is None:
        return config_name, arguments
    folder = read_value("resume", LocalPath, folder)
    run = Path(folder)
    if not (run / "config.yaml").is_file() or not (run / "checkpoints" / "last.ckpt").is_file():
        raise InputError(
            f"resume={folder} has no config.yaml and checkpoints/last.ckpt; name a runs/<date>/<time> folder that was begun"
        )
    if "${" in str(run.resolve()):
        raise InputError(
            f"resume={folder} lies in {run.resolve()}, of which Hydra would resolve '${{'; rename that folder"
        )
    for argument in arguments:
        if argument.startswith(("~", "-m", "--multirun", "-cn", "--config-name", "-cp", "--config-path")):
            raise InputError(f"{argument}: a run resumes alone and as it began; leave it out, or start a new run")
        key = argument.split("=")[0].lstrip("+~")
        if "=" in argument and key not in ("resume", "trust") and not key.startswith(CHANGEABLE):
            raise InputError(
                f"{argument}: a run goes on as it began, only {', '.join(f'{key}KEY' if key.endswith('.') else key for key in CHANGEABLE)} may change; "
                "start a new run to change more"
            )
    stored = read_config(run / "config.yaml", typed_trust(arguments), NEEDED)
    if cli.typed_value(arguments, "data.root") is None:
        check_cache(stored["data"], str(run / "config.yaml"))
    ConfigStore.instance().store(name="resumed", node={**stored, "resume": folder, "trust": []})
    return "resumed", [
        *arguments,
        f"hydra.run.dir={quoted(str(run.resolve()))}",
        "hydra.output_subdir=null",
    ]


def _print_summary(cfg: dict[str, Any], model: BEVModel, spec: BEVSpec, folder: Path) -> None:
    encoder, reshaper, head = (
        sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.reshaper, model.heads)
    )
    sources: tuple[FeatureShape, ...] = model.encoder.sources  # type: ignore[assignment]
    features = " + ".join(f"{s.cameras}×{s.channels}×{s.height}×{s.width}" for s in sources)
    rows, cols = spec.grid.shape
    Console(stderr=True).print(
        f"{cfg['name']}: encoder {encoder:,} parameters → {features} → {type(model.reshaper).__name__} {reshaper:,} → "
        f"head {head:,} → {len(spec.classes)}×{rows}×{cols} · {folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    cli.run(main, "train", prepare)
