"""Geometry of periodic lattices: translations, reduced bases, products of rows with the matrix of their crystal.

Plain arrays and tensors; nothing here knows of graphs, DGL or matgl.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from ase.geometry import minkowski_reduce
from torch import Tensor

from prism_plugin.devices import send
from prism_plugin.errors import PrismError

__all__ = [
    "LatticeAxes",
    "folded",
    "lattice_translations",
    "reduced_bases",
    "reduced_basis",
    "shortest_axes",
    "times_matrix",
]

# Lengths are equal if they differ by less than this share: coordinates in files and in float32 have fewer digits.
_SAME = 1e-3
# One of v and -v of the shortest candidates of a Minkowski-reduced basis.
_CANDIDATES = np.array([(a, b, c) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)][14:])


def lattice_translations(lattice: np.ndarray, cutoff: float, pbc: np.ndarray) -> np.ndarray:
    """Find all lattice translations T != 0 no longer than a cutoff.

    Args:
        lattice: lattice vectors as rows in Å, shape ``(3, 3)``.
        cutoff: largest length in Å.
        pbc: periodic flags, shape ``(3,)``; coefficients along other directions are 0.

    Returns:
        Integer coefficients, shape ``(translations, 3)``, in lexicographic order.

    Example:
        >>> len(lattice_translations(np.eye(3), cutoff=1.0, pbc=np.array([True, True, False])))
        4
    """
    periodic = np.flatnonzero(pbc)
    if len(periodic) == 0:
        return np.zeros((0, 3), dtype=np.int64)
    # In a reduced basis the coefficients are small, however skewed the given one is.
    reduction = reduced_basis(lattice, pbc)[periodic]
    rows = reduction @ lattice
    # |n_k| = |T . b_k| <= |T| |b_k| with b_k the reciprocal vectors of the periodic rows.
    bounds = np.floor(cutoff * np.linalg.norm(np.linalg.pinv(rows), axis=0) + 1e-9).astype(int)
    grids = np.meshgrid(*[np.arange(-n, n + 1) for n in bounds], indexing="ij")
    coefficients = np.stack([grid.ravel() for grid in grids], axis=1)
    length = np.linalg.norm(coefficients @ rows, axis=1)
    translations = coefficients[(length <= cutoff) & coefficients.any(axis=1)] @ reduction
    return translations[np.lexsort(translations.T[::-1])]


def folded(positions: np.ndarray, lattice: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Fold atoms that are more than a cell outside into the cell; all others stay to the bit.

    A neighbor search takes memory and time for every cell between an atom and the others, and float32 loses digits.

    Args:
        positions: Cartesian, Å, shape ``(atoms, 3)``.
        lattice: rows in Å, shape ``(3, 3)``, of full rank.
        pbc: periodic flags, shape ``(3,)``.

    Returns:
        Positions in Å, shape ``(atoms, 3)``.
    """
    cells = np.floor(positions @ np.linalg.inv(lattice)) * np.asarray(pbc, dtype=bool)
    cells[(np.abs(cells) <= 1).all(axis=1)] = 0
    return positions - cells @ lattice if cells.any() else positions


def reduced_basis(lattice: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Return the integer matrix that turns a lattice basis into its Minkowski-reduced one.

    Args:
        lattice: lattice vectors as rows in Å, shape ``(3, 3)``.
        pbc: periodic flags, shape ``(3,)``.

    Returns:
        Integer matrix M of shape ``(3, 3)``; the reduced vectors are ``M @ lattice``. Rows of directions that are
        not periodic are zero, so that no image along them is ever a candidate.
    """
    cell = np.ascontiguousarray(lattice, dtype=np.float64)
    return _reduced_basis(cell.tobytes(), np.asarray(pbc, dtype=bool).tobytes()).copy()


@lru_cache(maxsize=1024)
def _reduced_basis(lattice: bytes, periodic: bytes) -> np.ndarray:
    """Remember the last lattices: a graph needs its own four times, a dynamics in a fixed cell in every step."""
    pbc = np.frombuffer(periodic, dtype=bool)
    if not pbc.any():
        return np.zeros((3, 3), dtype=np.int64)
    cell = np.frombuffer(lattice).reshape(3, 3)
    try:
        matrix = np.asarray(minkowski_reduce(cell, pbc=pbc)[1], dtype=np.int64).copy()
    except RuntimeError as error:
        raise PrismError(f"the lattice {cell.tolist()} has no reduced basis: it is nearly flat") from error
    matrix[~pbc] = 0
    return matrix


def reduced_bases(lattice: Tensor, pbc: Tensor) -> Tensor:
    """Apply :func:`reduced_basis` to several lattices, shapes ``(crystals, 3, 3)`` and ``(crystals, 3)``."""
    pairs = zip(lattice.detach().cpu().double().numpy(), pbc.cpu().numpy(), strict=True)
    return torch.stack([torch.from_numpy(reduced_basis(cell, flags)) for cell, flags in pairs]).to(lattice.device)


class LatticeAxes(NamedTuple):
    """The shortest lattice vectors of crystals, see :func:`shortest_axes`.

    Attributes:
        coefficients: integer ones, shape ``(crystals, most, 3)``.
        weight: of each as the k-th vector, shape ``(crystals, most, 3)``.
    """

    coefficients: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> LatticeAxes:
        """Move to a device."""
        return LatticeAxes(*[send(tensor, device) for tensor in self])


def shortest_axes(lattice: np.ndarray, reduction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the three shortest lattice vectors that span the lattice, and all that could be taken in place of each.

    The k-th length is the lattice's k-th successive minimum. The k-th vector can be any of this length (but for 0.1 %)
    that does not lie in the span of all shorter ones: a cubic lattice has 3, 4 or 6 for each k, counted without signs.
    None of this depends on the basis.

    Args:
        lattice: lattice vectors as rows in Å, shape ``(crystals, 3, 3)``.
        reduction: matrices to their Minkowski-reduced bases, shape ``(crystals, 3, 3)``.

    Returns:
        Integer coefficients of the vectors, one of v and -v, shape ``(crystals, most, 3)``; and the weight of each as
        the k-th one, 1 over their number, or 0, shape ``(crystals, most, 3)``. Rows that are not needed repeat others.

    Example:
        >>> index, weight = shortest_axes(4.0 * np.eye(3)[None], np.eye(3, dtype=int)[None])
        >>> index[0].tolist(), weight[0, 0].round(2).tolist()
        ([[0, 0, 1], [0, 1, 0], [1, 0, 0]], [0.33, 0.33, 0.33])
    """
    lengths = np.linalg.norm(reduction @ lattice, axis=2)
    order = np.argsort(lengths, axis=1, kind="stable")
    reduction = np.take_along_axis(reduction, order[:, :, None], axis=1)
    lengths = np.take_along_axis(lengths, order, axis=1)
    vectors = _CANDIDATES @ reduction  # (crystals, 13, 3)
    candidate = np.linalg.norm(vectors @ lattice, axis=2)
    weight = np.zeros((*candidate.shape, 3))
    for k in range(3):
        shorter = lengths < lengths[:, k : k + 1] * (1 - _SAME)  # basis vectors that span what v must not lie in
        inside = ((_CANDIDATES[None] != 0) <= shorter[:, None]).all(axis=2)
        equal = np.abs(candidate - lengths[:, k : k + 1]) <= _SAME * lengths[:, k : k + 1]
        weight[:, :, k] = equal & ~inside
    weight /= weight.sum(axis=1, keepdims=True)
    needed = weight.any(axis=2)
    first = np.argsort(~needed, axis=1, kind="stable")[:, : max(1, int(needed.sum(axis=1).max(initial=1)))]
    return np.take_along_axis(vectors, first[:, :, None], axis=1), np.take_along_axis(weight, first[:, :, None], axis=1)


def times_matrix(vectors: Tensor, matrices: Tensor, crystal: Tensor) -> Tensor:
    """Multiply rows by the matrix of their crystal: ``(rows, 3)``, ``(crystals, 3, 3)``, ``(rows,)`` -> ``(rows, 3)``.

    Written out, since a sum over three is several times slower; but its backward pass has fewer steps. A matrix product
    would be shortened by autocast.
    """
    chosen = matrices.index_select(0, crystal)
    if torch.is_grad_enabled() and (vectors.requires_grad or matrices.requires_grad):
        return (vectors.unsqueeze(2) * chosen).sum(dim=1)
    return vectors[:, :1] * chosen[:, 0] + vectors[:, 1:2] * chosen[:, 1] + vectors[:, 2:] * chosen[:, 2]
