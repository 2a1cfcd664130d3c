"""Fine-tune a model that ships on log10 of the bulk modulus, against training from scratch, on few crystals.

100, 500 and 2,000 training crystals of ../shared/data/mp_elastic, the other 399 of them for validation, three seeds
(which also draw the training crystals). A start from the shipped model is what `prism train --init` does; one from
scratch has the recipe of the shipped models, with as many epochs and crystals a batch. Both keep the epoch that has the
lowest error on the validation crystals, so that these errors are a little low on either side. Most of these crystals,
for validation as well, are among those of the shipped model: it has seen their structures, not their moduli. Each run
has a folder and is skipped when it is there already, so that the command can be interrupted and repeated (give another
folder after the shipped model was replaced); with a share of the runs each, two processes can work side by side.

    python benchmarks/fine_tuning.py DATA runs/fine_tuning --out docs/default_model
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from prism_plugin import load, presets
from prism_plugin.data import Record, read_records
from prism_plugin.figures import save_figure
from prism_plugin.files import write_json
from prism_plugin.tasks.regression import Regression
from prism_plugin.training import TrainingSettings, train
from prism_plugin.training.plots import read_columns

SIZES = (100, 500, 2000)
STARTS = ("from scratch", "from prism-mp2018-eform")
COLORS = dict(zip(STARTS, ("#d95f02", "#1f4e9c"), strict=True))


def parts_of(records: list[Record], size: int, seed: int) -> dict[str, list[Record]]:
    """Draw training crystals; those for validation are the same in all runs."""
    order = np.random.default_rng(0).permutation(len(records))
    held_out, rest = order[: len(records) - max(SIZES)], order[len(records) - max(SIZES) :]
    chosen = np.random.default_rng(seed + 1).permutation(rest)[:size]
    return {"train": [records[index] for index in chosen], "val": [records[index] for index in held_out]}


def run(records: list[Record], start: str, size: int, seed: int, root: Path) -> float:
    """Train, or find that it was done; give the lowest validation MAE, that of the model which the run keeps."""
    folder = root / f"{start.replace(' ', '_')}_{size}_seed={seed}"
    if not (folder / "summary.json").exists():
        print(folder.name, flush=True)
        how = {"target": "log10_k_vrh", "unit": "log10(GPa)", "seed": seed}
        if start == "from scratch":  # all know the same elements
            recipe = presets["mp2018/formation_energy"].settings()
            recipe |= {name: Regression.fine_tuning[name] for name in ("batch_size", "epochs")}
            recipe |= {"precision": "32-true", "batchnorm_batches": None}
            init = None
            recipe["model"] = {**recipe["model"], "element_types": load().element_types}
            settings = TrainingSettings(**how, **recipe)
        else:  # what prism train --init does
            init = load()
            settings = TrainingSettings(**how, **Regression.fine_tuning)
        train(settings, parts_of(records, size, seed), folder, resume=True, init=init, progress=False)
    return float(read_columns(folder / "log", "epoch", ("val_mae",))["val_mae"].min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the picture and the table; none are made without")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("K", "N"), help="runs K, K + N, ...")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = read_records(arguments.data, "K_vrh")
    records = [replace(record, target=float(np.log10(record.target))) for record in records]
    jobs = [(start, size, seed) for size in SIZES for seed in range(arguments.seeds) for start in STARTS]
    for start, size, seed in jobs[arguments.share[0] :: arguments.share[1]]:
        run(records, start, size, seed, arguments.folder)
    if arguments.out is None:
        return
    seeds = range(arguments.seeds)
    table = {
        start: {size: [run(records, start, size, seed, arguments.folder) for seed in seeds] for size in SIZES}
        for start in STARTS
    }
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    for start, rows in table.items():
        means = [np.mean(rows[size]) for size in SIZES]
        panel.plot(SIZES, means, "-", color=COLORS[start], label=start)
        for size in SIZES:
            panel.plot([size] * len(rows[size]), rows[size], "o", color=COLORS[start], alpha=0.6)
    panel.set(xscale="log", yscale="log", xlabel="training crystals", ylabel="validation MAE of log10(K_VRH / GPa)")
    panel.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
    panel.yaxis.set_major_formatter("{x:.3g}")
    panel.yaxis.set_minor_formatter("{x:.2g}")
    panel.set_title("399 validation crystals; dots: seeds", fontsize=10)
    panel.grid(alpha=0.3, which="both")
    panel.legend()
    save_figure(figure, arguments.out / "fine_tuning.png")
    write_json(arguments.out / "fine_tuning.json", table)
    print("| training crystals | " + " | ".join(STARTS) + " |\n" + "|---" * (1 + len(STARTS)) + "|")
    for size in SIZES:
        each = [", ".join(f"{value:.4f}" for value in table[start][size]) for start in STARTS]
        means = [f"{np.mean(table[start][size]):.4f}" for start in STARTS]
        print(f"| {size:,} | " + " | ".join(f"{a} ({b})" for a, b in zip(means, each, strict=True)) + " |")


if __name__ == "__main__":
    main()
