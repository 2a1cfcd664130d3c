"""Row-wise functions in tiles that stay in the processor's cache.

A tensor of all edges of a batch is larger than any cache, and the operating system hands its memory out page by page:
on a CPU that costs several times what is computed. So edges are worked on in tiles. The numbers are those of one step,
but for the order of a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prism_plugin.nn.autograd_mode import needs_gradient, plain_autograd

__all__ = ["in_tiles", "tiles"]

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
