"""An examination of a teacher before it labels anything.

Potentials can be loaded without a word by a version of their library that computes something else: right energies of
elements and volumes of compounds that are off by half. So a few crystals are compared with their lattice constants, and
the answers with each other: energies after a rotation and a permutation, forces and stresses with finite differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk

from prism_plugin.distillation.paths import settled
from prism_plugin.distillation.teacher import Teacher, TeacherError
from prism_plugin.errors import PrismError

__all__ = ["Examined", "examine", "format_examination"]

# Structure, lattice constant in Å at room temperature (CRC Handbook of Chemistry and Physics, 97th ed., 4 and 12).
REFERENCES = {
    "NaCl": ("rocksalt", 5.640),
    "MgO": ("rocksalt", 4.212),
    "GaAs": ("zincblende", 5.653),
    "Cu": ("fcc", 3.615),
    "Si": ("diamond", 5.431),
}
MOST_VOLUME = 12.0  # %, of the reference; DFT-PBE is at most 6 % off
MOST_INVARIANCE = 1e-4  # eV/atom
FORCE_LIMITS = (0.02, 0.01)  # eV/Å, and a part of the largest force
STRESS_LIMITS = (5e-4, 0.01)  # eV/Å^3, and a part of the largest stress
_STEP = 0.01  # Å
_STRAIN = 0.005


@dataclass(frozen=True)
class Examined:
    """What was found for one compound.

    Attributes:
        formula: of the compound.
        volume: deviation from the reference, %.
        rotation: change of the energy by a rotation, eV/atom.
        permutation: change of the energy by a permutation of the atoms, eV/atom.
        forces: deviation from finite differences over the largest that is allowed.
        stress: the same for the stress.
    """

    formula: str
    volume: float
    rotation: float
    permutation: float
    forces: float
    stress: float

    @property
    def failed(self) -> list[str]:
        """Names of the checks that it did not pass; NaN does not pass."""
        good = {
            "volume": abs(self.volume) <= MOST_VOLUME,
            "rotation": abs(self.rotation) <= MOST_INVARIANCE,
            "permutation": abs(self.permutation) <= MOST_INVARIANCE,
            "forces": self.forces <= 1,
            "stress": self.stress <= 1,
        }
        return [name for name, passed in good.items() if not passed]


def examine(teacher: Teacher) -> list[Examined]:
    """Examine a teacher on the compounds whose elements it knows.

    Raises:
        ValueError: if it is far off, with the table, or if it knows none of the compounds.
    """
    known = [formula for formula in REFERENCES if set(bulk_of(formula).symbols) <= set(teacher.elements)]
    if not known:
        raise PrismError(
            f"the teacher knows none of {', '.join(REFERENCES)} and cannot be examined; if you know that it is right, "
            "pass --skip-examination"
        )
    try:
        found = [examine_one(teacher, formula) for formula in known]
    except TeacherError as error:
        raise PrismError(f"the teacher is refused: it fails for a known compound: {error}") from error
    bad = [f"{one.formula} {' and '.join(one.failed)}" for one in found if one.failed]
    if bad:
        raise PrismError(
            f"the teacher is refused, it is far off for {', '.join(bad)}:\n{format_examination(found)}\n"
            "a matgl potential may need the matgl that it was trained with: pip install --no-deps --target DIR "
            "matgl==VERSION and --teacher-path DIR; if you know that it is right, pass --skip-examination"
        )
    return found


def examine_one(teacher: Teacher, formula: str) -> Examined:
    """Examine a teacher on one of the compounds."""
    start = bulk_of(formula)
    relaxed = settled(teacher, start, steps=14, pressure=2e-4)
    rng = np.random.default_rng(0)
    atoms = start.copy()
    atoms.positions += 0.08 * rng.standard_normal(atoms.positions.shape)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))), scale_atoms=True)
    energy, forces, stress = teacher.label(atoms)
    force_errors, stress_errors = [], []
    for _ in range(2):
        direction = rng.standard_normal(forces.shape)
        direction /= np.linalg.norm(direction)
        measured = -_slope(teacher, [_moved(atoms, sign * _STEP * direction) for sign in (1, -1)], 2 * _STEP)
        force_errors.append(abs(measured - float((forces * direction).sum())))
        strain = rng.standard_normal((3, 3))
        strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)
        pair = [_stretched(atoms, sign * _STRAIN * strain) for sign in (1, -1)]
        measured = _slope(teacher, pair, 2 * _STRAIN * atoms.get_volume())
        stress_errors.append(abs(measured - float((stress * strain).sum())))
    turned = atoms.copy()
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    permuted = atoms[rng.permutation(len(atoms))]
    return Examined(
        formula,
        np.nan if relaxed is None else 100 * (relaxed.get_volume() / start.get_volume() - 1),
        (teacher.label(turned).energy - energy) / len(atoms),
        (teacher.label(permuted).energy - energy) / len(atoms),
        max(force_errors) / (FORCE_LIMITS[0] + FORCE_LIMITS[1] * float(np.abs(forces).max())),
        max(stress_errors) / (STRESS_LIMITS[0] + STRESS_LIMITS[1] * float(np.abs(stress).max())),
    )


def bulk_of(formula: str) -> Atoms:
    """Return the cubic cell of one of the compounds with the reference lattice constant."""
    structure, edge = REFERENCES[formula]
    return bulk(formula, structure, a=edge, cubic=True)


def format_examination(found: Sequence[Examined]) -> str:
    """Format the examination as a table."""
    head = f"{'':8}{'volume %':>10}{'rotation':>11}{'permut.':>11}{'forces':>9}{'stress':>9}"
    lines = [
        f"{one.formula:8}{one.volume:+10.1f}{one.rotation:11.1e}{one.permutation:11.1e}{one.forces:9.2f}"
        f"{one.stress:9.2f}{'  refused' if one.failed else ''}"
        for one in found
    ]
    note = (
        f"(volume against experiment, at most {MOST_VOLUME:g}; energies after a rotation and a permutation, eV/atom, "
        f"at most {MOST_INVARIANCE:g}; forces and stress against finite differences, 1 is the limit)"
    )
    return "\n".join([head, *lines, note])


def _slope(teacher: Teacher, pair: Sequence[Atoms], width: float) -> float:
    return (teacher.label(pair[0]).energy - teacher.label(pair[1]).energy) / width


def _moved(atoms: Atoms, step: np.ndarray) -> Atoms:
    changed = atoms.copy()
    changed.positions += step
    return changed


def _stretched(atoms: Atoms, strain: np.ndarray) -> Atoms:
    changed = atoms.copy()
    changed.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return changed
