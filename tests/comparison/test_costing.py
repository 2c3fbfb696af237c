"""Costs of whole models: every form of every candidate, and reasons instead of those that cannot be made."""

import math
from typing import Any

import pytest
import torch
from batches import batch_of

from bevreshape.analysis.costs import ring
from bevreshape.bev_spec import BEVSpec
from bevreshape.comparison import costing
from bevreshape.comparison.costing import measure_costs, read_cost
from bevreshape.config.compose import compose_training
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid

SPEC = BEVSpec(BEVGrid((0, 48), (-24, 24), 2.0), ("a", "b"), ("front",), (32, 64))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def configs() -> dict[str, Any]:
    arguments = ("encoder.channels=8", "head.segmentation.channels=8", "head.segmentation.blocks=1", "logger=none")
    return {name: compose_training([f"reshaper={name}", *arguments]) for name in ("pool", "ipm")}


def sample() -> Any:
    return batch_of(torch.rand(1, 1, 3, 32, 64), ring(1, (32, 64), 1, CPU), torch.zeros(1, 2, 24, 24, dtype=torch.bool))


def test_forms_that_cannot_be_made_have_a_reason(configs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise InputError("no compiler")

    monkeypatch.setattr(costing, "_compiled", refuse)
    monkeypatch.setattr(costing, "_exported", refuse)
    broken = {**configs["pool"], "reshaper": {**configs["pool"]["reshaper"], "mode": "least"}}
    found = measure_costs({**configs, "broken": broken}, sample(), SPEC, CPU, 2)
    assert found["costs"].keys() == {"pool", "ipm"}
    assert "mode" in found["failed"]["broken"]
    cost = read_cost(found["costs"]["ipm"])
    assert cost.latency_ms.keys() == {"eager"}
    assert cost.unmeasured == {"compiled": "no compiler", "exported": "no compiler"}
    assert cost.flops > 0
    assert math.isnan(cost.memory_mb) or cost.memory_mb > 0


def test_parameters_are_those_that_are_trained(configs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for form in ("_compiled", "_exported"):
        monkeypatch.setattr(costing, form, lambda *_: lambda: None)
    found = measure_costs(configs, sample(), SPEC, CPU, 2)["costs"]
    model = costing.build_model(configs["pool"], SPEC)
    assert found["pool"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["pool"]["latency_ms"].keys() == {"eager", "compiled", "exported"}


def test_a_form_that_fails_while_it_is_timed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails() -> None:
        calls.append(0)
        if len(calls) > 3:
            raise ValueError("full")

    latency, reasons = costing._timed({("a", "eager"): lambda: None, ("b", "eager"): fails}, CPU, 2)
    assert latency.keys() == {("a", "eager")}
    assert reasons == {("b", "eager"): "ValueError: full"}


@pytest.mark.slow
def test_every_form_computes_the_model(configs: dict[str, Any], no_shape_checks: None) -> None:
    torch.manual_seed(0)
    model, batch = costing.build_model(configs["ipm"], SPEC).eval(), sample()
    pytest.importorskip("onnxruntime", reason="onnxruntime is an extra")
    with torch.no_grad():
        expected = model(batch.images, batch.cameras).heads["segmentation"]
        compiled = costing._compiled(model, batch, SPEC, CPU)()
        exported = costing._exported(model, batch, SPEC, CPU)()
    torch.testing.assert_close(compiled.heads["segmentation"], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(exported, expected.sigmoid(), rtol=0, atol=1e-4)
