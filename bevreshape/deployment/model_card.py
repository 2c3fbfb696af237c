"""The model card of a trained model: the README of its folder on the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from bevreshape.bev_spec import BEVSpec
from bevreshape.reporting.tables import markdown_table

LIBRARY = "bevreshape"

TASK = "image-segmentation"

SCORES = "test/iou/"

TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

Maps camera images to a bird's-eye view. Trained with bevreshape.

{{ table }}
{% if scores %}
## Test split

{{ scores }}
{% endif %}
## Use

```python
from bevreshape.geometry import Cameras
from bevreshape.pretrained import PretrainedBEVModel

model = PretrainedBEVModel.from_pretrained("FOLDER_OR_REPOSITORY")
cameras = Cameras(intrinsics, ego_from_cam, model.spec.image_size)  # (b, n, 3, 3) of these images, (b, n, 4, 4)
outputs = model(images, cameras)  # b n 3 H W in 0..1 → outputs.heads
```

In a downloaded folder: `python -m bevreshape.predict checkpoint=FOLDER input=IMAGES`
"""


def model_card(model: nn.Module, spec: BEVSpec, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> ModelCard:
    """Return the card of a trained model.

    Args:
        model: trained.
        spec: the cameras and the cells that it was trained for.
        config: of its run.
        metrics: of its run, such as ``test/iou/mean``; may be empty.
    """
    reshaper, data = (_class(config[part]) for part in ("reshaper", "data"))
    scores = {
        key.removeprefix(SCORES): float(value)
        for key, value in metrics.items()
        if key.startswith(SCORES) and key.count("/") == 2 and isinstance(value, int | float)
    }
    title = f"{reshaper} on {data}"
    results = [
        EvalResult(
            task_type=TASK, dataset_type=data, dataset_name=data, dataset_split="test", metric_type="iou",
            metric_name=f"IoU {name}", metric_value=value,
        )
        for name, value in scores.items()
    ]  # fmt: skip
    card = ModelCardData(
        library_name=LIBRARY, pipeline_tag=TASK, tags=["bird's-eye view", reshaper], model_name=title,
        eval_results=results or None,
    )  # fmt: skip
    rows = [(f"IoU {name}", f"{value:.3f}") for name, value in scores.items()]
    return ModelCard.from_template(
        card,
        template_str=TEMPLATE,
        title=title,
        table=markdown_table(("", ""), _properties(model, spec, config)),
        scores=markdown_table(("", ""), rows) if rows else "",
    )


def _properties(model: nn.Module, spec: BEVSpec, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    grid, (height, width) = spec.grid, spec.image_size
    return [
        ("view transformer", f"`{config['reshaper']['_target_']}`"),
        ("encoder", f"`{config['encoder'].get('name', _class(config['encoder']))}`"),
        ("heads", ", ".join(f"`{name}`" for name in config["head"])),
        ("classes", ", ".join(f"`{name}`" for name in spec.classes)),
        ("cameras", ", ".join(f"`{name}`" for name in spec.camera_names)),
        ("images", f"{height}×{width}, {spec.image_mode}"),
        ("cells", f"{grid.rows}×{grid.cols} of {grid.cell_m:g} m; forward {_span(grid.forward_m)}, left "
                  f"{_span(grid.left_m)}"),
        ("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"),
    ]  # fmt: skip


def _span(ends: Sequence[float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g} m"


def _class(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_")).rpartition(".")[2]
