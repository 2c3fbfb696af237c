"""Overrides of unknown keys: a one-line message that names the similar key, exit code 1, nothing written."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bevreshape.config.command_line import local_folders, overrides_first, quoted
from bevreshape.errors import InputError

CASES: list[tuple[tuple[str, ...], str]] = [
    (("lr=1e-3",), "lr is not a key of this command; did you mean optimizer.lr?"),
    (("+lr=0.5",), "lr is not a key of this command; did you mean optimizer.lr?"),
    (("++lr=0.5",), "lr is not a key of this command; did you mean optimizer.lr?"),
    (("optimiser.lr=1",), "optimiser.lr is not a key of this command; did you mean optimizer.lr?"),
    (("reshapr=mlp",), "reshapr is not a key of this command; did you mean reshaper?"),
    (("+reshapr=mlp",), "reshapr is not a key of this command; did you mean reshaper?"),
    (("trainer.max_step=10",), "trainer.max_step is not a key of this command; did you mean trainer.max_steps?"),
    (("+trainer.max_step=10",), "trainer.max_step is unknown; did you mean trainer.max_steps"),
    (
        ("trainer.limit_val_batches=3",),
        "trainer.limit_val_batches is not in the config; +trainer.limit_val_batches=VALUE adds it",
    ),
    (("+callbacks=[x]",), "callbacks is not a key of this command; known are augment, checkpoint_every_n_steps, data"),
    (("+metrics=iou",), "metrics is not a key of this command; did you mean metric"),
    (("loader.rain=1",), "loader.rain is not a key of this command; known are loader.batch_size"),
    (("head=[conv,centre]",), "head=centre is unknown; did you mean centers"),
    (("data.scenes.vla=7",), "data.scenes.vla is not a key of this command; did you mean data.scenes.val?"),
    (("~x",), "x is not a key of this command; known are "),
    (("~data.rigg",), "data.rigg is not a key of this command; did you mean data.rig"),
    (("~seed=5",), "~seed: seed is 0; write ~seed, or seed=VALUE to change it"),
    (("~optimizer",), "optimizer is missing; leave it in the config"),
    (("~log_images.num_samples",), "log_images lacks num_samples, which must be an integer from 1 to 1024"),
    (("data=foldr",), "data=foldr is unknown; did you mean folder"),
    (("+experiment=typo",), "experiment=typo is unknown; known are camvid"),
    (("experiment=camvid",), "experiment is not a group of this command's defaults; choose it by +experiment=NAME"),
    (("trainer=3",), "trainer=3 is unknown; known are default"),
    (("hydra.foo=1",), "hydra.foo is not a key of this command; known are hydra."),
    (("hydra.job.num=x",), "hydra.job.num=x does not fit there (Value 'x' of type 'str' could not be converted"),
    (("+seed=1",), "+seed: there is such a key already; write seed=VALUE without +"),
    (("seed=1,2",), "seed=1,2 are several values; add -m to run each of them, or write seed=[1,2] for a list"),
    (("seed=range(1,3)",), "seed=range(1,3) are several values; add -m"),
    (("+reshaper=mlp",), "reshaper is chosen twice; choose one, reshaper=NAME without +"),
    (("+experiment=camvid", "+experiment=kitti_road"), "experiment is chosen twice; choose one"),
    (
        ("trainer.max_steps.x=1",),
        "trainer.max_steps.x is not a key: trainer.max_steps holds a value; write trainer.max_steps=VALUE",
    ),
    (("data.jitter.yaw_dg=1",), "data.jitter.yaw_dg is not a key of this command; did you mean data.jitter.yaw_deg"),
    (("data.jitter={yaw_dg: 1}",), "data.jitter.yaw_dg is not a key of this command; did you mean data.jitter.yaw_deg"),
    (("+data.jitter.yaw_dg=1",), "data.jitter.yaw_dg is unknown; did you mean yaw_deg"),
    (
        ("reshaper=pool", "reshaper.heads=3"),
        "reshaper.heads is not a key of this command; known are reshaper._target_, reshaper.mode",
    ),
    (
        ("seed=${oc.env:NO_SUCH_VARIABLE}",),
        "seed: KeyError raised while resolving interpolation: \"Environment variable 'NO_SUCH_VARIABLE' not found",
    ),
    (("seed",), "seed is not understood"),
    # the nonsense, through the real composition
    (("seed=4294967296",), "seed=4294967296 must be an integer from 0 to 4294967295"),
    (("seed=true",), "seed=true must be an integer"),
    (("objective=[bce,centers]", "objective.centers.center=-1"), "objective.centers.center=-1 must be a number from 0"),
    (
        ("head=[conv,centers]", "head.centers.upsample=4"),
        "head.segmentation.upsample=2 but head.centers.upsample=4; heads read the same cells",
    ),
    (("log_images.num_samples=true",), "log_images.num_samples=true must be an integer"),
    (
        ("reshaper=kernel_attention", "reshaper.height_m=.nan"),
        "reshaper.height_m='.nan' must be a number from -100 to 100",
    ),
    (("reshaper=kernel_attention", "reshaper.height_m=nan"), "reshaper.height_m=nan must be a number from -100 to 100"),
    (
        ("reshaper=kernel_attention", "reshaper.height_m=1e9"),
        "reshaper.height_m=1e+09 must be a number from -100 to 100",
    ),
    (
        ("reshaper=deformable_attention", "reshaper.heights_m=[nan]"),
        "reshaper.heights_m=[nan] must be a list of 1 or more numbers",
    ),
    (("encoder.offset_px=1e9",), "encoder.offset_px=1e+09 must be a number from -1024 to 1024"),
    (
        ("objective.segmentation.terms.bce.class_weight=-1",),
        "objective.segmentation.terms.bce.class_weight=-1 must be a number from 0",
    ),
    (
        ("objective.segmentation.weights.bce=0", "objective.segmentation.weights.dice=0"),
        "WeightedSum: weights={'bce': 0.0, 'dice': 0.0} are all 0; at least one term must count",
    ),
    (("augment.zoom=[1e9,1e9]",), "augment.zoom=[1e+09, 1e+09] must be a list of 2 numbers from 1 to 10"),
    (("data.jitter.yaw_deg=1e9",), "data.jitter.yaw_deg=1e+09 must be a number from 0 to 45"),
    (("reshaper.calibration=abc",), "reshaper.calibration='abc' must be true or false"),
    (("reshaper.calibration=1",), "reshaper.calibration=1 must be true or false"),
    (("loader.batch_size=true",), "loader.batch_size=true must be an integer"),
    (("data.root=s4://bucket/x",), "data.root='s4://bucket/x' is in no store that fsspec knows; did you mean s3"),
    (("hydra.run.dir=s3://bucket/x",), "hydra.run.dir='s3://bucket/x' is an address"),
    (("resume=s3://bucket/x",), "resume='s3://bucket/x' is an address"),
]


@pytest.mark.parametrize(("arguments", "message"), CASES, ids=[" ".join(arguments) for arguments, _ in CASES])
def test_messages_of_train(command, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    ended = command("train", "logger=none", *arguments)
    assert ended.code == 1
    assert "Traceback" not in ended.err, ended.err
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith(f"error: {message}"), last
    assert "To append to your config" not in ended.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "something was written"
    assert not (tmp_path / "s3:").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("predict", ("checkpoint=a", "input=b", "threshold=1.5"), "threshold=1.5 must be a number > 0 and < 1"),
        ("predict", ("checkpoint=a", "input=b", "batch_size=true"), "batch_size=true must be an integer from 1"),
        (
            "predict",
            ("checkpoint=a", "input=b", "tresh=1"),
            "tresh is not a key of this command; did you mean threshold",
        ),
        ("predict", ("checkpoint=a", "input=b", "+lr=1"), "lr is not a key of this command; known are batch_size"),
        ("predict", ("checkpoint=a", "input=gs://b/c"), "input='gs://b/c' is an address"),
        ("predict", ("checkpoint=a", "input=b", "out=s3:/x"), "out='s3:/x' is an address"),
        ("export", ("checkpoint=https://x/y",), "checkpoint='https://x/y' is an address"),
        ("export", ("checkpoint=a", "format=onx"), "format='onx' must be onnx, pt2 or hub; did you mean onnx?"),
        ("export", ("checkpoint=a", "repeats=0"), "repeats=0 must be an integer from 1"),
        ("evaluate", ("checkpoint=s3://x/y",), "checkpoint='s3://x/y' is an address"),
        ("diagnose", ("checkpoint=s3://x/y",), "checkpoint='s3://x/y' is an address"),
        ("benchmark", ("reshaper=mlp", "batch=[1,true]"), "batch=[1, true] must be an integer from 1"),
        ("benchmark", ("reshaper=mlp", "features=[16]"), "features=[16] must be a list of 2 integers"),
        ("benchmark", ("reshaper=mlp", "cell_m=nan"), "cell_m=nan must be a number from 0.001 to 1000"),
        ("benchmark", ("reshaper=mlp", "full_model=yes_please"), "full_model='yes_please' must be true or false"),
        ("study", ("plan=quik",), "plan=quik is unknown; did you mean quick"),
        ("study", ("worker=-1",), "worker=-1 must be an integer from 0"),
        ("study", ("name=[full]",), "name=['full'] must be text"),
    ],
)
def test_messages_of_others(command, name: str, arguments: tuple[str, ...], message: str) -> None:
    ended = command(name, *arguments)
    assert ended.code == 1
    assert "Traceback" not in ended.err, ended.err
    assert ended.err.strip().splitlines()[-1].startswith(f"error: {message}"), ended.err


def test_folders_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    given = ["hydra.run.dir=~/a", "hydra.sweep.dir='b c'", "--config-dir", "~/d", "--config-dir=~/e", "name=~/f"]
    expected = [
        "hydra.run.dir='/home/somebody/a'",
        "hydra.sweep.dir='b c'",
        "--config-dir",
        "/home/somebody/d",
        "--config-dir=/home/somebody/e",
        "name=~/f",
    ]
    assert local_folders(given) == expected
    with pytest.raises(InputError, match=r"^hydra\.sweep\.dir='hdfs://x' is an address"):
        local_folders(["hydra.sweep.dir=hdfs://x"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a=1 --config-dir D b=2", "a=1 b=2 --config-dir D"),
        ("--config-dir=D a=1 -m b=2,3", "a=1 b=2,3 --config-dir=D -m"),
        ("-cn other a=1 --cfg job ~b --info all +c=3", "a=1 ~b +c=3 -cn other --cfg job --info all"),
        ("--info a=1", "a=1 --info"),
        ("--config-dir a=b c=1", "c=1 --config-dir a=b"),
        ("a=1", "a=1"),
        ("", ""),
    ],
)
def test_overrides_may_stand_on_both_sides_of_a_flag(given: str, expected: str) -> None:
    assert overrides_first(given.split()) == expected.split()


def test_a_typo_in_an_own_class_names_the_options_of_its_node(command, tmp_path: Path) -> None:
    folder = tmp_path / "my conf" / "objective"
    folder.mkdir(parents=True)
    (folder / "distance.yaml").write_text("distance: {_target_: torch.nn.SmoothL1Loss, beta: 1.0}\n")
    own = ("objective=distance", "--config-dir", "my conf")
    for arguments in (
        (*own, "objective.distance.betta=1"),
        ("objective=torch.nn.SmoothL1Loss", "objective.smooth_l1_loss.betta=1"),
    ):
        ended = command("train", "logger=none", *arguments)
        key = arguments[-1].partition(".betta")[0]
        assert ended.err.strip().endswith(f"error: {key}.betta is not a key of this command; did you mean {key}.beta?")
    ended = command("train", "logger=none", *own, "objective.distance.x=1")
    assert "known are objective.distance._target_, objective.distance.beta" in ended.err


def test_all_is_checked_before_anything_is_loaded(command, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("timm.create_model", load)
    for wrong in (
        "objective.segmentation.terms.bce.pos_weight=0",
        "optimizer.lr=0",
        "head.segmentation.blocks=0",
        "reshaper.rank=0",
        "augment.hue=1",
    ):
        ended = command("train", "logger=none", "encoder.pretrained=true", wrong)
        assert ended.code == 1
        assert f"error: {wrong} must be a" in ended.err, ended.err


@pytest.mark.parametrize(
    "text",
    [
        "a b",
        "a\\b",
        "a\\",
        'a"b',
        'a\\"b',
        "a'b",
        "a$x",
        "${oc.env:HOME}",
        "a\\${b}",
        "a\\\\${b}",
        "a\tb",
        "a=b,[c]{d}",
        "→",
    ],
)
def test_quoted_text_is_what_hydra_leaves(text: str) -> None:
    value = OverridesParser.create().parse_override(f"key={quoted(text)}").value()
    assert value == text
