"""Objectives: what training minimises."""

from bevreshape.objectives.losses import BCE, Dice, Focal, InstanceLoss, WeightedSum

__all__ = ["BCE", "Dice", "Focal", "InstanceLoss", "WeightedSum"]
