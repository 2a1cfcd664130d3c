"""The multiscale expert that begins at zero, and the whole model that is invariant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation

from prism_plugin import PRISM, batch_graphs, build_graph
from prism_plugin.config import INVARIANT
from prism_plugin.nn.residual_multiscale import ResidualMultiscale
from tests.conftest import crystal_zoo, small_model
from tests.reference import accuracy_reference


def random_expert() -> ResidualMultiscale:
    torch.manual_seed(1)
    expert = ResidualMultiscale(6).double()
    torch.nn.init.normal_(expert.up_scale)
    torch.nn.init.normal_(expert.down_scale)
    return expert


def test_expert_equals_its_slow_twin_with_all_gradients() -> None:
    expert = random_expert()
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(7, 6, generator=generator, dtype=torch.float64).requires_grad_()
    superatoms = torch.randn(3, 6, generator=generator, dtype=torch.float64).requires_grad_()
    crystal = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    counts = torch.tensor([[3.0], [1.0], [3.0]], dtype=torch.float64)
    ours = expert(atoms, superatoms, crystal, counts)
    h, s = [], []
    for number in range(3):
        of_atoms, of_superatom = accuracy_reference.residual_multiscale(
            expert, list(atoms[crystal == number]), superatoms[number]
        )
        h += of_atoms
        s.append(of_superatom)
    theirs = torch.stack(h), torch.stack(s)
    wanted = [atoms, superatoms, *expert.parameters()]
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-11, atol=1e-12)
    losses = [answer[0].square().sum() + answer[1].sin().sum() for answer in (ours, theirs)]
    for our, their in zip(*[torch.autograd.grad(loss, wanted) for loss in losses], strict=True):
        torch.testing.assert_close(our, their, rtol=1e-11, atol=1e-11)


def test_expert_has_the_derivatives_of_finite_differences() -> None:
    expert = random_expert()
    atoms = torch.randn(4, 6, dtype=torch.float64).requires_grad_()
    superatoms = torch.randn(2, 6, dtype=torch.float64).requires_grad_()
    rest = torch.tensor([0, 0, 1, 1]), torch.full((2, 1), 2.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *given: expert(*given, *rest), (atoms, superatoms))
    assert torch.autograd.gradgradcheck(lambda *given: expert(*given, *rest), (atoms, superatoms))


def test_it_begins_by_saying_nothing() -> None:
    expert = ResidualMultiscale(6)
    atoms, superatoms = torch.randn(4, 6), torch.randn(1, 6)
    answer = expert(atoms, superatoms, torch.zeros(4, dtype=torch.long), torch.tensor([[4.0]]))
    assert torch.equal(answer[0], atoms)
    assert torch.equal(answer[1], superatoms)


def prediction(model: PRISM, atoms: Atoms) -> float:
    return float(model.predict_structure(atoms))


def turned(atoms: Atoms, mirror: bool = False) -> Atoms:
    matrix = Rotation.from_rotvec([0.4, 1.1, -0.7]).as_matrix() @ np.diag([1.0, -1.0 if mirror else 1.0, 1.0])
    other = atoms.copy()
    other.set_cell(atoms.cell.array @ matrix)
    other.positions = atoms.positions @ matrix
    return other


def doubled(atoms: Atoms) -> Atoms:
    return atoms.repeat([2 if periodic else 1 for periodic in atoms.pbc])


@pytest.mark.parametrize("readout", ["mean", "attention"])
def test_a_model_of_means_without_directions_knows_no_cell_and_no_frame(structure: Atoms, readout: str) -> None:
    model = small_model(**INVARIANT, readout=readout, angular=2 if readout == "attention" else 0)
    moved, based = structure.copy(), structure.copy()
    moved.positions += [0.3, -1.7, 2.9]
    if structure.pbc.all():
        based.set_cell(np.array([[2, 1, 0], [1, 1, 0], [3, -2, 1]]) @ structure.cell.array, scale_atoms=False)
    expected = prediction(model, structure)
    for other in (turned(structure), turned(structure, mirror=True), moved, based, doubled(structure)):
        assert prediction(model, other) == pytest.approx(expected, rel=0, abs=1e-10)


def test_alone_equals_in_a_batch() -> None:
    model = small_model(**INVARIANT, readout="attention", angular=2)
    structures = list(crystal_zoo().values())
    alone = torch.stack([model.predict_structure(atoms) for atoms in structures])
    torch.testing.assert_close(model.predict_structure(structures), alone, rtol=0, atol=1e-10)


def test_with_similarity_edges_it_still_knows_no_frame(structure: Atoms) -> None:
    experts = ("atomistic", "cell", "multiscale", "similarity")
    for image in ("nearest", "blended"):
        model = small_model(**{**INVARIANT, "experts": experts}, similarity_cutoff=3.0, similarity_image=image)
        for mirror in (False, True):
            assert prediction(model, turned(structure, mirror)) == pytest.approx(
                prediction(model, structure), rel=0, abs=1e-10
            )


def test_translations_know_the_cell_and_directions_the_frame_negative_control() -> None:
    atoms = crystal_zoo()["low symmetry"]
    for arguments, other in (({"cell": "translations"}, doubled(atoms)), ({"directions": True}, turned(atoms))):
        model = small_model(**{**INVARIANT, **arguments})
        assert abs(prediction(model, atoms) - prediction(model, other)) > 1e-3
    fused = small_model(**{**INVARIANT, "multiscale": "fused", "experts": ("atomistic", "multiscale")})
    assert abs(prediction(fused, atoms) - prediction(fused, doubled(atoms))) > 1e-3


def test_experts_of_their_own_kind_have_no_fusion_weight() -> None:
    model = PRISM(**{**INVARIANT, "dim": 8, "num_layers": 2})
    assert model.fusion_weights() == {"atoms": [{"atomistic": 1.0}] * 2}
    assert not any("superatom_encoder" in name or "cell_encoder" in name for name in model.state_dict())
    model = PRISM(**{**INVARIANT, "dim": 8, "num_layers": 2, "experts": ("cell",)})
    assert model.fusion_weights() == {}


@pytest.mark.parametrize("experts", [("cell",), ("multiscale",), ("cell", "multiscale"), ("similarity", "cell")])
def test_any_of_the_experts_alone_trains(experts: tuple[str, ...]) -> None:
    model = small_model(**{**INVARIANT, "experts": experts}).train()
    answers = model.predict_structure(list(crystal_zoo().values()))
    assert torch.isfinite(answers).all()
    batch = batch_graphs([build_graph(atoms, model.cutoff, model.cell_cutoff) for atoms in crystal_zoo().values()])
    model(batch).square().sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)
