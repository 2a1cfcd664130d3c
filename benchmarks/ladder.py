"""What each part is worth on the base of the models to come: added in turn, removed from the whole, and done otherwise.

4,000 training crystals of at most 20 atoms and all validation crystals of that size (those of optimizers.py), width 64,
two layers, the recipe of the models that ship, equal epochs, three seeds; the validation MAE of the last epoch, and the
CPU time of the training. After these ``--equal-time`` gives each variant as many epochs as take the CPU time of the
first one, by what the runs with equal epochs took. Each run has a folder and is skipped when it is done, so that the
command can be interrupted and repeated; with a share of the runs each, two processes can work side by side.

    python benchmarks/ladder.py DATA runs/ladder --out docs/ablations
    python benchmarks/ladder.py DATA runs/ladder --equal-time --out docs/ablations
    python benchmarks/ladder.py DATA runs/ladder --crystals 12000 --atoms 30 --epochs 4 --out docs/ablations
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from optimizers import make_parser, run_folder, subset
from recipe import MUON, START, changed, is_done, run, scores_of

from prism_plugin.figures import save_figure
from prism_plugin.files import write_json
from prism_plugin.model import PRISM

BASE = replace(
    START,
    **MUON,
    options={"lr": 4e-3, "weight_decay": 0.1},
    rotate=False,
    model={**START.model, "rbf_scale": "even", "directions": False},
)
_ELEMENTS = {"atom_encoder": "elements"}
_NORMS = {**_ELEMENTS, "initial_norm": True}
_CELL = {**_NORMS, "experts": ("atomistic", "cell"), "cell": "reciprocal"}
_WHOLE = {**_CELL, "experts": ("atomistic", "cell", "multiscale"), "multiscale": "residual"}
_PUBLISHED = {**_NORMS, "experts": ("atomistic", "multiscale")}  # the multiscale expert as it is in the paper
_MEANS = {**_PUBLISHED, "superatom_readout": "mean", "multiscale_aggregation": "mean"}
_SIMILAR = {**_WHOLE, "experts": ("atomistic", "cell", "multiscale", "similarity")}


def prefer_atoms(model: PRISM) -> None:
    """Let the atomistic expert begin with nearly all of the weight (0.98 beside one other)."""
    for layer in model.layers:
        layer.atom_fusion.logits.data[0] = 4.0


def without_crystal_norms(model: PRISM) -> None:
    """Take the BatchNorm over the crystals of a batch out of the multiscale expert."""
    for layer in model.layers:
        layer.experts["multiscale"].superatom_norm = torch.nn.Identity()


# Name -> settings that differ from BASE.
VARIANTS: dict[str, dict[str, Any]] = {
    "atoms and distances": {},
    "with directions, crystals turned": {"model": {"directions": True}, "rotate": True},
    "+ elements": {"model": _ELEMENTS},
    "+ elements, norms": {"model": _NORMS},
    "+ elements, norms, cell": {"model": _CELL},
    "the whole: + elements, norms, cell, multiscale": {"model": _WHOLE},
    "the whole without elements": {"model": {**_WHOLE, "atom_encoder": "cartnet"}},
    "the whole without norms": {"model": {**_WHOLE, "initial_norm": False}},
    "the whole without cell": {"model": {**_WHOLE, "experts": ("atomistic", "multiscale")}},
    "the whole, cell by translations": {"model": {**_WHOLE, "cell": "translations"}},
    "the whole and similarity": {"model": _SIMILAR},
    "the whole and similarity, hardly weighed at the start": {"model": _SIMILAR},
    "elements, norms, multiscale as published": {"model": _PUBLISHED},
    "as published, means": {"model": _MEANS},
    "as published, means, hardly weighed at the start": {"model": _MEANS},
    "as published, means, no norm over crystals": {"model": _MEANS},
    "the whole with angles": {"model": {**_WHOLE, "angular": 16}},
    "the whole, cutoff 5 Å": {"model": {**_WHOLE, "cutoff": 5.0}},
    "the whole, attention": {"model": {**_WHOLE, "readout": "attention"}},
    "the whole, width 128": {"model": {**_WHOLE, "dim": 128}},
    "the whole, 3 layers": {"model": {**_WHOLE, "num_layers": 3}},
    "the whole, batch of 16": {"model": _WHOLE, "batch_size": 16},
    "the whole, rate 8e-3": {"model": _WHOLE, "options": {**BASE.options, "lr": 8e-3}},
    "the whole, rate 2e-3": {"model": _WHOLE, "options": {**BASE.options, "lr": 2e-3}},
}
# Name -> what is done to the model before the training.
CHANGES: dict[str, Callable[[PRISM], None]] = {
    "the whole and similarity, hardly weighed at the start": prefer_atoms,
    "as published, means, hardly weighed at the start": prefer_atoms,
    "as published, means, no norm over crystals": without_crystal_norms,
}
FIRST = next(iter(VARIANTS))


class Change(Callback):
    """Change the model before its optimizer is made."""

    def __init__(self, change: Callable[[PRISM], None]) -> None:
        self.change = change

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Change it."""
        self.change(pl_module.model)


def draw(table: dict[str, dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(9, 1.2 + 0.27 * len(table)), layout="constrained")
    panel = figure.subplots()
    for row, (name, found) in enumerate(table.items()):
        values = np.array(found["val_mae"])
        panel.barh(row, values.mean(), color="#1f4e9c" if name.startswith("the whole:") else "#8da0cb")
        panel.plot(values, np.full(len(values), row), "k|", markersize=9)
    panel.axvline(np.mean(table[FIRST]["val_mae"]), color="0.3", linestyle="--", linewidth=0.8)
    panel.set_yticks(range(len(table)), list(table))
    panel.invert_yaxis()
    least = min(min(found["val_mae"]) for found in table.values())
    panel.set_xlim(left=0.8 * least)
    panel.set_xlabel("validation MAE (eV/atom); strokes are seeds; the axis does not begin at 0")
    panel.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def main() -> None:
    parser = make_parser(__doc__, epochs=8)
    parser.add_argument("--crystals", type=int, default=4000)
    parser.add_argument("--atoms", type=int, default=20, help="most atoms of a crystal")
    parser.add_argument("--equal-time", action="store_true", help="as many epochs as take the time of the first")
    parser.add_argument("--cache", type=Path, help="folder for graphs")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = subset(arguments.data, crystals=arguments.crystals, atoms=arguments.atoms)
    root = arguments.folder / f"{len(parts['train'])}-crystals-of-{arguments.atoms}"
    print({name: len(records) for name, records in parts.items()}, flush=True)

    def done(name: str, seed: int, epochs: int) -> Path:
        settings = changed(BASE, VARIANTS[name], epochs, seed)
        callbacks = [Change(CHANGES[name])] if name in CHANGES else []
        return run(parts, settings, name, root, callbacks, arguments.cache)

    seeds = range(arguments.seeds)
    epochs = dict.fromkeys(arguments.variants, arguments.epochs)
    if arguments.equal_time:
        names = [FIRST, *arguments.variants]
        spent = {name: [run_folder(root, name, arguments.epochs, seed) for seed in seeds] for name in names}
        if missing := [one.name for one in chain.from_iterable(spent.values()) if not is_done(one)]:
            parser.error(f"{len(missing)} runs with equal epochs are missing, the first is {missing[0]}: run them")
        seconds = {name: np.mean(scores_of(folders)["cpu_seconds"]) for name, folders in spent.items()}
        epochs = {name: max(1, round(arguments.epochs * seconds[FIRST] / seconds[name])) for name in epochs}
    jobs = [(name, seed) for seed in seeds for name in arguments.variants]
    for name, seed in jobs[arguments.share[0] :: arguments.share[1]]:
        done(name, seed, epochs[name])
    if arguments.out is None:
        return
    table: dict[str, dict[str, Any]] = {}
    for name in arguments.variants:
        table[name] = {"epochs": epochs[name], **scores_of([done(name, seed, epochs[name]) for seed in seeds])}
    arguments.out.mkdir(parents=True, exist_ok=True)
    label = f"ladder-{len(parts['train'])}{'-equal-time' if arguments.equal_time else ''}"
    draw(table, arguments.out / f"{label}.png")
    write_json(arguments.out / f"{label}.json", table)
    print("| model | epochs | validation MAE (eV/atom), mean | each seed | CPU time |\n|---|---|---|---|---|")
    first = np.mean(table[arguments.variants[0]]["cpu_seconds"])
    for name, row in table.items():
        each = ", ".join(f"{value:.4f}" for value in row["val_mae"])
        times = np.mean(row["cpu_seconds"]) / first
        print(f"| {name} | {row['epochs']} | {np.mean(row['val_mae']):.4f} | {each} | {times:.2f} |")


if __name__ == "__main__":
    main()
