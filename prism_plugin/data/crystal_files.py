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
from pymatgen.io.cif import CifParser
from pymatgen.io.vasp import Poscar

from prism_plugin.data.frame import Frame, Read, as_atoms, reason_of
from prism_plugin.errors import PrismError
from prism_plugin.files import open_text, shown

__all__ = ["read_cif", "read_poscar"]

_ELEMENTS = {symbol for symbol, number in atomic_numbers.items() if number > 0} | {"D"}
_HARMLESS = "rounded to ideal|Spacegroup from|Skipping relative stoichiometry"  # the second is said better below
_NAMELESS = "the POSCAR names no elements (VASP 4); write their symbols in a line above their numbers"
_COMPARED = 400  # atoms; a comparison takes their square


def read_cif(path: Path) -> Iterator[Read]:
    """Read the structures of a CIF, one of each block that has atoms."""
    with open_text(path, errors="replace") as file:  # names of authors are in whatever encoding
        text = "\n".join(line for line in file.read().splitlines() if line.strip())
    blocks = re.split(r"^[ \t]*data_", f"\n{text}", flags=re.MULTILINE | re.IGNORECASE)[1:]
    of_atoms = [(number, block) for number, block in enumerate(blocks, start=1) if "_atom_site_" in block.lower()]
    if not of_atoms and re.search(r"^[ \t]*_atom_site\.", text, re.MULTILINE | re.IGNORECASE):
        raise PrismError("it is an mmCIF (_atom_site.Cartn_x), which is not read: write a CIF with _atom_site_fract_x")
    for number, block in of_atoms:
        place = shown(path.name) if len(of_atoms) == 1 else f"{shown(path.name)}, block {number}"
        try:
            atoms, doubts = _read_block(f"data_{block}")
            yield Frame(place, str(number), atoms, doubts=doubts)
        except Exception as error:  # noqa: BLE001  # pymatgen raises whatever its parser meets
            yield PrismError(f"{place} cannot be read: {reason_of(error)}")


def _read_block(block: str) -> tuple[Atoms, tuple[str, ...]]:
    _check_tags(block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are among the parser's
        parser: Any = CifParser.from_str(block)
        for content in parser._cif.data.values():
            _check_sites(content.data)
        (structure,) = parser.parse_structures(primitive=False, on_error="raise")
    doubts = [" ".join(text.split()) for text in parser.warnings if not re.search(_HARMLESS, text)]
    atoms = as_atoms(structure)
    formula = next((content.data.get("_chemical_formula_sum") for content in parser._cif.data.values()), None)
    announced = {symbol for symbol in re.findall(r"[A-Z][a-z]?", str(formula or "")) if symbol in _ELEMENTS}
    lacking = sorted(announced - {"D", *atoms.symbols})
    if lacking:
        doubts.append(f"the formula {formula!r} has {', '.join(lacking)}, of which there is no atom")
    if not re.search(r"^[ \t]*_(symmetry_equiv_pos_as|space_group_symop)", block, re.MULTILINE | re.IGNORECASE):
        group = re.search(r"_(?:name_H-M\w*|Int_Tables_number|IT_number)[ \t]+(.+)", block)
        if group is not None and group[1].strip(" '\"") not in ("P 1", "P1", "1"):
            doubts.append(f"the CIF has no symmetry operations: those of the standard setting of {group[1]} were taken")
    return atoms, (*doubts, *_second_opinion(block, atoms))


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
        lines = _positive_scale(file.read().splitlines())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        poscar = Poscar.from_str("\n".join(lines))
    if not poscar.true_names:
        raise PrismError(_NAMELESS)
    _check_counts(lines, len(poscar.structure))
    yield Frame(shown(path.name), "1", as_atoms(poscar.structure))


def _positive_scale(lines: list[str]) -> list[str]:
    """Write a negative scale, which is minus the volume, as the factor that it means: pymatgen multiplies by it."""
    scale = float(lines[1].split()[0])
    if scale >= 0 or len(lines[1].split()) > 1:
        return lines
    lattice = np.array([[float(word) for word in line.split()[:3]] for line in lines[2:5]])
    factor = (-scale / abs(np.linalg.det(lattice))) ** (1 / 3)
    return [lines[0], repr(float(factor)), *lines[2:]]


def _check_counts(lines: Sequence[str], atoms: int) -> None:
    """Raise ValueError unless there are as many symbols as numbers, and as many rows as atoms."""
    symbols, numbers = lines[5].split(), lines[6].split()
    named = not symbols[0].isdecimal()
    on_two_lines = named and numbers[0].isdecimal()  # many symbols take more
    if on_two_lines and len(symbols) != len(numbers):
        raise PrismError(f"the POSCAR has {len(symbols)} symbols, {symbols}, and {len(numbers)} numbers, {numbers}")
    mode = next(
        number for number, line in enumerate(lines[6:], start=6) if line.strip()[:1].lower() in ("d", "c", "k", "s")
    )
    selective = lines[mode].strip()[0].lower() == "s"
    first = mode + 1 + selective
    rows = [line.split() for line in lines[first : first + atoms]]
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
