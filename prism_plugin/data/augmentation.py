"""SO(3) augmentation: one uniform random rotation per crystal and access."""

from __future__ import annotations

import torch
from torch import Tensor

from prism_plugin.data.loading import EnergyLabels
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.graph.lattice import times_matrix

__all__ = ["random_rotations", "rotate_batch", "rotate_labels"]


def random_rotations(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw rotation matrices uniformly from SO(3), as normalized Gaussian quaternions.

    Returns:
        Shape ``(count, 3, 3)``, float64.
    """
    quaternion = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    w, x, y, z = (quaternion / quaternion.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=1),
    ]
    return torch.stack(rows, dim=1)


def rotate_batch(batch: CrystalBatch, rotations: Tensor) -> CrystalBatch:
    """Rotate the positions and the lattice of each crystal.

    Args:
        batch: crystals.
        rotations: one matrix per crystal, shape ``(crystals, 3, 3)``.
    """
    turned = rotations.to(batch.positions).transpose(1, 2)
    with torch.autocast(turned.device.type, enabled=False):  # geometry keeps its digits
        lattice = batch.lattice @ turned
    return batch.moved(times_matrix(batch.positions, turned, batch.atom_crystal), lattice)


def rotate_labels(labels: Tensor | EnergyLabels, atom_crystal: Tensor, rotations: Tensor) -> Tensor | EnergyLabels:
    """Rotate forces and virials with their crystals; numbers stay as they are.

    Args:
        labels: of the crystals.
        atom_crystal: crystal of each atom, shape ``(atoms,)``.
        rotations: one matrix per crystal, shape ``(crystals, 3, 3)``.
    """
    if not isinstance(labels, EnergyLabels):
        return labels
    turn = rotations.to(labels.forces)
    forces = times_matrix(labels.forces, turn.mT, atom_crystal)
    return labels._replace(forces=forces, virial=turn @ labels.virial @ turn.mT)
