"""One number for each crystal: L1 loss on the raw target; MAE and RMSE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prism_plugin.config import INVARIANT, ModelOptions
from prism_plugin.errors import PrismError
from prism_plugin.files import write_table
from prism_plugin.tasks.scores import Scores, check_finite, rms
from prism_plugin.tasks.task import CALIBRATED_ON, Loss, Task, check_initial_model

# What other parts of the package or a data set know; a property may have any other.
UNITS = ("eV", "eV/atom", "meV/atom", "GPa", "log10(GPa)", "1/cm")

if TYPE_CHECKING:
    from ase import Atoms
    from torch import Tensor

    from prism_plugin.data.loading import GraphDataset
    from prism_plugin.data.records import Record
    from prism_plugin.graph.crystals import CrystalBatch
    from prism_plugin.model import PRISM
    from prism_plugin.settings import TrainingSettings

__all__ = ["L1Loss", "Regression"]


_MUON = {"optimizer": "muon", "options": {"weight_decay": 0.1}, "batch_size": 16, "epochs": 40, "clip": 1.0}


class L1Loss:
    """|prediction - target| of each crystal."""

    metric = "mae"

    def __call__(self, model: PRISM, crystals: CrystalBatch, targets: Tensor, training: bool) -> Tensor:
        """Compute the losses, shape ``(crystals,)``."""
        output = model.read_out(crystals)
        return self.of_outputs(output, targets.to(output))

    def of_outputs(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the losses of what a model reads out; all of shape ``(crystals,)``."""
        from torch.nn import functional

        return functional.l1_loss(outputs, targets, reduction="none")


class Regression(Task):
    """Predict one number for each crystal."""

    name: ClassVar[str] = "regression"
    metric: ClassVar[str] = "mae"
    model_options = ModelOptions
    # How prism train learns a property, where nothing else is said: the sizes of the models that ship with the parts of
    # our own (docs/ablations.md; the paper's own sizes learned less here, and take many times as long).
    recipe = MappingProxyType(
        {
            "model": MappingProxyType(
                {
                    "dim": 128,
                    "num_layers": 3,
                    "num_rbf": 32,
                    "cutoff": 4.0,
                    **INVARIANT,
                }
            ),
            "lr": 4e-3,
            "batchnorm_batches": 100,
            **_MUON,
        }
    )
    # The same with --init (benchmarks/fine_tuning.py).
    fine_tuning = MappingProxyType({"lr": 2e-3, **_MUON})
    # The same from a model of this property, whose weights are nearly right (docs/default_model.md).
    continuing = MappingProxyType({**fine_tuning, "lr": 5e-5, "epochs": 10})

    def check_settings(self, settings: TrainingSettings) -> None:
        """Raise ValueError if the settings have what only a potential has."""
        if "element_refs" in settings.model:
            raise PrismError("element_refs are for potentials (target 'pes'); properties have mean and std")
        if settings.weights:
            raise PrismError(f"weights are for the target 'pes'; the loss of {settings.target!r} has one part only")
        if settings.huber != type(settings).huber:
            raise PrismError(f"huber is for the target 'pes'; the loss of {settings.target!r} has no threshold")
        meant = {unit.lower(): unit for unit in UNITS}.get("".join(settings.unit.lower().split()), settings.unit)
        if meant != settings.unit:
            raise PrismError(f"unknown unit {settings.unit!r}; did you mean {meant!r}?")

    def read_label(self, row: Mapping[str, Any], target: str, atoms: Atoms) -> tuple[Any, dict[str, Any]]:
        """Read the target of a crystal from the values of its row."""
        return row.get(target), {}

    def label_words(self, target: str) -> tuple[str, str]:
        """Return what a row must have."""
        return f"target {target!r}", ""

    def check_records(self, settings: TrainingSettings, parts: Mapping[str, Sequence[Record]]) -> None:
        """Raise ValueError if a crystal has forces."""
        for split, records in parts.items():
            for record in records:
                if record.forces is not None:
                    raise PrismError(
                        f"crystal {record.name!r} of the {split} part has forces: the target 'pes', and no other, "
                        "needs them for all crystals (read_records(path, 'pes'))"
                    )

    def metric_label(self, unit: str) -> str:
        """Return the label of the loss in a picture."""
        return f"MAE ({unit})" if unit else "MAE"

    def target_name(self, model: PRISM) -> str:
        """Return the key of a model's labels in data files."""
        return model.target

    def new_model(
        self, settings: TrainingSettings, records: Sequence[Record], elements: Sequence[str], init: PRISM | None
    ) -> PRISM:
        """Make a model that knows the elements, the mean and the spread of its training data, or a copy of ``init``."""
        from prism_plugin.model import PRISM

        arguments: dict[str, Any] = {"target": settings.target, "unit": settings.unit}
        continues = self.continues(settings, init)
        if init is None:
            arguments["element_types"] = tuple(elements)
        else:
            if init.task != init.task_type:  # made for something else than a property
                raise PrismError(f"a potential is a start for the target 'pes' only, not for {settings.target!r}")
            check_initial_model(settings, init)
            arguments = {**init.arguments, **arguments}
            if not continues:
                arguments["element_refs"] = None  # numbers in the unit of another property
        arguments.update(settings.model)
        given = {"mean", "std"} & settings.model.keys()
        if settings.normalize and not given and not continues:
            total = arguments.get("readout") == "sum"
            targets = np.array([record.target / (len(record.atoms) if total else 1) for record in records])
            arguments["mean"], arguments["std"] = self.scaling(targets)
        elif init is not None and continues and settings.normalize:
            arguments["element_refs"] = self._corrected_refs(init, records)
        model = PRISM(**arguments)
        if init is None:
            model.calibrate([record.atoms for record in records[:CALIBRATED_ON]])
        model.recompute = settings.recompute
        if init is not None:
            model.load_state_dict({**model.state_dict(), **init.state_dict()})  # what it lacks begins as nothing
        return model

    def _corrected_refs(self, init: PRISM, records: Sequence[Record]) -> tuple[float, ...] | None:
        """Fit the elements' numbers of a model of the same property anew, where new labels differ by such."""
        from prism_plugin.potential import element_corrections, moved_refs

        had = init.arguments["element_refs"]
        if init.task_type != self.name or init.readout == "attention":
            return had
        crystals = [record.atoms for record in records]
        left = np.array([record.target for record in records]) - init.predict_structure(crystals).double().cpu().numpy()
        if init.readout == "sum":
            left = left / np.array([len(atoms) for atoms in crystals])
        changes = element_corrections(crystals, left, init.element_types)
        return moved_refs(init, changes) if any(changes) else had

    def scaling(self, targets: np.ndarray) -> tuple[float, float]:
        """Return mean and factor of a model's outputs for its training targets."""
        return float(targets.mean()), float(targets.std()) or 1.0

    def default_loss(self) -> Loss:
        """Make the loss."""
        return L1Loss()

    def loss(self, settings: TrainingSettings, dataset: GraphDataset) -> Loss:
        """Make the loss of a training."""
        return self.default_loss()

    def score(self, target: np.ndarray, prediction: np.ndarray, constant: float) -> dict[str, Any]:
        """Score predictions, and beside them a constant.

        Args:
            target: shape ``(crystals,)``.
            prediction: shape ``(crystals,)``; probabilities in a classification.
            constant: what the mean predictor says.

        Returns:
            MAE and RMSE, the MAE of the mean predictor, and the number of crystals.
        """
        error = prediction - target
        return {
            "mae": float(np.abs(error).mean()),
            "rmse": rms(error),
            "mean_predictor_mae": float(np.abs(target - constant).mean()),
            "crystals": len(target),
        }

    def draw(self, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], model: PRISM, folder: Path) -> str:
        """Draw targets and predictions of each part; return how the prediction is called in a picture."""
        from prism_plugin.tasks.plots import plot_parity

        plot_parity(pairs, model.target, model.unit, folder / "parity.png")
        return model.target

    def report(
        self,
        model: PRISM,
        datasets: Mapping[str, GraphDataset],
        folder: Path,
        batch_size: int,
        progress: bool,
        mean: float | None = None,
    ) -> Scores:
        """Predict every part; write ``predictions.csv``, the picture of :meth:`draw` and ``elements.png``."""
        from prism_plugin.tasks.plots import plot_elements

        rows: list[tuple[Any, ...]] = [("split", "name", "atoms", "target", "prediction")]
        scores: Scores = {}
        pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, dataset in datasets.items():
            prediction = model.predict_graphs(dataset.graphs, batch_size, progress=progress and f"predict {name}")
            predicted, target = prediction.double().cpu().numpy(), dataset.targets.cpu().numpy()
            check_finite(predicted, dataset.names, name)
            pairs[name] = (target, predicted)
            scores[name] = self.score(target, predicted, float(target.mean()) if mean is None else mean)
            for crystal, size, true, given in zip(dataset.names, dataset.graphs.atoms, target, predicted, strict=True):
                rows.append((name, crystal, size, f"{true:.8g}", f"{given:.8g}"))
        write_table(folder / "predictions.csv", rows)
        label = self.draw(pairs, model, folder)
        scored = [name for name in datasets if name != "train"] or list(datasets)
        errors = np.concatenate([pairs[name][1] - pairs[name][0] for name in scored])
        elements = [datasets[name].graphs.elements(index) for name in scored for index in range(len(datasets[name]))]
        plot_elements(elements, errors, label, model.unit, " + ".join(scored), folder / "elements.png")
        return scores
