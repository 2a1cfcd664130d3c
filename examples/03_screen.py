"""Screen many crystals in one call: 32 compounds in the rocksalt structure, each at 40 lattice constants.

The default model, offline. The picture shows the formation energy at the best lattice constant, and that constant.
"""

import argparse

import numpy as np
from ase.build import bulk
from matplotlib.figure import Figure

from prism_plugin import PRISMCalculator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="screening.png", help="the picture")
parser.add_argument("--dry-run", action="store_true", help="eight compounds only")
arguments = parser.parse_args()

few = 2 if arguments.dry_run else 4
families = {
    "alkali halides": (["Li", "Na", "K", "Rb"][:few], ["F", "Cl", "Br", "I"][:few]),
    "alkaline earth chalcogenides": (["Mg", "Ca", "Sr", "Ba"][:few], ["O", "S", "Se", "Te"][:few]),
}
constants = np.linspace(3.8, 7.7, 40)
names = [a + b for cations, anions in families.values() for a in cations for b in anions]
crystals = [bulk(name, "rocksalt", a=constant) for name in names for constant in constants]

# One call for all of them: batches, in the order of the list, with a progress bar.
results = PRISMCalculator("prism-mp2018-eform").predict(crystals)
energies = np.array([result["energy"] / 2 for result in results]).reshape(len(names), len(constants))
lowest = dict(zip(names, energies.min(axis=1), strict=True))
best = dict(zip(names, constants[energies.argmin(axis=1)], strict=True))

figure = Figure(figsize=(10.5, 5), layout="constrained")
for panel, (family, (cations, anions)) in zip(figure.subplots(1, 2), families.items(), strict=True):
    table = np.array([[lowest[a + b] for b in anions] for a in cations])
    image = panel.imshow(table, cmap="viridis")
    for (row, column), energy in np.ndenumerate(table):
        text = f"{energy:.2f} eV\n{best[cations[row] + anions[column]]:.1f} Å"
        panel.text(column, row, text, ha="center", va="center", color="w" if energy < table.mean() else "k")
    panel.set_xticks(range(len(anions)), anions)
    panel.set_yticks(range(len(cations)), cations)
    panel.set_title(f"{family}, rocksalt structure")
    figure.colorbar(image, ax=panel, shrink=0.8, label="formation energy (eV/atom)")
figure.savefig(arguments.out, dpi=150)

stable = min(lowest, key=lowest.get)
print(f"{len(crystals)} crystals; the most stable is {stable}: {lowest[stable]:.3f} eV/atom at {best[stable]:.1f} Å")
