"""``prism train``: train a model on crystals with a target."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prism_plugin.commands.options import add_options, table_values
from prism_plugin.config import OPTIMIZER_OPTIONS
from prism_plugin.errors import PrismError
from prism_plugin.settings import KEYS_OF_LABELS, DataOptions, TrainingSettings
from prism_plugin.tasks import PES

__all__ = ["add_parser", "add_training_options", "run"]

_HOW = (
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "options",
    "schedule",
    "model",
    "weights",
    "huber",
    "clip",
    "precision",
    "recompute",
    "sample_atoms",
    "rotate",
    "normalize",
    "batchnorm_batches",
)
_EXAMPLES = {
    "epochs": "; 40 for a property (10 for that of the initial model), 60 for a potential, if not given",
    "batch_size": "; 16 for a property, 4 for a potential, if not given",
    "optimizer": "; muon, if not given",
    "lr": "; if not given 4e-3 for a property, 2e-2 for a potential, lower with --init; another optimizer's own",
    "options": ", for example --option weight_decay=0.01 with adamw-schedulefree, --option accumulate=2 with elra, "
    "like=adam with rod-flow (docs/rod_flow.md); may be repeated",
    "model": ", for example --set dim=128 --set cutoff=6.0; may be repeated",
    "weights": ", for example --weight energy=50; may be repeated",
    "clip": "; 1 with muon, if not given",
    "batchnorm_batches": "; 100 for a property without --init, if not given",
}


def add_parser(commands: Any) -> None:
    """Add the command."""
    train = commands.add_parser(
        "train",
        help="train a model on crystals with a target",
        description="Train PRISM. The run folder gets the model (for matgl.load_model), log, checkpoints, predictions, "
        "plots and a summary. Of a value that is given twice the command line counts, then --config, then --preset.",
        epilog="examples: prism train --preset jarvis/formation_energy --out runs/jarvis | "
        "prism train --data crystals.jsonl --target band_gap --unit eV --out runs/gap --epochs 100 | "
        "prism train --resume runs/gap",
        argument_default=argparse.SUPPRESS,
    )
    what = train.add_argument_group("what to train on")
    what.add_argument("--config", metavar="FILE", help="TOML or JSON file of these options (docs/options.md)")
    add_options(what, DataOptions, ("preset", "data"))
    add_options(what, TrainingSettings, ("target", "unit"))
    add_options(what, DataOptions, ("fold", "splits", "skip_missing", *KEYS_OF_LABELS, "init"))
    place = train.add_argument_group("the run")
    where = place.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="RUN", help="run folder")
    where.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with an interrupted run; beside it only --epochs (without schedule), --device, --devices, --nodes, "
        "--cache, --logger, --recompute",
    )
    add_options(place, TrainingSettings, ("seed", "device", "devices", "nodes"))
    add_options(place, DataOptions, ("cache", "logger"))
    place.add_argument(
        "--trust", action="store_true", help="import the optimizer's class that a config file or a run names"
    )
    add_training_options(train)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to train; a parser with ``argument_default=SUPPRESS`` leaves out what is not given.

    Tables come as lists of pairs; :func:`~prism_plugin.commands.options.table_values` makes them what
    :meth:`~prism_plugin.training.job.Job.make` reads.
    """
    add_options(parser.add_argument_group("how to train"), TrainingSettings, _HOW, _EXAMPLES)


def _check_importable(optimizer: str) -> None:
    """Raise ValueError if a file names an optimizer whose import would run code that nobody asked for."""
    if optimizer not in OPTIMIZER_OPTIONS and not optimizer.startswith("torch.optim."):
        raise PrismError(
            f"a file names the optimizer {optimizer!r}, which would be imported: pass --trust if you know what that "
            "does, or --optimizer"
        )


def run(arguments: argparse.Namespace) -> None:
    """Train, or go on with a training."""
    from prism_plugin.pretrained import load
    from prism_plugin.tasks.scores import format_scores
    from prism_plugin.training import train
    from prism_plugin.training.fit import check_runnable
    from prism_plugin.training.job import Job, read_config

    own = ("command", "config", "out", "resume", "run", "traceback", "trust")
    given = table_values({name: value for name, value in vars(arguments).items() if name not in own})
    resume = hasattr(arguments, "resume")
    if resume:
        if hasattr(arguments, "config"):
            raise PrismError("a run goes on with its own values: leave --config out beside --resume")
        job = Job.resumed(arguments.resume, given)
    else:
        job = Job.make(given, read_config(arguments.config) if hasattr(arguments, "config") else None)
    if "optimizer" not in given and not hasattr(arguments, "trust"):
        _check_importable(job.settings.optimizer)
    out = arguments.resume if resume else arguments.out
    check_runnable(job.settings)  # before data are fetched
    init = None if job.values.get("init") is None else load(job.values["init"])
    settings, parts = job.load()
    if init is not None and init.unit == settings.unit and init.target != settings.target and settings.target != PES:
        print(
            f"the initial model predicts {init.target} ({init.unit}), the data are of {settings.target}: taken for "
            f"another property. If they are the same, say so (a file's: --target {init.target} --target-key "
            f"{job.values.get('target_key', settings.target)})"
        )
    beside: dict[str, Any] = {name: job.values.get(name) for name in ("cache", "logger")}
    summary = train(settings, parts, out, resume, init, on_start=job.save, **beside)
    if summary:
        print(format_scores(summary["scores"], summary["target"], summary["unit"]))
        if "kept" in summary:
            told = ", ".join(f"{name} {loss:.4f}" for name, loss in summary["validation"].items())
            print(f"validation loss of the initial model and of what became of it: {told}; kept: {summary['kept']}")
        print(f"model: {out / 'model'}  (matgl.load_model)\nplots, log, predictions: {out}")
