"""Train models of log10 of the bulk and the shear modulus from the model of formation energies, cross-validated.

Crystals of the Materials Project with `K_vrh` and `G_vrh` in GPa (JSON lines). Five folds: each model learns from nine
tenths of four of them, the last tenth chooses the epoch, and the fifth fold, which it has not seen, scores it. Then one
model learns from nine tenths of all crystals, or from the part that the file calls train. Resumable: run the same
command again.

    python examples/elastic_models.py DATA runs/elastic --target log10_k_vrh
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch

from prism_plugin import load
from prism_plugin.data.shipped import SHIPPED, drawn_parts, parts_of, read_target
from prism_plugin.errors import PrismError
from prism_plugin.files import write_json
from prism_plugin.tasks.regression import Regression
from prism_plugin.training import TrainingSettings, train

FOLDS = 5

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("folder", type=Path)
parser.add_argument("--target", choices=["log10_k_vrh", "log10_g_vrh"], default="log10_k_vrh")
parser.add_argument("--init", default="prism-mp2018-eform", help="the model to start from")
parser.add_argument("--epochs", type=int, default=Regression.fine_tuning["epochs"])
parser.add_argument("--folds", type=int, default=FOLDS, help=f"only the first so many of {FOLDS}, and no last model")
parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU cores")
parser.add_argument("--no-progress", action="store_true", help="no progress bars")
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)

try:
    records = read_target(arguments.data, arguments.target)
except PrismError as error:
    parser.error(str(error))
init = load(arguments.init)
how = {**Regression.fine_tuning, "epochs": arguments.epochs, "seed": 0, "target": arguments.target}
settings = TrainingSettings(unit=SHIPPED[arguments.target].unit, **how)
folds = np.array_split(np.random.default_rng(0).permutation(len(records)), FOLDS)
errors = []
for number, test in enumerate(folds[: arguments.folds]):
    folder = arguments.folder / f"fold-{number}"
    if not (folder / "summary.json").exists():
        train(settings, drawn_parts(records, test), folder, resume=True, init=init, progress=not arguments.no_progress)
    with open(folder / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    errors.append([abs(float(row["prediction"]) - float(row["target"])) for row in rows])
    print(f"fold {number}: MAE {np.mean(errors[-1]):.4f} over {len(rows)} crystals", flush=True)
means = [float(np.mean(some)) for some in errors]
mae = float(np.mean(np.concatenate(errors)))
print(f"{arguments.target}: MAE {mae:.4f} log10(GPa) over {sum(map(len, errors)):,} crystals that it has not seen")
found = {"target": arguments.target, "mae": mae, "folds": means, "crystals": len(records)}
write_json(arguments.folder / "cross_validation.json", found)
if arguments.folds == FOLDS and not (arguments.folder / "model" / "summary.json").exists():
    folder = arguments.folder / "model"
    train(settings, parts_of(records), folder, resume=True, init=init, progress=not arguments.no_progress)
