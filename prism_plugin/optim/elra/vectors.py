"""The vectors of ELRA: scalar products, steps and steps back, tensor by tensor or with multi-tensor kernels.

Every parameter keeps up to three tensors: ``point`` and ``gradient`` of the last accepted step, and the ``mean`` of the
accepted iterates. Whatever is summed is summed in float32 or wider. Gradients are read, never written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Block", "go_back", "inner_products", "move"]


@dataclass
class Block:
    """What takes part in a step of one parameter group, ``decay`` being its factor on the weights."""

    decay: float
    weights: list[Tensor]
    gradients: list[Tensor]
    states: list[dict[str, Tensor]]

    def stored(self, name: str) -> list[Tensor]:
        """One kind of kept tensor, of all parameters."""
        return [state[name] for state in self.states]

    def multi_tensor(self, foreach: bool | None) -> bool:
        """Whether multi-tensor kernels are used; on a CPU one tensor at a time stays in the cache."""
        if "gradient" not in self.states[0] and "point" in self.states[0]:
            return False  # low memory: recovered gradients of all tensors at once would cost what it saves
        return self.weights[0].is_cuda if foreach is None else foreach

    def last_gradient(self, index: int, last_alpha: float) -> Tensor:
        """Return a stored gradient, or recover it: x = decay * x_last - alpha * G_last (section 3.6)."""
        vectors = self.states[index]
        if "gradient" in vectors:
            return vectors["gradient"]
        moved = torch.sub(vectors["point"] * self.decay, self.weights[index])
        return moved.div_(last_alpha)


def inner_products(
    blocks: list[Block], scale: float, last_alpha: float | None, foreach: bool | None
) -> tuple[float, float]:
    """Multiply gradients, scaled, with themselves and with the last ones.

    Args:
        blocks: all that takes part.
        scale: factor on the gradients.
        last_alpha: by which the last step moved; None if there was none.
        foreach: whether multi-tensor kernels are used; None leaves it to the device.

    Returns:
        <G, G> and <G_last - G, G_last>. The second is taken of the difference of the vectors: as a difference of
        products, of which Eq. 4 makes 1 - <G, G_last> / <G_last, G_last>, it cancels in float32.
    """
    squares: list[Tensor] = []
    changes: list[Tensor] = []
    for block in blocks:
        if block.multi_tensor(foreach):
            gradients = [_wide(gradient) for gradient in block.gradients]
            squares += torch._foreach_pow(torch._foreach_norm(gradients), 2)
            if last_alpha is not None:
                lasts = [_wide(block.last_gradient(index, last_alpha)) for index in range(len(gradients))]
                products = torch._foreach_sub(lasts, gradients, alpha=scale)
                torch._foreach_mul_(products, lasts)
                changes += [product.sum() for product in products]
            continue
        for index, gradient in enumerate(block.gradients):
            wide = _wide(gradient).reshape(-1)
            squares.append(torch.dot(wide, wide))
            if last_alpha is not None:
                last = _wide(block.last_gradient(index, last_alpha)).reshape(-1)
                changes.append(torch.dot(torch.sub(last, wide, alpha=scale), last))
    return scale**2 * _total(squares), _total(changes) if changes else 0.0


def move(block: Block, alpha: float, scale: float, averaged: int, foreach: bool | None) -> None:
    """Keep point and gradient, and step: x = decay * x - alpha * scale * G.

    Args:
        block: what moves.
        alpha: learning rate.
        scale: factor on the gradients.
        averaged: number of iterates in the mean, this point included.
        foreach: whether multi-tensor kernels are used; None leaves it to the device.
    """
    if block.multi_tensor(foreach):
        _move_together(block, alpha, scale, averaged)
        return
    for weight, gradient, vectors in zip(block.weights, block.gradients, block.states, strict=True):
        if "mean" in vectors:
            vectors["mean"].lerp_(weight, 1 / averaged)
        if "point" in vectors:
            vectors["point"].copy_(weight)
        if block.decay != 1.0:
            weight.mul_(block.decay)
        weight.sub_(gradient, alpha=alpha * scale)
        if "gradient" in vectors:
            if scale == 1.0:
                vectors["gradient"].copy_(gradient)
            else:
                torch.mul(gradient, scale, out=vectors["gradient"])


def _move_together(block: Block, alpha: float, scale: float, averaged: int) -> None:
    if "mean" in block.states[0]:
        torch._foreach_lerp_(block.stored("mean"), block.weights, 1 / averaged)
    if "point" in block.states[0]:
        torch._foreach_copy_(block.stored("point"), block.weights)
    if block.decay != 1.0:
        torch._foreach_mul_(block.weights, block.decay)
    torch._foreach_sub_(block.weights, block.gradients, alpha=alpha * scale)
    if "gradient" in block.states[0]:
        torch._foreach_copy_(block.stored("gradient"), block.gradients)
        if scale != 1.0:
            torch._foreach_mul_(block.stored("gradient"), scale)


def go_back(block: Block, alpha: float, last_alpha: float) -> None:
    """Step from the last point once more, with its gradient: x = decay * x_last - alpha * G_last."""
    for index, weight in enumerate(block.weights):
        last = block.last_gradient(index, last_alpha)
        weight.copy_(block.states[index]["point"]).mul_(block.decay).sub_(last, alpha=alpha)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _total(values: list[Tensor]) -> float:
    """Add per-tensor results in float64, with one transfer where they are on one device and of one kind."""
    if len({(value.device, value.dtype) for value in values}) > 1:
        return float(sum(float(value) for value in values))
    return float(sum(torch.stack(values).tolist()))
