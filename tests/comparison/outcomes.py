"""Outcomes of comparisons, made by hand."""

from collections.abc import Mapping, Sequence

import numpy as np

from bevreshape.comparison.outcome import Candidate, Constraints, ModelCost, Outcome, Run, Trial

BANDS = ("0-10m", "10-20m")
CLASSES = ("road", "vehicle")

FAMILY = {
    "column_mlp": (0.581, 0.008, 4.6, 2_900_300), "bilinear": (0.568, 0.004, 10.1, 894_900),
    "deformable_attention": (0.559, 0.012, 7.0, 703_200), "ipm": (0.532, 0.003, 0.9, 600_000),
    "column_attention": (0.467, 0.022, 12.0, 769_800), "mlp": (0.459, 0.036, 0.85, 1_125_300),
    "lift_splat": (0.356, 0.029, 5.3, 606_800), "kernel_attention": (0.355, 0.008, 10.2, 746_400),
    "cross_attention": (0.350, 0.027, 6.5, 698_900), "self_attention": (0.336, 0.010, 4.0, 633_300),
    "pool": (0.305, 0.016, 0.2, 600_000), "strided_conv": (0.295, 0.009, 0.6, 604_200),
    "mlp_attention": (0.226, 0.012, 7.4, 3_041_400), "cross_view_attention": (0.216, 0.002, 13.0, 717_600),
    "latent_attention": (0.190, 0.002, 9.9, 769_600),
}  # fmt: skip
"""Mean IoU, standard deviation of the seeds, milliseconds and parameters, as measured on the synthetic world."""


def candidate(
    name: str,
    test: Sequence[float],
    validation: Sequence[float] | None = None,
    ms: float | None = 10.0,
    memory_mb: float = 100.0,
    parameters: int = 1_000_000,
    seconds: float = 60.0,
    seeds: Sequence[int] | None = None,
    reason: str | None = None,
) -> Candidate:
    """Return a candidate with a test IoU for every seed; the best latency is that of the exported form."""
    runs = []
    for seed, iou, val in zip(seeds or range(len(test)), test, validation or test, strict=True):
        runs.append(
            Run(
                seed=seed, validation=val, iou={"road": iou + 0.1, "vehicle": iou - 0.1, "mean": iou},
                bands={"0-10m": iou + 0.05, "10-20m": iou - 0.05},
                curve=tuple((step, val * (1 - 2 ** (-step / 100))) for step in (100, 200, 300, 400)),
                changed={"yaw_deg=1": iou - 0.03, "without front": iou - 0.2}, seconds=seconds + seed,
                folder=f"runs/{name}-seed{seed}",
            )
        )  # fmt: skip
    forms = {} if ms is None else {"eager": ms * 1.5, "exported": ms}
    cost = ModelCost(parameters, 2_000_000_000, forms, {"compiled": "no C++ compiler was found"}, memory_mb)
    rates = {0.0003: 0.8, 0.001: 1.0, 0.003: 0.9, 0.03: None}
    score = float(np.mean(validation or test or [0.0]))
    tried = tuple(
        Trial({"optimizer.lr": rate}, 400 if share == 1 else 100, share and share * score)
        for rate, share in rates.items()
    )
    return Candidate(name, {"optimizer.lr": 0.001}, tried, tuple(runs), cost, reason)


def failed(name: str, reason: str) -> Candidate:
    """Return a candidate that could not be trained."""
    return Candidate(name, {}, (), (), None, reason)


def waiting(name: str) -> Candidate:
    """Return a candidate without results so far."""
    return Candidate(name, {}, (), (), None)


def outcome(*candidates: Candidate, margin: float = 0.01, missing: int = 0, **limits: float | None) -> Outcome:
    """Return a comparison of candidates under limits."""
    constraints = Constraints(**{name: value if value is None else float(value) for name, value in limits.items()})
    return Outcome(
        title="front camera", candidates=candidates, constraints=constraints, device="cpu, 1 thread",
        classes=CLASSES,
        protocol={"data": "synthetic, 2,000 training samples", "encoder": "resnet18", "training": "400 steps of 16"},
        margin=margin, command="python -m bevreshape.compare reshaper=all budget=quick", planned=24, missing=missing,
    )  # fmt: skip


def family(seeds: int = 3, names: Sequence[str] = tuple(FAMILY), **limits: float | None) -> Outcome:
    """Return a comparison with the measured means and spreads of all view transformers."""
    rng, found = np.random.default_rng(0), []
    for name in names:
        mean, spread, ms, parameters = FAMILY[name]
        test = mean + spread * rng.standard_normal(seeds)
        validation = test + 0.003 * rng.standard_normal(seeds)
        found.append(candidate(name, test.tolist(), validation.tolist(), ms, 20 + 8 * ms, parameters, 60 + 10 * ms))
    return outcome(*found, **limits)


def equal(rng: np.random.Generator, count: int, seeds: int, spread: float | Mapping[int, float]) -> list[Candidate]:
    """Return candidates of equal true IoU; a training that is lucky on one split is lucky on the other."""
    order = 0.7 * np.max(list(spread.values()) if isinstance(spread, Mapping) else spread) * rng.standard_normal(seeds)
    found = []
    for number in range(count):
        own = spread[number] if isinstance(spread, Mapping) else spread
        test = 0.5 + order + own * rng.standard_normal(seeds)
        found.append(candidate(f"m{number}", test.tolist(), (test + 0.1 * own * rng.standard_normal(seeds)).tolist()))
    return found
