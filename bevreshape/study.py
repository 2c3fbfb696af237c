"""``python -m bevreshape.study``: compare MLP and attention."""

from pathlib import Path
from typing import Any

from bevreshape.config.command import Main, run_command
from bevreshape.config.settings import Study
from bevreshape.console import print_line
from bevreshape.environment import prepare_process
from bevreshape.reporting.tables import print_table


def main(settings: dict[str, Any], folder: Path) -> None:
    """Run the remaining entries; print the primary rows."""
    from bevreshape.experiments.run_study import primary_rows, run_study

    study = run_study(settings["plan"], Path(settings["folder"]))
    if any(row.primary for row in study.rows):
        print_table(primary_rows(study))
    print_line(f"{Path(settings['folder']) / 'README.md'}")


def command(main: Main = main) -> None:
    """Run the command line."""
    run_command(main, "study", Study, resumes=True)


if __name__ == "__main__":
    prepare_process()
    command()
