"""A deep-learning course as experiments: tracked, compared, and honest about what was learned.

Importing this package costs nothing: torch, Lightning and MLflow are loaded with the first name that needs them.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dlcourse.data.datamodule import CourseData
    from dlcourse.data.rows import Rows
    from dlcourse.errors import CourseError, SettingsError
    from dlcourse.evaluation import baselines
    from dlcourse.evaluation.published import check
    from dlcourse.evaluation.remeasure import test
    from dlcourse.evaluation.sweep import sweep
    from dlcourse.evaluation.tasks import BinaryClassification, Classification, Regression, Task
    from dlcourse.experiment import compare, evaluate_module, train, train_module
    from dlcourse.export.predict import predict
    from dlcourse.export.registry import promote
    from dlcourse.models.base import CourseModel
    from dlcourse.models.tasks import BinaryClassifier, Classifier, Regressor
    from dlcourse.reporting.result import Result
    from dlcourse.topics import Topic
    from dlcourse.tracking.lightning_logger import RunLogger
    from dlcourse.tracking.opening import open_store
    from dlcourse.training.callbacks.divergence import Divergence
    from dlcourse.training.callbacks.overfitting import OverfittingMonitor
    from dlcourse.training.trainer import make_trainer

_HOMES = {
    "BinaryClassification": "evaluation.tasks",
    "BinaryClassifier": "models.tasks",
    "Classification": "evaluation.tasks",
    "Classifier": "models.tasks",
    "CourseData": "data.datamodule",
    "CourseError": "errors",
    "CourseModel": "models.base",
    "Divergence": "training.callbacks.divergence",
    "OverfittingMonitor": "training.callbacks.overfitting",
    "Regression": "evaluation.tasks",
    "Regressor": "models.tasks",
    "Result": "reporting.result",
    "Rows": "data.rows",
    "RunLogger": "tracking.lightning_logger",
    "SettingsError": "errors",
    "Task": "evaluation.tasks",
    "Topic": "topics",
    "baselines": "evaluation",
    "check": "evaluation.published",
    "compare": "experiment",
    "evaluate_module": "experiment",
    "make_trainer": "training.trainer",
    "open_store": "tracking.opening",
    "predict": "export.predict",
    "promote": "export.registry",
    "sweep": "evaluation.sweep",
    "test": "evaluation.remeasure",
    "train": "experiment",
    "train_module": "experiment",
}

__all__ = [
    "BinaryClassification",
    "BinaryClassifier",
    "Classification",
    "Classifier",
    "CourseData",
    "CourseError",
    "CourseModel",
    "Divergence",
    "OverfittingMonitor",
    "Regression",
    "Regressor",
    "Result",
    "Rows",
    "RunLogger",
    "SettingsError",
    "Task",
    "Topic",
    "baselines",
    "check",
    "compare",
    "evaluate_module",
    "make_trainer",
    "open_store",
    "predict",
    "promote",
    "sweep",
    "test",
    "train",
    "train_module",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    return getattr(home, name) if hasattr(home, name) else importlib.import_module(f"{home.__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
