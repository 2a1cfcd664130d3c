"""Relax the cells of ordered alloys with a potential, beside what it has learned from.

The potential is trained here, on alloys computed by ASE's EMT; with --model MODEL it is one from before.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from matplotlib.figure import Figure

from prism_plugin import PRISMCalculator
from prism_plugin.data import PES, load_named
from prism_plugin.simulation import relax_one
from prism_plugin.tasks.potential import Potential
from prism_plugin.training import TrainingSettings, train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", help="folder of a potential; without it one is trained, which takes some minutes")
parser.add_argument("--out", default="relaxation.png", help="the picture")
parser.add_argument("--dry-run", action="store_true", help="a small model, few steps: seconds")
arguments = parser.parse_args()


def relaxed_volume(symbols, calculator):
    """Relax an ordered alloy (L1_2) from a cell that is strained, with atoms off their sites; Å^3 per atom."""
    atoms = bulk("Cu", cubic=True, a=4.0)
    atoms.set_chemical_symbols(symbols)
    atoms.set_cell(atoms.cell.array * [[1.02], [0.99], [1.0]], scale_atoms=True)
    atoms.rattle(0.05, seed=0)
    relaxed = relax_one(atoms, calculator, fmax=0.02, steps=5 if arguments.dry_run else 300).atoms
    return relaxed.get_volume() / len(relaxed)


with TemporaryDirectory() as folder:
    model = arguments.model
    if model is None:
        trial = {"model": {"dim": 16, "cutoff": 4.0}, "epochs": 1} if arguments.dry_run else {"epochs": 20}
        settings = TrainingSettings(PES, **{**Potential.recipe, **trial})
        scores = train(settings, load_named("emt-alloys-pes", PES), Path(folder) / "run")["scores"]["test"]
        print(f"test RMSE: {scores['energy_rmse']:.1f} meV/atom, {scores['forces_rmse']:.3f} eV/Å")
        model = Path(folder) / "run" / "model"
    calculator = PRISMCalculator(model, dtype="float64")  # of a potential: energies, forces and stress

metals = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")
alloys = [[first] + [second] * 3 for first in metals for second in metals]
pairs = np.array([(relaxed_volume(alloy, EMT()), relaxed_volume(alloy, calculator)) for alloy in alloys])

figure = Figure(figsize=(5, 4.6), layout="constrained")
panel = figure.subplots()
panel.plot(*[[pairs.min(), pairs.max()]] * 2, color="0.5", linewidth=1)
panel.scatter(*pairs.T, s=18, color="#d95f02")
panel.set(
    xlabel="EMT (Å³/atom)", ylabel="potential (Å³/atom)", title=f"volumes of {len(alloys)} relaxed metals and alloys"
)
figure.savefig(arguments.out, dpi=150)
change = 100 * (pairs[:, 1] / pairs[:, 0] - 1)
print(f"relaxed volumes of {len(alloys)} crystals against EMT's: median |difference| {np.median(abs(change)):.2f} %")
