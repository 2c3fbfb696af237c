"""The level of encoder features: which methods are trained on the features of which networks."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le

from bevreshape.errors import InputError
from bevreshape.experiments.encoder import Content, Encoder, Padding
from bevreshape.experiments.plan import CURVE, Seeds, SettingPlan, in_order
from bevreshape.experiments.runs import Budget, Setting

Images = Annotated[int, Ge(1), Le(100_000)]


@dataclass(frozen=True)
class FeaturesPlan(SettingPlan):
    """The settings of the level.

    Attributes:
        budget: the same for every method.
        seeds: number per setting, of initialisation and order of images; all share the encoder.
        tune_images: number of training images, and also of measuring images, while recipes are chosen.
        train_images: number of training images.
        test_images: number of measuring images.
    """

    budget: Budget
    seeds: Seeds
    tune_images: Images
    train_images: Images
    test_images: Images

    def __post_init__(self) -> None:
        for key, least in (
            ("tune_images", max(self.budget.batch, self.budget.held_out)),
            ("train_images", self.budget.batch),
            ("test_images", self.budget.held_out),
        ):
            if getattr(self, key) < least:
                raise InputError(
                    f"plan.features.{key}={getattr(self, key)} must be at least {least}: a batch is of "
                    f"{self.budget.batch} images and errors are measured on {self.budget.held_out}"
                )

    def encoder(self, padding: Padding = "zeros", content: Content = "streets") -> Encoder:
        """Return an encoder with the plan's numbers of images."""
        return Encoder(padding, content, self.tune_images, self.train_images, self.test_images)

    def setting(self, method: str, **changed: Any) -> Setting:
        """Return the setting of a method on streets with zero padding."""
        return Setting(method, encoder=self.encoder(), **changed)

    def settings(self) -> list[Setting]:
        """Return methods, encodings and permutations with zero padding; attention without encoding on all encoders."""
        found = [self.setting(method) for method in ("mlp", "attention", "positional")]
        found += [self.setting(method, permuted=True) for method in ("mlp", "attention")]
        found += [self.setting("attention", encoding="learned", permuted=permuted) for permuted in (False, True)]
        return [*found, *(Setting("attention", encoding="none", encoder=encoder) for encoder in self.encoders())]

    def encoders(self) -> list[Encoder]:
        """Return encoders on streets, as in use, and on noise, where only the padding reveals a position."""
        return [
            *(self.encoder(padding) for padding in ("zeros", "reflect", "circular")),
            *(self.encoder(padding, "noise") for padding in ("zeros", "circular")),
        ]

    def seeds_of(self, setting: Setting) -> range:
        """Return the seeds, the same for all settings."""
        return range(self.seeds)

    def tuned_by(self, setting: Setting) -> Setting:
        """Return the setting, without a permutation that only relabels."""
        return in_order(setting)

    def at(self, setting: Setting) -> tuple[int, ...]:
        """Return the steps of a curve, for every setting."""
        return CURVE
