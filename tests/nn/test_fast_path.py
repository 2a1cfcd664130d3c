"""Kind 1, reference: the fast path against its slow twins; and what it may cost."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import prism_plugin.nn.gated_conv
import prism_plugin.nn.layer
import prism_plugin.nn.linear
import prism_plugin.nn.tiling
from prism_plugin import PRISM, batch_graphs, build_graph
from prism_plugin.data import rotate_batch
from prism_plugin.data.augmentation import random_rotations
from prism_plugin.forces import energies_with_gradients
from prism_plugin.graph.crystals import CrystalBatch
from prism_plugin.nn.autograd_mode import gradients_of_inputs
from prism_plugin.nn.feature_neighbors import similar_blocks, similar_pairs
from prism_plugin.nn.gated_conv import GatedTensors, Settings, gated_messages, plain_messages
from prism_plugin.nn.linear import linear, product
from prism_plugin.nn.minimum_image import blended_image, minimum_image
from prism_plugin.nn.silu import silu
from prism_plugin.nn.tiling import in_tiles, tiles
from tests.conftest import crystal_zoo, small_model

_specification = importlib.util.spec_from_file_location("twins", Path(__file__).parents[2] / "benchmarks" / "twins.py")
twins = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(twins)

NAMES = ("cesium chloride", "skewed", "slab", "one atom", "low symmetry", "wire")


@pytest.fixture
def many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a few rows, and similarity edges in blocks of a few pairs."""
    monkeypatch.setattr(prism_plugin.nn.tiling, "_NUMBERS", {"cpu": 112})
    monkeypatch.setattr(prism_plugin.nn.tiling, "_FEWEST_ROWS", 7)
    monkeypatch.setattr(prism_plugin.nn.linear, "_ONEDNN_PAYS", 0)
    monkeypatch.setattr(prism_plugin.nn.gated_conv, "_LITTLE", 0)
    monkeypatch.setattr(prism_plugin.nn.layer, "_NUMBERS_PER_BLOCK", 40)


def batch_of(model: PRISM, names: tuple[str, ...] = NAMES) -> CrystalBatch:
    return batch_graphs([build_graph(crystal_zoo()[name], model.cutoff, model.cell_cutoff) for name in names])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "variant",
    [
        {"similarity_cutoff": 3.0},
        {"similarity_cutoff": 3.0, "similarity_envelope": "cosine", "cutoff": 4.5},
        {"similarity_cutoff": 3.0, "similarity_envelope": None, "fusion": "gated"},
        {"similarity_cutoff": 3.0, "norm": None},
        {"experts": ("atomistic",), "atom_encoder": "cartnet"},
        {"directions": False, "initial_norm": True, "cell": "reciprocal", "multiscale": "residual"},
    ],
    ids=str,
)
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
def test_fast_path_equals_the_naive_twin(many_tiles, variant: dict, training: bool, recompute: bool) -> None:
    model = small_model(**variant).train(training)
    twin = twins.naive(copy.deepcopy(model))
    model.recompute = recompute
    batch = batch_of(model)
    assert batch.edge_index.shape[1] > 10 * 7
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model)(batch), copy.deepcopy(twin)(batch), rtol=1e-12, atol=1e-12)
    answers = []
    for one in (model, twin):
        prediction = one(batch)
        gradients = torch.autograd.grad(prediction.square().sum(), list(one.parameters()), allow_unused=True)
        answers.append((prediction, *gradients, *[buffer.clone() for buffer in one.buffers()]))
    names = [
        "prediction",
        *[name for name, _ in model.named_parameters()],
        *[name for name, _ in model.named_buffers()],
    ]
    for name, ours, theirs in zip(names, *answers, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            scale = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
            torch.testing.assert_close(
                ours, theirs, rtol=1e-12, atol=1e-12 * max(scale, 1.0), msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("create_graph", [False, True])
def test_forces_of_the_fast_path_equal_those_of_the_twin(many_tiles, create_graph: bool) -> None:
    model = small_model(similarity_cutoff=3.0)
    twin = twins.naive(copy.deepcopy(model))
    ours, theirs = (energies_with_gradients(one, batch_of(one), create_graph) for one in (model, twin))
    for name in ("energies", "forces", "virial"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-11, atol=1e-12)
    if create_graph:  # forces differentiated by the weights
        losses = [answer.forces.square().sum() + answer.virial.square().sum() for answer in (ours, theirs)]
        pairs = zip(losses, (model, twin), strict=True)
        grads = [torch.autograd.grad(loss, list(one.parameters()), allow_unused=True) for loss, one in pairs]
        scale = max(float(grad.abs().max()) for grad in grads[1] if grad is not None)
        for our, their in zip(*grads, strict=True):
            assert (our is None) == (their is None)
            if our is not None:
                torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-12 * scale)


def gated_inputs(norm: bool, envelope: bool, edges: int = 23, dim: int = 4) -> tuple[GatedTensors, Settings]:
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    nodes = 5
    index = torch.randint(nodes, (2, edges), generator=generator)
    tensors = GatedTensors(
        random(nodes, 2 * dim),
        random(nodes, 2 * dim),
        random(edges, dim),
        random(edges) if envelope else None,
        random(2 * dim, dim),
        random(dim, dim),
        random(dim),
        random(dim, dim),
        random(dim),
        random(dim) if norm else None,
        random(dim) if norm else None,
    )
    return tensors, Settings(index, True, 1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("envelope", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_gated_messages_have_the_gradients_of_finite_differences(many_tiles, norm, envelope, recompute) -> None:
    tensors, settings = gated_inputs(norm, envelope)
    there = [name for name, tensor in tensors._asdict().items() if tensor is not None]

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        filled = tensors._replace(**dict(zip(there, given, strict=True)))
        return gated_messages(filled, settings, recompute)[:2]

    given = tuple(getattr(tensors, name) for name in there)
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


@pytest.mark.parametrize("update_edges", [False, True])
@pytest.mark.parametrize(  # of fewer than two edges there are no statistics, FeatureNorm takes the running ones
    ("norm", "edges"), [(norm, edges) for edges in (0, 1, 2, 7, 23) for norm in (False, True) if edges > 1 or not norm]
)
def test_gated_messages_equal_the_plain_ones(many_tiles, norm: bool, update_edges: bool, edges: int) -> None:
    tensors, settings = gated_inputs(norm, True, edges)
    settings = settings._replace(update_edges=update_edges)
    ours, plain = gated_messages(tensors, settings), plain_messages(tensors, settings)
    for our, their in zip(ours, plain, strict=True):
        assert (our is None) == (their is None)
        if our is not None:
            torch.testing.assert_close(our, their, rtol=1e-12, atol=1e-12)
    for only in range(2 if update_edges else 1):  # also if only one of the answers is differentiated
        losses = [answer[only].sin().sum() for answer in (ours, plain)]
        wanted = [tensor for tensor in tensors if tensor is not None]
        found = [torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True) for loss in losses]
        for our, their in zip(*found, strict=True):
            torch.testing.assert_close(
                torch.zeros(()).double() if our is None else our.sum(),
                torch.zeros(()).double() if their is None else their.sum(),
                rtol=1e-11,
                atol=1e-11,
            )


def test_products_by_onednn_equal_those_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((3000, 96), (64, 96), (64,)))
    plus = torch.randn(3000, 64, generator=generator)
    exact = rows.double() @ weight.double().T + bias.double()
    assert rows.numel() * len(weight) > prism_plugin.nn.linear._ONEDNN_PAYS
    torch.testing.assert_close(product(rows, weight, bias).double(), exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(product(rows, weight, bias, plus).double(), exact + plus.double(), rtol=1e-5, atol=1e-4)
    every_second = torch.randn(128, generator=generator)[::2]
    torch.testing.assert_close(
        product(rows, weight, every_second),
        torch.nn.functional.linear(rows, weight, every_second),
        rtol=1e-5,
        atol=1e-4,
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        product(rows, weight[:, :90])
    wide = torch.randn(64, 300, generator=generator)
    part = wide.split(96, dim=1)[1]  # oneDNN alone takes a hundred times longer for it
    torch.testing.assert_close(product(rows, part), torch.nn.functional.linear(rows, part), rtol=1e-5, atol=1e-4)
    torch._C._set_mkldnn_enabled(False)
    try:
        torch.testing.assert_close(product(rows, weight, bias), torch.nn.functional.linear(rows, weight, bias))
    finally:
        torch._C._set_mkldnn_enabled(True)


def test_linear_can_be_differentiated_twice(many_tiles) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((5, 3), (4, 3), (4,))
    )
    assert torch.autograd.gradcheck(linear, (rows, weight, bias))
    assert torch.autograd.gradgradcheck(linear, (rows, weight, bias))


def test_in_tiles_can_be_differentiated_twice(many_tiles) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in ((17, 3), (4, 3))
    )

    def function(rows: Tensor, weight: Tensor) -> Tensor:
        return in_tiles(lambda r, w: torch.sin(r @ w.T), (rows,), (weight,), 16)

    assert len(tiles(17, 16, rows.device)) == 3
    torch.testing.assert_close(function(rows, weight), torch.sin(rows @ weight.T))
    assert torch.autograd.gradcheck(function, (rows, weight))
    assert torch.autograd.gradgradcheck(function, (rows, weight))


@pytest.mark.parametrize("tile", [7, 2**15])
def test_silu_has_the_derivatives_of_torch(monkeypatch, tile: int) -> None:
    monkeypatch.setattr("prism_plugin.nn.silu._NUMBERS", tile)
    generator = torch.Generator().manual_seed(0)
    rows = (5 * torch.randn(11, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    one, two = (torch.randn(11, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))

    def derivatives(function: Callable[[Tensor], Tensor], more: bool) -> list[Tensor]:
        value = function(rows)
        (first,) = torch.autograd.grad(value, rows, one, create_graph=True)
        second = torch.autograd.grad(first, (one, rows), two, create_graph=more)
        third = torch.autograd.grad(second[1].sum(), (one, two, rows)) if more else ()
        return [value, first, *second, *third]

    for more in (False, True):
        with gradients_of_inputs(twice=True):
            ours = derivatives(silu, more)
        plain = derivatives(torch.nn.functional.silu, more)
        torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-13)
    with gradients_of_inputs(twice=True):
        assert torch.autograd.gradcheck(silu, rows)
        assert torch.autograd.gradgradcheck(silu, rows)


def test_weights_have_no_gradients_where_only_those_of_inputs_are_wanted() -> None:
    expert = small_model().layers[0].experts["atomistic"]
    nodes, edges = (torch.randn(rows, 8, dtype=torch.float64).requires_grad_() for rows in (3, 4))
    with gradients_of_inputs(twice=False):
        answer = expert.update(
            nodes, expert.messages(nodes, edges, torch.tensor([[0, 0, 1, 2]] * 2), None, False).total
        )
    names, weights = zip(*expert.named_parameters(), strict=True)
    grads = torch.autograd.grad(answer.sum(), [nodes, edges, *weights], allow_unused=True)
    assert [name for name, grad in zip(names, grads[2:], strict=True) if grad is not None] == [
        "norm.weight",
        "norm.bias",
    ]
    assert all(grad.abs().max() > 0 for grad in grads[:2])


@pytest.mark.parametrize("most", [1, 40, 10**6])
def test_blocks_of_similar_pairs_are_all_pairs_in_order(most: int) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = torch.tensor([1, 200, 3, 0, 70, 60, 2])
    crystal = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    atoms = torch.randn(len(crystal), 3, generator=generator, dtype=torch.float64)
    near = (torch.cdist(atoms, atoms) <= 0.7) & (crystal[:, None] == crystal[None, :])
    near.fill_diagonal_(False)
    blocks = list(similar_blocks(atoms, crystal, sizes.numpy(), 0.7, most))
    assert torch.equal(torch.cat([index for index, _ in blocks], dim=1), near.nonzero().T)
    if most == 40:
        assert len(blocks) > 5
        assert max(index.shape[1] for index, _ in blocks) <= max(40, int(near.sum(dim=1).max()))
    index, squared = similar_pairs(atoms.requires_grad_(), crystal, sizes.numpy(), 0.7)
    assert torch.equal(index, near.nonzero().T)
    torch.testing.assert_close(squared, (atoms[index[0]] - atoms[index[1]]).square().sum(dim=1))
    (slope,) = torch.autograd.grad(squared.sum(), atoms)
    assert slope.abs().max() > 0.1


def test_no_similarity_edge_is_lost_under_autocast() -> None:
    generator = torch.Generator().manual_seed(2)
    atoms = torch.randn(64, 256, generator=generator)
    atoms = torch.cat([atoms, atoms + torch.randn(64, 256, generator=generator) / 16])  # distances about 1
    crystal = torch.zeros(len(atoms), dtype=torch.long)
    index, _ = similar_pairs(atoms, crystal, np.array([128]), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        short, _ = similar_pairs(atoms, crystal, np.array([128]), 1.0)
    assert 10 < index.shape[1] < 120
    assert torch.equal(index, short)


def test_geometry_keeps_its_digits_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = batch_of(small_model()).to(dtype=torch.float32)
    pairs = torch.randn(50, 3, generator=generator) * 4
    crystal = torch.randint(len(batch), (50,), generator=generator)
    answers = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            turned = rotate_batch(batch, random_rotations(len(batch), torch.Generator().manual_seed(1)))
            given = pairs, crystal, turned.lattice, turned.reduction
            answers.append((turned.positions, turned.lattice, minimum_image(*given), *blended_image(*given)))
    for exact, short in zip(*answers, strict=True):
        assert torch.equal(exact, short)


def test_the_plain_computation_serves_transforms_of_functions() -> None:
    model = small_model(similarity_cutoff=3.0)
    batch = batch_of(model)
    weights = dict(model.named_parameters())
    expected = torch.autograd.grad(model(batch).sum(), list(weights.values()), allow_unused=True)
    plain = {name: weight.detach() for name, weight in weights.items()}
    found = torch.func.grad(lambda weights: torch.func.functional_call(model, weights, (batch,)).sum())(plain)
    for ours, their in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if their is None else their, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("little", [0, 2**20], ids=["tiles", "plain"])
def test_a_step_under_autocast_is_close_to_one_in_float32(monkeypatch, little: int) -> None:
    monkeypatch.setattr(prism_plugin.nn.gated_conv, "_LITTLE", little)
    torch.manual_seed(0)
    model = PRISM(dim=32, num_layers=2, num_rbf=16, cutoff=3.2, cell_cutoff=6.0).train()
    batch = batch_of(model)
    answers = []
    for enabled in (False, True):
        one = copy.deepcopy(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            prediction = one(batch)
        assert prediction.dtype == torch.float32
        weight = one.layers[0].experts["atomistic"].project.weight
        answers.append((prediction.detach(), torch.autograd.grad(prediction.square().sum(), weight)[0]))
    for exact, short in zip(*answers, strict=True):
        assert 0 < (exact - short).norm() < 0.05 * exact.norm()
