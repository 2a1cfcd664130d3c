"""Pictures of simulations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.cell import Cell
from matplotlib.figure import Figure

from prism_plugin.figures import COLORS, save_figure

__all__ = ["plot_bands", "plot_dynamics", "plot_elastic", "plot_equation_of_state", "plot_relaxations"]

_BLUE, _ORANGE = COLORS["val"], COLORS["test"]


def plot_relaxations(changes: Sequence[float], steps: Sequence[int], converged: Sequence[bool], path: Path) -> None:
    """Show by how much volumes changed, and in how many steps.

    Args:
        changes: relative changes of the volumes; NaN without a cell.
        steps: of each relaxation.
        converged: whether each did.
        path: the picture.
    """
    percent, done = 100 * np.asarray(changes, dtype=float), np.asarray(converged, dtype=bool)
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    known = percent[np.isfinite(percent)]
    left.hist(known, bins=min(40, max(5, len(known) // 3)), color=_BLUE)
    left.axvline(0, color="0.5", linewidth=1)
    left.set(xlabel="change of the volume (%)", ylabel="structures", title=f"{len(percent)} relaxations")
    for shown, color, label in ((done, _BLUE, "converged"), (~done, _ORANGE, "not converged")):
        if shown.any():
            right.scatter(np.asarray(steps)[shown], percent[shown], s=14, color=color, label=label)
    right.axhline(0, color="0.5", linewidth=1)
    right.set(xlabel="steps", ylabel="change of the volume (%)")
    right.legend(frameon=False)
    save_figure(figure, path)


def plot_dynamics(log: np.ndarray, atoms: int, path: Path) -> None:
    """Show energies and temperature over the time.

    Args:
        log: rows of :data:`prism_plugin.simulation.dynamics.COLUMNS`.
        atoms: how many there are.
        path: the picture.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for column, color, label in ((2, _BLUE, "potential"), (3, _ORANGE, "total")):
        upper.plot(log[:, 0], 1000 * (log[:, column] - log[0, column]) / atoms, color=color, label=label)
    upper.set(ylabel="energy since the start\n(meV/atom)")
    upper.legend(frameon=False)
    lower.plot(log[:, 0], log[:, 1], color=_BLUE)
    lower.set(xlabel="time (ps)", ylabel="temperature (K)")
    save_figure(figure, path)


def plot_equation_of_state(points: np.ndarray, fit: tuple[np.ndarray, np.ndarray], path: Path) -> None:
    """Show energies over volumes, per atom, with the fitted curve."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    panel = figure.subplots()
    panel.plot(*fit, color="0.5", linewidth=1, label="Birch-Murnaghan")
    panel.scatter(points[0], points[1], color=_ORANGE, zorder=2, s=20, label="potential")
    panel.set(xlabel="volume (Å³/atom)", ylabel="energy (eV/atom)")
    panel.legend(frameon=False)
    save_figure(figure, path)


def plot_elastic(tensor: np.ndarray, path: Path) -> None:
    """Show an elastic tensor in Voigt's notation, GPa."""
    figure = Figure(figsize=(4.6, 4), layout="constrained")
    panel = figure.subplots()
    largest = np.abs(tensor).max() or 1.0
    image = panel.imshow(tensor, cmap="RdBu_r", vmin=-largest, vmax=largest)
    for row, column in np.ndindex(6, 6):
        color = "white" if abs(tensor[row, column]) > 0.6 * largest else "black"
        panel.text(column, row, f"{tensor[row, column]:.0f}", ha="center", va="center", fontsize=8, color=color)
    ticks = range(6)
    panel.set(xticks=ticks, yticks=ticks, xticklabels=[t + 1 for t in ticks], yticklabels=[t + 1 for t in ticks])
    figure.colorbar(image, label="elastic constant (GPa)", shrink=0.8)
    save_figure(figure, path)


def plot_bands(phonon: Any, path: Path) -> None:
    """Show the bands of a phonopy ``Phonopy`` on ASE's path through the Brillouin zone, and their density of states."""
    way = Cell(phonon.primitive.cell).bandpath(npoints=300)
    distances, ticks, labels = way.get_linear_kpoint_axis()
    phonon.run_qpoints(way.kpts)
    phonon.run_total_dos()
    figure = Figure(figsize=(7, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    left.plot(distances, phonon.qpoints.frequencies, color=_BLUE, linewidth=1)
    for tick in ticks:
        left.axvline(tick, color="0.85", linewidth=0.8, zorder=0)
    left.axhline(0, color="0.5", linewidth=0.8)
    left.set(ylabel="frequency (THz)", xlim=(distances[0], distances[-1]), xticks=ticks)
    left.set_xticklabels([label.replace("G", "Γ") for label in labels])
    right.plot(phonon.total_dos.dos, phonon.total_dos.frequency_points, color=_BLUE, linewidth=1)
    right.set(xlabel="density of states")
    save_figure(figure, path)
