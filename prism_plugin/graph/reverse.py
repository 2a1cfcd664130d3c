"""Which edge is the same one seen from its other end, and a table of the edges of each atom."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ROW", "NeighborTable", "neighbor_table", "reverse_edges"]

# Edges in a row: 8, 16 and 32 took the same time where atoms have some 30; fewer leave less of a row empty.
ROW = 16


class NeighborTable(NamedTuple):
    """Edges by their receivers, in rows of :data:`ROW` places; an atom has as many rows as it needs.

    How many rows there are depends on the numbers of atoms and edges alone, so that nothing asks a device; some are
    empty.

    Attributes:
        place: of each edge in the table, row after row, shape ``(edges,)``.
        atom: receiver of each row's edges, shape ``(rows,)``; 0 where there is none.
    """

    place: Tensor
    atom: Tensor

    def to(self, device: torch.device) -> NeighborTable:
        """Move to a device."""
        return NeighborTable(self.place.to(device), self.atom.to(device))

    def filled(self, values: Tensor) -> Tensor:
        """Put values of the edges into their places, 0 elsewhere: ``(edges, n)`` -> ``(rows, ROW, n)``."""
        rows = len(self.atom)
        table = values.new_zeros(rows * ROW, values.shape[1])
        return table.index_add(0, self.place, values).view(rows, ROW, values.shape[1])

    def taken(self, table: Tensor) -> Tensor:
        """Take the edges' values out of their places: ``(rows, ROW, n)`` -> ``(edges, n)``."""
        return table.flatten(0, 1).index_select(0, self.place)


def neighbor_table(edge_index: Tensor, atoms: int) -> NeighborTable:
    """Give each edge a place in a table of edges by receivers.

    Args:
        edge_index: receiver and sender of each edge, shape ``(2, edges)``, in any order.
        atoms: number of atoms.

    Example:
        >>> neighbor_table(torch.tensor([[0, 2, 0], [1, 0, 2]]), 3)
        NeighborTable(place=tensor([ 0, 16,  1]), atom=tensor([0, 2, 0]))
    """
    receiver = edge_index[0].long()
    counts = receiver.new_zeros(atoms).index_add(0, receiver, torch.ones_like(receiver))
    rows = torch.div(counts + ROW - 1, ROW, rounding_mode="floor")
    order = torch.argsort(receiver, stable=True)
    first_edge, first_row = counts.cumsum(0) - counts, rows.cumsum(0) - rows
    of_edge = receiver.index_select(0, order)
    rank = torch.arange(len(receiver), device=receiver.device) - first_edge.index_select(0, of_edge)
    place = torch.empty_like(receiver).scatter(0, order, first_row.index_select(0, of_edge) * ROW + rank)
    atom = receiver.new_zeros(atoms + len(receiver) // ROW)
    return NeighborTable(place, atom.scatter(0, place // ROW, receiver))


# A coefficient of an image takes 21 bits of a key, so that three fit into 64.
_HALF = 2**20


def reverse_edges(edge_index: Tensor, edge_image: Tensor, atoms: int) -> Tensor:
    """Find for each edge (i, j, image) the edge (j, i, -image).

    By sorting, without asking the device for an answer in between.

    Args:
        edge_index: receiver and sender of each edge, shape ``(2, edges)``.
        edge_image: image of the sender, shape ``(edges, 3)``; coefficients below a million.
        atoms: number of atoms.

    Returns:
        Shape ``(edges,)``; ``edges`` where there is none, as at the cutoff, where rounding may leave an edge one-way.

    Example:
        >>> index, image = torch.tensor([[0, 1, 1], [1, 0, 1]]), torch.tensor([[0, 0, 1], [0, 0, -1], [1, 0, 0]])
        >>> reverse_edges(index, image, 2)
        tensor([1, 0, 3])
    """
    receiver, sender = edge_index.long()
    image = edge_image.long()
    edges = len(image)
    pairs = torch.cat([receiver * atoms + sender, sender * atoms + receiver])
    images = torch.cat([_packed(image), _packed(-image)])
    order = torch.argsort(images, stable=True)
    order = order.index_select(0, torch.argsort(pairs.index_select(0, order), stable=True))
    pairs, images = pairs.index_select(0, order), images.index_select(0, order)
    # An edge and the reverse of another are neighbors now, the edge first, where they are the same.
    same = (pairs[1:] == pairs[:-1]) & (images[1:] == images[:-1])
    first, second = order[:-1], order[1:]
    answer = torch.full((edges + 1,), edges, dtype=torch.long, device=order.device)
    answer.scatter_(0, torch.where(same, second - edges, edges), torch.where(same, first, edges))
    return answer[:edges]


def _packed(image: Tensor) -> Tensor:
    return ((image[:, 0] + _HALF) * 2 * _HALF + image[:, 1] + _HALF) * 2 * _HALF + image[:, 2] + _HALF
