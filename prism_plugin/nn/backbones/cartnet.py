"""CartNet as a backbone, the paper's choice (PRISM Eq. 7-14; Solé et al., Digital Discovery 2025).

Three experts (atomistic, cell, similarity) are one gated block on three kinds of edges; the multiscale expert has no
geometry. No weights are shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prism_plugin.config import ModelOptions
from prism_plugin.nn.angular import AngularBlock
from prism_plugin.nn.autograd_mode import as_weight
from prism_plugin.nn.encoders import EdgeEncoder
from prism_plugin.nn.gated_conv import Answer, GatedTensors, Settings, gated_messages
from prism_plugin.nn.linear import linear
from prism_plugin.nn.norm import FeatureNorm, _norm

__all__ = ["CartNet", "GatedMessagePassing", "MultiscaleMessagePassing"]


@dataclass(frozen=True)
class CartNet:
    """What CartNet gives to the experts; a :class:`~prism_plugin.nn.backbones.backbone.Backbone`.

    Attributes:
        options: of the model.
    """

    options: ModelOptions

    def edge_encoder(self, cutoff: float) -> EdgeEncoder:
        """Encoder of edges up to a cutoff, Å."""
        options = self.options
        return EdgeEncoder(options.dim, cutoff, options.num_rbf, options.rbf_scale, options.directions)

    def message_passing(self) -> GatedMessagePassing:
        """Messages along a family of edges."""
        return GatedMessagePassing(self.options.dim, self.options.norm)

    def multiscale(self) -> MultiscaleMessagePassing:
        """Messages between atoms and superatom."""
        return MultiscaleMessagePassing(self.options.dim, self.options.multiscale_aggregation, self.options.norm)

    def angular(self) -> AngularBlock | None:
        """Angles between the atomistic edges, where the model has them."""
        options = self.options
        if not options.angular:
            return None
        return AngularBlock(options.dim, options.angular, options.angular_order, options.num_rbf, options.norm)

    def update(self) -> None:
        """CartNet has nothing between its layers."""


class GatedMessagePassing(nn.Module):
    """Gated messages along edges with geometry (PRISM Eq. 9-14).

    The first layers of both MLPs act on [h_i || e_ij || h_j]. They are one matrix here, and its node parts are applied
    once per node, not once per edge: W [h_i || e || h_j] = (W_1 h)_i + W_2 e + (W_3 h)_j.

    Args:
        dim: width of the features.
        norm: ``"batch"`` or None.
    """

    recompute = False  # whether the backward pass computes the activations of edges anew

    def __init__(self, dim: int, norm: str | None = "batch") -> None:
        super().__init__()
        self.dim = dim
        self.project = nn.Linear(3 * dim, 2 * dim)  # first layers of MLP_gate and MLP_msg, in this order
        self.gate = nn.Linear(dim, dim)
        self.message = nn.Linear(dim, dim)
        self.gate_norm = _norm(norm, dim)
        self.norm = _norm(norm, dim)

    @property
    def sees_all_edges(self) -> bool:
        """Whether the answer at a node depends on edges that end elsewhere: on the statistics of all."""
        return isinstance(self.gate_norm, FeatureNorm) and self.gate_norm.training

    def update(self, nodes: Tensor, total: Tensor) -> Tensor:
        """Nodes and the sum of their messages, ``(nodes, dim)`` each -> h' (Eq. 13)."""
        return nodes + functional.silu(self.norm(total))

    def messages(
        self, nodes: Tensor, edges: Tensor, index: Tensor, envelope: Tensor | None, update_edges: bool
    ) -> Answer:
        """Sum gated messages, see :meth:`~prism_plugin.nn.backbones.backbone.MessagePassing.messages`."""
        of_receiver, of_edge, of_sender = as_weight(self.project.weight).split(self.dim, dim=1)
        norm: nn.Module = self.gate_norm
        gate_weight: Tensor = self.gate.weight
        gate_bias: Tensor = self.gate.bias
        scale, shift, eps = None, None, 0.0
        if isinstance(norm, FeatureNorm):
            if norm.has_statistics(edges):
                scale, shift, eps = norm.weight, norm.bias, norm.eps
            else:  # a fixed affine map: part of the gate's last layer
                factor, summand = norm.running()
                gate_weight, gate_bias = factor.unsqueeze(1) * gate_weight, factor * gate_bias + summand
        tensors = GatedTensors(
            linear(nodes, of_receiver, as_weight(self.project.bias)),
            linear(nodes, of_sender),
            edges,
            envelope,
            of_edge,
            as_weight(gate_weight),
            as_weight(gate_bias),
            as_weight(self.message.weight),
            as_weight(self.message.bias),
            scale,
            shift,
        )
        answer = gated_messages(tensors, Settings(index, update_edges, eps), self.recompute)
        if isinstance(norm, FeatureNorm) and answer.statistics is not None:
            norm.follow(*answer.statistics)
        return answer


class MultiscaleMessagePassing(nn.Module):
    """Messages between the atoms and their superatom: no gate, no envelope, no edge state.

    Args:
        dim: width of the features.
        aggregation: ``"sum"`` or ``"mean"`` over the atoms that send to a superatom.
        norm: ``"batch"`` or None.
    """

    def __init__(self, dim: int, aggregation: str = "sum", norm: str | None = "batch") -> None:
        super().__init__()
        self.dim = dim
        self.aggregation = aggregation
        self.project = nn.Linear(2 * dim, dim)
        self.message = nn.Linear(dim, dim)
        self.atom_norm = _norm(norm, dim)
        self.superatom_norm = _norm(norm, dim)

    def forward(
        self, atoms: Tensor, superatoms: Tensor, atom_crystal: Tensor, update_superatoms: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Pass messages once in both directions.

        Args:
            atoms: shape ``(atoms, dim)``.
            superatoms: shape ``(crystals, dim)``.
            atom_crystal: crystal of each atom, shape ``(atoms,)``.
            update_superatoms: whether the next layer needs the superatoms.

        Returns:
            Updated atoms, and updated superatoms or None.
        """
        of_receiver, of_sender = self.project.weight.split(self.dim, dim=1)
        from_atoms, from_superatoms = self.read(atoms), self.read(superatoms)

        def messages(receivers: Tensor, senders: Tensor) -> Tensor:
            return self.message(functional.silu(receivers + senders + self.project.bias))

        sent = functional.linear(from_superatoms, of_sender).index_select(0, atom_crystal)
        message = messages(functional.linear(from_atoms, of_receiver), sent)
        updated_atoms = self.update(atoms, message, self.atom_norm)
        if not update_superatoms:
            return updated_atoms, None
        received = functional.linear(from_superatoms, of_receiver).index_select(0, atom_crystal)
        message = messages(received, functional.linear(from_atoms, of_sender))
        total = torch.zeros_like(superatoms).index_add(0, atom_crystal, message.to(superatoms.dtype))
        if self.aggregation == "mean":
            ones = total.new_ones(len(atom_crystal))
            counts = total.new_zeros(len(superatoms)).index_add(0, atom_crystal, ones)
            total = total / counts.unsqueeze(-1)
        return updated_atoms, self.update(superatoms, total, self.superatom_norm)

    def read(self, nodes: Tensor) -> Tensor:
        """Features of nodes that their messages are made of, ``(nodes, dim)``."""
        return nodes

    def update(self, nodes: Tensor, total: Tensor, norm: nn.Module) -> Tensor:
        """Nodes and what they received, ``(nodes, dim)`` each -> h'."""
        return nodes + functional.silu(norm(total))
