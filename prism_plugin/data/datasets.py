"""Data sets by name: JARVIS and Materials Project 2018.6.1 (through jarvis-tools), Matbench (through matminer).

The libraries say where a file lies and which hash it has; it is downloaded once, checked, and read as a stream, because
the larger ones, decoded at once, need more memory than most machines have. Both libraries are the extra ``data``.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms

from prism_plugin.data.download import cache_home, fetch
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.json_stream import stream_json
from prism_plugin.data.matbench_files import FOLDS, MATBENCH, matbench_rows, matbench_split, matbench_target
from prism_plugin.data.named_rows import Row, Target, missing_extra, naming, records_of
from prism_plugin.data.records import Record
from prism_plugin.data.splits import split_records
from prism_plugin.errors import PrismError
from prism_plugin.tasks import PES

__all__ = ["DATASETS", "NamedData", "load_named", "published_split"]


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
    rows: Callable[[], Iterable[Row]]
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
    return data.split(records_of(name, data.rows(), data.targets[target]), fold or 0, seed)


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


def _jarvis_rows(key: str, identifier: str) -> Iterator[Row]:
    """Rows of a JARVIS file, as jarvis-tools names it."""
    try:
        from jarvis.db.figshare import get_db_info
    except ImportError as error:
        raise missing_extra() from error
    url, member, *_ = get_db_info()[key]
    path = fetch(url, cache_home() / "jarvis" / f"{member}.zip")
    with zipfile.ZipFile(path) as archive:
        if member not in archive.namelist():
            raise PrismError(f"{path} does not hold {member}: delete it, and it will be fetched again")
        with archive.open(member) as binary, naming(path):
            for _, row in stream_json(io.TextIOWrapper(binary, encoding="utf-8")):
                yield str(row[identifier]), partial(_atoms_of_jarvis, row["atoms"]), row


def _atoms_of_jarvis(atoms: Mapping[str, Any]) -> Atoms:
    coordinates = {"positions" if atoms["cartesian"] else "scaled_positions": atoms["coords"]}
    symbols = [symbol.strip() for symbol in atoms["elements"]]
    return Atoms(symbols, cell=atoms["lattice_mat"], pbc=True, **coordinates)


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


def _split_jarvis(records: list[Record], fold: int, seed: int) -> dict[str, list[Record]]:
    return published_split(records, 0.1, 0.1)


def _split_mp(records: list[Record], fold: int, seed: int) -> dict[str, list[Record]]:
    """60,000 / 5,000 / 4,239 where every crystal has the target; a modulus, which few have, 80/10/10."""
    return published_split(records, 5000, 4239) if len(records) == 69_239 else published_split(records, 0.1, 0.1)


def _emt_rows(column: str, forces: bool) -> Sequence[Row]:
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
        {target: matbench_target(f"matbench_{task}")},
        partial(matbench_rows, f"matbench_{task}"),
        partial(matbench_split, f"matbench_{task}"),
        folds=True,
    )
    for task, (target, _, _) in MATBENCH.items()
}
