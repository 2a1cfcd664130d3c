"""Files of structures: one door, whatever their spelling, and nothing that a parser makes up."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.io.trajectory import Trajectory
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifWriter
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from prism_plugin.data import Record, assign_splits, read_records, read_structure_file
from prism_plugin.data.frame import Frame
from prism_plugin.data.sources import iterate_structures, read_structures
from prism_plugin.data.structure_files import read_frames
from prism_plugin.errors import PrismError
from prism_plugin.graph.structure import read_structure

CELL = Lattice.cubic(4.2)


def cif(*sites: tuple[str, float], name: str = "x") -> str:
    """CIF of sites along the diagonal with occupancies."""
    head = f"data_{name}\n_symmetry_space_group_name_H-M 'P 1'\n"
    head += "".join(f"_cell_length_{axis} 6.0\n" for axis in "abc")
    head += "".join(f"_cell_angle_{angle} 90\n" for angle in ("alpha", "beta", "gamma"))
    columns = ("type_symbol", "label", "fract_x", "fract_y", "fract_z", "occupancy")
    head += "loop_\n" + "".join(f"_atom_site_{column}\n" for column in columns)
    rows = [
        f"{symbol} {symbol}{n} {n / len(sites)} {n / len(sites)} {n / len(sites)} {part}"
        for n, (symbol, part) in enumerate(sites)
    ]
    return head + "\n".join(rows) + "\n"


def reasons(path: Path) -> list[str]:
    return [str(found) for found in read_frames(path) if isinstance(found, PrismError)]


OPENERS = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".GZ": gzip.open}


@pytest.mark.parametrize("ending", OPENERS)
@pytest.mark.parametrize("spelling", ["x.cif", "x.CIF", "x@2.Cif"])
def test_a_cif_is_one_whatever_its_name(spelling: str, ending: str, tmp_path: Path) -> None:
    for text, wanted in ((cif(("Na", 1), ("Cl", 1)), "NaCl"), (cif(("Cu", 0.51), ("Au", 1)), None)):
        path = tmp_path / (spelling + ending)
        with OPENERS[ending](path, "wt") as file:
            file.write(text)
        if wanted is None:
            with pytest.raises(ValueError, match=r"(?i)x.*cif.* is disordered: site 'Cu:0.51'"):
                read_structure_file(path)
        else:
            assert read_structure_file(path).get_chemical_formula() == "ClNa"


@pytest.mark.parametrize("name", ["x.EXTXYZ", "x.XYZ", "x.xyz.gz", "x.extxyz.bz2", "x@:.extxyz"])
def test_frames_are_frames_whatever_the_name(name: str, tmp_path: Path) -> None:
    write(tmp_path / "plain.extxyz", [bulk("Cu"), bulk("Al")])
    ending = Path(name).suffix if Path(name).suffix in OPENERS else ""
    with OPENERS[ending](tmp_path / name, "wt") as file:
        file.write((tmp_path / "plain.extxyz").read_text())
    assert [atoms.get_chemical_formula() for atoms in read_structures([tmp_path / name])] == ["Cu", "Al"]


def poscar(path: Path) -> list[str]:
    write(path, bulk("NaCl", "rocksalt", a=5.6), format="vasp")
    return path.read_text().splitlines()


@pytest.mark.parametrize("name", ["POSCAR", "CONTCAR", "x.vasp", "poscar_1", "x.poscar"])
def test_a_poscar_without_symbols_is_refused(name: str, tmp_path: Path) -> None:
    lines = poscar(tmp_path / name)
    assert read_structure_file(tmp_path / name).get_chemical_formula() == "ClNa"
    (tmp_path / name).write_text("\n".join([*lines[:5], *lines[6:]]))
    with pytest.raises(ValueError, match=f"{name} cannot be read: the POSCAR names no elements"):
        read_structure_file(tmp_path / name)
    (tmp_path / name).write_text("\n".join([*lines[:5], "Na Cl O", *lines[6:]]))
    with pytest.raises(ValueError, match="3 symbols"):
        read_structure_file(tmp_path / name)


def test_a_potcar_beside_a_poscar_changes_nothing(tmp_path: Path) -> None:
    poscar(tmp_path / "POSCAR")
    (tmp_path / "POTCAR").write_text("  PAW_PBE K 01Jan2000\n   9.0\n   VRHFIN =K: s1\n   TITEL = PAW_PBE K\n")
    assert read_structure_file(tmp_path / "POSCAR").get_chemical_formula() == "ClNa"


@pytest.mark.parametrize("name", ["x.cif", "x.cif.gz", "XDATCAR", "x.json", "x.db", "x.traj", "x.xsf"])
def test_all_structures_of_a_file_are_read(name: str, tmp_path: Path) -> None:
    both = [bulk("NaCl", "rocksalt", a=a, cubic=True) for a in (5.6, 5.7)]
    path = tmp_path / name
    if "cif" in name:
        with OPENERS[path.suffix if path.suffix != ".cif" else ""](path, "wt") as file:
            file.write(
                cif(("Na", 1), ("Cl", 1)) + "DATA_x\n" + cif(("K", 1), ("Cl", 1))[7:] + "data_note\n_note 'none'\n"
            )
    elif name in ("x.json", "x.db"):
        with ase.db.connect(path) as rows:
            for atoms in both:
                rows.write(atoms, gap=1.0)
    else:
        write(path, both, **({"format": "vasp-xdatcar"} if name == "XDATCAR" else {}))
    found = list(read_structures([path]))
    assert len(found) == 2
    assert found[0].get_volume() != found[1].get_volume() or found[0].numbers.tolist() != found[1].numbers.tolist()
    with pytest.raises(ValueError, match="holds several structures"):
        read_structure_file(path)


def test_only_one_element_with_all_of_its_site_is_an_atom(tmp_path: Path) -> None:
    mixed = Structure(CELL, [{"Fe2+": 0.5, "Fe3+": 0.5}, {"H": 0.3, "D": 0.7}], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert read_structure(mixed).numbers.tolist() == [26, 1]
    for species, shown in (
        ({"H": 0.99999}, "H:0.99999"),
        ({"Cu": 0.5, "Au": 0.5}, "Cu:0.5, Au:0.5"),
        ({"Cu": 0.9999999}, "Cu:0.9999999"),
    ):
        with pytest.raises(ValueError, match=f"site '{shown}' has partial occupancy"):
            read_structure(Structure(CELL, [Composition(species)], [[0, 0, 0]]))
    text = cif(("H", 0.5), ("D", 0.5), ("Dy", 1))  # the first two at one place
    text = re.sub(r"(?m)^D D1 .*$", "D D1 0.0 0.0 0.0 0.5", text)
    (tmp_path / "d.cif").write_text(text)
    assert read_structure_file(tmp_path / "d.cif").get_chemical_formula() == "HDy"
    (tmp_path / "d.cif").write_text(cif(("Cu", 0.51), ("Au", 1)))
    atoms = ase.io.read(tmp_path / "d.cif")
    with pytest.raises(ValueError, match=r"Cu:0\.51.*delete atoms\.info"):
        read_structure(atoms)
    del atoms.info["occupancy"]
    assert len(read_structure(atoms)) == 2
    CifWriter(Structure(CELL, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])).write_file(tmp_path / "whole.cif")
    assert len(read_structure(ase.io.read(tmp_path / "whole.cif"))) == 2


def test_names_are_as_they_are_written(tmp_path: Path) -> None:
    names = ["007", "10_1", "1e5", "T", "a b", "x=1"]
    frames = []
    for number, name in enumerate(names):
        atoms = bulk("Cu", a=3.5 + number / 100)
        atoms.info |= {"id": name, "gap": float(number)}
        frames.append(atoms)
    write(tmp_path / "x.extxyz", frames)
    assert [record.name for record in read_records(tmp_path / "x.extxyz", "gap")] == names


def test_a_name_that_stands_twice_is_said(tmp_path: Path) -> None:
    rows = [{"lattice": (np.eye(3) * 3).tolist(), "species": ["Cu"], "frac_coords": [[0, 0, 0]], "gap": 1.0, "id": "a"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows * 2)))
    with pytest.warns(UserWarning, match=r"x\.jsonl: 1 names stand there more than once, for example 'a'"):
        assert len(read_records(tmp_path / "x.jsonl", "gap")) == 2


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [("T T F", [True, True, False]), (False, [False] * 3), ([1, 0, 1], [True, False, True]), ("false", [False] * 3)],
)
def test_periodic_flags_are_read(flags: object, wanted: list[bool], tmp_path: Path) -> None:
    row = {"lattice": (np.eye(3) * 3).tolist(), "species": ["Cu"], "frac_coords": [[0, 0, 0]], "pbc": flags}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    assert next(read_structures([tmp_path / "x.jsonl"])).pbc.tolist() == wanted


@pytest.mark.parametrize("flags", ["yes", "TTF", [True, True], 2, None, {}, "T T T T"])
def test_bad_periodic_flags_are_refused(flags: object, tmp_path: Path) -> None:
    row = {"lattice": (np.eye(3) * 3).tolist(), "species": ["Cu"], "frac_coords": [[0, 0, 0]], "pbc": flags}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    assert "pbc is true, false or three of these" in reasons(tmp_path / "x.jsonl")[0]


def test_frames_behind_a_bad_one_are_read(tmp_path: Path) -> None:
    write(tmp_path / "x.extxyz", [bulk("LiH", "rocksalt", a=a) for a in (4.0, 4.1, 4.2)])
    text = (tmp_path / "x.extxyz").read_text()
    (tmp_path / "x.extxyz").write_text("\n" + text.replace("\nH ", "\nXx ", 1) + "\n\n")
    found = list(read_frames(tmp_path / "x.extxyz"))
    assert str(found[0]).startswith("x.extxyz, frame 1: 'Xx' is missing or unknown")
    assert [frame.atoms.cell.volume for frame in found[1:]] == pytest.approx([4.1**3 / 4, 4.2**3 / 4])
    (tmp_path / "x.extxyz").write_text(text + "what\n" + text)
    found = list(read_frames(tmp_path / "x.extxyz"))
    assert len(found) == 4
    assert "frame 4: a number of atoms is due, got 'what'; the rest of this file was not read" in str(found[3])


def test_a_file_without_lattice_is_said_to_be_a_molecule(tmp_path: Path) -> None:
    write(tmp_path / "x.xyz", molecule("H2O"), format="xyz")
    (frame,) = read_frames(tmp_path / "x.xyz")
    assert frame.doubts == ("the file has no lattice: taken as a molecule",)
    write(tmp_path / "y.xyz", bulk("Cu"), format="extxyz")
    (frame,) = read_frames(tmp_path / "y.xyz")
    assert frame.doubts == ()


def test_what_a_cif_lacks_is_a_doubt(tmp_path: Path) -> None:
    (tmp_path / "x.cif").write_text(
        cif(("Na", 1), ("Cl", 1)).replace("loop_", "_chemical_formula_sum 'Na2 H4 Cl2'\nloop_")
    )
    (frame,) = read_frames(tmp_path / "x.cif")
    assert "H" in " ".join(frame.doubts)


def test_more_doors_for_data(tmp_path: Path) -> None:
    salt = Structure(CELL, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    entry = ComputedStructureEntry(salt, -6.5, data={"gap": 5.0}, entry_id="mp-1")
    plain = {"structure": salt.as_dict(), "gap": 4.0, "material_id": "mp-2"}
    (tmp_path / "x.json").write_text(json.dumps([entry.as_dict(), plain]))
    with gzip.open(tmp_path / "y.json.gz", "wt") as file:
        json.dump([entry.as_dict(), plain], file)
    for name in ("x.json", "y.json.gz"):
        records = read_records(tmp_path / name, "gap")
        assert [(record.name, record.target) for record in records] == [("mp-1", 5.0), ("mp-2", 4.0)]
    with pytest.warns(UserWarning, match=r"x\.json: 1 of 2 rows are left out: no target 'energy'"):
        assert read_records(tmp_path / "x.json", "energy", skip_missing=True)[0].target == -6.5
    for named in ({"a": plain, "b": entry.as_dict()}, {"mp-2": salt.as_dict()}):
        (tmp_path / "named.json").write_text(json.dumps(named))
        assert [one.name for one in read_frames(tmp_path / "named.json")] == [*named]
    with ase.db.connect(tmp_path / "x.db") as rows:
        rows.write(bulk("Cu"), gap=0.5, name="cu")
    ((name, target),) = [(record.name, record.target) for record in read_records(tmp_path / "x.db", "gap")]
    assert (name, target) == ("cu", 0.5)
    atoms = bulk("Cu") * (2, 1, 1)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((2, 3)), stress=np.zeros(6))
    with Trajectory(tmp_path / "x.traj", "w") as trajectory:
        trajectory.write(atoms)
    (record,) = read_records(tmp_path / "x.traj", "pes")
    assert (record.target, record.forces.shape, record.stress.shape) == (-1.0, (2, 3), (3, 3))


def test_no_class_of_a_json_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper_of_nobody.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    salt = Structure(CELL, ["Na"], [[0, 0, 0]]).as_dict()
    evil = {"@module": "helper_of_nobody", "@class": "Any"}
    salt["sites"][0]["properties"] = {"a": evil}
    salt["properties"] = {"a": evil}
    (tmp_path / "x.json").write_text(json.dumps({"structure": salt, "data": {"b": evil}}))
    assert read_structure_file(tmp_path / "x.json").get_chemical_formula() == "Na"
    assert not Path("ran").exists()


def test_a_table_beside_structures_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.cif", bulk("NaCl", "rocksalt", a=5.6))
    write(tmp_path / "b.vasp", bulk("Cu"), format="vasp")
    (tmp_path / "all.csv").write_bytes("\ufefffile,gap,split\na,5.0,train\nb.vasp,0,val\n".encode())
    records = read_records(tmp_path / "all.csv", "gap")
    assert [(record.name, record.target, record.split) for record in records] == [
        ("a", 5.0, "train"),
        ("b.vasp", 0.0, "val"),
    ]
    with pytest.raises(ValueError, match="no column 'energy' beside the first, of files; there are: gap, split"):
        read_records(tmp_path / "all.csv", "energy")
    for text in ("file;gap\na;5,0\n", "a\t5.0\nb.vasp\t0\n"):
        (tmp_path / "cells.csv").write_text(text)
        with pytest.raises(ValueError, match=r"separates its cells by '(;|\\t)': write commas"):
            read_records(tmp_path / "cells.csv", "gap")
    (tmp_path / "id_prop.csv").write_text("file,gap\na,5.0\nb.vasp,0\n")
    assert [record.target for record in read_records(tmp_path, "gap")] == [5.0, 0.0]


@pytest.mark.parametrize("word", ["", "NaN", "na", "None", "null", "-"])
def test_words_for_nothing_are_missing(word: str, tmp_path: Path) -> None:
    write(tmp_path / "a.cif", bulk("NaCl", "rocksalt", a=5.6))
    write(tmp_path / "b.cif", bulk("NaCl", "rocksalt", a=5.6))
    (tmp_path / "t.csv").write_text(f"file,gap\na,1.0\nb.cif,{word}\n")
    with pytest.raises(ValueError, match="missing in 1 of 2 rows"):
        read_records(tmp_path / "t.csv", "gap")
    with pytest.warns(UserWarning, match="1 of 2 rows are left out"):
        assert len(read_records(tmp_path / "t.csv", "gap", skip_missing=True)) == 1


def test_keys_that_are_there_are_listed(tmp_path: Path) -> None:
    atoms = bulk("Cu") * (2, 1, 1)
    atoms.info |= {"REF_energy": -3.0, "REF_stress": np.eye(3) * 0.01}
    atoms.arrays["REF_forces"] = np.ones((2, 3))
    write(tmp_path / "x.extxyz", atoms)
    with pytest.raises(ValueError, match=r"there are: .*REF_forces.*REF_energy"):
        read_records(tmp_path / "x.extxyz", "pes")
    keys = {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"}
    (record,) = read_records(tmp_path / "x.extxyz", "pes", keys=keys)
    assert (record.target, record.forces[0, 0], record.stress[0, 0]) == (-3.0, 1.0, 0.01)


def test_a_virial_is_read_as_a_stress(tmp_path: Path) -> None:
    atoms = bulk("Cu") * (2, 1, 1)
    atoms.info |= {"energy": -3.0, "virial": np.eye(3) * 2.0}
    atoms.arrays["forces"] = np.zeros((2, 3))
    write(tmp_path / "x.extxyz", atoms)
    (record,) = read_records(tmp_path / "x.extxyz", "pes")
    assert record.stress == pytest.approx(-np.eye(3) * 2.0 / atoms.get_volume())


def test_a_target_beyond_reason_is_refused(tmp_path: Path) -> None:
    row = {"lattice": (np.eye(3) * 3).tolist(), "species": ["Cu"], "frac_coords": [[0, 0, 0]], "gap": 1e30}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1: the target 'gap' is 1e\+30: is it a fill value"):
        read_records(tmp_path / "x.jsonl", "gap")


def test_names_of_files_survive(tmp_path: Path) -> None:
    text = cif(("Na", 1), ("Cl", 1))
    for name in (b"caf\xe9.cif", b"a@1.cif", b"two\nlines.cif"):
        with open(os.path.join(os.fsencode(tmp_path), name), "w") as file:
            file.write(text)
    found = list(iterate_structures([tmp_path]))
    assert sorted(Path(name).name for name, _ in found) == ["a@1.cif", "caf\\xe9.cif", "two\nlines.cif"]
    assert [read_structure_file(path).get_chemical_formula() for _, path in found] == ["ClNa"] * 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.extxyz", '300000000\nLattice="3 0 0 0 3 0 0 0 3"\nCu 0 0 0\n'),
        ("x.extxyz", "99999999999999999999\n\nCu 0 0 0\n"),
        ("x.json", "[" * 100_000),
        ("x.jsonl", "[" * 100_000),
        ("x.json", '{"a": "' + "b" * 40_000_000),
    ],
    ids=["announced", "absurd", "nested json", "nested jsonl", "long value"],
)
def test_claims_of_size_cost_nothing(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    start = time.perf_counter()
    (reason,) = reasons(tmp_path / name)
    assert reason.startswith(name)
    assert time.perf_counter() - start < 5


def test_text_of_authors_in_another_encoding_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "x.cif").write_bytes("# Müller\n".encode("latin-1") + cif(("Na", 1), ("Cl", 1)).encode())
    assert read_structure_file(tmp_path / "x.cif").get_chemical_formula() == "ClNa"
    (tmp_path / "y.jsonl").write_bytes('{"id": "Müller"}'.encode("latin-1"))
    assert "no text in UTF-8" in reasons(tmp_path / "y.jsonl")[0]


def test_an_isolated_atom_of_ase_is_read(tmp_path: Path) -> None:
    write(tmp_path / "x.traj", Atoms("He"))
    assert next(read_structures([tmp_path / "x.traj"])).get_chemical_formula() == "He"


# --- what parsers pass over in silence --------------------------------------------------------------------------------

SODIUM = cif(("Na", 1), ("Cl", 1))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Na Na0 0.0 0.0 0.0 1", "Na Na0 0.0 0.0 . 1", "a coordinate z is '.'"),
        ("Na Na0 0.0 0.0 0.0 1", "Na Na0 0.0 0.0 0.0 0", "an occupancy of 0"),
        ("Na Na0", "Va Na0", "the type symbol 'Va' is no element"),
        ("Na Na0", "H2O Na0", "the type symbol 'H2O' is no element"),
        ("Na Na0", "T Na0", "the type symbol 'T' is no element"),
        ("_cell_length_a 6.0", "_cell_length_a 6.0\n_cell_length_a 9.0", "_cell_length_a stands twice"),
        ("loop_", "loop_\n_atom_site_label\n_atom_site_fract_x\nNa 0.0\nloop_", "stands twice in one block"),
    ],
)
def test_what_a_cif_means_is_not_guessed(old: str, new: str, reason: str, tmp_path: Path) -> None:
    assert old in SODIUM
    (tmp_path / "x.cif").write_text(SODIUM.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"x.cif cannot be read: {reason}|x.cif cannot be read: .*{reason}"):
        read_structure_file(tmp_path / "x.cif")


def test_a_default_occupancy_is_one(tmp_path: Path) -> None:
    (tmp_path / "x.cif").write_text(SODIUM.replace("0.0 0.0 0.0 1", "0.0 0.0 0.0 .", 1))
    assert read_structure_file(tmp_path / "x.cif").get_chemical_formula() == "ClNa"


def of_group(name: str, number: int, cell: tuple[float, ...], site: str) -> str:
    tags = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    head = f"data_x\n_symmetry_space_group_name_H-M '{name}'\n_symmetry_Int_Tables_number {number}\n"
    head += "".join(f"_cell_{tag} {value}\n" for tag, value in zip(tags, cell, strict=True))
    columns = ("label", "type_symbol", "fract_x", "fract_y", "fract_z")
    return head + "loop_\n" + "".join(f"_atom_site_{column}\n" for column in columns) + site + "\n"


MONOCLINIC = (5.1, 5.2, 5.3, 90, 99.2, 90)
CUBIC = (5.43, 5.43, 5.43, 90, 90, 90)
HEXAGONAL = (4.3, 4.3, 30, 90, 90, 120)
RHOMBOHEDRAL = (10.45, 10.45, 10.45, 24.2, 24.2, 24.2)
TETRAGONAL = (3.78, 3.78, 9.51, 90, 90, 90)
ORTHORHOMBIC = (5, 6, 7, 90, 90, 90)


@pytest.mark.parametrize(
    ("name", "number", "cell", "setting", "operations"),
    [
        ("P 21/c", None, MONOCLINIC, "P 1 2_1/c 1 (b1), number 14", 4),
        ("P21/n", 14, MONOCLINIC, "P 1 2_1/n 1 (b2), number 14", 4),
        ("P 2_1/b", 14, (5, 6, 7, 90, 90, 100), "P 1 1 2_1/b (c3), number 14", 4),
        ("C2/c", 15, MONOCLINIC, "C 1 2/c 1 (b1), number 15", 8),
        ("I 2/a", None, MONOCLINIC, "I 1 2/a 1 (b3), number 15", 8),
        ("A 2/n", 15, MONOCLINIC, "A 1 2/n 1 (b2), number 15", 8),
        ("F m 3 m", None, CUBIC, "F 4/m -3 2/m, number 225", 192),
        ("F d -3 m Z", 227, CUBIC, "F 4_1/d -3 2/m (2), number 227", 192),
        ("Fd-3m:1", None, CUBIC, "F 4_1/d -3 2/m (1), number 227", 192),
        ("R -3 m", None, HEXAGONAL, "R -3 2/m (H), number 166", 36),
        ("R -3 m", 166, RHOMBOHEDRAL, "R -3 2/m (R), number 166", 12),
        ("R-3mR", None, RHOMBOHEDRAL, "R -3 2/m (R), number 166", 12),
        ("I 41/a m d :2", 141, TETRAGONAL, "I 4_1/a 2/m 2/d (2), number 141", 32),
        ("P b n m", 62, ORTHORHOMBIC, "P 2_1/b 2_1/n 2_1/m (cab), number 62", 8),
        ("C m c a", 64, ORTHORHOMBIC, "C 2/m 2/c 2_1/e, number 64", 16),
        ("", 14, MONOCLINIC, "P 1 2_1/c 1 (b1), number 14", 4),
        ("", 225, CUBIC, "F 4/m -3 2/m, number 225", 192),
    ],
)
def test_a_named_space_group_has_the_setting_that_is_meant(
    name: str, number: int | None, cell: tuple[float, ...], setting: str, operations: int, tmp_path: Path
) -> None:
    text = of_group(name or "?", number or 0, cell, "Si1 Si 0.11 0.23 0.37")
    text = text if number else text.replace("_symmetry_Int_Tables_number 0\n", "")
    (tmp_path / "x.cif").write_text(text)
    (frame,) = read_frames(tmp_path / "x.cif")
    assert isinstance(frame, Frame), frame
    assert frame.doubts == (f"the CIF has no symmetry operations: those of {setting}, were taken",)
    assert len(frame.atoms) == operations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spglib's, of its own old ways
        found = SpacegroupAnalyzer(AseAtomsAdaptor.get_structure(frame.atoms)).get_space_group_number()
    assert str(found) == setting.split()[-1]


@pytest.mark.parametrize(
    ("name", "number", "cell", "reason"),
    [
        ("F d -3 m", 227, CUBIC, r"'F d -3 m' can be F 4_1/d -3 2/m 1 or F 4_1/d -3 2/m 2: write the operations"),
        ("F m -3 m", 225, HEXAGONAL, "the cell does not fit the space group 'F m -3 m'"),
        ("R -3 m R", 166, HEXAGONAL, "the cell does not fit the space group"),
        ("P 21/c", 15, MONOCLINIC, "'P 21/c' with the number 15 is no space group that is known"),
        ("P 1", 225, CUBIC, "'P 1' with the number 225 is no space group that is known"),
        ("Q 1 2 3", 1, CUBIC, "is no space group that is known"),
    ],
)
def test_a_space_group_of_which_nothing_is_sure_is_refused(
    name: str, number: int, cell: tuple[float, ...], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "x.cif").write_text(of_group(name, number, cell, "Si1 Si 0.11 0.23 0.37"))
    (problem,) = reasons(tmp_path / "x.cif")
    assert re.search(reason, problem), problem


def test_the_silicon_of_both_origins_is_one_crystal(tmp_path: Path) -> None:
    for suffix, x in ((":1", 0.0), (":2", 0.125)):
        (tmp_path / "x.cif").write_text(of_group(f"F d -3 m {suffix}", 227, CUBIC, f"Si1 Si {x} {x} {x}"))
        (found,) = read_frames(tmp_path / "x.cif")
        assert isinstance(found, Frame)
        assert len(found.atoms) == 8


OPERATED = SODIUM.replace("loop_", "loop_\n_symmetry_equiv_pos_as_xyz\n'x, y, z'\n'-x, -y, -z'\nloop_", 1)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda text: re.sub(r"(?m)^_\S+", lambda tag: tag[0].upper(), text), "ClNa"),
        (lambda text: text.replace("loop_", "LOOP_"), "ClNa"),
        (
            lambda text: text.replace("loop_", "_text\n;\n_cell_length_a 9\nloop_\n_atom_site_label\n;\nloop_", 1),
            "ClNa",
        ),
        (lambda text: "data_global\n_publ_text\n;\n_atom_site_label\n;\n" + text, "ClNa"),
        (lambda text: text.replace(" ", "\u00a0"), "ClNa"),
        (lambda text: text.replace("-x, -y, -z", "\u2212x, \u2013y, -z"), "ClNa"),
        (lambda text: text.replace("-x, -y, -z", "-x, -y, -q"), "'-x, -y, -q' is no symmetry operation"),
        (lambda text: text.replace("-x, -y, -z", "x+y, x+y, z"), "'x+y, x+y, z' is no symmetry operation"),
        (lambda text: text.replace("-x, -y, -z", "y, z, 2x"), "is no symmetry operation"),
        (lambda text: text.replace("data_x", "data_x\n_cell_modulation_dimension 1"), "it is a modulated structure"),
        (lambda text: re.sub(r"_cell_angle_beta.*\n", "", text), "it has no _cell_angle_beta"),
    ],
)
def test_a_cif_is_read_as_it_is_meant(change: Callable[[str], str], outcome: str, tmp_path: Path) -> None:
    (tmp_path / "x.cif").write_text(change(OPERATED), encoding="utf-8")
    (found,) = read_frames(tmp_path / "x.cif")
    if isinstance(found, PrismError):
        assert outcome in str(found)
    else:
        assert found.atoms.get_chemical_formula() == outcome
        assert not found.doubts


def test_signs_that_were_lost_are_not_made_up(tmp_path: Path) -> None:
    text = OPERATED.replace("0.0 0.0 0.0", "~0.07 0.0 0.0", 1)
    for sign, x in (("\u2212", -0.07), ("-", -0.07)):
        (tmp_path / "x.cif").write_text(text.replace("~", sign), encoding="utf-8")
        assert any(
            abs(one - x % 1) < 1e-6 for one in read_structure_file(tmp_path / "x.cif").get_scaled_positions()[:, 0]
        )
    (tmp_path / "x.cif").write_bytes(text.encode().replace(b"~", b"\x96"))  # of Windows
    assert "a byte before a number is no UTF-8, a minus perhaps" in reasons(tmp_path / "x.cif")[0]


def test_operations_and_formulas_that_contradict_the_rest_are_doubts(tmp_path: Path) -> None:
    (tmp_path / "x.cif").write_text(
        OPERATED.replace("-x, -y, -z", "y, z, x").replace("_cell_length_a 6.0", "_cell_length_a 9.0")
    )
    (found,) = read_frames(tmp_path / "x.cif")
    assert "the symmetry operations do not fit the cell: look at both" in found.doubts
    (tmp_path / "x.cif").write_text(OPERATED.replace("data_x", "data_x\n_chemical_formula_sum 'Na2 Cl'"))
    (found,) = read_frames(tmp_path / "x.cif")
    assert found.doubts == ("the formula 'Na2 Cl' is not that of the atoms, NaCl",)


def test_long_empty_stretches_of_a_cif_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.cif").write_text(SODIUM + " \n" * 50_000)
    start = time.perf_counter()
    read_structure_file(tmp_path / "x.cif")
    assert time.perf_counter() - start < 5


def test_a_pseudohydrogen_is_no_hydrogen(tmp_path: Path) -> None:
    lines = ["x", "1.0", "4 0 0", "0 4 0", "0 0 4", "Cs_sv H1.25", "1 1", "Direct", "0 0 0", "0.5 0.5 0.5"]
    (tmp_path / "POSCAR").write_text("\n".join(lines))
    assert "'H1.25' in the POSCAR is no element" in reasons(tmp_path / "POSCAR")[0]
    (tmp_path / "POSCAR").write_text("\n".join(lines).replace("H1.25", "H/0a1b2c"))
    assert read_structure_file(tmp_path / "POSCAR").get_chemical_formula() == "HCs"


def test_three_scales_stretch_the_axes(tmp_path: Path) -> None:
    lines = ["x", "4.0 5.0 6.0", "1 0 0", "0 1 0", "0 0 1", "Cs Cl", "1 1", "Direct", "0 0 0", "0.5 0.5 0.5"]
    (tmp_path / "POSCAR").write_text("\n".join(lines))
    assert read_structure_file(tmp_path / "POSCAR").cell.lengths() == pytest.approx([4, 5, 6])
    (tmp_path / "POSCAR").write_text("\n".join(lines).replace("Direct", "Cartesian"))
    assert "three scale factors and Cartesian positions is not read" in reasons(tmp_path / "POSCAR")[0]
    (tmp_path / "POSCAR").write_text("\n".join(lines[:5]))
    assert "a POSCAR has at least 8 lines, this file 5" in reasons(tmp_path / "POSCAR")[0]


POSCAR = ["x", "-57.0", "1 0 0", "0 1 0", "0 0 1", "Cs Cl", "1 1", "Cartesian", "0 0 0", "0.5 0.5 0.5"]


def test_a_negative_scale_is_the_volume_of_cartesian_positions_too(tmp_path: Path) -> None:
    (tmp_path / "POSCAR").write_text("\n".join(POSCAR))
    atoms = read_structure_file(tmp_path / "POSCAR")
    assert atoms.get_volume() == pytest.approx(57.0)
    assert atoms.get_scaled_positions()[1] == pytest.approx([0.5] * 3)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([*POSCAR, "0.2 0.2 0.2"], "2 atoms are announced, but more lines follow"),
        ([*POSCAR, *POSCAR], "more lines follow"),
        ([*POSCAR[:5], *POSCAR[6:8], "0 0 0 T T T", "0.5 0.5 0.5 T T T"], "names no elements"),
        ([*POSCAR[:8], "0 0 0 Cs", "0.5 0.5 0.5 K"], "a row of the POSCAR says 'K', its head 'Cl'"),
    ],
)
def test_what_a_poscar_means_is_not_guessed(lines: list[str], reason: str, tmp_path: Path) -> None:
    (tmp_path / "POSCAR").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=reason):
        read_structure_file(tmp_path / "POSCAR")


FRAME = '2\nLattice="4 0 0 0 4 0 0 0 4" {}\nNa 0 0 0\nCl 2 2 2\n'


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ('pbc="yes yes no"', "pbc is true, false or three"),
        ('PBC="T T F"', "the key 'PBC' is not known"),
        ('stress="1 6 5 0 2 4 0 0 3"', "the stress is not symmetric"),
        ("gap=1 gap=2", "the key 'gap' stands twice"),
        ("Properties=species:S:1:frac_pos:R:3", "needed are pos"),
        ("Properties=species:S:1:pos:R:3:Z:I:1", "one of species and Z"),
    ],
)
def test_what_a_comment_line_means_is_not_guessed(words: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.extxyz").write_text(FRAME.format(words))
    assert reason in reasons(tmp_path / "x.extxyz")[0]


def test_words_within_quotes_are_no_keys(tmp_path: Path) -> None:
    (tmp_path / "x.extxyz").write_text(FRAME.format('note="has id=5 split=test inside" name=007 pbc="T F T"'))
    (frame,) = read_frames(tmp_path / "x.extxyz")
    assert (frame.name, frame.values.get("split"), frame.atoms.pbc.tolist()) == ("007", None, [True, False, True])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"frac_coords": [[0, 0.5], [0, 0.5], [0, 0.5]]}, r"the shape of frac_coords is (3, 2); needed is (2, 3)"),
        ({"species": [11.7, 17.2]}, "species are symbols or atomic numbers, got 11.7"),
        ({"species": [True, True]}, "species are symbols or atomic numbers"),
        ({"lattice": [["3_5", 0, 0], [0, 4, 0], [0, 0, 4]]}, "an underscore in a number"),
        ({"periodic": False}, "the key 'periodic' is not known"),
    ],
)
def test_what_a_row_means_is_not_guessed(changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    row = {"lattice": (np.eye(3) * 4).tolist(), "species": ["Na", "Cl"], "frac_coords": [[0, 0, 0], [0.5] * 3]}
    (tmp_path / "x.jsonl").write_text(json.dumps({**row, **changes}))
    assert reason in reasons(tmp_path / "x.jsonl")[0]
    (tmp_path / "y.jsonl").write_text(json.dumps(row)[:-1] + ', "gap": 1, "gap": 2}')
    assert "a key stands twice: gap" in reasons(tmp_path / "y.jsonl")[0]


def test_what_stands_beside_a_structure_wins_over_its_data(tmp_path: Path) -> None:
    salt = Structure(CELL, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    (tmp_path / "x.json").write_text(json.dumps({"structure": salt.as_dict(), "gap": 1, "data": {"gap": 9}}))
    assert read_records(tmp_path / "x.json", "gap")[0].target == 1
    entry = ComputedStructureEntry(salt, -6.5, correction=-1.0)
    (tmp_path / "y.json").write_text(json.dumps(entry.as_dict()))
    with pytest.raises(ValueError, match=r"there are: .*uncorrected_energy, corrected_energy"):
        read_records(tmp_path / "y.json", "energy")
    assert read_records(tmp_path / "y.json", "corrected_energy")[0].target == -7.5


GRO = "x\n1\n    1NaCl    Na    1   0.000   0.000   0.000\n   0.5   0.5   0.5\n"
GEN = "1 S\nNa\n1 1 0.0 0.0 0.0\n0.0 0.0 0.0\n4.0 0.0 0.0\n0.0 4.0 0.0\n0.0 0.0 4.0\n"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("x.lammpstrj", "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n1\nITEM: BOX BOUNDS pp pp pp\n0 4\n0 4\n0 4\n"
         "ITEM: ATOMS id type x y z\n1 3 0 0 0\n", "types are no elements"),
        ("x.pdb", "CRYST1    6.000    7.000    8.000  90.00  90.00  90.00 P 1 21 1\n"
         "ATOM      1 NA   MOL     1       0.000   0.000   0.000  1.00  0.00          NA\n", "is not read"),
        ("x.pdb", "CRYST1    6.000    7.000    8.000  90.00  90.00  90.00 P 1\n"
         "ATOM      1 NA   MOL     1       0.000   0.000   0.000  0.50  0.00          NA\n", "parts of atoms"),
        ("x.pdb", "CRYST1    6.000    7.000    8.000  90.00  90.00  90.00 P 1\n"
         "ATOM      1  CA  ALA A   1       1.000   1.000   1.000  1.00  0.00\n", "no elements"),
        ("x.gro", "x\n1\n    1NaCl    NA    1   0.000   0.000   0.000\n   0.5   0.5   0.5\n", "NA is no element"),
        ("x.gro", GRO + GRO, "several frames"),
        ("x.sdf", "x\n$$$$\ny\n$$$$\n", "several molecules"),
        ("x.gen", GEN + GEN, "several structures"),
        ("x.mmcif", "data_x\n_cell.length_a 4\nloop_\n_atom_site.id\n_atom_site.Cartn_x\n1 0.0\n", "an mmCIF"),
        ("x.xsf", "CRYSTAL\nPRIMVEC\n4 0 0\n0 4 0\n0 0 4\nPRIMCOORD\n1 1\n11 0 0 0\n17 2 2 2\n",
         "PRIMCOORD announces 1 atoms and 2 follow"),
        ("x.pwi", "&CONTROL\n/\n&SYSTEM\n ibrav=0, nat=1, ntyp=1\n/\n&ELECTRONS\n/\nATOMIC_SPECIES\nNa 22.99 Na.upf\n"
         "CELL_PARAMETERS angstrom\n4 0 0\n0 4 0\n0 0 4\nATOMIC_POSITIONS angstrom\nNa 0 0 0\nNa 2 2 2\n",
         "nat announces 1 atoms and 2 follow"),
        ("x.res", "TITL x\nCELL 1 6 7 8 90 100 90\nLATT 1\nSYMM -X,Y,-Z\nSFAC Na\nNa 1 0 0 0\nEND\n", "SHELX"),
    ],
    ids=["types", "symmetry", "occupancy", "element", "name", "gro", "sdf",
         "frames", "mmcif", "xsf", "espresso", "shelx"],
)  # fmt: skip
def test_what_ase_passes_over_is_refused(name: str, text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert reason in reasons(tmp_path / name)[0]


def test_a_folder_loses_nothing(tmp_path: Path) -> None:
    folder, empty = tmp_path / "some", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    write(folder / "a.cif", bulk("Cu"))
    (folder / "b.cif").symlink_to(tmp_path / "nowhere.cif")
    (folder / "inner").mkdir()
    found = {Path(name).name: str(source) for name, source in iterate_structures([folder, empty])}
    assert sorted(found) == ["a.cif", "b.cif", "empty"]
    assert found["b.cif"] == "a link that leads nowhere"
    assert "there is no file in this folder" in found["empty"]


@pytest.mark.parametrize("suffix", ["gen", "xsf", "pwi"])
def test_what_ase_writes_is_read(suffix: str, tmp_path: Path) -> None:
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    more = {"format": "espresso-in", "pseudopotentials": {"Na": "x", "Cl": "y"}} if suffix == "pwi" else {}
    write(tmp_path / f"x.{suffix}", [salt, salt] if suffix == "xsf" else salt, **more)
    read = list(read_frames(tmp_path / f"x.{suffix}"))
    assert len(read) == (2 if suffix == "xsf" else 1)
    for frame in read:
        assert (frame.atoms.symbols == salt.symbols).all()
        np.testing.assert_allclose(frame.atoms.positions, salt.positions, atol=1e-6)


def test_a_key_that_no_row_has_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.extxyz").write_text(FRAME.format("energy=-1"))
    with pytest.raises(ValueError, match=r"no row has 'REF_stress' for its stress; there are: .*energy"):
        read_records(tmp_path / "x.extxyz", "energy", keys={"stress": "REF_stress"})


@pytest.mark.parametrize("virial", ["abc", [[1, 0], [0, 1, 0]], {"xx": 1}, 10**400])
def test_bad_labels_name_their_place(virial: object, tmp_path: Path) -> None:
    row = {"lattice": (np.eye(3) * 4).tolist(), "species": ["Na"], "frac_coords": [[0, 0, 0]], "energy": -1.0}
    (tmp_path / "x.jsonl").write_text(json.dumps({**row, "forces": [[0, 0, 0]], "virial": virial}))
    with pytest.raises(PrismError, match=r"x\.jsonl, line 1"):
        read_records(tmp_path / "x.jsonl", "pes")


@pytest.mark.parametrize(
    "text",
    [
        '{"train": ["a"], "val": ["b"], "Test": []}',
        '{"train": ["a"], "id_train": ["b"]}',
        '{"train": "ab"}',
        "[" * 100_000,
    ],
)
def test_bad_splits_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(PrismError, match=r"splits|lists of names"):
        assign_splits([], tmp_path / "s.json")


def test_a_file_that_stands_twice_in_a_table_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.cif", bulk("NaCl", "rocksalt", a=5.6))
    (tmp_path / "t.csv").write_text("file,gap\na,1.0\na.cif,2.0\n")
    with pytest.raises(ValueError, match=r"line 3: a\.cif stands in line 2 already"):
        read_records(tmp_path / "t.csv", "gap")
    (tmp_path / "t.csv").write_text("file,gap,gap\na,1.0,2.0\n")
    with pytest.raises(ValueError, match="a column stands twice"):
        read_records(tmp_path / "t.csv", "gap")


def test_structures_can_stand_in_a_table(tmp_path: Path) -> None:
    """As those of CDVAE and MP-20 do: a column of CIFs, the first one a number."""
    salts = [Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0] * 3, [0.5] * 3]) for a in (5, 6)]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["", "material_id", "gap", "cif"])
        rows.writerows([number, f"mp-{number}", 0.5, salt.to(fmt="cif")] for number, salt in enumerate(salts))
    records = read_records(tmp_path / "t.csv", "gap")
    assert [(one.name, one.target) for one in records] == [("mp-0", 0.5), ("mp-1", 0.5)]
    for record, salt in zip(records, salts, strict=True):
        assert record.atoms.get_volume() == pytest.approx(salt.volume)
        assert len(record.atoms) == 8
    with open(tmp_path / "t.csv", "a", newline="") as file:
        csv.writer(file).writerow([2, "mp-2", 1.0, "data_x\nnothing"])
    with pytest.raises(ValueError, match=r"line \d+ \(mp-2\): the CIF in it cannot be read: there is no structure"):
        read_records(tmp_path / "t.csv", "gap")
    for number, salt in enumerate(salts):  # a column of that name that has files
        salt.to(str(tmp_path / f"{number}.cif"))
    salts[0].to(str(tmp_path / "data_2.cif"))
    (tmp_path / "t.csv").write_text("cif,gap\n0.cif,1.0\n1,2.0\ndata_2.cif,3.0\n")
    assert [one.name for one in read_records(tmp_path / "t.csv", "gap")] == ["0.cif", "1", "data_2.cif"]
    with open(tmp_path / "t.csv", "w", newline="") as file:  # without names
        csv.writer(file).writerows([["formula", "cif", "gap"], *(["NaCl", salt.to(fmt="cif"), 1.0] for salt in salts)])
    names = [one.name for one in read_records(tmp_path / "t.csv", "gap")]
    assert len(set(names)) == 2
    assert all(name.isdigit() for name in names)


def test_two_parsers_that_differ_are_a_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.cif").write_text(SODIUM)
    (frame,) = read_frames(tmp_path / "x.cif")
    assert frame.doubts == ()
    other = frame.atoms.copy()
    other.positions[1, 0] += 0.5
    monkeypatch.setattr(ase.io, "read", lambda *arguments, **named: other)
    (frame,) = read_frames(tmp_path / "x.cif")
    assert "read different positions" in frame.doubts[0]
    other.symbols[0] = "K"
    (frame,) = read_frames(tmp_path / "x.cif")
    assert "pymatgen reads NaCl (2 atoms) from this CIF, ASE KCl (2)" in frame.doubts[0].replace(
        "ClNa", "NaCl"
    ).replace("ClK", "KCl")


# ---- what ASE makes of odd words, and databases that are none


def extxyz(path: Path, words: str) -> Path:
    path.write_text(
        f'1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3:forces:R:3 {words}\nCu 0 0 0 0 0 0\n'
    )
    return path


@pytest.mark.parametrize("empty", ["config_type=", 'config_type=""', "config_type=''", "config_type={}"])
def test_an_empty_value_takes_nothing_along(empty: str, tmp_path: Path) -> None:
    words = f'energy=-7.5 {empty} gap=1.5 stress="1 0 0 0 2 0 0 0 3" pbc="T T T"'
    (frame,) = read_frames(extxyz(tmp_path / "a.extxyz", words))
    assert isinstance(frame, Frame)
    assert frame.values["gap"] == 1.5
    (record,) = read_records(tmp_path / "a.extxyz", "pes")
    assert record.target == -7.5
    np.testing.assert_allclose(record.stress, np.diag([1, 2, 3]))
    (last,) = read_frames(extxyz(tmp_path / "b.extxyz", f'gap=1.5 pbc="T T T" {empty}'))
    assert isinstance(last, Frame)
    assert last.values["gap"] == 1.5


def test_what_looks_empty_within_quotes_stays(tmp_path: Path) -> None:
    (frame,) = read_frames(extxyz(tmp_path / "a.extxyz", 'name="a= b=c" gap=1.5'))
    assert isinstance(frame, Frame)
    assert (frame.name, frame.values["gap"]) == ("a= b=c", 1.5)


def test_a_bare_word_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(PrismError, match="none of the 1 rows has the target 'gap'"):
        read_records(extxyz(tmp_path / "a.extxyz", "gap 1.5"), "gap")
    for words in ("energy -7.5", "energy=T"):
        with pytest.raises(PrismError, match="the energy is True: write its number"):
            read_records(extxyz(tmp_path / "a.extxyz", words), "pes")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ('lattice="3 0 0 0 3 0 0 0 3"', "the key 'lattice' is not known: write Lattice"),
        ('Lattice="3_1 0 0 0 3 0 0 0 3"', "Lattice has an underscore in a number"),
        ('Lattice="3 0 0 0 3 0 0 0 3" energy=1_5,', "energy has an underscore in a number"),
    ],
)
def test_numbers_and_keys_are_as_they_are_written(words: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.extxyz").write_text(f"1\nProperties=species:S:1:pos:R:3 {words}\nCu 0 0 0\n")
    (reason,) = reasons(tmp_path / "a.extxyz")
    assert message in reason


def test_words_may_have_underscores_and_no_target(tmp_path: Path) -> None:
    path = extxyz(tmp_path / "a.extxyz", "id=1_5 date=2024_01_05 gap=1.5 energy_gap=1_5")
    (frame,) = read_frames(path)
    assert isinstance(frame, Frame)
    assert frame.name == "1_5"
    assert read_records(path, "gap")[0].target == 1.5
    with pytest.raises(PrismError, match="the target 'energy_gap' is no number: '1_5'"):
        read_records(path, "energy_gap")
    path.write_text(path.read_text().replace("Cu 0 0 0", "Cu 0 1_0 0"))
    assert "an underscore in a number: '1_0'" in reasons(path)[0]


def test_quoted_keys_are_keys(tmp_path: Path) -> None:
    frames = [bulk("Cu") for _ in range(3)]
    for number, one in enumerate(frames):
        one.info |= {"is metal": number < 2, "my note": "", "gap": 1.5}
    write(tmp_path / "a.extxyz", frames)
    found = [frame.values for frame in read_frames(tmp_path / "a.extxyz") if isinstance(frame, Frame)]
    assert [(values["is metal"], values["gap"]) for values in found] == [(True, 1.5), (True, 1.5), (False, 1.5)]


def test_long_words_take_no_time(tmp_path: Path) -> None:
    start = time.perf_counter()
    for word in ("x" * 40_000, 'k="' + '\\"' * 40_000, "a=" * 40_000):
        list(read_frames(extxyz(tmp_path / "a.extxyz", word)))
    assert time.perf_counter() - start < 5


def test_a_database_of_others_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with sqlite3.connect(tmp_path / "notes.db") as database:
        database.execute("CREATE TABLE notes (text TEXT)")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path, content in before.items():
        (reason,) = reasons(path)
        assert "it is no database of ASE" in reason
        assert path.read_bytes() == content


def test_selective_dynamics_are_constraints(tmp_path: Path) -> None:
    moves = [[True] * 3, [False] * 3, [True, False, True]]
    structure = Structure(CELL, ["Cu"] * 3, [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]])
    structure.add_site_property("selective_dynamics", moves)
    structure.to(str(tmp_path / "POSCAR"), fmt="poscar")
    (tmp_path / "s.json").write_text(json.dumps(structure.as_dict()))
    as_fortran = {"T T T": "t .TRUE. T", "F F F": ".f. F .FALSE.", "T F T": "T F .t."}
    text = (tmp_path / "POSCAR").read_text()
    (tmp_path / "fortran.vasp").write_text(re.sub("[TF] [TF] [TF]", lambda found: as_fortran[found[0]], text))
    for name in ("POSCAR", "fortran.vasp", "s.json"):
        part, whole = read_structure_file(tmp_path / name).constraints
        assert whole.index.tolist() == [1]
        assert part.index.tolist() == [2]
        assert np.ravel(part.mask).tolist() == [False, True, False]
    (tmp_path / "POSCAR").write_text(text.replace("F F F", "0 0 0"))
    assert "selective dynamics are three of T and F" in reasons(tmp_path / "POSCAR")[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Direct", "Fractional", "no line of the POSCAR says Direct or Cartesian"),
        ("4.2", "4_2", "underscore"),
        ("0 0 0\n", "0 0.2_5 0\n", "underscore"),
    ],
)
def test_odd_lines_of_a_poscar_are_said(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = "x\n1.0\n4.2 0 0\n0 4.2 0\n0 0 4.2\nCu\n1\nDirect\n0 0 0\n"
    (tmp_path / "POSCAR").write_text(text.replace(old, new, 1))
    (reason,) = reasons(tmp_path / "POSCAR")
    assert message in reason


@pytest.mark.parametrize(
    "lattice",
    [
        [[-3.32, 2.365, -3.781], [1.903, 1.567, 0.758], [5.223, -0.798, 4.539]],
        [[0, 2.75, 2.75], [2.75, 0, 2.75], [2.75, 2.75, 5.5]],
    ],
)
def test_a_flat_lattice_spans_no_volume(lattice: list[list[float]]) -> None:
    crystal = Atoms("H", cell=lattice, pbc=True)
    with pytest.raises(PrismError, match="spans no volume"):
        read_structure(crystal)


def test_a_long_name_in_a_folder_ends_nothing(tmp_path: Path) -> None:
    write(tmp_path / f"{'n' * 246}.cif", bulk("Cu"))
    assert [str(atoms.symbols) for atoms in read_structures([tmp_path])] == ["Cu"]


@pytest.mark.parametrize("target", [float("nan"), float("inf"), "1.5", None])
def test_a_target_is_a_finite_number(target: Any) -> None:
    with pytest.raises(PrismError, match="the target of crystal 'x' is no finite number"):
        Record(bulk("Cu"), target, "x")
