"""Relax the cell of NaCl with ASE and the default model, and draw the way.

The forces and stresses are gradients of a model that has seen relaxed crystals only: nobody has validated them.
"""

import argparse

import numpy as np
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS
from matplotlib.figure import Figure

from prism_plugin import PRISMCalculator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="relaxation.png", help="the picture")
parser.add_argument("--dry-run", action="store_true", help="the same: this example takes seconds")
arguments = parser.parse_args()

atoms = bulk("NaCl", "rocksalt", a=6.1, cubic=True)
atoms.calc = PRISMCalculator(compute_forces=True, dtype="float64")
lengths, energies = [], []


def note() -> None:
    lengths.append(atoms.cell.lengths().mean())
    energies.append(atoms.get_potential_energy() / len(atoms))


optimizer = LBFGS(FrechetCellFilter(atoms), logfile=None)
optimizer.attach(note)
optimizer.run(fmax=0.02, steps=100)

# Beside it the energy over the lattice constant, all of it in one call.
grid = np.linspace(5.3, 6.2, 37)
curve = atoms.calc.predict([bulk("NaCl", "rocksalt", a=a) for a in grid])

figure = Figure(figsize=(6.5, 4.2), layout="constrained")
panel = figure.subplots()
panel.plot(grid, [result["energy"] / 2 for result in curve], color="#8da0cb", label="energy over the lattice constant")
panel.plot(lengths, energies, "o-", color="#d95f02", label=f"relaxation, {len(lengths)} points")
panel.axvline(5.69, color="0.5", linestyle="--", label="Materials Project, 5.69 Å")
panel.set(xlabel="lattice constant (Å)", ylabel="formation energy (eV/atom)", title="NaCl, default model")
panel.legend()
figure.savefig(arguments.out, dpi=150)
print(f"lattice constant {lengths[-1]:.3f} Å after {len(lengths) - 1} steps; Materials Project: 5.69 Å")
