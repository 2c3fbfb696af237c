"""Measure bird's-eye-view predictions."""

from bevreshape.metrics.base import BEVMetric, ThresholdCounts
from bevreshape.metrics.collection import collected, improvement, values_besides_iou
from bevreshape.metrics.conditions import ConditionIoU
from bevreshape.metrics.iou import BEVIoU
from bevreshape.metrics.kitti_road import RoadMetric
from bevreshape.metrics.masked import MaskedCameras

__all__ = [
    "BEVIoU",
    "BEVMetric",
    "ConditionIoU",
    "MaskedCameras",
    "RoadMetric",
    "ThresholdCounts",
    "collected",
    "improvement",
    "values_besides_iou",
]
