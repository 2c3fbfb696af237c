"""``python -m bevreshape.train``: train a view transformer, test it, and leave a run folder."""

from pathlib import Path
from typing import Any

from bevreshape.config.command import Main, run_command
from bevreshape.config.resume import resume_arguments
from bevreshape.config.settings import Train
from bevreshape.config.shared_folder import check_shared_folder
from bevreshape.config.sweep import sweep_objective
from bevreshape.console import print_line
from bevreshape.environment import prepare_process
from bevreshape.reporting.tables import print_metrics
from bevreshape.training.processes import rank


def main(settings: dict[str, Any], folder: Path) -> float | None:
    """Train and test in as many processes as the settings ask for; print the metrics.

    Returns:
        The objective for a sweeper of Hydra's; ``None`` if the run has no such metric and nothing optimizes it.
    """
    from bevreshape.training.run import run

    check_shared_folder()
    result = run(settings, folder)
    if rank() == 0:
        print_metrics(result.metrics, result.classes, f"{settings['name']}: test", result.tables)
        for line in (result.stopped_early, f"{result.pace} · {folder}"):
            if line is not None:
                print_line(line)
    return sweep_objective(settings["sweep"]["metric"], result.score, result.metrics)


def command(main: Main = main) -> None:
    """Run the command line."""
    run_command(main, "train", Train, resume_arguments, resumes=True)


if __name__ == "__main__":
    prepare_process()
    command()
