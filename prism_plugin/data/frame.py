"""One structure of a file, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixConstraint, FixScaled

from prism_plugin.errors import PrismError
from prism_plugin.graph.structure import read_structure

__all__ = ["SELECTIVE", "Frame", "Read", "as_atoms", "reason_of"]


SELECTIVE = "selective_dynamics"  # what pymatgen calls the three flags of a site that say whether it moves


@dataclass(frozen=True)
class Frame:
    """One structure of a file.

    Attributes:
        place: where it stands, for messages.
        name: what the file calls it, as it is written there; its number where it has no name.
        atoms: the structure.
        values: whatever else the file says of it, by name.
        doubts: what should be looked at.
    """

    place: str
    name: str
    atoms: Atoms
    values: Mapping[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


# A frame, or the reason why there is none.
Read: TypeAlias = "Frame | PrismError"


def as_atoms(structure: Any) -> Atoms:
    """Turn a pymatgen structure into ASE atoms; what its selective dynamics hold is a constraint.

    Raises:
        ValueError: if it is bad (see :func:`~prism_plugin.graph.structure.read_structure`).
    """
    atoms = read_structure(structure).atoms()
    moves = structure.site_properties.get(SELECTIVE)
    if moves is not None and all(np.shape(flags) == (3,) for flags in moves):
        held = ~np.array(moves, dtype=bool)
        constraints: list[FixConstraint] = []
        for mask in np.unique(held, axis=0):
            atoms_of = np.flatnonzero((held == mask).all(axis=1))
            if mask.any():
                constraints.append(FixAtoms(atoms_of) if mask.all() else FixScaled(atoms_of, mask))
        atoms.set_constraint(constraints)
    return atoms


def reason_of(error: Exception) -> str:
    """Say what an error means, one of a library with its kind."""
    if isinstance(error, KeyError):
        return f"{error} is missing or unknown"
    return str(error) if isinstance(error, PrismError) else f"{type(error).__name__}: {error}"
