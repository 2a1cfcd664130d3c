"""iComFormer as a backbone: edges look at the lattice once (Yan et al., ICLR 2024).

The published network takes three lattice vectors of a basis. Which ones, is no property of a crystal: cubic and
hexagonal lattices have several shortest vectors, and v is as good as -v. Here each of the three is the mean over all
that :func:`~prism_plugin.graph.lattice.shortest_axes` finds, and angles count by the size of their cosine, so that the
choice of the basis changes nothing. A larger cell has other vectors: a prediction is one of the given cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from prism_plugin.errors import PrismError
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.nn.backbones.backbone import Edges
from prism_plugin.nn.backbones.comformer import AttentiveMLP, ComFormer, GaussianBasis, softplus
from prism_plugin.nn.norm import _norm

__all__ = ["NOT_PERIODIC", "IComFormer", "LatticeUpdate"]

NOT_PERIODIC = (
    "the structure is not periodic in three directions, and the edges of iComFormer look at three lattice vectors; "
    "take a model with another backbone for molecules and slabs"
)


@dataclass(frozen=True)
class IComFormer(ComFormer):
    """What iComFormer gives to the experts; a :class:`~prism_plugin.nn.backbones.backbone.Backbone`."""

    def update(self) -> LatticeUpdate:
        """Edges read the lattice after the first layer."""
        return LatticeUpdate(self.options.dim, self.options.num_rbf, self.options.norm)


class LatticeUpdate(nn.Module):
    """e' = Softplus(e + BN(sum_k W (sigmoid(BN(q key_k / sqrt(dim))) msg_k))) over three lattice vectors.

    With key_k = MLP_k[k || K_k l_k || A a_k] and msg_k = MLP_m[v || V_k l_k || A a_k]: l_k are features of the k-th
    length, encoded as edges are, a_k of the angle between the edge and the vector; q, k, v are linear in e.

    Args:
        dim: width of the features.
        num_rbf: number of Gaussians of the angles.
        norm: ``"batch"`` or None.
    """

    def __init__(self, dim: int, num_rbf: int, norm: str | None = "batch") -> None:
        super().__init__()
        self.dim = dim
        self.query, self.key, self.value, self.angle = (nn.Linear(dim, dim) for _ in range(4))
        self.length_keys = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))
        self.length_values = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))
        self.angle_basis = GaussianBasis(-1.0, 1.0, num_rbf)
        self.angle_encoder = nn.Linear(num_rbf, dim)
        self.key_mlp = AttentiveMLP(dim)
        self.message_mlp = AttentiveMLP(dim)
        self.gate_norm = _norm(norm, dim)
        self.out = nn.Linear(dim, dim)
        self.norm = _norm(norm, dim)

    def forward(
        self, atoms: Tensor, edges: Edges, vector: Tensor, batch: CrystalBatch, encoder: Callable[..., Tensor]
    ) -> tuple[Tensor, Edges]:
        """Update the edges, see :class:`~prism_plugin.nn.backbones.backbone.Update`.

        Raises:
            ValueError: if a structure is not periodic in three directions.
        """
        index, weight = batch.axes
        if not len(index):
            raise PrismError(NOT_PERIODIC)
        dtype = edges.features.dtype
        weight = weight.to(dtype)
        axes = (index.to(dtype).unsqueeze(-1) * batch.lattice.unsqueeze(1)).sum(dim=2)  # (crystals, most, 3)
        lengths = axes.norm(dim=2)
        of_lengths = encoder(None, lengths.flatten()).view(*lengths.shape, self.dim)
        of_lengths = (weight.unsqueeze(-1) * of_lengths.unsqueeze(2)).sum(dim=1)  # (crystals, 3, dim)

        crystal = batch.atom_crystal.index_select(0, edges.index[0])
        directions = (axes / lengths.unsqueeze(-1)).index_select(0, crystal)
        cosines = ((vector / vector.norm(dim=1, keepdim=True)).unsqueeze(1) * directions).sum(dim=2).abs()
        of_angles = softplus(self.angle_encoder(self.angle_basis(cosines)))  # (edges, most, dim)
        chosen = weight.index_select(0, crystal).mT.to(of_angles.dtype)
        of_angles = self.angle(chosen @ of_angles)  # (edges, 3, dim)

        features = edges.features
        keys = self._through(self.key_mlp, self.key(features), self.length_keys, of_lengths, of_angles, crystal)
        logits = (self.query(features).unsqueeze(1) * keys / math.sqrt(self.dim)).to(dtype)
        gate = torch.sigmoid(self.gate_norm(logits.flatten(0, 1)).view_as(logits))
        values = self.value(features)
        messages = self._through(self.message_mlp, values, self.length_values, of_lengths, of_angles, crystal)
        total = self.out(messages * gate).sum(dim=1).to(dtype)
        return atoms, replace(edges, features=softplus(features + self.norm(total)))

    def _through(
        self, mlp: AttentiveMLP, own: Tensor, layers: nn.ModuleList, lengths: Tensor, angles: Tensor, crystal: Tensor
    ) -> Tensor:
        """MLP[own || layer_k(l_k) || a_k] of each edge and vector, shape ``(edges, 3, dim)``."""
        of_own, of_length, of_angle = mlp.parts
        read = torch.stack([layer(lengths[:, k]) for k, layer in enumerate(layers)], dim=1)
        hidden = functional.linear(read, of_length).index_select(0, crystal)
        return mlp(hidden + functional.linear(own, of_own).unsqueeze(1) + functional.linear(angles, of_angle))
