"""The Lightning module that trains PRISM on batches of (crystals, targets) with the loss of a task.

The traps of optimizers that average (ScheduleFree, ELRA) are handled here: they are in train mode for updates only,
evaluation and every checkpoint see the averaged weights x, and the BatchNorm statistics are re-estimated at x before
each validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from prism_plugin.data.augmentation import random_rotations, rotate_batch, rotate_labels
from prism_plugin.distributed import rank_and_size, sum_over_processes
from prism_plugin.errors import PrismError
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.model import PRISM
from prism_plugin.nn.norm import FeatureNorm
from prism_plugin.optim import make_optimizer
from prism_plugin.seeds import seed_of
from prism_plugin.tasks import TASKS
from prism_plugin.tasks.task import Loss
from prism_plugin.training.averaging import MOVING, put_weights, save_average, switch_mode
from prism_plugin.training.batchnorm import reestimate_batchnorm
from prism_plugin.training.edge_of_stability import EoSMonitor
from prism_plugin.training.elra_callback import ELRACallback, callback_options

__all__ = ["PropertyTraining"]

_ERRORS = "training_errors"


class PropertyTraining(L.LightningModule):
    """Trains a PRISM.

    Args:
        model: the model.
        optimizer: a key of :data:`prism_plugin.optim.OPTIMIZERS`, or the path of a class.
        options: of the optimizer, such as ``lr``; with ``"elra"`` also those of its callback.
        rotate: whether training crystals are turned at random (SO(3) augmentation); with ``directions=False``, where
            that changes nothing, they are not.
        seed: of the rotations; they depend on it, the epoch and the batch only.
        batchnorm_loader: training batches for the BatchNorm statistics; None leaves the running ones.
        batchnorm_batches: how many of them; None takes all.
        loss: of each crystal; None takes L1 on the target, of a model of two classes the cross-entropy.
        fixed_norms: whether the statistics of BatchNorm stay those of an initial model.
        schedule: of the rate of an optimizer given by its class: ``"onecycle"`` or None.
    """

    def __init__(
        self,
        model: PRISM,
        optimizer: str = "adamw-schedulefree",
        options: Mapping[str, Any] | None = None,
        rotate: bool = True,
        seed: int = 0,
        batchnorm_loader: DataLoader | None = None,
        batchnorm_batches: int | None = None,
        loss: Loss | None = None,
        fixed_norms: bool = False,
        schedule: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss or TASKS[model.task].default_loss()
        self.metric = self.loss.metric
        self.optimizer_name = optimizer
        self.options = dict(options or {})
        self.schedule = schedule
        self.fixed_norms = fixed_norms
        self.rotate = rotate and model.arguments.get("directions", True)
        self.seed = seed
        self.batchnorm_loader = batchnorm_loader
        self.batchnorm_batches = batchnorm_batches
        self._last_error: tuple[Tensor, int, int, float] | None = None
        self._training_errors = torch.zeros(2, dtype=torch.float64)  # their sum, and of how many crystals
        self._moving: Mapping[str, Tensor] | None = None  # of a run that goes on within an epoch
        self._is_counted = False  # whether those of the present batch are in it

    def errors(self, crystals: CrystalBatch, targets: Any) -> Tensor:
        """Loss of each crystal, shape ``(crystals,)``."""
        return self.loss(self.model, crystals, targets, self.training)

    def configure_callbacks(self) -> list[Callback]:
        """ELRA and rod flow bring their callbacks along."""
        if self.optimizer_name == "elra":
            return [ELRACallback(**callback_options(self.options))]
        return [EoSMonitor()] if self.optimizer_name == "rod-flow" else []

    def configure_optimizers(self) -> Any:
        """Make the optimizer, and its schedule stepped per update."""
        optimizer, scheduler = make_optimizer(
            self.optimizer_name,
            self.model.parameters(),
            int(self.trainer.estimated_stepping_batches),
            self.options,
            self.schedule,
        )
        if scheduler is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rotated(
        self, batch: CrystalBatch, targets: Any, total: int, stream: int, number: int
    ) -> tuple[CrystalBatch, Any]:
        if not self.rotate:
            return batch, targets
        generator = torch.Generator().manual_seed(seed_of(self.seed, stream, number))
        rank, processes = rank_and_size()
        # Drawn for the batch of all processes: its crystals turn the same way however many there are.
        rotations = random_rotations(total, generator)[rank::processes]
        return rotate_batch(batch, rotations), rotate_labels(targets, batch.atom_crystal, rotations)

    def _total(self, count: int) -> int:
        """A number of all processes together; with one process nothing waits for the device."""
        if rank_and_size()[1] == 1:
            return count
        return int(sum_over_processes(torch.tensor(count, device=self.device)))

    def training_step(self, batch: tuple[CrystalBatch, Any], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        crystals, targets = batch
        total = self._total(len(crystals))
        error = self.errors(*self._rotated(crystals, targets, total, self.current_epoch, batch_idx)).mean()
        shown = error.detach()
        processes = rank_and_size()[1]
        if processes > 1:  # gradients are averaged over the processes, which may have one crystal more or less
            error = error * (len(crystals) * processes / total)
        # Rod flow evaluates a batch several times: the first counts.
        if self._check_finite(shown, batch_idx) and not self._is_counted:
            self._training_errors[0] += shown * len(crystals)
            self._training_errors[1] += len(crystals)
            self._is_counted = True
        return error

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate by the weights alone: positions, whose gradients a potential takes, need none of the loss."""
        weights = [parameter for parameter in self.parameters() if parameter.requires_grad]
        loss.backward(*args, **{**kwargs, "inputs": weights})

    def _check_finite(self, error: Tensor, batch_idx: int) -> bool:
        """Raise ValueError if a loss is not finite: this one or, where a device computes it, the one before.

        A device that had to answer at once would wait for the next batch with nothing to do. ELRA goes back by itself:
        there the answer is whether this loss is finite.
        """
        if self.optimizer_name == "elra":
            return bool(torch.isfinite(error))
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        now = (error, self.current_epoch, batch_idx, rate)
        self._raise_if_diverged(now if error.is_cpu else self._last_error)
        self._last_error = now
        return True

    def _raise_if_diverged(self, last: tuple[Tensor, int, int, float] | None) -> None:
        if last is not None and self.optimizer_name != "elra" and not torch.isfinite(last[0]):
            error, epoch, number, rate = last
            raise PrismError(
                f"the loss became {error.item()} in epoch {epoch}, batch {number}; lower the learning rate (now "
                f"{rate:g}) or look for absurd targets; the last checkpoint is kept"
            )

    def validation_step(self, batch: tuple[CrystalBatch, Any], batch_idx: int) -> None:
        """Errors of one batch, without rotation."""
        crystals, targets = batch
        self.validation_errors[0] += self.errors(crystals, targets).detach().sum()
        self.validation_errors[1] += len(crystals)

    def on_validation_epoch_end(self) -> None:
        """Mean error over all crystals of all processes."""
        total, count = sum_over_processes(self.validation_errors).tolist()
        self.log(f"val_{self.metric}", total / count, prog_bar=True, sync_dist=rank_and_size()[1] > 1)

    def _batchnorm_batches(self) -> Iterator[CrystalBatch]:
        if self.batchnorm_loader is not None:
            for number, (crystals, _) in enumerate(islice(self.batchnorm_loader, self.batchnorm_batches)):
                yield self._rotated(crystals, None, self._total(len(crystals)), -1, number)[0]

    def reestimate(self) -> None:
        """Compute the BatchNorm statistics of the present weights, if there is a loader for it."""
        if self.batchnorm_loader is not None:
            reestimate_batchnorm(self.model, self._batchnorm_batches())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Updates happen at y; what the model draws (dropout) is the same in a resumed run."""
        self._is_counted = False
        torch.manual_seed(seed_of(self.seed, self.current_epoch, batch_idx, rank_and_size()[0]))
        switch_mode(self.trainer, "train")
        if self._moving is not None:
            put_weights(self, self._moving)
            self._moving = None

    def on_train_start(self) -> None:
        """Fix the norms; after a validation each module has its mode again."""
        if self.fixed_norms:
            for layer in self.modules():
                if isinstance(layer, FeatureNorm):
                    layer.eval()

    def on_train_epoch_start(self) -> None:
        """Count errors from 0; not called where an epoch goes on."""
        self._training_errors = torch.zeros(2, dtype=torch.float64, device=self.device)

    def on_validation_start(self) -> None:
        """Evaluation happens at x, with the BatchNorm statistics of x; nothing is kept of an epoch that diverged."""
        self._raise_if_diverged(self._last_error)
        switch_mode(self.trainer, "eval")
        self.reestimate()
        self.validation_errors = torch.zeros(2, dtype=torch.float64, device=self.device)

    def on_train_epoch_end(self) -> None:
        """Mean error over the epoch's crystals of all processes; whatever is saved between epochs is x."""
        total, count = sum_over_processes(self._training_errors).tolist()
        if count:
            self.log(f"train_{self.metric}", total / count, prog_bar=True, sync_dist=rank_and_size()[1] > 1)
        switch_mode(self.trainer, "eval")

    def on_train_end(self) -> None:
        """The trained model is x."""
        switch_mode(self.trainer, "eval")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save x also in the middle of an epoch, and the errors so far."""
        save_average(self.trainer, self, checkpoint)
        checkpoint[_ERRORS] = sum_over_processes(self._training_errors).tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the moving weights, and, in the first of several processes, with the errors so far."""
        self._moving = checkpoint.get(MOVING)
        if rank_and_size()[0] == 0:
            self._training_errors = torch.tensor(checkpoint.get(_ERRORS, [0.0, 0.0]), dtype=torch.float64)
