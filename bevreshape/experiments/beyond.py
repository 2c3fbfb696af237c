"""Rows beyond the article: properties of the learned matrices, and their use on another grid."""

import statistics
from collections.abc import Mapping
from functools import partial

from bevreshape.experiments.instruments import effective_rank, entropy
from bevreshape.experiments.outcomes import bounded, paired
from bevreshape.experiments.regrid import resizing_error
from bevreshape.experiments.row import Row, available, judged
from bevreshape.experiments.rows import mean_words
from bevreshape.experiments.runs import Setting
from bevreshape.experiments.tensor_results import Results

METHODS: Mapping[str, str] = {"MLP": "mlp", "attention, keys of place": "positional", "attention": "attention"}


def rows(results: Results) -> list[Row]:
    """Return the rows whose entries are done."""
    return available(*(partial(make, results) for make in (_rank, _shape, _grid)))


def _rank(results: Results) -> list[Row]:
    world = Setting("mlp").world
    settings = {name: Setting(method) for name, method in METHODS.items()} | {
        f"{name}, white noise": Setting(METHODS[name], correlation_length=0.0) for name in ("MLP", "attention")
    }
    found = {name: statistics.mean(_figures(results, setting, "rank")) for name, setting in settings.items()}
    true = effective_rank(world.sampling(world.rig)[0])
    return [
        Row(
            "beyond", "What is the rank of the learned matrix?",
            "fixed camera: effective rank (exponential of the entropy of the singular values) of the mean of A over "
            "inputs; S the bilinear sampling matrix",
            {"S": f"{true:.3g}", **{name: f"{rank:.3g}" for name, rank in found.items()}}, "measured",
        )
    ]  # fmt: skip


def _shape(results: Results) -> list[Row]:
    world = Setting("mlp").world
    true = entropy(world.sampling(world.rig)[0]).mean().item()
    found = {
        name: ", ".join(
            f"{statistics.mean(_figures(results, Setting(method), what)):.2g} {unit}"
            for what, unit in (("entropy", "bits"), ("locality", "features"))
        )
        for name, method in METHODS.items()
    }
    return [
        Row(
            "beyond", "How many tokens does a cell attend to, and how far from the true ones?",
            "fixed camera: entropy of the rows of |A|, and distance of their centroids from those of S",
            {"S": f"{true:.2g} bits, 0 features", **found}, "measured",
        )
    ]  # fmt: skip


def _grid(results: Results) -> list[Row]:
    settings = {"MLP, resized": "mlp", "attention, resized": "attention", "continuous queries": "continuous"}
    found = {name: _figures(results, Setting(method), "finer") for name, method in settings.items()}
    ratio = paired(bounded(found["continuous queries"]), bounded(found["MLP, resized"]))
    floor = resizing_error(Setting("mlp").world)
    return [
        Row(
            "beyond", "Does it fit another grid without further training?",
            "fixed camera, cells half as long: error of an attention whose queries are a function of the cell’s place, "
            "evaluated at the new cells; of the others bilinearly resized",
            {"MLP, resized / continuous queries": str(ratio)}, judged("continuous queries", ratio.verdict()),
            absolute={"S, resized": f"{floor:.2g}", **{name: mean_words(errors) for name, errors in found.items()}},
        )
    ]  # fmt: skip


def _figures(results: Results, setting: Setting, what: str) -> list[float]:
    return [getattr(one, what) for one in results.outcome(setting).examined]
