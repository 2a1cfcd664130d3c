"""Potentials of Ni, Cu, Li, Mo, Si and Ge: RMSE of energies and forces beside NNP and SNAP.

DATA is a folder with ELEMENT_train.extxyz.xz, the training parts of Zuo et al., J. Phys. Chem. A 124, 731 (2020). Their
test parts are not there: of each file a fifth is held out as test and a twentieth as validation, by seed 0. The numbers
of NNP and SNAP are those of the paper, on its own test parts. Each element and seed is one training run, which goes on
where it was stopped; with all done, only the table and the picture are made anew. "PRISM" is the mean of the seeds'
RMSEs, "committee" the RMSE of their mean prediction. "Turned" is the root mean square change of its energies
(meV/atom) and forces (eV/Å) when the test crystals are turned at random.

    python benchmarks/mlearn.py ../shared/data/mlearn runs/mlearn
    python benchmarks/mlearn.py ../shared/data/mlearn runs/tuned --init prism-universal-pbe --seeds 0 --epochs 30

The second one begins with a potential.
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
from prism_plugin.pretrained import load
from prism_plugin.tasks.potential import Potential, score_potential
from prism_plugin.tasks.scores import rms
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
parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
parser.add_argument("--epochs", type=int, default=Potential.recipe["epochs"])
parser.add_argument("--init", help="a potential that each run begins with, by name or folder")
parser.add_argument("--quiet", action="store_true", help="no progress bars")
arguments = parser.parse_args()


def committee(models: list[Path], records: list[Record]) -> tuple[dict, float, float]:
    """Scores of the mean prediction; its change, energies and forces turned back, under a random rotation of each."""
    calculator = PRISMCalculator(models, compute_forces=True)
    rotations = random_rotations(len(records), torch.Generator().manual_seed(0)).numpy()
    crystals = [record.atoms for record in records]
    moved = [
        Atoms(one.numbers, one.positions @ rotation.T, cell=one.cell.array @ rotation.T, pbc=one.pbc)
        for one, rotation in zip(crystals, rotations, strict=True)
    ]
    answers = calculator.predict(crystals)
    energies, forces = [], []
    for before, after, rotation in zip(answers, calculator.predict(moved), rotations, strict=True):
        energies.append((after["energy"] - before["energy"]) / len(before["forces"]))
        forces.append(after["forces"] @ rotation - before["forces"])
    sizes = np.array([len(one) for one in crystals])
    scores = score_potential(
        (np.array([record.target for record in records]) / sizes, np.array([a["energy"] for a in answers]) / sizes),
        (np.concatenate([record.forces for record in records]), np.concatenate([a["forces"] for a in answers])),
        (np.full((1, 3, 3), np.nan), np.zeros((1, 3, 3))),
    )
    return scores, 1000 * rms(np.array(energies)), rms(np.concatenate(forces))


singles, together = {}, {}
for element in arguments.elements:
    records = read_records(arguments.data / f"{element}_train.extxyz.xz", PES)
    order = np.random.default_rng(0).permutation(len(records))
    ends = np.cumsum([round(0.2 * len(records)), round(0.05 * len(records))])
    parts = {
        part: [records[index] for index in indices]
        for part, indices in zip(("test", "val", "train"), np.split(order, ends), strict=True)
    }
    folders = [arguments.out / f"{element}-{seed}" for seed in arguments.seeds]
    for folder, seed in zip(folders, arguments.seeds, strict=True):
        if not (folder / "summary.json").exists():
            recipe = Potential.fine_tuning if arguments.init else Potential.recipe
            settings = TrainingSettings(PES, **{**recipe, "epochs": arguments.epochs, "seed": seed})
            init = load(arguments.init) if arguments.init else None
            train(settings, parts, folder, resume=True, init=init, progress=not arguments.quiet)
    each = [json.loads((folder / "summary.json").read_text())["scores"]["test"] for folder in folders]
    singles[element] = {key: np.mean([scores[key] for scores in each]) for key in ("energy_rmse", "forces_rmse")}
    together[element] = committee([folder / "model" for folder in folders], parts["test"])

names = " | ".join(f"{name} E / F" for name in ("PRISM", "committee", *PUBLISHED))
print(f"| element | {names} | turned | rms F | frames |")
print("|---" * (len(PUBLISHED) + 6) + "|")
for element, (scores, *moves) in together.items():
    ours = [(found["energy_rmse"], found["forces_rmse"]) for found in (singles[element], scores)]
    numbers = [*ours, *(values[element] for values in PUBLISHED.values())]
    cells = " | ".join(f"{energy:.2f} / {force:.3f}" for energy, force in numbers)
    last = f"{scores['rms_forces']:.2f} | {scores['crystals']}"
    print(f"| {element} | {cells} | {moves[0]:.2f} / {moves[1]:.3f} | {last} |")

figure = Figure(figsize=(9, 4.2), layout="constrained")
panels = figure.subplots(1, 2)
places = np.arange(len(singles))
for panel, which, words in zip(panels, (0, 1), ("energy RMSE (meV/atom)", "force RMSE (eV/Å)"), strict=True):
    key = ("energy_rmse", "forces_rmse")[which]
    seeds = len(arguments.seeds)
    name = "PRISM" if seeds == 1 else f"PRISM, mean of {seeds} seeds"
    bars = {name: [scores[key] for scores in singles.values()]}
    if seeds > 1:
        bars["PRISM, their committee"] = [scores[key] for scores, *_ in together.values()]
    bars |= {name: [values[element][which] for element in singles] for name, values in PUBLISHED.items()}
    for number, (name, heights) in enumerate(bars.items()):
        color = ("#1f4e9c", "#8da0cb", "#d95f02", "#e6ab02")[number if seeds > 1 or number == 0 else number + 1]
        width = 0.8 / len(bars)
        panel.bar(places + width * (number - (len(bars) - 1) / 2), heights, 0.9 * width, color=color, label=name)
    panel.set(ylabel=words, xticks=places, xticklabels=list(singles))
panels[0].legend(fontsize=8)
figure.suptitle("mlearn: PRISM on a held-out fifth, NNP and SNAP as published", fontsize=11)
figure.savefig(arguments.out / "mlearn.png", dpi=150)
print(f"picture: {arguments.out / 'mlearn.png'}")
