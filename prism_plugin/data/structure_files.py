"""Files of structures -> frames: the one door for every file, whatever its spelling and whoever reads.

What a parser makes up is not data: elements that a POSCAR does not name, the last of several structures, the part of a
file before a bad line are errors that name the file. A bad structure does not end the reading of a file whose others
can be told apart.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import IO, Any

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.io.extxyz import read_xyz
from pymatgen.core import IMolecule, IStructure, Molecule, Structure

from prism_plugin.data.crystal_files import read_cif, read_poscar
from prism_plugin.data.frame import SELECTIVE, Frame, Read, as_atoms, reason_of
from prism_plugin.data.records import check_symmetric
from prism_plugin.errors import PrismError, warn
from prism_plugin.files import open_text, shown, uncompressed_name
from prism_plugin.graph.structure import read_structure

__all__ = ["is_series", "name_in", "read_frames", "read_only_frame", "read_structure_file", "without_labels"]


_SERIES = (".jsonl", ".extxyz", ".xyz", ".db", ".traj")
_MOLECULE = "the file has no lattice: taken as a molecule"
_NAMES = ("id", "name", "material_id", "entry_id")
_LABEL = re.compile("energy|force|stress|virial", re.IGNORECASE)
# Keys and quoted values of a comment line of extended XYZ.
_KEY = r"""(?:"[^"=]*"|[^\s="'{\[]+)"""
_QUOTED = r""""(?:[^"\\]|\\.)*"|'[^']*'|\{[^}]*\}|\[[^\]]*\]"""
# A key without a value, for which ASE takes the next word.
_EMPTY = re.compile(
    rf"""(?<!\S){_KEY}=(?:""|''|\{{\}}|\[\]|(?=\s+{_KEY}=|\s*$))(?=\s|$)|(?<![^\s=])(?P<kept>{_QUOTED})"""
)
# A word of such a line: key=value, the value quoted in one of four ways, or a bare key.
_WORD = re.compile(rf"""({_KEY})\s*=\s*({_QUOTED}|\S*)|\S+""")
_UNDERSCORE = re.compile(r"(?<!\S)[-+.\d]*\d_\d[-+.\deE_]*(?!\S)")


def read_structure_file(path: str | Path) -> Atoms:
    """Read the only structure of a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, the structure is bad, or there are several.
    """
    frame = read_only_frame(path)
    for doubt in frame.doubts:
        warn(f"{frame.place}: {doubt}")
    return frame.atoms


def read_only_frame(path: str | Path) -> Frame:
    """Read the only structure of a file, checked; raises as :func:`read_structure_file`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no structure file {shown(path)!r}")
    found = list(itertools.islice(read_frames(path), 2))
    if isinstance(found[0], PrismError):
        raise found[0]
    if len(found) > 1:
        raise PrismError(f"{shown(Path(path).name)} holds several structures where one is due; give a file of each")
    try:
        read_structure(found[0].atoms)
    except ValueError as error:
        raise PrismError(f"{found[0].place}: {error}") from error
    return found[0]


def is_series(path: Path) -> bool:
    """Whether a file is one of many structures by its kind, which are read one by one."""
    return _kind(path) in _SERIES


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
        ".cif": read_cif,
        ".mcif": read_cif,
        ".mmcif": read_cif,
        ".json": _json,
        ".db": _db,
        "poscar": read_poscar,
    }
    number = 0
    try:
        for found in readers.get(_kind(path), _by_ase)(path):
            number += 1
            yield found
    except Exception as error:  # noqa: BLE001  # libraries raise whatever their parsers meet: name the file, whatever it was
        rest = f" after {number} structures, and the rest was not read" if number else ""
        yield PrismError(f"{shown(path.name)} cannot be read{rest}: {reason_of(error)}")
    else:
        if not number:
            yield PrismError(f"{shown(path.name)} cannot be read: there is no structure in it")


def _kind(path: Path) -> str:
    """Suffix in lower case without that of the compression; ``"poscar"`` for VASP's."""
    name = uncompressed_name(path)
    suffix = Path(name).suffix.lower()
    if suffix in (".vasp", ".poscar", ".contcar") or re.search("poscar|contcar", name, re.IGNORECASE):
        return suffix if suffix in (*_SERIES, ".cif", ".json") else "poscar"
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
                yield PrismError(f"{place}: {reason_of(error)}")
            else:
                yield Frame(place, name_in(row, number), atoms, row)


def name_in(values: Mapping[str, Any], number: int) -> str:
    """Return what a structure is called by its values; its number where it has no name."""
    return next(
        (str(values[name]) for name in _NAMES if isinstance(values.get(name), (str, int, np.integer))), str(number)
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, of whose keys each may stand once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise PrismError(f"a key stands twice: {', '.join(sorted(twice))}")
    return found


def _numbers(row: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read an array of numbers, in its shape or flat."""
    try:
        values = np.asarray(row[key])
        if values.dtype.kind in "US" and any("_" in one for one in values.ravel().tolist()):
            raise PrismError(f"{key} has an underscore in a number")
        values = values.astype(float)
    except (TypeError, OverflowError) as error:
        raise PrismError(f"{key} has something else than numbers: {error}") from error
    except PrismError:
        raise
    except ValueError as error:
        raise PrismError(f"{key} must be numbers of the shape {shape}: {error}") from error
    if values.shape not in (shape, (int(np.prod(shape)),)):
        raise PrismError(f"the shape of {key} is {values.shape}; needed is {shape}")
    return values.reshape(shape)


def _parse_jsonl(line: str) -> tuple[Atoms, dict[str, Any]]:
    row = json.loads(line, object_pairs_hook=_once)
    if not isinstance(row, dict):
        raise PrismError(f"a crystal is an object with lattice, species and frac_coords, got {line.strip()[:40]!r}")
    for key in ("PBC", "periodic"):
        if key in row:
            raise PrismError(f"the key {key!r} is not known: write pbc, with true, false or three of these")
    try:
        species = row["species"]
        odd = [one for one in species if isinstance(one, bool) or not isinstance(one, (str, int))]
        if not isinstance(species, str) and odd:
            raise PrismError(f"species are symbols or atomic numbers, got {odd[0]!r}")
        symbols = Atoms(symbols=species).numbers
        with np.errstate(invalid="ignore"):  # what is not finite is refused by name later
            atoms = Atoms(
                numbers=symbols,
                scaled_positions=_numbers(row, "frac_coords", (len(symbols), 3)),
                cell=_numbers(row, "lattice", (3, 3)),
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
            count, comment, rows = found
            try:
                comment = _EMPTY.sub(lambda one: one["kept"] or "", comment.rstrip("\n"))
                words = _words(comment)
                _check_columns(words.get("Properties", ""), rows)
                (atoms,) = read_xyz(StringIO(f"{count}{comment}\n{rows}"), slice(0, 1))
                if "pbc" in words:
                    atoms.pbc = _flags(words["pbc"])
                for key in [one for one, value in atoms.info.items() if value is True and one not in words]:
                    del atoms.info[key]  # a bare word, as of "gap 1.5"
            except Exception as error:  # noqa: BLE001  # ASE raises whatever its parser meets
                yield PrismError(f"{place}: {reason_of(error)}")
            else:
                # Over an underscore in a number Python reads: whoever wants one is to see it as it is written.
                raw = {
                    name: word for name, word in words.items() if name in (*_NAMES, "split") or _UNDERSCORE.search(word)
                }
                yield _frame(place, number, atoms, {**_values_of(atoms), **raw})


def _cut_xyz(file: IO[str]) -> Iterator[tuple[str, str, str] | PrismError]:
    """Cut a file into frames, first line, comment and rows of each, trusting no number in it."""
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
        yield count, comment, "".join(rows)
        count = after


def _words(comment: str) -> dict[str, str]:
    """Words of a comment line as they are written: ASE makes 7 of ``007``, True of ``T``, and "yes" is true to it.

    Raises:
        ValueError: if a key stands twice, or a matrix that must be symmetric is not.
    """
    found: dict[str, str] = {}
    for match in _WORD.finditer(comment):
        key, value = match.groups()
        if key is None:
            continue
        key = key.strip('"')
        if key in found:
            raise PrismError(f"the key {key!r} stands twice")
        found[key] = value[1:-1] if value[:1] in ("'", '"', "{", "[") else value
    for key in ("PBC", "periodic"):
        if key in found:
            raise PrismError(f"the key {key!r} is not known: write pbc, with three of T and F")
    for key in ("lattice", "LATTICE", "cell", "Cell", "CELL"):
        if key in found and "Lattice" not in found:
            raise PrismError(f"the key {key!r} is not known: write Lattice, with nine numbers")
    for key in ("Lattice", "energy", "free_energy", "stress", "virial"):
        if re.search(r"\d_\d", found.get(key, "")):
            raise PrismError(f"{key} has an underscore in a number: {found[key]!r}")
    for key in ("stress", "virial"):
        numbers = found.get(key, "").replace(",", " ").split()
        if len(numbers) == 9:
            check_symmetric(key, np.array(numbers, dtype=float).reshape(3, 3))
    return found


def _check_columns(properties: str, rows: str) -> None:
    """Raise ValueError unless the columns have elements and Cartesian positions, each once, in plain numbers."""
    if properties.split(":")[1::3].count("S") < 2 and (odd := _UNDERSCORE.search(rows)):
        raise PrismError(f"an underscore in a number: {odd[0]!r}")
    if not properties:
        return
    columns = properties.split(":")[::3]
    elements = [name for name in ("species", "Z") if name in columns]
    if "pos" not in columns or len(elements) != 1:
        raise PrismError(
            f"the columns are {', '.join(columns)}; needed are pos, and one of species and Z: "
            "Properties=species:S:1:pos:R:3"
        )


def _values_of(atoms: Atoms) -> dict[str, Any]:
    """Return what ASE's atoms have beside their structure, in three places; of an energy twice, the calculator's."""
    computed = {} if atoms.calc is None else atoms.calc.results
    arrays = {name: values for name, values in atoms.arrays.items() if name not in ("numbers", "positions")}
    return {**arrays, **atoms.info, **computed}


def without_labels(atoms: Atoms) -> Atoms:
    """Copy atoms with what was computed of them, without the energies, forces and stresses that a file had of them."""
    kept = atoms.copy()
    for values in (kept.info, kept.arrays):
        for name in [one for one in values if _LABEL.search(one)]:
            del values[name]
    kept.calc = atoms.calc
    return kept


def _frame(place: str, number: int, atoms: Atoms, values: Mapping[str, Any]) -> Frame:
    no_lattice = not atoms.pbc.any() and not atoms.cell.rank
    return Frame(place, name_in(values, number), atoms, values, (_MOLECULE,) if no_lattice else ())


def _json(path: Path) -> Iterator[Read]:
    with open_text(path) as file:
        text = file.read()
    content = json.loads(text, object_pairs_hook=_once)
    if isinstance(content, dict) and "ids" in content and "nextid" in content:  # a database of ASE
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.json"
            plain.write_text(text, encoding="utf-8")
            yield from _db(plain, shown(path.name))
        return
    items = content if isinstance(content, list) else [content]
    if isinstance(content, dict) and not {"sites", "structure"} & content.keys() and _are_structures(content.values()):
        items = [{**(one if "structure" in one else {"structure": one}), "id": name} for name, one in content.items()]
    for number, item in enumerate(items, start=1):
        place = f"{shown(path.name)}, structure {number}"
        try:
            values = {**(item.get("data") or {}), **item}
            if item.get("correction"):  # what "energy" means is then anybody's guess
                values["uncorrected_energy"] = values.pop("energy")
                values["corrected_energy"] = values["uncorrected_energy"] + item["correction"]
            structure = _from_pymatgen(item.get("structure", item))
            doubts = (_MOLECULE,) if isinstance(structure, IMolecule) else ()
            yield Frame(place, name_in(values, number), as_atoms(structure), values, doubts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield PrismError(f"{place}: {reason_of(error)}")


def _are_structures(values: Collection[Any]) -> bool:
    return bool(values) and all(isinstance(one, dict) and {"sites", "structure"} & one.keys() for one in values)


def _from_pymatgen(content: Mapping[str, Any]) -> IStructure | IMolecule:
    """Read what ``as_dict`` wrote, without most properties of sites, which may name any class to be imported."""
    if "sites" not in content:
        raise PrismError("no structure of pymatgen: it has no sites")
    sites = [{key: value for key, value in site.items() if key != "properties"} for site in content["sites"]]
    held = [(site.get("properties") or {}).get(SELECTIVE) for site in content["sites"]]
    if all(isinstance(one, list) and all(isinstance(flag, bool) for flag in one) for one in held):
        for site, flags in zip(sites, held, strict=True):
            site["properties"] = {SELECTIVE: flags}
    plain = {key: content[key] for key in ("lattice", "charge", "spin_multiplicity") if key in content}
    return (Structure if "lattice" in content else Molecule).from_dict({**plain, "sites": sites})


def _db(path: Path, called: str | None = None) -> Iterator[Read]:
    if path.suffix.lower() == ".db":
        _check_database(path)
    for number, row in enumerate(ase.db.connect(str(path), type=path.suffix[1:].lower()).select(), start=1):
        place = f"{called or shown(path.name)}, row {row.id}"
        try:
            atoms = row.toatoms()
            yield _frame(place, number, atoms, {**row.data, **row.key_value_pairs, **_values_of(atoms)})
        except (ValueError, KeyError, TypeError) as error:
            yield PrismError(f"{place}: {reason_of(error)}")


def _check_database(path: Path) -> None:
    """Raise ValueError unless it is one of ASE; in any other ASE would make its tables."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        raise PrismError(f"the database cannot be read: {error}") from error
    if "systems" not in tables:
        raise PrismError("it is no database of ASE: it has no table of systems")


def _by_ase(path: Path) -> Iterator[Read]:
    kind = ase.io.formats.filetype(str(path))
    if kind in ("vasp", "cif"):  # by content or another name
        yield from (read_poscar if kind == "vasp" else read_cif)(path)
        return
    if kind in _IGNORES:
        with open_text(path, errors="replace") as file:
            _IGNORES[kind](file.read())
    frames = ase.io.iread(str(path), index=":", format=kind, do_not_split_by_at_sign=True)
    for number, atoms in enumerate(frames, start=1):
        yield _frame(f"{shown(path.name)}, frame {number}", number, atoms, _values_of(atoms))


def _check_lammps(text: str) -> None:
    """ASE takes the types of a dump for atomic numbers."""
    columns = re.findall(r"ITEM: ATOMS (.*)", text)
    if not columns or not all("element" in one.split() for one in columns):
        raise PrismError("LAMMPS' types are no elements: write a column element (dump_modify element), or extxyz")


def _check_pdb(text: str) -> None:
    """ASE reads neither symmetry nor alternatives, and loses the lattice of a second model."""
    rows = [line for line in text.splitlines() if line.startswith(("ATOM", "HETATM"))]
    group = next((line[55:66].strip() for line in text.splitlines() if line.startswith("CRYST1")), "")
    if group.replace(" ", "") not in ("", "P1", "1"):
        raise PrismError(f"the symmetry {group!r} of a PDB is not read: write all atoms with P 1, or a CIF")
    if any(line[16:17].strip() for line in rows) or any(
        line[54:60].strip() not in ("", "1.00", "1.0") for line in rows
    ):
        raise PrismError("the PDB has alternate locations or parts of atoms: choose one of them, or write a CIF")
    if not all(line[76:78].strip() for line in rows):
        raise PrismError("the PDB has no elements (columns 77 and 78), and ' CA ' may be C or Ca: write them")
    if len(re.findall(r"^MODEL", text, re.MULTILINE)) > 1:
        raise PrismError("a PDB of several models has their lattice once: write extxyz")


def _check_shelx(text: str) -> None:
    """ASE reads no symmetry of SHELX."""
    if re.search(r"^SYMM", text, re.MULTILINE | re.IGNORECASE) or not re.search(
        r"^LATT\s+-1\s*$", text, re.MULTILINE | re.IGNORECASE
    ):
        raise PrismError("the symmetry of a SHELX file (LATT, SYMM) is not read: write a CIF")


def _check_gromos(text: str) -> None:
    """ASE takes names of atoms for elements: NA for N, CL for C."""
    rows = text.splitlines()
    names = {re.sub(r"[\d+-]+$", "", row[10:15].strip()) for row in rows[2 : 2 + int(rows[1])]}
    unclear = sorted(name for name in names if name not in atomic_numbers)
    if unclear:
        raise PrismError(f"a .gro has names of atoms, and {', '.join(unclear)} is no element: write extxyz, or Na, Cl")
    if len([row for row in rows if row.strip()]) > 3 + int(rows[1]):
        raise PrismError("a .gro of several frames is not read: write extxyz")


def _check_sdf(text: str) -> None:
    """ASE reads the first molecule."""
    if text.count("$$$$") > 1:
        raise PrismError("an SDF of several molecules is read to the first: write extxyz, or a file of each")


def _check_lammps_data(text: str) -> None:
    raise PrismError("LAMMPS' types are no elements: write extxyz")


# Rows of a name, or number, and three coordinates.
_ROWS = r"((?:[ \t]*[\w-]+(?:[ \t]+[-+.\deEdD]+){3,}.*\n?)*)"
_XSF_ATOMS = re.compile(rf"^\s*PRIMCOORD.*\n\s*(\d+).*\n{_ROWS}", re.MULTILINE)
_PWI_ATOMS = re.compile(rf"^\s*ATOMIC_POSITIONS.*\n{_ROWS}", re.MULTILINE)


def _check_dftb(text: str) -> None:
    """ASE reads the first structure."""
    lines = [line for line in text.splitlines() if line.split("#")[0].strip()]
    count, kind = int(lines[0].split()[0]), lines[0].split()[1].upper()
    if len(lines) > 2 + count + {"S": 4, "F": 4, "H": 3}.get(kind, 0):
        raise PrismError("a .gen of several structures is read to the first: write extxyz, or a file of each")


def _check_xsf(text: str) -> None:
    """ASE reads as many atoms as are announced."""
    for announced, rows in _XSF_ATOMS.findall(text):
        _check_count(int(announced), len(rows.splitlines()), "PRIMCOORD")


def _check_espresso(text: str) -> None:
    """ASE reads as many atoms as are announced."""
    announced = re.search(r"\bnat\s*=\s*(\d+)", text, re.IGNORECASE)
    rows = _PWI_ATOMS.search(text)
    if announced and rows:
        _check_count(int(announced[1]), len(rows[1].splitlines()), "nat")


def _check_count(announced: int, found: int, name: str) -> None:
    if announced != found:
        raise PrismError(f"{name} announces {announced} atoms and {found} follow: correct one of them")


# What ASE's reader of a format passes over in silence.
_IGNORES: dict[str, Callable[[str], None]] = {
    "espresso-in": _check_espresso,
    "gen": _check_dftb,
    "xsf": _check_xsf,
    "lammps-dump-text": _check_lammps,
    "lammps-data": _check_lammps_data,
    "proteindatabank": _check_pdb,
    "res": _check_shelx,
    "gromacs": _check_gromos,
    "sdf": _check_sdf,
}
