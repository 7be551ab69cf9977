"""Make the exported models of this version that later versions must still read: python -m tests.export.make_fixtures.

In a folder for each version: what it wrote must load in every later one, so that older folders stay as they are.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dlcourse
from dlcourse.export.exporting import export
from dlcourse.export.formats import SUFFIXES

FIXTURES = Path(__file__).parent / "fixtures"
TRAININGS: dict[str, dict[str, Any]] = {
    "diabetes": {"trainer": {"max_epochs": 5}},
    "fashion-mnist": {
        "data": {"source": "sample"},
        "model": {"widths": [4, 4, 4]},
        "trainer": {"max_epochs": 1, "limit_batches": 5},
    },
}


def make(folder: Path) -> None:
    """Train the models, and write them with some rows and their probabilities into a folder."""
    folder.mkdir(parents=True)
    for topic, settings in TRAININGS.items():
        result = dlcourse.train(topic, **settings)
        assert isinstance(result, dlcourse.Result)
        for suffix, form in SUFFIXES.items():
            if form != "pt2":  # torch does not promise to read these
                export(topic, run=result.run_id, format=form, output=folder / f"{topic}{suffix}")
        rows = result.data.example_inputs()[:5]
        with torch.no_grad():
            outputs = result.model(rows)
        probabilities = outputs.sigmoid() if topic == "diabetes" else outputs.softmax(1)
        np.savez_compressed(folder / f"{topic}.npz", rows=rows, probabilities=probabilities)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as project:
        os.chdir(project)
        made = Path(project) / "made"
        make(made)
        shutil.copytree(made, FIXTURES / dlcourse.__version__, dirs_exist_ok=True)
