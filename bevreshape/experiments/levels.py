"""A whole study: its plan with a section per level, and the levels."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bevreshape.config.options import read_value
from bevreshape.errors import InputError
from bevreshape.experiments.feature_plan import FeaturesPlan
from bevreshape.experiments.features import FeaturesStudy
from bevreshape.experiments.level import Level
from bevreshape.experiments.plan import TensorPlan
from bevreshape.experiments.row import Row
from bevreshape.experiments.study import TensorStudy
from bevreshape.experiments.task import TaskStudy
from bevreshape.experiments.task_plan import TaskPlan
from bevreshape.sharing import missing
from bevreshape.storage.plain_values import read_yaml
from bevreshape.storage.records import Records

PLAN_FILE = "plan.yaml"
"""File of the plan in a study's folder."""


@dataclass(frozen=True)
class StudyPlan:
    """A plan of ``conf/plan``: a level whose section is missing is left out.

    Attributes:
        tensor: from random features of one camera to their homography.
        features: from features of images to their homography.
        task: from images of the synthetic world to their BEV segmentation.

    Raises:
        InputError: when there is no section.
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
        """Build a plan from plain values.

        Raises:
            InputError: when a key is unknown, or a value has another type or is out of range.
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
        """Read the study of a folder.

        Raises:
            InputError: when its plan cannot be read.
        """
        return cls(StudyPlan.read(read_yaml(folder / PLAN_FILE)), Records(folder))

    @property
    def tensor(self) -> TensorStudy | None:
        """Return the tensor level; ``None`` if the plan has none."""
        return None if self.plan.tensor is None else TensorStudy(self.plan.tensor, self.records)

    @property
    def levels(self) -> list[Level]:
        """Return the levels in the order in which they are done."""
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
        """Return the names of all entries, with approximate seconds on one core."""
        return {name: seconds for level in self.levels for name, seconds in level.planned().items()}

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the names of the entries that are not done."""
        return missing(self.levels)

    @property
    def rows(self) -> list[Row]:
        """Return the rows of all levels whose entries are done."""
        return [row for level in self.levels for row in level.rows()]
