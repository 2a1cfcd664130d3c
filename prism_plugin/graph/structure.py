"""Structures of ASE and pymatgen -> one checked structure: the one door for every crystal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from ase import Atoms
from ase.cell import Cell
from pymatgen.core import Element, IMolecule, IStructure

from prism_plugin.errors import PrismError
from prism_plugin.graph.lattice import reduced_basis

__all__ = ["SHORTEST_DISTANCE", "Structure", "read_structure"]

# Two atoms nearer than this (Å) are one atom entered twice; the shortest bond known, H-H, has 0.74 Å.
SHORTEST_DISTANCE = 0.1
# A cell whose volume is below this part of the product of its edge lengths is flat: no crystal comes near it.
_FLAT = 1e-4
# Where not periodic, the neighbor search divides the box of the atoms into cubes of the cutoff's size.
_LARGEST_EXTENT = 1000.0


@dataclass(frozen=True, eq=False)
class Structure:
    """A structure that :func:`read_structure` has checked.

    Attributes:
        numbers: atomic numbers, shape ``(atoms,)``, int64.
        positions: Cartesian, Å, shape ``(atoms, 3)``.
        cell: the cell as given, rows in Å, shape ``(3, 3)``, zeros where there is no vector.
        pbc: periodic flags, shape ``(3,)``.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    @cached_property
    def lattice(self) -> np.ndarray:
        """Lattice of full rank, shape ``(3, 3)``: unit vectors where nothing repeats.

        A vector along which nothing repeats means nothing, and may depend on the others.
        """
        return Cell(np.where(self.pbc[:, None], self.cell, 0.0)).complete().array

    def atoms(self) -> Atoms:
        """Return the structure as ASE atoms."""
        return Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.pbc)


def _read_pymatgen(structure: IStructure | IMolecule) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if not structure.is_ordered:
        site = next(site for site in structure if not site.is_ordered)
        raise PrismError(
            f"the structure is disordered: site {site.species_string!r} has partial occupancy; "
            "PRISM needs one atom per site, so order it first (pymatgen's OrderDisorderedStructureTransformation)"
        )
    symbols = [getattr(site.specie, "symbol", str(site.specie)) for site in structure]
    unknown = [symbol for symbol in symbols if not Element.is_valid_symbol(symbol)]
    if unknown:
        raise PrismError(f"unknown element {unknown[0]!r}; use chemical elements, no dummy species")
    numbers = np.array([Element(symbol).Z for symbol in symbols], dtype=np.int64)
    if isinstance(structure, IMolecule):
        return numbers, np.asarray(structure.cart_coords), np.zeros((3, 3)), np.zeros(3, dtype=bool)
    lattice = structure.lattice
    return numbers, np.asarray(structure.cart_coords), np.asarray(lattice.matrix), np.array(lattice.pbc, dtype=bool)


def read_structure(structure: Any) -> Structure:
    """Read and check a structure of either library; one that was checked before is returned as it is.

    Args:
        structure: ASE ``Atoms``, pymatgen ``Structure`` or ``Molecule``, or a checked :class:`Structure`.

    Raises:
        TypeError: if ``structure`` is of another class.
        ValueError: if it is bad in any way that shows without a neighbor search.
    """
    if isinstance(structure, Structure):
        return structure
    if isinstance(structure, Atoms):
        parts = (
            structure.numbers.astype(np.int64),
            structure.positions.astype(np.float64),
            structure.cell.array.copy(),
            structure.pbc.copy(),
        )
    elif isinstance(structure, (IStructure, IMolecule)):
        parts = _read_pymatgen(structure)
    else:
        raise TypeError(
            f"cannot make a crystal graph of {type(structure).__name__}; "
            "give an ase.Atoms, a pymatgen Structure or Molecule"
        )
    _check_structure(*parts)
    return Structure(*parts)


def _check_structure(numbers: np.ndarray, positions: np.ndarray, lattice: np.ndarray, pbc: np.ndarray) -> None:
    if len(numbers) == 0:
        raise PrismError("the structure is empty: it has no atoms")
    if numbers.min() < 1 or numbers.max() > 118:
        bad = int(numbers[(numbers < 1) | (numbers > 118)][0])
        raise PrismError(f"unknown element with atomic number {bad}; chemical elements have 1 to 118")
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise PrismError(f"the position of atom {atom} is not finite: {positions[atom].tolist()}")
    if not np.isfinite(lattice).all():
        raise PrismError(f"the lattice is not finite: {lattice.tolist()}")
    rows = lattice[pbc]
    if len(rows) and _flatness(rows) > 1e-12:
        rows = (reduced_basis(lattice, pbc) @ lattice)[pbc]  # a long, skewed basis is none the flatter for it
    if len(rows) and _flatness(rows) <= _FLAT:
        raise PrismError(
            f"the lattice is periodic along {np.flatnonzero(pbc).tolist()} but spans no volume there: "
            f"{lattice[pbc].tolist()}; give linearly independent lattice vectors or switch pbc off"
        )
    if len(rows) and np.linalg.norm(rows, axis=1).min() < SHORTEST_DISTANCE:
        raise PrismError(
            f"every atom lies on top of its own image, {np.linalg.norm(rows, axis=1).min():.4f} Å away: the lattice "
            f"{lattice[pbc].tolist()} is too small; is it in Å?"
        )
    if not pbc.all() and np.ptp(positions, axis=0).max() > _LARGEST_EXTENT:
        raise PrismError(
            f"the atoms spread over {np.ptp(positions, axis=0).max():.0f} Å, more than {_LARGEST_EXTENT:.0f} Å along a "
            "direction; are the positions in Å? If so, give the fragments one by one"
        )


def _flatness(rows: np.ndarray) -> float:
    """Volume that vectors span, divided by the product of their lengths; 1 if orthogonal, 0 if dependent."""
    lengths = np.linalg.norm(rows, axis=1)
    if not lengths.all():
        return 0.0
    units = rows / lengths[:, None]
    return float(np.sqrt(max(np.linalg.det(units @ units.T), 0.0)))
