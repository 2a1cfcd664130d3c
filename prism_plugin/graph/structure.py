"""Structures of ASE and pymatgen -> one checked structure: the one door for every crystal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from ase import Atoms
from ase.cell import Cell
from ase.data import chemical_symbols, covalent_radii
from pymatgen.core import Composition, Element, IMolecule, IStructure

from prism_plugin.errors import PrismError
from prism_plugin.graph.lattice import reduced_basis

__all__ = ["TOO_NEAR_AT_MOST", "Structure", "check_distances", "read_structure"]

# Two atoms nearer than this (Å) are one atom entered twice; the shortest bond known, H-H, has 0.74 Å.
_SHORTEST_DISTANCE = 0.1
# In 5,700 crystals of Materials Project no pair is nearer than 0.63 times the sum of its covalent radii; in its cores
# no formula for crystals holds.
_SHORTEST_PART = 0.15
TOO_NEAR_AT_MOST = max(_SHORTEST_DISTANCE, 2 * _SHORTEST_PART * float(covalent_radii.max()))  # whatever the elements
# Beyond these (Å^3 per atom, Å) a cell is in another unit than Å; a molecule in a box of 50 Å is far from them.
_LARGEST_VOLUME = 1e6
_SMALLEST_VOLUME = 0.5  # Å^3 per atom; diamond has 5.7
_LARGEST_BOX = 1e8  # Å^3 around atoms that do not repeat
_LONGEST_VECTOR = 1e4
# Beyond this (Å) a position has too few digits left.
_FARTHEST = 1e10
_ORDERED = 1e-8  # as pymatgen has it
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
    numbers = np.array([_only_element(site.species) for site in structure], dtype=np.int64)
    if isinstance(structure, IMolecule):
        return numbers, np.asarray(structure.cart_coords), np.zeros((3, 3)), np.zeros(3, dtype=bool)
    lattice = structure.lattice
    return numbers, np.asarray(structure.cart_coords), np.asarray(lattice.matrix), np.array(lattice.pbc, dtype=bool)


def _only_element(species: Composition) -> int:
    """Atomic number of a site that is one atom, of whatever valences or isotopes."""
    parts: dict[int, float] = {}
    for one, amount in species.items():
        symbol = getattr(one, "symbol", str(one))
        if not Element.is_valid_symbol(symbol):
            raise PrismError(f"unknown element {symbol!r}; use chemical elements, no dummy species")
        number = Element(symbol).Z
        parts[number] = parts.get(number, 0.0) + amount
    _check_occupancy({chemical_symbols[number]: amount for number, amount in parts.items()})
    return next(iter(parts))


def _check_occupancy(parts: Mapping[str, float]) -> None:
    """Raise ValueError unless there is one whole atom of one element."""
    if len(parts) == 1 and abs(sum(parts.values()) - 1) <= _ORDERED:
        return
    site = ", ".join(f"{symbol}:{amount:.10g}" for symbol, amount in parts.items())
    raise PrismError(
        f"the structure is disordered: site {site!r} has partial occupancy; "
        "PRISM needs one atom per site, so order it first (pymatgen's OrderDisorderedStructureTransformation)"
    )


def _check_ase_occupancies(atoms: Atoms) -> None:
    """Raise ValueError if ASE read a disordered CIF, of which it keeps the first element of each site."""
    kinds = atoms.info.get("occupancy")
    if not isinstance(kinds, Mapping):
        return
    present = {str(kind) for kind in atoms.arrays.get("spacegroup_kinds", kinds)}
    for kind, parts in kinds.items():
        if str(kind) in present and isinstance(parts, Mapping):
            try:
                _check_occupancy(parts)
            except PrismError as error:
                raise PrismError(f"{error}; if the atoms are, delete atoms.info['occupancy']") from error


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
        _check_ase_occupancies(structure)
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
    lengths = np.linalg.norm(rows, axis=1)
    if len(rows) and lengths.min() < _SHORTEST_DISTANCE:
        raise PrismError(
            f"every atom lies on top of its own image, {lengths.min():.4f} Å away: the lattice "
            f"{lattice[pbc].tolist()} is too small; is it in Å?"
        )
    if len(rows) and lengths.max() > _LONGEST_VECTOR:
        raise PrismError(
            f"the lattice has a vector of {lengths.max():.4g} Å, more than {_LONGEST_VECTOR:.0f} Å: is it in Å?"
        )
    if pbc.all():
        volume = abs(np.linalg.det(lattice)) / len(numbers)
        if not _SMALLEST_VOLUME <= volume <= _LARGEST_VOLUME:
            bound = f"more than {_LARGEST_VOLUME:.0f}" if volume > _LARGEST_VOLUME else f"less than {_SMALLEST_VOLUME}"
            raise PrismError(f"the cell has {volume:.4g} Å^3 per atom, {bound}: is it in Å?")
    if np.abs(positions).max() > _FARTHEST:
        raise PrismError(
            f"an atom is {np.abs(positions).max():.4g} Å from the origin, where its position has no digits left; "
            "wrap it into the cell"
        )
    extent = np.ptp(positions, axis=0)
    if not pbc.any() and np.prod(extent + 1) > _LARGEST_BOX:
        raise PrismError(
            f"the atoms spread over {' x '.join(f'{one:.0f}' for one in extent)} Å; are the positions in Å? If so, "
            "give the fragments one by one"
        )
    if not pbc.all() and extent.max() > _LARGEST_EXTENT:
        raise PrismError(
            f"the atoms spread over {extent.max():.0f} Å, more than {_LARGEST_EXTENT:.0f} Å along a "
            "direction; are the positions in Å? If so, give the fragments one by one"
        )


def _flatness(rows: np.ndarray) -> float:
    """Volume that vectors span, divided by the product of their lengths; 1 if orthogonal, 0 if dependent."""
    lengths = np.linalg.norm(rows, axis=1)
    if not lengths.all():
        return 0.0
    units = rows / lengths[:, None]
    if len(units) == 3:  # a Gramian would leave 1e-8 of dependent ones
        return float(abs(np.linalg.det(units)))
    return float(np.linalg.norm(np.cross(*units))) if len(units) == 2 else 1.0


def check_distances(numbers: np.ndarray, index: np.ndarray, distance: np.ndarray) -> None:
    """Raise ValueError if two atoms lie on top of each other.

    Args:
        numbers: atomic numbers, shape ``(atoms,)``.
        index: pairs of atoms, shape ``(2, pairs)``.
        distance: Å, shape ``(pairs,)``.
    """
    radii = covalent_radii[numbers]
    least = np.maximum(_SHORTEST_PART * (radii[index[0]] + radii[index[1]]), _SHORTEST_DISTANCE)
    if not (distance < least).any():
        return
    pair = int(np.argmin(distance / least))
    first, second = index[:, pair]
    if first == second:
        raise PrismError(
            f"atom {first} ({chemical_symbols[numbers[first]]}) lies on top of its own image, {distance[pair]:.4f} Å "
            "away: the lattice is too small; is it in Å?"
        )
    raise PrismError(
        f"atoms {first} and {second} lie on top of each other ({chemical_symbols[numbers[first]]} and "
        f"{chemical_symbols[numbers[second]]}, {distance[pair]:.4f} Å apart); remove the duplicate, or is the lattice "
        "in another unit than Å?"
    )
