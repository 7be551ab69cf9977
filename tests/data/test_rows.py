"""Rows of a data set."""

import dataclasses

import torch

from tests.samples import two_classes


def test_contents_of_rows_are_the_same_wherever_they_are() -> None:
    rows = two_classes(20)
    turned = dataclasses.replace(rows, inputs=rows.inputs.flip(0), targets=rows.targets.flip(0))
    numbers = torch.arange(20)
    assert rows.contents(numbers) == turned.contents(numbers.flip(0))
    assert len(set(rows.contents(numbers))) == 20
    relabelled = dataclasses.replace(rows, targets=1 - rows.targets)
    assert not set(rows.contents(numbers)) & set(relabelled.contents(numbers))
