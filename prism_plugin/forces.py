"""Energies of a batch with their gradients: forces and stresses by automatic differentiation.

The graph is fixed while the gradients are taken. Where edges come and go (an atom at a cutoff, two atoms at the
feature distance of a similarity edge) the default envelopes are zero, so that the energy is continuous. Jumps are left,
of models that are no potentials: a similarity edge turns to another image where that becomes the nearest, unless
``similarity_image="blended"``; with ``neighbors`` edges have no envelope; iComFormer's lattice vectors change places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_plugin.defaults import POTENTIALS
from prism_plugin.errors import warn
from prism_plugin.evaluation import evaluation
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.graph.lattice import times_matrix
from prism_plugin.model import PRISM
from prism_plugin.nn.autograd_mode import gradients_of_inputs

__all__ = [
    "EDGES_WITH_GRADIENTS",
    "EnergyGradients",
    "energies_with_gradients",
    "learned_forces",
    "plain_computation",
    "warn_of_forces",
]

# With gradients every layer's activations are kept: a tenth of the edges that a batch without them may have.
EDGES_WITH_GRADIENTS = 20_000


@dataclass(frozen=True, eq=False)
class EnergyGradients:
    """Energies of a batch and their gradients.

    Attributes:
        crystals: the batch.
        energies: of the atoms, eV, shape ``(atoms,)``.
        forces: minus the gradient with respect to the positions, eV/Å, shape ``(atoms, 3)``.
        virial: gradient with respect to a symmetric strain that moves atoms and lattice together, eV, shape
            ``(crystals, 3, 3)``.
    """

    crystals: CrystalBatch
    energies: Tensor
    forces: Tensor
    virial: Tensor

    @property
    def energy(self) -> Tensor:
        """Energies of the crystals in float64, eV, shape ``(crystals,)``."""
        total = torch.zeros(len(self.crystals), dtype=torch.float64, device=self.energies.device)
        return total.index_add(0, self.crystals.atom_crystal, self.energies.double())

    @property
    def stress(self) -> Tensor:
        """Virial over the volume of the true cell, eV/Å^3, shape ``(crystals, 3, 3)``; NaN where there is none."""
        return self.virial.double() / self.crystals.volume.view(-1, 1, 1)


def learned_forces(model: PRISM) -> bool:
    """Whether a model is a potential, which is trained on forces."""
    return model.task == "potential"


def warn_of_forces(model: PRISM) -> None:
    """Warn of the forces of a model that was not trained on them."""
    if not learned_forces(model):
        jumps = ""
        if model.neighbors:
            jumps = ", and that jumps where a neighbor comes nearer than the last one"
        elif model.needs_lattice:
            jumps = ", and that jumps where another lattice vector becomes the shortest"
        warn(
            f"forces and stress of this model ({model.target}) are gradients of an energy that was not trained on "
            f"forces{jumps}: a relaxation or dynamics with them ends far from where it should. Take a potential "
            f"{POTENTIALS}"
        )


@contextmanager
def plain_computation(model: PRISM) -> Iterator[None]:
    """Compute as if the caller had neither inference mode nor autocast switched on; graphs are built inside as well."""
    with torch.inference_mode(False), torch.autocast(model.device.type, enabled=False):
        yield


def energies_with_gradients(model: PRISM, batch: CrystalBatch, create_graph: bool = False) -> EnergyGradients:
    """Differentiate the energy of each crystal with respect to positions and strain, in eval mode.

    Args:
        model: a model of energies; the energy is the sum of its outputs over the atoms.
        batch: the crystals.
        create_graph: whether the answer can be differentiated with respect to the weights, as training needs.

    Returns:
        Energies, forces and virials in the model's dtype, detached unless ``create_graph``.

    Raises:
        ValueError: if the batch does not fit the model (:meth:`~prism_plugin.PRISM.as_batch`).
    """
    with torch.enable_grad(), evaluation(model), gradients_of_inputs(twice=create_graph):
        batch = model.as_batch(batch)
        positions = batch.positions.detach().requires_grad_()
        strain = batch.lattice.new_zeros(len(batch), 3, 3).requires_grad_()
        deformation = torch.eye(3, dtype=strain.dtype, device=strain.device) + (strain + strain.mT) / 2
        moved = times_matrix(positions, deformation, batch.atom_crystal)
        outputs = model.atom_outputs(batch.moved(moved, batch.lattice.detach() @ deformation))
        grad_positions, grad_strain = torch.autograd.grad(
            outputs.sum(), (positions, strain), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    energies = outputs if create_graph else outputs.detach()
    return EnergyGradients(batch, energies, -grad_positions, grad_strain)
