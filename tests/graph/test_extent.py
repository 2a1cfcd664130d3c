"""Distances and volumes of training crystals: as the slow way finds them, kept, said of what is beyond."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111

from prism_plugin import PRISMCalculator, batch_graphs, build_graph, load
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.errors import PrismError
from prism_plugin.graph.extent import Extent
from prism_plugin.matgl_bridge import weights_digest
from tests.conftest import small_model

CUTOFF = 4.0


def batches(crystals: list[Atoms]) -> list:
    graphs = [build_graph(one, CUTOFF, 6.0) for one in crystals]
    return [batch_graphs(graphs[first : first + 7]) for first in range(0, len(graphs), 7)]


@pytest.fixture(scope="module")
def crystals() -> list[Atoms]:
    return [record.atoms for record in emt_alloys(60)]


@pytest.fixture(scope="module")
def extent(crystals: list[Atoms]) -> Extent:
    return Extent.fit("digest", batches(crystals[:40]), batches(crystals[40:]))


def test_what_is_measured_is_what_the_slow_way_finds(crystals: list[Atoms], extent: Extent) -> None:
    shortest: dict[tuple[int, int], float] = {}
    volumes: dict[int, list[float]] = {}
    for atoms in crystals[:40]:
        for one, other in itertools.product(range(len(atoms)), repeat=2):
            for image in itertools.product(range(-2, 3), repeat=3):
                distance = np.linalg.norm(atoms.positions[other] + image @ atoms.cell.array - atoms.positions[one])
                if 0 < distance <= CUTOFF:
                    pair = (atoms.numbers[one], atoms.numbers[other])
                    shortest[pair] = min(distance, shortest.get(pair, np.inf))
        for number in set(atoms.numbers):
            volumes.setdefault(number, []).append(atoms.get_volume() / len(atoms))
    expected = np.full((119, 119), np.inf)
    for pair, distance in shortest.items():
        expected[pair] = distance
    np.testing.assert_allclose(extent.shortest, expected, rtol=1e-5)
    for number, found in volumes.items():
        np.testing.assert_allclose(extent.volumes[number], [min(found), max(found)], rtol=1e-5)
    assert np.isnan(extent.volumes).any(axis=1).sum() == 119 - len(volumes)
    assert extent.margins[0] <= 1 <= extent.margins[2]


def test_what_is_beyond_is_said(crystals: list[Atoms], extent: Extent) -> None:
    doubts = [extent.doubts(build_graph(one, CUTOFF, 6.0)) for one in crystals[:40]]
    assert not any(doubts)  # of what it was measured on
    dense = crystals[0].copy()
    dense.set_cell(0.8 * dense.cell.array, scale_atoms=True)
    found = extent.doubts(build_graph(dense, CUTOFF, 6.0))
    assert found.keys() == {"nearer", "denser"}
    assert "in the training crystals at least" in found["nearer"]
    thin = crystals[0].copy()
    thin.set_cell(1.3 * thin.cell.array, scale_atoms=True)
    assert extent.doubts(build_graph(thin, CUTOFF, 6.0)).keys() == {"thinner"}
    alone = Atoms(crystals[0].symbols[:1], [[0.0, 0.0, 0.0]])  # neither pairs nor a volume
    assert extent.doubts(build_graph(alone, CUTOFF, 6.0)).keys() == {"not periodic"}
    assert not extent.doubts(build_graph(bulk("NaCl", "rocksalt", a=3.0), CUTOFF, 6.0))  # of these it knows nothing


def test_what_is_less_periodic_than_all_training_crystals_is_named(crystals: list[Atoms], extent: Extent) -> None:
    layer = fcc111("Cu", (1, 1, 3), a=3.6, vacuum=8.0)
    text = extent.doubts(build_graph(layer, CUTOFF, 6.0))["not periodic"]
    assert text == (
        "periodic along 2 of 3 directions, as a surface or a single layer; all training crystals are along 3"
    )
    layers = Extent.fit("digest", batches([*crystals[:5], layer]), batches(crystals[40:]))
    assert layers.periodic == 2
    assert "not periodic" not in layers.doubts(build_graph(layer, CUTOFF, 6.0))
    molecule = Atoms("CuAl", [[0, 0, 0], [0, 0, 2.4]])
    assert (
        "as a molecule; all training crystals are along 2"
        in layers.doubts(build_graph(molecule, CUTOFF, 6.0))["not periodic"]
    )
    with pytest.warns(UserWarning, match="periodic along 2 of 3 directions, as a surface or a single layer"):
        PRISMCalculator("prism-mp2018-eform").predict([layer])


def test_it_is_kept_with_its_weights(extent: Extent, tmp_path: Path) -> None:
    model = small_model()
    model.extent = replace(extent, digest=weights_digest(model.state_dict()))
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    np.testing.assert_array_equal(again.extent.shortest, extent.shortest)
    np.testing.assert_array_equal(again.extent.margins, extent.margins)
    assert again.extent.periodic == extent.periodic == 3
    with np.load(tmp_path / "model" / "extent.npz") as kept:
        arrays = {name: kept[name] for name in kept if name != "periodic"}
    np.savez(tmp_path / "model" / "extent.npz", **arrays)  # a file from before says nothing of it
    assert load(tmp_path / "model").extent.periodic == 0
    model.save(tmp_path / "model")
    whole = (tmp_path / "model" / "extent.npz").read_bytes()
    (tmp_path / "model" / "extent.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PrismError, match=r"extent\.npz' is damaged"):
        load(tmp_path / "model")
    extent.save(tmp_path / "model" / "extent.npz")
    with pytest.raises(PrismError, match=r"extent\.npz is of other weights"):
        load(tmp_path / "model")
    model.extent = extent  # not its own
    model.save(tmp_path / "model")
    assert load(tmp_path / "model").extent is None


def test_the_models_that_ship_know_theirs() -> None:
    calculator = PRISMCalculator("prism-mp2018-eform")
    calculator.predict([bulk("NaCl", "rocksalt", a=5.69)])
    with pytest.warns(UserWarning, match=r"Na-Cl are 2\.25 Å apart, in the training crystals at least 2\.5"):
        calculator.predict([bulk("NaCl", "rocksalt", a=4.5)])
