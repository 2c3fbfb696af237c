"""The level of encoder features, small: done once, in rows, and refused where its images are too few."""

from dataclasses import replace

import pytest
import torch

from bevreshape.errors import InputError
from bevreshape.experiments.feature_plan import FeaturesPlan
from bevreshape.experiments.features import FeaturesStudy
from bevreshape.experiments.level import Level
from bevreshape.experiments.runs import Budget, Setting
from bevreshape.sharing import missing, run
from bevreshape.storage.records import Records

pytestmark = pytest.mark.slow

PLAN = FeaturesPlan(
    budget=Budget((2, 4), 4, (0.01, 0.03), (0,), (0.0,), ("projected", "direct"), tuning_seeds=2, held_out=8),
    seeds=2,
    tune_images=8,
    train_images=12,
    test_images=8,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> FeaturesStudy:
    study = FeaturesStudy(PLAN, Records(tmp_path_factory.mktemp("study")))
    torch.set_num_threads(1)
    for _ in run([study]):
        pass
    return study


def test_every_entry_is_done_once(study: FeaturesStudy) -> None:
    assert isinstance(study, Level)
    assert missing([study]) == ()
    assert len(study.records.path.read_text().splitlines()) == len(study.planned())
    assert all(name.startswith("features-") for name in study.planned())


def test_every_row_has_a_value_and_a_verdict(study: FeaturesStudy) -> None:
    found = study.rows()
    assert [row.claim for row in found] == ["control", "A7", "A8", "A8", "A8", "A11", "A11", "A11", "A12"]
    for row in found:
        assert row.verdict
        assert all(row.value.values())
        assert not row.primary


def test_rows_whose_entries_are_missing_are_left_out(study: FeaturesStudy, tmp_path_factory) -> None:
    part = FeaturesStudy(PLAN, Records(tmp_path_factory.mktemp("part")))
    assert part.rows() == []
    lines = study.records.path.read_text().splitlines(keepends=True)
    part.records.path.write_text("".join(line for line in lines if "noise" not in line))
    gone = [row for row in study.rows() if row not in part.rows()]
    assert [row.claim for row in gone] == ["A11", "A11"]


def test_the_matrix_of_an_mlp_does_not_follow_x_and_that_of_attention_does(study: FeaturesStudy) -> None:
    results = study.results()
    assert results.mean(PLAN.setting("mlp"), "spread_of_a") == 0
    assert results.mean(PLAN.setting("mlp"), "spread_of_jacobian") == 0
    assert results.mean(PLAN.setting("attention"), "spread_of_a") > 0.01


def test_a_permutation_has_recipes_of_its_own_unless_it_changes_names_alone() -> None:
    sinusoidal, learned = (
        PLAN.setting("attention", encoding=encoding, permuted=True) for encoding in ("sinusoidal", "learned")
    )
    assert PLAN.tuned_by(sinusoidal) == sinusoidal
    assert PLAN.tuned_by(learned) == PLAN.setting("attention", encoding="learned")
    assert PLAN.tuned_by(PLAN.setting("mlp", permuted=True)) == PLAN.setting("mlp")


def test_settings_of_other_encoders_have_other_names() -> None:
    names = [setting.name for setting in PLAN.settings()]
    assert len(set(names)) == len(names) == 12
    assert Setting("mlp").name not in names


@pytest.mark.parametrize("key", ["tune_images", "test_images"])
def test_too_few_images_are_refused(key: str) -> None:
    with pytest.raises(InputError, match=rf"plan.features.{key}=7 must be at least 8"):
        replace(PLAN, **{key: 7})
