"""PRISM as a model of torch-sim: many relaxations or dynamics at once (extra ``torchsim``).

Returns energies, forces and stresses of all systems of a state. Their graphs are built anew for every call: one after
the other on the CPU, or by one neighbor search on the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import Tensor

from prism_plugin.defaults import DEFAULT_POTENTIAL
from prism_plugin.errors import PrismError
from prism_plugin.forces import energies_with_gradients, plain_computation, warn_of_forces
from prism_plugin.graph.build import build_graph
from prism_plugin.graph.crystals import batch_graphs
from prism_plugin.graph.structure import read_structure
from prism_plugin.model import PRISM
from prism_plugin.pretrained import gives_energy, load_on

try:
    from torch_sim import SimState
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise ImportError("torch-sim is not installed: pip install 'prism-plugin[torchsim]'") from error

__all__ = ["TorchSimPRISM"]


class TorchSimPRISM(ModelInterface):
    """Energies (eV), forces (eV/Å) and stresses (eV/Å^3) of the systems of a torch-sim state.

    What was said of forces in :class:`~prism_plugin.PRISMCalculator` holds here, too.

    Args:
        model: name of a shipped model, folder of a saved one, or a PRISM; it must predict energies.
        device: ``"auto"`` (CUDA where there is one, else CPU; a given PRISM stays where it is) or a torch device.
        dtype: ``"auto"`` (that of the model), ``"float32"`` or ``"float64"``.
        neighbors: where neighbors are searched for: ``"cpu"``, or ``"device"`` (extra ``device-search``), for GPUs.

    Raises:
        FileNotFoundError: if there is no such model.
        ImportError: if the search on the device is not installed.
        TypeError: if ``model`` is neither a name, a folder nor a PRISM.
        ValueError: if the model predicts no energy, or device, dtype or neighbors is unknown.

    Example:
        >>> import torch_sim
        >>> from ase.build import bulk
        >>> crystals = [bulk("NaCl", "rocksalt", a=5.7), bulk("MgO", "rocksalt", a=4.2)]
        >>> results = torch_sim.static(crystals, TorchSimPRISM(device="cpu"))
        >>> [tuple(result["forces"].shape) for result in results]
        [(2, 3), (2, 3)]
    """

    def __init__(
        self,
        model: str | Path | PRISM = DEFAULT_POTENTIAL,
        device: str = "auto",
        dtype: str = "auto",
        neighbors: str = "cpu",
    ) -> None:
        super().__init__()
        if neighbors not in ("cpu", "device"):
            raise PrismError(f"unknown neighbors {neighbors!r}; choose 'cpu' or 'device'")
        self._search = None
        if neighbors == "device":
            from prism_plugin.graph.device_search import build_graphs_on_device

            self._search = build_graphs_on_device
        self.prism = load_on(model, device, dtype)
        if not gives_energy(self.prism):
            raise PrismError(
                f"this model predicts {self.prism.target} ({self.prism.unit or 'no unit'}), which is no energy: "
                "torch-sim needs a model whose unit is 'eV/atom'"
            )
        warn_of_forces(self.prism)
        self._device = self.prism.device
        self._dtype = self.prism.dtype
        self._compute_forces = True
        self._compute_stress = True

    def forward(self, state: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Compute all systems of a state.

        Args:
            state: a ``SimState``, or a dictionary of what makes one.
            **kwargs: part of torch-sim's contract; not read.

        Returns:
            ``"energy"``, shape ``(systems,)``; ``"forces"``, shape ``(atoms, 3)``; ``"stress"``, shape
            ``(systems, 3, 3)``; on the state's device, in the model's dtype.

        Raises:
            ValueError: if a system is bad or has an unknown element; says which.
        """
        if isinstance(state, dict):
            state = SimState(**{"masses": torch.ones_like(state["positions"][:, 0]), **state})
        with plain_computation(self.prism):
            answer = self._compute(state)
        return {name: value.to(state.positions.device) for name, value in answer.items()}

    def _compute(self, state: Any) -> dict[str, Tensor]:
        cells = state.cell.detach().mT.cpu().double().numpy()  # torch-sim's cell vectors are columns
        positions = state.positions.detach().cpu().double().numpy()
        numbers, system = state.atomic_numbers.cpu().numpy(), state.system_idx.cpu().numpy()
        pbc = torch.as_tensor(state.pbc).cpu().numpy()  # of torch-sim 0.3 one for all vectors
        made: list[Any] = []  # graphs, or structures whose neighbors are still to be found
        for index, cell in enumerate(cells):
            members = system == index
            try:
                one = read_structure(Atoms(numbers[members], positions[members], cell=cell, pbc=pbc))
                made.append(one if self._search else build_graph(one, *self.prism.cutoffs))
                self.prism.check_crystal(one.numbers, one.pbc)
            except ValueError as error:
                raise PrismError(f"system {index}: {error}") from error
        if self._search:
            batch = self._search(made, *self.prism.cutoffs, self._device, called="system")
        else:
            batch = batch_graphs(made)
        found = energies_with_gradients(self.prism, batch)
        energy = found.energies.new_zeros(len(cells)).index_add(0, found.crystals.atom_crystal, found.energies)
        return {"energy": energy, "forces": found.forces, "stress": found.stress.to(energy.dtype)}
