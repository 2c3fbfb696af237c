"""Reading a value of the device without waiting for it."""

import torch
from torch import Tensor


class Readback:
    """A copy of a small tensor on the host, begun when this is made. On a CPU it is the tensor itself.

    Args:
        value: on any device.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value.detach().to("cpu", non_blocking=True)  # into pinned memory
        self._copied: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(value.device))  # which need not be the current device

    @property
    def ready(self) -> bool:
        """Return whether the copy is complete."""
        return self._copied is None or self._copied.query()

    def read(self) -> Tensor:
        """Return the copy; the host waits until it is complete."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._value
