"""Make prism_plugin/nn/elements.csv, the frozen table of properties of the elements.

It is made once, from the data of pymatgen and ASE, and kept with the package: predictions must not move with a version
of either. Where the numbers come from is told in prism_plugin/nn/element_table.py.

    python benchmarks/make_element_table.py prism_plugin/nn/elements.csv
"""

import argparse
import csv
import math
import warnings
from pathlib import Path

from ase.data import covalent_radii
from pymatgen.core import Element


def row_of(number: int) -> list[object]:
    """Symbol and properties of an element; an empty text where there is no number."""
    element = Element.from_Z(number)
    states = element.common_oxidation_states
    energies = [*(element.ionization_energies or []), None, None]
    group, block = element.group, element.block
    if element.symbol == "He":  # pymatgen places it by its column
        block = "s"
    row = element.row + (2 if 57 <= number <= 71 or 89 <= number <= 103 else 0)  # lanthanides and actinides: 8 and 9
    values = [
        element.X,
        covalent_radii[number] if number <= 96 else None,  # beyond curium ASE gives one number to all
        element.atomic_radius,
        element.mendeleev_no,
        element.data.get("Electron affinity"),
        energies[0],
        energies[1],
        max(states) if states else None,
        min(states) if states else None,
        element.melting_point,
        element.molar_volume,
    ]
    if number > 103:  # estimates, and a few slips, in place of measurements
        values = [None] * len(values)
    known = [None if value is None or math.isnan(float(value)) else float(value) for value in values]
    return [element.symbol, *["" if value is None else f"{value:.7g}" for value in known], group, row, block]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    head = (
        "symbol,electronegativity,covalent_radius,atomic_radius,mendeleev_number,electron_affinity,first_ionization,"
        "second_ionization,largest_oxidation,smallest_oxidation,melting_point,molar_volume,group,row,block"
    )
    with warnings.catch_warnings(), arguments.file.open("w", newline="") as file:
        warnings.simplefilter("ignore")  # pymatgen warns of what is missing
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head.split(","))
        writer.writerows(row_of(number) for number in range(1, 119))


if __name__ == "__main__":
    main()
