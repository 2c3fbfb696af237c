"""Define objectives, which training minimises."""

from bevreshape.objectives.base import Objective
from bevreshape.objectives.centers import CentersLoss
from bevreshape.objectives.losses import BCE, Dice, Focal, WeightedSum

__all__ = ["BCE", "CentersLoss", "Dice", "Focal", "Objective", "WeightedSum"]
