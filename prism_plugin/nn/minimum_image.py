"""Minimum images of pairs of atoms, for similarity edges: the geometry of a pair is that of its nearest image."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prism_plugin.devices import send
from prism_plugin.graph.lattice import times_matrix
from prism_plugin.nn.tiling import tiles

__all__ = ["ImageTable", "blended_image", "image_table", "minimum_image"]

# Images closer than this to the nearest one (in Å) count as equally near; far above the rounding of a float32
# position in a 100 Å cell (1e-5 Å), far below any real difference of neighbor shells.
_TIE = 1e-4
_BLEND = 0.5  # Å
# Which of several equally near images is taken: the one furthest along this fixed Cartesian direction. Its
# components are linearly independent over the rationals, so that crystal symmetry leaves no second tie.
_TIE_DIRECTION = (1.0, 2**0.5 / 2, 3**0.5 / 5)

# Coefficients of the Voronoi-relevant vectors of a Minkowski-reduced cell: the only candidates for a minimum image.
_IMAGES = np.array(list(itertools.product((-1, 0, 1), repeat=3)))


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
        vectors = send(_IMAGES, basis.device).to(basis.dtype) @ basis
        direction = send(np.array(_TIE_DIRECTION), basis.device).to(basis.dtype)
        return ImageTable(basis, torch.linalg.pinv(basis), vectors.square().sum(dim=2), vectors @ direction)


def _reduced(lattice: Tensor, reduction: Tensor) -> Tensor:
    return (reduction.to(lattice.dtype).unsqueeze(-1) * lattice.unsqueeze(-3)).sum(dim=-2)


def minimum_image(
    displacement: Tensor, crystal: Tensor, lattice: Tensor, reduction: Tensor, table: ImageTable | None = None
) -> Tensor:
    """Find for each displacement the lattice translation that makes it shortest, by a search over all candidates.

    The displacement is first folded into the Minkowski-reduced cell; there the nearest lattice point is one of the
    27 with coefficients -1, 0, 1. Among equally near images (within 1e-4 Å) the one furthest along a fixed Cartesian
    direction is taken, so that the answer depends on the lattice but not on its basis (decisions #9).

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
    :func:`minimum_image`, which takes the same arguments, has not. Our own; the paper does not say (decisions #58).

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
