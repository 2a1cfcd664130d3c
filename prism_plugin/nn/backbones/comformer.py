"""What iComFormer and eComFormer share: their edges and their convolution (Yan et al., ICLR 2024).

Attention without softmax: each channel of a message has a gate, a sigmoid of the product of the receiver's query and
the edge's key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prism_plugin.config import ModelOptions
from prism_plugin.nn.autograd_mode import as_weight
from prism_plugin.nn.backbones.cartnet import MultiscaleMessagePassing
from prism_plugin.nn.gated_conv import Answer
from prism_plugin.nn.linear import linear
from prism_plugin.nn.norm import FeatureNorm, _norm
from prism_plugin.nn.silu import silu

__all__ = [
    "SOFTPLUS_THRESHOLD",
    "AttentiveMLP",
    "AttentiveMessagePassing",
    "ComFormer",
    "GaussianBasis",
    "InverseDistanceEncoder",
    "softplus",
]


# From which on Softplus is the identity: torch's own 20 leaves a step of 2e-9.
SOFTPLUS_THRESHOLD = 40.0


def softplus(values: Tensor) -> Tensor:
    """log(1 + exp(x)), to the last digit also in float64."""
    return functional.softplus(values, threshold=SOFTPLUS_THRESHOLD)


@dataclass(frozen=True)
class ComFormer:
    """What both give to the experts; a :class:`~prism_plugin.nn.backbones.backbone.Backbone` but for its update.

    Attributes:
        options: of the model.
    """

    options: ModelOptions

    def edge_encoder(self, cutoff: float) -> InverseDistanceEncoder:
        """Encoder of edges; its basis is the same for every cutoff."""
        return InverseDistanceEncoder(self.options.dim, self.options.num_rbf)

    def message_passing(self) -> AttentiveMessagePassing:
        """Messages along a family of edges."""
        return AttentiveMessagePassing(self.options.dim, self.options.norm)

    def multiscale(self) -> AttentiveMultiscale:
        """Messages between atoms and superatom."""
        return AttentiveMultiscale(self.options.dim, self.options.multiscale_aggregation, self.options.norm)

    def angular(self) -> None:
        """Angles are CartNet's."""


class GaussianBasis(nn.Module):
    """Numbers -> Gaussians exp(-(x - mu_k)^2 / s) with centers mu_k a distance s apart.

    Args:
        first: the first center.
        last: the last one.
        count: number of Gaussians, at least 2.
    """

    centers: Tensor

    def __init__(self, first: float, last: float, count: int) -> None:
        super().__init__()
        self.spacing = (last - first) / (count - 1)
        self.register_buffer("centers", torch.linspace(first, last, count, dtype=torch.float64), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Shape ``(...,)`` -> ``(..., count)``."""
        return torch.exp(-((values.unsqueeze(-1) - self.centers.to(values.dtype)) ** 2) / self.spacing)


class InverseDistanceEncoder(nn.Module):
    """Distances -> edge features, Softplus(Linear(Gaussians of -0.75 / d, centers from -4 to 0)).

    Args:
        dim: width of the features.
        num_rbf: number of Gaussians.
    """

    def __init__(self, dim: int, num_rbf: int) -> None:
        super().__init__()
        self.basis = GaussianBasis(-4.0, 0.0, num_rbf)
        self.project = nn.Linear(num_rbf, dim)

    def forward(self, vector: Tensor | None, distance: Tensor) -> Tensor:
        """Distances ``(edges,)``, Å -> features ``(edges, dim)``; vectors are not read."""
        rows = self.basis(-0.75 / distance)
        return softplus(self.project(rows)).to(rows.dtype)


class AttentiveMLP(nn.Module):
    """Linear 3 dim -> dim, SiLU, Linear dim -> dim; :meth:`parts` cuts the first layer by what it reads.

    Args:
        dim: width of the features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.first = nn.Linear(3 * dim, dim)
        self.last = nn.Linear(dim, dim)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The first layer's weights for each of its three inputs, ``(dim, dim)`` each."""
        return as_weight(self.first.weight).split(self.dim, dim=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """What the first layer gives, without its bias, ``(..., dim)`` -> ``(..., dim)``."""
        active = silu(hidden + as_weight(self.first.bias))
        return functional.linear(active, as_weight(self.last.weight), as_weight(self.last.bias))


class AttentiveMessagePassing(nn.Module):
    """h'_i = Softplus(h_i + BN(W sum_j sigmoid(BN(q_i key_ij / sqrt(dim))) msg_ij)).

    With key_ij = MLP_k[k_i || k_j || e'] and msg_ij = MLP_m[v_i || v_j || e']; q, k, v are linear in the nodes, e' is
    in the edges, which carry no state from layer to layer. An edge's weight, where it has one, is a factor of its gate.
    First layers act on nodes once per node, not once per edge, and on edges together with the layer that gives e'.

    Args:
        dim: width of the features.
        norm: ``"batch"`` or None.
    """

    def __init__(self, dim: int, norm: str | None = "batch") -> None:
        super().__init__()
        self.dim = dim
        self.query, self.key, self.value, self.edge = (nn.Linear(dim, dim) for _ in range(4))
        self.key_mlp = AttentiveMLP(dim)
        self.message_mlp = AttentiveMLP(dim)
        self.gate_norm = _norm(norm, dim)
        self.out = nn.Linear(dim, dim)
        self.norm = _norm(norm, dim)

    @property
    def sees_all_edges(self) -> bool:
        """Whether the answer at a node depends on edges that end elsewhere: on the statistics of all."""
        return isinstance(self.gate_norm, FeatureNorm) and self.gate_norm.training

    def messages(
        self, nodes: Tensor, edges: Tensor, index: Tensor, envelope: Tensor | None, update_edges: bool
    ) -> Answer:
        """Sum gated messages, see :meth:`~prism_plugin.nn.backbones.backbone.MessagePassing.messages`."""
        receiver, sender = index
        keys = self._through(self.key_mlp, self.key(nodes), edges, receiver, sender)
        queries = self.query(nodes).index_select(0, receiver)
        logits = (queries * keys / math.sqrt(self.dim)).to(edges.dtype)
        gate = torch.sigmoid(self.gate_norm(logits))
        if envelope is not None:
            gate = gate * envelope.unsqueeze(1)
        message = self._through(self.message_mlp, self.value(nodes), edges, receiver, sender) * gate
        total = edges.new_zeros(len(nodes), self.dim).index_add(0, receiver, message.to(edges.dtype))
        return Answer(total, None, None)

    def update(self, nodes: Tensor, total: Tensor) -> Tensor:
        """Nodes and the sum of their messages, ``(nodes, dim)`` each -> h'."""
        return softplus(nodes + self.norm(self.out(total)))

    def _through(self, mlp: AttentiveMLP, nodes: Tensor, edges: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """MLP[n_i || n_j || e'] of each edge."""
        of_receiver, of_sender, of_edge = mlp.parts
        hidden = linear(edges, of_edge @ as_weight(self.edge.weight), of_edge @ as_weight(self.edge.bias))
        hidden = hidden + linear(nodes, of_receiver).index_select(0, receiver)
        return mlp(hidden + linear(nodes, of_sender).index_select(0, sender))


class AttentiveMultiscale(MultiscaleMessagePassing):
    """The convolution's message MLP[v_i || v_j] between atoms and superatom: no query, no key, no edge.

    Args:
        dim: width of the features.
        aggregation: ``"sum"`` or ``"mean"`` over the atoms that send to a superatom.
        norm: ``"batch"`` or None.
    """

    def __init__(self, dim: int, aggregation: str = "sum", norm: str | None = "batch") -> None:
        super().__init__(dim, aggregation, norm)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def read(self, nodes: Tensor) -> Tensor:
        """Features of nodes that their messages are made of, ``(nodes, dim)``."""
        return self.value(nodes)

    def update(self, nodes: Tensor, total: Tensor, norm: nn.Module) -> Tensor:
        """Nodes and what they received, ``(nodes, dim)`` each -> h'."""
        return softplus(nodes + norm(self.out(total)))
