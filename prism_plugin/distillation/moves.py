"""What is done to a structure before it is labelled: strain, displacements, short distances, defects.

Each takes a random generator and leaves its structure as it is.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

__all__ = ["closest_ratio", "displaced", "strained", "with_defect", "with_short_distance"]

SIGMA = (0.02, 0.35)  # Å, of displacements
VOLUME = (-0.15, 0.20)  # change of the volume
SHEAR = 0.04  # largest strain at one volume


def strained(rng: np.random.Generator, atoms: Atoms) -> Atoms:
    """Change the volume by -15 to +20 %, small changes more often, and the shape by up to 4 %."""
    shape = rng.uniform(-SHEAR, SHEAR, (3, 3))
    shape = (shape + shape.T) / 2
    shape -= np.trace(shape) / 3 * np.eye(3)
    stretch = np.eye(3) + shape
    stretch *= ((1 + rng.triangular(VOLUME[0], 0.0, VOLUME[1])) / np.linalg.det(stretch)) ** (1 / 3)
    changed = atoms.copy()
    changed.set_cell(atoms.cell.array @ stretch, scale_atoms=True)
    return changed


def displaced(rng: np.random.Generator, atoms: Atoms, largest: float = SIGMA[1]) -> Atoms:
    """Displace all atoms by normal deviates of a sigma of 0.02 Å to ``largest``, small ones more often.

    With 0.35 Å half of the sigmas are below 0.055 and a tenth is above 0.23 Å.
    """
    sigma = SIGMA[0] * (largest / SIGMA[0]) ** (rng.random() ** 1.5)
    changed = atoms.copy()
    changed.positions += sigma * rng.standard_normal((len(atoms), 3))
    return changed


def with_short_distance(rng: np.random.Generator, atoms: Atoms) -> Atoms | None:
    """Bring an atom and one of its neighbors to 0.6 to 0.95 of the sum of their covalent radii; None without one."""
    center = int(rng.integers(len(atoms)))
    first, second, vectors, lengths = neighbor_list("ijDd", atoms, 4.0)
    near = np.flatnonzero((first == center) & (second != center))
    if not len(near):
        return None
    chosen = near[np.argsort(lengths[near], kind="stable")[int(rng.integers(min(3, len(near))))]]
    radii = covalent_radii[atoms.numbers]
    wanted = rng.uniform(0.6, 0.95) * (radii[center] + radii[second[chosen]])
    step = vectors[chosen] / lengths[chosen] * (lengths[chosen] - wanted) / 2
    changed = atoms.copy()
    changed.positions[center] += step
    changed.positions[second[chosen]] -= step
    return changed


def with_defect(rng: np.random.Generator, atoms: Atoms) -> Atoms:
    """Take an atom away, exchange two of different elements, or put one in another's place."""
    changed = atoms.copy()
    kinds = np.unique(atoms.numbers)
    kind = str(rng.choice(["vacancy", "swap", "antisite"])) if len(kinds) > 1 else "vacancy"
    place = int(rng.integers(len(atoms)))
    if kind == "vacancy":
        if len(atoms) > 1:
            del changed[place]
        return changed
    others = np.flatnonzero(atoms.numbers != atoms.numbers[place])
    other = int(rng.choice(others))
    changed.numbers[place] = atoms.numbers[other]
    if kind == "swap":
        changed.numbers[other] = atoms.numbers[place]
    return changed


def closest_ratio(atoms: Atoms, below: float) -> float:
    """Return the smallest distance over the sum of covalent radii, if it is less than ``below``, else ``below``."""
    radii = covalent_radii[atoms.numbers]
    first, second, lengths = neighbor_list("ijd", atoms, below * radii)
    return float((lengths / (radii[first] + radii[second])).min()) if len(lengths) else below
