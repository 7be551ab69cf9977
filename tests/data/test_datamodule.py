"""Splits, scaling and batches, as laws over many data sets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLITS, Split, TensorRows
from dlcourse.data.samplers import ShuffledOrder, epoch_seed
from dlcourse.errors import SettingsError
from tests.samples import data_of, labelled, numbers

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")

class_labels = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(
    lambda sizes: [label for label, size in enumerate(sizes) for _ in range(size)]
)
fractions = st.one_of(st.just(0.0), st.floats(0.01, 0.49))
seeds = st.integers(0, 2**32 - 1)


def made(labels: list[int], val: float, test: float, seed: int) -> CourseData:
    """Labelled data that can be split so; fractions that are too small or leave nothing are another test's."""
    data = data_of(labelled(labels), val_fraction=val, test_fraction=test, split_seed=seed)
    try:
        _ = data.splits
    except SettingsError:
        assume(False)
    return data


@given(class_labels, fractions, fractions, seeds)
def test_splits_are_disjoint_and_complete(labels: list[int], val: float, test: float, seed: int) -> None:
    splits = made(labels, val, test, seed).splits
    together = torch.cat([splits[split] for split in SPLITS])
    assert sorted(together.tolist()) == list(range(len(labels)))
    assert all(rows.tolist() == sorted(rows.tolist()) for rows in splits.values())
    assert len(splits["train"])


@given(class_labels, fractions, fractions, seeds)
def test_splits_are_stratified_within_one_row_a_class(labels: list[int], val: float, test: float, seed: int) -> None:
    data = made(labels, val, test, seed)
    for split, fraction in (("val", val), ("test", test)):
        counts = np.bincount(data.rows.targets[data.splits[split]], minlength=max(labels) + 1)  # type: ignore[index]
        assert (abs(counts - fraction * np.bincount(labels)) < 1).all()


@given(class_labels, fractions, fractions, seeds, st.integers(1, 100))
def test_split_is_a_function_of_rows_and_split_seed_alone(
    labels: list[int], val: float, test: float, seed: int, batch_size: int
) -> None:
    data = made(labels, val, test, seed)
    other = data_of(data.rows, val_fraction=val, test_fraction=test, split_seed=seed, batch_size=batch_size)
    torch.manual_seed(batch_size)
    assert all(torch.equal(data.splits[split], other.splits[split]) for split in SPLITS)
    assert data.fingerprint == other.fingerprint


@given(seeds, seeds)
def test_another_split_seed_is_another_split(seed: int, other: int) -> None:
    assume(seed != other)
    rows = labelled([0] * 60)
    first, second = (data_of(rows, split_seed=each) for each in (seed, other))
    assert not torch.equal(first.splits["test"], second.splits["test"])
    assert first.fingerprint != second.fingerprint


def test_fingerprint_changes_with_rows_and_with_roles() -> None:
    rows = numbers()
    usual = data_of(rows).fingerprint
    assert data_of(replace(rows, inputs=rows.inputs.clone())).fingerprint == usual
    assert data_of(replace(rows, inputs=rows.inputs + 1e-6 * (rows.inputs > 9))).fingerprint != usual
    assert data_of(replace(rows, targets=rows.targets.flip(0))).fingerprint != usual
    assert data_of(replace(rows, inputs=rows.inputs.reshape(-1, 1, 3))).fingerprint != usual
    assert data_of(rows, val_fraction=0.2, test_fraction=0.0).fingerprint != usual
    swapped = data_of(rows, val_fraction=0.2, test_fraction=0.2)
    swapped.splits = {**swapped.splits, "val": swapped.splits["test"], "test": swapped.splits["val"]}
    assert swapped.fingerprint != usual, "the same parts in other roles"


@given(st.floats(-1e6, 1e6), st.integers(0, 5))
def test_scaling_sees_training_rows_alone(value: float, split_seed: int) -> None:
    rows = numbers()
    data = data_of(rows, split_seed=split_seed)
    changed = rows.inputs.clone()
    changed[torch.cat([data.splits["val"], data.splits["test"]])] = value
    other = data_of(replace(rows, inputs=changed), split_seed=split_seed)
    assert all(torch.equal(mine, its) for mine, its in zip(data.scaling, other.scaling, strict=True))
    train = rows.inputs[data.splits["train"]].numpy()
    assert data.scaling[0].numpy() == pytest.approx(train.mean(0), rel=1e-5)
    assert data.scaling[1].numpy() == pytest.approx(train.std(0), rel=1e-5)


def test_scaling_of_images_is_by_channel() -> None:
    images = torch.randint(0, 256, (20, 3, 4, 5), dtype=torch.uint8)
    rows = replace(labelled([0, 1] * 10), inputs=images)
    data = data_of(rows, val_fraction=0.0, test_fraction=0.0)
    assert data.scaling[0].tolist() == pytest.approx(images.double().mean((0, 2, 3)).tolist())
    assert data.scaling[1].shape == (3,)


def test_constant_feature_has_deviation_1() -> None:
    rows = numbers()
    rows.inputs[:, 1] = 7.3
    mean, std = data_of(rows).scaling
    assert float(mean[1]) == pytest.approx(7.3)
    assert float(std[1]) == 1


def test_without_standardizing_nothing_is_scaled() -> None:
    mean, std = data_of(numbers(), standardize=False).scaling
    assert mean.tolist() == [0, 0, 0]
    assert std.tolist() == [1, 1, 1]


def test_refit_trains_on_validation_rows_as_well() -> None:
    data = data_of(numbers())
    before, scaling, fingerprint = data.splits, data.scaling, data.fingerprint
    data.refit()
    assert data.splits["train"].tolist() == sorted([*before["train"].tolist(), *before["val"].tolist()])
    assert not len(data.splits["val"])
    assert torch.equal(data.splits["test"], before["test"])
    assert not torch.equal(data.scaling[0], scaling[0]), "scaling must be measured anew"
    assert data.fingerprint != fingerprint
    assert list(data.val_dataloader()) == []


@pytest.mark.parametrize("split", ["val", "test"])
def test_splits_of_the_data_set_itself_are_kept_and_the_other_rows_are_split(split: Split) -> None:
    fixed = torch.arange(30, 40)
    data = data_of(replace(labelled([0, 1] * 30), fixed_splits={split: fixed}), val_fraction=0.2, test_fraction=0.2)
    assert torch.equal(data.splits[split], fixed)
    assert {name: len(rows) for name, rows in data.splits.items() if name != split} == {
        "train": 40,
        "test" if split == "val" else "val": 10,
    }
    assert sorted(torch.cat([*data.splits.values()]).tolist()) == list(range(60))


def test_folds_of_a_data_set_with_its_own_test_rows_are_refused() -> None:
    data = data_of(replace(labelled([0, 1] * 30), fixed_splits={"test": torch.arange(10)}))
    with pytest.raises(SettingsError, match="--folds would train on the data set's own test rows"):
        data.fold(0, 5)


@given(st.floats(0.02, 0.99), st.floats(0, 1))
def test_fractions_that_leave_nothing_to_train_on_name_their_flags(val: float, share: float) -> None:
    test = 1 - val + 1e-6 + share * (val - 0.011)  # from just enough to leave nothing up to 0.99
    with pytest.raises(SettingsError, match=r"--data\.val_fraction .* --data\.test_fraction .* below 1"):
        data_of(numbers(), val_fraction=val, test_fraction=test)


@pytest.mark.parametrize("flag", ["val_fraction", "test_fraction"])
def test_a_fraction_that_gives_no_row_names_its_flag(flag: str) -> None:
    data = data_of(numbers(), **{flag: 0.001})
    with pytest.raises(SettingsError, match=rf"--data\.{flag} 0\.001 of 50 rows is none: raise it, or set it to 0"):
        _ = data.splits


def test_fractions_that_round_up_to_every_row_name_their_flags() -> None:
    data = data_of(numbers(2), val_fraction=0.45, test_fraction=0.45)
    with pytest.raises(SettingsError, match=r"--data\.val_fraction 0\.45 and --data\.test_fraction 0\.45 of 2 rows"):
        _ = data.splits


@given(st.data())
def test_rows_come_in_batches_as_they_do_one_by_one(draw: st.DataObject) -> None:
    rows = numbers(20)
    part = TensorRows(rows.inputs, rows.targets, torch.tensor(draw.draw(st.permutations(range(20))))[:12])
    places = draw.draw(st.lists(st.integers(0, 11), min_size=1))
    inputs, targets = part.__getitems__(places)
    singles = [part[place] for place in places]
    assert torch.equal(inputs, torch.stack([each for each, _ in singles]))
    assert torch.equal(targets, torch.stack([each for _, each in singles]))


@given(seeds, st.integers(0, 1000))
def test_order_is_a_function_of_seed_and_epoch(seed: int, epoch: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = ShuffledOrder(40, seed)
        sampler.set_epoch(epoch)
        torch.manual_seed(epoch)
        return list(sampler)

    assert order(seed, epoch) == order(seed, epoch)
    assert order(seed, epoch) != order(seed, epoch + 1)
    assert order(seed, epoch) != order(seed + 1, epoch)
    assert epoch_seed(seed, epoch + 1) != epoch_seed(seed + 1, epoch)


@settings(max_examples=20)
@given(st.integers(1, 70), st.integers(0, 3))
def test_every_training_row_comes_exactly_once_an_epoch(batch_size: int, seed: int) -> None:
    data = data_of(labelled([0] * 60), batch_size=batch_size)
    torch.manual_seed(seed)
    loader = data.train_dataloader()
    seen = [int(row) for inputs, _ in loader for row in inputs[:, 0]]
    assert sorted(seen) == data.splits["train"].tolist()


def test_measuring_takes_each_row_once_in_order() -> None:
    data = data_of(labelled([0] * 3000), batch_size=7)
    for split in SPLITS:
        seen = torch.cat([inputs[:, 0] for inputs, _ in data.eval_dataloader(split)])
        assert seen.tolist() == data.splits[split].tolist()


def test_shape_and_outputs_are_read_off_the_rows() -> None:
    assert (data_of(numbers(features=4)).shape, data_of(numbers()).outputs) == ([4], 1)
    assert data_of(labelled([0, 1] * 9)).outputs == 1, "two classes need one logit"
    assert data_of(labelled([0, 1, 2] * 9)).outputs == 3


def test_judged_by_test_rows_and_without_them_by_validation_and_training_rows() -> None:
    assert data_of(numbers()).eval_split == "test"
    assert data_of(numbers(), test_fraction=0.0).eval_split == "val"
    assert data_of(numbers(), test_fraction=0.0, val_fraction=0.0).eval_split == "train"
