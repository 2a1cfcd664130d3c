"""RodFlow: a torch optimizer that trains by the rod flow of another one. Its parameters hold the center.

Source: Regis and Chewi, arXiv 2602.01480 and 2605.06821; the equations are in ``rod.py``, their status in
docs/rod_flow.md. It computes four gradients a step and is no faster than the optimizer it follows; what it gives is a
center without the oscillation, the mean loss of the two ends, and a sharpness to hold against the exact threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from prism_plugin.optim.checks import check_flag, check_state, read_loss
from prism_plugin.optim.conventions import Moments, parameters_of, phase_map, read_moments, write_moments
from prism_plugin.optim.phase_space import PhaseMap
from prism_plugin.optim.rod import FORMS, Ends, Point, Rod, add_rounding, advance, open_rod
from prism_plugin.optim.vectors import assign, flatten, flatten_gradients

__all__ = ["RodFlow"]

SAME = 1e-3  # relative: what two evaluations at one point may differ by, on devices that add in any order

_NOTHING = Ends(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, False)


class RodFlow(Optimizer):
    """Train by the rod flow of a plain optimizer.

    The first ``warmup`` + 1 steps are the plain optimizer's own; three of their iterates make the rod. From then on the
    parameters hold its center, and every step evaluates the closure 2 * ``substeps`` times at its ends, always with the
    same random state. BatchNorm's running statistics are then those of the ends: compute them anew at the center
    before an evaluation, as ``prism train`` does.

    Args:
        params: the parameters; the same as those of ``like``, of one dtype (float32 or float64) and on one device.
        like: the optimizer to follow: SGD (momentum, Nesterov), RMSprop, Adam, AdamW or NAdam of torch, or
            :class:`~prism_plugin.optim.Discrete`; if it has been running, the flow goes on from its state. It must not
            be stepped any more. The learning rate is ``group["lr"]`` of this optimizer, so that schedules work.
        substeps: Euler steps per optimizer step; 1 is no flow but two runs of ``like``, one at each end.
        form: ``"signed"`` (recommended) or ``"outer"``, the papers' covariance of rank one.
        warmup: steps of ``like`` before the rod opens, at least 1.
        floor: rounding noise on the rod, without which a closed one never opens.
        seed: of that noise.

    Raises:
        ValueError: if an argument is out of range, or no rod flow is known for the kind or an option of ``like``.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        >>> optimizer = RodFlow([x], like=torch.optim.SGD([x], lr=0.19))  # L = 5 x^2: stable below lr = 0.2
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = 5 * x.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(20):
        ...     loss = optimizer.step(closure)
        >>> round(optimizer.stats["rod_sharpness"], 6), round(optimizer.stats["threshold"], 6)
        (10.0, 10.526316)
    """

    # With this, GradScaler does not hide itself from `step`, which then refuses it.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        like: Optimizer,
        substeps: int = 2,
        form: str = "signed",
        warmup: int = 10,
        floor: bool = True,
        seed: int = 0,
    ) -> None:
        if not isinstance(like, Optimizer):
            raise ValueError(f"like must be an optimizer, such as torch.optim.Adam(params), got {like!r}")
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; choose one of: {', '.join(FORMS)}")
        least = 1 if form == "signed" else 2
        for name, value, low in (("substeps", substeps, least), ("warmup", warmup, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")
        check_flag("floor", floor)
        phase_map(like)
        moments = read_moments(like)
        self.like = like
        super().__init__(params, {"lr": float(like.param_groups[0]["lr"])})
        given = [parameter for group in self.param_groups for parameter in group["params"]]
        if {id(p) for p in given} != {id(p) for group in like.param_groups for p in group["params"]}:
            raise ValueError("params and like must have the same parameters")
        # Every number lives in the first group, so that a saved state is the whole state.
        self.param_groups[0].update(
            like=self._description(),
            substeps=substeps,
            form=form,
            floor=floor,
            seed=seed,
            last_warmup=moments.steps + warmup,  # the index of its last step
            steps=moments.steps,  # of the plain optimizer
            time=0.0,  # of the flow; 0 while there is none
            discretized=False,
        )
        own = (None if vector is None else vector.clone() for vector in (moments.m, moments.nu))
        self._keep(dict(zip(("momentum", "second"), own, strict=True)))
        self.stats = _NOTHING.summary()

    @property
    def phase(self) -> PhaseMap:
        """The map of phase space that is followed, with the present learning rate."""
        for group in self.like.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        return phase_map(self.like)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move on by one optimizer step.

        Args:
            closure: clears the gradients, computes the loss and its gradients, and returns the loss; of the same data
                whenever it is called in this step.

        Returns:
            The loss at the center, estimated from the two ends (during the warm-up, that of the iterate).

        Raises:
            ValueError: without a closure; with a gradient scaler; if the closure answers differently at the same
                weights, or loss or gradient are not finite. The parameters hold the center then, as before.
        """
        self._refuse(closure)
        assert closure is not None
        parameters, settings = parameters_of(self), self.param_groups[0]
        start = flatten(parameters)
        gradient = _Evaluation(self, closure, parameters)
        try:
            end = self._flow(start, gradient) if settings["time"] else self._warm_up(start, gradient)
        except BaseException:
            assign(parameters, start)
            raise
        assign(parameters, end)
        return torch.tensor(self.stats["loss_center"], dtype=start.dtype, device=start.device)

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Put an end of the rod into the parameters for a while: ``"center"``, ``"plus"`` or ``"minus"``."""
        signs = {"center": 0, "plus": 1, "minus": -1}
        if place not in signs:
            raise ValueError(f"unknown place {place!r}; choose one of: {', '.join(signs)}")
        parameters = parameters_of(self)
        center, rod = flatten(parameters), self._vectors().get("rod")
        try:
            if signs[place] and rod is not None:
                assign(parameters, center + signs[place] * rod)
            yield
        finally:
            assign(parameters, center)

    def discretize(self) -> Optimizer:
        """Hand over to the plain optimizer: the parameters become its iterate, ``like`` gets the moments.

        Returns:
            ``like``, to go on with. This optimizer must not be stepped any more.
        """
        settings, vectors = self.param_groups[0], self._vectors()
        _ = self.phase  # the learning rate
        w, m, steps = flatten(parameters_of(self)), vectors.get("momentum"), settings["steps"]
        if settings["time"] and not settings["discretized"]:
            # The plus end is the iterate at the times last_warmup, last_warmup + 2, ... (outer form: half a step on).
            sign = self._sign()
            steps = math.ceil(settings["time"])
            w = w + sign * vectors["rod"]
            m = None if m is None else m + sign * vectors["rod_momentum"]
            assign(parameters_of(self), w)
        write_moments(self.like, Moments(m, vectors.get("second"), steps))
        settings["discretized"] = True
        return self.like

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, which is possible in the constructor only.

        Raises:
            ValueError: afterwards.
        """
        if "time" in (self.param_groups[0] if self.param_groups else {}):
            raise ValueError("RodFlow keeps one vector of all parameters: make a new one for more parameters")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore everything, the settings of ``like`` too.

        Raises:
            ValueError: if the state is not one of RodFlow, or of one like another optimizer.
        """
        check_state("a RodFlow optimizer", self.param_groups[0], state_dict)
        kind, saved = self._description()["kind"], state_dict["param_groups"][0]["like"]
        if saved["kind"] != kind:
            raise ValueError(
                f"the state follows {saved['kind']}, this optimizer {kind}: pass like={saved['kind']}(...)"
            )
        super().load_state_dict(state_dict)
        for group in self.like.param_groups:
            group.update({key: value for key, value in saved.items() if key != "kind"})

    def __getstate__(self) -> dict[str, Any]:
        """All of it: torch's own keeps three fields."""
        return {**super().__getstate__(), "like": self.like, "stats": self.stats}

    def _description(self) -> dict[str, Any]:
        group = {key: value for key, value in self.like.param_groups[0].items() if key != "params"}
        return {"kind": type(self.like).__name__, **group}

    def _vectors(self) -> dict[str, Tensor]:
        return self.state[parameters_of(self)[0]]

    def _keep(self, vectors: dict[str, Tensor | None]) -> None:
        kept = self._vectors()
        kept.clear()
        kept.update({name: vector for name, vector in vectors.items() if vector is not None})

    def _sign(self) -> int:
        settings = self.param_groups[0]
        return -1 if (math.ceil(settings["time"]) - settings["last_warmup"]) % 2 else 1

    def _refuse(self, closure: Any) -> None:
        if getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None:
            self.grad_scale = self.found_inf = None
            raise ValueError("RodFlow reads gradients, which a GradScaler scales: use float32 or float64 without one")
        if closure is None or not callable(closure):
            raise ValueError(
                "RodFlow evaluates the loss several times a step: step(closure) with a closure that clears the "
                "gradients, computes loss and gradients, and returns the loss"
            )
        if self.param_groups[0]["discretized"]:
            raise ValueError("discretize() has handed over to the plain optimizer: step that one")

    def _warm_up(self, w: Tensor, gradient: _Evaluation) -> Tensor:
        """One step of the plain optimizer; after the last one, the center of the rod."""
        settings, kept, phase = self.param_groups[0], self._vectors(), self.phase
        step = settings["steps"]
        point = Point(w, kept.get("momentum"), kept.get("second"))
        if not any(name.startswith("before") for name in kept):
            gradient.check(w)
        loss, g = gradient(w)
        after = Point(*phase.step(w, point.m, point.nu, g, step))
        settings["steps"] += 1
        self.stats = Ends(loss, loss, loss, 0.0, math.nan, phase.threshold(step), False).summary()
        if step < settings["last_warmup"]:
            before = {"before": point.w, "before_momentum": point.m, "before_second": point.nu}
            self._keep({"momentum": after.m, "second": after.nu, **before})
            return after.w
        before_point = Point(kept["before"], kept.get("before_momentum"), kept.get("before_second"))
        return self._keep_rod(open_rod((before_point, point, after), step, settings["form"]))

    def _flow(self, w: Tensor, gradient: _Evaluation) -> Tensor:
        settings, kept = self.param_groups[0], self._vectors()
        center = Point(w, kept.get("momentum"), kept.get("second"))
        rod = Rod(center, kept["rod"], kept.get("rod_momentum"), settings["time"])
        first = None
        for _ in range(settings["substeps"]):
            rod, ends = advance(self.phase, rod, 1 / settings["substeps"], gradient, settings["form"])
            first = first or ends
        assert first is not None
        if settings["floor"]:
            rod = add_rounding(rod, settings["seed"])
        self.stats = first.summary()
        return self._keep_rod(rod)

    def _keep_rod(self, rod: Rod) -> Tensor:
        center = {"momentum": rod.center.m, "second": rod.center.nu}
        self._keep({**center, "rod": rod.w, "rod_momentum": rod.m})
        # Sub-steps of a third and the like do not add up to 1.
        self.param_groups[0]["time"] = round(2 * rod.time) / 2
        return rod.center.w


class _Evaluation:
    """Loss and gradient at given weights, every time from the same random state."""

    def __init__(self, optimizer: Optimizer, closure: Callable[[], Any], parameters: list[Tensor]) -> None:
        self.optimizer, self.closure, self.parameters = optimizer, closure, parameters
        self.device = parameters[0].device
        self.random = torch.get_rng_state()
        self.random_cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def __call__(self, w: Tensor) -> tuple[float, Tensor]:
        torch.set_rng_state(self.random)
        if self.random_cuda is not None:
            torch.cuda.set_rng_state(self.random_cuda, self.device)
        assign(self.parameters, w)
        self.optimizer.zero_grad()
        with torch.enable_grad():
            loss = read_loss(self.closure(), "the closure returned None: it must return the loss")
        if all(parameter.grad is None for parameter in self.parameters):
            raise ValueError("no parameter has a gradient: the closure must call loss.backward()")
        gradient = flatten_gradients(self.parameters)
        if not math.isfinite(loss) or not math.isfinite(float(torch.dot(gradient, gradient))):
            raise ValueError(
                f"loss {loss} or its gradient is not finite at an end of the rod; lower the learning rate (now "
                f"{self.optimizer.param_groups[0]['lr']:g}) or look at the data; the parameters are as before this step"
            )
        return loss, gradient

    def check(self, w: Tensor) -> None:
        """Raise ValueError if two evaluations at one point differ."""
        (loss, gradient), (again, other) = self(w), self(w)
        difference = float((gradient - other).norm())
        if abs(loss - again) > SAME * abs(loss) or difference > SAME * float(gradient.norm()):
            raise ValueError(
                f"the closure gave the loss {loss} and then {again} at the same weights (gradients differ by "
                f"{difference:g}): it must use one batch and one augmentation in all evaluations of a step"
            )
