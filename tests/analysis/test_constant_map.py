"""The map of class frequencies, against a count of every cell in plain Python."""

from pathlib import Path

import numpy as np
import pytest
from commands import TINY

from bevreshape.analysis.constant_map import constant_map_iou
from bevreshape.config.build_data import build_data
from bevreshape.config.compose import compose_training
from bevreshape.data.batch import SEGMENTATION, collate


@pytest.mark.slow
def test_iou_is_that_of_the_counted_map(worlds: Path) -> None:
    data = build_data(compose_training([*TINY, f"data.root={worlds}"]))
    data.source.prepare(("train", "test"))

    def labels(split: str) -> tuple[np.ndarray, np.ndarray]:
        target = data.source.make_targets(collate(list(data.source.split(split)))).targets[SEGMENTATION]
        return target.value.numpy().astype(bool), np.broadcast_to(target.valid.numpy(), target.value.shape)

    value, valid = labels("train")
    often = (value & valid).sum(0) >= 0.5 * np.maximum(valid.sum(0), 1)  # a probability of one half counts
    value, valid = labels("test")
    found = constant_map_iou(data)
    for number, name in enumerate(data.source.classes):
        hit = miss = 0
        for sample in range(len(value)):
            for cell in np.argwhere(valid[sample, number]):
                said, true = often[number][tuple(cell)], value[sample, number][tuple(cell)]
                hit, miss = hit + (said and true), miss + (said != true)
        assert found[f"iou/{name}"] == pytest.approx(hit / (hit + miss) if hit + miss else np.nan, nan_ok=True)
        assert found[f"best_iou/{name}"] >= found[f"iou/{name}"] or np.isnan(found[f"iou/{name}"])
