"""What novelty and intervals of a model are worth: on validation crystals, and on crystals that are made strange.

python benchmarks/novelty.py DATA --target e_form --model prism-mp2018-eform --out report
python benchmarks/novelty.py FRAMES --model prism-universal-pbe --out report

DATA has the part val on which the model's domain was measured, of a potential its frames with forces (the errors are
then the largest error of a force in each); the coverage is by ten-fold cross-validation over it.
Writes novelty.json and novelty.png.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import compress
from pathlib import Path

import numpy as np
from ase import Atoms
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from sklearn.metrics import roc_auc_score

from prism_plugin import load
from prism_plugin.committee import bounded, how_far
from prism_plugin.data import GraphDataset, Record, make_datasets, read_records, split_records
from prism_plugin.domain import LEVELS, Domain
from prism_plugin.figures import save_figure
from prism_plugin.files import write_json
from prism_plugin.graph.build import build_graph
from prism_plugin.graph.doubts import doubts_of
from prism_plugin.model import PRISM
from prism_plugin.pretrained import models_in
from prism_plugin.tasks import PES
from prism_plugin.training.report import features_and_errors

_FOLDS = 10
Features = list[np.ndarray]


def graphs_of(models: list[PRISM], records: list[Record]) -> list[GraphDataset]:
    """Graphs for each model."""
    return [make_datasets({"x": records}, *model.cutoffs, False, None, model.has_waves)["x"] for model in models]


def coverage(models: list[PRISM], features: list[Features], each: list[np.ndarray], errors: np.ndarray) -> dict:
    """Coverage and mean half widths, each fold by the domains of the others.

    Args:
        models: of one property, or of energies with forces.
        features: of the crystals, of each model.
        each: errors of each model.
        errors: of the models together.
    """
    fold = np.random.default_rng(1).permutation(len(errors)) % _FOLDS
    widths = np.empty((len(errors), len(LEVELS)))
    novelty = how_far(models, features).novelty
    for number in range(_FOLDS):
        left = fold == number
        found = []
        for model, of_model, own in zip(models, features, each, strict=True):
            rest, these = (list(compress(of_model, part)) for part in (~left, left))
            domain: Domain = model.domain.calibrated(rest, own[~left])
            found.append(domain.half_widths(domain.novelty(these)))
        widths[left] = np.mean(found, axis=0)
    held = np.abs(errors)[:, None] <= widths
    fifths = np.array_split(np.argsort(novelty), 5)
    return {
        "coverage": held.mean(axis=0).tolist(),
        "half_width": widths.mean(axis=0).tolist(),
        "by_fifths_of_novelty": [
            {"coverage": held[part].mean(axis=0).tolist(), "mae": float(np.abs(errors[part]).mean())} for part in fifths
        ],
    }


def changed(
    records: list[Record], change: Callable[[Atoms], Atoms], models: list[PRISM]
) -> tuple[list[Record], np.ndarray]:
    """Records whose structures are changed, without those that are refused; and which have a doubtful distance."""
    found, named = [], []
    for record in records:
        try:
            one = replace(record, atoms=change(record.atoms.copy()))
            graph = build_graph(one.atoms, *models[0].cutoffs)
        except ValueError:
            continue
        found.append(one)
        named.append(bool(doubts_of(graph) or models[0].extent.doubts(graph)))
    return found, np.array(named)


def main() -> None:
    """Measure, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--target", default="e_form")
    parser.add_argument("--model", default="prism-mp2018-eform", help="or committee")
    parser.add_argument("--most", type=int, help="validation crystals; all if not given")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    models = [load(one) for one in models_in(given.model)]
    of_forces = models[0].domain_of_atoms
    target = PES if of_forces else given.target
    parts = split_records(read_records(given.data, target, skip_missing=True))
    records = parts["val"][: given.most]
    datasets = graphs_of(models, records)
    found = [features_and_errors(model, one) for model, one in zip(models, datasets, strict=True)]
    features, each = [of_model for of_model, _ in found], [errors for _, errors in found]
    errors = np.mean(each, axis=0)
    novelty = how_far(models, features).novelty
    worst = np.abs(errors) >= np.quantile(np.abs(errors), 0.9)
    report = {
        "model": given.model,
        "crystals": len(records),
        "mae": float(np.abs(errors).mean()),
        "auc_of_the_worst_tenth": {"novelty": float(roc_auc_score(worst, novelty))},
        **coverage(models, features, each, errors),
        "strange": {},
    }
    if len(models) > 1:
        spread = np.std(each, axis=0, ddof=1)  # of the predictions, for the targets are the same
        report["auc_of_the_worst_tenth"]["spread"] = float(roc_auc_score(worst, spread))
    rng = np.random.default_rng(0)

    def rattled(size: float) -> Callable[[Atoms], Atoms]:
        def change(atoms: Atoms) -> Atoms:
            atoms.positions += rng.normal(0, size, atoms.positions.shape)
            return atoms

        return change

    def stretched(factor: float) -> Callable[[Atoms], Atoms]:
        def change(atoms: Atoms) -> Atoms:
            atoms.set_cell(atoms.cell.array * factor, scale_atoms=True)
            return atoms

        return change

    def near(atoms: Atoms) -> Atoms:
        if len(atoms) > 1:
            distances = atoms.get_all_distances(mic=True) + 100 * np.eye(len(atoms))
            first, second = np.unravel_index(distances.argmin(), distances.shape)
            atoms.positions[first] += 0.4 * atoms.get_distance(first, second, mic=True, vector=True)
        return atoms

    def with_a_rare_one(atoms: Atoms) -> Atoms:
        atoms.symbols[atoms.numbers == rng.choice(atoms.numbers)] = rng.choice(sorted(models[0].rare_elements))
        return atoms

    kinds = {f"rattled by {size} Å": rattled(size) for size in (0.1, 0.3, 0.5)}
    kinds |= {f"lengths times {factor}": stretched(factor) for factor in (0.85, 0.95, 1.05, 1.15)}
    kinds["nearest two at 0.6 of their distance"] = near
    if models[0].rare_elements:
        kinds["an element for a rare one"] = with_a_rare_one
    far = how_far(models, features).far
    shown = {"as they are": novelty}
    for name, change in kinds.items():
        these, named = changed(records[::6], change, models)
        of_kind = [
            model.describe_graphs(one.graphs)[1] for model, one in zip(models, graphs_of(models, these), strict=True)
        ]
        one = how_far(models, of_kind).novelty
        shown[name] = one
        labels = np.r_[np.zeros(len(novelty)), np.ones(len(one))]
        auc = roc_auc_score(labels, np.r_[novelty, one])
        report["strange"][name] = {
            "auc": float(auc),
            "warned": float((one > far).mean()),
            "distances_named": float(named.mean()),
            "crystals": len(one),
        }
    write_json(given.out / "novelty.json", report)
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = np.array_split(np.argsort(novelty), 20)
    middle = [float(np.median(novelty[group])) for group in groups]
    for quantile, color in ((0.5, "#1f4e9c"), (0.68, "#8da0cb"), (0.95, "#d95f02")):
        sizes = [float(np.quantile(np.abs(errors[group]), quantile)) for group in groups]
        left.plot(middle, sizes, "o-", color=color, markersize=3, label=f"{100 * quantile:.0f} % are below")
    _, unit = bounded(models)
    what = "largest error of a force" if of_forces else "error"
    left.set(xlabel="novelty", ylabel=f"{what} ({unit})", xscale="log", yscale="log")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_title(f"{len(records):,} validation structures, in 20 groups", fontsize=10)
    left.legend(frameon=False)
    right.boxplot(list(shown.values()), orientation="horizontal", showfliers=False, tick_labels=list(shown))
    right.axvline(far, color="#d95f02", linewidth=1)
    right.set(xlabel="novelty (right of the line: a warning)", xscale="log")
    right.invert_yaxis()
    save_figure(figure, given.out / "novelty.png")
    for name, value in report.items():
        print(name, value)


if __name__ == "__main__":
    main()
