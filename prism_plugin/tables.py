"""Tables that are written row by row and go on after an interruption.

Their first column is a name, their last one the reason why a row has no values. Beside a table lies
``TABLE.model.json`` with what it is of, by which it knows its like.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from prism_plugin.errors import PrismError
from prism_plugin.files import truncate_after_last_record, write_json, write_table

__all__ = ["ABOUT", "open_table"]

ABOUT = ".model.json"  # behind the table's name


def open_table(out: Path, header: Sequence[str], about: Mapping[str, Any]) -> dict[str, str]:
    """Make a table with its header, or check the one that is there.

    Args:
        out: the CSV.
        header: names of its columns.
        about: what it is of, as JSON has it.

    Returns:
        The names it has, with their errors.

    Raises:
        ValueError: if there is another table, or any other file.
    """
    beside = out.with_name(out.name + ABOUT)
    if not out.exists():
        write_json(beside, about)
        write_table(out, [header])
        return {}
    if _read_json(beside) != about or _first_row(out) != list(header):
        raise PrismError(f"{str(out)!r} exists and is no table of this model; give another --out, or move it away")
    truncate_after_last_record(out)  # what was written last may have no end
    with open(out, newline="", encoding="utf-8") as file:
        return {row[0]: row[-1] for row in islice(csv.reader(file), 1, None)}


def _read_json(path: Path) -> Any:
    """Read a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _first_row(table: Path) -> list[str] | None:
    with open(table, newline="", encoding="utf-8", errors="replace") as file:
        return next(csv.reader(file), None)
