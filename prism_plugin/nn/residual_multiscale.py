"""The multiscale expert that begins at zero: a superatom made of means, which adds to the atoms one after the other.

Our own. In the paper's form the superatom is a sum over the atoms and the answer competes with the other experts' in a
softmax from the first step on; here it earns its place, and is the same for a supercell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ResidualMultiscale", "mean_of_atoms"]

_HIDDEN = 64


def mean_of_atoms(atoms: Tensor, atom_crystal: Tensor, counts: Tensor) -> Tensor:
    """Mean over the atoms of each crystal: ``(atoms, dim)``, ``(atoms,)``, ``(crystals, 1)`` -> ``(crystals, dim)``."""
    return atoms.new_zeros(len(counts), atoms.shape[1]).index_add(0, atom_crystal, atoms) / counts


class ResidualMultiscale(nn.Module):
    """Messages to the superatom and back: s <- s + g_u MLP_u[s || mean h], h_i <- h_i + g_d MLP_d[h_i || s].

    MLPs 2 dim -> 64 -> dim with SiLU. The factors g_u and g_d, one for each feature, are zero at the start.

    Args:
        dim: width of the features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.up, self.down = (
            nn.Sequential(nn.Linear(2 * dim, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, dim)) for _ in range(2)
        )
        self.up_scale = nn.Parameter(torch.zeros(dim))
        self.down_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, atoms: Tensor, superatoms: Tensor, atom_crystal: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Pass messages up, then down.

        Args:
            atoms: h, shape ``(atoms, dim)``.
            superatoms: s, shape ``(crystals, dim)``.
            atom_crystal: crystal of each atom, shape ``(atoms,)``.
            counts: number of atoms of each crystal, shape ``(crystals, 1)``.

        Returns:
            Updated atoms and superatoms.
        """
        mean = mean_of_atoms(atoms, atom_crystal, counts)
        sent = self.up(torch.cat([superatoms, mean], dim=1)).to(superatoms.dtype)
        superatoms = superatoms + self.up_scale * sent
        # The superatom's part of the first layer once for each crystal, not for each atom.
        weight, bias, *_ = self.down.parameters()
        of_atom, of_superatom = weight.split(self.dim, dim=1)
        hidden = functional.linear(superatoms, of_superatom, bias).index_select(0, atom_crystal)
        message = self.down[1:](functional.linear(atoms, of_atom) + hidden).to(atoms.dtype)
        return atoms + self.down_scale * message, superatoms
