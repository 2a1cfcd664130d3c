"""Tasks: what can be learned, one object each with its data, model, loss, scores, report, defaults and checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prism_plugin.errors import PrismError
from prism_plugin.tasks.classification import Classification
from prism_plugin.tasks.potential import PES, Potential
from prism_plugin.tasks.regression import Regression
from prism_plugin.tasks.task import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prism_plugin.data.records import Record
    from prism_plugin.model import PRISM
    from prism_plugin.settings import TrainingSettings

__all__ = ["PES", "TASKS", "Task", "task_of", "task_of_records", "task_of_target"]

TASKS: dict[str, Task] = {task.name: task for task in (Regression(), Classification(), Potential())}


def task_of_target(target: str | None, task_type: str = Regression.name) -> Task:
    """Return the task of a target in data files; ``task_type`` says whether a property is a number or a class.

    Raises:
        ValueError: if there is no such type.
    """
    if target == PES:
        return TASKS[Potential.name]
    properties = [name for name, task in TASKS.items() if task.one_number]
    if task_type not in properties:
        raise PrismError(f"unknown task_type {task_type!r}; choose one of: {', '.join(map(repr, properties))}")
    return TASKS[task_type]


def task_of(settings: TrainingSettings, init: PRISM | None = None) -> Task:
    """Return the task of a training, from an initial model where there is one."""
    default = Regression.name if init is None else init.task_type
    return task_of_target(settings.target, settings.model.get("task_type", default))


def task_of_records(model: PRISM, records: Sequence[Record]) -> Task:
    """Return the task by which a model is scored on crystals: as a potential where they have forces."""
    return TASKS[Potential.name if any(record.forces is not None for record in records) else model.task_type]
