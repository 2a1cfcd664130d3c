"""Energies, forces and stresses of files of structures as one extxyz file, with a table of what it holds.

Frames are written one by one, each before its row of the table, and have its name: what a killed process left without
a row is dropped when it goes on, and so is the frame of a row that was deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from prism_plugin.calculators import PRISMCalculator
from prism_plugin.errors import PrismError
from prism_plugin.files import replaced, shown, sweep
from prism_plugin.simulation.runner import Given, Run, one_by_one, run_files

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
            (eV/Å^3) of each frame, and its ``name`` in the table, of several potentials their mean, with
            ``energy_std``, ``forces_std`` and ``stress_std``, and ``novelty`` and ``max_force_error`` of
            :class:`~prism_plugin.PRISMCalculator`; and
            ``predict.csv`` with a row for each structure, the frames' in their order.
        progress: whether there is a progress bar.

    Returns:
        How many are ``"done"``, ``"kept"`` from before, and ``"failed"`` (now or before).

    Raises:
        ValueError: if another process is at the table, it is another model's, or there are frames without a table.
    """
    frames = out / f"{NAME}.extxyz"
    known = {name: column for name, column in _OF_DOMAIN.items() if name in calculator.implemented_properties}

    def work(given: Given) -> Sequence[Any]:
        atoms = given.atoms
        (results,) = calculator.predict([atoms], progress=False)
        answer = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)  # no labels from before
        answer.info["name"] = _in_a_line(given.name)
        answer.calc = SinglePointCalculator(answer, **{name: results[name] for name in _KEPT if name in results})
        if "forces_std" in results:
            answer.arrays["forces_std"] = results["forces_std"]
            answer.info |= {name: results[name] for name in ("energy_std", "stress_std") if name in results}
        answer.info |= {name: results[name] for name in known}
        with open(frames, "a", encoding="utf-8") as file:
            write(file, answer, format="extxyz")
        largest = float((results["forces"] ** 2).sum(axis=1).max() ** 0.5)
        return results["energy"], largest, *(results[name] for name in known)

    if frames.exists() and not (out / f"{NAME}.csv").exists():
        raise PrismError(f"{shown(frames)!r} is there, and no table of it; give another --out, or move it away")
    columns = (*_COLUMNS, *known.values())
    run = Run(NAME, columns, one_by_one(work), {"forces": True}, resume=partial(_keep_frames, frames))
    return run_files(paths, calculator, run, out, progress)


def _in_a_line(name: str) -> str:
    """Write a name as extended XYZ can hold it."""
    return re.sub(r"""[\s"'\\={}\[\]]""", "_", name)


def _keep_frames(frames: Path, names: Sequence[str]) -> None:
    """Keep the frames of some names, which must be there in this order.

    Raises:
        ValueError: if they are not.
    """
    sweep(frames.parent, frames.name)
    if not frames.exists() and not names:
        return
    spans = []  # where each of them begins and ends
    try:
        with open(frames, "rb+") as file:
            for name in names:
                said, begin, comment = f" name={_in_a_line(name)} ".encode(), 0, b""
                while said not in b" " + comment.strip() + b" ":
                    begin = file.tell()
                    count = int(file.readline())
                    comment = file.readline()
                    rows = [file.readline() for _ in range(count)]
                    if not rows[-1].endswith(b"\n"):
                        raise ValueError
                spans.append((begin, file.tell()))
            if not spans or spans[-1][1] == sum(end - begin for begin, end in spans):
                file.truncate(spans[-1][1] if spans else 0)  # nothing lies between them
                return
            with replaced(frames) as aside, open(aside, "wb") as kept:
                for begin, end in spans:
                    file.seek(begin)
                    kept.write(file.read(end - begin))
    except (FileNotFoundError, ValueError, IndexError):
        raise PrismError(
            f"{str(frames)!r} has not the {len(names)} frames of the table beside it, by their names; remove both, or "
            "give another --out"
        ) from None
