"""Mistakes of a user end in one line and status 2; none is said to be a fault of the program."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from prism_plugin import cli
from tests import processes
from tests.conftest import alloy_file, small_model


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return alloy_file(tmp_path, 24)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "task_type=clasification"], "unknown task_type 'clasification'; choose one of: 'regression'"),
        (["--set", "task_type=['a']"], "unknown task_type"),
        (["--optimizer", "torch.optim.SGD", "--option", "lr=-1"], "refuses its options {'lr': -1}"),
        (["--optimizer", "torch.optim.Nothing"], "cannot import the optimizer"),
        (["--optimizer", "rod-flow", "--option", "like=adamw"], "unknown like 'adamw'; choose one of: 'gd'"),
        (["--unit", "ev/atom"], "unknown unit 'ev/atom'; did you mean 'eV/atom'?"),
        (["--unit", "gpa"], "did you mean 'GPa'?"),
        (["--seed", "-1"], "seed must be a whole number of at least 0"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_training(more: list[str], message: str, data: Path, tmp_path: Path, capsys) -> None:
    command = ["train", "--data", str(data), "--target", "e", "--out", str(tmp_path / "run"), *more]
    assert cli.main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluation_and_counting(data: Path, tmp_path: Path, capsys) -> None:
    small_model(target="e").save(tmp_path / "model")
    model = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert cli.main(["evaluate", "--data", str(data), "--part", "test", "--seed", "-1", *model]) == 2
    assert "a seed is a whole number of at least 0, got -1" in capsys.readouterr().err
    assert cli.main(["scaling", str(data), "--seed", "-1", *model]) == 2
    assert "--seed must be at least 0" in capsys.readouterr().err


def test_a_table_whose_description_is_damaged(data: Path, tmp_path: Path, capsys) -> None:
    small_model(target="e").save(tmp_path / "model")
    command = ["predict", str(data), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "t.csv")]
    assert cli.main(command) == 0
    (tmp_path / "t.csv.model.json").write_text("{")
    assert cli.main(command) == 2
    assert "is no table of this model" in capsys.readouterr().err


def test_a_run_whose_settings_are_damaged(data: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    sizes = ["--set", "dim=8", "--set", "num_layers=1", "--epochs", "1"]
    assert cli.main(["train", "--data", str(data), "--target", "e", "--out", str(run), *sizes]) == 0
    kept = json.loads((run / "settings.json").read_text())
    assert kept["target"] == "e"
    (run / "settings.json").write_text("{")
    assert cli.main(["train", "--resume", str(run), "--epochs", "2"]) == 2
    assert "is missing or damaged" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_found_before_the_work(data: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "folder", tmp_path / "file" / "t.csv"):
        assert cli.main(["predict", str(data), "--out", str(out)]) == 2
        assert "predict:" not in capsys.readouterr().err  # no progress bar began


def test_a_terminal_without_our_letters_ends_no_work(data: Path, tmp_path: Path) -> None:
    command = ["-m", "prism_plugin.cli", "train", "--data", data, "--target", "e", "--epochs", 1]
    sizes = ["--set", "dim=8", "--set", "num_layers=1", "--unit", "eV/Å", "--out", tmp_path / "run"]
    result = processes.run([*command, *sizes], PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert r"eV/\xc5" in result.stdout


def test_labels_in_other_units_are_refused(tmp_path: Path, capsys) -> None:
    atoms = bulk("Cu") * (2, 1, 1)
    frames = []
    for number in range(12):
        atoms.info = {"REF_energy": -3.0, "stress": np.full((3, 3), 7.0), "id": f"a{number}"}
        atoms.arrays["REF_forces"] = np.full((2, 3), 0.1)
        atoms.positions[0, 0] += 0.01
        frames.append(atoms.copy())
    write(tmp_path / "x.extxyz", frames)
    command = ["train", "--data", str(tmp_path / "x.extxyz"), "--target", "pes", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 2
    assert "none of the 12 rows has the pair 'energy' and 'forces'; there are: REF_forces" in capsys.readouterr().err
    assert cli.main([*command, "--energy-key", "REF_energy", "--forces-key", "REF_forces"]) == 2
    assert "has a stress of 7 eV/Å^3: is it in GPa or kbar?" in capsys.readouterr().err


def test_an_optimizer_that_a_file_names_is_not_imported_unasked(
    data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "nobodys.py").write_text("open('ran', 'w').close()\nfrom torch.optim import SGD as Fast\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "c.toml").write_text('optimizer = "nobodys.Fast"\nlr = 0.01\nepochs = 1\n')
    command = ["train", "--config", "c.toml", "--data", str(data), "--target", "e", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 2
    assert "a file names the optimizer 'nobodys.Fast', which would be imported" in capsys.readouterr().err
    assert not Path("ran").exists()
    assert cli.main([*command, "--trust", "--set", "dim=8", "--set", "num_layers=1"]) == 0
    assert Path("ran").exists()
