"""Parents of frames: the training crystals of a file, in an order that balances the elements."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms

from prism_plugin.data.sources import frames_of, iterate_structures
from prism_plugin.data.structure_files import is_series
from prism_plugin.errors import PrismError

__all__ = ["Parents", "balanced_order", "read_parents"]


@dataclass(frozen=True)
class Parents:
    """Crystals that frames are made of.

    Attributes:
        names: one for each.
        crystals: the structures.
        left_out: why others of the file are not among them, with their number.
    """

    names: tuple[str, ...]
    crystals: tuple[Atoms, ...]
    left_out: dict[str, int]

    @property
    def digest(self) -> str:
        """Hash of names and structures."""
        digest = hashlib.sha256()
        for name, atoms in zip(self.names, self.crystals, strict=True):
            digest.update(name.encode() + b"\0")
            for values in (atoms.numbers, atoms.positions, atoms.cell.array):
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def read_parents(path: str | Path, elements: Collection[str], max_atoms: int) -> Parents:
    """Read the crystals of a file or folder that may be parents.

    Args:
        path: what :func:`~prism_plugin.data.sources.iterate_structures` reads. Where the rows of a ``.jsonl`` or the
            frames of an ``.extxyz`` name a ``split``, only ``"train"`` is taken.
        elements: symbols that the teacher knows.
        max_atoms: larger crystals are left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a structure cannot be read, or none is left.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no structures {str(path)!r}; give a file or a folder")
    names, crystals = [], []
    left_out: Counter[str] = Counter()
    for name, split, atoms in _rows(path):
        reason = _why_not(split, atoms, elements, max_atoms)
        if reason is not None:
            left_out[reason] += 1
            continue
        names.append(name)
        crystals.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=True))
    if not crystals:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        raise PrismError(f"{path}: no structure can be a parent ({reasons or 'it is empty'}); give another file")
    return Parents(tuple(names), tuple(crystals), dict(left_out))


def balanced_order(crystals: Sequence[Atoms], seed: int) -> np.ndarray:
    """Return a random order of crystals in which those with rare elements come early.

    It is a draw without replacement whose weights are one over the number of crystals with the rarest element of each
    (Efraimidis and Spirakis, Inf. Process. Lett. 97, 181 (2006)): of any first part, rare elements are there in full
    and common ones about equally often.
    """
    counts = Counter(symbol for atoms in crystals for symbol in set(atoms.symbols))
    weights = np.array([1 / min(counts[symbol] for symbol in set(atoms.symbols)) for atoms in crystals])
    draws = np.random.default_rng(np.random.SeedSequence([seed, 2**32])).exponential(size=len(crystals))
    return np.argsort(draws / weights, kind="stable")


def _why_not(split: str | None, atoms: Atoms, elements: Collection[str], max_atoms: int) -> str | None:
    if split not in (None, "train"):
        return "of another split than train"
    if len(atoms) > max_atoms:
        return f"with more than {max_atoms} atoms"
    if not len(atoms) or not atoms.pbc.all() or atoms.cell.rank < 3:
        return "not periodic in three directions"
    if not set(atoms.symbols) <= set(elements):
        return "with elements that the teacher does not know"
    return None


def _rows(path: Path) -> Iterator[tuple[str, str | None, Atoms]]:
    """Names, splits and structures."""
    for found in iterate_structures([path]):
        for name, frame in frames_of(*found):
            if isinstance(frame, PrismError):
                raise frame
            yield (frame.name if is_series(path) else Path(name).name), frame.values.get("split"), frame.atoms
