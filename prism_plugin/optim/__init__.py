"""Optimizers by name: one plain table. A row turns parameters and settings into an optimizer and its scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

from schedulefree import AdamWScheduleFree
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from prism_plugin.optim.checks import check_number
from prism_plugin.optim.composite import Together
from prism_plugin.optim.elra.batch_size import BatchSizeControl
from prism_plugin.optim.elra.optimizer import ELRA
from prism_plugin.optim.rod_flow.conventions import eos_threshold
from prism_plugin.optim.rod_flow.discrete import Discrete
from prism_plugin.optim.rod_flow.optimizer import RodFlow
from prism_plugin.optim.rod_flow.shadow import RodShadow

__all__ = [
    "ELRA",
    "OPTIMIZERS",
    "BatchSizeControl",
    "Discrete",
    "RodFlow",
    "RodShadow",
    "check_options",
    "eos_threshold",
    "make_optimizer",
]

_Made = tuple[Optimizer, LRScheduler | None]


def _adamw_schedulefree(
    parameters: list[Parameter],
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> _Made:
    """AdamW-ScheduleFree (Defazio et al., NeurIPS 2024); warm-up over 5 % of the steps, at most 500."""
    warmup = min(500, steps // 20)
    return AdamWScheduleFree(parameters, lr=lr, betas=betas, weight_decay=weight_decay, warmup_steps=warmup), None


def _adam_onecycle(
    parameters: list[Parameter],
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> _Made:
    """Adam with a OneCycle schedule, pct_start 0.01 (PRISM supplement, Training Details)."""
    return _one_cycle(Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay), lr, steps)


def _sgd(
    parameters: list[Parameter], steps: int, lr: float = 0.1, weight_decay: float = 0.0, momentum: float = 0.9
) -> _Made:
    """SGD with Nesterov's momentum and a OneCycle schedule."""
    optimizer = SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0)
    return _one_cycle(optimizer, lr, steps)


def _muon(
    parameters: list[Parameter],
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> _Made:
    """Muon for matrices (its steps as long as AdamW's), AdamW for the rest, with a OneCycle schedule."""
    matrices = [parameter for parameter in parameters if parameter.ndim == 2]
    rest = [parameter for parameter in parameters if parameter.ndim != 2]
    parts: list[Optimizer] = []
    if matrices:
        parts.append(Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    if rest:
        parts.append(AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay))
    return _one_cycle(Together(*parts), lr, steps)


def _one_cycle(optimizer: Optimizer, lr: float, steps: int) -> _Made:
    """Stepped per update. OneCycleLR divides by (pct_start * steps - 1): the rise takes two steps at least."""
    steps = max(steps, 4)
    rise = max(0.01, 2 / steps)
    return optimizer, OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=rise, cycle_momentum=False)


def _elra(
    parameters: list[Parameter],
    steps: int,
    lr: float = 1e-5,
    weight_decay: float = 1.0,
    kappa: str | bool = "auto",
    growth: str | float = "adaptive",
    max_step: float | None = 2.0,
    min_step: float | None = 0.1,
    retrace: bool = True,
    low_memory: bool = False,
    boost: bool = True,
) -> _Made:
    """ELRA for networks: with the paper's warm-up floor, and evaluated at the mean of the iterates."""
    optimizer = ELRA(parameters, lr, weight_decay, kappa, growth, max_step, min_step, retrace, low_memory, None, boost)
    return optimizer, None


def _rod_flow(
    parameters: list[Parameter],
    steps: int,
    like: str = "adam",
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    substeps: int = 2,
    form: str = "signed",
    warmup: int = 10,
    floor: bool = True,
) -> _Made:
    """Rod flow of one of nine optimizers; four gradients a step, and the model is the center."""
    return RodFlow(parameters, Discrete(parameters, like, lr, beta1, beta2, eps), substeps, form, warmup, floor), None


OPTIMIZERS: dict[str, Callable[..., _Made]] = {
    "adam-onecycle": _adam_onecycle,
    "adamw-schedulefree": _adamw_schedulefree,
    "elra": _elra,
    "muon": _muon,
    "rod-flow": _rod_flow,
    "sgd": _sgd,
}


def check_options(name: str, options: Iterable[str], more: Iterable[str] = ()) -> None:
    """Raise ValueError unless there is the optimizer and it has the options, ``more`` among them."""
    if name in OPTIMIZERS:
        known = [key for key in inspect.signature(OPTIMIZERS[name]).parameters if key not in ("parameters", "steps")]
        known += sorted(more)
    else:
        taken = inspect.signature(_imported(name)).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
            return
        known = [parameter.name for parameter in taken][1:]
    for option in options:
        if option not in known:
            raise ValueError(f"the optimizer {name!r} has no option {option!r}; choose one of: {', '.join(known)}")


def _imported(name: str) -> type[Optimizer]:
    """Import an optimizer by the path of its class."""
    module, _, attribute = name.rpartition(".")
    choices = f"choose one of: {', '.join(sorted(OPTIMIZERS))}, or the path of a class, such as torch.optim.RAdam"
    if not module:
        raise ValueError(f"unknown optimizer {name!r}; {choices}")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import the optimizer {name!r} ({error}); install it, or {choices}") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ValueError(f"{name!r} is no torch.optim.Optimizer; {choices}")
    return found


def make_optimizer(
    name: str, parameters: Iterable[Parameter], steps: int = 1, options: Mapping[str, Any] | None = None
) -> _Made:
    """Make an optimizer of the table, and its schedule if it has one (step it per update).

    Args:
        name: a key of :data:`OPTIMIZERS`, or the path of a class (``"pytorch_optimizer.SOAP"``), which gets its own
            arguments and no schedule.
        parameters: what it moves.
        steps: number of updates of the whole training.
        options: arguments of its row, such as ``lr``; the row's defaults where one is missing.

    Raises:
        ValueError: if the name or an option is unknown, or a value is absurd.
    """
    options = options or {}
    check_options(name, options)
    if name not in OPTIMIZERS:
        try:
            return _imported(name)(list(parameters), **options), None
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"the optimizer {name!r} refuses its options {dict(options)}: {error}") from error
    betas = options.get("betas", (0.9, 0.999))
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers, got {betas!r}")
    for beta in betas:
        check_number("betas", beta, 0.0, 1.0, includes_low=True, includes_high=False)
    check_number("lr", options.get("lr", 1.0), 0.0)
    check_number("weight_decay", options.get("weight_decay", 0.0), 0.0, includes_low=True)
    try:
        return OPTIMIZERS[name](list(parameters), steps, **options)
    except TypeError as error:
        raise ValueError(f"the optimizer {name!r} refuses its options {dict(options)}: {error}") from error
