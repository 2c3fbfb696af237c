"""Building a model from the groups ``encoder``, ``reshaper`` and ``head``."""

from collections.abc import Mapping, Sequence
from typing import Any

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.construct import locate, taken
from bevreshape.config.groups import build_named, build_part
from bevreshape.config.options import Upsample, read_value
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.model import BEVModel
from bevreshape.reshapers import FeatureShape, Reshaper


def build_model(cfg: Mapping[str, Any], spec: BEVSpec) -> BEVModel:
    """Build encoder, reshaper and heads of a config, each for the output sizes of the part before it."""
    rig = {"image_size": spec.image_size, "cameras": len(spec.camera_names)}
    encoder = build_part("encoder", cfg["encoder"], **taken("encoder", cfg["encoder"], rig))
    if not (isinstance(encoder.sources, Sequence) and all(isinstance(one, FeatureShape) for one in encoder.sources)):
        raise InputError(
            f"encoder: {type(encoder).__name__}.sources is {encoder.sources!r:.80}, not a tuple of FeatureShape; give "
            "one for every scale, as in (FeatureShape(channels=64, height=16, width=32, cameras=1, stride=8),)"
        )
    reshaper = build_reshaper(cfg["reshaper"], encoder.sources, spec.grid.coarsen(upsampling(cfg["head"])))
    sizes = {"in_channels": reshaper.out_channels, "out_channels": len(spec.classes)}
    return BEVModel(encoder, reshaper, build_named("head", cfg["head"], **sizes))


def upsampling(heads: Mapping[str, Any]) -> int:
    """Return the fine cells per coarse cell along a side, which all heads share.

    Raises:
        InputError: when heads differ, or there is no head.
    """
    found = {
        name: read_value(f"head.{name}.upsample", Upsample, node.get("upsample") if isinstance(node, Mapping) else None)
        for name, node in heads.items()
    }
    if not found:
        raise InputError("head: there is none; choose head=conv, or several by head=[conv,centers]")
    if len(set(found.values())) > 1:
        (one, other), *_ = zip(found.items(), list(found.items())[1:], strict=False)
        raise InputError(
            f"head.{one[0]}.upsample={one[1]} but head.{other[0]}.upsample={other[1]}; heads read the same cells, so "
            "set both to the same value"
        )
    return next(iter(found.values()))


def build_reshaper(node: Mapping[str, Any], sources: Sequence[FeatureShape], grid: BEVGrid) -> Reshaper:
    """Build the view transformer of a config node, for features of one or several scales.

    Raises:
        InputError: when it takes one scale but several are given, or has no ``out_channels``.
    """
    target = node.get("_target_")
    if len(sources) > 1 and target and not getattr(locate(target), "takes_scales", False):
        strides = [source.stride for source in sources]
        raise InputError(
            f"encoder.strides={strides} are {len(strides)} scales but {target} takes one; set "
            f"encoder.strides=[{strides[0]}]"
        )
    return build_part("reshaper", node, source=sources[0] if len(sources) == 1 else tuple(sources), grid=grid)
