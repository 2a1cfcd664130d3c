"""SiLU for training on forces: its second derivative in a few steps, where torch's own takes two dozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prism_plugin.nn.autograd_mode import differentiated_twice

__all__ = ["silu"]

_NUMBERS = 2**15  # of a tile on a CPU, whose steps in between stay in the fastest caches


def silu(rows: Tensor) -> Tensor:
    """Compute ``rows * sigmoid(rows)``; shape ``(rows, width)``, differentiable as often as one likes."""
    if rows.requires_grad and differentiated_twice():
        return _SiLU.apply(rows)
    return functional.silu(rows)


class _SiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return functional.silu(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Gradient.apply(gradient, *ctx.saved_tensors)


class _Gradient(torch.autograd.Function):
    """The gradient times SiLU'."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(gradient, rows)
        return torch.ops.aten.silu_backward(gradient, rows)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        gradient, rows = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _Gradient.apply(cotangent, rows), _second(rows, cotangent * gradient)
        answer = torch.empty_like(rows)
        size = max(1, _NUMBERS // rows.shape[1]) if rows.is_cpu else max(1, len(rows))
        for one, given, before, after in zip(
            *(tensor.split(size) for tensor in (rows, cotangent, gradient, answer)), strict=True
        ):
            after.copy_(_second(one, given * before))
        return torch.ops.aten.silu_backward(cotangent, rows), answer


def _second(rows: Tensor, factor: Tensor) -> Tensor:
    """Compute SiLU'' times a factor: s (1 - s) (2 + x (1 - 2 s)), with s the sigmoid of x."""
    sigmoid = torch.sigmoid(rows)
    rest = torch.addcmul(rows.new_full((), 2), rows, torch.rsub(sigmoid, 1, alpha=2))
    return torch.ops.aten.sigmoid_backward(rest * factor, sigmoid)
