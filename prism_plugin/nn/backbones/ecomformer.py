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
from prism_plugin.nn.backbones.backbone import Edges
from prism_plugin.nn.backbones.comformer import SOFTPLUS_THRESHOLD, ComFormer, softplus
from prism_plugin.nn.norm import _norm

__all__ = ["EComFormer", "EquivariantUpdate", "check_e3nn"]

_SCALARS, _VECTORS, _TENSORS = 64, 8, 8
_ROWS = 2048  # edges of a tile: each has the weights of a tensor product of its own


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

        scalars = o3.Irreps(f"{_SCALARS}x0e")
        tensors = o3.Irreps(f"{_SCALARS}x0e + {_VECTORS}x1o + {_TENSORS}x2e")
        self.harmonics = o3.SphericalHarmonics("0e + 1o + 2e", normalize=True, normalization="component")
        self.padding = tensors.dim - scalars.dim
        self.narrow = nn.Linear(dim, _SCALARS)
        self.first, self.second = (
            o3.FullyConnectedTensorProduct(before, self.harmonics.irreps_out, after, shared_weights=False)
            for before, after in ((scalars, tensors), (tensors, scalars))
        )
        self.first_weights, self.second_weights = (
            nn.Sequential(
                nn.Linear(dim, dim), nn.Softplus(threshold=SOFTPLUS_THRESHOLD), nn.Linear(dim, product.weight_numel)
            )
            for product in (self.first, self.second)
        )
        self.norm = _norm(norm, _SCALARS)
        self.widen = nn.Linear(_SCALARS, dim)
        self.skip = nn.Linear(dim, dim)

    def forward(
        self, atoms: Tensor, edges: Edges, vector: Tensor, batch: CrystalBatch, encoder: Callable[..., Tensor]
    ) -> tuple[Tensor, Edges]:
        """Update the atoms, see :class:`~prism_plugin.nn.backbones.backbone.Update`."""
        with torch.autocast(atoms.device.type, enabled=False):  # tensor products know one dtype
            own = self.narrow(atoms)
            harmonics = self.harmonics(vector)
            tensors = self._mean(self.first, self.first_weights, own, edges, harmonics)
            tensors = tensors + functional.pad(own, (0, self.padding))
            total = self._mean(self.second, self.second_weights, tensors, edges, harmonics)
            answer = softplus(self.widen(softplus(self.norm(total))))
            return answer + self.skip(atoms), edges

    def _mean(self, product: Any, weights: nn.Module, atoms: Tensor, edges: Edges, harmonics: Tensor) -> Tensor:
        """Mean over the edges of each atom of a tensor product of its senders and the harmonics."""
        receiver, sender = edges.index
        total = atoms.new_zeros(len(atoms), product.irreps_out.dim)
        for start in range(0, len(receiver), _ROWS):
            part = slice(start, start + _ROWS)
            messages = product(atoms.index_select(0, sender[part]), harmonics[part], weights(edges.features[part]))
            if edges.envelope is not None:
                messages = messages * edges.envelope[part].unsqueeze(1)
            total = total.index_add(0, receiver[part], messages)
        ones = total.new_ones(len(receiver)) if edges.envelope is None else edges.envelope
        count = total.new_zeros(len(atoms)).index_add(0, receiver, ones)
        divisor = count.clamp(min=1) if edges.envelope is None else torch.sqrt(1 + count**2)
        return total / divisor.unsqueeze(1)
