"""The embedded data set: alloys of the EMT metals, computed here and now by ASE's EMT calculator.

EMT (effective medium theory) is a real, fast interatomic potential for Al, Cu, Ag, Au, Ni, Pd and Pt that ships with
ASE; its formation energies are those of the potential, not of density functional theory. The set needs no download and
is fit for a demonstration and for tests, for nothing else.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from prism_plugin.data.records import Record

__all__ = ["emt_alloys"]

METALS = ("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt")
# Prototype -> fractional coordinates in the cubic cell and which of two species sits there.
_FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
_PROTOTYPES = {
    "fcc": (_FCC, "AAAA"),
    "L1_2": (_FCC, "BAAA"),
    "L1_0": (_FCC, "AABB"),
    "B2": (np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), "AB"),
}


def emt_alloys(count: int = 600, seed: int = 0, forces: bool = False) -> list[Record]:
    """Make strained and rattled alloys with their EMT formation energies per atom, or energies, forces and stresses.

    Each crystal: a random prototype (fcc, L1_2, L1_0, B2), two random metals, the volume of Vegard's law, a random
    symmetric strain of about 4 % and random displacements of about 0.1 Å. The reference of each element is its fcc
    crystal at the EMT lattice constant.

    Args:
        count: number of crystals.
        seed: of all random choices.
        forces: whether the labels are energies, forces and stresses, as for the target ``"pes"``.

    Returns:
        Records with the formation energy in eV/atom, or of a potential energy surface; no split is named.
    """
    rng = np.random.default_rng(seed)
    reference = {metal: _equilibrium(metal) for metal in METALS}
    records = []
    for number in range(count):
        name = list(_PROTOTYPES)[rng.integers(len(_PROTOTYPES))]
        first, second = (METALS[index] for index in rng.choice(len(METALS), size=2, replace=False))
        sites, pattern = _PROTOTYPES[name]
        symbols = [first if letter == "A" else second for letter in pattern]
        volume = sum(reference[symbol][1] for symbol in symbols)
        strain = rng.normal(scale=0.04, size=(3, 3))
        cell = np.eye(3) * volume ** (1 / 3) @ (np.eye(3) + (strain + strain.T) / 2)
        atoms = Atoms(symbols, scaled_positions=sites, cell=cell, pbc=True)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = EMT()
        row = f"{number}-{name}-{first}-{second}"
        if forces:
            gradients = {"forces": atoms.get_forces(), "stress": atoms.get_stress(voigt=False)}
            records.append(Record(atoms, float(atoms.get_potential_energy()), row, **gradients))
        else:
            energy = atoms.get_potential_energy() - sum(reference[symbol][0] for symbol in symbols)
            records.append(Record(atoms, energy / len(atoms), row))
        atoms.calc = None
    return records


def _equilibrium(metal: str) -> tuple[float, float]:
    """Energy (eV) and volume (Å^3) per atom of the fcc metal at the EMT minimum, from a quartic through a scan."""
    start = bulk(metal, "fcc", cubic=False)
    scales = np.linspace(0.97, 1.03, 7)
    energies = []
    for scale in scales:
        atoms = start.copy()
        atoms.set_cell(start.cell * scale, scale_atoms=True)
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
    fit = np.polynomial.Polynomial.fit(scales, energies, 4)
    (best,) = (
        float(root.real)
        for root in np.asarray(fit.deriv().roots(), dtype=complex)
        if abs(root.imag) < 1e-9 and 0.97 <= root.real <= 1.03
    )
    return float(fit(best)), float(start.get_volume() * best**3)
