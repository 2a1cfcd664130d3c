"""Forces and stress of the calculator, many structures at once, committees, threads, and inputs of every bad kind."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, make_supercell, molecule
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import FIRE, LBFGS
from pymatgen.core import Lattice, Molecule, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from prism_plugin import PRISM, PRISMCalculator, build_graph
from prism_plugin.config import EXPERTS
from prism_plugin.evaluation import split_graphs
from prism_plugin.pretrained import load
from tests.conftest import crystal_zoo, random_potential, small_model


def energy_model(**arguments: object) -> PRISM:
    return small_model(target="formation_energy", unit="eV/atom", **arguments)


@pytest.fixture(scope="module")
def default() -> PRISMCalculator:
    """The default model in float64, with forces."""
    return PRISMCalculator("prism-mp2018-eform", dtype="float64", compute_forces=True)


def hundred_atoms() -> Atoms:
    """A cell of 100 atoms of four elements, rattled and sheared."""
    atoms = make_supercell(bulk("NaCl", "rocksalt", a=5.7), np.diag([2, 5, 5]))
    atoms.symbols[10], atoms.symbols[51] = "K", "Br"
    atoms.rattle(0.1, seed=4)
    shear = np.array([[1.01, 0.02, 0], [0, 0.98, 0], [0, 0.03, 1]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    return atoms


def boxed() -> dict[str, Atoms]:
    """Partly periodic and isolated systems whose cells have three vectors, and a left-handed cell."""
    slab = fcc111("Al", (1, 1, 3), vacuum=8)
    slab.rattle(0.1, seed=2)
    wire = crystal_zoo()["wire"]
    wire.set_cell([[2.5, 0, 0], [0, 12, 0], [1, 0, 12]])
    alone = molecule("H2O")
    alone.center(vacuum=5)
    left = crystal_zoo()["low symmetry"]
    left.set_cell(left.cell.array[[1, 0, 2]])
    return {"slab in a box": slab, "wire in a box": wire, "molecule in a box": alone, "left-handed": left}


STRUCTURES = {**crystal_zoo(), **boxed(), "hundred atoms": hundred_atoms()}


@pytest.mark.filterwarnings(
    "ignore:the model has seen few training crystals"
)  # of argon and xenon; gradients are exact
@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("which", ["small", "default", "potential"])
def test_forces_and_stress_are_the_gradients_of_the_energy(which, name, default) -> None:
    atoms = STRUCTURES[name].copy()
    if which == "default" and name == "far apart":
        atoms.symbols[1] = "Xe"  # the default model does not know neon
    if which == "default":
        atoms.calc = default
    else:
        model = energy_model() if which == "small" else random_potential(experts=EXPERTS)
        atoms.calc = PRISMCalculator(model, compute_forces=True)
    some = [0, 17, 51] if len(atoms) > 20 else list(range(len(atoms)))
    # Of an energy of 2e4 the rounding alone, over a step of 1e-5, is 1e-6.
    numerical = calculate_numerical_forces(atoms, eps=3e-5 if len(atoms) > 20 else 1e-5, iatoms=some)
    assert np.abs(atoms.get_forces()[some] - numerical).max() < 1e-6
    assert np.abs(atoms.get_forces().sum(axis=0)).max() < 1e-9
    if atoms.cell.rank == 3:
        # In the tiny cell it is some 1,200 eV/Å^3: finite differences have no more digits.
        numerical = calculate_numerical_stress(atoms, eps=1e-6)
        np.testing.assert_allclose(
            atoms.get_stress(), numerical, rtol=0, atol=max(1e-6, 5e-8 * np.abs(numerical).max())
        )
    else:
        with pytest.raises(PropertyNotImplementedError, match=r"no stress: the cell has \d vectors and no volume"):
            atoms.get_stress()


def test_results_are_plain_numbers_and_arrays_in_float64() -> None:
    atoms = STRUCTURES["low symmetry"].copy()
    atoms.calc = PRISMCalculator("prism-mp2018-eform", compute_forces=True)  # float32
    assert isinstance(atoms.get_potential_energy(), float)
    assert atoms.get_potential_energies().dtype == np.float64
    assert (atoms.get_forces().dtype, atoms.get_forces().shape) == (np.float64, (4, 3))
    assert (atoms.get_stress().dtype, atoms.get_stress().shape) == (np.float64, (6,))
    kinds = ["energy", "free_energy", "energies", "forces", "stress"]
    assert atoms.calc.implemented_properties == [*kinds, "energy_interval", "novelty"]
    assert PRISMCalculator.implemented_properties == ["energy", "free_energy", "energies"]
    assert Calculator.implemented_properties == []


def test_relaxations_of_ase_run(default) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.9, cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = default
    before = atoms.get_potential_energy()
    assert LBFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.005, steps=200)
    assert atoms.get_potential_energy() < before - 0.1
    # Where the energy curve has its minimum, too; 5.69 by Materials Project, and no accuracy is promised there.
    constants = np.linspace(5.2, 5.8, 121)
    energies = [result["energy"] for result in default.predict([bulk("NaCl", "rocksalt", a=a) for a in constants])]
    np.testing.assert_allclose(atoms.cell.lengths(), constants[np.argmin(energies)], atol=0.01)
    atoms = crystal_zoo()["wire"]
    atoms.calc = PRISMCalculator(energy_model(), compute_forces=True)
    before = atoms.get_potential_energy()
    assert FIRE(atoms, logfile=None).run(fmax=0.05, steps=500)
    assert atoms.get_potential_energy() < before


# --- many at once -----------------------------------------------------------------------------------------------------


def same(one: dict, other: dict, tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
def test_alone_in_a_batch_and_in_any_order_the_answer_is_the_same(dtype, tolerance) -> None:
    calculator = PRISMCalculator(energy_model(), dtype=dtype, compute_forces=True, batch_size=5)
    zoo = list(crystal_zoo().values())
    alone = [calculator.predict([atoms])[0] for atoms in zoo]
    order = np.random.default_rng(0).permutation(len(zoo))
    scale = 10 if dtype == "float32" else 1  # forces of several eV/Å
    for index, result in zip(order, calculator.predict([zoo[index] for index in order]), strict=True):
        same(result, alone[index], scale * tolerance)
    for atoms, result in zip(zoo, alone, strict=True):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == result["energy"]  # to the last bit


def test_structures_of_both_libraries_may_be_mixed() -> None:
    calculator = PRISMCalculator("prism-mp2018-eform", compute_forces=True)
    atoms = bulk("NaCl", "rocksalt", a=5.69)
    water = Molecule(["O", "H", "H"], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    results = calculator.predict([AseAtomsAdaptor.get_structure(atoms), water, atoms])
    same(results[0], results[2], 1e-5)
    assert "stress" in results[0]
    assert "stress" not in results[1]
    assert calculator.predict([]) == []
    assert calculator.results == {}


def test_long_lists_have_a_progress_bar(capsys) -> None:
    calculator = PRISMCalculator(energy_model(), batch_size=2)
    calculator.predict([bulk("Cu")] * 3)
    assert "3/3" in capsys.readouterr().err
    calculator.predict([bulk("Cu")] * 2)
    calculator.predict([bulk("Cu")] * 3, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")]
)
def test_where_memory_ends_smaller_batches_are_tried(error, monkeypatch) -> None:
    calculator = PRISMCalculator(energy_model(), compute_forces=True)
    zoo = list(crystal_zoo().values())
    expected = calculator.predict(zoo)
    real = PRISM.atom_outputs
    sizes: list[int] = []

    def narrow(model: PRISM, batch: object) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > limit:
            raise error
        return real(model, batch)

    monkeypatch.setattr(PRISM, "atom_outputs", narrow)
    limit = 3
    for result, wanted in zip(calculator.predict(zoo), expected, strict=True):
        same(result, wanted, 1e-12)
    assert sizes[0] == len(zoo)
    limit = 0
    with pytest.raises(MemoryError, match="one structure of 2 atoms does not fit into memory"):
        calculator.predict(zoo)


def test_an_error_of_another_kind_is_not_taken_for_one_of_memory(monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(PRISM, "atom_outputs", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        PRISMCalculator(energy_model()).predict([bulk("Cu"), bulk("Al")])


def test_building_graphs_ahead_changes_nothing(monkeypatch) -> None:
    """As on a GPU: in a thread, while the model computes."""
    crystals = [crystal_zoo()[name] for name in ("low symmetry", "skewed", "rocksalt", "slab", "wire")]
    threads: list[threading.Thread] = []

    def build(*given: object):
        threads.append(threading.current_thread())
        return build_graph(*given)

    monkeypatch.setattr("prism_plugin.calculators.ase.build_graph", build)
    calculator = PRISMCalculator([energy_model(), energy_model(cutoff=4.0)], compute_forces=True, batch_size=2)
    expected = calculator.predict(crystals)
    assert set(threads) == {threading.main_thread()}
    threads.clear()
    calculator._builds_ahead = True
    answers = calculator.predict(crystals)
    assert len(threads) == 2 * len(crystals)
    assert threading.main_thread() not in threads
    for found, given in zip(answers, expected, strict=True):
        assert found.keys() == given.keys()
        for name, value in given.items():
            np.testing.assert_array_equal(found[name], value)
    with pytest.raises(ValueError, match=r"structure 3 of the list: .*lie on top of each other"):
        calculator.predict([*crystals[:3], Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 0.05]])])


# --- committees, files ------------------------------------------------------------------------------------------------


def committee(**arguments: object) -> list[PRISM]:
    models = [small_model(**arguments) for _ in range(3)]
    for number, model in enumerate(models):
        model.head[-1].bias.data += 0.1 * number
        model.head[-1].weight.data *= 1 + 0.1 * number
    return models


def test_a_committee_answers_mean_and_spread() -> None:
    models = committee(target="formation_energy", unit="eV/atom")
    atoms = crystal_zoo()["low symmetry"]
    each = [PRISMCalculator(model, compute_forces=True).predict([atoms])[0] for model in models]
    together = PRISMCalculator(models, compute_forces=True)
    atoms.calc = together
    energies = [result["energy"] for result in each]
    assert atoms.get_potential_energy() == pytest.approx(np.mean(energies), rel=1e-12)
    assert together.get_property("energy_std", atoms) == pytest.approx(np.std(energies, ddof=1), rel=1e-9)
    assert together.get_property("energy_std", atoms) > 0.01
    for name in ("energies", "forces", "stress"):
        np.testing.assert_allclose(
            together.results[name], np.mean([result[name] for result in each], axis=0), atol=1e-12
        )
    for name in ("forces", "stress"):
        np.testing.assert_allclose(
            together.get_property(f"{name}_std", atoms),
            np.std([result[name] for result in each], axis=0, ddof=1),
            atol=1e-12,
        )
    assert together.results["forces_std"].max() > 1e-3
    assert together.results["energies"].sum() == pytest.approx(together.results["energy"])


def test_a_committee_of_different_cutoffs_and_of_another_property() -> None:
    models = [small_model(target="band_gap", unit="eV", cutoff=cutoff) for cutoff in (3.0, 3.4)]
    calculator = PRISMCalculator(models)
    atoms = bulk("Cu")
    values = [float(model.predict_structure(atoms)) for model in models]
    assert calculator.get_property("band_gap", atoms) == pytest.approx(np.mean(values))
    assert calculator.get_property("band_gap_std", atoms) == pytest.approx(np.std(values, ddof=1))
    with pytest.raises(ValueError, match=r"different things: band_gap \(eV, mean.* and formation_energy \(eV/a"):
        PRISMCalculator([models[0], energy_model()])
    with pytest.raises(ValueError, match="a model is given twice, which makes the spread too small; give each once"):
        PRISMCalculator(["prism-mp2018-eform", load()])
    assert [model.target for model in PRISMCalculator("committee").models] == ["formation_energy"] * 3
    with pytest.raises(ValueError, match="the list of models is empty"):
        PRISMCalculator([])
    with pytest.raises(ValueError, match=r"band_gap \(eV\) is no energy and has no forces: leave compute_forces out"):
        PRISMCalculator(models, compute_forces=True)


def test_annotations_survive_in_files(tmp_path) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.69)
    PRISMCalculator(committee(target="band_gap", unit="eV")).annotate(atoms)
    calculator = PRISMCalculator([energy_model(), "prism-mp2018-eform"])
    calculator.annotate([atoms])
    assert atoms.calc is None
    (result,) = calculator.predict([atoms])
    for name in ("a.extxyz", "a.traj"):
        write(tmp_path / name, atoms)
        info = read(tmp_path / name).info
        assert info["prism_formation_energy"] == pytest.approx(result["energy"] / 2)
        assert info["prism_formation_energy_std"] == pytest.approx(result["energy_std"] / 2)
        assert {"prism_band_gap", "prism_band_gap_std"} <= info.keys()


def test_unknown_elements_can_be_nan() -> None:
    good, bad = bulk("NaCl", "rocksalt", a=5.69), bulk("Lr", "fcc", a=5.0)
    calculator = PRISMCalculator("prism-mp2018-eform", compute_forces=True, on_unknown_element="nan")
    with pytest.warns(UserWarning, match="1 of 3 structures have unknown elements, and NaN as answer"):
        results = calculator.predict([good, bad, good])
    same(results[0], results[2], 1e-6)
    assert np.isnan(results[1]["energy"])
    assert results[1]["forces"].shape == (1, 3)
    assert np.isnan(results[1]["forces"]).all()
    with pytest.raises(ValueError, match="structure 1 of the list: unknown element Lr"):
        PRISMCalculator("prism-mp2018-eform").predict([good, bad])


# --- threads, copies, what is left alone ------------------------------------------------------------------------------


@pytest.fixture
def hasty_threads():
    """Threads that take turns after 10 microseconds in place of 5 milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.usefixtures("hasty_threads")
def test_eight_threads_get_their_own_answers() -> None:
    calculator = PRISMCalculator(energy_model(), compute_forces=True)
    crystals = [atoms for name, atoms in crystal_zoo().items() if name != "tiny cell"][:8]
    right = [calculator.predict([atoms])[0] for atoms in crystals]
    wrong: list[str] = []

    def work(number: int) -> None:
        for call in range(40):
            atoms = crystals[(number + call) % len(crystals)].copy()
            expected = right[(number + call) % len(crystals)]
            atoms.calc = calculator
            if atoms.get_potential_energy(force_consistent=call % 2 == 0) != expected["energy"]:
                wrong.append(f"energy in thread {number}, call {call}")
            if call % 4 == 0 and not np.array_equal(atoms.get_forces(), expected["forces"]):
                wrong.append(f"forces in thread {number}, call {call}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda calculator: pickle.loads(pickle.dumps(calculator))])
def test_copies_answer_the_same(clone: Callable) -> None:
    calculator = PRISMCalculator(energy_model(), compute_forces=True)
    atoms = crystal_zoo()["skewed"]
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    other = clone(calculator)
    assert other.get_potential_energy(atoms.copy()) == energy
    assert np.array_equal(other.get_forces(atoms), atoms.get_forces())


def test_nothing_else_is_changed() -> None:
    model = energy_model()
    model.train()
    before = (torch.get_default_dtype(), torch.is_grad_enabled(), {n: p.clone() for n, p in model.state_dict().items()})
    atoms = crystal_zoo()["low symmetry"]
    given = atoms.copy()
    PRISMCalculator(model, compute_forces=True).predict([atoms])
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before[:2]
    assert all(torch.equal(before[2][name], value) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert atoms == given


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize("forces", [True, False])
def test_answers_do_not_depend_on_the_modes_of_the_caller(around, forces) -> None:
    calculator = PRISMCalculator(energy_model(), compute_forces=forces, dtype="float32")
    atoms = crystal_zoo()["skewed"]
    with around():
        (inside,) = calculator.predict([atoms])
    same(inside, calculator.predict([atoms])[0], 0)


def test_a_model_in_train_mode_is_copied() -> None:
    model = energy_model()
    expected = PRISMCalculator(model).predict([bulk("Cu")])
    model.train()
    calculators = [PRISMCalculator(model) for _ in range(4)]
    for calculator in calculators:
        assert calculator.model is not model
        same(calculator.predict([bulk("Cu")])[0], expected[0], 1e-12)
    assert model.training
    with pytest.raises(ValueError, match=r"the model is of torch\.bfloat16; choose a dtype: float32, float64"):
        PRISMCalculator(energy_model().bfloat16())


def test_large_crystals_of_one_element_are_not_put_together() -> None:
    """Pairs of atoms of one element may be similar: their number counts for the size of a batch."""
    graphs = [build_graph(bulk("Cu", cubic=True).repeat(5), 3.0, 5.0)] * 3  # 500 atoms: 250,000 pairs
    assert [len(part) for part in split_graphs(graphs, 64)] == [1, 1, 1]
    assert [len(part) for part in split_graphs([build_graph(bulk("Cu"), 3.0, 5.0)] * 3, 64)] == [3]


def test_ase_exports_what_it_has_a_name_for() -> None:
    atoms = bulk("Cu")
    atoms.calc = PRISMCalculator(committee(target="formation_energy", unit="eV/atom"))
    assert set(atoms.get_properties(["energy"])) == {"energy", "free_energy", "energies", "natoms"}
    gap = PRISMCalculator(small_model(target="band_gap", unit="eV"))
    gap.get_property("band_gap", atoms)
    assert dict(gap.export_properties()) == {}


# --- malformed input --------------------------------------------------------------------------------------------------

CU = bulk("Cu", cubic=True)


def moved(**changes: object) -> Atoms:
    atoms = CU.copy()
    for name, value in changes.items():
        setattr(atoms, name, value) if name != "position" else atoms.positions.__setitem__(0, value)
    return atoms


NO_LISTS: list[object] = [
    Structure(Lattice.cubic(3.0), ["Cu"], [[0, 0, 0]]),
    Molecule(["O"], [[0, 0, 0]]),
    *("NaCl", {"Cu": 1}, 5, None),
]
NO_STRUCTURES: list[object] = [
    *(None, True, 5, 2.5, 1j, "Cu", b"Cu", {}, {"Cu": 1}, set(), object(), float("nan"), Exception("x")),
    *(np.zeros(3), np.zeros((3, 3)), torch.zeros(3), [CU], (CU,), range(3), Lattice.cubic(3.0)),
    *(Atoms, Structure, bulk, lambda: CU),
]
BAD_ELEMENTS = [
    Atoms(),
    Atoms(cell=[3, 3, 3], pbc=True),
    Atoms("X", cell=[3, 3, 3], pbc=True),
    Atoms("CuX", [[0, 0, 0], [0, 0, 2]]),
    Atoms(numbers=[119], cell=[3, 3, 3], pbc=True),
    Atoms(numbers=[-1], cell=[3, 3, 3], pbc=True),
    bulk("Lr", "fcc", a=5.0),
    Structure(Lattice.cubic(3.0), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]]),
    Structure(Lattice.cubic(3.0), [{"Cu": 0.5}], [[0, 0, 0]]),
]
BAD_POSITIONS = [
    moved(position=[np.nan, 0, 0]),
    moved(position=[np.inf, 0, 0]),
    moved(position=[-np.inf, 0, 0]),
    moved(position=CU.positions[1]),
    moved(position=CU.positions[1] + 1e-4),
    Atoms("Cu2"),
    Atoms("Cu2", [[0, 0, 0], [0, 0, 1e9]]),
    Atoms("Cu2", [[0, 0, 0], [0, 0, 1e300]]),
]
BAD_CELLS = [
    moved(cell=np.zeros((3, 3))),
    moved(cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]]),
    moved(cell=[3, 3, 0]),
    moved(cell=[[np.nan, 0, 0], [0, 3, 0], [0, 0, 3]]),
    moved(cell=[[np.inf, 0, 0], [0, 3, 0], [0, 0, 3]]),
    moved(cell=[1e-3, 3, 3]),
    moved(cell=[1e-200, 3, 3]),
    Atoms("Cu", cell=[0.01, 0.01, 0.01], pbc=True),
    Atoms("Cu", pbc=True),
    Atoms("Cu", cell=[3, 0, 0], pbc=[True, True, False]),
]
MALFORMED = [*NO_STRUCTURES, *BAD_ELEMENTS, *BAD_POSITIONS, *BAD_CELLS]


def test_there_are_fifty_malformed_inputs() -> None:
    assert len(MALFORMED) >= 50


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_malformed_input_ends_in_a_named_error(number, default) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        default.predict([CU, MALFORMED[number]])
    message = str(caught.value)
    assert message.startswith("structure 1 of the list: ")
    assert len(message) > 40


@pytest.mark.parametrize("one", [CU, *NO_LISTS])
def test_one_structure_is_no_list(one, default) -> None:
    with pytest.raises(TypeError, match="give a list of structures, got one"):
        default.predict(one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1, got 2.5"),
        ({"on_unknown_element": "skip"}, "unknown on_unknown_element 'skip'; choose one of: error, nan"),
        ({"dtype": "float16"}, "unknown dtype 'float16'; choose one of: auto, float32, float64"),
        ({"batch_size": True}, "batch_size must be a whole number of at least 1, got True"),
        ({"device": "tpu9"}, "unknown device 'tpu9'"),
        ({"device": None}, "unknown device None"),
        ({"device": "meta"}, "the device 'meta' is not here"),
        ({"device": "mps"}, "the device 'mps' is not here"),
    ],
)
def test_bad_options_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        PRISMCalculator(energy_model(), **arguments)


@pytest.mark.parametrize("given", ["NaCl", 5, Structure(Lattice.cubic(3.0), ["Cu"], [[0, 0, 0]])])
def test_what_are_no_atoms_is_refused_at_every_door(given) -> None:
    calculator = PRISMCalculator(energy_model(), batch_size=np.int64(8))
    with pytest.raises(TypeError, match=r"give an ase\.Atoms, got .*predict\(\[\.\.\.\]\) takes pymatgen"):
        calculator.get_potential_energy(given)
    with pytest.raises(TypeError, match=r"give an ase\.Atoms or a list of them, got"):
        calculator.annotate(given)
    with pytest.raises(TypeError, match=r"give an ase\.Atoms, got NoneType"):
        calculator.get_potential_energy()


def test_the_calculator_of_a_model_answers_the_model() -> None:
    (one,) = PRISMCalculator("prism-mp2018-eform").predict([bulk("MgO", "rocksalt", a=4.25)])
    assert one["energy"] / 2 == pytest.approx(float(load().predict_structure(bulk("MgO", "rocksalt", a=4.25))))


def test_forces_come_with_a_potential_and_elsewhere_with_a_warning() -> None:
    atoms = bulk("Si", cubic=True)
    atoms.calc = PRISMCalculator(random_potential())
    assert atoms.get_forces().shape == (8, 3)
    assert atoms.get_stress().shape == (6,)
    assert "forces" not in PRISMCalculator(random_potential(), compute_forces=False).implemented_properties
    with pytest.warns(UserWarning, match=r"formation_energy.* not trained on forces.*Take a potential"):
        PRISMCalculator("prism-mp2018-eform", compute_forces=True)
    assert "forces" not in PRISMCalculator("prism-mp2018-eform").implemented_properties
    mixed = [random_potential(), small_model(target="energy", unit="eV", readout="sum")]
    with pytest.warns(UserWarning, match="not trained on forces"):  # whichever of a committee it is
        PRISMCalculator(mixed, compute_forces=True)
