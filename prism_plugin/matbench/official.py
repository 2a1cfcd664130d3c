"""What Matbench itself says: tasks, folds, validation, leaderboard. Its package is imported here and nowhere else."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prism_plugin.data import DATASETS
from prism_plugin.errors import PrismError

__all__ = ["TASKS", "check_results", "fold_names", "leaderboard", "new_benchmark", "official_hash"]

TASKS = tuple(name for name, data in DATASETS.items() if data.folds)
_HELP = (
    "Matbench needs two commands: pip install 'prism-plugin[matbench]' and pip install --no-deps matbench==0.6 "
    "(the versions that matbench pins cannot be installed together any more, hence --no-deps)"
)


def _package() -> Any:
    """Import matbench; it would report every step on the standard output."""
    try:
        from matbench import bench
    except ImportError as error:
        raise ImportError(_HELP) from error
    logging.getLogger("matbench").setLevel(logging.ERROR)
    return bench


def new_benchmark(tasks: Sequence[str]) -> Any:
    """Make an empty ``MatbenchBenchmark`` of some tasks, without their data.

    Raises:
        ImportError: if matbench is not installed; says how to install it.
        ValueError: if a task is none of Matbench's structure tasks.
    """
    for task in tasks:
        if task not in TASKS:
            raise PrismError(f"no structure task {task!r} in Matbench; choose one of: {', '.join(TASKS)}")
    return _package().MatbenchBenchmark(autoload=False, subset=list(tasks))


def fold_names(task: str, fold: int) -> tuple[list[str], list[str]]:
    """Names of the crystals (``mb-jdft2d-001``) for training and for test, from Matbench's own list."""
    validation = new_benchmark([task]).tasks_map[task].validation[f"fold_{fold}"]
    return list(validation.train), list(validation.test)


def official_hash(task: str) -> str:
    """SHA-256 of the task's file."""
    return str(new_benchmark([task]).tasks_map[task].metadata.hash)


def check_results(path: Path) -> Any:
    """Read a ``results.json.gz`` as the submission check does, and validate it with matbench's own code.

    Returns:
        The ``MatbenchBenchmark``.

    Raises:
        ValueError: if it is no true gzip, or matbench does not take it; says why.
    """
    if path.read_bytes()[:2] != b"\x1f\x8b":
        raise PrismError(f"{path} is no gzip")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        content = json.load(file)
    try:
        benchmark = _package().MatbenchBenchmark.from_dict(content)
    except (ValueError, KeyError, TypeError) as error:
        raise PrismError(f"matbench does not take {path}: {error}") from error
    problems = benchmark.validate()
    if problems:
        raise PrismError(f"matbench does not take {path}: {problems}")
    return benchmark


def leaderboard(task: str) -> list[tuple[str, float, float]]:
    """The published top ten of a task: algorithm, mean and standard deviation over the folds, best first.

    MAE in the unit of the task, of ``matbench_mp_is_metal`` ROC AUC of labels; source and commit are in
    ``leaderboard.json``.
    """
    content = json.loads((Path(__file__).parent / "leaderboard.json").read_text(encoding="utf-8"))
    return [(name, mean, std) for name, mean, std in content["tasks"][task]]
