"""Stored configs and run folders: plain values, classes of an allow-list, and one-line messages for damaged files."""

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from inspect import isclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import ROOT
from hostile import CALLS, CANARY, changed, leaves

from bevreshape.config.allowed import (
    PLACES,
    check_cache,
    check_targets,
    needed_trust,
    read_config,
    read_trust,
    typed_addresses,
)
from bevreshape.config.command_line import typed_trust
from bevreshape.errors import InputError
from bevreshape.reporting.report import write_report
from bevreshape.reporting.runs import read_runs, stopped_early
from bevreshape.reshapers import Reshaper
from bevreshape.storage import plain_values
from bevreshape.storage.plain_values import check_plain, read_history, read_json, read_yaml

SYNTHETIC = "bevreshape.data.sources.synthetic.SyntheticSource"


@pytest.fixture(scope="module")
def config(trained: Path) -> dict[str, Any]:
    """A run's config as plain values."""
    return yaml.safe_load((trained / "config.yaml").read_text())


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize("text", CALLS)
def test_interpolation_is_refused_in_every_value_and_key_of_a_config(config: dict[str, Any], text: str) -> None:
    paths = list(leaves(config))
    assert len(paths) > 60
    assert {path[0] for path in paths} >= {place[0] for place in PLACES} - {"logger"}
    check_plain(config, "file")
    for path in paths:
        for hostile in (text, {"a": [{"b": text}]}, {text: 1}):
            with pytest.raises(InputError, match=r"^file: .* is written like an interpolation"):
                check_plain(changed(config, path, hostile), "file")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": {"b": object()}}, "file: a.b is a object, not a plain value"),
        ({"a": [1, {2}]}, "file: a[1] is a set, not a plain value"),
        ({"a": {(1,): 2}}, "file: a has a key that is a tuple, not a text"),
        ({"a": b"x"}, "file: a is a bytes, not a plain value"),
        ({"a": torch.zeros(1)}, "file: a is a Tensor, not a plain value"),
        ({"a": 10**10_000}, "file: a is an integer of 33220 bits"),
        ({"a": "x\0y"}, "file: a holds 'x\\x00y' with control characters"),
        ({"a": "\x1b[2J"}, "file: a holds '\\x1b[2J' with control characters"),
        ({"a": "x" * 200_000}, "file: a is a text of 200000 characters"),
        ({"a": [0] * 200_000}, "file is nested deeper than 32 or has more than 100000 values"),
    ],
)
def test_kinds_that_no_config_holds(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        check_plain(value, "file")


def test_references_to_references_end_soon() -> None:
    deep: list[Any] = []
    for _ in range(20):
        deep = [deep] * 10  # 10^20 values when written out
    with pytest.raises(InputError, match="more than 100000 values"):
        check_plain(deep, "file")
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InputError, match="nested deeper than 32"):
        check_plain(endless, "file")


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "_target_")
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(value)


def test_every_class_of_conf_is_allowed_in_its_place() -> None:
    found: set[str] = set()
    for path in (ROOT / "conf").glob("*/*.yaml"):
        node, part = yaml.safe_load(path.read_text()), path.parent.name
        if part in {place[0] for place in PLACES}:
            check_targets(node, part, str(path))
            found |= {*targets(node)}
    assert len(found) > 25


def test_allowed_names_are_classes_of_the_kind_that_belongs_there() -> None:
    for place, names in PLACES.items():
        for name in names:
            module, _, attribute = name.rpartition(".")
            found = getattr(import_module(module), attribute)
            assert isclass(found)
            assert place[0] != "reshaper" or issubclass(found, Reshaper)
            assert place != ("data",) or hasattr(found, "split")
    own = {
        f"bevreshape.reshapers.{c.__name__}" for c in concrete(Reshaper) if c.__module__.startswith("bevreshape.res")
    }
    assert own - {f"bevreshape.reshapers.{name}" for name in ("GeometricReshaper", "FixedRig")} == {
        *PLACES["reshaper",]
    }


def concrete(base: type) -> Iterator[type]:
    for found in base.__subclasses__():
        yield from concrete(found)
        if found.reshape is not Reshaper.reshape or hasattr(found, "gather"):
            yield found


@pytest.mark.parametrize(
    "part", ["data", "augment", "encoder", "reshaper", "head", "objective", "metric", "optimizer", "logger", "trainer"]
)
@pytest.mark.parametrize(
    "target",
    [
        "os.system", "subprocess.Popen", "builtins.eval", "torch.load", "torch.hub.load",
        "bevreshape.storage.files.write_text",
        "bevreshape.storage.files.os.system", "bevreshape.training.callbacks.LastCheckpoint", "bevreshape.predict.main",
        "bevreshape.geometry.Cameras",
        "bevreshape.data.sources.synthetic.__main__.main", "bevreshape.experiments.task.TaskStudy",
        "bevreshape.storage.plain_values.os", "hydra.utils.call",
        "bevreshape.reshapers.Reshaper", "lightning.pytorch.Trainer", "posix.mkdir", "", "x", "..", 7, None,
        ["os.system"],
    ],
)  # fmt: skip
def test_other_targets_are_refused_at_any_depth(part: str, target: Any) -> None:
    for node in (
        {"_target_": target},
        {"grid": {"_target_": target}},
        {"terms": {"a": {"_target_": target}}},
        {"a": [{"b": ({"_target_": target},)}]},
    ):
        with pytest.raises(InputError, match=r"^file: .* wants to call"):
            check_targets(node, part, "file")


def test_classes_of_bevreshape_are_refused_elsewhere() -> None:
    for place, names in PLACES.items():
        for other in {place[0] for place in PLACES} - {place[0]}:
            with pytest.raises(InputError, match=r"no class of bevreshape|neither a class of bevreshape"):
                check_targets({"_target_": names[0]}, other, "file")


def test_packages_that_a_config_needs_trust_for() -> None:
    own = {"_target_": "bevreshape.objectives.BCE"}
    config = {
        "seed": 0,
        "data": {"_target_": "theirs.Source", "parts": [{"_target_": "other.Part"}]},
        "objective": {"a": own, "b": {"_target_": "theirs.Loss"}},
        "optimizer": {
            "_target_": "bevreshape.training.optimizer.TorchOptimizer",
            "optimizer": {"_target_": "lion.Lion"},
        },
    }
    assert needed_trust(config) == ("theirs", "other", "lion")
    assert needed_trust({"objective": {"a": own}, "logger": None}) == ()
    logger = {"_target_": "lightning.pytorch.loggers.WandbLogger", "name": "team/mlp"}
    assert needed_trust({"logger": logger}) == ()
    assert needed_trust({"logger": {**logger, "offline": True}}) == ("lightning",)


@pytest.mark.parametrize("name", ["Wandb", "CSV", "TensorBoard"])
def test_further_options_of_a_logger_need_trust(name: str) -> None:
    node = {"_target_": f"lightning.pytorch.loggers.{name}Logger", "save_dir": "/elsewhere"}
    with pytest.raises(InputError, match=r"logger\.save_dir is not taken from a file.*trust=\[lightning\]"):
        check_targets(node, "logger", "file")
    check_targets(node, "logger", "file", ("lightning",))


@pytest.mark.parametrize(
    ("name", "is_folder"), [("Wandb", False), ("MLFlow", False), ("CSV", True), ("TensorBoard", True)]
)
def test_names_that_are_folders_stay_in_the_run_folder(name: str, is_folder: bool) -> None:
    node = {"_target_": f"lightning.pytorch.loggers.{name}Logger", "name": "team/mlp"}
    if is_folder:
        with pytest.raises(InputError, match=r"logger\.name='team/mlp' is a path"):
            check_targets(node, "logger", "file")
    else:
        check_targets(node, "logger", "file")
    with pytest.raises(InputError, match=r"logger\.version='\.\./x' is a path"):
        check_targets({**node, "name": "mlp", "version": "../x"}, "logger", "file")


def test_trust_names_whole_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mypost"
    package.mkdir()
    (package / "__init__.py").write_text("import os\nfrom os import system\nclass Own: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_targets({"x": [{"_target_": "mypost.Own"}]}, "reshaper", "file", ("mypost",))
    for target, trust in (
        ("os.system", ("mypost",)), ("post.Own", ("mypost",)), ("mypost.Own", ("mypos",)), ("mypost.Own", ("mypost2",)),
        ("mypost.system", ("mypost",)), ("mypost.os", ("mypost",)), ("mypost.os.system", ("mypost",)),
        ("bevreshape.storage.files.write_text", ("bevreshape",)),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"wants to call|cannot be imported"):
            check_targets({"_target_": target}, "reshaper", "file", trust)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("mypost", ("mypost",)), (["a", "b"], ("a", "b")), ([], ()), ((), ())],
)
def test_trust_is_a_list_or_one_name(given: Any, expected: tuple[str, ...]) -> None:
    assert read_trust(given) == expected


@pytest.mark.parametrize("given", ["my.post", "a,b", "", 7, [7], {"a": 1}, None, ["a.b"]])
def test_other_trust_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="must be a list of packages"):
        read_trust(given)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ()), (["trust=[]"], ()), (["trust=a"], ("a",)), (["x=1", "trust=[a, 'b']"], ("a", "b")),
        (["+trust=[a]"], ("a",)), (["trust=[a]", "trust=[b]"], ("b",)), (["distrust=[a]"], ()),
    ],
)  # fmt: skip
def test_trust_on_the_command_line(arguments: list[str], expected: tuple[str, ...]) -> None:
    assert typed_trust(arguments) == expected


@pytest.mark.parametrize("root", ["/elsewhere", "../elsewhere", "a/../../b", "~/elsewhere", "~nobody-of-that-name/x"])
def test_stored_cache_folder_outside_must_be_a_cache(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match=r"^file: its scenes would be generated in .*data\.root=FOLDER"):
        check_cache({"_target_": SYNTHETIC, "root": root}, "file")
    check_cache({"_target_": SYNTHETIC, "root": "data/synthetic"}, "file")
    check_cache({"_target_": SYNTHETIC}, "file")
    check_cache({"_target_": "bevreshape.data.sources.folder.FolderSource", "root": root}, "file")  # reads alone
    (tmp_path / "cache" / "test-0123").mkdir(parents=True)
    (tmp_path / "cache" / "test-0123" / "meta.json").write_text("{}")
    check_cache({"_target_": SYNTHETIC, "root": str(tmp_path / "cache")}, "file")


def test_stored_addresses_are_those_of_object_stores() -> None:
    folder = "bevreshape.data.sources.folder.FolderSource"
    check_cache({"_target_": folder, "root": "s3://bucket/mine"}, "file")
    check_cache({"_target_": SYNTHETIC, "root": "gs://bucket/mine"}, "file")
    for key, address in (("root", "http://10.0.0.1/x"), ("prepared", "smb://host/x")):
        data = {"_target_": folder, "root": "data", key: address}
        for typed in ((), ("prepared" if key == "root" else "root",)):
            with pytest.raises(InputError, match=rf"^file: its data would be read from {address}.*set data\.{key}="):
                check_cache(data, "file", typed)
        check_cache(data, "file", (key,))


def test_addresses_on_the_command_line() -> None:
    assert typed_addresses(["data.root=x", "seed=1", "resume=data.prepared=x"]) == ["root"]
    assert typed_addresses(["data=folder", "+data.prepared=null", "~data.root"]) == ["root", "prepared"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"- a\n- b\n", "is a list, not a mapping"),
        (b"text", "is a str, not a mapping"),
        (b"data: {_target_: x\nseed", "is damaged or no YAML"),
        (b"\x00\x01\x02", "is damaged or no YAML"),
        (b"\xff\xfe\x00a", "is no UTF-8 text"),
        ("name: größe".encode("latin-1"), "is no UTF-8 text"),
        (b"a: &x [1]\nb: *x\n", "a reference, which no run writes"),
        (b"a: !!python/object/apply:os.mkdir [canary]\n", "is damaged or no YAML"),
        (b"a: 2020-01-01\n", "a is a date, not a plain value"),
        (b"[" * 100_000, "is nested deeper than 32 or has more than 100000 values"),
        (b"# " * (3 << 20), "has more than 4 MB, so bevreshape did not write it"),
        (b"1: 2\n", "not a mapping of names"),
        (b"a: ${oc.env:HOME}\n", "written like an interpolation"),
        (None, "is missing or not a file"),
    ],
)
def test_damaged_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"config\.yaml.*{re.escape(words)}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("shape", ["{}", "[{}]", "{{a: [{}]}}", "- {}"])
def test_values_of_yaml_are_counted_as_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    """As many as a config may have, whatever follows."""
    nodes, composed = [0], yaml.SafeLoader.compose_node

    def counted(self: yaml.SafeLoader, parent: Any, index: Any) -> Any:
        nodes[0] += 1
        return composed(self, parent, index)

    monkeypatch.setattr(yaml.SafeLoader, "compose_node", counted)
    monkeypatch.setattr(plain_values, "MOST_VALUES", 1000)
    path = tmp_path / "config.yaml"
    path.write_text("a:\n  " + shape.format("[" + "1," * 100_000 + "]"))
    with pytest.raises(InputError, match=r"config\.yaml is nested deeper than 32 or has more than 1000 values"):
        read_yaml(path)
    assert nodes == [1000]


def message(read: Callable[[], Any]) -> str:
    """Of the refusal, empty where there is none."""
    try:
        read()
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["list", "mapping"])
def test_yaml_is_read_up_to_the_same_bounds_as_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What check_plain lets through has not been refused before, and nothing more has been read."""
    path = tmp_path / "config.yaml"
    monkeypatch.setattr(plain_values, "MOST_VALUES", 41)
    for many, deep in ((19, 1), (20, 1), (38, 1), (39, 1), (1, 31), (1, 32)):
        node: Any = [1] * many if kind == "list" else {str(number): 1 for number in range(many)}
        for _ in range(deep - 1):
            node = [node]
        path.write_text(yaml.safe_dump({"a": node}))
        wanted = message(lambda node=node: check_plain({"a": node}, str(path)))
        assert message(lambda: read_yaml(path)) == wanted
        with monkeypatch.context() as unchecked:
            unchecked.setattr(plain_values, "check_plain", lambda *args: None)
            assert message(lambda: read_yaml(path)) == wanted


@pytest.mark.parametrize("unit", ["{},", "[],", "1,", '{"a":1},'])
def test_json_of_too_many_values_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"a": [' + unit * 3_000_000 + "1]}")
    monkeypatch.setattr(json, "loads", lambda *args, **kwargs: pytest.fail("it was read"))
    with pytest.raises(InputError, match=r"metrics\.json is nested deeper than 32 or has more than 100000 values"):
        read_json(path)


def test_json_of_as_many_values_as_a_config_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    for content in ({str(number): 0.5 for number in range(49_000)}, {"a": [{"b": 1}] * 30_000}):
        path.write_text(json.dumps(content))
        assert read_json(path) == content


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN', b'{"a\\u0000": 1}']
)
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.json") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hostile", "words"),
    [
        ({"hydra": {"callbacks": {"a": {"_target_": "os.system"}}}}, "settings of Hydra itself"),
        ({"defaults": [{"data": "folder"}]}, "settings of Hydra itself"),
        ({"data": ["a"]}, "data="),
        ({"trainer": "x"}, "trainer='x' must be a mapping"),
        ({"other": {"_target_": "os.system"}}, "other wants to call os.system"),
        (
            {"logger": {"_target_": "lightning.pytorch.loggers.WandbLogger", "settings": {"base_url": "x"}}},
            "logger.settings",
        ),
        (
            {"logger": {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "../../x"}},
            "would leave the run folder",
        ),
        ({"logger": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "/x"}}, "logger.save_dir"),
        (
            {"logger": {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "x"}},
            "logger.tracking_uri",
        ),
        ({"logger": {"_target_": "lightning.pytorch.loggers.CometLogger"}}, "wants to call"),
        ({"seed": None}, "has no seed"),
    ],
)
def test_hostile_config_of_a_run(config: dict[str, Any], tmp_path: Path, hostile: dict[str, Any], words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config | hostile))
    with pytest.raises(InputError, match=rf"config\.yaml.*{re.escape(words)}"):
        read_config(path, needed=("seed",))
    path.write_text(yaml.safe_dump(config))
    assert read_config(path, needed=("seed",)) == config


GOOD = "step,epoch,val/loss\n4,0,0.5\n8,1,\n"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n", b"epoch,val/loss\n0,1\n", b"step,step\n1,1\n", b"step,epoch\n1\n", b"step,epoch\n1,2,3\n",
        b"step,epoch\nx,1\n",
        b"step,epoch\n-1,1\n", b"step,epoch\n1.5,1\n", b"step,epoch\n1,text\n", b'step,epoch\n"1,1\n',
        b"step,\0\n1,1\n",
        b"step,epoch\n\0\0\0\0\n", b"\xff\xfe\x00", b"step,epoch\n\n", GOOD.encode()[:-3] + b"\xff", b"{}",
    ],
)  # fmt: skip
def test_history_that_cannot_be_read_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "history.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"history\.csv is damaged: .*; (restore it|rename it)"):
        read_history(path)
    assert path.read_bytes() == content


def test_history_is_what_csv_reads(trained: Path) -> None:
    path = trained / "history.csv"
    with path.open(newline="", encoding="utf-8") as file:
        assert read_history(path) == list(csv.DictReader(file))


def damage_text(name: str, content: bytes | None) -> Callable[[Path], None]:
    def do(run: Path) -> None:
        (run / name).unlink()
        if content is not None:
            (run / name).write_bytes(content)

    return do


def damage_checkpoint(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def do(run: Path) -> None:
        path = run / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)

    return do


def of_another_model(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"] = {key + "x": value for key, value in checkpoint["state_dict"].items()}


def half(run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:20_000])


RESUMED = {
    "config empty": (damage_text("config.yaml", b""), "config.yaml is damaged: it is empty"),
    "config a list": (damage_text("config.yaml", b"[1]"), "config.yaml is damaged: it is a list"),
    "config half": (lambda run: halve(run / "config.yaml"), "config.yaml"),
    "config binary": (damage_text("config.yaml", bytes(range(256))), "config.yaml is damaged"),
    "no optimizer": (damage_checkpoint(lambda c: c.pop("optimizer_states")), "optimizer_states must be a list of one"),
    "two optimizers": (damage_checkpoint(lambda c: c["optimizer_states"].append({})), "optimizer_states must be"),
    "no schedule": (damage_checkpoint(lambda c: c.pop("lr_schedulers")), "lr_schedulers must be a list of one"),
    "no loops": (damage_checkpoint(lambda c: c.pop("loops")), "loops must be of kind dict"),
    "loops of nothing": (damage_checkpoint(lambda c: c["loops"].update(fit_loop={})), "its loops counted None steps"),
    "optimizer of nothing": (damage_checkpoint(lambda c: c["optimizer_states"][0].clear()), "optimizer_states"),
    "no step": (damage_checkpoint(lambda c: c.pop("global_step")), "global_step must be"),
    "another model": (damage_checkpoint(of_another_model), "of another model than its run's config"),
    "truncated": (half, "truncated or not a checkpoint"),
    "history no CSV": (damage_text("history.csv", b"\0\0\0"), "history.csv is damaged"),
    "history without step": (damage_text("history.csv", b"a,b\n1,2\n"), "history.csv is damaged"),
}


def halve(path: Path) -> None:
    path.write_text(path.read_text()[: path.stat().st_size // 2])


@pytest.mark.parametrize("case", RESUMED)
def test_damaged_run_is_not_resumed(command, run: Path, case: str) -> None:
    damage, words = RESUMED[case]
    damage(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    ended = command("train", f"resume={run}")
    assert (ended.code, "Traceback" in ended.err) == (1, False), ended.err
    assert words in ended.err[ended.err.index("error:") :]
    assert all(path.read_bytes() == content for path, content in before.items()), "nothing is lost"


@pytest.mark.parametrize("text", CALLS)
@pytest.mark.parametrize("key", ["name", "reshaper", "data", "trainer", "logger", "optimizer"])
def test_resume_resolves_nothing(
    command, run: Path, config: dict[str, Any], key: str, text: str, tmp_path: Path
) -> None:
    part = {**config[key], "extra": text} if isinstance(config[key], dict) else text
    (run / "config.yaml").write_text(yaml.safe_dump(config | {key: part}))
    ended = command("train", f"resume={run}")
    assert (ended.code, "written like an interpolation" in ended.err, "Traceback" in ended.err) == (1, True, False)
    assert not (tmp_path / CANARY).exists()


def test_resume_calls_no_untrusted_class(command, run: Path, config: dict[str, Any], tmp_path: Path) -> None:
    for hostile in (
        {"hydra": {"callbacks": {"x": {"_target_": "os.mkdir", "path": CANARY}}}},
        {"head": {**config["head"], "x": {"_target_": "os.mkdir", "path": CANARY}}},
        {"objective": {"a": {"_target_": "os.mkdir", "path": CANARY}}},
        {"metric": {"a": {"_target_": "os.mkdir", "path": CANARY}}},
        {"optimizer": {"optimizer": {"_target_": "os.mkdir", "_partial_": True, "path": CANARY}}},
    ):
        (run / "config.yaml").write_text(yaml.safe_dump(config | hostile))
        ended = command("train", f"resume={run}")
        assert (ended.code, "Traceback" in ended.err) == (1, False), ended.err
        assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.json", b"{", "metrics.json is damaged or no JSON"),
        ("metrics.json", b"[1]", "metrics.json is damaged: it is a list"),
        ("metrics.json", b'{"test/iou/mean": null}', "test/iou/mean is None, not a number"),
        ("metrics.json", b'{"test/iou/mean": "high"}', "test/iou/mean is 'high', not a number"),
        ("metrics.json", b'{"test/iou/mean": 0.5, "fit/steps": "many"}', "fit/steps is 'many', not a number"),
        ("metrics.json", b'{"test/iou/mean": true}', "test/iou/mean is True, not a number"),
        ("metrics.json", b'{"test/iou/mean": NaN}', "test/iou/mean is nan, not a number"),
        ("config.yaml", b"", "config.yaml is damaged: it is empty"),
        ("config.yaml", b"[a]", "config.yaml is damaged: it is a list"),
        ("config.yaml", None, "config.yaml is missing"),
        ("config.yaml", b"name: a\n", "seed is None, not an integer"),
        ("config.yaml", b"name: [a]\nseed: 0\n", "name is ['a'], not a text"),
    ],
)
def test_damaged_run_is_named(run: Path, name: str, content: bytes | None, words: str) -> None:
    damage_text(name, content)(run)
    with pytest.raises(InputError, match=re.escape(words)):
        read_runs(run)


def test_figures_that_are_not_known_are_left_out(run: Path) -> None:
    metrics: Mapping[str, Any] = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "test/iou/lane": None}))
    assert read_runs(run)[0].metrics["test/iou/lane"] is None


def test_run_that_stopped_early_at_a_step_that_is_not_known(run: Path) -> None:
    metrics: Mapping[str, Any] = json.loads((run / "metrics.json").read_text())
    for steps, said in ((None, "mlp-synthetic with seed 0."), (6, "mlp-synthetic with seed 0 after 6 steps.")):
        (run / "metrics.json").write_text(json.dumps({**metrics, "fit/stopped_early": 1.0, "fit/steps": steps}))
        assert stopped_early([read_runs(run)]) == f"Stopped early: {said}"


@pytest.mark.parametrize("text", CALLS)
def test_report_runs_nothing_of_a_run_folder(
    run: Path, config: dict[str, Any], text: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for hostile in (
        {"data": {**config["data"], "rig": text}},
        {"data": {**config["data"], "noise": {"_target_": "os.mkdir", "path": CANARY}}},
        {"data": {**config["data"], "root": str(tmp_path / "elsewhere")}},
    ):
        (run / "config.yaml").write_text(yaml.safe_dump(config | hostile))
        with pytest.raises(InputError, match=r"config\.yaml"):
            write_report([run], tmp_path / "report.html", samples=1, cells=2, probes=1)
        assert not {CANARY, "elsewhere", "report.html"} & {path.name for path in tmp_path.iterdir()}


def test_report_says_which_history_is_damaged(run: Path, tmp_path: Path) -> None:
    damage_text("history.csv", b"step,val/iou/mean\n1,x\n")(run)
    with pytest.raises(InputError, match=r"history\.csv is damaged: line 2"):
        write_report([run], tmp_path / "report.html", samples=1, cells=2, probes=1)
