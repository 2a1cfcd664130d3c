"""eComFormer as a backbone: atoms exchange vectors and tensors once (Yan et al., ICLR 2024); needs e3nn.

Between the first and the second layer two tensor products with the spherical harmonics of the edges let an atom see
the angles between its neighbors' edges and its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prism_plugin.errors import PrismError
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.graph.reverse import NeighborTable, neighbor_table
from prism_plugin.nn.backbones.backbone import Edges
from prism_plugin.nn.backbones.comformer import SOFTPLUS_THRESHOLD, ComFormer, softplus
from prism_plugin.nn.norm import _norm

__all__ = ["EComFormer", "EquivariantUpdate", "check_e3nn", "contract", "spread"]

_COUNTS = (64, 8, 8)  # scalars, vectors, tensors
_SIZES = (1, 3, 5)
_WIDTHS = [count * size for count, size in zip(_COUNTS, _SIZES, strict=True)]
_SCALARS = _COUNTS[0]


def check_e3nn() -> None:
    """Raise ValueError if e3nn is not there."""
    if find_spec("e3nn") is None:
        raise PrismError("the backbone 'ecomformer' needs e3nn: pip install 'prism-plugin[equivariant]'")


@dataclass(frozen=True)
class EComFormer(ComFormer):
    """What eComFormer gives to the experts; a :class:`~prism_plugin.nn.backbones.backbone.Backbone`."""

    def update(self) -> EquivariantUpdate:
        """Atoms exchange tensors after the first layer."""
        return EquivariantUpdate(self.options.dim, self.options.norm)


class EquivariantUpdate(nn.Module):
    """h' = Softplus(W Softplus(BN(t))) + W' h, with scalars t that two tensor products give.

    The first one takes 64 scalars, linear in the sender's h, and the harmonics (l = 0, 1, 2) to 64 scalars, 8 vectors
    and 8 tensors, means over the edges, to which the receiver's own 64 scalars are added; the second one takes the
    sender's of these and the harmonics to 64 scalars. The weights of both are MLPs of the edges. Where edges have
    weights, so has the mean, and its divisor is sqrt(1 + (sum of weights)^2), so that the last one leaves smoothly.

    The weights are linear in what the MLPs hide, and so no edge gets weights of its own: what the last layer of an MLP
    makes of the sender's scalars is computed once for each sender, or what it makes of the sum for each receiver.

    Args:
        dim: width of the features.
        norm: ``"batch"`` or None.

    Raises:
        ValueError: if e3nn is not there.
    """

    def __init__(self, dim: int, norm: str | None = "batch") -> None:
        super().__init__()
        check_e3nn()
        from e3nn import o3

        self.harmonics = o3.SphericalHarmonics("0e + 1o + 2e", normalize=True, normalization="component")
        self.narrow = nn.Linear(dim, _SCALARS)
        self.first_weights, self.second_weights = (
            nn.Sequential(
                nn.Linear(dim, dim), nn.Softplus(threshold=SOFTPLUS_THRESHOLD), nn.Linear(dim, _SCALARS * sum(_COUNTS))
            )
            for _ in range(2)
        )
        self.norm = _norm(norm, _SCALARS)
        self.widen = nn.Linear(_SCALARS, dim)
        self.skip = nn.Linear(dim, dim)

    def forward(
        self, atoms: Tensor, edges: Edges, vector: Tensor, batch: CrystalBatch, encoder: Callable[..., Tensor]
    ) -> tuple[Tensor, Edges]:
        """Update the atoms, see :class:`~prism_plugin.nn.backbones.backbone.Update`."""
        with torch.autocast(atoms.device.type, enabled=False):  # harmonics know one dtype
            receiver, sender = edges.index
            own = self.narrow(atoms)
            harmonics = self.harmonics(vector)
            ones = own.new_ones(len(receiver)) if edges.envelope is None else edges.envelope
            count = own.new_zeros(len(atoms)).index_add(0, receiver, ones)
            divisor = count.clamp(min=1) if edges.envelope is None else torch.sqrt(1 + count**2)
            scale = divisor.reciprocal().index_select(0, receiver) * ones
            messages = spread(self._of_senders(own, edges.features, edges.index), harmonics) * scale.unsqueeze(1)
            tensors = functional.pad(own, (0, messages.shape[1] - _SCALARS)).index_add(0, receiver, messages)
            contracted = contract(tensors.index_select(0, sender), harmonics) * scale.unsqueeze(1)
            total = self._of_receivers(contracted, edges.features, batch.neighbors, len(atoms))
            answer = softplus(self.widen(softplus(self.norm(total))))
            return answer + self.skip(atoms), edges

    def _of_senders(self, own: Tensor, edges: Tensor, index: Tensor) -> Tensor:
        """Return sum_u w_uv x_u of each edge, of its sender's scalars x; shape ``(edges, 80)``."""
        hidden, last = self._hidden(self.first_weights, edges)
        parts = last.split([_SCALARS * count for count in _COUNTS])
        matrices = torch.cat([part.unflatten(0, (_SCALARS, -1)) for part in parts], dim=1)  # inputs, outputs, hidden
        of_atoms = torch.einsum("nu,uvk->nkv", own, matrices) / _SCALARS**0.5
        table = neighbor_table(index.flip(0), len(own))  # by senders
        answer = table.filled(hidden) @ of_atoms.index_select(0, table.atom)
        return table.taken(answer)

    def _of_receivers(self, contracted: Tensor, edges: Tensor, table: NeighborTable, atoms: int) -> Tensor:
        """Return the sum over the edges of sum_u w_uv x_u, of 80 scalars x of each edge; shape ``(atoms, 64)``."""
        hidden, last = self._hidden(self.second_weights, edges)
        summed = table.filled(hidden).mT @ table.filled(contracted)
        of_atoms = summed.new_zeros(atoms, *summed.shape[1:]).index_add(0, table.atom, summed)
        inputs = sum(_COUNTS)
        return torch.einsum("nku,uvk->nv", of_atoms, last.unflatten(0, (inputs, -1))) / inputs**0.5

    @staticmethod
    def _hidden(weights: nn.Sequential, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return what an MLP hides, with a one at its end, and its last layer, whose last column is the bias."""
        last: Any = weights[-1]
        hidden = functional.pad(weights[:-1](edges), (0, 1), value=1.0)
        return hidden, torch.cat([last.weight, last.bias.unsqueeze(1)], dim=1)


def spread(channels: Tensor, harmonics: Tensor) -> Tensor:
    """Return scalars, vectors and tensors with these channels, ``(edges, 80)``, along the edges: ``(edges, 128)``."""
    parts = zip(channels.split(_COUNTS, dim=1), harmonics.split(_SIZES, dim=1), strict=True)
    return torch.cat([(x.unsqueeze(2) * y.unsqueeze(1)).flatten(1) for x, y in parts], dim=1)


def contract(tensors: Tensor, harmonics: Tensor) -> Tensor:
    """Return the scalar products of each ``(edges, 128)`` with the harmonics, over sqrt(2 l + 1): ``(edges, 80)``."""
    parts = zip(tensors.split(_WIDTHS, dim=1), harmonics.split(_SIZES, dim=1), strict=True)
    return torch.cat(
        [(t.unflatten(1, (-1, y.shape[1])) @ y.unsqueeze(2)).squeeze(2) / y.shape[1] ** 0.5 for t, y in parts], dim=1
    )
