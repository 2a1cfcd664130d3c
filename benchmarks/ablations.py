"""Take the model apart: each expert removed, each open choice the other way, and training without rotations.

4,000 training crystals of at most 20 atoms and all validation crystals of that size (those of optimizers.py), equal
epochs, three seeds; the validation MAE at the end, and how much the predictions of a crystal spread when it is turned
(500 of them, 8 times).
Each run has a folder and is resumed or skipped when it is there, so that the command can be interrupted and repeated;
with a share of the runs each, two processes can work side by side.

    python benchmarks/ablations.py DATA runs/ablations --out docs/ablations
    python benchmarks/ablations.py DATA runs/ablations --epochs 40 --seeds 1 --variants "without multiscale"
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from optimizers import make_parser, run_folder, subset

from prism_plugin.config import EXPERTS
from prism_plugin.data import GraphDataset, Record, rotate_batch
from prism_plugin.data.augmentation import random_rotations
from prism_plugin.figures import save_figure
from prism_plugin.files import replaced, write_json
from prism_plugin.pretrained import load
from prism_plugin.training import TrainingSettings, train
from prism_plugin.training.plots import read_columns

# The specification's defaults but for the size and the cutoff, which make a run affordable.
SETTINGS = TrainingSettings(
    target="formation_energy",
    unit="eV/atom",
    model={"dim": 64, "num_layers": 2, "num_rbf": 32, "cutoff": 4.0},
    options={"lr": 8e-3},
    batch_size=32,
    batchnorm_batches=30,
)
# Name -> arguments of the model that differ from SETTINGS.
VARIANTS: dict[str, dict[str, object]] = {
    "PRISM, as specified": {},
    "without atomistic": {"experts": tuple(e for e in EXPERTS if e != "atomistic")},
    "without cell": {"experts": tuple(e for e in EXPERTS if e != "cell")},
    "without multiscale": {"experts": tuple(e for e in EXPERTS if e != "multiscale")},
    "without similarity": {"experts": tuple(e for e in EXPERTS if e != "similarity")},
    "atomistic only (CartNet)": {"experts": ("atomistic",), "atom_encoder": "cartnet"},
    "similarity envelope: cosine": {"similarity_envelope": "cosine"},
    "similarity envelope: none": {"similarity_envelope": None},
    "similarity image: blended": {"similarity_image": "blended"},
    "radial functions: even": {"rbf_scale": "even"},
    "fusion: gated": {"fusion": "gated"},
    "superatom readout: mean": {"superatom_readout": "mean"},
    "superatom readout and messages: mean": {"superatom_readout": "mean", "multiscale_aggregation": "mean"},
    "without rotation of training crystals": {},
    "products in bfloat16": {},
}
# Name -> other settings that differ.
TRAININGS: dict[str, dict[str, object]] = {
    "without rotation of training crystals": {"rotate": False},
    "products in bfloat16": {"precision": "bf16-mixed"},
}
TURNS = 8
TURNED = 500  # validation crystals


def run(parts: dict[str, list[Record]], name: str, seed: int, epochs: int, root: Path) -> Path:
    folder = run_folder(root, name, epochs, seed)
    if not (folder / "summary.json").exists():
        settings = replace(
            SETTINGS,
            model={**SETTINGS.model, **VARIANTS[name]},
            epochs=epochs,
            seed=seed,
            **TRAININGS.get(name, {}),
        )
        print(folder.name, flush=True)
        train(settings, parts, folder, resume=True, progress=False)
    return folder


@torch.no_grad()
def spread_over_turns(folder: Path, records: list[Record]) -> float:
    """Standard deviation of a crystal's prediction over random rotations, mean over the crystals."""
    kept = folder / "turns.json"
    if not kept.exists():
        model = load(folder / "model")
        graphs = GraphDataset(records, model.cutoff, model.cell_cutoff, progress=False).graphs
        generator = torch.Generator().manual_seed(0)
        spreads = []
        for batch in graphs.split(64):
            turned = [model(rotate_batch(batch, random_rotations(len(batch), generator))) for _ in range(TURNS)]
            spreads.append(torch.stack(turned).std(dim=0))
        with replaced(kept) as path:
            path.write_text(json.dumps(float(torch.cat(spreads).mean())))
    return float(json.loads(kept.read_text()))


def draw(table: dict[str, dict[str, list[float]]], path: Path) -> None:
    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = list(table)
    base = np.mean(table[names[0]]["val_mae"])
    for row, name in enumerate(names):
        color = "#1f4e9c" if row == 0 else "#8da0cb"
        for panel, key, scale in zip(panels, ("val_mae", "spread"), (1.0, 1000.0), strict=True):
            values = scale * np.array(table[name][key])
            panel.barh(row, values.mean(), color=color)
            panel.plot(values, np.full(len(values), row), "k|", markersize=9)
    panels[0].axvline(base, color="0.3", linestyle="--", linewidth=0.8)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    panels[0].set_xlabel("validation MAE (eV/atom); strokes are seeds")
    panels[1].set_xlabel("spread of a prediction over rotations (meV/atom)")
    panels[1].set_xscale("log")
    for panel in panels:
        panel.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def main() -> None:
    parser = make_parser(__doc__, epochs=12)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = subset(arguments.data)
    print({name: len(records) for name, records in parts.items()}, flush=True)
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in arguments.variants]
    for name, seed in jobs[arguments.share[0] :: arguments.share[1]]:
        run(parts, name, seed, arguments.epochs, arguments.folder)
    if arguments.out is None:
        return
    table: dict[str, dict[str, list[float]]] = {}
    for name in arguments.variants:
        folders = [run(parts, name, seed, arguments.epochs, arguments.folder) for seed in range(arguments.seeds)]
        logs = [read_columns(folder / "log", "epoch", ("val_mae",))["val_mae"] for folder in folders]
        table[name] = {
            "val_mae": [float(log[-1]) for log in logs],
            "spread": [spread_over_turns(folder, parts["val"][:TURNED]) for folder in folders],
        }
    draw(table, arguments.out / "ablations.png")
    write_json(arguments.out / "ablations.json", {"epochs": arguments.epochs, "runs": table})
    print(
        "| model | validation MAE (eV/atom), mean | each seed | spread over rotations (meV/atom) |\n|---|---|---|---|"
    )
    for name, row in table.items():
        each = ", ".join(f"{value:.4f}" for value in row["val_mae"])
        print(f"| {name} | {np.mean(row['val_mae']):.4f} | {each} | {1000 * np.mean(row['spread']):.1f} |")


if __name__ == "__main__":
    main()
