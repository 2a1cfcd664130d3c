"""The contract with matgl, on matgl itself."""

from __future__ import annotations

import json
import subprocess
import sys

import lightning as L
import matgl
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.io import read, write
from matgl import cli
from matgl.apps.pes import Potential
from matgl.ext.ase import Atoms2Graph, PESCalculator
from matgl.ext.pymatgen import Structure2Graph
from matgl.graph.data import MGLDataLoader, MGLDataset, split_dataset
from matgl.utils.training import ModelLightningModule
from pymatgen.io.ase import AseAtomsAdaptor
from torch_geometric.data import Batch

from prism_plugin import PRISM, PRISMCalculator, PRISMPotential
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.matgl_bridge import import_matcalc, weights_digest
from tests.conftest import crystal_zoo, small_model

PERIODIC = ("rocksalt", "cesium chloride", "skewed", "low symmetry", "outside the cell", "tiny cell", "one atom")


def as_matgl(graph, lattice):
    """Set what matgl's own models expect, as matgl's predict_structure does."""
    graph.pos = graph.frac_coords @ lattice[0]
    graph.pbc_offshift = graph.pbc_offset @ lattice[0]
    return graph


@pytest.mark.usefixtures("float64")
def test_matgl_graphs_give_the_same_as_our_own(model: PRISM) -> None:
    structures = [AseAtomsAdaptor.get_structure(crystal_zoo()[name]) for name in PERIODIC]
    converter = Structure2Graph(model.element_types, model.cutoff)
    graphs = []
    for structure in structures:
        graph, lattice, _ = converter.get_graph(structure)
        expected = model.predict_structure(structure)
        torch.testing.assert_close(model((graph, lattice, None))[0], expected, rtol=0, atol=1e-10)
        if graph.edge_index.shape[1]:
            graphs.append(as_matgl(graph, lattice))
            torch.testing.assert_close(model(graphs[-1])[0], expected, rtol=0, atol=1e-9)
        else:
            with pytest.raises(ValueError, match="the lattice cannot be told from so few edges"):
                model(as_matgl(graph, lattice))
    assert len(graphs) == len(structures) - 1  # cesium chloride's shortest distance is beyond the cutoff
    ours = model.predict_structure(structures)
    torch.testing.assert_close(model(Batch.from_data_list(graphs)), torch.cat([ours[:1], ours[2:]]), rtol=0, atol=1e-9)
    torch.testing.assert_close(model.predict_structure(structures, graph_converter=converter), ours, rtol=0, atol=1e-9)


def test_matgl_graphs_in_float32(model: PRISM) -> None:
    model = model.float()
    converter = Structure2Graph(model.element_types, model.cutoff)
    for name in set(PERIODIC) - {"cesium chloride"}:
        structure = AseAtomsAdaptor.get_structure(crystal_zoo()[name])
        graph, lattice, _ = converter.get_graph(structure)
        torch.testing.assert_close(
            model(as_matgl(graph, lattice))[0], model.predict_structure(structure), rtol=0, atol=2e-4
        )


@pytest.mark.usefixtures("float64")
def test_molecules_of_matgl_have_no_cell_edges(model: PRISM) -> None:
    atoms = molecule("CH3OH")
    converter = Atoms2Graph(model.element_types, model.cutoff)
    expected = model.predict_structure(atoms)
    torch.testing.assert_close(model(converter.get_graph(atoms))[0], expected, rtol=0, atol=1e-10)


def test_a_graph_without_a_lattice_says_so(model: PRISM) -> None:
    converter = Structure2Graph(model.element_types, model.cutoff)
    for name in ("rocksalt", "far apart"):  # with edges across the boundary, and without any
        graph, _, _ = converter.get_graph(AseAtomsAdaptor.get_structure(crystal_zoo()[name]))
        with pytest.raises(ValueError, match="the graph has no lattice"):
            model(graph)


def test_save_and_load(tmp_path, model: PRISM) -> None:
    atoms = crystal_zoo()["skewed"]
    model = model.float()
    model.save(tmp_path / "saved")
    loaded = matgl.load_model(tmp_path / "saved")
    assert isinstance(loaded, PRISM)
    assert torch.equal(loaded.predict_structure(atoms), model.predict_structure(atoms))
    assert loaded.arguments == model.arguments


def test_fresh_process_loads_without_importing_the_plugin(tmp_path, model: PRISM) -> None:
    model = PRISM(dim=8, num_layers=1, target="band_gap", unit="eV", mean=1.5, std=2.0)
    model.save(tmp_path / "saved")
    code = (
        "import matgl, sys; from ase.build import bulk; assert 'prism_plugin' not in sys.modules; "
        f"m = matgl.load_model({str(tmp_path / 'saved')!r}); "
        "print(m.target, m.unit, m.predict_structure(bulk('NaCl', 'rocksalt', a=5.64)).item())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    target, unit, value = out.split()[-3:]
    assert (target, unit) == ("band_gap", "eV")
    assert float(value) == float(model.predict_structure(bulk("NaCl", "rocksalt", a=5.64)))


# What CartNet alone has, and what does not go together with it.
OTHER = {"backbone": "icomformer", "neighbors": 4, "rbf_scale": "cutoff", "directions": True, "angular": 0}


@pytest.mark.parametrize("changed", [{}, OTHER], ids=["cartnet", "icomformer"])
def test_every_constructor_argument_survives_saving(tmp_path, changed: dict) -> None:
    arguments = {
        "element_types": ("Na", "Cl"),
        "dim": 6,
        "num_layers": 1,
        "num_rbf": 5,
        "cutoff": 3.5,
        "cell_cutoff": 7.0,
        "similarity_cutoff": 0.5,
        "experts": ("atomistic", "multiscale"),
        "atom_encoder": "cartnet",
        "rbf_scale": "paper",
        "superatom_readout": "mean",
        "multiscale_aggregation": "mean",
        "similarity_envelope": None,
        "fusion": "gated",
        "readout": "sum",
        "dropout": 0.1,
        "target": "energy",
        "unit": "eV",
        "mean": -1.0,
        "std": 2.0,
        "task_type": "regression",
        "similarity_image": "blended",
        "norm": None,
        "element_refs": (-3.0, -1.5),
        "directions": False,
        "initial_norm": False,
        "cell": "reciprocal",
        "multiscale": "residual",
        "angular": 2,
        "angular_order": 1,
        "minimum": -3.0,
        "backbone": "cartnet",
        "neighbors": 0,
    }
    arguments |= changed
    model = PRISM(**arguments)
    model.save(tmp_path / "saved", metadata={"note": "x"})
    assert matgl.load_model(tmp_path / "saved").arguments == arguments
    kept = json.loads((tmp_path / "saved" / "model.json").read_text())["metadata"]
    assert kept == {"note": "x", "sha256_of_weights": weights_digest(model.state_dict())}
    numpy_arguments = PRISM(dim=np.int64(4), num_layers=1, cutoff=np.float64(3), mean=np.float32(1))
    numpy_arguments.save(tmp_path / "saved")  # in place of the first
    assert matgl.load_model(tmp_path / "saved").arguments["cutoff"] == 3.0


def test_a_failing_save_leaves_the_older_model_whole(tmp_path, monkeypatch) -> None:
    first = PRISM(dim=4, num_layers=1)
    first.save(tmp_path / "saved")
    real = torch.save
    calls = []

    def disk_full(value, path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError("No space left on device")
        real(value, path)

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        PRISM(dim=6, num_layers=2).save(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    assert torch.equal(matgl.load_model(tmp_path / "saved").predict_structure(atoms), first.predict_structure(atoms))
    assert len(list((tmp_path / "saved").iterdir())) == 3
    monkeypatch.setattr(torch, "save", real)
    (tmp_path / "precious.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "saved")
    first.save("..")
    first.save()
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"saved", "precious.txt", "model.pt", "state.pt", "model.json"}
    with pytest.raises(FileNotFoundError, match="make it, or pass makedirs=True"):
        first.save(tmp_path / "nowhere", makedirs=False)


def test_mgl_predict(tmp_path, capsys, monkeypatch) -> None:
    model = small_model().float()
    model.save(tmp_path / "saved")
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    write(tmp_path / "NaCl.cif", atoms)
    write(tmp_path / "more.extxyz", [atoms, molecule("H2O")])
    files = [str(tmp_path / "NaCl.cif"), str(tmp_path / "more.extxyz")]
    monkeypatch.setattr(sys, "argv", ["mgl", "predict", "-m", str(tmp_path / "saved"), "-i", *files])
    cli.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    for line, structure in zip(printed, [atoms, atoms, molecule("H2O")], strict=True):
        value = float(line.split(": ")[1].split()[0])
        assert value == pytest.approx(float(model.predict_structure(structure)), abs=2e-4)


@pytest.mark.filterwarnings("ignore")
def test_matgl_dataset_loader_and_lightning_module_train_it_unmodified(tmp_path) -> None:
    records = emt_alloys(40)
    structures = [AseAtomsAdaptor.get_structure(record.atoms) for record in records]
    model = PRISM(element_types=("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt"), dim=16, num_layers=2, cutoff=4.0)
    dataset = MGLDataset(
        converter=Structure2Graph(model.element_types, model.cutoff),
        structures=structures,
        labels={"formation_energy": [record.target for record in records]},
        root=str(tmp_path / "data"),
        save_cache=False,
    )
    train_data, val_data, _ = split_dataset(dataset, [0.8, 0.2, 0.0])
    train_loader, val_loader = MGLDataLoader(train_data, val_data, batch_size=8, num_workers=0)
    torch.manual_seed(0)
    module = ModelLightningModule(model=model, loss="l1_loss", lr=5e-3)
    trainer = L.Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = trainer.validate(module, val_loader, verbose=False)[0]["val_MAE"]
    trainer.fit(module, train_loader, val_loader)
    after = trainer.validate(module, val_loader, verbose=False)[0]["val_MAE"]
    assert after < 0.8 * before


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("readout", ["mean", "sum"])
@pytest.mark.parametrize("name", ["skewed", "low symmetry"])
def test_potential_gives_forces_and_stress_of_the_total_energy(name: str, readout: str) -> None:
    model = small_model(readout=readout, similarity_cutoff=3.0)
    potential = Potential(model, calc_stresses=True).double().eval()
    atoms = crystal_zoo()[name]
    atoms.calc = PESCalculator(potential, stress_unit="eV/A3", use_voigt=True)
    forces, stress = atoms.get_forces(), atoms.get_stress()
    assert np.abs(forces).max() > 1e-2
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-5), atol=1e-6)
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5), atol=1e-6)
    total = float(model.predict_structure(atoms)) * (len(atoms) if readout == "mean" else 1)
    assert atoms.get_potential_energy() == pytest.approx(total, abs=1e-8)


@pytest.mark.usefixtures("float64")
def test_force_training_differentiates_twice(model: PRISM) -> None:
    potential = Potential(small_model(readout="sum", similarity_cutoff=3.0), calc_stresses=True).double().train()
    structure = AseAtomsAdaptor.get_structure(crystal_zoo()["low symmetry"])
    graph, lattice, _ = Structure2Graph(model.element_types, model.cutoff).get_graph(structure)
    energy, forces, stress, _ = potential(graph, lattice)
    (energy.sum() + forces.square().sum() + stress.square().sum()).backward()
    gradients = [p.grad for p in potential.parameters() if p.grad is not None]
    assert len(gradients) > 40
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_potential_save_and_load(tmp_path) -> None:
    Potential(small_model(readout="sum").float()).save(tmp_path / "potential")
    assert isinstance(matgl.load_model(tmp_path / "potential").model, PRISM)


@pytest.fixture
def saved_potential(tmp_path) -> str:
    """A folder of a potential, as ``prism train --target pes`` leaves one."""
    torch.manual_seed(0)
    model = PRISMPotential(("Na", "Cl"), dim=8, directions=False, angular=2, repulsion="zbl")
    model.calibrate([bulk("NaCl", "rocksalt", a=5.6)])
    model.save(tmp_path / "potential")
    return str(tmp_path / "potential")


def test_the_tools_of_matgl_and_matcalc_take_a_saved_potential(saved_potential) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.6) * (2, 1, 1)
    atoms.rattle(0.1, seed=0)
    atoms.calc = PRISMCalculator(saved_potential)
    expected = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    assert np.abs(expected[1]).max() > 1e-3
    of_matgl = PESCalculator(matgl.load_model(saved_potential), stress_unit="eV/A3", use_voigt=True)
    for calculator in (of_matgl, import_matcalc().load_fp(saved_potential)):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(expected[0], abs=1e-4)
        np.testing.assert_allclose(atoms.get_forces(), expected[1], atol=1e-5)
        np.testing.assert_allclose(atoms.get_stress(), expected[2], atol=1e-7)


@pytest.mark.filterwarnings("ignore:Please use atoms.calc:FutureWarning", "ignore:Use :DeprecationWarning")
def test_the_commands_of_matgl_take_a_saved_potential(saved_potential, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    write("salt.cif", atoms)
    assert cli.main(["relax", "-i", "salt.cif", "-m", saved_potential, "--steps", "2", "-o", "relaxed.cif"]) in (
        0,
        None,
    )
    assert len(read("relaxed.cif")) == len(atoms)
    assert cli.main(["md", "-i", "salt.cif", "-m", saved_potential, "--nsteps", "3"]) in (0, None)
    assert len(read("salt.traj", index=":")) >= 1
