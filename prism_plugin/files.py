"""Writing files so that nothing half-written is left: aside first, then renamed."""

from __future__ import annotations

import bz2
import codecs
import csv
import errno
import gzip
import io
import json
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from prism_plugin.errors import PrismError

__all__ = [
    "ASIDE",
    "locked",
    "open_text",
    "read_json",
    "replaced",
    "shown",
    "storing",
    "sweep",
    "truncate_after_last_record",
    "uncompressed_name",
    "write_json",
    "write_json_gz",
    "write_table",
]

ASIDE = ".aside-"  # in the names of folders in which something is written before it is renamed
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


def shown(path: str | Path) -> str:
    """Return a path as text that can be printed and kept: bytes of its name that are no UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def uncompressed_name(path: Path) -> str:
    """Return the name of a file without the suffix of its compression."""
    return path.stem if path.suffix.lower() in _OPENERS else path.name


@contextmanager
def open_text(path: str | Path, errors: str = "strict") -> Iterator[IO[str]]:
    """Open a text file, compressed or not, in UTF-8 or marked as UTF-16.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such text or damaged, also inside the block; names the file.
    """
    path = Path(path)
    try:
        with _OPENERS.get(path.suffix.lower(), open)(path, "rb") as raw:
            buffer = io.BufferedReader(raw)
            marked = buffer.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            with io.TextIOWrapper(buffer, encoding="utf-16" if marked else "utf-8-sig", errors=errors) as file:
                yield file
    except UnicodeDecodeError as error:
        raise PrismError(f"{shown(path)} is no text in UTF-8: {error}; save it as UTF-8") from error
    except FileNotFoundError:
        raise
    except (EOFError, lzma.LZMAError, OSError, zlib.error) as error:
        raise PrismError(f"{shown(path)} cannot be read, is truncated or damaged ({error}); fetch it again") from error


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
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}{ASIDE}", dir=target.parent))
    try:
        # The suffix stays, because writers choose the format by it.
        yield aside / target.name
        _to_disk(aside / target.name)
        os.replace(aside / target.name, target)
    finally:
        shutil.rmtree(aside)


@contextmanager
def storing(target: str | Path) -> Iterator[None]:
    """Say that a file could not be written where torch, which writes it inside the block, tells of its own code only.

    Raises:
        OSError: if it could not.
    """
    try:
        yield
    except RuntimeError as error:
        if "inline_container" not in str(error) and "failed writing" not in str(error):
            raise
        free = shutil.disk_usage(Path(target).parent).free
        raise OSError(
            errno.ENOSPC, f"No space left on device, or it failed ({free / 1e6:.1f} MB are free)", shown(target)
        ) from error


def sweep(folder: str | Path, name: str = "*") -> None:
    """Remove what killed processes have left half-written in a folder; only for the one that holds its lock.

    Args:
        folder: where to look.
        name: of the target, if others may be at work beside it; else its subfolders are swept, too.
    """
    deep = [] if name != "*" else [inner for inner in Path(folder).glob("*") if inner.is_dir()]
    for place in (Path(folder), *deep):
        for left in list(place.glob(f".{name}{ASIDE}????????")):
            shutil.rmtree(left, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Wait until a file is on the disk: else a machine that fails may have its new name and not its content."""
    if path.is_file():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


@contextmanager
def locked(target: str | Path) -> Iterator[None]:
    """Be the only process that writes a file or folder; beside it stays an empty ``.NAME.lock``.

    Raises:
        ValueError: if another process is at it.
    """
    target = Path(target).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise PrismError(f"another process writes {shown(target)!r}: wait for it, or choose another place") from None
    try:
        yield
    finally:
        lock.release()


def read_json(path: str | Path) -> Any:
    """Read a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


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


def truncate_after_last_record(path: Path) -> None:
    """Cut off what stands behind the last whole record of a CSV file; a quoted line feed ends none."""
    end, place, quotes = 0, 0, 0
    with open(path, "rb+") as file:
        for line in file:
            place += len(line)
            quotes += line.count(b'"')
            if quotes % 2 == 0 and line.endswith(b"\n"):
                end = place
        file.truncate(end)
