"""What is done with a potential: values against ASE's EMT, the verbs of the command line on a small potential."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read, write
from ase.optimize import FIRE
from pymatgen.core import Lattice, Structure

import prism_plugin
from prism_plugin import PRISMCalculator, PRISMPotential, cli
from prism_plugin.errors import PrismError
from prism_plugin.simulation import DynamicsSettings, relax, relax_one, run_dynamics
from prism_plugin.simulation.properties import doubt_of, elastic_constants, equation_of_state, phonons
from prism_plugin.simulation.relaxation import Relaxation, relax_many
from tests.conftest import small_model


def rows_of(table: Path) -> list[dict[str, str]]:
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- values, with a calculator whose answers are known


def test_copper_relaxes_to_its_known_volume() -> None:
    start = bulk("Cu", a=3.8)
    found = relax_one(start, EMT(), fmax=1e-3)
    assert found.is_converged
    assert found.atoms.get_volume() == pytest.approx(11.565, abs=0.01)  # of EMT: a = 3.59 Å
    assert found.volume_change == pytest.approx(found.atoms.get_volume() / start.get_volume() - 1)
    assert found.start is start
    assert start.calc is None
    assert isinstance(found.atoms.calc, SinglePointCalculator)
    assert np.abs(found.atoms.get_stress()).max() < 1e-3
    fixed = relax_one(start, EMT(), fmax=1e-3, cell=False)
    assert fixed.atoms.get_volume() == start.get_volume()


def test_the_cell_of_a_layer_and_of_a_wire_relaxes_along_what_is_periodic(potential: PRISMPotential) -> None:
    """As with ASE's own mask along x and y, however it lies, and where the third vector is missing."""
    layer = fcc111("Cu", (1, 1, 3), a=3.8, vacuum=6.0)
    expected = layer.copy()
    expected.calc = EMT()
    FIRE(FrechetCellFilter(expected, mask=[1, 1, 0, 0, 0, 1]), logfile=None).run(fmax=1e-3)
    found = relax_one(layer, EMT(), fmax=1e-3)
    assert found.is_converged
    np.testing.assert_allclose(found.atoms.cell, expected.cell, atol=1e-6)
    assert found.atoms.cell.lengths()[0] < 0.97 * layer.cell.lengths()[0]
    np.testing.assert_allclose(found.atoms.get_stress(), expected.get_stress(), atol=1e-6)  # all of it
    turned, open_ = layer.copy(), layer.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    open_.cell[2] = 0
    for other in (turned, open_):
        again = relax_one(other, EMT(), fmax=1e-3).atoms
        np.testing.assert_allclose(again.cell.lengths()[:2], expected.cell.lengths()[:2], atol=1e-4)
        assert again.cell.lengths()[2] == pytest.approx(other.cell.lengths()[2])
    assert "stress" not in again.calc.results  # without a volume
    flat = layer.copy()
    flat.cell[2] = flat.cell[0] + flat.cell[1]  # vectors that span no volume: the positions relax
    assert relax_one(flat, PRISMCalculator(potential), steps=2).atoms.cell.tolist() == flat.cell.tolist()
    wire = Atoms("Cu", cell=[9, 2.6, 9], pbc=[False, True, False])
    found = relax_one(wire, EMT(), fmax=1e-3)
    assert found.is_converged
    assert found.atoms.cell.lengths()[1] < 2.5
    assert list(found.atoms.cell.lengths()[[0, 2]]) == [9, 9]


@pytest.mark.usefixtures("pictures")
def test_moduli_of_copper(tmp_path: Path) -> None:
    curve = equation_of_state(bulk("Cu", a=3.7), EMT(), tmp_path)
    assert curve["volume (Å^3/atom)"] == pytest.approx(11.565, abs=0.02)
    assert curve["bulk modulus (GPa)"] == pytest.approx(134, abs=3)
    assert curve["R^2"] > 0.999
    assert len(rows_of(tmp_path / "eos.csv")) == 11
    turned = bulk("Cu", a=3.7)
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    moduli = elastic_constants(turned, EMT(), tmp_path)
    assert moduli["bulk modulus (GPa)"] == pytest.approx(curve["bulk modulus (GPa)"], rel=0.03)
    tensor = np.loadtxt(tmp_path / "elastic.csv", delimiter=",")
    c11, c12, c44 = tensor[0, 0], tensor[0, 1], tensor[3, 3]  # cubic, along its edges
    np.testing.assert_allclose(tensor[:3, :3], c12 + (c11 - c12) * np.eye(3), atol=2)
    np.testing.assert_allclose(tensor[3:, 3:], c44 * np.eye(3), atol=2)
    np.testing.assert_allclose(tensor[:3, 3:], 0, atol=2)
    assert (c11 + 2 * c12) / 3 == pytest.approx(moduli["bulk modulus (GPa)"], rel=1e-3)
    np.testing.assert_allclose(tensor, tensor.T, atol=2)
    assert 0 < c44 < c11
    assert doubt_of(moduli) == ""
    assert doubt_of({**moduli, "shear modulus (GPa)": -3.0}).startswith("the shear modulus is not positive: ")
    for name in ("eos.png", "elastic.png"):
        assert (tmp_path / name).stat().st_size > 5000


def test_phonons_of_copper(tmp_path: Path) -> None:
    found = phonons(bulk("Cu", a=3.7), EMT(), tmp_path, min_length=7.0)
    assert found["highest frequency (THz)"] == pytest.approx(8.1, abs=0.3)
    assert found["lowest frequency (THz)"] > -0.05
    assert 22 < found["heat capacity at 300 K (J/(K mol))"] < 3 * 8.3145  # Dulong and Petit
    assert {"phonon.yaml", "phonons.png", "thermal.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert doubt_of(found) == ""


def test_imaginary_phonons_are_said(saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unstable = phonons(bulk("Cu", "bcc", a=2.86), EMT(), tmp_path / "bcc", min_length=7.0)
    assert unstable["lowest frequency (THz)"] < -0.5
    assert f"imaginary frequencies, down to {unstable['lowest frequency (THz)']:.2f} THz" in doubt_of(unstable)
    monkeypatch.setattr("prism_plugin.simulation.properties.phonons", lambda *given, **others: unstable)
    write(tmp_path / "cu.cif", bulk("Cu"))
    command = ["phonons", str(tmp_path / "cu.cif"), "--out", str(tmp_path / "out"), "--model", saved]
    assert cli.main(command) == 0
    (row,) = rows_of(tmp_path / "out" / "phonons.csv")
    assert "imaginary frequencies, down to" in row["warnings"]


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_dynamics_keep_what_they_should(ensemble: str, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True).repeat(2)
    settings = DynamicsSettings(ensemble, temperature=400, steps=200, every=5, timestep=4.0)
    found = run_dynamics(atoms, EMT(), settings, tmp_path)
    again = run_dynamics(atoms, EMT(), settings, tmp_path / "again")
    assert np.array_equal(found["log"], again["log"])
    with Trajectory(tmp_path / "trajectory.traj") as frames:
        assert len(frames) == len(found["log"]) == 41
    assert found["log"][-1, 0] == pytest.approx(0.8)
    if ensemble == "nve":
        assert found["temperature"] == pytest.approx(200, rel=0.3)  # half is potential energy
        assert abs(found["drift"]) < 1
    else:
        # In so short a time a thermostat of 0.1 ps has given back what became potential energy, one of 0.4 ps a part.
        assert found["temperature"] == pytest.approx(400, rel=0.3) if ensemble == "nvt" else found["temperature"] > 230
        assert np.isnan(found["drift"])
    assert (np.ptp(found["log"][:, 4]) > 0) == (ensemble == "npt")


def test_what_falls_apart_is_said() -> None:
    class Pressed(EMT):
        """A calculator whose crystals shrink for ever."""

        def calculate(self, *arguments: Any, **named: Any) -> None:
            super().calculate(*arguments, **named)
            self.results["stress"] = np.array([3.0, 3, 3, 0, 0, 0])

    with pytest.raises(ValueError, match=r"falls apart: after .* steps its volume is"):
        relax_one(bulk("Cu"), Pressed())
    with pytest.raises(ValueError, match="fmax must be positive"):
        relax_one(bulk("Cu"), EMT(), fmax=0)

    class Lost(EMT):
        """A calculator that answers no forces that are numbers."""

        def calculate(self, *arguments: Any, **named: Any) -> None:
            super().calculate(*arguments, **named)
            self.results["forces"] = np.full((2, 3), np.nan)

    with pytest.raises(ValueError, match="falls apart: after 0 steps a force is not finite"):
        relax_one(molecule("CO"), Lost())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ensemble": "nph"}, "unknown ensemble 'nph'"),
        ({"timestep": 0.0}, "timestep must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"pressure": float("inf")}, "pressure must be finite"),
    ],
)
def test_dynamics_refuse_what_has_no_meaning(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicsSettings(**change)


def test_a_molecule_has_no_pressure_and_no_equation_of_state(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a pressure needs a cell"):
        run_dynamics(molecule("CO"), EMT(), DynamicsSettings("npt"), tmp_path)
    for work in (equation_of_state, elastic_constants, phonons):
        with pytest.raises(ValueError, match="this needs a crystal"):
            work(molecule("CO"), EMT(), tmp_path)


# ---- a potential


@pytest.fixture(scope="module")
def potential() -> PRISMPotential:
    """One that binds nothing, but whose atoms repel: a cell at a time, it moves little."""
    torch.manual_seed(0)
    model = PRISMPotential(("Cl", "Cu", "Na", "Si"), dim=8, num_layers=1, directions=False, repulsion="zbl", std=0.01)
    return model.eval()


@pytest.fixture
def saved(potential: PRISMPotential, tmp_path: Path) -> str:
    potential.save(tmp_path / "model")
    return str(tmp_path / "model")


def test_relax_in_one_line(potential: PRISMPotential) -> None:
    silicon = bulk("Si")
    silicon.rattle(0.05, seed=0)
    relaxed = prism_plugin.relax(silicon, potential)
    assert isinstance(relaxed, Atoms)
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() <= 0.05
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3])
    several = relax([silicon, salt], potential, progress=False)
    assert [len(one) for one in several] == [2, 8]
    np.testing.assert_allclose(several[0].positions, relaxed.positions, atol=1e-6)
    with pytest.warns(UserWarning, match="structure 0 of the list: not relaxed after 1 steps: a force is"):
        relax([silicon], potential, fmax=1e-9, steps=1, progress=False)
    with pytest.raises(ValueError, match=r"structure 1 of the list: .*Xe"):
        relax([silicon, bulk("Xe", "fcc", a=6.0)], potential, progress=False)
    broken = bulk("Si")
    broken.cell[0] = np.nan
    with pytest.raises(ValueError, match=r"structure 1 of the list: the lattice is not finite"):
        relax([silicon, broken], potential, progress=False)
    with pytest.raises(TypeError, match="give a structure or a list of them, got str"):
        relax("POSCAR", potential)


def test_converged_are_the_forces_on_the_cell_as_it_is() -> None:
    """ASE's filter says those in the cell as it was, which are smaller where it has shrunk."""
    start = bulk("Cu", cubic=True, a=4.2)
    start.rattle(0.1, seed=3)
    found = relax_one(start, EMT(), fmax=0.1)
    assert found.is_converged
    assert found.volume_change < -0.3
    assert found.largest_force <= 0.1
    optimizer = FIRE(FrechetCellFilter(start), logfile=None)
    start.calc = EMT()
    optimizer.run(fmax=0.1)
    assert np.linalg.norm(start.get_forces(), axis=1).max() > 0.1


def test_in_lock_step_each_relaxes_as_alone(potential: PRISMPotential) -> None:
    """Each with an optimizer of its own: alone, beside others, a constraint held, one that is bad in their midst."""
    rng = np.random.default_rng(0)
    some = {"salt": bulk("NaCl", "rocksalt", a=5.0), "Si": bulk("Si"), "Cu": bulk("Cu", cubic=True)}
    for atoms in some.values():
        atoms.rattle(0.1, rng=rng)
    some["held"] = some["Cu"].copy()
    some["held"].set_constraint(FixAtoms([0]))
    some["molecule"] = Atoms("NaCl", [[0, 0, 0], [0, 0, 1.0]])
    some["strange"] = bulk("Xe", "fcc", a=6.0)
    calculator = PRISMCalculator(potential, dtype="float64", batch_size=4)
    found = dict(relax_many(some.items(), calculator, fmax=0.02, steps=60))
    assert set(found) == set(some)
    assert str(found.pop("strange")).startswith("strange: ")
    for name, one in found.items():
        alone = relax_one(some[name], calculator, fmax=0.02, steps=60)
        assert one.start is some[name]
        assert (one.steps, one.is_converged) == (alone.steps, alone.is_converged)
        np.testing.assert_allclose(one.atoms.positions, alone.atoms.positions, atol=1e-8)
        np.testing.assert_allclose(one.atoms.cell, alone.atoms.cell, atol=1e-8)
    assert len({one.steps for one in found.values()}) > 2
    assert np.array_equal(found["held"].atoms.get_scaled_positions()[0], some["held"].get_scaled_positions()[0])


def test_structures_that_relax_are_taken_as_there_is_room(potential: PRISMPotential) -> None:
    taken = []

    def stream() -> Iterator[tuple[int, Atoms]]:
        for number in range(6):
            taken.append(number)
            yield number, bulk("Si", cubic=True).repeat((5, 5, 2))  # 400 atoms: one at a time

    for done, (number, found) in enumerate(relax_many(stream(), PRISMCalculator(potential), steps=1)):
        assert number == done
        assert isinstance(found, Relaxation)
        assert taken == list(range(min(done + 2, 6)))


def test_a_model_without_forces_relaxes_nothing() -> None:
    with pytest.raises(ValueError, match=r"trained on relaxed crystals.*take a potential"):
        relax(bulk("Si"), small_model(target="e", unit="eV/atom"))
    with pytest.raises(ValueError, match=r"this model predicts gap, which is no energy: take a potential"):
        relax(bulk("Si"), small_model(target="gap", unit="eV"))


@pytest.mark.usefixtures("pictures")
def test_every_structure_of_files_is_a_row(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "si.cif", bulk("Si"))
    write(tmp_path / "two.extxyz", [bulk("Cu"), bulk("Ge")])
    (tmp_path / "bad.cif").write_text("nothing")
    files = [str(tmp_path / name) for name in ("si.cif", "two.extxyz", "bad.cif", "none.cif")]
    out = tmp_path / "relaxed"
    command = ["relax", *files, "--out", str(out), "--model", saved, "--steps", "30", "--format", "cif"]
    assert cli.main(command) == 0
    assert "2 done, 0 were there already, 3 failed" in capsys.readouterr().out
    table = {row["name"].removeprefix(f"{tmp_path}/"): row for row in rows_of(out / "relax.csv")}  # as they ended
    names = ("si.cif", "two.extxyz#1", "two.extxyz#2", "bad.cif", "none.cif")
    assert [bool(table[name]["error"]) for name in names] == [False, False, True, True, True]
    assert "Ge" in table["two.extxyz#2"]["error"]
    assert table["none.cif"]["error"] == "no such file"
    assert [table[name]["file"] for name in names[:2]] == ["si.cif", "two-1.cif"]
    volume = read(out / "si.cif").get_volume()
    assert volume == pytest.approx(float(table["si.cif"]["volume (Å^3)"]), rel=1e-4)
    assert {table[name]["converged"] for name in names[:2]} <= {"yes", "no"}
    assert (out / "relax.png").stat().st_size > 5000
    before = (out / "relax.csv").read_bytes()
    assert cli.main(command) == 0
    assert "0 done, 2 were there already, 3 failed" in capsys.readouterr().out
    assert (out / "relax.csv").read_bytes() == before
    assert cli.main(["relax", str(tmp_path), "--out", str(tmp_path), "--model", saved]) == 2
    assert "is the folder of the structures" in capsys.readouterr().err
    assert cli.main([*command[:-3], "40"]) == 2
    assert "relax.csv' exists and is a table with steps = 30 in place of 40" in capsys.readouterr().err


def test_dynamics_of_files(saved: str, tmp_path: Path) -> None:
    write(tmp_path / "si.cif", bulk("Si", cubic=True))
    out = tmp_path / "md"
    command = ["md", tmp_path / "si.cif", "--out", out, "--model", saved, "--steps", 20, "--every", 5, "--repeat", 1]
    assert cli.main(list(map(str, command))) == 0
    (row,) = rows_of(out / "md.csv")
    assert row["moving atoms"] == "8"
    assert {path.name for path in (out / row["folder"]).iterdir()} == {"log.csv", "md.png", "trajectory.traj"}


@pytest.mark.parametrize("verb", ["eos", "elastic", "phonons"])
def test_properties_of_files(verb: str, saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A potential that has learned nothing: the way of the numbers, not their values."""
    write(tmp_path / "si.cif", bulk("Si"))
    out = tmp_path / verb
    more = {"eos": ["--points", "5"], "elastic": [], "phonons": ["--min-length", "4", "--fmax", "0.05"]}[verb]
    status = cli.main([verb, str(tmp_path / "si.cif"), "--out", str(out), "--model", saved, "--fmax", "0.05", *more])
    (row,) = rows_of(out / f"{verb}.csv")
    assert row["formula"] == "Si"
    if status:
        assert row["error"]
        assert "nothing was done: see the table" in capsys.readouterr().err
    else:
        assert (out / row["folder"]).is_dir()


def test_a_verb_needs_a_potential(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "si.cif", bulk("Si"))
    command = ["relax", str(tmp_path / "si.cif"), "--out", str(tmp_path / "out"), "--model", "prism-mp2018-eform"]
    assert cli.main(command) == 2
    assert "take a potential (prism-universal-pbe, or one of yours" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bad_option_is_said_before_any_work(saved: str, tmp_path: Path) -> None:
    write(tmp_path / "si.cif", bulk("Si"))
    command = ["relax", str(tmp_path / "si.cif"), "--out", str(tmp_path / "out"), "--model", saved, "--format", "xyzzy"]
    assert cli.main(command) == 2
    with pytest.raises(PrismError, match="unknown ensemble"):
        DynamicsSettings("nvp")  # type: ignore[arg-type]


def test_forces_of_files_are_frames_that_go_on(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled = bulk("Cu")
    labelled.calc = SinglePointCalculator(labelled, energy=-99.0, forces=np.ones((1, 3)))  # of someone else
    write(tmp_path / "some.extxyz", [labelled, bulk("Ge"), bulk("Si")])
    write(tmp_path / "water.xyz", Atoms("NaCl", [[0, 0, 0], [0, 0, 2.3]]))
    out = tmp_path / "forces"
    command = ["predict", str(tmp_path / "some.extxyz"), str(tmp_path / "water.xyz"), "--forces", "--out", str(out)]
    command += ["--model", saved]
    assert cli.main(command) == 0
    assert "3 predicted, 0 were there already, 1 failed" in capsys.readouterr().out
    frames = read(out / "predict.extxyz", ":")
    calculator = PRISMCalculator(saved)
    for frame, formula in zip(frames, ("Cu", "Si2", "ClNa"), strict=True):
        assert frame.get_chemical_formula() == formula
        (expected,) = calculator.predict([frame])
        assert frame.get_potential_energy() == pytest.approx(expected["energy"], abs=1e-5)
        np.testing.assert_allclose(frame.get_forces(), expected["forces"], atol=1e-5)
        assert ("stress" in frame.calc.results) == (formula != "ClNa")
    rows = rows_of(out / "predict.csv")
    assert [bool(row["error"]) for row in rows] == [False, True, False, False]
    # Killed between a frame and its row, and once more within a row.
    whole = (out / "predict.extxyz").read_bytes()
    table = (out / "predict.csv").read_bytes().splitlines(keepends=True)
    (out / "predict.csv").write_bytes(b"".join(table[:3]) + table[3][:5])
    assert cli.main(command) == 0
    assert "2 predicted, 1 were there already, 1 failed" in capsys.readouterr().out
    assert (out / "predict.extxyz").read_bytes() == whole
    assert (out / "predict.csv").read_bytes() == b"".join(table)
    (out / "predict.extxyz").write_bytes(whole[:50])
    (out / "predict.csv").write_bytes(b"".join(table[:4]))
    assert cli.main(command) == 2
    assert "has not the 2 frames of the table beside it" in capsys.readouterr().err
    assert cli.main([*command[:-3], str(tmp_path / "other"), "--model", "prism-mp2018-eform"]) == 2
    assert "take a potential" in capsys.readouterr().err


def test_forces_of_a_committee_have_a_spread(potential: PRISMPotential, saved: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = PRISMPotential(("Cu", "Si"), dim=8, num_layers=1, directions=False, repulsion="zbl", std=0.02).eval()
    write(tmp_path / "si.cif", bulk("Si"))
    other.save(tmp_path / "other")
    command = ["predict", tmp_path / "si.cif", "--forces", "--out", tmp_path / "out", "--model", saved]
    assert cli.main([str(one) for one in (*command, "--model", tmp_path / "other")]) == 0
    frame = read(tmp_path / "out" / "predict.extxyz")
    answers = [PRISMCalculator(one).predict([frame])[0]["energy"] for one in (potential, other)]
    assert frame.get_potential_energy() == pytest.approx(np.mean(answers), abs=1e-5)
    assert frame.info["energy_std"] == pytest.approx(np.std(answers, ddof=1), rel=1e-3)
    assert frame.arrays["forces_std"].shape == (2, 3)
    assert frame.info["stress_std"].shape == (6,)


# ---- nothing that lies there is lost


def test_no_result_takes_the_place_of_another_ones(saved: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder, start in (("a", bulk("Cu")), ("b", bulk("Si"))):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "s.cif", start)
        given = [str(tmp_path / folder / "s.cif"), "--out", str(out), "--model", saved]
        assert cli.main(["relax", *given, "--steps", "1"]) == 0
        assert cli.main(["md", *given, "--steps", "2", "--every", "1"]) == 0
    assert [row["file"] for row in rows_of(out / "relax.csv")] == ["s.extxyz", "s-2.extxyz"]
    assert [row["folder"] for row in rows_of(out / "md.csv")] == ["s", "s-2"]
    names = ("s.extxyz", "s-2.extxyz", "s/trajectory.traj", "s-2/trajectory.traj")
    assert [str(read(out / name).symbols[0]) for name in names] == ["Cu", "Si"] * 2
    write(tmp_path / "b" / "s.extxyz", bulk("Na"))  # the user's, beside the structure and in the folder of the results
    assert cli.main(["relax", str(tmp_path / "b" / "s.cif"), "--out", str(tmp_path / "b"), "--model", saved]) == 0
    assert str(read(tmp_path / "b" / "s.extxyz").symbols) == "Na"
    assert str(read(tmp_path / "b" / "s-2.extxyz").symbols) == "Si2"


def test_what_a_killed_dynamics_left_is_its_own(saved: str, tmp_path: Path) -> None:
    write(tmp_path / "s.cif", bulk("Cu"))
    left = tmp_path / "out" / "s" / ".trajectory.traj.aside-abcdefgh"
    of_others = left.with_name(".eos.csv.aside-abcdefgh")  # prism eos may be at work in the same folder
    left.mkdir(parents=True)
    of_others.mkdir()
    command = ["md", str(tmp_path / "s.cif"), "--out", str(tmp_path / "out"), "--model", saved, "--steps", "1"]
    assert cli.main(command) == 0
    assert not left.exists()
    assert of_others.exists()
    assert (tmp_path / "out" / "s" / "md.png").exists()


def test_frames_without_a_table_are_kept(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "predict.extxyz", [bulk("Cu"), bulk("Si")])
    given = (tmp_path / "predict.extxyz").read_text()
    command = ["predict", str(tmp_path / "predict.extxyz"), "--forces", "--model", saved]
    assert cli.main([*command, "--out", str(tmp_path)]) == 2
    assert "is there, and no table of it" in capsys.readouterr().err
    assert (tmp_path / "predict.extxyz").read_text() == given


def test_a_deleted_row_takes_its_own_frame_along(saved: str, tmp_path: Path) -> None:
    structures = {"a b.cif": bulk("Cu"), "b.cif": bulk("Si"), "c.cif": bulk("Na")}
    for name, start in structures.items():
        write(tmp_path / name, start)
    out = tmp_path / "out"
    command = ["predict", *(str(tmp_path / name) for name in structures), "--forces", "--out", str(out)]
    assert cli.main([*command, "--model", saved]) == 0
    table = (out / "predict.csv").read_text().splitlines(keepends=True)
    (out / "predict.csv").write_text("".join([table[0], *table[2:]]))
    assert cli.main([*command, "--model", saved]) == 0
    names = [row["name"] for row in rows_of(out / "predict.csv")]
    frames = read(out / "predict.extxyz", ":")
    assert [Path(name).name for name in names] == ["b.cif", "c.cif", "a b.cif"]
    assert [frame.info["name"] for frame in frames] == [name.replace(" ", "_") for name in names]
    assert [str(frame.symbols[0]) for frame in frames] == ["Si", "Na", "Cu"]


# ---- one structure, or a bad option, ends no work on the others


def test_selective_dynamics_hold(saved: str, tmp_path: Path) -> None:
    slab = bulk("Cu", cubic=True)
    slab.rattle(0.1, seed=0)
    slab.set_constraint(FixAtoms([0, 1]))
    write(tmp_path / "POSCAR", slab)
    command = ["relax", str(tmp_path / "POSCAR"), "--out", str(tmp_path / "out"), "--model", saved, "--fix-cell"]
    assert cli.main([*command, "--steps", "5"]) == 0
    (row,) = rows_of(tmp_path / "out" / "relax.csv")
    found = read(tmp_path / "out" / row["file"])  # ASE takes every *POSCAR* for VASP's, whatever is behind it
    moved = np.linalg.norm(found.get_positions() - slab.get_positions(), axis=1)
    np.testing.assert_allclose(moved[:2], 0, atol=1e-6)
    assert moved[2:].min() > 1e-3


def test_labels_of_another_geometry_are_left_out(saved: str, tmp_path: Path) -> None:
    start = bulk("Cu")
    start.info |= {"REF_energy": -3.0, "virial": np.eye(3), "config_type": "mine"}
    start.arrays["REF_forces"] = np.ones((1, 3))
    write(tmp_path / "s.extxyz", start)
    assert cli.main(["relax", str(tmp_path / "s.extxyz"), "--out", str(tmp_path / "out"), "--model", saved]) == 0
    found = read(tmp_path / "out" / "s-1.extxyz")
    assert found.info == {"config_type": "mine"}
    assert "REF_forces" not in found.arrays
    assert {"energy", "forces", "stress"} <= set(found.calc.results)


@pytest.mark.parametrize(
    ("verb", "options", "bad", "reason"),
    [
        ("elastic", [], "held", "has constraints (or selective dynamics), which do not hold here"),
        ("md", ["--ensemble", "npt"], "held", "has constraints, which the ensemble npt cannot hold"),
        ("md", [], "held", "nothing moves at 300.0 K"),
        ("relax", ["--format", "cif", "--steps", "1"], "sheet", "take --format extxyz"),
    ],
)
def test_a_structure_that_cannot_be_is_a_row(
    verb: str, options: list[str], bad: str, reason: str, saved: str, tmp_path: Path
) -> None:
    held = bulk("Cu")
    held.set_constraint(FixAtoms([0]))
    sheet = Atoms("Cu", cell=[2.55, 2.55, 0], pbc=(True, True, False))
    write(tmp_path / "bad.extxyz", {"held": held, "sheet": sheet}[bad])
    write(tmp_path / "good.cif", bulk("Cu"))
    files = [str(tmp_path / name) for name in ("bad.extxyz", "good.cif")]
    more = ["--steps", "2"] if verb == "md" else []
    assert cli.main([verb, *files, "--out", str(tmp_path / "out"), "--model", saved, *options, *more]) == 0
    rows = {Path(row["name"]).name: row["error"] for row in rows_of(tmp_path / "out" / f"{verb}.csv")}
    assert reason in rows["bad.extxyz#1"]
    assert rows["good.cif"] == ""


def test_what_does_not_relax_has_no_moduli(saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(*_: Any) -> None:
        raise RuntimeError("Pre-relaxation did not converge: max|F| = 1 eV/A")

    monkeypatch.setattr("matcalc.ElasticityCalc.calc", stuck)
    with pytest.raises(PrismError, match="no elastic constants: Pre-relaxation did not converge"):
        elastic_constants(bulk("Cu"), EMT(), tmp_path)


@pytest.mark.parametrize(
    ("verb", "option", "value", "message"),
    [
        ("eos", "--points", "3", "points must be at least 5, got 3"),
        ("eos", "--strain", "1.5", "strain is a share of the cell's lengths, below 1, got 1.5"),
        ("elastic", "--fmax", "nan", "fmax must be positive, got nan"),
        ("phonons", "--min-length", "inf", "min_length must be positive, got inf"),
        ("md", "--seed", "-1", "the seed must be at least 0, got -1"),
    ],
)
def test_numbers_without_a_meaning_are_refused(
    verb: str, option: str, value: str, message: str, saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "s.cif", bulk("Cu"))
    command = [verb, str(tmp_path / "s.cif"), "--out", str(tmp_path / "out"), "--model", saved, option, value]
    assert cli.main(command) == 2
    assert message in capsys.readouterr().err


def test_an_equation_of_state_of_64_atoms() -> None:
    """SciPy says there that a logarithm may be inaccurate, by 1e-13."""
    found = relax_one(bulk("Cu", cubic=True).repeat((4, 4, 1)), EMT(), fmax=0.01)
    assert found.is_converged
