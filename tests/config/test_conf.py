"""Every YAML under conf/ is composed and built; none is unused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger
from omegaconf import open_dict

from bevreshape.analysis.costs import ring
from bevreshape.bev_spec import BEVSpec
from bevreshape.comparison.budget import Budget
from bevreshape.config import settings
from bevreshape.config.build_data import build_data
from bevreshape.config.build_logger import make_logger
from bevreshape.config.build_model import build_model, upsampling
from bevreshape.config.build_task import build_task
from bevreshape.config.compose import plain_config
from bevreshape.config.groups import build_part, check_nodes
from bevreshape.config.options import read_settings
from bevreshape.data.batch import BEVBatch
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.experiments.levels import StudyPlan
from bevreshape.experiments.task_plan import ALONE, typed
from bevreshape.geometry import BEVGrid
from bevreshape.training.schedule import resolve_schedule

CONF = ROOT / "conf"
CHOICES = sorted(p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.rglob("*.yaml") if p.parent != CONF)
SPEC = BEVSpec(BEVGrid((0, 48), (-24, 24), 2.0), ("a", "b"), ("front",), (32, 64))


def composed(*overrides: str, command: str = "train") -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return plain_config(cfg)


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.split("/")[0] in ("encoder", "reshaper")])
def test_model_parts_are_built(choice: str) -> None:
    group, _, name = choice.partition("/")
    cfg = composed(f"{group}={name}", "encoder.channels=8" if group != "encoder" else "seed=0")
    assert build_model(cfg, SPEC).reshaper.out_channels > 0


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.split("/")[0] in ("objective", "metric", "optimizer")])
def test_training_parts_are_built(choice: str) -> None:
    group, _, name = choice.partition("/")
    cfg = composed(f"{group}={name}")
    assert build_task(cfg, SPEC, build_model(cfg, SPEC)).recipe is not None


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("augment/")])
def test_augmentations_are_built(choice: str) -> None:
    node = composed(f"augment={choice.partition('/')[2]}")["augment"]
    if node:
        assert callable(build_part("augment", node, grid=SPEC.grid, camera_names=SPEC.camera_names))


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("logger/")])
def test_loggers_are_built(choice: str, tmp_path: Path) -> None:
    if choice == "logger/mlflow":
        pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    cfg = composed(f"logger={choice.partition('/')[2]}")
    logger = make_logger(cfg, tmp_path)
    assert isinstance(logger, Logger) or (logger is False and choice == "logger/none")


@pytest.mark.parametrize(
    "choice", [c for c in CHOICES if not c.startswith(("logger/", "trainer/", "plan/", "budget/"))]
)
def test_options_of_every_yaml_pass_their_check(choice: str) -> None:
    group, _, name = choice.partition("/")
    root = ("data.root=here",) if choice == "data/folder" else ()
    check_nodes(composed(f"{'+' if group == 'experiment' else ''}{group}={name}", *root))


@pytest.mark.parametrize(
    ("name", "schema", "given"),
    [
        ("train", settings.Train, ()),
        ("evaluate", settings.Evaluate, ("loader=default", "metric=iou", "data=synthetic", "checkpoint=best.ckpt")),
        ("predict", settings.Predict, ("checkpoint=best.ckpt", "input=here")),
        ("export", settings.Export, ("checkpoint=best.ckpt",)),
        ("diagnose", settings.Diagnose, ("loader=default", "metric=iou", "data=synthetic", "checkpoint=best.ckpt")),
        ("benchmark", settings.Benchmark, ("+reshaper@reshapers.mlp=mlp",)),
        ("study", settings.Study, ()),
        ("compare", settings.Compare, ("+reshaper@reshapers.mlp=mlp",)),
    ],
)
def test_keys_of_every_command_are_its_yaml_s(name: str, schema: Any, given: tuple[str, ...]) -> None:
    plain = composed(*given, command=name)
    assert set(plain) == set(schema.__annotations__)
    assert read_settings(schema, plain).keys() == plain.keys()


def test_synthetic_data_is_built() -> None:
    assert build_data(composed()).source.classes == ("drivable", "lane", "crossing", "vehicle")


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith(("data/", "trainer/", "experiment/"))])
def test_the_rest_is_composed(choice: str) -> None:
    group, _, name = choice.partition("/")
    prefix = "+" if group == "experiment" else ""
    root = ("data.root=here",) if group == "data" and name == "folder" else ()
    cfg = composed(f"{prefix}{group}={name}", *root)
    assert cfg["loader"]["batch_size"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("plan/")])
def test_plans_are_composed_and_make_sense(choice: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("study", [f"plan={choice.partition('/')[2]}"])
    plan = StudyPlan.read(plain_config(cfg.plan))
    assert plan.tensor is not None
    assert plan.tensor.primary_seeds == 8
    assert plan.tensor.primary_sigma_deg == 2
    if plan.task is not None:
        for setting in (*plan.task.compared(), *plan.task.variants()):
            composed(*typed(plan.task.common(setting, 0)), *ALONE)


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("budget/")])
def test_budgets_make_sense(choice: str) -> None:
    budget = Budget.read(composed(f"budget={choice.partition('/')[2]}", command="compare")["budget"])
    assert budget.seeds >= 3
    assert not {*budget.judged} & {*budget.tuning}


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "predict", "benchmark", "export", "diagnose", "study", "compare"]
)
def test_help_explains_and_shows_examples(command, name: str) -> None:
    ended = command(name, "--help")
    assert ended.code == 0
    assert f"python -m bevreshape.{name}" in ended.out
    if name == "train":
        for group in ("data: ", "encoder: ", "reshaper: ", "logger: "):
            assert group in ended.out


@pytest.mark.parametrize("choices", [("conv",), ("pyramid",), ("conv", "centers")])
def test_heads_are_built(choices: tuple[str, ...]) -> None:
    model = build_model(composed(f"head=[{','.join(choices)}]", "encoder.channels=8"), SPEC)
    outputs = model.eval()(torch.rand(2, 1, 3, 32, 64), ring(1, (32, 64), 2, torch.device("cpu")))
    shapes = {name: tuple(head.shape) for name, head in outputs.heads.items()}
    expected = {"segmentation": (2, 2, 24, 24), "centers": (2, 3, 24, 24)}
    assert shapes == {name: expected[name] for name in ("segmentation", "centers")[: len(choices)]}


def test_data_chooses_how_it_is_read_and_measured() -> None:
    """A data file overrides the groups loader and metric, and the command line overrides both."""
    kitti = composed("data=kitti_road")
    assert (kitti["loader"]["batch_size"], set(kitti["metric"])) == (8, {"iou", "kitti_road"})
    assert set(composed("data=nuscenes")["metric"]) == {"iou", "conditions"}
    other = composed("data=kitti_road", "metric=iou", "loader=default", "loader.num_workers=0")
    assert (other["loader"], set(other["metric"])) == ({"batch_size": 16, "num_workers": 0}, {"iou"})
    assert composed("+experiment=kitti_road")["loader"]["batch_size"] == 8


class Keyframes:
    """As many as nuScenes trains with."""

    def __init__(self, spec: BEVSpec) -> None:
        self.grid, self.classes = spec.grid, spec.classes
        self.camera_names, self.image_size = spec.camera_names, spec.image_size

    def prepare(self, splits: Sequence[str] = ()) -> None:
        pass

    def split(self, name: str) -> Any:
        return range(28_130)

    def make_targets(self, batch: BEVBatch) -> BEVBatch:
        return batch


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("experiment/nuscenes/")])
def test_published_protocols_fit_together(choice: str) -> None:
    base = ["reshaper=cross_view_attention"] if choice.endswith("/cvt_protocol") else []  # the others build on it
    cfg = composed(f"+experiment={choice.partition('/')[2]}", "encoder.pretrained=false", *base)
    data = cfg["data"]
    bounds = {key: value for key, value in data["grid"].items() if key != "_target_"}
    classes = tuple(data["targets"] or data["classes"])
    spec = BEVSpec(BEVGrid(**bounds), classes, tuple(data["cameras"]), tuple(data["image_size"]))
    model = build_model(cfg, spec)
    assert model.reshaper.grid.coarsen(1).rows * upsampling(cfg["head"]) == spec.grid.rows == 200
    task = build_task(cfg, spec, model)
    assert ("centers" in task.objectives) == ("centers" in model.heads) == (cfg["data"]["centers"] == ["vehicle"])
    trainer = resolve_schedule(cfg["trainer"], BEVDataModule(Keyframes(spec), batch_size=cfg["loader"]["batch_size"]))
    assert 25_000 <= trainer["max_steps"] <= 1_000_000
    augment = (
        build_part("augment", cfg["augment"], grid=spec.grid, camera_names=spec.camera_names)
        if cfg["augment"]
        else None
    )
    assert augment is None or augment.flip_p == 0 or data["raster"] == "exact"
