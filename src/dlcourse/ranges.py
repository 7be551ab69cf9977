"""To be merged into settings."""

from dlcourse.settings import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed

__all__ = ["Fraction", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "Seed"]
