"""The angular block: harmonics, reverse edges, derivatives, symmetry; in potentials a scale that is measured once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

import prism_plugin.nn.tiling
from prism_plugin import PRISM, PRISMPotential, batch_graphs, build_graph, load
from prism_plugin.data import PES
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.splits import split_records
from prism_plugin.forces import energies_with_gradients
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.graph.reverse import reverse_edges
from prism_plugin.nn.angular import AngularBlock, EdgeAngles, real_harmonics
from prism_plugin.nn.attention import AtomAttention
from prism_plugin.training import TrainingSettings, train
from tests.conftest import crystal_zoo, random_potential, small_model
from tests.nn.test_residual_multiscale import turned
from tests.reference import accuracy_reference

POTENTIAL = {"directions": False, "angular": 4, "atom_encoder": "elements"}


@pytest.fixture
def many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a few rows."""
    monkeypatch.setattr(prism_plugin.nn.tiling, "_NUMBERS", {"cpu": 112})
    monkeypatch.setattr(prism_plugin.nn.tiling, "_FEWEST_ROWS", 7)


def batch_of(cutoff: float = 3.2, *names: str) -> CrystalBatch:
    zoo = crystal_zoo()
    return batch_graphs([build_graph(zoo[name], cutoff, 6.0) for name in names or tuple(zoo)])


def test_harmonics_have_the_addition_theorem() -> None:
    u, v = torch.nn.functional.normalize(torch.randn(2, 50, 3, dtype=torch.float64), dim=2)
    products = real_harmonics(u, 3) * real_harmonics(v, 3)
    cosine = (u * v).sum(dim=1)
    for degree, part in enumerate(products.split((3, 5, 7), dim=1), start=1):
        expected = accuracy_reference.legendre(degree, cosine)
        torch.testing.assert_close(part.sum(dim=1), expected, rtol=0, atol=1e-14)
    assert torch.equal(real_harmonics(u, 2), real_harmonics(u, 3)[:, :8])


def test_reverse_edges_are_found() -> None:
    batch = batch_of()
    edges = batch.edge_index.shape[1]
    reverse = batch.reverse
    assert torch.equal(reverse[reverse], torch.arange(edges))
    torch.testing.assert_close(batch.edge_vector[reverse], -batch.edge_vector, rtol=0, atol=1e-12)
    assert torch.equal(batch.edge_index[:, reverse], batch.edge_index.flip(0))
    order = torch.randperm(edges, generator=torch.Generator().manual_seed(0))
    shuffled = reverse_edges(batch.edge_index[:, order], batch.edge_image[order], len(batch.atomic_numbers))
    torch.testing.assert_close(order[shuffled], reverse[order])
    kept = torch.arange(edges) != reverse[5]  # one edge has lost its other direction
    alone = reverse_edges(batch.edge_index[:, kept], batch.edge_image[kept], len(batch.atomic_numbers))
    assert (alone == edges - 1).sum() == 1
    assert batch.to(dtype=torch.float32).reverse is reverse
    nothing = reverse_edges(torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, 3, dtype=torch.long), 1)
    assert nothing.shape == (0,)


@pytest.mark.parametrize("norm", ["batch", None])
def test_the_block_has_the_derivatives_of_finite_differences(many_tiles, norm: str | None) -> None:
    torch.manual_seed(0)
    batch = batch_of(3.2, "cesium chloride", "skewed")
    block = AngularBlock(4, 2, 3, 5, norm).double().eval()
    edges = batch.edge_index.shape[1]
    radial, envelope = torch.rand(edges, 5, dtype=torch.float64), torch.rand(edges, dtype=torch.float64)

    def function(atoms: Tensor, features: Tensor, vector: Tensor) -> Tensor:
        directions = vector / vector.norm(dim=1, keepdim=True)
        angles = EdgeAngles.of(real_harmonics(directions, 3), batch.neighbors, batch.reverse, radial)
        told, joins = block(atoms, features, batch.edge_index, envelope, angles)
        return told.sin().sum(dim=0) + (0 if joins is None else joins.sin().sum(dim=0))

    given = (
        torch.randn(len(batch.atomic_numbers), 4, dtype=torch.float64).requires_grad_(),
        torch.randn(edges, 4, dtype=torch.float64).requires_grad_(),
        batch.edge_vector.clone().requires_grad_(),
    )
    assert torch.autograd.gradcheck(function, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


@pytest.mark.parametrize("arguments", [{"angular": 3, "angular_order": 3}, {"angular": 2, "norm": None}])
def test_tiles_equal_one_step(request: pytest.FixtureRequest, arguments: dict) -> None:
    model = small_model(experts=("atomistic",), directions=False, **arguments)
    batch = batch_of()
    answers = []
    for tiled in (False, True):
        if tiled:
            request.getfixturevalue("many_tiles")
        prediction = model(batch)
        gradients = torch.autograd.grad(prediction.square().sum(), list(model.parameters()))
        answers.append([prediction, *gradients])
    for plain, in_tiles in zip(*answers, strict=True):
        torch.testing.assert_close(in_tiles, plain, rtol=1e-11, atol=1e-11)


def test_angles_are_seen_and_turning_is_not(structure: Atoms) -> None:
    model = small_model(experts=("atomistic",), directions=False, angular=3, readout="attention")
    potential = random_potential(**POTENTIAL)
    for one in (model, potential):
        expected = float(one.predict_structure(structure))
        for mirror in (False, True):
            value = float(one.predict_structure(turned(structure, mirror)))
            assert value == pytest.approx(expected, rel=0, abs=1e-10)


def test_an_angle_moves_the_energy_where_no_distance_within_the_cutoff_changes() -> None:
    energies = {}
    for angular in (0, 3):
        model = small_model(experts=("atomistic",), directions=False, angular=angular, cutoff=2.5, num_layers=1)
        bent = [
            Atoms("OC2", positions=[[0, 0, 0], [2, 0, 0], [2 * np.cos(angle), 2 * np.sin(angle), 0]])
            for angle in (1.6, 2.2)
        ]
        energies[angular] = model.predict_structure(bent)
    assert float(energies[0].diff().abs()) < 1e-12
    assert float(energies[3].diff().abs()) > 1e-5


def test_forces_are_those_of_the_energy_and_can_be_trained() -> None:
    model = random_potential(**POTENTIAL)
    atoms = crystal_zoo()["low symmetry"]
    model.calibrate([atoms])
    batch = batch_graphs([build_graph(atoms, model.cutoff, model.cell_cutoff)])
    answer = energies_with_gradients(model, batch)
    step = 1e-5
    for atom, axis in ((0, 0), (2, 1)):
        shifted = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            shifted.append(float(model.predict_structure(moved)))
        expected = -(shifted[0] - shifted[1]) / (2 * step)
        assert float(answer.forces[atom, axis]) == pytest.approx(expected, rel=1e-6, abs=1e-7)
    forces = energies_with_gradients(model, batch, create_graph=True).forces
    torch.testing.assert_close(forces.detach(), answer.forces, rtol=1e-11, atol=1e-11)
    gradients = torch.autograd.grad(forces.square().sum(), model.layers[0].angular.mix)
    assert float(gradients[0].abs().max()) > 1e-6
    doubled = atoms.repeat((2, 1, 1))
    energy = 2 * float(model.predict_structure(atoms))
    assert float(model.predict_structure(doubled)) == pytest.approx(energy, rel=1e-12)


@pytest.mark.parametrize(
    "crystal",
    [
        bulk("Cu", "fcc", 3.6, cubic=True).repeat(2),
        bulk("NaCl", "rocksalt", 5.6, cubic=True),
        bulk("W", "bcc", 3.2, cubic=True).repeat(2),
    ],
    ids=lambda atoms: atoms.get_chemical_formula(),
)
def test_large_weights_leave_the_forces_smooth_where_symmetry_cancels_the_sums(crystal: Atoms) -> None:
    """A bound by the sums themselves made these force constants 10,000 times larger (-1e7 eV/Å^2 in copper)."""

    def force_constant(step: float) -> float:
        forces = []
        for sign in (1, -1):
            moved = crystal.copy()
            moved.positions[0, 0] += sign * step
            graph = build_graph(moved, model.cutoff, model.cell_cutoff)
            forces.append(float(energies_with_gradients(model, batch_graphs([graph])).forces[0, 0]))
        return (forces[1] - forces[0]) / (2 * step)

    model = random_potential(**POTENTIAL, cutoff=4.0)
    model.calibrate([crystal])
    before = force_constant(1e-3)
    for layer in model.layers:
        layer.angular.of_edge.weight.data.mul_(100)
    after = force_constant(1e-3)
    assert 0.1 < abs(after / before) < 10
    assert force_constant(0.01) == pytest.approx(after, rel=0.2)


def test_the_scale_is_measured_once_and_saved(tmp_path) -> None:
    structures = [crystal_zoo()[name] for name in ("low symmetry", "rocksalt", "molecule", "slab")]
    torch.manual_seed(0)
    model = PRISMPotential(dim=16, num_rbf=12, cutoff=4.0, cell_cutoff=6.0, **POTENTIAL)
    before = model.predict_structure(structures[0])
    assert [float(layer.angular.scale) for layer in model.layers] == [1.0, 1.0]
    model.calibrate(structures)
    scales = [float(layer.angular.scale) for layer in model.layers]
    assert min(scales) > 3  # without it the block is dead
    assert not any(layer.angular.calibrating for layer in model.layers)
    after = model.predict_structure(structures[0])
    assert not torch.equal(before, after)
    assert torch.equal(model.predict_structure(structures[0]), after)  # a prediction measures nothing
    model.save(tmp_path)
    again = load(tmp_path)
    assert [float(layer.angular.scale) for layer in again.layers] == scales
    assert torch.equal(again.predict_structure(structures[0]), after)


def test_the_attention_readout_begins_as_the_mean_and_weighs_like_its_slow_twin() -> None:
    torch.manual_seed(0)
    attention = AtomAttention(6).double()
    atoms = torch.randn(5, 6, dtype=torch.float64).requires_grad_()
    crystal = torch.tensor([0, 0, 1, 2, 2])
    torch.testing.assert_close(attention(atoms, crystal, 3), torch.ones(5, dtype=torch.float64))
    torch.nn.init.normal_(attention.logit[2].weight, std=4.0)
    ours = attention(atoms, crystal, 3)
    theirs = []
    for part in ([0, 1], [2], [3, 4]):
        theirs += accuracy_reference.attention(attention, list(atoms[part]))
    theirs = torch.stack(theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    wanted = [atoms, *attention.parameters()]
    for our, their in zip(
        torch.autograd.grad(ours.square().sum(), wanted),
        torch.autograd.grad(theirs.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"angular": -1}, "angular must be a whole number of at least 0 and at most 4096, got -1"),
        ({"angular": 4, "angular_order": 4}, "unknown angular_order 4; choose one of: 1, 2, 3"),
        ({"angular": 4, "experts": ("multiscale",)}, "it needs the atomistic expert"),
        ({"readout": "max"}, "choose one of: 'mean', 'sum', 'attention'"),
    ],
)
def test_bad_options_are_told(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PRISM(dim=8, num_layers=1, **arguments)


def test_a_training_measures_the_scale(tmp_path) -> None:
    parts = split_records(emt_alloys(40, seed=4, forces=True), seed=0)
    model = {"dim": 8, "num_layers": 1, "num_rbf": 8, "cutoff": 4.0, "cell_cutoff": 4.0, "angular": 2}
    settings = TrainingSettings(target=PES, model=model, optimizer="muon", batch_size=4, epochs=1)
    train(settings, parts, tmp_path / "run", progress=False)
    assert float(load(tmp_path / "run" / "model").layers[0].angular.scale) > 2
