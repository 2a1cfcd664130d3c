"""What a network gives to PRISM so that its experts pass messages as it does.

The supplement builds PRISM on existing networks: their encoder of edges and their message passing stay, the experts
use them on their own families of edges. How atoms are encoded is an option of its own, and any goes with any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.nn.gated_conv import Answer

__all__ = ["Backbone", "Edges", "MessagePassing", "Update"]


@dataclass(frozen=True)
class Edges:
    """Edges on their way through the layers.

    Attributes:
        features: e, shape ``(edges, dim)``.
        index: receiver and sender, shape ``(2, edges)``.
        envelope: weights, shape ``(edges,)``, or None for 1.
    """

    features: Tensor
    index: Tensor
    envelope: Tensor | None


class MessagePassing(Protocol):
    """Messages along one family of edges."""

    @property
    def sees_all_edges(self) -> bool:
        """Whether the answer at a node depends on edges that end elsewhere: on the statistics of all."""

    def messages(
        self, nodes: Tensor, edges: Tensor, index: Tensor, envelope: Tensor | None, update_edges: bool
    ) -> Answer:
        """Sum the messages along edges; a part of the edges gives its part of the sum, unless ``sees_all_edges``.

        Args:
            nodes: h, shape ``(nodes, dim)``.
            edges: e, shape ``(edges, dim)``.
            index: receiver and sender of each edge, shape ``(2, edges)``.
            envelope: weight of each edge, shape ``(edges,)``, or None for 1.
            update_edges: whether the next layer needs e'.

        Returns:
            The sums, shape ``(nodes, dim)``, and e' of shape ``(edges, dim)`` or None, where edges stay as they are.
        """

    def update(self, nodes: Tensor, total: Tensor) -> Tensor:
        """Nodes and the sum of their messages, ``(nodes, dim)`` each -> h'."""


class Update(Protocol):
    """What a network does once, between its first and its second layer, with atoms and atomistic edges."""

    def __call__(
        self, atoms: Tensor, edges: Edges, vector: Tensor, batch: CrystalBatch, encoder: Callable[..., Tensor]
    ) -> tuple[Tensor, Edges]:
        """Update both.

        Args:
            atoms: h, shape ``(atoms, dim)``.
            edges: the atomistic edges.
            vector: of these, Å, shape ``(edges, 3)``.
            batch: the crystals.
            encoder: of the atomistic edges, as the backbone's own ``edge_encoder`` made it.
        """


class Backbone(Protocol):
    """A network, as a maker of the parts that the experts need."""

    def edge_encoder(self, cutoff: float) -> nn.Module:
        """Encoder of edges up to a cutoff, Å: vectors ``(edges, 3)``, distances ``(edges,)`` -> ``(edges, dim)``."""

    def message_passing(self) -> nn.Module:
        """A :class:`MessagePassing`."""

    def multiscale(self) -> nn.Module:
        """Messages between atoms and superatom, with the interface of CartNet's ``MultiscaleMessagePassing``."""

    def angular(self) -> nn.Module | None:
        """An :class:`~prism_plugin.nn.angular.AngularBlock` that reads the atomistic edges in each layer, or None."""

    def update(self) -> nn.Module | None:
        """An :class:`Update`, or None where there is nothing between the layers."""
