"""The teacher: an ASE calculator or a matgl potential in a process of its own, perhaps in an environment of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols, covalent_radii
from ase.stress import full_3x3_to_voigt_6_stress

from prism_plugin.data.shards import Labels
from prism_plugin.distillation import teacher_process
from prism_plugin.distillation.teacher_process import read_message, write_message
from prism_plugin.errors import PrismError

__all__ = ["Teacher", "TeacherCalculator", "TeacherError"]

_LAST_PROBED = 94  # plutonium
# glibc gives large blocks back to the system and takes them anew, which costs a quarter of a potential's time.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


class TeacherError(ValueError):
    """The teacher could not compute one structure; it goes on with others."""


class Teacher:
    """A teacher in a process of its own.

    Args:
        name: folder of a matgl potential, or an ASE calculator by import path, ``"ase.calculators.emt:EMT"``.
        arguments: of the calculator.
        python: interpreter of its environment; None takes this one.
        path: folder in front of its ``PYTHONPATH``, for example with another matgl.
        threads: of its process.

    Attributes:
        about: kind, version, digest and arguments, by which a run knows its teacher.
        elements: symbols of the elements that it knows.

    Raises:
        ValueError: if it cannot be loaded.
        OSError: if its process cannot be started, or ends.
    """

    def __init__(
        self,
        name: str | Path,
        arguments: Mapping[str, Any] | None = None,
        python: str | Path | None = None,
        path: str | Path | None = None,
        threads: int = 1,
    ) -> None:
        self.name = str(name)
        if not Path(self.name).is_dir() and ":" not in self.name:
            raise PrismError(
                f"the teacher {self.name!r} is neither a folder nor an import path; give the folder of a matgl "
                "potential, or a calculator such as ase.calculators.emt:EMT"
            )
        for place, what in ((python, "interpreter"), (path, "folder")):
            if place is not None and not Path(place).exists():
                raise FileNotFoundError(f"there is no {what} {str(place)!r} for the teacher")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        given = {"name": self.name, "arguments": dict(arguments or {}), "threads": threads}
        self._process = subprocess.Popen(
            [str(python or sys.executable), str(teacher_process.__file__), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(path, threads),
            start_new_session=True,  # Ctrl-C is for us; it ends when we do
        )
        try:
            self.about: dict[str, Any] = json.loads(str(self._received()["about"]))
            known = self.about.pop("elements")
            self.elements: tuple[str, ...] = tuple(known) if known is not None else self._probed()
        except TeacherError as error:
            self.close()
            hint = "" if Path(self.name).is_dir() else "; --teacher-path DIR says where Python finds it"
            raise PrismError(f"the teacher {self.name!r} cannot be used: {error}{hint}") from error
        except BaseException:
            self.close()
            raise

    def label(self, atoms: Atoms) -> Labels:
        """Return energy, forces and stress of a structure that is periodic in three directions.

        Raises:
            TeacherError: if the teacher says that it cannot compute it.
            OSError: if its process has ended.
        """
        assert self._process.stdin is not None
        try:
            write_message(self._process.stdin, numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell.array)
        except (BrokenPipeError, ValueError) as error:
            raise self._ended() from error
        answer = self._received()
        return Labels(float(answer["energy"]), answer["forces"], answer["stress"])

    def close(self) -> None:
        """End its process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Teacher:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End its process."""
        self.close()

    def _received(self) -> dict[str, np.ndarray]:
        assert self._process.stdout is not None
        answer = read_message(self._process.stdout)
        if answer is None:
            raise self._ended()
        if "error" in answer:
            raise TeacherError(str(answer["error"]))
        return answer

    def _ended(self) -> OSError:
        """Describe how its process ended, with the last of what it printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().splitlines()[-3:]
        return OSError(
            f"the process of the teacher {self.name!r} has ended (exit status {self._process.poll()}), perhaps for "
            f"want of memory; what is written is kept: repeat the command. Its last words: {' | '.join(last) or 'none'}"
        )

    def _probed(self) -> tuple[str, ...]:
        """Elements that it computes in a crystal without an error."""
        known = []
        reason = "its answers are not finite"
        for number in range(1, _LAST_PROBED + 1):
            symbol = chemical_symbols[number]
            atoms = bulk(symbol, "fcc", a=2 * 2**0.5 * covalent_radii[number])
            try:
                if self.label(atoms).finite:
                    known.append(symbol)
            except TeacherError as error:
                reason = str(error)
        if not known:
            raise TeacherError(f"it computes energy, forces and stress of no element ({reason})")
        return tuple(known)


def _environment(path: str | Path | None, threads: int) -> dict[str, str]:
    """Variables of the teacher's process."""
    found = {**_KEEP_MEMORY, **os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if path is not None:
        before = found.get("PYTHONPATH")
        found["PYTHONPATH"] = str(Path(path).resolve()) + (os.pathsep + before if before else "")
    return found


class TeacherCalculator(Calculator):
    """The teacher as an ASE calculator, for dynamics and relaxations on this side."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012  # as ASE declares it

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.labels: Labels | None = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Ask the teacher."""
        super().calculate(atoms, properties, system_changes)
        if self.atoms is None:
            raise PrismError("give atoms to calculate")
        self.labels = self.teacher.label(self.atoms)
        energy, forces, stress = self.labels
        self.results = {"energy": energy, "forces": forces, "stress": full_3x3_to_voigt_6_stress(stress)}
