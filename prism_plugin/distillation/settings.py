"""What a labelling run is given, and by what its folder knows its own frames."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prism_plugin.data.shards import FRAMES_PER_JOB, SETTINGS
from prism_plugin.distillation.frames import VERSION
from prism_plugin.distillation.parents import Parents
from prism_plugin.distillation.teacher import Teacher
from prism_plugin.errors import PrismError
from prism_plugin.files import write_json

__all__ = ["LabelSettings", "check_settings", "describe_settings", "prototype_elements", "save_settings"]


@dataclass(frozen=True)
class LabelSettings:
    """What to label, and how.

    Attributes:
        teacher: folder of a matgl potential, or an ASE calculator by import path.
        frames: how many to try; rounded up to jobs of five.
        structures: file or folder of parents; None takes prototypes alone.
        arguments: of the teacher's calculator.
        teacher_python: interpreter of the teacher's environment.
        teacher_path: folder in front of the teacher's ``PYTHONPATH``.
        seed: of all choices.
        max_atoms: of a frame.
        shard_frames: frames of one shard, a multiple of five.
        processes: of the teacher.
        threads: of each of them.
        skip_examination: whether the teacher is taken as it is.
    """

    teacher: str
    frames: int
    structures: str | Path | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    teacher_python: str | Path | None = None
    teacher_path: str | Path | None = None
    seed: int = 0
    max_atoms: int = 40
    shard_frames: int = 500
    processes: int = 1
    threads: int = 1
    skip_examination: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("frames", "max_atoms", "shard_frames", "processes", "threads"):
            if getattr(self, name) < 1:
                raise PrismError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise PrismError(f"seed must be at least 0, got {self.seed}")
        try:
            json.dumps(self.arguments)
        except TypeError as error:
            raise PrismError(f"the arguments of a teacher must be plain values: {error}") from error
        if self.shard_frames % FRAMES_PER_JOB:
            raise PrismError(
                f"shard_frames must be a multiple of {FRAMES_PER_JOB}, the frames of one parent, got "
                f"{self.shard_frames}"
            )

    @property
    def jobs(self) -> int:
        """Number of jobs."""
        return -(-self.frames // FRAMES_PER_JOB)

    @property
    def shards(self) -> list[range]:
        """The jobs of each shard."""
        each = self.shard_frames // FRAMES_PER_JOB
        return [range(first, min(first + each, self.jobs)) for first in range(0, self.jobs, each)]

    def make_teacher(self) -> Teacher:
        """Start a process of the teacher."""
        return Teacher(self.teacher, self.arguments, self.teacher_python, self.teacher_path, self.threads)


def prototype_elements(teacher: Teacher, parents: Parents | None) -> list[str]:
    """Return the elements of prototypes: those of the parents, or all that the teacher knows."""
    if parents is None:
        return list(teacher.elements)
    return sorted({symbol for atoms in parents.crystals for symbol in atoms.symbols})


def describe_settings(settings: LabelSettings, teacher: Teacher, parents: Parents | None) -> dict[str, Any]:
    """All that frames and labels depend on."""
    return {
        "version": VERSION,
        "teacher": teacher.about,
        "parents": None if parents is None else {"crystals": len(parents.names), "digest": parents.digest},
        "elements": prototype_elements(teacher, parents),
        "seed": settings.seed,
        "max_atoms": settings.max_atoms,
        "shard_frames": settings.shard_frames,
    }


def check_settings(out: Path, described: dict[str, Any]) -> None:
    """Compare with the folder's own.

    Raises:
        ValueError: if its frames are others, or it does not say what they are.
    """
    path = out / SETTINGS
    if not path.exists():
        if any(out.glob("shard-*.npz")):
            raise PrismError(f"{str(out)!r} has shards without {SETTINGS}; give another --out, or move them away")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in described if json.loads(json.dumps(described[name])) != there.get(name)]
    if changed:
        named = "; ".join(
            f"{name}: {_short(there.get(name))} there, {_short(described[name])} given" for name in changed
        )
        raise PrismError(f"the frames in {str(out)!r} have other settings ({named}); give these, or another --out")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 150 else f"{text[:147]}..."


def save_settings(out: Path, described: dict[str, Any]) -> None:
    """Write what the frames of a new folder depend on."""
    if not (out / SETTINGS).exists():
        write_json(out / SETTINGS, described)
