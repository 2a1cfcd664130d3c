"""Writing files so that nothing half-written is left: aside first, then renamed."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["replaced", "truncate_after_last_line", "write_json", "write_json_gz", "write_table"]

_BLOCK = 1 << 16


@contextmanager
def replaced(target: str | Path) -> Iterator[Path]:
    """Yield a path beside ``target`` to write to; it replaces the target when the block ends without an error.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replaced(folder / "a.txt") as path:
        ...     _ = path.write_text("whole")
        >>> [file.name for file in folder.iterdir()]
        ['a.txt']
    """
    target = Path(target).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        # The suffix stays, because writers choose the format by it.
        yield aside / target.name
        os.replace(aside / target.name, target)
    finally:
        shutil.rmtree(aside)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON for people to read; an interruption leaves the file that was there."""
    with replaced(path) as aside:
        aside.write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_table(path: str | Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as CSV, the header first; an interruption leaves the file that was there."""
    with replaced(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_json_gz(path: Path, content: Any) -> None:
    """Write JSON as gzip; equal contents give equal bytes."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        file.write(json.dumps(content).encode())


def truncate_after_last_line(path: Path) -> None:
    """Cut off what stands behind the last line feed of a file, reading no more than its end."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                file.truncate(start + found + 1)
                return
            end = start
        file.truncate(0)
