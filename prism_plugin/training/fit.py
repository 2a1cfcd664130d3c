"""One training, from records to a run folder with model, log, predictions, plots and summary.

The folder: ``settings.json``, ``log/version_*/metrics.csv``, ``checkpoints/{best,last}.ckpt``, ``model/`` (load it with
``matgl.load_model``), ``predictions.csv``, ``learning_curve.png``, ``parity.png`` (of a classification
``classes.png``), ``elements.png`` (error by element),
``fusion.png`` (weights of the experts), ``summary.json``; with ELRA also ``elra.png``, with rod flow ``rod_flow.png``.
A potential (target ``"pes"``) has no ``elements.png``, and three panels in ``parity.png``.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy

from prism_plugin.config import OPTIMIZER_OPTIONS
from prism_plugin.data import GraphDataset, Record, make_datasets, make_loader
from prism_plugin.data.records import count_crystals, elements_of, fingerprint
from prism_plugin.devices import find_device
from prism_plugin.distributed import has_group
from prism_plugin.domain import FEWEST
from prism_plugin.errors import PrismError
from prism_plugin.files import locked, sweep, write_json
from prism_plugin.model import PRISM
from prism_plugin.nn.backbones.ecomformer import check_e3nn
from prism_plugin.optim import make_optimizer
from prism_plugin.pretrained import RARE
from prism_plugin.settings import TrainingSettings
from prism_plugin.tasks import Task, task_of
from prism_plugin.training.checkpoints import CHECKPOINTS, LAST, WholeCheckpoints, newest_checkpoint, read_checkpoint
from prism_plugin.training.initial import (
    CORRECTED,
    MIDWAY,
    TRAINED,
    UNTOUCHED,
    midway,
    validation_losses,
    which_to_keep,
)
from prism_plugin.training.loggers import make_logger
from prism_plugin.training.module import PropertyTraining
from prism_plugin.training.report import write_summary
from prism_plugin.training.run_folder import CRYSTALS, SETTINGS, changeable, check_folder, describe_settings
from prism_plugin.training.stopping import SaveBetweenSteps, SignalReceived

__all__ = ["Interrupted", "check_runnable", "still_rare", "train"]


# One of these is in the environment of a process that was started on one of several nodes.
_LAUNCHERS = {"GROUP_RANK", "LSB_JOBID", "NODE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "RANK", "SLURM_PROCID"}


class Interrupted(KeyboardInterrupt):
    """A training that a user or a scheduler has ended.

    Attributes:
        status: the usual exit status.
    """

    def __init__(self, how: str, folder: Path, is_saved: bool, status: int) -> None:
        kept = f"go on with: prism train --resume {folder}" if is_saved else "nothing is kept yet"
        super().__init__(f"{how}; {kept}")
        self.status = status


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
    logger: str | None = None,
) -> dict[str, Any]:
    """Train a PRISM and write its run folder.

    Args:
        settings: what to do.
        parts: records of ``"train"``, ``"val"`` and, if there is one, ``"test"``.
        folder: the run folder; made if missing.
        resume: go on from its newest whole checkpoint. False refuses a folder that has one.
        init: start from a copy of this model, with its elements and sizes, not from random weights. Where target and
            unit are the same, mean, spread and, unless ``settings.batchnorm_batches`` is given, statistics of norms are
            kept, a number for each element is fitted to the new labels first, and of the untouched model, the one so
            corrected, one midway between it and the trained one, and the trained one that is kept which is best on the
            validation part, the last two only if they are surely so
            (:func:`~prism_plugin.training.initial.which_to_keep`). For another target mean and spread are those of the
            new data.
        progress: whether there are progress bars.
        callbacks: further Lightning callbacks.
        cache: folder for graphs on disk, where a later run finds them; None builds them anew, in memory.
        on_start: called with the run folder when everything was checked, before the training.
        logger: ``"tensorboard"``, ``"wandb"`` or ``"mlflow"`` beside the run folder's own log.

    Returns:
        The summary: MAE and RMSE of each part, those of the mean predictor, times, versions. With several devices it is
        empty in all processes but the first.

    Raises:
        KeyboardInterrupt: if Ctrl-C, SIGTERM or SIGUSR1 came; what was done is kept.
        ValueError: if the folder holds a run and ``resume`` is False, or one of other settings, other data or another
            place and it is True, or files of something else; if ``settings.model`` contradicts ``init``; if the data
            are bad.
    """
    folder = Path(folder)
    first = not _launched(settings)
    with locked(folder) if first else nullcontext():
        if first:
            sweep(folder)
        return _train(settings, parts, folder, first, resume, init, progress, callbacks, cache, on_start, logger)


def _train(
    settings: TrainingSettings,
    parts: Mapping[str, Sequence[Record]],
    folder: Path,
    first: bool,
    resume: bool,
    init: PRISM | None,
    progress: bool,
    callbacks: Sequence[Callback],
    cache: str | Path | None,
    on_start: Callable[[Path], None] | None,
    logger: str | None,
) -> dict[str, Any]:
    for name in ("train", "val"):
        if not parts.get(name):
            raise PrismError(f"the part {name!r} is missing or empty: a training needs train and val")
    task = task_of(settings, init)
    device = check_runnable(settings)
    loggers = [] if logger is None else [make_logger(logger, folder)]
    described = {
        **describe_settings(settings),
        "data": fingerprint(parts),
        CRYSTALS: fingerprint(parts, structures=True),
    }
    if first:  # else the first process has looked, and begun to write
        start = check_folder(folder, described, resume, changeable(settings))
    else:
        found = newest_checkpoint(folder) if resume else None
        start = None if found is None else found[0]
    task.check_records(settings, parts)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as if nothing had been drawn
        torch.manual_seed(settings.seed)
        model = task.new_model(settings, parts["train"], elements_of(parts["train"]), init)
    _check_crystals(model, parts)
    for name in ("train", "val"):
        if len(parts[name]) < settings.processes:
            raise PrismError(
                f"{len(parts[name])} crystals of the {name} part are too few for {settings.processes} devices"
            )
    datasets = make_datasets(parts, model.cutoff, model.cell_cutoff, progress and first, cache, model.has_waves)
    if first and progress:
        counts = ", ".join(f"{len(dataset):,} {name}" for name, dataset in datasets.items())
        weights = sum(parameter.numel() for parameter in model.parameters())
        print(f"crystals: {counts}; {len(model.element_types)} elements; {weights:,} weights")
        if len(datasets["val"]) < FEWEST:
            print(f"fewer than {FEWEST} validation crystals: a trained model will answer without novelty and intervals")
    if first:
        write_json(folder / SETTINGS, described)
        if on_start is not None:
            on_start(folder)

    if device.type == "cuda" and settings.processes == 1:
        datasets = _on_device(datasets, device)
    continues = task.continues(settings, init)
    module = _module(settings, task, model, datasets["train"], continues)
    # What the trained model has to beat: the initial one, as it is and with the elements' numbers fitted to the data.
    rivals = {UNTOUCHED: copy.deepcopy(init), CORRECTED: copy.deepcopy(model)} if init and continues else {}
    place = (folder / CHECKPOINTS).resolve()
    loader = make_loader(datasets["train"], settings.batch_size, settings.seed, settings.sample_atoms)
    saving = SaveBetweenSteps(place / LAST, loader)
    trainer = _trainer(settings, task, module.metric, place, device, progress, [*callbacks, saving], loggers)
    started = time.perf_counter()
    grouped = has_group()
    last = place / LAST
    with _quiet(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            trainer.fit(
                module,
                loader,
                make_loader(datasets["val"], settings.batch_size),
                ckpt_path=start,
            )
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise Interrupted("interrupted", folder, last.exists(), 130) from None
        except SignalReceived as stop:
            how = "interrupted" if stop.number == signal.SIGINT else f"ended by {stop}"
            raise Interrupted(how, folder, last.exists(), 128 + stop.number) from None
    best = read_checkpoint(place / "best.ckpt")
    module.load_state_dict(best["state_dict"])
    module.to(trainer.strategy.root_device)  # Lightning's teardown moves it to the CPU
    module.batchnorm_batches = None
    module.reestimate()
    if settings.processes > 1 and not grouped:  # Lightning leaves its group behind; one that is open at exit may abort
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if not trainer.is_global_zero:
        return {}
    losses: dict[str, np.ndarray] = {}
    kept = TRAINED
    if init is not None:
        if rivals:
            contest = {name: one.to(model.device) for name, one in rivals.items()}
            contest |= {MIDWAY: midway(contest[CORRECTED], model), TRAINED: model}
            loader = make_loader(datasets["val"], settings.batch_size)
            losses = validation_losses(contest, module.loss, loader, task.differentiates)
            kept = which_to_keep(losses)
            model = contest[kept]
        if kept != UNTOUCHED:
            model.rare_elements = still_rare(init, parts["train"], another=init.target != model.target)
    seconds = time.perf_counter() - started
    done = trainer.fit_loop.epoch_progress.current.completed
    means = {name: float(of_model.mean()) for name, of_model in losses.items()}
    contest_of: dict[str, Any] = {} if init is None else {"initial_model": init.target}
    contest_of |= {"kept": kept, "validation": means} if losses else {}
    return write_summary(
        settings, task, model, datasets, folder, seconds, (done, int(best["epoch"])), progress, contest_of
    )


def _trainer(
    settings: TrainingSettings,
    task: Task,
    metric: str,
    place: Path,
    device: torch.device,
    progress: bool,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
) -> L.Trainer:
    best = ModelCheckpoint(place, "best", monitor=f"val_{metric}", enable_version_counter=False)
    # After the other one, so that it knows the best epoch; save_last would skip epochs without improvement.
    every_epoch = ModelCheckpoint(place, "last", enable_version_counter=False)
    bar = [TQDMProgressBar()] if progress else []
    # Lightning would save on its own, and begin the next run of whatever settings with that.
    cluster = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    with _quiet():
        return L.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=settings.devices,
            num_nodes=settings.nodes,
            # The superatoms' last weights get no gradient; and the loaders divide the batches themselves.
            strategy=DDPStrategy(find_unused_parameters=True) if settings.processes > 1 else "auto",
            use_distributed_sampler=False,
            max_epochs=settings.epochs,
            callbacks=[*callbacks, *bar, best, every_epoch],
            default_root_dir=place.parent,
            plugins=[WholeCheckpoints(), *cluster],
            logger=[CSVLogger(place.parent, name="log"), *loggers],
            log_every_n_steps=1,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=settings.clip,
            precision=cast("Any", settings.precision),
            inference_mode=not task.differentiates,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notes and its warnings of what is meant so off the screen."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6 with torch 2.13
            # Graphs are built before and held in memory: workers would only copy them.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
            yield
    finally:
        logger.setLevel(level)


def check_runnable(settings: TrainingSettings) -> torch.device:
    """Return the device; raise ValueError unless it is here, and the optimizer can be made.

    An optimizer that is given by its class, which nobody has seen here, must be able to do a step, and to have its
    state saved and read as checkpoints are.
    """
    if not settings.target:
        raise PrismError("the settings have no target: say what to predict")
    device = find_device(settings.device)
    if settings.nodes > 1 and not _LAUNCHERS & os.environ.keys():
        raise PrismError(
            f"nodes = {settings.nodes} needs a launcher that starts a process on each: torchrun, srun, or NODE_RANK "
            "and MASTER_ADDR set by hand; alone this process would wait for the others for ever"
        )
    if settings.model.get("backbone") == "ecomformer":
        check_e3nn()
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (2,))]
    options = settings.all_options()
    optimizer, _ = make_optimizer(settings.optimizer, weights, options=options, schedule=settings.schedule)
    if settings.optimizer in OPTIMIZER_OPTIONS:
        return device
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    if hasattr(optimizer, "train"):
        optimizer.train()
    try:
        optimizer.step(lambda: float(weights[0].detach().sum()))
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise PrismError(f"the optimizer {settings.optimizer!r} cannot train here: {error}") from error
    state = io.BytesIO()
    try:
        torch.save(optimizer.state_dict(), state)
        state.seek(0)
        torch.load(state, weights_only=True)
    except (pickle.PickleError, RuntimeError, TypeError) as error:
        raise PrismError(
            f"the optimizer {settings.optimizer!r} has a state of other things than numbers, which no checkpoint here "
            f"holds: {str(error).splitlines()[0]}"
        ) from error
    return device


def still_rare(init: PRISM, records: Sequence[Record], another: bool) -> dict[str, int]:
    """Count the crystals of elements that the initial model has hardly seen, and the new data do not make up for.

    Where another property is learned, also of those that no crystal of the new data has. The new data may be the ones
    that the initial model has learned from: none is counted twice.
    """
    seen = count_crystals(records)
    counts = {symbol: max(count, seen[symbol]) for symbol, count in init.rare_elements.items()}
    unseen = {symbol: 0 for symbol in init.element_types if another and not seen[symbol]}
    return {symbol: count for symbol, count in counts.items() if count < RARE} | unseen


def _on_device(datasets: dict[str, GraphDataset], device: torch.device) -> dict[str, GraphDataset]:
    """Move the graphs of all parts to a GPU where they take less than a quarter of its free memory.

    Its batches are then made there, and nothing is copied while it computes.
    """
    together = next(iter(datasets.values())).graphs  # the parts share their tensors
    if together.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
        return datasets
    tensors = together.to(device).tensors
    return {name: dataset.to(device, tensors) for name, dataset in datasets.items()}


def _module(
    settings: TrainingSettings, task: Task, model: PRISM, dataset: GraphDataset, continues: bool
) -> PropertyTraining:
    fixed_norms = continues and settings.batchnorm_batches is None
    loss = task.loss(settings, dataset)
    how = (settings.optimizer, settings.all_options(), settings.rotate, settings.seed)
    rest: dict[str, Any] = {"loss": loss, "fixed_norms": fixed_norms, "schedule": settings.schedule}
    if fixed_norms or model.arguments.get("norm", None) is None:  # a potential has no such argument
        return PropertyTraining(model, *how, **rest)
    loader = make_loader(dataset, settings.batch_size, settings.seed + 1, settings.sample_atoms)
    return PropertyTraining(model, *how, loader, settings.batchnorm_batches, **rest)


def _launched(settings: TrainingSettings) -> bool:
    """Whether this is another than the first of several processes (of Lightning, torchrun or SLURM)."""
    if settings.processes == 1:
        return False
    return any(int(os.environ.get(name) or 0) > 0 for name in ("LOCAL_RANK", "RANK", "NODE_RANK", "SLURM_PROCID"))


def _check_crystals(model: PRISM, parts: Mapping[str, Sequence[Record]]) -> None:
    """Raise ValueError where there is a crystal that the model cannot read."""
    learned = set(elements_of(parts["train"]))
    for split, records in parts.items():
        for record in records:
            foreign = sorted(set(record.atoms.symbols) - set(model.element_types))
            if foreign:
                why = "the model does not know" if set(foreign) <= learned else "no training crystal has"
                raise PrismError(
                    f"crystal {record.name!r} of the {split} part has {', '.join(foreign)}, which {why}: move it to "
                    "the training part, remove it, or start from another model"
                )
            try:
                model.check_crystal((), record.atoms.pbc)
            except ValueError as error:
                raise PrismError(f"crystal {record.name!r} of the {split} part: {error}") from error
