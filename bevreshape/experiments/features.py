"""The level of encoder features: methods of the tensor level on features of images, for a fixed camera.

The target is the inverse perspective mapping of the features, so the best map is known: S.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from bevreshape.experiments.encoder import Encoder, place_readable
from bevreshape.experiments.feature_plan import FeaturesPlan
from bevreshape.experiments.feature_rows import FeatureResults, WithoutLooking, rows
from bevreshape.experiments.row import Row
from bevreshape.experiments.runs import TRAINING, Setting, held_out_of, stream_of
from bevreshape.experiments.study import SettingStudy
from bevreshape.experiments.training import relative, tally
from bevreshape.sharing import Work
from bevreshape.storage.records import Entry

IMAGE_S = 0.02
"""Approximate seconds on one core to render an image and compute its features."""


@dataclass(frozen=True)
class FeaturesStudy(SettingStudy[FeaturesPlan]):
    """The level of encoder features, a :class:`~bevreshape.experiments.level.Level`."""

    PREFIX = "features-"

    @property
    def name(self) -> str:
        """Return the name of the level."""
        return "features"

    def planned(self) -> dict[str, float]:
        """Return the names of all entries, with approximate seconds."""
        images = self.plan.train_images + self.plan.test_images
        return super().planned() | {_place(encoder).name: images * IMAGE_S for encoder in self.plan.encoders()}

    def work(self, records: Mapping[str, dict[str, Any]]) -> list[Work]:
        """Return all entries that can begin."""
        places = [Work(_place(encoder), partial(_read_place, encoder)) for encoder in self.plan.encoders()]
        return [*places, *super().work(records)]

    def rows(self) -> list[Row]:
        """Return the rows whose entries are done."""
        return rows(self.results())

    def results(self) -> FeatureResults:
        """Return the results of the entries that are done."""
        found, records = self.outcomes(), self.records.read()
        blind = {
            encoder: WithoutLooking(**result)
            for encoder in self.plan.encoders()
            if (result := self.records.get(records, _place(encoder))) is not None
        }
        return FeatureResults(self.plan, found.outcomes, found.tuned, blind)


def _place(encoder: Encoder) -> Entry:
    return Entry(f"features-place-{encoder.name}", {"encoder": asdict(encoder), "baseline": "the mean target"})


def _read_place(encoder: Encoder) -> dict[str, float]:
    row, col = place_readable(encoder)
    return {"row": round(row, 4), "col": round(col, 4), "constant": round(constant_error(encoder), 4)}


def constant_error(encoder: Encoder) -> float:
    """Return the error of the mean target of the training images, the best map that does not look at the image."""
    setting = Setting("mlp", encoder=encoder)
    shown = stream_of(setting, 0, TRAINING).next(encoder.train)
    asked = held_out_of(setting, (0,), encoder.test)
    mean = shown.target.mean(1, keepdim=True).expand_as(asked.target)
    return relative(tally(mean, asked)).item()
