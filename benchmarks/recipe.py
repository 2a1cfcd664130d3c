"""What was tried for the recipe of the models that ship: one thing changed at a time, equal epochs, three seeds.

4,000 training crystals of at most 20 atoms and all validation crystals of that size (those of optimizers.py), width 64,
two layers, the atomistic expert only; the validation MAE of the last epoch, and the CPU time of the training. Each run
has a folder and is skipped when it is done, so that the command can be interrupted and repeated; with a share of the
runs each, two processes can work side by side. What each part gives is in ablations.py and
ladder.py.

    python benchmarks/recipe.py DATA runs/recipe --out docs/default_model
"""

import json
import lzma
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from optimizers import make_parser, run_folder, subset

from prism_plugin.data import Record
from prism_plugin.files import write_json
from prism_plugin.training import TrainingSettings, train
from prism_plugin.training.plots import read_columns

START = TrainingSettings(
    target="formation_energy",
    unit="eV/atom",
    model={
        "dim": 64,
        "num_layers": 2,
        "num_rbf": 32,
        "cutoff": 4.0,
        "experts": ("atomistic",),
        "atom_encoder": "cartnet",
    },
    options={"lr": 8e-3},
    batch_size=32,
    batchnorm_batches=30,
    precision="bf16-mixed",
)
MUON = {"optimizer": "muon", "clip": 1.0}
_RECIPE = {**MUON, "options": {"lr": 4e-3, "weight_decay": 0.1}, "model": {"dim": 128, "num_layers": 3}}
# Name -> settings that differ from START; those of the model by their own names.
VARIANTS: dict[str, dict[str, Any]] = {
    "start: width 64, 2 layers, AdamW-ScheduleFree 8e-3": {},
    "width 128": {"model": {"dim": 128}},
    "4 layers": {"model": {"num_layers": 4}},
    "cutoff 5 Å": {"model": {"cutoff": 5.0}},
    "cutoff 6 Å": {"model": {"cutoff": 6.0}},
    "PRISM's atom encoder": {"model": {"atom_encoder": "prism"}},
    "all experts, PRISM's atom encoder": {
        "model": {"experts": ("atomistic", "cell", "multiscale", "similarity"), "atom_encoder": "prism"}
    },
    "Adam + OneCycle 8e-3": {"optimizer": "adam-onecycle"},
    "ELRA, floor 0.1": {"optimizer": "elra", "options": {"min_step": 0.1}},
    "Muon 8e-3": {**MUON, "options": {"lr": 8e-3, "weight_decay": 0.1}},
    "AdaMuon 8e-3, as Muon": {
        **MUON,
        "optimizer": "pytorch_optimizer.AdaMuon",
        "schedule": "onecycle",
        "options": {"lr": 8e-3, "weight_decay": 0.1},
    },
    "batch of 16": {"batch_size": 16},
    "targets not scaled": {"normalize": False},
    "training crystals not turned": {"rotate": False},
    "without suspect labels": {},
    "products in float32": {"precision": "32-true"},
    "the recipe: width 128, 3 layers, Muon 4e-3": _RECIPE,
}


def suspects(path: Path) -> set[str]:
    """Names of the crystals whose label another source has otherwise."""
    with lzma.open(path, "rt") as file:
        return {row["id"] for row in map(json.loads, file) if row["suspect"]}


def changed(start: TrainingSettings, changes: dict[str, Any], epochs: int, seed: int) -> TrainingSettings:
    """Return settings with some of them changed; those of the model by their own names."""
    model = {**start.model, **changes.get("model", {})}
    return TrainingSettings(**{**asdict(start), **changes, "model": model, "epochs": epochs, "seed": seed})


def is_done(folder: Path) -> bool:
    """Whether a run has come to its end."""
    return (folder / "cpu.json").exists()


def run(
    parts: dict[str, list[Record]],
    settings: TrainingSettings,
    name: str,
    root: Path,
    callbacks: Sequence[Callback] = (),
    cache: Path | None = None,
) -> Path:
    """Train, unless that was done."""
    folder = run_folder(root, name, settings.epochs, settings.seed)
    if not is_done(folder):
        print(folder.name, flush=True)
        shutil.rmtree(folder, ignore_errors=True)  # a minute's work that was interrupted
        started = time.process_time()
        train(settings, parts, folder, progress=False, callbacks=callbacks, cache=cache)
        write_json(folder / "cpu.json", time.process_time() - started)
    return folder


def scores_of(folders: list[Path]) -> dict[str, list[float]]:
    """Return the validation MAE of the last epoch, and the CPU time, of the runs of some seeds."""
    logs = [read_columns(folder / "log", "epoch", ("val_mae",))["val_mae"] for folder in folders]
    return {
        "val_mae": [float(log[-1]) for log in logs],
        "cpu_seconds": [float(json.loads((folder / "cpu.json").read_text())) for folder in folders],
    }


def main() -> None:
    parser = make_parser(__doc__, epochs=8)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = subset(arguments.data)
    doubtful = suspects(arguments.data)
    clean = {**parts, "train": [record for record in parts["train"] if record.name not in doubtful]}
    print({name: len(records) for name, records in parts.items()}, len(clean["train"]), "not suspect", flush=True)
    some = {name: clean if name == "without suspect labels" else parts for name in arguments.variants}
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in arguments.variants]

    def done(name: str, seed: int) -> Path:
        settings = changed(START, VARIANTS[name], arguments.epochs, seed)
        return run(some[name], settings, name, arguments.folder)

    for name, seed in jobs[arguments.share[0] :: arguments.share[1]]:
        done(name, seed)
    if arguments.out is None:
        return
    seeds = range(arguments.seeds)
    table = {name: scores_of([done(name, seed) for seed in seeds]) for name in arguments.variants}
    write_json(arguments.out / "recipe.json", {"epochs": arguments.epochs, "runs": table})
    print("| changed | validation MAE (eV/atom), mean | each seed | CPU time |\n|---|---|---|---|")
    first = np.mean(table[arguments.variants[0]]["cpu_seconds"])
    for name, row in table.items():
        each = ", ".join(f"{value:.4f}" for value in row["val_mae"])
        print(f"| {name} | {np.mean(row['val_mae']):.4f} | {each} | {np.mean(row['cpu_seconds']) / first:.1f} |")


if __name__ == "__main__":
    main()
