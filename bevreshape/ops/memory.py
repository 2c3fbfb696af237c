"""Peak memory of a call."""

import json
import math
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bevreshape.ops.probe import probed


def peak_bytes(call: Callable[[], object], device: torch.device) -> float:
    """Return the peak memory of a call in bytes, beyond what was allocated before.

    On a CPU it is read from the profiler's trace. Torch does not document the fields; without them it is NaN.
    """
    call()  # memory that is allocated once and kept does not count
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    _start_profiler()
    return _traced_peak(call) if trace_is_readable() else math.nan


@cache
def _start_profiler() -> None:
    """Use the profiler once in the thread of the caller; Kineto prints an error if that of the probe is the first."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # Kineto would report that there is no GPU
    with profile(activities=[ProfilerActivity.CPU]):
        pass


def _traced_peak(call: Callable[[], object]) -> float:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = highest = 0
    changes = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    for event in sorted(changes, key=lambda event: event["args"]["Ev Idx"]):
        held += event["args"]["Bytes"]
        highest = max(highest, held)
    return float(highest)


@probed
def trace_is_readable() -> bool:
    """Return whether the profiler's trace reports the size of a known tensor in the fields that are read."""
    found = _traced_peak(lambda: torch.ones(1 << 18))
    if found != 4 << 18:
        raise ValueError(f"a tensor of 2¹⁸ float32 values takes {found} bytes")
    return True
