"""The options of a training: where its crystals come from, and everything that decides it.

Nothing here needs torch; see :mod:`prism_plugin.config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import annotated_types

from prism_plugin.config import OPTIMIZER_OPTIONS, check_recompute, optimizer_options
from prism_plugin.errors import PrismError
from prism_plugin.schema import Flag, NonNegative, Positive, Table, Text, Whole, check_values, option, options_class
from prism_plugin.tasks import task_of

__all__ = ["KEYS_OF_LABELS", "DataOptions", "TrainingSettings"]

KEYS_OF_LABELS = ("target_key", "energy_key", "forces_key", "stress_key")

_AtLeast1 = Annotated[Whole, annotated_types.Ge(1)]


@options_class
class TrainingSettings:
    """Everything that decides a training but the data."""

    target: Text = option("what to predict: its key in the data; pes: energies, forces and stresses", default="")
    unit: Text = option("its unit; with eV/atom the model can be an ASE energy; a data set knows its own", default="")
    model: Table = option(
        "arguments of PRISM (of a potential: PRISMPotential), where they differ from its defaults", factory=dict
    )
    optimizer: Text = option(
        f"{', '.join(sorted(OPTIMIZER_OPTIONS))}, or the path of a class such as pytorch_optimizer.SOAP",
        default="adamw-schedulefree",
    )
    lr: Positive | None = option("learning rate", default=None, shown="the optimizer's own")
    options: Table = option("options of the optimizer", factory=dict)
    schedule: Literal["onecycle"] | None = option(
        "of the rate of an optimizer given by its class: a short rise, then down to 0", default=None, shown="none"
    )
    epochs: _AtLeast1 = option("passes over the training crystals", default=500)
    batch_size: _AtLeast1 = option("crystals per update, all devices together", default=64)
    sample_atoms: _AtLeast1 | None = option(
        "a crystal of n atoms is in an epoch with probability min(1, this / n): more epochs in the same time, more of "
        "small cells",
        default=None,
        shown="all crystals are",
    )
    rotate: Flag = option(
        "turn training crystals at random (SO(3) augmentation), if the model knows directions", default=True
    )
    seed: Annotated[Whole, annotated_types.Ge(0), annotated_types.Le(2**31)] = option(
        "of weights, order, rotations, and of the split where none is given", default=0
    )
    normalize: Flag = option("put mean and standard deviation of the training targets into the model", default=True)
    batchnorm_batches: _AtLeast1 | None = option(
        "training batches for the BatchNorm statistics before a validation; a model of the same property that goes on "
        "keeps its own, unless they are given",
        default=None,
        shown="all",
    )
    weights: Mapping[str, NonNegative] = option(
        "weights of energy, forces and stress in the loss of a potential", factory=dict
    )
    huber: Positive = option(
        "threshold of the Huber loss of a potential, in units of its std; lower for data with a few large forces",
        default=1.0,
    )
    clip: Positive | None = option(
        "largest norm of the gradient; longer ones are shortened", default=None, shown="none"
    )
    precision: Literal["32-true", "bf16-mixed"] = option("of the products (docs/performance.md)", default="32-true")
    recompute: Flag = option(
        "compute the activations of edges anew in the backward pass: less memory, more time, same numbers",
        default=False,
        resumable=True,
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "where to compute; auto: CUDA where there is one", default="auto", place=True
    )
    devices: _AtLeast1 = option(
        "data-parallel on so many GPUs, or CPU processes, of each machine", default=1, place=True
    )
    nodes: _AtLeast1 = option("machines, started by torchrun or SLURM (examples/cluster)", default=1, place=True)

    def __post_init__(self) -> None:
        """Check what concerns several values."""
        if self.batch_size < self.processes:
            raise PrismError(
                f"batch_size {self.batch_size} is for all devices together and there are {self.processes}: "
                "some would get no crystal"
            )
        if self.lr is not None and "lr" in self.options:
            raise PrismError(f"two learning rates, lr = {self.lr} and the option lr = {self.options['lr']}: give one")
        if self.optimizer in OPTIMIZER_OPTIONS:
            optimizer_options(self.optimizer, self.all_options(), self.schedule)
        elif "." not in self.optimizer:
            raise PrismError(
                f"unknown optimizer {self.optimizer!r}; choose one of: {', '.join(sorted(OPTIMIZER_OPTIONS))}, or the "
                "path of a class, such as torch.optim.RAdam"
            )
        if self.recompute:
            check_recompute(self.model.get("backbone", "cartnet"))
        if self.clip is not None and self.optimizer in ("elra", "rod-flow"):
            raise PrismError(f"{self.optimizer} reads the gradient's length: leave clip out")
        if self.precision != "32-true" and self.optimizer == "rod-flow":
            raise PrismError("rod-flow needs precision '32-true': differences of gradients are noise in bfloat16")
        task = task_of(self)
        check_values(task.model_options, self.model)
        task.check_settings(self)

    @property
    def processes(self) -> int:
        """Number of devices on all machines together."""
        return self.devices * self.nodes

    @property
    def has_schedule(self) -> bool:
        """Whether the learning rate follows a schedule over the epochs."""
        if self.optimizer in OPTIMIZER_OPTIONS:
            return OPTIMIZER_OPTIONS[self.optimizer][1]
        return self.schedule is not None

    def all_options(self) -> dict[str, Any]:
        """Return the optimizer's options with the learning rate, if one is set."""
        return {**self.options} if self.lr is None else {"lr": self.lr, **self.options}


@options_class
class DataOptions:
    """Where the crystals of a training come from."""

    preset: Text | None = option("a recipe by name: see prism presets", default=None, metavar="NAME")
    data: Text = option(
        ".jsonl or .extxyz file (also .xz, .gz); .csv or folder with id_prop.csv, and structure files; .json of "
        "pymatgen; .db or .traj of ASE; or a data set: "
        "emt-alloys, emt-alloys-pes, jarvis, mp2018, matbench_... (prism info lists them)",
        default="",
    )
    fold: Annotated[Whole, annotated_types.Ge(0)] | None = option("of a Matbench task, 0 to 4", default=None)
    splits: Text | None = option(
        'JSON file with the names of each part: {"train": [...], "val": [...], "test": [...]}',
        default=None,
        metavar="FILE",
    )
    skip_missing: Flag = option("leave out rows without the target", default=False)
    target_key: Text | None = option("what a file calls the target", default=None, metavar="KEY")
    energy_key: Text | None = option("what a file calls energies, such as REF_energy", default=None, metavar="KEY")
    forces_key: Text | None = option("what it calls forces", default=None, metavar="KEY")
    stress_key: Text | None = option("what it calls stresses", default=None, metavar="KEY")
    init: Text | None = option(
        "start from this model: a folder, the name of a shipped one, or OWNER/NAME on the Hub",
        default=None,
        metavar="MODEL",
    )
    logger: Literal["tensorboard", "wandb", "mlflow"] | None = option(
        "log there, too, beside RUN/log; its package must be installed", default=None, resumable=True
    )
    cache: Text | None = option(
        "folder for graphs, reused by later runs",
        default=None,
        metavar="DIR",
        shown="in memory; downloaded data have one",
        resumable=True,
    )
