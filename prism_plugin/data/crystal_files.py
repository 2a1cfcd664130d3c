"""CIF and POSCAR, by pymatgen; what it passes over in silence is looked for here."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, cast

import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from pymatgen.core import Lattice
from pymatgen.io.cif import CifParser, str2float
from pymatgen.io.vasp import Poscar

from prism_plugin.data.frame import SELECTIVE, Frame, Read, as_atoms, reason_of
from prism_plugin.data.space_groups import OPERATIONS, SPACE_GROUP, check_operations, named_operations
from prism_plugin.errors import PrismError
from prism_plugin.files import open_text, shown

__all__ = ["read_cif", "read_poscar"]

_ELEMENTS = {symbol for symbol, number in atomic_numbers.items() if number > 0} | {"D"}
_HARMLESS = (
    "rounded to ideal|Spacegroup from|Skipping relative stoichiometry|[Ii]ncorrect stoichiometry|1-line symmetry op"
)
# What typesetting makes of a minus and a space.
_TYPESET = {ord(one): "-" for one in "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"} | {
    0xA0: " ",
    0x2009: " ",
    0x202F: " ",
}
_CELL = (*(f"_cell_length_{axis}" for axis in "abc"), *(f"_cell_angle_{name}" for name in ("alpha", "beta", "gamma")))
_TAGS = {
    tag.lower(): tag
    for tag in (
        *OPERATIONS,
        *(f"_atom_site_{name}" for name in ("label", "type_symbol", "occupancy", "fract_x", "fract_y", "fract_z")),
        *(f"_atom_site_{name}" for name in ("calc_flag", "disorder_group", "attached_hydrogens")),
        *_CELL,
        *SPACE_GROUP,
        "_chemical_formula_sum",
    )
}
_NAMELESS = "the POSCAR names no elements (VASP 4); write their symbols in a line above their numbers"
_COMPARED = 400  # atoms; a comparison takes their square


def read_cif(path: Path) -> Iterator[Read]:
    """Read the structures of a CIF, one of each block that has atoms."""
    with open_text(path, errors="replace") as file:  # names of authors are in whatever encoding
        text = _plain_cif(file.read())
    blocks = re.split(r"^[ \t]*data_", f"\n{text}", flags=re.MULTILINE | re.IGNORECASE)[1:]
    has_atoms = re.compile(r"^[ \t]*_atom_site_(?!aniso)", re.MULTILINE)
    of_atoms = [(number, block) for number, block in enumerate(blocks, start=1) if has_atoms.search(block)]
    if not of_atoms and re.search(r"^[ \t]*_atom_site\.", text, re.MULTILINE | re.IGNORECASE):
        raise PrismError("it is an mmCIF (_atom_site.Cartn_x), which is not read: write a CIF with _atom_site_fract_x")
    for number, block in of_atoms:
        place = shown(path.name) if len(of_atoms) == 1 else f"{shown(path.name)}, block {number}"
        try:
            atoms, doubts = _read_block(f"data_{block}")
            yield Frame(place, str(number), atoms, doubts=doubts)
        except Exception as error:  # noqa: BLE001  # pymatgen raises whatever its parser meets
            yield PrismError(f"{place} cannot be read: {reason_of(error)}")


def _plain_cif(text: str) -> str:
    """Write a CIF's text as its parsers understand it.

    Names of values are written as they know them (they are the same in any case), texts of several lines are left out,
    and what word processors make of a minus or a space becomes one again.
    """
    text = text.translate(_TYPESET)
    text = re.sub(r"(?ms)^;.*?^;[ \t]*$|(\"\"\"|\'\'\').*?\1", "?", text)
    text = re.sub(r"(?m)^([ \t]*)(_\S+)", lambda found: found[1] + _TAGS.get(found[2].lower(), found[2]), text)
    text = re.sub(r"(?mi)^([ \t]*)loop_", r"\1loop_", text)
    return "\n".join(line for line in text.splitlines() if line.strip())


def _read_block(block: str) -> tuple[Atoms, tuple[str, ...]]:
    _check_tags(block)
    if found := re.search(r"^.*\ufffd[ \t]*[\d.].*$", block, re.MULTILINE):
        raise PrismError(f"a byte before a number is no UTF-8, a minus perhaps: {found[0].strip()[:60]!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are among the parser's
        parser: Any = CifParser.from_str(block)
        (content,) = (content.data for content in parser._cif.data.values())
        _check_sites(content)
        doubts, is_named = _settle_operations(content)
        (structure,) = parser.parse_structures(primitive=False, on_error="raise")
    doubts += [" ".join(text.split()) for text in parser.warnings if not re.search(_HARMLESS, text)]
    atoms = as_atoms(structure)
    doubts += _formula_doubts(str(content.get("_chemical_formula_sum") or ""), atoms)
    return atoms, (*doubts, *([] if is_named else _second_opinion(block, atoms)))  # ASE guesses settings


def _settle_operations(content: dict[str, Any]) -> tuple[list[str], bool]:
    """Write the operations out where a CIF only names its space group.

    Returns:
        What should be looked at, and whether the group was only named.
    """
    if any(re.match("_(space_group_ssg|cell_modulation|cell_wave_vector)", tag, re.IGNORECASE) for tag in content):
        raise PrismError("it is a modulated structure, whose cell does not repeat: give an approximant")
    lacking = [key for key in _CELL if key not in content]
    if lacking:
        raise PrismError(f"it has no {', '.join(lacking)}")
    if strange := next((content[key] for key in _CELL if "_" in content[key]), None):
        raise PrismError(f"an underscore in a number of the cell: {strange!r}")
    lattice = Lattice.from_parameters(*(str2float(content[key]) for key in _CELL)).matrix
    given = next((content[tag] for tag in OPERATIONS if content.get(tag)), None)
    if given is None:
        content[OPERATIONS[0]], doubt = named_operations(content, lattice @ lattice.T)
    else:
        doubt = check_operations([given] if isinstance(given, str) else given, lattice @ lattice.T)
    return [doubt] if doubt else [], given is None and len(content[OPERATIONS[0]]) > 1


def _formula_doubts(formula: str, atoms: Atoms) -> list[str]:
    """Compare the formula that a CIF announces with its atoms."""
    parts = re.findall(r"([A-Z][a-z]?)\s*([\d.]*)", re.sub(r"\([^)]*\)", "", formula))
    announced: dict[str, float] = {}
    for symbol, number in parts:
        if symbol not in _ELEMENTS:
            return []
        element = "H" if symbol == "D" else symbol
        announced[element] = announced.get(element, 0.0) + float(number or 1)
    found = Counter(atoms.symbols)
    lacking = sorted(announced.keys() - found.keys())
    if lacking:
        return [f"the formula {formula!r} has {', '.join(lacking)}, of which there is no atom"]
    ratios = [found[symbol] / number for symbol, number in announced.items() if number]
    if ratios and (announced.keys() != found.keys() or max(ratios) > 1.001 * min(ratios)):
        return [
            f"the formula {formula!r} is not that of the atoms, {atoms.get_chemical_formula('metal', empirical=True)}"
        ]
    return []


def _check_tags(block: str) -> None:
    """Raise ValueError if a name stands twice in a block, of which a parser takes the last."""
    names = Counter(name.lower() for name in re.findall(r"^[ \t]*(_(?:cell|atom_site)_[\w.\-/]+)", block, re.MULTILINE))
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise PrismError(f"{twice[0]} stands twice in one block")


def _check_sites(content: dict[str, Any]) -> None:
    """Raise ValueError if a site is none that all parsers understand.

    A default occupancy is written out, and deuterium becomes H: pymatgen counts H and D of one site twice.
    """
    for key in ("_atom_site_type_symbol", "_atom_site_label"):
        if key in content:
            content[key] = [re.sub(r"^D(?![a-z])", "H", symbol) for symbol in content[key]]
    for axis in "xyz":
        if "." in content.get(f"_atom_site_fract_{axis}", ()):
            raise PrismError(f"a coordinate {axis} is '.': write the number")
        if strange := next((one for one in content.get(f"_atom_site_fract_{axis}", ()) if "_" in one), None):
            raise PrismError(f"an underscore in a coordinate {axis}: {strange!r}")
    occupancies = content.get("_atom_site_occupancy")
    if isinstance(occupancies, list):
        content["_atom_site_occupancy"] = ["1" if part in (".", "?") else part for part in occupancies]
        if any(re.fullmatch(r"0+(\.0*)?(\(\d+\))?", part) for part in content["_atom_site_occupancy"]):
            raise PrismError("a site has an occupancy of 0: remove it")
    if "dum" in content.get("_atom_site_calc_flag", ()):
        raise PrismError("a site is a dummy (_atom_site_calc_flag dum): remove it")
    symbols = content.get("_atom_site_type_symbol")
    if symbols is None:
        if any(re.match(r"T\d*$", label) for label in content.get("_atom_site_label", ())):
            raise PrismError("a label T is no element: give _atom_site_type_symbol")
        return
    for symbol in symbols:
        name = re.match(r"([A-Za-z]{1,2})[\d+\-.()]*$", symbol)
        if name is None or name[1].capitalize() not in _ELEMENTS:
            raise PrismError(f"the type symbol {symbol!r} is no element (with a charge at most)")


def _second_opinion(block: str, atoms: Atoms) -> list[str]:
    """Read the block by ASE, too: two parsers seldom make the same mistake, of space groups above all.

    Returns:
        How they differ; nothing if they agree, or ASE cannot read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = cast("Atoms", ase.io.read(StringIO(block), format="cif"))
    except Exception:  # noqa: BLE001  # it reads fewer files; then there is one opinion
        return []
    if Counter(other.numbers.tolist()) != Counter(atoms.numbers.tolist()):
        return [
            f"pymatgen reads {atoms.get_chemical_formula()} ({len(atoms)} atoms) from this CIF, ASE "
            f"{other.get_chemical_formula()} ({len(other)}): look at its space group and symbols"
        ]
    if not np.allclose(other.cell.cellpar(), atoms.cell.cellpar(), atol=1e-2):
        return ["pymatgen and ASE read different cells from this CIF"]
    if len(atoms) <= _COMPARED and not _same_sites(atoms, other):
        return ["pymatgen and ASE read different positions from this CIF: look at its space group and setting"]
    return []


def _same_sites(one: Atoms, other: Atoms) -> bool:
    """Whether every atom of one lies within 0.1 Å of an atom of its element in the other."""
    shift = one.get_scaled_positions()[:, None] - other.get_scaled_positions()[None]
    distance = np.linalg.norm((shift - np.rint(shift)) @ one.cell.array, axis=2)
    near = (distance < 0.1) & (one.numbers[:, None] == other.numbers[None])
    return bool(near.any(axis=1).all() and near.any(axis=0).all())


def read_poscar(path: Path) -> Iterator[Read]:
    """Read a POSCAR or CONTCAR, without a look at a POTCAR beside it."""
    with open_text(path, errors="replace") as file:
        lines = file.read().splitlines()
    if len(lines) < 8:
        raise PrismError(f"a POSCAR has at least 8 lines, this file {len(lines)}")
    lines = _one_scale(lines)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        poscar = Poscar.from_str("\n".join(lines))
    if not poscar.true_names:
        raise PrismError(_NAMELESS)
    flags = _check_counts(lines, len(poscar.structure))
    if flags is not None:
        poscar.structure.add_site_property(SELECTIVE, flags)
    yield Frame(shown(path.name), "1", as_atoms(poscar.structure))


def _one_scale(lines: list[str]) -> list[str]:
    """Write three scale factors, and a negative one, which is minus the volume, as pymatgen understands them."""
    _check_underscores(lines[1:5])
    words = lines[1].split()
    scales = [float(word) for word in words[:3] if re.fullmatch(r"[-+.\dEe]+", word)]
    lattice = np.array([[float(word) for word in line.split()[:3]] for line in lines[2:5]])
    if len(scales) == 3:
        cartesian = next((line for line in lines[6:9] if line.strip()[:1].lower() in ("c", "k")), None)
        if cartesian is not None:
            raise PrismError("a POSCAR with three scale factors and Cartesian positions is not read: write one factor")
        rows = [" ".join(repr(float(number)) for number in row) for row in lattice * scales]
        return [lines[0], "1.0", *rows, *lines[5:]]
    if scales[0] >= 0:
        return lines
    factor = (-scales[0] / abs(np.linalg.det(lattice))) ** (1 / 3)
    return [lines[0], repr(float(factor)), *lines[2:]]


def _check_underscores(lines: Sequence[str]) -> None:
    """Raise ValueError if a number has an underscore, over which Python reads."""
    if strange := next((line for line in lines if "_" in "".join(line.split()[:3])), None):
        raise PrismError(f"an underscore in a number of the POSCAR: {strange.strip()!r}")


def _check_counts(lines: Sequence[str], atoms: int) -> list[list[bool]] | None:
    """Raise ValueError unless there are as many symbols as numbers, and as many rows as atoms.

    Returns:
        Of selective dynamics, whether each atom moves along each vector.
    """
    symbols, numbers = lines[5].split(), lines[6].split()
    named = not symbols[0].isdecimal()
    on_two_lines = named and numbers[0].isdecimal()  # many symbols take more
    if on_two_lines and len(symbols) != len(numbers):
        raise PrismError(f"the POSCAR has {len(symbols)} symbols, {symbols}, and {len(numbers)} numbers, {numbers}")
    strange = [one for one in symbols if named and re.split("[/_]", one)[0] not in _ELEMENTS]
    if strange:
        raise PrismError(f"{strange[0]!r} in the POSCAR is no element (VASP's fractional hydrogens are not read)")
    modes = (n for n, line in enumerate(lines[6:], start=6) if line.strip()[:1].lower() in ("d", "c", "k", "s"))
    mode = next(modes, None)
    if mode is None:
        raise PrismError("no line of the POSCAR says Direct or Cartesian")
    selective = lines[mode].strip()[0].lower() == "s"
    first = mode + 1 + selective
    rows = [line.split() for line in lines[first : first + atoms]]
    _check_underscores(lines[first : first + atoms])
    if not named and any(len(row) != (7 if selective else 4) for row in rows):
        raise PrismError(_NAMELESS)
    behind = lines[first + atoms].strip() if len(lines) > first + atoms else ""
    if behind and not behind.lower().startswith("lattice"):
        raise PrismError(f"{atoms} atoms are announced, but more lines follow, the first {behind[:40]!r}")
    if on_two_lines and not selective:
        of_atoms = [
            one.split("/")[0].split("_")[0] for one, n in zip(symbols, numbers, strict=True) for _ in range(int(n))
        ]
        for row, symbol in zip(rows, of_atoms, strict=True):
            if len(row) == 4 and row[3] in _ELEMENTS and row[3] != symbol:
                raise PrismError(f"a row of the POSCAR says {row[3]!r}, its head {symbol!r}")
    return [_flags(row) for row in rows] if selective else None


def _flags(row: Sequence[str]) -> list[bool]:
    """Read logicals as Fortran does: T, t, .TRUE."""
    found = [re.match(r"\.?([tf])", word, re.IGNORECASE) for word in row[3:6]]
    if len(found) < 3 or None in found:
        raise PrismError(f"selective dynamics are three of T and F behind the position, got {' '.join(row)!r}")
    return [one[1].lower() == "t" for one in found if one]
