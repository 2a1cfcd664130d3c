"""Products and row-wise functions in tiles that stay in the processor's cache.

A tensor of all edges of a batch is larger than any cache, and the operating system hands its memory out page by page:
on a CPU that costs several times what is computed. So edges are worked on in tiles. In come tensors with one row per
edge, out go such tensors or sums over them; the numbers are those of one step, but for the order of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

__all__ = [
    "as_weight",
    "gradients_of_inputs",
    "in_tiles",
    "linear",
    "needs_gradient",
    "plain_autograd",
    "product",
    "tiles",
]

# Numbers in the widest tensor of a tile: 2,048 rows of 2 x 256 on a CPU, so that a handful of them fits into a cache.
# A GPU is to be kept busy: there tiles only bound the memory.
_NUMBERS = {"cpu": 2**20}
_NUMBERS_ELSEWHERE = 2**28
_FEWEST_ROWS = 256


def tiles(rows: int, width: int, device: torch.device) -> list[slice]:
    """Cut rows of a width into tiles; there is at least one, possibly empty.

    Example:
        >>> tiles(5000, 512, torch.device("cpu"))
        [slice(0, 2048, None), slice(2048, 4096, None), slice(4096, 5000, None)]
    """
    size = max(_FEWEST_ROWS, _NUMBERS.get(device.type, _NUMBERS_ELSEWHERE) // width)
    return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]


# Whether gradients of the inputs are being taken that are to be differentiated again; None: no such gradients.
_TWICE: ContextVar[bool | None] = ContextVar("gradients are differentiated again", default=None)


@contextmanager
def gradients_of_inputs(twice: bool) -> Iterator[None]:
    """Say that a backward pass with respect to the inputs will follow, as for forces.

    If it is to be differentiated again (``twice``), autograd needs the plain computation from the start. If not, the
    weights on edges are constants: their gradients would be a third of the work.
    """
    token = _TWICE.set(twice)
    try:
        yield
    finally:
        _TWICE.reset(token)


def as_weight(weight: Tensor) -> Tensor:
    """Give the weight; as a constant where only gradients of the inputs are wanted."""
    return weight.detach() if _TWICE.get() is False else weight


def plain_autograd() -> bool:
    """Whether autograd, torch.compile, torch.func or forward-mode derivatives must see the plain computation."""
    transformed = torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0
    return _TWICE.get() is True or torch.compiler.is_compiling() or transformed


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Tell whether autograd is on and follows any of the tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    """Compute ``rows @ weight.T + bias + plus`` without autograd.

    In float32 on a CPU by oneDNN, which torch brings, and not by MKL, torch's own choice: MKL does not use the whole
    width of processors that are not Intel's (measured in docs/performance.md). ``torch.backends.mkldnn.flags(
    enabled=False)`` switches that off.

    Args:
        rows: shape ``(rows, inputs)``.
        weight: shape ``(outputs, inputs)``.
        bias: shape ``(outputs,)``.
        plus: shape ``(rows, outputs)``.
    """
    same = rows.dtype == weight.dtype == torch.float32 and rows.shape[1] == weight.shape[1]
    large = rows.numel() * len(weight) >= _ONEDNN_PAYS
    if large and same and rows.is_cpu and _HAS_ONEDNN and torch._C._get_mkldnn_enabled():
        # oneDNN has no fast way through a weight that is a part of a larger one.
        weight = weight if weight.is_contiguous() or weight.T.is_contiguous() else weight.contiguous()
        bias = None if bias is None else bias.contiguous()  # whose strides it does not read
        if plus is None:
            return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(rows, plus, weight, bias, "add")
    answer = functional.linear(rows, weight, bias)
    return answer if plus is None else answer.add_(plus)


# Multiplications from which on oneDNN is faster: for every new number of rows it makes a program, in 0.3 milliseconds.
_ONEDNN_PAYS = 2**24
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Linear(torch.autograd.Function):
    """:func:`product`, differentiable as often as one likes: its derivatives are such products again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        return (
            linear(gradient, weight.T) if needed[0] else None,
            linear(rows.T, gradient.T).T if needed[1] else None,
            gradient.sum(dim=0) if needed[2] else None,
        )


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``torch.nn.functional.linear`` of a matrix, by :func:`product`."""
    if (
        rows.numel() * len(weight) < _ONEDNN_PAYS
        or plain_autograd()
        or rows.is_meta
        or torch.is_autocast_enabled(rows.device.type)
    ):
        return functional.linear(rows, weight, bias)
    if needs_gradient(rows, weight, bias):
        return _Linear.apply(rows, weight, bias)
    return product(rows, weight, bias)


class _InTiles(torch.autograd.Function):
    """A row-wise function, a tile at a time, recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], count: int, parts: list[slice], *tensors: Tensor) -> Tensor:
        ctx.function, ctx.count, ctx.parts = function, count, parts
        device = tensors[0].device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        ctx.save_for_backward(*tensors)
        # A weight that is cast in here must not be what a later computation finds in autocast's memory.
        with torch.autocast(**ctx.autocast, cache_enabled=False):
            return _forward_in_tiles(function, count, parts, tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, count, needed = ctx.saved_tensors, ctx.count, ctx.needs_input_grad[3:]
        twice = torch.is_grad_enabled()  # asked for a gradient that is to be differentiated again
        answers: list[Tensor | None] = [None] * len(tensors)
        for part in [slice(None)] if twice else ctx.parts:
            given = [tensor[part] if number < count else tensor for number, tensor in enumerate(tensors)]
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                if twice:
                    given = [tensor.view_as(tensor) for tensor in given]
                else:
                    given = [tensor.detach().requires_grad_(need) for tensor, need in zip(given, needed, strict=True)]
                answer = ctx.function(*given)
            wanted = [number for number, need in enumerate(needed) if need]
            grads = torch.autograd.grad(
                answer, [given[number] for number in wanted], gradient[part].to(answer.dtype), create_graph=twice
            )
            for number, grad in zip(wanted, grads, strict=True):
                before = answers[number]
                if number < count and not twice:
                    if before is None:
                        before = answers[number] = torch.empty_like(tensors[number])
                    before[part] = grad
                else:
                    answers[number] = grad if before is None else before + grad
        return (None, None, None, *answers)


def _forward_in_tiles(
    function: Callable[..., Tensor], count: int, parts: list[slice], tensors: tuple[Tensor, ...]
) -> Tensor:
    answer = None
    for part in parts:
        of_part = function(*[tensor[part] if number < count else tensor for number, tensor in enumerate(tensors)])
        if answer is None:
            answer = of_part.new_empty(len(tensors[0]), *of_part.shape[1:])
        answer[part] = of_part
    assert answer is not None
    return answer


def in_tiles(
    function: Callable[..., Tensor], rows: tuple[Tensor, ...], weights: tuple[Tensor, ...], width: int
) -> Tensor:
    """Apply a function of rows a tile at a time, and recompute it in the backward pass in place of remembering.

    Args:
        function: takes ``*rows, *weights``; each row of its answer depends on that row alone.
        rows: tensors with equally many rows.
        weights: parameters that all rows share; everything differentiable that the function reads must be among these.
        width: of the widest tensor in between.

    Returns:
        The function's answer. It can be differentiated again, without tiles.
    """
    if len(rows[0]) <= _FEWEST_ROWS or plain_autograd():
        return function(*rows, *weights)
    parts = tiles(len(rows[0]), width, rows[0].device)
    if len(parts) == 1:
        return function(*rows, *weights)
    if needs_gradient(*rows, *weights):
        return _InTiles.apply(function, len(rows), parts, *rows, *weights)
    return _forward_in_tiles(function, len(rows), parts, (*rows, *weights))
