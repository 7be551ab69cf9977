"""Numbers with bounds, as the types of settings: read by jsonargparse, plain numbers for everything else."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Fraction = float
    NonNegativeFloat = float
    NonNegativeInt = int
    PositiveFloat = float
    PositiveInt = int
    Seed = int
    WORDS: dict[object, str]
else:
    from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type

    # jsonargparse's own positive and non-negative floats let infinity pass.
    FINITE = ("<", float("inf"))
    Fraction = restricted_number_type("Fraction", float, [(">=", 0), ("<", 1)])
    NonNegativeFloat = restricted_number_type("NonNegativeNumber", float, [(">=", 0), FINITE])
    PositiveFloat = restricted_number_type("PositiveNumber", float, [(">", 0), FINITE])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # numpy takes no larger one
    WORDS = {
        Fraction: "a number of at least 0 and below 1",
        NonNegativeFloat: "a number of at least 0",
        NonNegativeInt: "a whole number of at least 0",
        PositiveFloat: "a number above 0",
        PositiveInt: "a whole number above 0",
        Seed: "a whole number from 0 to 4294967295",
    }

__all__ = ["WORDS", "Fraction", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "Seed"]
