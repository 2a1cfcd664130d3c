"""Plane waves of crystals: the vectors of the reciprocal lattice up to a length, and how they meet the atoms in tiles.

Which waves there are is counted on the host, from the lattice, once for a batch; nothing here is differentiated.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prism_plugin.devices import send
from prism_plugin.graph.lattice import reduced_basis

__all__ = ["WAVE_CUTOFF", "Waves", "lay_out", "make_waves", "reciprocal_index"]

# Largest |k| that counts, 1/Å; indices are counted a tenth beyond, so that no strain adds one abruptly.
WAVE_CUTOFF = 3.0
_MARGIN = 1.1
# Waves and atoms in a tile: large tiles for large crystals, small ones where most of a large one would be for nobody.
_TILES = ((32, 8), (32, 16), (64, 32), (128, 64))


class Waves(NamedTuple):
    """Plane waves of a batch of crystals, and the tiles in which they meet the atoms.

    Waves and atoms of a crystal are cut into groups of w (32 to 128) and a (8 to 64), whichever sizes cost least for
    this batch; the last groups are filled up. A tile is a group of
    waves and a group of atoms of one crystal: all tiles are all pairs of a wave and an atom of the same crystal.

    Attributes:
        wave_index: integer coefficients of the reciprocal vectors, one of k and -k, shape ``(waves, 3)``.
        crystal: crystal of each, ascending, shape ``(waves,)``.
        wave_groups: waves of each group, ``waves`` where it is filled up, shape ``(wave groups, w)``.
        atom_groups: atoms of each group, ``atoms`` where it is filled up, shape ``(atom groups, a)``.
        atom_place: place of each atom in the flattened ``atom_groups``, shape ``(atoms,)``.
        tile_waves: group of waves of each tile, shape ``(tiles,)``.
        tile_atoms: group of atoms of each tile, shape ``(tiles,)``.
    """

    wave_index: Tensor
    crystal: Tensor
    wave_groups: Tensor
    atom_groups: Tensor
    atom_place: Tensor
    tile_waves: Tensor
    tile_atoms: Tensor

    def to(self, device: torch.device | str | None) -> Waves:
        """Move all tensors to a device."""
        if device is None or torch.device(device) == self.wave_index.device:
            return self
        if self.wave_index.is_cpu:
            return Waves(*[send(tensor.numpy(), device) for tensor in self])
        return Waves(*[tensor.to(device) for tensor in self])


@lru_cache(maxsize=256)
def _half_space(bounds: tuple[int, ...]) -> np.ndarray:
    """All n != 0 with |n_i| <= bounds_i, one of n and -n, as floats for the product that follows."""
    grids = np.meshgrid(*[np.arange(-bound, bound + 1.0) for bound in bounds], indexing="ij")
    every = np.stack([grid.ravel() for grid in grids], axis=1)
    half = every[len(every) // 2 + 1 :]  # in this order n and -n are mirrored about the middle, which is 0
    half.setflags(write=False)
    return half


_LARGEST_CACHED = 2**15


def reciprocal_index(lattice: np.ndarray, pbc: np.ndarray, cutoff: float = WAVE_CUTOFF) -> np.ndarray:
    """Find the reciprocal lattice vectors 0 < |k| < 1.1 cutoff, one of k and -k.

    Args:
        lattice: lattice vectors as rows in Å, shape ``(3, 3)``.
        pbc: periodic flags, shape ``(3,)``; k lies in the span of the periodic directions.
        cutoff: largest length that counts, 1/Å (with the factor 2 pi).

    Returns:
        Integer coefficients n, shape ``(waves, 3)``, zero where not periodic; k = 2 pi n B with B the transposed
        (pseudo-)inverse of the periodic lattice vectors.

    Example:
        >>> reciprocal_index(4.0 * np.eye(3), np.array([True, False, False])).tolist()
        [[1, 0, 0], [2, 0, 0]]
    """
    periodic = np.flatnonzero(pbc)
    reach = _MARGIN * cutoff / (2 * math.pi)
    rows = np.asarray(lattice, dtype=np.float64)[periodic]
    if len(rows) == 0:
        return np.zeros((0, 3), dtype=np.int64)
    back = None
    inverse, measure, lengths = _dual(rows)
    # A box around the ball of a skewed basis holds many more points than the ball: take the reduced one.
    box = math.prod(2 * reach * length + 1 for length in lengths)
    if box > 200 and box > 4 * reach ** len(rows) * measure:
        reduction = reduced_basis(lattice, pbc)[np.ix_(periodic, periodic)]
        back = np.rint(np.linalg.inv(reduction))
        inverse, _, lengths = _dual(reduction @ rows)
    bounds = tuple(int(reach * length) for length in lengths)  # |n_i| = |k . a_i| / 2 pi <= |k| |a_i| / 2 pi
    points = math.prod(2 * bound + 1 for bound in bounds)
    coefficients = (_half_space if points < _LARGEST_CACHED else _half_space.__wrapped__)(bounds)
    vectors = coefficients @ inverse
    kept = coefficients[np.einsum("ij,ij->i", vectors, vectors) < reach * reach]
    if back is not None:  # the reduced vectors are M a, so n' = M n
        kept = kept @ back.T
    index = np.zeros((len(kept), 3), dtype=np.int64)
    index[:, periodic] = kept
    return index


def _dual(rows: np.ndarray) -> tuple[np.ndarray, float, list[float]]:
    """Reciprocal vectors (without 2 pi), the cell's volume, area or length, and the lengths of its vectors."""
    lengths = [math.hypot(*row) for row in rows.tolist()]
    if len(rows) < 3:
        return np.linalg.pinv(rows).T, math.sqrt(np.linalg.det(rows @ rows.T)), lengths
    a, b, c = rows.tolist()  # written out: an array of nine numbers costs numpy more than its arithmetic
    normals = [_cross(b, c), _cross(c, a), _cross(a, b)]
    volume = a[0] * normals[0][0] + a[1] * normals[0][1] + a[2] * normals[0][2]
    return np.array(normals) / volume, abs(volume), lengths


def _cross(a: list[float], b: list[float]) -> list[float]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def make_waves(lattice: Tensor, pbc: Tensor, atoms: np.ndarray, cutoff: float = WAVE_CUTOFF) -> Waves:
    """Find the waves of several crystals and lay out the tiles; on the host.

    Args:
        lattice: rows in Å, shape ``(crystals, 3, 3)``.
        pbc: shape ``(crystals, 3)``.
        atoms: number of atoms of each crystal, shape ``(crystals,)``.
        cutoff: largest |k|, 1/Å.

    Returns:
        The waves, on the CPU.
    """
    cells, flags = lattice.detach().cpu().double().numpy(), pbc.cpu().numpy()
    indices = [reciprocal_index(cell, periodic, cutoff) for cell, periodic in zip(cells, flags, strict=True)]
    return lay_out(np.concatenate(indices), np.array([len(index) for index in indices]), atoms)


def lay_out(index: np.ndarray, waves: np.ndarray, atoms: np.ndarray) -> Waves:
    """Arrange the tiles in which waves and atoms meet.

    Args:
        index: integer coefficients of the waves of all crystals, shape ``(waves, 3)``.
        waves: number of waves of each crystal, shape ``(crystals,)``.
        atoms: number of atoms of each crystal, shape ``(crystals,)``.

    Returns:
        The waves, on the CPU.
    """
    of_tile = min(_TILES, key=lambda sizes: _cost(waves, atoms, *sizes))
    wave_groups, _ = _groups(waves, of_tile[0])
    atom_groups, place = _groups(atoms, of_tile[1])
    tile_waves, tile_atoms = _tiles(-(-waves // of_tile[0]), -(-atoms // of_tile[1]))
    crystal = np.repeat(np.arange(len(waves)), waves)
    arrays = (index, crystal, wave_groups, atom_groups, place, tile_waves, tile_atoms)
    return Waves(*[torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for array in arrays])


def _cost(waves: np.ndarray, atoms: np.ndarray, wave_rows: int, atom_rows: int) -> int:
    """What tiles of a size cost: their phases, and the rows of 16 channels that go in and out; weights as measured."""
    tiles = int((-(-waves // wave_rows) * -(-atoms // atom_rows)).sum())
    return tiles * (4 * wave_rows * atom_rows + 24 * (2 * wave_rows + atom_rows))


def _groups(sizes: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut rows that belong to crystals of these sizes into groups; also the place of each row in the groups."""
    total = int(sizes.sum())
    groups = -(-sizes // group)
    starts = np.cumsum(sizes) - sizes
    group_starts = np.cumsum(groups) - groups
    place = np.arange(total) + np.repeat(group_starts * group - starts, sizes)
    rows = np.full(int(groups.sum()) * group, total)
    rows[place] = np.arange(total)
    return rows.reshape(-1, group), place


def _tiles(wave_groups: np.ndarray, atom_groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a group of waves and a group of atoms of one crystal, from how many of each it has."""
    tiles = wave_groups * atom_groups
    number = np.arange(int(tiles.sum())) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    width = np.repeat(atom_groups, tiles)
    of_waves = np.repeat(np.cumsum(wave_groups) - wave_groups, tiles) + number // np.maximum(width, 1)
    of_atoms = np.repeat(np.cumsum(atom_groups) - atom_groups, tiles) + number % np.maximum(width, 1)
    return of_waves, of_atoms
