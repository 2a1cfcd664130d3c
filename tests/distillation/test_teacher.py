"""The teacher's process: its answers are the calculator's; what goes wrong there is a message here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from prism_plugin.distillation import teacher_process
from prism_plugin.distillation.teacher import Teacher, TeacherCalculator, TeacherError


def test_answers_are_those_of_the_calculator(emt) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    energy, forces, stress = emt.label(atoms)
    atoms.calc = EMT()
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-12)
    np.testing.assert_allclose(stress, atoms.get_stress(voigt=False), atol=1e-12)
    atoms.calc = TeacherCalculator(emt)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, atol=1e-15)


def test_an_answer_does_not_depend_on_what_came_before(emt) -> None:
    atoms = bulk("AuCu", "cesiumchloride", a=3.1) * (2, 1, 1)
    near = atoms.copy()
    near.rattle(0.01, seed=2)
    first = emt.label(near)
    emt.label(atoms)
    assert np.array_equal(emt.label(near).forces, first.forces)


def test_a_teacher_says_what_it_is_and_what_it_knows(emt) -> None:
    assert emt.about["kind"] == "ase.calculators.emt:EMT"
    assert len(emt.about["digest"]) == 64
    assert {"Al", "Cu", "Ni"} <= set(emt.elements)
    assert "Fe" not in emt.elements


def test_a_structure_that_it_cannot_do_is_an_error_and_it_goes_on(emt) -> None:
    with pytest.raises(TeacherError, match="NotImplementedError"):
        emt.label(bulk("Fe"))
    assert emt.label(bulk("Cu")).finite


def test_a_dead_process_is_an_error_that_says_so(wrong) -> None:
    with Teacher("wrong:Weak", path=wrong) as teacher:
        with pytest.raises(TeacherError, match="too many atoms"):
            teacher.label(bulk("Cu") * (5, 1, 1))
        assert not teacher.label(bulk("Cu") * (3, 1, 1)).finite
        with pytest.raises(OSError, match=r"has ended \(exit status 3\).*must not mix"):
            teacher.label(bulk("Cu", a=100) * (3, 1, 1))
        with pytest.raises(OSError, match="has ended"):
            teacher.label(bulk("Cu"))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("nowhere", {}, "neither a folder nor an import path"),
        ("no_such_module:EMT", {}, "No module named.*--teacher-path"),
        ("ase.calculators.emt:TNT", {}, "has no 'TNT'"),
        ("wrong:Picky", {"arguments": {"color": "red"}}, "cannot be used: TypeError"),
        ("wrong:Blind", {}, "of no element"),
        ("ase.calculators.emt:EMT", {"python": "no/python"}, "no interpreter 'no/python'"),
        ("ase.calculators.emt:EMT", {"path": "no/folder"}, "no folder 'no/folder'"),
    ],
)
def test_what_cannot_be_a_teacher_is_a_message(name, given, message, wrong) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        Teacher(name, **({"path": wrong} | given))


def test_its_process_needs_neither_this_package_nor_torch() -> None:
    tree = ast.parse(Path(teacher_process.__file__).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    assert found - set(sys.stdlib_module_names) == {"numpy", "ase", "matgl"}


def test_a_folder_that_is_no_potential_is_a_message(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"has no model\.json"):
        Teacher(tmp_path)
