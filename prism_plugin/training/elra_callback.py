"""What ELRA needs of Lightning: losses of accumulated batches, dynamic batch size, BatchNorm after a soft restart.

Lightning's closure returns the last micro-batch's loss divided by their number, and steps on whatever an epoch's end
left over. This callback hands over the loss of every micro-batch, so that the optimizer averages them and skips such
leftovers; it changes the accumulation at epochs' starts only, where Lightning allows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from prism_plugin.config import ELRAOptions
from prism_plugin.errors import PrismError
from prism_plugin.optim import ELRA, BatchSizeControl
from prism_plugin.optim.checks import check_flag
from prism_plugin.schema import described
from prism_plugin.training.averaging import save_average

__all__ = ["ELRACallback", "callback_options"]


def callback_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ELRA's options that are the callback's."""
    return {name: options[name] for name, (_, _, extra) in described(ELRAOptions).items() if extra and name in options}


class ELRACallback(Callback):
    """Runs ELRA in any Lightning module with automatic optimization; a cycle is an epoch. One callback, one training.

    Logged per update: ``alpha``, ``accumulate`` (micro-batches per update), ``retraces`` (so far), ``step_length``.

    Args:
        accumulate: micro-batches per update at the start, m0.
        dynamic: whether their number follows the losses (section 3.3).
        gradient_decay: whether gradients are scaled by m0 / m (section 3.4).

    Raises:
        ValueError: on ``trainer.fit`` with anything that ELRA cannot work with: another optimizer, gradient clipping,
            a learning-rate scheduler, float16 scaling, an accumulation of the trainer's own.
    """

    def __init__(self, accumulate: int = 1, dynamic: bool = True, gradient_decay: bool = False) -> None:
        if not isinstance(accumulate, int) or accumulate < 1:
            raise PrismError(f"accumulate must be a whole number of at least 1, got {accumulate!r}")
        for name, flag in (("dynamic", dynamic), ("gradient_decay", gradient_decay)):
            check_flag(name, flag)
        self.control = BatchSizeControl(accumulate)
        self.dynamic = dynamic
        self.gradient_decay = gradient_decay
        self._buffers: list[Tensor] = []
        self._smaller_last = False

    def state_dict(self) -> dict[str, Any]:
        """The control's numbers."""
        return self.control.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the control."""
        self.control.load_state_dict(state_dict)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse what would disturb the loss, the gradients or alpha."""
        if trainer.gradient_clip_val is not None:
            raise PrismError(
                "ELRA reads the length of the gradient: remove gradient_clip_val; max_step limits the length of steps"
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise PrismError("ELRA cannot work with precision '16-mixed', which scales the loss: use 'bf16-mixed'")
        if not pl_module.automatic_optimization:
            raise PrismError("ELRACallback needs automatic optimization; with a manual one call ELRA.observe yourself")
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise PrismError("ELRA changes the accumulation itself: remove the GradientAccumulationScheduler")
        if trainer.accumulate_grad_batches != 1:
            raise PrismError(
                f"ELRA changes the accumulation itself: instead of Trainer(accumulate_grad_batches="
                f"{trainer.accumulate_grad_batches}) give ELRACallback(accumulate=...)"
            )
        if trainer.lr_scheduler_configs:
            raise PrismError("ELRA adapts its learning rate itself: remove the learning-rate scheduler")
        optimizer = trainer.optimizers[0]
        if not isinstance(optimizer, ELRA):
            raise PrismError(f"ELRACallback is for ELRA, the optimizer is {type(optimizer).__name__}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Limit the batch to the epoch; go on where a run that is resumed inside an epoch was."""
        self._smaller_last = _last_batch_is_smaller(trainer)
        if math.isfinite(trainer.num_training_batches):
            full = int(trainer.num_training_batches) - self._smaller_last
            if self.control.initial > full:
                raise PrismError(
                    f"an epoch has {full} full batches, an update accumulates {self.control.initial}: lower accumulate "
                    "or the batch size"
                )
            self._limit(full)
        # Inside an epoch Lightning does not call on_train_epoch_start.
        trainer.accumulate_grad_batches = _elra(trainer).param_groups[0]["accumulate"] or self.control.accumulate
        self._keep_buffers(pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the accumulation of this epoch."""
        accumulate = self.control.accumulate
        trainer.accumulate_grad_batches = accumulate
        optimizer = _elra(trainer)
        optimizer.param_groups[0]["accumulate"] = accumulate
        if self.gradient_decay:
            optimizer.scale_gradients(self.control.initial / accumulate)
        self._keep_buffers(pl_module)

    def _limit(self, full_batches: int) -> None:
        """At most half an epoch: the losses of fewer than two updates have no spread."""
        self.control.largest = max(self.control.initial, full_batches // 2)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Updates start from the iterate, not from the mean."""
        _elra(trainer).train()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Hand over a micro-batch's loss, undivided."""
        _elra(trainer).observe(loss * trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Skip a window that ends with a smaller last batch (section 3.5)."""
        if trainer.is_last_batch and self._smaller_last:
            optimizer.discard()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step: keep the BatchNorm buffers of an accepted point, restore them otherwise; log."""
        optimizer = _elra(trainer)
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        if optimizer.outcome == "accepted":
            self._keep_buffers(pl_module)
        else:
            self._restore_buffers(pl_module)
        state = optimizer.param_groups[0]
        if state["updates"]:
            numbers = {
                "alpha": state["lr"],
                "accumulate": float(trainer.accumulate_grad_batches),
                "retraces": float(state["retraces"]),
                "step_length": state["last_alpha"] * state["last_square"] ** 0.5,
            }
            pl_module.log_dict(numbers, on_step=True, on_epoch=False, batch_size=1)
        if trainer.is_last_batch:  # not at the epoch's end, which comes after validation and its checkpoints
            self._limit(batch_idx + 1 - self._smaller_last)
            statistics = optimizer.end_cycle()
            if self.dynamic and statistics is not None:
                self.control.update(*statistics)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Whatever is saved between epochs is the mean of the iterates, if it is kept."""
        _elra(trainer).eval()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the mean of the iterates, if it is kept."""
        if trainer.optimizers:
            _elra(trainer).eval()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The trained model is the mean of the iterates, if it is kept; the trainer gets its accumulation back."""
        _elra(trainer).eval()
        trainer.accumulate_grad_batches = 1

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """So it is when a training is interrupted."""
        if trainer.optimizers and isinstance(trainer.optimizers[0], ELRA):
            self.on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the mean also inside an epoch."""
        save_average(trainer, pl_module, checkpoint)

    def _keep_buffers(self, module: L.LightningModule) -> None:
        self._buffers = [buffer.clone() for buffer in _batchnorm_buffers(module)]

    def _restore_buffers(self, module: L.LightningModule) -> None:
        for buffer, kept in zip(_batchnorm_buffers(module), self._buffers, strict=True):
            buffer.copy_(kept)


def _elra(trainer: L.Trainer) -> ELRA:
    return trainer.optimizers[0]  # type: ignore[return-value]


def _batchnorm_buffers(module: L.LightningModule) -> list[Tensor]:
    """All buffers of BatchNorm layers: running mean and variance, number of batches."""
    return [buffer for layer in module.modules() if isinstance(layer, _BatchNorm) for buffer in layer.buffers()]


def _last_batch_is_smaller(trainer: L.Trainer) -> bool:
    """Whether an epoch's last batch has fewer samples than the others; False where the loader does not tell."""
    loader, batches = trainer.train_dataloader, trainer.num_training_batches
    if not isinstance(loader, DataLoader) or loader.batch_size is None or loader.drop_last:
        return False
    if batches == 1 or not math.isfinite(batches) or batches != len(loader):  # it is the only one, or is not reached
        return False
    return isinstance(loader.sampler, Sized) and len(loader.sampler) % loader.batch_size != 0
