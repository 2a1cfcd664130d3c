"""Structures that are impossible are refused, those that are doubtful are named."""

from __future__ import annotations

import csv
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule
from ase.io import write
from pymatgen.core import Lattice, Structure

from prism_plugin import PRISMCalculator, build_graph, load
from prism_plugin.data import Record
from prism_plugin.graph.doubts import doubts_of
from prism_plugin.prediction import predict_files
from tests.conftest import small_model


def kinds(atoms: Atoms, cutoff: float = 4.0) -> set[str]:
    return set(doubts_of(build_graph(atoms, cutoff, 1.0)))


def graphite(distance: float) -> Atoms:
    """Layers of graphite, one upon the other, in a cell that is skewed along them."""
    atoms = graphene(size=(2, 2, 1), vacuum=distance / 2)
    atoms.cell[2] += atoms.cell[0]
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize(
    ("atoms", "wanted"),
    [
        (bulk("NaCl", "rocksalt", a=5.64), set()),
        (bulk("Cs", "bcc", a=6.14), {"no neighbor"}),
        (bulk("CsCl", "cesiumchloride", a=7.95), {"no neighbor"}),  # in Bohr
        (bulk("Cu", a=3.6 * 1.2), set()),
        (bulk("C", "diamond", a=3.57 * 1.8), {"long"}),
        (bulk("Cu", a=2.0), {"short"}),
        (bulk("Ar", a=5.3), set()),
        (molecule("H2"), set()),
        (molecule("CH3OH", cell=[9, 9, 9], pbc=True), {"empty layer"}),
        (fcc111("Cu", (1, 1, 4), vacuum=3.5, periodic=True), {"empty layer"}),
        (fcc111("Cu", (1, 1, 4), vacuum=8.0), set()),  # not periodic there
        (graphite(3.35), set()),
        (graphite(10.0), {"empty layer"}),
        (Atoms("CuAr", positions=[[0, 0, 0], [0, 0, 9]], cell=[20, 20, 20], pbc=True), {"no neighbor"}),
    ],
)
def test_doubts_are_of_their_kind(atoms: Atoms, wanted: set[str]) -> None:
    assert kinds(atoms) == wanted


@pytest.mark.parametrize(
    ("atoms", "reason"),
    [
        (Atoms("Cu", cell=[0.35] * 2 + [5], pbc=True), "atom 0 .Cu. lies on top of its own image, 0.3500 Å away"),
        (Atoms("Cu", cell=[0.5] * 3, pbc=True), r"0\.125 Å\^3 per atom, less than 0\.5"),
        (Atoms("C2", positions=[[0, 0, 0], [0.11, 0, 0]]), "atoms 0 and 1 lie on top of each other .C and C, 0.1100 Å"),
        (bulk("CsCl", "cesiumchloride", a=0.412), r"Å\^3 per atom, less than 0\.5"),  # in nm
        (bulk("CsCl", "cesiumchloride", a=412), r"3\.497e\+07 Å\^3 per atom"),  # in pm
        (Atoms("Cu", cell=[1e7, 3, 3], pbc=True), r"a vector of 1e\+07 Å"),
        (Atoms("Cu", positions=[[1e12, 0, 0]], cell=[3] * 3, pbc=True), "no digits left"),
    ],
)
def test_what_is_impossible_is_refused_at_once(atoms: Atoms, reason: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match=reason):
        build_graph(atoms, 4.0)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("far", [3, 1e5, 1e8])
def test_an_atom_far_outside_is_the_one_inside(far: float) -> None:
    inside = bulk("NaCl", "rocksalt", a=5.6)
    outside = inside.copy()
    outside.positions[1] += np.array([far, -far, 1]) @ inside.cell.array
    start = time.perf_counter()
    graph = build_graph(outside, 4.0)
    assert time.perf_counter() - start < 1
    model = small_model(cutoff=4.0, cell_cutoff=15.0, element_types=("Na", "Cl")).float()
    right = model.predict_structure(inside)
    assert model.predict_graphs([graph])[0] == pytest.approx(float(right), abs=1e-5)


def test_the_empty_layer_is_the_same_however_the_cell_is_written() -> None:
    slab = fcc111("Cu", (2, 2, 3), vacuum=5.0, periodic=True)
    turned, skewed = slab.copy(), slab.copy()
    turned.set_cell(slab.cell[[2, 0, 1]])
    turned.positions += (0.3, 5.0, 7.0)
    skewed.set_cell([slab.cell[0] + slab.cell[2], slab.cell[1], slab.cell[2]])
    for atoms in (slab, turned, skewed):
        text = doubts_of(build_graph(atoms, 4.0, 1.0))["empty layer"]
        assert text.startswith("there is an empty layer of 10.0 Å")


def test_atoms_near_their_cell_stay_to_the_bit() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.positions[1] -= atoms.cell[0] * 0.4
    assert (build_graph(atoms, 4.0).positions.numpy() == atoms.positions).all()


def test_the_calculator_warns_once_of_each_kind() -> None:
    calc = PRISMCalculator(small_model(element_types=("Cs", "Cu"), unit="eV/atom", target="e"))
    with pytest.warns(UserWarning, match="1 of 1 atoms without a neighbor"):
        calc.predict([bulk("Cs", "bcc", a=7.0), bulk("Cs", "bcc", a=7.1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calc.predict([bulk("Cs", "bcc", a=7.2)])
        with pytest.raises(UserWarning, match="Cu-Cu are"):
            calc.predict([bulk("Cu", a=2.0)])


def test_a_table_has_warnings(tmp_path: Path) -> None:
    write(tmp_path / "a.extxyz", [bulk("Cs", "bcc", a=6.14), bulk("Cu"), bulk("Kr", a=5.6)])
    write(tmp_path / "b.xyz", molecule("H2O"), format="xyz")
    out = tmp_path / "t.csv"
    with pytest.warns(UserWarning, match="few training crystals with Kr"):
        predict_files([tmp_path], "prism-mp2018-eform", out, progress=False)
    with open(out, newline="", encoding="utf-8") as file:
        doubts = [row["warnings"] for row in csv.DictReader(file)]
    assert "without a neighbor within 4 Å" in doubts[0]
    assert doubts[1] == ""
    assert "few training crystals with Kr" in doubts[2]
    assert "the file has no lattice: taken as a molecule" in doubts[3]
    # The table and what lies beside it are no structures, where a folder is read again.
    assert predict_files([tmp_path], "prism-mp2018-eform", out, progress=False)["failed"] == 0


def test_a_calculator_keeps_what_it_was_made_of() -> None:
    calc = PRISMCalculator(small_model(unit="eV/atom", target="e"))
    with pytest.raises(ValueError, match="make another, PRISMCalculator"):
        calc.set(device="cuda")


def test_the_weights_do_not_depend_on_a_default_dtype() -> None:
    right = load().state_dict()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = load().state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(value, found[name]) for name, value in right.items())


def test_a_record_takes_a_structure_of_pymatgen() -> None:
    record = Record(Structure(Lattice.cubic(4), ["Na"], [[0, 0, 0]]), 1.0, "a")
    assert record.atoms.get_chemical_formula() == "Na"
