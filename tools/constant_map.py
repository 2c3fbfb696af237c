"""Score the baseline that a model must exceed: the map of class frequencies in the training split, for every image.

    python tools/constant_map.py data=duckietown_fixed
    python tools/constant_map.py data=synthetic data.scenes.train=1000

The figures are IoU on the test split at 0.5 and at the threshold that is best there, which favours this baseline.
"""

from bevreshape.analysis.constant_map import constant_map_iou
from bevreshape.config.arguments import Parser
from bevreshape.config.build_data import build_data
from bevreshape.config.compose import compose_training
from bevreshape.console import run_script
from bevreshape.reporting.progress import track
from bevreshape.reporting.tables import metrics_table, print_table


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("overrides", nargs="*", help="as of bevreshape.train, such as data=folder")
    measure(parser.parse_args().overrides)


def measure(arguments: list[str]) -> None:
    """Count on the training split, score on the test split, print the table."""
    data = build_data(compose_training(arguments))
    data.source.prepare(("train", "test"))
    metrics = {f"test/{key}": value for key, value in constant_map_iou(data, track).items()}
    print_table(metrics_table(metrics, data.source.classes, "constant map: test"))


if __name__ == "__main__":
    run_script(main)
