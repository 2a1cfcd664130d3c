"""Neighbor search: every pair of atoms within a cutoff, periodic images included."""

from __future__ import annotations

import numpy as np
import torch
from pymatgen.optimization.neighbors import find_points_in_spheres
from torch import Tensor

from prism_plugin.graph.lattice import reduced_basis

__all__ = ["find_neighbors", "nearest_edges"]

# Neighbors that are farther by less than this, Å, are as far: float32 and the digits of files leave less open.
_AS_FAR = 1e-3


def find_neighbors(
    positions: np.ndarray, lattice: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find every pair of atoms, periodic images included, with 0 < distance <= cutoff.

    Args:
        positions: Cartesian positions in Å, shape ``(atoms, 3)``; they may lie outside the cell.
        lattice: lattice vectors as rows in Å, shape ``(3, 3)``, of full rank also where not periodic.
        pbc: periodic flags, shape ``(3,)``.
        cutoff: radius in Å.

    Returns:
        ``index`` of shape ``(2, edges)`` (receiver, sender; receivers ascending) and ``image`` of shape
        ``(edges, 3)``: the edge's vector is ``positions[sender] + image @ lattice - positions[receiver]``.
    """
    reduction = reduced_basis(lattice, pbc)  # a skewed basis would make the search walk over countless images
    reduced = np.where(np.asarray(pbc, dtype=bool)[:, None], reduction @ lattice, lattice)
    receiver, sender, offset, distance = find_points_in_spheres(
        np.ascontiguousarray(positions, dtype=np.float64),
        np.ascontiguousarray(positions, dtype=np.float64),
        r=float(cutoff),
        pbc=np.ascontiguousarray(pbc, dtype=np.int64),
        lattice=np.ascontiguousarray(reduced, dtype=np.float64),
        tol=1e-8,
    )
    image = np.asarray(np.rint(offset), dtype=np.int64).reshape(-1, 3) @ reduction
    itself = (receiver == sender) & ~image.any(axis=1)
    kept = ~itself & (distance <= cutoff)
    return np.stack([receiver[kept], sender[kept]]), image[kept]


def nearest_edges(receiver: Tensor, distance: Tensor, atoms: int, number: int) -> Tensor:
    """Find the edges to each atom's nearest neighbors, with all that are as far as the last of them.

    Args:
        receiver: of each edge, ascending, shape ``(edges,)``.
        distance: Å, shape ``(edges,)``.
        atoms: number of atoms.
        number: of neighbors; an atom with fewer keeps them all.

    Returns:
        Which edges are kept, shape ``(edges,)``.

    Example:
        >>> nearest_edges(torch.tensor([0, 0, 0, 1]), torch.tensor([3.0, 2.0, 3.0, 5.0]), 2, 2).tolist()
        [True, True, True, True]
    """
    if not len(receiver):
        return torch.zeros_like(receiver, dtype=torch.bool)
    distance = distance.detach()
    order = torch.argsort(distance, stable=True)
    order = order.index_select(0, torch.argsort(receiver.index_select(0, order), stable=True))
    count = receiver.new_zeros(atoms).index_add(0, receiver, torch.ones_like(receiver))
    last = (count.cumsum(0) - count + torch.minimum(count, torch.full_like(count, number)) - 1).clamp(min=0)
    farthest = distance.index_select(0, order.index_select(0, last))
    return distance <= farthest.index_select(0, receiver) + _AS_FAR
