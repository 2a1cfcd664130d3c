"""Repulsion of two nuclei behind their electrons, at distances that no training crystal has.

The universal potential of Ziegler, Biersack and Littmark (The Stopping and Range of Ions in Solids, Pergamon, New York,
1985, chapter 2), faded out at the sum of the covalent radii (Cordero et al., Dalton Trans. 2008, 2832), where a model
has seen what atoms do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prism_plugin.nn.element_table import covalent_radii

__all__ = ["ZBLRepulsion"]

_COULOMB = 14.3996455  # e^2 / (4 pi epsilon_0), eV Å
_BOHR = 0.529177211  # Å
_AMPLITUDES = (0.18175, 0.50986, 0.28022, 0.02817)
_DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)
_SMALLEST = -80.0  # an exponent; exp takes many times longer where its answer is no normal number


class ZBLRepulsion(nn.Module):
    """Half of the pair energy to each atom: Z_i Z_j e^2 / (4 pi epsilon_0 d) phi(d / a) f(d / r), in eV.

    phi is the sum of four exponentials, a = 0.8854 a_0 / (Z_i^0.23 + Z_j^0.23), r the sum of the covalent radii and at
    most the cutoff, f(x) = 1 - 28 x^6 + 48 x^7 - 21 x^8, which is twice differentiable at x = 1, and 0 beyond.

    Args:
        cutoff: radius of the edges, Å.
    """

    radii: Tensor

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.register_buffer("radii", torch.tensor(covalent_radii(), dtype=torch.float64), persistent=False)

    def forward(self, atomic_numbers: Tensor, edge_index: Tensor, distance: Tensor) -> Tensor:
        """Compute the energy of each atom.

        Args:
            atomic_numbers: shape ``(atoms,)``.
            edge_index: receiver and sender of each edge, shape ``(2, edges)``.
            distance: their lengths, Å, shape ``(edges,)``.

        Returns:
            eV, shape ``(atoms,)``.
        """
        receiver, sender = edge_index
        charges = atomic_numbers.to(distance.dtype)
        powers, radii = charges**0.23, self.radii.to(distance.dtype).index_select(0, atomic_numbers)

        def of_pair(values: Tensor) -> tuple[Tensor, Tensor]:
            return values.index_select(0, receiver), values.index_select(0, sender)

        left, right = of_pair(powers)
        scaled = distance * (left + right) / (0.8854 * _BOHR)
        screening = torch.zeros_like(distance)
        for amplitude, decay in zip(_AMPLITUDES, _DECAYS, strict=True):
            screening = screening + amplitude * torch.exp((-decay * scaled).clamp(min=_SMALLEST))
        left, right = of_pair(radii)
        x = distance / (left + right).clamp(max=self.cutoff)
        fade = torch.where(x < 1, 1 - x**6 * (28 - 48 * x + 21 * x**2), 0)
        left, right = of_pair(charges)
        energy = 0.5 * _COULOMB * left * right / distance * screening * fade
        return distance.new_zeros(len(atomic_numbers)).index_add(0, receiver, energy)
