"""ELRA: gradient descent whose learning rate follows the angle between consecutive gradients.

Source: "A gradient descent optimizer with auto-controlled large learning rates, dynamic batch sizes and without
momentum" (Kleinsorge, Kupper, Fauck, Rothe; arXiv 2309.06274 and its ICLR 2025 submission); "Eq." and "section" mean
that paper. With kappa = 1 its Eq. 4 is the long step of Barzilai and Borwein (1988). What the text leaves open is
settled in decisions #20-#30. The optimizer works on losses and gradients
only; it does not depend on the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from prism_plugin.errors import PrismError
from prism_plugin.optim.checks import check_flag, check_number, check_state, read_loss
from prism_plugin.optim.elra.vectors import Block, go_back, inner_products, move

__all__ = ["ELRA"]

ALPHA_RANGE = (1e-8, 1e6)
DAMPING = 855_000.0  # of the adaptive growth cap at the start and after a serious soft restart
RETRACES = 8  # in a row, after which a high but finite loss is accepted
NO_LOSS = "ELRA needs the loss: step(closure) with a closure that returns it, step(loss=loss), or observe(loss)"
FAILURES = 100  # losses in a row that are not finite, after which the training is given up


class ELRA(Optimizer):
    """Exponential learning-rate adaption, with soft restarts, for losses that are handed to ``step``.

    ``group["lr"]`` is the learning rate alpha; it is one for all groups, and the optimizer moves it. The loss and the
    gradients of a step must be means over the same samples. Three ways to hand the loss over::

        optimizer.step(closure)                    # the closure computes loss and gradients
        loss.backward(); optimizer.step(loss=loss)
        for loss in micro_losses:                  # accumulation: gradients of the mean, losses one by one
            (loss / len(micro_losses)).backward(); optimizer.observe(loss)
        optimizer.step()

    Args:
        params: what it moves; parameters or groups (``weight_decay`` may differ between groups).
        lr: alpha before the first step; it adapts exponentially fast.
        weight_decay: factor on the weights in every update (0.9997 in the paper); 1 is off.
        kappa: the correction of Eq. 4 for noise; ``"auto"`` has it on with more than 20 numbers to move.
        growth: largest growth of alpha in a step; ``"adaptive"`` is 1e6 / (1 + d) with the damping d of soft restarts.
        max_step: largest length of a step, alpha * |G| (step-size cropping, section 3.5); None is off.
        min_step: smallest length of a step (the warm-up of section 3.1, 0.1 for language models); None is off.
        retrace: soft restarts: go back where the loss rises too much or is not finite (section 3.2).
        low_memory: keep the last point only and recover the last gradient from it (section 3.6); not below float32.
        foreach: multi-tensor kernels; None takes them on CUDA.
        boost: keep the mean of the accepted iterates of a cycle (section 3.7): ``eval()`` puts it into the weights,
            ``train()`` takes it out again.

    Memory beside weights and gradients, in vectors of their size: 2; 1 with ``low_memory`` or without ``retrace``;
    ``boost`` adds 1.

    Raises:
        ValueError: if an argument is out of range, or the parameters are complex or sharded.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([-5.75, 1.75], dtype=torch.float64))
        >>> optimizer = ELRA([x], max_step=None)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = 3 * x[0] ** 2 + 24 * x[1] ** 2
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(13):
        ...     loss = optimizer.step(closure)
        >>> bool(loss < 1e-6)
        True
    """

    # With this, GradScaler does not hide itself from `step`, which then refuses it.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        weight_decay: float = 1.0,
        kappa: str | bool = "auto",
        growth: str | float = "adaptive",
        max_step: float | None = 2.0,
        min_step: float | None = None,
        retrace: bool = True,
        low_memory: bool = False,
        foreach: bool | None = None,
        boost: bool = False,
    ) -> None:
        check_number("lr (alpha before the first step)", lr, 0.0, ALPHA_RANGE[1])
        if kappa not in ("auto", True, False):
            raise PrismError(f"kappa must be 'auto', True or False, got {kappa!r}")
        if growth != "adaptive":
            check_number("growth (or 'adaptive')", growth, 1.0, ALPHA_RANGE[1])
        for name, value in (("max_step", max_step), ("min_step", min_step)):
            if value is not None:
                check_number(f"{name} (or None)", value, 0.0)
        if max_step is not None and min_step is not None and min_step > max_step:
            raise PrismError(f"min_step must not be above max_step, got {min_step} and {max_step}")
        for name, flag in (("retrace", retrace), ("low_memory", low_memory), ("boost", boost)):
            check_flag(name, flag)
        if low_memory and not retrace:
            raise PrismError("low_memory keeps the last point, retrace=False the last gradient: choose one of them")
        self._exact = low_memory or boost  # both add small numbers to large ones
        super().__init__(params, {"lr": float(lr), "weight_decay": weight_decay})
        self._observed: list[float] = []
        self._discard = False
        size = sum(parameter.numel() for group in self.param_groups for parameter in group["params"])
        # Every number lives in the first group, so that a saved state is the whole state.
        self.param_groups[0].update(
            kappa=size > 20 if kappa == "auto" else bool(kappa),
            growth=growth,
            max_step=max_step,
            min_step=min_step,
            retrace=retrace,
            low_memory=low_memory,
            foreach=foreach,
            boost=boost,
            alpha=self.param_groups[0]["lr"],  # what "lr" of every group must be
            train_mode=True,
            accumulate=None,  # micro-batches a window must have; None takes any number
            gradient_scale=1.0,
            damping=DAMPING,
            run=0,  # soft restarts in a row
            failures=0,  # steps in a row whose loss was not finite
            last_loss=None,
            last_square=None,  # |G|^2 of the last accepted step
            last_alpha=None,  # what that step, or its soft restart, moved by; with `low_memory` it recovers G
            threshold=None,  # losses above it are traced back
            cycle_count=0,
            cycle_mean=0.0,
            cycle_squares=0.0,
            averaged=0,  # iterates in the mean
            updates=0,
            retraces=0,
            outcome="new",
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; they move by the one alpha.

        Raises:
            ValueError: if they cannot, or the group asks for another learning rate.
        """
        alpha = self.param_groups[0]["lr"] if self.param_groups else param_group.get("lr", self.defaults["lr"])
        check_number("lr", alpha, 0.0, ALPHA_RANGE[1])
        if param_group.setdefault("lr", alpha) != alpha:
            raise PrismError(f"ELRA has one alpha for all parameter groups, now {alpha}; got lr={param_group['lr']!r}")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        # 0 and 1e-2 are what other optimizers would be given; here they would erase the weights.
        name = "weight_decay (a factor on the weights, 0.9997 or so; 1 is off)"
        check_number(name, group["weight_decay"], 0.5, 1.0)
        for parameter in group["params"]:
            if hasattr(parameter, "device_mesh"):  # a DTensor, whose module costs a second to import
                raise PrismError("ELRA does not work on sharded parameters (DTensor, FSDP): use DDP")
            if not parameter.is_floating_point() or parameter.dtype == torch.float16:
                raise PrismError(
                    f"ELRA moves parameters of float32, float64 or bfloat16, got {parameter.dtype} (float16 holds "
                    "neither alpha nor its steps)"
                )
            if self._exact and parameter.dtype == torch.bfloat16:
                raise PrismError("low_memory and boost need float32 or wider, got torch.bfloat16: switch them off")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore everything, the saved settings too, as torch's optimizers do.

        Raises:
            ValueError: if the state is not one of ELRA.
        """
        check_state("an ELRA optimizer", self.param_groups[0], state_dict)
        super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; losses of a window that was open are gone."""
        super().__setstate__(state)
        self._exact = self.param_groups[0]["low_memory"] or self.param_groups[0]["boost"]
        self._observed = []
        self._discard = False

    @property
    def outcome(self) -> str:
        """What the last step was: "new" (none yet), "accepted", "retraced", "skipped" (nothing moved)."""
        return self.param_groups[0]["outcome"]

    def observe(self, loss: Tensor | float) -> None:
        """Note the loss of one micro-batch of the window that ends with the next ``step``.

        Raises:
            ValueError: unless it is one real number.
        """
        self._observed.append(read_loss(loss, NO_LOSS))

    def discard(self) -> None:
        """Skip the next step, because its window is not like the others (a smaller last batch, section 3.5)."""
        self._discard = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, loss: Tensor | float | None = None) -> Any:
        """Accept the point where loss and gradients were computed and move on, or go back.

        Losses handed to ``observe`` before are averaged and count instead of the closure's or the given one.

        Args:
            closure: computes the loss and its gradients, and returns the loss.
            loss: the loss, where the gradients are there already.

        Returns:
            The loss that the closure returned or that was given.

        Raises:
            ValueError: without a loss or a gradient; if the first loss is not finite, or a hundred in a row are not;
                with a gradient scaler or a learning-rate scheduler; in eval mode.
        """
        if closure is not None and not callable(closure):
            raise PrismError(f"step takes a closure, got {closure!r}: hand a loss over as step(loss=loss)")
        if closure is not None and loss is not None:
            raise PrismError("step takes a closure or a loss, not both")
        self._refuse()
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        state = self.param_groups[0]
        window, self._observed = self._observed, []
        discard, self._discard = self._discard, False
        expected = state["accumulate"]
        nothing = not window and loss is None and expected is not None  # training steps that returned None
        if discard or nothing or (window and expected not in (None, len(window))):
            state["outcome"] = "skipped"
            return loss
        blocks = self._blocks()
        f = sum(window) / len(window) if window else read_loss(loss, NO_LOSS)
        f = _mean_over_ranks(f, blocks[0].weights[0].device)
        g2, change = inner_products(blocks, state["gradient_scale"], state["last_alpha"], state["foreach"])
        if state["last_loss"] is None:
            self._first(f, g2)
        elif not (math.isfinite(f) and math.isfinite(g2) and math.isfinite(change)):
            self._fail(f, g2, blocks)
            return loss
        elif state["retrace"] and f > state["threshold"] and state["run"] < RETRACES:
            state["failures"] = 0
            self._soft_restart(f, blocks)
            return loss
        else:
            self._adapt(g2, change)
        self._take(f, g2, blocks)
        return loss

    def end_cycle(self) -> tuple[float, float] | None:
        """Close a cycle (an epoch): its statistics set the threshold of soft restarts, a new mean of iterates begins.

        Returns:
            Mean and standard deviation of the accepted losses; None where there were none.
        """
        state = self.param_groups[0]
        count, state["cycle_count"] = state["cycle_count"], 0
        state["averaged"] = 0
        if count == 0:
            return None
        sigma = math.sqrt(state["cycle_squares"] / count)
        if count > 1:
            state["threshold"] = state["cycle_mean"] + 5 * sigma
        return state["cycle_mean"], sigma

    @torch.no_grad()
    def scale_gradients(self, scale: float) -> None:
        """Multiply gradients by ``scale`` from now on, and the stored one with them (gradient decay, section 3.4)."""
        check_number("scale", scale, 0.0)
        state = self.param_groups[0]
        ratio = scale / state["gradient_scale"]
        state["gradient_scale"] = scale
        if state["last_loss"] is None or ratio == 1.0:
            return
        state["last_square"] *= ratio**2
        state["last_alpha"] /= ratio
        for vectors in self.state.values():
            if "gradient" in vectors:
                vectors["gradient"].mul_(ratio)

    def train(self) -> None:
        """Put the iterate into the weights, from which ``step`` goes on."""
        self._switch(True)

    def eval(self) -> None:
        """Put the mean of the accepted iterates into the weights; without ``boost`` nothing changes.

        It is the mean of the cycle under way, and right after ``end_cycle`` that of the cycle just closed.
        """
        self._switch(False)

    @torch.no_grad()
    def _switch(self, train: bool) -> None:
        state = self.param_groups[0]
        if state["train_mode"] == train:
            return
        state["train_mode"] = train
        for parameter, vectors in self.state.items():
            if "mean" in vectors:  # it holds whichever of the two is not in the weights
                kept = parameter.clone()
                parameter.copy_(vectors["mean"])
                vectors["mean"].copy_(kept)

    def _refuse(self) -> None:
        if getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None:
            self.grad_scale = self.found_inf = None
            raise PrismError(
                "ELRA reads loss and gradients, which a GradScaler scales: use bf16 or float32 without one"
            )
        changed = any(group["lr"] != self.param_groups[0]["alpha"] for group in self.param_groups)
        if changed or any("initial_lr" in group for group in self.param_groups):
            raise PrismError(
                "ELRA adapts its learning rate itself, and something else has changed it or is about to: remove the "
                "learning-rate scheduler"
            )
        if self.param_groups[0]["boost"] and not self.param_groups[0]["train_mode"]:
            raise PrismError(
                "the weights hold the mean of the iterates now: call optimizer.train() before step (in Lightning "
                "ELRACallback does)"
            )

    def _blocks(self) -> list[Block]:
        """Collect what has a gradient, or had one before (it counts as zero then)."""
        blocks = []
        for group in self.param_groups:
            block = Block(group["weight_decay"], [], [], [])
            for parameter in group["params"]:
                if parameter.grad is None and parameter not in self.state:
                    continue
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                if gradient.is_sparse:
                    raise PrismError("ELRA does not work on sparse gradients: use dense ones (Embedding(sparse=False))")
                block.weights.append(parameter)
                block.gradients.append(gradient)
                block.states.append(self._vectors(parameter, block.decay))
            if block.weights:
                blocks.append(block)
        if not blocks:
            raise PrismError("no parameter has a gradient: call loss.backward() before step, or pass a closure")
        return blocks

    def _vectors(self, parameter: Tensor, decay: float) -> dict[str, Tensor]:
        vectors = self.state[parameter]
        if not vectors:
            settings = self.param_groups[0]
            # A parameter that joins later has not moved so far: x = decay * point - alpha * 0.
            if settings["retrace"]:
                vectors["point"] = parameter / decay
            if not settings["low_memory"]:
                vectors["gradient"] = torch.zeros_like(parameter)
            if settings["boost"]:
                vectors["mean"] = parameter.clone()
        return vectors

    def _first(self, f: float, g2: float) -> None:
        if not (math.isfinite(f) and math.isfinite(g2)):
            raise PrismError(
                f"the first loss is {f} and its squared gradient {g2}: there is no good point to go back to; look at "
                "the data, the scale of the targets and the initial weights"
            )
        state = self.param_groups[0]
        state["threshold"] = f + 0.1 * abs(f)
        self._set_alpha(self._cropped(state["lr"], g2))

    def _fail(self, f: float, g2: float, blocks: list[Block]) -> None:
        """The loss or the gradient is not finite: go back, or at least do not move."""
        state = self.param_groups[0]
        state["failures"] += 1
        if state["failures"] >= FAILURES:
            raise PrismError(
                f"loss or gradient has not been finite for {FAILURES} steps in a row (now {f}, squared gradient {g2}): "
                "look at the data; the weights are near the last good point"
            )
        if state["retrace"]:
            self._soft_restart(f, blocks)
        else:
            state["outcome"] = "skipped"

    def _soft_restart(self, f: float, blocks: list[Block]) -> None:
        """Go back and take a shorter step from there (section 3.2), with |G|^2 where the paper misprints |G|."""
        state = self.param_groups[0]
        if state["damping"] >= 62_500:
            state["damping"] = DAMPING
        elif state["damping"] > 1:
            state["damping"] *= 16
        else:
            state["damping"] += 16
        expected = state["lr"] * state["last_square"]
        denominator = f - state["last_loss"] + expected
        hopeless = not math.isfinite(denominator) or denominator <= 0
        factor = 0.01 if hopeless else min(max(0.5 * expected / denominator, 0.01), 0.5)
        alpha = max(state["lr"] * factor, ALPHA_RANGE[0])
        for block in blocks:
            go_back(block, alpha, state["last_alpha"])
        self._set_alpha(alpha)
        state["last_alpha"] = alpha
        state["run"] += 1
        state["retraces"] += 1
        state["outcome"] = "retraced"

    def _adapt(self, g2: float, change: float) -> None:
        """Eq. 4, with the growth cap and the bounds."""
        state = self.param_groups[0]
        state["run"] = 0
        state["damping"] /= 3.9
        cap = 1e6 / (1 + state["damping"]) if state["growth"] == "adaptive" else state["growth"]
        alpha = state["lr"]
        kappa = 1 + 0.15 / (1 + alpha**2) if state["kappa"] else 1.0
        if state["last_square"] > 0:  # else there was no step whose angle could tell
            h = change / state["last_square"]
            alpha *= cap if h <= kappa / cap else kappa / h
        alpha = self._cropped(min(max(alpha, ALPHA_RANGE[0]), ALPHA_RANGE[1]), g2)
        if state["min_step"] is not None and g2 > 0:
            alpha = max(alpha, state["min_step"] / math.sqrt(g2))
        self._set_alpha(alpha)

    def _cropped(self, alpha: float, g2: float) -> float:
        """Step-size cropping (section 3.5)."""
        longest = self.param_groups[0]["max_step"]
        return alpha if longest is None or g2 == 0 else min(alpha, longest / math.sqrt(g2))

    def _set_alpha(self, alpha: float) -> None:
        self.param_groups[0]["alpha"] = alpha
        for group in self.param_groups:
            group["lr"] = alpha

    def _take(self, f: float, g2: float, blocks: list[Block]) -> None:
        """Store this point and its gradient, and move on."""
        state = self.param_groups[0]
        alpha = state["lr"]
        state.update(last_loss=f, last_square=g2, last_alpha=alpha, failures=0, outcome="accepted")
        state["updates"] += 1
        state["averaged"] += 1
        for block in blocks:
            move(block, alpha, state["gradient_scale"], state["averaged"], state["foreach"])
        # Welford's update: mean and sum of squared deviations.
        if state["cycle_count"] == 0:
            state["cycle_mean"] = state["cycle_squares"] = 0.0
        state["cycle_count"] += 1
        deviation = f - state["cycle_mean"]
        state["cycle_mean"] += deviation / state["cycle_count"]
        state["cycle_squares"] += deviation * (f - state["cycle_mean"])


def _mean_over_ranks(loss: float, device: torch.device) -> float:
    """Average over the processes of a DDP run: all of them must decide alike."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return loss
    total = torch.tensor(loss, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return float(total) / torch.distributed.get_world_size()
