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

ALL_HEADS = 2
"""Number of the first heads, which are about all heads: effective weights, and the mean of attention."""

MOST_THINNED = 4
"""Cells are left out until a side has so many times fewer; then reshapers are."""


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
    """Reduce an explorer until it fits.

    Samples are left out first, then single heads of attention, then cells, and last the reshapers at the end.

    Returns:
        The reduced explorer, and remarks on the parts left out.

    Raises:
        InputError: when one reshaper on one sample does not fit.
    """
    found, thinned = whole, 1
    while (size := len(json.dumps(explorer_data(found)))) > most_bytes:
        if len(found.scenes) > 1:
            count = len(found.scenes) - 1
            entries = [replace(one, views=one.views[:count]) for one in found.entries]
            found = replace(found, scenes=found.scenes[:count], entries=entries)
        elif any(len(one.heads) > ALL_HEADS for one in found.entries):
            found = replace(found, entries=[without_single_heads(one) for one in found.entries])
        elif len(found.entries) > 1 and thinned < MOST_THINNED:
            thinned *= 2
            found = replace(found, entries=[thin(one) for one in found.entries])
        elif len(found.entries) > 1:
            found = replace(found, entries=found.entries[:-1])
        else:
            raise InputError(
                f"report: one reshaper on one sample takes {size / 1e6:.1f} MB and {most_bytes / 1e6:.1f} MB are left "
                "for it; set cells= to fewer, or name fewer folders"
            )
    return found, _left_out(whole, found, thinned)


def without_single_heads(entry: ExplorerEntry) -> ExplorerEntry:
    """Return an entry with the effective weights and the mean of attention alone."""
    views = [
        {order: replace(one, weights=one.heads[:ALL_HEADS]) for order, one in views.items()} for views in entry.views
    ]
    return replace(entry, views=views, heads=entry.heads[:ALL_HEADS])


def thin(entry: ExplorerEntry) -> ExplorerEntry:
    """Return an entry with every second cell along both sides."""
    old = entry.cells
    cells = Cells(old.grid, old.rows[::2], old.cols[::2])

    def kept(one: View) -> View:
        by_place = one.heads.unflatten(1, (len(old.rows), len(old.cols)))  # a r c n h w
        return replace(one, weights=by_place[:, ::2, ::2].flatten(1, 2))

    views = [{order: kept(one) for order, one in views.items()} for views in entry.views]
    return replace(entry, views=views, cells=cells)


def _left_out(whole: Explorer, found: Explorer, thinned: int) -> list[str]:
    kept = []
    if len(found.scenes) < len(whole.scenes):
        kept.append(f"{len(found.scenes)} of {len(whole.scenes)} samples")
    if any(len(new.heads) < len(old.heads) for new, old in zip(found.entries, whole.entries, strict=False)):
        kept.append("the mean of attention without its single heads")
    if thinned > 1:
        kept.append(f"every {'2nd' if thinned == 2 else f'{thinned}th'} cell along a side")
    sentences = [f"The explorer has {', '.join(kept)}, to keep the page small."] if kept else []
    names = [one.name for one in whole.entries[len(found.entries) :]]
    if names:
        limit = f"to keep the page below {MOST_BYTES / 1e6:.0f} MB"
        sentences.append(f"Not in the explorer, {limit}: {', '.join(names)}.")
    return sentences
