"""Tables that are written row by row and go on after an interruption.

Their first column is a name, their last one the reason why a row has no values. Beside a table lies
``TABLE.model.json`` with what it is of, by which it knows its like.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from prism_plugin.errors import PrismError, warn
from prism_plugin.files import read_json, truncate_after_last_record, write_json, write_table

__all__ = ["ABOUT", "WEIGHTS", "check_own_output", "modified", "open_table", "warn_of_newer"]

ABOUT = ".model.json"  # behind the table's name
WEIGHTS = "sha256_of_weights"  # what it says of the model


def open_table(out: Path, header: Sequence[str], about: Mapping[str, Any]) -> dict[str, list[str]]:
    """Make a table with its header, or check the one that is there.

    Args:
        out: the CSV.
        header: names of its columns.
        about: what it is of, as JSON has it.

    Returns:
        Its rows by their names, in their order.

    Raises:
        ValueError: if there is another table, or any other file, or a row that has not as many cells as the header.
    """
    beside = _about(out)
    if not out.exists():
        write_json(beside, about)
        write_table(out, [header])
        return {}
    had = read_json(beside)
    if had != about or _first_row(out) != list(header):
        raise PrismError(f"{str(out)!r} exists and is {_difference(had, about)}; give another --out, or move it away")
    truncate_after_last_record(out)  # what was written last may have no end
    rows: dict[str, list[str]] = {}
    try:
        with open(out, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            for row in islice(reader, 1, None):
                if row and len(row) != len(header):
                    raise PrismError(
                        f"line {reader.line_num} of {str(out)!r} has {len(row)} cells in place of {len(header)}: it "
                        "was changed; delete it to do that structure again"
                    )
                if row:
                    rows[row[0]] = row
    except (UnicodeDecodeError, csv.Error) as error:
        raise PrismError(f"{str(out)!r} was changed and cannot be read: {error}; give another --out") from error
    return rows


def check_own_output(folder: str | Path, table: str, columns: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raise ValueError if a folder has files of the names that a command writes, and they are not its own.

    Args:
        folder: where it writes.
        table: its CSV.
        columns: the first ones of that.
        others: what else it writes.
    """
    made = Path(folder) / table
    if made.is_file() and (_first_row(made) or [])[: len(columns)] == list(columns) and not _about(made).exists():
        return
    there = [name for name in (table, *others) if (Path(folder) / name).exists()]
    if there:
        raise PrismError(f"{str(folder)!r} has another {there[0]}, which would be replaced; give another folder")


def _difference(had: Any, about: Mapping[str, Any]) -> str:
    """Say how what a table is of differs from what is wanted."""
    if isinstance(had, dict) and had.keys() == about.keys() and had.get(WEIGHTS) == about.get(WEIGHTS):
        others = [f"{key} = {had[key]!r} in place of {value!r}" for key, value in about.items() if had[key] != value]
        if others:
            return f"a table with {', '.join(others)}"
    return "no table of this model"


def _about(table: Path) -> Path:
    return table.with_name(table.name + ABOUT)


def modified(name: str | Path) -> float:
    """Return when a file was written last, or the one that a structure's name (``path#number``) has; else -inf."""
    for path in (str(name), str(name).rpartition("#")[0]):
        try:
            return os.stat(path).st_mtime
        except OSError:
            continue
    return float("-inf")


def warn_of_newer(kept: Sequence[str], written: float) -> None:
    """Warn of structures whose rows were kept though their files were written after the table."""
    newer = [name for name in kept if modified(name) > written]
    if newer:
        more = f" and {len(newer) - 1} more" if newer[1:] else ""
        warn(
            f"{newer[0]}{more}: the file was written after the table, whose row is of what it was; delete the row to "
            "do the structure again"
        )


def _first_row(table: Path) -> list[str] | None:
    with open(table, newline="", encoding="utf-8", errors="replace") as file:
        return next(csv.reader(file), None)
