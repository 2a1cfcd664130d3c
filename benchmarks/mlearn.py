"""Potentials of Ni, Cu, Li, Mo, Si and Ge: RMSE of energies and forces beside NNP and SNAP.

DATA is a folder with ELEMENT_train.extxyz.xz, the training parts of Zuo et al., J. Phys. Chem. A 124, 731 (2020). Their
test parts are not there: of each file a fifth is held out as test and a twentieth as validation, by seed 0. The numbers
of NNP and SNAP are those of the paper, on its own test parts. Each element is one training run, which goes on where it
was stopped; with all done, only the table and the picture are made anew. "Turned" is the root mean square change of
energies (meV/atom) and forces (eV/Å) when the test crystals are turned at random.

    python benchmarks/mlearn.py ../shared/data/mlearn runs/mlearn
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from matplotlib.figure import Figure

from prism_plugin import PRISMCalculator
from prism_plugin.data import PES, Record, read_records
from prism_plugin.data.augmentation import random_rotations
from prism_plugin.recipes import POTENTIAL
from prism_plugin.training import TrainingSettings, train

# Energy (meV/atom) and force (eV/Å) RMSE of Zuo et al.
PUBLISHED = {
    "NNP": {
        "Ni": (2.25, 0.067),
        "Cu": (1.68, 0.063),
        "Li": (0.98, 0.023),
        "Mo": (5.43, 0.204),
        "Si": (6.93, 0.170),
        "Ge": (7.63, 0.125),
    },
    "SNAP": {
        "Ni": (1.17, 0.085),
        "Cu": (0.75, 0.083),
        "Li": (1.31, 0.038),
        "Mo": (9.25, 0.376),
        "Si": (8.06, 0.205),
        "Ge": (9.75, 0.295),
    },
}
ELEMENTS = tuple(PUBLISHED["NNP"])

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--elements", nargs="+", default=ELEMENTS, choices=ELEMENTS)
parser.add_argument("--epochs", type=int, default=POTENTIAL["epochs"])
parser.add_argument("--quiet", action="store_true", help="no progress bars")
arguments = parser.parse_args()


def turned(model: Path, records: list[Record]) -> tuple[float, float]:
    """Change of energies and forces, turned back, under a random rotation of each crystal."""
    calculator = PRISMCalculator(model, compute_forces=True)
    rotations = random_rotations(len(records), torch.Generator().manual_seed(0)).numpy()
    crystals = [record.atoms for record in records]
    moved = [
        Atoms(one.numbers, one.positions @ rotation.T, cell=one.cell.array @ rotation.T, pbc=one.pbc)
        for one, rotation in zip(crystals, rotations, strict=True)
    ]
    energies, forces = [], []
    for before, after, rotation in zip(calculator.predict(crystals), calculator.predict(moved), rotations, strict=True):
        energies.append((after["energy"] - before["energy"]) / len(before["forces"]))
        forces.append(after["forces"] @ rotation - before["forces"])
    return 1000 * float(np.sqrt(np.square(energies).mean())), float(np.sqrt(np.square(np.concatenate(forces)).mean()))


found, spread = {}, {}
for element in arguments.elements:
    records = read_records(arguments.data / f"{element}_train.extxyz.xz", PES)
    order = np.random.default_rng(0).permutation(len(records))
    ends = np.cumsum([round(0.2 * len(records)), round(0.05 * len(records))])
    parts = {
        part: [records[index] for index in indices]
        for part, indices in zip(("test", "val", "train"), np.split(order, ends), strict=True)
    }
    folder = arguments.out / element
    if not (folder / "summary.json").exists():
        settings = TrainingSettings(PES, **{**POTENTIAL, "epochs": arguments.epochs})
        train(settings, parts, folder, resume=True, progress=not arguments.quiet)
    summary = json.loads((folder / "summary.json").read_text())
    found[element] = summary["scores"]["test"] | {"epochs": summary["epochs"]}
    spread[element] = turned(folder / "model", parts["test"])

names = " | ".join(f"{name} E / F" for name in ("PRISM", *PUBLISHED))
print(f"| element | {names} | turned | rms F | frames | epochs |")
print("|---" * (len(PUBLISHED) + 6) + "|")
for element, scores in found.items():
    ours = (scores["energy_rmse"], scores["forces_rmse"])
    numbers = [ours, *(values[element] for values in PUBLISHED.values())]
    cells = " | ".join(f"{energy:.2f} / {force:.3f}" for energy, force in numbers)
    moves = "{:.2f} / {:.3f}".format(*spread[element])
    print(f"| {element} | {cells} | {moves} | {scores['rms_forces']:.2f} | {scores['crystals']} | {scores['epochs']} |")

figure = Figure(figsize=(9, 4.2), layout="constrained")
panels = figure.subplots(1, 2)
places = np.arange(len(found))
for panel, which, words in zip(panels, (0, 1), ("energy RMSE (meV/atom)", "force RMSE (eV/Å)"), strict=True):
    keys = ("energy_rmse", "forces_rmse")
    bars = {"PRISM": [scores[keys[which]] for scores in found.values()]}
    bars |= {name: [values[element][which] for element in found] for name, values in PUBLISHED.items()}
    for number, (name, heights) in enumerate(bars.items()):
        color = ("#1f4e9c", "#d95f02", "#8da0cb")[number]
        panel.bar(places + 0.27 * (number - 1), heights, 0.25, color=color, label=name)
    panel.set(ylabel=words, xticks=places, xticklabels=list(found))
    panel.legend()
figure.suptitle("mlearn: PRISM on a held-out fifth, NNP and SNAP as published")
figure.savefig(arguments.out / "mlearn.png", dpi=150)
print(f"picture: {arguments.out / 'mlearn.png'}")
