"""PRISM as an ASE calculator.

In comes an ``Atoms``, out go energies in eV or the property that the model was trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes, all_properties

from prism_plugin.devices import find_device
from prism_plugin.graph import build_graph
from prism_plugin.model import PRISM
from prism_plugin.pretrained import DEFAULT_MODEL, load_prism

__all__ = ["PRISMCalculator"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class PRISMCalculator(Calculator):
    """Energies (or another property) of ASE atoms from a PRISM.

    With the default model, ``energy`` is the number of atoms times the formation energy per atom of Materials Project
    release 2018.6.1 in eV: relative to the elements, not to free atoms. It was trained on relaxed crystals only; there
    are no forces and no stress. Its card says what it must not be used for
    (``prism_plugin/pretrained/prism-mp2018-eform/README.md``).

    A model whose unit is ``"eV/atom"`` answers ``energy``, ``free_energy`` and ``energies`` (per atom; they sum to
    ``energy``). A model of another property answers under its own name through ``calc.get_property(name, atoms)`` and
    refuses ``energy``.

    Not safe to share between threads: give each thread its own.

    Args:
        model: name of a shipped model, folder of a saved one, or a PRISM.
        device: ``"auto"`` (CUDA where there is one, else CPU; a given PRISM stays where it is) or a torch device.
        dtype: ``"auto"`` (that of the model), ``"float32"`` or ``"float64"``; a given PRISM of another dtype or device
            is copied, not changed.

    Raises:
        FileNotFoundError: if there is no such model.
        TypeError: if ``model`` is neither a name, a folder nor a PRISM.
        ValueError: if the folder holds no PRISM, the device or dtype is unknown, or the target's name is one of ASE's
            properties and its unit another.

    Example:
        >>> from ase.build import bulk
        >>> atoms = bulk("NaCl", "rocksalt", a=5.69)
        >>> atoms.calc = PRISMCalculator()
        >>> -5.0 < atoms.get_potential_energy() < -3.0
        True
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "energies"]
    default_parameters: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: str | Path | PRISM = DEFAULT_MODEL, device: str = "auto", dtype: str = "auto") -> None:
        super().__init__()
        if dtype not in ("auto", *_DTYPES):
            raise ValueError(f"unknown dtype {dtype!r}; choose one of: auto, {', '.join(_DTYPES)}")
        given = isinstance(model, PRISM)
        self.model: PRISM = model if isinstance(model, PRISM) else load_prism(model)
        place = self.model.device if given and device == "auto" else find_device(device)
        kind = _DTYPES.get(dtype, self.model.dtype)
        if given and (self.model.device, self.model.dtype) != (place, kind):
            self.model = copy.deepcopy(self.model)
        self.model.to(place, kind)
        if not self._gives_energy:
            if self.model.target in all_properties:
                raise ValueError(
                    f"this model predicts {self.model.target!r} in {self.model.unit or 'no unit'!r}, which is not "
                    f"ASE's {self.model.target}; energies have the unit 'eV/atom' (or 'eV' with readout='sum'), "
                    "any other needs a name of its own: train it with another --target or --unit"
                )
            # A list of this instance: the class's own one is shared by every calculator of the process.
            self.implemented_properties = [self.model.target]  # type: ignore[misc]  # ASE's own way to narrow it

    @property
    def _gives_energy(self) -> bool:
        fits = (self.model.unit, self.model.readout) in (("eV/atom", "mean"), ("eV", "sum"))
        return fits and self.model.task_type == "regression"

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """Give one property; all of ASE's ``get_...`` methods come here.

        Raises:
            PropertyNotImplementedError: if the model does not predict it; says what it does predict.
        """
        if name not in self.implemented_properties:
            raise PropertyNotImplementedError(
                f"this model predicts {self.model.target} ({self.model.unit or 'no unit'}), not {name}; ask for: "
                f"{', '.join(self.implemented_properties)}. Energies need a model whose unit is exactly 'eV/atom'"
            )
        return super().get_property(name, atoms, allow_calculation)

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
        super().calculate(atoms, properties, system_changes)
        graph = build_graph(self.atoms, self.model.cutoff, self.model.cell_cutoff)
        prediction = float(self.model.predict_graphs([graph])[0])
        if not self._gives_energy:
            self.results = {self.model.target: prediction}
            return
        energies = self.model.feature_dict["readout"].double().cpu().numpy()
        energy = float(energies.sum())
        self.results = {"energy": energy, "free_energy": energy, "energies": energies}
