"""The cell expert in reciprocal space: which waves there are, its slow twin, its derivatives, its symmetries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation
from torch import Tensor

import prism_plugin.graph.reciprocal
import prism_plugin.nn.reciprocal
from prism_plugin import batch_graphs, build_graph
from prism_plugin.forces import energies_with_gradients
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.graph.reciprocal import make_waves, reciprocal_index
from prism_plugin.graph.store import graph_store
from prism_plugin.graph.structure import read_structure
from prism_plugin.nn.reciprocal import ReciprocalExpert, wave_geometry
from tests.conftest import crystal_zoo, small_model
from tests.reference import accuracy_reference

NAMES = ("cesium chloride", "molecule", "skewed", "slab", "one atom", "tiny cell", "isolated atom", "wire")


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases are not kept, and a block is of a few tiles."""
    monkeypatch.setattr(prism_plugin.nn.reciprocal, "_NUMBERS_KEPT", 3 * 2 * 32 * 8)


def random_expert(dim: int = 6) -> ReciprocalExpert:
    torch.manual_seed(1)
    expert = ReciprocalExpert(dim).double()
    torch.nn.init.normal_(expert.out.weight)
    torch.nn.init.normal_(expert.out.bias)
    return expert


def batch_of(names: tuple[str, ...] = NAMES) -> CrystalBatch:
    return batch_graphs([build_graph(crystal_zoo()[name], 3.0, 3.0) for name in names])


def call(expert: ReciprocalExpert, atoms: Tensor, positions: Tensor, lattice: Tensor, batch: CrystalBatch) -> Tensor:
    return expert(atoms, wave_geometry(batch.waves, lattice, batch.pbc, positions, batch.atom_crystal))


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 0), (0, 0, 0)])
@pytest.mark.parametrize("skewed", [False, True])
def test_indices_are_all_of_a_half_space(pbc: tuple, skewed: bool) -> None:
    rng = np.random.default_rng(2)
    flags = np.array(pbc, dtype=bool)
    for _ in range(5):
        lattice = rng.normal(size=(3, 3)) + 4 * np.eye(3)
        if skewed:
            lattice[1] += 3 * lattice[0]
            lattice[2] += lattice[1] - 4 * lattice[0]
        index = reciprocal_index(lattice, flags, 2.0)
        assert not index[:, ~flags].any()
        if not flags.any():
            assert index.shape == (0, 3)
            continue
        reciprocal = 2 * np.pi * np.linalg.pinv(lattice[flags]).T
        box = np.stack(np.meshgrid(*[np.arange(-19, 20)] * flags.sum(), indexing="ij"), axis=-1).reshape(
            -1, flags.sum()
        )
        length = np.linalg.norm(box @ reciprocal, axis=1)
        expected = {tuple(row) for row in box[(length < 2.2) & (length > 0)].tolist()}
        both = [tuple(row) for row in np.concatenate([index, -index])[:, flags].tolist()]
        assert len(both) == len(set(both))
        assert set(both) == expected


def test_tiles_are_all_pairs_of_a_wave_and_an_atom_of_one_crystal() -> None:
    batch = batch_of()
    waves = batch.waves
    count, atoms = len(waves.wave_index), len(batch.atomic_numbers)
    assert waves.crystal.tolist() == sorted(waves.crystal.tolist())
    assert torch.equal(waves.atom_groups.flatten()[waves.atom_place], torch.arange(atoms))
    pairs = []
    for of_waves, of_atoms in zip(waves.tile_waves.tolist(), waves.tile_atoms.tolist(), strict=True):
        pairs += [
            (wave, atom)
            for wave in waves.wave_groups[of_waves].tolist()
            for atom in waves.atom_groups[of_atoms].tolist()
            if wave < count and atom < atoms
        ]
    same = waves.crystal.unsqueeze(1) == batch.atom_crystal.unsqueeze(0)
    assert sorted(pairs) == same.nonzero().tolist() or sorted(pairs) == [tuple(row) for row in same.nonzero().tolist()]
    moved = batch.to(dtype=torch.float32)
    assert moved.waves.wave_index is waves.wave_index  # are not counted again


def test_large_crystals_have_large_tiles() -> None:
    def tile(atoms: int, edge: float) -> tuple[int, int]:
        flags = torch.ones(1, 3, dtype=torch.bool)
        waves = make_waves(edge * torch.eye(3).unsqueeze(0), flags, np.array([atoms]))
        return waves.wave_groups.shape[1], waves.atom_groups.shape[1]

    assert tile(4, 4.0) == (32, 8)
    assert tile(800, 25.0) == (128, 64)


@pytest.mark.parametrize("size", [(3, 2), (128, 64)])
def test_tiles_of_any_size_say_the_same(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    expert = random_expert()
    atoms = torch.randn(len(batch_of().atomic_numbers), 6, dtype=torch.float64)
    answers = []
    for _ in range(2):
        batch = batch_of()
        answers.append(call(expert, atoms, batch.positions, batch.lattice, batch))
        monkeypatch.setattr(prism_plugin.graph.reciprocal, "_TILES", (size,))
    torch.testing.assert_close(*answers, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "blocks"])
def test_expert_equals_its_slow_twin_with_all_gradients(kept: bool, request: pytest.FixtureRequest) -> None:
    if not kept:
        request.getfixturevalue("blocks")
    expert = random_expert()
    batch = batch_of()
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(len(batch.atomic_numbers), 6, generator=generator, dtype=torch.float64).requires_grad_()
    positions = batch.positions.clone().requires_grad_()
    strain = torch.zeros(len(batch), 3, 3, dtype=torch.float64).requires_grad_()
    deformation = torch.eye(3, dtype=torch.float64) + strain
    lattice = batch.lattice @ deformation
    moved = (positions.unsqueeze(1) @ deformation[batch.atom_crystal]).squeeze(1)
    ours = call(expert, atoms, moved, lattice, batch)
    theirs: list[Tensor] = []
    for crystal in range(len(batch)):
        of = batch.atom_crystal == crystal
        given = list(atoms[of]), moved[of], lattice[crystal], tuple(batch.pbc[crystal].tolist())
        theirs += accuracy_reference.reciprocal(expert, *given)
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-11, atol=1e-11)
    wanted = [atoms, positions, strain, *expert.parameters()]
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((ours * weight).sum(), wanted, retain_graph=True)
    expected = torch.autograd.grad((torch.stack(theirs) * weight).sum(), wanted)
    assert float(found[1].abs().max()) > 1e-2
    assert float(found[2].abs().max()) > 1e-2
    for our, their in zip(found, expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-11 * max(1.0, float(their.abs().max())))


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "blocks"])
def test_expert_has_the_derivatives_of_finite_differences(kept: bool, request: pytest.FixtureRequest) -> None:
    if not kept:
        request.getfixturevalue("blocks")
    expert = random_expert(3)
    batch = batch_of(("tiny cell", "slab", "one atom", "molecule"))
    atoms = torch.randn(len(batch.atomic_numbers), 3, dtype=torch.float64).requires_grad_()

    def function(atoms: Tensor, positions: Tensor, strain: Tensor) -> Tensor:
        deformation = torch.eye(3, dtype=torch.float64) + (strain + strain.mT) / 2
        return call(expert, atoms, positions, batch.lattice @ deformation, batch).sin().sum(dim=0)

    strain = torch.full((len(batch), 3, 3), 0.01, dtype=torch.float64).requires_grad_()
    given = (atoms, batch.positions.clone().requires_grad_(), strain)
    assert torch.autograd.gradcheck(function, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, given, fast_mode=True)
    for parameter in expert.parameters():
        parameter.requires_grad_(False)


def test_blocks_equal_one_step_and_forces_can_be_trained(blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(experts=("atomistic", "cell"), cell="reciprocal")
    graphs = [build_graph(crystal_zoo()[name], model.cutoff, model.cell_cutoff) for name in NAMES]
    answers = []
    for kept in (False, True):
        if kept:
            monkeypatch.setattr(prism_plugin.nn.reciprocal, "_NUMBERS_KEPT", 2**24)
        answer = energies_with_gradients(model, batch_graphs(graphs), create_graph=True)
        loss = answer.forces.square().sum() + answer.virial.square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        answers.append([answer.energies, answer.forces, answer.virial, *gradients])
    scale = max(float(tensor.detach().abs().max()) for tensor in answers[0] if tensor is not None)
    for in_blocks, at_once in zip(*answers, strict=True):
        assert (in_blocks is None) == (at_once is None)
        if at_once is not None:
            torch.testing.assert_close(in_blocks, at_once, rtol=1e-10, atol=1e-12 * scale)
    plain = energies_with_gradients(model, batch_graphs(graphs))
    torch.testing.assert_close(plain.forces, answers[0][1].detach(), rtol=1e-11, atol=1e-11)


def test_it_begins_by_saying_nothing_and_learns_from_there() -> None:
    expert = ReciprocalExpert(6).double()
    batch = batch_of()
    atoms = torch.randn(len(batch.atomic_numbers), 6, dtype=torch.float64)
    answer = call(expert, atoms, batch.positions, batch.lattice, batch)
    assert torch.equal(answer, atoms)
    answer.square().sum().backward()
    assert float(expert.out.weight.grad.abs().max()) > 1e-3


def test_a_molecule_is_left_alone() -> None:
    expert = random_expert()
    batch = batch_of(("molecule", "isolated atom"))
    assert len(batch.waves.wave_index) == 0
    atoms = torch.randn(len(batch.atomic_numbers), 6, dtype=torch.float64)
    assert torch.equal(call(expert, atoms, batch.positions, batch.lattice, batch), atoms)


def of_crystal(atoms: Atoms, features: Tensor) -> Tensor:
    batch = batch_graphs([build_graph(atoms, 3.0, 3.0)])
    return call(random_expert(), features, batch.positions, batch.lattice, batch)


def test_it_is_the_same_for_every_way_to_write_a_crystal(structure: Atoms) -> None:
    features = torch.randn(len(structure), 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = of_crystal(structure, features)
    turned, mirrored, moved, based = (structure.copy() for _ in range(4))
    rotation = Rotation.from_rotvec([0.4, 1.1, -0.7]).as_matrix()
    for one, matrix in ((turned, rotation), (mirrored, rotation @ np.diag([1.0, -1.0, 1.0]))):
        one.set_cell(one.cell.array @ matrix)
        one.positions = one.positions @ matrix
    moved.positions += [0.3, -1.7, 2.9]
    if structure.pbc.all():
        based.set_cell(np.array([[2, 1, 0], [1, 1, 0], [3, -2, 1]]) @ structure.cell.array, scale_atoms=False)
    for same in (turned, mirrored, moved, based):
        torch.testing.assert_close(of_crystal(same, features), expected, rtol=0, atol=1e-10)
    copies = [2 if periodic else 1 for periodic in structure.pbc]
    supercell = structure.repeat(copies)
    several = int(np.prod(copies))
    answer = of_crystal(supercell, features.repeat(several, 1))
    torch.testing.assert_close(answer, expected.repeat(several, 1), rtol=0, atol=1e-10)


def test_alone_equals_in_a_batch() -> None:
    expert = random_expert()
    batch = batch_of(tuple(crystal_zoo()))
    atoms = torch.randn(len(batch.atomic_numbers), 6, dtype=torch.float64)
    together = call(expert, atoms, batch.positions, batch.lattice, batch)
    for crystal, name in enumerate(crystal_zoo()):
        of = batch.atom_crystal == crystal
        one = batch_of((name,))
        alone = call(expert, atoms[of], one.positions, one.lattice, one)
        torch.testing.assert_close(alone, together[of], rtol=0, atol=1e-11)


def test_a_strain_moves_the_answer_smoothly_where_waves_come_and_go() -> None:
    expert = random_expert()
    atoms = crystal_zoo()["low symmetry"]
    features = torch.randn(len(atoms), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fixed = make_waves(*_geometry(atoms)[:2], np.array([len(atoms)]))
    for strain in (-0.04, 0.03):
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array * (1 + strain), scale_atoms=True)
        lattice, pbc, positions = _geometry(strained)
        zeros = torch.zeros(len(atoms), dtype=torch.long)
        anew = make_waves(lattice, pbc, np.array([len(zeros)]))
        assert len(anew.wave_index) != len(fixed.wave_index)
        answers = [expert(features, wave_geometry(waves, lattice, pbc, positions, zeros)) for waves in (fixed, anew)]
        torch.testing.assert_close(*answers, rtol=0, atol=1e-13)


def _geometry(atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
    lattice, pbc = torch.tensor(atoms.cell.array).unsqueeze(0), torch.tensor(atoms.pbc).unsqueeze(0)
    return lattice, pbc, torch.tensor(atoms.positions)


def test_phases_keep_their_digits_under_autocast() -> None:
    expert = random_expert().float()
    batch = batch_of().to(dtype=torch.float32)
    atoms = torch.randn(len(batch.atomic_numbers), 6)
    answers = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            answers.append(call(expert, atoms, batch.positions, batch.lattice, batch))
    assert torch.equal(*answers)


def test_a_skewed_cell_keeps_its_digits_in_float32() -> None:
    expert = random_expert()
    atoms = crystal_zoo()["skewed"]
    atoms.set_cell(np.array([[1, 0, 0], [7, 1, 0], [-5, 6, 1]]) @ atoms.cell.array, scale_atoms=False)
    batch = batch_graphs([build_graph(atoms, 3.0, 3.0)])
    features = torch.randn(len(atoms), 6, dtype=torch.float64)
    exact = call(expert, features, batch.positions, batch.lattice, batch)
    short = batch.to(dtype=torch.float32)
    answer = call(expert.float(), features.float(), short.positions, short.lattice, short)
    torch.testing.assert_close(answer.double(), exact, rtol=0, atol=2e-4)


def test_waves_are_found_again_for_another_lattice() -> None:
    batch = batch_of(("one atom",))
    count = len(batch.waves.wave_index)
    assert len(replace(batch, lattice=batch.lattice * 1.5).waves.wave_index) > 2 * count


def test_a_store_counts_the_waves_once_and_its_batches_have_them() -> None:
    structures = [(name, read_structure(atoms)) for name, atoms in crystal_zoo().items()]
    store = graph_store(structures, 3.0, 6.0, progress=False).with_waves()
    batch = store.batch([3, 0, 9, 5])
    assert "waves" in vars(batch)
    for found, right in zip(batch.waves, replace(batch).waves, strict=True):
        assert torch.equal(found, right)
