"""Metrics as tables for a console."""

from collections.abc import Mapping, Sequence

from rich.table import Table


def metrics_table(metrics: Mapping[str, float], classes: Sequence[str], title: str, stage: str = "test") -> Table:
    """IoU per class at 0.5, at the threshold best on the validation set where known, and per distance band."""
    bands = [key.rsplit("/", 1)[1] for key in metrics if key.startswith(f"{stage}/iou/{classes[0]}/")]
    chosen = f"{stage}/iou_at_val_threshold"
    with_chosen = f"{chosen}/mean" in metrics
    table = Table(title=title)
    for heading in ("class", "IoU", *(["at val's threshold"] if with_chosen else ["best", "threshold"]), *bands):
        table.add_column(heading, justify="left" if heading == "class" else "right", no_wrap=heading == "class")
    for name in (*classes, "mean"):
        extra = [f"{chosen}/{name}"] if with_chosen else [f"{stage}/best_iou/{name}", f"{stage}/best_threshold/{name}"]
        keys = [f"{stage}/iou/{name}", *extra, *(f"{stage}/iou/{name}/{band}" for band in bands)]
        table.add_row(name, *(f"{metrics[key]:.3f}" if key in metrics else "" for key in keys))
    return table
