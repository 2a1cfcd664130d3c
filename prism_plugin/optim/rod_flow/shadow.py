"""RodShadow: rod flow and stable flow beside a real run, and how far each of them is from it.

Takes an optimizer and a function that computes the loss; the optimizer makes its own steps, and the two flows,
started from three of its iterates, follow on their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from prism_plugin.errors import PrismError
from prism_plugin.optim.rod_flow.conventions import parameters_of, phase_map, read_moments
from prism_plugin.optim.rod_flow.flows import FORMS, Point, Rod, add_rounding, advance, open_rod
from prism_plugin.optim.rod_flow.optimizer import SAME
from prism_plugin.optim.rod_flow.phase_space import PhaseMap
from prism_plugin.optim.rod_flow.sharpness import sharpness
from prism_plugin.optim.vectors import assign, flatten, hold_random_state, parts

__all__ = ["RodShadow"]

DIVERGED = 1e6  # times the first loss


class RodShadow:
    """Run an optimizer with both flows beside it, on the full batch.

    Args:
        optimizer: a fresh or running one: SGD (momentum, Nesterov), RMSprop, Adam, AdamW or NAdam of torch, or
            :class:`~prism_plugin.optim.Discrete`.
        loss: computes the loss of the present parameters, as a tensor; always of the same data. Its random numbers
            (dropout) are those of the first evaluation in a step; BatchNorm's running statistics move in each.
        warmup: steps before the flows start.
        substeps: Euler steps per optimizer step, of both flows.
        form: of the rod, ``"signed"`` or ``"outer"``.
        floor: rounding noise on the rod.
        sharpness_every: optimizer steps between two computations of the sharpness; 0 is never.
        seed: of the noise.

    Parameters that the loss does not reach count as having the gradient 0, so that decoupled weight decay moves them.

    Raises:
        ValueError: if an argument is out of range, the optimizer is of a kind or has an option without a rod flow, a
            parameter is frozen, or the loss is not the same twice.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([0.5, 1.0], dtype=torch.float64))
        >>> optimizer = torch.optim.SGD([x], lr=0.1)
        >>> shadow = RodShadow(optimizer, lambda: (11 + x[1] / 2) * x[0] ** 2 - x[0] ** 4 / 4 + x[1] ** 2 / 20)
        >>> rows = [shadow.step() for _ in range(100)]
        >>> rows[-1]["distance_rod"] < rows[-1]["distance_stable"] / 5
        True
    """

    def __init__(
        self,
        optimizer: Optimizer,
        loss: Callable[[], Tensor],
        warmup: int = 10,
        substeps: int = 2,
        form: str = "signed",
        floor: bool = True,
        sharpness_every: int = 0,
        seed: int = 0,
    ) -> None:
        if form not in FORMS:
            raise PrismError(f"unknown form {form!r}; choose one of: {', '.join(FORMS)}")
        bounds = {
            "warmup": (warmup, 1),
            "substeps": (substeps, 2),
            "sharpness_every": (sharpness_every, 0),
            "seed": (seed, 0),
        }
        for name, (value, low) in bounds.items():
            if not isinstance(value, int) or value < low:
                raise PrismError(f"{name} must be a whole number of at least {low}, got {value!r}")
        if not callable(loss):
            raise PrismError(f"loss must be a function that computes the loss, got {type(loss).__name__}")
        phase_map(optimizer)
        self.parameters = parameters_of(optimizer)
        if not all(parameter.requires_grad for parameter in self.parameters):
            raise PrismError("a parameter of the optimizer is frozen: leave it out, its gradient is not known")
        self.optimizer, self.loss = optimizer, loss
        self.substeps, self.form, self.floor, self.seed = substeps, form, floor, seed
        self.sharpness_every = sharpness_every
        self.points = [self._point()]
        self.steps = read_moments(optimizer).steps
        self.last_warmup = self.steps + warmup
        self.rod: Rod | None = None
        self.stable: Rod | None = None
        self._eigenvectors: dict[str, np.ndarray] = {}
        self._restore_random_state = hold_random_state(self.parameters[0].device)
        (first, _), (again, _) = self._gradient(self.points[0].w), self._gradient(self.points[0].w)
        self._first_loss = abs(first)
        if abs(first - again) > SAME * abs(first):
            raise PrismError(f"the loss was {first} and then {again} at the same weights: it must be of the same data")

    def step(self) -> dict[str, Any]:
        """One step of the optimizer, t to t + 1, and of the flows.

        Returns:
            ``step`` (t), ``loss`` of the iterate w_t, ``threshold``. From the end of the warm-up on also
            ``distance_rod`` and ``distance_stable`` (of the flows' middles from the iterates', (w_t + w_{t+1})/2);
            of the rod ``loss_center``, ``loss_plus``, ``loss_minus``, ``rod_length``, ``rod_sharpness``, ``ratio``,
            ``open``; ``loss_stable``; ``way``, how far the iterates' middle went;
            ``nu_variation``, the largest relative change of the optimizer's second moment in this
            step, and ``nu_variation_rod``, its mean with the weights of the rod (NaN without a second moment). Every
            ``sharpness_every`` steps ``sharpness``, ``sharpness_rod``, ``sharpness_stable`` after the step.
            What has diverged is NaN or infinite.

        Raises:
            ValueError: if the loss of the iterate or its gradient is not finite.
        """
        if not torch.equal(flatten(self.parameters), self.points[-1].w):
            raise PrismError("something else has moved the parameters since the last step: only the shadow may step")
        self._restore_random_state = hold_random_state(self.parameters[0].device)
        step, phase = self.steps, phase_map(self.optimizer)
        loss = self._real_step()
        self.steps += 1
        self.points = [*self.points, self._point()][-3:]
        row: dict[str, Any] = {"step": step, "loss": loss, "threshold": phase.threshold(step)}
        if step < self.last_warmup:
            return row
        if self.rod is None or self.stable is None:
            self.rod = open_rod(self.points, step, self.form)
            self.stable = replace(open_rod(self.points, step), w=None, m=None)
        middle = (self.points[-2].w + self.points[-1].w) / 2
        try:
            row.update(self._flow(phase, middle))
            if self.sharpness_every and (step - self.last_warmup) % self.sharpness_every == 0:
                row.update(self._sharpness(phase))
        finally:
            assign(self.parameters, self.points[-1].w)
        return row

    def _point(self) -> Point:
        moments = read_moments(self.optimizer)
        m, nu = (None if vector is None else vector.clone() for vector in (moments.m, moments.nu))
        return Point(flatten(self.parameters), m, nu)

    def _real_step(self) -> float:
        loss, gradient = self._gradient(self.points[-1].w)
        if not math.isfinite(loss) or not math.isfinite(float(torch.dot(gradient, gradient))):
            raise PrismError(
                f"step {self.steps}: the loss is {loss} or its gradient is not finite; lower the learning rate (now "
                f"{self.optimizer.param_groups[0]['lr']:g})"
            )
        if loss > DIVERGED * max(self._first_loss, 1.0):
            raise PrismError(
                f"step {self.steps}: the run has diverged, its loss is {loss:g}; lower the learning rate (now "
                f"{self.optimizer.param_groups[0]['lr']:g})"
            )
        for parameter, part in parts(self.parameters, gradient):
            parameter.grad = part.clone()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _gradient(self, w: Tensor) -> tuple[float, Tensor]:
        assign(self.parameters, w)
        self._restore_random_state()
        with torch.enable_grad():
            loss = self.loss()
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
                raise PrismError(
                    f"loss() must give one number as a tensor with a gradient, without backward; got {given}"
                )
            gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        return float(loss.detach()), flatten(gradients)

    def _flow(self, phase: PhaseMap, middle: Tensor) -> dict[str, Any]:
        assert self.rod is not None
        assert self.stable is not None
        before, h = (self.rod, self.stable), 1 / self.substeps
        row: dict[str, Any] = {}
        for number in range(self.substeps):
            self.rod, ends = advance(phase, self.rod, h, self._gradient, self.form)
            self.stable, at_stable = advance(phase, self.stable, h, self._gradient)
            if number == 0:
                row = ends.summary() | {"loss_stable": at_stable.center}
                del row["threshold"]  # at the rod's time; the row has the optimizer's
        self.rod, self.stable = (replace(rod, time=round(2 * rod.time) / 2) for rod in (self.rod, self.stable))
        after = (self.rod, self.stable)
        for name, old, new in zip(("rod", "stable"), before, after, strict=True):
            # The outer rod's center is already half-way between two iterates.
            direct = name == "rod" and self.form == "outer"
            center = old.center.w if direct else (old.center.w + new.center.w) / 2
            row[f"distance_{name}"] = float((center - middle).norm())
        row["way"] = float((self.points[-1].w - self.points[0].w).norm()) / 2  # of the middle, in a step
        row.update(self._variation(phase, before[0]))
        if self.floor:
            self.rod = add_rounding(self.rod, self.seed)
        return row

    def _variation(self, phase: PhaseMap, rod: Rod) -> dict[str, float]:
        old, new = self.points[-2].nu, self.points[-1].nu
        if old is None or new is None or rod.w is None:
            return {"nu_variation": math.nan, "nu_variation_rod": math.nan}
        moved = (old > 0) | (new > 0)  # weights that never have a gradient stay at zero
        change = torch.where(moved, (new - old).abs() / old, 0.0)
        weight = rod.w.square() * phase.denominator(new, self.steps - 1)
        return {"nu_variation": float(change.max()), "nu_variation_rod": float((weight * change).sum() / weight.sum())}

    def _sharpness(self, phase: PhaseMap) -> dict[str, float]:
        assert self.rod is not None
        assert self.stable is not None
        found = {}
        places = {
            "sharpness": self.points[-1],
            "sharpness_rod": self.rod.center,
            "sharpness_stable": self.stable.center,
        }
        for name, point in places.items():
            assign(self.parameters, point.w)
            denominator = None if point.nu is None else phase.denominator(point.nu, self.steps - 1)
            self._restore_random_state()
            start = self._eigenvectors.get(name)
            try:
                found[name], vector = sharpness(self.loss, self.parameters, denominator, phase.penalty, start)
            except ValueError:  # a flow that has diverged has none
                if name == "sharpness":
                    raise
                found[name] = math.nan
            else:
                self._eigenvectors[name] = vector
        return found
