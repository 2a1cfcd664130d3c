"""The ASE calculator, and loading of models by name or path."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.io import read, write
from ase.io.trajectory import Trajectory
from matgl.models import MEGNet

from prism_plugin import PRISM, PRISMCalculator, pretrained
from prism_plugin.pretrained import COMMITTEE, available_models, load
from tests.conftest import crystal_zoo, small_model


@pytest.fixture(scope="module")
def calculator() -> PRISMCalculator:
    return PRISMCalculator("prism-mp2018-eform")


def energy_model(**arguments: object) -> PRISM:
    return small_model(target="formation_energy", unit="eV/atom", **arguments)


def test_default_calculator_answers(calculator: PRISMCalculator) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.69)
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    assert isinstance(calculator.model, PRISM)
    assert not calculator.model.training
    assert isinstance(energy, float)
    assert energy == pytest.approx(len(atoms) * float(calculator.model.predict_structure(atoms)), abs=1e-5)
    assert energy / len(atoms) == pytest.approx(-2.1, abs=0.25)  # Materials Project: -2.11 eV/atom
    assert atoms.get_potential_energy(force_consistent=True) == energy
    energies = atoms.get_potential_energies()
    assert energies.dtype == np.float64
    assert energies.sum() == pytest.approx(energy, abs=1e-9)


def test_results_follow_the_atoms_and_are_kept_while_nothing_changes(calculator: PRISMCalculator) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.69)
    atoms.calc = calculator
    first = atoms.get_potential_energy()
    results = calculator.results
    assert atoms.get_potential_energy() == first
    assert calculator.results is results  # nothing was computed again
    atoms.positions[0, 0] += 0.3
    assert atoms.get_potential_energy() != first
    assert results["energy"] == first  # a new dictionary, the old one is left alone


def test_what_it_does_not_predict_is_refused(calculator: PRISMCalculator) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.69)
    atoms.calc = calculator
    with pytest.raises(PropertyNotImplementedError, match=r"no forces: .*take a potential.*compute_forces=True"):
        atoms.get_forces()
    with pytest.raises(PropertyNotImplementedError, match="not magmom; ask for: energy, free_energy, energies"):
        calculator.get_property("magmom", atoms)
    gap = PRISMCalculator(small_model(target="band_gap", unit="eV"), dtype="float64")
    atoms.calc = gap
    with pytest.raises(PropertyNotImplementedError, match=r"predicts band_gap \(eV\), not energy; ask for: band_gap"):
        atoms.get_potential_energy()
    assert gap.get_property("band_gap", atoms) == pytest.approx(float(gap.model.predict_structure(atoms)))
    assert PRISMCalculator.implemented_properties == ["energy", "free_energy", "energies"]
    assert Calculator.implemented_properties == []


@pytest.mark.parametrize("name", list(crystal_zoo()))
def test_every_kind_of_structure_gets_an_energy(name: str) -> None:
    calculator = PRISMCalculator(energy_model(), dtype="float64")
    atoms = crystal_zoo()[name]
    before = copy.deepcopy(atoms)
    atoms.calc = calculator
    assert atoms.get_potential_energy() == pytest.approx(len(atoms) * float(calculator.model.predict_structure(atoms)))
    atoms.calc = None
    assert atoms == before


def test_total_energy_models_are_energies_too() -> None:
    model = small_model(target="energy", unit="eV", readout="sum")
    atoms = crystal_zoo()["skewed"]
    atoms.calc = PRISMCalculator(model, dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(float(model.predict_structure(atoms)))


def test_a_given_model_is_used_as_it_is_or_copied() -> None:
    model = energy_model()
    assert PRISMCalculator(model, dtype="float64").model is model
    assert PRISMCalculator(model).model is model
    converted = PRISMCalculator(model, dtype="float32")
    assert converted.model is not model
    assert (model.dtype, converted.model.dtype) == (torch.float64, torch.float32)


def test_same_input_same_bits(calculator: PRISMCalculator) -> None:
    atoms = crystal_zoo()["low symmetry"]
    energies = {calculator.get_potential_energy(atoms.copy()) for _ in range(3)}
    calculator.reset()
    energies.add(calculator.get_potential_energy(atoms))
    assert len(energies) == 1


def test_files_keep_the_results(calculator: PRISMCalculator, tmp_path) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.69)
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    write(tmp_path / "a.extxyz", atoms)
    assert read(tmp_path / "a.extxyz").get_potential_energy() == pytest.approx(energy)
    with Trajectory(tmp_path / "a.traj", "w") as trajectory:
        trajectory.write(atoms)
    assert read(tmp_path / "a.traj").get_potential_energy() == pytest.approx(energy)


def test_bad_atoms_and_arguments_are_refused(calculator: PRISMCalculator) -> None:
    with pytest.raises(ValueError, match="the structure is empty"):
        calculator.get_potential_energy(Atoms())
    with pytest.raises(ValueError, match="unknown element Lr: this model was made for 88 elements"):
        calculator.get_potential_energy(bulk("Lr", "fcc", a=5.0))
    with pytest.raises(ValueError, match="unknown dtype 'half'; choose one of: auto, float32, float64"):
        PRISMCalculator("prism-mp2018-eform", dtype="half")
    with pytest.raises(ValueError, match="unknown device 'foo'"):
        PRISMCalculator("prism-mp2018-eform", device="foo")
    with pytest.raises(TypeError, match="give the name or folder of a model, or a PRISM; got int"):
        PRISMCalculator(5)
    with pytest.raises(ValueError, match=r"predicts 'energy' in 'meV/atom', which is not ASE's energy"):
        PRISMCalculator(small_model(target="energy", unit="meV/atom"))
    with pytest.raises(FileNotFoundError, match=r"no model 'no-such-model'.*prism-mp2018-eform"):
        PRISMCalculator("no-such-model")


def test_folders_that_are_no_prism_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"is no saved model: it lacks model.json, model.pt, state.pt"):
        load(tmp_path)
    MEGNet(nblocks=1).save(tmp_path / "megnet")
    with pytest.raises(ValueError, match=r"holds a matgl.*MEGNet, not a PRISM"):
        load(tmp_path / "megnet")
    small_model().save(tmp_path / "damaged")
    (tmp_path / "damaged" / "model.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path / "damaged")
    small_model().save(tmp_path / "cut")
    state = (tmp_path / "cut" / "state.pt").read_bytes()
    (tmp_path / "cut" / "state.pt").write_bytes(state[: len(state) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path / "cut")


def test_shipped_models_have_a_card_and_are_small() -> None:
    models = available_models()
    moduli = ("prism-mp-log10-k", "prism-mp-log10-g")
    others = ("prism-mp2018-gap", "prism-mp2018-metal", "prism-universal-pbe")
    assert set(models) == {*COMMITTEE, *moduli, *others}
    assert models["prism-mp2018-gap"].target == "band_gap"
    assert 0.01 < models["prism-mp2018-eform"].mae < 0.05
    assert models["prism-mp2018-eform"].elements == 88
    for name in available_models():
        folder = Path(pretrained.__file__).parent / name
        card = (folder / "README.md").read_text()
        for word in ("CC BY 4.0", "Materials Project", "must not be used", '"seed"'):
            assert word in card, word
        assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
        assert load(name).unit or name == "prism-mp2018-metal"  # a probability
