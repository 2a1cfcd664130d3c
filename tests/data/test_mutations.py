"""Mutated files are read or refused: only answers or ``PrismError``, and never a wait.

``PRISM_MUTATIONS=10000 pytest tests/data/test_mutations.py`` tries more of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from prism_plugin.data import Record, assign_splits, read_records
from prism_plugin.data.frame import Frame
from prism_plugin.data.structure_files import read_frames
from prism_plugin.errors import PrismError
from prism_plugin.graph.build import build_graph
from prism_plugin.training.job import Job, read_config

EXAMPLES = int(os.environ.get("PRISM_MUTATIONS", "60"))
TOKENS = [
    "nan", "inf", "-1", "0", "1e308", "1e-308", "99999999999999999999", "T", "F", "null", "{", "[", '"', "'", "\\",
    "\n", "\r\n", "\0", "\t", " ", ",", "#", "=", "é", "Xx", "D", "_cell_length_a", "loop_", "data_", "pbc", "VEC1",
]  # fmt: skip
WORDS = [token.encode() for token in TOKENS] + [b"\xff", b"\xef\xbb\xbf", b"\xff\xfe"]


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[str, float, float, bytes]]:
    """What is done to a file: where, as parts of its length, and with which bytes."""
    place = st.floats(0, 1, exclude_max=True)
    kinds = st.sampled_from(["delete", "insert", "replace", "double", "cut"])
    words = st.one_of(st.sampled_from(WORDS), st.binary(max_size=4))
    return draw(st.lists(st.tuples(kinds, place, st.floats(0, 0.1), words), min_size=1, max_size=4))


def mutated(text: bytes, changes: list[tuple[str, float, float, bytes]]) -> bytes:
    for kind, place, part, word in changes:
        start = int(place * len(text))
        end = min(len(text), start + 1 + int(part * len(text)))
        middle = {"delete": b"", "insert": word + text[start:end], "replace": word, "double": text[start:end] * 2}
        text = text[:start] if kind == "cut" else text[:start] + middle[kind] + text[end:]
    return text


def _written(name: str, *atoms: Any, **more: Any) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name, atoms, **more)
        return (Path(folder) / name).read_bytes()


def bases() -> dict[str, bytes]:
    """One good file of each kind."""
    cells = [bulk("NaCl", "rocksalt", a=a) for a in (5.6, 5.7)]
    for atoms in cells:
        atoms.info["gap"] = 1.5
    row = {"lattice": (np.eye(3) * 4).tolist(), "species": ["Na", "Cl"], "frac_coords": [[0, 0, 0], [0.5] * 3]}
    rows = [{**row, "gap": 1.0, "id": f"a{n}", "pbc": True, "split": "train"} for n in range(2)]
    salt = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3])
    return {
        "x.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "x.extxyz": _written("x.extxyz", *cells),
        "x.cif": _written("x.cif", cells[0]),
        "POSCAR": _written("POSCAR", cells[0], format="vasp"),
        "x.json": json.dumps([{"structure": salt.as_dict(), "gap": 1.0}]).encode(),
        "x.csv": b"file,gap\na.cif,1.0\na,2.5\n",
        "x.pdb": _written("x.pdb", cells[0]),
    }


BASES = bases()


def only_answers(work: Callable[[], Any]) -> None:
    try:
        work()
    except PrismError as error:
        assert str(error)  # noqa: PT017  # an answer is right, too


def read_all(path: Path) -> None:
    for found in read_frames(path):
        assert isinstance(found, Frame | PrismError)
        if isinstance(found, Frame):
            only_answers(lambda atoms=found.atoms: build_graph(atoms, 3.0, 1.0))


@pytest.mark.filterwarnings("ignore")  # of the parsers
@pytest.mark.parametrize("name", BASES)
def test_a_mutated_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.cif").write_bytes(BASES["x.cif"])

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(edits())
    def check(changes: list[tuple[str, float, float, bytes]]) -> None:
        (tmp_path / name).write_bytes(mutated(BASES[name], changes))
        if not name.endswith(".csv"):
            read_all(tmp_path / name)
        only_answers(lambda: read_records(tmp_path / name, "gap"))

    check()


CONFIG = b"""data = "x.jsonl"
target = "gap"
unit = "eV"
epochs = 3
lr = 0.001
[model]
dim = 16
experts = ["atomistic"]
[options]
weight_decay = 0.1
"""


@pytest.mark.filterwarnings("ignore")
def test_a_mutated_config_is_read_or_refused(tmp_path: Path) -> None:
    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(edits())
    def check(changes: list[tuple[str, float, float, bytes]]) -> None:
        (tmp_path / "c.toml").write_bytes(mutated(CONFIG, changes))
        only_answers(lambda: Job.make({}, read_config(tmp_path / "c.toml")))

    check()


def test_mutated_splits_are_read_or_refused(tmp_path: Path) -> None:
    records = [Record(bulk("Cu"), 1.0, name) for name in "abc"]

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(edits())
    def check(changes: list[tuple[str, float, float, bytes]]) -> None:
        (tmp_path / "s.json").write_bytes(mutated(b'{"train": ["a"], "val": ["b"], "test": ["c"]}', changes))
        only_answers(lambda: assign_splits(records, tmp_path / "s.json"))

    check()
