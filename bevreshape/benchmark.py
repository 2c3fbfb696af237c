"""``python -m bevreshape.benchmark``: compare the costs of view transformers."""

from pathlib import Path
from typing import Any

from bevreshape.config.command import Main, run_command
from bevreshape.config.reshaper_choices import compose_each_reshaper
from bevreshape.config.settings import Benchmark
from bevreshape.console import print_line
from bevreshape.environment import prepare_process
from bevreshape.reporting.progress import Progress
from bevreshape.reporting.tables import print_table
from bevreshape.storage.files import write_csv


def main(settings: dict[str, Any], folder: Path) -> None:
    """Measure every reshaper on every case; print, write and plot the results."""
    from bevreshape.analysis.benchmark import Benchmarking
    from bevreshape.reporting.benchmark import cost_table, floor_tables, scaling_table, write_figure
    from bevreshape.reporting.machine_results import keep_benchmark

    benchmarking = Benchmarking(settings)
    rows: list[dict[str, Any]] = []
    files: dict[Path, None] = {}
    with Progress("measuring: repeats", benchmarking.repeats) as progress:
        for found in benchmarking.measure(progress.advance):
            rows += found.rows
            write_csv(folder / "benchmark.csv", rows)
            if settings["results"] is not None:
                files[keep_benchmark(settings, found)] = None
            with progress.paused():
                print_table(cost_table(found.case, found.costs, settings["full_model"]))
                for reason in found.left_out.values():
                    line = f"left out: {reason}"
                    print_line((line, "yellow"))
    for table in floor_tables(rows):
        print_table(table)
    if exponents := benchmarking.exponents(rows):
        print_table(scaling_table(settings["scaling"], exponents))
    write_figure(folder / "benchmark.png", rows, settings["scaling"])
    for line in (f"{folder / 'benchmark.csv'} · benchmark.png", *map(str, files)):
        print_line(line)


def command(main: Main = main) -> None:
    """Run the command line."""
    run_command(main, "benchmark", Benchmark, compose_each_reshaper)


if __name__ == "__main__":
    prepare_process()
    command()
