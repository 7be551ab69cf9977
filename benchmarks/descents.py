"""The small descents over many seeds: whether all of them end within the bounds that the course gives.

    python -m benchmarks.descents [--seeds 20]

Each line has the smallest and the largest value of all seeds.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dlcourse import topics
from dlcourse.models.trajectory import TrajectoryModel
from dlcourse.training.fit import new_model
from dlcourse.training.request import resolve
from dlcourse.training.trainer import make_trainer

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def ended(topic_name: str, experiment: str, seed: int, epochs: int) -> tuple[list[float], TrajectoryModel]:
    """The weights that an experiment's training ends with, by the shared Trainer and without a store."""
    topic = topics.find(topic_name)
    file = EXPERIMENTS / topic_name / f"{experiment}.yaml"
    settings = resolve(topic, file, None, None, {"max_epochs": epochs}, seed).settings
    data = topic.data(**settings.data)
    model = new_model(topic, data, settings)
    assert isinstance(model, TrajectoryModel)
    trainer = make_trainer(**settings.trainer)
    if trainer.progress_bar_callback:
        trainer.progress_bar_callback.disable()
    trainer.fit(model, datamodule=data)
    return model.path[-1], model


def line(seed: int, epochs: int, w_within: float, b_within: float) -> tuple[bool, Any]:
    (w, b), _ = ended("gradient-descent", "line", seed, epochs)
    return abs(w - 3) < w_within and abs(b - 0.8) < b_within, (w, b)


def linear_layer(seed: int) -> tuple[bool, Any]:
    (w, b), _ = ended("gradient-descent", "linear-layer", seed, 1000)
    loss = sum((w * x + b - 2 * x) ** 2 for x in (1, 2, 3))
    return abs(w - 2) < 1e-3 and abs(b) < 3e-3 and abs(4 * w + b - 8) < 2e-3 and loss < 5e-6, (w, b, loss)


def study_hours(seed: int) -> tuple[bool, Any]:
    (w, b), _ = ended("study-hours", "default", seed, 1000)
    probability = float(torch.sigmoid(torch.tensor(4 * w + b)))
    return 0.80 < probability < 0.92 and 2.3 < -b / w < 2.6, (probability, -b / w)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.descents", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args(arguments).seeds
    logging.disable(logging.INFO)
    cases = {
        "line, 8000 steps: w within 0.03 of 3, b within 0.02 of 0.8": lambda seed: line(seed, 8000, 0.03, 0.02),
        "line, 3000 steps: w within 0.25 of 3, b within 0.13 of 0.8": lambda seed: line(seed, 3000, 0.25, 0.13),
        "linear-layer, 1000 steps: w, b, y(4) and loss": linear_layer,
        "study-hours, 1000 steps: P(pass | 4 h) in 0.80-0.92, crossing in 2.3-2.6 h": study_hours,
    }
    failed = False
    for name, case in cases.items():
        ends = [case(seed) for seed in range(seeds)]
        within = sum(ok for ok, _ in ends)
        failed |= within < seeds
        columns = list(zip(*(values for _, values in ends), strict=True))
        ranges = ", ".join(f"{min(column):.5g} to {max(column):.5g}" for column in columns)
        print(f"{name}: {within} of {seeds} ({ranges})", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
