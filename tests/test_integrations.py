"""The entries for other tools: what can be tried of each without them, or with those that are installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from torch_sim.models.interface import validate_model_outputs

from prism_plugin import PRISMCalculator
from prism_plugin.defaults import DEFAULT_POTENTIAL
from prism_plugin.matgl_bridge import import_matcalc
from prism_plugin.pretrained import model_folder

FOLDER = Path(__file__).parents[1] / "integrations"


def energy_and_forces(calculator) -> tuple[float, np.ndarray]:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces()


def assert_same(calculator, tolerance: float) -> None:
    (energy, forces), (expected, expected_forces) = map(energy_and_forces, (calculator, PRISMCalculator()))
    assert energy == pytest.approx(expected, abs=tolerance)
    np.testing.assert_allclose(forces, expected_forces, atol=tolerance)


def test_matcalc_loads_its_entry(monkeypatch) -> None:
    matcalc = import_matcalc()
    registry = json.loads((FOLDER / "matcalc" / "registry.json").read_text())
    assert {one["path"].split("/")[1] for one in registry.values()} == {DEFAULT_POTENTIAL}
    utils = importlib.import_module("matcalc.utils")
    for name, entry in registry.items():
        monkeypatch.setitem(utils.MODEL_REGISTRY, name, {**entry, "path": str(model_folder(DEFAULT_POTENTIAL))})
        assert_same(matcalc.PESCalculator.load_universal(name), 1e-4)


def test_ml_peg_makes_the_calculator_of_its_entry() -> None:
    for entry in yaml.safe_load((FOLDER / "ml_peg" / "models.yml").read_text()).values():
        made = getattr(importlib.import_module(entry["module"]), entry["class_name"])
        assert_same(made(device=entry["device"], dtype="float64", **entry["kwargs"]), 1e-4)


def test_torch_sims_validator_takes_its_entry() -> None:
    specification = importlib.util.spec_from_file_location("entry", FOLDER / "torch_sim" / "prism.py")
    entry = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(entry)
    validate_model_outputs(entry.PrismModel(dtype="float64", device="cpu"), torch.device("cpu"), torch.float64)


def test_the_patch_of_janus_calls_the_calculator_as_it_is() -> None:
    patch = (FOLDER / "janus_core" / "prism.patch").read_text()
    added = [line[1:].strip() for line in patch.splitlines() if line.startswith("+") and not line.startswith("+++")]
    code = "\n".join(added[added.index('case "prism":') + 1 :])
    names = {"model": None, "kwargs": {}, "device": "cpu"}
    exec(code, names)
    assert names["model"] == DEFAULT_POTENTIAL
    assert names["calculator"].model.dtype == torch.float64
    assert_same(names["calculator"], 1e-4)


@pytest.mark.parametrize("script", ["ipi/client.py", "lammps/run.py"])
def test_scripts_compile(script) -> None:
    compile((FOLDER / script).read_text(), script, "exec")
