"""What is wrong with a topic, before a training finds out: its data, its shapes, its gradients, its dead units."""

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
from dlcourse.training.trainer import make_trainer

STEP = 1e-6
ROWS = 4
ENTRIES = 4
LARGEST_ERROR = 1e-4
SMALLEST_GRADIENT = 1e-3
"""Share of the loss (of 1, if that is less): smaller gradients are held against it, since differences are rounded."""
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
    return _check(request.topic, request.settings)


def _check(topic: Topic, settings: Settings) -> list[Finding]:
    data = topic.data(**settings.data)

    def model() -> CourseModel:
        made = new_model(topic, data, settings)
        made.prepare(data)
        return made

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
                said = explained(error) or f"{type(error).__name__}: {one_line(error)[:300]}"
                findings.append(Finding(name, False, said))
            if not findings[-1].ok and name in ("data", "shapes"):
                break  # what does not fit together cannot be trained either
    return findings


def check_rows(data: CourseData) -> Finding:
    """There is a target for each row of inputs, and both are finite numbers."""
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
    """The splits are disjoint and complete, and share out each class alike.

    A class may miss its share of a split by a row, and by half a row more that rounds the split's size. More than that
    is worth a thought; more than chance explains, which is four standard deviations, is wrong.
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
    missed, by_chance = (counts - expected).abs(), 4 * (expected * (1 - share)).sqrt()
    ok = bool((missed <= by_chance.clamp(min=1.5)).all())
    text += f", each class within {float(missed.max()):.2g} rows of its share"
    return Finding("split", ok, text, "split each class by itself" if float(missed.max()) > 1.5 else "")


def check_shapes(model: CourseModel, data: CourseData) -> Finding:
    """A batch goes through: N x outputs come out of it, and N finite losses."""
    part = data.subset("train")
    inputs, targets = part.__getitems__(list(range(min(data.batch_size, len(part)))))
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
    function: Callable[[Tensor], Tensor | float], at: Tensor | list[float], step: float = STEP
) -> Tensor:
    """A function's gradient by the central difference, (f(x + step) - f(x - step)) / (2 step), entry by entry.

    Args:
        function: Takes float64 numbers of the shape of ``at`` and gives one number.
        at: Where the gradient is wanted.
        step: How far to go to either side. The error falls with the square of the step, until rounding outweighs it:
            about 1e-16 of the function's value, divided by the step.

    Returns:
        float64, of the shape of ``at``.
    """
    at = torch.as_tensor(at, dtype=torch.float64).detach()
    slopes = []
    with torch.no_grad():
        for place in range(at.numel()):
            above, below = at.flatten().clone(), at.flatten().clone()
            above[place] += step
            below[place] -= step
            rise = float(function(above.view(at.shape))) - float(function(below.view(at.shape)))
            slopes.append(rise / float(above[place] - below[place]))
    return torch.tensor(slopes, dtype=torch.float64).view(at.shape)


def check_gradients(model: CourseModel, data: CourseData) -> Finding:
    """Autograd against the central difference in float64, at a few random entries of each parameter tensor.

    In evaluation mode, that is without dropout, and a little beside the initial weights: where a layer starts with
    zeros, every gradient before it is zero, and a wrong one would not show.
    """
    draw = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(data.splits["train"]), generator=draw)[:ROWS]
    inputs, targets = data.subset("train").__getitems__(rows.tolist())
    targets = targets.double() if targets.is_floating_point() else targets
    model = copy.deepcopy(model).double().eval()
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    for parameter in parameters.values():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)

    def loss() -> Tensor:
        torch.manual_seed(0)  # what a model draws, it must draw alike each time
        return model.per_sample_loss(model(inputs), targets).mean()

    with torch.random.fork_rng(devices=[]):
        gradients = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
        compared = {
            name: _compare(loss, parameter, gradient, draw)
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }
    wrong = [name for name, worst in compared.items() if not worst.error <= LARGEST_ERROR]
    if not wrong:
        largest = max(worst.error for worst in compared.values())
        text = f"up to {ENTRIES} entries of each of {len(compared)} tensors agree with the central difference"
        return Finding("gradients", True, f"{text}, to {largest:.1e} of their size")
    worst = compared[wrong[-1]]
    text = f"wrong in {len(wrong)} of {len(compared)} tensors, the last of them {wrong[-1]}: autograd says "
    text += f"{worst.by_autograd:.4g}, the central difference {worst.by_difference:.4g}"
    return Finding("gradients", False, text, f"look at the backward of what follows {wrong[-1]}")


@dataclass(frozen=True)
class _Comparison:
    """One entry of a gradient; ``error`` is relative to the larger of the two."""

    by_autograd: float
    by_difference: float
    error: float


def _compare(
    loss: Callable[[], Tensor], parameter: Tensor, gradient: Tensor | None, draw: torch.Generator
) -> _Comparison:
    """Compare a few random entries of a parameter tensor; gives the worst.

    A kink within the step, as ReLU has one, is no error: the difference is then taken a little to the left and a little
    to the right as well, and autograd is right if it agrees with one of the sides.
    """
    entries = parameter.detach().reshape(parameter.shape or (1,))  # a view: the model computes with what is written
    index = torch.unravel_index(torch.randperm(entries.numel(), generator=draw)[:ENTRIES], entries.shape)
    at = entries[index]
    by_autograd = torch.zeros_like(at) if gradient is None else gradient.reshape(entries.shape)[index]

    def loss_at(values: Tensor) -> Tensor:
        entries[index] = values
        return loss()

    smallest = SMALLEST_GRADIENT * max(float(loss().detach().abs()), 1.0)
    by_difference, errors = torch.zeros_like(at), torch.full_like(at, math.inf)
    for aside in (0.0, -2 * STEP, 2 * STEP):
        slopes = numerical_gradient(loss_at, at + aside)
        error = (by_autograd - slopes).abs() / torch.maximum(by_autograd.abs(), slopes.abs()).clamp(min=smallest)
        by_difference = torch.where(error < errors, slopes, by_difference)
        errors = torch.minimum(error, errors)
        if errors.max() <= LARGEST_ERROR:
            break
    entries[index] = at
    worst = int(errors.argmax())
    return _Comparison(float(by_autograd[worst]), float(by_difference[worst]), float(errors[worst]))


def check_units(model: CourseModel, data: CourseData, trainer: Mapping[str, Any]) -> Finding:
    """Train one epoch, and count the units of ReLU layers that are 0 for every training row: they learn no more.

    A unit is a feature, or a channel of an image. ``trainer`` are settings of `make_trainer`.
    """
    once = {"max_epochs": 1, "patience": None, "devices": 1, "num_nodes": 1, "strategy": "auto"}
    trained = make_trainer(**{**trainer, **once})
    if trained.progress_bar_callback:
        trained.progress_bar_callback.disable()
    trained.fit(model, datamodule=data)
    alive: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def look(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            # N x units, N x channels x height x width, or N x length x units
            fires = (output != 0).movedim(-1 if output.ndim == 3 else 1, 0).flatten(1).any(1)
            part = f"{name} ({len(fires)})"  # a layer that is used at several places may have several widths
            alive[part] = alive[part] | fires if part in alive else fires

        return look

    with ExitStack() as hooks:
        for name, layer in model.named_modules():
            if isinstance(layer, RELU_LIKE):
                hooks.enter_context(layer.register_forward_hook(watch(name)))
        loss = evaluate(trained, model, data, "train").metrics["loss"]
    after = f"after one epoch, with a loss of {loss:.4g}"
    if not math.isfinite(loss):
        return Finding("units", False, f"no number is left {after}", "lower --model.lr")
    if not alive:
        return Finding("units", True, f"no ReLU layer, so none can die; {after}")
    dead = {name: int((~fires).sum()) for name, fires in alive.items()}
    text = f"{sum(dead.values())} of {sum(map(len, alive.values()))} ReLU units are 0 for every training row {after}"
    if not any(dead.values()):
        return Finding("units", True, text)
    whole = any(not fires.any() for fires in alive.values())
    text += ": " + ", ".join(f"{count} of {name}" for name, count in dead.items() if count)
    return Finding("units", not whole, text, "lower --model.lr, or take another activation or seed")
