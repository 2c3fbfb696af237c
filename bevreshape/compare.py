"""``python -m bevreshape.compare``: compare view transformers under one protocol, and choose one."""

from pathlib import Path
from typing import Any

from bevreshape.config.command import Main, run_command
from bevreshape.config.reshaper_choices import compose_comparison
from bevreshape.config.settings import Compare
from bevreshape.environment import prepare_process


def main(settings: dict[str, Any], folder: Path) -> None:
    """Run what is missing; print the table and the answer, then write the page."""
    from bevreshape.comparison.run_comparison import print_results, run_comparison, write_page

    comparison = run_comparison(settings)
    print_results(comparison)
    write_page(comparison)


def command(main: Main = main) -> None:
    """Run the command line."""
    run_command(main, "compare", Compare, compose_comparison, resumes=True)


if __name__ == "__main__":
    prepare_process()
    command()
