"""What the committee that ships answers on all validation crystals, and what its energy_std says about the error.

python benchmarks/committee.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz --out docs/default_model
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from prism_plugin import COMMITTEE, build_graph, load
from prism_plugin.data import read_records, split_records
from prism_plugin.figures import save_figure
from prism_plugin.files import replaced
from prism_plugin.tasks.scores import rms

BLUE = "#1f4e9c"


def score(answers: np.ndarray, target: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Score answers (models x crystals, eV/atom); give the error of their mean and their spread, too."""
    error, spread = answers.mean(axis=0) - target, answers.std(axis=0, ddof=1)  # as PRISMCalculator has them
    size = np.abs(error)
    uncertain = spread >= np.quantile(spread, 0.9)
    certain = spread <= np.median(spread)
    wide = spread > 0.01
    groups = np.array_split(np.argsort(spread), 20)
    pairs = np.triu_indices(len(answers), 1)
    scores = {
        "mae_each": [float(np.abs(answer - target).mean()) for answer in answers],
        "correlation_of_errors": float(np.corrcoef(answers - target)[pairs].mean()),
        "mae": float(size.mean()),
        "rmse": rms(error),
        "rms_std": rms(spread),
        "median_error": float(np.median(size)),
        "median_std": float(np.median(spread)),
        "rank_correlation": float(spearmanr(spread, size).statistic),
        "rmse_over_rms_std": rms(error) / rms(spread),
        "the_same_without_the_worst": rms(np.delete(error, size.argmax())) / rms(np.delete(spread, size.argmax())),
        "within_1_3_4_std": [float((size <= factor * spread).mean()) for factor in (1, 3, 4)],
        "crystals_above_0.01": int(wide.sum()),  # those with an energy_std of more than 0.01 eV per atom
        "of_them_within_4_std": float((size <= 4 * spread)[wide].mean()),
        "mae_certain_half": float(size[certain].mean()),
        "mae_other_half": float(size[~certain].mean()),
        "mae_without_tenth": float(size[~uncertain].mean()),  # that of the largest energy_std
        "large_errors": int((size > 0.2).sum()),
        "of_them_in_tenth": float(uncertain[size > 0.2].mean()),
        "rms_std_of_groups": [rms(spread[group]) for group in groups],
        "rmse_of_groups": [rms(error[group]) for group in groups],
    }
    return scores, error, spread


def draw(scores: dict[str, Any], error: np.ndarray, spread: np.ndarray, path: Path) -> None:
    """Draw the error of groups of equal size over their spread, and what is left after the most uncertain ones go."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    size, shown = np.abs(error), 1e-4
    left.loglog(spread, size, ".", color="0.8", markersize=2, zorder=0, rasterized=True)
    groups = np.array(scores["rms_std_of_groups"])
    left.loglog(groups, scores["rmse_of_groups"], "o-", color=BLUE, label=f"RMSE of {len(groups)} groups of equal size")
    ends, factor = np.array([groups.min(), groups.max()]), scores["rmse_over_rms_std"]
    left.loglog(ends, ends, "--", color="0.3", label="error = energy_std")
    left.loglog(ends, factor * ends, ":", color="0.3", label=f"error = {factor:.1f} energy_std")
    left.set(xlabel="energy_std per atom (eV)", ylabel="error of the mean (eV/atom)", ylim=(shown, 3))
    left.set_title(f"each crystal a grey dot; {(size < shown).sum()} errors are smaller", fontsize=10)
    left.legend(loc="lower right", fontsize=8)
    shares = np.linspace(0.05, 1, 96)
    for order, label, style in (
        (np.argsort(spread), "smallest energy_std", "-"),
        (np.argsort(size), "smallest error (the best there is)", ":"),
    ):
        kept = [size[order[: max(1, round(share * len(error)))]].mean() for share in shares]
        right.plot(100 * shares, kept, style, color=BLUE, label=label)
    right.axhline(size.mean(), linestyle="--", color="0.3", label="at random")
    most = 1.4 * size.mean()  # room for the legend
    right.set(xlabel="crystals kept (%)", ylabel="their MAE (eV/atom)", xlim=(0, 100), ylim=(0, most))
    right.set_title(f"{len(error):,} validation crystals", fontsize=10)
    right.legend(loc="upper left", fontsize=8)
    for panel in (left, right):
        panel.grid(alpha=0.3)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, help="folder of committee.json and committee.png; none is made without")
    arguments = parser.parse_args()
    records = split_records(read_records(arguments.data, "e_form"))["val"]
    models = [load(name) for name in COMMITTEE]
    graphs = [build_graph(record.atoms, models[0].cutoff, models[0].cell_cutoff) for record in records]
    answers = np.array([model.predict_graphs(graphs).double().numpy() for model in models])
    scores, error, spread = score(answers, np.array([record.target for record in records]))
    scores["worst"] = [
        {"formula": records[place].atoms.get_chemical_formula(), "error": error[place], "std": spread[place]}
        for place in np.argsort(-np.abs(error))[:5]
    ]
    print(json.dumps(scores, indent=1))
    if arguments.out is not None:
        with replaced(arguments.out / "committee.json") as path:
            path.write_text(json.dumps(scores, indent=1) + "\n")
        draw(scores, error, spread, arguments.out / "committee.png")


if __name__ == "__main__":
    main()
