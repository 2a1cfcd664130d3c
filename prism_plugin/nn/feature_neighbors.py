"""Similarity edges: atoms of one crystal with similar features, and the geometry between them.

Edges are found in blocks: where nothing is differentiated, no step holds the edges of
a whole large crystal at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from prism_plugin.nn.autograd_mode import needs_gradient
from prism_plugin.nn.tiling import in_tiles

__all__ = ["similar_blocks", "similar_pairs", "squared_distances"]

# Small crystals are compared together, up to so many atoms at once.
_TOGETHER = 128


def squared_distances(atoms: Tensor, index: Tensor) -> Tensor:
    """||h_i - h_j||^2 of pairs, differentiable; ``(atoms, dim)`` and ``(2, pairs)`` -> ``(pairs,)``."""

    def of_pairs(receiver: Tensor, sender: Tensor, atoms: Tensor) -> Tensor:
        return (atoms.index_select(0, receiver) - atoms.index_select(0, sender)).square().sum(dim=1)

    return in_tiles(of_pairs, (index[0], index[1]), (atoms,), atoms.shape[1])


def _near(features: Tensor, crystal: Tensor, several: bool, threshold: float, most: int) -> Iterator[Tensor]:
    """Pairs of atoms that may lie within the threshold, at most about ``most`` in a block, receivers ascending."""
    features = features - features.mean(dim=0)
    # |a|^2 + |b|^2 - 2ab cancels: allow for its rounding here, the exact distance decides later.
    square = features.square().sum(dim=1)
    slack = 64 * torch.finfo(features.dtype).eps * square.max()
    size = len(features)
    step = max(1, most // size)
    for row in range(0, size, step):
        rows = slice(row, row + step)
        with torch.autocast(features.device.type, enabled=False):  # which would lose pairs
            squared = torch.addmm(square.unsqueeze(0), features[rows], features.T, alpha=-2.0)
        near = squared.add_(square[rows].unsqueeze(1)) <= threshold**2 + slack
        near[:, rows].fill_diagonal_(False)
        if several:
            near &= crystal[rows].unsqueeze(1) == crystal.unsqueeze(0)
        pairs = near.nonzero()
        yield (pairs + pairs.new_tensor([row, 0])).T


@torch.no_grad()
def similar_blocks(
    atoms: Tensor, atom_crystal: Tensor, sizes: np.ndarray, threshold: float, most: int = 2**20
) -> Iterator[tuple[Tensor, Tensor]]:
    """Find the similarity edges: pairs i != j of one crystal with ||h_i - h_j|| <= threshold.

    Args:
        atoms: h, shape ``(atoms, dim)``.
        atom_crystal: crystal of each atom, ascending, shape ``(atoms,)``.
        sizes: number of atoms of each crystal, on the host, shape ``(crystals,)``.
        threshold: on the Euclidean distance.
        most: about the largest number of pairs that are compared at once, and of edges in a block.

    Yields:
        Receivers and senders, shape ``(2, edges)``, receivers ascending from block to block; and the squared feature
        distances, shape ``(edges,)``. There is at least one block, possibly empty.
    """
    features = atoms.float() if atoms.dtype in (torch.bfloat16, torch.float16) else atoms
    waiting: list[tuple[Tensor, Tensor]] = [(atom_crystal.new_zeros(2, 0), features.new_zeros(0))]
    number = 0
    for start, stop, several in _groups(sizes.tolist()):
        for near in _near(features[start:stop], atom_crystal[start:stop], several, threshold, most):
            index = near + start
            squared = squared_distances(features, index)
            kept = (squared <= threshold**2).nonzero().squeeze(1)
            if number and number + len(kept) > most:
                yield _joined(waiting)
                number = 0
            waiting.append((index.index_select(1, kept), squared.index_select(0, kept)))
            number += len(kept)
    yield _joined(waiting)


def _groups(sizes: list[int]) -> Iterator[tuple[int, int, bool]]:
    """First atom and end of consecutive crystals that are compared together, and whether they are several."""
    start = stop = number = 0
    for size in sizes:
        if number and stop + size - start > _TOGETHER:
            yield start, stop, number > 1
            start, number = stop, 0
        stop += size
        number += size > 0
    if number:
        yield start, stop, number > 1


def _joined(blocks: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join blocks and clear their list, so that the caller holds the only reference."""
    parts, blocks[:] = blocks[:], []
    return torch.cat([index for index, _ in parts], dim=1), torch.cat([squared for _, squared in parts])


def similar_pairs(atoms: Tensor, atom_crystal: Tensor, sizes: np.ndarray, threshold: float) -> tuple[Tensor, Tensor]:
    """All blocks of :func:`similar_blocks` in one; the squared distances are differentiable."""
    index, squared = _joined(list(similar_blocks(atoms, atom_crystal, sizes, threshold)))
    return index, squared_distances(atoms, index) if needs_gradient(atoms) else squared
