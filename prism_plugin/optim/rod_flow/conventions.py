"""Torch's optimizers in the convention of the rod-flow papers: their map of phase space, momentum and second moment.

SGD keeps buf = m / (1 - momentum) and lr = (1 - momentum) lr_EMA; its Nesterov keeps the point where the gradient is
taken; NAdam has a momentum that rises with the steps. What the map does not describe is refused.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

from prism_plugin.errors import PrismError
from prism_plugin.optim.rod_flow.discrete import Discrete
from prism_plugin.optim.rod_flow.phase_space import METHODS, PhaseMap
from prism_plugin.optim.vectors import flatten

__all__ = ["Moments", "eos_threshold", "parameters_of", "phase_map", "read_moments", "write_moments"]

_KNOWN = "SGD, RMSprop, Adam, AdamW and NAdam of torch.optim, and prism_plugin.optim.Discrete"


class Moments(NamedTuple):
    """What an optimizer keeps: momentum and second moment as vectors, None where it has none, and its steps."""

    m: Tensor | None
    nu: Tensor | None
    steps: int


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters of an optimizer, frozen ones too.

    Raises:
        ValueError: unless they are of one real dtype of at least 32 bits and on one device.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
    if len(kinds) > 1:
        raise PrismError(f"all parameters must have one dtype and one device, got {sorted(map(str, kinds))}")
    if any(hasattr(parameter, "device_mesh") for parameter in parameters):
        raise PrismError("sharded parameters (DTensor, FSDP) have no common vector: use DDP")
    if parameters[0].dtype not in (torch.float32, torch.float64):
        raise PrismError(
            f"the two ends of a rod differ by less than {parameters[0].dtype} can tell: use float32 or float64"
        )
    return parameters


def phase_map(optimizer: Optimizer) -> PhaseMap:
    """Read the map of phase space off an optimizer, with its present learning rate.

    Raises:
        ValueError: if it is of an unknown kind, has an option that the map does not describe (amsgrad, centered,
            maximize, momentum of RMSprop), or parameter groups that differ.
    """
    if isinstance(optimizer, Discrete):
        return optimizer.map
    kind = type(optimizer)
    if kind not in (SGD, RMSprop, Adam, AdamW, NAdam):
        raise PrismError(f"the map of phase space of {kind.__name__} is not known; there are those of {_KNOWN}")
    group = _one_group(optimizer)
    for option in ("amsgrad", "centered", "maximize"):
        if group.get(option):
            raise PrismError(f"{option}=True is not described by the map of phase space: switch it off")
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    decoupled = bool(group.get("decoupled_weight_decay"))
    settings: dict[str, Any] = {"penalty": 0.0 if decoupled else decay, "decay": decay if decoupled else 0.0}
    if kind is SGD:
        b = float(group["momentum"])
        method = "nesterov" if group["nesterov"] else "heavy-ball" if b else "gd"
        lr *= (1 - group["dampening"]) / (1 - b) if b else 1.0
        settings["beta1"] = b
    elif kind is RMSprop:
        if group["momentum"]:
            raise PrismError("RMSprop with momentum averages scaled gradients, no map here does: set momentum=0")
        method = "rmsprop"
        settings.update(beta2=float(group["alpha"]), eps=float(group["eps"]))
    else:
        method = "nadam" if kind is NAdam else "adam"
        b1, b2 = (float(beta) for beta in group["betas"])
        settings.update(beta1=b1, beta2=b2, eps=float(group["eps"]))
        if kind is NAdam:
            settings["mu_decay"] = float(group["momentum_decay"])
    if not lr >= 0:
        raise PrismError(f"the learning rate must not be negative, got {group['lr']!r}")
    return PhaseMap(lr=lr, **settings, **METHODS[method])


def eos_threshold(optimizer: Optimizer, step: float = math.inf) -> float:
    """Sharpness at which an optimizer's steps become unstable: its edge of stability.

    It is to be compared with the largest eigenvalue of P^-1/2 H P^-1/2, H being the Hessian of the loss (with the L2
    penalty of a coupled ``weight_decay``) and P the diagonal by which the optimizer divides: 1 for SGD, the root of the
    (corrected) second moment plus eps for the adaptive ones.

    Args:
        optimizer: SGD (with momentum, with Nesterov's), RMSprop, Adam, AdamW or NAdam of torch, or ``Discrete``.
        step: which step, counted from 0; the threshold of Adam starts at a (1 - beta1)th of its late value, and that of
            torch's NAdam moves for thousands of steps. Infinity is the late value.

    Returns:
        The threshold, in units of the Hessian over P.

    Raises:
        ValueError: if the optimizer is of an unknown kind or its groups differ.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> eos_threshold(torch.optim.SGD([weight], lr=0.1))
        20.0
        >>> round(eos_threshold(torch.optim.Adam([weight], lr=0.1, betas=(0.9, 0.999))), 6)
        380.0
    """
    if math.isnan(step) or step < 0:
        raise PrismError(f"step must be at least 0, got {step!r}")
    return phase_map(optimizer).threshold(step)


def read_moments(optimizer: Optimizer) -> Moments:
    """Return momentum and second moment of an optimizer as vectors in the EMA convention, and its number of steps."""
    parameters = parameters_of(optimizer)
    phase = phase_map(optimizer)
    state = [optimizer.state.get(parameter, {}) for parameter in parameters]
    if isinstance(optimizer, Discrete):
        m, nu = state[0].get("momentum"), state[0].get("second")
        steps = optimizer.param_groups[0]["steps"]
    else:
        scale = _buffer_scale(optimizer)
        name = "momentum_buffer" if isinstance(optimizer, SGD) else "exp_avg"
        m = _joined(parameters, state, name, 1 / scale) if phase.has_momentum else None
        nu = _joined(parameters, state, _second(optimizer), 1.0) if phase.scaling != "none" else None
        steps = max((int(vectors["step"]) for vectors in state if "step" in vectors), default=0)
    if steps == 0 and m is None and nu is None:
        m, nu = phase.start(flatten(parameters))
    return Moments(m, nu, steps)


def write_moments(optimizer: Optimizer, moments: Moments) -> None:
    """Put momentum, second moment and the number of steps into an optimizer, where they go on from."""
    parameters, phase = parameters_of(optimizer), phase_map(optimizer)
    if isinstance(optimizer, Discrete):
        optimizer.param_groups[0]["steps"] = moments.steps
        kept = {"momentum": moments.m, "second": moments.nu}
        optimizer.state[parameters[0]].update({key: value for key, value in kept.items() if value is not None})
        return
    begin = 0
    for parameter in parameters:
        vectors, end = optimizer.state[parameter], begin + parameter.numel()
        if isinstance(optimizer, SGD):
            if moments.m is not None:
                vectors["momentum_buffer"] = (moments.m[begin:end] * _buffer_scale(optimizer)).view_as(parameter)
        else:
            group = optimizer.param_groups[0]
            place = parameter.device if group.get("fused") or group.get("capturable") else "cpu"
            kind = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32  # as in torch
            vectors["step"] = torch.tensor(float(moments.steps), dtype=kind, device=place)
            if moments.nu is not None:
                vectors[_second(optimizer)] = moments.nu[begin:end].clone().view_as(parameter)
            if moments.m is not None:
                vectors["exp_avg"] = moments.m[begin:end].clone().view_as(parameter)
            if isinstance(optimizer, NAdam):
                vectors["mu_product"] = torch.full_like(vectors["step"], phase.mu_product(moments.steps - 1))
        begin = end


def _one_group(optimizer: Optimizer) -> dict[str, Any]:
    first, *others = optimizer.param_groups
    for group in others:
        different = sorted(key for key in optimizer.defaults if group.get(key) != first.get(key))
        if different:
            raise PrismError(f"parameter groups differ in {', '.join(different)}: one threshold needs one setting")
    return first


def _second(optimizer: Optimizer) -> str:
    return "square_avg" if isinstance(optimizer, RMSprop) else "exp_avg_sq"


def _buffer_scale(optimizer: Optimizer) -> float:
    """What torch keeps, over the mean of gradients."""
    group = optimizer.param_groups[0]
    return (1 - group["dampening"]) / (1 - group["momentum"]) if isinstance(optimizer, SGD) else 1.0


def _joined(parameters: list[Tensor], state: list[dict[str, Any]], name: str, scale: float) -> Tensor:
    """One kind of vector of all parameters; zero where a parameter has none yet."""
    pairs = zip(parameters, state, strict=True)
    return flatten(kept[name] * scale if name in kept else torch.zeros_like(parameter) for parameter, kept in pairs)
