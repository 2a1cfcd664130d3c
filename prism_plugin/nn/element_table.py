"""Properties of the elements: a frozen table, and the 43 numbers that an encoder reads of each.

``elements.csv`` beside this file was made once by benchmarks/make_element_table.py from the data of pymatgen 2026.10.24
and ASE 3.29 and is not read from either again: predictions must not move with a version of a library. An empty field is
a property that is not known; beyond lawrencium only the place in the periodic table is. Its columns:

=======================  =====================================================================================
electronegativity        Pauling's scale (pymatgen, after the CRC Handbook and Wikipedia)
covalent_radius          Å; Cordero et al., Dalton Trans. 2008, 2832 (ASE)
atomic_radius            Å; Slater, J. Chem. Phys. 41, 3199 (1964) (pymatgen)
mendeleev_number         chemical scale of Pettifor, Solid State Commun. 51, 31 (1984) (pymatgen)
electron_affinity        eV; measured, or estimated where it is negative (pymatgen, after Wikipedia)
first_ionization         eV; NIST Atomic Spectra Database (pymatgen)
second_ionization        eV; NIST Atomic Spectra Database (pymatgen)
largest_oxidation        largest of the common oxidation states (pymatgen, after Greenwood and Earnshaw)
smallest_oxidation       smallest of the common oxidation states (likewise)
melting_point            K (pymatgen, after WebElements)
molar_volume             cm^3/mol (pymatgen, after WebElements)
group, row, block        place in the periodic table; rows 8 and 9 are the lanthanides and actinides (pymatgen)
=======================  =====================================================================================
"""

from __future__ import annotations

import csv
import math
from functools import lru_cache
from pathlib import Path

import numpy as np

__all__ = ["ELEMENT_FEATURES", "covalent_radii", "element_features"]

# Of each number its column, and whether its logarithm is taken; "number" is Z itself.
_NUMBERS = (
    ("electronegativity", False),
    ("covalent_radius", False),
    ("atomic_radius", False),
    ("mendeleev_number", False),
    ("number", True),
    ("electron_affinity", False),
    ("first_ionization", False),
    ("second_ionization", True),
    ("largest_oxidation", False),
    ("smallest_oxidation", False),
    ("melting_point", True),
    ("molar_volume", True),
)
_PLACES = (
    ("group", tuple(map(str, range(1, 19)))),
    ("row", tuple(map(str, range(1, 10)))),
    ("block", ("s", "p", "d", "f")),
)
ELEMENT_FEATURES = len(_NUMBERS) + sum(len(values) for _, values in _PLACES)


@lru_cache(maxsize=1)
def element_features() -> np.ndarray:
    """Compute what an encoder reads of each element: 12 standardized numbers (missing: 0), one-hots of its place.

    The numbers have mean 0 and standard deviation 1 over the elements of which they are known.

    Returns:
        Shape ``(119, 43)``, by atomic number; the unused row 0 is zero.

    Example:
        >>> element_features().shape
        (119, 43)
    """
    rows = _rows()
    table = np.zeros((len(rows) + 1, ELEMENT_FEATURES))
    for column, (name, logarithm) in enumerate(_NUMBERS):
        known = [number for number, row in enumerate(rows, start=1) if row[name]]
        values = np.array([float(rows[number - 1][name]) for number in known])
        if logarithm:
            values = np.array([math.log(value) for value in values])
        table[known, column] = (values - values.mean()) / values.std()
    start = len(_NUMBERS)
    for name, choices in _PLACES:
        for number, row in enumerate(rows, start=1):
            table[number, start + choices.index(row[name])] = 1.0
        start += len(choices)
    table.setflags(write=False)
    return table


def covalent_radii() -> np.ndarray:
    """Return covalent radii in Å, shape ``(119,)``, by atomic number; beyond curium, where none is known, curium's."""
    known = [float(row["covalent_radius"]) for row in _rows() if row["covalent_radius"]]
    return np.array([0.0, *known, *[known[-1]] * (118 - len(known))])


def _rows() -> list[dict[str, str]]:
    with Path(__file__).with_name("elements.csv").open(newline="") as file:
        return [{**row, "number": str(number)} for number, row in enumerate(csv.DictReader(file), start=1)]
