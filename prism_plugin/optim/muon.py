"""Muon for many matrices at once: those of one shape are orthogonalized together.

A network has dozens of matrices and torch's Muon launches some thirty kernels for each; on a GPU that takes longer than
the network itself. The update is torch's, to the rounding of its bfloat16 products.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon

__all__ = ["GroupedMuon"]


class GroupedMuon(Muon):
    """``torch.optim.Muon`` that works on all matrices of one shape at once; arguments and state are the same."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = []
            grads: list[Tensor] = []
            buffers: list[Tensor] = []
            self._init_group(group, parameters, grads, buffers)
            together: dict[torch.Size, list[int]] = defaultdict(list)
            for number, parameter in enumerate(parameters):
                together[parameter.shape].append(number)
            momentum, rate = group["momentum"], float(group["lr"])
            if parameters:
                torch._foreach_lerp_(buffers, grads, 1 - momentum)
                updates = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
                torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            for shape, numbers in together.items():
                stacked = torch.stack([updates[number] for number in numbers])
                steps = orthogonalized(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
                factor = rate * 0.2 * max(shape) ** 0.5  # "match_rms_adamw"
                torch._foreach_add_([parameters[n] for n in numbers], list(steps.to(grads[0].dtype)), alpha=-factor)
        return loss


def orthogonalized(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Move the singular values of matrices near 1 by Newton-Schulz steps in bfloat16, as torch's Muon does.

    Args:
        matrices: shape ``(matrices, rows, columns)``.
        coefficients: of the quintic polynomial.
        steps: number of steps.
        eps: smallest norm that is divided by.

    Returns:
        Of the same shape, bfloat16.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    found = (matrices.mT if tall else matrices).bfloat16()
    found = found / found.flatten(1).norm(dim=1).clamp(min=eps).view(-1, 1, 1)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if tall else found
