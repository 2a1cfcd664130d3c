"""The nine optimizers of the rod-flow papers in their own convention, as one torch optimizer.

The scalar ones and the NAdam of constant momentum are not in torch. Gradient descent, heavy ball, Nesterov, RMSProp and
Adam equal torch's (a test); use those for training. Vectors are flat: one of each kind for all parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from prism_plugin.errors import PrismError
from prism_plugin.optim.checks import check_number, check_state
from prism_plugin.optim.rod_flow.phase_space import METHODS, PhaseMap
from prism_plugin.optim.vectors import assign, flatten, flatten_gradients

__all__ = ["Discrete"]


class Discrete(Optimizer):
    """One of nine optimizers in the convention of the rod-flow papers (momentum is a mean of gradients).

    Args:
        params: what it moves: one group of parameters of one dtype and device.
        method: a key of :data:`prism_plugin.optim.rod_flow.phase_space.METHODS`.
        lr: learning rate; with momentum it is torch's ``SGD(lr, momentum)`` times 1 / (1 - momentum).
        beta1: of the momentum, for methods that have one. beta2: of the second moment, likewise.
        eps: added to its root.

    Raises:
        ValueError: if the method is unknown or a number is out of range.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = Discrete([x], "gd", lr=0.25)
        >>> x.square().sum().backward()
        >>> optimizer.step()
        >>> float(x.detach())
        1.0
    """

    def __init__(
        self,
        params: Iterable[Any],
        method: str,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        if method not in METHODS:
            raise PrismError(f"unknown method {method!r}; choose one of: {', '.join(METHODS)}")
        check_number("lr", lr, 0.0)
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            check_number(name, value, 0.0, 1.0, includes_low=True, includes_high=False)
        check_number("eps", eps, 0.0, includes_low=True)
        super().__init__(params, {"lr": lr, "method": method, "beta1": beta1, "beta2": beta2, "eps": eps, "steps": 0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the parameters, which is possible in the constructor only.

        Raises:
            ValueError: for a second group.
        """
        if self.param_groups:
            raise PrismError("Discrete keeps one vector of all parameters: give them in one group")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore everything, the settings too.

        Raises:
            ValueError: if the state is not one of Discrete.
        """
        check_state("a Discrete optimizer", self.param_groups[0], state_dict)
        super().load_state_dict(state_dict)

    @property
    def map(self) -> PhaseMap:
        """The map of phase space, with the present learning rate."""
        group = self.param_groups[0]
        fields = METHODS[group["method"]]
        return PhaseMap(
            lr=group["lr"],
            beta1=group["beta1"] if "momentum" in fields else 0.0,
            beta2=group["beta2"] if "scaling" in fields else 0.0,
            eps=group["eps"] if "scaling" in fields else 0.0,
            **fields,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply the map once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group, phase = self.param_groups[0], self.map
        w = flatten(group["params"])
        vectors = self.state[group["params"][0]]
        m, nu = (vectors.get("momentum"), vectors.get("second")) if vectors else phase.start(w)
        w, m, nu = phase.step(w, m, nu, flatten_gradients(group["params"]), group["steps"])
        vectors.update({key: value for key, value in (("momentum", m), ("second", nu)) if value is not None})
        group["steps"] += 1
        assign(group["params"], w)
        return loss
