"""Matbench's structure tasks: their files, targets, folds and names."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from prism_plugin.data.download import cache_home, fetch
from prism_plugin.data.frame import as_atoms
from prism_plugin.data.json_stream import stream_json
from prism_plugin.data.named_rows import Row, Target, missing_extra, naming, records_of
from prism_plugin.data.records import Record
from prism_plugin.errors import PrismError
from prism_plugin.files import replaced, write_json_gz
from prism_plugin.tasks.classification import Classification
from prism_plugin.tasks.regression import Regression

__all__ = [
    "FOLDS",
    "MATBENCH",
    "MATBENCH_SEED",
    "matbench_file",
    "matbench_folds",
    "matbench_records",
    "matbench_rows",
    "matbench_split",
    "matbench_target",
    "read_frame",
    "with_validation",
    "write_matbench_file",
]

FOLDS = 5
MATBENCH_SEED = 18012019


def matbench_target(task: str) -> Target:
    """Return the target of a structure task, ``matbench_...``."""
    name = task.removeprefix("matbench_")
    _, column, unit = MATBENCH[name]
    return Target(column, unit, task_type=Classification.name if name == "mp_is_metal" else Regression.name)


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


def matbench_split(task: str, records: list[Record], fold: int, seed: int) -> dict[str, list[Record]]:
    """An official fold, with a validation part."""
    if len(records) < 2 * FOLDS:
        raise PrismError(f"{len(records)} crystals are too few for {FOLDS} folds")
    records = _matbench_names(task, records)
    classes = [record.target for record in records] if matbench_target(task).task_type == Classification.name else None
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
        raise missing_extra() from error
    home = Path(os.environ.get("MATMINER_DATA") or cache_home() / "matminer")
    url, sha256 = get_dataset_attribute(task, "url"), get_dataset_attribute(task, "hash")
    return fetch(url, home / f"{task}.json.gz", sha256)


def matbench_rows(task: str) -> Iterator[Row]:
    """Yield the rows of a task's file, downloading it where it is missing."""
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
    return _matbench_names(task, records_of(task, read_frame(path), matbench_target(task)))


def _matbench_names(task: str, records: Sequence[Record]) -> list[Record]:
    """Name the rows of a task's file, which are called 0, 1, ..., as the benchmark does."""
    for number, record in enumerate(records):
        if record.name != str(number):
            raise PrismError(f"{task}: row {number} has no target, or row {record.name!r} stands in its place")
    digits = len(str(len(records)))
    prefix = task.replace("matbench", "mb").replace("_", "-")
    return [replace(record, name=f"{prefix}-{number:0{digits}d}") for number, record in enumerate(records, start=1)]


def read_frame(path: Path) -> Iterator[Row]:
    """Read a data frame in matminer's format: gzip of ``{"index": ..., "columns": ..., "data": ...}``."""
    head: dict[str | None, Any] = {}
    number = 0
    with gzip.open(path, "rt", encoding="utf-8") as file, naming(path):
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


MATBENCH = {
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


def write_matbench_file(task: str, records: Sequence[Record], path: str | Path) -> None:
    """Write records in the format of a Matbench task's file, for tests and trials without a download.

    Args:
        task: name of a structure task.
        records: crystals with targets.
        path: of the ``.json.gz``; equal records give equal bytes.
    """
    target = matbench_target(task)
    kind = bool if target.task_type == Classification.name else float
    structures = (AseAtomsAdaptor.get_structure(record.atoms).as_dict() for record in records)
    frame = {
        "columns": ["structure", target.column],
        "index": list(range(len(records))),
        "data": [[structure, kind(record.target)] for structure, record in zip(structures, records, strict=True)],
    }
    with replaced(path) as aside:
        write_json_gz(aside, frame)
