"""Element features: the frozen table, and the encoder that reads it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import atomic_numbers

import prism_plugin
from prism_plugin import PRISM
from prism_plugin.nn.element_table import element_features
from prism_plugin.nn.encoders import AtomEncoder
from tests.reference import accuracy_reference


def test_the_table_is_frozen() -> None:
    # Made by benchmarks/make_element_table.py; a change moves the predictions of every model that reads it.
    content = (Path(prism_plugin.__file__).parent / "nn" / "elements.csv").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "bcf4af01f0395802b0280615cf23f0b8d39febe2a7bf1ccc44a8913d0e92cd8c"


def test_features_equal_their_slow_twin() -> None:
    table = element_features()
    assert table.shape == (119, 43)
    assert not table[0].any()
    for number in (1, 2, 26, 57, 64, 92, 103, 104, 118):
        np.testing.assert_allclose(table[number], accuracy_reference.element_row(number).numpy(), rtol=0, atol=1e-13)


def test_each_element_has_one_place_and_alike_elements_are_near() -> None:
    table = element_features()
    places = np.split(table[1:, 12:], [18, 27], axis=1)
    assert all((place.sum(axis=1) == 1).all() for place in places)
    assert len(np.unique(table, axis=0)) == 119  # log Z tells apart what is else unknown

    def distance(first: str, second: str) -> float:
        return float(np.linalg.norm(table[atomic_numbers[first]] - table[atomic_numbers[second]]))

    assert distance("Pr", "Nd") < distance("Pr", "Fe")
    assert distance("Cl", "Br") < distance("Cl", "Na")


def test_the_encoder_equals_its_slow_twin_with_gradients() -> None:
    torch.manual_seed(0)
    encoder = AtomEncoder(6, "elements").double()
    torch.nn.init.normal_(encoder.bias)
    numbers = torch.tensor([8, 26, 8, 118])
    ours = encoder(numbers, sorted(set(numbers.tolist())))
    theirs = torch.stack([accuracy_reference.element_encoder(encoder, number) for number in numbers.tolist()])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = list(encoder.parameters())
    assert len(weights) == 5
    for our, their in zip(
        torch.autograd.grad(ours.square().sum(), weights),
        torch.autograd.grad(theirs.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(our, their, rtol=1e-11, atol=1e-11)


def test_the_table_follows_the_model_and_is_not_saved() -> None:
    model = PRISM(dim=8, num_layers=1, experts=("atomistic",), atom_encoder="elements").float()
    assert "atom_encoder.features" not in model.state_dict()
    assert model.atom_encoder.features.shape == (119, 43)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"atom_encoder": "element"}, "choose one of: 'prism', 'cartnet', 'elements'"),
        ({"cell": "waves"}, "choose one of: 'translations', 'reciprocal'"),
        ({"multiscale": "zero"}, "choose one of: 'fused', 'residual'"),
        ({"directions": 0}, "directions must be True or False, got 0"),
        ({"initial_norm": "yes"}, "initial_norm must be True or False, got 'yes'"),
        ({"initial_norm": True, "norm": None}, "initial_norm=True is a BatchNorm"),
    ],
)
def test_bad_options_are_told(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PRISM(dim=8, num_layers=1, **arguments)
