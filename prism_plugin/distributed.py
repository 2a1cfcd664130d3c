"""Sums over the processes of a data-parallel training; with one process nothing is sent."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

__all__ = [
    "Statistics",
    "has_group",
    "mean_over_processes",
    "rank_and_size",
    "statistics_over_processes",
    "sum_over_processes",
]


def has_group() -> bool:
    """Whether this process is in a group of processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank_and_size() -> tuple[int, int]:
    """Number of this process and of all."""
    if not has_group():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def sum_over_processes(values: Tensor) -> Tensor:
    """Add a tensor of all processes, differentiably: the gradient is the sum of theirs, too."""
    if rank_and_size()[1] == 1:
        return values
    return _Sum.apply(values)


class Statistics(NamedTuple):
    """Of the rows of all processes.

    Attributes:
        mean: shape ``(dim,)``.
        variance: shape ``(dim,)``.
        rows: their number; if there are several processes a tensor, at least 1.
    """

    mean: Tensor
    variance: Tensor
    rows: Tensor | float


def statistics_over_processes(values: Tensor) -> Statistics:
    """Compute the statistics of rows, shape ``(rows, dim)``, differentiably."""
    mean, rows = mean_over_processes(values.sum(dim=0), len(values))
    return Statistics(mean, sum_over_processes((values - mean).square().sum(dim=0)) / rows, rows)


def mean_over_processes(total: Tensor, rows: int) -> tuple[Tensor, Tensor | float]:
    """Divide a sum over rows by the number of rows, both of all processes, differentiably.

    The numbers travel together and stay on the device, where nobody waits for them.

    Args:
        total: sum over the rows of this process, shape ``(dim,)``.
        rows: their number.

    Returns:
        Mean and rows as :class:`Statistics` has them; the mean is 0 if there is no row at all.
    """
    if rank_and_size()[1] == 1:
        return total / rows, float(rows)
    both = sum_over_processes(torch.cat([total, total.new_full((1,), rows)]))
    count = both[-1].detach().clamp(min=1)
    return both[:-1] / count, count


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient)
