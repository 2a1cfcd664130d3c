"""Reading of NPZ files that lie beside a model."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from prism_plugin.errors import PrismError

__all__ = ["reading_arrays"]


@contextmanager
def reading_arrays(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield the arrays of an NPZ file by name; what cannot be read inside the block is the file's damage.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
            yield kept
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PrismError(f"{str(path)!r} is damaged ({error}); fetch it again, or remove it") from error
