"""Whether an exported model gives what the trained one does, at several batch sizes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlcourse.errors import CourseError

Predict = Callable[[NDArray[np.generic]], NDArray[np.floating]]
"""From raw inputs, N x shape, to predictions, N x columns or N x classes."""

BATCH_SIZES = (1, 2, 7, 256)
TOLERANCE_OF_PROBABILITIES = 1e-4
RELATIVE_TOLERANCE = 1e-5
"""Of values, to the largest of them: 0.7 g of 70 kg. Float32 itself rounds at 6e-8; kernels sum in other orders."""


@dataclass(frozen=True)
class Verification:
    """What was compared with the trained model in float32, on real rows.

    Attributes:
        runtime: The program that computed the predictions of the exported model.
        rows: How many different rows there were; they are repeated for larger batches.
        batch_sizes: How many rows were given at once.
        largest_difference: Of all predictions, in their unit.
        tolerance: The largest difference that is allowed.
    """

    runtime: str
    rows: int
    batch_sizes: tuple[int, ...]
    largest_difference: float
    tolerance: float


def verify(module: nn.Module, predict: Predict, rows: Tensor, runtime: str, *, are_probabilities: bool) -> Verification:
    """Compare the predictions of an exported model with those of the trained module.

    Raises:
        CourseError: They differ by more than the tolerance, or are not of the same shape.
    """
    largest, tolerance = 0.0, TOLERANCE_OF_PROBABILITIES
    for size in BATCH_SIZES:
        inputs = rows[torch.arange(size) % len(rows)]
        with torch.no_grad():
            expected = module(inputs)
        predicted = torch.from_numpy(np.asarray(predict(inputs.numpy())))
        if predicted.shape != expected.shape:
            raise CourseError(f"it gives {list(predicted.shape)} for {size} rows, not {list(expected.shape)}")
        largest = max(largest, float((predicted - expected).abs().nan_to_num(torch.inf).max()))
        if not are_probabilities:
            tolerance = RELATIVE_TOLERANCE * float(expected.abs().max())
        if largest > tolerance:
            raise CourseError(
                f"with {size} rows its predictions differ from the model's by up to {largest:.3g}, more than "
                f"{tolerance:.3g}"
            )
    return Verification(runtime, len(rows), BATCH_SIZES, largest, tolerance)
