"""Runs of MLflow: where they are kept, how a resumed run continues, and names that MLflow allows."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger

from bevreshape.config.construct import construct
from bevreshape.errors import InputError
from bevreshape.ops.internals import move_mlflow_artifacts
from bevreshape.storage.files import read_text, write_text

DATABASE = "mlflow.db"
"""Store of a run in its folder, if no other is given."""

ARTIFACTS = "mlflow"
"""Folder of the images and checkpoints that belong to :data:`DATABASE`."""

IDENTITY = "mlflow_id"
"""File in a run's folder with the id of its MLflow run."""

STORE = "MLFLOW_TRACKING_URI"
"""Variable with the address of the user's store."""

DEFAULTS = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
"""Variables of MLflow that apply unless the user has set them."""


def is_mlflow(node: Mapping[str, Any]) -> bool:
    """Return whether the ``logger`` group is MLflow's."""
    return str(node.get("_target_", "")).endswith("MLFlowLogger")


def check_mlflow_installed() -> None:
    """Check that MLflow can be imported.

    Raises:
        InputError: when it cannot; says how to install it.
    """
    if find_spec("mlflow") is None:
        raise InputError("logger: mlflow is not installed; pip install mlflow-skinny, or choose logger=csv")


def check_mlflow_classes(classes: Sequence[str]) -> None:
    """Check that classes keep different names in MLflow, of whose metrics Lightning removes other characters.

    Raises:
        InputError: when a class has no name there, or shares it with another.
    """
    found: dict[str, str] = {}
    for name in classes:
        short = re.sub(r"[^a-zA-Z0-9_. -]+", "", name)
        other = found.setdefault(short, name)
        if short in ("", ".", "..") or other != name:
            reason = f"as for class {other!r}" if other != name else "which is no name"
            raise InputError(
                f"logger: class {name!r} would be {short!r} in MLflow, {reason}; rename it in ASCII letters, or choose "
                "logger=csv"
            )


def begin_mlflow(node: Mapping[str, Any], folder: Path) -> MLFlowLogger:
    """Begin an MLflow run, or continue the one of a run's folder.

    It is kept at ``tracking_uri``, by default ``$MLFLOW_TRACKING_URI``, else in a database in the folder. If the store
    does not have the folder's run, a new one begins, with its id as the tag ``resumes``.

    Args:
        node: the checked ``logger`` group.
        folder: of the run; its file ``mlflow_id`` holds the id.

    Raises:
        InputError: when the file holds no id, or MLflow cannot begin a run; quotes its message.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    options = dict(node)
    options["tracking_uri"] = options.get("tracking_uri") or os.environ.get(STORE)
    if not options["tracking_uri"]:
        database, artifacts = folder.resolve() / DATABASE, (folder.resolve() / ARTIFACTS).as_uri()
        move_mlflow_artifacts(database, artifacts)
        options |= {"tracking_uri": f"sqlite:///{database}", "artifact_location": artifacts}
    before = _identity(folder)
    with _explained(), _kept(STORE):
        options["run_id"] = _continued(options, before)
        if before is not None and options["run_id"] is None:
            options["tags"] = {**(options.get("tags") or {}), "resumes": before}
        logger: MLFlowLogger = construct("logger", options, save_dir=str(folder))
        identity = str(logger.run_id)
    if identity != before:
        write_text(folder / IDENTITY, identity)
    return logger


def log_mlflow_settings(logger: MLFlowLogger, settings: Mapping[str, Any]) -> None:
    """Log settings as parameters, and in full as the artifact ``config.yaml``.

    A parameter of MLflow never changes: a resumed run keeps those of its begin.
    """
    known = logger.experiment.get_run(logger.run_id).data.params
    named = {re.sub(r"[^a-zA-Z0-9_./ -]", "_", key): value for key, value in _by_path(settings)}
    logger.log_hyperparams({key: value for key, value in named.items() if key not in known})
    logger.experiment.log_dict(logger.run_id, dict(settings), "config.yaml")


def _identity(folder: Path) -> str | None:
    path = folder / IDENTITY
    if not path.exists():
        return None
    found = read_text(path)
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}", found):
        raise InputError(f"{path} holds {found!r:.80}, which is no id of an MLflow run; remove it to begin another")
    return found


def _continued(options: Mapping[str, Any], before: str | None) -> str | None:
    """Make the experiment if there is none; return the id of the run before, running again, if the store has it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(options["tracking_uri"])
    name = options.get("experiment_name")
    if name is not None and client.get_experiment_by_name(name) is None:
        try:
            client.create_experiment(name, options.get("artifact_location"))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
    if before is None:
        return None
    try:
        run = client.get_run(before)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    if run.info.lifecycle_stage == "deleted":
        return None
    client.update_run(before, status="RUNNING")
    return before


@contextmanager
def _kept(variable: str) -> Iterator[None]:
    """Keep a variable, which MLflow sets to the store of this run: the next job of a sweep has another."""
    before = os.environ.get(variable)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before


@contextmanager
def _explained() -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        said = re.sub(r"//[^/@\s]*@", "//…@", " ".join(str(error).split()))  # no password
        raise InputError(
            f"logger: MLflow cannot begin a run ({said:.400}); start its server, correct MLFLOW_TRACKING_URI or unset "
            "it, or choose logger=csv"
        ) from error


def _by_path(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``a/b, value`` of nested mappings."""
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for key, value in node.items():
        yield from _by_path(value, f"{prefix}/{key}".strip("/"))
