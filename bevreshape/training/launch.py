"""Launch a function in several processes of this machine."""

import logging
import multiprocessing
import os
import secrets
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bevreshape.console import log_to_stderr, make_console_safe, print_error
from bevreshape.errors import DataError, Divergence, InputError, RunError, TrainingInterrupted, causes, user_message
from bevreshape.training.processes import is_distributed_worker

KINDS = {kind.__name__: kind for kind in (InputError, DataError, Divergence, RunError)}
"""User errors, by the name with which torch's agent passes them on."""


def launch_distributed(count: int, main: Callable[..., Any], *args: Any) -> Any:
    """Call ``main(*args)`` here, or in ``count`` processes of one distributed group on this machine.

    torch's elastic agent starts the processes independently of the command line, so a job of a sweep can use several.

    Returns:
        What ``main`` returned on rank 0.

    Raises:
        InputError: when a process failed; it has printed why. Of the kind that the process raised.
    """
    if count == 1 or is_distributed_worker():
        return main(*args)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=secrets.token_hex(8), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes print their own errors
    try:
        with _spawning():
            results = elastic_launch(config, _worker_main)(main, *args)
    except ChildFailedError as error:
        found = error.get_first_failure()[1].message
        message = found["message"] if isinstance(found, dict) else found
        name, _, said = message.partition(": ")
        kind = KINDS.get(name)
        words = f"{len(error.failures)} of {count} processes failed: {said if kind else message}"
        raise (kind or InputError)(words) from None
    except SignalException:
        raise KeyboardInterrupt from None  # the processes have saved and logged it
    if isinstance(results[0], TrainingInterrupted):
        raise results[0]
    return results[0]


@contextmanager
def _spawning() -> Iterator[None]:
    """Let the processes begin as Python's own ``spawn`` does.

    A job of joblib's launcher runs in a process whose start method is ``loky``. A new process would look for that
    method and end.
    """
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def _worker_main(main: Callable[..., Any], *args: Any) -> Any:
    """Call ``main`` in a child process, where a user error is one line as well."""
    make_console_safe()
    log_to_stderr()
    try:
        return main(*args)
    except TrainingInterrupted as stopped:
        if os.environ["LOCAL_RANK"] == "0":
            print_error(str(stopped))
        return stopped
    except Exception as error:
        message = user_message(error)
        if message is None:
            traceback.print_exc()
        kinds = [type(link) for link in causes(error) if type(link) in KINDS.values()]
        get_error_handler().record_exception(error if message is None else (kinds or [InputError])[0](message))
        raise SystemExit(1) from None
