"""Checkpoints of earlier versions."""

from pathlib import Path

import pytest
import torch

from dlcourse.training.checkpoints import read_checkpoint
from dlcourse.training.trainer import make_trainer
from tests.image_sets import Small, pictures

pytestmark = pytest.mark.usefixtures("project")


def with_old_names(path: Path) -> None:
    """Write a checkpoint again as an earlier version would have written it."""
    content = torch.load(path, weights_only=True)
    content["state_dict"]["input_deviation"] = content["state_dict"].pop("input_std")
    content["hyper_parameters"]["decoupled"] = content["hyper_parameters"].pop("lr_per_1024_samples")
    torch.save(content, path)


def test_old_names_are_read(tmp_path: Path) -> None:
    data = pictures()
    model = Small(data.shape, data.outputs, lookahead=True, compile=False)
    make_trainer(max_epochs=1, accelerator="cpu", folder=tmp_path).fit(model, datamodule=data)
    path = tmp_path / "last.ckpt"
    with_old_names(path)
    content = read_checkpoint(path)
    assert "lr_per_1024_samples" in content["hyper_parameters"]
    loaded = Small(**content["hyper_parameters"])
    loaded.load_state_dict(content["state_dict"])
    assert torch.equal(loaded.input_std, model.input_std)
    trainer = make_trainer(max_epochs=2, accelerator="cpu", folder=tmp_path)
    trainer.fit(loaded, datamodule=data, ckpt_path=path, weights_only=True)
    assert trainer.current_epoch == 2
