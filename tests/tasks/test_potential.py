"""Potentials: what they learn, that their forces are gradients, that training on them is right, and that they keep."""

from __future__ import annotations

import csv
import json
import lzma
import shutil
from dataclasses import replace

import matgl
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, fcc111, make_supercell
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.io import write
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE, LBFGS
from ase.stress import voigt_6_to_full_3x3_stress
from matgl.apps.pes import Potential
from matgl.ext.ase import PESCalculator

from prism_plugin import PRISM, PRISMCalculator, PRISMPotential, batch_graphs, build_graph, cli
from prism_plugin.data import PES, EnergyLabels, GraphDataset, Record, load_named, make_loader, read_records
from prism_plugin.data.augmentation import random_rotations, rotate_batch, rotate_labels
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.records import elements_of, fingerprint
from prism_plugin.data.splits import split_records
from prism_plugin.forces import energies_with_gradients
from prism_plugin.potential import fit_element_refs
from prism_plugin.pretrained import load
from prism_plugin.tasks.potential import WEIGHTS, PotentialLoss
from prism_plugin.training import TrainingSettings, evaluate, train
from prism_plugin.training.job import Job
from prism_plugin.training.module import PropertyTraining
from tests.conftest import SMALL_POTENTIAL as SMALL
from tests.conftest import crystal_zoo, random_potential
from tests.reference import potential_reference

EXPERTS = {
    "atomistic": ("atomistic",),
    "with multiscale": ("atomistic", "multiscale"),
    "all": ("atomistic", "cell", "multiscale", "similarity"),
}


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return emt_alloys(150, seed=4, forces=True)


@pytest.fixture(scope="module")
def parts(records) -> dict[str, list[Record]]:
    return split_records(records, seed=0)


def settings(**changes: object) -> TrainingSettings:
    values = {
        "target": PES,
        "model": SMALL,
        "optimizer": "muon",
        "lr": 1e-2,
        "batch_size": 4,
        "epochs": 20,
        "clip": 1.0,
    }
    return TrainingSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pes") / "run"
    return folder, train(settings(), parts, folder, progress=False)


# ---- the model


@pytest.mark.parametrize("experts", EXPERTS)
def test_a_potential_keeps_when_saved(experts: str, tmp_path) -> None:
    model = random_potential(("Cu", "Au"), experts=EXPERTS[experts]).float()
    model.save(tmp_path / "model")
    atoms = bulk("Cu") * (2, 1, 1)
    atoms.symbols[1] = "Au"
    for loaded in (load(tmp_path / "model"), matgl.load_model(tmp_path / "model").eval()):
        assert type(loaded) is PRISMPotential
        assert loaded.arguments == model.arguments
        assert float(loaded.predict_structure(atoms)) == float(model.predict_structure(atoms))


def test_elements_have_their_energies() -> None:
    model = random_potential(("Au", "Cu"))
    bare = PRISMPotential(**{**model.arguments, "element_refs": None}).double().eval()
    bare.load_state_dict(model.state_dict())
    atoms = Atoms("CuAu2Cu", positions=[[0, 0, 0], [2.5, 0, 0], [0, 2.5, 0], [0, 0, 2.6]])
    difference = float(model.predict_structure(atoms)) - float(bare.predict_structure(atoms))
    assert difference == pytest.approx(
        2 * -1.5 + 2 * -2.0, abs=1e-12
    )  # the first of element_refs is the first element's


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ((1.0,), "1 element_refs are given for 2"),
        ("ab", "element_refs must be a tuple, each a number"),
    ],
)
def test_bad_element_refs_are_refused(refs, message) -> None:
    with pytest.raises(ValueError, match=message):
        PRISMPotential(("Cu", "Au"), element_refs=refs)


@pytest.mark.parametrize("experts", ["atomistic", "with multiscale"])
def test_copies_of_a_cell_have_its_energy_times_their_number(experts: str) -> None:
    model = random_potential(experts=EXPERTS[experts])
    atoms = crystal_zoo()["low symmetry"]
    large = make_supercell(atoms, [[2, 1, 0], [0, 1, 0], [0, 1, 3]])
    assert len(large) == 6 * len(atoms)
    assert float(model.predict_structure(large)) == pytest.approx(6 * float(model.predict_structure(atoms)), rel=1e-12)


def test_the_cell_is_what_the_cell_expert_sees() -> None:
    """What the docstring of the class warns of; the test above would notice nothing if all were constant."""
    model = random_potential(experts=("atomistic", "cell", "multiscale"))
    atoms = crystal_zoo()["low symmetry"]
    twice = float(model.predict_structure(atoms * (2, 1, 1)))
    assert abs(twice - 2 * float(model.predict_structure(atoms))) > 1e-4


def test_no_crystal_of_a_batch_touches_another_one_in_training() -> None:
    model = random_potential(experts=EXPERTS["all"]).train()
    graphs = [build_graph(atoms, 4.0, 6.0) for atoms in crystal_zoo().values()]
    alone = [model.read_out(graph) for graph in graphs]
    torch.testing.assert_close(model.read_out(batch_graphs(graphs)), torch.cat(alone), rtol=0, atol=1e-11)
    assert not [name for name, _ in model.named_buffers() if "running" in name]


@pytest.mark.usefixtures("float64")
def test_matgls_potential_agrees_with_the_calculator() -> None:
    model = random_potential(("Ti", "O", "Na"))
    atoms = crystal_zoo()["low symmetry"].copy()
    atoms.symbols[:] = "Na"
    atoms.symbols[0] = "O"
    matgls = atoms.copy()
    matgls.calc = PESCalculator(
        Potential(model, calc_stresses=True).double().eval(), stress_unit="eV/A3", use_voigt=True
    )
    atoms.calc = PRISMCalculator(model, compute_forces=True)
    assert atoms.get_potential_energy() == pytest.approx(matgls.get_potential_energy(), abs=1e-9)
    assert np.abs(atoms.get_forces()).max() > 1e-2
    np.testing.assert_allclose(atoms.get_forces(), matgls.get_forces(), atol=1e-9)
    np.testing.assert_allclose(atoms.get_stress(), matgls.get_stress(), atol=1e-9)


# ---- element energies


def test_element_energies_are_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    elements = ["Al", "Cu", "O"]
    counts = rng.integers(1, 5, size=(12, 3))
    structures = [Atoms([e for e, n in zip(elements, row, strict=True) for _ in range(n)]) for row in counts]
    energies = counts @ [-3.0, -1.0, 2.0] + rng.normal(size=12)
    expected = potential_reference.element_refs(counts.tolist(), energies.tolist())
    np.testing.assert_allclose(fit_element_refs(structures, energies, elements), expected, rtol=1e-9)


def test_one_composition_shares_its_energy() -> None:
    crystals = [Atoms("NaCl"), Atoms("NaCl")]
    np.testing.assert_allclose(fit_element_refs(crystals, np.array([-6.0, -7.0]), ["Cl", "Na"]), (-3.25, -3.25))


# ---- the loss and its gradients


def _labels(batch, seed: int = 0) -> EnergyLabels:
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    virial = torch.randn(len(batch), 3, 3, **draw) * 10
    virial = virial + virial.mT
    virial[1] = torch.nan
    energy = torch.randn(len(batch), **draw) * 5 * batch.atoms_per_crystal
    return EnergyLabels(energy, torch.randn(len(batch.positions), 3, **draw), virial)


def _batch():
    names = ("low symmetry", "skewed", "wire")
    return batch_graphs([build_graph(crystal_zoo()[name], 4.0, 6.0) for name in names])


@pytest.mark.parametrize("threshold", [1.0, 0.1])
@pytest.mark.parametrize("experts", EXPERTS)
def test_the_loss_is_that_of_the_slow_twin(experts: str, threshold: float) -> None:
    model = random_potential(experts=EXPERTS[experts])
    weights = {"energy": 20.0, "forces": 1.0, "stress": 0.5}
    module = PropertyTraining(model, loss=PotentialLoss(weights, 2.5, threshold))
    batch = _batch()
    labels = _labels(batch)
    found = module.errors(batch, labels).detach()
    start = 0
    for number, graph in enumerate(batch.unbatch()):
        alone = energies_with_gradients(model, batch_graphs([graph]))
        mine = slice(start, start + len(graph))
        start += len(graph)
        right = labels.virial[number].numpy()
        expected = potential_reference.loss(
            (float(alone.energies.sum()), float(labels.energy[number])),
            (alone.forces.numpy(), labels.forces[mine].numpy()),
            (alone.virial[0].numpy(), None if np.isnan(right).any() else right),
            model.std,
            2.5,
            weights,
            threshold,
        )
        assert float(found[number]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("experts", EXPERTS)
def test_the_loss_is_differentiated_through_the_forces(experts: str) -> None:
    """The gradient with respect to the weights, which differentiates twice, against finite differences of the loss."""
    model = random_potential(experts=EXPERTS[experts])
    batch = _batch()
    labels = _labels(batch)
    module = PropertyTraining(model, loss=PotentialLoss({"energy": 0.0, "forces": 1.0, "stress": 1.0}, mean_atoms=2.5))
    module.train()
    module.errors(batch, labels).sum().backward()
    module.eval()
    generator = torch.Generator().manual_seed(7)
    checked = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None or "head.2.bias" in name:
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        start = parameter.data.clone()
        ends = []
        for sign in (1, -1):
            parameter.data = start + sign * 1e-6 * direction
            ends.append(float(module.errors(batch, labels).sum()))
        parameter.data = start
        slope = (ends[0] - ends[1]) / 2e-6
        assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=2e-5, abs=2e-7), name
        checked += abs(slope) > 1e-6
    assert checked > 15


def test_labels_turn_with_their_crystals() -> None:
    """EMT, which knows no direction, says what forces and stress of the turned crystals are."""
    crystals = [record.atoms.copy() for record in emt_alloys(3, seed=1)]
    batch = batch_graphs([build_graph(atoms, 4.0, 6.0) for atoms in crystals])
    rotations = random_rotations(3, torch.Generator().manual_seed(0))

    def label(atoms: Atoms) -> EnergyLabels:
        atoms = atoms.copy()
        atoms.calc = EMT()
        virial = atoms.get_stress(voigt=False) * atoms.get_volume()
        values = (atoms.get_potential_energy(), atoms.get_forces(), virial)
        return EnergyLabels(*(torch.as_tensor(value, dtype=torch.float64) for value in values))

    def together(several: list[EnergyLabels]) -> EnergyLabels:
        energy, forces, virial = zip(*several, strict=True)
        return EnergyLabels(torch.stack(energy), torch.cat(forces), torch.stack(virial))

    turned = rotate_batch(batch, rotations)
    after = [
        Atoms(g.atomic_numbers.numpy(), g.positions.numpy(), cell=g.lattice.numpy(), pbc=True) for g in turned.unbatch()
    ]
    found = rotate_labels(together([label(atoms) for atoms in crystals]), batch.atom_crystal, rotations)
    for given, expected in zip(found, together([label(atoms) for atoms in after]), strict=True):
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-9)


# ---- data


def _frames() -> list[Atoms]:
    frames = []
    for record in emt_alloys(4, seed=2, forces=True):
        atoms = record.atoms.copy()
        results = {"energy": record.target, "forces": record.forces, "stress": record.stress}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def test_extxyz_and_jsonl_say_the_same(tmp_path) -> None:
    frames = _frames()
    write(tmp_path / "a.extxyz", frames)
    with lzma.open(tmp_path / "a.extxyz.xz", "wt") as file:
        file.write((tmp_path / "a.extxyz").read_text())
    with open(tmp_path / "a.jsonl", "w") as file:
        for number, atoms in enumerate(frames, start=1):
            row = {
                "id": str(number),
                "lattice": atoms.cell.tolist(),
                "species": list(atoms.symbols),
                "frac_coords": atoms.get_scaled_positions(wrap=False).tolist(),
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces().tolist(),
                "stress": atoms.get_stress(voigt=number % 2 == 0).tolist(),
            }
            file.write(json.dumps(row) + "\n")
    for name in ("a.extxyz", "a.extxyz.xz", "a.jsonl"):
        read = read_records(tmp_path / name, PES)
        assert len(read) == len(frames)
        for record, atoms in zip(read, frames, strict=True):
            assert record.target == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
            np.testing.assert_allclose(record.forces, atoms.get_forces(), atol=1e-7)
            np.testing.assert_allclose(record.stress, atoms.get_stress(voigt=False), atol=1e-7)
    plain = read_records(tmp_path / "a.extxyz", "energy")  # the energies alone are a target like any other
    assert all(record.forces is None for record in plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forces": None}, r"none of the 1 rows has the pair 'energy' and 'forces'"),
        ({"forces": [[0.0, 0.0, 0.0]]}, r"line 1: the shape of forces is \(1, 3\); needed is \(2, 3\)"),
        ({"forces": [[0.0, 0.0, float("nan")]] * 2}, r"line 1: a number in forces is not finite"),
        ({"forces": [["a", 0.0, 0.0]] * 2}, r"line 1: in forces there is something else than numbers"),
        ({"stress": [1.0, 2.0]}, r"line 1: the shape of stress is \(2,\); needed is \(3, 3\) or \(6,\) or \(9,\)"),
        ({"energy": None}, r"none of the 1 rows has the pair 'energy' and 'forces'"),
        ({"energy": "low"}, r"line 1: the target 'pes' is no number: 'low'"),
    ],
)
def test_bad_labels_are_refused(change, message, tmp_path) -> None:
    row = {"lattice": np.eye(3).tolist(), "species": ["Cu", "Cu"], "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5]]}
    row |= {"energy": 1.0, "forces": [[0.0, 0.0, 0.0]] * 2, **change}
    (tmp_path / "bad.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path / "bad.jsonl", PES)


def test_a_folder_has_no_forces(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"is a folder, whose table has one number a crystal: forces need"):
        read_records(tmp_path, PES)


def test_a_run_knows_its_forces(records) -> None:
    changed = [*records]
    changed[0] = Record(records[0].atoms, records[0].target, records[0].name, None, records[0].forces + 1e-9)
    assert fingerprint({"train": records}) != fingerprint({"train": changed})


def test_loaders_keep_forces_with_their_atoms(records) -> None:
    dataset = GraphDataset(records, 4.0, 6.0, progress=False).subset(np.array([7, 3, 11]))
    ((batch, labels),) = make_loader(dataset, 3)
    for position, index in enumerate((7, 3, 11)):
        mine = batch.atom_crystal == position
        np.testing.assert_array_equal(labels.forces[mine].numpy(), records[index].forces)
        virial = records[index].stress * records[index].atoms.get_volume()
        np.testing.assert_allclose(labels.virial[position].numpy(), virial, rtol=1e-15, atol=0)
        assert float(labels.energy[position]) == records[index].target


def test_alloys_with_forces_come_by_name() -> None:
    parts = load_named("emt-alloys-pes", PES)
    assert [len(part) for part in parts.values()] == [480, 60, 60]
    record = parts["train"][0]
    atoms = record.atoms.copy()
    atoms.calc = EMT()
    np.testing.assert_allclose(record.forces, atoms.get_forces(), atol=1e-12)
    assert record.target == pytest.approx(atoms.get_potential_energy(), abs=1e-12)


def test_stress_is_that_of_the_cell_of_the_file(tmp_path) -> None:
    """A slab's cell counts whole, though nothing repeats along its height; without a cell there is no stress."""
    slab = fcc111("Cu", (2, 2, 2), vacuum=6)
    slab.rattle(0.1, seed=0)
    slab.pbc = [True, True, False]
    alone = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.3]])
    model = random_potential(("Cu",))
    records = []
    for number, atoms in enumerate((slab, alone)):
        (right,) = PRISMCalculator(model, compute_forces=True).predict([atoms])
        stress = voigt_6_to_full_3x3_stress(right["stress"]) if "stress" in right else None
        records.append(Record(atoms, right["energy"], str(number), None, right["forces"], stress))
    module = PropertyTraining(model, loss=PotentialLoss(WEIGHTS, mean_atoms=2.0))
    ((batch, labels),) = make_loader(GraphDataset(records, 4.0, 6.0, progress=False), 2)
    assert torch.isfinite(labels.virial[0]).all()
    assert float(module.errors(batch, labels).detach().max()) < 1e-20
    alone_with_stress = replace(records[1], stress=np.eye(3))
    assert GraphDataset([alone_with_stress], 4.0, 6.0, progress=False)[0][1].virial.isnan().all()
    scores = evaluate(model, {"all": [records[0], alone_with_stress]}, tmp_path / "with", progress=False)["all"]
    assert scores["stress_rmse"] < 1e-8
    scores = evaluate(model, {"all": records}, tmp_path / "report", progress=False)["all"]
    assert scores["stress_rmse"] < 1e-8
    assert scores["forces_rmse"] < 1e-10


# ---- training


def test_a_run_learns_forces_and_keeps_everything(run, parts) -> None:
    folder, summary = run
    for part, scores in summary["scores"].items():
        assert scores["crystals"] == len(parts[part])
        assert scores["forces_rmse"] < 0.8 * scores["rms_forces"], part
    kept = {path.name for path in folder.iterdir()}
    assert kept >= {"parity.png", "learning_curve.png", "predictions.csv", "summary.json", "model"}
    assert "elements.png" not in kept
    assert summary["unit"] == "eV"


def test_the_scores_are_those_of_the_saved_model(run, parts) -> None:
    folder, summary = run
    calculator = PRISMCalculator(folder / "model", compute_forces=True)
    answers = calculator.predict([record.atoms for record in parts["test"]])
    records = parts["test"]
    forces = np.concatenate([a["forces"] - r.forces for a, r in zip(answers, records, strict=True)])
    energies = [(a["energy"] - r.target) / len(r.atoms) for a, r in zip(answers, records, strict=True)]
    ours = [a["stress"] for a in answers]
    right = [r.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] for r in records]
    squares = np.square(np.array(ours) - right) @ [1, 1, 1, 2, 2, 2] / 9
    scores = summary["scores"]["test"]
    assert scores["forces_rmse"] == pytest.approx(np.sqrt(np.square(forces).mean()), rel=1e-4)
    assert scores["forces_mae"] == pytest.approx(np.abs(forces).mean(), rel=1e-4)
    assert scores["energy_rmse"] == pytest.approx(1e3 * np.sqrt(np.square(energies).mean()), rel=1e-3)
    assert scores["stress_rmse"] == pytest.approx(np.sqrt(squares.mean()) / units.GPa, rel=1e-4)
    with open(folder / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    given = {row["name"]: float(row["predicted energy"]) for row in rows}
    for record, answer in zip(records, answers, strict=True):
        assert given[record.name] == pytest.approx(answer["energy"], rel=1e-5)


def test_evaluation_gives_the_same_scores(run, parts, tmp_path) -> None:
    folder, summary = run
    scores = evaluate(load(folder / "model"), {"test": parts["test"]}, tmp_path / "report", progress=False)
    for name, value in summary["scores"]["test"].items():
        assert scores["test"][name] == pytest.approx(value, rel=1e-4), name
    assert (tmp_path / "report" / "parity.png").exists()


def test_an_interrupted_training_goes_on_bit_for_bit(run, parts, tmp_path) -> None:
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_: object) -> None:
            if trainer.current_epoch == 3 and trainer.global_step % 30 == 2:
                raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        train(settings(), parts, tmp_path / "run", progress=False, callbacks=[Stop()])
    train(settings(), parts, tmp_path / "run", resume=True, progress=False)
    first, second = (load(folder / "model").state_dict() for folder in (run[0], tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_potential_goes_on_from_another(run, parts, tmp_path) -> None:
    init = load(run[0] / "model")
    summary = train(settings(model={}, epochs=1, lr=1e-5), parts, tmp_path / "run", init=init, progress=False)
    assert summary["scores"]["test"]["forces_rmse"] == pytest.approx(run[1]["scores"]["test"]["forces_rmse"], rel=0.1)
    with pytest.raises(ValueError, match="forces need a potential to start from"):
        train(settings(model={}), parts, tmp_path / "b", init=PRISM(("Cu",), dim=8, num_layers=1), progress=False)
    plain = {name: [Record(r.atoms, r.target, r.name) for r in part] for name, part in parts.items()}
    with pytest.raises(ValueError, match="a potential is a start for the target 'pes' only, not for 'energy'"):
        train(TrainingSettings("energy", unit="eV"), plain, tmp_path / "c", init=init, progress=False)


def test_averaging_optimizers_train_potentials(parts, tmp_path) -> None:
    """ScheduleFree's averaged weights are validated and saved, as for any target."""
    how = settings(optimizer="adamw-schedulefree", lr=1e-2, clip=None, epochs=4)
    scores = train(how, parts, tmp_path / "run", progress=False)["scores"]
    assert scores["val"]["forces_rmse"] < 0.9 * scores["val"]["rms_forces"]


def test_energies_from_elsewhere_are_taken_up(run, parts, tmp_path) -> None:
    """Another code counts from another zero: of each element; the initial model is told so."""
    folder, before = run
    zero = {symbol: -100.0 * number for number, symbol in enumerate(load(folder / "model").element_types, start=1)}
    moved = {
        name: [replace(r, target=r.target + sum(zero[symbol] for symbol in r.atoms.symbols)) for r in part]
        for name, part in parts.items()
    }
    init = load(folder / "model")
    summary = train(settings(model={}, epochs=1, lr=1e-6), moved, tmp_path / "run", init=init, progress=False)
    scores = summary["scores"]["test"]
    assert scores["energy_rmse"] < 1.5 * before["scores"]["test"]["energy_rmse"] + 1.0
    assert scores["forces_rmse"] == pytest.approx(before["scores"]["test"]["forces_rmse"], rel=0.01)


def test_given_elements_keep_their_energies_and_their_order(parts, tmp_path) -> None:
    known = [*reversed(elements_of(parts["train"])), "Xe"]
    train(settings(epochs=1, model={**SMALL, "element_types": known}), parts, tmp_path / "run", progress=False)
    arguments = load(tmp_path / "run" / "model").arguments
    crystals, energies = [r.atoms for r in parts["train"]], np.array([r.target for r in parts["train"]])
    fitted = dict(zip(sorted(known), fit_element_refs(crystals, energies, sorted(known)), strict=True))
    assert fitted["Xe"] == pytest.approx(0, abs=1e-9)
    for symbol, energy in zip(arguments["element_types"], arguments["element_refs"], strict=True):
        assert energy == pytest.approx(fitted[symbol], abs=1e-9)


def test_without_forces_the_energies_give_the_scale(tmp_path) -> None:
    """An equation of state: symmetry leaves no forces."""
    records = []
    for number, a in enumerate(np.linspace(3.3, 4.0, 12)):
        atoms = bulk("Cu", a=a)
        atoms.calc = EMT()
        energy, stress = atoms.get_potential_energy(), atoms.get_stress()
        atoms.calc = None
        records.append(Record(atoms, float(energy), str(number), None, np.zeros((1, 3)), stress))
    train(settings(epochs=1), split_records(records), tmp_path / "run", progress=False)
    energies = np.array([record.target for record in split_records(records)["train"]])
    assert load(tmp_path / "run" / "model").std == pytest.approx(energies.std(), rel=1e-6)


def test_a_run_from_before_there_were_potentials_goes_on(parts, tmp_path) -> None:
    plain = {name: [Record(r.atoms, r.target, r.name) for r in part] for name, part in parts.items()}
    how = {
        "target": "energy",
        "model": {"dim": 4, "num_layers": 1, "cutoff": 3.5, "cell_cutoff": 5.0},
        "batch_size": 64,
    }
    train(TrainingSettings(**how, epochs=1), plain, tmp_path / "run", progress=False)
    file = tmp_path / "run" / "settings.json"
    kept = json.loads(file.read_text())
    del kept["weights"], kept["clip"]
    file.write_text(json.dumps(kept))
    assert train(TrainingSettings(**how, epochs=2), plain, tmp_path / "run", resume=True, progress=False)["epochs"] == 2


def test_the_command_line_knows_what_a_potential_needs() -> None:
    for given in ({"data": "emt-alloys-pes"}, {"data": "mine.extxyz", "target": PES}):
        made = Job.make(given).settings
        assert (made.target, made.optimizer, made.lr, made.batch_size, made.clip) == (PES, "muon", 2e-2, 4, 1.0)
        assert made.options == {"weight_decay": 0.1}
    assert Job.make({"data": "emt-alloys-pes", "optimizer": "elra"}).settings.clip is None
    assert Job.make({"data": "emt-alloys-pes", "init": "runs/a/model"}).settings.lr == 1e-3
    with pytest.raises(ValueError, match="the presets are of properties"):
        Job.make({"preset": "jarvis/e_hull", "data": "mine.extxyz", "target": PES})


@pytest.mark.parametrize(
    ("forces", "stress", "message"),
    [
        ([[0.0, 0.0, 0.0]], None, r"the shape of forces is \(1, 3\); needed is \(2, 3\)"),
        ("ab", None, "in forces there is something else than numbers"),
        (np.full((2, 3), np.nan), None, "a number in forces is not finite"),
        (np.zeros((2, 3)), np.zeros(5), r"the shape of stress is \(5,\)"),
    ],
)
def test_records_made_by_hand_are_checked(forces, stress, message) -> None:
    with pytest.raises(ValueError, match=message):
        Record(bulk("Cu") * (2, 1, 1), 0.0, "x", None, forces, stress)


def test_records_take_what_ase_gives() -> None:
    record = Record(bulk("Cu"), 0.0, "x", None, [[1, 2, 3]], np.arange(6, dtype=np.float32))
    assert record.forces.dtype == record.stress.dtype == np.float64
    np.testing.assert_array_equal(record.stress, [[0, 5, 4], [5, 1, 3], [4, 3, 2]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"stress": 1.0}}, "no training crystal has a stress: leave the weight of stress out"),
        ({"weights": {"energy": 0, "forces": 0}}, "no training crystal has a stress"),
    ],
)
def test_a_weight_needs_its_labels(changes, message, parts, tmp_path) -> None:
    without = {name: [replace(r, stress=None) for r in part] for name, part in parts.items()}
    with pytest.raises(ValueError, match=message):
        train(settings(**changes), without, tmp_path / "run", progress=False)


def test_a_broken_force_is_named(parts, tmp_path) -> None:
    broken = {**parts, "val": [replace(parts["val"][0], forces=parts["val"][0].forces + 1e5), *parts["val"][1:]]}
    with pytest.raises(ValueError, match=r"of the val part has a force of 1e\+05 eV/Å: is it broken"):
        train(settings(), broken, tmp_path / "run", progress=False)


def test_evaluation_wants_forces_of_all_or_none(run, parts, tmp_path) -> None:
    some = [parts["test"][0], Record(parts["test"][1].atoms, 1.0, "no forces")]
    with pytest.raises(ValueError, match="some of the crystals have forces and some have none"):
        evaluate(load(run[0] / "model"), {"all": some}, tmp_path / "report", progress=False)


def test_rows_without_forces_can_be_left_out(tmp_path) -> None:
    frames = _frames()
    del frames[1].calc.results["forces"]
    write(tmp_path / "a.extxyz", frames)
    with pytest.raises(ValueError, match=r"the pair 'energy' and 'forces' is missing in 1 of 4 rows .*frame 2"):
        read_records(tmp_path / "a.extxyz", PES)
    with pytest.warns(UserWarning, match="1 of 4 rows are left out: no pair 'energy' and 'forces'"):
        records = read_records(tmp_path / "a.extxyz", PES, skip_missing=True)
    assert [record.name for record in records] == ["1", "3", "4"]


def test_a_stress_of_another_name_is_not_passed_over_in_silence(tmp_path) -> None:
    frames = [bulk("Cu"), bulk("Al")]
    for atoms in frames:
        atoms.info |= {"REF_energy": -3.0, "REF_stress": np.zeros(9)}
        atoms.arrays["REF_forces"] = np.zeros((1, 3))
    write(tmp_path / "a.extxyz", frames)
    with pytest.raises(ValueError, match="where they have other names: --energy-key NAME --forces-key NAME"):
        read_records(tmp_path / "a.extxyz", PES)
    keys = {"energy": "REF_energy", "forces": "REF_forces"}
    with pytest.warns(UserWarning, match="no stress is read, and there are: REF_stress; name it by --stress-key"):
        read_records(tmp_path / "a.extxyz", PES, keys=keys)
    records = read_records(tmp_path / "a.extxyz", PES, keys={**keys, "stress": "REF_stress"})
    assert all(record.stress is not None for record in records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "kcal/mol"}, "a potential has eV and eV/Å; leave the unit 'kcal/mol' out"),
        ({"target": "e", "model": {"element_refs": (1.0,)}}, "element_refs are for potentials"),
        ({"weights": {"force": 1.0}}, "unknown weight 'force'; did you mean 'forces'"),
        ({"weights": {"forces": -1.0}}, "the value of 'forces' in weights must be a number of at least 0, got -1.0"),
        (
            {"weights": {"energy": "much"}},
            "the value of 'energy' in weights must be a number of at least 0, got 'much'",
        ),
        ({"weights": dict.fromkeys(WEIGHTS, 0)}, "all weights are 0"),
        ({"target": "gap", "weights": {"forces": 1.0}, "model": {}}, "weights are for the target 'pes'"),
        ({"batchnorm_batches": 3}, "a potential has no BatchNorm: leave batchnorm_batches out"),
        ({"clip": 0.0}, "clip must be a positive number, got 0.0"),
        ({"optimizer": "elra", "lr": None}, "elra reads the gradient's length: leave clip out"),
        ({"model": {"readout": "mean"}}, "unknown model argument 'readout'"),
    ],
)
def test_bad_settings_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_forces_are_needed_for_all_crystals_or_for_none(parts, tmp_path) -> None:
    without = {name: [Record(r.atoms, r.target, r.name) for r in part] for name, part in parts.items()}
    with pytest.raises(ValueError, match=r"of the train part has no forces: the target 'pes'"):
        train(settings(), without, tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match=r"of the train part has forces: the target 'pes', and no other"):
        train(TrainingSettings("energy", model=SMALL), parts, tmp_path / "b", progress=False)


def test_the_command_line_trains_scores_and_goes_on(tmp_path, capsys, monkeypatch, records) -> None:
    monkeypatch.chdir(tmp_path)
    frames = []
    for record in records[:20]:
        atoms = record.atoms.copy()
        atoms.calc = SinglePointCalculator(atoms, energy=record.target, forces=record.forces)  # no stress
        frames.append(atoms)
    write("some.extxyz", frames)
    sizes = [argument for name, value in SMALL.items() for argument in ("--set", f"{name}={value}")]
    command = ["train", "--data", "some.extxyz", "--target", "pes", "--out", "run", "--epochs", "1", *sizes]
    assert cli.main([*command, "--weight", "energy=50"]) == 0
    out = capsys.readouterr().out
    assert "F RMSE (eV/Å)" in out
    kept = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (kept["optimizer"], kept["clip"], kept["batch_size"]) == ("muon", 1.0, 4)
    assert kept["weights"] == {"energy": 50}
    assert cli.main(["evaluate", "--data", "some.extxyz", "--model", "run/model", "--out", "report"]) == 0
    out = capsys.readouterr().out
    assert "all" in out
    assert "S RMSE (GPa)" in out  # asked for, and unknown: a dash
    assert cli.main(["info", "run/model"]) == 0
    assert "energy (eV), sum over the atoms" in capsys.readouterr().out
    shutil.rmtree("run/model")
    assert cli.main(["train", "--resume", "run"]) == 0
    assert (tmp_path / "run" / "model" / "model.json").exists()


# ---- what it is for


@pytest.fixture(scope="module")
def trained(run) -> PRISMCalculator:
    return PRISMCalculator(run[0] / "model", dtype="float64", compute_forces=True)


def test_a_trained_potential_relaxes(trained) -> None:
    atoms = bulk("Cu", a=3.7, cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = trained
    assert FIRE(atoms, logfile=None).run(fmax=0.02, steps=200)
    assert LBFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.02, steps=200)
    some = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0])
    np.testing.assert_allclose(atoms.get_forces()[[0]], some, atol=1e-6)


def test_a_trained_potential_conserves_energy(trained) -> None:
    atoms = bulk("Cu", cubic=True) * (2, 2, 1)
    atoms.calc = trained
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, timestep=1 * units.fs)
    energies = []
    dynamics.attach(lambda: energies.append(atoms.get_total_energy() / len(atoms)))
    dynamics.run(60)
    assert np.ptp(energies) < 1e-3
    kinetic = atoms.get_kinetic_energy() / len(atoms)
    assert kinetic > 10 * np.ptp(energies)  # it moves


def test_phonon_like_finite_differences_are_symmetric(trained) -> None:
    """The second derivatives of an energy do not depend on their order."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=3)
    atoms.calc = trained
    hessian = []
    for atom in range(len(atoms)):
        for axis in range(3):
            forces = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.calc = trained
                moved.positions[atom, axis] += sign * 1e-4
                forces.append(moved.get_forces().ravel())
            hessian.append((forces[1] - forces[0]) / 2e-4)
    matrix = np.array(hessian)
    assert np.abs(matrix).max() > 0.1
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)
    np.testing.assert_allclose(matrix.reshape(-1, len(atoms), 3).sum(axis=1), 0, atol=1e-5)  # the acoustic sum rule


def test_a_potential_is_scored_on_energies_alone_where_there_are_no_forces(tmp_path) -> None:
    records = [Record(record.atoms, record.target, record.name) for record in emt_alloys(6, seed=2, forces=True)]
    model = random_potential(tuple(elements_of(records)))
    scores = evaluate(model, {"all": records}, tmp_path / "report", progress=False)
    assert {"mae", "rmse"} <= scores["all"].keys()


def test_a_record_that_is_changed_is_trained_on_as_it_is() -> None:
    (record,) = emt_alloys(1, seed=3, forces=True)
    record.atoms.positions += 0.1
    graph = GraphDataset([record], 4.0, 6.0, progress=False).graphs[0]
    np.testing.assert_array_equal(graph.positions.numpy(), record.atoms.positions)
    record.atoms.positions[0, 0] = np.nan
    with pytest.raises(ValueError, match=f"crystal '{record.name}': the position of atom 0 is not finite"):
        GraphDataset([record], 4.0, 6.0, progress=False)
