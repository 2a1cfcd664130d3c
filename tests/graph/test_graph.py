"""Graphs: neighbors against ASE, translations and minimum images against brute force, DGL, bad input."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.cell import Cell
from ase.neighborlist import neighbor_list
from pymatgen.core import DummySpecies, Lattice, Molecule, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from prism_plugin import CrystalGraph, batch_graphs, build_graph
from prism_plugin.data import read_records
from prism_plugin.graph.dgl_format import import_dgl
from prism_plugin.graph.lattice import lattice_translations, reduced_basis
from prism_plugin.nn.minimum_image import minimum_image
from tests.conftest import crystal_zoo


def edge_table(receiver: np.ndarray, sender: np.ndarray, vector: np.ndarray) -> np.ndarray:
    table = np.column_stack([receiver, sender, np.round(vector, 6) + 0.0])
    return table[np.lexsort(table.T[::-1])]


@pytest.mark.parametrize("cutoff", [1.7, 3.05, 5.2])
def test_atomistic_edges_equal_those_of_ase(structure: Atoms, cutoff: float) -> None:
    graph = build_graph(structure, cutoff)
    receiver, sender, vector = neighbor_list("ijD", structure, cutoff)
    ours = edge_table(*graph.edge_index.numpy(), graph.edge_vector.numpy())
    theirs = edge_table(receiver, sender, vector)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert (graph.edge_distance <= cutoff).all()
    assert (torch.diff(graph.edge_index[0]) >= 0).all()


def test_a_neighbor_at_exactly_the_cutoff_is_an_edge() -> None:
    graph = build_graph(bulk("Po", "sc", a=3.0), cutoff=3.0)
    assert graph.edge_index.shape[1] == 6


@pytest.mark.parametrize("cutoff", [4.0, 9.0])
def test_cell_edges_equal_brute_force(structure: Atoms, cutoff: float) -> None:
    graph = build_graph(structure, cell_cutoff=cutoff)
    lattice = Cell(structure.cell.array).complete().array
    ranges = [range(-40, 41) if flag else (0,) for flag in structure.pbc]
    grid = np.array(list(itertools.product(*ranges)))
    length = np.linalg.norm(grid @ lattice, axis=1)
    expected = grid[(length <= cutoff) & grid.any(axis=1)]
    assert graph.cell_image.tolist() == expected.tolist()


def test_molecules_have_no_cell_edges() -> None:
    assert len(build_graph(crystal_zoo()["molecule"]).cell_image) == 0
    water = Molecule(["O", "H", "H"], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    graph = build_graph(water)
    assert len(graph.cell_image) == 0
    assert graph.edge_index.shape == (2, 6)


def test_minimum_image_equals_brute_force(structure: Atoms) -> None:
    rng = np.random.default_rng(2)
    lattice = Cell(structure.cell.array).complete().array
    displacement = rng.normal(scale=6.0, size=(50, 3))
    reduction = torch.from_numpy(reduced_basis(lattice, structure.pbc)).unsqueeze(0)
    crystal = torch.zeros(50, dtype=torch.long)
    translation = minimum_image(
        torch.tensor(displacement), crystal, torch.tensor(lattice).unsqueeze(0), reduction
    ).numpy()
    found = np.linalg.norm(displacement + translation, axis=1)
    reach = 2 * np.linalg.norm(displacement, axis=1).max()
    translations = np.vstack([np.zeros(3), lattice_translations(lattice, reach, structure.pbc) @ lattice])
    best = np.linalg.norm(displacement[:, None] + translations, axis=2).min(axis=1)
    np.testing.assert_allclose(found, best, atol=1e-9)
    coefficients = translation @ np.linalg.inv(lattice)
    np.testing.assert_allclose(coefficients, np.round(coefficients), atol=1e-8)
    assert not np.round(coefficients)[:, ~structure.pbc].any()


def test_pymatgen_and_ase_give_the_same_graph() -> None:
    atoms = crystal_zoo()["low symmetry"]
    ours, theirs = build_graph(atoms), build_graph(AseAtomsAdaptor.get_structure(atoms))
    table = [edge_table(*graph.edge_index.numpy(), graph.edge_vector.numpy()) for graph in (ours, theirs)]
    np.testing.assert_allclose(*table, atol=2e-6)
    torch.testing.assert_close(ours.atomic_numbers, theirs.atomic_numbers)
    slab = Structure(Lattice(atoms.cell.array, pbc=(True, True, False)), ["Li"], [[0, 0, 0]])
    assert build_graph(slab).pbc.tolist() == [True, True, False]


def test_oxidation_states_are_read_as_elements() -> None:
    structure = Structure(Lattice.cubic(4.2), ["Mg2+", "O2-"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert build_graph(structure).atomic_numbers.tolist() == [12, 8]


def test_edges_per_atom_on_real_crystals(shared_data) -> None:
    # Small cells of Materials Project; docs/edges.md has the whole picture beside the supplement's Fig. 3.
    records = read_records(shared_data / "mp2018" / "tiny.jsonl.xz", "e_form")
    graphs = [build_graph(record.atoms, 5.0, 15.0) for record in records]
    atoms = np.array([len(graph) for graph in graphs])
    atomistic = np.array([graph.edge_index.shape[1] for graph in graphs])
    cell = np.array([len(graph.cell_image) for graph in graphs])
    assert 20 < atomistic.sum() / atoms.sum() < 50  # about 43 on JARVIS, 34 on Materials Project
    assert np.polyfit(atoms, atomistic, 1)[0] > 15
    assert np.polyfit(atoms, cell, 1)[0] < -6.5  # the supplement's slope over all sizes; steeper on small cells
    assert graphs[0].to_dgl().num_edges("to_atom") + graphs[0].to_dgl().num_edges("to_superatom") == 2 * atoms[0]


def test_batch_and_back() -> None:
    graphs = [build_graph(atoms, 3.0, 6.0) for atoms in crystal_zoo().values()]
    batch = batch_graphs(graphs)
    assert len(batch) == len(graphs)
    for before, after in zip(graphs, batch.unbatch(), strict=True):
        assert_equal_graphs(before, after)
    moved = batch.to("cpu", torch.float32)
    assert moved.positions.dtype == torch.float32
    assert batch.positions.dtype == torch.float64


def assert_equal_graphs(first: CrystalGraph, second: CrystalGraph) -> None:
    for name in (field.name for field in dataclasses.fields(first.crystals)):
        ours, theirs = getattr(first.crystals, name), getattr(second.crystals, name)
        if isinstance(ours, torch.Tensor | np.ndarray):
            torch.testing.assert_close(torch.as_tensor(theirs), torch.as_tensor(ours), rtol=0, atol=0, msg=name)
        else:
            assert theirs == ours


def test_dgl_round_trip_batched_saved_and_pickled(structure: Atoms, tmp_path) -> None:
    dgl = import_dgl()
    graph = build_graph(structure, 3.0, 6.0)
    heterograph = graph.to_dgl()
    assert set(heterograph.ntypes) == {"atom", "superatom"}
    assert heterograph.num_edges("to_atom") == heterograph.num_edges("to_superatom") == len(graph)
    assert_equal_graphs(graph, CrystalGraph.from_dgl(heterograph))
    assert_equal_graphs(graph, CrystalGraph.from_dgl(pickle.loads(pickle.dumps(heterograph))))
    dgl.save_graphs(str(tmp_path / "graph.bin"), [heterograph])
    assert_equal_graphs(graph, CrystalGraph.from_dgl(dgl.load_graphs(str(tmp_path / "graph.bin"))[0][0]))
    other = build_graph(bulk("Cu"), 3.0, 6.0)
    batched = dgl.batch([other.to_dgl(), heterograph])
    assert_equal_graphs(graph, CrystalGraph.from_dgl(dgl.unbatch(batched)[1]))
    with pytest.raises(ValueError, match="batch of 2 crystals"):
        CrystalGraph.from_dgl(batched)


def test_dgl_features_are_what_their_names_say() -> None:
    heterograph = build_graph(crystal_zoo()["skewed"], 3.0, 6.0).to_dgl()
    sender, receiver = heterograph.edges(etype="atomistic")
    position, lattice = heterograph.nodes["atom"].data["position"], heterograph.nodes["superatom"].data["lattice"][0]
    data = heterograph.edges["atomistic"].data
    torch.testing.assert_close(data["vector"], position[sender] + data["image"].double() @ lattice - position[receiver])
    torch.testing.assert_close(data["distance"], data["vector"].norm(dim=1))


def test_foreign_dgl_graph_is_refused() -> None:
    dgl = import_dgl()
    with pytest.raises(ValueError, match="not a PRISM heterograph"):
        CrystalGraph.from_dgl(dgl.graph(([0], [1])))
    with pytest.raises(ValueError, match="not a PRISM heterograph"):
        CrystalGraph.from_dgl(None)
    stripped = build_graph(bulk("Cu")).to_dgl()
    del stripped.nodes["superatom"].data["cutoffs"]
    with pytest.raises(ValueError, match=r"lacks the features \['cutoffs'\]"):
        CrystalGraph.from_dgl(stripped)


def with_changes(**changes: object) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


def disordered() -> Structure:
    return Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


NAN = np.array([[0, 0, 0], [np.nan, 0, 0]])
BAD = {
    "no structure": (lambda: "POSCAR", TypeError, "cannot make a crystal graph of str"),
    "empty": (Atoms, ValueError, "the structure is empty"),
    "empty pymatgen": (lambda: Molecule([], []), ValueError, "the structure is empty"),
    "disordered": (disordered, ValueError, "disordered.*partial occupancy.*OrderDisordered"),
    "dummy": (lambda: Structure(Lattice.cubic(4), [DummySpecies("X")], [[0, 0, 0]]), ValueError, "unknown element 'X"),
    "no element": (lambda: Atoms("X"), ValueError, "unknown element with atomic number 0"),
    "nan": (lambda: with_changes(positions=NAN), ValueError, "position of atom 1 is not finite"),
    "inf": (lambda: with_changes(positions=np.nan_to_num(NAN, nan=np.inf)), ValueError, "position of atom 1 is not"),
    "nan cell": (lambda: Atoms("H", cell=[np.nan, 1, 1], pbc=True), ValueError, "the lattice is not finite"),
    "flat": (lambda: Atoms("H", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True), ValueError, "spans no volume"),
    "no cell": (lambda: Atoms("H", pbc=True), ValueError, "spans no volume"),
    "same place": (lambda: Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.05]]), ValueError, "atoms 0 and 1 lie on top"),
    "same place, next cell": (
        lambda: Atoms("H2", scaled_positions=[[0, 0, 0], [0, 0, 1]], cell=[3, 3, 3], pbc=True),
        ValueError,
        "lie on top of each other",
    ),
    "own image": (lambda: Atoms("H", cell=[0.05, 3, 3], pbc=True), ValueError, "on top of its own image.*is it in Å"),
    "far too large": (
        lambda: Atoms("H2", positions=[[0, 0, 0], [0, 0, 2e4]]),
        ValueError,
        "the atoms spread over 20000",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_structures_are_refused_with_the_reason(name: str) -> None:
    make, error, message = BAD[name]
    structure = make()
    with pytest.raises(error, match=message):
        build_graph(structure)


def test_odd_but_good_structures_are_taken() -> None:
    # Vectors along which nothing repeats may be anything; a skewed basis of a good lattice is no flat one.
    slab = Atoms("Al", cell=[[2.8, 0, 0], [0, 2.8, 0], [2.8, 0, 0]], pbc=[True, True, False])
    assert build_graph(slab, 3.0).edge_index.shape[1] == 4
    flat = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.8]], cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]])
    assert build_graph(flat, 3.0).edge_index.shape[1] == 2
    skewed = Atoms("Po", cell=[[3, 0, 0], [300, 3, 0], [300, 300, 3]], pbc=True)
    straight = build_graph(Atoms("Po", cell=[3, 3, 3], pbc=True), 4.5, 9.0)
    graph = build_graph(skewed, 4.5, 9.0)
    assert len(graph.cell_image) == len(straight.cell_image)
    assert graph.edge_index.shape == straight.edge_index.shape
    away = Atoms("Cu2", positions=[[0, 0, 0], [3.6e5 + 1.8, 0, 0]], cell=[3.6, 3.6, 3.6], pbc=True)
    assert build_graph(away).edge_distance.max() <= 5.0


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan"), float("inf"), "5"])
def test_bad_cutoffs_are_refused(cutoff: object) -> None:
    with pytest.raises(ValueError, match="must be a positive number of Å"):
        build_graph(bulk("Cu"), cutoff=cutoff)
    with pytest.raises(ValueError, match="must be a positive number of Å"):
        build_graph(bulk("Cu"), cell_cutoff=cutoff)


def test_batches_of_nothing_or_of_different_cutoffs_are_refused() -> None:
    with pytest.raises(ValueError, match="empty list"):
        batch_graphs([])
    with pytest.raises(TypeError, match="can only batch CrystalGraphs, got Atoms"):
        batch_graphs([bulk("Cu")])
    with pytest.raises(ValueError, match="different cutoffs"):
        batch_graphs([build_graph(bulk("Cu"), 3.0), build_graph(bulk("Cu"), 4.0)])


def test_the_input_is_left_as_it_was(structure: Atoms) -> None:
    before = copy.deepcopy(structure)
    build_graph(structure)
    assert structure == before
