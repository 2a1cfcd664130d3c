"""Geometry of periodic lattices: translations, neighbors, minimum images.

In come plain arrays or tensors (positions, lattice rows, periodic flags), out come integer translations and edges.
This room knows nothing of graphs, DGL or matgl.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from ase.geometry import minkowski_reduce
from pymatgen.optimization.neighbors import find_points_in_spheres
from torch import Tensor

from prism_plugin.tiles import needs_gradient, tiles

__all__ = [
    "ImageTable",
    "find_neighbors",
    "image_table",
    "lattice_translations",
    "minimum_image",
    "reduced_bases",
    "reduced_basis",
    "times_matrix",
]

# Images closer than this to the nearest one (in Å) count as equally near; far above the rounding of a float32
# position in a 100 Å cell (1e-5 Å), far below any real difference of neighbor shells.
_TIE = 1e-4
_BLEND = 0.5  # Å
# Which of several equally near images is taken: the one furthest along this fixed Cartesian direction. Its
# components are linearly independent over the rationals, so that crystal symmetry leaves no second tie.
_TIE_DIRECTION = (1.0, 2**0.5 / 2, 3**0.5 / 5)

# Coefficients of the Voronoi-relevant vectors of a Minkowski-reduced cell: the only candidates for a minimum image.
_IMAGES = np.array(list(itertools.product((-1, 0, 1), repeat=3)))


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


def reduced_basis(lattice: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Give the integer matrix that turns a lattice basis into its Minkowski-reduced one.

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
    matrix = np.asarray(minkowski_reduce(cell, pbc=pbc)[1], dtype=np.int64).copy()
    matrix[~pbc] = 0
    return matrix


def reduced_bases(lattice: Tensor, pbc: Tensor) -> Tensor:
    """Apply :func:`reduced_basis` to several lattices, shapes ``(crystals, 3, 3)`` and ``(crystals, 3)``."""
    pairs = zip(lattice.detach().cpu().double().numpy(), pbc.cpu().numpy(), strict=True)
    return torch.stack([torch.from_numpy(reduced_basis(cell, flags)) for cell, flags in pairs]).to(lattice.device)


def times_matrix(vectors: Tensor, matrices: Tensor, crystal: Tensor) -> Tensor:
    """Multiply rows by the matrix of their crystal: ``(rows, 3)``, ``(crystals, 3, 3)``, ``(rows,)`` -> ``(rows, 3)``.

    Written out, since a sum over three is several times slower; but its backward pass has fewer steps. A matrix product
    would be shortened by autocast.
    """
    chosen = matrices.index_select(0, crystal)
    if needs_gradient(vectors, matrices):
        return (vectors.unsqueeze(2) * chosen).sum(dim=1)
    return vectors[:, :1] * chosen[:, 0] + vectors[:, 1:2] * chosen[:, 1] + vectors[:, 2:] * chosen[:, 2]


class ImageTable(NamedTuple):
    """What a search for images needs to know of each lattice, in float64, without gradients.

    Attributes:
        basis: reduced vectors as rows, zeros where not periodic, shape ``(crystals, 3, 3)``.
        inverse: its pseudo-inverse, zeros likewise, shape ``(crystals, 3, 3)``.
        squared: squared lengths of the 27 candidates n B with n of -1, 0, 1, shape ``(crystals, 27)``.
        along: how far these reach along a fixed direction that no crystal has, shape ``(crystals, 27)``.
    """

    basis: Tensor
    inverse: Tensor
    squared: Tensor
    along: Tensor


def image_table(lattice: Tensor, reduction: Tensor) -> ImageTable:
    """Prepare the search; lattices and matrices of :func:`reduced_basis`, shape ``(crystals, 3, 3)`` each."""
    with torch.no_grad():
        basis = _reduced(lattice.double(), reduction)
        vectors = torch.as_tensor(_IMAGES, dtype=basis.dtype, device=basis.device) @ basis
        direction = torch.tensor(_TIE_DIRECTION, dtype=basis.dtype, device=basis.device)
        return ImageTable(basis, torch.linalg.pinv(basis), vectors.square().sum(dim=2), vectors @ direction)


def _reduced(lattice: Tensor, reduction: Tensor) -> Tensor:
    return (reduction.to(lattice.dtype).unsqueeze(-1) * lattice.unsqueeze(-3)).sum(dim=-2)


def minimum_image(
    displacement: Tensor, crystal: Tensor, lattice: Tensor, reduction: Tensor, table: ImageTable | None = None
) -> Tensor:
    """Find for each displacement the lattice translation that makes it shortest, by a search over all candidates.

    The displacement is first folded into the Minkowski-reduced cell; there the nearest lattice point is one of the
    27 with coefficients -1, 0, 1. Among equally near images (within 1e-4 Å) the one furthest along a fixed Cartesian
    direction is taken, so that the answer depends on the lattice but not on its basis (CHOICES.md #9).

    Args:
        displacement: Cartesian vectors in Å, shape ``(pairs, 3)``.
        crystal: crystal of each pair, shape ``(pairs,)``.
        lattice: lattice vectors as rows in Å, shape ``(crystals, 3, 3)``.
        reduction: integer matrices of :func:`reduced_basis`, shape ``(crystals, 3, 3)``.
        table: of :func:`image_table`, if there is one already.

    Returns:
        Cartesian translations T in Å, shape ``(pairs, 3)``; ``displacement + T`` is the minimum image. T is
        differentiable in ``lattice``; which T is chosen is not.
    """
    table = image_table(lattice, reduction) if table is None else table
    with torch.no_grad():
        moved = displacement.double()
        fold = -torch.round(times_matrix(moved, table.inverse, crystal))
        folded = moved + times_matrix(fold, table.basis, crystal)
        parts = tiles(len(folded), 2 * len(_IMAGES), folded.device)
        chosen = fold + torch.cat([_nearest(folded[part], crystal[part], table) for part in parts])
    return times_matrix(chosen.to(lattice.dtype), _reduced(lattice, reduction), crystal)


def _nearest(folded: Tensor, crystal: Tensor, table: ImageTable) -> Tensor:
    """Of the 27 images around folded displacements the nearest, in the basis' vectors, shape ``(pairs, 3)``.

    |f + n B|^2 = |f|^2 + 2 n . (B f) + |n B|^2: a product with a constant matrix and a table for each crystal, in
    float64, in place of 27 vectors for each pair.
    """
    images = torch.as_tensor(_IMAGES, dtype=folded.dtype, device=folded.device)
    projected = times_matrix(folded, table.basis.mT, crystal)
    squared = torch.addmm(table.squared.index_select(0, crystal), projected, images.T, alpha=2.0)
    squared += folded.square().sum(dim=1, keepdim=True)
    shortest = squared.min(dim=1, keepdim=True).values.clamp(min=0).sqrt()
    score = table.along.index_select(0, crystal).masked_fill_(squared > (shortest + _TIE).square(), -torch.inf)
    return images.index_select(0, score.argmax(dim=1))


def blended_image(
    displacement: Tensor, crystal: Tensor, lattice: Tensor, reduction: Tensor, table: ImageTable | None = None
) -> tuple[Tensor, Tensor]:
    """Find the minimum image of each displacement, blending it with images that are at most 0.5 Å further away.

    Where one image is nearest by 0.5 Å the answer is its direction and length. Else it is the mean of these over all
    that are near, with weights that fall from 1 to 0 as (1 + cos(pi x / 0.5 Å)) / 2, x being how much further away one
    is: the answer then has a continuous derivative where another image becomes the nearest, which that of
    :func:`minimum_image`, which takes the same arguments, has not. Our own; the paper does not say (CHOICES.md #58).

    Returns:
        Mean unit vector, shape ``(pairs, 3)``, shorter than 1 where images differ, and mean length in Å, shape
        ``(pairs,)``.
    """
    table = image_table(lattice, reduction) if table is None else table
    basis = _reduced(lattice, reduction)
    with torch.no_grad():
        fold = -torch.round(times_matrix(displacement.double(), table.inverse, crystal)).to(basis.dtype)
    folded = displacement + times_matrix(fold, basis, crystal)
    images = torch.as_tensor(_IMAGES, dtype=basis.dtype, device=basis.device)
    with torch.autocast(basis.device.type, enabled=False):  # geometry keeps its digits
        candidates = folded.unsqueeze(1) + (images @ basis).index_select(0, crystal)
    length = candidates.norm(dim=-1)
    excess = (length - length.min(dim=1, keepdim=True).values).clamp(max=_BLEND)
    weight = (1 + torch.cos(torch.pi * excess / _BLEND)) / 2
    weight = weight / weight.sum(dim=1, keepdim=True)
    direction = ((weight / length).unsqueeze(-1) * candidates).sum(dim=1)
    return direction, (weight * length).sum(dim=1)
