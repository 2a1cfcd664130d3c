"""Parameters <-> one vector that holds all their numbers; the random state that several evaluations share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from prism_plugin.errors import PrismError

__all__ = ["assign", "flatten", "flatten_gradients", "hold_random_state", "parts"]


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Join tensors into one new vector."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def flatten_gradients(parameters: Iterable[Tensor]) -> Tensor:
    """Join the gradients of parameters into one new vector; a missing one counts as zero.

    Raises:
        ValueError: if one is sparse.
    """
    parameters = list(parameters)
    if any(p.grad is not None and p.grad.is_sparse for p in parameters):
        raise PrismError("sparse gradients have no common vector: use dense ones (Embedding(sparse=False))")
    return flatten(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)


def parts(parameters: Iterable[Tensor], vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter with its part of a vector, a view in the parameter's shape."""
    begin = 0
    for parameter in parameters:
        yield parameter, vector[begin : begin + parameter.numel()].view_as(parameter)
        begin += parameter.numel()


@torch.no_grad()
def assign(parameters: Iterable[Tensor], vector: Tensor) -> None:
    """Copy the parts of a vector into parameters."""
    for parameter, part in parts(parameters, vector):
        parameter.copy_(part)


def hold_random_state(device: torch.device) -> Callable[[], None]:
    """Remember torch's random state, on the CPU and a CUDA device; give a function that goes back to it."""
    state = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        torch.set_rng_state(state)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)

    return restore
