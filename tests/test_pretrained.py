"""A model as a folder for the Hugging Face hub: equal to its checkpoint, and nothing in it is executed."""

import errno
import hashlib
import json
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from commands import TINY
from hostile import CALLS, CANARY, changed, leaves
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from bevreshape.analysis.costs import ring
from bevreshape.bev_spec import BEVSpec
from bevreshape.config.build_data import build_data
from bevreshape.config.build_model import build_model
from bevreshape.config.compose import compose_training
from bevreshape.config.load_model import load_model
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.pretrained import PretrainedBEVModel
from bevreshape.storage.checkpoint import FORMAT, read_checkpoint
from bevreshape.storage.pretrained import MOST_HEADER_BYTES

METRICS = {"test/iou/mean": 0.4375, "test/iou/vehicle": 0.25, "test/loss": 1.0, "test/iou/near/vehicle": 0.5}


def cameras(spec: BEVSpec, batch: int) -> Cameras:
    """A rig of that size."""
    return ring(len(spec.camera_names), spec.image_size, batch, torch.device("cpu"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a run folder; its weights are random, its normalization has seen images."""
    run = tmp_path_factory.mktemp("hub") / "run"
    (run / "checkpoints").mkdir(parents=True)
    config = compose_training([*TINY, "head=[conv,centers]", f"data.root={run.parent / 'worlds'}"])
    spec = BEVSpec.of(build_data(config).source)
    torch.manual_seed(0)
    model = build_model(config, spec).train()
    model(torch.rand(4, 1, 3, *spec.image_size), cameras(spec, 4))
    recipe = {"format": FORMAT, "config": config, "spec": spec.to_plain()}
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"bevreshape": recipe, "state_dict": weights}, run / "checkpoints" / "best.ckpt")
    (run / "metrics.json").write_text(json.dumps(METRICS))
    return run / "checkpoints" / "best.ckpt"


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """The model as a folder."""
    PretrainedBEVModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edited(folder: Path, path: tuple[Any, ...], value: Any) -> None:
    """Change a value in ``config.json``."""
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(changed(stored, path, value)))


def replaced(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write other weights, and their checksum."""
    save_file(weights, folder / "model.safetensors")
    edited(folder, ("weights_sha256",), hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


def test_outputs_equal_those_of_the_checkpoint(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    model, spec, config = load_model(str(checkpoint))
    again = PretrainedBEVModel.from_pretrained(folder)
    assert again.spec == spec
    assert not again.training
    stored = ("encoder", "reshaper", "head", "data", "loader", "metric")
    assert again.config == {key: config[key] for key in stored}
    images, rig = torch.rand(2, 1, 3, *spec.image_size), cameras(spec, 2)
    with torch.no_grad():
        expected, found = model(images, rig), again(images, rig)
    assert expected.heads.keys() == found.heads.keys() == {"segmentation", "centers"}
    assert all(torch.equal(found.heads[name], value) for name, value in expected.heads.items())
    assert torch.equal(found.bev, expected.bev)
    again.save_pretrained(tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (folder / name).read_bytes()


def test_the_folder_is_what_the_hub_reads(checkpoint: Path, folder: Path) -> None:
    """Plain safetensors under the model's names, JSON, and a card with valid metadata."""
    weights = load_file(folder / "model.safetensors")
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert {f"model.{key}" for key in weights} == stored.keys()
    assert all(torch.equal(weights[key.removeprefix("model.")], value) for key, value in stored.items())
    card = ModelCard.load(folder / "README.md")
    described = card.data.to_dict()
    assert (described["library_name"], described["pipeline_tag"]) == ("bevreshape", "image-segmentation")
    assert "`vehicle`" in card.text
    assert "16×16 of 2 m" in card.text
    assert "Test split" not in card.text


@pytest.mark.slow
def test_export_writes_the_folder_which_commands_read(command, checkpoint: Path, tmp_path: Path) -> None:
    ended = command("export", f"checkpoint={checkpoint}", "format=hub", "out=hub")
    assert ended.code == 0, ended.err
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        "IoU mean": 0.4375, "IoU vehicle": 0.25,
    }  # fmt: skip
    assert "| IoU vehicle | 0.250 |" in card.text
    assert command("evaluate", "checkpoint=hub", "data.root=world", "--cfg", "job").code == 0
    refused = command("export", f"checkpoint={checkpoint}", "format=hub", "out=other", "calibration=rig.json")
    assert (refused.code, "leave it out" in refused.err) == (1, True)
    (tmp_path / "file").touch()
    refused = command("export", "checkpoint=hub", "format=hub", "out=file")
    assert (refused.code, "name a folder" in refused.err) == (1, True)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_keeps_no_card_of_another_model(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    model = PretrainedBEVModel.from_pretrained(checkpoint)
    model.write(out, METRICS)
    before = bytes_of(out)
    model.write(out, METRICS)
    assert bytes_of(out) == before
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(InputError, match=r"model/README\.md is the card of another model, or was edited; remove it"):
        model.write(out, {**METRICS, "test/iou/mean": 0.75})
    assert bytes_of(out) == before
    (out / "README.md").unlink()
    model.write(out, {**METRICS, "test/iou/mean": 0.75})
    results = ModelCard.load(out / "README.md").data.eval_results
    assert {result.metric_name: result.metric_value for result in results or ()}["IoU mean"] == 0.75
    assert bytes_of(out)["model.safetensors"] != before["model.safetensors"]


def test_a_full_disk_leaves_a_former_folder_whole(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PretrainedBEVModel.from_pretrained(checkpoint)
    model.write(tmp_path / "model", METRICS)
    before = bytes_of(tmp_path / "model")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full"):
        model.write(tmp_path / "model", METRICS)
    assert bytes_of(tmp_path / "model") == before


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_evaluation_gives_the_same_for_folder_and_checkpoint(
    command, checkpoint: Path, folder: Path, worlds: Path, tmp_path: Path
) -> None:
    found = []
    for given in (checkpoint, folder):
        arguments = [f"data.root={worlds}", "trainer.accelerator=cpu", f"hydra.run.dir={given.stem}"]
        ended = command("evaluate", f"checkpoint={given}", *arguments)
        assert ended.code == 0, ended.err
        metrics = json.loads((tmp_path / given.stem / "metrics.json").read_text())
        found.append({key: value for key, value in metrics.items() if key.startswith("test/")})
    assert found[0] == found[1]
    assert "test/iou/mean" in found[0]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"model is not a file, and has no {name}; name a "):
        PretrainedBEVModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("bevreshape", "format"), FORMAT + 1, f"has format {FORMAT + 1}, this version reads {FORMAT}"),
        (("bevreshape",), None, r"of another program: its config\.json has no 'bevreshape' recipe"),
        (("weights_sha256",), "0" * 64, r"model\.safetensors has the SHA-256 .* but config\.json names '0000"),
        (("weights_sha256",), None, "names None"),
        (("bevreshape", "config", "encoder", "channels"), 9, r"weight is \(8, .* there and \(9, "),
        (("bevreshape", "config", "reshaper", "hidden"), [4], "has another architecture"),
        (("bevreshape", "config", "reshaper", "hidden"), [10**9], "has another architecture|hidden"),
        (("bevreshape", "config", "reshaper", "_target_"), "os.system", r"reshaper wants to call os\.system"),
        (("bevreshape", "config", "head"), {}, r"bevreshape\.config\.head must be a mapping"),
        (("bevreshape", "config", "encoder"), {}, r"encoder has no _target_|encoder\._target_ is missing"),
        (("bevreshape", "spec", "classes"), ["a"], "has another architecture"),
        (("bevreshape", "spec", "cell_m"), -1, r"spec\.cell_m must be the length of a cell"),
        (("bevreshape", "spec", "image_size"), [10**9, 10**9], "image_size"),
    ],
)
def test_edited_config(folder: Path, path: tuple[str, ...], value: Any, message: str) -> None:
    edited(folder, path, value)
    with pytest.raises(InputError, match=message):
        PretrainedBEVModel.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"bevreshape": ' + '{"a": ' * 100 + "1" + "}" * 101])
def test_config_that_is_no_mapping(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        PretrainedBEVModel.from_pretrained(folder)


@pytest.mark.parametrize("text", CALLS)
def test_nothing_in_the_config_is_resolved_or_called(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    config = json.loads((folder / "config.json").read_text())["bevreshape"]["config"]
    original = (folder / "config.json").read_bytes()
    for part in ("encoder", "reshaper", "head", "data", "metric", "loader"):
        path = next(path for path in leaves(config) if path[0] == part)
        for hostile in (text, [{"deep": [text]}], {text: 1}):
            edited(folder, ("bevreshape", "config", *path), hostile)
            with pytest.raises(InputError, match="is written like an interpolation"):
                read_checkpoint(folder)
        (folder / "config.json").write_bytes(original)
    for part in ("encoder", "reshaper", "head"):
        node = {**config[part], "extra": {"_target_": "os.mkdir", "path": CANARY}}
        edited(folder, ("bevreshape", "config", part), node)
        with pytest.raises(InputError, match=r"wants to call os\.mkdir"):
            PretrainedBEVModel.from_pretrained(folder, trust=["somebody"])
        (folder / "config.json").write_bytes(original)
    assert not (folder.parent / CANARY).exists()


def drop(weights: dict[str, torch.Tensor]) -> None:
    del weights[min(weights)]


def add(weights: dict[str, torch.Tensor]) -> None:
    weights["more"] = torch.zeros(2)


def convert(weights: dict[str, torch.Tensor]) -> None:
    key = next(key for key, value in weights.items() if value.ndim == 4)
    weights[key] = weights[key].double()


def poison(weights: dict[str, torch.Tensor]) -> None:
    next(value for value in weights.values() if value.ndim == 4).view(-1)[0] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [(drop, "is missing there"), (add, "more is unknown here"), (convert, "is float64 there"), (poison, "NaN")],
)
def test_other_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    replaced(folder, weights)
    with pytest.raises(InputError, match=message):
        PretrainedBEVModel.from_pretrained(folder)


def test_damaged_weights_are_input_errors(folder: Path) -> None:
    """With the checksum of the damaged file, so that the header's own checks are what is left."""
    whole, draw = (folder / "model.safetensors").read_bytes(), random.Random(0)
    header = int.from_bytes(whole[:8], "little")
    long = (MOST_HEADER_BYTES + 1).to_bytes(8, "little")
    damages = [b"", whole[:7], whole[: header // 2], whole[:-1], whole + b"0", long + whole[8:], b"PK\x03\x04" + whole]
    for _ in range(40):
        flipped = bytearray(whole)
        flipped[draw.randrange(8 + header)] ^= 1 << draw.randrange(8)
        damages.append(bytes(flipped))
    for damaged in damages:
        (folder / "model.safetensors").write_bytes(damaged)
        edited(folder, ("weights_sha256",), hashlib.sha256(damaged).hexdigest())
        with suppress(InputError):
            read_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(long + whole[8:])
    edited(folder, ("weights_sha256",), hashlib.sha256(long + whole[8:]).hexdigest())
    with pytest.raises(InputError, match=r"the header of model\.safetensors has 16,777,217 bytes"):
        read_checkpoint(folder)


def test_flipped_bits_of_weights_are_found(folder: Path) -> None:
    whole = bytearray((folder / "model.safetensors").read_bytes())
    whole[-5] ^= 4
    (folder / "model.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match="copy both again"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "not a repository", "a/b/c", "../model"])
def test_repository_without_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=rf"{name} is no folder here, and cannot be downloaded"):
        PretrainedBEVModel.from_pretrained(name, cache_dir=tmp_path)


def test_a_config_that_json_cannot_hold(checkpoint: Path, tmp_path: Path) -> None:
    model, spec, config = load_model(str(checkpoint))
    config = {**config, "data": {**config["data"], "labels": {7: "road"}}}
    with pytest.raises(InputError, match="keys or values that are not JSON"):
        PretrainedBEVModel(model, spec, config).save_pretrained(tmp_path / "model")
