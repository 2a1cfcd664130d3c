"""A potential energy surface: Huber loss of energies, forces and stresses together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prism_plugin.config import PotentialOptions
from prism_plugin.errors import PrismError
from prism_plugin.files import write_table
from prism_plugin.schema import did_you_mean
from prism_plugin.tasks.scores import Scores, check_finite, rms
from prism_plugin.tasks.task import CALIBRATED_ON, Loss, Task, check_initial_model

if TYPE_CHECKING:
    from ase import Atoms
    from torch import Tensor

    from prism_plugin.data.loading import EnergyLabels, GraphDataset
    from prism_plugin.data.records import Record
    from prism_plugin.graph.crystals import CrystalBatch
    from prism_plugin.model import PRISM
    from prism_plugin.settings import TrainingSettings

__all__ = ["PES", "WEIGHTS", "Potential", "PotentialLoss", "predict_potential", "score_potential"]

PES = "pes"  # the target of this name is energy, forces and, where there is one, stress
WEIGHTS = {"energy": 40.0, "forces": 1.0, "stress": 0.5}
_LARGEST_FORCE = 1000.0  # eV/Å
_LARGEST_STRESS = 6.0  # eV/Å^3; some 1,000 GPa


@dataclass
class PotentialLoss:
    """Loss of energies, forces and stresses; each evaluation differentiates the energy, a training step twice.

    The loss of a crystal is in units of the model's ``std`` s (eV), with the Huber loss h of threshold t, divided by t
    (x^2 / 2t, from |x| = t on |x| - t / 2):
    w_energy h(dE / N s) + w_forces / (3 M) sum_i h(dF_i / s) + w_stress mean(h(dW / N s)), with N the crystal's atoms,
    M the mean of N over the training crystals (every atom's force counts alike) and W the virial, stress times volume.
    An unknown one counts nothing.

    Attributes:
        weights: w of ``"energy"``, ``"forces"`` and ``"stress"``.
        mean_atoms: M.
        threshold: t.
    """

    weights: Mapping[str, float]
    mean_atoms: float
    threshold: float = 1.0
    metric: ClassVar[str] = "loss"

    def __call__(self, model: PRISM, crystals: CrystalBatch, targets: EnergyLabels, training: bool) -> Tensor:
        """Compute the losses, shape ``(crystals,)``."""
        import torch

        from prism_plugin.forces import energies_with_gradients

        found = energies_with_gradients(model, crystals, create_graph=training)
        scale = model.std
        sizes = crystals.atoms_per_crystal.double()
        of_energy = self._huber((found.energy - targets.energy) / sizes / scale)
        of_atoms = self._huber((found.forces - targets.forces) / scale).sum(dim=1) / (3 * self.mean_atoms)
        of_forces = torch.zeros_like(of_energy).index_add(0, crystals.atom_crystal, of_atoms)
        difference = torch.where(targets.virial.isnan(), 0, found.virial - targets.virial)
        of_stress = self._huber(difference / sizes.view(-1, 1, 1) / scale).mean(dim=(1, 2))
        weights = self.weights
        return weights["energy"] * of_energy + weights["forces"] * of_forces + weights["stress"] * of_stress

    def _huber(self, values: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        zeros = torch.zeros_like(values)
        return functional.huber_loss(values, zeros, reduction="none", delta=self.threshold) / self.threshold


class Potential(Task):
    """Learn energies, forces and stresses together."""

    name: ClassVar[str] = "potential"
    metric: ClassVar[str] = "loss"
    model_options = PotentialOptions
    one_number = False
    presets = False
    differentiates = True
    # What learned most of what was tried (docs/potential.md).
    recipe = MappingProxyType(
        {"optimizer": "muon", "lr": 2e-2, "options": {"weight_decay": 0.1}, "batch_size": 4, "epochs": 60, "clip": 1.0}
    )
    # At the rate from scratch it would first undo what the initial model has learned.
    fine_tuning = MappingProxyType({**recipe, "lr": 1e-3})

    def check_settings(self, settings: TrainingSettings) -> None:
        """Raise ValueError if the settings have what a potential has not."""
        if settings.unit not in ("", "eV"):
            raise PrismError(f"a potential has eV and eV/Å; leave the unit {settings.unit!r} out, and convert the data")
        for name in settings.weights:
            if name not in WEIGHTS:
                raise PrismError(f"unknown weight {name!r}; {did_you_mean(name, WEIGHTS)}")
        if settings.batchnorm_batches is not None:
            raise PrismError("a potential has no BatchNorm: leave batchnorm_batches out")
        if not any({**WEIGHTS, **settings.weights}.values()):
            raise PrismError("all weights are 0: there is nothing to learn")
        if settings.precision != "32-true":
            raise PrismError("a potential needs precision '32-true': differences of gradients are noise in bfloat16")
        if settings.recompute:
            raise PrismError("recompute is not for potentials: forces need the activations of all edges twice")

    def read_label(self, row: Mapping[str, Any], target: str, atoms: Atoms) -> tuple[Any, dict[str, Any]]:
        """Read energy, forces and stress of a crystal from the values of its row."""
        gradients = {key: row.get(key) for key in ("forces", "stress")}
        virial = next((row[key] for key in ("virial", "virials") if row.get(key) is not None), None)
        if virial is not None and gradients["stress"] is None:
            if not atoms.cell.volume:
                raise PrismError("a virial needs a cell with a volume")
            gradients["stress"] = -np.asarray(virial, dtype=float) / atoms.cell.volume
        return None if gradients["forces"] is None else row.get("energy"), gradients

    def label_words(self, target: str) -> tuple[str, str]:
        """Return what a row must have, and a hint for data in which no row has it."""
        return (
            "pair 'energy' and 'forces'",
            "; where they have other names: --energy-key NAME --forces-key NAME (and --stress-key NAME); for energies "
            "alone: --target energy --unit eV --set readout=sum",
        )

    def check_records(self, settings: TrainingSettings, parts: Mapping[str, Sequence[Record]]) -> None:
        """Raise ValueError unless all crystals have forces of a sane size, and the weights something to weigh."""
        for split, records in parts.items():
            for record in records:
                if record.forces is None:
                    raise PrismError(
                        f"crystal {record.name!r} of the {split} part has no forces: the target {PES!r}, and no "
                        f"other, needs them for all crystals (read_records(path, {PES!r}))"
                    )
                largest = np.abs(record.forces).max()
                if largest > _LARGEST_FORCE:
                    raise PrismError(
                        f"crystal {record.name!r} of the {split} part has a force of {largest:.3g} eV/Å: is it "
                        "broken, or in another unit? Remove or convert it"
                    )
                if record.stress is not None and np.abs(record.stress).max() > _LARGEST_STRESS:
                    raise PrismError(
                        f"crystal {record.name!r} of the {split} part has a stress of "
                        f"{np.abs(record.stress).max():.3g} eV/Å^3: is it in GPa or kbar? Convert it "
                        "(1 GPa = 0.00624 eV/Å^3)"
                    )
        if any(record.stress is not None for record in parts["train"]):
            return
        weights = {**WEIGHTS, **settings.weights}
        if settings.weights.get("stress") or not (weights["energy"] or weights["forces"]):
            raise PrismError("no training crystal has a stress: leave the weight of stress out, and give others")

    def metric_label(self, unit: str) -> str:
        """Return the label of the loss in a picture."""
        return "loss of energies, forces, stresses"

    def target_name(self, model: PRISM) -> str:
        """Return the key of the labels in data files."""
        return PES

    def new_model(
        self, settings: TrainingSettings, records: Sequence[Record], elements: Sequence[str], init: PRISM | None
    ) -> PRISM:
        """Make a potential with the elements' energies and the scale of its training data.

        Or a copy of ``init``, whose elements' energies are fitted to what it leaves of the training energies.
        """
        from prism_plugin.potential import PRISMPotential, element_shares, fit_element_refs

        crystals = [record.atoms for record in records]
        energies = np.array([record.target for record in records])
        if init is not None:
            return self._from_initial(settings, init, crystals, energies)
        elements = tuple(settings.model.get("element_types") or elements)
        arguments: dict[str, Any] = {"element_types": elements, "repulsion": "zbl"}
        if settings.normalize:
            refs = fit_element_refs(crystals, energies, elements)
            sizes = np.array([len(atoms) for atoms in crystals])
            forces = np.concatenate([record.forces for record in records if record.forces is not None])
            # Where symmetry leaves no forces, as along an equation of state, the energies give the scale.
            left = energies / sizes - element_shares(crystals, elements) @ refs
            scale = max(rms(forces), np.std(left))
            arguments |= {"element_refs": refs, "std": float(scale) or 1.0}
        model = PRISMPotential(**{**arguments, **settings.model})
        model.calibrate(crystals[:CALIBRATED_ON])
        return model

    def _from_initial(self, settings: TrainingSettings, init: PRISM, crystals: list[Any], energies: Any) -> PRISM:
        from prism_plugin.potential import PRISMPotential, fit_element_refs, moved_refs

        if not isinstance(init, PRISMPotential):
            raise PrismError("forces need a potential to start from: a model that was trained with the target 'pes'")
        check_initial_model(settings, init)
        changed = init.arguments
        if settings.normalize:  # the data may count energies from elsewhere
            left = energies - init.predict_structure(crystals).double().cpu().numpy()
            changed["element_refs"] = moved_refs(init, fit_element_refs(crystals, left, init.element_types))
        model = PRISMPotential(**changed)
        model.load_state_dict(init.state_dict())
        return model

    def loss(self, settings: TrainingSettings, dataset: GraphDataset) -> Loss:
        """Make the loss of a training."""
        return PotentialLoss({**WEIGHTS, **settings.weights}, float(dataset.graphs.atoms.mean()), settings.huber)

    def report(
        self,
        model: PRISM,
        datasets: Mapping[str, GraphDataset],
        folder: Path,
        batch_size: int,
        progress: bool,
        mean: float | None = None,
    ) -> Scores:
        """Predict every part; write ``predictions.csv`` and ``parity.png``, of energies, forces and stresses."""
        from prism_plugin.tasks.plots import plot_potential

        rows: list[tuple[Any, ...]] = [("split", "name", "atoms", "energy", "predicted energy", "forces rmse")]
        scores: Scores = {}
        pairs: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
        for name, dataset in datasets.items():
            found = predict_potential(model, dataset, batch_size, progress and f"predict {name}")
            sizes = dataset.graphs.atoms
            energies = dataset.targets.cpu().numpy()
            forces = np.concatenate([np.asarray(of_crystal) for of_crystal in dataset.forces])
            stresses = dataset.stress(range(len(dataset))).numpy()
            errors = np.split(found["forces"] - forces, np.cumsum(sizes)[:-1])
            rmse = np.array([rms(error) for error in errors])
            check_finite(found["energy"] + rmse, dataset.names, name)
            pairs[name] = {
                "energies": (energies / sizes, found["energy"] / sizes),
                "forces": (forces, found["forces"]),
                "stresses": (np.where(np.isnan(found["stress"]), np.nan, stresses), found["stress"]),
            }
            scores[name] = score_potential(**pairs[name])
            for crystal, *numbers in zip(dataset.names, sizes, energies, found["energy"], rmse, strict=True):
                rows.append((name, crystal, *(f"{number:.12g}" for number in numbers)))
        write_table(folder / "predictions.csv", rows)
        plot_potential(pairs, scores, folder / "parity.png")
        return scores


def predict_potential(
    model: PRISM, dataset: GraphDataset, batch_size: int, progress: str | bool
) -> dict[str, np.ndarray]:
    """Total energies, forces and stresses of all crystals, in order."""
    from tqdm import tqdm

    from prism_plugin.forces import EDGES_WITH_GRADIENTS, energies_with_gradients, plain_computation

    answers: dict[str, list[np.ndarray]] = {"energy": [], "forces": [], "stress": []}
    with (
        plain_computation(model),
        tqdm(total=len(dataset), desc=str(progress), unit="crystal", disable=not progress) as bar,
    ):
        for batch in dataset.graphs.split(batch_size, EDGES_WITH_GRADIENTS):
            found = energies_with_gradients(model, batch)
            for name, of_batch in answers.items():
                of_batch.append(getattr(found, name).double().cpu().numpy())
            bar.update(len(batch))
    return {name: np.concatenate(values) for name, values in answers.items()}


def score_potential(
    energies: tuple[np.ndarray, np.ndarray],
    forces: tuple[np.ndarray, np.ndarray],
    stresses: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """Score a potential; each argument is references and predictions.

    Args:
        energies: eV per atom, shape ``(crystals,)`` each.
        forces: eV/Å, shape ``(atoms, 3)`` each.
        stresses: eV/Å^3, shape ``(crystals, 3, 3)`` each; a reference that is NaN is left out.

    Returns:
        MAE and RMSE of energies (meV/atom) and of the components of the forces (eV/Å), beside the root mean square of
        the reference forces; RMSE of the stresses' components (GPa), None where none is known; number of crystals.
    """
    from ase.units import GPa

    of_energy, of_forces, of_stress = (predicted - given for given, predicted in (energies, forces, stresses))
    of_stress = of_stress[np.isfinite(stresses[0])]
    return {
        "energy_mae": 1000 * float(np.abs(of_energy).mean()),
        "energy_rmse": 1000 * rms(of_energy),
        "forces_mae": float(np.abs(of_forces).mean()),
        "forces_rmse": rms(of_forces),
        "rms_forces": rms(forces[0]),
        "stress_rmse": rms(of_stress) / GPa if len(of_stress) else None,
        "crystals": len(of_energy),
    }
