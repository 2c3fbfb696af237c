"""Collect metrics of one stage, and read their values metric by metric."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchmetrics import Metric, MetricCollection

from bevreshape.errors import InputError
from bevreshape.metrics.base import BEVMetric
from bevreshape.metrics.iou import BEVIoU
from bevreshape.metrics.masked import MaskedCameras


class StageMetrics(MetricCollection):
    """Hold the metrics of one stage, and check that each returns scalars.

    Args:
        metrics: by name.
        stage: the first part of the names of all values; may be empty.
    """

    def __init__(self, metrics: Mapping[str, Metric], stage: str = "") -> None:
        super().__init__(dict(metrics), prefix=f"{stage}/" if stage else "", compute_groups=False)

    def compute(self) -> dict[str, Any]:
        """Return the values of all metrics by ``<stage>/<name>``.

        Raises:
            InputError: when a value is no scalar; names the metric.
        """
        for name, metric in self.items(keep_base=True):
            scalars(str(name), metric)
        return super().compute()


def collected(metrics: Mapping[str, Metric], stage: str = "") -> StageMetrics:
    """Return clones of metrics as one collection; ``stage`` becomes the first part of their names."""
    return StageMetrics(metrics, stage).clone()  # type: ignore[return-value]


def scalars(name: str, metric: Metric) -> dict[str, Tensor]:
    """Return the values of a metric by their names, without the stage.

    Raises:
        InputError: when a value is no scalar tensor, or its name is no text.
    """
    values = metric.compute()
    values = values if isinstance(values, Mapping) else {name: values}
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.numel() != 1:
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.80}"
            raise InputError(
                f"metric.{name}: {type(metric).__name__}.compute returns {found} as {key!r}; return scalar tensors by "
                "name, such as {'height/mean_error_m': error}"
            )
    return dict(values)


def values_besides_iou(metrics: MetricCollection) -> list[dict[str, float]]:
    """Return the values of every metric of a collection other than IoU; all processes must call it at the same place.

    A metric that has counted nothing, or returns nothing, is left out.
    """
    found = [
        {key: value.item() for key, value in scalars(str(name), metric).items()}
        for name, metric in metrics.items(keep_base=True)
        if metric.update_called and not isinstance(metric, BEVIoU | MaskedCameras)
    ]
    return [values for values in found if values]


def improvement(metrics: MetricCollection, key: str) -> str | None:
    """Return whether a higher (``max``) or a lower (``min``) value of a key is better; ``None`` if no metric gives it.

    The names of a metric's values are read off a copy that has counted nothing. A metric that then cannot compute may
    give any key that no other gives.

    Args:
        metrics: of a stage.
        key: such as ``val/iou/mean``.

    Raises:
        InputError: when the metric does not state its direction.
    """
    prefix = metrics.prefix or ""
    if not key.startswith(prefix):
        return None
    name, unknown = key.removeprefix(prefix), []
    for own, metric in metrics.items(keep_base=True):
        copy = metric.clone()
        copy.reset()
        copy._update_count = 1  # no warning
        try:
            known = name in scalars(str(own), copy)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
            unknown.append((str(own), metric))
            continue
        if known:
            return _direction(str(own), metric, name)
    if len(unknown) == 1:
        return _direction(*unknown[0], name)
    return None


def _direction(own: str, metric: Metric, name: str) -> str:
    higher = metric.improves(name) if isinstance(metric, BEVMetric) else metric.higher_is_better
    if isinstance(higher, bool):
        return "max" if higher else "min"
    raise InputError(
        f"trainer.early_stopping.monitor: {type(metric).__name__} does not state whether a higher {name} is better; "
        f"set its class attribute higher_is_better, or monitor another metric than {own}"
    )
