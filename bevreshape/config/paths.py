"""The folder of the YAML files."""

from pathlib import Path


def conf_dir() -> Path:
    """Return the folder of config groups: in the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir())
