"""What ``prism train`` was asked for: named values -> data, settings, initial model.

They are kept in the run folder as ``config.json``, from which it can be resumed or, by ``--config``, repeated. Values
come from four places, of which a later one wins: the defaults, a preset, a config file, the command line.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prism_plugin.config import OF_CARTNET
from prism_plugin.data import Record, assign_splits, read_records, split_records
from prism_plugin.data.datasets import DATASETS, load_named
from prism_plugin.data.download import cache_home
from prism_plugin.data.records import elements_of
from prism_plugin.errors import PrismError
from prism_plugin.files import open_text, replaced
from prism_plugin.preset import presets
from prism_plugin.pretrained import load, model_names
from prism_plugin.schema import changed, check_values, described, did_you_mean, resumable
from prism_plugin.settings import KEYS_OF_LABELS, DataOptions, TrainingSettings
from prism_plugin.tasks import PES, Task, task_of_target
from prism_plugin.tasks.regression import Regression

__all__ = ["Job", "label_keys", "load_parts", "read_config"]

_CONFIG = "config.json"
_SETTINGS = tuple(described(TrainingSettings))
_OPTIONS = {**described(TrainingSettings), **described(DataOptions)}
KEYS = tuple(_OPTIONS)
TABLES = tuple(name for name, (default, *_) in _OPTIONS.items() if isinstance(default, dict))
# What may change when a run goes on: where it runs, and the epochs of a training without a schedule.
RESUMABLE = ("epochs", *resumable(TrainingSettings), *resumable(DataOptions))


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a TOML or JSON file of named values.

    The names are those of the command line (``batch-size`` or ``batch_size``), with tables ``model``, ``options`` and
    ``weights`` in place of ``--set``, ``--option`` and ``--weight``.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file, has an unknown name, or a value is not what its option wants.
    """
    path = Path(path)
    try:
        with open_text(path) as file:
            text = file.read()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise PrismError(f"the config file {str(path)!r} is no {path.suffix[1:] or 'toml'}: {error}") from error
    if not isinstance(values, dict):
        raise PrismError(f"the config file {str(path)!r} must hold named values, got {type(values).__name__}")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    for name, value in values.items():
        if name not in KEYS:
            raise PrismError(f"unknown name {name!r} in the config file {str(path)!r}; {did_you_mean(name, KEYS)}")
        try:
            check_values(TrainingSettings if name in _SETTINGS else DataOptions, {name: value})
        except ValueError as error:
            raise PrismError(f"in the config file {str(path)!r}: {error}") from error
    return values


@dataclass(frozen=True)
class Job:
    """One training: where its data are, and how to train.

    Attributes:
        values: everything that was given, by name.
        settings: what :func:`~prism_plugin.training.train` needs of it.
    """

    values: Mapping[str, Any]
    settings: TrainingSettings

    @staticmethod
    def make(given: Mapping[str, Any], config: Mapping[str, Any] | None = None, complete: bool = False) -> Job:
        """Merge what was given with a config file, a preset and the defaults.

        Args:
            given: values by name, of the command line.
            config: those of a config file.
            complete: whether ``given`` are the values of a run that began, to which no recipe is added any more.

        Raises:
            ValueError: if data or target are missing, or a value is bad.
        """
        config = config or {}
        both = {**config, **given}
        preset = both.get("preset")
        values: dict[str, Any] = {}
        if not complete:
            task = task_of_target(_target(both))
            if preset is not None and not task.presets:
                raise PrismError("the presets are of properties: leave the preset out for a potential")
            recipe = _recipe(task, both)
            values = {name: dict(value) if isinstance(value, Mapping) else value for name, value in recipe.items()}
            model = {**config.get("model", {}), **given.get("model", {})}
            if "model" in values and model.get("backbone", "cartnet") != "cartnet":  # it has edges of its own
                values["model"] = {name: one for name, one in values["model"].items() if name not in OF_CARTNET}
        if preset is not None:
            if preset not in presets:
                raise PrismError(f"no preset {preset!r}; choose one of: {', '.join(presets)}")
            row = presets[preset]
            values = {"data": row.data, "target": row.target, **row.settings()}
        for layer in (config, given):
            optimizer = layer.get("optimizer", values.get("optimizer"))
            if optimizer != values.get("optimizer"):  # the options of another optimizer mean nothing to it
                values = {
                    name: value for name, value in values.items() if name not in ("lr", "options", "schedule", "clip")
                }
            tables = {name: {**values.get(name, {}), **layer[name]} for name in TABLES if name in layer}
            values = {**values, **layer, **tables}
        known = DATASETS.get(values.get("data", ""))
        if _target(values) is not None:
            values["target"] = _target(values)
        for name in ("data", "target"):
            if name not in values:
                raise PrismError(f"--{name} is missing; give it, or a --preset")
        if known is not None:
            values.setdefault("unit", known.unit(values["target"]))
            task_type = known.targets[values["target"]].task_type
            if task_type != Regression.name:
                values["model"] = {"task_type": task_type, **values.get("model", {})}
            if known.downloaded:
                values.setdefault("cache", str(cache_home() / "graphs"))
        settings = {name: values[name] for name in _SETTINGS if name in values}
        return Job(values, TrainingSettings(**settings))

    def load(self) -> tuple[TrainingSettings, dict[str, list[Record]]]:
        """Read or download the data, and divide them; give the settings, completed by what only the data tell."""
        names = ("fold", "splits", "skip_missing")
        some = {name: self.values[name] for name in names if name in self.values}
        parts = load_parts(
            self.values["data"], self.settings.target, seed=self.settings.seed, keys=label_keys(self.values), **some
        )
        if str(self.values["data"]) not in DATASETS or "init" in self.values:
            return self.settings, parts
        return self.settings_for(parts), parts

    def settings_for(self, parts: Mapping[str, Sequence[Record]]) -> TrainingSettings:
        """Return the settings, with a model that knows the elements of all parts.

        A published split cannot be changed where a part for validation has an element that training lacks.
        """
        elements = elements_of(record for records in parts.values() for record in records)
        return changed(self.settings, model={"element_types": elements, **self.settings.model})

    def save(self, folder: Path) -> None:
        """Keep the values in the run folder; paths are kept as they are from everywhere."""
        kept = dict(self.values)
        names = {*DATASETS, *model_names()}
        for name in ("data", "init", "splits", "cache"):
            if name in kept and kept[name] not in names and (name == "cache" or Path(kept[name]).exists()):
                kept[name] = str(Path(kept[name]).resolve())
        with replaced(folder / _CONFIG) as path:
            path.write_text(json.dumps(kept, indent=1, default=list))

    @staticmethod
    def resumed(folder: str | Path, changes: Mapping[str, Any]) -> Job:
        """Read the job of a run that was interrupted.

        Args:
            folder: the run folder.
            changes: new values; of :data:`RESUMABLE` only.

        Raises:
            ValueError: if there is no such run, or something else is to change.
        """
        folder = Path(folder)
        if not (folder / _CONFIG).exists():
            raise PrismError(f"there is no run of prism train in {str(folder)!r}: it has no {_CONFIG}")
        fixed = sorted(set(changes) - set(RESUMABLE))
        if fixed:
            raise PrismError(
                f"a run goes on with its own {', '.join(fixed)}; beside --resume only these may change: "
                f"{', '.join(RESUMABLE)}"
            )
        values = read_config(folder / _CONFIG)
        preset = {"preset": values.pop("preset")} if "preset" in values else {}  # its values are among the others
        job = Job.make({**values, **changes}, complete=True)
        return replace(job, values={**job.values, **preset})


def _recipe(task: Task, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how a task is learned where nothing else is said."""
    if "init" not in values:
        return task.recipe
    if task.continuing and task.target_name(load(values["init"])) == _target(values):
        return task.continuing
    return task.fine_tuning


def label_keys(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what a file calls its labels, of the options ``target_key``, ``energy_key`` and so on."""
    given = {name.removesuffix("_key"): values.get(name) for name in KEYS_OF_LABELS}
    keys = {name: key for name, key in given.items() if key is not None}
    if "target" in keys:
        if values["target"] == PES:
            raise PrismError(f"the target {PES!r} is of several labels: give energy_key, forces_key, stress_key")
        keys[values["target"]] = keys.pop("target")
    return keys


def _target(values: Mapping[str, Any]) -> str | None:
    """Return what is to be predicted: as given, or the only target of a data set."""
    known = DATASETS.get(values.get("data", ""))
    only = list(known.targets) if known is not None and len(known.targets) == 1 else [None]
    return values.get("target", only[0])


def load_parts(
    data: str | Path,
    target: str,
    fold: int | None = None,
    splits: str | Path | None = None,
    skip_missing: bool = False,
    seed: int = 0,
    keys: Mapping[str, str] | None = None,
) -> dict[str, list[Record]]:
    """Load crystals of a named data set, or of a file or folder, in their parts.

    Args:
        data: a key of :data:`~prism_plugin.data.datasets.DATASETS`, or what
            :func:`~prism_plugin.data.read_records` reads.
        target: the property.
        fold: of a Matbench task.
        splits: JSON file with the names of each part (:func:`~prism_plugin.data.assign_splits`).
        skip_missing: leave out rows of a file without the target.
        seed: of the split, where neither the data nor ``splits`` say it.
        keys: what a file calls the target, or ``"energy"``, ``"forces"`` or ``"stress"``.

    Returns:
        Records of ``"train"``, ``"val"`` and ``"test"``.

    Raises:
        OSError: if a file cannot be had.
        ValueError: if data or options are bad.
    """
    if str(data) in DATASETS:
        if keys:
            raise PrismError(f"the data set {str(data)!r} knows its own names: leave {', '.join(keys)} out")
        parts = load_named(str(data), target, fold, seed)
        if splits is None:
            return parts
        records = [record for part in parts.values() for record in part]
    else:
        if fold is not None:
            raise PrismError("only Matbench tasks have folds; leave --fold out, or give --splits")
        records = read_records(data, target, skip_missing, keys)
    return split_records(records if splits is None else assign_splits(records, splits), seed)
