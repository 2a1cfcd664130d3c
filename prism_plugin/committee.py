"""Several models of one property that answer together: their mean, and the spread of their answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prism_plugin.errors import PrismError
from prism_plugin.matgl_bridge import weights_digest
from prism_plugin.model import PRISM

__all__ = ["check_committee", "mean_and_spread"]


def mean_and_spread(answers: Sequence[np.ndarray] | np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the mean of the models' answers and their standard deviation, that of a sample (n - 1).

    Args:
        answers: one array of equal shape for each model.

    Returns:
        Mean, and spread of the same shape; None for a single model, which has none.
    """
    stacked = np.asarray(answers)
    return stacked.mean(axis=0), stacked.std(axis=0, ddof=1) if len(stacked) > 1 else None


def check_committee(models: Sequence[PRISM]) -> None:
    """Refuse models that are no committee.

    Raises:
        ValueError: if the models predict different things, or one is given twice.
    """
    kinds = sorted({(model.target, model.unit or "no unit", model.readout, model.task_type) for model in models})
    if len(kinds) > 1:
        found = " and ".join(f"{target} ({', '.join(others)})" for target, *others in kinds)
        raise PrismError(f"the models predict different things: {found}; give models of one property")
    if len(models) == 1:
        return
    different = {(weights_digest(model.state_dict()), repr(sorted(model.arguments.items()))) for model in models}
    if len(different) < len(models):
        raise PrismError("a model is given twice, which makes the spread too small; give each once")
