"""Files of another user."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Make a file as unreadable as another user's while the block runs; root, who may read all, becomes nobody."""
    mode, root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(0o600 if root else 0)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(mode)
