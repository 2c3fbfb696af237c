"""Options: each has a type, and a number a range; other values are refused with a one-line message."""

import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Len, Lt
from commands import ROOT
from pydantic import Field
from torch import nn
from typing_extensions import is_typeddict

from bevreshape.config import settings
from bevreshape.config.construct import construct, locate
from bevreshape.config.hints import describe
from bevreshape.config.options import LocalPath, read_settings, read_value, suggest_key
from bevreshape.data.sources.synthetic.rig import Spread
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid

CONF = ROOT / "conf"

GROUPS = {
    "data": set(),
    "augment": {"grid", "camera_names", "image_mode"},
    "encoder": {"image_size", "cameras"},
    "reshaper": {"source", "grid"},
    "head": {"in_channels", "out_channels"},
    "objective": {"classes", "terms"},
    "metric": {"classes", "grid"},
}
"""Arguments of a group's classes that the program gives, or that are nodes of their own."""

SCHEMAS = (
    settings.Train, settings.Evaluate, settings.Predict, settings.Export, settings.Diagnose, settings.Benchmark,
    settings.Study,
)  # fmt: skip

NODES = {
    "data", "augment", "encoder", "reshaper", "head", "objective", "metric", "optimizer", "trainer", "logger",
    "reshapers", "plan",
}  # fmt: skip
"""Keys of commands that are groups."""


def targets(node: Any) -> Iterator[str]:
    """Classes that a config names, at any depth."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    for inner in node if isinstance(node, list) else ():
        yield from targets(inner)


def named() -> Iterator[tuple[type, str, Any]]:
    """Every option of every class that a YAML names, by class, name and hint; and of all classes next to these."""
    found: dict[type, set[str]] = {BEVGrid: set(), Spread: set()}
    for group, given in GROUPS.items():
        for path in (CONF / group).glob("*.yaml"):
            for target in targets(yaml.safe_load(path.read_text(encoding="utf-8"))):
                if locate(target) is not BEVGrid:
                    found[locate(target)] = given
    for package in ("bevreshape.reshapers", "bevreshape.heads", "bevreshape.objectives.losses"):
        module = import_module(package)
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            concrete = inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__.startswith(package)
            if concrete and name not in (
                "Reshaper",
                "GeometricReshaper",
                "FixedRig",
                "Head",
                "ClassLoss",
                "InstanceLoss",
            ):
                assert value in found, f"{name} has no YAML"
    for target, given in found.items():
        hints = get_type_hints(target.__init__, include_extras=True)
        for name in inspect.signature(target).parameters:
            if name not in given:
                yield target, name, hints.get(name)


OPTIONS = [(target.__name__, name, hint) for target, name, hint in named()] + [
    (schema.__name__, name, hint)
    for schema in SCHEMAS
    for name, hint in get_type_hints(schema, include_extras=True).items()
    if name not in NODES
]


class Slot(NamedTuple):
    """One place of an option that holds a plain value."""

    kind: Any
    limits: tuple[Any, ...]
    wrap: Callable[[Any], Any]
    """From a value there to a value of the whole option."""


def split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(hint) is NotRequired:
        return split(get_args(hint)[0])
    return (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())


def is_mapping_of_keys(kind: Any) -> bool:
    return is_typeddict(kind) or kind is Spread


def slots(hint: Any) -> Iterator[Slot]:
    """All places of an option."""
    kind, limits = split(hint)
    if get_origin(kind) in (Union, types.UnionType) and hint is not LocalPath:
        for arm in get_args(kind):
            yield from slots(arm)
    elif get_origin(kind) in (list, Sequence):
        length = next((limit.min_length for limit in limits if isinstance(limit, Len)), 1)
        for inner in slots(get_args(kind)[0]):
            yield inner._replace(wrap=lambda x, inner=inner: [inner.wrap(x)] * length)
    elif get_origin(kind) in (dict, Mapping):
        for inner in slots(get_args(kind)[1]):
            yield inner._replace(wrap=lambda x, inner=inner: {"name": inner.wrap(x)})
    elif is_mapping_of_keys(kind):
        hints = get_type_hints(kind, include_extras=True)
        for key, inner_hint in hints.items():
            for inner in slots(inner_hint):
                others = {name: sample(other) for name, other in hints.items()}
                yield inner._replace(wrap=lambda x, inner=inner, key=key, others=others: {**others, key: inner.wrap(x)})
    else:
        yield Slot(kind, limits, lambda x: x)


def sample(hint: Any) -> Any:
    """A value that an option takes."""
    kind, limits = split(hint)
    if hint is LocalPath or kind is str:
        return "val/iou/mean" if limits else "here"  # a text with limits is the key of a metric
    if kind is bool:
        return True
    if kind in (int, float):
        low = next(
            (limit.ge if isinstance(limit, Ge) else limit.gt for limit in limits if isinstance(limit, Ge | Gt)), 0
        )
        high = next(
            (limit.le if isinstance(limit, Le) else limit.lt for limit in limits if isinstance(limit, Le | Lt)), 2
        )
        return (low + high) / 2 if kind is float else max(low, min(high, 2))
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    if get_origin(kind) in (Union, types.UnionType):
        return sample(get_args(kind)[0])
    if get_origin(kind) in (list, Sequence):
        return [sample(get_args(kind)[0])] * next((limit.min_length for limit in limits if isinstance(limit, Len)), 1)
    if get_origin(kind) in (dict, Mapping):
        return {"name": sample(get_args(kind)[1])}
    return {name: sample(inner) for name, inner in get_type_hints(kind, include_extras=True).items()}


IDS = [f"{owner}.{name}" for owner, name, _ in OPTIONS]


@pytest.mark.parametrize(("owner", "name", "hint"), OPTIONS, ids=IDS)
def test_options_have_types_and_numbers_ranges(owner: str, name: str, hint: Any) -> None:
    """Fail for every new option without type or range."""
    assert hint not in (None, Any, object), f"{owner}.{name} has no type"
    for slot in slots(hint):
        assert slot.kind not in (Any, object), f"{owner}.{name} has no type"
        if slot.kind in (int, float):
            low = [limit for limit in slot.limits if isinstance(limit, Ge | Gt)]
            high = [limit for limit in slot.limits if isinstance(limit, Le | Lt)]
            assert low, f"{owner}.{name} is a number without a lower bound"
            assert high, f"{owner}.{name} is a number without an upper bound"
    if BEVGrid not in get_args(hint) and hint is not BEVGrid:
        assert read_value("key", hint, sample(hint)) is not None
        with pytest.raises(InputError, match=r"^key=<object .*> must be "):
            read_value("key", hint, object())


@pytest.mark.parametrize(("owner", "name", "hint"), OPTIONS, ids=IDS)
def test_nonsense_is_refused(owner: str, name: str, hint: Any) -> None:
    for slot in slots(hint):
        wrong: list[Any] = []
        if slot.kind is bool:
            wrong = ["abc", "true", 0, 1, 0.0, [[True]]]
        elif slot.kind in (int, float):
            wrong = [math.nan, math.inf, -math.inf, 1e300, -1e300, True, False, "abc", "2", [[2]]]
            wrong += [2.5, 10**30, -(10**30)] if slot.kind is int else []
        for value in wrong:
            with pytest.raises(InputError, match=rf"^{owner}\.{name}.* must be "):
                read_value(f"{owner}.{name}", hint, slot.wrap(value))
            assert "typing" not in describe(hint)


@pytest.mark.parametrize(
    "target", dict.fromkeys(target for target, _, _ in named()), ids=lambda target: target.__name__
)
def test_defaults_pass_their_own_check(target: type) -> None:
    hints = get_type_hints(target.__init__, include_extras=True)
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.default is not parameter.empty and name in hints:
            read_value(name, hints[name], parameter.default)


@pytest.mark.parametrize(
    ("hint", "value", "read"),
    [
        (float, 2, 2.0),
        (Annotated[float, Ge(0)], 2, 2.0),
        (float | None, 2, 2.0),
        (Sequence[float], [1, 2.5], [1.0, 2.5]),
        (tuple[int, int], [1, 2], (1, 2)),
        (Path, "here", Path("here")),
        (Mapping[str, float], {"a": 1}, {"a": 1.0}),
        (Spread, {"yaw_deg": 1}, Spread(1.0)),
        (Annotated[float, Field(gt=0)], 3, 3.0),
        (Any, {1: object}, {1: object}),
    ],
)
def test_values_are_read_as_their_type(hint: Any, value: Any, read: Any) -> None:
    found = read_value("key", hint, value)
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (Annotated[float, Ge(-10), Le(10)], math.nan, "key=nan must be a number from -10 to 10"),
        (float, math.inf, "key=inf must be a finite number"),
        (Annotated[int, Ge(1)], 0, "key=0 must be an integer ≥ 1"),
        (int, 2.0, "key=2.0 must be an integer"),
        (bool, "abc", "key='abc' must be true or false"),
        (Literal["mean", "sum"], "maen", "key='maen' must be mean or sum; did you mean mean?"),
        (Annotated[Sequence[float], Len(2, 2)], [1], "key=[1] must be a list of 2 finite numbers"),
        (tuple[int, int], [1], "key=[1] must be a list of 2: an integer, an integer"),
        (Sequence[str], "word", "key='word' must be a list of text"),
        (Spread, {"yaw_deg": 1e9}, "key.yaw_deg=1e+09 must be a number from 0 to 45"),
        (Spread, {"yaw": 1}, "key.yaw is unknown; did you mean yaw_deg?"),
        (Mapping[str, float], {1: 2.0}, "key has the name 1, which is not a string; put it into quotes"),
        (
            Annotated[Mapping[str, float], Len(1)],
            {},
            "key={} must be a mapping, not empty, from names to a finite number",
        ),
        (BEVGrid, "x", "key='x' must be a mapping with forward_m, left_m, cell_m"),
        (nn.Module, 3, "key=3 must be an object of Module"),
        (LocalPath, "", "key='' is not a path; name a file or a folder"),
    ],
)
def test_error_messages(hint: Any, value: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        read_value("key", hint, value)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "path", ["s3://bucket/x", "s3:/bucket", "gs://b/x", "https://host/x", "file:///tmp/x", "hdfs://x", "me@host:/x"]
)
def test_addresses_are_no_paths(path: str) -> None:
    with pytest.raises(InputError, match=r"^data\.root=.* is an address, not a path on this machine"):
        read_value("data.root", LocalPath, path)


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_value("root", LocalPath, "~/x") == str(tmp_path / "x")
    assert read_value("root", LocalPath, "~") == str(tmp_path)
    for plain in ("x~y", "a/~/b", "c:/x", "/s3:/x", "12:30/x"):
        assert read_value("root", LocalPath, plain) == plain
    with pytest.raises(InputError, match="unknown user"):
        read_value("root", LocalPath, "~nobody-of-this-name/x")


class Foreign(nn.Module):
    """As a third party writes one."""

    def __init__(self, gain: float = None, size: tuple[int, int] = (1, 2), bare=3, other: "Unknown" = 0, **rest):  # noqa: RUF013
        super().__init__()
        self.found = (gain, size, bare, other, rest)


def test_third_parties_are_read_by_the_hints_they_have() -> None:
    node = {"_target_": f"{__name__}.Foreign", "gain": 2, "size": [3, 4], "bare": "x", "other": [1], "more": None}
    gain, size, bare, other, rest = construct("reshaper", node).found
    assert (gain, type(gain)) == (2.0, float)
    assert (size, bare, other, rest) == ((3, 4), "x", [1], {"more": None})
    assert construct("reshaper", {"_target_": f"{__name__}.Foreign", "gain": None}).found[0] is None  # its default
    for option, value in (("gain", "x"), ("gain", True), ("gain", math.nan), ("size", [1]), ("size", [1.5, 2])):
        with pytest.raises(InputError, match=rf"^reshaper\.{option}=.* must be "):
            construct("reshaper", {"_target_": f"{__name__}.Foreign", option: value})


def test_library_calls_are_checked_too() -> None:
    assert Spread(yaw_deg=2).yaw_deg == 2.0
    with pytest.raises(InputError, match=r"^Spread: yaw_deg=nan must be a number from 0 to 45"):
        Spread(math.nan)
    with pytest.raises(TypeError, match="unexpected keyword"):
        Spread(yaw=1)  # type: ignore[call-arg]


KNOWN = {
    "optimizer": {"lr": 1, "warmup": 2},
    "reshaper": {"_target_": "x"},
    "trainer": {"max_steps": 3, "max_epochs": 4},
}


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("lr", "did you mean optimizer.lr?"),
        ("reshapr", "did you mean reshaper?"),
        ("trainer.max_step", "did you mean trainer.max_steps?"),
        ("optimiser.lr", "did you mean optimizer.lr?"),
        ("optimiser", "did you mean optimizer?"),
        ("trainer.lr", "did you mean optimizer.lr?"),
        ("trainer.callbacks", "known are trainer.max_epochs, trainer.max_steps"),
        ("xyz", "known are optimizer, reshaper, trainer"),
    ],
)
def test_near_keys_are_named_with_their_path(key: str, near: str) -> None:
    assert suggest_key(key, KNOWN) == near


def test_keys_of_other_commands_are_refused() -> None:
    plain = {"checkpoint": "a", "format": "onnx", "out": None, "calibration": None, "trust": [], "repeats": 20}
    assert read_settings(settings.Export, plain) == plain
    with pytest.raises(InputError, match=r"^threshold is not a key of this command; known are calibration, checkpoint"):
        read_settings(settings.Export, {**plain, "threshold": 1})
    with pytest.raises(InputError, match=r"^trust=3 must be text or a list of text"):
        read_settings(settings.Export, {**plain, "trust": 3})
    with pytest.raises(InputError, match=r"^repeats is missing; leave it in the config, it must be an integer from 1"):
        read_settings(settings.Export, {key: value for key, value in plain.items() if key != "repeats"})


def test_lists_of_words_are_described_once() -> None:
    word = Literal["a-one", "b-two"]
    with pytest.raises(
        InputError, match=r"^k='a-onee' must be a-one or b-two or a list out of a-one or b-two; did you mean a-one\?$"
    ):
        read_value("k", word | Sequence[word], "a-onee")
    with pytest.raises(InputError, match=r"must be a list of 2 out of a-one or b-two"):
        read_value("k", Annotated[Sequence[word], Len(2, 2)], ["a-one"])
