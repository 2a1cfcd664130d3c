"""Optimizers by name: one plain table. A row turns parameters and options into an optimizer and its scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

from schedulefree import AdamWScheduleFree
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from prism_plugin.config import (
    OPTIMIZER_OPTIONS,
    AdamOneCycleOptions,
    AdamWScheduleFreeOptions,
    ELRAOptions,
    MuonOptions,
    RodFlowOptions,
    SGDOptions,
    optimizer_options,
)
from prism_plugin.errors import PrismError
from prism_plugin.optim.composite import Together
from prism_plugin.optim.elra.optimizer import ELRA
from prism_plugin.optim.muon import GroupedMuon
from prism_plugin.optim.rod_flow.discrete import Discrete
from prism_plugin.optim.rod_flow.optimizer import RodFlow

__all__ = ["OPTIMIZERS", "make_optimizer"]

_Made = tuple[Optimizer, LRScheduler | None]


def _adamw_schedulefree(parameters: list[Parameter], steps: int, options: AdamWScheduleFreeOptions) -> _Made:
    how = {"lr": options.lr, "betas": options.betas, "weight_decay": options.weight_decay}
    return AdamWScheduleFree(parameters, **how, warmup_steps=min(500, steps // 20)), None


def _adam_onecycle(parameters: list[Parameter], steps: int, options: AdamOneCycleOptions) -> _Made:
    optimizer = Adam(parameters, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay)
    return _one_cycle(optimizer, options.lr, steps)


def _sgd(parameters: list[Parameter], steps: int, options: SGDOptions) -> _Made:
    nesterov = options.momentum > 0
    optimizer = SGD(parameters, options.lr, options.momentum, weight_decay=options.weight_decay, nesterov=nesterov)
    return _one_cycle(optimizer, options.lr, steps)


def _muon(parameters: list[Parameter], steps: int, options: MuonOptions) -> _Made:
    """Muon for matrices (its steps as long as AdamW's), AdamW for the rest."""
    matrices = [parameter for parameter in parameters if parameter.ndim == 2]
    rest = [parameter for parameter in parameters if parameter.ndim != 2]
    lr, decay = options.lr, options.weight_decay
    parts: list[Optimizer] = []
    if matrices:
        kind = GroupedMuon if matrices[0].is_cuda else Muon  # on a GPU many small kernels take longer than the network
        parts.append(kind(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    if rest:
        parts.append(AdamW(rest, lr=lr, weight_decay=decay, betas=options.betas))
    return _one_cycle(Together(*parts), options.lr, steps)


def _one_cycle(optimizer: Optimizer, lr: float | list[float], steps: int) -> _Made:
    """Step it per update; ``lr`` is the largest rate, or that of each group.

    OneCycleLR divides by (pct_start * steps - 1): the rise takes two steps at least.
    """
    steps = max(steps, 4)
    rise = max(0.01, 2 / steps)
    return optimizer, OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=rise, cycle_momentum=False)


def _elra(parameters: list[Parameter], steps: int, options: ELRAOptions) -> _Made:
    """ELRA for networks: with the paper's warm-up floor, and evaluated at the mean of the iterates."""
    of_optimizer = ("lr", "weight_decay", "kappa", "growth", "max_step", "min_step", "retrace", "low_memory", "boost")
    return ELRA(parameters, **{name: getattr(options, name) for name in of_optimizer}), None


def _rod_flow(parameters: list[Parameter], steps: int, options: RodFlowOptions) -> _Made:
    like = Discrete(parameters, options.like, options.lr, options.beta1, options.beta2, options.eps)
    return RodFlow(parameters, like, options.substeps, options.form, options.warmup, options.floor), None


OPTIMIZERS: dict[str, Callable[..., _Made]] = {
    "adam-onecycle": _adam_onecycle,
    "adamw-schedulefree": _adamw_schedulefree,
    "elra": _elra,
    "muon": _muon,
    "rod-flow": _rod_flow,
    "sgd": _sgd,
}


def make_optimizer(
    name: str,
    parameters: Iterable[Parameter],
    steps: int = 1,
    options: Mapping[str, Any] | None = None,
    schedule: str | None = None,
) -> _Made:
    """Make an optimizer of the table, and its schedule if it has one (step it per update).

    Args:
        name: a key of :data:`OPTIMIZERS`, or the path of a class (``"pytorch_optimizer.SOAP"``), which gets its own
            arguments, and its parameters in two groups: matrices, with ``use_muon=True``, as optimizers of
            pytorch_optimizer that treat both differently want them, and the rest.
        parameters: what it moves.
        steps: number of updates of the whole training.
        options: by name, such as ``lr`` (:data:`prism_plugin.config.OPTIMIZER_OPTIONS`); the defaults where one is
            missing.
        schedule: ``"onecycle"`` for a class: its rate then rises and falls as those of the table do that have a
            schedule; None: it stays.

    Raises:
        ValueError: if the name or an option is unknown, or a value is absurd.
    """
    options = options or {}
    if name in OPTIMIZERS:
        return OPTIMIZERS[name](list(parameters), steps, optimizer_options(name, options, schedule))
    found = _imported(name)
    _check_arguments(name, found, options)
    given = list(parameters)
    groups = [(True, [one for one in given if one.ndim == 2]), (False, [one for one in given if one.ndim != 2])]
    try:
        made = found([{"params": some, "use_muon": matrices} for matrices, some in groups if some], **options)
    except (AttributeError, ImportError, TypeError, RuntimeError, ValueError) as error:
        raise PrismError(f"the optimizer {name!r} refuses its options {dict(options)}: {error}") from error
    if schedule is None:
        return made, None
    if not all(isinstance(group.get("lr"), float) for group in made.param_groups):
        raise PrismError(f"the optimizer {name!r} has no rate that a schedule could move: leave schedule out")
    return _one_cycle(made, [group["lr"] for group in made.param_groups], steps)


def _imported(name: str) -> type[Optimizer]:
    """Import an optimizer by the path of its class."""
    module, _, attribute = name.rpartition(".")
    choices = (
        f"choose one of: {', '.join(sorted(OPTIMIZER_OPTIONS))}, or the path of a class, such as torch.optim.RAdam"
    )
    if not module:
        raise PrismError(f"unknown optimizer {name!r}; {choices}")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise PrismError(f"cannot import the optimizer {name!r} ({error}); install it, or {choices}") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise PrismError(f"{name!r} is no torch.optim.Optimizer; {choices}")
    return found


def _check_arguments(name: str, optimizer: type[Optimizer], options: Mapping[str, Any]) -> None:
    """Raise ValueError unless a class takes the options."""
    taken = inspect.signature(optimizer).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return
    known = [parameter.name for parameter in taken][1:]
    for option in options:
        if option not in known:
            raise PrismError(f"the optimizer {name!r} has no option {option!r}; choose one of: {', '.join(known)}")
