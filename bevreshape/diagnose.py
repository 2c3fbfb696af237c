"""``python -m bevreshape.diagnose``: what a trained model has learned, and how robust it is."""

from pathlib import Path
from typing import Any

from bevreshape.config.checkpoint_data import offer_checkpoint_data
from bevreshape.config.command import Main, run_command
from bevreshape.config.settings import Diagnose
from bevreshape.console import print_line
from bevreshape.environment import prepare_process
from bevreshape.reporting.tables import print_table


def main(settings: dict[str, Any], folder: Path) -> None:
    """Run the diagnostics, print the main figures, write ``diagnosis.json`` and the plots."""
    from bevreshape.analysis.diagnose_checkpoint import diagnose_checkpoint
    from bevreshape.reporting.diagnosis import log_diagnosis, summary_table, write_diagnosis

    diagnosis = diagnose_checkpoint(settings)
    files = write_diagnosis(diagnosis, folder)
    print_table(summary_table(diagnosis.numbers))
    print_line(" · ".join(map(str, files)))
    log_diagnosis(diagnosis, settings, folder)


def command(main: Main = main) -> None:
    """Run the command line."""
    run_command(main, "diagnose", Diagnose, offer_checkpoint_data)


if __name__ == "__main__":
    prepare_process()
    command()
