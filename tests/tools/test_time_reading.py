"""Test the tool that times the reading of images."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT
from PIL import Image

pytestmark = pytest.mark.slow


def reading(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(ROOT / "tools" / "time_reading.py"),
        *map(str, arguments),
        "--rounds",
        "1",
        "--processes",
        "1",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_all_ways_are_timed_and_compared(tmp_path: Path) -> None:
    y, x = np.mgrid[:180, :320]
    smooth = np.stack([x % 256, y % 256, (x + y) // 2 % 256], axis=-1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    ended = reading(tmp_path / "a.jpg", "--size", 36, 80)
    assert ended.returncode == 0, ended.stderr
    rows = re.findall(r"^(.+?) +([\d.]+) samples/s, ([\d.]+) grey levels", ended.stdout, re.MULTILINE)
    assert [name for name, _, _ in rows] == [
        "Pillow, decode and resize",
        "read_image, whole",
        "read_image, reduced",
    ]
    assert all(float(rate) >= 0 for _, rate, _ in rows)  # of any duration
    assert float(rows[0][2]) == 0.0
    assert float(rows[2][2]) < 4


def test_an_invalid_image_is_named(tmp_path: Path) -> None:
    ended = reading(tmp_path / "missing.jpg")
    assert ended.returncode == 1
    assert "missing.jpg" in ended.stderr
    assert "Traceback" not in ended.stderr
