"""Write camera folders for the converters, each complete or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bevreshape.config.arguments import Parser
from bevreshape.console import run_script
from bevreshape.data.sources.folder.calibration import VERSION, read_calibration
from bevreshape.errors import InputError
from bevreshape.storage import files


class CameraFolder:
    """Hold a camera folder while it is written; :func:`create` makes one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, source: Path, place: str) -> None:
        """Add a file unchanged: hard-linked, or copied where the file system cannot link."""
        target = self.root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if not source.is_file():
            raise InputError(f"{source}: there is no such file; is the source complete?")
        if target.exists():
            raise InputError(f"{source}: {place} is there already; two frames of the source have one name")
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)

    def make(self, place: str) -> Path:
        """Return the path of a generated file, in an existing folder."""
        target = self.root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def split(self, name: str, frames: Iterable[str]) -> None:
        """Write the list of a split's frames."""
        self.make(f"splits/{name}.txt").write_text("".join(f"{frame}\n" for frame in frames), encoding="utf-8")

    def boxes(self, frame: str, boxes: list[dict[str, Any]]) -> None:
        """Write a frame's 3D boxes."""
        self.make(f"boxes/{frame}.json").write_text(json.dumps(boxes, indent=1) + "\n", encoding="utf-8")

    def calibrate(self, cameras: list[dict[str, Any]], **sections: Any) -> None:
        """Write ``calibration.json``; ``sections`` are its other keys."""
        content = {"version": VERSION, "cameras": cameras, **sections}
        text = json.dumps({key: value for key, value in content.items() if value}, indent=1)
        self.make("calibration.json").write_text(text + "\n", encoding="utf-8")


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``out``; it takes that name when complete, or is removed.

    Raises:
        InputError: when ``out`` exists and is not empty, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: it exists and is not empty; remove it, or choose another --out")
    unfinished, new = None, [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        unfinished.chmod(0o755)
        yield unfinished
        unfinished.replace(out)
    except InputError as error:  # it may name a file of the temporary folder
        raise InputError(str(error).replace(str(unfinished), str(out))) from None
    except OSError as error:
        raise InputError(
            f"{out}: it cannot be written ({error.strerror}); free space, or choose another --out"
        ) from None
    finally:
        if unfinished is not None and unfinished.exists():
            shutil.rmtree(unfinished)
        for parent in new:
            with suppress(OSError):  # it is not empty
                parent.rmdir()


def create(out: Path, fill: Callable[[CameraFolder], None]) -> None:
    """Write a camera folder, complete or not at all, and check its calibration.

    Raises:
        InputError: as :func:`made_whole`.
    """
    with made_whole(out) as unfinished:
        fill(CameraFolder(unfinished))
        read_calibration(unfinished / "calibration.json")
    print(f"wrote {out}: {_counts(out)}")


def held_out(frames: Iterable[str], every: int) -> tuple[list[str], list[str]]:
    """Split sorted frames into all but every n-th, and every n-th, a validation set without randomness."""
    names = sorted(frames)
    return [name for i, name in enumerate(names) if i % every], names[::every]


def run(
    description: str, convert: Callable[..., None], source_help: str, out_help: str, kinds: Iterable[str] = ()
) -> None:
    """Run the command line of a converter; with ``kinds``, one of them comes first."""
    run_script(_main, description, convert, source_help, out_help, tuple(kinds))


def _main(
    description: str, convert: Callable[..., None], source_help: str, out_help: str, kinds: tuple[str, ...]
) -> None:
    parser = Parser(description)
    if kinds:
        parser.add_argument("kind", choices=kinds, help="which data set it is")
    parser.add_argument("--source", type=Path, required=True, help=source_help)
    parser.add_argument("--out", type=Path, required=True, help=out_help)
    arguments = vars(parser.parse_args())
    try:
        convert(**arguments)
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # of unexpected tables of a source
        raise InputError(
            f"{arguments['source']}: a file there is not in this data set's format ({error!r}); copy the source again"
        ) from error


def read_json(path: Path) -> Any:
    """Read a source's JSON file.

    Raises:
        InputError: when it is missing or not JSON.
    """
    return files.read_json(path, "there is no such file; is --source the right folder?")


def rows(matrix: Any) -> list[list[float]]:
    """Return a matrix as lists for JSON."""
    return [[float(value) for value in row] for row in matrix]


def ids(names: Mapping[int, str]) -> dict[str, str]:
    """Return ids as strings, the keys of JSON."""
    return {str(key): name for key, name in names.items()}


def _counts(out: Path) -> str:
    counts = {
        part.name: sum(path.is_file() for path in part.rglob("*")) for part in sorted(out.iterdir()) if part.is_dir()
    }
    return ", ".join(f"{number} {part}" for part, number in counts.items())
