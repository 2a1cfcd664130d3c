"""Symmetry operations of a CIF: its own, checked, or those of the space group that it names, in the setting it means.

Parsers take the wrong setting for a short or suffixed symbol (``P 21/n``, ``R -3 m R``, ``F d -3 m Z``), or P 1 for one
that they do not know. Here a group is one of spglib's 530 settings whose symbol, number and metric all fit, or it is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import spglib
from pymatgen.core.operations import SymmOp

from prism_plugin.errors import PrismError

__all__ = ["OPERATIONS", "SPACE_GROUP", "check_operations", "named_operations"]

OPERATIONS = (
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv_pos_as_xyz_",
    "_space_group_symop_operation_xyz",
    "_space_group_symop_operation_xyz_",
)
_NAMES = (
    "_symmetry_space_group_name_H-M",
    "_symmetry_space_group_name_H_M",
    "_space_group_name_H-M_alt",
    "_space_group_name_H-M_ref",
)
_HALL = ("_space_group_name_Hall", "_symmetry_space_group_name_Hall")
_NUMBERS = ("_space_group_IT_number", "_symmetry_Int_Tables_number")
SPACE_GROUP = (*_NAMES, *_HALL, *_NUMBERS)
_FITS = 0.02  # largest change of the metric by an operation, as a part of its largest entry
_SUFFIXES = {"1": "1", "2": "2", "S": "1", "Z": "2", "H": "H", "R": "R"}
_WITH_E = (39, 41, 64, 67, 68)  # whose e was a, b or c before 1992
_HINT = "write the operations (_space_group_symop_operation_xyz)"


class _Setting(NamedTuple):
    hall: int
    number: int
    name: str
    symbols: frozenset[str]
    hall_symbol: str
    choice: str


@lru_cache
def _settings() -> tuple[_Setting, ...]:
    """The settings that spglib knows."""
    found = []
    for hall in range(1, 531):
        group: Any = spglib.get_spacegroup_type(hall)
        _, *others = group.international.split("=")
        names = {group.international_full, *(others or [group.international])}
        if 3 <= group.number <= 15:  # P 1 21/n 1 is P 21/n
            names |= {" ".join(word for word in name.split() if word != "1") for name in set(names)}
        else:
            names.add(group.international_short)
        if group.number in _WITH_E:
            names |= {name.replace("e", glide) for name in set(names) for glide in "abc"}
        symbols = frozenset(map(_plain, names))
        of_hall = _plain(group.hall_symbol)
        found.append(_Setting(hall, group.number, group.international_full, symbols, of_hall, group.choice))
    return tuple(found)


def _plain(symbol: str) -> str:
    return re.sub(r"[\s_'\"]", "", symbol).lower()


@lru_cache
def _operations(hall: int) -> tuple[tuple[np.ndarray, ...], tuple[str, ...]]:
    """Rotations of a setting, and its operations as a CIF has them."""
    symmetry: Any = spglib.get_symmetry_from_database(hall)
    pairs = list(zip(symmetry["rotations"], symmetry["translations"], strict=True))
    texts = [SymmOp.from_rotation_and_translation(*pair).as_xyz_str() for pair in pairs]
    return tuple(rotation for rotation, _ in pairs), tuple(texts)


def named_operations(content: Mapping[str, Any], metric: np.ndarray) -> tuple[list[str], str]:
    """Find the operations of the space group that a CIF without operations names.

    Args:
        content: values of the CIF's block by their tags.
        metric: scalar products of the cell's vectors, Å^2, shape ``(3, 3)``.

    Returns:
        The operations, and what should be looked at.

    Raises:
        ValueError: if none fits, or several that mean different crystals.
    """
    name, hall = _first(content, _NAMES), _first(content, _HALL)
    text = _first(content, _NUMBERS)
    number = int(text) if text.isdecimal() else None
    shown = hall or name or f"number {number}"
    if _plain(hall or name) in ("p1", "") and number in (None, 1):
        is_named = bool(name or hall or number)
        return ["x,y,z"], "" if is_named else "the CIF names no space group: its atoms are taken for all (P 1)"
    found = [one for one in _settings() if number in (None, one.number)]
    contradiction = "" if number is None or not (name or hall) else f" with the number {number}"
    suffix = ""
    if hall:
        found = [one for one in found if one.hall_symbol == _plain(hall)]
    elif name:
        name, suffix = _without_suffix(name)
        symbol = re.sub(r"^([pfi][mnadc])3", r"\1-3", _plain(name))  # Fm3m as it was before 1992
        found = [one for one in found if symbol in one.symbols]
    if suffix:
        found = [one for one in found if one.choice.lstrip("-abc") == suffix or one.choice == suffix]
    if not found:
        raise PrismError(
            f"the CIF has no symmetry operations, and {shown!r}{contradiction} is no space group that is known: {_HINT}"
        )
    fitting = [one for one in found if all(_keeps(rotation, metric) for rotation in _operations(one.hall)[0])]
    if not fitting:
        raise PrismError(f"the cell does not fit the space group {shown!r}: correct one of them, or {_HINT}")
    if not (name or hall):  # a number means the standard setting
        standard = [one for one in fitting if one.choice in ("", "b", "b1", "H", "R", "1", "2")]
        fitting = standard or fitting
    unique = [one for one in fitting if one.choice.startswith(("b", "-b"))] or fitting
    if len(unique) > 1:
        kinds = " or ".join(f"{one.name} {one.choice}".strip() for one in unique)
        raise PrismError(f"the CIF has no symmetry operations, and {shown!r} can be {kinds}: {_HINT}")
    (one,) = unique
    setting = f"{one.name}{f' ({one.choice})' if one.choice else ''}"
    doubt = f"the CIF has no symmetry operations: those of {setting}, number {one.number}, were taken"
    return list(_operations(one.hall)[1]), doubt


def check_operations(texts: list[str], metric: np.ndarray) -> str:
    """Check the operations that a CIF has.

    Args:
        texts: such as ``"-x,y+1/2,z"``.
        metric: scalar products of the cell's vectors, Å^2, shape ``(3, 3)``.

    Returns:
        What should be looked at.

    Raises:
        ValueError: if one cannot be read.
    """
    fits = True
    for text in texts:
        try:
            operation = SymmOp.from_xyz_str(text)
        except (ValueError, ZeroDivisionError, IndexError) as error:
            raise PrismError(f"{text!r} is no symmetry operation: {error}") from error
        rotation = operation.rotation_matrix
        if abs(round(float(np.linalg.det(rotation)))) != 1 or not np.array_equal(rotation, np.rint(rotation)):
            raise PrismError(f"{text!r} is no symmetry operation: it keeps no volume")
        fits &= _keeps(rotation, metric)
    return "" if fits else "the symmetry operations do not fit the cell: look at both"


def _first(content: Mapping[str, Any], tags: tuple[str, ...]) -> str:
    """Return the first of some values that says anything."""
    return next(_texts(content, tags), "")


def _texts(content: Mapping[str, Any], tags: tuple[str, ...]) -> Iterator[str]:
    for tag in tags:
        for value in content[tag] if isinstance(content.get(tag), list) else [content.get(tag, "")]:
            text = str(value).strip().strip("'\"").strip()
            if text not in ("", ".", "?"):
                yield text


def _without_suffix(name: str) -> tuple[str, str]:
    """Split the origin or the axes from a symbol: ``R -3 m :H``, ``F d -3 m S``, ``R-3mR``."""
    found = re.fullmatch(r"(.+?)\s*:\s*([12HRhrSZ])", name) or re.fullmatch(r"(.*[a-z0-9])\s*([SZHR])", name)
    return (name, "") if found is None else (found[1], _SUFFIXES[found[2].upper()])


def _keeps(rotation: np.ndarray, metric: np.ndarray) -> bool:
    """Whether an operation of fractional coordinates keeps lengths and angles."""
    return bool(np.abs(rotation.T @ metric @ rotation - metric).max() <= _FITS * metric.max())
