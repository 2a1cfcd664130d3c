"""Relaxations of positions and cells with a potential: ASE's FIRE on its Frechet cell filter.

Returns the relaxed atoms with their energy, forces and stress.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from pymatgen.core import IMolecule, IStructure
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from prism_plugin.calculators import PRISMCalculator
from prism_plugin.data.frame import as_atoms
from prism_plugin.defaults import DEFAULT_POTENTIAL, POTENTIALS
from prism_plugin.errors import PrismError, warn
from prism_plugin.model import PRISM

__all__ = ["Relaxation", "potential_calculator", "relax", "relax_one", "with_one_blas_thread"]

# The cell filter solves hundreds of equations of 3 x 3 numbers in each step: threads only wait for each other there, on
# a machine that does other work for most of a second.
with_one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")

# A volume that leaves these factors of the first one is no relaxation any more.
_SMALLEST, _LARGEST = 0.4, 2.5
_KEPT = ("energy", "free_energy", "forces", "stress")


@dataclass(frozen=True)
class Relaxation:
    """A structure and what it relaxed to.

    Attributes:
        start: the atoms as they were given.
        atoms: the relaxed ones, with energy (eV), forces (eV/Å) and, in a cell, stress (eV/Å^3) of the last step.
        steps: of the optimizer.
        is_converged: whether no force on atoms or cell was above the threshold.
    """

    start: Atoms
    atoms: Atoms
    steps: int
    is_converged: bool

    @property
    def largest_force(self) -> float:
        """Largest force on an atom, eV/Å."""
        return float(np.linalg.norm(self.atoms.get_forces(), axis=1).max())

    @property
    def volume_change(self) -> float:
        """Relative change of the volume; NaN without a cell."""
        if self.start.cell.rank < 3:
            return float("nan")
        return self.atoms.get_volume() / self.start.get_volume() - 1


def potential_calculator(model: Any, device: str = "auto", dtype: str = "auto") -> PRISMCalculator:
    """Make a calculator of one that was trained on forces.

    Raises:
        ValueError: if the model, or one of a committee, was not.
    """
    calculator = PRISMCalculator(model, device=device, dtype=dtype)
    if not calculator.learned_forces:
        raise PrismError(
            "this model was trained on relaxed crystals, and what relaxes or moves with its gradients ends far from "
            f"where it should: take a potential {POTENTIALS}"
        )
    return calculator


def relax(
    structures: Any,
    model: str | Path | PRISM | list[Any] = DEFAULT_POTENTIAL,
    fmax: float = 0.05,
    steps: int = 500,
    cell: bool = True,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool | None = None,
) -> Any:
    """Relax structures.

    Args:
        structures: ASE ``Atoms``, a pymatgen ``Structure`` or ``Molecule``, or several of them.
        model: a potential: name of a shipped one, folder of a saved one, a
            :class:`~prism_plugin.PRISMPotential`, or a list of these.
        fmax: largest force on an atom, and on the cell's vectors divided by the number of atoms, at the end, eV/Å.
        steps: most steps.
        cell: whether the cell relaxes, too, of what has one.
        device: as of :class:`~prism_plugin.PRISMCalculator`.
        dtype: the same.
        progress: whether there is a progress bar; None shows one for several structures.

    Returns:
        New ``Atoms``, or a list of them for several structures, with energy, forces and stress. Those that did not
        converge come with a warning.

    Raises:
        ValueError: if the model is no potential, a structure is bad or of unknown elements, or falls apart.

    Example:
        >>> from ase.build import bulk
        >>> round(float(relax(bulk("Si", a=5.2)).get_volume()))
        41
    """
    calculator = potential_calculator(model, device, dtype)
    is_one = isinstance(structures, (Atoms, IStructure, IMolecule))
    if not is_one and (isinstance(structures, str) or not isinstance(structures, Iterable)):
        raise TypeError(f"give a structure or a list of them, got {type(structures).__name__}")
    given = [structures] if is_one else list(structures)
    relaxed = []
    for number, one in enumerate(
        tqdm(given, "relax", unit="crystal", disable=not (progress or (progress is None and not is_one)))
    ):
        place = "" if is_one else f"structure {number} of the list: "
        try:
            found = relax_one(one if isinstance(one, Atoms) else as_atoms(one), calculator, fmax, steps, cell)
        except ValueError as error:
            raise PrismError(f"{place}{error}") from error
        if not found.is_converged:
            warn(f"{place}not relaxed after {found.steps} steps: a force is {found.largest_force:.3g} eV/Å")
        relaxed.append(found.atoms)
    return relaxed[0] if is_one else relaxed


@with_one_blas_thread
def relax_one(
    atoms: Atoms, calculator: Calculator, fmax: float = 0.05, steps: int = 500, cell: bool = True
) -> Relaxation:
    """Relax one structure with any ASE calculator.

    Args:
        atoms: the structure; stays as it is. Its constraints hold.
        calculator: what computes.
        fmax: largest force at the end, eV/Å; see :func:`relax`.
        steps: most steps.
        cell: whether the cell relaxes, too.

    Raises:
        ValueError: if it falls apart or collapses, or the calculator refuses it.
    """
    if not (np.isfinite(fmax) and fmax > 0) or steps < 1:
        raise PrismError(f"fmax must be positive and steps at least 1, got {fmax} and {steps}")
    moving = atoms.copy()
    moving.calc = calculator
    has_cell = cell and moving.cell.rank == 3 and moving.pbc.all()
    volume = moving.get_volume() if has_cell else 0.0
    optimizer = FIRE(FrechetCellFilter(moving) if has_cell else moving, logfile=None)
    is_converged = False
    for reached in optimizer.irun(fmax=fmax, steps=steps):
        is_converged = bool(reached)
        factor = moving.get_volume() / volume if has_cell else 1.0
        if not _SMALLEST < factor < _LARGEST:
            raise PrismError(f"falls apart: after {optimizer.nsteps} steps its volume is {factor:.2f} of what it was")
    results = {name: value for name, value in calculator.results.items() if name in _KEPT}
    moving.calc = SinglePointCalculator(moving, **results)  # copies arrays
    return Relaxation(atoms, moving, optimizer.nsteps, is_converged)
