"""What a task is: one kind of thing to learn, with its data, model, loss, scores, report, defaults and checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from prism_plugin.errors import PrismError

if TYPE_CHECKING:
    from ase import Atoms
    from torch import Tensor

    from prism_plugin.data.loading import GraphDataset
    from prism_plugin.data.records import Record
    from prism_plugin.graph.crystals import CrystalBatch
    from prism_plugin.model import PRISM
    from prism_plugin.settings import TrainingSettings
    from prism_plugin.tasks.scores import Scores

__all__ = ["CALIBRATED_ON", "Loss", "Task", "check_initial_model"]

# Training structures on which the scales of a new model are measured.
CALIBRATED_ON = 32


class Loss(Protocol):
    """Loss of each crystal of a batch."""

    @property
    def metric(self) -> str:
        """Name of the loss in logs."""

    def __call__(self, model: PRISM, crystals: CrystalBatch, targets: Any, training: bool) -> Tensor:
        """Compute the losses.

        Args:
            model: the model.
            crystals: the batch.
            targets: of the crystals, as the data set makes them.
            training: whether the losses will be differentiated with respect to the weights.

        Returns:
            Shape ``(crystals,)``.
        """


class Task(ABC):
    """One kind of thing to learn.

    A new one is a file with a subclass, and a row in :data:`prism_plugin.tasks.TASKS`. The modules of tasks import
    torch where they use it, because options are checked without it.

    Attributes:
        name: what models and data sets call it.
        metric: name of the loss in logs; what decides which epoch is the best.
        model_options: class of the options of its models.
        one_number: whether a crystal's label is one number.
        presets: whether the presets are of this task.
        differentiates: whether predictions are gradients, which inference mode does not allow.
        recipe: how ``prism train`` learns it where nothing else is said.
        fine_tuning: the same from an initial model.
        continuing: the same from an initial model of the same property; as ``fine_tuning`` if empty.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    model_options: ClassVar[type]
    one_number: ClassVar[bool] = True
    presets: ClassVar[bool] = True
    differentiates: ClassVar[bool] = False
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    fine_tuning: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    continuing: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @abstractmethod
    def check_settings(self, settings: TrainingSettings) -> None:
        """Raise ValueError if the settings of a training do not fit the task."""

    @abstractmethod
    def read_label(self, row: Mapping[str, Any], target: str, atoms: Atoms) -> tuple[Any, dict[str, Any]]:
        """Read the label of a crystal from the values of its row.

        Returns:
            The target, None where it is missing, and further arguments of :class:`~prism_plugin.data.Record`.
        """

    @abstractmethod
    def label_words(self, target: str) -> tuple[str, str]:
        """Return what a row must have, and a hint for data in which no row has it."""

    @abstractmethod
    def check_records(self, settings: TrainingSettings, parts: Mapping[str, Sequence[Record]]) -> None:
        """Raise ValueError if the crystals of a training cannot be learned from."""

    def check_labels(self, parts: Mapping[str, Sequence[Record]]) -> None:
        """Raise ValueError if a label is none of this task."""
        for part, records in parts.items():
            for record in records:
                if problem := self.label_problem(record):
                    raise PrismError(f"crystal {record.name!r} of the {part} part has {problem}")

    def label_problem(self, record: Record) -> str:
        """Describe what is wrong with a label; an empty text if it is one of this task."""
        return ""

    def unit_of(self, model: PRISM) -> str:
        """Return the unit of a model's predictions, for people."""
        return model.unit or "no unit"

    @abstractmethod
    def metric_label(self, unit: str) -> str:
        """Return the label of the loss in a picture."""

    @abstractmethod
    def target_name(self, model: PRISM) -> str:
        """Return the key of a model's labels in data files."""

    def continues(self, settings: TrainingSettings, init: PRISM | None) -> bool:
        """Whether a training learns what its initial model has learned already, perhaps by other labels."""
        if init is None or self.target_name(init) != settings.target:
            return False
        return settings.unit in ("", init.unit)

    @abstractmethod
    def new_model(
        self, settings: TrainingSettings, records: Sequence[Record], elements: Sequence[str], init: PRISM | None
    ) -> PRISM:
        """Make a model for its training data, or a copy of ``init`` for them.

        Args:
            settings: of the training.
            records: its crystals.
            elements: symbols of the elements among them.
            init: the initial model.

        Raises:
            ValueError: if ``settings.model`` contradicts ``init``, or ``init`` is no start for this task.
        """

    def default_loss(self) -> Loss:
        """Make a loss that depends on no settings.

        Raises:
            ValueError: if there is none.
        """
        raise PrismError(f"a {self.name} has a loss with weights: give it")

    @abstractmethod
    def loss(self, settings: TrainingSettings, dataset: GraphDataset) -> Loss:
        """Make the loss of a training."""

    @abstractmethod
    def report(
        self,
        model: PRISM,
        datasets: Mapping[str, GraphDataset],
        folder: Path,
        batch_size: int,
        progress: bool,
        mean: float | None = None,
    ) -> Scores:
        """Predict every part; write ``predictions.csv`` and pictures.

        Args:
            model: the model.
            datasets: the parts, built with the model's cutoffs.
            folder: where the files go.
            batch_size: most crystals of one batch.
            progress: whether there are progress bars.
            mean: what the mean predictor says; None takes each part's own mean, the best that a constant can do.

        Returns:
            The scores of each part.

        Raises:
            ValueError: if a prediction is not finite; names the first.
        """


# Arguments in which a model may differ from its initial one: they have no weights.
_FREE = ("dropout", "minimum")
# Arguments, what they may have been and what they may become.
_CHANGES = {("readout", "mean", "attention"), ("task_type", "regression", "classification")}


def check_initial_model(settings: TrainingSettings, init: PRISM) -> None:
    """Raise ValueError if the settings ask for another model than the initial one.

    Dropout and minimum may be others, attention may be added to a mean over the atoms (it begins as that), and a model
    of a number may become one of two classes: what it read out is then their log-odds.
    """
    had = init.arguments
    for name, value in settings.model.items():
        if name in _FREE or (name, had.get(name), value) in _CHANGES:
            continue
        if (tuple(value) if isinstance(value, (list, tuple)) else value) != had[name]:
            raise PrismError(
                f"the initial model has {name} = {had[name]!r}, the settings ask for {value!r}; leave it out"
            )
