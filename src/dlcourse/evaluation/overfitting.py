"""Overfitting, by comparing the epoch with the lowest validation loss with the last epoch."""

from dataclasses import dataclass

from torch import Tensor

LEAST_RISE = 0.02
"""The validation loss must have risen above its lowest value by this fraction,"""
LEAST_FALL = 0.1
"""the training loss must have fallen by this fraction in the same epochs,"""
STANDARD_ERRORS = 0.5
"""and the rise must be this many standard errors of the paired differences of the validation rows' losses."""

_GAP = "gap of validation to training loss "


@dataclass(frozen=True)
class Overfitting:
    """How the losses changed from the epoch with the lowest validation loss to the last one, in evaluation mode.

    Attributes:
        epoch: The epoch with the lowest validation loss if the model overfits from there on, else None.
        rise: Relative increase of the validation loss.
        fall: Relative decrease of the training loss.
        standard_errors: The increase in standard errors of the paired differences of the validation rows' losses.
        gap: Validation loss minus training loss, in the epoch with the lowest validation loss.
    """

    epoch: int | None
    rise: float
    fall: float
    standard_errors: float
    gap: float

    def __str__(self) -> str:
        gap = f"{_GAP}{self.gap:.3g}"
        if self.epoch is None:
            return f"none seen; {gap}"
        rise = f"validation loss rose by {self.rise:.0%} ({self.standard_errors:.2g} standard errors)"
        return f"from epoch {self.epoch} on {rise} while training loss fell by {self.fall:.0%}; {gap}"


def gap_of(text: str) -> float | None:
    """The gap in the text of an `Overfitting`, such as a run's tag; None if there is none in it."""
    _, has_gap, number = text.partition(_GAP)
    return float(number) if has_gap else None


@dataclass
class _Epoch:
    """One epoch: the loss of each validation row, and the mean training loss in evaluation mode."""

    number: int
    losses: Tensor
    train_loss: float

    @property
    def loss(self) -> float:
        return float(self.losses.mean())


def compare_epochs(lowest: _Epoch, last: _Epoch) -> Overfitting:
    """Overfitting: validation loss rose by `LEAST_RISE` and `STANDARD_ERRORS`, and training loss fell by `LEAST_FALL`.

    This describes the curves, with measured error rates (docs/verdict.md); it is not a significance test.
    """
    difference = last.losses - lowest.losses
    rise = (last.loss - lowest.loss) / max(abs(lowest.loss), 1e-12)
    error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else float("inf")
    errors = float(difference.mean()) / error if error else 0.0
    fall = (lowest.train_loss - last.train_loss) / max(abs(lowest.train_loss), 1e-12)
    overfits = rise >= LEAST_RISE and fall >= LEAST_FALL and errors >= STANDARD_ERRORS
    return Overfitting(lowest.number if overfits else None, rise, fall, errors, lowest.loss - lowest.train_loss)
