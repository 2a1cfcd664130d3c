"""Relaxations of positions and cells with a potential: ASE's FIRE on its Frechet cell filter.

Returns the relaxed atoms with their energy, forces and stress. Several structures relax in lock step: each has an
optimizer of its own, and the potential answers all of them as one batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from pymatgen.core import IMolecule, IStructure
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from prism_plugin.calculators import PRISMCalculator
from prism_plugin.data.frame import as_atoms
from prism_plugin.defaults import DEFAULT_POTENTIAL, POTENTIALS
from prism_plugin.errors import OF_A_STRUCTURE, PrismError, warn
from prism_plugin.model import PRISM
from prism_plugin.pretrained import gives_energy

__all__ = [
    "LOGARITHM",
    "Relaxation",
    "potential_calculator",
    "relax",
    "relax_many",
    "relax_one",
    "with_one_blas_thread",
]

# The cell filter solves hundreds of equations of 3 x 3 numbers in each step: threads only wait for each other there, on
# a machine that does other work for most of a second.
with_one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")

LOGARITHM = ".*logm result may be inaccurate"  # SciPy, of an error of 1e-12 in the cell's strain

# A volume that leaves these factors of the first one is no relaxation any more.
_SMALLEST, _LARGEST = 0.4, 2.5
_KEPT = ("energy", "free_energy", "forces", "stress")

_Key = TypeVar("_Key")
_Answer = Mapping[str, Any] | Exception  # results of a calculator, or why there are none

# As many atoms as fill a batch with gradients: with more under way at once, more is lost when a process ends.
_ATOMS = 512


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
        other = next((one for one in calculator.models if not gives_energy(one)), None)
        if other is not None:
            raise PrismError(f"this model predicts {other.target}, which is no energy: take a potential {POTENTIALS}")
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
        cell: whether the cell relaxes, too, of what has one; of a layer or a wire, which is not periodic along one or
            two of three vectors, along the others.
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
    given = {"": structures} if is_one else {f"structure {n} of the list": one for n, one in enumerate(structures)}
    read = {}
    for name, one in given.items():
        try:
            read[name] = one if isinstance(one, Atoms) else as_atoms(one)
        except ValueError as error:
            raise PrismError(f"{_place(name)}{error}") from error
    relaxed: dict[str, Atoms] = {}
    shown = progress or (progress is None and not is_one)
    with tqdm(total=len(read), desc="relax", unit="crystal", disable=not shown) as bar:
        for name, found in relax_many(read.items(), calculator, fmax, steps, cell):
            if isinstance(found, Exception):
                raise found
            if not found.is_converged:
                force = found.largest_force
                what = f"a force is {force:.3g} eV/Å" if force > fmax else "the cell still moves"
                warn(f"{_place(name)}not relaxed after {found.steps} steps: {what}")
            relaxed[name] = found.atoms
            bar.update()
    return relaxed[""] if is_one else [relaxed[name] for name in read]


def relax_many(
    structures: Iterable[tuple[_Key, Atoms]],
    calculator: PRISMCalculator,
    fmax: float = 0.05,
    steps: int = 500,
    cell: bool = True,
    called: Callable[[_Key], str] = str,
) -> Iterator[tuple[_Key, Relaxation | Exception]]:
    """Relax structures in lock step, each as :func:`relax_one` does alone, up to rounding.

    Args:
        structures: what the caller knows each by, and the atoms; taken as there is room, so that they can be a stream.
        calculator: of a potential, or of several; at most its ``batch_size`` are under way at once, fewer of large
            ones.
        fmax: as of :func:`relax_one`.
        steps: the same.
        cell: the same.
        called: gives the name of a structure, with which errors and warnings begin.

    Yields:
        What comes to its end, as it does: what the caller knows it by, and the relaxation or, of a bad structure, the
        error.

    Raises:
        ValueError: if ``fmax`` or ``steps`` is bad.
    """
    _check(fmax, steps)
    waiting = iter(structures)
    coming = next(waiting, None)
    under_way: list[tuple[_Key, _Moving]] = []
    while coming is not None or under_way:
        while coming is not None and _has_room(under_way, len(coming[1]), calculator.batch_size):
            under_way.append((coming[0], _Moving(coming[1], fmax, steps, cell)))
            coming = next(waiting, None)
        answers = _answers([(called(key), one.atoms) for key, one in under_way], calculator)
        left = []
        for (key, one), answer in zip(under_way, answers, strict=True):
            try:
                found = one.advance(answer)
            except OF_A_STRUCTURE as error:
                name = _place(called(key))
                yield key, type(error)(name + str(error).removeprefix(name))
            else:
                if found is None:
                    left.append((key, one))
                else:
                    yield key, found
        under_way = left


def relax_one(
    atoms: Atoms, calculator: Calculator, fmax: float = 0.05, steps: int = 500, cell: bool = True
) -> Relaxation:
    """Relax one structure with any ASE calculator.

    Args:
        atoms: the structure; stays as it is. Its constraints hold.
        calculator: what computes.
        fmax: largest force at the end, eV/Å; see :func:`relax`.
        steps: most steps.
        cell: whether the cell relaxes, too, which asks the calculator for a stress if anything is periodic.

    Raises:
        ValueError: if it falls apart or collapses, or the calculator refuses it.
    """
    _check(fmax, steps)
    moving = _Moving(atoms, fmax, steps, cell)
    found = None
    while found is None:
        for name in ("energy", "forces", *(["stress"] if moving.has_cell else [])):
            calculator.get_property(name, moving.atoms)
        found = moving.advance(calculator.results)
    return found


def _check(fmax: float, steps: int) -> None:
    if not all(isinstance(one, int | float | np.number) for one in (fmax, steps)):
        raise PrismError(f"fmax and steps are numbers, got {fmax!r} and {steps!r}")
    if not (np.isfinite(fmax) and fmax > 0) or steps < 1:
        raise PrismError(f"fmax must be positive and steps at least 1, got {fmax} and {steps}")


def _place(name: str) -> str:
    return f"{name}: " if name else ""


def _has_room(under_way: Sequence[tuple[Any, _Moving]], atoms: int, most: int) -> bool:
    """Whether one more structure fits beside those under way."""
    at_once = sum(len(one.atoms) for _, one in under_way)
    return not under_way or (len(under_way) < most and at_once + atoms <= _ATOMS)


def _answers(structures: Sequence[tuple[str, Atoms]], calculator: PRISMCalculator) -> list[_Answer]:
    """Compute structures with their names; of one that is refused, the error."""
    names = [name for name, _ in structures]
    try:
        return [*calculator.predict([atoms for _, atoms in structures], progress=False, names=names)]
    except OF_A_STRUCTURE as error:
        if len(structures) == 1:
            return [error]
        return [_answers([one], calculator)[0] for one in structures]


class _CellFilter(FrechetCellFilter):
    """Keeps the forces of a step, each of which brings a calculator of its own.

    ASE asks for them twice, and each time takes the derivatives of exponentials.
    """

    _kept: tuple[Any, np.ndarray] | None = None

    def get_forces(self, **kwargs: Any) -> np.ndarray:
        """Return forces on atoms and cell, shape ``(atoms + 3, 3)``."""
        if self._kept is None or self._kept[0] is not self.atoms.calc:
            self._kept = self.atoms.calc, super().get_forces(**kwargs)
        return self._kept[1]


class _Moving:
    """A relaxation on its way, a step at a time; ``has_cell`` says whether the cell moves.

    Of a structure that is not periodic along one or two of its vectors only what the others span is strained.

    Args:
        start: the structure; stays as it is.
        fmax: largest force at the end, eV/Å.
        steps: most steps.
        cell: whether the cell moves, too, if there is one.
    """

    def __init__(self, start: Atoms, fmax: float, steps: int, cell: bool) -> None:
        self.start, self.atoms = start, start.copy()
        self._missing = ~start.cell.any(axis=1)
        whole = start.cell.complete().array  # not finite, or still in one plane, where vectors depend on each other
        spans = np.isfinite(whole).all() and np.linalg.matrix_rank(whole) == 3
        self.has_cell = bool(cell and spans and start.pbc.any() and not (self._missing & start.pbc).any())
        if self.has_cell:
            if self._missing.any():  # a stress needs a volume, if any
                whole[self._missing] *= 10 + np.ptp(start.positions)
                self.atoms.set_cell(whole)
            self._volume = self.atoms.get_volume()
            periodic = whole[start.pbc]
            self._within = np.linalg.pinv(periodic) @ periodic  # projects on what the periodic vectors span
        self._fmax, self._steps = fmax, steps
        self._optimizer = FIRE(_CellFilter(self.atoms) if self.has_cell else self.atoms, logfile=None)
        self._optimizer.fmax = fmax

    @with_one_blas_thread
    def advance(self, results: _Answer) -> Relaxation | None:
        """Take energy, forces and stress of the atoms as they are, and move them.

        Returns:
            The relaxation, if it has come to its end.

        Raises:
            ValueError: if it falls apart.
            Exception: what is given in place of the results.
        """
        if isinstance(results, Exception):
            raise results
        optimizer, kept = self._optimizer, {name: results[name] for name in _KEPT if name in results}
        if not np.isfinite(kept["forces"]).all():
            raise PrismError(f"falls apart: after {optimizer.nsteps} steps a force is not finite")
        moving = dict(kept)
        if self.has_cell and not self.start.pbc.all():
            stress = self._within @ voigt_6_to_full_3x3_stress(kept["stress"]) @ self._within
            moving["stress"] = full_3x3_to_voigt_6_stress(stress)
        self.atoms.calc = SinglePointCalculator(self.atoms, **moving)  # copies arrays
        # The filter's forces are those in the cell as it was: where it has shrunk they are smaller than the atoms' own.
        largest = np.linalg.norm(self.atoms.get_forces(), axis=1).max()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", LOGARITHM)
            is_converged = bool(optimizer.converged() and largest <= self._fmax)
            if is_converged or optimizer.nsteps >= self._steps:
                if self.has_cell and self._missing.any():
                    self.atoms.cell[self._missing] = 0
                    del kept["stress"]
                self.atoms.calc = SinglePointCalculator(self.atoms, **kept)
                return Relaxation(self.start, self.atoms, optimizer.nsteps, is_converged)
            optimizer.step()
        optimizer.nsteps += 1
        factor = self.atoms.get_volume() / self._volume if self.has_cell else 1.0
        if not _SMALLEST < factor < _LARGEST:
            raise PrismError(f"falls apart: after {optimizer.nsteps} steps its volume is {factor:.2f} of what it was")
        return None
