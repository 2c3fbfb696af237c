"""Settings of a command's process, made before torch is loaded. This module must not import torch."""

import os

from bevreshape.console import make_console_safe

WAITING = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}
"""How long an OpenMP thread spins at a barrier before it sleeps, in turns (GNU) or milliseconds (LLVM, Intel).

The runtimes' defaults are long: training becomes several times slower when another process uses one of the cores.
"""


def prepare_process() -> None:
    """Let OpenMP's threads sleep early and make the console safe for any character.

    Child processes inherit the environment. Call this before torch is loaded, since OpenMP reads the settings once.
    Settings of the user are kept.
    """
    if not {"OMP_WAIT_POLICY", *WAITING} & os.environ.keys():
        os.environ.update(WAITING)
    make_console_safe()
