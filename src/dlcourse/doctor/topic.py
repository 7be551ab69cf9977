"""What is wrong with a topic's data or model, before a training finds out: rows, split, shapes, gradients, units."""

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLITS
from dlcourse.doctor.findings import Finding
from dlcourse.errors import CourseError, explained, one_line
from dlcourse.evaluation.evaluate import evaluate
from dlcourse.models.base import CourseModel
from dlcourse.settings import Seed, Settings
from dlcourse.topics import Topic
from dlcourse.tracking.interrupts import interruptible
from dlcourse.training.fit import new_model
from dlcourse.training.request import resolve
from dlcourse.training.start import check_in_memory
from dlcourse.training.trainer import make_trainer

# In float64 the central difference has an error of about STEP**2 from the curvature, and 1e-16 / STEP from rounding.
STEP = 1e-6
# Gradients are checked on a batch of NUM_ROWS rows, at NUM_ENTRIES entries of each parameter tensor: two forward passes
# for each entry.
NUM_ROWS = 4
NUM_ENTRIES = 4
# The largest relative error of a gradient that counts as rounding.
MAX_ERROR = 1e-4
# As a share of the loss (of 1, if that is less). The error of a smaller gradient is relative to this, since rounding
# does not shrink with the gradient.
MIN_GRADIENT = 1e-3
RELU_LIKE = (nn.ReLU, nn.ReLU6, nn.Threshold)


def check_topic(
    topic: str | Topic,
    *,
    config: str | Path | Sequence[str] | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: Seed | None = None,
) -> list[Finding]:
    """Check a topic's data and model, and train it for one epoch on one device; nothing is written.

    The arguments are those of `train`.

    Raises:
        CourseError: A setting is wrong, or something outside the code is in the way: a file, the hardware.
    """
    request = resolve(topic, config, data, model, trainer, seed)
    check_in_memory(request.topic, "doctor")
    return _check(request.topic, request.settings)


def _check(topic: Topic, settings: Settings) -> list[Finding]:
    data = topic.data(**settings.data)
    assert isinstance(data, CourseData)

    def model() -> CourseModel:
        model = new_model(topic, data, settings)
        assert isinstance(model, CourseModel)
        model.prepare(data)
        return model

    checks: dict[str, Callable[[], Finding]] = {
        "data": lambda: check_rows(data),
        "split": lambda: check_split(data),
        "shapes": lambda: check_shapes(model(), data),
        "gradients": lambda: check_gradients(model(), data),
        "units": lambda: check_units(model(), data, settings.trainer),
    }
    findings = []
    with interruptible():
        for name, check in checks.items():
            try:
                findings.append(check())
            except CourseError:
                raise
            except Exception as error:  # whatever a topic's code raises
                text = explained(error) or f"{type(error).__name__}: {one_line(error)[:300]}"
                findings.append(Finding(name, False, text))
            if not findings[-1].ok and name in ("data", "shapes"):
                break  # what does not fit together cannot be trained either
    return findings


def check_rows(data: CourseData) -> Finding:
    """Check that each row of inputs has a target, and that both are finite; prepares and splits the data."""
    data.prepare_data()
    data.setup("fit")
    rows = data.rows
    if len(rows.inputs) != len(rows.targets):
        return Finding("data", False, f"{len(rows.inputs)} rows of inputs and {len(rows.targets)} of targets")
    for name, values in (("inputs", rows.inputs), ("targets", rows.targets)):
        if not_finite := int((~values.isfinite()).sum()):
            return Finding("data", False, f"{not_finite} of the {name} are no finite numbers")
    return Finding("data", True, f"{len(rows.inputs)} rows of {data.shape}, from {rows.source}")


def check_split(data: CourseData) -> Finding:
    """Check that the splits are disjoint and complete, and have each class in the same proportion.

    Of a class, a split may have 1.5 rows more or less than its share: one since rows are whole, half of one since the
    split's size is rounded. More is worth a thought; more than four standard deviations of a random split is wrong.
    """
    splits, total = data.splits, len(data.rows.targets)
    problems = [
        f"{shared} rows are both {one} and {other} rows"
        for one, other in itertools.combinations(SPLITS, 2)
        if (shared := int(torch.isin(splits[one], splits[other]).sum()))
    ]
    if left_out := total - len({row for split in SPLITS for row in splits[split].tolist()}):
        problems.append(f"{left_out} of {total} rows are in no split")
    text = f"{', '.join(f'{len(splits[split])} {split}' for split in SPLITS)} rows"
    if problems:
        return Finding("split", False, f"{text}: {'; '.join(problems)}", "look at the data's splits")
    text += ", disjoint and complete"
    if not data.rows.classes:
        return Finding("split", True, text)
    labels, classes = data.rows.targets, len(data.rows.classes)
    counts = torch.stack([torch.bincount(labels[splits[split]], minlength=classes) for split in SPLITS]).double()
    share = counts.sum(1, keepdim=True) / total
    expected = counts.sum(0) * share
    deviation = (counts - expected).abs()  # 3 splits x classes, as are the next
    limit = 4 * (expected * (1 - share)).sqrt()  # a binomial's standard deviation
    ok = bool((deviation <= limit.clamp(min=1.5)).all())
    text += f", each class within {float(deviation.max()):.2g} rows of its share"
    return Finding("split", ok, text, "split each class by itself" if float(deviation.max()) > 1.5 else "")


def check_shapes(model: CourseModel, data: CourseData) -> Finding:
    """Check on a training batch that the model gives N x outputs, and N finite losses."""
    rows = data.subset("train")
    inputs, targets = rows.__getitems__(list(range(min(data.batch_size, len(rows)))))
    with torch.no_grad():
        outputs = model.eval()(inputs)
        text = f"a batch of {list(inputs.shape)} gives outputs of {list(outputs.shape)}"
        if list(outputs.shape) != [len(inputs), data.outputs]:
            remedy = "look at the network's last layer"
            return Finding("shapes", False, f"{text} instead of {[len(inputs), data.outputs]}", remedy)
        losses = model.per_sample_loss(outputs, targets)
    if list(losses.shape) != [len(inputs)]:
        return Finding("shapes", False, f"{text} and losses of {list(losses.shape)} instead of {[len(inputs)]}")
    return Finding("shapes", bool(losses.isfinite().all()), f"{text} and a loss of {float(losses.mean()):.4g}")


def numerical_gradient(
    function: Callable[[Tensor], Tensor | float], point: Tensor | list[float], step: float = STEP
) -> Tensor:
    """A function's gradient by the central difference, (f(x + step) - f(x - step)) / (2 step), for each entry of x.

    Args:
        function: Takes a float64 tensor of the shape of ``point`` and gives one number.
        point: Where to take the gradient.
        step: How far to go to either side. The error falls with the square of the step, until rounding outweighs it:
            about 1e-16 of the function's value, divided by the step.

    Returns:
        float64, of the shape of ``point``.
    """
    point = torch.as_tensor(point, dtype=torch.float64).detach()
    slopes = []
    with torch.no_grad():
        for index in range(point.numel()):
            above, below = point.flatten().clone(), point.flatten().clone()
            above[index] += step
            below[index] -= step
            rise = float(function(above.view(point.shape))) - float(function(below.view(point.shape)))
            slopes.append(rise / float(above[index] - below[index]))  # not 2 * step, of which rounding took a part
    return torch.tensor(slopes, dtype=torch.float64).view(point.shape)


def check_gradients(model: CourseModel, data: CourseData) -> Finding:
    """Compare autograd with the central difference in float64, at random entries of each parameter tensor.

    In evaluation mode, that is without dropout, and with a little noise on the initial weights: behind a layer that
    starts with zeros every gradient is zero, and a wrong one would not show.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(data.splits["train"]), generator=generator)[:NUM_ROWS]
    inputs, targets = data.subset("train").__getitems__(rows.tolist())
    targets = targets.double() if targets.is_floating_point() else targets
    model = copy.deepcopy(model).double().eval()
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    for parameter in parameters.values():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def loss() -> Tensor:
        torch.manual_seed(0)  # a model that draws random numbers gets the same ones each time
        return model.per_sample_loss(model(inputs), targets).mean()

    with torch.random.fork_rng(devices=[]):
        gradients = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
        worst_entries = {
            name: _worst_entry(loss, parameter, gradient, generator)
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }
    wrong = [name for name, worst in worst_entries.items() if not worst.error <= MAX_ERROR]  # NaN is wrong, too
    if not wrong:
        largest = max(worst.error for worst in worst_entries.values())
        text = f"up to {NUM_ENTRIES} entries of each of {len(worst_entries)} tensors agree with the central difference"
        return Finding("gradients", True, f"{text}, to {largest:.1e} of their size")
    worst = worst_entries[wrong[-1]]
    text = f"wrong in {len(wrong)} of {len(worst_entries)} tensors, the last of them {wrong[-1]}: autograd says "
    text += f"{worst.by_autograd:.4g}, the central difference {worst.by_difference:.4g}"
    return Finding("gradients", False, text, f"look at the backward of what follows {wrong[-1]}")


@dataclass(frozen=True)
class _Entry:
    """One entry of a gradient; ``error`` is relative to the larger of the two values."""

    by_autograd: float
    by_difference: float
    error: float


def _worst_entry(
    loss: Callable[[], Tensor], parameter: Tensor, gradient: Tensor | None, generator: torch.Generator
) -> _Entry:
    """Compare random entries of a parameter's gradient, and return the one with the largest error.

    A kink within the step, such as ReLU's, is no error: the difference is then taken a little to the left and to the
    right as well, and autograd is right if it agrees on one side.
    """
    entries = parameter.detach().reshape(parameter.shape or (1,))  # a view: writing to it changes the parameter
    index = torch.unravel_index(torch.randperm(entries.numel(), generator=generator)[:NUM_ENTRIES], entries.shape)
    values = entries[index]  # NUM_ENTRIES or fewer, as are all tensors below
    by_autograd = torch.zeros_like(values) if gradient is None else gradient.reshape(entries.shape)[index]

    def loss_at(values: Tensor) -> Tensor:
        entries[index] = values
        return loss()

    smallest = MIN_GRADIENT * max(float(loss().detach().abs()), 1.0)
    by_difference, errors = torch.zeros_like(values), torch.full_like(values, math.inf)
    for shift in (0.0, -2 * STEP, 2 * STEP):
        slopes = numerical_gradient(loss_at, values + shift)
        error = (by_autograd - slopes).abs() / torch.maximum(by_autograd.abs(), slopes.abs()).clamp(min=smallest)
        by_difference = torch.where(error < errors, slopes, by_difference)
        errors = torch.minimum(error, errors)
        if errors.max() <= MAX_ERROR:
            break
    entries[index] = values
    worst = int(errors.argmax())
    return _Entry(float(by_autograd[worst]), float(by_difference[worst]), float(errors[worst]))


def check_units(model: CourseModel, data: CourseData, trainer: Mapping[str, Any]) -> Finding:
    """Train one epoch, and count the units of ReLU layers that are 0 for every training row: their gradient is 0, too.

    A unit is a feature, or a channel of an image. ``trainer`` are settings of `make_trainer`.
    """
    one_epoch = {"max_epochs": 1, "patience": None, "devices": 1, "num_nodes": 1, "strategy": "auto"}
    lightning_trainer = make_trainer(**{**trainer, **one_epoch})
    if lightning_trainer.progress_bar_callback:
        lightning_trainer.progress_bar_callback.disable()
    lightning_trainer.fit(model, datamodule=data)
    alive: dict[str, Tensor] = {}  # by layer and width: units

    def hook_of(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            # N x units, N x channels x height x width, or N x length x units
            is_alive = (output != 0).movedim(-1 if output.ndim == 3 else 1, 0).flatten(1).any(1)
            key = f"{name} ({len(is_alive)})"  # a layer that is used several times may have several widths
            alive[key] = alive[key] | is_alive if key in alive else is_alive

        return hook

    with ExitStack() as hooks:
        for name, layer in model.named_modules():
            if isinstance(layer, RELU_LIKE):
                hooks.enter_context(layer.register_forward_hook(hook_of(name)))
        loss = evaluate(lightning_trainer, model, model, data, "train").metrics["loss"]
    after = f"after one epoch, with a loss of {loss:.4g}"
    if not math.isfinite(loss):
        return Finding("units", False, f"no number is left {after}", "lower --model.lr")
    if not alive:
        return Finding("units", True, f"no ReLU layer, so none can die; {after}")
    dead = {key: int((~is_alive).sum()) for key, is_alive in alive.items()}
    text = f"{sum(dead.values())} of {sum(map(len, alive.values()))} ReLU units are 0 for every training row {after}"
    if not any(dead.values()):
        return Finding("units", True, text)
    is_layer_dead = any(not is_alive.any() for is_alive in alive.values())
    text += ": " + ", ".join(f"{count} of {key}" for key, count in dead.items() if count)
    return Finding("units", not is_layer_dead, text, "lower --model.lr, or take another activation or seed")
