"""Shards: files of labelled frames as flat arrays, and how a training reads them."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from prism_plugin.data.records import Record
from prism_plugin.errors import PrismError
from prism_plugin.files import replaced

__all__ = [
    "FRAMES_PER_JOB",
    "SETTINGS",
    "Frame",
    "JobResult",
    "Labels",
    "is_shard_folder",
    "read_frames",
    "read_shards",
    "shard_counts",
    "shard_path",
    "write_shard",
]

SETTINGS = "settings.json"
_OF_100 = {"train": 90, "val": 95, "test": 100}  # by the hash of the parent's name
FRAMES_PER_JOB = 5


class Labels(NamedTuple):
    """What a teacher says about a structure.

    Attributes:
        energy: total energy, eV.
        forces: eV/Å, shape ``(atoms, 3)``.
        stress: eV/Å^3, positive where the crystal wants to shrink (as in ASE), shape ``(3, 3)``.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether all numbers are finite."""
        return bool(np.isfinite(self.energy) and np.isfinite(self.forces).all() and np.isfinite(self.stress).all())


@dataclass(frozen=True)
class Frame:
    """A labelled structure: the number, the name of the parent, what was done to it, the structure, its labels."""

    number: int
    parent: str
    kind: str
    atoms: Atoms
    labels: Labels


@dataclass
class JobResult:
    """What a job gave: frames, and for the numbers of the others why there is none."""

    frames: list[Frame] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)

    def reasons(self) -> Counter[str]:
        """Numbers of refused frames by reason."""
        return Counter(reason for _, reason in self.refused)


def shard_path(folder: Path, shard: int) -> Path:
    """Return the path of a shard."""
    return folder / f"shard-{shard:06d}.npz"


def is_shard_folder(folder: str | Path) -> bool:
    """Whether a folder is one of ``prism label``."""
    try:
        return "teacher" in json.loads((Path(folder) / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def write_shard(path: Path, jobs: Sequence[JobResult]) -> None:
    """Write the frames of consecutive jobs; equal frames give equal bytes."""
    frames = [frame for job in jobs for frame in job.frames]
    refused = [refusal for job in jobs for refusal in job.refused]
    arrays: dict[str, Any] = {
        "numbers": _joined([frame.atoms.numbers for frame in frames], (0,), np.uint8),
        "positions": _joined([frame.atoms.positions for frame in frames], (0, 3), np.float64),
        "cell": np.array([frame.atoms.cell.array for frame in frames], dtype=np.float64).reshape(-1, 3, 3),
        "energy": np.array([frame.labels.energy for frame in frames], dtype=np.float64),
        "forces": _joined([frame.labels.forces for frame in frames], (0, 3), np.float64),
        "stress": np.array([frame.labels.stress for frame in frames], dtype=np.float64).reshape(-1, 3, 3),
        "sizes": np.array([len(frame.atoms) for frame in frames], dtype=np.int64),
        "parent": np.array([frame.parent for frame in frames], dtype=np.str_),
        "kind": np.array([frame.kind for frame in frames], dtype=np.str_),
        "frame": np.array([frame.number for frame in frames], dtype=np.int64),
        "refused_frame": np.array([number for number, _ in refused], dtype=np.int64),
        "refused_reason": np.array([reason for _, reason in refused], dtype=np.str_),
        "asked": np.array(len(jobs) * FRAMES_PER_JOB, dtype=np.int64),
    }
    with replaced(path) as aside:
        np.savez(aside, **arrays)


def shard_counts(path: Path) -> tuple[int, Counter[str], Counter[str]] | None:
    """Return the number of frames asked for, frames by kind and refusals by reason; None if there is no whole shard."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            kinds, reasons = arrays["kind"].tolist(), arrays["refused_reason"].tolist()
            return int(arrays["asked"]), Counter(kinds), Counter(reasons)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PrismError(f"the shard {str(path)!r} is damaged ({error}); delete it and repeat prism label") from error


def read_frames(path: Path) -> Iterator[Frame]:
    """Read the frames of one shard.

    Raises:
        ValueError: if it is damaged.
    """
    shard_counts(path)
    with np.load(path, allow_pickle=False) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    ends = np.cumsum(arrays["sizes"])
    for place, (start, end) in enumerate(zip(ends - arrays["sizes"], ends, strict=True)):
        yield Frame(
            int(arrays["frame"][place]),
            str(arrays["parent"][place]),
            str(arrays["kind"][place]),
            Atoms(arrays["numbers"][start:end], arrays["positions"][start:end], cell=arrays["cell"][place], pbc=True),
            Labels(float(arrays["energy"][place]), arrays["forces"][start:end], arrays["stress"][place]),
        )


def read_shards(folder: str | Path) -> list[Record]:
    """Read labelled frames as records of a potential.

    The frames of a parent share a split: 90 % of the parents are train, 5 % val, 5 % test, by a hash of their names.
    With too few parents for that, no record names a split.

    Args:
        folder: what ``prism label`` has written, or has begun to write.

    Raises:
        ValueError: if it is no such folder, or is damaged.
    """
    folder = Path(folder)
    if not is_shard_folder(folder):
        raise PrismError(f"{str(folder)!r} is no folder of prism label: it has no {SETTINGS} of one")
    records = []
    for path in sorted(folder.glob("shard-*.npz")):
        for frame in read_frames(path):
            energy, forces, stress = frame.labels
            name = f"{frame.parent}#{frame.number}"
            records.append(Record(frame.atoms, energy, name, _split(frame.parent), forces, stress))
    if not records:
        raise PrismError(f"{str(folder)!r} has no labelled frame yet; run prism label to its end")
    if {record.split for record in records} >= {"train", "val"}:
        return records
    return [replace(record, split=None) for record in records]


def _split(parent: str) -> str:
    turn = int(sha256(parent.encode()).hexdigest()[:8], 16) % 100
    return next(split for split, end in _OF_100.items() if turn < end)


def _joined(parts: Sequence[np.ndarray], empty: tuple[int, ...], kind: type) -> np.ndarray:
    return np.concatenate(parts).astype(kind) if parts else np.zeros(empty, dtype=kind)
