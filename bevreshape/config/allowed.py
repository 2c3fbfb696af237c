"""The classes that a stored config may name: an allow-list by place, and the packages that the user trusts."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from inspect import isclass
from pathlib import Path
from typing import Any

from bevreshape.config.construct import TARGET, locate
from bevreshape.config.entry_points import ENTRY_POINTS, entry_point_classes
from bevreshape.config.groups import NAMED
from bevreshape.errors import InputError
from bevreshape.storage.plain_values import read_yaml, short

OBJECTIVES = tuple(f"bevreshape.objectives.{name}" for name in ("BCE", "CentersLoss", "Dice", "Focal", "WeightedSum"))

PLACES: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("data",): (
        "bevreshape.data.sources.folder.FolderSource",
        "bevreshape.data.sources.kitti.KITTIObjectSource",
        "bevreshape.data.sources.kitti.KITTIRoadSource",
        "bevreshape.data.sources.nuscenes.NuScenesSource",
        "bevreshape.data.sources.synthetic.SyntheticSource",
    ),
    ("data", "grid"): ("bevreshape.geometry.BEVGrid",),
    ("augment",): ("bevreshape.data.augment.Augment",),
    ("encoder",): ("bevreshape.encoders.TimmEncoder",),
    ("reshaper",): tuple(
        f"bevreshape.reshapers.{name}"
        for name in (
            "IPM", "MLP", "Bilinear", "ColumnAttention", "ColumnMLP", "CrossAttention", "CrossViewAttention",
            "DeformableAttention", "KernelAttention", "LatentAttention", "LiftSplat", "MLPAttention", "Pool",
            "SelfAttention", "StridedConv",
        )
    ),
    ("head", "*"): ("bevreshape.heads.ConvHead", "bevreshape.heads.PyramidHead"),
    ("objective", "*"): OBJECTIVES,
    ("objective", "*", "terms", "*"): OBJECTIVES,
    ("metric", "*"): tuple(f"bevreshape.metrics.{name}" for name in ("BEVIoU", "ConditionIoU", "RoadMetric")),
    ("optimizer",): tuple(f"bevreshape.training.optimizer.{name}" for name in ("AdamWOneCycle", "TorchOptimizer")),
    ("optimizer", "optimizer"): tuple(
        f"torch.optim.{name}"
        for name in ("SGD", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop",
        "ASGD")
    ),
    ("optimizer", "scheduler"): tuple(
        f"torch.optim.lr_scheduler.{name}"
        for name in (
            "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR", "LinearLR",
            "MultiStepLR", "OneCycleLR", "PolynomialLR", "StepLR",
        )
    ),
    ("logger",): tuple(
        f"lightning.pytorch.loggers.{name}Logger" for name in ("CSV", "MLFlow", "TensorBoard", "Wandb")
    ),
}  # fmt: skip
"""Classes that a stored config may name without trust, by their place in it; * is any name."""

GROUPS = tuple(dict.fromkeys(place[0] for place in PLACES))

LOGGER_OPTIONS = (
    "entity", "experiment", "experiment_name", "flush_logs_every_n_steps", "group", "job_type", "log_model", "mode",
    "name", "notes", "prefix", "project", "run_name", "sub_dir", "synchronous", "tags", "version",
)  # fmt: skip
"""Allowed options of a stored logger; others could write elsewhere, or send the user's key to another host."""


NAMED_FOLDERS = ("lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.loggers.TensorBoardLogger")
"""Loggers whose ``name`` is a folder."""


def read_trust(given: object) -> tuple[str, ...]:
    """Return the packages of ``trust=[a,b]`` or ``trust=a``.

    Raises:
        InputError: when it is neither a list nor one name of a package.
    """
    names = [given] if isinstance(given, str) else given
    if isinstance(names, list | tuple) and all(isinstance(name, str) and name.isidentifier() for name in names):
        return tuple(names)
    raise InputError(f"trust={given!r} must be a list of packages without dots, such as trust=[their_package]")


def check_targets(node: Any, part: str, where: str, trust: Sequence[str] = ()) -> None:
    """Check that a stored part of a config names only classes that are allowed there.

    Args:
        node: the plain values of the part.
        part: such as ``reshaper``.
        where: the file, for messages.
        trust: packages of which any class may be named, anywhere.

    Raises:
        InputError: when a class is not allowed; names the target.
    """
    _check_targets(node, (part,), where, trust)


def _check_targets(node: Any, place: tuple[str, ...], where: str, trust: Sequence[str]) -> None:
    if isinstance(node, Mapping):
        if TARGET in node:
            _check_target(node[TARGET], place, where, trust)
            if place == ("logger",) and node[TARGET] in PLACES[place] and _package(node) not in trust:
                _check_logger(node, where)
        for key, value in node.items():
            _check_targets(value, (*place, str(key)), where, trust)
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            _check_targets(value, (*place, str(number)), where, trust)


def needed_trust(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the packages that must be trusted to resume from a config, in its order."""
    found = [package for part, node in config.items() for package in _foreign_packages(node, (str(part),))]
    return tuple(dict.fromkeys(found))


def _foreign_packages(node: Any, place: tuple[str, ...]) -> Iterator[str]:
    """Yield the packages of the classes in a node that need trust."""
    if isinstance(node, Mapping):
        foreign = TARGET in node and not _is_known(node[TARGET], place)
        if foreign or (place == ("logger",) and not {TARGET, *LOGGER_OPTIONS}.issuperset(node)):
            yield _package(node)
        for key, value in node.items():
            yield from _foreign_packages(value, (*place, str(key)))
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _foreign_packages(value, (*place, str(number)))


def _group(place: tuple[str, ...]) -> str:
    """Return the group whose entry points may be named at a place; empty for none."""
    return place[0] if len(place) == (2 if place[0] in NAMED else 1) else ""


def _is_known(target: Any, place: tuple[str, ...]) -> bool:
    """Return whether a class may be named at a place without trust."""
    own = any(
        target in names
        for known, names in PLACES.items()
        if len(known) == len(place) and all(one in ("*", other) for one, other in zip(known, place, strict=True))
    )
    return own or target in entry_point_classes(_group(place)).values()


def _check_target(target: Any, place: tuple[str, ...], where: str, trust: Sequence[str]) -> None:
    if _is_known(target, place):
        return
    group = _group(place)
    said = f"{where}: {short('.'.join(place))} wants to call {short(str(target))}, which is"
    if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target):
        raise InputError(f"{said} no dotted name of a class; use a file that bevreshape wrote")
    package = target.partition(".")[0]
    if package == "bevreshape":
        raise InputError(f"{said} no class of bevreshape that belongs there; use a file that bevreshape wrote")
    if package not in trust:
        announced = f" nor an installed entry point of {ENTRY_POINTS[group]}" if group in ENTRY_POINTS else ""
        raise InputError(
            f"{said} {'neither a' if announced else 'no'} class of bevreshape{announced}; if you know this file and "
            f"that code, set trust=[{package}]"
        )
    found = locate(target)
    if not isclass(found) or found.__module__.partition(".")[0] not in trust:
        raise InputError(f"{said} no class that the trusted {package} defines; name such a class")


def _package(node: Mapping[Any, Any]) -> str:
    return str(node[TARGET]).partition(".")[0]


def _check_logger(node: Mapping[Any, Any], where: str) -> None:
    in_paths = ("version", "sub_dir", *(("name",) if node[TARGET] in NAMED_FOLDERS else ()))
    for key, value in node.items():
        if key not in (TARGET, *LOGGER_OPTIONS):
            raise InputError(
                f"{where}: logger.{short(key)} is not taken from a file; if you know it, set trust=[{_package(node)}]"
            )
        if key in in_paths and re.search(r"[/\\]|\.\.", str(value)):
            raise InputError(
                f"{where}: logger.{key}={short(value)!r} is a path that would leave the run folder; name a folder in it"
            )


STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hf")
"""Protocols of addresses that a stored config may name, those of object stores and of no single machine."""


ADDRESSES = ("root", "prepared")
"""Options of ``data`` that name the place of what is read."""


def typed_addresses(arguments: Sequence[str]) -> list[str]:
    """Return those of :data:`ADDRESSES` that the command line sets."""
    typed = {argument.lstrip("+~").partition("=")[0] for argument in arguments}
    return [key for key in ADDRESSES if f"data.{key}" in typed]


def check_cache(data: Mapping[str, Any], where: str, typed: Collection[str] = ()) -> None:
    """Check the cache folder of a stored config: below the current folder, or a cache already.

    Other sources only read, from this machine or from :data:`STORES`.

    Args:
        data: the stored ``data`` group.
        where: the file, for messages.
        typed: those of :data:`ADDRESSES` that the user has set instead.

    Raises:
        InputError: when scenes would be generated elsewhere, or data read from another kind of address; names it.
    """
    for key in (key for key in ADDRESSES if key not in typed):
        protocol, found, _ = (address := str(data.get(key, ""))).partition("://")
        if found and protocol not in STORES:
            raise InputError(
                f"{where}: its data would be read from {short(address)}, which a file may not decide; if you know it, "
                f"set data.{key}={short(address)}"
            )
    generates = data.get(TARGET) == "bevreshape.data.sources.synthetic.SyntheticSource"
    if not generates or "root" not in data or "root" in typed:
        return
    root = Path(str(data["root"]))
    inside = not root.is_absolute() and ".." not in root.parts and not str(root).startswith("~")
    if not inside and not _is_cache(root):
        raise InputError(
            f"{where}: its scenes would be generated in {root}, which holds none yet; set data.root=FOLDER"
        )


def _is_cache(root: Path) -> bool:
    try:
        return any(root.expanduser().glob("*/meta.json"))
    except (OSError, RuntimeError):  # no folder, or the home of an unknown user
        return False


def read_config(
    path: Path, trust: Sequence[str] = (), needed: Sequence[str] = (), *, only: bool = False
) -> dict[str, Any]:
    """Read a run folder's ``config.yaml``, and check that its classes are allowed.

    Args:
        path: of the file.
        trust: packages of which any class may be named.
        needed: required keys.
        only: return and check no other key than these.

    Raises:
        InputError: when a key is missing or not allowed; names the file and the key.
    """
    config = read_yaml(path)
    if "hydra" in config or "defaults" in config:
        raise InputError(
            f"{path} holds settings of Hydra itself, which could execute code; no run writes them, so remove them"
        )
    missing = [key for key in needed if config.get(key) is None]
    if missing:
        raise InputError(f"{path} has no {missing[0]}; it is damaged, so restore it")
    if only:
        config = {key: config[key] for key in needed}
    for part in (*GROUPS, "loader", "trainer", "log_images"):
        if not isinstance(config.get(part), dict | None):
            raise InputError(
                f"{path}: {part}={short(config[part])!r} must be a mapping of options; it is damaged, so restore it"
            )
    for part, node in config.items():
        check_targets(node, str(part), str(path), trust)
    return config
