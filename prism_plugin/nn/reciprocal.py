"""The cell expert in reciprocal space: long-range messages by the structure factors of a crystal.

After Ewald message passing (Kosmala, Gasteiger, Gao, Günnemann, ICML 2023, arXiv 2303.04791), with a filter of smooth
functions of |k| and an ending that starts at zero. The paper's cell expert says the same by lattice translations of one
superatom; here the superatom is the structure factors, and what the cell sees of periodicity does not depend on the
cell that was chosen: the answer is the same for a supercell, and for a crystal that is turned, mirrored or moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prism_plugin.graph.lattice import times_matrix
from prism_plugin.graph.reciprocal import WAVE_CUTOFF, Waves
from prism_plugin.nn.autograd_mode import needs_gradient, plain_autograd

__all__ = ["ReciprocalExpert", "WaveGeometry", "wave_geometry"]

CHANNELS = 16
_GAUSSIANS = 16
_HIDDEN = 32
# What makes the messages about as large as the features: Å^3 (of a slab its power 2/3, of a wire 1/3).
_VOLUME = 40.0
# Softens 1 / k^2, 1/Å^2.
_SOFT = 0.06
# Phases that are kept for all layers: 64 MB in float32. Above, they are computed in blocks, anew wherever needed.
_NUMBERS_KEPT = 2**24


class WaveGeometry(NamedTuple):
    """What the layers need to know of waves and atoms; the same in each.

    Attributes:
        waves: which there are.
        vector: k, 1/Å, shape ``(wave groups, w, 3)``, zeros where a group is filled up.
        radial: what the filters read of |k|, shape ``(waves, 17)``.
        window: weight that fades the waves to zero at the cutoff, shape ``(waves,)``.
        positions: Å, shape ``(atom groups, a, 3)``, zeros where a group is filled up.
        scale: 40 Å^3 / V of the crystal of each atom, shape ``(atoms,)``.
        periodic: 1 for an atom of a crystal, 0 in a molecule, shape ``(atoms, 1)``.
        phases: cos and sin of k . r, shape ``(tiles, 2 w, a)``; None where these are too many to be kept.
    """

    waves: Waves
    vector: Tensor
    radial: Tensor
    window: Tensor
    positions: Tensor
    scale: Tensor
    periodic: Tensor
    phases: Tensor | None


def wave_geometry(
    waves: Waves, lattice: Tensor, pbc: Tensor, positions: Tensor, atom_crystal: Tensor, cutoff: float = WAVE_CUTOFF
) -> WaveGeometry:
    """Prepare the waves of a batch for the layers; differentiable in positions and lattice.

    Args:
        waves: of :func:`~prism_plugin.graph.reciprocal.make_waves`.
        lattice: rows in Å, shape ``(crystals, 3, 3)``.
        pbc: periodic flags, shape ``(crystals, 3)``.
        positions: Å, shape ``(atoms, 3)``.
        atom_crystal: crystal of each atom, shape ``(atoms,)``.
        cutoff: largest |k|, 1/Å.
    """
    dtype = positions.dtype
    with torch.autocast(positions.device.type, enabled=False):  # geometry keeps its digits
        reciprocal, measure = _reciprocal(lattice.double(), pbc)
        vector = times_matrix(waves.wave_index.double(), reciprocal, waves.crystal).to(dtype)
        squared = vector.square().sum(dim=1)
        length = squared.sqrt()
        centers = torch.linspace(0.0, cutoff, _GAUSSIANS, dtype=dtype, device=length.device)
        width = cutoff / (_GAUSSIANS - 1)
        gaussians = torch.exp(-0.5 * ((length.unsqueeze(1) - centers) / width).square())
        radial = torch.cat([gaussians, (1 / (squared + _SOFT)).unsqueeze(1)], dim=1)
        window = (torch.cos(math.pi * (length / cutoff).clamp(max=1.0)) + 1).square() / 4
        scale = (_VOLUME ** (pbc.sum(dim=1).double() / 3) / measure).to(dtype).index_select(0, atom_crystal)
        periodic = pbc.any(dim=1).to(dtype).index_select(0, atom_crystal).unsqueeze(1)
        geometry = WaveGeometry(
            waves,
            _grouped(vector, waves.wave_groups),
            radial,
            window,
            _grouped(positions, waves.atom_groups),
            scale,
            periodic,
            None,
        )
        tiles, wave_rows, atom_rows = len(waves.tile_waves), waves.wave_groups.shape[1], waves.atom_groups.shape[1]
        if 2 * tiles * wave_rows * atom_rows > _NUMBERS_KEPT:
            return geometry
        return geometry._replace(phases=_phases(geometry, slice(None)))


def _reciprocal(lattice: Tensor, pbc: Tensor) -> tuple[Tensor, Tensor]:
    """Reciprocal vectors as rows, zeros where not periodic, and the cells' volume (of a slab its area, ...).

    By the adjugate of the Gram matrix of the periodic vectors, on which a device needs not wait for an answer of a
    solver; in float64, since that squares the condition of a skewed cell.
    """
    flags = pbc.to(lattice.dtype)
    rows = lattice * flags.unsqueeze(2)
    gram = (rows.unsqueeze(2) * rows.unsqueeze(1)).sum(dim=3) + torch.diag_embed(1 - flags)
    first, second, third = gram.unbind(dim=1)
    adjugate = torch.stack(
        [torch.linalg.cross(second, third), torch.linalg.cross(third, first), torch.linalg.cross(first, second)], dim=1
    )
    determinant = (first * adjugate[:, 0]).sum(dim=1)
    inverse = adjugate / determinant[:, None, None]
    return 2 * math.pi * (inverse.unsqueeze(3) * rows.unsqueeze(1)).sum(dim=2), determinant.sqrt()


def _grouped(rows: Tensor, groups: Tensor) -> Tensor:
    """Rows of each group, zeros where it is filled up: ``(rows, n)`` -> ``(groups, size, n)``."""
    filled = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return filled.index_select(0, groups.flatten()).view(*groups.shape, rows.shape[1])


def _phases(geometry: WaveGeometry, part: slice) -> Tensor:
    """Cosines and sines of k . r in some of the tiles, ``(tiles, 2 w, a)``; not by products, which lose digits."""
    waves = geometry.waves
    k = geometry.vector.index_select(0, waves.tile_waves[part]).unsqueeze(2)
    r = geometry.positions.index_select(0, waves.tile_atoms[part]).unsqueeze(1)
    angle = k[..., 0] * r[..., 0] + k[..., 1] * r[..., 1] + k[..., 2] * r[..., 2]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)


class ReciprocalExpert(nn.Module):
    """Messages of all atoms of a crystal to each of them, through its plane waves.

    f = W_h h; S(k) = sum_j f_j exp(i k . r_j); m_i = 40 Å^3 / V sum_k G(k) [cos(k . r_i) Re S + sin(k . r_i) Im S];
    h_i <- h_i + W_o m_i + b_o, over one of k and -k, 0 < |k| < 3 / Å. The filter G is a window times an MLP of |k|, one
    for each of 16 channels. W_o and b_o are zero at the start: the expert begins by saying nothing.

    Of a slab or wire k lies in the plane or along the line of its periodicity, and V is 40 Å^3 to the power 1/3 or 2/3
    times its area or length. A molecule has no waves, and nothing is added to its atoms.

    There are some six waves for each atom of a usual density, so the cost of an atom grows with the crystal: beside the
    edges of three layers of width 128 (4 Å, rock salt) a tenth at 30 atoms, and as much as these at some 1,000. From
    there on sums on a particle mesh (N log N) would pay; no size is refused.

    Args:
        dim: width of the features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, CHANNELS, bias=False)
        self.filter = nn.Sequential(nn.Linear(_GAUSSIANS + 1, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, CHANNELS))
        self.out = nn.Linear(CHANNELS, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, atoms: Tensor, geometry: WaveGeometry) -> Tensor:
        """Features of the atoms ``(atoms, dim)`` -> updated ones."""
        with torch.autocast(atoms.device.type, enabled=False):  # sums over a crystal keep their digits
            weight = self.filter(geometry.radial) * geometry.window.unsqueeze(1)
            message = _waves_and_back(self.project(atoms), weight, geometry) * geometry.scale.unsqueeze(1)
            return atoms + geometry.periodic * self.out(message)


def _waves_and_back(features: Tensor, weight: Tensor, geometry: WaveGeometry) -> Tensor:
    """Sums over the waves, each weighted, of its structure factor: ``(atoms, n)``, ``(waves, n)`` -> ``(atoms, n)``."""
    waves = geometry.waves
    channels = features.shape[1]
    sent = _grouped(features, waves.atom_groups)
    weight = _grouped(weight, waves.wave_groups)
    factors = sent.new_zeros(len(weight), 2 * weight.shape[1], channels)
    parts = _blocks(geometry)
    for part in parts:
        factors = factors.index_add(0, waves.tile_waves[part], _block(_to_waves, sent, geometry, part))
    factors = factors * torch.cat([weight, weight], dim=1)
    message = torch.zeros_like(sent)
    for part in parts:
        message = message.index_add(0, waves.tile_atoms[part], _block(_to_atoms, factors, geometry, part))
    return message.flatten(0, 1).index_select(0, waves.atom_place)


def _blocks(geometry: WaveGeometry) -> list[slice]:
    """All tiles at once where the phases are kept, else as many as may be."""
    tiles = len(geometry.waves.tile_waves)
    if geometry.phases is not None:
        return [slice(0, tiles)]
    size = max(1, _NUMBERS_KEPT // (2 * geometry.vector.shape[1] * geometry.positions.shape[1]))
    return [slice(start, min(start + size, tiles)) for start in range(0, tiles, size)]


def _block(
    function: Callable[[Tensor, WaveGeometry, slice], Tensor], rows: Tensor, geometry: WaveGeometry, part: slice
) -> Tensor:
    """Call ``function``; where the phases are not kept, their memory is not either: a backward pass computes anew."""
    inputs = (rows, geometry.vector, geometry.positions)
    if geometry.phases is None and needs_gradient(*inputs) and not plain_autograd():
        return checkpoint(function, rows, geometry, part, use_reentrant=False, preserve_rng_state=False)
    return function(rows, geometry, part)


def _to_waves(sent: Tensor, geometry: WaveGeometry, part: slice) -> Tensor:
    phases = _phases(geometry, part) if geometry.phases is None else geometry.phases
    return phases @ sent.index_select(0, geometry.waves.tile_atoms[part])


def _to_atoms(factors: Tensor, geometry: WaveGeometry, part: slice) -> Tensor:
    phases = _phases(geometry, part) if geometry.phases is None else geometry.phases
    return phases.mT @ factors.index_select(0, geometry.waves.tile_waves[part])
