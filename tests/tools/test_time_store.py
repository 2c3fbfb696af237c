"""Test the tool that times the reading from an object store."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT
from object_stores import Upload

pytestmark = pytest.mark.slow


def test_all_places_are_timed(s3_store: Upload, tmp_path: Path) -> None:
    address = f"{s3_store(tmp_path)}/worlds"
    command = [sys.executable, ROOT / "tools/time_store.py", address, "--scenes=4", "--rounds=1", "--processes=1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = re.findall(r"^(.+?) +([\d.]+) samples/s$", ended.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["local disk", "store", "cache"]
    assert all(float(rate) > 0 for _, rate in rows)
