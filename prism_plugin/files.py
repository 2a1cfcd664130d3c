"""Writing files and model folders so that nothing half-written is left: aside first, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matgl.models import MatGLModel

__all__ = ["replaced", "save_model"]


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
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        # The suffix stays, because writers choose the format by it.
        yield aside / target.name
        os.replace(aside / target.name, target)
    finally:
        shutil.rmtree(aside)


def save_model(model: MatGLModel, folder: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Save a model in matgl's format, so that ``matgl.load_model(folder)`` reads it.

    An older model in ``folder`` stays until the new one is complete.

    Raises:
        ValueError: if ``folder`` exists and is neither empty nor a saved model.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "model.json").exists():
        raise ValueError(f"{str(folder)!r} exists and holds no model; give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model.save(aside / "new", metadata=metadata)
        if folder.exists():
            os.replace(folder, aside / "old")
        os.replace(aside / "new", folder)
    finally:
        shutil.rmtree(aside)
