"""Score the shipped default model on all validation crystals; with --install, put a trained one in its place first.

python benchmarks/default_model.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz
python benchmarks/default_model.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz --install runs/default
"""

import argparse
import csv
import json
from pathlib import Path

import matgl
import numpy as np
import torch

from prism_plugin import pretrained
from prism_plugin.data import read_records, split_records
from prism_plugin.data.augmentation import random_rotations
from prism_plugin.data.records import elements_of
from prism_plugin.files import replaced
from prism_plugin.training.plots import plot_learning_curve, plot_parity, read_log

FOLDER = Path(pretrained.__file__).parent / pretrained.DEFAULT_MODEL
DOCS = Path(__file__).parents[1] / "docs" / "default_model"
CARD = Path(__file__).parent / "default_model_card.md"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("--install", type=Path, metavar="RUN", help="folder that train_default_model.py wrote")
arguments = parser.parse_args()

parts = split_records(read_records(arguments.data, "e_form"))
records = parts["val"]
target = np.array([record.target for record in records])
atoms = np.array([len(record.atoms) for record in records])
mean = np.mean([record.target for record in parts["train"]])

if arguments.install:
    model = matgl.load_model(arguments.install / "all" / "model")
    settings = json.loads((arguments.install / "all" / "settings.json").read_text())
else:
    model = pretrained.load_prism()

predicted = model.predict_structure([record.atoms for record in records]).double().numpy()
error = np.abs(predicted - target)
# How much the answer depends on the orientation: the same crystals turned at random.
turned = []
for record, rotation in zip(
    records, random_rotations(len(records), torch.Generator().manual_seed(0)).numpy(), strict=True
):
    crystal = record.atoms.copy()
    crystal.set_cell(crystal.cell.array @ rotation.T, scale_atoms=True)
    turned.append(crystal)
rotated = model.predict_structure(turned).double().numpy()

scores = {
    "crystals": len(records),
    "mae": float(error.mean()),
    "rmse": float(np.sqrt((error**2).mean())),
    "median": float(np.median(error)),
    "mean_predictor_mae": float(np.abs(target - mean).mean()),
    "mae_rotated": float(np.abs(rotated - target).mean()),
    "rotation_difference": float(np.abs(rotated - predicted).mean()),
}
for low, high in ((1, 20), (21, 60), (61, 200)):
    of_size = (atoms >= low) & (atoms <= high)
    scores[f"mae_{low}_{high}"] = float(error[of_size].mean())
    scores[f"crystals_{low}_{high}"] = int(of_size.sum())
print(json.dumps(scores, indent=1))

if arguments.install:
    model.save(FOLDER, metadata={"settings": settings, "scores": {"val": scores}})
    DOCS.mkdir(parents=True, exist_ok=True)
    with replaced(DOCS / "training_log.csv") as path, open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "epoch", "train_mae", "val_mae"])
        for stage in ("small", "all"):
            log = read_log(arguments.install / stage / "log")
            for row in zip(log["epoch"], log["train_mae"], log["val_mae"], strict=True):
                writer.writerow([stage, row[0], f"{row[1]:.5f}", f"{row[2]:.5f}"])
    with open(arguments.install / "all" / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    of_train = tuple(np.array([float(row[column]) for row in rows]) for column in ("target", "prediction"))
    plot_parity({"train": of_train, "val": (target, predicted)}, model.target, model.unit, DOCS / "parity.png")
    for stage, name in (("small", "learning_curve_small.png"), ("all", "learning_curve.png")):
        plot_learning_curve(arguments.install / stage / "log", model.task_type, model.unit, scores, DOCS / name)
    small = json.loads((arguments.install / "small" / "settings.json").read_text())
    elements = elements_of(parts["train"])
    seen = dict.fromkeys(elements, 0)
    for record in parts["train"]:
        for symbol in set(record.atoms.symbols):
            seen[symbol] += 1
    values = {
        **scores,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "settings": json.dumps(settings),
        "train": len(parts["train"]),
        "train_small": sum(len(record.atoms) <= 20 for record in parts["train"]),
        "epochs_small": small["epochs"],
        "epochs_all": settings["epochs"],
        "seed_small": small["seed"],
        "seed_all": settings["seed"],
        "elements": len(elements),
        "rare": ", ".join(f"{symbol} ({count})" for symbol, count in seen.items() if count < 50),
        "fusion": "\n".join(
            f"| {layer} | {row['atomistic']:.2f} | {row['similarity']:.2f} | {row['multiscale']:.2f} |"
            for layer, row in enumerate(model.fusion_weights()["atoms"])
        ),
    }
    with replaced(FOLDER / "README.md") as path:
        path.write_text(CARD.read_text().format(**values))
