"""Files of crystals with targets -> records.

A bad line ends in an error that names the file, the line and the reason; nothing is dropped silently.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import read_extxyz
from pymatgen.core import Structure
from pymatgen.io.vasp import Poscar

from prism_plugin.data.records import Record
from prism_plugin.data.shards import is_shard_folder, read_shards
from prism_plugin.data.splits import SPLITS
from prism_plugin.errors import PrismError
from prism_plugin.graph.structure import read_structure
from prism_plugin.tasks import task_of_target

__all__ = [
    "OPENERS",
    "as_atoms",
    "opened_text",
    "parse_jsonl",
    "read_jsonl",
    "read_records",
    "read_structure_file",
    "uncompressed_suffix",
]

OPENERS: dict[str, Callable[..., IO[Any]]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


# Place for messages, name, split, structure, and the values by name.
_Row = tuple[str, str, str | None, Atoms, Mapping[str, Any]]


def as_atoms(structure: Any) -> Atoms:
    """Turn a pymatgen structure into ASE atoms.

    Raises:
        ValueError: if it is bad (see :func:`~prism_plugin.graph.structure.read_structure`).
    """
    return read_structure(structure).atoms()


def uncompressed_suffix(path: Path) -> str:
    """Suffix that tells the kind of a file: ``.jsonl`` of ``crystals.jsonl.xz``."""
    return path.suffix if path.suffix not in OPENERS else Path(path.stem).suffix


def read_records(path: str | Path, target: str, skip_missing: bool = False) -> list[Record]:
    """Read a data file.

    Args:
        path: ``.jsonl`` (one object a line: ``lattice`` as rows in Å, ``species``, ``frac_coords``, the target, and
            optionally ``id``, ``split``, ``pbc``) or ``.extxyz`` / ``.xyz`` (ASE; the target in the comment line);
            either may be compressed (``.xz``, ``.gz``, ``.bz2``). For the target ``"pes"`` they need ``energy`` (total,
            eV) and ``forces`` (eV/Å), and may have ``stress`` (eV/Å^3, ASE's sign, 3 x 3 or xx, yy, zz, yz, xz, xy).
            Or a folder with ``id_prop.csv`` (the convention of
            CGCNN and ALIGNN: ``file,target`` a line, no header) and the structures it names (CIF, POSCAR, or whatever
            ASE reads; ``.cif`` may be left out). Or, for the target ``"pes"``, a folder of ``prism label``.
        target: key of the target, or ``"pes"`` for energies, forces and stresses; in a folder only a name for it.
        skip_missing: leave out rows without the target, where False is an error.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the kind of file is unknown, a line is bad, or a target is missing or not finite.
    """
    path = Path(path)
    if path.is_dir():
        if not task_of_target(target).one_number:
            if is_shard_folder(path):
                return read_shards(path)
            raise PrismError(
                f"{str(path)!r} is a folder, whose table has one number a crystal: forces need an .extxyz or .jsonl "
                "file"
            )
        return _gather(_read_folder(path, target), path, target, skip_missing)
    if not path.is_file():
        raise FileNotFoundError(f"no data file {str(path)!r}; give a .jsonl or .extxyz file, or the name of a data set")
    suffix = uncompressed_suffix(path)
    readers = {".jsonl": read_jsonl, ".extxyz": _read_extxyz, ".xyz": _read_extxyz}
    if suffix not in readers:
        raise PrismError(f"unknown kind of data file {path.name!r}; choose one of: {', '.join(sorted(readers))}")
    with opened_text(path) as file:
        return _gather(readers[suffix](file, path), path, target, skip_missing)


@contextmanager
def opened_text(path: Path) -> Iterator[IO[str]]:
    """Open a text file, compressed or not; inside the block ValueError says what is wrong with it."""
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            yield file
    except UnicodeDecodeError as error:
        raise PrismError(f"{path} is no text in UTF-8: {error}") from error
    except (EOFError, lzma.LZMAError, OSError, zlib.error) as error:
        raise PrismError(f"{path} cannot be read, is truncated or damaged ({error}); fetch it again") from error


def _gather(rows: Iterable[_Row], path: Path, target: str, skip_missing: bool) -> list[Record]:
    """Check rows and make records of them."""
    records: list[Record] = []
    missing: list[str] = []
    task = task_of_target(target)
    for place, name, split, atoms, row in rows:
        value, gradients = task.read_label(row, target)
        if value is None:
            missing.append(place)
            continue
        number = _number(value, place, target)
        if split is not None and split not in SPLITS:
            raise PrismError(f"{place}: split is {split!r}; it must be one of: {', '.join(SPLITS)}")
        try:
            records.append(Record(atoms, number, name, split, **gradients).checked())
        except ValueError as error:
            raise PrismError(f"{place}: {error}") from error
    wanted, hint = task.label_words(target)
    if missing and not records:
        raise PrismError(f"{path}: none of the {len(missing)} rows has the {wanted}; look for the name there{hint}")
    if missing and not skip_missing:
        raise PrismError(
            f"{path}: the {wanted} is missing in {len(missing)} of {len(missing) + len(records)} rows "
            f"(first: {', '.join(missing[:3])}); remove them, choose another target, or pass --skip-missing"
        )
    if not records:
        raise PrismError(f"{path}: there is no crystal in it")
    return records


def _number(value: Any, place: str, target: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise PrismError(f"{place}: the target {target!r} is no number: {value!r}") from error
    if not math.isfinite(number):
        raise PrismError(f"{place}: the target {target!r} is not finite: {value!r}; remove the row")
    return number


def parse_jsonl(line: str) -> tuple[Atoms, dict[str, Any]]:
    """Read one line: the structure, and all that the line says.

    Raises:
        ValueError: if it is no crystal.
    """
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise PrismError(f"a crystal is an object with lattice, species and frac_coords, got {line.strip()[:40]!r}")
        with np.errstate(invalid="ignore"):  # what is not finite is refused by name later
            atoms = Atoms(
                symbols=row["species"],
                scaled_positions=np.asarray(row["frac_coords"], dtype=float).reshape(-1, 3),
                cell=np.asarray(row["lattice"], dtype=float).reshape(3, 3),
                pbc=row.get("pbc", True),
            )
    except KeyError as error:
        raise PrismError(
            f"{error} is neither a key of the row nor an element; needed are lattice, species and frac_coords"
        ) from error
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PrismError(str(error)) from error
    return atoms, row


def read_jsonl(file: Iterable[str], path: Path) -> Iterator[_Row]:
    """Yield the rows of an open ``.jsonl`` file; ``path`` is for messages.

    Raises:
        ValueError: if a line is no crystal.
    """
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        place = f"{path.name}, line {number}"
        try:
            atoms, row = parse_jsonl(line)
        except ValueError as error:
            raise PrismError(f"{place}: {error}") from error
        yield place, str(row.get("id", number)), row.get("split"), atoms, row


def _read_extxyz(file: Any, path: Path) -> Iterator[_Row]:
    # ASE's reader jumps back and forth, which takes seconds in a compressed file: such a one is read as a whole.
    frames = read_extxyz(io.StringIO(file.read()) if path.suffix in OPENERS else file, index=slice(None))
    number = 0
    while True:
        number += 1
        place = f"{path.name}, frame {number}"
        try:
            atoms = next(frames)
        except StopIteration:
            return
        except Exception as error:  # ASE raises whatever its parser meets: name the place, whatever it was
            raise PrismError(f"{place}: {type(error).__name__}: {error}") from error
        computed = {} if atoms.calc is None else atoms.calc.results
        forces = {"forces": atoms.arrays["forces"]} if "forces" in atoms.arrays else {}
        row = {**forces, **atoms.info, **computed}  # ASE puts labels there or there
        yield place, str(atoms.info.get("id", number)), atoms.info.get("split"), atoms, row


def _read_folder(folder: Path, target: str) -> Iterator[_Row]:
    table = folder / "id_prop.csv"
    if not table.is_file():
        raise PrismError(
            f"the folder {str(folder)!r} has no id_prop.csv; it names a structure file and a target a line"
        )
    with open(table, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not row:
                continue
            place = f"id_prop.csv, line {number}"
            if len(row) != 2:
                raise PrismError(f"{place}: a file and a target are needed, got {','.join(row)!r}")
            name = row[0].strip()
            path = next((path for path in (folder / name, folder / f"{name}.cif") if path.is_file()), None)
            if path is None:
                raise PrismError(f"{place}: there is no {name!r} and no '{name}.cif' in {str(folder)!r}")
            yield f"{place} ({path.name})", name, None, read_structure_file(path), {target: row[1].strip() or None}


def read_structure_file(path: str | Path) -> Atoms:
    """Read one structure: CIF and POSCAR by pymatgen, all else by ASE (of several frames the last).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or the structure is bad.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no structure file {str(path)!r}")
    by_pymatgen = path.suffix in (".cif", ".vasp") or "POSCAR" in path.name or "CONTCAR" in path.name
    try:
        if not by_pymatgen:
            return cast("Atoms", ase.io.read(path, index=-1))
        return as_atoms(Structure.from_file(path) if path.suffix == ".cif" else Poscar.from_file(path).structure)
    except Exception as error:  # both libraries raise whatever their parsers meet: name the file, whatever it was
        raise PrismError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error
