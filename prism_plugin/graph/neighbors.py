"""Neighbor search: every pair of atoms within a cutoff, periodic images included."""

from __future__ import annotations

import numpy as np
from pymatgen.optimization.neighbors import find_points_in_spheres

from prism_plugin.graph.lattice import reduced_basis

__all__ = ["find_neighbors"]


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
