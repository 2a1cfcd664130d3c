"""PRISM in torch-sim: its own validator, the ASE calculator's numbers, a batched relaxation, dynamics."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_sim
from ase import Atoms
from ase.build import bulk, molecule
from ase.stress import voigt_6_to_full_3x3_stress
from torch_sim.models.interface import validate_model_outputs

from prism_plugin import PRISM, CrystalBatch, PRISMCalculator, batch_graphs, build_graph
from prism_plugin.calculators.torch_sim import TorchSimPRISM
from prism_plugin.graph.structure import read_structure
from tests import processes
from tests.conftest import crystal_zoo, random_potential, small_model

IS_0_3 = hasattr(torch_sim, "frechet_cell_fire")  # the last for Python 3.11; later ones name things otherwise


@pytest.fixture
def search_on_device(monkeypatch):
    """The search of the extra ``device-search``, which ``make`` puts beside the environment."""
    folder = Path(sys.prefix) / "device-search"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: see the Makefile")
    monkeypatch.syspath_prepend(folder)
    from prism_plugin.graph.device_search import build_graphs_on_device

    return build_graphs_on_device


def energy_model(**arguments: object) -> PRISM:
    return small_model(target="formation_energy", unit="eV/atom", **arguments)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["default", "potential"])
def test_the_validator_of_torch_sim_takes_it(kind, dtype) -> None:
    given = {} if kind == "default" else {"model": random_potential()}
    model = TorchSimPRISM(**given, dtype=dtype, device="cpu")
    validate_model_outputs(model, torch.device("cpu"), getattr(torch, dtype))
    assert (model.device, model.dtype) == (torch.device("cpu"), getattr(torch, dtype))


def test_the_numbers_are_those_of_the_ase_calculator() -> None:
    crystals = [crystal_zoo()[name] for name in ("low symmetry", "skewed", "rocksalt")]
    state = torch_sim.initialize_state(crystals, torch.device("cpu"), torch.float64)
    before = {name: getattr(state, name).clone() for name in ("positions", "cell", "atomic_numbers")}
    answer = TorchSimPRISM(energy_model())(state)
    for name, value in before.items():
        assert torch.equal(getattr(state, name), value)
    start = 0
    for index, expected in enumerate(PRISMCalculator(energy_model(), compute_forces=True).predict(crystals)):
        end = start + len(crystals[index])
        assert float(answer["energy"][index]) == pytest.approx(expected["energy"], rel=1e-12)
        np.testing.assert_allclose(answer["forces"][start:end], expected["forces"], atol=1e-10)
        np.testing.assert_allclose(answer["stress"][index], voigt_6_to_full_3x3_stress(expected["stress"]), atol=1e-10)
        start = end
    as_dictionary = {name: getattr(state, name) for name in (*before, "system_idx", "pbc")}
    assert torch.equal(TorchSimPRISM(energy_model())(as_dictionary)["energy"], answer["energy"])


@pytest.mark.parametrize("cutoff", [2.0, 3.2, 5.0, 8.0])
def test_a_search_on_the_device_finds_the_edges_of_the_cpu(search_on_device, cutoff) -> None:
    zoo = [read_structure(atoms) for atoms in crystal_zoo().values()]
    found = search_on_device(zoo, cutoff, 6.0, torch.device("cpu"))
    expected = batch_graphs([build_graph(one, cutoff, 6.0) for one in zoo])

    def edges(batch: CrystalBatch) -> torch.Tensor:
        return torch.cat([batch.edge_index.T, batch.edge_image.long()], dim=1)

    in_order = torch.unique(edges(expected), dim=0)
    assert len(in_order) == len(edges(expected))
    assert torch.equal(edges(found), in_order)  # there they come in order, whatever the device does
    for field in dataclasses.fields(CrystalBatch):
        if field.name not in ("edge_index", "edge_image"):
            one, other = getattr(found, field.name), getattr(expected, field.name)
            same = torch.equal(one, other) and one.dtype == other.dtype if torch.is_tensor(one) else one is other
            assert same or np.array_equal(one, other), field.name
    isolated = search_on_device(zoo[-2:], 3.0, 6.0, torch.device("cpu"))
    assert isolated.edge_index.shape == (2, 0)


def test_a_search_on_the_device_moves_no_number(search_on_device) -> None:
    crystals = [crystal_zoo()[name] for name in ("low symmetry", "skewed", "rocksalt")]
    state = torch_sim.initialize_state(crystals, torch.device("cpu"), torch.float64)
    expected, answer = (TorchSimPRISM(energy_model(), neighbors=where)(state) for where in ("cpu", "device"))
    for name, value in expected.items():
        torch.testing.assert_close(answer[name], value, rtol=1e-11, atol=1e-11)
    flat = [crystals[2], bulk("Cu", "fcc", a=0.5)]
    for where in ("cpu", "device"):
        with pytest.raises(ValueError, match=r"system 1: the cell has 0.03125 Å\^3 per atom"):
            torch_sim.static(flat, TorchSimPRISM(energy_model(), neighbors=where))
    near = [crystals[2], Atoms("Na2", positions=[[0, 0, 0], [0.3, 0, 0]], cell=[5, 5, 5], pbc=True)]
    for where in ("cpu", "device"):
        with pytest.raises(ValueError, match="system 1: atoms 0 and 1 lie on top of each other"):
            torch_sim.static(near, TorchSimPRISM(energy_model(), neighbors=where))
    with pytest.raises(ValueError, match="choose 'cpu' or 'device'"):
        TorchSimPRISM(energy_model(), neighbors="gpu")


def test_the_volume_of_an_isolated_system_is_that_of_its_cell() -> None:
    water = molecule("H2O")
    water.center(vacuum=5)
    (expected,) = PRISMCalculator(energy_model(), compute_forces=True).predict([water])
    (answer,) = torch_sim.static([water], TorchSimPRISM(energy_model()))
    np.testing.assert_allclose(answer["stress"][0], voigt_6_to_full_3x3_stress(expected["stress"]), atol=1e-12)


def test_relaxations_run_together() -> None:
    crystals = [bulk("NaCl", "rocksalt", a=6.0), bulk("MgO", "rocksalt", a=4.4)]
    if IS_0_3:
        fire = {"optimizer": torch_sim.frechet_cell_fire}
    else:
        fire = {"optimizer": torch_sim.Optimizer.fire, "init_kwargs": {"cell_filter": torch_sim.CellFilter.frechet}}
    relaxed = torch_sim.optimize(crystals, TorchSimPRISM(dtype="float64", device="cpu"), **fire, max_steps=200)
    constants = [float(torch.linalg.det(cell).abs() * 4) ** (1 / 3) for cell in relaxed.cell]
    np.testing.assert_allclose(constants, [5.6, 4.2], atol=0.1)


@pytest.mark.parametrize("smooth", [{"experts": ("atomistic", "cell", "multiscale")}, {"similarity_image": "blended"}])
def test_dynamics_of_a_smooth_model_keep_the_energy(smooth) -> None:
    # Random weights, 0.08 ps in steps of 0.2 fs; with edges to the nearest image the copper's energy jumps by 0.1 eV.
    model = TorchSimPRISM(energy_model(**smooth))
    crystals = [crystal_zoo()["low symmetry"], bulk("Cu", cubic=True)]
    energies = []
    nve = torch_sim.integrators.nve if IS_0_3 else torch_sim.Integrator.nve
    for steps in (1, 400):
        torch.manual_seed(0)
        state = torch_sim.integrate(crystals, model, integrator=nve, n_steps=steps, temperature=300, timestep=0.0002)
        kinetic = torch_sim.quantities.calc_kinetic_energy(
            masses=state.masses, momenta=state.momenta, system_idx=state.system_idx
        )
        assert kinetic.min() > 0.03  # eV
        energies.append((state.energy + kinetic).numpy())
    np.testing.assert_allclose(energies[1], energies[0], atol=2e-6)


def test_what_cannot_be_computed_is_named() -> None:
    with pytest.raises(ValueError, match=r"predicts band_gap \(eV\), which is no energy"):
        TorchSimPRISM(small_model(target="band_gap", unit="eV"))
    state = torch_sim.initialize_state([bulk("Cu"), bulk("Lr", "fcc", a=5)], torch.device("cpu"), torch.float64)
    with pytest.raises(ValueError, match="system 1: unknown element Lr"):
        TorchSimPRISM(device="cpu")(state)


def test_without_torch_sim_the_extra_is_named() -> None:
    code = "import sys; sys.modules['torch_sim'] = None\nimport prism_plugin.calculators.torch_sim"
    result = processes.run(["-c", code])
    assert "ImportError: torch-sim is not installed: pip install 'prism-plugin[torchsim]'" in result.stderr
