"""The level of encoder features: the methods of the tensor level on what a network makes of images, for a fixed camera.

The target is the inverse perspective mapping of the features themselves, so the best map is known here as well: S.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from bevreshape.experiments.encoder import Encoder, place_readable
from bevreshape.experiments.feature_plan import FeaturesPlan
from bevreshape.experiments.feature_rows import FeatureResults, rows
from bevreshape.experiments.level import Work
from bevreshape.experiments.records import Entry
from bevreshape.experiments.row import Row
from bevreshape.experiments.study import SettingStudy

IMAGE_S = 0.02
"""About how many seconds one core takes to draw an image and to take its features."""


@dataclass(frozen=True)
class FeaturesStudy(SettingStudy[FeaturesPlan]):
    """The level of encoder features, a :class:`~bevreshape.experiments.level.Level`."""

    PREFIX = "features-"

    @property
    def name(self) -> str:
        """Of the level."""
        return "features"

    def planned(self) -> dict[str, float]:
        """Names of all entries, and about how many seconds each takes."""
        images = self.plan.train_images + self.plan.test_images
        return super().planned() | {_place(encoder).name: images * IMAGE_S for encoder in self.plan.encoders()}

    def work(self, records: Mapping[str, dict[str, Any]]) -> list[Work]:
        """All entries that can be begun."""
        places = [Work(_place(encoder), partial(_read_place, encoder)) for encoder in self.plan.encoders()]
        return [*places, *super().work(records)]

    def rows(self) -> list[Row]:
        """Of what is done."""
        return rows(self.results())

    def results(self) -> FeatureResults:
        """Of what is done."""
        found, records = self.outcomes(), self.records.read()
        places = {
            encoder: (result["row"], result["col"])
            for encoder in self.plan.encoders()
            if (result := self.records.get(records, _place(encoder))) is not None
        }
        return FeatureResults(self.plan, found.outcomes, found.tuned, places)


def _place(encoder: Encoder) -> Entry:
    return Entry(f"features-place-{encoder.name}", {"encoder": asdict(encoder)})


def _read_place(encoder: Encoder) -> dict[str, float]:
    row, col = place_readable(encoder)
    return {"row": round(row, 4), "col": round(col, 4)}
