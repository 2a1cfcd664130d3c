"""The angular block: edges learn of the angles between them, at the cost of sums over edges, not over pairs of edges.

What an edge is told is a sum over the other edges at its ends of Legendre polynomials of the angles. Real harmonics
split these, P_l(u . v) = sum_m Y_lm(u) Y_lm(v) (the addition theorem), so that each atom gathers its edges once: the
density trick of the atomic cluster expansion (Drautz, Phys. Rev. B 99, 014104, 2019) in a graph network. The answer is
invariant under rotation and reflection, and smooth.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prism_plugin.graph.reverse import NeighborTable
from prism_plugin.nn.autograd_mode import as_weight
from prism_plugin.nn.norm import FeatureNorm

__all__ = ["AngularBlock", "EdgeAngles", "real_harmonics"]

# With a BatchNorm of the weights: makes the sums over neighbors about 1.
_SCALE = 0.3
# Without one: the same for the bounded sums of directions that partly cancel.
_GAIN = 2.2


class EdgeAngles(NamedTuple):
    """What the layers need to know of the edges' directions; the same in each.

    Attributes:
        harmonics: of the edges' directions, by receivers, shape ``(rows, ROW, order (order + 2))``; 0 where there is no
            edge.
        neighbors: what the rows are.
        reverse: the edge from the other end, shape ``(edges,)``; ``edges`` where there is none.
        radial: radial functions of each edge's length, shape ``(edges, num_rbf)``; None where a norm makes the features
            of the edges be read in their place.
    """

    harmonics: Tensor
    neighbors: NeighborTable
    reverse: Tensor
    radial: Tensor | None

    @classmethod
    def of(cls, harmonics: Tensor, neighbors: NeighborTable, reverse: Tensor, radial: Tensor | None) -> EdgeAngles:
        """Sort the harmonics of the edges, shape ``(edges, order (order + 2))``, by receivers."""
        return cls(neighbors.filled(harmonics), neighbors, reverse, radial)


def real_harmonics(directions: Tensor, order: int) -> Tensor:
    """Real harmonics l = 1 .. order of unit vectors, with sum_m Y_lm(u) Y_lm(v) = P_l(u . v).

    Args:
        directions: shape ``(edges, 3)``.
        order: largest l: 1, 2 or 3.

    Returns:
        Shape ``(edges, order (order + 2))``, those of l = 1 first.

    Example:
        >>> real_harmonics(torch.tensor([[0.0, 0.0, 1.0]]), 1)
        tensor([[0., 0., 1.]])
    """
    x, y, z = directions.unbind(dim=1)
    rows = [x, y, z]
    if order > 1:
        root = math.sqrt(3)
        rows += [root * x * y, root * y * z, root * x * z, root / 2 * (x * x - y * y), (3 * z * z - 1) / 2]
    if order > 2:
        wide, middle, root = math.sqrt(5 / 8), math.sqrt(3 / 8), math.sqrt(15)
        rows += [
            wide * y * (3 * x * x - y * y),
            root * x * y * z,
            middle * y * (5 * z * z - 1),
            z * (5 * z * z - 3) / 2,
            middle * x * (5 * z * z - 1),
            root / 2 * z * (x * x - y * y),
            wide * x * (x * x - 3 * y * y),
        ]
    return torch.stack(rows, dim=1)


class AngularBlock(nn.Module):
    """Adds to the features of an edge what the angles with other edges at its two ends say.

    With a norm: w_ij = env (BN[(W_r e_ij) * (W_s h_j)]), A_i = 0.3 sum_j Y(u_ij) w_ij^T, q_ij = Y(u_ij)^T [A_i^l U_l],
    e_ij <- e_ij + W_q [q_ij || q_ji]; and sum_m A_i^l * (A_i^l V_l), one linear layer further, joins the sum of the
    messages at atom i.

    Without (for potentials): W_r reads the radial functions of d_ij in place of e_ij, and a fixed scale, which
    ``PRISM.calibrate`` measures, stands for BN and 0.3; A_i <- 2.2 A_i / sqrt(1 + a_i) with a_i = mean_c sum_j
    w_ijc^2 / (order + 2), the mean square of A_i were the directions of its edges independent; and nothing joins the
    messages. Unbounded a training on many elements learns less, or diverges. The weights bound A_i, not its own size:
    where symmetry cancels A_i (fcc, rocksalt) the forces would turn within hundredths of an ångström.

    Args:
        dim: width of the features.
        channels: number of channels.
        order: largest l.
        num_rbf: number of radial functions.
        norm: ``"batch"`` or None.
    """

    scale: Tensor

    def __init__(self, dim: int, channels: int, order: int, num_rbf: int, norm: str | None) -> None:
        super().__init__()
        self.order = order
        self.channels = channels
        self.calibrating = False
        self.of_edge = nn.Linear(num_rbf if norm is None else dim, channels, bias=False)
        self.of_sender = nn.Linear(dim, channels, bias=False)
        self.mix = nn.Parameter(torch.randn(order, channels, channels) / math.sqrt(channels))
        self.to_edge = nn.Linear(2 * channels, dim)
        self.norm = None if norm is None else FeatureNorm(channels)
        if norm is None:
            self.register_buffer("scale", torch.ones(()))
        else:
            self.node_mix = nn.Parameter(torch.randn(order, channels, channels) / math.sqrt(channels))
            self.to_node = nn.Linear(order * channels, dim)

    def forward(
        self, atoms: Tensor, edges: Tensor, index: Tensor, envelope: Tensor, angles: EdgeAngles
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the angles at each edge.

        Args:
            atoms: h, shape ``(atoms, dim)``.
            edges: e, shape ``(edges, dim)``.
            index: receiver and sender of each edge, shape ``(2, edges)``.
            envelope: weight of each edge, shape ``(edges,)``.
            angles: geometry of the edges.

        Returns:
            Updated e, and what joins the sums of the messages, shape ``(atoms, dim)``, or None.
        """
        with torch.autocast(atoms.device.type, enabled=False):  # sums over neighbors keep their digits
            receiver, sender = index
            read = cast("Tensor", angles.radial) if self.norm is None else edges
            weight = functional.linear(read, as_weight(self.of_edge.weight))
            weight = weight * self.of_sender(atoms).index_select(0, sender)
            if self.norm is not None:
                weight = self.norm(weight) * _SCALE
            density = self._density(angles, weight * envelope.unsqueeze(1), receiver, len(atoms))
            mixed = self._by_degree(density, as_weight(self.mix))
            q = angles.harmonics @ mixed.index_select(0, angles.neighbors.atom)
            q = angles.neighbors.taken(q)
            reverse = torch.cat([q, q.new_zeros(1, self.channels)]).index_select(0, angles.reverse)
            weights = as_weight(self.to_edge.weight), as_weight(self.to_edge.bias)
            edges = edges + functional.linear(torch.cat([q, reverse], dim=1), *weights)
            if self.norm is not None:
                squares = density * self._by_degree(density, self.node_mix)
                parts = [part.sum(dim=1) for part in squares.split(self._sizes(), dim=1)]
                return edges, self.to_node(torch.cat(parts, dim=1))
            return edges, None

    def _density(self, angles: EdgeAngles, weight: Tensor, receiver: Tensor, atoms: int) -> Tensor:
        """A_i, shape ``(atoms, order (order + 2), channels)``."""
        rows = angles.harmonics.mT @ angles.neighbors.filled(weight)
        density = rows.new_zeros(atoms, *rows.shape[1:]).index_add(0, angles.neighbors.atom, rows)
        if self.norm is not None:
            return density
        power = weight.square().mean(dim=1) / (self.order + 2)
        power = power.new_zeros(atoms).index_add(0, receiver, power)
        if self.calibrating:
            self.scale.copy_(1 / power.detach().sqrt().mean().clamp(min=1e-12))
        return density * (_GAIN * self.scale * torch.rsqrt(1 + self.scale.square() * power)).view(-1, 1, 1)

    def _by_degree(self, density: Tensor, mix: Tensor) -> Tensor:
        parts = density.split(self._sizes(), dim=1)
        return torch.cat([part @ matrix for part, matrix in zip(parts, mix, strict=True)], dim=1)

    def _sizes(self) -> list[int]:
        return [2 * degree + 1 for degree in range(1, self.order + 1)]
