"""What a model knows: distances from its training crystals, intervals that hold, files that go with their weights."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from prism_plugin import PRISMCalculator, cli, load
from prism_plugin.committee import how_far
from prism_plugin.data import make_datasets, split_records
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.domain import FEWEST, LEVELS, Domain
from prism_plugin.errors import PrismError
from prism_plugin.matgl_bridge import weights_digest
from prism_plugin.training import TrainingSettings, report, train
from tests.conftest import small_model


def crystals(count: int, seed: int, spread: float = 1.0) -> np.ndarray:
    """Features of crystals on a bent sheet."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, spread, (count, 3))
    return np.concatenate([x, x**2, np.sin(x), x[:, :1] * x[:, 1:]], axis=1)


def domain_of(errors: np.ndarray, validation: np.ndarray) -> Domain:
    training = crystals(3000, 0)
    names = [(f"c{number}", "NaCl") for number in range(len(training))]
    return Domain.fit("digest", training, names, validation, errors)


def test_distances_are_those_of_the_slow_way() -> None:
    validation = crystals(400, 1)
    domain = domain_of(np.ones(400), validation)
    points = domain.points.astype(float) * domain.steps
    expected = []
    for one in validation[:20]:
        along = domain.directions @ ((one - domain.mean) / domain.scale)
        distances = sorted(float(np.sqrt(((point - along) ** 2).sum())) for point in points)
        expected.append(sum(distances[:5]) / 5)
    np.testing.assert_allclose(domain.distances(validation[:20]), expected, rtol=1e-4)
    assert (domain.novelty(validation) < 1).mean() == pytest.approx(0.95, abs=0.01)
    assert (domain.novelty(validation) < domain.far).mean() == pytest.approx(0.99, abs=0.01)
    assert (domain.novelty(crystals(100, 2, spread=4.0)) > domain.far).mean() > 0.8
    names = domain.nearest(domain_of(np.ones(400), validation).mean[None])[0]
    assert len(names) == 5
    assert [distance for _, distance in names] == sorted(distance for _, distance in names)


@pytest.mark.parametrize("count", [40, 400])
def test_intervals_hold_on_crystals_that_were_not_seen(count: int) -> None:
    """Errors that grow with the distance, and have heavy tails; the mean over many draws."""
    held = []
    for seed in range(12):
        x = crystals(count + 2000, seed + 10, spread=1.5)
        rng = np.random.default_rng(seed)
        errors = 0.02 * (1 + (x[:, :3] ** 2).sum(axis=1)) * rng.standard_t(3, len(x))
        domain = domain_of(errors[:count], x[:count])
        widths = domain.half_widths(domain.novelty(x[count:]))
        held.append((np.abs(errors[count:, None]) <= widths).mean(axis=0))
        near, far = np.sort(widths[:, 1])[[0, -1]]
        assert far > (2 if count == 400 else 1) * near
    for level, value in zip(LEVELS, np.mean(held, axis=0), strict=True):
        assert value == pytest.approx(level, abs=0.03)


def test_a_domain_is_kept_with_its_weights(tmp_path: Path) -> None:
    model = small_model(target="e", unit="eV/atom").float()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 8))
    digest = weights_digest(model.state_dict())
    model.domain = Domain.fit(digest, features, [("é#1", "Cu")] * 60, features[:30], rng.normal(size=30))
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.domain is not None
    for name in ("mean", "scale", "directions", "steps", "points", "knots"):
        np.testing.assert_array_equal(getattr(again.domain, name), getattr(model.domain, name))
    assert again.domain.names[0] == "é#1"
    assert (again.domain.factors, again.domain.unit) == (model.domain.factors, model.domain.unit)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model.save(tmp_path / "other")  # of other weights: not kept
    assert load(tmp_path / "other").domain is None
    (tmp_path / "other" / "domain.npz").write_bytes((tmp_path / "model" / "domain.npz").read_bytes())
    with pytest.raises(PrismError, match=r"domain.npz is of other weights than the model beside it"):
        load(tmp_path / "other")
    (tmp_path / "model" / "domain.npz").write_bytes(b"PK")
    with pytest.raises(PrismError, match=r"domain.npz' is damaged"):
        load(tmp_path / "model")
    with pytest.raises(PrismError, match=f"at least {FEWEST} crystals, got 3"):
        Domain.fit(digest, features, [("x", "Cu")] * 60, features[:3], np.zeros(3))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose validation part is large enough."""
    folder = tmp_path_factory.mktemp("domain")
    sizes = {"dim": 8, "num_layers": 1, "num_rbf": 6, "cutoff": 3.5, "cell_cutoff": 6.0}
    settings = TrainingSettings(target="e", unit="eV/atom", model=sizes, epochs=2, batch_size=16, device="cpu")
    train(settings, split_records(emt_alloys(240)), folder / "run", progress=False)
    return folder / "run"


def test_a_run_measures_its_domain_and_answers_say_it(run: Path, tmp_path: Path) -> None:
    model = load(run / "model")
    assert model.domain is not None
    assert len(model.domain.names) == 192
    assert model.domain.crystals == 24
    strange = bulk("Al", a=3.2).repeat((3, 1, 1))
    strange.rattle(0.4, seed=0)
    known = emt_alloys(240)[5].atoms
    write(tmp_path / "both.extxyz", [Atoms(known), strange])
    out = tmp_path / "t.csv"
    assert cli.main(["predict", str(tmp_path / "both.extxyz"), "--model", str(run / "model"), "--out", str(out)]) == 0
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[3:] == ["e (eV/atom)", "e_68 (eV/atom)", "e_95 (eV/atom)", "novelty", "warnings", "error"]
    calculator = PRISMCalculator(run / "model")
    with pytest.warns(UserWarning, match=r"structure 1 of the list: farther from the training crystals than 99 % of"):
        results = calculator.predict([known, strange])
    for row, result, atoms in zip(rows, results, (known, strange), strict=True):
        assert float(row["novelty"]) == pytest.approx(result["novelty"], rel=1e-2)
        low, high = result["energy_interval"]
        assert (high - low) / 2 / len(atoms) == pytest.approx(float(row["e_95 (eV/atom)"]), rel=1e-2)
        assert (high + low) / 2 == pytest.approx(result["energy"])
        assert 0 < float(row["e_68 (eV/atom)"]) < float(row["e_95 (eV/atom)"])
    assert results[1]["novelty"] > model.domain.far > 1
    assert "farther from the training crystals" in rows[1]["warnings"]
    assert "farther" not in rows[0]["warnings"]
    known.calc = calculator
    assert calculator.get_property("novelty", known) == pytest.approx(results[0]["novelty"], rel=1e-4)
    features = [one.numpy() for one in model.descriptors([known, strange])]
    far = how_far([model], [features])
    assert far is not None
    np.testing.assert_allclose(far.novelty, [result["novelty"] for result in results], rtol=1e-4)
    assert how_far([model, small_model(target="e")], [features, features]) is None


@pytest.fixture(scope="module")
def potential_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a potential whose validation part is large enough."""
    folder = tmp_path_factory.mktemp("domain")
    sizes = {"dim": 8, "num_layers": 1, "num_rbf": 6, "cutoff": 4.0, "directions": False}
    settings = TrainingSettings(target="pes", unit="eV", model=sizes, epochs=2, batch_size=16, device="cpu", lr=1e-2)
    train(settings, split_records(emt_alloys(240, forces=True)), folder / "run", progress=False)
    return folder / "run"


def test_a_potential_compares_atoms_and_bounds_forces(potential_run: Path, tmp_path: Path) -> None:
    model = load(potential_run / "model")
    assert model.domain is not None
    parts = split_records(emt_alloys(240, forces=True))
    atoms_of = {record.name: len(record.atoms) for record in parts["train"]}
    assert len(model.domain.names) == sum(atoms_of.values())  # fewer than are kept
    assert all(model.domain.names.count(name) == atoms_of[name] for name in list(atoms_of)[:20])
    calculator = PRISMCalculator(potential_run / "model")
    known = parts["train"][5].atoms
    per_atom = [model.domain.novelty(one[None].numpy())[0] for one in model.descriptors([known], True)[0]]
    (one, doubled) = calculator.predict([known, known.repeat((2, 1, 1))])
    assert one["novelty"] == pytest.approx(max(per_atom), rel=1e-4)
    assert doubled["novelty"] == pytest.approx(one["novelty"], rel=1e-4)
    assert "energy_interval" not in one
    held = []
    for record, result in zip(parts["val"], calculator.predict([one.atoms for one in parts["val"]]), strict=True):
        assert record.forces is not None
        held.append(np.linalg.norm(result["forces"] - record.forces, axis=1).max() <= result["max_force_error"])
    assert np.mean(held) >= 0.9
    strange = bulk("Cu", cubic=True, a=2.9)
    with pytest.warns(UserWarning, match=r"novelty \d+\.?\d*, atom \d+, counted from 0\)"):
        (result,) = PRISMCalculator(potential_run / "model").predict([strange])
    assert result["novelty"] > model.domain.far
    assert "max_force_error" not in PRISMCalculator(potential_run / "model", compute_forces=False).predict([known])[0]
    write(tmp_path / "both.extxyz", [Atoms(known), strange])
    out = tmp_path / "t.csv"
    command = ["predict", str(tmp_path / "both.extxyz"), "--model", str(potential_run / "model"), "--out"]
    assert cli.main([*command, str(out)]) == 0
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[3:8] == [
        "energy (eV)",
        "max_force_error_68 (eV/Å)",
        "max_force_error_95 (eV/Å)",
        "novelty",
        "warnings",
    ]
    assert float(rows[0]["max_force_error_95 (eV/Å)"]) == pytest.approx(one["max_force_error"], rel=1e-2)
    assert "counted from 0" in rows[1]["warnings"]
    assert cli.main([*command, str(tmp_path / "forces"), "--forces"]) == 0
    (again, _) = read(tmp_path / "forces" / "predict.extxyz", ":")
    assert again.info["novelty"] == pytest.approx(one["novelty"], rel=1e-4)
    with open(tmp_path / "forces" / "predict.csv", newline="", encoding="utf-8") as file:
        assert float(next(csv.DictReader(file))["max_force_error (eV/Å)"]) == pytest.approx(one["max_force_error"])


def test_of_many_atoms_some_are_drawn(potential_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(potential_run / "model")
    parts = split_records(emt_alloys(240, forces=True))
    for most, names in ((10, 10), (192, 192), (300, 192)):
        monkeypatch.setattr(report, "_ATOMS", most)
        datasets = make_datasets(parts, *model.cutoffs, False, None, model.has_waves)
        domain = report.measure_domain(model, datasets["train"], datasets["val"], progress=False)
        assert domain is not None
        assert len(set(domain.names)) == names
        each = -(-most // names)
        assert max(domain.names.count(name) for name in set(domain.names)) == each


def test_intervals_of_energies_and_of_forces_are_not_mixed(potential_run: Path) -> None:
    energies = small_model(target="energy", unit="eV", readout="sum").float()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 8))
    digest = weights_digest(energies.state_dict())
    energies.domain = Domain.fit(digest, features, [("a", "Cu")] * 40, features, 100 * features[:, 0])
    both = PRISMCalculator([potential_run / "model", energies], compute_forces=False)
    assert not {"energy_interval", "max_force_error", "novelty"} & set(both.implemented_properties)
    (result,) = both.predict([bulk("Cu")])
    assert not {"energy_interval", "max_force_error", "novelty"} & result.keys()


@pytest.mark.usefixtures("pictures")
def test_commands_tell_of_the_farthest_atom(
    potential_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = emt_alloys(60, seed=9, forces=True)
    frames = []
    for record in records:
        record.atoms.calc = SinglePointCalculator(record.atoms, energy=record.target, forces=2 * record.forces)
        frames.append(record.atoms)
    write(tmp_path / "mine.extxyz", frames)
    model = str(potential_run / "model")
    calibrate = ["calibrate", "--data", str(tmp_path / "mine.extxyz"), "--model", model, "--out", str(tmp_path / "new")]
    assert cli.main(calibrate) == 0
    assert "60 crystals, mean of max_force_error " in capsys.readouterr().out
    for record in records:
        record.atoms.calc = None
        record.atoms.info["energy"] = record.target
    write(tmp_path / "energies.extxyz", [record.atoms for record in records])
    calibrate[2], calibrate[-1] = str(tmp_path / "energies.extxyz"), str(tmp_path / "newer")
    assert cli.main([*calibrate, "--target", "energy"]) == 2
    assert "about forces, which these data do not have" in capsys.readouterr().err
    new, old = (PRISMCalculator(one).predict(frames) for one in (tmp_path / "new", model))
    assert np.mean([a["max_force_error"] > b["max_force_error"] for a, b in zip(new, old, strict=True)]) > 0.9
    strange = bulk("Cu", cubic=True, a=2.9)
    write(tmp_path / "a.extxyz", strange)
    assert cli.main(["explain", str(tmp_path / "a.extxyz"), "--model", model]) == 0
    told = capsys.readouterr().out
    assert "95 % of crystals like the validation crystals: max_force_error at most " in told
    assert re.search(r"nearest training crystals \(of the farthest atom, \d+, Cu\): ", told)
    assert cli.main(["embed", str(tmp_path / "a.extxyz"), "--model", model, "--out", str(tmp_path / "out")]) == 0
    with open(tmp_path / "out" / "embed.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    with pytest.warns(UserWarning, match="farther from the training crystals"):
        (result,) = PRISMCalculator(model).predict([strange])
    assert float(row["novelty"]) == pytest.approx(result["novelty"], rel=1e-4)


def test_descriptors_are_of_the_crystal_not_of_how_it_is_written() -> None:
    model = small_model(experts=("atomistic",))
    atoms = emt_alloys(240)[7].atoms
    order = np.random.default_rng(0).permutation(len(atoms))
    one, permuted, doubled = model.descriptors([atoms, atoms[order], atoms.repeat((2, 1, 1))])
    torch.testing.assert_close(permuted, one, rtol=0, atol=1e-10)
    torch.testing.assert_close(doubled, one, rtol=0, atol=1e-10)
    (per_atom,) = model.descriptors([atoms], per_atom=True)
    assert per_atom.shape == (len(atoms), 8)
    torch.testing.assert_close(per_atom.mean(dim=0), one, rtol=0, atol=1e-12)


def test_calibrate_on_crystals_of_ones_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = []
    for record in emt_alloys(60, seed=9):
        record.atoms.info["mine"] = 0.3 + record.target  # of another reference: the model is off by 0.3
        frames.append(record.atoms)
    write(tmp_path / "mine.extxyz", frames)
    command = ["calibrate", "--data", tmp_path / "mine.extxyz", "--target", "mine", "--model", run / "model"]
    command = [str(one) for one in (*command, "--out", tmp_path / "new")]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "the model's e against 'mine' of the data: are they the same?" in told
    assert "60 crystals, MAE" in told
    old, new = load(run / "model"), load(tmp_path / "new")
    assert old.domain is not None
    assert new.domain is not None
    assert new.domain.crystals == 60
    assert new.domain.names == old.domain.names
    held = PRISMCalculator(tmp_path / "new").predict(frames)
    inside = []
    for one, result in zip(frames, held, strict=True):
        low, high = result["energy_interval"]
        inside.append(low <= one.info["mine"] * len(one) <= high)
    assert np.mean(inside) > 0.9
    torch.testing.assert_close(new.predict_structure(frames), old.predict_structure(frames), rtol=0, atol=0)
    assert cli.main(command) == 2
    assert "new' exists; give another --out" in capsys.readouterr().err
    small_model(target="mine").save(tmp_path / "none")
    assert cli.main([*command[:-3], str(tmp_path / "none"), "--out", str(tmp_path / "other")]) == 2
    assert "does not know its training crystals" in capsys.readouterr().err


@pytest.mark.usefixtures("pictures")
def test_embed_writes_features_a_table_and_a_map(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = bulk("Al", a=3.2).repeat((3, 1, 1))
    strange.rattle(0.4, seed=0)
    write(tmp_path / "some.extxyz", [bulk("Cu"), strange, bulk("Xe", "fcc", a=6.0)])
    out = tmp_path / "out"
    assert cli.main(["embed", str(tmp_path / "some.extxyz"), "--model", str(run / "model"), "--out", str(out)]) == 0
    assert "2 described, 1 failed" in capsys.readouterr().out
    with np.load(out / "features.npz") as kept:
        assert kept["crystals"].shape == (2, 8)
        assert kept["atoms"].shape == (4, 8)
        assert kept["crystal_of_atom"].tolist() == [0, 1, 1, 1]
        np.testing.assert_allclose(kept["atoms"][1:].mean(axis=0), kept["crystals"][1], rtol=1e-5)
        assert [Path(name).name for name in kept["names"]] == ["some.extxyz#1", "some.extxyz#2"]
    with open(out / "embed.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["formula"] for row in rows] == ["Cu", "Al", ""]
    assert "Xe" in rows[2]["error"]
    assert float(rows[0]["novelty"]) < float(rows[1]["novelty"])
    assert (out / "map.png").stat().st_size > 5000
    assert cli.main(["embed", str(tmp_path / "none.cif"), "--model", str(run / "model"), "--out", str(out)]) == 2
    assert "no structure was described; " in capsys.readouterr().err
    (out / "embed.csv").write_text("mine")
    assert cli.main(["embed", str(tmp_path / "some.extxyz"), "--model", str(run / "model"), "--out", str(out)]) == 2
    assert "has another embed.csv, which would be replaced" in capsys.readouterr().err
    assert (out / "embed.csv").read_text() == "mine"


def test_explain_says_what_an_answer_is_made_of(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = emt_alloys(240)[5].atoms
    write(tmp_path / "a.extxyz", known)
    write(tmp_path / "far.cif", bulk("Cu", a=2.9))
    assert cli.main(["explain", str(tmp_path / "far.cif"), "--model", str(run / "model")]) == 0
    assert "it is far from all training crystals: trust neither" in capsys.readouterr().out
    assert cli.main(["explain", str(tmp_path / "a.extxyz"), "--model", str(run / "model")]) == 0
    told = capsys.readouterr().out
    value = float(load(run / "model").predict_structure(known))
    assert f"e: {value:.4f} eV/atom" in told
    assert "output of an atom, mean of each element: " in told
    assert "95 % of crystals like the validation crystals: " in told
    assert "nearest training crystals: " in told
    assert told.count(" at ") == 5
    assert "to be looked at: nothing" in told
    assert (
        cli.main(["explain", str(tmp_path / "a.extxyz"), str(tmp_path / "b.cif"), "--model", str(run / "model")]) == 2
    )
    captured = capsys.readouterr()
    assert "b.cif: no such file" in captured.out
    assert "structures that could not be predicted: 1 (see above)" in captured.err
