"""Train a PRISM on your own crystals from Python; here on alloys that ASE's EMT potential computes."""

import argparse
from pathlib import Path

import matgl

from prism_plugin.data import split_records
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.training import TrainingSettings, train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("runs/example"), help="run folder")
parser.add_argument("--dry-run", action="store_true", help="60 crystals, one epoch")
arguments = parser.parse_args()

# 1. Records: an ase.Atoms and a number each. read_records("my.jsonl", target="e_form") reads them from a file.
records = emt_alloys(60 if arguments.dry_run else 600)
parts = split_records(records, seed=0)

# 2. Settings: what differs from PRISM's defaults, and how long to train.
settings = TrainingSettings(
    target="formation_energy",
    unit="eV/atom",
    model={"dim": 64, "num_layers": 2, "cutoff": 4.0, "cell_cutoff": 8.0},
    epochs=1 if arguments.dry_run else 20,
    batch_size=32,
    lr=3e-3,
)

# 3. Train. The run folder gets the model, the log, predictions and plots; resume=True goes on after an interruption.
summary = train(settings, parts, arguments.out, resume=True)

# 4. The model is an ordinary matgl model.
model = matgl.load_model(arguments.out / "model")
error = abs(float(model.predict_structure(parts["test"][0].atoms)) - parts["test"][0].target)
print(f"first test crystal: error {error:.4f} eV/atom; test MAE {summary['scores']['test']['mae']:.4f} eV/atom")
