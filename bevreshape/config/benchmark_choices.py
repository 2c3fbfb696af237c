"""``reshaper=a,b`` of the benchmark: several view transformers."""

from bevreshape.config.choices import DOTTED
from bevreshape.config.command_line import typed_value
from bevreshape.config.entry_points import entry_point_classes
from bevreshape.config.paths import conf_dir
from bevreshape.errors import InputError, suggest


def compose_each_reshaper(name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Compose the config of each reshaper of ``reshaper=a,b`` below ``reshapers``; by default of all reshapers.

    Raises:
        InputError: when a reshaper is unknown.
    """
    built_in = {path.stem for path in (conf_dir() / "reshaper").glob("*.yaml")}
    known = sorted(built_in | set(entry_point_classes("reshaper")))
    wanted = typed_value(arguments, "reshaper") or "all"
    chosen = known if wanted == "all" else [one.strip() for one in wanted.strip("[]").split(",")]
    for one in chosen:
        if one not in known and not DOTTED.fullmatch(one):
            raise InputError(f"reshaper={one} is unknown; {suggest(one, known)}")
    kept = [argument for argument in arguments if not argument.startswith("reshaper=")]
    return name, [*kept, *(f"+reshaper@reshapers.{one.rpartition('.')[2]}={one}" for one in dict.fromkeys(chosen))]
