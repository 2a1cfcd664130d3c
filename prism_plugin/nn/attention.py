"""A readout in which some atoms count more than others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["AtomAttention"]


class AtomAttention(nn.Module):
    """Learned weights of the atoms of a crystal: a softmax over them of Linear dim -> dim / 2, SiLU, Linear -> 1.

    Our own: a band gap is made by a few atoms, not by the mean. The last layer is zero at the start, so that the
    readout begins as the mean. The weights are the same for a supercell.

    Args:
        dim: width of the features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        last = nn.Linear(dim // 2, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.logit = nn.Sequential(nn.Linear(dim, dim // 2), nn.SiLU(), last)

    def forward(self, atoms: Tensor, atom_crystal: Tensor, crystals: int) -> Tensor:
        """Compute the weight of each atom times the number of atoms of its crystal, so that 1 is the plain mean's.

        Args:
            atoms: features, shape ``(atoms, dim)``.
            atom_crystal: crystal of each atom, shape ``(atoms,)``.
            crystals: number of crystals.

        Returns:
            Shape ``(atoms,)``.
        """
        logits = self.logit(atoms).squeeze(1).to(atoms.dtype)
        largest = logits.detach().new_full((crystals,), -torch.inf)
        largest = largest.scatter_reduce(0, atom_crystal, logits.detach(), "amax")
        weights = torch.exp(logits - largest.index_select(0, atom_crystal))
        # One sum over the weights and one over ones: the mean weight, without asking for the atoms of each crystal.
        sums = weights.new_zeros(crystals, 2).index_add(
            0, atom_crystal, torch.stack([weights, torch.ones_like(weights)], dim=1)
        )
        return weights * (sums[:, 1] / sums[:, 0]).index_select(0, atom_crystal)
