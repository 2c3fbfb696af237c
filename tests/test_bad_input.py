"""Invalid command lines: a one-line message that names the key and the remedy, exit code 1, no traceback."""

from pathlib import Path

import pytest
import torch
from commands import TINY, finish, start


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reshaper=mpl",), ("reshaper=mpl", "did you mean mlp")),
        (("data=synthetik",), ("did you mean synthetic",)),
        (("encoder.name=mobilnetv3_small_050",), ("mobilnetv3_small_050", "mobilenetv3_small_050")),
        (("encoder.strides=[7]",), ("strides=[7]", "offers")),
        (("head.segmentation.upsample=3",), ("16×16", "3")),
        (("head.segmentation.upsample=0",), ("head.segmentation.upsample=0",)),
        (("data.grid.cell_m=0.7",), ("cell_m=0.7", "integer number of cells")),
        (("data.grid.forward_m=[40,0]",), ("forward_m", "ascend")),
        (("loader.batch_size=0",), ("loader.batch_size=0",)),
        (("loader.batch_size=64",), ("24 training samples", "loader.batch_size")),
        (("data.rig=surrund",), ("surrund", "surround")),
        (("data.jitter.yaw_deg=-1",), ("yaw_deg",)),
        (("data.calibration=exakt",), ("exakt", "exact")),
        (("data.scenes.train=0",), ("scenes",)),
        (("seed=-1",), ("seed=-1",)),
        (("seed=abc",), ("seed='abc'",)),
        (("optimizer.lr=-1",), ("optimizer.lr=-1",)),
        (("trainer.max_steps=-5",), ("trainer.max_steps=-5",)),
        (("trainer.max_steps=many",), ("trainer.max_steps='many'",)),
        (("trainer.max_steps=-1",), ("trainer.max_epochs",)),
        (("trainer.precision=16-mixed",), ("16-mixed", "bf16-mixed")),
        (("trainer.precision=bf16-true",), ("bf16-true", "bf16-mixed")),
        (("trainer.devices=0",), ("trainer.devices=0",)),
        (("trainer.strategy=dpp", "trainer.devices=1"), ("dpp",)),
        (("trainer.accelerator=tpu",), ("trainer",)),
        (("logger.mode=ofline", "logger=wandb"), ("ofline", "offline")),
        (("reshaper.hidden_layers=3",), ("hidden_layers",)),
        (("+reshaper.hidden_layers=3",), ("hidden_layers",)),
        (("data.scenes.train=a=b",), ("data.scenes.train",)),
        (("objective=bce", "objective.segmentation.pos_weight=-1.0"), ("pos_weight", "-1")),
        (("log_images.num_samples=-1",), ("log_images.num_samples=-1",)),
        (("checkpoint_every_n_steps=0",), ("checkpoint_every_n_steps=0",)),
        (("data=folder",), ("data.root",)),
        (("reshaper=cross_attention", "reshaper.heads=0"), ("reshaper.heads=0 must be an integer from 1 to 1024",)),
        (("reshaper=cross_attention", "reshaper.dim=wide"), ("reshaper.dim='wide' must be an integer",)),
        (("reshaper=self_attention", "reshaper.heads=-1"), ("heads=-1",)),
        (("reshaper=column_attention", "reshaper.heads=0"), ("heads=0",)),
        (("reshaper=column_attention", "reshaper.dim_feedforward=0"), ("dim_feedforward=0",)),
        (("reshaper=latent_attention", "reshaper.heads=0"), ("heads=0",)),
        (("reshaper.hidden=[0]",), ("hidden=[0] must be a list of integers from 1",)),
        (("reshaper.channels=0",), ("channels=0",)),
        (("reshaper=strided_conv", "reshaper.channels=0"), ("channels=0",)),
        (("+reshaper.activatoin=relu",), ("activatoin", "did you mean activation")),
        (("encoder.strides=[4,8]",), ("2 scales", "encoder.strides=[4]")),
        (("reshaper._target_=bevreshape.reshapers.mlp",), ("bevreshape.reshapers.mlp is a module, not a class",)),
        (("data._target_=pathlib.Path",), ("data: PosixPath has no grid, so it is no data; choose data=NAME",)),
        (("encoder._target_=argparse.Namespace",), ("encoder: Namespace has no sources, so it is no encoder",)),
        (
            ("objective.segmentation._target_=argparse.Namespace",),
            ("objective.segmentation: Namespace has no forward, so it is no objective",),
        ),
        (
            ("optimizer._target_=builtins.dict",),
            ("optimizer._target_=builtins.dict has no signature that lists its options",),
        ),
        (
            ("logger=tensorboard", "+logger.max_queues=9"),
            ("logger: TensorBoardLogger has no option max_queues; did you mean max_queue",),
        ),
        (("logger=wandb", "+logger.entiti=x"), ("logger: WandbLogger has no option entiti; did you mean entity",)),
        (("logger=csv", "+logger.nme=x"), ("logger: CSVLogger has no option nme; did you mean name",)),
        (("data=folder", "data.root=nowhere", "data.classes={a: {source: ipm, labels: [a]}}"), ("nowhere",)),
    ],
)  # fmt: skip
def test_error_message(command, worlds: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    data = () if "data=folder" in arguments else (f"data.root={worlds}",)
    tiny = [
        a
        for a in TINY
        if "data=folder" not in arguments or not a.startswith(("data.scenes", "data.generation_workers"))
    ]
    ended = command("train", *tiny, *data, *arguments)
    assert ended.code == 1
    assert "Traceback" not in ended.err, ended.err
    assert "Error executing job" not in ended.err, "Hydra's own line"
    message = ended.err[ended.err.index("error:") :]
    for word in words:
        assert word in message, message


def test_non_numeric_values(tmp_path: Path) -> None:
    """In a process of its own, where no type checker of the tests stands before the program's own checks."""
    ended = finish(start("train", "optimizer.lr=fast", cwd=tmp_path))
    assert ended.code == 1
    assert "error: optimizer.lr='fast' must be a number > 0 and ≤ 10" in ended.err
    assert "Traceback" not in ended.err


def test_two_devices_without_a_gpu_are_refused(command, worlds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    arguments = [a for a in TINY if not a.startswith("trainer.accelerator")]
    ended = command("train", *arguments, f"data.root={worlds}", "trainer.devices=2")
    assert ended.code == 1
    assert "trainer.devices=2: this machine has no GPU; set trainer.devices=1, or trainer.accelerator=cpu" in ended.err


def test_two_devices_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from bevreshape.errors import InputError
    from bevreshape.training.hardware import check_hardware

    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(InputError, match=r"trainer\.devices=2: this machine has 1 GPU"):
        check_hardware({"accelerator": "gpu", "devices": 2})


def test_full_disk_while_checkpointing(command, worlds: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import errno
    import os

    original = os.fsync

    def full(handle: int) -> None:
        if ".ckpt" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(handle)

    monkeypatch.setattr("os.fsync", full)
    ended = command("train", *TINY, f"data.root={worlds}", "hydra.run.dir=run")
    assert ended.code == 1
    assert "the disk is full" in ended.err
    assert "last.ckpt" in ended.err
    assert "Traceback" not in ended.err
    assert not list((tmp_path / "run" / "checkpoints").iterdir()), "half-written files were left"


def test_missing_trainer_keys(command, worlds: Path) -> None:
    for key in ("max_steps", "val_check_interval"):
        ended = command("train", *TINY, f"data.root={worlds}", f"~trainer.{key}", "trainer.max_epochs=1")
        assert (ended.code, f"trainer.{key} is missing" in ended.err) == (1, True), ended.err
    for devices in ("--1", "²"):
        ended = command("train", *TINY, f"data.root={worlds}", f"trainer.devices='{devices}'")
        assert (ended.code, "Traceback" in ended.err) == (1, False), ended.err
        assert f"trainer.devices='{devices}'" in ended.err


def test_out_of_memory(command, worlds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    monkeypatch.setattr("bevreshape.training.task.BEVTask.training_step", full)
    ended = command("train", *TINY, f"data.root={worlds}")
    assert (ended.code, "Traceback" in ended.err) == (1, False), ended.err
    assert "not enough memory (CUDA out of memory. Tried to allocate 3.00 GiB.); lower loader.batch_size" in ended.err
