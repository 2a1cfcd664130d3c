"""Pictures of a run: learning curve and parity."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from prism_plugin.files import replaced

__all__ = ["plot_learning_curve", "plot_parity", "read_log"]

_COLORS = {"train": "#8da0cb", "val": "#1f4e9c", "test": "#d95f02"}


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with replaced(path) as aside:
        figure.savefig(aside, dpi=150)


def plot_parity(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], target: str, unit: str, path: str | Path) -> None:
    """Draw predictions against targets, one panel per split.

    Args:
        pairs: targets and predictions of each split, shape ``(crystals,)`` each.
        target: name of the property.
        unit: its unit.
        path: where the PNG goes.
    """
    figure = Figure(figsize=(4.6 * len(pairs), 5.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(pairs), sharex=True, sharey=True))
    values = np.concatenate([np.concatenate(pair) for pair in pairs.values()])
    margin = 0.03 * (values.max() - values.min() or 1.0)
    ends = [values.min() - margin, values.max() + margin]
    label = f"{target.replace('_', ' ')} ({unit})" if unit else target.replace("_", " ")
    for panel, (name, (true, predicted)) in zip(panels, pairs.items(), strict=True):
        panel.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
        size = 3 if len(true) > 2000 else 9
        panel.scatter(true, predicted, s=size, alpha=0.4, color=_COLORS[name], linewidths=0, rasterized=True)
        panel.set(title=f"{name}: {len(true):,} crystals, MAE {np.abs(predicted - true).mean():.4f} {unit}".rstrip())
        panel.set(xlabel=f"reference {label}", xlim=ends, ylim=ends, aspect="equal")
    panels[0].set_ylabel(f"predicted {label}")
    _save(figure, Path(path))


def read_log(folder: str | Path) -> dict[str, np.ndarray]:
    """Read the epochs' MAEs of a run's log; of an epoch that was run twice the later one counts.

    Args:
        folder: the ``log`` folder of a run, with one ``version_N`` per start or resume.

    Returns:
        ``"epoch"``, ``"train_mae"`` and ``"val_mae"``, shape ``(epochs,)`` each; NaN where nothing was logged.
    """
    epochs: dict[int, dict[str, float]] = {}
    versions = sorted(Path(folder).glob("version_*"), key=lambda version: int(version.name.split("_")[1]))
    for version in versions:
        if not (version / "metrics.csv").exists():
            continue
        with open(version / "metrics.csv", newline="") as file:
            for row in csv.DictReader(file):
                values = {key: float(row[key]) for key in ("train_mae", "val_mae") if row.get(key)}
                epochs.setdefault(int(row["epoch"]), {}).update(values)
    numbers = sorted(epochs)
    return {
        "epoch": np.array(numbers),
        **{key: np.array([epochs[n].get(key, np.nan) for n in numbers]) for key in ("train_mae", "val_mae")},
    }


def plot_learning_curve(log: str | Path, unit: str, mean_predictor: float, path: str | Path) -> None:
    """Draw training and validation MAE over the epochs, with the mean predictor's as a line."""
    curves = read_log(log)
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    # The training curve is taken at the moving weights on rotated crystals: it lies above the final error.
    labels = {"train": "train, during the updates", "val": "val"}
    for name, label in labels.items():
        mae = curves[f"{name}_mae"]
        panel.plot(
            curves["epoch"] + 1, mae, marker=".", color=_COLORS[name], label=f"{label}; best {np.nanmin(mae):.4f}"
        )
    panel.axhline(mean_predictor, color="0.5", linestyle="--", label=f"mean predictor on val, {mean_predictor:.4f}")
    panel.set(xlabel="epoch", ylabel=f"MAE ({unit})" if unit else "MAE", yscale="log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3, which="both")
    panel.legend()
    _save(figure, Path(path))
