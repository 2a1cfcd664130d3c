"""ComFormer's networks under PRISM: counts, symmetries of each, ties, what is refused; their twins: test_reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from ase.io import write
from e3nn import o3
from scipy.spatial.transform import Rotation

from prism_plugin import PRISM, PRISMCalculator, PRISMPotential, batch_graphs, build_graph, cli
from prism_plugin.config import EXPERTS
from prism_plugin.data import Record
from prism_plugin.edge_counts import count_edges
from prism_plugin.errors import PrismError
from prism_plugin.graph.lattice import reduced_bases, shortest_axes
from prism_plugin.graph.reverse import neighbor_table
from prism_plugin.nn.backbones.comformer import AttentiveMessagePassing
from prism_plugin.nn.backbones.ecomformer import contract, spread
from prism_plugin.training import TrainingSettings, train
from tests.conftest import crystal_zoo, random_potential, small_model

COMFORMERS = ("icomformer", "ecomformer")
ALONE = {"experts": ("atomistic",), "atom_encoder": "embedding", "neighbors": 12, "cutoff": 6.0}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def value(model: PRISM, atoms: Atoms) -> float:
    return float(model.predict_structure(atoms))


@pytest.fixture(params=COMFORMERS)
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[ALONE, {"similarity_cutoff": 50.0}], ids=["alone", "all experts"])
def model(request: pytest.FixtureRequest, backbone: str) -> PRISM:
    return small_model(**request.param, backbone=backbone)


def seen(model: PRISM) -> dict[str, Atoms]:
    """The crystals of the zoo that the model can read."""
    every = crystal_zoo()
    if model.arguments["backbone"] == "icomformer":
        return {name: atoms for name, atoms in every.items() if atoms.pbc.all()}
    return every


def test_sizes_are_those_of_the_descriptions() -> None:
    assert count(AttentiveMessagePassing(256)) == 855_296
    alone = {"dim": 256, "num_rbf": 256, "experts": ("atomistic",), "atom_encoder": "embedding", "neighbors": 25}
    # The supplement says 5.0 and 12.4 million; the latter is near eComFormer with all experts (docs/backbones.md).
    assert count(PRISM(**alone, num_layers=4, backbone="icomformer")) == 4_866_305
    assert count(PRISM(**alone, num_layers=3, backbone="ecomformer")) == 5_557_441
    assert count(PRISM(**{**alone, "experts": EXPERTS}, num_layers=3, backbone="ecomformer")) == 12_169_424


def test_turned_and_mirrored_crystals_are_the_same(model: PRISM) -> None:
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    for matrix in (turn, -turn):
        for name, atoms in seen(model).items():
            turned = atoms.copy()
            turned.set_cell(atoms.cell.array @ matrix, scale_atoms=False)
            turned.positions = atoms.positions @ matrix
            assert value(model, turned) == pytest.approx(value(model, atoms), abs=1e-10), name


@pytest.mark.parametrize("change", [[[1, 1, 0], [0, 1, 0], [0, 0, 1]], [[2, 1, 0], [1, 1, 0], [3, -2, 1]]])
def test_the_basis_does_not_matter(model: PRISM, change: list) -> None:
    # Cubic and hexagonal lattices have several shortest vectors: any basis must find them all.
    crystals = {**seen(model), "hcp": bulk("Mg"), "bcc": bulk("Fe"), "simple cubic": bulk("Po", "sc", a=3.35)}
    for name, atoms in crystals.items():
        if atoms.pbc.all():
            other = atoms.copy()
            other.set_cell(np.array(change) @ atoms.cell.array, scale_atoms=False)
            other.positions += [0.3, -1.2, 0.4]
            assert value(model, other) == pytest.approx(value(model, atoms), abs=1e-10), name


def test_alone_equals_in_a_batch(model: PRISM) -> None:
    structures = list(seen(model).values())
    alone = torch.stack([model.predict_structure(atoms) for atoms in structures])
    torch.testing.assert_close(alone, model.predict_structure(structures), rtol=0, atol=1e-10)


def test_a_supercell_is_another_crystal_to_icomformer_only() -> None:
    primitive = crystal_zoo()["low symmetry"]
    double = make_supercell(primitive, np.diag([2, 1, 1]))
    equivariant, lattice = (small_model(**ALONE, backbone=name) for name in ("ecomformer", "icomformer"))
    assert value(equivariant, double) == pytest.approx(value(equivariant, primitive), abs=1e-10)
    assert abs(value(lattice, double) - value(lattice, primitive)) > 1e-4  # the published network's, too


def test_angles_matter(backbone: str) -> None:
    # Alike in all distances up to the cutoff, different in the angle: what the convolutions alone cannot tell apart.
    def bent(degrees: float) -> Atoms:
        far = 1.5 * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0])
        return Atoms("OHH", positions=[[0, 0, 0], [1.5, 0, 0], far], cell=[20, 20, 20], pbc=True)

    model = small_model(experts=("atomistic",), backbone=backbone, cutoff=1.6)
    assert abs(value(model, bent(100)) - value(model, bent(140))) > 1e-6
    model.update = None
    assert value(model, bent(100)) == pytest.approx(value(model, bent(140)), abs=1e-12)


def test_tensors_turn_with_the_crystal() -> None:
    update = small_model(**ALONE, backbone="ecomformer").update
    matrix = torch.tensor(Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()).T
    some = torch.randn(30, 3, dtype=torch.float64)
    before, after = update.harmonics(some), update.harmonics(some @ matrix)
    turns = [torch.linalg.lstsq(before[:, part], after[:, part]) for part in (slice(1, 4), slice(4, 9))]
    torch.testing.assert_close(before[:, 4:] @ turns[1].solution, after[:, 4:], rtol=0, atol=1e-12)


def test_products_are_those_of_e3nn() -> None:
    """Its tensor products, with weights of each edge, in place of what is computed once for each atom."""
    update = small_model(**ALONE, backbone="ecomformer").update
    edges, atoms = 40, 7
    index = torch.randint(atoms, (2, edges))
    y = update.harmonics(torch.randn(edges, 3, dtype=torch.float64))
    e = torch.randn(edges, update.skip.in_features, dtype=torch.float64)
    own, tensors = (torch.randn(atoms, width, dtype=torch.float64) for width in (64, 128))
    few, many = "64x0e", "64x0e + 8x1o + 8x2e"
    first, second = (
        o3.FullyConnectedTensorProduct(before, update.harmonics.irreps_out, after, shared_weights=False).double()
        for before, after in ((few, many), (many, few))
    )
    expected = first(own[index[1]], y, update.first_weights(e))
    found = spread(update._of_senders(own, e, index), y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    expected = second(tensors[index[1]], y, update.second_weights(e))
    found = update._of_receivers(contract(tensors[index[1]], y), e, neighbor_table(index, atoms), atoms)
    torch.testing.assert_close(found, torch.zeros_like(found).index_add(0, index[0], expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("cell", "counts"),
    [
        (bulk("Po", "sc", a=3.0).cell, (3, 3, 3)),
        (bulk("Cu").cell, (6, 6, 6)),
        (bulk("Fe").cell, (4, 4, 4)),
        (bulk("Mg").cell, (3, 3, 1)),
        (np.diag([3.0, 3.0, 4.0]), (2, 2, 1)),
        (np.diag([1.0, 1.0, 3.0]), (2, 2, 1)),
        (np.diag([3.0, 4.0, 4.0]), (1, 2, 2)),
        ([[3, 0, 0], [1.5, 3, 0], [0, 0, 5]], (1, 2, 1)),
        ([[3, 0, 0], [0.2, 4, 0], [0.3, 0.1, 5]], (1, 1, 1)),
    ],
    ids=str,
)
def test_ties_of_the_shortest_vectors(cell: object, counts: tuple[int, ...]) -> None:
    lattice = np.array(cell, dtype=float)[None]
    reduction = reduced_bases(torch.from_numpy(lattice), torch.ones(1, 3, dtype=torch.bool)).numpy()
    index, weight = shortest_axes(lattice, reduction)
    assert tuple((weight[0] > 0).sum(axis=0)) == counts
    np.testing.assert_allclose(weight[0].sum(axis=0), 1)
    lengths = np.linalg.norm(index[0] @ lattice[0], axis=1)
    found = [lengths[weight[0, :, k] > 0] for k in range(3)]
    assert all(np.ptp(some) < 1e-9 for some in found)
    assert found[0][0] <= found[1][0] <= found[2][0]


def test_nearest_neighbors_come_in_whole_shells() -> None:
    rocksalt = build_graph(bulk("NaCl", "rocksalt", a=5.64), 8.0).crystals
    for number, kept in ((1, 6), (6, 6), (7, 18), (25, 26), (10_000, rocksalt.sizes[0, 1] // 2)):
        nearest = rocksalt.nearest(number)
        assert nearest.sizes[0, 1] == nearest.edge_index.shape[1] == 2 * kept
    both = batch_graphs([build_graph(bulk("Cu"), 8.0), build_graph(bulk("Fe"), 8.0)]).nearest(8)
    assert both.sizes[:, 1].tolist() == [12, 8]
    assert build_graph(Atoms("Ar")).crystals.nearest(3).edge_index.shape == (2, 0)


def test_edges_are_counted_as_they_are_used() -> None:
    model = small_model(**{**ALONE, "neighbors": 25, "cutoff": 8.0}, backbone="icomformer")
    counts = count_edges([bulk("Cu"), bulk("NaCl", "rocksalt", a=5.64)], model, progress=False)
    assert counts["atomistic"].tolist() == [42, 2 * 26]  # whole shells: 12 + 6 + 24, and 6 + 12 + 8


def test_a_neighbor_that_comes_nearer_makes_the_prediction_jump() -> None:
    # Therefore potentials have all neighbors, with an envelope.
    def at(distance: float) -> Atoms:
        return Atoms("ArHHe", positions=[[0, 0, 0], [2, 0, 0], [0, distance, 0]])

    model = small_model(**{**ALONE, "neighbors": 1}, backbone="ecomformer")
    assert abs(value(model, at(2.0005)) - value(model, at(2.0015))) > 1e-3
    smooth = small_model(experts=("atomistic",), backbone="ecomformer", cutoff=3.0)
    assert value(smooth, at(3 - 1e-7)) == pytest.approx(value(smooth, at(3 + 1e-7)), abs=1e-10)


def test_ecomformer_is_a_potential() -> None:
    potential = random_potential(backbone="ecomformer", cutoff=4.0)
    atoms = crystal_zoo()["low symmetry"]
    batch = potential.as_batch(build_graph(atoms, *potential.cutoffs))
    positions = batch.positions.clone().requires_grad_()

    def energy(points: torch.Tensor) -> torch.Tensor:
        return potential(batch.moved(points, batch.lattice))

    assert torch.autograd.gradcheck(energy, positions)
    assert torch.autograd.gradgradcheck(energy, positions)
    double = make_supercell(atoms, np.diag([2, 1, 1]))
    assert value(potential, double) == pytest.approx(2 * value(potential, atoms), rel=1e-11)


def test_what_does_not_go_together_is_refused(backbone: str) -> None:
    with pytest.raises(PrismError, match="rbf_scale and directions: of CartNet's edges"):
        PRISM(backbone=backbone, rbf_scale="even", directions=False)
    with pytest.raises(PrismError, match="num_rbf of 2"):
        PRISM(backbone=backbone, num_rbf=1)
    with pytest.raises(PrismError, match="angular weighs edges by their envelope"):
        PRISM(angular=4, neighbors=3)
    with pytest.raises(PrismError, match="needs the atomistic expert"):
        PRISM(neighbors=3, experts=("cell",))
    with pytest.raises(PrismError, match="recompute is of CartNet"):
        TrainingSettings(target="e", model={"backbone": backbone}, recompute=True)
    with pytest.raises(PrismError, match="recompute is of CartNet"):
        PRISM(dim=8, num_layers=1, backbone=backbone).recompute = True
    with pytest.raises(PrismError, match="no potential"):
        PRISMPotential(backbone="icomformer")


def test_icomformer_names_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(backbone="icomformer", unit="eV/atom", target="energy").float()
    for ask in (model.predict_structure, model.descriptors, PRISMCalculator(model).predict):
        with pytest.raises(PrismError, match="not periodic in three directions"):
            ask([bulk("Cu"), molecule("H2O")])
    model.save(tmp_path / "model")
    write(tmp_path / "mixed.extxyz", [bulk("Cu"), molecule("H2O"), bulk("Fe")])
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", "mixed.extxyz", "--model", "model", "--out", "table.csv", "--device", "cpu"]) == 0
    first, second, third = (tmp_path / "table.csv").read_text().splitlines()[1:]
    assert "not periodic" in second
    assert "not periodic" not in first + third
    records = [
        Record(atoms, 0.1 * n, str(n)) for n, atoms in enumerate([bulk("Cu"), bulk("Cu", a=3.7), molecule("H2")])
    ]
    settings = TrainingSettings(target="e", unit="eV/atom", model={"backbone": "icomformer", "dim": 8}, epochs=1)
    with pytest.raises(PrismError, match=r"crystal '2' of the train part: .* not periodic"):
        train(settings, {"train": records, "val": records[:1]}, tmp_path / "run", progress=False)


@pytest.mark.parametrize("neighbors", [0, 8])
def test_a_step_in_bfloat16(backbone: str, neighbors: int) -> None:
    torch.manual_seed(0)
    model = PRISM(dim=16, num_layers=2, num_rbf=8, backbone=backbone, neighbors=neighbors, cutoff=4.0).train()
    structures = [bulk("NaCl", "rocksalt", a=5.64), bulk("Cu"), bulk("Mg")]
    batch = batch_graphs([build_graph(atoms, *model.cutoffs) for atoms in structures])
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        answer = model(batch)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, exact, rtol=0.1, atol=0.1)
    answer.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
