"""Train the models that ship in the wheel, on the Materials Project of 2018.6.1.

By the recipe of their preset, or with --init from the model of energies; --target metal (whether the gap is 0) needs
that. Resumable: run the same command again. A card has the command of each model.

    python examples/train_default_model.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz runs/eform-0
    python examples/train_default_model.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz runs/gap-0 --target band_gap
    python examples/train_default_model.py DATA runs/metal --target metal --init prism-mp2018-eform
    python examples/train_default_model.py DATA runs/eform-1 --init runs/eform-0/model    # goes on with it
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from prism_plugin import load, presets
from prism_plugin.data.shipped import SHIPPED, parts_of, read_target
from prism_plugin.tasks.regression import Regression
from prism_plugin.training import TrainingSettings, train

# What the model of energies gets, and how it learns then: large cells less often, as it did itself.
ADDED = {
    "band_gap": {"readout": "attention", "minimum": 0.0},
    "metal": {"readout": "attention", "task_type": "classification"},
}
STARTED = {**Regression.fine_tuning, "batch_size": 32, "batchnorm_batches": 100, "sample_atoms": 20}
# A model that goes on with its own target: at a rate at which it does not forget what it was (docs/what_was_tried.md).
AGAIN = {"lr": 8e-4, "normalize": False}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("folder", type=Path)
parser.add_argument("--target", choices=["formation_energy", "band_gap", "metal"], default="formation_energy")
parser.add_argument("--init", help="the model of energies to start from: a folder, or the name of one that ships")
parser.add_argument("--epochs", type=int, default=10, help="of a start from a model; else those of the preset")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU cores")
parser.add_argument(
    "--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="those that ship: bf16-mixed"
)
parser.add_argument("--no-progress", action="store_true", help="no progress bars")
parser.add_argument("--dry-run", action="store_true", help="one epoch of a tiny model")
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)

if arguments.init is None and arguments.target == "metal":
    parser.error("--target metal starts from a model of energies: give --init")
parts = parts_of(read_target(arguments.data, arguments.target))
init = None if arguments.init is None else load(arguments.init)
if init is None:
    how = presets[f"mp2018/{arguments.target}"].settings()
else:
    how = {**STARTED, "model": ADDED.get(arguments.target, {}), "epochs": arguments.epochs}
    if init.target == arguments.target:
        how |= AGAIN
settings = TrainingSettings(
    target=arguments.target,
    unit=SHIPPED[arguments.target].unit,
    seed=arguments.seed,
    precision=arguments.precision,
    **how,
)
if arguments.dry_run:
    tiny = {} if init else {"dim": 8, "num_layers": 1, "num_rbf": 8}
    settings = replace(settings, epochs=1, model={**settings.model, **tiny})
    parts["val"] = parts["train"]  # a few crystals need not have all elements in both parts
summary = train(settings, parts, arguments.folder, resume=True, init=init, progress=not arguments.no_progress)
print(json.dumps(summary["scores"], indent=1))
