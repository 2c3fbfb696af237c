"""Invalid checkpoints are refused, and nothing in a checkpoint is executed."""

import os
import pickle
import random
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import CALLS, CANARY, changed, leaves

from bevreshape.bev_spec import BEVSpec
from bevreshape.config import load_model as loading
from bevreshape.config.load_model import load_model
from bevreshape.errors import InputError
from bevreshape.storage.checkpoint import load_weights, read_checkpoint


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    torch.save({"state_dict": Bomb(marker)}, tmp_path / "bomb.ckpt")
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(InputError, match="would execute"):
        read_checkpoint(tmp_path / "bomb.ckpt")
    with pytest.raises(InputError, match=r"bare\.ckpt"):
        read_checkpoint(tmp_path / "bare.ckpt")
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_cut_off_file(trained: Path, tmp_path: Path, share: float) -> None:
    whole = (trained / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"cut\.ckpt"):
        read_checkpoint(tmp_path / "cut.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not at all", "checkpoint"), ({"state_dict": {}}, "of another program"), ([1, 2], "of another program")],
)
def test_file_of_another_kind(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "other.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=message):
        read_checkpoint(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        read_checkpoint(tmp_path)


def test_another_architecture_is_named(trained: Path) -> None:
    path = trained / "checkpoints" / "best.ckpt"
    with pytest.raises(InputError, match=r"weight is .* there and .* here|missing there"):
        load_weights(torch.nn.Linear(3, 2), read_checkpoint(path), path)


@pytest.mark.parametrize(
    "target", ["os.system", "bevreshape.storage.files.os.system", "bevreshape.storage.files.write_text"]
)
def test_config_in_a_checkpoint_cannot_call_other_code(trained: Path, tmp_path: Path, target: str) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["bevreshape"]["config"]["head"]["segmentation"]["inner"] = {"_target_": target, "command": "true"}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match="wants to call"):
        load_model(str(tmp_path / "evil.ckpt"))


def test_data_config_in_a_checkpoint_cannot_call_other_code(command, trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["bevreshape"]["config"]["data"]["noise"] = {
        "_target_": "bevreshape.storage.files.write_text",
        "path": "x",
        "text": "y",
    }
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    ended = command("evaluate", "checkpoint=evil.ckpt")
    assert (ended.code, "wants to call bevreshape.storage.files.write_text" in ended.err) == (1, True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "chosen",
    [
        "data={}",
        "data={seed: 1}",
        "data=[from_checkpoint]",
        "data=[]",
        "data= from_checkpoint",
        "+data={}",
    ],
)
@pytest.mark.parametrize("name", ["evaluate", "diagnose"])
def test_data_of_a_checkpoint_is_compared_however_it_is_chosen(
    command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chosen: str
) -> None:
    (tmp_path / "stranger.py").write_text(
        "open('canary', 'w').close()\nclass Source:\n    def __init__(self, **options): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["bevreshape"]["config"]["data"] = {"_target_": "stranger.Source"}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    ended = command(name, "checkpoint=evil.ckpt", chosen)
    assert (ended.code, "Traceback" in ended.err) == (1, False)
    assert "data wants to call stranger.Source" in ended.err
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("version", [1, 2, 4])
def test_other_formats_are_refused(version: int, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "bevreshape": {"format": version, "config": {}}}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=f"has format {version}, this version reads 3; use the version that wrote it"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.fixture(scope="module")
def best(trained: Path) -> dict[str, Any]:
    """A whole checkpoint."""
    return torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "part",
    ["encoder", "reshaper", "head", "data", "objective", "metric", "loader", "optimizer", "trainer", "logger", "name"],
)
@pytest.mark.parametrize("text", CALLS)
def test_nothing_in_a_recipe_is_resolved(
    best: dict[str, Any], part: str, text: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = best["bevreshape"]
    config = recipe["config"]
    path = next(path for path in leaves(config) if path[0] == part) if config[part] else (part,)
    for hostile in (text, [{"deep": [text]}], {text: 1}):
        stored = {**recipe, "config": changed(config, path, hostile)}
        torch.save({**best, "bevreshape": stored}, "evil.ckpt")
        for read in (read_checkpoint, load_model):
            with pytest.raises(InputError, match=r"evil\.ckpt: .* is written like an interpolation"):
                read("evil.ckpt")
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("name", ["evaluate", "predict", "export", "diagnose"])
def test_commands_neither_resolve_nor_call_a_checkpoints_values(
    command, best: dict[str, Any], name: str, tmp_path: Path
) -> None:
    recipe = best["bevreshape"]
    given = ["input=nowhere"] if name == "predict" else []
    for part, hostile in (
        ("data", {"rig": CALLS[0]}),
        ("data", {"noise": {"_target_": "os.mkdir", "path": CANARY}}),
        ("encoder", {"name": CALLS[0]}),
        ("reshaper", {"hidden": CALLS[0]}),
        ("head", {"segmentation": {"_target_": "os.mkdir", "path": CANARY}}),
    ):
        if name in ("predict", "export") and "noise" in hostile:
            continue  # they build no data
        config = {**recipe["config"], part: {**recipe["config"][part], **hostile}}
        torch.save({**best, "bevreshape": {**recipe, "config": config}}, tmp_path / "evil.ckpt")
        ended = command(name, "checkpoint=evil.ckpt", *given)
        assert (ended.code, "evil.ckpt: " in ended.err) == (1, True), ended.err
        assert "Traceback" not in ended.err
        assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("trust", ["mypost", "[mypost]", "post"])
def test_trust_is_per_package(command, best: dict[str, Any], trust: str, tmp_path: Path) -> None:
    recipe = best["bevreshape"]
    config = {**recipe["config"], "head": {"segmentation": {"_target_": "os.mkdir", "path": CANARY}}}
    torch.save({**best, "bevreshape": {**recipe, "config": config}}, tmp_path / "evil.ckpt")
    ended = command("export", "checkpoint=evil.ckpt", f"trust={trust}")
    assert (ended.code, "head.segmentation wants to call os.mkdir" in ended.err) == (1, True)
    assert not (tmp_path / CANARY).exists()


def test_evaluation_ignores_the_cache_path_of_a_checkpoint(command, best: dict[str, Any], tmp_path: Path) -> None:
    recipe = best["bevreshape"]
    data = {**recipe["config"]["data"], "root": str(tmp_path / "elsewhere")}
    torch.save({**best, "bevreshape": {**recipe, "config": {**recipe["config"], "data": data}}}, tmp_path / "evil.ckpt")
    for name in ("evaluate", "diagnose"):
        ended = command(name, "checkpoint=evil.ckpt")
        assert (ended.code, "set data.root=FOLDER" in ended.err) == (1, True), ended.err
        assert not (tmp_path / "elsewhere").exists()


def data_of(path: Path) -> list[tuple[int, int]]:
    """Where the numbers of the tensors lie in the file: first byte and number of bytes, read from the headers
    themselves."""
    content, found = path.read_bytes(), []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name, extra = (int.from_bytes(content[entry.header_offset + at :][:2], "little") for at in (26, 28))
            if "/data/" in entry.filename:
                found.append((entry.header_offset + 30 + name + extra, entry.file_size))
    return found


def test_every_flipped_bit_of_a_tensor_is_found(trained: Path, tmp_path: Path) -> None:
    whole = (trained / "checkpoints" / "best.ckpt").read_bytes()
    places, draw = data_of(trained / "checkpoints" / "best.ckpt"), random.Random(0)
    assert len(places) > 100
    path = tmp_path / "flipped.ckpt"
    for _ in range(60):
        start, size = draw.choice(places)
        damaged = bytearray(whole)
        damaged[start + draw.randrange(size)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"flipped\.ckpt is damaged: .* differs from its checksum"):
            read_checkpoint(path)
    path.write_bytes(whole)
    read_checkpoint(path)


def test_any_flipped_bit_is_an_input_error(trained: Path, tmp_path: Path) -> None:
    """Those outside the tensors may lie in padding, and change nothing; those that are read must be said."""
    whole, draw = (trained / "checkpoints" / "best.ckpt").read_bytes(), random.Random(1)
    weights = read_checkpoint(trained / "checkpoints" / "best.ckpt")["state_dict"]
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[draw.choice((draw.randrange(len(whole)), len(whole) - 1 - draw.randrange(20_000)))] ^= (
            1 << draw.randrange(8)
        )
        (tmp_path / "a.ckpt").write_bytes(damaged)
        with suppress(InputError):
            found = read_checkpoint(tmp_path / "a.ckpt")["state_dict"]
            assert all(torch.equal(found[key], value) for key, value in weights.items())


def rewritten(source: Path, path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> None:
    """Write an archive anew, entry by entry."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for entry in old.infolist():
            change(new, zipfile.ZipInfo(entry.filename), old.read(entry))


def test_zip_bomb_is_refused_before_anything_is_read(trained: Path, tmp_path: Path, monkeypatch) -> None:
    def inflate(new: zipfile.ZipFile, entry: zipfile.ZipInfo, content: bytes) -> None:
        entry.compress_type = zipfile.ZIP_DEFLATED
        new.writestr(entry, content if "/data/" not in entry.filename else b"\0" * (1 << 20))

    path = tmp_path / "bomb.ckpt"
    rewritten(trained / "checkpoints" / "best.ckpt", path, inflate)
    assert path.stat().st_size < 1 << 20
    unread: Any = lambda *args, **kwargs: pytest.fail("an entry was read")  # noqa: E731
    monkeypatch.setattr(zipfile.ZipFile, "open", unread)
    monkeypatch.setattr(torch, "load", unread)
    with pytest.raises(
        InputError, match=r"bomb\.ckpt holds .* compressed .* 1,048,576 bytes|bomb\.ckpt holds .* compressed"
    ):
        read_checkpoint(path)


def test_entries_are_there_once_and_from_the_beginning(trained: Path, tmp_path: Path) -> None:
    best = trained / "checkpoints" / "best.ckpt"

    def twice(new: zipfile.ZipFile, entry: zipfile.ZipInfo, content: bytes) -> None:
        new.writestr(entry, content)
        new.writestr(entry, content)

    rewritten(best, tmp_path / "twice.ckpt", twice)
    with pytest.raises(InputError, match="holds an entry twice"):
        read_checkpoint(tmp_path / "twice.ckpt")
    (tmp_path / "behind.ckpt").write_bytes(b"#!/bin/sh\n" + best.read_bytes())
    with pytest.raises(InputError, match="does not begin with its first entry"):
        read_checkpoint(tmp_path / "behind.ckpt")


def test_entries_do_not_overlap(trained: Path, tmp_path: Path) -> None:
    """The central directory says of one entry that it is longer than the room up to the next."""
    content = bytearray((trained / "checkpoints" / "best.ckpt").read_bytes())
    at = content.index(b"PK\x01\x02")
    for offset in (20, 24):  # compressed and uncompressed size
        content[at + offset : at + offset + 4] = (10**8).to_bytes(4, "little")
    (tmp_path / "long.ckpt").write_bytes(content)
    with pytest.raises(InputError, match="has 100,000,000 bytes, for which there is no room"):
        read_checkpoint(tmp_path / "long.ckpt")


class Taking:
    """What torch would allow, and takes any amount of memory."""

    def __reduce__(self):
        return bytearray, (1 << 20,)


@pytest.mark.parametrize(
    "value",
    [
        Taking(), torch.zeros(2).to_sparse(),
        torch.zeros(2, device="meta"), torch.Size([2]), {1, 2}, torch.float32, torch.device("cpu"),
    ],
    ids=["bytearray", "sparse", "meta", "size", "set", "dtype", "device"],
)  # fmt: skip
def test_only_plain_tensors_and_values_are_loaded(best: dict[str, Any], tmp_path: Path, value: Any) -> None:
    key = next(iter(best["state_dict"]))
    torch.save({**best, "state_dict": {**best["state_dict"], key: value}}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=r"odd\.ckpt"):
        read_checkpoint(tmp_path / "odd.ckpt")


def replaced(weights: dict[str, torch.Tensor], change: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    key = next(key for key, value in weights.items() if value.ndim == 4)
    return {**weights, key: change(weights[key])}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.int(), "is int32 there and float32 here"),
        (lambda w: w.to(torch.complex64), "is complex64 there and float32 here"),
        (lambda w: w.double(), "is float64 there and float32 here"),
        (lambda w: w.bool(), "is bool there and float32 here"),
        (lambda w: w[:1], "there and ("),
        (lambda w: w * float("nan"), "values that are NaN or infinite"),
        (lambda w: w / 0.0, "values that are NaN or infinite"),
        (lambda w: w.tolist(), "a list under 'model."),
        (lambda w: None, "a NoneType under 'model."),
        (lambda w: torch.zeros(1).expand(100_000, 1000), "its weights would take 400,"),
    ],
    ids=["int", "complex", "double", "bool", "shape", "nan", "inf", "list", "none", "expanded"],
)
def test_weights_that_do_not_fit(best: dict[str, Any], tmp_path: Path, change: Callable[..., Any], words: str) -> None:
    torch.save({**best, "state_dict": replaced(best["state_dict"], change)}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=rf"odd\.ckpt.*{re.escape(words)}"):
        load_model(str(tmp_path / "odd.ckpt"))


def test_name_of_a_weight_is_quoted_shortly(best: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "odd.ckpt"
    torch.save({**best, "state_dict": {**best["state_dict"], "model." + "x" * 200_000: torch.zeros(1)}}, path)
    with pytest.raises(InputError, match=r"state_dict has a Tensor under 'model\.x") as refusal:
        load_model(str(path))
    assert len(str(refusal.value)) < 500


def test_infinities_on_purpose_are_loaded(tmp_path: Path) -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    load_weights(Masked(), {"state_dict": {"model.mask": torch.tensor([0.0, -torch.inf])}}, "a.ckpt")
    with pytest.raises(InputError, match="mask holds 1 values"):
        load_weights(Masked(), {"state_dict": {"model.mask": torch.tensor([torch.inf, 0.0])}}, "a.ckpt")


WRONG: list[tuple[tuple[Any, ...], Any]] = [
    (("format",), None), (("format",), "1"), (("format",), [1]), (("format",), 10**30), (("format",), 99),
    *((("config",), value) for value in (None, [], "x", 7, {})),
    *((("config", part), value) for part in ("encoder", "reshaper", "head") for value in (None, [], "x", 7, {},
    {"_target_": 7})),
    *((("config", "head", "segmentation"), value) for value in (None, [], "x", 7, {}, {"_target_": 7})),
    (("config", "encoder", "strides"), 8), (("config", "encoder", "strides"), [8.5]),
    (("config", "encoder", "strides"), []),
    (("config", "encoder", "strides"), ["x"]), (("config", "encoder", "channels"), -1),
    (("config", "encoder", "channels"), 10**12),
    (("config", "encoder", "name"), 7), (("config", "encoder", "name"), "hf-hub:timm/resnet18"),
    (("config", "encoder", "x"), 1),
    (("config", "reshaper", "hidden"), [10**9]), (("config", "reshaper", "hidden"), [-1]),
    (("config", "reshaper", "hidden"), "x"),
    (("config", "reshaper", "_partial_"), True), (("config", "reshaper", "channels"), 10**9),
    (("config", "head", "segmentation", "upsample"), 0), (("config", "head", "segmentation", "upsample"), None),
    (("config", "head", "segmentation", "upsample"), [2]),
    (("config", "head", "segmentation", "upsample"), 10**20), (("config", "head", "segmentation", "blocks"), -3),
    (("config", "head", "segmentation", "channels"), 10**7),
    *((("spec",), value) for value in (None, [], "x", {})),
    *((("spec", key), value) for key in ("forward_m", "left_m") for value in (
        None, [], [1], ["a", "b"], [0, 1, 2], [32, 0], [0, float("nan")], [0, float("inf")], [0, 1e300], [True, 2],
        "ab", [[0], [1]],
    )),
    *((("spec", "cell_m"), value) for value in (None, 0, -1, "2", [2], float("nan"), 1e-300, 1e-4, 7, 10**18, True)),
    *((("spec", key), value) for key in ("classes", "camera_names") for value in (None, [], "ab", [1], [[1]],
    ["a", "a"], [""], [None], 7)),
    *((("spec", "image_size"), value) for value in (
        None, [], [32], [32, 64, 3], ["a", "b"], [0, 64], [-32, 64], [32.0, 64.0], [10**6, 10**6], 32, [True, 64],
        [3, 5],
    )),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda value: str(value).replace(" ", "")[:60])
def test_recipe_of_the_wrong_shape_is_a_one_line_error(
    best: dict[str, Any], tmp_path: Path, path: tuple[Any, ...], value: Any
) -> None:
    recipe = best["bevreshape"]
    node = recipe
    for key in path[:-1]:
        node = node[key]
    node = {**recipe, path[0]: changed(recipe[path[0]], path[1:], value)} if path[-1] in node else None
    if node is None:
        part = {**recipe["config"][path[1]], path[2]: value} if len(path) == 3 else value
        node = {**recipe, "config": {**recipe["config"], path[1]: part}}
    torch.save({**best, "bevreshape": node}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=r"checkpoint .*odd\.ckpt") as caught:
        load_model(str(tmp_path / "odd.ckpt"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["format", "config", "spec"])
def test_recipe_that_lacks_a_part(best: dict[str, Any], tmp_path: Path, key: str) -> None:
    recipe = {name: value for name, value in best["bevreshape"].items() if name != key}
    torch.save({**best, "bevreshape": recipe}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=r"odd\.ckpt"):
        load_model(str(tmp_path / "odd.ckpt"))


@pytest.mark.parametrize("recipe", [[], [1], "x", 7, None, {}, {"format": 1}])
def test_recipe_that_is_none(best: dict[str, Any], tmp_path: Path, recipe: Any) -> None:
    torch.save({**best, "bevreshape": recipe}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=r"odd\.ckpt"):
        load_model(str(tmp_path / "odd.ckpt"))


def test_huge_numbers_in_a_recipe_take_no_memory(best: dict[str, Any], tmp_path: Path, monkeypatch) -> None:
    """By construction: nothing is built but a sketch on the device meta."""
    recipe = best["bevreshape"]
    config = {**recipe["config"], "reshaper": {**recipe["config"]["reshaper"], "hidden": [60_000]}}
    torch.save({**best, "bevreshape": {**recipe, "config": config}}, tmp_path / "huge.ckpt")
    built, devices = loading.build_model, []

    def watched(cfg: Any, spec: BEVSpec) -> Any:
        model = built(cfg, spec)
        devices.append({weight.device.type for weight in model.state_dict().values()})
        return model

    monkeypatch.setattr(loading, "build_model", watched)
    with pytest.raises(InputError, match=r"huge\.ckpt has another architecture"):
        load_model(str(tmp_path / "huge.ckpt"))
    assert devices == [{"meta"}]


class WithoutMethods:
    """A mapping that a pickle may hold, with strings instead of its methods."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __reduce__(self):
        return OrderedDict, (), dict.fromkeys(("get", "items", "keys", "values"), "x"), None, iter(self.values.items())


@pytest.mark.parametrize(
    "part", [(), ("bevreshape",), ("bevreshape", "config"), ("state_dict",), ("more", 0), ("more", 1, 0)]
)
def test_mappings_have_their_own_methods(best: dict[str, Any], tmp_path: Path, part: tuple[Any, ...]) -> None:
    whole = {**best, "more": [{"a": torch.arange(3)}, ({"b": 1}, "text")]}

    def put(node: Any, path: tuple[Any, ...]) -> Any:
        if not path:
            return WithoutMethods(node)
        if isinstance(node, dict):
            return {key: put(value, path[1:]) if key == path[0] else value for key, value in node.items()}
        return type(node)(put(value, path[1:]) if key == path[0] else value for key, value in enumerate(node))

    torch.save(put(whole, part), tmp_path / "odd.ckpt")
    found = read_checkpoint(tmp_path / "odd.ckpt")
    for key in part:
        found = found[key]
    assert (type(found), found.get("nothing", 7)) == (dict, 7)
    load_model(str(tmp_path / "odd.ckpt"))


@pytest.mark.slow
def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    circle: list[Any] = []
    circle.append({"a": circle})
    laughs: list[Any] = []
    for _ in range(40):
        laughs = [laughs, laughs]
    for value in (circle, laughs):
        torch.save({"bevreshape": {"format": 3}, "state_dict": {}, "loops": value}, tmp_path / "odd.ckpt")
        with pytest.raises(InputError, match=r"odd\.ckpt is nested deeper than 64 or has more than 2,000,000 values"):
            read_checkpoint(tmp_path / "odd.ckpt")
