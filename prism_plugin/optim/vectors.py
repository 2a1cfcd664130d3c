"""Parameters <-> one vector that holds all their numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["assign", "flatten", "flatten_gradients"]


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Join tensors into one new vector."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def flatten_gradients(parameters: Iterable[Tensor]) -> Tensor:
    """Join the gradients of parameters into one new vector; a missing one counts as zero."""
    return flatten(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)


@torch.no_grad()
def assign(parameters: Iterable[Tensor], vector: Tensor) -> None:
    """Copy the parts of a vector into parameters."""
    begin = 0
    for parameter in parameters:
        parameter.copy_(vector[begin : begin + parameter.numel()].view_as(parameter))
        begin += parameter.numel()
