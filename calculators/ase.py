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
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

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
        dtype: ``"float32"`` or ``"float64"``; a given PRISM of another dtype or device is copied, not changed.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it is no PRISM, or the dtype is unknown.

    Example:
        >>> from ase.build import bulk
        >>> atoms = bulk("NaCl", "rocksalt", a=5.69)
        >>> atoms.calc = PRISMCalculator()
        >>> -5.0 < atoms.get_potential_energy() < -3.0
        True
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "energies"]
    default_parameters: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: str | Path | PRISM = DEFAULT_MODEL, device: str = "auto", dtype: str = "float32") -> None:
        super().__init__()
        if dtype not in _DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; choose one of: {', '.join(_DTYPES)}")
        self.model: PRISM
        if isinstance(model, PRISM):
            place = model.device if device == "auto" else torch.device(device)
            same = (model.device, model.dtype) == (place, _DTYPES[dtype])
            self.model = model if same else copy.deepcopy(model).to(place, _DTYPES[dtype])
        else:
            place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
            self.model = load_prism(model).to(place, _DTYPES[dtype])
        if not self._gives_energy:
            # A list of this instance: the class's own one is shared by every calculator of the process.
            self.implemented_properties = [self.model.target]  # type: ignore[misc]

    @property
    def _gives_energy(self) -> bool:
        return (self.model.unit, self.model.readout) in (("eV/atom", "mean"), ("eV", "sum"))

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill ``results``; ASE calls this.

        Raises:
            PropertyNotImplementedError: if the model does not predict what is asked for.
            ValueError: if the atoms are bad (see :func:`~prism_plugin.build_graph`) or of unknown elements.
        """
        super().calculate(atoms, properties, system_changes)
        refused = sorted(set(properties) - set(self.implemented_properties))
        if refused:
            raise PropertyNotImplementedError(
                f"this model predicts {self.model.target} ({self.model.unit or 'no unit'}), not {', '.join(refused)}; "
                f"ask for: {', '.join(self.implemented_properties)}"
            )
        graph = build_graph(self.atoms, self.model.cutoff, self.model.cell_cutoff)
        prediction = float(self.model.predict_graphs([graph])[0])
        if not self._gives_energy:
            self.results = {self.model.target: prediction}
            return
        energies = self.model.feature_dict["readout"].double().cpu().numpy()
        energy = float(energies.sum())
        self.results = {"energy": energy, "free_energy": energy, "energies": energies}
