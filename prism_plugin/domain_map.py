"""A map of a model's training crystals, with others on it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from prism_plugin.domain import Domain
from prism_plugin.figures import save_figure

__all__ = ["family", "plot_map"]

_ANIONS = {
    "oxides": ("O",),
    "halides": ("F", "Cl", "Br", "I"),
    "chalcogenides": ("S", "Se", "Te"),
    "pnictides": ("N", "P", "As", "Sb"),
    "hydrides, carbides, borides, silicides": ("H", "C", "B", "Si", "Ge"),
}
_COLORS = dict(
    zip((*_ANIONS, "intermetallics"), ("#d95f02", "#1b9e77", "#e6ab02", "#7570b3", "#66a61e", "#8da0cb"), strict=True)
)


def family(formula: str) -> str:
    """Return the family of a formula: that of its most electronegative kind of anion.

    Example:
        >>> family("BaTiO3"), family("NaCl"), family("Ni3Al")
        ('oxides', 'halides', 'intermetallics')
    """
    elements = set(re.findall(r"[A-Z][a-z]?", formula))
    return next((name for name, anions in _ANIONS.items() if elements & set(anions)), "intermetallics")


def plot_map(domain: Domain, features: np.ndarray, path: Path) -> None:
    """Draw the training crystals along the two directions in which they differ most, and others among them.

    Args:
        domain: of the model.
        features: of the others, shape ``(n, dim)``.
        path: the picture.
    """
    known, others = domain.training, domain.along(features)
    families = np.array([family(formula) for formula in domain.formulas])
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    axes = figure.subplots()
    for name, color in _COLORS.items():
        here = families == name
        if here.any():
            axes.scatter(
                known[here, 0], known[here, 1], s=3, color=color, linewidths=0, label=f"{name} ({here.sum():,})"
            )
    far = domain.novelty(features) > domain.far
    for shown, marker, fill, label in ((~far, "o", "none", "given"), (far, "X", "black", "given, far from all")):
        if shown.any():
            axes.scatter(
                others[shown, 0],
                others[shown, 1],
                s=46,
                marker=marker,
                facecolor=fill,
                edgecolor="black",
                linewidths=1.2,
                label=f"{label} ({shown.sum():,})",
            )
    axes.set(
        xlabel="features of the last layer, first direction",
        ylabel="second direction",
        title=f"{len(known):,} training crystals",
    )
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.6)
    save_figure(figure, path)
