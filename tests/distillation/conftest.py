"""Teachers: EMT, and calculators that do something wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prism_plugin.distillation.teacher import Teacher

EMT = "ase.calculators.emt:EMT"
WRONG = '''
import os
import numpy as np
from ase.calculators.emt import EMT

class Scaled(EMT):
    """Forces a tenth too large."""
    def calculate(self, *arguments, **more):
        super().calculate(*arguments, **more)
        self.results["forces"] = 1.1 * self.results["forces"]

class Weak(EMT):
    """It fails for many atoms, answers NaN for a few, and dies of one crystal."""
    def calculate(self, atoms, *arguments, **more):
        print("what a library prints must not mix with the answers")
        if len(atoms) > 4:
            raise RuntimeError("too many atoms")
        if len(atoms) == 3 and atoms.cell.volume > 1e5:
            os._exit(3)
        super().calculate(atoms, *arguments, **more)
        if len(atoms) == 3:
            self.results["energy"] = np.nan

class Picky(EMT):
    """It takes no arguments."""
    def __init__(self):
        super().__init__()

class Blind(EMT):
    """Energies alone."""
    implemented_properties = ["energy"]
    def calculate(self, *arguments, **more):
        super().calculate(*arguments, **more)
        del self.results["stress"]
'''


@pytest.fixture(scope="session")
def emt() -> Iterator[Teacher]:
    """EMT in a process of its own."""
    with Teacher(EMT) as teacher:
        yield teacher


@pytest.fixture(scope="session")
def wrong(tmp_path_factory) -> Path:
    """Folder of the module ``wrong``."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "wrong.py").write_text(WRONG)
    return folder
