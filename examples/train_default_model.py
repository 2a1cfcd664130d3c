"""Train the models that ship in the wheel, on the Materials Project of 2018.6.1, by the recipe of their preset.

Resumable: run the same command again. A card has the command of each model.

    python examples/train_default_model.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz runs/eform-0
    python examples/train_default_model.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz runs/gap-0 --target band_gap
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from prism_plugin import presets
from prism_plugin.data import read_records, split_records
from prism_plugin.training import TrainingSettings, train

COLUMNS = {"formation_energy": ("e_form", "eV/atom"), "band_gap": ("gap_pbe", "eV")}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("folder", type=Path)
parser.add_argument("--target", choices=list(COLUMNS), default="formation_energy")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU cores")
parser.add_argument(
    "--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="those that ship: bf16-mixed"
)
parser.add_argument("--no-progress", action="store_true", help="no progress bars")
parser.add_argument("--dry-run", action="store_true", help="one epoch of a tiny model")
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)

column, unit = COLUMNS[arguments.target]
parts = split_records(read_records(arguments.data, column))
settings = TrainingSettings(
    target=arguments.target,
    unit=unit,
    seed=arguments.seed,
    precision=arguments.precision,
    **presets[f"mp2018/{arguments.target}"].settings(),
)
if arguments.dry_run:
    settings = replace(settings, epochs=1, model={**settings.model, "dim": 8, "num_layers": 1, "num_rbf": 8})
    parts["val"] = parts["train"]  # a few crystals need not have all elements in both parts
summary = train(settings, parts, arguments.folder, resume=True, progress=not arguments.no_progress)
print(json.dumps(summary["scores"], indent=1))
