"""Score the baseline that a model must exceed: the map of class frequencies in the training split, for every image.

    python tools/constant_map.py data=duckietown_fixed
    python tools/constant_map.py data=synthetic data.scenes.train=1000

The figures are IoU on the test split at 0.5 and at the threshold that is best there, which favours this baseline.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bevreshape.config.arguments import Parser
from bevreshape.config.build_data import build_data
from bevreshape.config.compose import compose_training
from bevreshape.console import run_script
from bevreshape.data.batch import SEGMENTATION, BEVBatch, collate
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import Outputs
from bevreshape.reporting.progress import track
from bevreshape.reporting.tables import metrics_table, print_table
from bevreshape.training.stopping import Loader


def frequencies(data: BEVDataModule) -> Tensor:
    """Return the share of training samples in which a cell has a class, where that is known: (k, rows, cols)."""
    source = data.source
    positive = known = torch.zeros(len(source.classes), *source.grid.shape)
    for batch in _batches(data, "train"):
        target = batch.targets[SEGMENTATION]
        positive = positive + (target.value & target.valid).sum(0)
        known = known + target.valid.sum(0)
    return positive / known.clamp(min=1)


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("overrides", nargs="*", help="as of bevreshape.train, such as data=folder")
    measure(parser.parse_args().overrides)


def measure(arguments: list[str]) -> None:
    """Count on the training split, score on the test split, print the table."""
    data = build_data(compose_training(arguments))
    data.source.prepare(("train", "test"))
    frequency = frequencies(data)
    metric = BEVIoU(data.source.classes, data.source.grid)
    for batch in _batches(data, "test"):
        logits = frequency.logit().expand_as(batch.targets[SEGMENTATION].value)
        metric.update(Outputs({SEGMENTATION: logits}, logits, {}), batch)
    metrics = {f"test/{key}": float(value) for key, value in metric.compute().items()}
    print_table(metrics_table(metrics, data.source.classes, "constant map: test"))


def _batches(data: BEVDataModule, split: str) -> Iterator[BEVBatch]:
    loader = Loader(data.source.split(split), data.batch_size, num_workers=data.num_workers, collate_fn=collate)
    for batch in track(loader, f"reading {split}"):
        yield data.source.make_targets(batch)


if __name__ == "__main__":
    run_script(main)
