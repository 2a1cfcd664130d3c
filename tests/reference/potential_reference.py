"""The loss of a potential as it is written down: loops over crystals and components, in float64.

Nothing is taken from ``prism_plugin``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def huber(x: float, threshold: float) -> float:
    """Square up to the threshold, from there on straight with slope 1."""
    return 0.5 * x * x / threshold if abs(x) <= threshold else abs(x) - 0.5 * threshold


def loss(
    energy: tuple[float, float],
    forces: tuple[np.ndarray, np.ndarray],
    virial: tuple[np.ndarray, np.ndarray | None],
    scale: float,
    mean_atoms: float,
    weights: Mapping[str, float],
    threshold: float,
) -> float:
    """Loss of one crystal; each pair is what was predicted and what is right (a virial may be unknown)."""
    atoms = len(forces[0])
    total = weights["energy"] * huber((energy[0] - energy[1]) / atoms / scale, threshold)
    for predicted, right in zip(*forces, strict=True):
        for component in range(3):
            part = huber((predicted[component] - right[component]) / scale, threshold)
            total += weights["forces"] * part / (3 * mean_atoms)
    if virial[1] is not None:
        for row in range(3):
            for column in range(3):
                difference = virial[0][row, column] - virial[1][row, column]
                total += weights["stress"] * huber(difference / atoms / scale, threshold) / 9
    return total


def element_refs(counts: Sequence[Sequence[int]], energies: Sequence[float]) -> np.ndarray:
    """Energies x of the elements that minimize sum_c (sum_e n_ce x_e - E_c)^2 / N_c^2, by the normal equations."""
    matrix, right = np.zeros((len(counts[0]),) * 2), np.zeros(len(counts[0]))
    for row, energy in zip(counts, energies, strict=True):
        atoms = sum(row)
        for i, of_i in enumerate(row):
            right[i] += of_i * energy / atoms**2
            for j, of_j in enumerate(row):
                matrix[i, j] += of_i * of_j / atoms**2
    return np.linalg.solve(matrix, right)


def zbl(
    numbers: Sequence[int],
    edges: Sequence[tuple[int, int]],
    distances: Sequence[float],
    radii: Sequence[float],
    cutoff: float,
) -> list[float]:
    """Energy of each atom: half of Ziegler, Biersack and Littmark's pair energies, faded out at the covalent radii."""
    energies = [0.0] * len(numbers)
    for (i, j), d in zip(edges, distances, strict=True):
        z_i, z_j = numbers[i], numbers[j]
        end = min(radii[z_i] + radii[z_j], cutoff)
        if d >= end:
            continue
        length = 0.8854 * 0.529177211 / (z_i**0.23 + z_j**0.23)
        x = d / length
        phi = (
            0.18175 * np.exp(-3.19980 * x)
            + 0.50986 * np.exp(-0.94229 * x)
            + 0.28022 * np.exp(-0.40290 * x)
            + 0.02817 * np.exp(-0.20162 * x)
        )
        fade = 1 - 28 * (d / end) ** 6 + 48 * (d / end) ** 7 - 21 * (d / end) ** 8
        energies[i] += 0.5 * 14.3996455 * z_i * z_j / d * phi * fade
    return energies
