"""Signals that end a training in order."""

from __future__ import annotations

import signal
import threading
from typing import Any

from lightning.pytorch.callbacks import Callback

__all__ = ["SignalReceived", "StopBetweenSteps"]

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they kill


class SignalReceived(Exception):  # noqa: N818  # it is no error
    """A signal asked the training to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopBetweenSteps(Callback):
    """Ends a training after the step during which SIGTERM or SIGUSR1 came.

    In the middle of a step the weights may be those of an optimizer's other set, or half changed.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen; after Lightning, which would raise wherever the program is."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def _note(self, number: int, frame: Any) -> None:
        self._received = number

    def _stop(self) -> None:
        if self._received is not None:
            raise SignalReceived(self._received)

    def on_train_batch_end(self, *arguments: Any) -> None:
        """End the training if a signal came."""
        self._stop()

    def on_validation_batch_end(self, *arguments: Any) -> None:
        """End the training if a signal came."""
        self._stop()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Listen no more; a signal during the last validation ends the run here, with its last epoch saved."""
        self._restore()
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Listen no more."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
