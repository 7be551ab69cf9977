"""The outputs that a run keeps."""

from pathlib import Path
from typing import cast

import numpy as np
import torch

import dlcourse
from dlcourse import topics
from dlcourse.data.datamodule import CourseData
from dlcourse.evaluation.evaluate import evaluate_outputs
from dlcourse.evaluation.predictions import PREDICTIONS, read_metrics, read_values, save_predictions
from dlcourse.evaluation.tasks import Classification, Regression
from dlcourse.reporting.result import Result
from dlcourse.tracking.opening import open_store


def test_a_run_keeps_outputs_and_row_numbers_of_both_splits(project: Path) -> None:
    result = cast(Result, dlcourse.train("diabetes", trainer={"max_epochs": 2}))
    store = open_store()
    run = store.client.get_run(result.run_id)
    file = store.file_of(run, PREDICTIONS)
    assert file
    assert store.file_of(run, "none.npz") is None
    data = result.data
    assert isinstance(data, CourseData)
    assert result.assessment
    for split, evaluation in result.assessment.evaluations.items():
        rows = read_values(file, f"{split}_rows")
        assert torch.equal(rows.long(), data.splits[split])
        assert torch.equal(read_values(file, f"{split}_targets"), data.rows.targets[rows])
        assert torch.allclose(read_values(file, f"{split}_outputs").float(), evaluation.outputs, rtol=1e-3)
        assert float(read_values(file, f"{split}_accuracy").double().mean()) == evaluation.scores["accuracy"].mean()
    assert set(result.assessment.evaluations) == {"val", "test"}
    assert read_metrics(file, "test") == ("accuracy", {"accuracy": True, "loss": False})
    for baseline in result.baseline_runs.values():
        assert store.file_of(store.client.get_run(baseline), PREDICTIONS)


def test_half_precision_where_it_changes_no_row(tmp_path: Path) -> None:
    data = topics.find("diabetes").data()
    data.setup("fit")
    data.splits = {"test": torch.arange(3)}
    classes = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.5, 0.1]])
    close = torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0001, 1.0]])  # a tie in half precision
    for task, outputs, targets, kept in [
        (Classification(), classes, torch.tensor([1, 0, 1]), np.float16),
        (Classification(), close.flip(1), torch.tensor([1, 0, 1]), np.float32),
        (Regression(), classes[:, :1] / 3, classes[:, 1:], np.float32),
    ]:
        save_predictions(tmp_path / "file.npz", task, data, {"test": evaluate_outputs(task, "test", outputs, targets)})
        assert np.load(tmp_path / "file.npz")["test_outputs"].dtype == kept
