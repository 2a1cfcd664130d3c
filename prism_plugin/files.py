"""Writing files so that nothing half-written is left: aside first, then renamed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["replaced", "write_json_gz"]


@contextmanager
def replaced(target: str | Path) -> Iterator[Path]:
    """Give a path beside ``target`` to write to; it takes the target's place when the block ends well.

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


def write_json_gz(path: Path, content: Any) -> None:
    """Write JSON as gzip; equal contents give equal bytes."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        file.write(json.dumps(content).encode())
