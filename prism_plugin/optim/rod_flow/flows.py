"""Rod flow and stable flow in phase space: a center that drifts and a rod that two consecutive iterates span.

Source: Regis and Chewi, arXiv 2602.01480 and 2605.06821. The signed form is our reading (decisions #33): iterates
z_t = c_t + (-1)^t o_t, whose even and odd parts obey dc/dt = (G+ + G-)/2 and do/dt = -2 o - (G+ - G-)/2, where + and -
mean at c + o and c - o. The outer form is the papers': a covariance Sigma of rank one in place of the sign. A rod of
length 0 is the stable flow. A step takes a map, a state and a function that computes gradients,
and returns the next state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prism_plugin.errors import PrismError
from prism_plugin.optim.rod_flow.phase_space import PhaseMap

__all__ = ["FORMS", "Ends", "Gradient", "Point", "Rod", "add_rounding", "advance", "open_rod"]

Gradient = Callable[[Tensor], tuple[float, Tensor]]
FORMS = ("signed", "outer")
# A closed rod is as long as rounding makes it, one or two units of u |w| (decisions #35).
OPEN = 1e2


@dataclass(frozen=True)
class Point:
    """A point of phase space: weights, momentum (None without one) and second moment (None without one)."""

    w: Tensor
    m: Tensor | None
    nu: Tensor | None


@dataclass(frozen=True)
class Rod:
    """Center, half of the rod from it to the plus end, and the time in optimizer steps.

    Attributes:
        center: the middle of the rod; weights of shape ``(numbers,)``.
        w, m: the half rod in weights and momentum; ``w`` is None in stable flow.
        time: optimizer steps since the plain optimizer's start. The plus end is the iterate in the first step of the
            flow, the minus end in the second, and so on.
    """

    center: Point
    w: Tensor | None
    m: Tensor | None
    time: float


@dataclass(frozen=True)
class Ends:
    """What the two gradients of one sub-step tell.

    Attributes:
        plus, minus: losses at the ends.
        center: loss at the center, (plus + minus)/2 - o.gd/2: exact for a loss that is cubic along the rod.
        length: |o|, half the distance of the ends in weights.
        sharpness: o.gd / (o.P o), the Rayleigh quotient of P^-1/2 H P^-1/2 along the rod; NaN where there is no rod.
        threshold: of the optimizer at this time.
        open: whether the rod is longer than rounding makes it; otherwise ``sharpness`` means nothing.
    """

    plus: float
    minus: float
    center: float
    length: float
    sharpness: float
    threshold: float
    open: bool

    def summary(self) -> dict[str, float | bool]:
        """What is reported to users, ``ratio`` being sharpness over threshold."""
        return {
            "loss_center": self.center,
            "loss_plus": self.plus,
            "loss_minus": self.minus,
            "rod_length": self.length,
            "rod_sharpness": self.sharpness,
            "threshold": self.threshold,
            "ratio": self.sharpness / self.threshold,
            "open": self.open,
        }


def open_rod(points: Sequence[Point], step: int, form: str = "signed") -> Rod:
    """Make a rod of three consecutive points of a plain optimizer.

    Args:
        points: z_{K-1}, z_K, z_{K+1}.
        step: K.
        form: ``"signed"`` starts at time K; ``"outer"`` in the middle of the last two points, at K + 1/2.
    """
    if form == "outer":
        parts = (0.0, 0.5, 0.5), (0.0, 0.5, -0.5)
        time = step + 0.5
    else:
        parts = (0.25, 0.5, 0.25), (-0.25, 0.5, -0.25)
        time = float(step)
    middle = [_combined(parts[0], [getattr(p, name) for p in points]) for name in ("w", "m", "nu")]
    half = [_combined(parts[1], [getattr(p, name) for p in points]) for name in ("w", "m")]
    assert middle[0] is not None
    return Rod(Point(middle[0], middle[1], middle[2]), half[0], half[1], time)


def _combined(factors: Sequence[float], tensors: Sequence[Tensor | None]) -> Tensor | None:
    total = None
    for factor, tensor in zip(factors, tensors, strict=True):
        if tensor is not None:
            total = factor * tensor if total is None else total + factor * tensor
    return total


def advance(phase: PhaseMap, rod: Rod, h: float, gradient: Gradient, form: str = "signed") -> tuple[Rod, Ends]:
    """One explicit Euler step of length h; two gradients, one in stable flow.

    Under Euler a step index t stands for the middle of [t, t + 1]: corrections are taken at time - 1/2 + h/2, and P at
    the second moment half a unit after the middle of the step.

    Args:
        phase: the optimizer.
        rod: where to start.
        h: length; 1/2 in the specification. h = 1 is no flow but two runs of the optimizer, one from each end.
        gradient: loss and gradient (without the map's penalty) at given weights.
        form: ``"signed"`` or ``"outer"``.
    """
    center, step = rod.center, rod.time - 0.5 + h / 2
    if rod.w is None:
        plus, even = gradient(center.w)
        minus, odd = plus, None
        even = phase.penalized(even, center.w)
    else:
        point = center.w + rod.w
        plus, g_plus = gradient(point)
        g_plus = phase.penalized(g_plus, point)
        point = torch.sub(center.w, rod.w, out=point)
        minus, g_minus = gradient(point)
        g_minus = phase.penalized(g_minus, point)
        odd = torch.sub(g_plus, g_minus).mul_(0.5)
        even = g_plus.add_(g_minus).mul_(0.5)
    denominator, nu = None, center.nu
    if nu is not None:
        rate = (phase.squares(even) if odd is None else phase.squares(even, odd)).sub_(nu).mul_(1 - phase.beta2)
        denominator = phase.denominator(torch.add(nu, rate, alpha=0.5 + h / 2), step)
        nu = torch.add(nu, rate, alpha=h)
    ends = _read(phase, rod, odd, denominator, plus, minus, step)
    drift = phase.change(center.w, center.m, even, denominator, step)
    w, m = torch.add(center.w, drift[0], alpha=h), _moved(center.m, drift[1], h)
    half: tuple[Tensor | None, Tensor | None] = (None, None)
    if rod.w is not None and odd is not None:
        turn = phase.change(rod.w, rod.m, odd, denominator, step)  # (G+ - G-)/2
        half = _signed(rod, turn, h) if form == "signed" else _outer(rod, drift, turn, h)
    return Rod(Point(w, m, nu), *half, rod.time + h), ends


def _moved(start: Tensor | None, change: Tensor | None, h: float) -> Tensor | None:
    return None if start is None or change is None else torch.add(start, change, alpha=h)


def _signed(rod: Rod, turn: tuple[Tensor, Tensor | None], h: float) -> tuple[Tensor | None, Tensor | None]:
    """Euler step of do/dt = -2 o - (G+ - G-)/2."""
    kept = 1 - 2 * h
    w = None if rod.w is None else torch.mul(rod.w, kept).sub_(turn[0], alpha=h)
    m = None if rod.m is None or turn[1] is None else torch.mul(rod.m, kept).sub_(turn[1], alpha=h)
    return w, m


def _outer(
    rod: Rod, drift: tuple[Tensor, Tensor | None], turn: tuple[Tensor, Tensor | None], h: float
) -> tuple[Tensor | None, Tensor | None]:
    """Top eigenvector of C C^T, C = [sqrt(1 - 2h) delta, sqrt(h)/2 G+, sqrt(h)/2 G-], by its 3 x 3 Gram matrix.

    The sign, which Sigma does not have, is the one nearest to the last rod's.
    """
    if h > 0.5:
        raise PrismError(f"the outer form needs Euler steps of at most 1/2, got {h:g}")
    columns = []
    for sign in (0, 1, -1):
        factor = math.sqrt(1 - 2 * h) if sign == 0 else math.sqrt(h) / 2
        parts = (rod.w, rod.m) if sign == 0 else (drift[0] + sign * turn[0], _moved(drift[1], turn[1], sign))
        columns.append([None if part is None else factor * part for part in parts])
    gram = torch.stack([torch.stack([_product(a, b) for b in columns]) for a in columns])
    if not bool(torch.isfinite(gram).all()):  # it has diverged
        return torch.full_like(drift[0], math.nan), None if rod.m is None else torch.full_like(rod.m, math.nan)
    top = torch.linalg.eigh(gram.double())[1][:, -1].to(gram)
    w, m = (_combined(top.tolist(), [column[part] for column in columns]) for part in (0, 1))
    assert w is not None
    backwards = _product((w, m), (rod.w, rod.m)) < 0
    return (-w, None if m is None else -m) if backwards else (w, m)


def _product(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([torch.dot(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]).sum()


def _read(
    phase: PhaseMap, rod: Rod, odd: Tensor | None, denominator: Tensor | None, plus: float, minus: float, step: float
) -> Ends:
    if rod.w is None or odd is None:
        return Ends(plus, minus, plus, 0.0, math.nan, phase.threshold(step), False)
    along = float(torch.dot(rod.w, odd))
    scaled = float(torch.dot(rod.w, rod.w if denominator is None else rod.w * denominator))
    length, limit = float(rod.w.norm()), OPEN * rounding(rod.w) * float(rod.center.w.norm())
    penalty = 0.5 * phase.penalty * length**2  # the losses are without it
    return Ends(
        plus,
        minus,
        (plus + minus) / 2 - along / 2 + penalty,
        length,
        along / scaled if scaled > 0 else math.nan,
        phase.threshold(step),
        length > limit,
    )


def rounding(tensor: Tensor) -> float:
    """Half of the distance of 1 to the next number of a tensor's kind: 2^-53 in float64, 2^-24 in float32."""
    return torch.finfo(tensor.dtype).eps / 2


def add_rounding(rod: Rod, seed: int) -> Rod:
    """The rounding floor of one unit of time: o_w += u |w| N(0, 1). Without it a closed rod never opens.

    The numbers depend on the seed and the time alone, so that a training that is resumed sees the same.
    """
    assert rod.w is not None
    generator = torch.Generator().manual_seed((seed * 1_000_003 + round(2 * rod.time)) % 2**63)
    noise = torch.randn(rod.w.shape, generator=generator, dtype=rod.w.dtype).to(rod.w.device)
    return replace(rod, w=noise.mul_(rod.center.w).mul_(rounding(rod.w)).add_(rod.w))
