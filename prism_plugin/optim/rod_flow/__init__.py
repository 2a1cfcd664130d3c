"""Rod flow: nine phase-space maps, torch's optimizers as such maps, the flows, and optimizers on them."""

from __future__ import annotations

from prism_plugin.optim.rod_flow.optimizer import RodFlow

__all__ = ["RodFlow"]
