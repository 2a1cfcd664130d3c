"""Which edge is the same one seen from its other end."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["reverse_edges"]

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
