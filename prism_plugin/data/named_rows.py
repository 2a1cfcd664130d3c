"""Rows of published data sets -> records with one of their targets."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms

from prism_plugin.data.records import Record
from prism_plugin.errors import PrismError
from prism_plugin.tasks.regression import Regression

__all__ = ["Row", "Target", "missing_extra", "naming", "records_of"]

Row = tuple[str, Callable[[], Atoms], Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """What a data set holds for one property.

    Attributes:
        column: its name there.
        unit: its unit after ``log10``.
        log10: whether the decimal logarithm is the target.
        task_type: ``"regression"`` or ``"classification"``, as of a model.
    """

    column: str
    unit: str
    log10: bool = False
    task_type: str = Regression.name


def records_of(name: str, rows: Iterable[Row], wanted: Target) -> list[Record]:
    """Records of the rows that have the target."""
    records = []
    for row_name, structure, columns in rows:
        if wanted.column not in columns:
            raise PrismError(f"row {row_name!r} of {name} lacks the column {wanted.column!r}: is it another version?")
        value = columns[wanted.column]
        if value in (None, "na", ""):
            continue
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise PrismError(f"row {row_name!r} of {name}: {wanted.column} is no number: {value!r}") from error
        if math.isnan(number) or (wanted.log10 and number <= 0):
            continue
        try:
            atoms = structure()
        except (ValueError, KeyError, TypeError) as error:
            raise PrismError(f"crystal {row_name!r} of {name}: {error}") from error
        gradients = {name: columns.get(name) for name in ("forces", "stress")}
        records.append(Record(atoms, math.log10(number) if wanted.log10 else number, row_name, **gradients))
    return records


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the name of the file to an error."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise PrismError(f"{path} is truncated, damaged or not compressed ({error}); replace it") from error
    except (KeyError, TypeError) as error:
        raise PrismError(f"{path} is not in the expected format ({error!r})") from error
    except ValueError as error:
        raise PrismError(f"{path}: {error}") from error


def missing_extra() -> ImportError:
    """Return the error that says how to install what data sets by name need."""
    return ImportError(
        "data sets by name need jarvis-tools and matminer: pip install 'prism-plugin[data]' (or pass a file)"
    )
