"""The universal potential that ships: what calculators take, what its card says, and the symmetries that it has."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from ase.spacegroup import crystal
from scipy.spatial.transform import Rotation

from prism_plugin import PRISMCalculator, cli, relax
from prism_plugin.commands import options
from prism_plugin.pretrained import DEFAULT_MODEL, DEFAULT_POTENTIAL
from prism_plugin.simulation.properties import phonons

# Structure, lattice constant of experiments, and of PBE, Å (Materials Project; of the metals J. Phys.: Condens. Matter
# 26, 355503 (2014)).
LENGTHS = {
    "Si": ("diamond", 5.43, 5.469),
    "Cu": ("fcc", 3.61, 3.632),
    "Al": ("fcc", 4.05, 4.039),
    "W": ("bcc", 3.16, 3.186),
    "NaCl": ("rocksalt", 5.64, 5.697),
    "MgO": ("rocksalt", 4.21, 4.256),
    "GaAs": ("zincblende", 5.65, 5.755),
}


@pytest.fixture(scope="module")
def quartz() -> Atoms:
    cell = [4.913, 4.913, 5.405, 90, 90, 120]
    places = [(0.4697, 0, 2 / 3), (0.4135, 0.2669, 0.7858)]
    return crystal(["Si", "O"], places, spacegroup=154, cellpar=cell)


def test_what_is_taken_if_nothing_is_said() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.calc = PRISMCalculator()
    assert atoms.calc.learned_forces
    assert atoms.get_forces().shape == (2, 3)
    assert atoms.get_stress().shape == (6,)
    assert (options.DEFAULT_MODEL, options.DEFAULT_POTENTIAL) == (DEFAULT_MODEL, DEFAULT_POTENTIAL)


def test_crystals_relax_to_the_volumes_of_dft() -> None:
    for name, (structure, start, length) in LENGTHS.items():
        atoms = bulk(name, structure, a=start)
        assert relax(atoms).get_volume() / atoms.get_volume() == pytest.approx((length / start) ** 3, rel=0.06), name


def test_turned_and_repeated_crystals(quartz: Atoms) -> None:
    calculator = PRISMCalculator(dtype="float64")
    quartz.rattle(0.1, seed=0)
    turn = Rotation.random(random_state=0).as_matrix()
    turned, mirrored = quartz.copy(), quartz.copy()
    turned.set_cell(quartz.cell.array @ turn.T, scale_atoms=True)
    mirrored.set_cell(quartz.cell.array * [1, 1, -1], scale_atoms=True)
    one, *others = calculator.predict([quartz, turned, mirrored, quartz * (2, 1, 1)])
    energies = [other["energy"] / factor for other, factor in zip(others, (1, 1, 2), strict=True)]
    np.testing.assert_allclose(energies, one["energy"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(others[0]["forces"], one["forces"] @ turn.T, atol=1e-9)
    np.testing.assert_allclose(others[2]["forces"], np.tile(one["forces"], (2, 1)), atol=1e-9)


def test_vibrations_are_real(tmp_path: Path) -> None:
    for name, highest in (("Cu", 7.2), ("NaCl", 7.5)):  # THz, of experiments
        structure, _, length = LENGTHS[name]
        atoms = bulk(name, structure, a=length)
        found = phonons(atoms, PRISMCalculator(dtype="float64"), tmp_path / name, fmax=1e-3, min_length=8)
        assert found["lowest frequency (THz)"] > -0.1
        assert found["highest frequency (THz)"] == pytest.approx(highest, rel=0.3)


def test_the_verbs_need_no_model(tmp_path: Path) -> None:
    write(tmp_path / "salt.cif", bulk("NaCl", "rocksalt", a=5.9))
    assert cli.main(["relax", str(tmp_path / "salt.cif"), "--out", str(tmp_path / "relaxed")]) == 0
    (row,) = csv.DictReader((tmp_path / "relaxed" / "relax.csv").read_text().splitlines())
    assert row["converged"] == "yes"
    assert read(tmp_path / "relaxed" / "salt.extxyz").get_volume() < 5.9**3 / 4
    assert cli.main(["predict", str(tmp_path / "salt.cif"), "--forces", "--out", str(tmp_path / "forces")]) == 0
    assert read(tmp_path / "forces" / "predict.extxyz").get_forces().shape == (2, 3)
