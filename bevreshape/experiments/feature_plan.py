"""The level of encoder features: which methods are trained on the features of which networks."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Ge, Le

from bevreshape.errors import InputError
from bevreshape.experiments.encoder import Content, Encoder, Padding
from bevreshape.experiments.plan import CURVE, Seeds, SettingPlan
from bevreshape.experiments.runs import Budget, Setting

Images = Annotated[int, Ge(1), Le(100_000)]


@dataclass(frozen=True)
class FeaturesPlan(SettingPlan):
    """Which settings there are.

    Attributes:
        budget: what everyone gets.
        seeds: of every setting: of its initialisation and of the order of its images. The encoder is the same for all.
        tune_images: to choose recipes with: so many to train on, and as many to measure with.
        train_images: to train on.
        test_images: to measure with.
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
        """With the plan's images."""
        return Encoder(padding, content, self.tune_images, self.train_images, self.test_images)

    def setting(self, method: str, **changed: Any) -> Setting:
        """A method on streets and zero padding."""
        return Setting(method, encoder=self.encoder(), **changed)

    def settings(self) -> list[Setting]:
        """Methods, encodings and permutations on zero padding; attention without encoding on all."""
        found = [self.setting(method) for method in ("mlp", "attention", "positional")]
        found += [self.setting(method, permuted=True) for method in ("mlp", "attention")]
        found += [self.setting("attention", encoding="learned", permuted=permuted) for permuted in (False, True)]
        return [*found, *(Setting("attention", encoding="none", encoder=encoder) for encoder in self.encoders())]

    def encoders(self) -> list[Encoder]:
        """On streets as a network is used; on noise nothing but the padding reveals a position."""
        return [
            *(self.encoder(padding) for padding in ("zeros", "reflect", "circular")),
            *(self.encoder(padding, "noise") for padding in ("zeros", "circular")),
        ]

    def seeds_of(self, setting: Setting) -> range:
        """As many for all."""
        return range(self.seeds)

    def tuned_by(self, setting: Setting) -> Setting:
        """Itself, but where a permutation changes names alone, as of an MLP and of learned encodings."""
        renamed = not setting.attends or setting.encoding == "learned"
        return replace(setting, permuted=False) if renamed else setting

    def at(self, setting: Setting) -> tuple[int, ...]:
        """A curve of all."""
        return CURVE
