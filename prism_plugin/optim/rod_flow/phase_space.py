"""Nine optimizers as one map of phase space (w, m): three kinds of momentum times three of scaling.

Source: Regis and Chewi, "A Rod Flow Model for Adam at the Edge of Stability" (arXiv 2605.06821), in the EMA convention,
where m is a mean of gradients. Each map takes weights, momentum, second
moment and gradient as vectors and returns their changes.
Nesterov's w is the point where the gradient is taken, as in torch (decisions #32). No state, no models here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["METHODS", "PhaseMap"]

METHODS: dict[str, dict[str, Any]] = {
    "gd": {},
    "heavy-ball": {"momentum": "heavy"},
    "nesterov": {"momentum": "nesterov"},
    "scalar-rmsprop": {"scaling": "scalar"},
    "rmsprop": {"scaling": "coordinate"},
    "scalar-adam": {"momentum": "heavy", "scaling": "scalar", "corrected": True},
    "adam": {"momentum": "heavy", "scaling": "coordinate", "corrected": True},
    "scalar-nadam": {"momentum": "nesterov", "scaling": "scalar", "corrected": True},
    "nadam": {"momentum": "nesterov", "scaling": "coordinate", "corrected": True},
}


@dataclass(frozen=True)
class PhaseMap:
    """z' = z + G(z): w' = w - lr (u / P + decay w), m' = m + (1 - beta1)(g - m), with u = A m + B g.

    Attributes:
        lr: the learning rate where m is a mean of gradients.
        momentum: ``"none"``, ``"heavy"`` or ``"nesterov"``.
        scaling: ``"none"``: P = 1; else P = sqrt(nu / c2) + eps, where nu follows |g|^2 (``"scalar"``, one number) or
            the square of every coordinate of g (``"coordinate"``).
        beta1: of the momentum. beta2: of nu. eps: of P.
        corrected: whether m and nu are corrected for their start at zero, as in Adam.
        mu_decay: of torch's NAdam, whose momentum rises with the steps; None is a constant momentum.
        penalty: coupled weight decay, added to the gradient. decay: decoupled weight decay, as in AdamW.
    """

    lr: float
    momentum: str = "none"
    scaling: str = "none"
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    corrected: bool = False
    mu_decay: float | None = None
    penalty: float = 0.0
    decay: float = 0.0

    @property
    def has_momentum(self) -> bool:
        """Whether there is an m."""
        return self.momentum != "none"

    def weights(self, step: float) -> tuple[float, float]:
        """A and B of u = A m + B g in a step; steps count from 0, what lies between them is interpolated."""
        if not self.has_momentum:
            return 0.0, 1.0
        b, nesterov = self.beta1, self.momentum == "nesterov"
        if self.mu_decay is not None:
            mu, following, product = _torch_mu(b, self.mu_decay, step)
            of_mean = following / (1 - product * following)
            of_gradient = (1 - mu) / (1 - product)
        else:
            c1, c1_next = (1 - b ** (step + 1), 1 - b ** (step + 2)) if self.corrected else (1.0, 1.0)
            of_mean = b / c1_next if nesterov else 1 / c1
            of_gradient = (1 - b) / c1 if nesterov else 0.0
        return of_mean * b, of_mean * (1 - b) + of_gradient  # of the new mean, b m + (1 - b) g

    def mu_product(self, step: float) -> float:
        """Product of the momenta of torch's NAdam up to a step; before the first, -1, it is 1."""
        assert self.mu_decay is not None
        return _torch_mu(self.beta1, self.mu_decay, step)[2]

    def threshold(self, step: float = math.inf) -> float:
        """Eigenvalue of P^-1/2 H P^-1/2 above which the map is unstable; at infinity the corrections are over.

        There the map has the eigenvalue -1: (2 / lr - decay)(1 + beta1) / (B (1 + beta1) - A (1 - beta1)).
        """
        if self.lr == 0:
            return math.inf
        b = self.beta1
        of_mean, of_gradient = self.weights(step)
        return (2 / self.lr - self.decay) * (1 + b) / (of_gradient * (1 + b) - of_mean * (1 - b))

    def penalized(self, gradient: Tensor, w: Tensor) -> Tensor:
        """The gradient of the loss with its L2 penalty."""
        return gradient.add(w, alpha=self.penalty) if self.penalty else gradient

    def start(self, w: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Momentum and second moment before the first step: zero, None where the map has none."""
        shapes = {"none": None, "scalar": w.new_zeros(()), "coordinate": torch.zeros_like(w)}
        return torch.zeros_like(w) if self.has_momentum else None, shapes[self.scaling]

    def squares(self, *gradients: Tensor) -> Tensor:
        """What nu follows: the sum of the gradients' squares, by coordinate or over all of them."""
        if self.scaling == "scalar":
            return torch.stack([torch.dot(gradient, gradient) for gradient in gradients]).sum()
        total = gradients[0].square()
        for gradient in gradients[1:]:
            total.addcmul_(gradient, gradient)
        return total

    def denominator(self, nu: Tensor, step: float) -> Tensor:
        """P, shape of ``nu``."""
        correction = 1 - self.beta2 ** (step + 1) if self.corrected else 1.0
        return (nu / correction).sqrt_().add_(self.eps)

    def change(
        self, w: Tensor, m: Tensor | None, gradient: Tensor, denominator: Tensor | None, step: float
    ) -> tuple[Tensor, Tensor | None]:
        """G_w and G_m. They are linear in (w, m, gradient), so that a rod goes through them as its center does."""
        of_mean, of_gradient = self.weights(step)
        moved = gradient * (-self.lr * of_gradient)
        if m is not None:
            moved.add_(m, alpha=-self.lr * of_mean)
        if denominator is not None:
            moved.div_(denominator)
        if self.decay:
            moved.sub_(w, alpha=self.lr * self.decay)
        return moved, None if m is None else (gradient - m).mul_(1 - self.beta1)

    def step(
        self, w: Tensor, m: Tensor | None, nu: Tensor | None, gradient: Tensor, step: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Apply the map once: new w, m and nu from the old ones and the gradient of the loss at w."""
        gradient = self.penalized(gradient, w)
        denominator = None
        if nu is not None:
            nu = torch.lerp(nu, self.squares(gradient), 1 - self.beta2)
            denominator = self.denominator(nu, step)
        moved, turned = self.change(w, m, gradient, denominator, step)
        return w + moved, None if m is None or turned is None else m + turned, nu


UNDERFLOW = -745.0  # the logarithm of the smallest number
_logs: dict[tuple[float, float], list[float]] = {}


def _torch_mu(beta1: float, mu_decay: float, step: float) -> tuple[float, float, float]:
    """Return mu of a step and of the next in torch's NAdam, and the product up to this one; geometric between steps."""

    def mu(number: float) -> float:
        return beta1 * (1 - 0.5 * 0.96 ** (number * mu_decay))

    if beta1 == 0:
        return 0.0, 0.0, 0.0
    if math.isinf(step):
        last = beta1 if mu_decay > 0 else mu(0)
        return last, last, 0.0
    logs = _logs.setdefault((beta1, mu_decay), [0.0])
    whole = math.floor(step + 1)
    while len(logs) <= whole + 1 and logs[-1] > UNDERFLOW:
        logs.append(logs[-1] + math.log(mu(len(logs))))
    if len(logs) <= whole + 1:
        return mu(step + 1), mu(step + 2), 0.0
    part = step + 1 - whole
    return mu(step + 1), mu(step + 2), math.exp(logs[whole] * (1 - part) + logs[whole + 1] * part)
