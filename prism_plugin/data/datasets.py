"""Data sets by name: JARVIS and Materials Project 2018.6.1 (through jarvis-tools), Matbench (through matminer).

The libraries say where a file lies and which hash it has; it is downloaded once, checked, and read as a stream, because
the larger ones, decoded at once, need more memory than most machines have. Both libraries are the extra ``data``.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import random
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from prism_plugin.data.download import cache_home, fetch
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.json_stream import stream_json
from prism_plugin.data.readers import as_atoms
from prism_plugin.data.records import Record
from prism_plugin.data.splits import split_records
from prism_plugin.errors import PrismError
from prism_plugin.files import replaced, write_json_gz
from prism_plugin.tasks import PES
from prism_plugin.tasks.classification import Classification
from prism_plugin.tasks.regression import Regression

__all__ = [
    "DATASETS",
    "FOLDS",
    "MATBENCH_SEED",
    "NamedData",
    "Target",
    "load_named",
    "matbench_file",
    "matbench_folds",
    "matbench_records",
    "published_split",
    "read_frame",
    "with_validation",
    "write_matbench_file",
]

_Row = tuple[str, Callable[[], Atoms], Mapping[str, Any]]


FOLDS = 5


MATBENCH_SEED = 18012019


@dataclass(frozen=True)
class Target:
    """What a data set holds for one property.

    Attributes:
        column: its name there.
        unit: its unit after ``log10``.
        log10: whether the decimal logarithm is the target.
        task_type: ``"regression"`` or ``"classification"``, as of a model.
    """

    column: str
    unit: str
    log10: bool = False
    task_type: str = Regression.name


@dataclass(frozen=True)
class NamedData:
    """A data set.

    Attributes:
        about: one line for lists.
        targets: its properties.
        rows: gives ``(name, function that makes the structure, columns)`` one by one.
        split: divides the records with a target into parts, given fold and seed.
        folds: whether it has cross-validation folds.
        downloaded: whether the rows come from a file that was downloaded.
    """

    about: str
    targets: Mapping[str, Target]
    rows: Callable[[], Iterable[_Row]]
    split: Callable[[list[Record], int, int], dict[str, list[Record]]]
    folds: bool = False
    downloaded: bool = True

    def unit(self, target: str) -> str:
        """Unit of a target.

        Raises:
            ValueError: if there is no such target.
        """
        if target not in self.targets:
            raise PrismError(f"no target {target!r} there; choose one of: {', '.join(self.targets)}")
        return self.targets[target].unit


def load_named(name: str, target: str, fold: int | None = None, seed: int = 0) -> dict[str, list[Record]]:
    """Load a data set, downloading it where it is missing, in its published split.

    Args:
        name: a key of :data:`DATASETS`.
        target: a key of its ``targets``.
        fold: which of Matbench's five, from 0 on; None for sets without folds.
        seed: of the validation part, where the publication names none (Matbench), or of a set made here.

    Returns:
        Records of ``"train"``, ``"val"`` and ``"test"``; rows without the target (JARVIS: ``"na"``) are left out.

    Raises:
        ImportError: if the extra ``data`` is not installed.
        OSError: if the download fails.
        ValueError: if name, target or fold is unknown, or a file is damaged.
    """
    if name not in DATASETS:
        raise PrismError(f"no data set {name!r}; choose one of: {', '.join(DATASETS)}, or give a file")
    data = DATASETS[name]
    data.unit(target)
    if data.folds and fold not in range(FOLDS):
        raise PrismError(f"{name} has {FOLDS} folds, 0 to {FOLDS - 1} (--fold); fold is {fold}")
    if not data.folds and fold is not None:
        raise PrismError(f"{name} has one split and no folds, but fold is {fold}")
    return data.split(_records(name, data.rows(), data.targets[target]), fold or 0, seed)


def _records(name: str, rows: Iterable[_Row], wanted: Target) -> list[Record]:
    """Records of the rows that have the target."""
    records = []
    for row_name, structure, columns in rows:
        if wanted.column not in columns:
            raise PrismError(f"row {row_name!r} of {name} lacks the column {wanted.column!r}: is it another version?")
        value = columns[wanted.column]
        if value in (None, "na", ""):
            continue
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise PrismError(f"row {row_name!r} of {name}: {wanted.column} is no number: {value!r}") from error
        if math.isnan(number) or (wanted.log10 and number <= 0):
            continue
        try:
            atoms = structure()
        except (ValueError, KeyError, TypeError) as error:
            raise PrismError(f"crystal {row_name!r} of {name}: {error}") from error
        gradients = {name: columns.get(name) for name in ("forces", "stress")}
        records.append(Record(atoms, math.log10(number) if wanted.log10 else number, row_name, **gradients))
    return records


def published_split(records: list[Record], val: float, test: float) -> dict[str, list[Record]]:
    """Shuffle with Python's ``random`` and seed 123, as ALIGNN, Matformer and CartNet do; the rest is for training.

    Args:
        records: in the file's order.
        val: size of the validation part: a number of crystals, or below 1 a fraction (rounded down).
        test: the same of the test part.
    """
    sizes = [int(part * len(records)) if part < 1 else int(part) for part in (val, test)]
    if min(sizes) < 1 or sum(sizes) >= len(records):
        raise PrismError(
            f"{len(records)} crystals with this target are too few for {val:g} of validation and {test:g} of test"
        )
    order = list(range(len(records)))
    random.Random(123).shuffle(order)
    ends = np.cumsum([len(records) - sum(sizes), *sizes])
    bounds = {"train": (0, ends[0]), "val": (ends[0], ends[1]), "test": (ends[1], ends[2])}
    return {part: [records[index] for index in order[start:end]] for part, (start, end) in bounds.items()}


def matbench_folds(size: int, classes: Sequence[float] | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices (training, test) of Matbench's five folds over a data set's order.

    Args:
        size: number of crystals.
        classes: their classes, in a task of classification: its folds are stratified.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    kind = KFold if classes is None else StratifiedKFold
    folds = kind(FOLDS, shuffle=True, random_state=MATBENCH_SEED)
    return list(folds.split(np.arange(size), classes))


def _matbench_split(task: str, records: list[Record], fold: int, seed: int) -> dict[str, list[Record]]:
    """An official fold, with a validation part."""
    if len(records) < 2 * FOLDS:
        raise PrismError(f"{len(records)} crystals are too few for {FOLDS} folds")
    records = _matbench_names(task, records)
    (target,) = DATASETS[task].targets.values()
    classes = [record.target for record in records] if target.task_type == Classification.name else None
    return with_validation(records, *matbench_folds(len(records), classes)[fold], seed)


def with_validation(
    records: Sequence[Record], train: Sequence[int] | np.ndarray, test: Sequence[int] | np.ndarray, seed: int
) -> dict[str, list[Record]]:
    """Take a tenth of a fold's training part for validation.

    Args:
        records: of the whole task, in its order.
        train: indices of the fold's training part.
        test: indices of its test part.
        seed: of the choice.

    Returns:
        Records of ``"train"``, ``"val"`` and ``"test"``, each in the task's order.
    """
    shuffled = np.random.default_rng(seed).permutation(train)
    count = max(1, len(train) // 10)
    parts = {"train": np.sort(shuffled[count:]), "val": np.sort(shuffled[:count]), "test": test}
    return {part: [records[index] for index in indices] for part, indices in parts.items()}


def _jarvis_rows(key: str, identifier: str) -> Iterator[_Row]:
    """Rows of a JARVIS file, as jarvis-tools names it."""
    try:
        from jarvis.db.figshare import get_db_info
    except ImportError as error:
        raise _missing_extra() from error
    url, member, *_ = get_db_info()[key]
    path = fetch(url, cache_home() / "jarvis" / f"{member}.zip")
    with zipfile.ZipFile(path) as archive:
        if member not in archive.namelist():
            raise PrismError(f"{path} does not hold {member}: delete it, and it will be fetched again")
        with archive.open(member) as binary, _named(path):
            for _, row in stream_json(io.TextIOWrapper(binary, encoding="utf-8")):
                yield str(row[identifier]), partial(_atoms_of_jarvis, row["atoms"]), row


def _atoms_of_jarvis(atoms: Mapping[str, Any]) -> Atoms:
    coordinates = {"positions" if atoms["cartesian"] else "scaled_positions": atoms["coords"]}
    symbols = [symbol.strip() for symbol in atoms["elements"]]
    return Atoms(symbols, cell=atoms["lattice_mat"], pbc=True, **coordinates)


def matbench_file(task: str) -> Path:
    """Return the path of a Matbench task's file in ``$MATMINER_DATA`` or the cache; download it where it is missing.

    Its hash is compared with the one that matminer knows, also of a file that was there before.

    Raises:
        ImportError: if the extra ``data`` is not installed.
        OSError: if the download fails.
        ValueError: if it is another file; it is not overwritten.
    """
    try:
        from matminer.datasets import get_dataset_attribute
    except ImportError as error:
        raise _missing_extra() from error
    home = Path(os.environ.get("MATMINER_DATA") or cache_home() / "matminer")
    url, sha256 = get_dataset_attribute(task, "url"), get_dataset_attribute(task, "hash")
    return fetch(url, home / f"{task}.json.gz", sha256)


def _matbench_rows(task: str) -> Iterator[_Row]:
    yield from read_frame(matbench_file(task))


def matbench_records(task: str, path: Path) -> list[Record]:
    """Read a Matbench task in its order, its crystals named as the benchmark does: ``mb-jdft2d-001``.

    Args:
        task: name of a structure task.
        path: the file of :func:`matbench_file`, or another one in its format.

    Raises:
        OSError: if it cannot be read.
        ValueError: if the file is damaged, lacks the target somewhere, or is not in the order of its index.
    """
    (target,) = DATASETS[task].targets.values()
    return _matbench_names(task, _records(task, read_frame(path), target))


def _matbench_names(task: str, records: Sequence[Record]) -> list[Record]:
    """Name the rows of a task's file, which are called 0, 1, ..., as the benchmark does."""
    for number, record in enumerate(records):
        if record.name != str(number):
            raise PrismError(f"{task}: row {number} has no target, or row {record.name!r} stands in its place")
    digits = len(str(len(records)))
    prefix = task.replace("matbench", "mb").replace("_", "-")
    return [replace(record, name=f"{prefix}-{number:0{digits}d}") for number, record in enumerate(records, start=1)]


def read_frame(path: Path) -> Iterator[_Row]:
    """Read a data frame in matminer's format: gzip of ``{"index": ..., "columns": ..., "data": ...}``."""
    head: dict[str | None, Any] = {}
    number = 0
    with gzip.open(path, "rt", encoding="utf-8") as file, _named(path):
        for key, value in stream_json(file, inside="data"):
            if key is not None:
                head[key] = value
                continue
            if not {"index", "columns"} <= head.keys():  # they stand behind the data: look there first
                with gzip.open(path, "rt", encoding="utf-8") as again:
                    head = {key: value for key, value in stream_json(again, inside="data") if key is not None}
            row = dict(zip(head["columns"], value, strict=True))
            yield str(head["index"][number]), partial(_atoms_of_pymatgen, row["structure"]), row
            number += 1


def _atoms_of_pymatgen(structure: Mapping[str, Any]) -> Atoms:
    return as_atoms(Structure.from_dict(dict(structure)))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the name of the file to an error."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise PrismError(f"{path} is truncated, damaged or not compressed ({error}); replace it") from error
    except (KeyError, TypeError) as error:
        raise PrismError(f"{path} is not in the expected format ({error!r})") from error
    except ValueError as error:
        raise PrismError(f"{path}: {error}") from error


def _missing_extra() -> ImportError:
    return ImportError(
        "data sets by name need jarvis-tools and matminer: pip install 'prism-plugin[data]' (or pass a file)"
    )


_JARVIS = {
    "formation_energy": Target("formation_energy_peratom", "eV/atom"),
    "band_gap_opt": Target("optb88vdw_bandgap", "eV"),
    "total_energy": Target("optb88vdw_total_energy", "eV/atom"),
    "band_gap_mbj": Target("mbj_bandgap", "eV"),
    "e_hull": Target("ehull", "eV/atom"),
}


_MP = {
    "formation_energy": Target("e_form", "eV/atom"),
    "band_gap": Target("gap pbe", "eV"),
    "bulk_modulus": Target("bulk modulus", "log10(GPa)", log10=True),
    "shear_modulus": Target("shear modulus", "log10(GPa)", log10=True),
}


_MATBENCH = {
    "mp_e_form": ("formation_energy", "e_form", "eV/atom"),
    "mp_gap": ("band_gap", "gap pbe", "eV"),
    "mp_is_metal": ("is_metal", "is_metal", ""),
    "perovskites": ("formation_energy", "e_form", "eV/unit cell"),
    "log_kvrh": ("bulk_modulus", "log10(K_VRH)", "log10(GPa)"),
    "log_gvrh": ("shear_modulus", "log10(G_VRH)", "log10(GPa)"),
    "dielectric": ("refractive_index", "n", ""),
    "phonons": ("last_phdos_peak", "last phdos peak", "1/cm"),
    "jdft2d": ("exfoliation_energy", "exfoliation_en", "meV/atom"),
}


def _split_jarvis(records: list[Record], fold: int, seed: int) -> dict[str, list[Record]]:
    return published_split(records, 0.1, 0.1)


def _split_mp(records: list[Record], fold: int, seed: int) -> dict[str, list[Record]]:
    """60,000 / 5,000 / 4,239 where every crystal has the target; a modulus, which few have, 80/10/10."""
    return published_split(records, 5000, 4239) if len(records) == 69_239 else published_split(records, 0.1, 0.1)


def _emt_rows(column: str, forces: bool) -> Sequence[_Row]:
    return [
        (
            record.name,
            partial(Atoms, record.atoms),
            {column: record.target, "forces": record.forces, "stress": record.stress},
        )
        for record in emt_alloys(forces=forces)
    ]


DATASETS: dict[str, NamedData] = {
    "emt-alloys": NamedData(
        "600 alloys computed here by ASE's EMT, for trying out",
        {"formation_energy": Target("formation_energy", "eV/atom")},
        partial(_emt_rows, "formation_energy", forces=False),
        lambda records, fold, seed: split_records(records, seed),
        downloaded=False,
    ),
    "emt-alloys-pes": NamedData(
        "the same alloys with energies, forces and stresses",
        {PES: Target("energy", "eV")},
        partial(_emt_rows, "energy", forces=True),
        lambda records, fold, seed: split_records(records, seed),
        downloaded=False,
    ),
    "jarvis": NamedData(
        "JARVIS dft_3d 2021.8.18, 80/10/10 by seed 123",
        _JARVIS,
        partial(_jarvis_rows, "dft_3d_2021", "jid"),
        _split_jarvis,
    ),
    "mp2018": NamedData(
        "Materials Project 2018.6.1, 60,000/5,000/4,239 by seed 123 (moduli 80/10/10)",
        _MP,
        partial(_jarvis_rows, "megnet", "id"),
        _split_mp,
    ),
} | {
    f"matbench_{task}": NamedData(
        "Matbench v0.1, five official folds",
        {target: Target(column, unit, task_type=Classification.name if task == "mp_is_metal" else Regression.name)},
        partial(_matbench_rows, f"matbench_{task}"),
        partial(_matbench_split, f"matbench_{task}"),
        folds=True,
    )
    for task, (target, column, unit) in _MATBENCH.items()
}


def write_matbench_file(task: str, records: Sequence[Record], path: str | Path) -> None:
    """Write records in the format of a Matbench task's file, for tests and trials without a download.

    Args:
        task: name of a structure task.
        records: crystals with targets.
        path: of the ``.json.gz``; equal records give equal bytes.
    """
    (target,) = DATASETS[task].targets.values()
    kind = bool if target.task_type == Classification.name else float
    structures = (AseAtomsAdaptor.get_structure(record.atoms).as_dict() for record in records)
    frame = {
        "columns": ["structure", target.column],
        "index": list(range(len(records))),
        "data": [[structure, kind(record.target)] for structure, record in zip(structures, records, strict=True)],
    }
    with replaced(path) as aside:
        write_json_gz(aside, frame)
