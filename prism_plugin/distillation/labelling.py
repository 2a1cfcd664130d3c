"""A labelling run: shard after shard, in one or several processes of the teacher, resumable."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from prism_plugin.distillation.examination import examine, format_examination
from prism_plugin.distillation.frames import FRAMES_PER_JOB, VERSION, FrameMaker, JobResult
from prism_plugin.distillation.parents import Parents, read_parents
from prism_plugin.distillation.shards import SETTINGS, shard_counts, shard_path, write_shard
from prism_plugin.distillation.teacher import Teacher
from prism_plugin.files import replaced

__all__ = ["LabelSettings", "LabelSummary", "label_frames"]

_INTERRUPTED = "interrupted; the shards that are written are kept: the same command goes on"


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
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        try:
            json.dumps(self.arguments)
        except TypeError as error:
            raise ValueError(f"the arguments of a teacher must be plain values: {error}") from error
        if self.shard_frames % FRAMES_PER_JOB:
            raise ValueError(
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


@dataclass(frozen=True)
class LabelSummary:
    """What a folder holds: frames asked for, kept by kind, refused by reason; new ones of this run, and its time."""

    asked: int
    kinds: dict[str, int]
    refused: dict[str, int]
    new: int = 0
    seconds: float = 0.0

    @property
    def kept(self) -> int:
        """Number of labelled frames."""
        return sum(self.kinds.values())


def label_frames(
    settings: LabelSettings, out: str | Path, progress: bool = True, say: Callable[[str], None] = print
) -> LabelSummary:
    """Label frames into a folder of shards, or go on with one.

    Args:
        settings: what to label, and how.
        out: the folder.
        progress: whether there is a progress bar.
        say: takes lines about the teacher and the parents.

    Raises:
        ValueError: if the teacher is refused, the folder has other settings, or another process writes to it.
        OSError: if a process of the teacher ends.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out), ExitStack() as stack:
        for left in out.glob(".shard-*"):  # of a killed run
            shutil.rmtree(left)
        teacher = stack.enter_context(settings.make_teacher())
        say(
            f"teacher: {settings.teacher} ({len(teacher.elements)} elements, version {teacher.about['version'] or '?'})"
        )
        parents = None
        if settings.structures is not None:
            parents = read_parents(settings.structures, teacher.elements, settings.max_atoms)
            without = "".join(f"; {count} {reason} are left out" for reason, count in parents.left_out.items())
            say(f"parents: {len(parents.names)} crystals{without}")
        _check_settings(out, _described(settings, teacher, parents))
        missing = [number for number, jobs in enumerate(settings.shards) if not _is_done(out, number, jobs)]
        if missing and not settings.skip_examination:
            say(format_examination(examine(teacher)))
        _save_settings(out, _described(settings, teacher, parents))
        teachers = [teacher]
        for _ in range(min(settings.processes, len(missing)) - 1):
            teachers.append(stack.enter_context(settings.make_teacher()))
        maker = FrameMaker(parents, _elements(teacher, parents), settings.seed, settings.max_atoms)
        started = time.monotonic()
        new = _run(maker, teachers, settings, out, missing, progress)
        summary = _summary(settings, out, new, time.monotonic() - started)
        with replaced(out / "summary.json") as aside:
            counted = {name: value for name, value in asdict(summary).items() if name not in ("new", "seconds")}
            aside.write_text(json.dumps({**counted, "kept": summary.kept}, indent=1), encoding="utf-8")
    return summary


def _elements(teacher: Teacher, parents: Parents | None) -> list[str]:
    if parents is None:
        return list(teacher.elements)
    return sorted({symbol for atoms in parents.crystals for symbol in atoms.symbols})


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"another process labels into {str(out)!r}; wait for it, or give another --out") from error


def _described(settings: LabelSettings, teacher: Teacher, parents: Parents | None) -> dict[str, Any]:
    """All that frames and labels depend on."""
    return {
        "version": VERSION,
        "teacher": teacher.about,
        "parents": None if parents is None else {"crystals": len(parents.names), "digest": parents.digest},
        "elements": _elements(teacher, parents),
        "seed": settings.seed,
        "max_atoms": settings.max_atoms,
        "shard_frames": settings.shard_frames,
    }


def _check_settings(out: Path, described: dict[str, Any]) -> None:
    """Refuse a folder whose frames are others."""
    path = out / SETTINGS
    if not path.exists():
        if any(out.glob("shard-*.npz")):
            raise ValueError(f"{str(out)!r} has shards without {SETTINGS}; give another --out, or move them away")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in described if json.loads(json.dumps(described[name])) != there.get(name)]
    if changed:
        named = "; ".join(
            f"{name}: {_short(there.get(name))} there, {_short(described[name])} given" for name in changed
        )
        raise ValueError(f"the frames in {str(out)!r} have other settings ({named}); give these, or another --out")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 150 else f"{text[:147]}..."


def _save_settings(out: Path, described: dict[str, Any]) -> None:
    if not (out / SETTINGS).exists():
        with replaced(out / SETTINGS) as aside:
            aside.write_text(json.dumps(described, indent=1), encoding="utf-8")


def _is_done(out: Path, shard: int, jobs: range) -> bool:
    """Whether a shard is there with so many frames; one that a longer run fills up is written anew."""
    counts = shard_counts(shard_path(out, shard))
    return counts is not None and counts[0] >= len(jobs) * FRAMES_PER_JOB


def _run(
    maker: FrameMaker, teachers: list[Teacher], settings: LabelSettings, out: Path, missing: list[int], progress: bool
) -> int:
    """Make the missing shards, each by one of the teachers; return the number of new frames."""
    queue: SimpleQueue[int] = SimpleQueue()
    for number in missing:
        queue.put(number)
    stop = threading.Event()
    left = sum(len(settings.shards[number]) for number in missing) * FRAMES_PER_JOB
    asked = settings.jobs * FRAMES_PER_JOB
    with tqdm(total=asked, initial=asked - left, desc="label", unit="frame", disable=not progress) as bar:
        refused: Counter[str] = Counter()

        def work(teacher: Teacher) -> int:
            kept = 0
            while True:
                try:
                    shard = queue.get_nowait()
                except Empty:
                    return kept
                results = []
                for job in settings.shards[shard]:
                    if stop.is_set():
                        return kept
                    results.append(maker.run_job(job, teacher))
                    refused.update(results[-1].reasons())
                    bar.update(FRAMES_PER_JOB)
                    bar.set_postfix(refused=refused.total(), refresh=False)
                _check_shard(results, shard)
                write_shard(shard_path(out, shard), results)
                kept += sum(len(result.frames) for result in results)

        with ThreadPoolExecutor(len(teachers)) as pool:
            futures: list[Future[int]] = [pool.submit(work, teacher) for teacher in teachers]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_INTERRUPTED) from None
            finally:
                stop.set()
        return sum(future.result() for future in futures)


def _check_shard(results: list[JobResult], shard: int) -> None:
    """Stop a run of which nothing comes."""
    if any(result.frames for result in results):
        return
    reasons = sum((result.reasons() for result in results), Counter[str]())
    named = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    raise ValueError(f"not one frame of shard {shard} could be kept ({named}); is this teacher for these structures?")


def _summary(settings: LabelSettings, out: Path, new: int, seconds: float) -> LabelSummary:
    asked, kinds, reasons = 0, Counter[str](), Counter[str]()
    for shard in range(len(settings.shards)):
        counts = shard_counts(shard_path(out, shard))
        if counts is not None:
            asked, kinds, reasons = asked + counts[0], kinds + counts[1], reasons + counts[2]
    return LabelSummary(asked, dict(sorted(kinds.items())), dict(reasons.most_common()), new, seconds)
