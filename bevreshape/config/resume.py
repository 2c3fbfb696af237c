"""``resume=FOLDER``: the stored config of a run as the primary config."""

from pathlib import Path

from hydra.core.config_store import ConfigStore

from bevreshape.config.allowed import check_cache, read_config, typed_addresses
from bevreshape.config.command_line import quoted, typed_trust, typed_value
from bevreshape.config.options import LocalPath, read_value
from bevreshape.errors import InputError
from bevreshape.storage.run_folder import CHANGEABLE, changeable

NEEDED = (
    "data", "loader", "encoder", "reshaper", "head", "objective", "metric", "optimizer", "trainer", "seed", "name",
    "checkpoint_every_n_steps", "log_images",
)  # fmt: skip
"""Required keys in the config of a run that resumes."""

ALONE = ("~", "-m", "--multirun", "-cn", "--config-name", "-cp", "--config-path")
"""Arguments that would make it another run."""


def resume_arguments(name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Make the config of the run in ``resume=FOLDER`` the primary one, and its folder Hydra's run folder.

    Raises:
        InputError: when the folder is not that of a run, or an argument would make it another run.
    """
    typed = typed_value(arguments, "resume")
    if typed is None:
        return name, arguments
    run = Path(read_value("resume", LocalPath, typed))
    if not (run / "config.yaml").is_file() or not (run / "checkpoints" / "last.ckpt").is_file():
        raise InputError(
            f"resume={run} has no config.yaml and checkpoints/last.ckpt; name a runs/<date>/<time> folder that was "
            "begun"
        )
    if "${" in str(run.resolve()):
        raise InputError(
            f"resume={run} is located in {run.resolve()}, where Hydra would resolve '${{'; rename that folder"
        )
    for argument in arguments:
        _check_argument(argument)
    stored = read_config(run / "config.yaml", typed_trust(arguments), NEEDED)
    check_cache(stored["data"], str(run / "config.yaml"), typed_addresses(arguments))
    ConfigStore.instance().store(
        name="resumed", node={**stored, "resume": str(run), "trust": [], "sweep": {"metric": None}}
    )
    return "resumed", [*arguments, f"hydra.run.dir={quoted(str(run.resolve()))}", "hydra.output_subdir=null"]


def _check_argument(argument: str) -> None:
    if argument.startswith(ALONE):
        raise InputError(f"{argument}: a run resumes alone and as it began; leave it out, or start a new run")
    key = argument.split("=")[0].lstrip("+~")
    if "=" in argument and key not in ("resume", "trust") and not changeable(key):
        raise InputError(
            f"{argument}: a run resumes as it began, only {', '.join(CHANGEABLE)} may change; start a new run to "
            "change more"
        )
