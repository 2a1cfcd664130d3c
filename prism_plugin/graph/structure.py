"""Structures of ASE and pymatgen -> one checked structure: the one door for every crystal."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from ase.cell import Cell
from pymatgen.core import Element, IMolecule, IStructure

from prism_plugin.graph.lattice import lattice_translations, reduced_basis
from prism_plugin.graph.neighbors import find_neighbors

if TYPE_CHECKING:
    pass
from prism_plugin.graph.crystals import CrystalGraph

__all__ = ["build_graph", "read_structure"]

# Two atoms nearer than this (Å) are one atom entered twice; the shortest bond known, H-H, has 0.74 Å.
_SHORTEST_DISTANCE = 0.1


# A cell whose volume is below this part of the product of its edge lengths is flat: no crystal comes near it.
_FLAT = 1e-4


# Where not periodic, the neighbor search divides the box of the atoms into cubes of the cutoff's size.
_LARGEST_EXTENT = 1000.0


def _read_pymatgen(structure: IStructure | IMolecule) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if not structure.is_ordered:
        site = next(site for site in structure if not site.is_ordered)
        raise ValueError(
            f"the structure is disordered: site {site.species_string!r} has partial occupancy; "
            "PRISM needs one atom per site, so order it first (pymatgen's OrderDisorderedStructureTransformation)"
        )
    symbols = [getattr(site.specie, "symbol", str(site.specie)) for site in structure]
    unknown = [symbol for symbol in symbols if not Element.is_valid_symbol(symbol)]
    if unknown:
        raise ValueError(f"unknown element {unknown[0]!r}; use chemical elements, no dummy species")
    numbers = np.array([Element(symbol).Z for symbol in symbols], dtype=np.int64)
    if isinstance(structure, IMolecule):
        return numbers, np.asarray(structure.cart_coords), np.zeros((3, 3)), np.zeros(3, dtype=bool)
    lattice = structure.lattice
    return numbers, np.asarray(structure.cart_coords), np.asarray(lattice.matrix), np.array(lattice.pbc, dtype=bool)


def read_structure(structure: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give atomic numbers, positions, lattice (possibly incomplete) and pbc of a structure of either library.

    Raises:
        TypeError: if ``structure`` is of another class.
        ValueError: if it is bad in any way that shows without a neighbor search.
    """
    if isinstance(structure, Atoms):
        parts = structure.numbers.astype(np.int64), structure.positions, structure.cell.array, structure.pbc.copy()
    elif isinstance(structure, (IStructure, IMolecule)):
        parts = _read_pymatgen(structure)
    else:
        raise TypeError(
            f"cannot make a crystal graph of {type(structure).__name__}; "
            "give an ase.Atoms, a pymatgen Structure or Molecule"
        )
    _check_structure(*parts)
    return parts


def _check_structure(numbers: np.ndarray, positions: np.ndarray, lattice: np.ndarray, pbc: np.ndarray) -> None:
    if len(numbers) == 0:
        raise ValueError("the structure is empty: it has no atoms")
    if numbers.min() < 1 or numbers.max() > 118:
        bad = int(numbers[(numbers < 1) | (numbers > 118)][0])
        raise ValueError(f"unknown element with atomic number {bad}; chemical elements have 1 to 118")
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise ValueError(f"the position of atom {atom} is not finite: {positions[atom].tolist()}")
    if not np.isfinite(lattice).all():
        raise ValueError(f"the lattice is not finite: {lattice.tolist()}")
    rows = lattice[pbc]
    if len(rows) and _flatness(rows) > 1e-12:
        rows = (reduced_basis(lattice, pbc) @ lattice)[pbc]  # a long, skewed basis is none the flatter for it
    if len(rows) and _flatness(rows) <= _FLAT:
        raise ValueError(
            f"the lattice is periodic along {np.flatnonzero(pbc).tolist()} but spans no volume there: "
            f"{lattice[pbc].tolist()}; give linearly independent lattice vectors or switch pbc off"
        )
    if len(rows) and np.linalg.norm(rows, axis=1).min() < _SHORTEST_DISTANCE:
        raise ValueError(
            f"every atom lies on top of its own image, {np.linalg.norm(rows, axis=1).min():.4f} Å away: the lattice "
            f"{lattice[pbc].tolist()} is too small; is it in Å?"
        )
    if not pbc.all() and np.ptp(positions, axis=0).max() > _LARGEST_EXTENT:
        raise ValueError(
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


def build_graph(structure: Any, cutoff: float = 5.0, cell_cutoff: float = 15.0) -> CrystalGraph:
    """Build the crystal graph of a structure.

    Args:
        structure: pymatgen ``Structure`` or ``Molecule``, or ASE ``Atoms``; partial periodicity is respected, a
            molecule has no cell edges.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.

    Returns:
        The graph, in float64, on the CPU.

    Raises:
        TypeError: if ``structure`` is of another class.
        ValueError: if a cutoff is not positive, or the structure is empty, disordered, not finite, flat, of unknown
            elements, or has two atoms within 0.1 Å.

    Example:
        >>> from ase.build import bulk
        >>> graph = build_graph(bulk("Cu", "fcc", a=3.6), cutoff=3.0)
        >>> len(graph), graph.edge_index.shape[1]
        (1, 12)
    """
    for name, value in (("cutoff", cutoff), ("cell_cutoff", cell_cutoff)):
        if not (isinstance(value, Real) and np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number of Å, got {value!r}")
    numbers, positions, lattice, pbc = read_structure(structure)
    # A vector along which nothing repeats means nothing, and may depend on the others.
    lattice = Cell(np.where(pbc[:, None], lattice, 0.0)).complete().array
    index, image = find_neighbors(positions, lattice, pbc, cutoff)
    vector = positions[index[1]] + image @ lattice - positions[index[0]]
    distance = np.linalg.norm(vector, axis=1)
    if len(distance) and distance.min() < _SHORTEST_DISTANCE:
        edge = int(distance.argmin())
        raise ValueError(
            f"atoms {index[0, edge]} and {index[1, edge]} lie on top of each other ({distance[edge]:.4f} Å apart); "
            "remove the duplicate"
        )
    return CrystalGraph(
        atomic_numbers=torch.from_numpy(numbers),
        positions=torch.tensor(positions, dtype=torch.float64),
        lattice=torch.tensor(lattice, dtype=torch.float64),
        pbc=torch.from_numpy(np.asarray(pbc, dtype=bool).copy()),
        edge_index=torch.from_numpy(index.astype(np.int32)),
        edge_image=torch.from_numpy(image.astype(np.int32)),
        cell_image=torch.from_numpy(lattice_translations(lattice, cell_cutoff, pbc).astype(np.int32)),
        reduction=torch.from_numpy(reduced_basis(lattice, pbc)),
        cutoff=float(cutoff),
        cell_cutoff=float(cell_cutoff),
    )
