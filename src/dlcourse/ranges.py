"""Numbers with bounds, as the types of settings: read by jsonargparse, plain numbers for everything else."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Fraction = float
    NonNegativeFloat = float
    NonNegativeInt = int
    PositiveFloat = float
    PositiveInt = int
else:
    from jsonargparse.typing import (
        NonNegativeFloat,
        NonNegativeInt,
        PositiveFloat,
        PositiveInt,
        restricted_number_type,
    )

    Fraction = restricted_number_type("Fraction", float, [(">=", 0), ("<", 1)])

__all__ = ["Fraction", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt"]
