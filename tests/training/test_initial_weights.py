"""Starting from another run's weights: which test rows these have been trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlcourse
from dlcourse import topics
from tests.training.short_runs import on_file, refused, resumed, trained, write_rows

pytestmark = pytest.mark.usefixtures("project")


def split_of(**data: Any) -> Any:
    found = topics.find("diabetes").data(source="bundled", **data)
    found.setup("fit")
    return found.splits


def test_test_rows_that_the_weights_have_learned_are_refused_with_their_number() -> None:
    first = trained()
    learned, tested = split_of()["train"], split_of(split_seed=1)["test"]
    count = np.isin(tested.numpy(), learned.numpy()).sum()
    assert 0 < count < len(tested)
    refused(
        lambda: trained({"split_seed": 1}, init_from=first.run_id),
        f"{count} of the {len(tested)} test rows", "--init_from", first.run_id,
    )  # fmt: skip
    assert trained(init_from=first.run_id).run_id, "on the same split nothing is wrong"


def test_rows_are_known_again_in_another_data_set() -> None:
    first = on_file(write_rows("first.csv", range(60)))
    overlapping, others = write_rows("overlapping.csv", range(40, 140)), write_rows("others.csv", range(60, 160))
    refused(lambda: on_file(overlapping, init_from=first.run_id), "test rows were training rows")
    assert on_file(others, init_from=first.run_id).run_id


def test_what_weights_came_from_counts_as_well() -> None:
    mine, others = write_rows("mine.csv", range(60)), write_rows("others.csv", range(60, 160))
    first = on_file(mine)
    second = on_file(others, init_from=first.run_id)
    third = resumed(second, trainer={"max_epochs": 5})
    refused(lambda: on_file(mine, data={"split_seed": 1}, init_from=third.run_id), "test rows", first.run_id)


def test_weights_whose_origin_is_gone_might_have_learned_any_rows() -> None:
    first = trained()
    dlcourse.open_store().client.set_tag(first.run_id, "dlcourse.init_from", "0" * 32)
    refused(lambda: trained(init_from=first.run_id), "0" * 32, "gone")


def test_rows_that_cannot_be_had_any_more_might_be_any() -> None:
    first = on_file(write_rows("gone.csv", range(60)))
    others = write_rows("others.csv", range(60, 160))
    Path("gone.csv").unlink()
    refused(lambda: on_file(others, init_from=first.run_id), "cannot be loaded", "gone.csv")
    write_rows("gone.csv", range(200, 260))
    refused(lambda: on_file(others, init_from=first.run_id), "cannot be loaded", "have changed")


def test_a_refit_has_learned_the_validation_rows_too() -> None:
    without_test = {"test_fraction": 0.0}
    first = trained(without_test, refit=True)
    count = len(split_of(**without_test)["val"])
    refused(lambda: trained(without_test, init_from=first.run_id), f"{count} of the {count} validation rows")
    assert trained(without_test, init_from=trained(without_test).run_id).run_id


def test_what_is_chosen_by_learned_rows_is_told(caplog: pytest.LogCaptureFixture) -> None:
    first = trained({"val_fraction": 0.1})
    trained({"val_fraction": 0.3}, init_from=first.run_id)
    assert "validation rows were training rows" in caplog.text


def test_where_nothing_is_tested_nothing_can_leak() -> None:
    first = trained()
    assert trained({"val_fraction": 0.0, "test_fraction": 0.0}, init_from=first.run_id).verdict.eval_split == "train"
