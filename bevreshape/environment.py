"""What a command sets for its own process before torch is loaded. It imports neither torch nor anything that does."""

import os

from bevreshape.console import make_console_safe

WAITING = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}
"""How long a thread of OpenMP spins at a barrier before it sleeps: turns of GNU's runtime, milliseconds of LLVM's and
Intel's.

Their own defaults spin for so long that training becomes several times slower where another process takes a core away.
"""


def prepare_process() -> None:
    """Let OpenMP's threads sleep early and every console take what is printed.

    The environment passes it on to the processes that are started from here. It is to be called before torch is loaded,
    whose OpenMP reads it once; settings of the user's own are left as they are.
    """
    if not {"OMP_WAIT_POLICY", *WAITING} & os.environ.keys():
        os.environ.update(WAITING)
    make_console_safe()
