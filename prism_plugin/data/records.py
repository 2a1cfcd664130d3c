"""Files of crystals with targets -> records, and records -> train, validation and test parts.

A bad line ends in an error that names the file, the line and the reason; nothing is dropped silently.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import read_extxyz
from ase.stress import voigt_6_to_full_3x3_stress
from pymatgen.core import Structure
from pymatgen.io.vasp import Poscar

from prism_plugin.graph import read_structure

__all__ = [
    "PES",
    "Record",
    "as_atoms",
    "assign_splits",
    "count_crystals",
    "elements_of",
    "fingerprint",
    "read_records",
    "read_structure_file",
    "split_records",
    "uncompressed_suffix",
]

OPENERS: dict[str, Callable[..., IO[Any]]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
SPLITS = ("train", "val", "test")
# A target of this name is a potential energy surface: energy, forces and, where there is one, stress.
PES = "pes"
_Row = tuple[str, str, str | None, Atoms, Any]  # place for messages, name, split, structure, target


@dataclass(frozen=True)
class Record:
    """One crystal with its target.

    Attributes:
        atoms: the structure.
        target: the number to predict.
        name: what to call it in logs and tables.
        split: ``"train"``, ``"val"``, ``"test"``, or None where the file does not say.
        forces: eV/Å, shape ``(atoms, 3)``; with the target ``"pes"`` only, which then is the total energy in eV.
        stress: eV/Å^3, positive where the crystal wants to shrink (as in ASE), shape ``(3, 3)``; it may be given as
            ASE's xx, yy, zz, yz, xz, xy. None if unknown.

    Raises:
        ValueError: if forces or stress have another shape, or are no finite numbers.
    """

    atoms: Atoms
    target: float
    name: str
    split: str | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check forces and stress, and take them in float64."""
        for name, shapes in (("forces", ((len(self.atoms), 3),)), ("stress", ((3, 3), (6,), (9,)))):
            given = getattr(self, name)
            if given is None:
                continue
            try:
                values = np.array(given, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(f"in {name} there is something else than numbers: {error}") from error
            if values.shape not in shapes:
                needed = " or ".join(map(str, shapes))
                raise ValueError(f"the shape of {name} is {values.shape}; needed is {needed}")
            if not np.isfinite(values).all():
                raise ValueError(f"a number in {name} is not finite; remove the crystal")
            if name == "stress":
                values = voigt_6_to_full_3x3_stress(values) if values.shape == (6,) else values.reshape(3, 3)
            object.__setattr__(self, name, values)


def elements_of(records: Iterable[Record]) -> list[str]:
    """Symbols of all elements in some records, sorted."""
    return sorted({symbol for record in records for symbol in record.atoms.symbols})


def count_crystals(records: Iterable[Record]) -> Counter[str]:
    """Number of crystals with each element, by its symbol."""
    return Counter(symbol for record in records for symbol in set(record.atoms.symbols))


def as_atoms(structure: Any) -> Atoms:
    """Turn a pymatgen structure into ASE atoms.

    Raises:
        ValueError: if it is bad (see :func:`~prism_plugin.graph.read_structure`).
    """
    numbers, positions, lattice, pbc = read_structure(structure)
    return Atoms(numbers, positions, cell=lattice, pbc=pbc)


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
        if target == PES:
            from prism_plugin.distillation.shards import is_shard_folder, read_shards

            if is_shard_folder(path):
                return read_shards(path)
            raise ValueError(
                f"{str(path)!r} is a folder, whose table has one number a crystal: forces need an .extxyz or .jsonl "
                "file"
            )
        return _gather(_read_folder(path), path, target, skip_missing)
    if not path.is_file():
        raise FileNotFoundError(f"no data file {str(path)!r}; give a .jsonl or .extxyz file, or the name of a data set")
    suffix = uncompressed_suffix(path)
    readers = {".jsonl": _read_jsonl, ".extxyz": _read_extxyz, ".xyz": _read_extxyz}
    if suffix not in readers:
        raise ValueError(f"unknown kind of data file {path.name!r}; choose one of: {', '.join(sorted(readers))}")
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            return _gather(readers[suffix](file, path, target), path, target, skip_missing)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    except (EOFError, lzma.LZMAError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read, is truncated or damaged ({error}); fetch it again") from error


def _gather(rows: Iterable[_Row], path: Path, target: str, skip_missing: bool) -> list[Record]:
    """Check rows and make records of them."""
    records: list[Record] = []
    missing: list[str] = []
    for place, name, split, atoms, value in rows:
        try:
            read_structure(atoms)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        gradients: dict[str, Any] = {}
        if target == PES:
            gradients = {key: value.get(key) for key in ("forces", "stress")}
            value = None if gradients["forces"] is None else value.get("energy")
        if value is None:
            missing.append(place)
            continue
        number = _number(value, place, target)
        if split is not None and split not in SPLITS:
            raise ValueError(f"{place}: split is {split!r}; it must be one of: {', '.join(SPLITS)}")
        try:
            records.append(Record(atoms, number, name, split, **gradients))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    wanted = "pair 'energy' and 'forces'" if target == PES else f"target {target!r}"
    if missing and not records:
        hint = "; for energies alone: --target energy --unit eV --set readout=sum" if target == PES else ""
        raise ValueError(f"{path}: none of the {len(missing)} rows has the {wanted}; look for the name there{hint}")
    if missing and not skip_missing:
        raise ValueError(
            f"{path}: the {wanted} is missing in {len(missing)} of {len(missing) + len(records)} rows "
            f"(first: {', '.join(missing[:3])}); remove them, choose another target, or pass --skip-missing"
        )
    if not records:
        raise ValueError(f"{path}: there is no crystal in it")
    return records


def _number(value: Any, place: str, target: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{place}: the target {target!r} is no number: {value!r}") from error
    if not math.isfinite(number):
        raise ValueError(f"{place}: the target {target!r} is not finite: {value!r}; remove the row")
    return number


def parse_jsonl(line: str) -> tuple[Atoms, dict[str, Any]]:
    """Read one line: the structure, and all that the line says.

    Raises:
        ValueError: if it is no crystal.
    """
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"a crystal is an object with lattice, species and frac_coords, got {line.strip()[:40]!r}")
        with np.errstate(invalid="ignore"):  # what is not finite is refused by name later
            atoms = Atoms(
                symbols=row["species"],
                scaled_positions=np.asarray(row["frac_coords"], dtype=float).reshape(-1, 3),
                cell=np.asarray(row["lattice"], dtype=float).reshape(3, 3),
                pbc=row.get("pbc", True),
            )
    except KeyError as error:
        raise ValueError(
            f"{error} is neither a key of the row nor an element; needed are lattice, species and frac_coords"
        ) from error
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return atoms, row


def _read_jsonl(file: Iterable[str], path: Path, target: str) -> Iterator[_Row]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        place = f"{path.name}, line {number}"
        try:
            atoms, row = parse_jsonl(line)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        yield place, str(row.get("id", number)), row.get("split"), atoms, row if target == PES else row.get(target)


def _read_extxyz(file: Any, path: Path, target: str) -> Iterator[_Row]:
    # ASE's reader jumps back and forth, which takes seconds in a compressed file.
    frames = read_extxyz(io.StringIO(file.read()), index=slice(None))
    number = 0
    while True:
        number += 1
        place = f"{path.name}, frame {number}"
        try:
            atoms = next(frames)
        except StopIteration:
            return
        except Exception as error:  # ASE raises whatever its parser meets: name the place, whatever it was
            raise ValueError(f"{place}: {type(error).__name__}: {error}") from error
        computed = {} if atoms.calc is None else atoms.calc.results
        value: Any
        if target == PES:
            value = {**atoms.arrays, **atoms.info, **computed}  # ASE puts them there or there
        else:
            value = atoms.info.get(target)
            if value is None:
                value = computed.get(target)
        yield place, str(atoms.info.get("id", number)), atoms.info.get("split"), atoms, value


def _read_folder(folder: Path) -> Iterator[_Row]:
    table = folder / "id_prop.csv"
    if not table.is_file():
        raise ValueError(
            f"the folder {str(folder)!r} has no id_prop.csv; it names a structure file and a target a line"
        )
    with open(table, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not row:
                continue
            place = f"id_prop.csv, line {number}"
            if len(row) != 2:
                raise ValueError(f"{place}: a file and a target are needed, got {','.join(row)!r}")
            name = row[0].strip()
            path = next((path for path in (folder / name, folder / f"{name}.cif") if path.is_file()), None)
            if path is None:
                raise ValueError(f"{place}: there is no {name!r} and no '{name}.cif' in {str(folder)!r}")
            yield f"{place} ({path.name})", name, None, read_structure_file(path), row[1].strip() or None


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
            return ase.io.read(path)
        return as_atoms(Structure.from_file(path) if path.suffix == ".cif" else Poscar.from_file(path).structure)
    except Exception as error:  # both libraries raise whatever their parsers meet: name the file, whatever it was
        raise ValueError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error


def assign_splits(records: Sequence[Record], path: str | Path) -> list[Record]:
    """Give records the parts that a JSON file lists by name: ``{"train": [...], "val": [...], "test": [...]}``.

    The keys may also be ``id_train``, ``id_val`` and ``id_test``, as ALIGNN and its kin write them; ``test`` may be
    missing. Records that are not listed are left out.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no such JSON, lists a name twice, or one that no record has.
    """
    try:
        listed = json.loads(Path(path).read_text(encoding="utf-8"))
        names = [(str(name), part) for part in SPLITS for name in listed.get(part, listed.get(f"id_{part}", []))]
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no JSON object with lists of names under {', '.join(SPLITS)}: {error}") from error
    part_of = dict(names)
    if len(names) > len(part_of):
        raise ValueError(f"{path}: {len(names) - len(part_of)} names are listed twice; a crystal has one part")
    unknown = sorted(part_of.keys() - {record.name for record in records})
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} names are in no record, for example {', '.join(unknown[:3])}")
    return [replace(record, split=part_of[record.name]) for record in records if record.name in part_of]


def split_records(
    records: Sequence[Record], seed: int = 0, fractions: tuple[float, float] = (0.8, 0.1)
) -> dict[str, list[Record]]:
    """Divide records into train, val and test.

    Args:
        records: if all of them name their split, that is taken.
        seed: of the shuffle, where none does.
        fractions: parts of train and val; the rest is test. A crystal with an element that no training crystal has
            goes to train, whatever its turn.

    Raises:
        ValueError: if only some records name a split, or train or val would be empty.
    """
    named = sum(record.split is not None for record in records)
    if 0 < named < len(records):
        raise ValueError(f"{len(records) - named} of {len(records)} rows name no split; let all name one, or none")
    parts: dict[str, list[Record]] = {split: [] for split in SPLITS}
    if named:
        for record in records:
            parts[str(record.split)].append(record)
    else:
        order = np.random.default_rng(seed).permutation(len(records))
        train = int(fractions[0] * len(records))
        val = max(1, int(fractions[1] * len(records)))
        known: set[str] = set()
        for rank, index in enumerate(order):
            elements = set(records[index].atoms.symbols)
            split = "train" if rank < train else "val" if rank < train + val else "test"
            if not elements <= known:
                split = "train"  # what no training crystal has, no model learns
            if split == "train":
                known |= elements
            parts[split].append(records[index])
    for split in ("train", "val"):
        if not parts[split]:
            remedy = (
                f"no row has the split {split!r}; mark some, or name no split at all" if named else "give more data"
            )
            raise ValueError(f"the {split} part is empty ({len(records)} crystals in all): {remedy}")
    return parts


def fingerprint(parts: Mapping[str, Sequence[Record]]) -> str:
    """Hash names, sizes and targets of all crystals, with forces and stresses, by which a run knows its own data."""
    digest = hashlib.sha256()
    for split in sorted(parts):
        for record in parts[split]:
            digest.update(f"{split} {record.name} {len(record.atoms)} {record.target!r}\n".encode())
            for values in (record.forces, record.stress):
                digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]
