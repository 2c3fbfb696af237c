"""Compute the explorer of a page: effective weights of every model on every sample."""

import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from bevreshape.analysis.effective_weights import attention_weights, jacobian_norm
from bevreshape.analysis.permutation import PermutedReshaper
from bevreshape.data.batch import SEGMENTATION, BEVBatch
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.model import BEVModel
from bevreshape.reporting.explorer import Cells, Explorer, ExplorerEntry, Scene, View, choose_cells
from bevreshape.reporting.explorer_data import explorer_data
from bevreshape.reporting.page import MOST_BYTES
from bevreshape.reporting.progress import Progress
from bevreshape.reporting.reported_model import ReportedModel
from bevreshape.reshapers import GeometricReshaper, Reshaper


def explorer(shown: Sequence[ReportedModel], batch: BEVBatch, true: Cameras, cells: int, probes: int) -> Explorer:
    """Compute W of every model on every sample, and with permuted tokens for models without calibration.

    Args:
        shown: the models.
        batch: the samples, with the calibration provided to the models.
        true: their true cameras.
        cells: number along a side.
        probes: number for each cell.
    """
    samples, target = [batch[i : i + 1] for i in range(len(batch))], batch.targets[SEGMENTATION]
    scenes = [
        Scene(name, batch.images[i], true[i : i + 1], target.value[i].float(), target.valid[i])
        for i, name in enumerate(batch.names)
    ]
    entries = []
    with Progress("weights: samples", len(shown) * len(samples)) as progress:
        for one in shown:
            reshaper = one.reshaper
            assert isinstance(reshaper.grid, BEVGrid)
            chosen = choose_cells(reshaper.grid, cells)
            orders = {"in order": reshaper}
            if not isinstance(reshaper, GeometricReshaper) and len(reshaper.sources) == 1:
                permutation = torch.randperm(reshaper.source.tokens, generator=torch.Generator().manual_seed(0))
                orders["permuted"] = PermutedReshaper(reshaper, permutation)
            views = []
            for sample in samples:
                views.append(
                    {order: view(one.model, ordered, sample, chosen, probes) for order, ordered in orders.items()}
                )
                progress.advance()
            kinds = len(views[0]["in order"].heads)
            attention = ("attention, mean", *(f"attention, head {number + 1}" for number in range(kinds - 2)))
            heads = ("effective weights", *attention) if kinds > 1 else ("effective weights",)
            entries.append(ExplorerEntry(one.label, reshaper.source, chosen, views, heads))
    spec = shown[0].spec
    return Explorer(scenes, entries, spec.classes, spec.grid, spec.camera_names)


def view(model: BEVModel, reshaper: Reshaper, sample: BEVBatch, cells: Cells, probes: int) -> View:
    """Compute prediction and W with ``reshaper`` in the model; tokens are at their positions in the image.

    W is the Jacobian's norm, and for attention also its matrix, as the mean of the heads and head by head.
    """
    cameras = sample.cameras
    with torch.no_grad():
        features = model.encoder(sample.images)
        bev = model.decode(features, cameras, reshaper).heads[SEGMENTATION].sigmoid()[0]
    at = [divmod(number, cells.grid.cols) for number in cells.queries.tolist()]
    weights = jacobian_norm(reshaper, features, cameras, cells=at, probes=probes)  # 1 q n h w
    if hasattr(reshaper, "attention_weights"):
        heads = attention_weights(reshaper, features, cameras, cells=at)[0].abs()  # a q n h w
        weights = torch.cat([weights, heads.mean(0, keepdim=True), heads])
    return View(bev, weights)


def fit_explorer(whole: Explorer, most_bytes: int) -> tuple[Explorer, list[str]]:
    """Reduce an explorer until it fits: samples are left out first, then the reshapers of the lowest IoU.

    Returns:
        The reduced explorer, and remarks on the parts left out.

    Raises:
        InputError: when one reshaper on one sample does not fit.
    """
    found, remarks = whole, []
    while (size := len(json.dumps(explorer_data(found)))) > most_bytes:
        if len(found.scenes) > 1:
            count = len(found.scenes) - 1
            entries = [replace(one, views=one.views[:count]) for one in found.entries]
            found = replace(found, scenes=found.scenes[:count], entries=entries)
        elif len(found.entries) > 1:
            remarks.append(
                f"Not in the explorer, to keep the page below {MOST_BYTES / 1e6:.0f} MB: {found.entries[-1].name}."
            )
            found = replace(found, entries=found.entries[:-1])
        else:
            raise InputError(
                f"report: one reshaper on one sample takes {size / 1e6:.1f} MB and {most_bytes / 1e6:.1f} MB are left "
                "for it; set cells= to fewer, or name fewer folders"
            )
    if len(found.scenes) < len(whole.scenes):
        remarks.insert(
            0, f"The explorer has {len(found.scenes)} of {len(whole.scenes)} samples, to keep the page small."
        )
    return found, remarks
