"""EoSMonitor: is a training at the edge of stability? Read off the iterates and gradients that there are anyway.

Source: the parity estimate of the rod-flow specification. With d = q_{t-1} - 2 q_t + q_{t+1} and e the same of the
gradients, d.e / (d.P d) is the preconditioned sharpness along the oscillation. At the edge it is the threshold; off it
the estimate collapses: it is an indicator, not the largest eigenvalue.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from prism_plugin.errors import PrismError
from prism_plugin.optim.rod_flow.conventions import parameters_of, phase_map, read_moments
from prism_plugin.optim.rod_flow.flows import OPEN, rounding
from prism_plugin.optim.rod_flow.optimizer import RodFlow
from prism_plugin.optim.vectors import flatten, flatten_gradients

__all__ = ["EoSMonitor"]

NEAR = 0.1  # how near to the threshold counts as the edge,
IN_A_ROW = 5  # and how often in a row, before there is a warning
# Loss difference and trapezoidal rule over its gradients may differ by this share; on other data they do not agree.
CONSISTENT = 0.5
OTHER_DATA = "consecutive updates have other data, or in another order; it takes the same batch in every update"
CLOSED = "the rod is closed: consecutive steps do not oscillate by more than rounding"
NO_DATA = "the batch holds no tensors that can be seen; give tensors in lists, tuples, mappings or objects' attributes"
OTHER_LOSS = "loss and gradients do not belong to the same data (augmentation, dropout, or a leap too long)"


class EoSMonitor(Callback):
    """Watches a Lightning training for the edge of stability, without a further gradient; four vectors of memory.

    Logged per update, where it means something: ``eos_sharpness``, ``eos_threshold``, ``eos_ratio``, ``eos_cosine`` (of
    the last two steps; near -1 where they oscillate) and ``eos_rod_length``. With :class:`~prism_plugin.optim.RodFlow`
    its ``stats`` are logged instead, ``reading`` is of its open rod, and what would disturb it is refused.

    The reading needs consecutive updates on the same data (a full batch). Where it means nothing, nothing is logged and
    ``reason`` says why: other data, other augmentation or dropout, a closed rod, half precision, clipping.

    Raises:
        ValueError: on ``trainer.fit`` with several optimizers or one whose threshold is not known; with RodFlow also
            with gradient clipping, accumulation, or half precision.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.reading: dict[str, float] = {}
        self.reason = "there have been fewer than three updates"
        self._hopeless = ""
        self._loss = 0.0
        self._batch: list[str] = []
        self._fresh = False  # whether the last hook before a step has made a new reading
        self._last: dict[str, Any] = {}
        self._near = 0
        self._said: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at optimizer and trainer before any work."""
        self._reset()
        if len(trainer.optimizers) != 1:
            raise PrismError(f"EoSMonitor watches one optimizer, there are {len(trainer.optimizers)}")
        optimizer = trainer.optimizers[0]
        half = "16" in str(trainer.precision) or getattr(trainer.precision_plugin, "scaler", None) is not None
        clipped = bool(trainer.gradient_clip_val)
        if isinstance(optimizer, RodFlow):
            if half:
                raise PrismError(f"RodFlow subtracts gradients, which are noise in {trainer.precision}: use '32-true'")
            if clipped:
                raise PrismError(
                    "a clipped gradient is not linear, so that no rod flow is known: remove gradient_clip_val"
                )
            scheduled = any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks)  # type: ignore[attr-defined]
            if scheduled or trainer.accumulate_grad_batches != 1:
                raise PrismError(
                    "RodFlow evaluates a batch several times, which Lightning cannot do with accumulated ones: set "
                    "accumulate_grad_batches=1, use no GradientAccumulationScheduler, and enlarge the batch"
                )
            return
        phase_map(optimizer)
        if not half:
            parameters_of(optimizer)
        if half:
            self._hopeless = f"second differences of gradients are noise in {trainer.precision}"
        elif clipped:
            self._hopeless = "a clipped gradient has another threshold"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look for dropout, whose loss is another function of the weights in every update."""
        dropout = [
            name for name, module in pl_module.named_modules() if isinstance(module, _DropoutNd) and module.p > 0
        ]
        if dropout and not isinstance(trainer.optimizers[0], RodFlow):
            self._hopeless = f"dropout ({dropout[0]}) makes the loss another function of the weights in every update"

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the data."""
        sums = [_checksum(tensor) for tensor in _tensors(batch)]
        first = batch_idx % trainer.accumulate_grad_batches == 0
        self._batch = sums if first else [*self._batch, *sums]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Add the losses of an update's micro-batches, which Lightning has divided by their number."""
        self._loss += float(loss.detach())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Take the reading: weights and gradients of this update are complete."""
        if isinstance(optimizer, RodFlow) or self._hopeless:
            self.reason = self._hopeless
            self._fresh = bool(self._hopeless)
            return
        self.reading, self.reason = self._read(optimizer)
        self._loss, self._fresh = 0.0, True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log and warn."""
        optimizer = trainer.optimizers[0]
        if isinstance(optimizer, RodFlow):
            numbers = {name: float(value) for name, value in optimizer.stats.items()}
            pl_module.log_dict(numbers, on_step=True, on_epoch=False, batch_size=1)
            stats = optimizer.stats
            names = {
                "sharpness": "rod_sharpness",
                "threshold": "threshold",
                "ratio": "ratio",
                "rod_length": "rod_length",
            }
            self.reading = {key: stats[name] for key, name in names.items()} if stats["open"] else {}
            self.reason = "" if stats["open"] else CLOSED
            ratio = self.reading.get("ratio", math.nan)
        elif not self._fresh:  # inside an accumulation window
            return
        else:
            if self.reading:
                numbers = {f"eos_{name}": value for name, value in self.reading.items()}
                pl_module.log_dict(numbers, on_step=True, on_epoch=False, batch_size=1)
            elif self.reason in (OTHER_DATA, OTHER_LOSS, NO_DATA, self._hopeless):
                self._warn(f"EoSMonitor has no reading: {self.reason}")
            ratio, self._fresh = self.reading.get("ratio", math.nan), False
        self._near = self._near + 1 if abs(ratio - 1) < NEAR else 0
        if self._near == IN_A_ROW:
            self._warn(
                f"step {trainer.global_step}: the training is at the edge of stability, the sharpness along its "
                f"oscillation is {ratio:.2f} of the threshold; a smaller learning rate would leave it"
            )

    @torch.no_grad()
    def _read(self, optimizer: Any) -> tuple[dict[str, float], str]:
        """The reading, empty where it means nothing, and why it is empty."""
        phase, parameters = phase_map(optimizer), parameters_of(optimizer)
        w = flatten(parameters)
        g = phase.penalized(flatten_gradients(parameters), w)
        loss = self._loss + 0.5 * phase.penalty * float(torch.dot(w, w))
        if not math.isfinite(loss) or not math.isfinite(float(torch.dot(g, g))):
            self._last = {}
            return {}, "the loss or its gradient is not finite"
        last, batch = self._last, self._batch
        self._last = {"w": w, "g": g, "loss": loss, "batch": batch}
        if not last or last["w"].shape != w.shape:
            return {}, "there have been fewer than three updates"
        step, turn = w - last["w"], g - last["g"]
        self._last |= {"step": step, "turn": turn}
        if not batch:
            return {}, NO_DATA
        if batch != last["batch"]:
            del self._last["step"], self._last["turn"]
            return {}, OTHER_DATA
        ways = float(torch.dot(g, step)), float(torch.dot(last["g"], step))
        if abs(loss - last["loss"] - sum(ways) / 2) > CONSISTENT * sum(map(abs, ways)) / 2 + 1e-6 * abs(loss):
            del self._last["step"], self._last["turn"]
            return {}, OTHER_LOSS
        if "step" not in last:
            return {}, "there have been fewer than three updates on the same data"
        d, e = step - last["step"], turn - last["turn"]
        length = float(d.norm()) / 4
        if length < OPEN * rounding(w) * float(w.norm()):
            return {}, CLOSED
        moments = read_moments(optimizer)
        scaled = d if moments.nu is None else d * phase.denominator(moments.nu, moments.steps - 1)
        sharpness, threshold = float(torch.dot(d, e) / torch.dot(d, scaled)), phase.threshold(moments.steps - 1)
        cosine = float(torch.dot(step, last["step"]) / (step.norm() * last["step"].norm()))
        return {
            "sharpness": sharpness,
            "threshold": threshold,
            "ratio": sharpness / threshold,
            "cosine": cosine,
            "rod_length": length,
        }, ""

    def _warn(self, text: str) -> None:
        """Once a training for each kind of warning."""
        kind = text.split(":")[0].split()[0]
        if kind not in self._said:
            self._said.add(kind)
            rank_zero_warn(text)


def _tensors(batch: Any, depth: int = 6) -> Iterator[Tensor]:
    """All tensors of a batch: of tuples, mappings, objects' attributes."""
    if isinstance(batch, Tensor):
        yield batch
    elif depth == 0:
        return
    elif isinstance(batch, Mapping):
        yield from _tensors(list(batch.values()), depth)
    elif isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _tensors(part, depth - 1)
    elif hasattr(batch, "__dict__"):
        yield from _tensors(list(vars(batch).values()), depth)


def _checksum(tensor: Tensor) -> str:
    """A text that changes with the data and their order, and is the same for the same NaNs."""
    values = tensor.detach().double().reshape(-1)
    return repr(float(torch.dot(values, torch.arange(1, len(values) + 1, device=values.device).double().sin())))
