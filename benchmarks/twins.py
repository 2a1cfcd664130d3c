"""PRISM and CartNet as one would write them first: every edge's numbers at once, concatenations as printed.

:func:`naive` turns a PRISM into its twin in place, with the same weights; tests/nn/test_fast_path.py shows that both
say the same. :func:`cartnet` is CartNet (Solé et al., Digital Discovery 2025) at a PRISM's width and depth: its
atomistic layers alone, likewise with [h_i || h_j || e_ij] built for each of the two MLPs, as its authors write it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional

from prism_plugin import PRISM
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.nn.backbones.backbone import Edges
from prism_plugin.nn.backbones.cartnet import GatedMessagePassing, MultiscaleMessagePassing
from prism_plugin.nn.encoders import EdgeEncoder, cosine_envelope, feature_envelope
from prism_plugin.nn.gated_conv import Answer
from prism_plugin.nn.layer import PRISMLayer

__all__ = ["cartnet", "naive"]


class NaiveGated(GatedMessagePassing):
    def messages(
        self, nodes: Tensor, edges: Tensor, index: Tensor, envelope: Tensor | None, update_edges: bool
    ) -> Answer:
        receiver, sender = index
        gate_weight, message_weight = self.project.weight.chunk(2)
        gate_bias, message_bias = self.project.bias.chunk(2)
        hidden = functional.linear(torch.cat([nodes[receiver], edges, nodes[sender]], dim=1), gate_weight, gate_bias)
        gate = torch.sigmoid(self.gate_norm(self.gate(functional.silu(hidden))))
        if envelope is not None:
            gate = gate * envelope.unsqueeze(1)
        hidden = functional.linear(
            torch.cat([nodes[receiver], edges, nodes[sender]], dim=1), message_weight, message_bias
        )
        message = self.message(functional.silu(hidden)) * gate
        total = torch.zeros_like(nodes).index_add(0, receiver, message)
        return Answer(total, edges + gate if update_edges else None, None)


class NaiveMultiscale(MultiscaleMessagePassing):
    def forward(
        self, atoms: Tensor, superatoms: Tensor, atom_crystal: Tensor, update_superatoms: bool
    ) -> tuple[Tensor, Tensor | None]:
        sent = superatoms[atom_crystal]

        def messages(receivers: Tensor, senders: Tensor) -> Tensor:
            return self.message(functional.silu(self.project(torch.cat([receivers, senders], dim=1))))

        updated = atoms + functional.silu(self.atom_norm(messages(atoms, sent)))
        if not update_superatoms:
            return updated, None
        total = torch.zeros_like(superatoms).index_add(0, atom_crystal, messages(sent, atoms))
        return updated, superatoms + functional.silu(self.superatom_norm(total))


class NaiveEncoder(EdgeEncoder):
    def forward(self, vector: Tensor, distance: Tensor) -> Tensor:
        decayed = torch.exp(-self.rbf.decay * distance).unsqueeze(1)
        basis = torch.exp(-self.rbf.width * (decayed - self.rbf.centers.to(distance.dtype)) ** 2)
        return self.mlp(torch.cat([basis, vector / distance.unsqueeze(1)], dim=1) if self.directions else basis)


class NaiveLayer(PRISMLayer):
    def _similarity(
        self, expert: GatedMessagePassing, atoms: Tensor, batch: CrystalBatch, images: object = None
    ) -> Tensor:  # the images are searched anew
        difference = atoms.unsqueeze(1) - atoms.unsqueeze(0) if len(atoms) < 200 else None
        squared = torch.cdist(atoms, atoms).square() if difference is None else difference.square().sum(dim=2)
        same = batch.atom_crystal.unsqueeze(1) == batch.atom_crystal.unsqueeze(0)
        near = same & (squared <= self.similarity_cutoff**2)
        near.fill_diagonal_(False)
        index = near.nonzero().T
        receiver, sender = index
        displacement = batch.positions[sender] - batch.positions[receiver]
        lattice = (batch.reduction.to(atoms.dtype) @ batch.lattice)[batch.atom_crystal[receiver]]
        inverse = torch.linalg.pinv(lattice)
        periodic = (batch.reduction != 0).any(dim=2)[batch.atom_crystal[receiver]]
        fold = -torch.round((displacement.unsqueeze(1) @ inverse).squeeze(1)) * periodic
        images = torch.tensor(list(itertools.product((-1, 0, 1), repeat=3)), dtype=atoms.dtype)
        translations = (fold.unsqueeze(1) + images) @ lattice
        candidates = displacement.unsqueeze(1) + translations
        length = candidates.norm(dim=2)
        direction = torch.tensor([1.0, 2**0.5 / 2, 3**0.5 / 5], dtype=atoms.dtype)
        nearest = length <= length.min(dim=1, keepdim=True).values + 1e-4
        chosen = (candidates @ direction).masked_fill(~nearest, -torch.inf).argmax(dim=1)
        vector = candidates[torch.arange(len(chosen)), chosen]
        distance = vector.norm(dim=1)
        features = self.similarity_encoder(vector, distance)
        envelope = None
        if self.similarity_envelope == "feature":
            envelope = feature_envelope(squared[receiver, sender], self.similarity_cutoff)
        elif self.similarity_envelope == "cosine":
            envelope = cosine_envelope(distance, self.cutoff)
        edges = Edges(features, index, envelope)
        return expert.update(atoms, expert.messages(atoms, *vars(edges).values(), update_edges=False).total)


_TWINS = {
    GatedMessagePassing: NaiveGated,
    MultiscaleMessagePassing: NaiveMultiscale,
    EdgeEncoder: NaiveEncoder,
    PRISMLayer: NaiveLayer,
}


def naive(model: PRISM) -> PRISM:
    """Let a model compute as its naive twin from now on."""
    arguments = model.arguments
    if arguments["similarity_image"] != "nearest" or arguments["multiscale_aggregation"] != "sum":
        raise ValueError("the twin knows the specification's similarity_image and multiscale_aggregation only")
    for module in model.modules():
        module.__class__ = _TWINS.get(type(module), type(module))
    return model


def cartnet(model: PRISM) -> PRISM:
    """Make a naive CartNet of the width, depth and cutoff of a model."""
    arguments = {name: model.arguments[name] for name in ("dim", "num_layers", "num_rbf", "cutoff")}
    return naive(PRISM(experts=("atomistic",), atom_encoder="cartnet", **arguments))
