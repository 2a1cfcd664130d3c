"""PRISM as an ASE calculator.

Returns energies in eV with forces and stress, or the property that the model was trained on, of an ``Atoms`` or a list
of structures; from several models their mean and spread.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes, all_properties
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress
from pymatgen.core import IMolecule, IStructure
from tqdm import tqdm

from prism_plugin.committee import (
    bounded,
    bounds_forces,
    check_committee,
    how_far,
    interval_levels,
    mean_and_spread,
)
from prism_plugin.defaults import DEFAULT_POTENTIAL, POTENTIALS
from prism_plugin.errors import PrismError, warn
from prism_plugin.evaluation import evaluation, halved, split_graphs
from prism_plugin.forces import (
    EDGES_WITH_GRADIENTS,
    EnergyGradients,
    energies_with_gradients,
    learned_forces,
    plain_computation,
    warn_of_forces,
)
from prism_plugin.graph.build import build_graph
from prism_plugin.graph.crystals import CrystalBatch, CrystalGraph
from prism_plugin.graph.doubts import doubts_of
from prism_plugin.graph.structure import Structure, read_structure
from prism_plugin.model import PRISM
from prism_plugin.pretrained import gives_energy, load_on, models_in

__all__ = ["PRISMCalculator"]

_UNKNOWN = ("error", "nan")
_FEATURES = "features"  # of a crystal among a model's results, until its domain was looked at
_Results = dict[str, Any]
_Answer = TypeVar("_Answer")


# A forked child has the locks as they were, but not the threads that would release them: it takes new ones. Nor has it
# the threads of OpenMP, for which the first product of matrices would wait for ever: it computes with one.
_calculators: weakref.WeakSet[PRISMCalculator] = weakref.WeakSet()


def _in_forked_child() -> None:
    calculators = list(_calculators)
    for calculator in calculators:
        calculator._lock = threading.RLock()
    if calculators:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


class PRISMCalculator(Calculator):
    """Energies with forces and stress, or another property, of ASE atoms from a PRISM or a committee of them.

    The default is a universal potential: ``energy`` is the total energy (eV, PBE, as MatPES counts), with forces and
    stress. Its card says how large its errors are and what it must not be used for
    (``prism_plugin/pretrained/prism-universal-pbe/README.md``).

    Others by their names. With ``"prism-mp2018-eform"``, ``energy`` is the number of atoms times the formation energy
    per atom of Materials Project release 2018.6.1 in eV, with the corrections of that time: relative to the elements,
    not to free atoms. It was trained on relaxed crystals only: its forces and stress are exact gradients of its energy,
    but not what relaxes a crystal; that is why they must be asked for, and come with a warning.

    A model whose unit is ``"eV/atom"`` (or ``"eV"`` with ``readout="sum"``) answers ``energy``, ``free_energy`` and
    ``energies`` (per atom; they sum to ``energy``), a potential, and any with ``compute_forces=True``, also ``forces``
    (eV/Å) and, where the cell has three vectors, ``stress`` (Voigt, eV/Å^3). A model of another property answers under
    its own name through ``calc.get_property(name, atoms)`` and refuses ``energy``. Several models answer their mean,
    and as ``energy_std`` (or the property's name with ``_std``) the standard deviation of their answers, that of the
    whole cell; as ``forces_std`` and ``stress_std`` those of each component.
    ``PRISMCalculator(prism_plugin.COMMITTEE)`` has the model of formation energies and two of a smaller recipe. Its
    ``energy_std`` is no error bar: errors are several times as large, and all three can be wrong together
    (``docs/default_model.md``).

    Models that know their domain (those that ship, and every run's with 20 validation crystals) answer ``novelty``, the
    distance from their training crystals (95 % of the validation crystals are nearer than 1), and ``energy_interval``
    (or the property's name with ``_interval``), between which 95 % of crystals like the validation crystals lie; a
    potential instead ``max_force_error`` (eV/Å), which the largest error of a force in 95 % of such crystals does not
    exceed. Far beyond these it promises nothing, and says so once.

    Of what is doubtful in a structure (atoms without a neighbor within the model's cutoff, atoms much nearer or farther
    than in any crystal that the thresholds were measured on) it warns once.

    Safe to share between threads, which then take turns. A forked child answers, too, with one thread.

    Args:
        model: name of a shipped model, folder of a saved one, ``"owner/name"`` of one on the Hugging Face Hub, a PRISM,
            or a list of these that predict one property; ``"committee"`` is :data:`prism_plugin.COMMITTEE`.
        device: ``"auto"`` (CUDA where there is one, else CPU; a given PRISM stays where it is) or a torch device.
        dtype: ``"auto"`` (that of the model), ``"float32"`` or ``"float64"``; a given PRISM of another dtype or device,
            or in train mode, is copied, not changed.
        compute_forces: whether there are forces and stress; None: of potentials, which are trained on forces. Of other
            models of energies it warns.
        batch_size: most crystals that :meth:`predict` computes together.
        on_unknown_element: ``"error"``, or ``"nan"`` for a warning and NaN as the answer.

    Raises:
        FileNotFoundError: if there is no such model.
        TypeError: if ``model`` is neither a name, a folder nor a PRISM.
        ValueError: if the folder holds no PRISM, the models predict different things or are twice the same, forces are
            asked of a property, device, dtype or another option is unknown, or the target's name is one of ASE's
            properties and its unit another.

    Example:
        >>> from ase.build import bulk
        >>> atoms = bulk("NaCl", "rocksalt", a=5.69)
        >>> atoms.calc = PRISMCalculator()
        >>> atoms.get_forces().shape
        (2, 3)
        >>> atoms.calc = PRISMCalculator("prism-mp2018-eform")
        >>> -5.0 < atoms.get_potential_energy() < -3.0
        True
    """

    implemented_properties = ["energy", "free_energy", "energies"]  # noqa: RUF012  # as ASE declares them
    default_parameters = {}  # noqa: RUF012

    def __init__(
        self,
        model: str | Path | PRISM | Sequence[str | Path | PRISM] = DEFAULT_POTENTIAL,
        device: str = "auto",
        dtype: str = "auto",
        compute_forces: bool | None = None,
        batch_size: int = 64,
        on_unknown_element: str = "error",
    ) -> None:
        super().__init__()
        if on_unknown_element not in _UNKNOWN:
            raise PrismError(f"unknown on_unknown_element {on_unknown_element!r}; choose one of: {', '.join(_UNKNOWN)}")
        if not isinstance(batch_size, (int, np.integer)) or isinstance(batch_size, bool) or batch_size < 1:
            raise PrismError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        given = models_in(model)
        if not given:
            raise PrismError("the list of models is empty; leave it out for the default")
        self.models = [load_on(one, device, dtype) for one in given]
        self.model: PRISM = self.models[0]
        self.learned_forces = all(map(learned_forces, self.models))
        self.compute_forces = self.learned_forces if compute_forces is None else bool(compute_forces)
        self.batch_size = batch_size
        self.on_unknown_element = on_unknown_element
        self._warned: set[str] = set()
        self._take_lock()
        # On a CPU the search would only take time from the model: 3 % slower, measured on two cores.
        self._builds_ahead = self.model.device.type != "cpu"
        check_committee(self.models)
        # A list of this instance: the class's own one is shared by every calculator of the process.
        self.implemented_properties = self._properties()
        for one in self.models if self.compute_forces else ():
            warn_of_forces(one)

    def _properties(self) -> list[str]:
        """Names of what this calculator answers."""
        target, unit = self.model.target, self.model.unit
        committee = len(self.models) > 1
        if self._gives_energy:
            gradients = ["forces", "stress"] if self.compute_forces else []
            spreads = [f"{name}_std" for name in ("energy", *gradients)] if committee else []
            return [*type(self).implemented_properties, *gradients, *spreads, *self._of_domain()]
        if target in all_properties:
            raise PrismError(
                f"this model predicts {target!r} in {unit or 'no unit'!r}, which is not ASE's {target}; energies have "
                "the unit 'eV/atom' (or 'eV' with readout='sum'), any other needs a name of its own: train it with "
                "another --target or --unit"
            )
        if self.compute_forces:
            raise PrismError(f"{target} ({unit or 'no unit'}) is no energy and has no forces: leave compute_forces out")
        return [target, *([f"{target}_std"] if committee else []), *self._of_domain()]

    def _of_domain(self) -> list[str]:
        """Names of what is known of how far a structure is from the training crystals."""
        levels = interval_levels(self.models)
        if levels is None:
            return []
        if not bounds_forces(self.models):
            return [*([f"{self._value}_interval"] if levels else []), "novelty"]
        return [*([bounded(self.models)[0]] if levels and self.compute_forces else []), "novelty"]

    @property
    def _gives_energy(self) -> bool:
        return gives_energy(self.model)

    @property
    def _value(self) -> str:
        """Name of what the models predict, among the results."""
        return "energy" if self._gives_energy else self.model.target

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Refuse to change: what a calculator is made of is given when it is made.

        Raises:
            ValueError: if there is anything to set.
        """
        if kwargs:
            raise PrismError(
                f"a PRISMCalculator keeps what it was made of: make another, PRISMCalculator(model, {', '.join(kwargs)}"
                "=...)"
            )
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock, which cannot be pickled or copied."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a lock of its own."""
        self.__dict__.update(state)
        self._take_lock()

    def _take_lock(self) -> None:
        self._lock = threading.RLock()
        _calculators.add(self)

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """Return one property; all of ASE's ``get_...`` methods come here.

        Raises:
            PropertyNotImplementedError: if the model does not predict it, or there is no volume for a stress; says what
                can be asked for.
            TypeError: if ``atoms`` are none.
        """
        given = self.atoms if atoms is None else atoms
        if not isinstance(given, Atoms):
            raise TypeError(f"give an ase.Atoms, got {type(given).__name__}; predict([...]) takes pymatgen, too")
        if name not in self.implemented_properties:
            if name in ("forces", "stress") and self._gives_energy:
                why = (
                    "it was made with compute_forces=False"
                    if self.learned_forces
                    else "this model was trained on energies of relaxed crystals, and a relaxation with its gradients "
                    f"ends far from where it should; take a potential {POTENTIALS}. The gradients themselves: "
                    "PRISMCalculator(..., compute_forces=True)"
                )
                raise PropertyNotImplementedError(f"no {name}: {why}")  # what ASE expects of a calculator without
            raise PropertyNotImplementedError(
                f"this model predicts {self.model.target} ({self.model.unit or 'no unit'}), not {name}; ask for: "
                f"{', '.join(self.implemented_properties)}"
                + ("" if self._gives_energy else ". Energies need a model whose unit is exactly 'eV/atom'")
            )
        if name in ("stress", "stress_std") and given.cell.rank < 3:
            raise PropertyNotImplementedError(
                f"no {name}: the cell has {given.cell.rank} vectors and no volume; give it three"
            )
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def export_properties(self) -> Properties:
        """Return the results that ASE has a name for."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def get_potential_energy(self, atoms: Atoms | None = None, force_consistent: bool = False) -> float:
        """Return the energy, eV; ``force_consistent`` makes no difference."""
        return self.get_property("free_energy" if force_consistent else "energy", atoms)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill ``results``; ASE calls this.

        Raises:
            ValueError: if the atoms are bad (see :func:`~prism_plugin.build_graph`) or of unknown elements.
        """
        with self._lock:
            super().calculate(atoms, properties, system_changes)
            (self.results,) = self._answer([self.atoms], [""], False)

    def predict(
        self, structures: Iterable[Any], progress: bool | None = None, names: Sequence[str] | None = None
    ) -> list[_Results]:
        """Predict many structures in batches; nothing is kept in the calculator.

        Where memory ends, smaller batches are tried; on a CPU the operating system may end the process instead.

        Args:
            structures: ASE ``Atoms``, pymatgen ``Structure`` or ``Molecule``, in any mixture.
            progress: whether there is a progress bar; None shows one where more than one batch is due.
            names: what errors and warnings call the structures; None calls them by their places in the list.

        Returns:
            What ``results`` would hold, one dictionary for each structure, in their order; equal to what one at a time
            gives, up to rounding.

        Raises:
            MemoryError: if one structure alone does not fit.
            TypeError: if this is one structure and not a list of them.
            ValueError: if a structure is bad or of unknown elements, and says which; or there are not as many names.
        """
        if isinstance(structures, (Atoms, IStructure, IMolecule, str, Mapping)) or not isinstance(structures, Iterable):
            raise TypeError(f"give a list of structures, got one {type(structures).__name__}: predict([structure])")
        structures = list(structures)
        if names is None:
            names = [f"structure {number} of the list" for number in range(len(structures))]
        if len(names) != len(structures):
            raise PrismError(f"there are {len(structures)} structures and {len(names)} names")
        return self._answer(structures, [f"{name}: " if name else "" for name in names], progress)

    def _answer(self, structures: Sequence[Any], places: Sequence[str], progress: bool | None) -> list[_Results]:
        """Answer structures; errors begin with their places, and come before the work (but for atoms too close)."""
        read = [_at(place, read_structure, one) for place, one in zip(places, structures, strict=True)]
        for place, one in zip(places, read, strict=True):
            for model in self.models:
                _at(place, lambda structure, of=model: of.check_crystal((), structure.pbc), one)
        knows = [self._knows(place, one.numbers) for place, one in zip(places, read, strict=True)]
        known = [(place, one) for place, one, is_known in zip(places, read, knows, strict=True) if is_known]
        if len(known) < len(structures):
            lost = len(structures) - len(known)
            warnings.warn(f"{lost} of {len(knows)} structures have unknown elements, and NaN as answer", stacklevel=3)
        shown = len(known) > self.batch_size if progress is None else progress
        answered: list[_Results] = []
        with (
            self._lock,
            plain_computation(self.model),
            tqdm(total=len(known), desc="predict", unit="crystal", disable=not shown) as bar,
        ):
            for graphs in self._graphs(known):
                answers = [self._evaluate(model, graphs[model.cutoffs]) for model in self.models]
                features = [[one.pop(_FEATURES, None) for one in of_model] for of_model in answers]
                together = [self._together(several) for several in zip(*answers, strict=True)]
                if "novelty" in self.implemented_properties:
                    self._add_domain(together, features, known[len(answered) :])
                answered += together
                bar.update(len(together))
        found = iter(answered)
        results = [
            next(found) if is_known else self._unknown(structure)
            for structure, is_known in zip(read, knows, strict=True)
        ]
        if self.compute_forces:
            for structure, result in zip(read, results, strict=True):
                if np.linalg.matrix_rank(structure.cell) < 3:  # there is no volume
                    del result["stress"]
                    result.pop("stress_std", None)
        return results

    def _add_domain(
        self,
        results: Sequence[_Results],
        features: Sequence[Sequence[np.ndarray]],
        structures: Sequence[tuple[str, Structure]],
    ) -> None:
        """Add to results how far the structures are from the training crystals, and the interval of 95 %."""
        far = how_far(self.models, features)
        if far is None:
            return
        for row, (result, (place, structure)) in enumerate(zip(results, structures, strict=False)):
            result["novelty"] = float(far.novelty[row])
            if bounds_forces(self.models):
                if (name := bounded(self.models)[0]) in self.implemented_properties:
                    result[name] = float(far.half_widths[row, -1])
            elif f"{self._value}_interval" in self.implemented_properties:
                share = len(structure) if self._gives_energy and self.model.unit == "eV/atom" else 1
                width = share * far.half_widths[row, -1]
                middle = result[self._value]
                result[f"{self._value}_interval"] = np.array([middle - width, middle + width])
            if text := far.warning(row):
                self._warn_once("far", f"{place}{text}")

    def annotate(self, atoms: Atoms | Sequence[Atoms]) -> None:
        """Write the predictions into ``atoms.info``, which files keep, as ``prism_<target>`` in the model's unit.

        ASE writes energies, forces and stresses of a calculator into files, but no other property: a band gap or a
        committee's spread (``prism_<target>_std``) is lost without this.

        Args:
            atoms: one or several.

        Raises:
            TypeError: if there is anything else than ``Atoms``.
            ValueError: as :meth:`predict`.
        """
        several = [atoms] if isinstance(atoms, Atoms) else atoms
        if not isinstance(several, Sequence) or not all(isinstance(one, Atoms) for one in several):
            raise TypeError(f"give an ase.Atoms or a list of them, got {type(atoms).__name__}")
        for one, result in zip(several, self.predict(several), strict=True):
            share = len(one) if self._gives_energy and self.model.unit == "eV/atom" else 1
            for suffix in ("", "_std"):
                if self._value + suffix in result:
                    one.info[f"prism_{self.model.target}{suffix}"] = result[self._value + suffix] / share

    def _graphs(
        self, structures: Sequence[tuple[str, Structure]]
    ) -> Iterator[dict[tuple[float, float], list[CrystalGraph]]]:
        """Build graphs by cutoffs, batch after batch; for a GPU those of the next batch while the models compute."""
        several = {model.cutoffs for model in self.models}

        def build(start: int) -> dict[tuple[float, float], list[CrystalGraph]]:
            part = structures[start : start + self.batch_size]
            found = {cutoffs: [_at(place, build_graph, one, *cutoffs) for place, one in part] for cutoffs in several}
            for graphs in found.values():
                for (place, _), graph in zip(part, graphs, strict=True):
                    self._warn_of_doubts(place, graph)
            return found

        starts = range(0, len(structures), self.batch_size)
        if not self._builds_ahead:
            yield from map(build, starts)
            return
        with ThreadPoolExecutor(1) as thread:
            waiting = [thread.submit(build, start) for start in starts[:1]]
            for start in starts[1:]:
                waiting.append(thread.submit(build, start))
                yield waiting.pop(0).result()
            yield from (built.result() for built in waiting)

    def _warn_of_doubts(self, place: str, graph: CrystalGraph) -> None:
        """Warn of what is doubtful in a structure, once of each kind."""
        alike = (model.extent for model in self.models if model.cutoffs == graph.crystals.cutoffs)
        extents = [extent for extent in alike if extent is not None]
        for kind, text in chain(doubts_of(graph).items(), *(extent.doubts(graph).items() for extent in extents[:1])):
            self._warn_once(kind, f"{place}{text}")

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warn(f"{text} (this calculator says so once)")

    def _knows(self, place: str, numbers: np.ndarray) -> bool:
        """Whether all models know all elements; if it is an error that one does not, that is raised."""
        try:
            for model in self.models:
                model.check_elements(np.unique(numbers).tolist())
        except ValueError as error:
            if self.on_unknown_element == "error":
                raise PrismError(f"{place}{error}") from error
            return False
        return True

    def _evaluate(self, model: PRISM, graphs: Sequence[CrystalGraph]) -> list[_Results]:
        """Evaluate one model on graphs, batch by batch."""
        results: list[_Results] = []
        limits = (self.batch_size, EDGES_WITH_GRADIENTS) if self.compute_forces else (self.batch_size,)
        for part in split_graphs(graphs, *limits):
            results += halved(lambda some: self._evaluate_batch(model, some), part)
        return results

    def _evaluate_batch(self, model: PRISM, crystals: CrystalBatch) -> list[_Results]:
        if not self._gives_energy:
            with torch.no_grad(), evaluation(model):
                values = model(crystals).double().tolist()
            return self._with_features(model, crystals, [{model.target: value} for value in values])
        found: EnergyGradients | None = None
        if self.compute_forces:
            found = energies_with_gradients(model, crystals)
            outputs = found.energies
        else:
            with torch.no_grad(), evaluation(model):
                outputs = model.atom_outputs(model.as_batch(crystals))
        ends = np.cumsum(crystals.sizes[:, 0])[:-1]
        results: list[_Results] = []
        for energies in np.split(outputs.double().cpu().numpy(), ends):
            energy = float(energies.sum())
            results.append({"energy": energy, "free_energy": energy, "energies": energies})
        if found is not None:
            forces = np.split(found.forces.double().cpu().numpy(), ends)
            for result, of_crystal, stress in zip(results, forces, found.stress.cpu().numpy(), strict=True):
                result |= {"forces": of_crystal, "stress": full_3x3_to_voigt_6_stress(stress)}
        return self._with_features(model, crystals, results)

    @staticmethod
    def _with_features(model: PRISM, crystals: CrystalBatch, results: list[_Results]) -> list[_Results]:
        """Keep what a model with a domain made of the crystals, beside its answers."""
        if model.domain is not None:
            for result, one in zip(results, model.domain_features(crystals), strict=True):
                result[_FEATURES] = one
        return results

    def _together(self, answers: Sequence[_Results]) -> _Results:
        """Mean of the models' answers, and the spread of those that have a name for it."""
        if len(answers) == 1:
            return answers[0]
        together = {key: mean_and_spread([answer[key] for answer in answers]) for key in answers[0]}
        results = {key: mean if mean.ndim else float(mean) for key, (mean, _) in together.items()}
        for name in self.implemented_properties:
            if name.endswith("_std"):
                spread = cast("np.ndarray", together[name.removesuffix("_std")][1])
                results[name] = spread if spread.ndim else float(spread)
        return results

    def _unknown(self, structure: Structure) -> _Results:
        """NaN for everything."""
        shapes: dict[str, tuple[int, ...]] = {"energies": (len(structure),), f"{self._value}_interval": (2,)}
        for suffix in ("", "_std"):
            shapes |= {f"forces{suffix}": (len(structure), 3), f"stress{suffix}": (6,)}
        names = self.implemented_properties
        return {name: np.full(shapes[name], np.nan) if name in shapes else float("nan") for name in names}


def _at(place: str, work: Callable[..., _Answer], structure: Any, *arguments: Any) -> _Answer:
    """Do something with a structure; errors begin with its place."""
    try:
        return work(structure, *arguments)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{place}{error}") from error
