"""How the runs of a study are done and examined."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from lab.studies import CPU, done, plain, tiny

from bevreshape.build import build_data, load_model
from bevreshape.costs import ring
from bevreshape.data.synthetic.rig import Spread
from bevreshape.geometry import BEVGrid
from bevreshape.lab.experiments import Place, encoder_features, examine
from bevreshape.lab.plan import Plan, tensor_unit
from bevreshape.lab.tensor_level import ReadOut, Settings, run, sampling_matrix
from bevreshape.reshapers import MLP, FeatureShape


def test_permuted_training_sees_another_order_and_the_mlp_does_not_care(tmp_path: Path) -> None:
    plan = Plan(**plain())
    study = tiny(tmp_path, plan)
    plain_run, permuted = (done(study, tensor_unit(plan, "mlp", 1e-2, 0, permuted=p)) for p in (False, True))
    assert "examined" not in permuted
    assert plain_run["curve"][0]["error"] != permuted["curve"][0]["error"]
    assert plain_run["curve"][0]["error"] == pytest.approx(permuted["curve"][0]["error"], rel=0.3)


def test_examined_where_the_answers_are_known() -> None:
    source, grid = FeatureShape(3, 8, 16, stride=16, offset_px=7.5), BEVGrid((2.0, 10.0), (-8.0, 8.0), 1.0)
    mlp = MLP(source, grid, activation="none")
    rig = ring(1, (128, 256), 1, CPU)
    with torch.no_grad():
        mlp.layers[0].weight.copy_(sampling_matrix(rig, source, grid)[None])
        mlp.layers[0].bias.zero_()
    settings = Settings(source=source, grid=grid, calibration="none")
    found = examine(ReadOut(mlp, 3), settings, torch.Generator().manual_seed(0))
    assert found["data_dependence"] == 0.0
    assert found["sampling_distance"] < 1e-5
    assert found["gram_change"] < 1e-12
    assert found["destruction"] == pytest.approx(1.0, abs=0.2)  # white enough: another order is another picture


def test_shown_directions_are_those_of_the_rays_and_change_with_the_pose() -> None:
    seen: list[torch.Tensor] = []

    class Watched(MLP):
        def reshape(self, features, cameras):
            assert cameras is None
            seen.append(features)
            return super().reshape(features, cameras)

    source, grid = FeatureShape(2, 4, 8, stride=16, offset_px=7.5), BEVGrid((2.0, 10.0), (-8.0, 8.0), 2.0)
    for jitter in (Spread(), Spread(yaw_deg=20.0)):
        settings = Settings(source=source, grid=grid, jitter=jitter, calibration="shown", steps=2, batch=4, held_out=4)
        run(Watched, settings)
    fixed, moved = seen[0][:, 0, 2:], seen[len(seen) // 2][:, 0, 2:]
    assert fixed.shape == (4, 4, 4, 8)
    assert fixed.mean((0, 2, 3)).tolist() == pytest.approx([0.0] * 4, abs=1e-5)
    assert fixed.std((0, 2, 3)).tolist() == pytest.approx([1.0] * 4, abs=0.02)
    left, right = fixed[0, 1, :, 0], fixed[0, 1, :, -1]
    assert (left > right).all()  # y, the sine of the azimuth, is to the left
    assert (fixed[0, 3, 0] > fixed[0, 3, -1]).all()  # z is up
    assert torch.allclose(fixed[0], fixed[3])
    assert not torch.allclose(moved[0], moved[3])


def test_an_encoders_features_are_those_of_pictures_as_the_model_gets_them(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "runs" / "reference")
    read = partial(encoder_features, (2, 4), Place(tmp_path, CPU), "reference", 5)
    (train, val), rig, source = read("val")
    assert train.shape == (5, 1, 8, 2, 4)
    assert val.shape == (5, 1, 8, 2, 4)
    assert not torch.equal(read("test")[0][1], val)
    assert (source.stride, rig.batch_shape) == (16, (1, 1))
    model, _, config = load_model(str(trained / "checkpoints" / "best.ckpt"))
    data = build_data({"data": {**config["data"], "loader_workers": 0}, "seed": 0})
    own = [torch.as_tensor(data.source.split("train")[i]["image"]).float() / 255 for i in range(5)]
    with torch.no_grad():
        features = model.encoder(torch.stack(own))  # b n c h w
    pooled = features.unflatten(-2, (2, 2)).unflatten(-1, (4, 2)).mean((-3, -1))
    mean, spread = pooled.mean((0, 1, 3, 4)), pooled.std((0, 1, 3, 4))
    expected = (pooled - mean[:, None, None]) / spread[:, None, None]
    assert torch.allclose(train, expected, atol=1e-4)
