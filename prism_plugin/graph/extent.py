"""How near atoms of training crystals come to each other, and how large their cells are: what a structure is held to.

Returns doubts about distances, volumes and missing periodicity that no training crystal has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from prism_plugin.arrays import reading_arrays
from prism_plugin.graph.crystals import CrystalBatch, CrystalGraph

__all__ = ["Extent"]

_ELEMENTS = 119
_KINDS = ("a molecule", "a wire", "a surface or a single layer")  # by how many directions they are periodic along
_OUTSIDE = 0.01  # share of the validation crystals that are beyond the margins


@dataclass(frozen=True)
class Extent:
    """The training crystals' distances and volumes.

    Attributes:
        digest: SHA-256 of the weights of the model that it is of.
        shortest: least distance of atoms of two elements, Å, shape ``(119, 119)``; infinite where none is within the
            model's cutoff.
        volumes: least and largest volume per atom of crystals with an element, Å^3, shape ``(119, 2)``; NaN where there
            is none.
        margins: one in a hundred validation crystals has a distance over the shortest of its pair below the first, as
            many a volume over the least below the second, and over the largest above the third.
        periodic: along how many directions all of them are periodic, at least; 0 where a file does not say.
    """

    digest: str
    shortest: np.ndarray
    volumes: np.ndarray
    margins: np.ndarray
    periodic: int = 0

    @classmethod
    def fit(cls, digest: str, training: Iterable[CrystalBatch], validation: Iterable[CrystalBatch]) -> Extent:
        """Measure it.

        Args:
            digest: of the model's weights.
            training: what it was trained on, with edges within its cutoff.
            validation: what it was not.
        """
        shortest = np.full((_ELEMENTS, _ELEMENTS), np.inf, dtype=np.float32)
        least, largest = np.full(_ELEMENTS, np.inf), np.full(_ELEMENTS, -np.inf)
        periodic = 3
        for batch in training:
            pairs, lengths = _contacts(batch)
            np.minimum.at(shortest, pairs, lengths)
            numbers, volumes = _volumes(batch)
            np.fmin.at(least, numbers, volumes)
            np.fmax.at(largest, numbers, volumes)
            periodic = min(periodic, int(batch.pbc.sum(dim=1).min()))
        shortest = np.minimum(shortest, shortest.T)
        found = np.stack([least, largest], axis=1)
        found[~np.isfinite(found)] = np.nan
        plain = cls(digest, shortest, found.astype(np.float32), np.ones(3, dtype=np.float32))
        ratios = np.concatenate([plain._ratios(batch) for batch in validation])
        levels = (_OUTSIDE, _OUTSIDE, 1 - _OUTSIDE)
        nearer, denser, thinner = (
            float(np.quantile(column[np.isfinite(column)], level)) if np.isfinite(column).any() else 1.0
            for column, level in zip(ratios.T, levels, strict=True)
        )
        margins = np.array([min(1, nearer), min(1, denser), max(1, thinner)], dtype=np.float32)
        return cls(digest, shortest, plain.volumes, margins, periodic)

    def _ratios(self, batch: CrystalBatch) -> np.ndarray:
        """Least distance over its pair's shortest, volume over the least, and over the largest; ``(crystals, 3)``."""
        ratios = np.full((len(batch), 3), (np.inf, np.inf, -np.inf))
        pairs, lengths = _contacts(batch)
        crystal = batch.atom_crystal.cpu().numpy()
        np.minimum.at(ratios[:, 0], crystal[batch.edge_index[0].cpu().numpy()], self._nearness(pairs, lengths))
        numbers, volumes = _volumes(batch)
        np.fmin.at(ratios[:, 1], crystal, volumes / self.volumes[numbers, 0])
        np.fmax.at(ratios[:, 2], crystal, volumes / self.volumes[numbers, 1])
        return ratios

    def _nearness(self, pairs: tuple[np.ndarray, np.ndarray], lengths: np.ndarray) -> np.ndarray:
        """Distances over the shortest of their pairs; infinite where nothing is known of a pair."""
        shortest = self.shortest[pairs]
        return np.where(np.isfinite(shortest), lengths / shortest, np.inf)

    def doubts(self, graph: CrystalGraph) -> Mapping[str, str]:
        """Say what is nearer, denser or thinner than in the training crystals, by its kind.

        Args:
            graph: of one structure.

        Returns:
            Sentences by ``"nearer"``, ``"denser"``, ``"thinner"``, ``"not periodic"``.
        """
        found: dict[str, str] = {}
        periodic = int(graph.pbc.sum())
        if periodic < self.periodic:
            found["not periodic"] = (
                f"periodic along {periodic} of 3 directions, as {_KINDS[periodic]}; all training crystals are along "
                f"{self.periodic}"
            )
        pairs, lengths = _contacts(graph.crystals)
        nearness = self._nearness(pairs, lengths)
        if len(lengths) and nearness.min() < self.margins[0]:
            nearest = int(nearness.argmin())
            pair = int(pairs[0][nearest]), int(pairs[1][nearest])
            found["nearer"] = (
                f"{'-'.join(chemical_symbols[number] for number in pair)} are {lengths[nearest]:.2f} Å apart, in the "
                f"training crystals at least {self.shortest[pair]:.2f} Å"
            )
        numbers, volumes = _volumes(graph.crystals)
        for kind, column, sign in (("denser", 0, 1), ("thinner", 1, -1)):
            limits = self.volumes[numbers, column] * self.margins[1 + column]
            outside = sign * (limits - volumes)
            if (outside > 0).any():
                worst = int(np.nanargmax(outside))
                element, bound = chemical_symbols[numbers[worst]], self.volumes[numbers[worst], column]
                than = "at least" if kind == "denser" else "at most"
                found[kind] = (
                    f"{volumes[worst]:.3g} Å^3 an atom, in training crystals with {element} {than} {bound:.3g}"
                )
        return found

    def save(self, path: Path) -> None:
        """Write it as NPZ."""
        np.savez_compressed(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Extent:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: if it is damaged.
        """
        with reading_arrays(path) as kept:
            periodic = int(kept.get("periodic", 0))  # files from before have none
            return cls(str(kept["digest"]), kept["shortest"], kept["volumes"], kept["margins"], periodic)


def _contacts(batch: CrystalBatch) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Atomic numbers at both ends of all edges, and their lengths, Å."""
    numbers = batch.atomic_numbers.cpu().numpy()
    receiver, sender = batch.edge_index.cpu().numpy()
    lengths = batch.edge_vector.detach().norm(dim=1).cpu().numpy()
    return (numbers[receiver], numbers[sender]), lengths


def _volumes(batch: CrystalBatch) -> tuple[np.ndarray, np.ndarray]:
    """Element and volume per atom of its crystal, Å^3, of every atom; NaN without three periodic vectors."""
    volumes = (batch.volume / batch.atoms_per_crystal).cpu().numpy()
    volumes = np.where(batch.pbc.all(dim=1).cpu().numpy(), volumes, np.nan)
    return batch.atomic_numbers.cpu().numpy(), volumes[batch.atom_crystal.cpu().numpy()]
