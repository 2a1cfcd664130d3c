"""What the committee that ships answers on all validation crystals, and what its energy_std says about the error.

python benchmarks/committee.py ../shared/data/mp2018/mp2018_train_val.jsonl.xz --out docs/default_model
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from prism_plugin import COMMITTEE, build_graph, load
from prism_plugin.data import read_records, split_records
from prism_plugin.files import replaced
from prism_plugin.training.plots import save_figure

BLUE = "#1f4e9c"


def draw(error: np.ndarray, spread: np.ndarray, path: Path) -> None:
    """Draw the error of groups of equal size over their spread, and what is left after the most uncertain ones go."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = np.array_split(np.argsort(spread), 20)
    means = np.array([np.sqrt((spread[group] ** 2).mean()) for group in groups])
    errors = np.array([np.sqrt((error[group] ** 2).mean()) for group in groups])
    left.loglog(spread, np.abs(error), ".", color="0.8", markersize=2, zorder=0, rasterized=True)
    left.loglog(means, errors, "o-", color=BLUE, label=f"RMSE of groups of {len(groups[0])}")
    ends = np.array([means.min(), means.max()])
    factor = np.sqrt((error**2).mean() / (spread**2).mean())
    left.loglog(ends, ends, "--", color="0.3", label="error = energy_std")
    left.loglog(ends, factor * ends, ":", color="0.3", label=f"error = {factor:.1f} energy_std")
    left.set(xlabel="energy_std per atom (eV)", ylabel="error of the mean (eV/atom)", ylim=(1e-4, 3))
    left.set_title("each crystal a grey dot", fontsize=10)
    left.legend()
    shares = np.linspace(0.05, 1, 96)
    for order, label, style in (
        (np.argsort(spread), "smallest energy_std", "-"),
        (np.argsort(np.abs(error)), "smallest error (the best there is)", ":"),
    ):
        kept = [np.abs(error[order[: max(1, round(share * len(error)))]]).mean() for share in shares]
        right.plot(100 * shares, kept, style, color=BLUE, label=label)
    right.axhline(np.abs(error).mean(), linestyle="--", color="0.3", label="at random")
    most = 1.4 * np.abs(error).mean()  # room for the legend
    right.set(xlabel="crystals kept (%)", ylabel="their MAE (eV/atom)", xlim=(0, 100), ylim=(0, most))
    right.set_title(f"{len(error):,} validation crystals", fontsize=10)
    right.legend(loc="upper left")
    for panel in (left, right):
        panel.grid(alpha=0.3)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, help="folder of committee.json and committee.png; none is made without")
    arguments = parser.parse_args()
    records = split_records(read_records(arguments.data, "e_form"))["val"]
    target = np.array([record.target for record in records])
    models = [load(name) for name in COMMITTEE]
    graphs = [build_graph(record.atoms, models[0].cutoff, models[0].cell_cutoff) for record in records]
    answers = np.array([model.predict_graphs(graphs).double().numpy() for model in models])
    error, spread = answers.mean(axis=0) - target, answers.std(axis=0, ddof=1)  # as PRISMCalculator has them
    large = np.abs(error) > 0.2
    uncertain = spread >= np.quantile(spread, 0.9)
    certain = spread <= np.median(spread)
    scores = {
        "mae_each": [float(np.abs(answer - target).mean()) for answer in answers],
        "correlation_of_errors": float(np.corrcoef(answers - target)[np.triu_indices(len(models), 1)].mean()),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "rms_std": float(np.sqrt((spread**2).mean())),
        "median_error": float(np.median(np.abs(error))),
        "median_std": float(np.median(spread)),
        "rank_correlation": float(spearmanr(spread, np.abs(error)).statistic),
        "rmse_over_rms_std": float(np.sqrt((error**2).mean() / (spread**2).mean())),
        "within_std": float((np.abs(error) <= spread).mean()),
        "within_3_std": float((np.abs(error) <= 3 * spread).mean()),
        "mae_certain_half": float(np.abs(error[certain]).mean()),
        "mae_other_half": float(np.abs(error[~certain]).mean()),
        "mae_without_tenth": float(np.abs(error[~uncertain]).mean()),  # that of the largest energy_std
        "large_errors": int(large.sum()),  # more than 0.2 eV/atom
        "of_them_in_tenth": float(uncertain[large].mean()),
    }
    print(json.dumps(scores, indent=1))
    if arguments.out is not None:
        with replaced(arguments.out / "committee.json") as path:
            path.write_text(json.dumps(scores, indent=1) + "\n")
        draw(error, spread, arguments.out / "committee.png")


if __name__ == "__main__":
    main()
