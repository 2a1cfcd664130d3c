"""Files of crystals with targets -> records.

A bad line ends in an error that names the file, the line and the reason; nothing is dropped silently.
"""

from __future__ import annotations

import csv
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prism_plugin.data.frame import Frame, Read, reason_of
from prism_plugin.data.records import Record
from prism_plugin.data.shards import is_shard_folder, read_shards
from prism_plugin.data.splits import SPLITS
from prism_plugin.data.structure_files import name_in, read_frames, read_only_frame
from prism_plugin.errors import PrismError, warn
from prism_plugin.files import open_text, shown
from prism_plugin.tasks import task_of_target

__all__ = ["read_records"]

# A target beyond this is a fill value: no property of a crystal in a usual unit comes near it.
_LARGEST_TARGET = 1e12
_MISSING = ("", "-", "na", "n/a", "nan", "none", "null")


def read_records(
    path: str | Path, target: str, skip_missing: bool = False, keys: Mapping[str, str] | None = None
) -> list[Record]:
    """Read a data file.

    Args:
        path: ``.jsonl`` (one object a line: ``lattice`` as rows in Å, ``species``, ``frac_coords``, the target, and
            optionally ``id``, ``split``, ``pbc``), ``.extxyz`` (the target in the comment line), pymatgen's ``.json``
            (structures or computed entries, the target beside them), ASE's ``.db``, ``.json`` or ``.traj``; text may be
            compressed (``.xz``, ``.gz``, ``.bz2``). For the target ``"pes"`` they need ``energy`` (total, eV) and
            ``forces`` (eV/Å), and may have ``stress`` (eV/Å^3, ASE's sign, 3 x 3 or xx, yy, zz, yz, xz, xy) or
            ``virial`` (eV, minus the stress times the volume, as extended XYZ has it).
            Or a ``.csv`` whose first line names its columns: the first column has structure files beside it (CIF,
            POSCAR, whatever ASE reads; ``.cif`` may be left out), another the target. Or a folder with ``id_prop.csv``
            (the convention of CGCNN and ALIGNN: ``file,target`` a line; a header is allowed). Or, for the target
            ``"pes"``, a folder of ``prism label``.
        target: key of the target, or ``"pes"`` for energies, forces and stresses; in ``id_prop.csv`` without a header
            only a name for it.
        skip_missing: leave out rows without the target, where False is an error. NaN, ``na``, ``none``, ``null`` and
            nothing are no target.
        keys: what the file calls the target, or ``"energy"``, ``"forces"`` or ``"stress"``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, a line is bad, or a target is missing, not finite or absurd.
    """
    path, keys = Path(path), keys or {}
    column = keys.get(target, target)
    if path.is_dir():
        if not task_of_target(target).one_number:
            if is_shard_folder(path):
                return read_shards(path)
            raise PrismError(
                f"{shown(path)!r} is a folder, whose table has one number a crystal: forces need an .extxyz or .jsonl "
                "file"
            )
        path = path / "id_prop.csv"
        if not path.is_file():
            raise PrismError(
                f"the folder {shown(path.parent)!r} has no id_prop.csv; it names a structure file and a target a line"
            )
        return _gather(_table(path, column, header=False), path, target, skip_missing, keys)
    if not path.is_file():
        raise FileNotFoundError(
            f"no data file {shown(path)!r}; give a .jsonl or .extxyz file, or the name of a data set"
        )
    rows = _table(path, column, header=True) if path.suffix.lower() == ".csv" else read_frames(path)
    return _gather(rows, path, target, skip_missing, keys)


def _gather(rows: Iterator[Read], path: Path, target: str, skip_missing: bool, keys: Mapping[str, str]) -> list[Record]:
    """Check rows and make records of them."""
    records: list[Record] = []
    missing: list[str] = []
    doubts: Counter[str] = Counter()
    there: dict[str, None] = {}  # in order
    task = task_of_target(target)
    for frame in rows:
        if isinstance(frame, PrismError):
            raise frame
        doubts.update(frame.doubts)
        there |= dict.fromkeys(frame.values)
        row = {**frame.values, **{name: frame.values.get(key) for name, key in keys.items()}}
        try:
            value, gradients = task.read_label(row, target, frame.atoms)
        except (ValueError, TypeError, OverflowError) as error:
            raise PrismError(f"{frame.place}: {reason_of(error)}") from error
        if _is_missing(value):
            missing.append(frame.place)
            continue
        if isinstance(value, bool | np.bool_) and not task.one_number:
            raise PrismError(f"{frame.place}: the energy is {value}: write its number")
        number = _number(value, frame.place, target)
        split = row.get("split")
        if split is not None and split not in SPLITS:
            raise PrismError(f"{frame.place}: split is {split!r}; it must be one of: {', '.join(SPLITS)}")
        try:
            records.append(Record(frame.atoms, number, frame.name, split, **gradients).checked())
        except ValueError as error:
            raise PrismError(f"{frame.place}: {error}") from error
    wanted, hint = task.label_words(target)
    for name, key in keys.items():
        if key not in there:
            raise PrismError(f"{shown(path)}: no row has {key!r} for its {name}; there are: {_listed(there)}")
    if missing and not records:
        raise PrismError(
            f"{shown(path)}: none of the {len(missing)} rows has the {wanted}; there are: {_listed(there)}{hint}"
        )
    if missing and not skip_missing:
        raise PrismError(
            f"{shown(path)}: the {wanted} is missing in {len(missing)} of {len(missing) + len(records)} rows "
            f"(first: {', '.join(missing[:3])}); remove them, choose another target, or pass --skip-missing"
        )
    if not records:
        raise PrismError(f"{shown(path)}: there is no crystal in it")
    if missing:
        warn(f"{shown(path)}: {len(missing)} of {len(missing) + len(records)} rows are left out: no {wanted}")
    read = (keys.get("stress", "stress"), "virial", "virials")
    unread = [key for key in there if key not in read and re.search("stress|virial", key, re.IGNORECASE)]
    if unread and not task.one_number and all(record.stress is None for record in records):
        warn(f"{shown(path)}: no stress is read, and there are: {', '.join(unread)}; name it by --stress-key")
    for doubt, count in doubts.items():
        warn(f"{shown(path)}: {count} of {len(records) + len(missing)} structures: {doubt}")
    _warn_of_names(path, records)
    return records


def _listed(names: Mapping[str, Any]) -> str:
    ours = ("lattice", "species", "frac_coords", "pbc", "id", "split")
    return ", ".join(name for name in names if name not in ours) or "no values at all"


def _warn_of_names(path: Path, records: Sequence[Record]) -> None:
    twins = [name for name, count in Counter(record.name for record in records).items() if count > 1]
    if twins:
        warn(f"{shown(path)}: {len(twins)} names stand there more than once, for example {twins[0]!r}")


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any, place: str, target: str) -> float:
    try:
        if isinstance(value, str) and "_" in value:
            raise ValueError("Python's own way to write a number")
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise PrismError(f"{place}: the target {target!r} is no number: {value!r}") from error
    if not math.isfinite(number):
        raise PrismError(f"{place}: the target {target!r} is not finite: {value!r}; remove the row")
    if abs(number) > _LARGEST_TARGET:
        raise PrismError(f"{place}: the target {target!r} is {value!r}: is it a fill value? Remove the row")
    return number


def _table(path: Path, target: str, header: bool) -> Iterator[Read]:
    """Read a table of structure files, or of structures as CIF in a column ``cif``, and targets.

    Without the need of a header it has two columns.
    """
    with open_text(path) as file:
        try:
            lines = [(number, row) for number, row in enumerate(csv.reader(file, strict=True), start=1) if any(row)]
        except csv.Error as error:
            raise PrismError(f"{shown(path)} is no CSV: {error}") from error
    if lines and len(lines[0][1]) == 1 and (mark := re.search(r"[;\t]", lines[0][1][0])):
        raise PrismError(f"{shown(path)} separates its cells by {mark[0]!r}: write commas, and points in numbers")
    columns = ["", target]
    if lines and (header or _is_header(path.parent, lines[0][1])):
        columns = [cell.strip() for cell in lines.pop(0)[1]]
        columns = ["split" if column.lower() == "split" else column for column in columns]
        if target not in columns[1:]:
            raise PrismError(
                f"{shown(path)} has no column {target!r} beside the first, of files; there are: "
                f"{', '.join(columns[1:])}"
            )
    if len(set(columns)) < len(columns):
        raise PrismError(f"{shown(path)}: a column stands twice: {', '.join(columns)}")
    pairs = [pair for _, row in lines for pair in zip(columns, row, strict=False)]
    # The column that has structures and not their files, as those of CDVAE and its kin.
    text = next((name for name, cell in pairs if name.lower() == "cif" and "\n" in cell and "data_" in cell), None)
    files: dict[Path, int] = {}
    for number, row in lines:
        place = f"{path.name}, line {number}"
        if len(row) != len(columns):
            what = "a file and a target are needed" if len(columns) == 2 else f"{len(columns)} cells are needed"
            raise PrismError(f"{place}: {what}, got {','.join(row)!r}")
        values = {column: cell.strip() for column, cell in zip(columns, row, strict=True)}
        if text is not None:
            yield _from_text(values.pop(text), place, name_in(values, number), values)
            continue
        name = row[0].strip()
        found = next((one for one in (path.parent / name, path.parent / f"{name}.cif") if one.is_file()), None)
        if found is None:
            raise PrismError(f"{place}: there is no {name!r} and no '{name}.cif' in {shown(path.parent)!r}")
        del values[columns[0]]
        if found in files:
            raise PrismError(f"{place}: {shown(found.name)} stands in line {files[found]} already")
        files[found] = number
        frame = read_only_frame(found)
        yield Frame(f"{place} ({shown(found.name)})", name, frame.atoms, values, frame.doubts)


def _from_text(text: str, place: str, name: str, values: Mapping[str, Any]) -> Frame:
    """Read a structure that stands in a cell as the text of a CIF."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cell.cif"
        file.write_text(text, encoding="utf-8")
        try:
            frame = read_only_frame(file)
        except ValueError as error:
            reason = reason_of(error).removeprefix(f"{file.name} ")
            raise PrismError(f"{place} ({name}): the CIF in it {reason}") from error
    return Frame(f"{place} ({name})", name, frame.atoms, values, frame.doubts)


def _is_header(folder: Path, row: Sequence[str]) -> bool:
    """Whether a first line names columns: its first cell is no file, and its second no number."""
    name = row[0].strip()
    if len(row) < 2 or any((folder / one).is_file() for one in (name, f"{name}.cif")):
        return False
    try:
        float(row[1])
    except ValueError:
        return not _is_missing(row[1])
    return False
