"""The repulsion of nuclei at short distances: its formula, its derivatives, where it ends, in a potential."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import covalent_radii as ase_radii

from prism_plugin import PRISMCalculator, PRISMPotential, batch_graphs, build_graph, load
from prism_plugin.errors import PrismError
from prism_plugin.nn.element_table import covalent_radii
from prism_plugin.nn.repulsion import ZBLRepulsion
from tests.conftest import crystal_zoo, random_potential
from tests.reference import potential_reference


def test_it_is_the_formula_of_the_slow_twin() -> None:
    zoo = crystal_zoo()
    squeezed = []
    for name in ("low symmetry", "skewed", "cesium chloride"):
        atoms = zoo[name].copy()
        atoms.set_cell(0.8 * atoms.cell, scale_atoms=True)
        squeezed.append(atoms)
    batch = batch_graphs([build_graph(atoms, 4.0, 6.0) for atoms in squeezed])
    repulsion = ZBLRepulsion(4.0)
    distance = batch.edge_vector.norm(dim=1)
    found = repulsion(batch.atomic_numbers, batch.edge_index, distance)
    expected = potential_reference.zbl(
        batch.atomic_numbers.tolist(), batch.edge_index.T.tolist(), distance.tolist(), ase_radii, 4.0
    )
    assert max(expected) > 0.01
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-13)


def test_it_is_smooth_and_ends_at_the_covalent_radii() -> None:
    repulsion = ZBLRepulsion(5.0)
    numbers, index = torch.tensor([14, 8]), torch.tensor([[0, 1], [1, 0]])
    end = covalent_radii()[14] + covalent_radii()[8]

    def energy(distance: torch.Tensor) -> torch.Tensor:
        return repulsion(numbers, index, distance.expand(2)).sum()

    for distance in (0.3, 0.9, 1.5):
        given = torch.tensor([distance], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(energy, given)
        assert torch.autograd.gradgradcheck(energy, given)
    values = [float(energy(torch.tensor([d], dtype=torch.float64))) for d in np.linspace(0.05, end + 0.2, 100)]
    assert np.all(np.diff(values) <= 0)
    assert float(energy(torch.tensor([end], dtype=torch.float64))) == 0
    near = torch.tensor([end - 1e-4], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(energy(near), near)
    assert abs(float(slope)) < 1e-3
    assert torch.isfinite(energy(torch.tensor([1e-3]))).all()


def test_radii_are_those_of_the_table() -> None:
    known = slice(1, 97)
    np.testing.assert_array_equal(covalent_radii()[known], ase_radii[known])
    assert covalent_radii().shape == (119,)
    assert (covalent_radii()[1:] > 0.2).all()


def test_a_potential_has_it_and_keeps_it(tmp_path) -> None:
    without, with_it = random_potential(directions=False), random_potential(directions=False, repulsion="zbl")
    with_it.load_state_dict(without.state_dict())
    far, close = Atoms("Si2", [[0, 0, 0], [0, 0, 2.5]]), Atoms("Si2", [[0, 0, 0], [0, 0, 0.8]])
    assert float(with_it.predict_structure(far)) == float(without.predict_structure(far))
    added = float(with_it.predict_structure(close) - without.predict_structure(close))
    assert added == pytest.approx(potential_reference.zbl([14, 14], [(0, 1), (1, 0)], [0.8] * 2, ase_radii, 5.0)[0] * 2)
    close.calc = PRISMCalculator(with_it, compute_forces=True)
    forces = close.get_forces()
    assert forces[1, 2] > 10
    energies = []
    for step in (-1e-4, 1e-4):
        moved = close.copy()
        moved.positions[1, 2] += step
        energies.append(float(with_it.predict_structure(moved)))
    assert forces[1, 2] == pytest.approx(-np.diff(energies)[0] / 2e-4, rel=1e-6)
    with_it.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.arguments["repulsion"] == "zbl"
    assert float(again.predict_structure(close)) == pytest.approx(float(with_it.predict_structure(close)), rel=1e-6)


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(PrismError, match="repulsion"):
        PRISMPotential(repulsion="born")
