"""Three models of one training set, and what their disagreement says about the error.

Small models of alloys computed by ASE's EMT, trained here with three seeds: a minute and a half.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from prism_plugin import PRISMCalculator
from prism_plugin.data import split_records
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.training import TrainingSettings, train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("committee"), help="folder of the runs and the picture")
parser.add_argument("--dry-run", action="store_true", help="few crystals, two epochs")
arguments = parser.parse_args()

parts = split_records(emt_alloys(60 if arguments.dry_run else 600), seed=0)
for seed in range(3):
    settings = TrainingSettings(
        target="formation_energy",
        unit="eV/atom",
        model={"dim": 48, "num_layers": 2, "num_rbf": 32, "cell_cutoff": 10.0},
        lr=3e-3,
        epochs=2 if arguments.dry_run else 30,
        batch_size=32,
        seed=seed,
    )
    train(settings, parts, arguments.out / f"seed-{seed}", resume=True)

# A list of models is a committee: the answer is their mean, energy_std their spread.
calculator = PRISMCalculator([arguments.out / f"seed-{seed}" / "model" for seed in range(3)])
results = calculator.predict([record.atoms for record in parts["test"]])
sizes = np.array([len(record.atoms) for record in parts["test"]])
error = np.array([result["energy"] for result in results]) / sizes - [record.target for record in parts["test"]]
spread = np.array([result["energy_std"] for result in results]) / sizes

figure = Figure(figsize=(5.5, 5), layout="constrained")
panel = figure.subplots()
panel.loglog(spread, np.abs(error), "o", alpha=0.6, color="#1f4e9c")
line = np.array([spread.min(), spread.max()])
panel.plot(line, line, color="0.5", label="error = spread")
panel.set(xlabel="spread of the committee (eV/atom)", ylabel="error of its mean (eV/atom)")
panel.legend()
figure.savefig(arguments.out / "committee.png", dpi=150)
print(f"mean error {np.abs(error).mean():.4f} eV/atom, mean spread {spread.mean():.4f} eV/atom")
