"""The data of the models in the package: targets that are made of a file's values, and parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from prism_plugin.data.shipped import drawn_parts, parts_of, read_target
from prism_plugin.errors import PrismError


def _file(path: Path, key: str, values: list[float], split: str | None = None) -> Path:
    cell = bulk("NaCl", "rocksalt", a=5.6)
    rows = [
        {
            "id": f"c{number}",
            "lattice": cell.cell.tolist(),
            "species": list(cell.symbols),
            "frac_coords": cell.get_scaled_positions().tolist(),
            key: value,
            **({} if split is None else {"split": split if number else "val"}),
        }
        for number, value in enumerate(values)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


# One crystal with several labels.
@pytest.mark.filterwarnings("ignore:.*crystals (are in two parts|come again)")
def test_targets_are_made_of_the_values_of_a_file(tmp_path: Path) -> None:
    gaps = _file(tmp_path / "gaps.jsonl", "gap_pbe", [0.0, 1e-3, 4.0], split="train")
    assert [record.target for record in read_target(gaps, "metal")] == [1, 0, 0]
    assert [record.target for record in read_target(gaps, "band_gap")] == [0, 1e-3, 4]
    assert {name: len(part) for name, part in parts_of(read_target(gaps, "metal")).items()} == {
        "train": 2,
        "val": 1,
        "test": 0,
    }
    moduli = _file(tmp_path / "moduli.jsonl", "K_vrh", [1.0, 100.0])
    assert [record.target for record in read_target(moduli, "log10_k_vrh")] == pytest.approx([0, 2], abs=1e-12)
    wrong = _file(tmp_path / "wrong.jsonl", "G_vrh", [3.0, 0.0, -1.0])
    with pytest.raises(PrismError, match="2 crystals have a G_vrh that is not positive, the first is 'c1'"):
        read_target(wrong, "log10_g_vrh")


def test_a_tenth_of_what_is_not_tested_validates(tmp_path: Path) -> None:
    records = read_target(_file(tmp_path / "moduli.jsonl", "K_vrh", list(range(1, 51))), "log10_k_vrh")
    parts = parts_of(records)
    assert {name: len(part) for name, part in parts.items()} == {"train": 45, "val": 5}
    assert {record.name for part in parts.values() for record in part} == {record.name for record in records}
    tested = drawn_parts(records, np.arange(10))
    assert {name: len(part) for name, part in tested.items()} == {"train": 36, "val": 4, "test": 10}
    assert [record.name for record in tested["test"]] == [f"c{number}" for number in range(10)]
    assert len({record.name for part in tested.values() for record in part}) == 50
    assert tested == drawn_parts(records, np.arange(10))
