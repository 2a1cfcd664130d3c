"""Evaluating models: eval mode for a while, sequences of graphs in batches, halves of a batch where memory ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from prism_plugin.graph.batching import EDGES_PER_BATCH, cut, pairs_of_one_element
from prism_plugin.graph.crystals import CrystalBatch, CrystalGraph, batch_graphs
from prism_plugin.graph.store import GraphStore

__all__ = ["evaluation", "halved", "split_graphs"]

_T = TypeVar("_T")


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Switch a model to eval mode inside the block; afterwards each module has its former mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def split_graphs(
    graphs: Sequence[CrystalGraph], batch_size: int, most_edges: int = EDGES_PER_BATCH
) -> Iterator[CrystalBatch]:
    """Cut a sequence of graphs into consecutive batches (:meth:`~prism_plugin.CrystalBatch.split`)."""
    if isinstance(graphs, GraphStore):
        yield from graphs.split(batch_size, most_edges)
        return
    costs = [
        graph.crystals.sizes[0, 1]
        + pairs_of_one_element(graph.atomic_numbers.cpu().numpy(), graph.crystals.sizes[:, 0])[0]
        for graph in graphs
    ]
    for start, stop in cut(np.array(costs, dtype=np.int64), batch_size, most_edges):
        yield batch_graphs(graphs[start:stop])


def halved(
    evaluate: Callable[[CrystalBatch], list[_T]],
    crystals: CrystalBatch,
    too_large: Callable[[MemoryError], _T] | None = None,
) -> list[_T]:
    """Evaluate crystals together or, where memory ends, in halves.

    Args:
        evaluate: gives one answer for each crystal.
        crystals: what is evaluated.
        too_large: gives the answer for a crystal that does not fit alone; None raises.

    Raises:
        MemoryError: if one alone does not fit.
    """
    try:
        return evaluate(crystals)
    except RuntimeError as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        reason = str(error).splitlines()[0]
    count = len(crystals)
    if count == 1:
        problem = MemoryError(f"one structure of {crystals.sizes[0, 0]} atoms does not fit into memory: {reason}")
        if too_large is None:
            raise problem
        return [too_large(problem)]
    middle = count // 2
    parts = crystals.part(0, middle), crystals.part(middle, count)
    return [answer for part in parts for answer in halved(evaluate, part, too_large)]
