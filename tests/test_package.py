"""The package as a user gets it: import costs nothing, every package ships, doctests and README hold."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import prism_plugin
from prism_plugin import load
from tests import processes

ROOT = Path(__file__).parents[1]
# Of the extra that lies beside the environment; it has no examples.
BESIDE = "prism_plugin.graph.device_search"
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(prism_plugin.__path__, "prism_plugin.")
    if "__main__" not in name and name != BESIDE
)


def test_import_does_no_work() -> None:
    code = "import prism_plugin, sys; print(sorted({'torch', 'matgl', 'dgl', 'ase', 'lightning'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert out.stderr == ""


def test_everything_but_dgl_graphs_works_without_dgl() -> None:
    code = (
        "import sys; sys.modules['dgl'] = None\n"
        "from ase.build import bulk\n"
        "from prism_plugin import PRISM, build_graph\n"
        "print(PRISM(dim=4, num_layers=1).predict_structure(bulk('Cu')).shape)\n"
        "try: build_graph(bulk('Cu')).to_dgl()\n"
        "except ImportError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch.Size([])" in out
    assert "pip install 'dgl==1.1.3'" in out


def test_a_home_that_cannot_be_written_does_not_matter() -> None:
    code = "import os, prism_plugin; print(prism_plugin.load().target, os.environ['HOME'])"
    environment = {**os.environ, "HOME": "/proc/nobody"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert out.stdout == "formation_energy /proc/nobody\n", out.stderr


def test_public_names_exist() -> None:
    for name in prism_plugin.__all__:
        public = getattr(prism_plugin, name)
        assert isinstance(public, Mapping) or public.__doc__
    assert set(prism_plugin.__all__) <= set(dir(prism_plugin))
    with pytest.raises(AttributeError, match="has no attribute 'Prism'"):
        prism_plugin.Prism  # noqa: B018


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        "prism_plugin",
        *(name for _, name, is_package in pkgutil.walk_packages(prism_plugin.__path__, "prism_plugin.") if is_package),
    }
    assert sorted(found) == sorted(listed)


@pytest.mark.slow
def test_the_wheel_holds_calculators_and_models(tmp_path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "prism_plugin/calculators/ase.py",
        "prism_plugin/calculators/torch_sim.py",
        "prism_plugin/matbench/leaderboard.json",
        "prism_plugin/nn/elements.csv",
        "prism_plugin/py.typed",
        *(
            f"prism_plugin/pretrained/{name}/{file}"
            for name in prism_plugin.available_models()
            for file in ("state.pt", "README.md", "domain.npz", "extent.npz")
        ),
    ):
        assert name in names
    assert not [name for name in names if name.startswith(("tests/", "calculators/", "build/"))]
    assert wheel.stat().st_size < 22e6


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("README.md", 1),
        ("docs/index.md", 1),
        ("docs/tutorials/screen.md", 2),
        ("docs/tutorials/train.md", 1),
        ("docs/tutorials/relax.md", 1),
        ("docs/tutorials/optimizers.md", 2),
        ("docs/simulate.md", 1),
        ("docs/elra.md", 2),
        ("docs/rod_flow.md", 1),
        ("docs/training.md", 1),
        ("docs/uncertainty.md", 1),
        ("docs/calculator.md", 2),
        ("docs/default_model.md", 2),
        ("docs/potential.md", 2),
    ],
)
# torch-sim's word for the few steps that docs/potential.md takes.
@pytest.mark.filterwarnings("ignore:Optimize has reached max steps")
@pytest.mark.filterwarnings("ignore:.*farther from the training crystals")
def test_the_code_in_the_texts_runs(name, count, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)
    assert len(blocks) == count
    if sys.version_info >= (3, 12):  # where torch-sim is 0.6
        blocks = [block for block in blocks if "torch_sim.frechet_cell_fire" not in block]
    shared: dict[str, object] = {}
    for block in blocks:
        goes_on = not block.startswith(("import", "from"))
        exec(compile(block, name, "exec"), shared if goes_on else (shared := {}))


@pytest.mark.parametrize(
    "example",
    [
        "01_predict.py",
        "02_train.py",
        "03_screen.py",
        "04_relax.py",
        "05_committee.py",
        "06_dynamics.py",
        "universal_potential.py",
        "elra_toy_problems.py",
        "elra_digits.py",
    ],
)
def test_examples_run(example: str, tmp_path) -> None:
    result = processes.run([ROOT / "examples" / example, "--dry-run"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize(
    "options",
    [(), ("--target", "metal", "--init", "prism-mp2018-eform"), ("--init", "prism-mp2018-eform")],
    ids=["new", "init", "again"],
)
def test_the_training_of_the_default_model_runs_and_resumes(options, shared_data, tmp_path) -> None:
    data = shared_data / "mp2018" / "tiny.jsonl.xz"
    command = [ROOT / "examples" / "train_default_model.py", data, tmp_path / "run", "--dry-run", *options]
    for _ in range(2):  # the second time there is nothing left to train
        result = processes.run(command)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "model" / "state.pt").exists()


def test_the_training_of_models_of_moduli_runs_and_resumes(tmp_path) -> None:
    data = tmp_path / "moduli.jsonl"
    rows = [
        {
            "id": f"copper {number}",
            "lattice": (np.eye(3) * (3.5 + 0.01 * number)).tolist(),
            "species": ["Cu"] * 4,
            "frac_coords": [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
            "G_vrh": 40.0 + number,
        }
        for number in range(30)
    ]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = [ROOT / "examples" / "elastic_models.py", data, tmp_path / "runs", "--target", "log10_g_vrh"]
    for folds in ("1", "5"):  # the second time the first one is done
        result = processes.run([*command, "--epochs", "1", "--folds", folds])
        assert result.returncode == 0, result.stderr
        told = [line for line in result.stdout.splitlines() if line.startswith("fold")]
        assert len(told) == int(folds)
    found = json.loads((tmp_path / "runs" / "cross_validation.json").read_text())
    assert found["crystals"] == 30
    assert found["mae"] == pytest.approx(np.mean(found["folds"]))
    assert load(tmp_path / "runs" / "model" / "model").unit == "log10(GPa)"
