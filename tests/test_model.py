"""The model as specified: sizes, options, input kinds, modes, fusion weights."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from ase.build import bulk

from prism_plugin import PRISM, batch_graphs, build_graph
from prism_plugin.config import EXPERTS
from prism_plugin.graph.dgl_format import import_dgl
from prism_plugin.nn.backbones.cartnet import GatedMessagePassing, MultiscaleMessagePassing
from prism_plugin.nn.encoders import EdgeEncoder, SuperatomEncoder
from prism_plugin.nn.feature_neighbors import similar_pairs
from prism_plugin.pretrained import gives_energy
from tests.conftest import crystal_zoo, small_model


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_of_the_specification() -> None:
    assert count(GatedMessagePassing(256)) == 526_336
    assert count(EdgeEncoder(256, 5.0, 64)) == 166_144
    assert count(MultiscaleMessagePassing(256)) == 197_632 + 512  # the second BatchNorm
    assert count(SuperatomEncoder(256)) == 227_840
    assert count(PRISM().head) == 33_025
    assert count(PRISM()) == 8_659_733
    assert count(PRISM(atom_encoder="cartnet")) == 8_559_125
    assert count(PRISM(atom_encoder="cartnet", experts=("atomistic",))) == 2_497_281  # CartNet


SUBSETS = [s for size in range(1, 5) for s in itertools.combinations(EXPERTS, size)]


@pytest.mark.parametrize("experts", SUBSETS, ids="+".join)
@pytest.mark.parametrize("fusion", ["scalar", "gated"])
def test_any_subset_of_experts_predicts_and_trains(experts: tuple[str, ...], fusion: str) -> None:
    model = small_model(experts=experts, fusion=fusion).train()
    batch = batch_graphs([build_graph(atoms, 3.2, 6.0) for atoms in crystal_zoo().values()])
    prediction = model(batch)
    assert prediction.shape == (len(batch),)
    prediction.square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    weights = model.fusion_weights()
    for nodes, table in weights.items():
        assert len(table) == (2 if nodes == "atoms" else 1)
        assert all(sum(row.values()) == pytest.approx(1) for row in table)
    assert ("atoms" in weights) == bool(set(experts) - {"cell"})
    assert ("superatoms" in weights) == bool({"cell", "multiscale"} & set(experts))


def test_fusion_starts_with_equal_weights() -> None:
    weights = PRISM(dim=4, num_layers=2).fusion_weights()
    assert weights["atoms"][0] == pytest.approx(dict.fromkeys(("atomistic", "similarity", "multiscale"), 1 / 3))
    assert weights["superatoms"][0] == pytest.approx({"cell": 0.5, "multiscale": 0.5})


def test_gated_fusion_weights_need_a_prediction_first() -> None:
    with pytest.raises(RuntimeError, match="predict something first"):
        PRISM(dim=4, num_layers=1, fusion="gated").fusion_weights()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(crystal_zoo()))
def test_every_kind_of_crystal_alone_in_both_modes(name: str, training: bool) -> None:
    model = small_model().train(training)
    batch = batch_graphs([build_graph(crystal_zoo()[name], 3.2, 6.0)])
    prediction = model(batch)
    prediction.sum().backward()
    assert torch.isfinite(prediction).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_cell_of_200_atoms(model: PRISM) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (5, 5, 1)
    assert len(atoms) == 200
    atoms.rattle(0.05, seed=1)
    assert torch.isfinite(model.predict_structure(atoms))


def test_all_graph_formats_give_the_same(model: PRISM) -> None:
    dgl = import_dgl()
    graphs = [build_graph(atoms, 3.2, 6.0) for atoms in crystal_zoo().values()]
    expected = model(batch_graphs(graphs))
    heterographs = [graph.to_dgl() for graph in graphs]
    torch.testing.assert_close(model(dgl.batch(heterographs)), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([model(g) for g in heterographs]), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([model(graph) for graph in graphs]), expected, rtol=0, atol=1e-12)


def test_predict_structure_is_right_in_any_mode_and_restores_it(model: PRISM) -> None:
    atoms = crystal_zoo()["low symmetry"]
    expected = model.predict_structure(atoms)
    assert expected.shape == ()
    assert expected.dtype == torch.float64
    model.train()
    model.head.eval()
    buffers = copy.deepcopy(dict(model.named_buffers()))
    assert torch.equal(model.predict_structure(atoms), expected)
    assert model.training
    assert model.layers[0].training
    assert not model.head.training
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    assert model.predict_structure([]).shape == (0,)
    assert torch.equal(model.predict_structure([atoms]), expected.unsqueeze(0))
    assert model.float().predict_structure(atoms).dtype == torch.float32


def test_batch_size_does_not_matter(model: PRISM) -> None:
    structures = list(crystal_zoo().values())
    one_by_one = model.predict_structure(structures, batch_size=1)
    torch.testing.assert_close(model.predict_structure(structures, batch_size=5), one_by_one, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        model.predict_structure(structures, batch_size=0)


def test_feature_dict_and_deepcopy(model: PRISM) -> None:
    model.train()
    model(build_graph(bulk("NaCl", "rocksalt", a=5.64), 3.2, 6.0))
    assert list(model.feature_dict) == ["embedding", "gc_1", "gc_2", "readout", "final"]
    assert model.feature_dict["gc_1"]["node_feat"].shape == (2, 8)
    assert model.feature_dict["gc_1"]["superatom_feat"].shape == (1, 8)
    torch.testing.assert_close(model.feature_dict["readout"].mean(), model.feature_dict["final"][0])
    copy.deepcopy(model)


def test_forward_leaves_its_input_as_it_was(model: PRISM) -> None:
    batch = batch_graphs([build_graph(atoms, 3.2, 6.0) for atoms in crystal_zoo().values()])
    before = copy.deepcopy(batch)
    model(batch).sum().backward()
    for name, value in vars(before).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(batch, name), value)


def test_superatom_attention_does_not_look_into_other_crystals() -> None:
    encoder = SuperatomEncoder(8).double()
    alone = encoder(torch.tensor([3, 8, 8]), torch.zeros(3, dtype=torch.long), 1, (3, 8))
    both = encoder(torch.tensor([3, 8, 8, 1, 2, 4, 5]), torch.tensor([0, 0, 0, 1, 1, 1, 1]), 2, (1, 2, 3, 4, 5, 8))
    torch.testing.assert_close(both[:1], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_similar_pairs_equal_brute_force(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    atoms = torch.randn(40, 3, generator=generator, dtype=dtype) + 100.0
    atoms[7] = atoms[3]
    crystal = torch.arange(40) // 13
    index, squared = similar_pairs(atoms, crystal, np.bincount(crystal), 1.2)
    difference = atoms.unsqueeze(1) - atoms.unsqueeze(0)
    near = ((difference**2).sum(-1) <= 1.44) & (crystal.unsqueeze(1) == crystal) & ~torch.eye(40, dtype=torch.bool)
    assert torch.equal(index, near.nonzero().T)
    torch.testing.assert_close(squared, (difference**2).sum(-1)[near])


def test_similar_pairs_of_a_large_crystal_in_blocks() -> None:
    atoms = torch.arange(2500.0).unsqueeze(1)
    index, _ = similar_pairs(atoms, torch.zeros(2500, dtype=torch.long), np.array([2500]), 1.0)
    assert index.shape == (2, 2 * 2499)


def test_the_threshold_of_similarity_can_be_learned() -> None:
    # The feature envelope depends on the features, so a gradient reaches them through it.
    model = small_model(experts=("similarity",), similarity_cutoff=3.0)
    model(build_graph(bulk("NaCl", "rocksalt", a=5.64), 3.2, 6.0)).sum().backward()
    assert model.atom_encoder.embedding.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fusion": "mean"}, "unknown fusion 'mean'; choose one of: 'scalar', 'gated'"),
        ({"similarity_envelope": "none"}, "unknown similarity_envelope 'none'"),
        ({"experts": ()}, "experts must be some of"),
        ({"experts": ("atomistic", "line")}, "experts must be some of"),
        ({"experts": ("cell", "cell")}, "experts must be some of"),
        ({"element_types": ("Na", "Xx")}, "element_types must be chemical symbols, got .*Xx"),
        ({"element_types": ()}, "element_types must be chemical symbols"),
        ({"dim": 0}, "dim must be a whole number of at least 2 and at most 4096, got 0"),
        ({"dim": 1}, "dim must be a whole number of at least 2 and at most 4096, got 1"),
        ({"cutoff": -5.0}, "cutoff must be a positive number of at most 100, got -5.0"),
        ({"std": 0.0}, "std must be a positive number, got 0.0"),
        ({"mean": float("nan")}, "mean must be a number, got nan"),
        ({"dim": "abc"}, "dim must be a whole number of at least 2 and at most 4096, got 'abc'"),
        ({"dim": 2.7}, "dim must be a whole number of at least 2 and at most 4096, got 2.7"),
        ({"experts": 5}, "experts must be a tuple, each a text, got 5"),
        ({"element_types": ("Na", "Na")}, "names an element twice"),
        ({"dropout": 1.0}, "dropout must be a number of at least 0 and below 1, got 1.0"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PRISM(**arguments)


def test_unknown_elements_and_wrong_cutoffs_are_refused() -> None:
    model = PRISM(element_types=("Na", "Cl"), dim=4, num_layers=1)
    with pytest.raises(
        ValueError, match=r"unknown elements Cs: this model was made for 2 elements \(Na, Cl\)|unknown element Cs"
    ):
        model.predict_structure([bulk("NaCl", "rocksalt", a=5.64), bulk("CsCl", "cesiumchloride", a=4.1)])
    with pytest.raises(ValueError, match=r"the model needs 5.0 and 15.0"):
        model(build_graph(bulk("Na"), 4.0))
    with pytest.raises(TypeError, match="cannot read str as a crystal graph"):
        model("NaCl")


def test_a_bound_of_predictions_is_none_of_the_training() -> None:
    crystals = [bulk("Cu"), bulk("NaCl", "rocksalt", a=5.6), bulk("Si")]
    free = small_model()
    values = free.predict_structure(crystals)
    middle = float(values.median())
    bound = small_model(minimum=middle)
    assert torch.equal(bound.predict_structure(crystals), values.clamp(min=middle))
    batch = batch_graphs([build_graph(one, *free.cutoffs) for one in crystals])
    assert torch.equal(bound.train().read_out(batch), free.train().read_out(batch))
    assert not gives_energy(small_model(minimum=0.0, unit="eV/atom"))
    with pytest.raises(ValueError, match="minimum is for a regression"):
        PRISM(minimum=0.0, task_type="classification")
