"""Each backbone alone and under PRISM's experts, with equal CPU time: does PRISM help each of them, as the paper says?

4,000 training crystals of at most 20 atoms and all validation crystals of that size (those of optimizers.py), three
seeds. A pilot times a training step of every variant, turn by turn, and gives each as many epochs as fit into the same
CPU time. Runs are resumed or skipped when they are there, so that the command can be interrupted and repeated.

    python benchmarks/backbones.py DATA runs/backbones --out docs/backbones
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from optimizers import Stopwatch, make_parser, read_curve, run_folder, subset

from prism_plugin import PRISM
from prism_plugin.config import EXPERTS
from prism_plugin.data import GraphDataset, Record
from prism_plugin.figures import save_figure
from prism_plugin.files import write_json
from prism_plugin.training import TrainingSettings, train

WIDTH = {"dim": 64, "num_layers": 2, "superatom_readout": "mean", "multiscale_aggregation": "mean"}
CARTNET = {"num_rbf": 32, "cutoff": 4.0, "atom_encoder": "cartnet"}
COMFORMER = {"num_rbf": 64, "cutoff": 8.0, "neighbors": 25, "atom_encoder": "embedding"}
BACKBONES = {
    "CartNet": {**CARTNET, "backbone": "cartnet"},
    "iComFormer": {**COMFORMER, "backbone": "icomformer"},
    "eComFormer": {**COMFORMER, "backbone": "ecomformer"},
}
# Beside the paper's experts those that begin at zero.
FROM_ZERO = {"experts": ("atomistic", "cell", "multiscale"), "cell": "reciprocal", "multiscale": "residual"}
UNDER = {
    "alone": {"experts": ("atomistic",)},
    "PRISM's experts": {"experts": EXPERTS},
    "experts from zero": FROM_ZERO,
}
VARIANTS = {
    f"{name}, {experts}": {**WIDTH, **backbone, **given}
    for name, backbone in BACKBONES.items()
    for experts, given in UNDER.items()
}
BATCH = 32


def pilot(records: list[Record], path: Path) -> dict[str, float]:
    """CPU seconds of a training step of each variant, the median of nine, taken in turn."""
    if not path.exists():
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        models = {name: PRISM(**arguments).train() for name, arguments in VARIANTS.items()}
        batches = {}
        for cutoffs in {model.cutoffs for model in models.values()}:
            graphs = GraphDataset(records[: 3 * BATCH], *cutoffs, progress=False).graphs
            batches[cutoffs] = list(graphs.split(BATCH))
        for turn in range(10):
            for name, model in models.items():
                batch = batches[model.cutoffs][turn % 3]
                start = time.process_time()
                model(batch).square().mean().backward()
                if turn:
                    seconds[name].append(time.process_time() - start)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {name: float(np.median(some)) for name, some in seconds.items()})
    return json.loads(path.read_text())


def messages_per_atom(records: list[Record]) -> dict[str, float]:
    """Atomistic messages per atom, of which iComFormer sends three along each edge once."""
    counts = {}
    for name, arguments in BACKBONES.items():
        model = PRISM(dim=8, num_layers=1, **{**arguments, "num_rbf": 8})
        batches = [model.as_batch(b) for b in GraphDataset(records, *model.cutoffs, progress=False).graphs.split(64)]
        edges, atoms = (sum(int(batch.sizes[:, k].sum()) for batch in batches) for k in (1, 0))
        counts[name] = edges / atoms
    return counts


def run(parts: dict[str, list[Record]], name: str, seed: int, epochs: int, lr: float, root: Path) -> Path:
    folder = run_folder(root, name, epochs, seed)
    if not (folder / "summary.json").exists():
        settings = TrainingSettings(
            target="formation_energy",
            unit="eV/atom",
            model=VARIANTS[name],
            optimizer="muon",
            lr=lr,
            options={"weight_decay": 0.1},
            clip=1.0,
            epochs=epochs,
            batch_size=BATCH,
            batchnorm_batches=30,
            seed=seed,
        )
        print(time.strftime("%H:%M"), folder.name, flush=True)
        train(settings, parts, folder, resume=True, progress=False, callbacks=[Stopwatch()])
    return folder


def draw(table: dict[str, dict], path: Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    panel = figure.subplots()
    names = list(table)
    for row, name in enumerate(names):
        values = np.array(table[name]["val_mae"])
        panel.barh(row, values.mean(), color=f"C{list(BACKBONES).index(name.split(',')[0])}", alpha=0.7)
        panel.plot(values, np.full(len(values), row), "k|", markersize=9)
    panel.set_yticks(range(len(names)), [f"{name} ({table[name]['epochs']} epochs)" for name in names])
    panel.invert_yaxis()
    panel.set_xlabel("validation MAE (eV/atom) after equal CPU time; strokes are seeds")
    panel.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def main() -> None:
    parser = make_parser(__doc__, epochs=16)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = subset(arguments.data)
    step = pilot(parts["train"], arguments.folder / "pilot.json")
    base = step["CartNet, alone"]
    epochs = {name: max(2, round(arguments.epochs * base / step[name])) for name in VARIANTS}
    print({name: (round(step[name], 3), epochs[name]) for name in VARIANTS}, flush=True)
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in arguments.variants]
    for name, seed in jobs[arguments.share[0] :: arguments.share[1]]:
        run(parts, name, seed, epochs[name], arguments.lr, arguments.folder)
    if arguments.out is None:
        return
    table = {}
    for name in arguments.variants:
        seeds = range(arguments.seeds)
        curves = [read_curve(run(parts, name, s, epochs[name], arguments.lr, arguments.folder)) for s in seeds]
        table[name] = {
            "epochs": epochs[name],
            "parameters": sum(p.numel() for p in PRISM(**VARIANTS[name]).parameters()),
            "step_seconds": step[name],
            "val_mae": [float(curve["val_mae"][-1]) for curve in curves],
            "cpu_seconds": [float(curve["cpu_seconds"][-1]) for curve in curves],
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(table, arguments.out / "backbones.png")
    counts = messages_per_atom(parts["val"])
    write_json(arguments.out / "backbones.json", {"lr": arguments.lr, "edges_per_atom": counts, "runs": table})
    print({name: round(count, 1) for name, count in counts.items()})
    print("| model | parameters | epochs | validation MAE (eV/atom) | each seed | CPU s |\n|---|---|---|---|---|---|")
    for name, row in table.items():
        each = ", ".join(f"{value:.4f}" for value in row["val_mae"])
        seconds = np.mean(row["cpu_seconds"])
        head = f"| {name} | {row['parameters']:,} | {row['epochs']} "
        print(f"{head}| {np.mean(row['val_mae']):.4f} | {each} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
