"""Kind 2, symmetry: what must not change a prediction, in float64 to 1e-10, and what does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell, niggli_reduce
from scipy.spatial.transform import Rotation

from prism_plugin import PRISM, batch_graphs, build_graph
from tests.conftest import crystal_zoo, small_model


@pytest.fixture(params=[("feature", "nearest"), ("cosine", "nearest"), ("feature", "blended")], ids=" ".join)
def model(request: pytest.FixtureRequest) -> PRISM:
    """All experts, with many similarity edges, so that minimum images matter."""
    envelope, image = request.param
    return small_model(similarity_cutoff=50.0, similarity_envelope=envelope, similarity_image=image)


def assert_same(model: PRISM, first: Atoms, second: Atoms) -> None:
    assert float(model.predict_structure(first)) == pytest.approx(
        float(model.predict_structure(second)), rel=0, abs=1e-10
    )


def test_atom_order_does_not_matter(model: PRISM, structure: Atoms) -> None:
    order = np.random.default_rng(0).permutation(len(structure))
    assert_same(model, structure, structure[order])


def test_translation_does_not_matter(model: PRISM, structure: Atoms) -> None:
    moved = structure.copy()
    moved.positions += [0.31, -1.7, 2.3]
    assert_same(model, structure, moved)


def test_wrapping_into_the_cell_does_not_matter(model: PRISM, structure: Atoms) -> None:
    wrapped = structure.copy()
    wrapped.wrap()
    assert_same(model, structure, wrapped)
    scattered = wrapped.copy()
    images = np.random.default_rng(1).integers(-4, 5, size=(len(structure), 3)) * structure.pbc
    scattered.positions += images @ structure.cell.array
    assert_same(model, structure, scattered)


@pytest.mark.parametrize(
    "change", [[[1, 1, 0], [0, 1, 0], [0, 0, 1]], [[2, 1, 0], [1, 1, 0], [3, -2, 1]], [[0, 1, 0], [0, 0, 1], [1, 0, 0]]]
)
def test_lattice_basis_does_not_matter(model: PRISM, structure: Atoms, change: list) -> None:
    if not structure.pbc.all() and (change[2] != [0, 0, 1] or not structure.pbc[:2].all()):
        return  # mixes periodic with other directions: another crystal
    other = structure.copy()
    other.set_cell(np.array(change) @ structure.cell.array, scale_atoms=False)
    assert_same(model, structure, other)


def test_reduced_cell_gives_the_same(model: PRISM) -> None:
    skewed = crystal_zoo()["skewed"]
    graph = build_graph(skewed)
    reduced = skewed.copy()
    reduced.set_cell(graph.reduction.numpy() @ skewed.cell.array, scale_atoms=False)
    assert abs(reduced.cell.angles() - 90).max() < abs(skewed.cell.angles() - 90).max()
    assert_same(model, skewed, reduced)


def test_niggli_reduction_differs_by_a_rotation_only() -> None:
    # ASE's Niggli reduction also turns the crystal; turned back, the prediction is the same.
    skewed = crystal_zoo()["skewed"]
    niggli = skewed.copy()
    niggli_reduce(niggli)
    model = small_model(similarity_cutoff=50.0)
    basis = build_graph(niggli)
    ours, theirs = build_graph(skewed).edge_distance, basis.edge_distance
    torch.testing.assert_close(ours.sort().values, theirs.sort().values, rtol=0, atol=1e-8)
    rotation, distance = Rotation.align_vectors(skewed.cell.array, _same_vectors(skewed, niggli))
    assert distance < 1e-6
    niggli.set_cell(niggli.cell.array @ rotation.as_matrix().T, scale_atoms=True)
    assert_same(model, skewed, niggli)


def _same_vectors(first: Atoms, second: Atoms) -> np.ndarray:
    """The lattice vectors of ``first`` in the orientation of ``second``, by their scaled coordinates."""
    # Both describe one lattice: first = M @ second up to rotation; M follows from the metric through a search.
    metric = first.cell.array @ first.cell.array.T
    grid = np.array(np.meshgrid(*[range(-6, 7)] * 3, indexing="ij")).reshape(3, -1).T @ second.cell.array
    lengths = (grid**2).sum(axis=1)
    candidates = [grid[np.abs(lengths - metric[k, k]) < 1e-6] for k in range(3)]
    for a in candidates[0]:
        for b in candidates[1]:
            if abs(a @ b - metric[0, 1]) > 1e-6:
                continue
            for c in candidates[2]:
                right_handed = np.linalg.det([a, b, c]) * np.linalg.det(first.cell.array) > 0
                if abs(a @ c - metric[0, 2]) < 1e-6 and abs(b @ c - metric[1, 2]) < 1e-6 and right_handed:
                    return np.array([a, b, c])
    raise AssertionError("the cells do not describe one lattice")


def test_alone_equals_in_a_batch(model: PRISM) -> None:
    structures = list(crystal_zoo().values())
    alone = torch.stack([model.predict_structure(atoms) for atoms in structures])
    together = model.predict_structure(structures)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-10)
    batch = batch_graphs([build_graph(atoms, model.cutoff, model.cell_cutoff) for atoms in reversed(structures)])
    torch.testing.assert_close(model(batch).flip(0), together, rtol=0, atol=1e-10)


def test_rotation_matters_negative_control(model: PRISM) -> None:
    # Directions are Cartesian features: PRISM is not invariant, augmentation teaches it (PRISM Eq. 6).
    atoms = crystal_zoo()["low symmetry"]
    turned = atoms.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    assert abs(float(model.predict_structure(atoms)) - float(model.predict_structure(turned))) > 1e-3


def test_supercell_matters_negative_control() -> None:
    # The superatom is a sum over atoms (Eq. 3), so a supercell is another input.
    primitive = bulk("NaCl", "rocksalt", a=5.64)
    double = make_supercell(primitive, np.diag([2, 1, 1]))
    paper = small_model(similarity_cutoff=1e-6)
    difference = abs(float(paper.predict_structure(primitive)) - float(paper.predict_structure(double)))
    assert difference > 1e-3
    alone = small_model(experts=("atomistic",))
    assert_same(alone, primitive, double)


def test_prediction_is_smooth_in_the_positions_with_atomistic_edges_only() -> None:
    # An edge appears with weight 0: no jump where an atom crosses the cutoff.
    model = small_model(experts=("atomistic",), cutoff=3.0)
    values = []
    for distance in (3.0 - 1e-7, 3.0 + 1e-7):
        pair = Atoms("ArNe", positions=[[0, 0, 0], [distance, 0, 0]])
        values.append(float(model.predict_structure(pair)))
    assert values[0] == pytest.approx(values[1], abs=1e-10)
