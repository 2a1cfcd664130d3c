"""Train the default model that ships in the wheel: formation energy on Materials Project 2018.6.1.

Two stages, each resumable (run the same command again): first the crystals of at most 20 atoms, which cost a tenth,
then all of them from the first stage's weights.

    python examples/train_default_model.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz runs/default
"""

import argparse
import json
from pathlib import Path

import matgl

from prism_plugin.data import read_records, split_records
from prism_plugin.training import TrainingSettings, train

MODEL = {
    "dim": 96,
    "num_layers": 3,
    "num_rbf": 32,
    "cutoff": 4.0,
    "superatom_readout": "mean",
    "multiscale_aggregation": "mean",
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("folder", type=Path)
parser.add_argument("--small-epochs", type=int, default=10, help="epochs on crystals of at most 20 atoms")
parser.add_argument("--epochs", type=int, default=8, help="epochs on all crystals")
parser.add_argument("--dry-run", action="store_true", help="one epoch a stage with a tiny model")
arguments = parser.parse_args()
if arguments.dry_run:
    arguments.small_epochs = arguments.epochs = 1
    MODEL.update(dim=8, num_layers=1, num_rbf=8)

parts = split_records(read_records(arguments.data, "e_form"))
if arguments.dry_run:
    parts["val"] = parts["train"]  # a few crystals need not have all elements in both parts
elements = tuple(sorted({symbol for record in parts["train"] for symbol in record.atoms.symbols}))
common = {"target": "formation_energy", "unit": "eV/atom", "lr": 2e-3, "batch_size": 32, "batchnorm_batches": 100}

small = {**parts, "train": [record for record in parts["train"] if len(record.atoms) <= 20]}
first = arguments.folder / "small"
if not (first / "summary.json").exists():
    settings = TrainingSettings(**common, epochs=arguments.small_epochs, model={**MODEL, "element_types": elements})
    train(settings, small, first, resume=True)

settings = TrainingSettings(**common, epochs=arguments.epochs, model=MODEL, seed=1)
summary = train(settings, parts, arguments.folder / "all", resume=True, init=matgl.load_model(first / "model"))
print(json.dumps(summary["scores"], indent=1))
