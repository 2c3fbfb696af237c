"""From the groups ``encoder``, ``reshaper`` and ``head`` to a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.construct import locate
from bevreshape.config.groups import build_part, instance_classes
from bevreshape.config.options import Upsample, read_value
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.heads import Head
from bevreshape.model import BEVModel
from bevreshape.reshapers import FeatureShape, Reshaper


def build_model(cfg: Mapping[str, Any], spec: BEVSpec) -> BEVModel:
    """Encoder, reshaper and head of a config, each built for the sizes that the one before it delivers."""
    encoder = build_part("encoder", cfg["encoder"], image_size=spec.image_size, cameras=len(spec.camera_names))
    sources = encoder.sources
    upsample = read_value("head.upsample", Upsample, cfg["head"].get("upsample"))
    reshaper = build_reshaper(cfg["reshaper"], sources, spec.grid.coarsen(upsample))
    instances = {"instances": len(instance_classes(cfg))} if instance_classes(cfg) else {}
    head = build_part("head", cfg["head"], in_channels=reshaper.out_channels, classes=len(spec.classes), **instances)
    if instances and not isinstance(head, Head):
        raise InputError(
            f"instances.classes={instance_classes(cfg)}: {type(head).__name__} makes no maps of objects; derive it from "
            "bevreshape.heads.Head, or set instances.classes=[]"
        )
    return BEVModel(encoder, reshaper, head)


def build_reshaper(node: Mapping[str, Any], sources: Sequence[FeatureShape], grid: BEVGrid) -> Reshaper:
    """The view transformer of a config node, for features of one or several scales.

    Raises:
        InputError: when it takes one scale but several are given, or does not say what it delivers.
    """
    target = node.get("_target_")
    if len(sources) > 1 and target and not getattr(locate(target), "takes_scales", False):
        strides = [source.stride for source in sources]
        raise InputError(
            f"encoder.strides={strides} are {len(strides)} scales but {target} takes one; set encoder.strides=[{strides[0]}]"
        )
    return build_part("reshaper", node, source=sources[0] if len(sources) == 1 else tuple(sources), grid=grid)
