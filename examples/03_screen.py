"""Screen 32 compounds in the rocksalt structure: relax them with the potential, then predict what they are.

The models that ship, offline. The picture shows formation energies, gaps and lattice constants. Formation energies rank
structures of one composition, or distances from a convex hull (docs/tutorials/screen.md), not compounds.
"""

import argparse

import numpy as np
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii
from matplotlib.figure import Figure

from prism_plugin import load, relax

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="screening.png", help="the picture")
parser.add_argument("--dry-run", action="store_true", help="eight compounds only")
arguments = parser.parse_args()

few = 2 if arguments.dry_run else 4
families = {
    "alkali halides": (["Li", "Na", "K", "Rb"][:few], ["F", "Cl", "Br", "I"][:few]),
    "alkaline earth chalcogenides": (["Mg", "Ca", "Sr", "Ba"][:few], ["O", "S", "Se", "Te"][:few]),
}
pairs = [(a, b) for cations, anions in families.values() for a in cations for b in anions]
names = [a + b for a, b in pairs]
starts = [2 * sum(covalent_radii[atomic_numbers[symbol]] for symbol in pair) for pair in pairs]

# One call for all of them, each: batches, in the order of the list, with a progress bar.
relaxed = relax([bulk(name, "rocksalt", a=start) for name, start in zip(names, starts, strict=True)])
energies = dict(zip(names, load("prism-mp2018-eform").predict_structure(relaxed).tolist(), strict=True))
gaps = dict(zip(names, load("prism-mp2018-gap").predict_structure(relaxed).tolist(), strict=True))
constants = {name: (4 * crystal.get_volume()) ** (1 / 3) for name, crystal in zip(names, relaxed, strict=True)}

figure = Figure(figsize=(10.5, 5), layout="constrained")
for panel, (family, (cations, anions)) in zip(figure.subplots(1, 2), families.items(), strict=True):
    table = np.array([[energies[a + b] for b in anions] for a in cations])
    image = panel.imshow(table, cmap="viridis")
    for (row, column), energy in np.ndenumerate(table):
        name = cations[row] + anions[column]
        text = f"{energy:.2f} eV\ngap {gaps[name]:.1f} eV\n{constants[name]:.2f} Å"
        panel.text(column, row, text, ha="center", va="center", color="w" if energy < table.mean() else "k")
    panel.set_xticks(range(len(anions)), anions)
    panel.set_yticks(range(len(cations)), cations)
    panel.set_title(f"{family} as rock salt")
    figure.colorbar(image, ax=panel, shrink=0.8, label="formation energy (eV/atom)")
figure.savefig(arguments.out, dpi=150)

widest = max(gaps, key=gaps.get)
print(f"{len(names)} crystals; the widest gap has {widest}: {gaps[widest]:.1f} eV at {constants[widest]:.2f} Å")
