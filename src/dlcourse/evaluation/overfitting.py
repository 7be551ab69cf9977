"""Does it overfit now? What the validation rows say of an epoch that the training rows do not."""

from dataclasses import dataclass

from torch import Tensor

LEAST_RISE = 0.02
"""Share by which the validation loss must have risen above its lowest for that to be spoken of."""
LEAST_FALL = 0.1
"""Share by which the training loss must have fallen meanwhile."""
STANDARD_ERRORS = 0.5
"""And by how many standard errors, of the paired differences of the validation rows' losses."""


@dataclass(frozen=True)
class Overfitting:
    """What the curves say. ``epoch`` is the one from which validation loss rose while training loss fell, or None.

    ``rise`` is the validation loss of the last epoch over its lowest, less 1, and ``standard_errors`` how many of them,
    by the paired differences of the rows' losses, that rise is away from none. ``fall`` is 1 less the training loss of
    the last epoch over that of the epoch of the lowest validation loss. ``gap`` is validation loss less training loss
    at that epoch. All of them are measured in evaluation mode.
    """

    epoch: int | None
    rise: float
    fall: float
    standard_errors: float
    gap: float

    def __str__(self) -> str:
        gap = f"gap of validation to training loss {self.gap:.3g}"
        if self.epoch is None:
            return f"none seen; {gap}"
        rise = f"validation loss rose by {self.rise:.0%} ({self.standard_errors:.2g} standard errors)"
        return f"from epoch {self.epoch} on {rise} while training loss fell by {self.fall:.0%}; {gap}"


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
    """Overfitting: from the lowest validation loss to the last epoch it rose by `LEAST_RISE` and by `STANDARD_ERRORS`,
    while the training loss fell by `LEAST_FALL`.

    A description of the curves with measured error rates (docs/verdict.md), not a significance test.
    """
    difference = last.losses - lowest.losses
    rise = (last.loss - lowest.loss) / max(abs(lowest.loss), 1e-12)
    error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else float("inf")
    errors = float(difference.mean()) / error if error else 0.0
    fall = (lowest.train_loss - last.train_loss) / max(abs(lowest.train_loss), 1e-12)
    overfits = rise >= LEAST_RISE and fall >= LEAST_FALL and errors >= STANDARD_ERRORS
    return Overfitting(lowest.number if overfits else None, rise, fall, errors, lowest.loss - lowest.train_loss)
