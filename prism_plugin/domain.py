"""What a model knows: how far a crystal lies from its training crystals, and how large its errors are that far out.

A crystal is the mean of its atoms' features after the last layer, in the directions in which the training crystals
differ most. Its distance is the mean one to the nearest of them. For a potential every atom is compared, with atoms of
the training crystals; the distance of a crystal is that of its farthest atom. The interval is conformal, normalized by
an error that grows with the distance (Lei et al., J. Am. Stat. Assoc. 113, 1094, 2018, section 5.2): it holds for
crystals like the validation crystals, whatever the distribution of the errors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from prism_plugin.arrays import reading_arrays
from prism_plugin.errors import PrismError

__all__ = ["FEWEST", "LEVELS", "Domain"]

FEWEST = 20  # validation crystals; of fewer there is no interval of 95 %
LEVELS = (0.68, 0.95)  # coverage of the intervals
_DIRECTIONS = 16
_NEIGHBORS = 5
_BIN = 40  # fewest crystals whose mean error is one knot
_KNOTS = 10
_FOLDS = 5
_TEXTS = ("names", "formulas")


@dataclass(frozen=True)
class Domain:
    """The training crystals as a model sees them, and its errors on the validation crystals.

    Attributes:
        digest: SHA-256 of the weights of the model that it is of.
        mean: of the crystals' features, shape ``(dim,)``.
        scale: their standard deviations, shape ``(dim,)``.
        directions: shape ``(k, dim)``.
        steps: what 1 means in ``points``, shape ``(k,)``.
        points: the training crystals, of a potential atoms of these, along the directions, int8, shape ``(n, k)``.
        names: of the training crystals.
        formulas: of these.
        unit: distance that 95 % of the validation crystals do not reach; novelty 1.
        far: novelty that 99 % of them do not reach.
        knots: distances, and mean absolute errors there, shape ``(2, knots)``, both not falling.
        factors: what the error at a distance is multiplied by, for each of :data:`LEVELS`.
        crystals: number of validation crystals.
    """

    digest: str
    mean: np.ndarray
    scale: np.ndarray
    directions: np.ndarray
    steps: np.ndarray
    points: np.ndarray
    names: tuple[str, ...]
    formulas: tuple[str, ...]
    unit: float
    far: float
    knots: np.ndarray
    factors: tuple[float, ...]
    crystals: int

    @classmethod
    def fit(
        cls,
        digest: str,
        training: np.ndarray,
        names: Sequence[tuple[str, str]],
        validation: Sequence[np.ndarray] | np.ndarray,
        errors: np.ndarray | None,
    ) -> Domain:
        """Measure it.

        Args:
            digest: of the model's weights.
            training: features of the training crystals, or of atoms of these, shape ``(n, dim)``.
            names: of these, with their formulas.
            validation: features of the validation crystals, m of shape ``(dim,)``, or ``(atoms, dim)``.
            errors: predictions minus targets of these, shape ``(m,)``; None: there are no intervals.

        Raises:
            ValueError: if there are fewer than :data:`FEWEST` validation crystals.
        """
        mean, scale = training.mean(axis=0), training.std(axis=0) + 1e-6
        _, _, directions = np.linalg.svd((training - mean) / scale, full_matrices=False)
        directions = directions[:_DIRECTIONS]
        along = (training - mean) / scale @ directions.T
        steps = np.abs(along).max(axis=0).clip(1e-12) / 127
        plain = cls(
            digest=digest,
            mean=mean.astype(np.float32),
            scale=scale.astype(np.float32),
            directions=directions.astype(np.float32),
            steps=steps.astype(np.float32),
            points=np.rint(along / steps).astype(np.int8),
            names=tuple(name for name, _ in names),
            formulas=tuple(formula for _, formula in names),
            unit=1.0,
            far=1.0,
            knots=np.zeros((2, 1)),
            factors=(),
            crystals=0,
        )
        return plain.calibrated(validation, errors)

    def calibrated(self, validation: Sequence[np.ndarray] | np.ndarray, errors: np.ndarray | None) -> Domain:
        """Return the same training crystals with the distances and errors of other validation crystals.

        Args:
            validation: features of these, m of shape ``(dim,)``, or ``(atoms, dim)``.
            errors: predictions minus targets, shape ``(m,)``; None: there are no intervals.

        Raises:
            ValueError: if there are fewer than :data:`FEWEST`.
        """
        if len(validation) < FEWEST:
            raise PrismError(f"errors are calibrated on at least {FEWEST} crystals, got {len(validation)}")
        distances = self.distances(validation)
        unit = max(float(np.quantile(distances, 0.95)), 1e-12)
        sizes = None if errors is None else np.abs(errors)
        return replace(
            self,
            unit=unit,
            far=float(np.quantile(distances, 0.99)) / unit,
            knots=np.zeros((2, 1)) if sizes is None else _error_by_distance(distances, sizes),
            factors=() if sizes is None else _conformal_factors(distances, sizes),
            crystals=len(validation),
        )

    def distances(self, features: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Mean distances of crystals to their nearest training crystals.

        Args:
            features: n of shape ``(dim,)``, or ``(atoms, dim)``, of which the farthest atom counts.

        Returns:
            Shape ``(n,)``.
        """
        return np.array([self._nearest(one)[0].mean(axis=1).max() for one in map(np.atleast_2d, features)])

    def novelty(self, features: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Return the distances in units of that which 95 % of the validation crystals do not reach, shape ``(n,)``."""
        return self.distances(features) / self.unit

    def farthest(self, features: np.ndarray) -> int:
        """Which of the atoms of one crystal is the farthest; their features have shape ``(atoms, dim)``."""
        return int(self._nearest(features)[0].mean(axis=1).argmax())

    def half_widths(self, novelty: np.ndarray) -> np.ndarray:
        """Half the widths of intervals about predictions, shape ``(n, levels)``, in the prediction's unit."""
        return _at(self.knots, np.asarray(novelty) * self.unit)[:, None] * np.array(self.factors)

    def nearest(self, features: np.ndarray) -> list[list[tuple[str, float]]]:
        """Return the nearest training crystals of each, as name and formula, with their distances in novelty's unit."""
        found = zip(*self._nearest(features), strict=True)
        called = [f"{name} ({formula})" for name, formula in zip(self.names, self.formulas, strict=True)]
        return [[(called[index], float(one) / self.unit) for one, index in zip(*pair, strict=True)] for pair in found]

    def along(self, features: np.ndarray) -> np.ndarray:
        """Crystals along the directions, shape ``(n, k)``; the training crystals: ``training``."""
        return (np.asarray(features, dtype=np.float32) - self.mean) / self.scale @ self.directions.T

    @cached_property
    def training(self) -> np.ndarray:
        """The training crystals, or atoms of these, along the directions, shape ``(n, k)``."""
        return self.points * self.steps

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self.training)

    def _nearest(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances to the nearest points, nearest first, and which these are; both of shape ``(n, neighbors)``.

        Of features that are not finite the distances are NaN.
        """
        along = self.along(features)
        count = min(_NEIGHBORS, len(self.points))
        distances, indices = np.full((len(along), count), np.nan), np.zeros((len(along), count), dtype=int)
        finite = np.isfinite(along).all(axis=1)
        distances[finite], indices[finite] = self._tree.query(along[finite], range(1, count + 1))
        return distances, indices

    def save(self, path: Path) -> None:
        """Write it as NPZ."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in _TEXTS:
            arrays[name] = np.frombuffer(json.dumps(arrays[name]).encode(), dtype=np.uint8)
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Domain:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: if it is damaged.
        """
        with reading_arrays(path) as kept:
            given: dict[str, Any] = {field.name: kept[field.name] for field in fields(cls)}
            for name in _TEXTS:
                given[name] = tuple(map(str, json.loads(given[name].tobytes())))
            given["digest"] = str(given["digest"])
            given["factors"] = tuple(map(float, given["factors"]))
            for name in ("unit", "far", "crystals"):
                given[name] = given[name].item()
        return cls(**given)


def _error_by_distance(distances: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean absolute errors of groups of crystals of growing distance, made not to fall; shape ``(2, knots)``."""
    order = np.argsort(distances, kind="stable")
    groups = np.array_split(order, max(1, min(_KNOTS, len(order) // _BIN)))
    knots = np.array([[np.median(distances[group]), sizes[group].mean()] for group in groups]).T
    knots[1] = np.maximum.accumulate(knots[1]).clip(1e-12)
    return knots


def _at(knots: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Errors at distances: linear between the knots, growing as the distance beyond the last."""
    inside = np.interp(distances, *knots)
    return inside * np.maximum(1.0, distances / max(knots[0, -1], 1e-12))


def _conformal_factors(distances: np.ndarray, sizes: np.ndarray) -> tuple[float, ...]:
    """Quantiles of errors in units of the expected ones, each expected without the crystal's own fold."""
    fold = np.random.default_rng(0).permutation(len(sizes)) % _FOLDS
    scores = np.empty(len(sizes))
    for number in range(_FOLDS):
        left = fold == number
        scores[left] = sizes[left] / _at(_error_by_distance(distances[~left], sizes[~left]), distances[left])
    ordered, count = np.sort(scores), len(scores)
    return tuple(float(ordered[min(count, int(np.ceil(level * (count + 1)))) - 1]) for level in LEVELS)
