"""ELRA as its specification reads, in float64 on one flat vector: no speed, no options for memory.

Source: the ELRA paper (ICLR 2025 submission), sections 3.1-3.7; docs/decisions.md says what was settled. The caller
gives the loss and the gradient at ``self.x``; the answer is what happened.
"""

from __future__ import annotations

import math

import numpy as np


class SlowELRA:
    """The algorithm line by line."""

    def __init__(
        self,
        x: np.ndarray,
        alpha: float = 1e-5,
        decay: float = 1.0,
        kappa: bool = False,
        growth: float | None = None,
        max_step: float | None = None,
        min_step: float | None = None,
    ) -> None:
        self.x = x.astype(np.float64)
        self.alpha, self.decay, self.kappa, self.growth = alpha, decay, kappa, growth
        self.max_step, self.min_step = max_step, min_step
        self.d, self.run = 855_000.0, 0
        self.f0: float | None = None
        self.threshold = math.nan
        self.cycle: list[float] = []
        self.scale = 1.0

    def step(self, f: float, gradient: np.ndarray) -> str:
        g = self.scale * gradient.astype(np.float64)
        g2 = float(g @ g)
        if self.f0 is None:
            self.f0, self.threshold = f, f + 0.1 * abs(f)
            if self.max_step is not None:
                self.alpha = min(self.alpha, self.max_step / math.sqrt(g2))
            return self.take(f, g, g2)
        if not (math.isfinite(f) and math.isfinite(g2)) or (f > self.threshold and self.run < 8):
            return self.soft_restart(f)
        self.run = 0
        self.d = self.d / 3.9
        cap = 1e6 / (1 + self.d) if self.growth is None else self.growth
        h = float((self.gp - g) @ self.gp) / self.gp2
        kappa = 1 + 0.15 / (1 + self.alpha**2) if self.kappa else 1.0
        self.alpha = self.alpha * (cap if h <= kappa / cap else kappa / h)
        self.alpha = min(max(self.alpha, 1e-8), 1e6)
        if self.max_step is not None:
            self.alpha = min(self.alpha, self.max_step / math.sqrt(g2))
        if self.min_step is not None:
            self.alpha = max(self.alpha, self.min_step / math.sqrt(g2))
        return self.take(f, g, g2)

    def soft_restart(self, f: float) -> str:
        if self.d >= 62500:
            self.d = 855_000.0
        elif self.d > 1:
            self.d = 16 * self.d
        else:
            self.d = self.d + 16
        denominator = f - self.fp + self.alpha * self.gp2
        if math.isfinite(denominator) and denominator > 0:
            factor = min(max(0.5 * self.alpha * self.gp2 / denominator, 0.01), 0.5)
        else:
            factor = 0.01
        self.alpha = max(self.alpha * factor, 1e-8)
        self.x = self.decay * self.xp - self.alpha * self.gp
        self.run += 1
        return "retraced"

    def take(self, f: float, g: np.ndarray, g2: float) -> str:
        self.xp, self.gp, self.gp2, self.fp = self.x, g, g2, f
        self.x = self.decay * self.x - self.alpha * g
        self.cycle.append(f)
        return "accepted"

    def end_cycle(self) -> tuple[float, float]:
        mean, sigma = float(np.mean(self.cycle)), float(np.std(self.cycle))
        self.threshold = mean + 5 * sigma
        self.cycle = []
        return mean, sigma

    def scale_gradients(self, scale: float) -> None:
        self.gp = self.gp * (scale / self.scale)
        self.gp2 = self.gp2 * (scale / self.scale) ** 2
        self.scale = scale
