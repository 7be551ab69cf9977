"""A short training of a small model."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from dlcourse.data.datamodule import CourseData
from dlcourse.models.base import CourseModel
from dlcourse.training.trainer import make_trainer


def fitted(
    kind: type[CourseModel], data: CourseData, *callbacks: Callback, epochs: int = 2, **settings: Any
) -> tuple[CourseModel, L.Trainer]:
    torch.manual_seed(0)
    model = kind(data.shape, data.outputs, **settings)
    trainer = make_trainer(max_epochs=epochs, patience=None, accelerator="cpu", callbacks=callbacks)
    trainer.fit(model, datamodule=data)
    return model.eval(), trainer
