"""A run's folder: one config, and one training process at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bevreshape.errors import RunError
from bevreshape.storage.files import remove_abandoned, write_text
from bevreshape.storage.lock import owned
from bevreshape.storage.plain_values import read_yaml, to_yaml

CHANGEABLE = (
    "trainer.accelerator", "trainer.strategy", "data.root", "data.prepared", "loader.num_workers", "logger",
    "checkpoint_every_n_steps", "log_images", "trainer.log_every_n_steps", "trainer.enable_progress_bar",
    "data.generation_workers",
)  # fmt: skip
"""Keys and groups that may change when a run resumes; a change of any other would make it another run."""


def changeable(key: str) -> bool:
    """Return whether a key may change when a run resumes."""
    return any(key == one or key.startswith(f"{one}.") for one in CHANGEABLE)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a run's folder, and remove partial files of killed processes.

    The lock ends with this process; forked processes do not hold it.

    Raises:
        InputError: when another process holds the lock.
    """
    with owned(folder / ".lock", "wait for its end, or set hydra.run.dir to another folder"):
        remove_abandoned(folder, folder / "checkpoints", folder / "images")
        yield


def begin(folder: Path, cfg: Mapping[str, Any]) -> None:
    """Write the config of a new run, unless the folder has one.

    Raises:
        InputError: when the folder cannot be written.
    """
    path = folder / "config.yaml"
    if not path.exists():
        write_text(path, to_yaml(cfg))


def check_same_run(folder: Path, cfg: Mapping[str, Any]) -> None:
    """Check that a config is that of the run which began in a folder, if any did.

    Raises:
        RunError: when it differs; names the first such key and both values.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return
    if (found := difference(read_yaml(path), cfg)) is not None:
        key, begun, given = found
        raise RunError(
            f"{folder} holds a run with {key}={begun} but this one has {key}={given}; set hydra.run.dir to another "
            "folder, or start it with the same settings to resume"
        )


def difference(begun: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first key that makes two configs different runs, and both values; ``None`` for the same run."""
    flat = _flat(begun), _flat(given)
    for key in (*flat[1], *flat[0]):
        if flat[0].get(key) != flat[1].get(key) and not changeable(key):
            return key, flat[0].get(key), flat[1].get(key)
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a.b": 1}`` for ``{"a": {"b": 1}}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
