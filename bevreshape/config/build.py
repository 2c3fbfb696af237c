"""From a composed config to objects."""

import inspect
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from bevreshape.config.construct import check_node, construct, locate
from bevreshape.config.options import BatchSize, CountOrNone, Seed, Upsample, read_value
from bevreshape.config.stored import check_plain, check_targets, read_trust
from bevreshape.data.batch import BEVSource
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.data.image_io import ImageMode
from bevreshape.data.names import check_classes
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.heads import Head
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.objectives.losses import InstanceLoss
from bevreshape.reshapers import FeatureShape, Reshaper
from bevreshape.storage.checkpoint import FORMAT, check_architecture, load_weights, model_weights, read_checkpoint
from bevreshape.storage.files import read_text, write_text
from bevreshape.training.loggers import begin, check_passed_on, is_wandb, wandb_options
from bevreshape.training.processes import rank
from bevreshape.training.task import BEVTask

MOST_PIXELS, MOST_CELLS = 1 << 23, 1 << 24
"""Of an image and of a map that a checkpoint says its model is for."""

MOST_BUFFER_BYTES = 1 << 30
"""Of what a checkpoint's model holds in addition to its weights."""

MODEL_PARTS = ("encoder", "reshaper", "head")
"""Groups of a config that make the model."""

LOADER_KEYS = {"batch_size": BatchSize, "num_workers": CountOrNone}
"""Keys of the ``data`` group that are the datamodule's; all others are the source's."""

GIVEN: Mapping[str, tuple[str, ...]] = {
    "data": (),
    "augment": ("grid", "camera_names", "image_mode"),
    "encoder": ("image_size", "cameras"),
    "reshaper": ("source", "grid"),
    "head": ("in_channels", "classes"),
    "loss": ("classes",),
    "optimizer": (),
    "logger": ("save_dir",),
}
"""What the program gives the class of a group, in addition to the options of the config."""

NEEDED: Mapping[str, tuple[str, ...]] = {
    "data": ("grid", "classes", "camera_names", "image_size", "prepare", "split", "finish"),
    "encoder": ("sources", "forward"),
    "reshaper": ("out_channels", "forward"),
    "head": ("forward",),
    "loss": ("forward",),
    "optimizer": ("build",),
}
"""What the program asks of the objects of a group; a class of another kind lacks some of it."""

ADVICE = {"out_channels": "set it to d in its __init__, the head is built for it"}
"""For what one's own class easily lacks."""


@dataclass(frozen=True)
class Frame:
    """What a model must fit: the rig it looks through and the cells it fills."""

    grid: BEVGrid
    classes: tuple[str, ...]
    camera_names: tuple[str, ...]
    image_size: tuple[int, int]
    image_mode: str = "rgb"

    def __post_init__(self) -> None:
        check_classes(self.classes, "data.classes")

    @classmethod
    def of(cls, source: BEVSource) -> "Frame":
        """The frame of a data source."""
        height, width = source.image_size
        return cls(
            source.grid, tuple(source.classes), tuple(source.camera_names), (height, width),
            getattr(source, "image_mode", "rgb"),
        )  # fmt: skip

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "forward_m": list(self.grid.forward_m),
            "left_m": list(self.grid.left_m),
            "cell_m": self.grid.cell_m,
            "classes": list(self.classes),
            "camera_names": list(self.camera_names),
            "image_size": list(self.image_size),
            "image_mode": self.image_mode,
        }

    @classmethod
    def from_plain(cls, plain: Any, where: str = "frame") -> "Frame":
        """The inverse of :meth:`to_plain`.

        Raises:
            InputError: for what no frame has, naming ``where`` it stands and the key.
        """

        def numbers(key: str, count: int, kind: type = float) -> tuple[Any, ...]:
            values = plain.get(key)
            kinds = (int, float) if kind is float else (int,)
            if (
                not isinstance(values, list | tuple)
                or len(values) != count
                or not all(type(value) in kinds and abs(value) <= 1e6 for value in values)
            ):
                what = "numbers" if kind is float else "integers"
                raise InputError(
                    f"{where}.{key} must be {count} {what} of at most a million, not {values!r:.80}; it is damaged"
                )
            return tuple(values)

        def names(key: str) -> tuple[str, ...]:
            values = plain.get(key)
            if (
                not isinstance(values, list | tuple)
                or not values
                or not all(isinstance(value, str) and value for value in values)
                or len(set(values)) < len(values)
            ):
                raise InputError(
                    f"{where}.{key} must be different names, one at least, not {values!r:.80}; it is damaged"
                )
            return tuple(values)

        if not isinstance(plain, Mapping):
            raise InputError(f"{where} must be a mapping, not {plain!r:.80}; it is damaged")
        height, width = numbers("image_size", 2, int)
        if min(height, width) < 1 or height * width > MOST_PIXELS:
            raise InputError(
                f"{where}.image_size=[{height}, {width}] must be height and width in pixels, {MOST_PIXELS:,} pixels at most; it is "
                "damaged"
            )
        cell_m: Any = plain.get("cell_m")
        if type(cell_m) not in (int, float) or not 1e-4 <= cell_m <= 1e6:
            raise InputError(
                f"{where}.cell_m must be the length of a cell in metres, not {cell_m!r:.80}; it is damaged"
            )
        try:
            grid = BEVGrid(numbers("forward_m", 2), numbers("left_m", 2), cell_m)
        except InputError as error:
            raise InputError(str(error) if where in str(error) else f"{where}: {error}") from None
        if math.prod(grid.shape) > MOST_CELLS:
            raise InputError(
                f"{where} has {grid.rows}×{grid.cols} cells, at most {MOST_CELLS:,} are read; it is damaged"
            )
        mode = read_value(f"{where}.image_mode", ImageMode, plain.get("image_mode", "rgb"))
        return cls(grid, names("classes"), names("camera_names"), (height, width), mode)


def check_nodes(cfg: Mapping[str, Any]) -> None:
    """Compare every group of a config with its class, before anything is read, built or loaded from the network.

    Raises:
        InputError: naming the key.
    """
    given = {**GIVEN, "head": (*GIVEN["head"], *(["instances"] if _instances(cfg) else ()))}
    for key, names in given.items():
        node = dict(_plain(cfg.get(key)) or {})
        if key == "data":
            names = ("instances",) if _instances(cfg) else ()
            node = {name: value for name, value in node.items() if name not in LOADER_KEYS}
        if node or key not in ("augment", "logger"):
            check_node(key, node, names)


def build_data(cfg: Mapping[str, Any]) -> BEVDataModule:
    """The datamodule of ``cfg.data`` and ``cfg.augment``, ordered by ``cfg.seed``."""
    seed = read_value("seed", Seed, cfg["seed"])
    node = dict(_plain(cfg["data"]))
    missing = [key for key in LOADER_KEYS if key not in node]
    if missing:
        raise InputError(f"data has no {missing[0]}; set data.{missing[0]}=NUMBER")
    loader = {key: read_value(f"data.{key}", hint, node.pop(key)) for key, hint in LOADER_KEYS.items()}
    instances = _instances(cfg)
    if instances and "instances" not in inspect.signature(locate(str(node.get("_target_")))).parameters:
        raise InputError(
            f"instances.classes={instances}: {node['_target_']} does not tell objects apart; choose data=nuscenes, or set "
            "instances.classes=[]"
        )
    source = _make("data", node, **({"instances": instances} if instances else {}))
    augment = cfg.get("augment")
    if augment:
        fitting = {"image_mode": source.image_mode} if getattr(source, "image_mode", "rgb") != "rgb" else {}
        augment = _make("augment", augment, grid=source.grid, camera_names=source.camera_names, **fitting)
        if getattr(augment, "flip_p", 0) > 0 and getattr(source, "raster", "exact") != "exact":
            raise InputError(
                f"augment.flip_p={augment.flip_p}: data.raster={source.raster} draws half a cell to one side, so a mirrored "
                "image would be trained on another truth, a cell off; set augment.flip_p=0 or data.raster=exact"
            )
    return BEVDataModule(source, **loader, augment=augment or None, seed=seed)


def build_model(cfg: Mapping[str, Any], frame: Frame) -> BEVModel:
    """Encoder, reshaper and head of a config, each built for the sizes that the one before it delivers."""
    encoder = _make("encoder", cfg["encoder"], image_size=frame.image_size, cameras=len(frame.camera_names))
    sources = encoder.sources
    upsample = read_value("head.upsample", Upsample, cfg["head"].get("upsample"))
    reshaper = build_reshaper(cfg["reshaper"], sources, frame.grid.coarsen(upsample))
    instances = {"instances": len(_instances(cfg))} if _instances(cfg) else {}
    head = _make("head", cfg["head"], in_channels=reshaper.out_channels, classes=len(frame.classes), **instances)
    if instances and not isinstance(head, Head):
        raise InputError(
            f"instances.classes={_instances(cfg)}: {type(head).__name__} makes no maps of objects; derive it from "
            "bevreshape.heads.Head, or set instances.classes=[]"
        )
    return BEVModel(encoder, reshaper, head)


def build_reshaper(node: Mapping[str, Any], sources: Sequence[FeatureShape], grid: BEVGrid) -> Reshaper:
    """The view transformer of a config node, for features of one or several scales.

    Raises:
        InputError: when it takes one scale but several are given, or does not say what it delivers.
    """
    target = node.get("_target_")
    if len(sources) > 1 and target and not getattr(locate(target), "takes_scales", False):
        strides = [source.stride for source in sources]
        raise InputError(
            f"encoder.strides={strides} are {len(strides)} scales but {target} takes one; set encoder.strides=[{strides[0]}]"
        )
    return _make("reshaper", node, source=sources[0] if len(sources) == 1 else tuple(sources), grid=grid)


def build_task(cfg: Mapping[str, Any], frame: Frame, model: BEVModel) -> BEVTask:
    """A model with its loss, metric and optimizer; its checkpoints carry what rebuilds it."""
    recipe = {"format": FORMAT, "config": _plain(cfg), "frame": frame.to_plain()}
    check_plain(recipe, "config")  # or the checkpoint that holds it would be refused
    return BEVTask(
        model,
        _make("loss", cfg["loss"], classes=frame.classes),
        BEVIoU(frame.classes, frame.grid),
        _make("optimizer", cfg["optimizer"]),
        seed=cfg["seed"],
        recipe=recipe,
        instance_loss=InstanceLoss(
            [frame.classes.index(name) for name in _instances(cfg)],
            cfg["instances"]["center"],
            cfg["instances"]["offset"],
        )
        if _instances(cfg)
        else None,
    )


def _instances(cfg: Mapping[str, Any]) -> list[str]:
    """The classes whose objects' centres are learned too; data alone, and models of before, have none."""
    node = cfg.get("instances") or {}
    if not isinstance(node, Mapping):
        raise InputError(f"instances={node!r} must be a mapping, such as classes: [vehicle]")
    found = node.get("classes") or []
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        raise InputError(f"instances.classes={found} must be a list of classes, such as [vehicle]")
    return list(found)


def load_model(path: str, trust: Sequence[str] = ()) -> tuple[BEVModel, Frame, dict[str, Any]]:
    """Rebuild a trained model from its checkpoint alone, on the CPU and in evaluation mode.

    Args:
        path: the checkpoint.
        trust: packages whose classes it may call, beside bevreshape and the installed entry points.

    Returns:
        The model, the frame it was trained for, and the config of its run.

    Raises:
        InputError: when the file is not such a checkpoint, or names classes outside bevreshape and the entry points
            that are installed.
    """
    checkpoint = read_checkpoint(path)
    cfg, frame = _read_recipe(checkpoint["bevreshape"], f"checkpoint {path}", read_trust(trust))
    weights = model_weights(checkpoint)
    try:
        if all(cfg[part]["_target_"].startswith("bevreshape.") for part in MODEL_PARTS):
            # a sketch that takes no memory, since numbers in the recipe may ask for any amount; other packages' classes
            # may need real tensors
            with torch.device("meta"):
                sketch = build_model({**cfg, "encoder": _with_offsets(cfg["encoder"])}, frame)
            check_architecture(sketch, weights, path)
            _check_buffers(sketch, path)
        model = build_model(cfg, frame)
    except InputError as error:
        raise InputError(str(error) if path in str(error) else f"checkpoint {path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"checkpoint {path}: its model cannot be built ({type(error).__name__}: {' '.join(str(error).split())[:120]}); its "
            "recipe is damaged or of another version"
        ) from error
    load_weights(model, checkpoint, path)
    return model.eval(), frame, cfg


def _with_offsets(encoder: dict[str, Any]) -> dict[str, Any]:
    """An encoder's node with offsets, which are otherwise found by a look at real tensors, and of which no weight depends."""
    strides = encoder.get("strides", [8])
    return {**encoder, "offset_px": [0.0] * len(strides)} if isinstance(strides, list) else encoder


def _read_recipe(recipe: Mapping[str, Any], where: str, trust: Sequence[str]) -> tuple[dict[str, Any], Frame]:
    """The config of a checkpoint's run, without its interest in published weights, and the frame it was trained for."""
    cfg = recipe.get("config")
    if not isinstance(cfg, dict):
        raise InputError(f"{where}: bevreshape.config must be a mapping, not {cfg!r:.80}; it is damaged")
    for part in MODEL_PARTS:
        if not isinstance(cfg.get(part), dict):
            raise InputError(
                f"{where}: bevreshape.config.{part} must be a mapping, not {cfg.get(part)!r:.80}; it is damaged"
            )
        if "_target_" not in cfg[part]:
            raise InputError(f"{where}: bevreshape.config.{part} has no _target_; it is damaged")
        check_targets(cfg[part], part, where, trust)
    cfg = dict(cfg)
    if "pretrained" in cfg["encoder"]:
        cfg["encoder"] = {**cfg["encoder"], "pretrained": False}  # the weights are in the checkpoint
    return cfg, Frame.from_plain(recipe.get("frame"), f"{where}: bevreshape.frame")


def _check_buffers(sketch: torch.nn.Module, path: str) -> None:
    """Refuse a model that takes much memory in addition to its weights, all of which are in the file."""
    stored = sketch.state_dict().keys()
    others = sum(one.numel() * one.element_size() for name, one in sketch.named_buffers() if name not in stored)
    if others > MOST_BUFFER_BYTES:
        raise InputError(
            f"checkpoint {path}: its model would take {others:,} bytes in addition to its weights, at most {MOST_BUFFER_BYTES:,} are "
            "allowed; use a file that bevreshape wrote"
        )


def reshaper_fields(target: str) -> dict[str, Any]:
    """The config node of an announced reshaper: its target, and the signature's fields with their defaults."""
    fields: dict[str, Any] = {"_target_": target}
    try:
        found = locate(target)
    except InputError:
        return fields  # it is said when somebody chooses it
    for parameter in inspect.signature(found).parameters.values():
        if parameter.name in ("self", "source", "grid") or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        fields[parameter.name] = "???" if parameter.default is parameter.empty else parameter.default
    return fields


def _make(key: str, node: Mapping[str, Any], **given: Any) -> Any:
    """The object of one node, which may still be OmegaConf's where the config is fresh from the command line."""
    made = construct(key, _plain(node), **given)
    missing = [name for name in NEEDED.get(key, ()) if not hasattr(made, name)]
    if missing:
        raise InputError(
            f"{key}: {type(made).__name__} has no {missing[0]}, so it is no {key}; {ADVICE.get(missing[0], f'choose {key}=NAME')}"
        )
    return made


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node


def make_logger(cfg: Mapping[str, Any], folder: Path) -> Logger | bool:
    """The logger of a run, which is begun; none where W&B is disabled.

    Raises:
        InputError: when it cannot be begun, or see :func:`~bevreshape.training.loggers.wandb_options`.
    """
    node = logger_options(cfg)
    if not node:
        return False
    if is_wandb(node):
        node |= wandb_identity(folder, node["mode"] == "offline", node) if rank() == 0 else {}
        os.environ.setdefault("WANDB_SILENT", "true")
    try:
        logger: Logger = _make("logger", node, save_dir=folder)
        # Lightning passes on a setting that W&B has given up, and warns about
        getattr(logger, "_wandb_init", {}).pop("anonymous", None)
        begin(logger)
        return logger
    except ModuleNotFoundError as error:
        raise InputError(
            f"logger: {error.name} is not installed; pip install {error.name}, or choose logger=csv"
        ) from error


def logger_options(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The ``logger`` group, checked before anything runs; empty where nothing is logged."""
    node = dict(cfg["logger"] or {})
    check_passed_on(node)
    return (wandb_options(node) or {}) if is_wandb(node) else node


def wandb_identity(folder: Path, offline: bool, node: Mapping[str, Any]) -> dict[str, Any]:
    """Under which id a run's folder is known to W&B, and where it resumes, how it is linked to what was before.

    Online a run that resumes is the same W&B run, which goes on behind what the server has. A part that is written
    offline cannot know that: it begins at step 0 again, and of two parts of one id the later would be written over the
    other by ``wandb sync``. So it is a run of its own, which names the one before; its curves, over
    ``trainer/global_step``, go on where the other's end.

    Args:
        folder: of the run; the id of its latest part is kept in its ``wandb_id``.
        offline: whether this part is.
        node: the logger's own ``name`` and ``notes``.
    """
    path = folder / "wandb_id"
    before = read_text(path) if path.exists() else None
    if before is not None and not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", before):
        raise InputError(f"{path} holds {before!r:.80}, which is no id of a W&B run; remove it to begin another")
    if before is not None and not offline and not any(folder.glob(f"wandb/offline-run-*-{before}")):
        return {"id": before, "resume": "allow"}
    own = secrets.token_hex(4)
    write_text(path, own)
    if before is None:
        return {"id": own, "resume": "allow"}
    parts = len(list(folder.glob("wandb/*run-*-*"))) + 1
    notes = " ".join(filter(None, (node.get("notes"), f"Resumes the run {before}.")))
    return {"id": own, "resume": "allow", "name": f"{node['name']}, part {parts}", "notes": notes}


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """A composed config as plain values, resolved.

    Raises:
        InputError: when a value that must be given is missing.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise InputError(f"{', '.join(missing)} must be given, for instance {missing[0]}=…")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
