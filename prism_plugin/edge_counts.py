"""How many edges each expert has, against the number of atoms (supplement, Fig. 3, Fig. 4 and Eq. 17-19).

Every edge is one message, so the counts are the cost of the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from matplotlib.figure import Figure
from tqdm import tqdm

from prism_plugin.errors import PrismError
from prism_plugin.figures import save_figure
from prism_plugin.files import write_json, write_table
from prism_plugin.graph.build import build_graph
from prism_plugin.model import PRISM
from prism_plugin.nn.feature_neighbors import similar_pairs

__all__ = ["count_edges", "fit_edges", "format_fits", "write_scaling"]

# Slopes over N, from the supplement (JARVIS formation energy); it gives one number for all layers of similarity.
PUBLISHED = {"atomistic": 43.38, "cell": -6.5, "multiscale": 2.0, "similarity": 9.15, "total": 48.0}


def count_edges(
    structures: Iterable[Atoms],
    model: PRISM,
    progress: bool = True,
    cutoff: float | None = None,
    cell_cutoff: float | None = None,
) -> dict[str, np.ndarray]:
    """Count the edges of each family.

    Args:
        structures: crystals; elements that the model does not know are refused where it has a similarity expert.
        model: gives the features that similarity edges depend on.
        progress: whether there is a progress bar.
        cutoff: radius of the atomistic edges that are counted, Å; None takes the model's.
        cell_cutoff: the same of the cell edges.

    Returns:
        ``"atoms"``, ``"atomistic"``, ``"cell"``, ``"multiscale"``, ``"similarity 1"`` ... (layer by layer),
        ``"similarity"`` (their mean) and ``"total"`` (Eq. 17), shape ``(crystals,)`` each.

    Raises:
        ValueError: if there is no structure, or a bad one.
    """
    has_similarity = "similarity" in model.expert_names
    layers = len(model.layers) if has_similarity else 0
    own = model.cutoffs
    counted = own[0] if cutoff is None else cutoff, own[1] if cell_cutoff is None else cell_cutoff
    rows = []
    for atoms in tqdm(structures, desc="edges", unit="crystal", disable=not progress):
        graph = build_graph(atoms, *counted)
        crystal = graph.crystals.nearest(model.neighbors) if model.neighbors else graph.crystals
        row = [len(graph), crystal.edge_index.shape[1], len(graph.cell_image), 2 * len(graph)]
        if has_similarity:
            model.predict_graphs([graph if counted == own else build_graph(atoms, *own)])
            for entry in ("embedding", *(f"gc_{number}" for number in range(1, layers))):
                features = model.feature_dict[entry]["node_feat"]
                alone, size = features.new_zeros(len(graph), dtype=torch.long), np.array([len(graph)])
                row.append(similar_pairs(features, alone, size, model.similarity_cutoff)[0].shape[1])
        rows.append(row)
    if not rows:
        raise PrismError("there is no structure to count the edges of")
    columns = ["atoms", "atomistic", "cell", "multiscale", *(f"similarity {n}" for n in range(1, layers + 1))]
    counts = dict(zip(columns, np.array(rows, dtype=float).T, strict=True))
    families = ["atomistic", "cell", "multiscale"]
    if has_similarity:
        counts["similarity"] = np.mean([counts[f"similarity {n}"] for n in range(1, layers + 1)], axis=0)
        families.append("similarity")
    counts["total"] = np.sum([counts[family] for family in families], axis=0)
    return counts


def fit_edges(counts: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Fit ``count = slope N + intercept`` by least squares, over all crystals and over small ones.

    Returns:
        For each family ``"per_atom"`` (edges over atoms, of all crystals together), ``"slope"``, ``"intercept"``, and
        ``"slope_10"`` and ``"slope_30"`` (of at most so many atoms); a slope is NaN where all crystals have one size.
    """
    atoms = counts["atoms"]
    fits = {}
    for name, count in counts.items():
        if name != "atoms":
            slope, intercept = _line(atoms, count)
            fits[name] = {
                "per_atom": float(count.sum() / atoms.sum()),
                "slope": slope,
                "intercept": intercept,
                "slope_10": _line(atoms[atoms <= 10], count[atoms <= 10])[0],
                "slope_30": _line(atoms[atoms <= 30], count[atoms <= 30])[0],
            }
    return fits


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    if len(np.unique(x)) < 2:
        return float("nan"), float("nan")
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)


def format_fits(fits: dict[str, dict[str, float]]) -> str:
    """Format the fits as a Markdown table, with the supplement's slopes beside them."""
    lines = [
        "| edges | per atom | fit over all sizes | slope for N <= 30 | for N <= 10 | supplement (JARVIS) |",
        "|---|---|---|---|---|---|",
    ]
    for name, fit in fits.items():
        published = PUBLISHED.get(name.split()[0])
        beside = "" if published is None else f"{published:g} N"
        line = f"{fit['slope']:.2f} N {fit['intercept']:+.0f}"
        small = f"{fit['slope_30']:.2f} N | {fit['slope_10']:.2f} N"
        lines.append(f"| {name} | {fit['per_atom']:.2f} | {line} | {small} | {beside} |")
    return "\n".join(lines)


def write_scaling(counts: dict[str, np.ndarray], folder: str | Path) -> None:
    """Write ``edges.csv`` (one row per crystal), ``fits.json`` and ``edges.png``."""
    folder = Path(folder)
    rows = ([f"{value:g}" for value in row] for row in zip(*counts.values(), strict=True))
    write_table(folder / "edges.csv", [list(counts), *rows])
    fits = fit_edges(counts)
    write_json(folder / "fits.json", fits)
    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).ravel()
    layers = [name for name in counts if name.startswith("similarity ")]
    atoms = counts["atoms"]
    for panel, names in zip(panels, (["atomistic"], ["cell"], ["multiscale"], layers), strict=True):
        for number, name in enumerate(names):
            shown = counts[name] > 0
            label = name.replace("similarity", "similarity, layer")
            style = {"s": 6, "alpha": 0.3, "linewidths": 0, "color": f"C{number}"}
            panel.scatter(atoms[shown], counts[name][shown], label=f"{label}: {fits[name]['slope']:.2f} N", **style)
        panel.set(xscale="log", yscale="log", ylabel="edges")
        panel.grid(alpha=0.3)
        if names:
            panel.legend(markerscale=3, title="slope of the linear fit")
        else:
            panel.text(0.5, 0.5, "no similarity expert", ha="center", transform=panel.transAxes)
    for panel in panels[2:]:
        panel.set_xlabel("atoms N in the cell")
    save_figure(figure, folder / "edges.png")
