"""Files of structures -> frames: the one door for every file, whatever its spelling and whoever reads.

What a parser makes up is not data: elements that a POSCAR does not name, the last of several structures, the part of a
file before a bad line are errors that name the file. A bad structure does not end the reading of a file whose others
can be told apart.
"""

from __future__ import annotations

import itertools
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import IO, Any, TypeAlias

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import read_xyz
from pymatgen.core import IMolecule, IStructure, Molecule, Structure
from pymatgen.io.cif import CifParser
from pymatgen.io.vasp import Poscar

from prism_plugin.errors import PrismError
from prism_plugin.files import open_text, shown, uncompressed_name
from prism_plugin.graph.structure import read_structure

__all__ = ["Frame", "as_atoms", "is_series", "read_frames", "read_structure_file"]


@dataclass(frozen=True)
class Frame:
    """One structure of a file.

    Attributes:
        place: where it stands, for messages.
        name: what the file calls it, as it is written there; its number where it has no name.
        atoms: the structure.
        values: whatever else the file says of it, by name.
        doubts: what should be looked at.
    """

    place: str
    name: str
    atoms: Atoms
    values: Mapping[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


# A frame, or the reason why there is none.
Read: TypeAlias = "Frame | PrismError"

_MOLECULE = "the file has no lattice: taken as a molecule"
_RAW = r"""(?:^|\s){}\s*=\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|\{{([^}}]*)\}}|\[([^\]]*)\]|(\S+))"""
_NAMES = ("id", "name", "material_id", "entry_id")


def as_atoms(structure: Any) -> Atoms:
    """Turn a pymatgen structure into ASE atoms.

    Raises:
        ValueError: if it is bad (see :func:`~prism_plugin.graph.structure.read_structure`).
    """
    return read_structure(structure).atoms()


def read_structure_file(path: str | Path) -> Atoms:
    """Read the only structure of a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, the structure is bad, or there are several.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no structure file {shown(path)!r}")
    found = list(itertools.islice(read_frames(path), 2))
    if isinstance(found[0], PrismError):
        raise found[0]
    if len(found) > 1:
        raise PrismError(f"{shown(Path(path).name)} holds several structures where one is due; give a file of each")
    return found[0].atoms


def is_series(path: Path) -> bool:
    """Whether a file is one of many structures by its kind, which are read one by one."""
    return _kind(path) in (".jsonl", ".extxyz", ".xyz", ".db", ".traj")


def read_frames(path: str | Path) -> Iterator[Read]:
    """Read the structures of a file one by one, at least one or one error.

    Args:
        path: ``.jsonl``, ``.extxyz``, ``.xyz``, CIF, POSCAR, pymatgen's or ASE's ``.json``, ASE's ``.db``, or whatever
            else ASE reads; upper or lower case; compressed by gzip, bzip2 or xz where it is text.

    Yields:
        Frames; in place of one that is bad, the error that says where and why. Where the next cannot be found, that is
        the last.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], Iterator[Read]]] = {
        ".jsonl": _jsonl,
        ".extxyz": _extxyz,
        ".xyz": _extxyz,
        ".cif": _cif,
        ".mcif": _cif,
        ".json": _json,
        ".db": _db,
        "poscar": _poscar,
    }
    number = 0
    try:
        for found in readers.get(_kind(path), _by_ase)(path):
            number += 1
            yield found
    except Exception as error:  # noqa: BLE001  # libraries raise whatever their parsers meet: name the file, whatever it was
        rest = f" after {number} structures, and the rest was not read" if number else ""
        yield PrismError(f"{shown(path.name)} cannot be read{rest}: {_reason(error)}")
    else:
        if not number:
            yield PrismError(f"{shown(path.name)} cannot be read: there is no structure in it")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, PrismError) else f"{type(error).__name__}: {error}"


def _kind(path: Path) -> str:
    """Suffix in lower case without that of the compression; ``"poscar"`` for VASP's."""
    name = uncompressed_name(path)
    suffix = Path(name).suffix.lower()
    if suffix in (".vasp", ".poscar", ".contcar") or re.search("poscar|contcar", name, re.IGNORECASE):
        return suffix if suffix in (".cif", ".json", ".jsonl", ".xyz", ".extxyz", ".db", ".traj") else "poscar"
    return suffix


def _jsonl(path: Path) -> Iterator[Read]:
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{shown(path.name)}, line {number}"
            try:
                atoms, row = _parse_jsonl(line)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                yield PrismError(f"{place}: {_reason(error)}")
            else:
                yield Frame(place, str(row.get("id", number)), atoms, row)


def _parse_jsonl(line: str) -> tuple[Atoms, dict[str, Any]]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise PrismError(f"a crystal is an object with lattice, species and frac_coords, got {line.strip()[:40]!r}")
    try:
        with np.errstate(invalid="ignore"):  # what is not finite is refused by name later
            atoms = Atoms(
                symbols=row["species"],
                scaled_positions=np.asarray(row["frac_coords"], dtype=float).reshape(-1, 3),
                cell=np.asarray(row["lattice"], dtype=float).reshape(3, 3),
                pbc=_flags(row.get("pbc", True)),
            )
    except KeyError as error:
        raise PrismError(
            f"{error} is neither a key of the row nor an element; needed are lattice, species and frac_coords"
        ) from error
    return atoms, row


def _flags(given: Any) -> Any:
    """Read periodic flags, of which ASE takes any text for true."""
    words = given.split() if isinstance(given, str) else given
    values = list(words) if isinstance(words, (list, tuple)) else [words]
    meaning = {"T": True, "True": True, "true": True, "F": False, "False": False, "false": False}
    flags = [meaning.get(value, value) if isinstance(value, str) else value for value in values]
    if len(flags) not in (1, 3) or any(flag not in (0, 1) for flag in flags):
        raise PrismError(f"pbc is true, false or three of these, got {given!r}")
    return [bool(flag) for flag in flags] if len(flags) == 3 else bool(flags[0])


def _extxyz(path: Path) -> Iterator[Read]:
    with open_text(path) as file:
        for number, found in enumerate(_cut_xyz(file), start=1):
            place = f"{shown(path.name)}, frame {number}"
            if isinstance(found, PrismError):
                yield PrismError(f"{place}: {found}; the rest of this file was not read")
                return
            comment, text = found
            try:
                (atoms,) = read_xyz(StringIO(text), slice(0, 1))
            except Exception as error:  # noqa: BLE001  # ASE raises whatever its parser meets
                yield PrismError(f"{place}: {_reason(error)}")
            else:
                yield _frame(place, number, atoms, _raw(comment, ("id", "split")))


def _cut_xyz(file: IO[str]) -> Iterator[tuple[str, str] | PrismError]:
    """Cut a file into frames, comment and all lines of each, trusting no number in it."""
    lines = iter(file.readline, "")
    count = next(lines, "")
    while count:
        if not count.strip():
            count = next(lines, "")
            continue
        if not count.strip().isdecimal():
            yield PrismError(f"a number of atoms is due, got {count.strip()[:40]!r}")
            return
        comment = next(lines, "")
        rows = list(itertools.islice(lines, int(count)))
        if len(rows) < int(count):
            yield PrismError(f"{int(count)} atoms are announced, but the file ends after {len(rows)}")
            return
        after = next(lines, "")
        while after.lstrip().startswith("VEC"):  # a lattice as some programs write it
            rows.append(after)
            after = next(lines, "")
        yield comment, "".join([count, comment, *rows])
        count = after


def _raw(comment: str, names: Iterable[str]) -> dict[str, str]:
    """Words of a comment line as they are written: ASE makes 7 of ``007`` and True of ``T``."""
    found = {name: re.search(_RAW.format(name), comment) for name in names}
    return {
        name: next(group for group in match.groups() if group is not None)
        for name, match in found.items()
        if match is not None
    }


def _frame(place: str, number: int, atoms: Atoms, more: Mapping[str, Any]) -> Frame:
    """Make a frame of ASE's atoms, which have their labels in three places."""
    computed = {} if atoms.calc is None else atoms.calc.results
    arrays = {name: values for name, values in atoms.arrays.items() if name not in ("numbers", "positions")}
    values = {**arrays, **atoms.info, **computed, **more}
    name = next((str(values[name]) for name in _NAMES if isinstance(values.get(name), (str, int))), str(number))
    no_lattice = not atoms.pbc.any() and not atoms.cell.rank
    return Frame(place, name, atoms, values, (_MOLECULE,) if no_lattice else ())


def _cif(path: Path) -> Iterator[Read]:
    with open_text(path, errors="replace") as file:  # names of authors are in whatever encoding
        blocks = re.split(r"^\s*data_", f"\n{file.read()}", flags=re.MULTILINE | re.IGNORECASE)[1:]
    of_atoms = [(number, block) for number, block in enumerate(blocks, start=1) if "_atom_site_" in block.lower()]
    for number, block in of_atoms:
        place = shown(path.name) if len(of_atoms) == 1 else f"{shown(path.name)}, block {number}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are among the parser's
                parser: Any = CifParser.from_str(f"data_{block}")
                (structure,) = parser.parse_structures(primitive=False, on_error="raise")
            doubts = tuple(" ".join(text.split()) for text in parser.warnings if "rounded to ideal" not in text)
            yield Frame(place, str(number), as_atoms(structure), doubts=doubts)
        except Exception as error:  # noqa: BLE001  # pymatgen raises whatever its parser meets
            yield PrismError(f"{place} cannot be read: {_reason(error)}")


def _poscar(path: Path) -> Iterator[Read]:
    with open_text(path, errors="replace") as file:
        text = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        poscar = Poscar.from_str(text)
    if not poscar.true_names:
        raise PrismError("the POSCAR names no elements (VASP 4); write their symbols in a line above their numbers")
    symbols, numbers = (text.splitlines()[line].split() for line in (5, 6))
    if not symbols[0].isdecimal() and numbers[0].isdecimal() and len(symbols) != len(numbers):
        raise PrismError(f"the POSCAR has {len(symbols)} symbols, {symbols}, and {len(numbers)} numbers, {numbers}")
    yield Frame(shown(path.name), "1", as_atoms(poscar.structure))


def _json(path: Path) -> Iterator[Read]:
    with open_text(path) as file:
        text = file.read()
    content = json.loads(text)
    if isinstance(content, dict) and "ids" in content and "nextid" in content:  # a database of ASE
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.json"
            plain.write_text(text, encoding="utf-8")
            yield from _rows(shown(path.name), plain)
        return
    items = content if isinstance(content, list) else [content]
    for number, item in enumerate(items, start=1):
        place = f"{shown(path.name)}, structure {number}"
        try:
            values = {**item, **(item.get("data") or {})}
            name = next((str(values[name]) for name in _NAMES if name in values), str(number))
            yield Frame(place, name, as_atoms(_from_pymatgen(item.get("structure", item))), values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield PrismError(f"{place}: {_reason(error)}")


def _from_pymatgen(content: Mapping[str, Any]) -> IStructure | IMolecule:
    """Read what ``as_dict`` wrote, without the properties of sites, which may name any class to be imported."""
    if "sites" not in content:
        raise PrismError("no structure of pymatgen: it has no sites")
    sites = [{key: value for key, value in site.items() if key != "properties"} for site in content["sites"]]
    plain = {key: content[key] for key in ("lattice", "charge", "spin_multiplicity") if key in content}
    return (Structure if "lattice" in content else Molecule).from_dict({**plain, "sites": sites})


def _db(path: Path) -> Iterator[Read]:
    yield from _rows(shown(path.name), path)


def _rows(file: str, path: Path) -> Iterator[Read]:
    for number, row in enumerate(ase.db.connect(str(path), type=path.suffix[1:].lower()).select(), start=1):
        place = f"{file}, row {row.id}"
        try:
            yield _frame(place, number, row.toatoms(), {**row.data, **row.key_value_pairs})
        except (ValueError, KeyError, TypeError) as error:
            yield PrismError(f"{place}: {_reason(error)}")


def _by_ase(path: Path) -> Iterator[Read]:
    kind = ase.io.formats.filetype(str(path))
    if kind in ("vasp", "cif"):  # by content or another name
        yield from (_poscar if kind == "vasp" else _cif)(path)
        return
    frames = ase.io.iread(str(path), index=":", format=kind, do_not_split_by_at_sign=True)
    for number, atoms in enumerate(frames, start=1):
        yield _frame(f"{shown(path.name)}, frame {number}", number, atoms, {})
