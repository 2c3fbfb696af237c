"""Collect metrics of one stage, and read their values metric by metric."""

from collections.abc import Mapping

from torchmetrics import Metric, MetricCollection

from bevreshape.metrics.iou import BEVIoU
from bevreshape.metrics.masked import MaskedCameras


def collected(metrics: Mapping[str, Metric], stage: str = "") -> MetricCollection:
    """Return clones of metrics as one collection; ``stage`` becomes the first part of their names."""
    return MetricCollection(dict(metrics), prefix=f"{stage}/" if stage else "", compute_groups=False).clone()


def values_besides_iou(metrics: MetricCollection) -> list[dict[str, float]]:
    """Return the values of every metric of a collection other than IoU; all processes must call it at the same place.

    A metric that has counted nothing, or returns nothing, is left out.
    """
    found = []
    for name, metric in metrics.items(keep_base=True):
        if isinstance(metric, BEVIoU | MaskedCameras) or not metric.update_called:
            continue
        values = metric.compute()
        values = values if isinstance(values, Mapping) else {str(name): values}
        found.append({key: float(value) for key, value in values.items()})
    return [values for values in found if values]
