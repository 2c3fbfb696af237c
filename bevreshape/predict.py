"""``python -m bevreshape.predict``: predict the bird's-eye view of images and videos."""

from pathlib import Path
from typing import Any

from bevreshape.config.command import Main, run_command
from bevreshape.config.settings import Predict
from bevreshape.console import print_line
from bevreshape.environment import prepare_process


def main(settings: dict[str, Any], folder: Path) -> None:
    """Predict every frame of the input, a batch at a time."""
    from bevreshape.deployment.predict import predict_input

    count, written = predict_input(settings)
    print_line(f"{count} frames · {written}")


def command(main: Main = main) -> None:
    """Run the command line."""
    run_command(main, "predict", Predict)


if __name__ == "__main__":
    prepare_process()
    command()
