"""Hydra's errors about a command line, as one-line messages that name the key."""

import inspect
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bevreshape.config.choices import config_folders
from bevreshape.config.command_line import quoted
from bevreshape.config.construct import TARGET, locate
from bevreshape.config.options import suggest_key
from bevreshape.config.settings import FIXED_GROUPS
from bevreshape.errors import InputError, causes, suggest, user_message
from bevreshape.training.trainer_options import OPTIONS, OWN


def explain_override(error: Exception, conf: Path, config_name: str, arguments: Sequence[str]) -> str | None:
    """Return the message for an override that Hydra refuses; ``None`` for other errors.

    Args:
        error: the error that was raised.
        conf: the folder of configs.
        config_name: the primary config of the command.
        arguments: its command line.
    """
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = error.options or [path.stem for path in (conf / group).glob("*.yaml") if group]
        if options:
            return f"{group}={name} is unknown; {suggest(name, options)}"
        return f"{error.missing_cfg_file} cannot be found; name an existing config"
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        for argument in arguments:
            group, _, name = argument.lstrip("+").partition("=")
            if not group or ((conf / group).is_dir() and not (conf / group / f"{name}.yaml").is_file()):
                choices = [path.stem for path in (conf / group).glob("*.yaml")] if group else ()
                return f"{argument} is unknown; {suggest(name, choices)}" if choices else f"{argument} has no key"
    if isinstance(error, AttributeError | TypeError | ValueError) and _raised_while_composing(error):
        return _misfit(error, conf, arguments)
    if not isinstance(error, ConfigCompositionException):
        return None
    text = " ".join(str(error).split())
    cause = error.__cause__
    if match := re.search(r"Could not override '([^']*)'|Could not delete (?:from config\. )?'([^']*)'", text):
        key = str(match[1] or match[2])
        longer = getattr(cause, "full_key", None) or ""
        key = longer if longer.startswith(f"{key}.") else key
        return _unknown(key, conf, config_name, arguments, deleted=match[1] is None)
    if match := re.search(r"The value of '([^']*)' is (.*) and not", text):
        return f"~{match[1]}: {match[1]} is {match[2]}; write ~{match[1]}, or {match[1]}=VALUE to change it"
    if match := re.search(r"An item is already at '([^']*)'", text):
        return f"+{match[1]}: there is such a key already; write {match[1]}=VALUE without +"
    if match := re.search(r"Ambiguous value for argument '(([^=]*)=(.*?))' 1\.", text):
        return f"{match[1]} are several values; add -m to run each of them, or write {match[2]}=[{match[3]}] for a list"
    if match := re.search(r"Sweep parameters '(.*)' requires", text):
        return f"{match[1]} are several values; add -m to run each of them"
    if match := re.search(r"(\S+) appears more than once|Multiple values for (\S+?)\.", text):
        group = str(match[1] or match[2])
        return f"{group} is chosen twice; choose one, {group}=NAME" + (" without +" if match[1] else "")
    if match := re.search(r"Error merging override (.*)", text):
        reason = str(cause).splitlines()[0] if cause is not None else "it has another type"
        return f"{match[1]} does not fit there ({reason}); --help shows the keys and their values"
    return None


def command_message(error: BaseException) -> str | None:
    """Return the one-line message of a user error in a command; ``None`` for an internal error."""
    return hydra_message(error) or user_message(error)


def hydra_message(error: BaseException) -> str | None:
    """Return the message for an error of Hydra or OmegaConf; ``None`` for any other."""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    chain = causes(error)
    while (
        (hidden := chain[-1].__context__) is not None and isinstance(chain[-1], HydraException) and hidden not in chain
    ):
        chain += causes(hidden)
    for link in chain:
        if isinstance(link, InputError):
            return user_message(link)
    if isinstance(error, OverrideParseException):
        reason = error.message.splitlines()[0]
        return f"{error.override} is not understood ({reason}); write key=value, and quote values with = or spaces"
    if isinstance(error, OmegaConfBaseException):
        return explain_value(error)
    return " ".join(str(chain[0]).replace("\n", " ").split() + str(chain[-1]).split() * (chain[-1] is not chain[0]))


def _raised_while_composing(error: Exception) -> bool:
    """Return whether Hydra or OmegaConf failed while composing, before the command ran."""
    frames = list(traceback.walk_tb(error.__traceback__))
    modules = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames]
    names = [frame.f_code.co_name for frame, _ in frames]
    return "compose_config" in names and "bevreshape" not in modules[names.index("compose_config") :]


def _misfit(error: Exception, conf: Path, arguments: Sequence[str]) -> str:
    """Return the message for an override that Hydra fails on; names the argument that is probably wrong."""
    for argument in arguments:
        group, _, value = argument.lstrip("+").partition("=")
        if (conf / group).is_dir() and group and value[:1] in "[{":
            choices = [path.stem for path in (conf / group).glob("*.yaml")]
            return f"{argument}: {group} is chosen by its name; {suggest('', choices)}"
    for argument in arguments:
        last = argument.partition("=")[0].rpartition(".")[2]
        if last and repr(last) in str(error):
            return f"{argument}: its parent is a list or a value and has no {last}; --help shows the keys and values"
    return f"{' '.join(arguments)} cannot be put into the config ({error}); --help shows the keys and their values"


def explain_value(error: OmegaConfBaseException) -> str:
    """Return the message for a value that cannot be resolved, such as an interpolation of a missing key."""
    reason = str(error.msg or error).splitlines()[0]
    return f"{error.full_key}: {reason}; correct the value" if error.full_key else f"the config has a fault: {reason}"


def _unknown(key: str, conf: Path, config_name: str, arguments: Sequence[str], *, deleted: bool) -> str:
    """Return the message for an unknown key: similar keys, or how to add a new one."""
    if (conf / key).is_dir() and not deleted:
        return f"{key} is not a group of this command's defaults; choose it by +{key}=NAME"
    known = _composed(conf, config_name, arguments)
    known = known if key.startswith("hydra") else {name: value for name, value in known.items() if name != "hydra"}
    parent, _, name = key.rpartition(".")
    node: Any = known
    for part in parent.split(".") if parent else ():
        node = node.get(part) if isinstance(node, Mapping) else None
    if parent and node is not None and not isinstance(node, Mapping):
        return f"{key} is not a key: {parent} holds a value; write {parent}=VALUE"
    tail = suggest_key(key, known)
    if isinstance(node, Mapping) and not deleted:
        takes = _takes(parent, node, name)
        if takes or (takes is None and "did you mean" not in tail):
            return f"{key} is not in the config; +{key}=VALUE adds it"
    return f"{key} is not a key of this command; {tail}"


def _takes(parent: str, node: Mapping[str, Any], name: str) -> bool | None:
    """Return whether a node may get another key; ``None`` if names are arbitrary."""
    if not parent or parent.startswith("hydra") or parent in FIXED_GROUPS:
        return False
    if parent == "trainer":
        return name in {**OPTIONS, **OWN}
    if TARGET not in node:
        return None
    try:
        parameters = inspect.signature(locate(str(node[TARGET]))).parameters
    except InputError:
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _composed(conf: Path, config_name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the config composed from the chosen groups only, or from the defaults if that fails."""
    folders = [folder.absolute() for folder in config_folders(arguments)[1:]]
    chosen = {a: a.lstrip("+").partition("=")[0].partition("@")[0] for a in arguments if "=" in a}
    groups = [a for a, group in chosen.items() if group and any((top / group).is_dir() for top in (conf, *folders))]
    search = [f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in folders)}]"] if folders else []
    for choices in ([*groups, *search], []):
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(conf), version_base="1.3"):
                composed = compose(config_name, choices, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError):
            continue
        finally:
            GlobalHydra.instance().clear()
        plain = OmegaConf.to_container(composed, resolve=False)
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}
    return {}
