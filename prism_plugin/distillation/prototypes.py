"""Prototypes: elements and simple compounds in the crystal structures of the textbooks, cells enlarged, and slabs.

Bond lengths are sums of covalent radii (Cordero et al., Dalton Trans. 2008, 2832, as in ``ase.data``), of noble gases
of van der Waals radii (Bondi, J. Phys. Chem. 68, 441 (1964)); the teacher's own lattice constants are near them, see
:func:`~prism_plugin.distillation.paths.settled`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk, surface
from ase.data import atomic_numbers, covalent_radii

__all__ = ["enlarged", "prototype", "slab"]

NONMETALS = ("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Ge", "As", "Se", "Br", "Sb", "Te", "I")
ELEMENTAL = ("fcc", "bcc", "hcp", "sc", "diamond")
BINARY = ("rocksalt", "cesiumchloride", "zincblende", "wurtzite", "fluorite")
# Bond length -> lattice constant.
_EDGE = {
    "fcc": 2**0.5,
    "bcc": 2 / 3**0.5,
    "hcp": 1.0,
    "sc": 1.0,
    "diamond": 4 / 3**0.5,
    "rocksalt": 2.0,
    "cesiumchloride": 2 / 3**0.5,
    "zincblende": 4 / 3**0.5,
    "wurtzite": (8 / 3) ** 0.5,
    "fluorite": 4 / 3**0.5,
}
_NOBLE = {"He": 1.40, "Ne": 1.54, "Ar": 1.88, "Kr": 2.02, "Xe": 2.16}  # Å
_VACUUM = 10.0  # Å between the images of a slab


def prototype(rng: np.random.Generator, elements: Sequence[str]) -> tuple[str, Atoms]:
    """Return the name and the primitive cell of a random prototype of some elements.

    Half of them are elements, one in ten is a perovskite, the others are binary compounds, of a metal and a nonmetal
    where there are both, but in the structure of CsCl of any two elements.
    """
    kind = rng.random()
    if kind < 0.5 or len(elements) == 1:
        structure, symbol = str(rng.choice(ELEMENTAL)), str(rng.choice(elements))
        return f"{structure}-{symbol}", bulk(symbol, structure, a=_EDGE[structure] * _bond(symbol, symbol))
    metals = [symbol for symbol in elements if symbol not in NONMETALS] or list(elements)
    others = [symbol for symbol in elements if symbol in NONMETALS] or list(elements)
    if kind < 0.6:
        first, second = str(rng.choice(metals)), str(rng.choice(metals))
        return _perovskite(first, second, str(rng.choice(others)))
    structure = str(rng.choice(BINARY))
    if structure == "cesiumchloride":
        first, second = map(str, rng.choice(elements, 2, replace=False))
    else:
        first, second = str(rng.choice(metals)), str(rng.choice(others))
    formula = f"{first}{second}2" if structure == "fluorite" else f"{first}{second}"
    # ASE reads three symbols of fluorite, so that a formula such as "FeFe2" is written out.
    spelled = f"{first}{second}{second}" if structure == "fluorite" else formula
    return f"{structure}-{formula}", bulk(spelled, structure, a=_EDGE[structure] * _bond(first, second))


def enlarged(atoms: Atoms, wanted: int) -> Atoms:
    """Repeat a cell along its shortest axis while it has at most ``wanted`` atoms."""
    while 2 * len(atoms) <= wanted:
        repeats = [1, 1, 1]
        repeats[int(np.argmin(atoms.cell.lengths()))] = 2
        atoms = atoms.repeat(repeats)
    return atoms


def slab(rng: np.random.Generator, atoms: Atoms, max_atoms: int) -> Atoms | None:
    """Return a slab of 2 to 4 layers with a face of low index; None if it would have too many atoms."""
    face = ((1, 0, 0), (1, 1, 0), (1, 1, 1))[int(rng.integers(3))]
    layers = int(rng.integers(2, 5))
    if len(atoms) * layers > max_atoms:
        return None
    cut = surface(atoms, face, layers, vacuum=_VACUUM / 2)
    cut.pbc = True
    return cut


def _bond(first: str, second: str) -> float:
    return sum(_NOBLE.get(symbol, float(covalent_radii[atomic_numbers[symbol]])) for symbol in (first, second))


def _perovskite(first: str, second: str, anion: str) -> tuple[str, Atoms]:
    edge = max(2 * _bond(second, anion), 2**0.5 * _bond(first, anion))
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    symbols = [first, second, anion, anion, anion]
    return f"perovskite-{first}{second}{anion}3", Atoms(symbols, scaled_positions=places, cell=[edge] * 3, pbc=True)
