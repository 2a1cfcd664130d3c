"""Frames: structures around real crystals and prototypes, with the labels of a teacher.

The unit of work is a job of five frames of one parent. What a job gives depends on the seed, its number and the parents
alone, so that frames are the same on any number of processes and after any interruption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from ase import Atoms

from prism_plugin.data.shards import FRAMES_PER_JOB, Frame, JobResult, Labels
from prism_plugin.distillation.moves import closest_ratio, displaced, strained, with_defect, with_short_distance
from prism_plugin.distillation.parents import Parents, balanced_order
from prism_plugin.distillation.paths import dynamics, relaxation, settled
from prism_plugin.distillation.prototypes import enlarged, prototype, slab
from prism_plugin.distillation.teacher import Teacher, TeacherError

__all__ = ["FrameMaker"]

VERSION = 2  # of all choices in this package that frames depend on; a run goes on with its own only
MOST_FORCE = 50.0  # eV/Å
MOST_STRESS = 3.0  # eV/Å^3; 480 GPa
ENERGY_ABOVE, ENERGY_BELOW = 5.0, 1.0  # eV/atom, against the first frame of the job
VOLUME_RANGE = (0.5, 2.0)  # of a snapshot, against the first frame
CLOSEST = 0.5  # of the sum of covalent radii
_PROTOTYPE_EVERY = 5  # jobs
# Shares of the kinds of a frame that is on no path, of jobs on a path, and of the sizes.
_KINDS = {"displaced": 0.46, "strained": 0.16, "strained and displaced": 0.32, "short distance": 0.06}
_DYNAMICS, _RELAXATION = 0.07, 0.07
_PATH_ATOMS = 20
_TRIES = 8  # of a prototype with a volume
_SMALL = 0.06  # Å, largest displacement of a first frame that is displaced


class FrameMaker:
    """Makes the frames of each job.

    Args:
        parents: real crystals, or None for prototypes alone.
        elements: symbols of the prototypes' elements.
        seed: of all choices.
        max_atoms: of a frame.
    """

    def __init__(self, parents: Parents | None, elements: Sequence[str], seed: int = 0, max_atoms: int = 40) -> None:
        self.parents = parents
        self.elements = sorted(elements)
        self.seed = seed
        self.max_atoms = max_atoms
        self._order = None if parents is None else balanced_order(parents.crystals, seed)

    def run_job(self, job: int, teacher: Teacher) -> JobResult:
        """Make and label the frames of one job.

        Raises:
            OSError: if the teacher's process has ended.
        """
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, job]))
        result = JobResult()
        numbers = range(job * FRAMES_PER_JOB, (job + 1) * FRAMES_PER_JOB)
        try:
            name, first, start = self._start(job, rng, teacher)
            if rng.random() < 0.5:
                first, start = "displaced", displaced(rng, start, _SMALL)
            reason = _why_not_label(start)
            labels = teacher.label(start) if reason is None else None
        except TeacherError:
            reason, labels = "the teacher fails", None
        if labels is not None:
            reason = _why_not_keep(start, labels)
        if reason is not None or labels is None:
            result.refused += [(numbers[0], str(reason)), *((number, "first frame refused") for number in numbers[1:])]
            return result
        result.frames.append(Frame(numbers[0], name, first, start, labels))
        reference = labels.energy / len(start)
        others = self._others(rng, start, teacher)
        for number in numbers[1:]:
            kind, atoms, reason, labels = next(others)
            if labels is not None:
                reason = _why_not_keep(atoms, labels, reference, start.get_volume())
            if reason is not None or labels is None:
                result.refused.append((number, str(reason)))
            else:
                result.frames.append(Frame(number, name, kind, atoms, labels))
        return result

    def _start(self, job: int, rng: np.random.Generator, teacher: Teacher) -> tuple[str, str, Atoms]:
        """Name, kind and structure that the frames of a job are made of."""
        if self.parents is None or self._order is None or job % _PROTOTYPE_EVERY == _PROTOTYPE_EVERY - 1:
            return self._prototype(rng, teacher)
        turn = job - job // _PROTOTYPE_EVERY
        index = int(self._order[turn % len(self._order)])
        kind, atoms = "relaxed", self.parents.crystals[index]
        if len(atoms) <= 10 and rng.random() < 0.4:
            atoms = enlarged(atoms, int(rng.integers(8, 21)))
        if len(atoms) >= 4 and rng.random() < 0.1:
            kind, atoms = "defect", with_defect(rng, atoms)
        return self.parents.names[index], kind, atoms

    def _prototype(self, rng: np.random.Generator, teacher: Teacher) -> tuple[str, str, Atoms]:
        """Name, kind and structure of a prototype at the teacher's volume."""
        for _ in range(_TRIES):
            name, atoms = prototype(rng, self.elements)
            cell = settled(teacher, atoms)
            if cell is not None:
                break
        else:
            raise TeacherError("no prototype has a volume")
        cut = slab(rng, cell, self.max_atoms) if rng.random() < 0.2 else None
        if cut is not None:
            return f"slab of {name}", "slab", enlarged(cut, min(int(rng.integers(1, 17)), self.max_atoms))
        atoms = enlarged(cell, min(int(rng.integers(1, 25)), self.max_atoms))
        if len(atoms) >= 4 and rng.random() < 0.35:
            return name, "defect", with_defect(rng, atoms)
        return name, "prototype", atoms

    def _others(
        self, rng: np.random.Generator, start: Atoms, teacher: Teacher
    ) -> Iterator[tuple[str, Atoms, str | None, Labels | None]]:
        """Kind, structure, why it has no labels, labels of frame after frame."""
        chosen = rng.random()
        if 2 <= len(start) <= _PATH_ATOMS and chosen < _DYNAMICS + _RELAXATION:
            if chosen < _DYNAMICS:
                kind, path = "dynamics", dynamics(rng, teacher, start)
            else:
                kind, path = "relaxation", relaxation(teacher, displaced(rng, strained(rng, start)))
            try:
                for atoms, labels in path:
                    yield kind, atoms, None, labels
            except TeacherError:
                while True:
                    yield kind, start, "the teacher fails", None
        while True:
            kind = str(rng.choice(list(_KINDS), p=list(_KINDS.values())))
            kind, atoms = _moved(rng, kind, start)
            reason = _why_not_label(atoms)
            found: Labels | None = None
            if reason is None:
                try:
                    found = teacher.label(atoms)
                except TeacherError:
                    reason = "the teacher fails"
            yield kind, atoms, reason, found


def _moved(rng: np.random.Generator, kind: str, start: Atoms) -> tuple[str, Atoms]:
    """Kind and structure of a frame; another kind where an atom has no neighbor to bring near."""
    if kind == "displaced":
        return kind, displaced(rng, start)
    if kind == "strained":
        return kind, strained(rng, start)
    if kind == "short distance":
        moved = with_short_distance(rng, start)
        if moved is not None:
            return kind, moved
    return "strained and displaced", displaced(rng, strained(rng, start))


def _why_not_label(atoms: Atoms) -> str | None:
    if closest_ratio(atoms, CLOSEST) < CLOSEST:
        return f"atoms closer than {CLOSEST} of their covalent radii"
    return None


def _why_not_keep(
    atoms: Atoms, labels: Labels, reference: float | None = None, volume: float | None = None
) -> str | None:
    """Return why a labelled structure is refused, None if it is not."""
    if not (labels.finite and np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        return "not finite"
    if np.linalg.norm(labels.forces, axis=1).max() > MOST_FORCE:
        return f"a force above {MOST_FORCE:g} eV/Å"
    if np.abs(labels.stress).max() > MOST_STRESS:
        return f"a stress above {MOST_STRESS:g} eV/Å^3"
    if reference is not None:
        above = labels.energy / len(atoms) - reference
        if above > ENERGY_ABOVE:
            return f"energy more than {ENERGY_ABOVE:g} eV/atom above the first frame"
        if above < -ENERGY_BELOW:
            return f"energy more than {ENERGY_BELOW:g} eV/atom below the first frame"
    if volume is not None and not VOLUME_RANGE[0] < atoms.get_volume() / volume < VOLUME_RANGE[1]:
        return "volume far off"
    return None
