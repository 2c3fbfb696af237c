"""From a composed config to objects."""

import inspect
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from bevreshape.checkpoint import FORMAT, load_weights, read_checkpoint
from bevreshape.construct import construct, locate
from bevreshape.data.batch import BEVSource
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.data.names import check_classes
from bevreshape.data.pictures import check_image_mode
from bevreshape.errors import InputError, suggest
from bevreshape.files import write_text
from bevreshape.geometry import BEVGrid
from bevreshape.heads import Head
from bevreshape.losses import InstanceLoss
from bevreshape.metrics import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reshapers import FeatureShape, Reshaper
from bevreshape.task import BEVTask

RESHAPERS = "bevreshape.reshapers"
"""Entry-point group in which other packages announce their reshapers."""

LOADER_KEYS = ("batch_size", "loader_workers")
"""Keys of the ``data`` group that are the datamodule's; all others are the source's."""


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
    def from_plain(cls, plain: Mapping[str, Any]) -> "Frame":
        """The inverse of :meth:`to_plain`."""
        height, width = plain["image_size"]
        grid = BEVGrid(tuple(plain["forward_m"]), tuple(plain["left_m"]), plain["cell_m"])
        names = tuple(plain["classes"]), tuple(plain["camera_names"])
        return cls(grid, *names, (height, width), check_image_mode(plain.get("image_mode", "rgb")))


def build_data(cfg: Mapping[str, Any]) -> BEVDataModule:
    """The datamodule of ``cfg.data`` and ``cfg.augment``, ordered by ``cfg.seed``."""
    seed = cfg["seed"]
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r} must be a whole number, 0 or more")
    node = dict(_plain(cfg["data"]))
    loader = {key: node.pop(key) for key in LOADER_KEYS}
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
                "picture would be trained on another truth, a cell off; set augment.flip_p=0 or data.raster=exact"
            )
    return BEVDataModule(source, **loader, augment=augment or None, seed=seed)


def build_model(cfg: Mapping[str, Any], frame: Frame) -> BEVModel:
    """Encoder, reshaper and head of a config, each built for the sizes that the one before it delivers."""
    encoder = _make("encoder", cfg["encoder"], image_size=frame.image_size, cameras=len(frame.camera_names))
    sources = encoder.sources
    upsample = cfg["head"]["upsample"]
    if not isinstance(upsample, int) or upsample < 1:
        raise InputError(f"head.upsample={upsample!r} must be a whole number of at least 1")
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
    reshaper = _make("reshaper", node, source=sources[0] if len(sources) == 1 else tuple(sources), grid=grid)
    if not hasattr(reshaper, "out_channels"):
        raise InputError(
            f"reshaper {type(reshaper).__name__} has no attribute out_channels; set it to d, the head is built for it"
        )
    return reshaper


def build_task(cfg: Mapping[str, Any], frame: Frame, model: BEVModel) -> BEVTask:
    """A model with its loss, metric and optimizer; its checkpoints carry what rebuilds it."""
    return BEVTask(
        model,
        _make("loss", cfg["loss"], classes=frame.classes),
        BEVIoU(frame.classes, frame.grid),
        _make("optimizer", cfg["optimizer"]),
        seed=cfg["seed"],
        recipe={"format": FORMAT, "config": _plain(cfg), "frame": frame.to_plain()},
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
    found = (cfg.get("instances") or {}).get("classes") or []
    if not isinstance(found, list | tuple):
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
    recipe = checkpoint["bevreshape"]
    cfg = dict(recipe["config"])
    for part in ("encoder", "reshaper", "head"):
        check_targets(cfg[part], f"checkpoint {path}: {part}", trust)
    if "pretrained" in cfg["encoder"]:
        cfg["encoder"] = {**cfg["encoder"], "pretrained": False}  # the weights are in the checkpoint
    frame = Frame.from_plain(recipe["frame"])
    model = build_model(cfg, frame)
    load_weights(model, checkpoint, path)
    return model.eval(), frame, cfg


def announced_reshapers() -> dict[str, str]:
    """Reshapers of other installed packages: name to ``package.module.Class``."""
    found: dict[str, str] = {}
    for point in entry_points(group=RESHAPERS):
        target = point.value.replace(":", ".")
        if found.setdefault(point.name, target) != target:
            raise InputError(
                f"two installed packages announce a reshaper '{point.name}' ({found[point.name]} and {target}); uninstall one, "
                "or name it by reshaper._target_"
            )
    return found


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


def check_targets(node: Any, where: str, trust: Sequence[str] = ()) -> None:
    """Refuse a stored config that names anything but classes of bevreshape and of installed entry points.

    Raises:
        InputError: naming the target.
    """
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if target is not None and target not in announced_reshapers().values():
            target = str(target)
            allowed = (target.startswith("bevreshape.") and _is_own_class(target)) or target.split(".")[0] in trust
            if not allowed:
                raise InputError(
                    f"{where} wants to call {target}, which is neither a class of bevreshape nor an installed entry point of "
                    f"{RESHAPERS}; if you know this file and that code, set trust=[{target.split('.')[0]}]"
                )
        for value in node.values():
            check_targets(value, where, trust)
    elif isinstance(node, list | tuple):
        for value in node:
            check_targets(value, where, trust)


def _is_own_class(target: str) -> bool:
    try:
        found = locate(target)
    except InputError:
        return False
    return inspect.isclass(found) and found.__module__.startswith("bevreshape.")


def _make(key: str, node: Mapping[str, Any], **given: Any) -> Any:
    """The object of one node, which may still be OmegaConf's where the config is fresh from the command line."""
    return construct(key, _plain(node), **given)


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node


def make_logger(cfg: Mapping[str, Any], folder: Path) -> Logger | bool:
    """The logger of a run. W&B is offline unless the user is logged in or sets ``logger.mode=online``."""
    node = dict(cfg["logger"] or {})
    if not node:
        return False
    target = str(node.get("_target_", ""))
    if target.endswith("WandbLogger"):
        mode = node.pop("mode")
        if mode not in (None, "online", "offline"):
            raise InputError(f"logger.mode={mode} is unknown; {suggest(str(mode), ('online', 'offline'))}")
        node["offline"] = mode == "offline" or (mode is None and not _logged_in())
        node |= {"id": _kept_id(folder / "wandb_id"), "resume": "allow"}  # a run that goes on is the same W&B run
        os.environ.setdefault("WANDB_SILENT", "true")
    try:
        logger = _make("logger", node, save_dir=folder)
        # Lightning passes on a setting that W&B has given up, and warns about
        getattr(logger, "_wandb_init", {}).pop("anonymous", None)
        return logger
    except ModuleNotFoundError as error:
        raise InputError(
            f"logger: {error.name} is not installed; pip install {error.name}, or choose logger=csv"
        ) from error


def _logged_in() -> bool:
    """Whether a key lies where W&B looks for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc().authenticators(str(host)) is not None
    except (FileNotFoundError, NetrcParseError):
        return False


def _kept_id(path: Path) -> str:
    if not path.exists():
        write_text(path, secrets.token_hex(4))
    return path.read_text()


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
