"""Export of the winner: what its folder says is no reason to trust a package, and its weights may be elsewhere."""

from pathlib import Path
from typing import Any

import pytest
from comparison.outcomes import candidate, outcome

from bevreshape.comparison import winner


def test_packages_are_those_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "mlp-seed0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    node = "{_target_: subprocess.Popen}"
    (run / "config.yaml").write_text(f"encoder: {node}\nreshaper: {node}\nhead: {{segmentation: {node}}}\n")
    asked: list[dict[str, Any]] = []

    def export(options: dict[str, Any]) -> list[str]:
        asked.append(options)
        return []

    monkeypatch.setattr(winner, "export_checkpoint", export)
    winner.export_winner(outcome(candidate("mlp", [0.5])), tmp_path, ["mine"])
    assert [one["trust"] for one in asked] == [["mine"]]
    assert (tmp_path / "winner.ckpt").read_bytes() == b"weights"


def test_a_folder_of_records_alone_has_no_winner_to_export(tmp_path: Path) -> None:
    (line,) = winner.export_winner(outcome(candidate("mlp", [0.5])), tmp_path, [])
    assert line.startswith(f"no winner to export: {tmp_path / 'runs'}")
    assert list(tmp_path.iterdir()) == []
