"""A labelling run: shard after shard, in one or several processes of the teacher, resumable."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from filelock import FileLock, Timeout
from tqdm import tqdm

from prism_plugin.data.shards import FRAMES_PER_JOB, JobResult, shard_counts, shard_path, write_shard
from prism_plugin.distillation.examination import examine, format_examination
from prism_plugin.distillation.frames import FrameMaker
from prism_plugin.distillation.parents import read_parents
from prism_plugin.distillation.settings import (
    LabelSettings,
    check_settings,
    describe_settings,
    prototype_elements,
    save_settings,
)
from prism_plugin.distillation.teacher import Teacher
from prism_plugin.errors import PrismError
from prism_plugin.files import write_json

__all__ = ["LabelSummary", "label_frames"]

_INTERRUPTED = "interrupted; the shards that are written are kept: the same command goes on"


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
        described = describe_settings(settings, teacher, parents)
        check_settings(out, described)
        missing = [number for number, jobs in enumerate(settings.shards) if not _is_done(out, number, jobs)]
        if missing and not settings.skip_examination:
            say(format_examination(examine(teacher)))
        save_settings(out, described)
        teachers = [teacher]
        for _ in range(min(settings.processes, len(missing)) - 1):
            teachers.append(stack.enter_context(settings.make_teacher()))
        maker = FrameMaker(parents, prototype_elements(teacher, parents), settings.seed, settings.max_atoms)
        started = time.monotonic()
        new = _Run(maker, settings, out, missing).run(teachers, progress)
        return _summary(settings, out, new, time.monotonic() - started)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise PrismError(f"another process labels into {str(out)!r}; wait for it, or give another --out") from error


def _is_done(out: Path, shard: int, jobs: range) -> bool:
    """Whether a shard is there with so many frames; one that a longer run fills up is written anew."""
    counts = shard_counts(shard_path(out, shard))
    return counts is not None and counts[0] >= len(jobs) * FRAMES_PER_JOB


class _Run:
    """Missing shards, each made by one of the teachers in a thread of its own: the work is in their processes."""

    def __init__(self, maker: FrameMaker, settings: LabelSettings, out: Path, missing: list[int]) -> None:
        self.maker = maker
        self.shards = settings.shards
        self.out = out
        self.queue: SimpleQueue[int] = SimpleQueue()
        for number in missing:
            self.queue.put(number)
        self.asked = settings.jobs * FRAMES_PER_JOB
        self.left = sum(len(self.shards[number]) for number in missing) * FRAMES_PER_JOB
        self.refused = 0
        self.stop = threading.Event()

    def run(self, teachers: list[Teacher], progress: bool) -> int:
        """Make all; return the number of new frames."""
        initial = self.asked - self.left
        with (
            tqdm(total=self.asked, initial=initial, desc="label", unit="frame", disable=not progress) as bar,
            ThreadPoolExecutor(len(teachers)) as pool,
        ):
            futures = [pool.submit(self._work, teacher, bar) for teacher in teachers]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_INTERRUPTED) from None
            finally:
                self.stop.set()
            return sum(future.result() for future in futures)

    def _work(self, teacher: Teacher, bar: tqdm) -> int:
        """Make shard after shard; return the number of frames that are written."""
        kept = 0
        while not self.stop.is_set():
            try:
                shard = self.queue.get_nowait()
            except Empty:
                break
            results: list[JobResult] = []
            for job in self.shards[shard]:
                if self.stop.is_set():
                    return kept
                results.append(self.maker.run_job(job, teacher))
                self.refused += len(results[-1].refused)
                bar.update(FRAMES_PER_JOB)
                bar.set_postfix(refused=self.refused, refresh=False)
            _check_shard(results, shard)
            write_shard(shard_path(self.out, shard), results)
            kept += sum(len(result.frames) for result in results)
        return kept


def _check_shard(results: list[JobResult], shard: int) -> None:
    """Stop a run of which nothing comes."""
    if any(result.frames for result in results):
        return
    reasons = sum((result.reasons() for result in results), Counter[str]())
    named = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    raise PrismError(f"not one frame of shard {shard} could be kept ({named}); is this teacher for these structures?")


def _summary(settings: LabelSettings, out: Path, new: int, seconds: float) -> LabelSummary:
    """Count what the folder holds, and write that down."""
    asked, kinds, reasons = 0, Counter[str](), Counter[str]()
    for shard in range(len(settings.shards)):
        counts = shard_counts(shard_path(out, shard))
        if counts is not None:
            asked, kinds, reasons = asked + counts[0], kinds + counts[1], reasons + counts[2]
    summary = LabelSummary(asked, dict(sorted(kinds.items())), dict(reasons.most_common()), new, seconds)
    counted = {"asked": asked, "kept": summary.kept, "kinds": summary.kinds, "refused": summary.refused}
    write_json(out / "summary.json", counted)
    return summary
