"""Structures -> crystal graphs: the neighbor search and the translations of the cell."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch

from prism_plugin.errors import PrismError
from prism_plugin.graph.crystals import CrystalBatch, CrystalGraph
from prism_plugin.graph.lattice import folded, lattice_translations, reduced_basis
from prism_plugin.graph.neighbors import find_neighbors
from prism_plugin.graph.structure import check_distances, read_structure

__all__ = ["build_graph"]


def build_graph(structure: Any, cutoff: float = 5.0, cell_cutoff: float = 15.0) -> CrystalGraph:
    """Build the crystal graph of a structure.

    Args:
        structure: pymatgen ``Structure`` or ``Molecule``, ASE ``Atoms``, or a checked structure; partial periodicity
            is respected, a molecule has no cell edges.
        cutoff: radius of the atomistic edges, Å.
        cell_cutoff: radius of the cell edges, Å.

    Returns:
        The graph, in float64, on the CPU. Atoms more than a cell outside their cell are folded into it.

    Raises:
        TypeError: if ``structure`` is of another class.
        ValueError: if a cutoff is not positive, or the structure is empty, disordered, not finite, flat, of unknown
            elements, in another unit than Å, or has two atoms within 0.15 of the sum of their covalent radii.

    Example:
        >>> from ase.build import bulk
        >>> graph = build_graph(bulk("Cu", "fcc", a=3.6), cutoff=3.0)
        >>> len(graph), graph.edge_index.shape[1]
        (1, 12)
    """
    for name, value in (("cutoff", cutoff), ("cell_cutoff", cell_cutoff)):
        if not (isinstance(value, Real) and np.isfinite(value) and value > 0):
            raise PrismError(f"{name} must be a positive number of Å, got {value!r}")
    found = read_structure(structure)
    lattice, pbc = found.lattice, found.pbc
    positions = folded(found.positions, lattice, pbc)
    index, image = find_neighbors(positions, lattice, pbc, cutoff)
    vector = positions[index[1]] + image @ lattice - positions[index[0]]
    distance = np.linalg.norm(vector, axis=1)
    check_distances(found.numbers, index, distance)
    cell_image = lattice_translations(lattice, cell_cutoff, pbc)
    return CrystalGraph(
        CrystalBatch(
            atomic_numbers=torch.from_numpy(found.numbers),
            positions=torch.tensor(positions, dtype=torch.float64),
            lattice=torch.tensor(lattice, dtype=torch.float64).unsqueeze(0),
            cell=torch.tensor(found.cell, dtype=torch.float64).unsqueeze(0),
            pbc=torch.tensor(pbc, dtype=torch.bool).unsqueeze(0),
            reduction=torch.from_numpy(reduced_basis(lattice, pbc)).unsqueeze(0),
            edge_index=torch.from_numpy(index),
            edge_image=torch.from_numpy(image.astype(np.int32)),
            cell_image=torch.from_numpy(cell_image.astype(np.int32)),
            sizes=np.array([[len(found), index.shape[1], len(cell_image)]], dtype=np.int64),
            elements=tuple(np.unique(found.numbers).tolist()),
            cutoff=float(cutoff),
            cell_cutoff=float(cell_cutoff),
        )
    )
