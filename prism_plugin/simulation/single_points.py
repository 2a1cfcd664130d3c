"""Energies, forces and stresses of files of structures as one extxyz file, with a table of what it holds.

Frames are written one by one, each before its row of the table: what a killed process left behind the last row is
dropped when it goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from prism_plugin.calculators import PRISMCalculator
from prism_plugin.errors import PrismError
from prism_plugin.simulation.runner import Run, one_by_one, run_files

__all__ = ["NAME", "predict_forces"]

NAME = "predict"
_KEPT = ("energy", "forces", "stress")
_COLUMNS = ("energy (eV)", "largest force (eV/Å)")
_OF_DOMAIN = {"max_force_error": "max_force_error (eV/Å)", "novelty": "novelty"}  # where the potential has one


def predict_forces(
    paths: Iterable[str | Path], calculator: PRISMCalculator, out: Path, progress: bool = True
) -> dict[str, int]:
    """Write energies, forces and stresses of structures.

    Args:
        paths: as of :func:`prism_plugin.data.sources.iterate_structures`.
        calculator: of a potential, or of several.
        out: folder; gets ``predict.extxyz`` with ``energy`` (eV), ``forces`` (eV/Å) and, of crystals, ``stress``
            (eV/Å^3) of each frame, of several potentials their mean, with ``energy_std``, ``forces_std`` and
            ``stress_std``, and ``novelty`` and ``max_force_error`` of :class:`~prism_plugin.PRISMCalculator`; and
            ``predict.csv`` with a row for each structure, the frames' in their order.
        progress: whether there is a progress bar.

    Returns:
        How many are ``"done"``, ``"kept"`` from before, and ``"failed"`` (now or before).

    Raises:
        ValueError: if another process is at the table, or it is another model's.
    """
    frames = out / f"{NAME}.extxyz"
    known = {name: column for name, column in _OF_DOMAIN.items() if name in calculator.implemented_properties}

    def work(atoms: Atoms, _: Path) -> Sequence[Any]:
        (results,) = calculator.predict([atoms], progress=False)
        answer = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)  # no labels from before
        answer.calc = SinglePointCalculator(answer, **{name: results[name] for name in _KEPT if name in results})
        if "forces_std" in results:
            answer.arrays["forces_std"] = results["forces_std"]
            answer.info |= {name: results[name] for name in ("energy_std", "stress_std") if name in results}
        answer.info |= {name: results[name] for name in known}
        with open(frames, "a", encoding="utf-8") as file:
            write(file, answer, format="extxyz")
        largest = float((results["forces"] ** 2).sum(axis=1).max() ** 0.5)
        return results["energy"], largest, *(results[name] for name in known)

    run = Run(NAME, (*_COLUMNS, *known.values()), one_by_one(work), {"forces": True}, partial(_keep_frames, frames))
    return run_files(paths, calculator, run, out, progress)


def _keep_frames(frames: Path, count: int) -> None:
    """Cut a file off behind its first ``count`` frames.

    Raises:
        ValueError: if it has fewer.
    """
    if not frames.exists() and not count:
        return
    try:
        with open(frames, "rb+") as file:
            for _ in range(count):
                lines = [file.readline() for _ in range(int(file.readline()) + 1)]
                if not lines[-1].endswith(b"\n"):
                    raise ValueError
            file.truncate(file.tell())
    except (OSError, ValueError):
        raise PrismError(
            f"{str(frames)!r} has not the {count} frames of the table beside it; remove both, or give another --out"
        ) from None
