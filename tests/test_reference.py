"""Kind 1, reference: the model against its slow twin, in float64."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms

from prism_plugin import batch_graphs, build_graph
from prism_plugin.config import EXPERTS, INVARIANT
from prism_plugin.nn.encoders import cosine_envelope, feature_envelope
from tests.conftest import crystal_zoo, small_model
from tests.reference.prism_reference import Crystal, predict

BATCH = ("cesium chloride", "skewed", "slab", "one atom", "isolated atom", "wire")
ANGULAR = {**INVARIANT, "readout": "attention", "angular": 3}
VARIANTS = [
    {},
    {"similarity_cutoff": 3.0},
    {"similarity_cutoff": 3.0, "similarity_envelope": "cosine", "cutoff": 4.5},
    {"similarity_cutoff": 3.0, "similarity_envelope": None},
    {"similarity_cutoff": 3.0, "similarity_image": "blended"},
    {"similarity_cutoff": 3.0, "similarity_image": "blended", "similarity_envelope": "cosine", "cutoff": 4.5},
    {"rbf_scale": "paper", "atom_encoder": "cartnet"},
    {"superatom_readout": "mean", "multiscale_aggregation": "mean"},
    {"fusion": "gated", "similarity_cutoff": 3.0},
    {"readout": "sum"},
    {"readout": "attention", "minimum": -1.3},
    {"norm": None, "similarity_cutoff": 3.0, "rbf_scale": "even"},
    {"element_refs": tuple(0.1 * number for number in range(118)), "readout": "sum"},
    *[{"experts": (expert,)} for expert in EXPERTS],
    {"experts": ("atomistic", "cell")},
    {"experts": ("similarity", "multiscale")},
    {"experts": ("atomistic",), "atom_encoder": "elements", "rbf_scale": "even", "directions": False},
    {"initial_norm": True, "directions": False, "similarity_cutoff": 3.0},
    {"cell": "reciprocal", "experts": ("atomistic", "cell"), "atom_encoder": "elements"},
    {"cell": "reciprocal", "experts": ("cell", "multiscale"), "fusion": "gated"},
    {"multiscale": "residual", "similarity_cutoff": 3.0, "initial_norm": True},
    ANGULAR,
    {
        "norm": None,
        "experts": ("atomistic",),
        "rbf_scale": "even",
        "directions": False,
        "angular": 4,
        "angular_order": 2,
    },
    {**INVARIANT, "experts": EXPERTS, "similarity_cutoff": 3.0, "norm": None, "initial_norm": False},
    {"experts": ("atomistic",), "neighbors": 5},
    {"experts": ("atomistic",), "backbone": "ecomformer", "atom_encoder": "embedding", "neighbors": 5},
    {"backbone": "ecomformer", "similarity_cutoff": 3.0, "norm": None},
    {"experts": ("atomistic",), "backbone": "icomformer", "atom_encoder": "embedding", "neighbors": 5},
    {"backbone": "icomformer", "similarity_cutoff": 3.0, "multiscale_aggregation": "mean"},
]
# Of which iComFormer can say something.
CRYSTALS = ("cesium chloride", "skewed", "one atom", "rocksalt", "low symmetry")


def to_reference(atoms: Atoms) -> Crystal:
    lattice = atoms.cell.complete().array
    return Crystal(atoms.numbers.tolist(), atoms.positions, lattice, tuple(atoms.pbc.tolist()))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_model_equals_its_slow_twin(variant: dict, training: bool) -> None:
    model = small_model(**variant).train(training)
    names = CRYSTALS if variant.get("backbone") == "icomformer" else BATCH
    structures = [crystal_zoo()[name] for name in names]
    batch = batch_graphs([build_graph(atoms, model.cutoff, model.cell_cutoff) for atoms in structures])
    twin = predict(model, [to_reference(atoms) for atoms in structures], training)
    torch.testing.assert_close(model(batch), twin, rtol=1e-11, atol=1e-11)


OF_GRADIENTS = [
    {"similarity_cutoff": 3.0},
    ANGULAR,
    *[{"backbone": name, "similarity_cutoff": 3.0} for name in ("icomformer", "ecomformer")],
    *[{"backbone": name, "neighbors": 5, "experts": ("atomistic",)} for name in ("icomformer", "ecomformer")],
]


@pytest.mark.parametrize("variant", OF_GRADIENTS, ids=str)
def test_gradients_equal_those_of_the_slow_twin(variant: dict) -> None:
    model = small_model(**variant).train()
    third = "low symmetry" if variant.get("backbone") == "icomformer" else "wire"
    structures = [crystal_zoo()[name] for name in ("cesium chloride", "skewed", third)]
    batch = batch_graphs([build_graph(atoms, model.cutoff, model.cell_cutoff) for atoms in structures])
    names, weights = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad(model(batch).square().sum(), weights, allow_unused=True)
    twin = predict(model, [to_reference(atoms) for atoms in structures], training=True)
    theirs = torch.autograd.grad(twin.square().sum(), weights, allow_unused=True)
    unused = [name for name, gradient in zip(names, theirs, strict=True) if gradient is None]
    assert all(name.startswith("layers.1.") for name in unused)  # the last layer's superatoms: nothing reads them
    for name, our, their in zip(names, ours, theirs, strict=True):
        if their is None:
            assert our is None, name
        else:
            torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_envelopes_are_smooth_and_equal_the_cosine() -> None:
    distance = torch.linspace(0, 1.2, 500, dtype=torch.float64)
    expected = torch.where(distance < 1, (torch.cos(torch.pi * distance) + 1) / 2, torch.zeros_like(distance))
    torch.testing.assert_close(feature_envelope(distance**2, 1.0), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(cosine_envelope(distance, 1.0), expected, rtol=0, atol=1e-14)
    squared = torch.tensor([1e-4, 1e-3, 2e-3, 0.3, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: feature_envelope(x, 1.0), squared)
    assert torch.autograd.gradgradcheck(lambda x: feature_envelope(x, 1.0), squared)
    squared = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(feature_envelope(squared, 1.0).sum(), squared)
    assert slope[0].item() == pytest.approx(-(torch.pi**2) / 4, abs=1e-9)  # finite at 0, where sqrt has no derivative
