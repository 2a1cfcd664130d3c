"""Count edges per atom on real crystals: the numbers and the picture of the supplement's Fig. 3 and 4.

python benchmarks/edges.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz --out docs
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prism_plugin import build_graph
from prism_plugin.data import read_records
from prism_plugin.experts import similar_pairs
from prism_plugin.files import replaced
from prism_plugin.pretrained import load_prism

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("--out", type=Path, required=True, help="folder of edges.md and edges.png")
parser.add_argument("--crystals", type=int, default=3000, help="size of the random sample")
arguments = parser.parse_args()

records = read_records(arguments.data, "e_form")
sample = np.random.default_rng(0).choice(len(records), min(arguments.crystals, len(records)), replace=False)
graphs = [build_graph(records[index].atoms, cutoff=5.0, cell_cutoff=15.0) for index in sample]
atoms = np.array([len(graph) for graph in graphs])
counts = {
    "atomistic, 5 Å": np.array([graph.edge_index.shape[1] for graph in graphs]),
    "cell, 15 Å": np.array([len(graph.cell_image) for graph in graphs]),
    "multiscale": 2 * atoms,
}

# Similarity edges depend on the features, so on a trained model: the default one, layer by layer.
model = load_prism()
layers: list[list[int]] = [[] for _ in model.layers]
for index in sample:
    model.predict_structure(records[index].atoms)
    entries = ["embedding", *(f"gc_{number}" for number in range(1, len(layers)))]
    features = [model.feature_dict[key]["node_feat"] for key in entries]
    for layer, h in zip(layers, features, strict=True):
        layer.append(similar_pairs(h, torch.zeros(len(h), dtype=torch.long), model.similarity_cutoff)[0].shape[1])
for number, layer in enumerate(layers):
    counts[f"similarity, layer {number}"] = np.array(layer)


def slope(count: np.ndarray, where: np.ndarray) -> float:
    """Slope of count = slope * N + intercept, by least squares."""
    return float(np.polyfit(atoms[where], count[where], 1)[0])


everywhere, small = np.ones(len(atoms), dtype=bool), atoms <= 10
rows = [
    "| edges | mean per atom | slope of count over N | slope for N <= 10 | supplement, JARVIS |",
    "|---|---|---|---|---|",
]
paper = {"atomistic, 5 Å": "43.38 N", "cell, 15 Å": "-6.5 N", "multiscale": "2 N"}
for name, count in counts.items():
    per_atom = count.sum() / atoms.sum()
    ours = f"| {name} | {per_atom:.2f} | {slope(count, everywhere):.2f} | {slope(count, small):.2f} |"
    rows.append(f"{ours} {paper.get(name, '9.15 (over the layers)')} |")
text = f"""# Edges per atom

{len(atoms):,} random crystals of Materials Project 2018.6.1 ({arguments.data.name}), mean {atoms.mean():.1f} atoms;
similarity edges with the features of the default model. Made by `python benchmarks/edges.py DATA --out docs`.

{chr(10).join(rows)}

![edges](edges.png)

The picture is that of the supplement's Fig. 3 and 4: atomistic edges grow linearly, cell edges fall with the size of
the cell, multiscale edges are two per atom. Similarity edges grow faster than linearly here, unlike the supplement's
"roughly constant fraction": within one element most atoms stay similar, above all in the first layer, where they are
equal.
"""
with replaced(arguments.out / "edges.md") as path:
    path.write_text(text)
print(text)

figure = Figure(figsize=(9, 7), layout="constrained")
panels = figure.subplots(2, 2, sharex=True).ravel()
similarity = [name for name in counts if name.startswith("similarity")]
for panel, names in zip(panels, (["atomistic, 5 Å"], ["cell, 15 Å"], ["multiscale"], similarity), strict=True):
    for name in names:
        shown = counts[name] > 0
        panel.scatter(atoms[shown], counts[name][shown], s=6, alpha=0.35, linewidths=0, label=name)
    panel.set(xscale="log", yscale="log", ylabel="edges")
    panel.legend(markerscale=3)
    panel.grid(alpha=0.3)
for panel in panels[2:]:
    panel.set_xlabel("atoms N in the cell")
FigureCanvasAgg(figure)
with replaced(arguments.out / "edges.png") as path:
    figure.savefig(path, dpi=130)
