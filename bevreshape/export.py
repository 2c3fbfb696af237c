"""``python -m bevreshape.export``: export a trained model to ONNX or torch.export, and compare it with the model."""

from pathlib import Path
from typing import Any

from bevreshape.config.command import Main, run_command
from bevreshape.config.settings import Export
from bevreshape.console import print_line
from bevreshape.environment import prepare_process


def main(settings: dict[str, Any], folder: Path) -> None:
    """Export, compare and write; with a fixed rig also print the speed-up."""
    from bevreshape.deployment.export import export_checkpoint

    for line in export_checkpoint(settings):
        print_line(line)


def command(main: Main = main) -> None:
    """Run the command line."""
    run_command(main, "export", Export)


if __name__ == "__main__":
    prepare_process()
    command()
