"""The examination: a right teacher passes, and each wrong one is refused for what is wrong with it."""

from __future__ import annotations

import os

import pytest
from ase import Atoms
from ase.calculators.emt import EMT

from prism_plugin.data.shards import Labels
from prism_plugin.distillation.examination import examine, format_examination
from prism_plugin.distillation.teacher import Teacher
from tests.conftest import SHARED

PBE = SHARED / "teachers" / "TensorNet-MatPES-PBE-v2025.1-PES"

# pip install --no-deps --target FOLDER matgl==2.0.4
OLD_MATGL = os.environ.get("OLD_MATGL")


class WrongTeacher:
    """EMT in this process, with a mistake: a factor of forces, stress or lengths, or a slope of the energy along z."""

    elements = ("Cu",)

    def __init__(self, forces: float = 1.0, stress: float = 1.0, length: float = 1.0, slope: float = 0.0) -> None:
        self.forces, self.stress, self.length, self.slope = forces, stress, length, slope

    def label(self, atoms: Atoms) -> Labels:
        inner = atoms.copy()
        inner.set_cell(atoms.cell.array / self.length, scale_atoms=True)
        inner.calc = EMT()
        energy = inner.get_potential_energy() + self.slope * atoms.positions[:, 2].sum()
        forces = self.forces * inner.get_forces() / self.length
        return Labels(energy, forces, self.stress * inner.get_stress(voigt=False) / self.length**3)


def test_emt_passes_for_the_element_that_it_knows(emt) -> None:
    (copper,) = examine(emt)
    assert copper.formula == "Cu"
    assert abs(copper.volume) < 3
    assert not copper.failed
    assert "Cu" in format_examination([copper])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"forces": 1.1}, r"Cu forces:"),
        ({"stress": 160.2}, r"Cu stress:"),
        ({"slope": 0.1}, r"Cu rotation and forces and stress:"),
        ({"length": 1.1}, r"Cu volume:\n(.|\n)*\+30\.. .*refused(.|\n)*--skip-examination"),
        ({"forces": float("nan")}, r"Cu forces:"),
    ],
)
def test_a_wrong_calculator_is_refused_with_the_table(mistake, message) -> None:
    with pytest.raises(ValueError, match=f"far off for {message}"):
        examine(WrongTeacher(**mistake))


def test_a_teacher_that_knows_no_compound_cannot_be_examined(emt, monkeypatch) -> None:
    monkeypatch.setattr(emt, "elements", ("Al", "Ni"))
    with pytest.raises(ValueError, match=r"knows none of NaCl, MgO.*--skip-examination"):
        examine(emt)


@pytest.mark.slow
@pytest.mark.skipif(not PBE.is_dir() or not OLD_MATGL, reason="OLD_MATGL names no folder with matgl 2.0.4")
def test_the_potential_is_accepted_under_its_own_matgl() -> None:
    with Teacher(PBE, path=OLD_MATGL) as teacher:
        found = examine(teacher)
    assert {one.formula for one in found} == {"NaCl", "MgO", "GaAs", "Cu", "Si"}
    assert max(abs(one.volume) for one in found) < 7


@pytest.mark.slow
@pytest.mark.skipif(not PBE.is_dir(), reason="../shared/teachers is not here")
def test_the_potential_that_the_installed_matgl_reads_wrongly_is_refused() -> None:
    with Teacher(PBE) as teacher:
        assert teacher.about["version"].startswith("4.")
        assert len(teacher.elements) == 89
        with pytest.raises(ValueError, match=r"far off for NaCl volume, MgO volume(.|\n)*--teacher-path"):
            examine(teacher)
