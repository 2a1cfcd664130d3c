"""The prism command: help, training, interruption, demo, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import matgl
import pytest

from prism_plugin import cli
from prism_plugin.commands.demo import run_demo
from prism_plugin.tasks.regression import Regression
from tests import processes
from tests.conftest import alloy_file

MODEL = [
    "--set",
    "dim=8",
    "--set",
    "num_layers=1",
    "--set",
    "num_rbf=6",
    "--set",
    "cutoff=3.5",
    "--set",
    "cell_cutoff=5",
]
COMMON = ["train", "--target", "e", "--batch-size", "8", *MODEL]


@pytest.fixture
def data(tmp_path):
    return alloy_file(tmp_path, 30)


def test_help_lists_the_commands(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "train" in text
    assert "demo" in text


def test_train_writes_a_model_that_matgl_loads(data, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    arguments = [*COMMON, "--data", str(data), "--unit", "eV/atom", "--out", str(out), "--epochs", "2"]
    assert cli.main([*arguments, "--optimizer", "adam-onecycle", "--no-rotate", "--option", "weight_decay=1e-6"]) == 0
    assert "MAE of the mean" in capsys.readouterr().out
    assert matgl.load_model(out / "model").unit == "eV/atom"
    settings = json.loads((out / "settings.json").read_text())
    assert settings["optimizer"] == "adam-onecycle"
    sizes = {"dim": 8, "num_layers": 1, "num_rbf": 6, "cutoff": 3.5, "cell_cutoff": 5}
    assert settings["model"] == {**Regression.recipe["model"], **sizes}
    # fine-tuning starts from a saved model
    further = [*COMMON, "--data", str(data), "--out", str(tmp_path / "further"), "--epochs", "1"]
    assert cli.main([*further, "--init", str(out / "model")]) == 0


def test_train_on_a_named_data_set(tmp_path) -> None:
    out = tmp_path / "run"
    arguments = ["--data", "emt-alloys", "--target", "formation_energy", "--out", str(out), "--epochs", "1"]
    assert cli.main([*COMMON, *arguments]) == 0
    assert json.loads((out / "summary.json").read_text())["unit"] == "eV/atom"  # the data set knows it
    assert json.loads((out / "summary.json").read_text())["scores"]["train"]["crystals"] == 480


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data", "nowhere.jsonl"], "no data file 'nowhere.jsonl'"),
        (
            ["--optimizer", "torch.optim.Lion"],
            "cannot import the optimizer 'torch.optim.Lion' .*; install it",
        ),
        (["--optimizer", "torch.nn.Linear"], "'torch.nn.Linear' is no torch.optim.Optimizer"),
        (["--optimizer", "torch.optim.SparseAdam"], "'torch.optim.SparseAdam' cannot train here: .*dense gradients"),
        (["--optimizer", "torch.optim.RAdam", "--option", "beta=3"], "has no option 'beta'; choose one of: lr, betas"),
        (["--optimizer", "torch.optim.RAdam", "--option", "betas=3"], "refuses its options {'betas': 3}"),
        (["--optimizer", "lion"], "unknown optimizer 'lion'; choose one of: adam-onecycle, adamw-schedulefree"),
        (["--epochs", "0"], "epochs must be a whole number of at least 1, got 0"),
        (["--set", "fusion=max"], "unknown fusion 'max'"),
        (["--set", "layers=3"], "unknown model argument 'layers'; did you mean 'num_layers'"),
        (["--init", "no-such-model"], "no model 'no-such-model'"),
        (["--target", "gap"], "none of the 30 rows has the target 'gap'"),
        (["--device", "cuda"], "no CUDA device"),
    ],
    ids=str,
)
def test_a_mistake_ends_in_one_line(data, tmp_path, capsys, extra, message) -> None:
    arguments = [*COMMON, "--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "1", *extra]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("prism: error: ")
    assert re.search(message, error)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_resume_goes_on(data, tmp_path) -> None:
    out = tmp_path / "run"
    command = ["-m", "prism_plugin.cli", *COMMON, "--data", data, "--out", out, "--optimizer", "adamw-schedulefree"]
    process = processes.start([*command, "--epochs", "100000"])
    for _ in range(600):
        if (out / "checkpoints" / "last.ckpt").exists():
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60).returncode == 130
    assert f"interrupted; go on with: prism train --resume {out}" in process.stderr
    assert "Traceback" not in process.stderr
    done = max(int(row.split(",")[0]) for row in (out / "log/version_0/metrics.csv").read_text().splitlines()[1:])
    result = processes.run([*command[:2], "train", "--resume", out, "--epochs", done + 3])
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "summary.json").read_text())["epochs"] == done + 3


def test_demo_refuses_too_few_crystals(tmp_path, capsys) -> None:
    assert cli.main(["demo", "--crystals", "4", "--out", str(tmp_path / "demo")]) == 2
    assert "at least 20 crystals" in capsys.readouterr().err


def test_demo_runs_from_start_to_end(tmp_path, capsys) -> None:
    run_demo(tmp_path / "demo", crystals=60, epochs=2)
    run_demo(tmp_path / "demo", crystals=60, epochs=1)
    assert (tmp_path / "demo" / "run-1" / "parity.png").exists()
    assert (tmp_path / "demo" / "run-2" / "model" / "state.pt").exists()
    printed = capsys.readouterr().out
    assert "EMT says" in printed
    assert "MAE of the mean" in printed


def test_a_process_of_its_own_freezes_what_it_imported_and_shares_its_cores() -> None:
    script = (
        "import gc, sys; sys.argv = ['prism', 'models']; from prism_plugin import cli; cli.main({}); "
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    for given, chosen, ours, spins in (
        ("", {}, True, "1000"),
        ("['models']", {}, False, "300000"),
        ("", {"OMP_WAIT_POLICY": "passive"}, True, "0"),
    ):
        process = subprocess.run(
            [sys.executable, "-c", script.format(given)],
            capture_output=True,
            text=True,
            check=True,
            env={**environment, **chosen, "OMP_DISPLAY_ENV": "verbose"},
        )
        assert process.stdout.split()[-2:] == ["True", str(ours)]
        assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", process.stderr)) == {spins}


def test_threads_of_nested_regions_are_understood() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "4,1"}
    code = "import prism_plugin, numexpr; print(numexpr.nthreads)"  # pandas imports numexpr
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert found.stdout.strip() == "4", found.stderr


def test_a_reader_that_has_enough_ends_the_command() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    script = f"set -o pipefail; {sys.executable} -m prism_plugin.cli presets | true"
    found = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert (found.returncode, found.stderr) == (141, "")
