"""Train one Matbench task, fold by fold and seed by seed, and keep the predictions of each.

The folder of a run is named by a hash of everything that decides its predictions: what was computed under another
configuration is never taken for this one, and nothing is overwritten. It holds ``configuration.json`` and of each fold
``fold-0/seed-0/`` (a run folder, see :mod:`prism_plugin.training.fit`) and, when that is done, ``fold-0/seed-0.json``.
An interrupted run goes on with the same command; several that share a folder share the work, fold by fold.
"""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback

from prism_plugin import __version__
from prism_plugin.data import DATASETS, Record
from prism_plugin.data.matbench_files import FOLDS, matbench_file, matbench_records, with_validation
from prism_plugin.errors import PrismError
from prism_plugin.files import replaced
from prism_plugin.matbench.official import fold_names, new_benchmark
from prism_plugin.preset import presets
from prism_plugin.schema import changed, described
from prism_plugin.tasks import task_of
from prism_plugin.tasks.scores import NAMES
from prism_plugin.training import TrainingSettings, train
from prism_plugin.training.job import Job
from prism_plugin.training.run_folder import describe_settings

__all__ = ["CONFIGURATION", "TaskRun", "key_of", "read_predictions"]

CONFIGURATION = "configuration.json"
# Where and for which seed it is computed is no part of a configuration.
_FREE = ("seed", *(name for name, (*_, extra) in described(TrainingSettings).items() if "place" in extra))
_SET_HERE = ("target", "unit", "seed", "devices", "nodes")
_GIVEN = (*(name for name in described(TrainingSettings) if name not in _SET_HERE), "preset", "cache")
_VALIDATION = "a tenth of each fold's training part, drawn by numpy.random.default_rng(seed)"


def key_of(content: Mapping[str, Any]) -> str:
    """Hash what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class TaskRun:
    """One task in one configuration.

    Attributes:
        task: its name.
        settings: of the training; the seed is set fold by fold.
        records: all crystals, in the order of the task.
        configuration: everything that decides the predictions but the seed.
        cache: folder for graphs on disk; None builds them anew for every fold.
    """

    task: str
    settings: TrainingSettings
    records: Sequence[Record]
    configuration: Mapping[str, Any]
    cache: str | None = None

    @staticmethod
    def prepare(task: str, given: Mapping[str, Any] | None = None, data: str | Path | None = None) -> TaskRun:
        """Read the data of a task, and merge what was given with a preset.

        Args:
            task: name of a structure task.
            given: ``preset`` (the task's own, or ``matbench/mp_e_form`` if it has none), ``cache`` (folder for graphs),
                and the attributes of :class:`~prism_plugin.training.TrainingSettings` but for target, unit, seed,
                devices and nodes.
            data: a file in the format of the task's own, in its place; its results are no submission.

        Raises:
            ImportError: if matbench or matminer is not installed; says how to install them.
            OSError: if the download fails.
            ValueError: if a value is bad, or the data are not those of the task.
        """
        new_benchmark([task])
        given = dict(given or {})
        unknown = sorted(given.keys() - set(_GIVEN))
        if unknown:
            raise PrismError(f"unknown here: {', '.join(unknown)}; what can be given is: {', '.join(_GIVEN)}")
        own = [name for name, preset in presets.items() if preset.data == task]
        given.setdefault("preset", own[0] if own else "matbench/mp_e_form")
        ((name, target),) = DATASETS[task].targets.items()
        job = Job.make({**given, "data": task, "target": name})
        if task_of(job.settings).name != target.task_type:
            raise PrismError(f"{task} is a {target.task_type}, the model's task_type cannot be changed")
        path = matbench_file(task) if data is None else Path(data)
        records = matbench_records(task, path)
        names = {record.name for record in records}
        wanted = {name for part in fold_names(task, 0) for name in part}
        if names != wanted:
            raise PrismError(f"{path} has {len(names)} crystals, {task} has {len(wanted)}: the folds are not for it")
        settings = job.settings_for({"all": records})
        configuration = {
            "task": task,
            "data_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "preset": given["preset"],
            "settings": {name: value for name, value in describe_settings(settings).items() if name not in _FREE},
            "validation": _VALIDATION,
            "prism_plugin": __version__,
        }
        configuration = json.loads(json.dumps(configuration, default=list))
        cache = given.get("cache") if data is not None else job.values.get("cache")
        return TaskRun(task, settings, records, configuration, cache)

    @property
    def key(self) -> str:
        """Hash of the configuration."""
        return key_of(self.configuration)

    def folder(self, out: str | Path) -> Path:
        """Folder of this task and configuration in a folder of many."""
        return Path(out) / f"{self.task}-{self.key}"

    def parts(self, fold: int, seed: int) -> dict[str, list[Record]]:
        """Records of an official fold, ``"train"``, ``"val"`` and ``"test"``; the seed draws the validation part."""
        place = {record.name: index for index, record in enumerate(self.records)}
        train_part, test = ([place[name] for name in names] for names in fold_names(self.task, fold))
        return with_validation(self.records, train_part, test, seed)

    def run(
        self,
        out: str | Path,
        folds: Sequence[int] = tuple(range(FOLDS)),
        seeds: Sequence[int] = (0,),
        progress: bool = True,
    ) -> Path:
        """Train and predict folds; those that are done already are kept.

        Args:
            out: gets the folder of this task and configuration.
            folds: which of the five.
            seeds: one training of each fold with each; together they are an ensemble.
            progress: whether there are progress bars.

        Returns:
            The folder.

        Raises:
            ValueError: if a fold or seed is none, a file that is there is damaged or of another configuration, or
                predictions are not finite; nothing is overwritten.
        """
        _check_numbers(folds, seeds)
        folder = self.folder(out)
        described, text = folder / CONFIGURATION, json.dumps(self.configuration, indent=1)
        if described.exists() and described.read_text() != text:
            raise PrismError(f"{described} is damaged or was edited; delete it and repeat the command")
        for seed in seeds:
            for fold in folds:
                kept = folder / f"fold-{fold}" / f"seed-{seed}.json"
                kept.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with FileLock(kept.with_suffix(".lock"), timeout=0):  # a killed process leaves it open
                        if not kept.exists():
                            self._train(kept, fold, seed, progress)
                except Timeout:
                    print(f"{self.task}, fold {fold}, seed {seed}: another process is at it", flush=True)
                    continue
                if not described.exists():
                    with replaced(described) as path:
                        path.write_text(text)
                found = read_predictions(kept, self.task, self.key, fold, seed)
                print(f"{self.task}, fold {fold}, seed {seed}: {self._told(found)}", flush=True)
        return folder

    def _train(self, kept: Path, fold: int, seed: int, progress: bool) -> None:
        """Train one fold with one seed, or go on with it; keep the predictions of its test part."""
        folder = kept.with_suffix("")
        parts = self.parts(fold, seed)
        settings = changed(self.settings, seed=seed)
        summary = train(settings, parts, folder, resume=True, progress=progress, cache=self.cache)
        with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
            predicted = {
                row["name"]: float(row["prediction"]) for row in csv.DictReader(file) if row["split"] == "test"
            }
        content = {
            "task": self.task,
            "configuration": self.key,
            "fold": fold,
            "seed": seed,
            "versions": summary["versions"],
            "best_epoch": summary["best_epoch"],
            "validation": summary["scores"]["val"],
            "test": summary["scores"]["test"],
            "rows": {record.name: [record.target, predicted[record.name]] for record in parts["test"]},
        }
        content = json.loads(json.dumps(content))  # what a reader will hash
        with replaced(kept) as path:
            path.write_text(json.dumps({**content, "sha256": key_of(content)}))

    def _told(self, found: Mapping[str, Any]) -> str:
        metric = task_of(self.settings).metric
        unit = f" {self.settings.unit}" if self.settings.unit else ""
        test, validation = found["test"][metric], found["validation"][metric]
        return f"{NAMES[metric]} {test:.4f}{unit} on test, {validation:.4f} on validation"

    def try_out(self, folds: Sequence[int] = (0,), seeds: Sequence[int] = (0,), progress: bool = True) -> str:
        """Train the first of these folds on a few crystals for two epochs, keep nothing, and say what all of them take.

        Raises:
            ValueError: as :meth:`run`.
        """
        _check_numbers(folds, seeds)
        parts = self.parts(folds[0], seeds[0])
        sizes = {part: len(records) for part, records in parts.items()}
        some = 4 * self.settings.batch_size
        few = {part: records[:: -(-len(records) // some)] for part, records in parts.items()}
        settings = changed(self.settings, seed=seeds[0], epochs=2)
        clock = _Clock()
        with TemporaryDirectory() as folder:
            train(settings, few, Path(folder) / "trial", progress=progress, callbacks=[clock])
        seconds = clock.times[-1] - clock.times[-2]
        whole = seconds * sizes["train"] / len(few["train"]) * self.settings.epochs * len(folds) * len(seeds)
        return (
            f"{self.task}, configuration {self.key}\n{json.dumps(self.configuration['settings'])}\n"
            f"fold {folds[0]}: {', '.join(f'{size:,} for {part}' for part, size in sizes.items())}\n"
            f"an epoch of {len(few['train'])} crystals took {seconds:.2f} s; folds: {len(folds)}, seeds: {len(seeds)}, "
            f"epochs: {self.settings.epochs} would take roughly {_duration(whole)} on this machine"
        )


class _Clock(Callback):
    """Note when each epoch is done, validation included."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One epoch more."""
        self.times.append(time.perf_counter())


def read_predictions(path: Path, task: str, key: str, fold: int, seed: int) -> dict[str, Any]:
    """Read what was kept of a fold, and check that it is whole and of this configuration.

    Raises:
        ValueError: if it is not; says what to do.
    """
    try:
        content = json.loads(path.read_text())
        digest = content.pop("sha256")
        is_of = (content["task"], content["configuration"], content["fold"], content["seed"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PrismError(f"{path} is damaged ({error}); delete it, and the fold is predicted again") from error
    if digest != key_of(content):
        raise PrismError(f"{path} is damaged or was edited; delete it, and the fold is predicted again")
    if is_of != (task, key, fold, seed):
        raise PrismError(
            f"{path} is of task {is_of[0]}, configuration {is_of[1]}, fold {is_of[2]}, seed {is_of[3]}, not of {task}, "
            f"{key}, {fold}, {seed}: configurations are not mixed; move it away"
        )
    return content


def _check_numbers(folds: Sequence[int], seeds: Sequence[int]) -> None:
    for fold in folds:
        if fold not in range(FOLDS):
            raise PrismError(f"Matbench has the folds 0 to {FOLDS - 1}, got {fold}")
    if min(seeds, default=0) < 0:
        raise PrismError(f"a seed is a whole number of at least 0, got {min(seeds)}")
    for name, numbers in (("fold", folds), ("seed", seeds)):
        if not numbers or len(set(numbers)) < len(numbers):
            raise PrismError(f"give each {name} once, got {list(numbers)}")


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
