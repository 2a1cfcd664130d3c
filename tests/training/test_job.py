"""The experiments of the paper by name: the tables, short runs of all, config files, resuming after a kill."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import torch

import prism_plugin
from prism_plugin import PRISM, cli
from prism_plugin.data import DATASETS
from prism_plugin.preset import presets
from prism_plugin.training import TrainingSettings
from prism_plugin.training.job import Job, read_config
from tests import processes
from tests.conftest import SHARED, alloy_file

# The rows of the supplement's tables, by what is written in their first column.
ROWS = {
    "JARVIS": {
        "Formation Energy": "jarvis/formation_energy",
        "Band Gap (OPT)": "jarvis/band_gap_opt",
        "Total Energy": "jarvis/total_energy",
        "Band Gap (MBJ)": "jarvis/band_gap_mbj",
        r"$E_{\text{hull}}$": "jarvis/e_hull",
    },
    "Materials Project": {
        "Formation Energy": "mp/formation_energy",
        "Band Gap": "mp/band_gap",
        "Shear Moduli": "mp/shear_modulus",
        "Bulk Moduli": "mp/bulk_modulus",
    },
    "Matbench": {"e_form": "matbench/mp_e_form", "jdft2d": "matbench/jdft2d"},
}


def number(text: str) -> float:
    """Read a number as the tables print it: a power of ten in TeX, or plain, or with Å."""
    power = re.search(r"\$1 \\times 10\^\{(-?\d+)\}\$", text)
    return 10.0 ** int(power[1]) if power else float(text.removesuffix(" Å"))


def supplement_rows(text: str) -> dict[str, list[str]]:
    """Preset -> the cells of its row, read from the supplement."""
    found = {}
    tables = re.findall(
        r"Table [234]: Hyperparameters for the (\S+(?: \S+)??) (?:dataset|tasks)\.\n\n(.*?)\n\n", text, re.S
    )
    for name, body in tables:
        head, *lines = body.split("\n")
        assert head.split("\t")[1:4] == ["Optimizer", "LR", r"$(\beta_1, \beta_2)$"]
        for line in lines:
            cells = line.split("\t")
            found[ROWS[name][cells[0]]] = cells
    return found


def test_presets_are_the_rows_of_the_supplement() -> None:
    paper = SHARED / "papers" / "prism_supplement.txt"
    if not paper.exists():
        pytest.skip("../shared/papers is not here: the supplement is not part of the project")
    text = paper.read_text()
    rows = supplement_rows(text)
    not_of_the_tables = ("mp2018/", "icomformer/", "ecomformer/")
    assert rows.keys() == {name for name in presets if not name.startswith(not_of_the_tables)}
    assert len(rows) == 11
    for name, cells in rows.items():
        _, optimizer, lr, betas, scheduler, decay, epochs, rotate, r_c, cell_cutoff, r_f = cells
        preset = presets[name]
        assert preset.optimizer == {"AdamW-ScheduleFree": "adamw-schedulefree", "Adam": "adam-onecycle"}[optimizer]
        assert (scheduler == "OneCycle") == (preset.optimizer == "adam-onecycle")
        assert (preset.lr, preset.weight_decay) == (number(lr), number(decay))
        assert f"({preset.betas[0]:g}, {preset.betas[1]:g})" == betas
        assert preset.epochs == int(epochs)
        assert preset.rotate == (rotate == "Yes")
        assert (preset.model["cutoff"], preset.cell_cutoff) == (number(r_c), number(cell_cutoff))
        assert preset.model["similarity_cutoff"] == number(r_f)
        assert (preset.batch_size, preset.model["num_layers"], preset.model["dim"]) == (64, 4, 256)
        assert preset.dropout == (0.5 if name == "matbench/jdft2d" else 0.0)
    assert "we insert a dropout layer (rate 0.5)" in text
    assert "pct\\_start=0.01" in text


def test_presets_are_public_and_complete() -> None:
    assert prism_plugin.presets is presets
    for preset in presets.values():
        assert preset.target in DATASETS[preset.data].targets
        TrainingSettings(target=preset.target, **preset.settings())  # refuses whatever does not exist


def test_prism_presets_prints_them(capsys) -> None:
    assert cli.main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(presets)
    last = "matbench/jdft2d adamw-schedulefree 0.001 0.95, 0.999 1e-06 5000 yes 5 Å 15 Å 1 0.5"
    assert last in [" ".join(line.split()) for line in lines]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return alloy_file(tmp_path_factory.mktemp("data"), 30)


@pytest.mark.usefixtures("pictures")
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(presets))
def test_every_preset_trains(data, tmp_path, name) -> None:
    run = tmp_path / "run"
    small = ["--epochs", "2", "--batch-size", "12", "--set", "dim=8", "--set", "num_rbf=8"]
    assert cli.main(["train", "--preset", name, "--data", str(data), "--target", "e", "--out", str(run), *small]) == 0
    kept = json.loads((run / "settings.json").read_text())
    wanted = presets[name].settings()
    assert kept["options"] == {**wanted["options"], "betas": list(wanted["options"]["betas"])}
    assert kept["model"] == json.loads(json.dumps({**wanted["model"], "dim": 8, "num_rbf": 8}))
    assert (kept["optimizer"], kept["rotate"], kept["lr"]) == (wanted["optimizer"], wanted["rotate"], wanted["lr"])
    several = len(PRISM(**kept["model"]).fusion_weights().get("atoms", [{}])[0]) > 1
    for file in ("parity", "elements", "learning_curve", *(["fusion"] if several else [])):
        assert (run / f"{file}.png").stat().st_size > 10_000
    assert several or not (run / "fusion.png").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert {"mae", "rmse"} <= summary["scores"]["test"].keys()
    assert summary["versions"].keys() >= {"torch", "matgl", "prism-plugin"}
    assert summary["seed"] == 0
    assert cli.main(["train", "--resume", str(run)]) == 0


# --- config files ---------------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_config_file_and_that_over_the_preset(tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('preset = "matbench/jdft2d"\nbatch-size = 16\nepochs = 7\n[model]\ndim = 32\ndropout = 0.25\n')
    job = Job.make({"epochs": 9, "model": {"dim": 64}}, read_config(path))
    assert (job.settings.epochs, job.settings.batch_size) == (9, 16)
    assert job.settings.model["dim"] == 64
    assert job.settings.model["dropout"] == 0.25
    assert job.settings.model["cell_cutoff"] == 15.0
    assert (job.settings.target, job.settings.unit) == ("exfoliation_energy", "meV/atom")
    assert job.settings.options["betas"] == (0.95, 0.999)
    other = Job.make({"optimizer": "muon"}, read_config(path))  # the preset's options are those of another optimizer
    assert other.settings.options == {}
    assert other.settings.lr is None
    assert Job.make({"data": "matbench_phonons", "fold": 0}).settings.target == "last_phdos_peak"  # it has one only


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 3}', "unknown name 'epoch' in the config file .*; did you mean 'epochs'?"),
        ('{"zzz": 3}', "unknown name 'zzz' .*; choose one of: target, unit"),
        ('{"model": 3}', "in the config file .*: model must be a table of named values, got 3"),
        ('{"epochs": "ten"}', "in the config file .*: epochs must be a whole number of at least 1, got 'ten'"),
        ('{"epochs": true}', "epochs must be a whole number of at least 1, got True"),
        ('{"rotate": "no"}', "in the config file .*: rotate must be True or False, got 'no'"),
        ('{"lr": "fast"}', "in the config file .*: lr must be a positive number, got 'fast'"),
        ('{"data": 3}', "in the config file .*: data must be a text, got 3"),
        ('{"preset": ["a"]}', "in the config file .*: preset must be a text, got"),
        ("[3]", "must hold named values, got list"),
        ("{", "is no json"),
    ],
)
def test_bad_config_files_are_refused(tmp_path, text, message) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(path)


def test_what_is_missing_or_unknown_is_said() -> None:
    for given, message in (
        ({}, "--data is missing; give it, or a --preset"),
        ({"data": "x.jsonl"}, "--target is missing"),
        ({"preset": "jarvis/gap"}, "no preset 'jarvis/gap'; choose one of: jarvis/formation_energy"),
        ({"data": "jarvis", "target": "gap"}, "no target 'gap' there"),
    ):
        with pytest.raises(ValueError, match=message):
            Job.make(given)


# --- resuming -------------------------------------------------------------------------------------------------------

KILL = """
import os, signal, sys
from prism_plugin import cli
from prism_plugin.training import PropertyTraining
step, calls = PropertyTraining.training_step, 0
def killed(self, batch, batch_idx):
    global calls
    calls += 1
    if calls == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
PropertyTraining.training_step = killed
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw-schedulefree", "adam-onecycle", "torch.optim.RAdam"])
def test_a_run_killed_in_mid_epoch_ends_with_the_same_weights(data, tmp_path, optimizer, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = [
        "--epochs",
        "4",
        "--batch-size",
        "4",
        "--set",
        "dim=8",
        "--set",
        "num_layers=2",
        "--set",
        "dropout=0.5",
        "--set",
        "cell_cutoff=6.0",
    ]
    command = ["train", "--data", str(data), "--target", "e", "--optimizer", optimizer, *small]
    assert cli.main([*command, "--out", str(tmp_path / "whole")]) == 0
    run = tmp_path / "killed"
    # 24 training crystals are 6 batches an epoch: the 16th is in the middle of the third
    dead = processes.run(["-c", KILL, 16, *command, "--out", run])
    assert dead.returncode == -signal.SIGKILL
    assert not (run / "model").exists()
    assert cli.main(["train", "--resume", str(run)]) == 0
    whole, resumed = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "killed"))
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    assert (tmp_path / "whole" / "predictions.csv").read_text() == (run / "predictions.csv").read_text()


def test_only_some_things_may_change_beside_resume(data, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    small = ["--set", "dim=8", "--set", "num_layers=1", "--set", "cell_cutoff=6.0", "--batch-size", "12"]
    cached = ["--cache", str(tmp_path / "cache"), "--optimizer", "adamw-schedulefree"]
    begin = ["train", "--data", str(data), "--target", "e", "--out", str(run), "--epochs", "1", *small, *cached]
    assert cli.main(begin) == 0
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1  # all parts together
    for arguments, message in (
        (
            ["--resume", str(run), "--lr", "0.1"],
            "goes on with its own lr; beside --resume only these may change",
        ),
        (["--resume", str(tmp_path)], "there is no run of prism train in"),
        (["--resume", str(run), "--config", "x.toml"], "leave --config out beside --resume"),
        (["--data", str(data), "--target", "e", "--out", str(run)], "holds a run already; go on with it"),
    ):
        assert cli.main(["train", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(run), "--epochs", "2"]) == 0
    # the values it keeps start another run just like it
    again = tmp_path / "again"
    assert cli.main(["train", "--config", str(run / "config.json"), "--epochs", "2", "--out", str(again)]) == 0
    assert (again / "predictions.csv").read_text() == (run / "predictions.csv").read_text()


def test_a_folder_named_like_a_data_set_does_not_hide_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--set", "dim=8", "--set", "num_layers=1", "--set", "cell_cutoff=5.0", "--epochs", "1"]
    command = ["train", "--data", "emt-alloys", "--preset", "jarvis/formation_energy", "--optimizer", "muon", *small]
    assert cli.main([*command, "--out", "emt-alloys"]) == 0
    # the preset's options were those of another optimizer: they do not come back
    assert cli.main(["train", "--resume", "emt-alloys"]) == 0
    monkeypatch.setenv("SLURM_PROCID", "1")  # one process of one, wherever it was started
    assert cli.main([*command, "--out", "emt-alloys"]) == 2


def test_another_backbone_takes_of_the_recipe_what_it_has() -> None:
    given = {"data": "mine.extxyz", "target": "e", "unit": "eV"}
    model = Job.make(given).settings.model
    assert {"rbf_scale", "directions"} <= model.keys()
    other = Job.make({**given, "model": {"backbone": "icomformer"}}).settings.model
    assert other == {
        **{name: value for name, value in model.items() if name not in ("rbf_scale", "directions")},
        "backbone": "icomformer",
    }
    PRISM(element_types=("Na", "Cl"), **other)
    # What a file says is not the recipe's to be left out.
    kept = Job.make({"model": {"backbone": "icomformer"}}, {**given, "model": {"directions": False}}).settings.model
    with pytest.raises(ValueError, match="directions: of CartNet's edges"):
        PRISM(element_types=("Na", "Cl"), **kept)


def test_a_start_from_a_trained_model_has_a_recipe_of_its_own(tmp_path) -> None:
    given = {"data": "mine.extxyz", "target": "e", "init": "prism-mp2018-eform"}
    settings = Job.make(given).settings
    assert (settings.optimizer, settings.lr, settings.epochs, settings.batch_size) == ("muon", 2e-3, 40, 16)
    changed = Job.make({**given, "epochs": 3, "optimizer": "adamw-schedulefree"}).settings
    assert (changed.optimizer, changed.lr, changed.epochs, changed.clip) == ("adamw-schedulefree", None, 3, None)
    preset = Job.make({**given, "preset": "mp2018/band_gap"}).settings
    assert (preset.lr, preset.epochs) == (presets["mp2018/band_gap"].lr, presets["mp2018/band_gap"].epochs)
    # What a run began with stays, whatever the recipes say now.
    for values in (
        {**given, "preset": "jarvis/e_hull", "optimizer": "muon"},
        given,
        {"data": "mine.extxyz", "target": "e"},
    ):
        began = Job.make(values)
        (tmp_path / "run").mkdir(exist_ok=True)
        began.save(tmp_path / "run")
        assert Job.resumed(tmp_path / "run", {}).settings == began.settings
