"""Paths of the teacher: to zero pressure, short dynamics, relaxations. Each snapshot has its labels from the way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from prism_plugin.data.shards import Labels
from prism_plugin.distillation.teacher import Teacher, TeacherCalculator

__all__ = ["dynamics", "relaxation", "settled"]

TEMPERATURE = (300.0, 2000.0)  # K
DYNAMICS_STEPS = (4, 8, 12, 16)
RELAXATION_STEPS = (2, 5, 9, 14)
_LARGEST_STEP = 0.25  # of ln(volume) at once
_PRESSURE, _NEAR = 2e-3, 0.03  # eV/Å^3 (0.3 and 5 GPa): zero, and near it


def settled(teacher: Teacher, atoms: Atoms, steps: int = 8, pressure: float = _PRESSURE) -> Atoms | None:
    """Scale a cell to the teacher's zero pressure by the secant method in ln(volume), with at most ``steps`` labels.

    Returns:
        The cell; None if its pressure is still above 5 GPa then.

    Raises:
        TeacherError: if the teacher cannot compute it.
    """
    state = atoms.copy()
    modulus = 0.6  # eV/Å^3 (100 GPa), a first guess
    before: float | None = None
    move = 0.0
    for step in range(steps):
        now = float(np.trace(teacher.label(state).stress)) / 3  # minus the pressure
        if abs(now) < pressure or (abs(now) < _NEAR and step == steps - 1):
            return state
        if not np.isfinite(now):
            return None
        if before is not None and (now - before) / move > 0:
            modulus = max((now - before) / move, 0.02)
        before = now
        move = float(np.clip(-now / modulus, -_LARGEST_STEP, _LARGEST_STEP))
        state.set_cell(state.cell.array * np.exp(move / 3), scale_atoms=True)
    return None


def dynamics(rng: np.random.Generator, teacher: Teacher, atoms: Atoms) -> Iterator[tuple[Atoms, Labels]]:
    """Yield four snapshots of dynamics at constant energy, which start with a temperature of 300 to 2,000 K.

    The time step is 1 fs times the square root of the lightest mass over that of helium, 0.5 to 4 fs.

    Raises:
        TeacherError: if the teacher cannot compute one.
    """
    state, calculator = _attached(teacher, atoms)
    masses = state.get_masses()
    temperature = rng.uniform(*TEMPERATURE)
    momenta = rng.standard_normal((len(state), 3)) * np.sqrt(masses * units.kB * temperature)[:, None]
    momenta -= masses[:, None] * momenta.sum(axis=0) / masses.sum()
    state.set_momenta(momenta)
    step = float(np.clip((masses.min() / 4) ** 0.5, 0.5, 4.0)) * units.fs
    run = VelocityVerlet(state, timestep=step)
    for now in run.irun(steps=DYNAMICS_STEPS[-1]):
        del now
        if run.nsteps in DYNAMICS_STEPS:
            yield _snapshot(state, calculator)


def relaxation(teacher: Teacher, atoms: Atoms) -> Iterator[tuple[Atoms, Labels]]:
    """Yield four snapshots of a relaxation of atoms and cell by FIRE.

    Raises:
        TeacherError: if the teacher cannot compute one.
    """
    state, calculator = _attached(teacher, atoms)
    run = FIRE(FrechetCellFilter(state), logfile=None)
    for now in run.irun(fmax=0.0, steps=RELAXATION_STEPS[-1]):
        del now
        if run.nsteps in RELAXATION_STEPS:
            yield _snapshot(state, calculator)


def _attached(teacher: Teacher, atoms: Atoms) -> tuple[Atoms, TeacherCalculator]:
    state = atoms.copy()
    calculator = TeacherCalculator(teacher)
    state.calc = calculator
    return state, calculator


def _snapshot(state: Atoms, calculator: TeacherCalculator) -> tuple[Atoms, Labels]:
    """Copy a state with the labels that it has by now."""
    state.get_potential_energy()
    assert calculator.labels is not None
    copied = Atoms(state.numbers, state.positions.copy(), cell=state.cell.array.copy(), pbc=True)
    return copied, calculator.labels
