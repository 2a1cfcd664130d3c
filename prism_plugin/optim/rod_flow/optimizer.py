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
from torch.optim import SGD, Optimizer

from prism_plugin.errors import PrismError
from prism_plugin.optim.checks import check_flag, check_state, read_loss
from prism_plugin.optim.rod_flow.conventions import Moments, parameters_of, phase_map, read_moments, write_moments
from prism_plugin.optim.rod_flow.flows import FORMS, Ends, Point, Rod, add_rounding, advance, open_rod
from prism_plugin.optim.rod_flow.phase_space import PhaseMap
from prism_plugin.optim.vectors import assign, flatten, flatten_gradients, hold_random_state, parts

__all__ = ["RodFlow"]

CHECK_EVERY = 100  # steps between two checks that the closure is a function of the weights
SAME = 1e-3  # relative: what two evaluations at one point may differ by, on devices that add in any order

_NOTHING = Ends(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, False)


class RodFlow(Optimizer):
    """Train by the rod flow of a plain optimizer.

    The first ``warmup`` + 1 steps are the plain optimizer's own; three of their iterates make the rod. From then on the
    parameters hold its center, and every step evaluates the closure 2 * ``substeps`` times at its ends, always with the
    same random state; once in a hundred steps two times more at one point, to see whether it is a function of the
    weights. Parameters without a gradient stay where they are.

    Not to be used with gradients that are clipped or scaled, or accumulated over several backward passes outside of
    the closure; in Lightning :class:`prism_plugin.training.EoSMonitor` refuses them. BatchNorm's running statistics are
    those of the ends: compute them anew at the center before an evaluation, as ``prism train`` does. Allow no TF32 on
    CUDA, which is as coarse as half precision. Losses in ``stats`` are those of this process.

    Args:
        params: the parameters; the same as those of ``like``, of one dtype (float32 or float64) and on one device.
        like: the optimizer to follow: SGD (momentum, Nesterov), RMSprop, Adam, AdamW or NAdam of torch, or
            :class:`~prism_plugin.optim.Discrete`; if it has been running, the flow goes on from its state. It must not
            be stepped or scheduled any more: the learning rate is ``group["lr"]`` of this optimizer.
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
            raise PrismError(f"like must be an optimizer, such as torch.optim.Adam(params), got {like!r}")
        if form not in FORMS:
            raise PrismError(f"unknown form {form!r}; choose one of: {', '.join(FORMS)}")
        least = 1 if form == "signed" else 2
        for name, value, low in (("substeps", substeps, least), ("warmup", warmup, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < low:
                raise PrismError(f"{name} must be a whole number of at least {low}, got {value!r}")
        check_flag("floor", floor)
        if phase_map(like).lr == 0:
            raise PrismError("the learning rate of like is 0: give the one to start with")
        parameters, moments = parameters_of(like), read_moments(like)
        if isinstance(like, SGD) and like.param_groups[0]["dampening"] and not like.state:
            raise PrismError("SGD's first step with dampening is unlike the others: make it before, or set dampening=0")
        given = list(params)
        for group in (part for part in given if isinstance(part, dict)):
            if group.keys() != {"params"}:
                raise PrismError(
                    f"settings belong to like, got {sorted(group.keys() - {'params'})} in a parameter group"
                )
        given = [p for part in given for p in (part["params"] if isinstance(part, dict) else [part])]
        if {id(parameter) for parameter in given} != {id(parameter) for parameter in parameters}:
            raise PrismError("params and like must have the same parameters")
        self.like = like
        super().__init__(parameters, {"lr": float(like.param_groups[0]["lr"])})  # in the order of the moments
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
            taken=0,  # steps of this optimizer
            discretized=False,
        )
        self._vectors().update({name: vector.clone() for name, vector in _known(moments.m, moments.nu).items()})
        self.stats = _NOTHING.summary()
        self._like_lr = self.param_groups[0]["lr"]  # what is known to be there
        self._away = False
        self._unchecked = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move on by one optimizer step.

        Args:
            closure: clears the gradients, computes the loss and its gradients, and returns the loss; of the same data
                whenever it is called in this step.

        Returns:
            The loss at the center, estimated from the two ends (during the warm-up, that of the iterate).

        Raises:
            ValueError: without a closure; with a gradient scaler, autocast, or a learning rate of ``like`` that
                something else has changed; if the closure answers differently at the same weights, or loss, gradient
                or step are not finite. The parameters hold the center then, as before.
        """
        self._refuse(closure)
        assert closure is not None
        parameters, settings = parameters_of(self), self.param_groups[0]
        start = flatten(parameters)
        self._check_vectors(start)
        evaluation = _Evaluation(self, closure, parameters)
        before = self.stats, settings["steps"], settings["time"]
        try:
            if self._unchecked or settings["taken"] % CHECK_EVERY == 0:
                evaluation.check(start)
                self._unchecked = False
            end, kept = self._flow(start, evaluation) if settings["time"] else self._warm_up(start, evaluation)
            if not torch.stack([torch.isfinite(vector).all() for vector in (end, *kept.values())]).all():
                raise PrismError(
                    f"the step is not finite; lower the learning rate (now {settings['lr']:g}); the parameters are as "
                    "before this step"
                )
        except BaseException:
            assign(parameters, start)
            self.stats, settings["steps"], settings["time"] = before
            raise
        evaluation.keep_unused(start, end)
        assign(parameters, end)
        self._vectors().clear()
        self._vectors().update(kept)
        settings["taken"] += 1
        return start.new_full((), self.stats["loss_center"])

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Put an end of the rod into the parameters for a while: ``"center"``, ``"plus"`` or ``"minus"``."""
        signs = {"center": 0, "plus": 1, "minus": -1}
        if place not in signs:
            raise PrismError(f"unknown place {place!r}; choose one of: {', '.join(signs)}")
        parameters = parameters_of(self)
        center, rod = flatten(parameters), self._vectors().get("rod")
        self._away = True
        try:
            if signs[place] and rod is not None:
                assign(parameters, center + signs[place] * rod)
            yield
        finally:
            assign(parameters, center)
            self._away = False

    def discretize(self) -> Optimizer:
        """Hand over to the plain optimizer: the parameters become its iterate, ``like`` gets the moments.

        The outer form does not know the sign of its rod; it is taken to alternate, which is wrong off the edge.

        Returns:
            ``like``, to go on with. This optimizer must not be stepped any more.
        """
        settings, vectors = self.param_groups[0], self._vectors()
        if settings["discretized"]:
            return self.like
        self.current_map()  # gives like the learning rate
        w, m, steps = flatten(parameters_of(self)), vectors.get("momentum"), settings["steps"]
        if settings["time"]:
            # The plus end is the iterate at the times last_warmup, last_warmup + 2, ... (outer form: half a step on).
            sign = self._sign()
            steps = math.ceil(settings["time"])
            w = w + sign * vectors.pop("rod")
            m = None if m is None else m + sign * vectors.pop("rod_momentum")
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
            raise PrismError("RodFlow keeps one vector of all parameters: make a new one for more parameters")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore everything, the settings of ``like`` too.

        Raises:
            ValueError: if the state is not one of RodFlow, or of one like another optimizer.
        """
        check_state("a RodFlow optimizer", self.param_groups[0], state_dict)
        kind, saved = self._description()["kind"], state_dict["param_groups"][0]["like"]
        if saved["kind"] != kind:
            raise PrismError(
                f"the state follows {saved['kind']}, this optimizer {kind}: pass like={saved['kind']}(...)"
            )
        size = sum(parameter.numel() for parameter in parameters_of(self))
        for name, vector in state_dict["state"].get(0, {}).items():
            if vector.ndim and vector.numel() != size:
                raise PrismError(f"the state's {name} is of {vector.numel()} numbers, the parameters are {size}")
        super().load_state_dict(state_dict)
        for group in self.like.param_groups:
            group.update({key: value for key, value in saved.items() if key != "kind"})
        self._like_lr = self.like.param_groups[0]["lr"]
        self._unchecked = True

    def current_map(self) -> PhaseMap:
        """The map of phase space that is followed, with the present learning rate, which ``like`` gets, too.

        Raises:
            ValueError: if something else has changed the learning rate of ``like``.
        """
        for group in self.like.param_groups:
            if group["lr"] != self._like_lr:
                raise PrismError("something else changes the learning rate of like: schedule this optimizer instead")
            group["lr"] = self.param_groups[0]["lr"]
        self._like_lr = self.param_groups[0]["lr"]
        return phase_map(self.like)

    def __getstate__(self) -> dict[str, Any]:
        """All of it: torch's own keeps three fields."""
        own = {name: getattr(self, name) for name in ("like", "stats", "_like_lr", "_away", "_unchecked")}
        return {**super().__getstate__(), **own}

    def _description(self) -> dict[str, Any]:
        group = {key: value for key, value in self.like.param_groups[0].items() if key != "params"}
        return {"kind": type(self.like).__name__, **group}

    def _vectors(self) -> dict[str, Tensor]:
        return self.state[self.param_groups[0]["params"][0]]

    def _check_vectors(self, w: Tensor) -> None:
        for name, vector in self._vectors().items():
            if (vector.dtype, vector.device) != (w.dtype, w.device) or (vector.ndim and vector.shape != w.shape):
                raise PrismError(
                    f"the parameters are now {w.numel()} numbers of {w.dtype} on {w.device}, the kept {name} is "
                    f"{vector.numel()} of {vector.dtype} on {vector.device}: convert or move a model "
                    "before its RodFlow is made"
                )

    def _sign(self) -> int:
        settings = self.param_groups[0]
        return -1 if (math.ceil(settings["time"]) - settings["last_warmup"]) % 2 else 1

    def _refuse(self, closure: Any) -> None:
        if getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None:
            self.grad_scale = self.found_inf = None
            raise PrismError("RodFlow reads gradients, which a GradScaler scales: use float32 or float64 without one")
        if closure is None or not callable(closure):
            raise PrismError(
                "RodFlow evaluates the loss several times a step: step(closure) with a closure that clears the "
                "gradients, computes loss and gradients, and returns the loss"
            )
        if self._away:
            raise PrismError("the parameters hold an end of the rod now: leave at() before step")
        if torch.is_autocast_enabled(self.param_groups[0]["params"][0].device.type):
            raise PrismError("RodFlow subtracts gradients, which are noise under autocast: switch it off")
        if self.param_groups[0]["discretized"]:
            raise PrismError("discretize() has handed over to the plain optimizer: step that one")

    def _warm_up(self, w: Tensor, gradient: _Evaluation) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the plain optimizer; after the last one, the center of the rod. Gives weights and vectors."""
        settings, kept, phase = self.param_groups[0], self._vectors(), self.current_map()
        step = settings["steps"]
        point = Point(w, kept.get("momentum"), kept.get("second"))
        loss, g = gradient(w)
        after = Point(*phase.step(w, point.m, point.nu, g, step))
        settings["steps"] += 1
        self.stats = Ends(loss, loss, loss, 0.0, math.nan, phase.threshold(step), False).summary()
        if step < settings["last_warmup"]:
            before = _known(point.m, point.nu, "before_") | {"before": w}
            return after.w, _known(after.m, after.nu) | before
        before_point = Point(kept["before"], kept.get("before_momentum"), kept.get("before_second"))
        return self._of_rod(open_rod((before_point, point, after), step, settings["form"]))

    def _flow(self, w: Tensor, gradient: _Evaluation) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the flow."""
        settings, kept, phase = self.param_groups[0], self._vectors(), self.current_map()
        center = Point(w, kept.get("momentum"), kept.get("second"))
        rod = Rod(center, kept["rod"], kept.get("rod_momentum"), settings["time"])
        ends = []
        for _ in range(settings["substeps"]):
            rod, end = advance(phase, rod, 1 / settings["substeps"], gradient, settings["form"])
            ends.append(end)
        if settings["floor"]:
            rod = add_rounding(rod, settings["seed"])
        self.stats = ends[0].summary()
        return self._of_rod(rod)

    def _of_rod(self, rod: Rod) -> tuple[Tensor, dict[str, Tensor]]:
        # Sub-steps of a third and the like do not add up to 1.
        self.param_groups[0]["time"] = round(2 * rod.time) / 2
        vectors = _known(rod.center.m, rod.center.nu) | _known(rod.m, None, "rod_")
        return rod.center.w, vectors if rod.w is None else vectors | {"rod": rod.w}


def _known(m: Tensor | None, nu: Tensor | None, prefix: str = "") -> dict[str, Tensor]:
    """Momentum and second moment by name, where there are any."""
    pairs = (("momentum", m), ("second", nu))
    return {f"{prefix}{name}": vector for name, vector in pairs if vector is not None}


class _Evaluation:
    """Loss and gradient at given weights, every time from the same random state."""

    def __init__(self, optimizer: Optimizer, closure: Callable[[], Any], parameters: list[Tensor]) -> None:
        self.optimizer, self.closure, self.parameters = optimizer, closure, parameters
        self.restore_random_state = hold_random_state(parameters[0].device)

    def __call__(self, w: Tensor) -> tuple[float, Tensor]:
        self.restore_random_state()
        assign(self.parameters, w)
        self.optimizer.zero_grad()
        with torch.enable_grad():
            loss = read_loss(self.closure(), "the closure returned None: it must return the loss")
        if all(parameter.grad is None for parameter in self.parameters):
            raise PrismError("no parameter has a gradient: the closure must call loss.backward()")
        gradient = flatten_gradients(self.parameters)
        if not math.isfinite(loss) or not math.isfinite(float(torch.dot(gradient, gradient))):
            raise PrismError(
                f"loss {loss} or its gradient is not finite at an end of the rod; lower the learning rate (now "
                f"{self.optimizer.param_groups[0]['lr']:g}) or look at the data; the parameters are as before this step"
            )
        return loss, gradient

    def check(self, w: Tensor) -> None:
        """Raise ValueError if two evaluations at one point differ."""
        (loss, gradient), (again, other) = self(w), self(w)
        difference = float((gradient - other).norm())
        if abs(loss - again) > SAME * abs(loss) or difference > SAME * float(gradient.norm()):
            raise PrismError(
                f"the closure gave the loss {loss} and then {again} at the same weights (gradients differ by "
                f"{difference:g}): it must use one batch and one augmentation in all evaluations of a step"
            )

    def keep_unused(self, start: Tensor, end: Tensor) -> None:
        """Undo the decay of parameters that have no gradient, which plain optimizers leave alone."""
        before = (part for _, part in parts(self.parameters, start))
        for (parameter, part), kept in zip(parts(self.parameters, end), before, strict=True):
            if parameter.grad is None:
                part.copy_(kept)
