"""Matrix products of many rows: by oneDNN in float32 on a CPU, differentiable as often as needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prism_plugin.nn.autograd_mode import needs_gradient, plain_autograd

__all__ = ["linear", "product"]


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
            _over_rows(gradient, rows) if needed[1] else None,
            gradient.sum(dim=0) if needed[2] else None,
        )


class _OverRows(torch.autograd.Function):
    """``left.T @ right``, summed over many rows; by torch's own product, as oneDNN would first copy what is transposed.

    Differentiable as often as one likes: its derivatives are products of many rows.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return left.T @ right

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        left, right = ctx.saved_tensors
        needed = ctx.needs_input_grad
        return linear(right, gradient) if needed[0] else None, linear(left, gradient.T) if needed[1] else None


def _over_rows(left: Tensor, right: Tensor) -> Tensor:
    return _OverRows.apply(left, right) if needs_gradient(left, right) else left.T @ right


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
