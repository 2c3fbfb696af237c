"""Test that drawn samples show images, ground and target with ahead up and left on the left."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import view_batch
from batches import batch_of
from PIL import Image

from bevreshape.console import run_script
from bevreshape.data.batch import BEVBatch
from bevreshape.geometry import BEVGrid, Cameras

GRID = BEVGrid((4.0, 12.0), (-4.0, 4.0), 1.0)


def batch() -> BEVBatch:
    """Return a sample of one camera 4 m up, facing straight down, with a white image; one cell of the target is set."""
    down = torch.tensor([[0.0, -1.0, 0.0, 8.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 4.0], [0.0, 0.0, 0.0, 1.0]])
    intrinsics = torch.tensor([[40.0, 0.0, 39.5], [0.0, 40.0, 39.5], [0.0, 0.0, 1.0]])
    target = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    target[0, 1, 2, 5] = True
    rig = Cameras(intrinsics[None, None], down[None, None], (80, 80))
    return batch_of(torch.ones(1, 1, 3, 80, 80), rig, target)


def test_outlines_surround_the_cells_of_the_target() -> None:
    ground = view_batch.outlined_ground(batch(), GRID, ("road", "lane"))[0]
    assert ground.shape == (3, 64, 64)
    rows, columns = (ground < 0.999).any(0).nonzero().T
    assert (rows.min(), rows.max()) == (16, 24)  # cell 2 covers 16..23, the edge below it is the next cell's first row
    assert (columns.min(), columns.max()) == (40, 48)
    assert (ground[:, 18:22, 42:46] > 0.999).all()


def test_a_sheet_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "batch.png"
    small = [
        "image_size=[32,64]",
        "generation_workers=1",
        f"root={tmp_path}",
        *(f"scenes.{s}=2" for s in ("train", "val", "test")),
    ]
    command = [
        "view_batch.py",
        "data=synthetic",
        *(f"data.{value}" for value in small),
        "--samples",
        "2",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", command)
    view_batch.main()
    drawn = np.asarray(Image.open(out))
    side = 64 * view_batch.CELL_PX
    assert drawn.shape == (2 * side + view_batch.GAP_PX, 4 * side + 2 * view_batch.GAP_PX, 3)
    assert drawn.std() > 20


def test_a_missing_sample_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["view_batch.py", "data=synthetic", "data.rig=frnt", f"data.root={tmp_path}"])
    with pytest.raises(SystemExit) as exit_:
        run_script(view_batch.main)
    assert exit_.value.code == 1
    assert "did you mean front" in capsys.readouterr().err
