"""The energy over the positions of atoms: where edges come and go, and where another image becomes the nearest."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from prism_plugin import PRISM, PRISMCalculator
from prism_plugin.graph.lattice import reduced_bases
from prism_plugin.nn.minimum_image import blended_image, minimum_image
from tests.conftest import small_model


def energy_model(**arguments: object) -> PRISM:
    return small_model(target="formation_energy", unit="eV/atom", **arguments)


def along(calculator: PRISMCalculator, atoms: Atoms, atom: int, direction: list[float], steps: np.ndarray) -> tuple:
    """Energies, and forces along the way, while one atom moves."""
    moved = []
    for step in steps:
        moved.append(atoms.copy())
        moved[-1].positions[atom] += step * np.array(direction)
    results = calculator.predict(moved, progress=False)
    energies = np.array([result["energy"] for result in results])
    return energies, np.array([result["forces"][atom] @ direction for result in results])


def roughness(energies: np.ndarray, forces: np.ndarray, steps: np.ndarray) -> tuple[float, float]:
    """Largest jump of the energy beyond what the forces explain, and largest change of the force in one step."""
    explained = -(forces[1:] + forces[:-1]) / 2 * np.diff(steps)
    return np.abs(np.diff(energies) - explained).max(), np.abs(np.diff(forces)).max()


# One atom of cubic copper passes the place where two images of its neighbors are equally near.
WAY = np.linspace(-0.02, 0.02, 81)


def test_with_blended_images_energy_and_forces_are_continuous_where_the_nearest_image_changes() -> None:
    atoms = bulk("Cu", cubic=True)
    jumps = {}
    for image in ("nearest", "blended"):
        calculator = PRISMCalculator(energy_model(similarity_image=image), compute_forces=True)
        jumps[image] = roughness(*along(calculator, atoms, 1, [1.0, 0.0, 0.0], WAY), WAY)
    assert jumps["nearest"][0] > 1e-3  # the jump, eV: random weights make it large
    assert jumps["blended"][0] < 1e-6
    assert jumps["blended"][1] < 0.02


def test_an_atomistic_edge_comes_and_goes_smoothly() -> None:
    atoms = Atoms("CuAu", positions=[[0, 0, 0], [3.2, 0, 0]])  # at the cutoff
    calculator = PRISMCalculator(energy_model(), compute_forces=True)
    jump, kink = roughness(*along(calculator, atoms, 1, [1.0, 0.0, 0.0], WAY), WAY)
    assert jump < 1e-8
    assert kink < 1e-3


def test_a_similarity_edge_appears_smoothly() -> None:
    """Two unlike atoms at the feature distance of an edge: with the envelope no jump, without it one."""
    atoms = Atoms("Cu2O", positions=[[0, 0, 0], [1.8, 0, 0], [0, 1.9, 0.3]], cell=[6, 6.5, 7], pbc=True)
    model = energy_model(num_layers=2)
    distances = []
    for shift in WAY:  # how far apart the features of the coppers are, after the first layer
        moved = atoms.copy()
        moved.positions[1, 0] += shift
        model.predict_structure(moved)
        features = model.feature_dict["gc_1"]["node_feat"]
        distances.append(float((features[0] - features[1]).norm()))
    threshold = distances[40]
    assert min(distances) < threshold < max(distances)
    jumps = {}
    for envelope in ("feature", None):
        calculator = PRISMCalculator(
            energy_model(similarity_cutoff=threshold, similarity_envelope=envelope), compute_forces=True
        )
        jumps[envelope] = roughness(*along(calculator, atoms, 1, [1.0, 0.0, 0.0], WAY), WAY)
    assert jumps[None][0] > 20 * jumps["feature"][0]


def test_a_blended_image_is_the_nearest_where_no_other_is_near() -> None:
    dtype = torch.float64
    lattice = torch.tensor([[[4.0, 0, 0], [1.0, 5.0, 0], [0, 0.5, 6.0]]], dtype=dtype)
    reduction = reduced_bases(lattice, torch.ones(1, 3, dtype=torch.bool))
    displacement = torch.tensor([[0.3, 5.5, -6.2], [2.0, 0, 0], [0.9, 1.0, 0.4]], dtype=dtype)
    crystal = torch.zeros(3, dtype=torch.long)
    nearest = displacement + minimum_image(displacement, crystal, lattice, reduction)
    direction, length = blended_image(displacement, crystal, lattice, reduction)
    for pair in (0, 2):
        torch.testing.assert_close(length[pair], nearest[pair].norm(), rtol=1e-12, atol=0)
        torch.testing.assert_close(direction[pair], nearest[pair] / nearest[pair].norm(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(length[1], torch.tensor(2.0, dtype=dtype))  # halfway between two: no direction along it
    assert abs(float(direction[1, 0])) < 1e-12
