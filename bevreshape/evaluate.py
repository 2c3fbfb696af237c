"""``python -m bevreshape.evaluate``: measure a checkpoint, on its own data or on other data."""

from pathlib import Path
from typing import Any

from bevreshape.config.checkpoint_data import offer_checkpoint_data
from bevreshape.config.command import Main, run_command
from bevreshape.config.settings import Evaluate
from bevreshape.console import print_line
from bevreshape.environment import prepare_process
from bevreshape.reporting.tables import print_metrics
from bevreshape.training.processes import rank


def main(settings: dict[str, Any], folder: Path) -> None:
    """Evaluate in as many processes as the settings ask for; print the metrics."""
    from bevreshape.training.evaluate import evaluate
    from bevreshape.training.hardware import process_count
    from bevreshape.training.launch import launch_distributed
    from bevreshape.training.sharding import check_evaluated_whole

    check_evaluated_whole(settings["trainer"])
    result = launch_distributed(process_count(settings["trainer"]), evaluate, settings, folder)
    if rank() > 0:
        return
    title = f"{settings['checkpoint']} on {settings['split']}"
    print_metrics(result.metrics, result.classes, title, result.tables)
    if "test/masked_cameras" in result.metrics:
        masked = result.metrics["test/masked_cameras"]
        print_line(f"images masked (missing or unreadable): {masked:.0f}")
    left_out = f" · classes of only the data or only the model: {', '.join(result.left_out)}" if result.left_out else ""
    print_line(f"{folder / 'metrics.json'}{left_out}")


def command(main: Main = main) -> None:
    """Run the command line."""
    run_command(main, "evaluate", Evaluate, offer_checkpoint_data)


if __name__ == "__main__":
    prepare_process()
    command()
