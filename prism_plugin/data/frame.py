"""One structure of a file, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ase import Atoms

from prism_plugin.errors import PrismError
from prism_plugin.graph.structure import read_structure

__all__ = ["Frame", "Read", "as_atoms", "reason_of"]


@dataclass(frozen=True)
class Frame:
    """One structure of a file.

    Attributes:
        place: where it stands, for messages.
        name: what the file calls it, as it is written there; its number where it has no name.
        atoms: the structure.
        values: whatever else the file says of it, by name.
        doubts: what should be looked at.
    """

    place: str
    name: str
    atoms: Atoms
    values: Mapping[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


# A frame, or the reason why there is none.
Read: TypeAlias = "Frame | PrismError"


def as_atoms(structure: Any) -> Atoms:
    """Turn a pymatgen structure into ASE atoms.

    Raises:
        ValueError: if it is bad (see :func:`~prism_plugin.graph.structure.read_structure`).
    """
    return read_structure(structure).atoms()


def reason_of(error: Exception) -> str:
    """Say what an error means, one of a library with its kind."""
    if isinstance(error, KeyError):
        return f"{error} is missing or unknown"
    return str(error) if isinstance(error, PrismError) else f"{type(error).__name__}: {error}"
