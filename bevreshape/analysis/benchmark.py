"""Benchmark of view transformers under equal conditions."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch

from bevreshape.analysis.benchmark_cases import Case, read_cases
from bevreshape.analysis.costs import Cost, Workload, measure, ring, scaling_exponent
from bevreshape.bev_spec import BEVSpec
from bevreshape.config.build_model import build_model, build_reshaper, upsampling
from bevreshape.errors import InputError, out_of_memory
from bevreshape.geometry import Cameras
from bevreshape.model import BEVModel
from bevreshape.reshapers import FixedRig, GeometricReshaper, Reshaper
from bevreshape.training.rehearsal import of_compiler

AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16}


class Measured(NamedTuple):
    """Costs of one case.

    Attributes:
        case: shapes; for full models with the features of their encoder.
        costs: costs by reshaper.
        left_out: reasons why the other reshapers could not be measured.
    """

    case: Case
    costs: dict[str, Cost]
    left_out: dict[str, str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of ``benchmark.csv``."""
        return [{"reshaper": name, **asdict(self.case), **asdict(cost)} for name, cost in self.costs.items()]


class Benchmarking:
    """Cases of a benchmark, measured one after another.

    Args:
        settings: options of the command, see :class:`~bevreshape.config.settings.Benchmark`.

    Raises:
        InputError: if options contradict each other, or a device is not available.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        if settings["static_rig"] and settings["backward"]:
            raise InputError(
                "static_rig=true is for inference, where geometry is computed once; set backward=false with it"
            )
        if settings["threads"] is not None:
            torch.set_num_threads(settings["threads"])
        self.settings = settings
        self.cases = read_cases(settings)

    @property
    def repeats(self) -> int:
        """Return the total number of measurements."""
        return len(self.cases) * self.settings["repeats"] * (2 if self.settings["backward"] else 1)

    def measure(self, each_repeat: Callable[[], object] | None = None) -> Iterator[Measured]:
        """Measure every case; ``each_repeat`` is called after every measurement of all reshapers.

        Raises:
            InputError: if no reshaper can be measured on a case.
        """
        for case in self.cases:
            yield measure_case(self.settings, case, each_repeat)

    def exponents(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """Return the exponents of :func:`fitted_exponents`; empty if a single size was measured."""
        key = self.settings["scaling"]
        return fitted_exponents(rows, key) if key else {}


def measure_case(cfg: Mapping[str, Any], case: Case, each_repeat: Callable[[], object] | None = None) -> Measured:
    """Measure every reshaper on one case; ``each_repeat`` is called after every measurement of all.

    Raises:
        InputError: if none can be measured.
    """
    device = torch.device(case.device)
    cameras = ring(case.cameras, case.image_size, case.batch, device)
    workloads: dict[str, Workload] = {}
    left_out: dict[str, str] = {}
    shown = case
    for name, node in cfg["reshapers"].items():
        try:
            workload, reshaper = _workload(cfg, node, case, cameras)
            workload.forward()
            if cfg["backward"]:
                workload.step()
        except InputError as error:
            left_out[name] = f"{name}: {str(error).replace('reshaper.', f'reshapers.{name}.', 1)}"
        except RuntimeError as error:
            if not out_of_memory(error) and not of_compiler(error):
                raise
            left_out[name] = f"{name}: " + (
                f"torch cannot compile it ({str(error).strip().splitlines()[0][:200]}); set compile=false"
                if of_compiler(error)
                else "out of memory; give it smaller features or cells"
            )
        else:
            workloads[name] = workload
            built = reshaper.source
            shown = replace(case, channels=built.channels, height=built.height, width=built.width, stride=built.stride)
    if not workloads:
        raise InputError(f"{case.title}: no reshaper can be measured; " + "; ".join(left_out.values()))
    costs = measure(list(workloads.values()), cfg["repeats"], bool(cfg["backward"]), each_repeat)
    return Measured(shown, dict(zip(workloads, costs, strict=True)), left_out)


def _workload(cfg: Mapping[str, Any], node: Any, case: Case, cameras: Cameras) -> tuple[Workload, Reshaper]:
    device, autocast = torch.device(case.device), AUTOCAST[case.precision]
    module, reshaper, features = _subject(cfg, node, case, device)
    workload = Workload(module, (features, cameras), autocast, into_input=not cfg["full_model"], form=case.form)
    if cfg["static_rig"] and isinstance(reshaper, GeometricReshaper):
        fixed = FixedRig(reshaper.eval(), ring(case.cameras, case.image_size, 1, device))
        module = BEVModel(module.encoder, fixed, module.heads) if isinstance(module, BEVModel) else fixed
        workload = Workload(module, (features, None), autocast, form=case.form)
    return workload, reshaper


def _subject(
    cfg: Mapping[str, Any], node: Any, case: Case, device: torch.device
) -> tuple[torch.nn.Module, Reshaper, torch.Tensor]:
    """Return module, reshaper and input: a reshaper twice and features, or a full model, its reshaper and images."""
    torch.manual_seed(0)
    if not cfg["full_model"]:
        reshaper = build_reshaper(node, (case.source,), case.grid()).to(device).eval()
        shape = (case.batch, case.cameras, case.channels, case.height, case.width)
        return reshaper, reshaper, torch.randn(shape, device=device)
    names = tuple(f"camera{i}" for i in range(case.cameras))
    spec = BEVSpec(case.grid(upsampling(cfg["head"])), ("class",), names, case.image_size)
    model = build_model({**cfg, "reshaper": node}, spec).to(device).eval()
    assert isinstance(model.reshaper, Reshaper)
    return model, model.reshaper, torch.rand(case.batch, case.cameras, 3, *case.image_size, device=device)


def fitted_exponents(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """Return every reshaper's exponents of forward time, forward and backward time, and memory."""
    fitted: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["reshaper"] for row in rows):
        own = [row for row in rows if row["reshaper"] == name]
        sizes = [size_of(row, key) for row in own]
        if len(own) == 1 < len({size_of(row, key) for row in rows}):
            continue  # left out at the other sizes
        fitted[name] = {
            what: scaling_exponent(sizes, [row[what] for row in own])
            for what in ("forward_s", "step_s", "forward_bytes", "step_bytes")
            if all(math.isfinite(row[what]) and row[what] > 0 for row in own)
        }
    return fitted


def size_of(row: Mapping[str, Any], key: str) -> int:
    """Return the number of cameras, tokens or cells of a row."""
    if key == "cameras":
        return row["cameras"]
    return row["height"] * row["width"] if key == "tokens" else row["rows"] * row["cols"]
