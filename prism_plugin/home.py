"""A home folder for libraries that make a cache at import, where the user's own cannot be written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["writable_home"]


@contextmanager
def writable_home() -> Iterator[None]:
    """Set HOME to a folder that can be written while the block runs, where the user's own cannot be (clusters)."""
    try:
        (Path.home() / ".cache" / "matgl").mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the second: no HOME, and a user without an entry
        before = os.environ.get("HOME")
        os.environ["HOME"] = tempfile.mkdtemp(prefix="prism-home-")
        try:
            yield
        finally:
            if before is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = before
    else:
        yield
