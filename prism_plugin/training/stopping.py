"""A training is saved within its epochs, and ended in order by signals."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from prism_plugin.data.loading import ResumableLoader

__all__ = ["SaveBetweenSteps", "SignalReceived"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, and what schedulers send before they kill
_EVERY = 600.0  # s
_DUE = 1  # less than any of the signals


class SignalReceived(Exception):  # noqa: N818  # it is no error
    """A signal asked the training to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class SaveBetweenSteps(Callback):
    """Saves a training every ten minutes, and after the step in which a signal came, with which it ends.

    In the middle of a step the weights may be those of an optimizer's other set, or half changed. Between steps that
    accumulate gradients nothing is saved: a run that goes on would not have them.

    Args:
        path: the checkpoint.
        loader: of the training.
    """

    def __init__(self, path: Path, loader: ResumableLoader) -> None:
        self.path = path
        self.loader = loader
        self._received = 0
        self._before: dict[int, Any] = {}
        self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's, which Lightning restores too late where something asked for the number of updates."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the loader's."""
        self.loader.load_state_dict(state_dict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen; after Lightning, which would raise wherever the program is."""
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def _note(self, number: int, frame: Any) -> None:
        self._received = number
        if number == signal.SIGINT:  # the second Ctrl-C does not wait
            signal.signal(number, signal.default_int_handler)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save, if it is time or a signal came, and end the training if one did."""
        due = _DUE if time.monotonic() - self._saved >= _EVERY else 0
        wanted = self._received or due
        if trainer.world_size > 1:  # all save together, and all end
            wanted = int(trainer.strategy.reduce(torch.tensor(wanted, device=pl_module.device), reduce_op="max"))
        if not wanted:
            return
        # After an epoch's last batch come validation and the checkpoint of the epoch.
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()
        if wanted > _DUE:
            raise SignalReceived(wanted)

    def on_validation_batch_end(self, *arguments: Any) -> None:
        """End the training if a signal came."""
        self._stop()

    def _stop(self) -> None:
        if self._received:
            raise SignalReceived(self._received)

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
