"""A checkpoint evaluated by its own command line."""

import json
from pathlib import Path

import pytest
from commands import finish, start


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def test_evaluation_repeats_the_test_of_the_run(command, trained: Path, tmp_path: Path) -> None:
    ended = command(
        "evaluate", f"checkpoint={trained}/checkpoints/best.ckpt", "hydra.run.dir=one", "trainer.accelerator=cpu"
    )
    assert ended.code == 0, ended.err
    found, expected = metrics_of(tmp_path / "one"), metrics_of(trained)
    assert found == pytest.approx({key: expected[key] for key in found}, abs=0, nan_ok=True)
    assert "drivable" in ended.out


def test_two_processes_count_every_sample_once(trained: Path, tmp_path: Path) -> None:
    ended = finish(
        start(
            "evaluate",
            f"checkpoint={trained}/checkpoints/best.ckpt",
            "hydra.run.dir=two",
            "trainer.accelerator=cpu",
            "trainer.devices=2",
            "trainer.strategy=ddp",
            "data.batch_size=2",
            cwd=tmp_path,
        )
    )
    assert ended.code == 0, ended.err
    found, expected = metrics_of(tmp_path / "two"), metrics_of(trained)
    assert found == pytest.approx({key: expected[key] for key in found}, abs=0, nan_ok=True)


def test_other_data_is_brought_to_the_frame_of_the_checkpoint(
    command, trained: Path, worlds: Path, tmp_path: Path
) -> None:
    ended = command(
        "evaluate", f"checkpoint={trained}/checkpoints/best.ckpt", "data=synthetic", f"data.root={worlds}", "data.scenes.test=3",
        "data.workers=1", "data.calibration=noisy", "trainer.accelerator=cpu", "hydra.run.dir=other",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "test/iou/drivable" in metrics_of(tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "checkpoint=FILE must be given"),
        (("checkpoint=none.ckpt",), "none.ckpt is not a file"),
        (("checkpoint={best}", "split=tset"), "did you mean test"),
        (("checkpoint={best}", "data=synthetic", "data.rig=surround"), "6 cameras"),
    ],
)
def test_nonsense_gets_a_sentence(command, trained: Path, arguments: tuple[str, ...], sentence: str) -> None:
    best = f"{trained}/checkpoints/best.ckpt"
    ended = command("evaluate", *(argument.format(best=best) for argument in arguments), "trainer.accelerator=cpu")
    assert ended.code == 1
    assert sentence in ended.err
    assert "Traceback" not in ended.err
