"""What autograd is about to do: gradients of weights, of inputs, or gradients of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["as_weight", "differentiated_twice", "gradients_of_inputs", "needs_gradient", "plain_autograd"]

# Whether gradients of the inputs are being taken that are to be differentiated again; None: no such gradients.
_TWICE: ContextVar[bool | None] = ContextVar("gradients are differentiated again", default=None)


@contextmanager
def gradients_of_inputs(twice: bool) -> Iterator[None]:
    """Announce that a backward pass with respect to the inputs will follow, as for forces.

    If it is to be differentiated again (``twice``), autograd needs the plain computation from the start. If not, the
    weights on edges are constants: their gradients would be a third of the work.
    """
    token = _TWICE.set(twice)
    try:
        yield
    finally:
        _TWICE.reset(token)


def as_weight(weight: Tensor) -> Tensor:
    """Return the weight; as a constant where only gradients of the inputs are wanted."""
    return weight.detach() if _TWICE.get() is False else weight


def plain_autograd() -> bool:
    """Whether autograd, torch.compile, torch.func or forward-mode derivatives must see the plain computation."""
    return _TWICE.get() is True or _transformed()


def differentiated_twice() -> bool:
    """Whether gradients of the inputs are being taken that are to be differentiated again, and nothing else is on."""
    return _TWICE.get() is True and not _transformed()


def _transformed() -> bool:
    functional = torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0
    return functional or torch.compiler.is_compiling()


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd is on and follows any of the tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
