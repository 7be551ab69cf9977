"""The store, the run, and what is written to it and when.

The store is an MLflow tracking store: SQLite and files under ``mlruns/`` unless ``MLFLOW_TRACKING_URI`` names another.
Everything goes through an `MlflowClient` of its own: MLflow's global state (active run, tracking URI) is left alone.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import lightning as L
from lightning.pytorch.callbacks import Callback

from dlcourse.errors import Interrupted


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and a terminal that is closed into `Interrupted`, where signals can be had: the main thread.

    Under `nohup` the terminal may be closed.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    before = {signum: signal.signal(signum, interrupt) for signum in asked}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class OwnSignals(Callback):
    """Answer SIGTERM during a training as before it.

    Lightning's own answer begins with a message to the other processes of a training, and waits until they take it.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.answer = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.answer)
