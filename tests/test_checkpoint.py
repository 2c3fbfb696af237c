"""Checkpoints that are none are refused, and nothing in one is ever executed."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from bevreshape.build import load_model
from bevreshape.checkpoint import load_weights, read_checkpoint
from bevreshape.errors import InputError


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
    ("content", "sentence"),
    [(b"not at all", "checkpoint"), ({"state_dict": {}}, "of another program"), ([1, 2], "of another program")],
)
def test_file_of_another_kind(tmp_path: Path, content: object, sentence: str) -> None:
    path = tmp_path / "other.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=sentence):
        read_checkpoint(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        read_checkpoint(tmp_path)


def test_another_architecture_is_named(trained: Path) -> None:
    path = trained / "checkpoints" / "best.ckpt"
    with pytest.raises(InputError, match=r"weight is .* there and .* here|missing there"):
        load_weights(torch.nn.Linear(3, 2), read_checkpoint(path), path)


@pytest.mark.parametrize("target", ["os.system", "bevreshape.files.os.system", "bevreshape.files.write_text"])
def test_config_in_a_checkpoint_cannot_call_strangers(trained: Path, tmp_path: Path, target: str) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["bevreshape"]["config"]["head"]["inner"] = {"_target_": target, "command": "true"}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match="wants to call"):
        load_model(str(tmp_path / "evil.ckpt"))


def test_data_config_in_a_checkpoint_cannot_call_strangers(command, trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["bevreshape"]["config"]["data"]["noise"] = {
        "_target_": "bevreshape.files.write_text",
        "path": "x",
        "text": "y",
    }
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    ended = command("evaluate", "checkpoint=evil.ckpt")
    assert (ended.code, "wants to call bevreshape.files.write_text" in ended.err) == (1, True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("format_", "given", "expected"),
    [(1, None, True), (1, False, False), (2, None, None), (2, False, False), (2, True, True)],
)
def test_cross_attention_of_format_1_keeps_its_normalised_values(
    tmp_path: Path, format_: int, given: bool | None, expected: bool | None
) -> None:
    """A recipe without the key meant normalised values then, and means the default now."""
    reshaper = {"_target_": "bevreshape.reshapers.CrossAttention", "dim": 8}
    config = {"reshaper": reshaper if given is None else {**reshaper, "normalise_values": given}}
    torch.save({"state_dict": {}, "bevreshape": {"format": format_, "config": config}}, tmp_path / "a.ckpt")
    read = read_checkpoint(tmp_path / "a.ckpt")["bevreshape"]["config"]["reshaper"]
    assert read.get("normalise_values") is expected


def test_other_reshapers_of_format_1_are_as_they_were_and_newer_formats_are_refused(tmp_path: Path) -> None:
    config = {"reshaper": {"_target_": "bevreshape.reshapers.CrossViewAttention"}}
    torch.save({"state_dict": {}, "bevreshape": {"format": 1, "config": config}}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["bevreshape"]["config"] == config
    torch.save({"state_dict": {}, "bevreshape": {"format": 3, "config": config}}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="has format 3, this version reads 1 to 2"):
        read_checkpoint(tmp_path / "a.ckpt")
