"""Sizes of crystals that lie one after the other, and how an order of crystals is cut into batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from prism_plugin.devices import send
from prism_plugin.errors import PrismError

__all__ = ["EDGES_PER_BATCH", "crystal_of_rows", "cut", "pairs_of_one_element"]

# A batch for prediction is closed when it holds this many edges: about 0.75 GB at dim 256 in float32.
EDGES_PER_BATCH = 200_000


def crystal_of_rows(counts: np.ndarray, device: torch.device) -> Tensor:
    """Return the crystal of each of the rows that crystals have one after the other.

    Args:
        counts: number of rows of each crystal, shape ``(crystals,)``.
        device: where the answer is wanted.

    Returns:
        Shape ``(rows,)``, int64, ascending.

    Example:
        >>> crystal_of_rows(np.array([2, 0, 1]), torch.device("cpu"))
        tensor([0, 0, 2])
    """
    return torch.repeat_interleave(send(counts, device), output_size=int(counts.sum()))


def pairs_of_one_element(numbers: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Count the ordered pairs of atoms of one element in each crystal.

    Args:
        numbers: atomic numbers of all atoms, shape ``(atoms,)``.
        atoms: number of atoms of each crystal, shape ``(crystals,)``.

    Returns:
        Shape ``(crystals,)``.
    """
    crystal = np.repeat(np.arange(len(atoms)), atoms)
    species, counts = np.unique(crystal * 128 + numbers.astype(np.int64), return_counts=True)
    return np.bincount(species // 128, weights=counts.astype(float) ** 2, minlength=len(atoms)).astype(np.int64)


def cut(costs: np.ndarray, most_crystals: int, most_cost: int) -> Iterator[tuple[int, int]]:
    """Cut an order of crystals into consecutive parts of bounded size; a costlier crystal is a part of its own.

    Example:
        >>> list(cut(np.array([3, 3, 9, 1]), most_crystals=2, most_cost=6))
        [(0, 2), (2, 3), (3, 4)]
    """
    if most_crystals < 1:
        raise PrismError(f"batch_size must be at least 1, got {most_crystals}")
    start, total = 0, 0
    for number, cost in enumerate(costs.tolist()):
        if number > start and (number - start == most_crystals or total + cost > most_cost):
            yield start, number
            start, total = number, 0
        total += cost
    if len(costs):
        yield start, len(costs)
