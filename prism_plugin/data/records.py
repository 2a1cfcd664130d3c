"""Crystals with their targets, as they come from a file or a data set."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from prism_plugin.errors import PrismError
from prism_plugin.graph.structure import Structure, read_structure

__all__ = ["Record", "check_symmetric", "count_crystals", "elements_of", "fingerprint"]


@dataclass(frozen=True)
class Record:
    """One crystal with its target.

    Attributes:
        atoms: the structure; one of pymatgen is turned into ASE's.
        target: the number to predict; finite.
        name: what to call it in logs and tables.
        split: ``"train"``, ``"val"``, ``"test"``, or None where the file does not say.
        forces: eV/Å, shape ``(atoms, 3)``; with the target ``"pes"`` only, which then is the total energy in eV.
        stress: eV/Å^3, positive where the crystal wants to shrink (as in ASE), shape ``(3, 3)``; it may be given as
            ASE's xx, yy, zz, yz, xz, xy. None if unknown.

    Raises:
        TypeError: if the structure is none.
        ValueError: if it is bad, the target is no finite number, or forces or stress have another shape, or are none.
    """

    atoms: Atoms
    target: float
    name: str
    split: str | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None

    @property
    def structure(self) -> Structure:
        """The structure as it is now, checked.

        Raises:
            ValueError: if it is bad (see :func:`~prism_plugin.graph.structure.read_structure`).
        """
        return read_structure(self.atoms)

    def checked(self) -> Record:
        """Return the record; raises ValueError if its structure is bad."""
        read_structure(self.atoms)
        return self

    def __post_init__(self) -> None:
        """Read the structure of pymatgen; check the numbers, and take forces and stress in float64."""
        try:
            is_number = not isinstance(self.target, str | bytes) and np.isfinite(float(self.target))
        except (TypeError, ValueError, OverflowError):
            is_number = False
        if not is_number:
            raise PrismError(f"the target of crystal {self.name!r} is no finite number: {self.target!r}")
        if not isinstance(self.atoms, Atoms):
            object.__setattr__(self, "atoms", read_structure(self.atoms).atoms())
        for name, shapes in (("forces", ((len(self.atoms), 3),)), ("stress", ((3, 3), (6,), (9,)))):
            given = getattr(self, name)
            if given is None:
                continue
            try:
                values = np.array(given, dtype=np.float64)
            except (TypeError, ValueError, OverflowError) as error:
                raise PrismError(f"in {name} there is something else than numbers: {error}") from error
            if values.shape not in shapes:
                needed = " or ".join(map(str, shapes))
                raise PrismError(f"the shape of {name} is {values.shape}; needed is {needed}")
            if not np.isfinite(values).all():
                raise PrismError(f"a number in {name} is not finite; remove the crystal")
            if name == "stress":
                values = voigt_6_to_full_3x3_stress(values) if values.shape == (6,) else values.reshape(3, 3)
                check_symmetric(name, values)
            object.__setattr__(self, name, values)


def check_symmetric(name: str, matrix: np.ndarray) -> None:
    """Raise ValueError if a stress or virial is not symmetric to a thousandth of its largest component."""
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-6 + 1e-3 * np.abs(matrix).max()):
        raise PrismError(f"the {name} is not symmetric: {matrix.tolist()}")


def elements_of(records: Iterable[Record]) -> list[str]:
    """Symbols of all elements in some records, sorted."""
    return sorted({symbol for record in records for symbol in record.atoms.symbols})


def count_crystals(records: Iterable[Record]) -> Counter[str]:
    """Number of crystals with each element, by its symbol."""
    return Counter(symbol for record in records for symbol in set(record.atoms.symbols))


def fingerprint(parts: Mapping[str, Sequence[Record]], structures: bool = False) -> str:
    """Hash names, sizes and labels of all crystals, by which a run knows its own data.

    Args:
        parts: crystals by the name of their part.
        structures: whether elements, positions and cells are hashed, too.
    """
    digest = hashlib.sha256()
    for split in sorted(parts):
        for record in parts[split]:
            digest.update(f"{split} {record.name} {len(record.atoms)} {record.target!r}\n".encode())
            atoms = record.atoms
            geometry = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc) if structures else ()
            for values in (record.forces, record.stress, *geometry):
                digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]
