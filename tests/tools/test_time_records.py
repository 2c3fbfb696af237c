"""Test the tool that times the reading of records."""

import re
import subprocess
import sys

import pytest
from commands import ROOT

pytestmark = pytest.mark.slow


def test_all_ways_are_timed() -> None:
    command = [
        sys.executable,
        str(ROOT / "tools" / "time_records.py"),
        "--records",
        "70",
        "--kilobytes",
        "1",
        "--rounds",
        "1",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = re.findall(r"^(.+?) +([\d.]+) µs a record, ([\d.]+) of a file each", ended.stdout, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["a file each", "packs of 64", "SQLite"]
    assert rows[0][2] == "1.00"
