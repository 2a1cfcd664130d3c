"""One PRISM layer: every expert reads the same features, their answers are fused.

Updates the features of atoms, superatoms and edges. The similarity edges are built here, anew in
every layer, from the features. Experts that begin at zero (of our own: the cell in reciprocal space, the residual
multiscale expert) add to the features before the others read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from prism_plugin.config import ModelOptions
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.nn.angular import EdgeAngles
from prism_plugin.nn.autograd_mode import needs_gradient
from prism_plugin.nn.backbones.backbone import Backbone, Edges, MessagePassing
from prism_plugin.nn.encoders import cosine_envelope, feature_envelope
from prism_plugin.nn.feature_neighbors import similar_blocks, similar_pairs
from prism_plugin.nn.fusion import Fusion
from prism_plugin.nn.minimum_image import ImageTable, blended_image, minimum_image
from prism_plugin.nn.reciprocal import ReciprocalExpert, WaveGeometry
from prism_plugin.nn.residual_multiscale import ResidualMultiscale

__all__ = ["PRISMLayer", "encode_edges"]

# Features of the similarity edges that are held at once where nothing is differentiated: 0.25 GB in float32.
_NUMBERS_PER_BLOCK = 2**26


def encode_edges(
    encoder: nn.Module, vector: Tensor, index: Tensor, cutoff: float | None, distance: Tensor | None = None
) -> Edges:
    """Encode edges by their vectors (Å, shape ``(edges, 3)``) and weigh them with the cosine envelope.

    The distances are the vectors' lengths, unless others are given, Å, shape ``(edges,)``. Without a cutoff edges have
    no envelope.
    """
    if distance is None:
        distance = vector.norm(dim=1)
    return Edges(encoder(vector, distance), index, None if cutoff is None else cosine_envelope(distance, cutoff))


class PRISMLayer(nn.Module):
    """The experts of one layer and their fusion.

    Args:
        options: of the model.
        backbone: gives the experts their parts.
    """

    experts: Mapping[str, Callable[..., tuple[Tensor, Tensor | None]]]

    def __init__(self, options: ModelOptions, backbone: Backbone) -> None:
        super().__init__()
        dim, experts = options.dim, list(options.experts)
        # In the order in which weights were drawn before there were other backbones: a seed gives the same model.
        similarity_encoder = backbone.edge_encoder(options.cutoff) if "similarity" in experts else None
        self.angular = backbone.angular()
        self.reciprocal = ReciprocalExpert(dim) if "cell" in experts and options.cell == "reciprocal" else None
        starts_at_zero = "multiscale" in experts and options.multiscale == "residual"
        self.residual = ResidualMultiscale(dim) if starts_at_zero else None
        sequential = {"cell": self.reciprocal, "multiscale": self.residual}
        experts = [name for name in experts if sequential.get(name) is None]
        self.similarity_image = options.similarity_image
        self.similarity_cutoff = options.similarity_cutoff
        self.similarity_envelope = options.similarity_envelope
        self.cutoff = options.cutoff
        self.experts = nn.ModuleDict(  # type: ignore[assignment]  # typed by what it holds
            {name: backbone.multiscale() if name == "multiscale" else backbone.message_passing() for name in experts}
        )
        self.similarity_encoder = similarity_encoder
        of_atoms = [e for e in ("atomistic", "similarity", "multiscale") if e in experts]
        self.atom_fusion = Fusion(of_atoms, dim, options.fusion)
        self.superatom_fusion = Fusion([e for e in ("cell", "multiscale") if e in experts], dim, options.fusion)

    def forward(
        self,
        atoms: Tensor,
        superatoms: Tensor,
        edges: dict[str, Edges],
        batch: CrystalBatch,
        last: bool,
        images: ImageTable | None = None,
        waves: WaveGeometry | None = None,
        counts: Tensor | None = None,
        angles: EdgeAngles | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Edges]]:
        """Pass messages with every expert and fuse the answers.

        Args:
            atoms: shape ``(atoms, dim)``.
            superatoms: shape ``(crystals, dim)``.
            edges: the atomistic and the cell edges, by the expert's name.
            batch: the crystals.
            last: whether this is the last layer; then nothing reads superatoms and edges, and both stay as they are.
            images: of the lattices, where there are similarity edges (:func:`~.minimum_image.image_table`).
            waves: for the cell expert in reciprocal space.
            counts: number of atoms of each crystal, shape ``(crystals, 1)``, for the residual multiscale expert.
            angles: for the angular block.

        Returns:
            Updated atoms, superatoms and edges.
        """
        if self.reciprocal is not None:
            atoms = self.reciprocal(atoms, waves)
        if self.residual is not None:
            atoms, superatoms = self.residual(atoms, superatoms, batch.atom_crystal, counts)
        of_atoms: dict[str, Tensor] = {}
        of_superatoms: dict[str, Tensor] = {}
        updated = dict(edges)
        for name, expert in self.experts.items():
            if name == "multiscale":
                of_atoms[name], answer = expert(atoms, superatoms, batch.atom_crystal, update_superatoms=not last)
                if answer is not None:
                    of_superatoms[name] = answer
            elif name == "similarity":
                of_atoms[name] = self._similarity(cast("MessagePassing", expert), atoms, batch, images)
            elif name == "atomistic" or not last:
                nodes, answers = (atoms, of_atoms) if name == "atomistic" else (superatoms, of_superatoms)
                given, block = edges[name], cast("MessagePassing", expert)
                joins = None
                told = given.features
                if name == "atomistic" and self.angular is not None:
                    told, joins = self.angular(atoms, told, given.index, given.envelope, angles)
                messages = block.messages(nodes, told, given.index, given.envelope, update_edges=not last)
                total, features = messages.total, messages.edges
                answers[name] = block.update(nodes, total if joins is None else total + joins)
                if features is not None:
                    updated[name] = replace(given, features=features)
        if of_atoms:
            atoms = self.atom_fusion([of_atoms[name] for name in self.atom_fusion.experts])
        if of_superatoms:
            superatoms = self.superatom_fusion([of_superatoms[name] for name in self.superatom_fusion.experts])
        return atoms, superatoms, updated

    def _similarity(
        self, expert: MessagePassing, atoms: Tensor, batch: CrystalBatch, images: ImageTable | None
    ) -> Tensor:
        """Pass messages along similarity edges: all at once if autograd or BatchNorm must see them, else in blocks."""
        given = atoms, batch.positions, batch.lattice
        whole = expert.sees_all_edges or (torch.is_grad_enabled() and needs_gradient(*given, *self.parameters()))
        if whole:
            blocks = iter([similar_pairs(atoms, batch.atom_crystal, batch.sizes[:, 0], self.similarity_cutoff)])
        else:
            most = _NUMBERS_PER_BLOCK // atoms.shape[1]
            blocks = similar_blocks(atoms, batch.atom_crystal, batch.sizes[:, 0], self.similarity_cutoff, most)
        total: Tensor | None = None
        for index, squared in blocks:
            edges = self._similarity_edges(index, squared, batch, images)
            answer = expert.messages(atoms, edges.features, index, edges.envelope, update_edges=False)
            total = answer.total if total is None else total.add_(answer.total)
            del edges, answer, squared  # before the next block is made
        return expert.update(atoms, cast("Tensor", total))

    def _similarity_edges(
        self, index: Tensor, squared: Tensor, batch: CrystalBatch, images: ImageTable | None
    ) -> Edges:
        """Encode pairs of similar atoms by the geometry of their minimum image, with an envelope."""
        receiver, sender = index
        displacement = batch.positions.index_select(0, sender) - batch.positions.index_select(0, receiver)
        crystal = batch.atom_crystal.index_select(0, receiver)
        geometry = batch.lattice, batch.reduction, images
        encoder = cast("nn.Module", self.similarity_encoder)
        if self.similarity_image == "blended":
            direction, distance = blended_image(displacement, crystal, *geometry)
            vector = direction * distance.unsqueeze(1)
            edges = encode_edges(encoder, vector, index, self.cutoff, distance)
        else:
            vector = displacement + minimum_image(displacement, crystal, *geometry)
            edges = encode_edges(encoder, vector, index, self.cutoff)
        if self.similarity_envelope == "feature":
            return replace(edges, envelope=feature_envelope(squared, self.similarity_cutoff))
        return edges if self.similarity_envelope == "cosine" else replace(edges, envelope=None)
