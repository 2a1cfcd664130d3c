"""Files and folders of structures, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

from ase import Atoms

from prism_plugin.data.frame import Frame
from prism_plugin.data.structure_files import is_series, read_frames
from prism_plugin.errors import PrismError
from prism_plugin.files import shown
from prism_plugin.tables import ABOUT

__all__ = ["Source", "frames_of", "iterate_structures", "read_structures"]

# What is found: a structure, a file that is not read yet, or the reason why there is none.
Source: TypeAlias = Frame | Path | PrismError


def iterate_structures(paths: Iterable[str | Path]) -> Iterator[tuple[str, Source]]:
    """Iterate over files, the frames of trajectories and tables one by one.

    Args:
        paths: files of structures (CIF, POSCAR, pymatgen's ``.json``, whatever ASE reads, frame by frame ``.extxyz``,
            ``.xyz``, ``.traj``, ``.db``, ``.jsonl``), or folders of such files, in which tables of ``prism predict``
            are left out. A path that is given twice, also by its folder, is read once.

    Yields:
        A name (``path`` or ``path#number``) with a structure, a path that is not read yet, or an error.
    """
    for path in _inside(paths):
        if path.is_dir():
            yield shown(path), PrismError("there is no file in this folder (its subfolders are not read)")
        elif not path.is_file():
            yield shown(path), PrismError("a link that leads nowhere" if path.is_symlink() else "no such file")
        elif is_series(path):
            yield from _named_frames(path, True)
        else:
            yield shown(path), path


def _inside(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Put the files of a folder in its place, unless there is none; what was given before is left out."""
    seen: set[Path] = set()
    for path in map(Path, paths):
        inside = sorted(file for file in path.iterdir() if _is_input(file)) if path.is_dir() else []
        for one in inside or [path]:
            if one not in seen:
                seen.add(one)
                yield one


def _is_input(file: Path) -> bool:
    if file.name.endswith(ABOUT) and file.with_name(file.name.removesuffix(ABOUT)).exists():
        return False
    is_table = os.path.exists(f"{file}{ABOUT}")  # False, and no error, where the name is too long
    return not file.is_dir() and not file.name.startswith(".") and not is_table


def frames_of(name: str, source: Source) -> Iterator[tuple[str, Frame | PrismError]]:
    """Read what :func:`iterate_structures` found, if it is a file; give the structures with their names."""
    if isinstance(source, Path):
        yield from _named_frames(source, False)
    else:
        yield name, source


def _named_frames(path: Path, is_numbered: bool) -> Iterator[tuple[str, Frame | PrismError]]:
    """Read a file; the only structure of one is called by its path, several by path and number."""
    frames = read_frames(path)
    first = list(islice(frames, 2))
    if len(first) == 1 and not is_numbered:
        yield shown(path), first[0]
        return
    for number, frame in enumerate(chain(first, frames), start=1):
        yield f"{shown(path)}#{number}", frame


def read_structures(paths: Iterable[str | Path]) -> Iterator[Atoms]:
    """Read all structures of files and folders.

    Raises:
        ValueError: if one cannot be read; says where and why.
    """
    for found in iterate_structures(paths):
        for name, frame in frames_of(*found):
            if isinstance(frame, PrismError):
                raise PrismError(f"{name}: {frame}")
            yield frame.atoms
