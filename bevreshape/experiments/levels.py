"""A whole study: its plan, with a section for each level, and the levels that the plan has."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bevreshape.config.options import read_value
from bevreshape.errors import InputError
from bevreshape.experiments.feature_plan import FeaturesPlan
from bevreshape.experiments.features import FeaturesStudy
from bevreshape.experiments.level import Level, missing
from bevreshape.experiments.plan import TensorPlan
from bevreshape.experiments.records import Records
from bevreshape.experiments.row import Row
from bevreshape.experiments.study import TensorStudy
from bevreshape.experiments.task import TaskStudy
from bevreshape.experiments.task_plan import TaskPlan
from bevreshape.storage.plain_values import read_yaml

PLAN_FILE = "plan.yaml"
"""In a study's folder, what is done there."""


@dataclass(frozen=True)
class StudyPlan:
    """A plan of ``conf/plan``: a level whose section is missing is left out.

    Attributes:
        tensor: random features of one camera in, their own homography out.
        features: what a network makes of images in, their own homography out.
        task: images of the synthetic world in, their segmentation from above out.

    Raises:
        InputError: when there is no section at all.
    """

    tensor: TensorPlan | None = None
    features: FeaturesPlan | None = None
    task: TaskPlan | None = None

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self)]
        if all(getattr(self, name) is None for name in names):
            raise InputError(f"plan={{}} has no level; give it one of {', '.join(names)}")

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "StudyPlan":
        """From plain values.

        Raises:
            InputError: for an unknown key, or a value of another kind or out of range.
        """
        plan: StudyPlan = read_value("plan", cls, plain)
        return plan


@dataclass(frozen=True)
class Study:
    """A plan and the records of its levels."""

    plan: StudyPlan
    records: Records

    @classmethod
    def stored(cls, folder: Path) -> "Study":
        """That of a folder.

        Raises:
            InputError: when its plan cannot be read.
        """
        return cls(StudyPlan.read(read_yaml(folder / PLAN_FILE)), Records(folder))

    @property
    def tensor(self) -> TensorStudy | None:
        """The tensor level, where the plan has one."""
        return None if self.plan.tensor is None else TensorStudy(self.plan.tensor, self.records)

    @property
    def levels(self) -> list[Level]:
        """In the order in which they are done."""
        found: list[Level] = []
        if self.tensor is not None:
            found.append(self.tensor)
        if self.plan.features is not None:
            found.append(FeaturesStudy(self.plan.features, self.records))
        if self.plan.task is not None:
            found.append(TaskStudy(self.plan.task, self.records))
        return found

    @property
    def planned(self) -> dict[str, float]:
        """Names of all entries, and about how many seconds each takes on one core."""
        return {name: seconds for level in self.levels for name, seconds in level.planned().items()}

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the entries that are not done."""
        return missing(self.levels)

    @property
    def rows(self) -> list[Row]:
        """Of all levels, those whose entries are done."""
        return [row for level in self.levels for row in level.rows()]
