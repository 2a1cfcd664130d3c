"""Several models of one property that answer together: their mean, and the spread of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prism_plugin.domain import LEVELS
from prism_plugin.errors import PrismError
from prism_plugin.matgl_bridge import weights_digest
from prism_plugin.model import PRISM

__all__ = ["HowFar", "bounded", "bounds_forces", "check_committee", "how_far", "interval_levels", "mean_and_spread"]


class HowFar(NamedTuple):
    """How far crystals are from what models know.

    Attributes:
        novelty: distance from the training crystals; 95 % of the validation crystals are nearer than 1; shape ``(n,)``.
        half_widths: of the intervals about what :func:`bounded` names, one of each level, shape ``(n, levels)``.
        far: novelty that 99 % of the validation crystals do not reach.
        atoms: the farthest atom of each that is far, where atoms are compared; else None.
    """

    novelty: np.ndarray
    half_widths: np.ndarray
    far: float
    atoms: list[int | None]

    def warning(self, row: int) -> str:
        """Say that a crystal is far; an empty text if it is not."""
        novelty = float(self.novelty[row])
        if not novelty > self.far:
            return ""
        atom = self.atoms[row]
        where = "" if atom is None else f", atom {atom}, counted from 0"
        return (
            "farther from the training crystals than 99 % of the validation crystals were "
            f"(novelty {novelty:.2g}{where})"
        )


def bounded(models: Sequence[PRISM]) -> tuple[str, str]:
    """Return what the models' intervals are about, and its unit: what they predict; of potentials the largest error.

    That is the largest error of a force in a structure, as the length of a vector.
    """
    return ("max_force_error", "eV/Å") if bounds_forces(models) else (models[0].target, models[0].unit)


def bounds_forces(models: Sequence[PRISM]) -> bool:
    """Whether the models' intervals are about forces; else about what they predict."""
    return all(model.domain_of_atoms for model in models)


def interval_levels(models: Sequence[PRISM]) -> tuple[float, ...] | None:
    """Return the coverage of the intervals that models know, of which there may be none; None without a domain.

    Nor have models one together of which some compare crystals, with intervals of energies, and others atoms.
    """
    domains = [model.domain for model in models]
    known = [domain for domain in domains if domain is not None]
    if len(known) < len(models) or len({model.domain_of_atoms for model in models}) > 1:
        return None
    return LEVELS if all(domain.factors for domain in known) else ()


def how_far(models: Sequence[PRISM], features: Sequence[Sequence[np.ndarray] | np.ndarray]) -> HowFar | None:
    """Measure how far crystals are from what models know; of several models the mean.

    Args:
        models: of one property.
        features: of the crystals, for each model as :meth:`~prism_plugin.PRISM.domain_features` gives them.

    Returns:
        None if a model has no domain.
    """
    levels = interval_levels(models)
    if levels is None:
        return None
    known = [(model.domain, one) for model, one in zip(models, features, strict=True) if model.domain is not None]
    each = [domain.novelty(one) for domain, one in known]
    widths = [domain.half_widths(one)[:, : len(levels)] for (domain, _), one in zip(known, each, strict=True)]
    novelty, far = np.mean(each, axis=0), float(np.mean([domain.far for domain, _ in known]))
    (domain, of_first), *_ = known
    atoms = [
        domain.farthest(one) if np.ndim(one) == 2 and value > far else None
        for one, value in zip(of_first, novelty, strict=True)
    ]
    return HowFar(novelty, np.mean(widths, axis=0), far, atoms)


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
