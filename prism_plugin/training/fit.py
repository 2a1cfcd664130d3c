"""One training, from records to a run folder with model, log, predictions, plots and summary.

The folder: ``settings.json``, ``log/version_*/metrics.csv``, ``checkpoints/{best,last}.ckpt``, ``model/`` (load it with
``matgl.load_model``), ``predictions.csv``, ``learning_curve.png``, ``parity.png`` (of a classification
``classes.png``), ``elements.png`` (error by element),
``fusion.png`` (weights of the experts), ``summary.json``; with ELRA also ``elra.png``, with rod flow ``rod_flow.png``.
A potential (target ``"pes"``) has no ``elements.png``, and three panels in ``parity.png``.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import pickle
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from prism_plugin import __version__
from prism_plugin.data import PES, GraphDataset, Record, make_datasets, make_loader
from prism_plugin.data.records import count_crystals, elements_of, fingerprint
from prism_plugin.devices import find_device
from prism_plugin.distributed import has_group
from prism_plugin.files import replaced
from prism_plugin.model import PRISM
from prism_plugin.optim import OPTIMIZERS, make_optimizer
from prism_plugin.potential import PRISMPotential, element_shares, fit_element_refs
from prism_plugin.pretrained import RARE
from prism_plugin.training.elra_callback import ELRACallback
from prism_plugin.training.module import PotentialTraining, PropertyTraining, split_options
from prism_plugin.training.plots import plot_elra, plot_fusion, plot_learning_curve, plot_rod_flow
from prism_plugin.training.report import write_potential_report, write_report
from prism_plugin.training.scores import METRICS, check_classes

__all__ = ["WEIGHTS", "TrainingSettings", "train"]

# Of the loss of a potential: see PotentialTraining.
WEIGHTS = {"energy": 40.0, "forces": 1.0, "stress": 0.5}
_LARGEST_FORCE = 1000.0  # eV/Å


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# Lightning's names; with "16-mixed" the loss would be scaled, which not every optimizer bears.
_PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training but the data.

    Attributes:
        target: name of the predicted property; ``"pes"`` for a potential of energies, forces and stresses.
        unit: its unit.
        model: constructor arguments of PRISM (of a potential those of PRISMPotential), where they differ from its
            defaults.
        optimizer: a key of :data:`prism_plugin.optim.OPTIMIZERS`, or the path of a class, ``"torch.optim.RAdam"``.
        lr: learning rate; None takes the optimizer's own.
        options: of the optimizer (arguments of its row in the table; with ``"elra"`` also those of ``ELRACallback``).
        epochs: number of passes over the training crystals.
        batch_size: crystals per update, all devices together.
        rotate: SO(3) augmentation.
        seed: of weights, order and rotations.
        normalize: put mean and standard deviation of the training targets into the model.
        batchnorm_batches: training batches for the BatchNorm statistics before a validation; None takes all.
        weights: of ``"energy"``, ``"forces"`` and ``"stress"`` in the loss of a potential, where they differ from
            :data:`WEIGHTS`.
        clip: largest norm of the gradient; longer ones are shortened. None leaves them.
        precision: of the products, ``"32-true"`` or ``"bf16-mixed"`` (docs/performance.md says what that gives). Not
            for potentials, nor with rod-flow: differences of gradients would be noise.
        recompute: compute the activations of edges anew in the backward pass: less memory, more time, same numbers
            (docs/performance.md). Not for potentials, whose forces need all of them.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"`` or ``"cuda"``.
        devices: how many of them on each machine; with more than one, gradients and BatchNorm statistics are joined.
        nodes: number of machines, started by torchrun or SLURM.
    """

    target: str
    unit: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw-schedulefree"
    lr: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 500
    batch_size: int = 64
    rotate: bool = True
    seed: int = 0
    normalize: bool = True
    batchnorm_batches: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    clip: float | None = None
    precision: str = "32-true"
    recompute: bool = False
    device: str = "auto"
    devices: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        """Check everything before any work."""
        for name in ("epochs", "batch_size", "batchnorm_batches", "seed", "devices", "nodes"):
            value = getattr(self, name)
            if value is None and name == "batchnorm_batches":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not (name != "seed") <= value <= 2**31:
                raise ValueError(f"{name} must be a whole number of at least {int(name != 'seed')}, got {value!r}")
        if self.batch_size < self.processes:
            raise ValueError(
                f"batch_size {self.batch_size} is for all devices together and there are {self.processes}: "
                "some would get no crystal"
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"unknown device {self.device!r}; choose one of: auto, cpu, cuda")
        find_device(self.device)
        known = inspect.signature(PRISMPotential if self.target == PES else PRISM).parameters
        for name in self.model:
            if name not in known:
                raise ValueError(f"unknown model argument {name!r}; choose one of: {', '.join(known)}")
        if self.target == PES and self.unit not in ("", "eV"):
            raise ValueError(f"a potential has eV and eV/Å; leave the unit {self.unit!r} out, and convert the data")
        if self.target != PES and "element_refs" in self.model:
            raise ValueError(f"element_refs are for potentials (target {PES!r}); properties have mean and std")
        self._check_loss()
        self._check_precision()
        if self.lr is not None and "lr" in self.options:
            raise ValueError(f"two learning rates, lr = {self.lr} and the option lr = {self.options['lr']}: give one")
        _, of_callback = split_options(self.optimizer, self.all_options())
        self.has_schedule()
        if self.optimizer not in OPTIMIZERS:
            self._check_optimizer_class()
        if of_callback:
            ELRACallback(**of_callback)

    def _check_loss(self) -> None:
        if self.weights and self.target != PES:
            raise ValueError(f"weights are for the target {PES!r}; the loss of {self.target!r} has one part only")
        for name, weight in self.weights.items():
            if name not in WEIGHTS:
                raise ValueError(f"unknown weight {name!r}; choose one of: {', '.join(WEIGHTS)}")
            if not _is_number(weight) or weight < 0:
                raise ValueError(f"the weight of {name} must be a number of at least 0, got {weight!r}")
        if self.target == PES and self.batchnorm_batches is not None:
            raise ValueError("a potential has no BatchNorm: leave batchnorm_batches out")
        if self.target == PES and not any({**WEIGHTS, **self.weights}.values()):
            raise ValueError("all weights are 0: there is nothing to learn")
        if self.clip is not None and (not _is_number(self.clip) or self.clip <= 0):
            raise ValueError(f"clip must be a positive number, got {self.clip!r}")
        if self.clip is not None and self.optimizer in ("elra", "rod-flow"):
            raise ValueError(f"{self.optimizer} reads the gradient's length: leave clip out")

    def _check_precision(self) -> None:
        if self.precision not in _PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; choose one of: {', '.join(_PRECISIONS)}")
        if self.precision != "32-true" and (self.target == PES or self.optimizer == "rod-flow"):
            what = "a potential" if self.target == PES else "rod-flow"
            raise ValueError(f"{what} needs precision '32-true': differences of gradients are noise in bfloat16")
        if not isinstance(self.recompute, bool):
            raise ValueError(f"recompute must be True or False, got {self.recompute!r}")
        if self.recompute and self.target == PES:
            raise ValueError("recompute is not for potentials: forces need the activations of all edges twice")

    @property
    def processes(self) -> int:
        """Number of devices on all machines together."""
        return self.devices * self.nodes

    def has_schedule(self) -> bool:
        """Whether the learning rate follows a schedule over the epochs; raises ValueError for a bad option."""
        options, _ = split_options(self.optimizer, self.all_options())
        _, schedule = make_optimizer(self.optimizer, [torch.nn.Parameter(torch.zeros(2, 2))], options=options)
        return schedule is not None

    def _check_optimizer_class(self) -> None:
        """Raise ValueError unless an optimizer given by its class, which nobody has seen here, can do a step."""
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        optimizer, _ = make_optimizer(self.optimizer, [weight], options=self.all_options())
        weight.grad = torch.ones_like(weight)
        if hasattr(optimizer, "train"):
            optimizer.train()
        try:
            optimizer.step(lambda: float(weight.detach().sum()))
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"the optimizer {self.optimizer!r} cannot train here: {error}") from error

    def all_options(self) -> dict[str, Any]:
        """The optimizer's options with the learning rate, if one is set."""
        return {**self.options} if self.lr is None else {"lr": self.lr, **self.options}


def train(
    settings: TrainingSettings,
    parts: Mapping[str, Sequence[Record]],
    folder: str | Path,
    resume: bool = False,
    init: PRISM | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    cache: str | Path | None = None,
    on_start: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Train a PRISM and write its run folder.

    Args:
        settings: what to do.
        parts: records of ``"train"``, ``"val"`` and, if there is one, ``"test"``.
        folder: the run folder; made if missing.
        resume: go on from its last checkpoint. False refuses a folder that has one.
        init: start from a copy of this model, with its elements and sizes, not from random weights; mean and spread are
            kept where the target is the same, else taken from the new data.
        progress: whether there are progress bars.
        callbacks: further Lightning callbacks.
        cache: folder for graphs on disk, where a later run finds them; None builds them anew, in memory.
        on_start: called with the run folder when everything was checked, before the training.

    Returns:
        The summary: MAE and RMSE of each part, those of the mean predictor, times, versions. With several devices it is
        empty in all processes but the first.

    Raises:
        ValueError: if the folder holds a run and ``resume`` is False, or one of other settings, other data or another
            place and it is True; if ``settings.model`` contradicts ``init``; if the data are bad.
    """
    folder = Path(folder)
    last = folder / "checkpoints" / "last.ckpt"
    described = {**asdict(settings), "data": fingerprint(parts)}
    # A schedule is stretched over the epochs; without one, more epochs are only more.
    free = {"device", "devices", "nodes", "recompute"} | (set() if settings.has_schedule() else {"epochs"})
    first = not _launched(settings)
    if first:  # else the first process has looked, and begun to write
        _check_folder(folder, described, resume, free)
    torch.manual_seed(settings.seed)
    if settings.model.get("task_type", init.task_type if init else None) == "classification":
        check_classes(parts)
        if len({record.target for record in parts["train"]}) < 2:
            raise ValueError("all training crystals are of one class: there is nothing to tell apart")
    _check_forces(settings, parts)
    model = _new_model(settings, parts["train"], init)
    _check_elements(model, parts)
    for name in ("train", "val"):
        if len(parts[name]) < settings.processes:
            raise ValueError(
                f"{len(parts[name])} crystals of the {name} part are too few for {settings.processes} devices"
            )
    datasets = make_datasets(parts, model.cutoff, model.cell_cutoff, progress and first, cache)
    if first:
        with replaced(folder / "settings.json") as path:
            path.write_text(json.dumps(described, indent=1, default=list))
        if on_start is not None:
            on_start(folder)

    module = _module(settings, model, datasets["train"])
    place = (folder / "checkpoints").resolve()
    checkpoint = ModelCheckpoint(place, "best", monitor=f"val_{module.metric}", enable_version_counter=False)
    # After the other one, so that it knows the best epoch; save_last would skip epochs without improvement.
    every_epoch = ModelCheckpoint(place, "last", enable_version_counter=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    bar = [RichProgressBar()] if progress else []
    device = find_device(settings.device)
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=settings.devices,
        num_nodes=settings.nodes,
        # The superatoms' last weights get no gradient; and the loaders divide the batches themselves.
        strategy=DDPStrategy(find_unused_parameters=True) if settings.processes > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=settings.epochs,
        callbacks=[*callbacks, *bar, checkpoint, every_epoch],
        logger=CSVLogger(folder, name="log"),
        log_every_n_steps=1,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=settings.clip,
        precision=cast("Any", settings.precision),
        inference_mode=settings.target != PES,
    )
    started = time.perf_counter()
    grouped = has_group()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6 with torch 2.13
        # Graphs are built before and held in memory: workers would only copy them.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        try:
            trainer.fit(
                module,
                make_loader(datasets["train"], settings.batch_size, shuffle_seed=settings.seed),
                make_loader(datasets["val"], settings.batch_size),
                ckpt_path=last if resume and last.exists() else None,
            )
        except SystemExit:  # what Lightning makes of Ctrl-C
            kept = f"go on with: prism train --resume {folder}" if last.exists() else "nothing is kept yet"
            raise KeyboardInterrupt(f"interrupted; {kept}") from None
    best = _read_checkpoint(place / "best.ckpt")
    module.load_state_dict(best["state_dict"])
    module.to(trainer.strategy.root_device)  # Lightning's teardown moves it to the CPU
    module.batchnorm_batches = None
    module.reestimate()
    if settings.processes > 1 and not grouped:  # Lightning leaves its group behind; one that is open at exit may abort
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if not trainer.is_global_zero:
        return {}
    if init is not None:
        model.rare_elements = _still_rare(init, parts["train"])
    return _finish(settings, model, datasets, folder, time.perf_counter() - started, int(best["epoch"]), progress)


def _still_rare(init: PRISM, records: Sequence[Record]) -> dict[str, int]:
    """Count the crystals of elements that the initial model has hardly seen, and the new data do not make up for."""
    seen = count_crystals(records)
    counts = {symbol: count + seen[symbol] for symbol, count in init.rare_elements.items()}
    return {symbol: count for symbol, count in counts.items() if count < RARE}


def _module(settings: TrainingSettings, model: PRISM, dataset: GraphDataset) -> PropertyTraining:
    how = (settings.optimizer, settings.all_options(), settings.rotate, settings.seed)
    if settings.target == PES:
        return PotentialTraining(model, {**WEIGHTS, **settings.weights}, float(dataset.graphs.atoms.mean()), *how)
    loader = make_loader(dataset, settings.batch_size, shuffle_seed=settings.seed + 1)
    return PropertyTraining(model, *how, loader, settings.batchnorm_batches)


def _launched(settings: TrainingSettings) -> bool:
    """Whether this is another than the first of several processes (of Lightning, torchrun or SLURM)."""
    if settings.processes == 1:
        return False
    return any(int(os.environ.get(name) or 0) > 0 for name in ("LOCAL_RANK", "RANK", "NODE_RANK", "SLURM_PROCID"))


def _check_folder(folder: Path, described: Mapping[str, Any], resume: bool, free: set[str]) -> None:
    """Raise ValueError unless the folder is free, or holds a run that differs in ``free`` settings only."""
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return
    if not resume:
        raise ValueError(f"{str(folder)!r} holds a run already; go on with it (--resume), or give another folder")
    # A run from before there was a setting has its default.
    blank = json.loads(json.dumps(asdict(TrainingSettings("")), default=list))
    before = {**blank, **json.loads((folder / "settings.json").read_text())}
    now = json.loads(json.dumps(described, default=list))
    changed = sorted(key for key in now if before.get(key) != now[key] and key not in free)
    if changed:
        was = ", ".join(f"{key} = {before.get(key)!r}" for key in changed)
        raise ValueError(
            f"the run in {str(folder)!r} was started with {was}; resume it with the same settings and data"
        )
    saved = _read_checkpoint(last)
    callbacks, done = saved["callbacks"], int(saved["epoch"]) + 1
    if now["epochs"] < done:
        raise ValueError(f"the run in {str(folder)!r} has {done} epochs already, {now['epochs']} are asked for")
    places = {state["dirpath"] for key, state in callbacks.items() if key.startswith("ModelCheckpoint")}
    if places != {str(last.parent.resolve())}:
        raise ValueError(
            f"the run was started in {', '.join(map(repr, places))}; move the folder back there to resume it, or "
            "delete it"
        )


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; ValueError if it is damaged."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved["callbacks"], saved["state_dict"], int(saved["epoch"])
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"the checkpoint {str(path)!r} is damaged ({error}); start again in another folder, or delete this one"
        ) from error
    return saved


def _check_forces(settings: TrainingSettings, parts: Mapping[str, Sequence[Record]]) -> None:
    """Raise ValueError unless all crystals have forces, for a potential, or else none has."""
    for split, records in parts.items():
        for record in records:
            if (record.forces is None) == (settings.target == PES):
                has = "has no forces" if record.forces is None else "has forces"
                raise ValueError(
                    f"crystal {record.name!r} of the {split} part {has}: the target {PES!r}, and no other, needs them "
                    f"for all crystals (read_records(path, {PES!r}))"
                )
            largest = 0.0 if record.forces is None else np.abs(record.forces).max()
            if largest > _LARGEST_FORCE:
                raise ValueError(
                    f"crystal {record.name!r} of the {split} part has a force of {largest:.3g} eV/Å: is it broken, or "
                    "in another unit? Remove or convert it"
                )
    if settings.target != PES or any(record.stress is not None for record in parts["train"]):
        return
    weights = {**WEIGHTS, **settings.weights}
    if settings.weights.get("stress") or not (weights["energy"] or weights["forces"]):
        raise ValueError("no training crystal has a stress: leave the weight of stress out, and give others")


def _check_elements(model: PRISM, parts: Mapping[str, Sequence[Record]]) -> None:
    """Raise ValueError where a crystal has an element that the model does not know."""
    learned = set(elements_of(parts["train"]))
    for split, records in parts.items():
        for record in records:
            foreign = sorted(set(record.atoms.symbols) - set(model.element_types))
            if foreign:
                why = "the model does not know" if set(foreign) <= learned else "no training crystal has"
                raise ValueError(
                    f"crystal {record.name!r} of the {split} part has {', '.join(foreign)}, which {why}: move it to "
                    "the training part, remove it, or start from another model"
                )


# Structures on which the scales of a model are measured.
_CALIBRATED_ON = 32


def _new_model(settings: TrainingSettings, records: Sequence[Record], init: PRISM | None) -> PRISM:
    """Make a model that knows the elements, the mean and the spread of its training data, or a copy of ``init``."""
    if settings.target == PES:
        return _new_potential(settings, records, init)
    arguments: dict[str, Any] = {"target": settings.target, "unit": settings.unit}
    if init is not None:
        if isinstance(init, PRISMPotential):
            raise ValueError(f"a potential is a start for the target {PES!r} only, not for {settings.target!r}")
        _check_init(settings, init)
        arguments = {**init._init_args, **arguments}
    else:
        arguments["element_types"] = tuple(elements_of(records))
    arguments.update(settings.model)
    given = {"mean", "std"} & settings.model.keys()
    if settings.normalize and not given and (init is None or init.target != settings.target):
        total = arguments.get("readout") == "sum"
        targets = np.array([record.target / (len(record.atoms) if total else 1) for record in records])
        if arguments.get("task_type") == "classification":  # start from the log-odds of the classes
            arguments["mean"] = float(np.log(targets.mean() / (1 - targets.mean())))
            arguments["std"] = 1.0
        else:
            arguments["mean"] = float(targets.mean())
            arguments["std"] = float(targets.std()) or 1.0
    model = PRISM(**arguments)
    if init is None:
        model.calibrate([record.atoms for record in records[:_CALIBRATED_ON]])
    model.recompute = settings.recompute
    if init is not None:
        model.load_state_dict(init.state_dict())
    return model


def _new_potential(settings: TrainingSettings, records: Sequence[Record], init: PRISM | None) -> PRISM:
    """Make a potential with the elements' energies and the scale of its training data.

    Or a copy of ``init``, whose elements' energies are fitted to what it leaves of the training energies.
    """
    crystals = [record.atoms for record in records]
    energies = np.array([record.target for record in records])
    if init is not None:
        if not isinstance(init, PRISMPotential):
            raise ValueError("forces need a potential to start from: a model that was trained with the target 'pes'")
        _check_init(settings, init)
        changed = dict(init._init_args)
        if settings.normalize:  # the data may count energies from elsewhere
            left = energies - init.predict_structure(crystals).double().cpu().numpy()
            had = changed["element_refs"] or (0.0,) * len(init.element_types)
            changes = fit_element_refs(crystals, left, init.element_types)
            changed["element_refs"] = tuple(ref + change for ref, change in zip(had, changes, strict=True))
        model = PRISMPotential(**changed)
        model.load_state_dict(init.state_dict())
        return model
    elements = tuple(settings.model.get("element_types") or elements_of(records))
    arguments: dict[str, Any] = {"element_types": elements}
    if settings.normalize:
        refs = fit_element_refs(crystals, energies, elements)
        sizes = np.array([len(atoms) for atoms in crystals])
        forces = np.concatenate([record.forces for record in records if record.forces is not None])
        # Where symmetry leaves no forces, as along an equation of state, the energies give the scale.
        scale = max(
            np.sqrt(np.square(forces).mean()), np.std(energies / sizes - element_shares(crystals, elements) @ refs)
        )
        arguments |= {"element_refs": refs, "std": float(scale) or 1.0}
    model = PRISMPotential(**{**arguments, **settings.model})
    model.calibrate(crystals[:_CALIBRATED_ON])
    return model


def _check_init(settings: TrainingSettings, init: PRISM) -> None:
    for name, value in settings.model.items():
        had = init._init_args[name]
        if (tuple(value) if isinstance(value, (list, tuple)) else value) != had:
            raise ValueError(f"the initial model has {name} = {had!r}, the settings ask for {value!r}; leave it out")


def _finish(
    settings: TrainingSettings,
    model: PRISM,
    datasets: Mapping[str, GraphDataset],
    folder: Path,
    seconds: float,
    best_epoch: int,
    progress: bool,
) -> dict[str, Any]:
    """Report on the best model; write it, the pictures of the training, and the summary."""
    if settings.target == PES:
        scores = write_potential_report(model, datasets, folder, settings.batch_size, progress)
    else:
        mean = float(datasets["train"].targets.mean())
        scores = write_report(model, datasets, folder, settings.batch_size, progress, mean)
    summary = {
        "target": settings.target,
        "unit": model.unit,
        "scores": scores,
        "best_epoch": best_epoch,
        "epochs": settings.epochs,
        "seed": settings.seed,
        "seconds_of_this_session": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "fusion_weights": model.fusion_weights(),
        "versions": {"prism-plugin": __version__}
        | {name: version(name) for name in ("torch", "matgl", "lightning", "schedulefree")},
        "python": platform.python_version(),
    }
    model.save(folder / "model", metadata={"settings": asdict(settings), "scores": scores})
    plot_fusion(model.fusion_weights(), folder / "fusion.png")
    metric = METRICS["potential" if settings.target == PES else model.task_type]
    plot_learning_curve(folder / "log", metric, settings.unit, scores["val"], folder / "learning_curve.png")
    if settings.optimizer == "elra":
        plot_elra(folder / "log", folder / "elra.png")
    if settings.optimizer == "rod-flow":
        plot_rod_flow(folder / "log", folder / "rod_flow.png")
    with replaced(folder / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=1))
    return summary
