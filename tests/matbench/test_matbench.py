"""Matbench: its folds, runs that are killed and go on, submissions that its own code takes, and what is refused.

The data are alloys in the format of the tasks' files; folds, records, scores and validation are matbench's own.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from matbench import bench, metadata, task
from matbench.util import RecursiveDotDict
from monty.serialization import loadfn

from prism_plugin import PRISM
from prism_plugin.data import DATASETS
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.matbench_files import matbench_folds, write_matbench_file
from prism_plugin.graph.crystals import CrystalGraph
from prism_plugin.matbench import TASKS, TaskRun, assemble
from prism_plugin.matbench import task_run as run_module
from prism_plugin.matbench.official import check_results, fold_names, leaderboard, official_hash
from prism_plugin.matbench.task_run import key_of
from tests import processes
from tests.data.test_datasets import put_matbench
from tests.processes import Started

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "examples" / "matbench"
JDFT2D = "matbench_jdft2d"
SIZES = {"dim": 8, "num_layers": 1, "num_rbf": 6, "cutoff": 3.5, "cell_cutoff": 6.0}
SMALL = {"model": SIZES, "epochs": 1}


def run_script(name: str, *arguments: object, cwd: Path | None = None) -> Started:
    return processes.run([SCRIPTS / name, *arguments], cwd)


@pytest.fixture(scope="module")
def frame(tmp_path_factory) -> Path:
    """636 alloys in the format of jdft2d."""
    path = tmp_path_factory.mktemp("data") / "jdft2d.json.gz"
    write_matbench_file(JDFT2D, emt_alloys(636), path)
    return path


@pytest.fixture(scope="module")
def finished(frame, tmp_path_factory) -> Path:
    """The folder of a whole run with two seeds; nobody may change it."""
    out = tmp_path_factory.mktemp("runs")
    return TaskRun.prepare(JDFT2D, SMALL, frame).run(out, seeds=(0, 1), progress=False)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of that run to spoil."""
    keep = shutil.ignore_patterns("seed-?")  # without the run folders of the trainings
    return Path(shutil.copytree(finished, tmp_path / "runs" / finished.name, ignore=keep))


def make(folder: Path, out: Path, **more: object) -> str:
    given = {"authors": "A. Author", "scripts": [SCRIPTS / "run.py"], "allow_local_data": True}
    return assemble([folder], out, **{**given, **more})


# --- folds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TASKS if name != "matbench_mp_is_metal"])
def test_folds_are_those_of_matbench(name) -> None:
    official = [fold_names(name, fold) for fold in range(5)]
    prefix = name.replace("matbench", "mb").replace("_", "-")
    size = len(official[0][0]) + len(official[0][1])
    digits = len(str(size))
    for ours, theirs in zip(matbench_folds(size), official, strict=True):
        for indices, names in zip(ours, theirs, strict=True):
            assert [f"{prefix}-{index + 1:0{digits}d}" for index in indices] == names


def test_folds_of_the_classification_are_stratified() -> None:
    """Without the classes: matbench's folds must be an interleaving of what StratifiedKFold gives each class."""
    size, positives = 106_113, round(0.43492314796490533 * 106_113)  # from matbench's own metadata
    fold_of = np.empty(size, dtype=int)
    for fold in range(5):
        _, test = fold_names("matbench_mp_is_metal", fold)
        fold_of[[int(name.rsplit("-", 1)[1]) - 1 for name in test]] = fold

    def of_classes(first: int) -> tuple[np.ndarray, np.ndarray]:
        classes = np.repeat([0.0, 1.0], [first, size - first])
        given = np.empty(size, dtype=int)
        for fold, (_, test) in enumerate(matbench_folds(size, classes)):
            given[test] = fold
        return given[:first], given[first:]

    assert is_interleaving(fold_of, *of_classes(size - positives))  # the first crystal is no metal
    assert not is_interleaving(fold_of, *of_classes(positives))
    swapped = fold_of.copy()
    swapped[[1, -1]] = (swapped[[1, -1]] + 1) % 5
    assert not is_interleaving(swapped, *of_classes(size - positives))


def is_interleaving(whole: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    """Whether a sequence can be parted into two others, each in its order."""
    taken = np.array([0])  # how many of the first may be used up so far
    for place, value in enumerate(whole):
        of_one = taken[taken < len(one)]
        of_other = taken[place - taken < len(other)]
        taken = np.union1d(
            of_one[one[of_one] == value] + 1,
            of_other[other[place - of_other] == value],
        )
        if not len(taken):
            return False
    return True


def test_crystals_and_their_order_are_those_that_matbench_reads(frame, tmp_path, monkeypatch) -> None:
    shutil.copy(frame, tmp_path / f"{JDFT2D}.json.gz")
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path))  # matbench and matminer read our file as their own
    theirs = task.MatbenchTask(JDFT2D, autoload=True)
    ours = TaskRun.prepare(JDFT2D, SMALL, frame)
    for fold in (0, 3):
        parts = ours.parts(fold, seed=7)
        inputs, targets = theirs.get_test_data(fold, include_target=True)
        assert [record.name for record in parts["test"]] == list(inputs.index)
        np.testing.assert_allclose([record.target for record in parts["test"]], targets)
        for record, structure in zip(parts["test"][:20], inputs[:20], strict=True):
            np.testing.assert_allclose(record.atoms.positions, structure.cart_coords, atol=1e-12)
            assert [site.specie.symbol for site in structure] == list(record.atoms.symbols)
        inputs, _ = theirs.get_train_and_val_data(fold)
        both = sorted(record.name for part in ("train", "val") for record in parts[part])
        assert both == sorted(inputs.index)
        assert len(parts["val"]) == 50
        assert [r.name for r in parts["val"]] != [r.name for r in ours.parts(fold, seed=8)["val"]]


# --- a submission -----------------------------------------------------------------------------------------------------


def check_submission(folder: Path) -> None:
    """What the repository's ``scripts/test_submission.py`` asks of a folder, in its stricter version."""
    files = {path.name for path in folder.iterdir()}
    assert {"info.json", "results.json.gz"} <= files
    assert any(name.endswith((".py", ".ipynb")) for name in files)
    assert ".ipynb_checkpoints" not in files
    assert all(path.stat().st_size <= 10e6 for path in folder.iterdir() if path.name != "results.json.gz")
    info = loadfn(folder / "info.json")
    assert "notes" in info
    for name in ("authors", "algorithm", "algorithm_long", "bibtex_refs", "requirements"):
        assert info[name]
    with gzip.open(folder / "results.json.gz", "rt") as file:  # BadGzipFile unless it is a true gzip
        benchmark = bench.MatbenchBenchmark.from_dict(json.load(file))
    assert benchmark.is_valid
    assert benchmark.is_recorded


@pytest.mark.usefixtures("pictures")
def test_a_submission_is_taken_and_its_numbers_are_right(finished, tmp_path) -> None:
    report = make(finished, tmp_path / "out", notes="Two cores.", algorithm="PRISM 1")
    folder = tmp_path / "out" / "matbench_v0.1_PRISM_1_local"
    check_submission(folder)
    info = json.loads((folder / "info.json").read_text())
    assert info["authors"] == "A. Author"
    assert info["notes"].startswith("Two cores. NOT A SUBMISSION: matbench_jdft2d ran on other data")
    assert "mean of 2 training(s) with seed 0, 1" in info["notes"]
    assert {"matbench==0.6", f"torch=={version('torch')}"} <= set(info["requirements"]["python"])
    assert (folder / "run.py").read_bytes() == (SCRIPTS / "run.py").read_bytes()
    benchmark = check_results(folder / "results.json.gz")
    results = benchmark.tasks_map[JDFT2D].results
    errors = []
    for fold in range(5):
        seeds = [json.loads((finished / f"fold-{fold}" / f"seed-{seed}.json").read_text())["rows"] for seed in (0, 1)]
        recorded = results[f"fold_{fold}"]
        assert list(recorded.parameters.seeds) == [0, 1]
        assert recorded.parameters.configuration.preset == JDFT2D.replace("_", "/")
        for name, (target, one) in seeds[0].items():
            other = seeds[1][name][1]
            assert recorded.data[name] == pytest.approx((one + other) / 2, rel=1e-12)
            assert recorded.uncertainty[name]["std"] == pytest.approx(abs(one - other) / 2**0.5, rel=1e-6)
            errors.append(abs((one + other) / 2 - target))
    means = [
        np.mean(errors[start:end])
        for start, end in zip([0, 128, 255, 382, 509], [128, 255, 382, 509, 636], strict=True)
    ]
    assert benchmark.scores[JDFT2D].mae.mean == pytest.approx(np.mean(means))
    assert benchmark.scores[JDFT2D].mae.std == pytest.approx(np.std(means))
    assert f"mean {np.mean(means):.4f} +- {np.std(means):.4f}" in report
    assert "MODNet (v0.1.12)                          33.1918 +- 7.3428" in report
    assert report.splitlines()[-1].startswith("-> PRISM 1 (on other data)")  # not ranked
    pictures = {path.name for path in (tmp_path / "out" / "matbench_v0.1_PRISM_1_local-pictures").iterdir()}
    assert pictures == {f"{JDFT2D}.png", f"{JDFT2D}-predictions.png"}


def test_a_finished_fold_is_kept(finished, frame, monkeypatch, capsys) -> None:
    monkeypatch.setattr(run_module, "train", lambda *_, **__: pytest.fail("nothing is left to train"))
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("seed-*.json")}
    assert TaskRun.prepare(JDFT2D, SMALL, frame).run(finished.parent, seeds=(1, 0), progress=False) == finished
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("seed-*.json")} == before
    assert capsys.readouterr().out.count("meV/atom on test") == 10


@pytest.mark.slow
def test_a_run_killed_in_fold_3_ends_with_the_same_files(frame, tmp_path) -> None:
    sizes = [text for name, value in SIZES.items() for text in ("--set", f"{name}={value}")]
    command = ["--task", JDFT2D, "--data", frame, "--epochs", 3, "--batch-size", 32, *sizes]
    undisturbed = run_script("run.py", *command, "--out", tmp_path / "whole")
    assert undisturbed.returncode == 0, undisturbed.stderr
    (whole,) = (tmp_path / "whole").iterdir()
    killed = tmp_path / "killed" / whole.name
    process = processes.start([SCRIPTS / "run.py", *command, "--out", tmp_path / "killed"])
    checkpoint = killed / "fold-3" / "seed-0" / "checkpoints" / "last.ckpt"
    while not checkpoint.exists() and process.returncode is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    assert not (killed / "fold-3" / "seed-0.json").exists()
    done = {path: path.stat().st_mtime_ns for path in killed.glob("fold-[012]/seed-0.json")}
    assert len(done) == 3
    again = run_script("run.py", *command, "--out", tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in killed.glob("fold-[012]/seed-0.json")} == done
    for fold in range(5):
        name = f"fold-{fold}/seed-0.json"
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assembled = []
    for folder, out in ((whole, "one"), (killed, "two")):
        result = run_script("assemble.py", folder, "--authors", "A", "--allow-local-data", "--out", tmp_path / out)
        assert result.returncode == 0, result.stderr
        path = tmp_path / out / "matbench_v0.1_PRISM_local" / "results.json.gz"
        content = json.loads(gzip.decompress(path.read_bytes()))
        assembled.append({name: value for name, value in content.items() if name not in ("datestamp", "hash")})
    assert assembled[0] == assembled[1]


def test_processes_that_share_a_folder_share_the_work(frame, tmp_path, capsys) -> None:
    run = TaskRun.prepare(JDFT2D, SMALL, frame)
    busy = run.folder(tmp_path) / "fold-1" / "seed-0.lock"
    busy.parent.mkdir(parents=True)
    code = (
        f"import sys; from filelock import FileLock\nwith FileLock({str(busy)!r}): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        run.run(tmp_path, folds=[1, 2], progress=False)
        assert "fold 1, seed 0: another process is at it" in capsys.readouterr().out
        assert not (busy.parent / "seed-0.json").exists()
        assert (busy.parents[1] / "fold-2" / "seed-0.json").exists()
        other.kill()
    run.run(tmp_path, folds=[1], progress=False)  # a lock does not outlive its process
    assert (busy.parent / "seed-0.json").exists()


def test_an_edited_configuration_is_not_gone_on_with(copied, frame) -> None:
    edit(copied, preset="another")
    with pytest.raises(ValueError, match=r"configuration\.json is damaged or was edited; delete it and repeat"):
        TaskRun.prepare(JDFT2D, SMALL, frame).run(copied.parent, progress=False)
    (copied / "configuration.json").unlink()
    TaskRun.prepare(JDFT2D, SMALL, frame).run(copied.parent, progress=False)  # nothing is left to train
    make(copied, copied.parent / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_from_its_file_to_a_submission(name, tmp_path, monkeypatch) -> None:
    """With 40 crystals in place of the task's, matbench's lists of folds and its hash changed to fit."""
    classes = name == "matbench_mp_is_metal"
    values = [bool(number % 3) if classes else number / 7 for number in range(40)]
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path / "matminer"))
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
    put_matbench(tmp_path / "matminer", monkeypatch, name.removeprefix("matbench_"), values)
    path = tmp_path / "matminer" / f"{name}.json.gz"
    monkeypatch.setitem(metadata.mbv01_metadata[name], "hash", hashlib.sha256(path.read_bytes()).hexdigest())
    names = np.array([f"{name.replace('matbench', 'mb').replace('_', '-')}-{number:02d}" for number in range(1, 41)])
    folds = {
        f"fold_{fold}": {"train": names[train].tolist(), "test": names[test].tolist()}
        for fold, (train, test) in enumerate(matbench_folds(40, values if classes else None))
    }
    monkeypatch.setitem(task.mbv01_validation.splits, name, RecursiveDotDict(folds))
    run = TaskRun.prepare(name, SMALL)
    assert run.settings.unit == DATASETS[name].targets[run.settings.target].unit
    folder = run.run(tmp_path / "runs", progress=False)
    assert len([path for path in (tmp_path / "cache" / "graphs").iterdir() if path.is_dir()]) == 1  # of all folds
    report = make(folder, tmp_path / "out", allow_local_data=False)
    check_submission(tmp_path / "out" / "matbench_v0.1_PRISM")
    assert sum(line.startswith("-> PRISM ") for line in report.splitlines()) == 1
    assert leaderboard(name)[0][0] in report
    if classes:
        assert "ROC AUC of the probabilities" in report
        results = check_results(tmp_path / "out" / "matbench_v0.1_PRISM" / "results.json.gz").tasks_map[name].results
        assert all(0 < value < 1 for value in results.fold_0.data.values())


@pytest.mark.slow
def test_predictions_of_all_106113_classes_are_taken(tmp_path) -> None:
    name = "matbench_mp_is_metal"
    configuration = {"task": name, "data_sha256": official_hash(name), "preset": "p", "validation": "v"}
    configuration.update(settings={"model": {}}, prism_plugin="0")
    folder = tmp_path / f"{name}-{key_of(configuration)}"
    rng = np.random.default_rng(0)
    for fold in range(5):
        (folder / f"fold-{fold}").mkdir(parents=True)
        _, names = fold_names(name, fold)
        classes = rng.random(len(names)) < 0.43
        chances = np.clip(classes * 0.5 + rng.random(len(names)) * 0.6, 0, 1)
        content = {"task": name, "configuration": folder.name.rsplit("-", 1)[1], "fold": fold, "seed": 0}
        content |= {"best_epoch": 0, "validation": {}, "versions": {}}
        rows = {one: [float(true), chance] for one, true, chance in zip(names, classes, chances, strict=True)}
        sign(folder / f"fold-{fold}" / "seed-0.json", {**content, "rows": rows})
    (folder / "configuration.json").write_text(json.dumps(configuration))
    report = make(folder, tmp_path / "out", allow_local_data=False)
    check_submission(tmp_path / "out" / "matbench_v0.1_PRISM")
    scores = check_results(tmp_path / "out" / "matbench_v0.1_PRISM" / "results.json.gz").scores[name]
    assert scores.rocauc.mean == pytest.approx(scores.balanced_accuracy.mean)  # decisions #50: labels, not chances
    assert "ROC AUC of labels" in report


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "fold-3" / "seed-1.json").unlink(), "not complete: fold 3 seed 1 missing"),
        (lambda folder: shutil.rmtree(folder / "fold-4"), "not complete: fold 4 seed 0, fold 4 seed 1 missing"),
        (lambda folder: cut(folder / "fold-2" / "seed-0.json"), "seed-0.json is damaged .*; delete it, and the fold"),
        (lambda folder: (folder / "fold-2" / "seed-0.json").write_text("[]"), "seed-0.json is damaged"),
        (
            lambda folder: change(folder, configuration="0" * 12),
            "is of task matbench_jdft2d, configuration 0000",
        ),
        (lambda folder: change(folder, fold=1), "fold 1, seed 0, not of .*: configurations are not mixed"),
        (lambda folder: change_target(folder, 1e6), r"seed-0\.json is damaged or was edited; delete it"),
        (lambda folder: change_target(folder, float("nan")), r"seed-0\.json is damaged or was edited; delete it"),
        (
            lambda folder: edit(folder, preset="another"),
            "should be called .*: was the folder renamed, or",
        ),
        (lambda folder: (folder / "configuration.json").write_text("{"), r"configuration\.json is damaged"),
        (lambda folder: (folder / "configuration.json").unlink(), "is no folder of examples/matbench/run.py"),
    ],
)
def test_a_spoiled_run_is_refused_and_nothing_is_written(copied, tmp_path, spoil, message) -> None:
    spoil(copied)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        make(copied, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def sign(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps({**content, "sha256": key_of(content)}))


def change(folder: Path, **values: object) -> None:
    """What belongs elsewhere, and is whole."""
    path = folder / "fold-2" / "seed-0.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    sign(path, {**content, **values})


def change_target(folder: Path, target: float) -> None:
    path = folder / "fold-2" / "seed-0.json"
    content = json.loads(path.read_text())
    first = next(iter(content["rows"]))
    content["rows"][first][0] = target
    path.write_text(json.dumps(content))


def edit(folder: Path, **values: object) -> None:
    path = folder / "configuration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_configurations_are_not_mixed(copied, frame, tmp_path) -> None:
    longer = TaskRun.prepare(JDFT2D, {**SMALL, "epochs": 2, "optimizer": "muon"}, frame)
    second = longer.folder(copied.parent)
    second.mkdir()
    (second / "configuration.json").write_text(json.dumps(longer.configuration))
    with pytest.raises(ValueError, match="and differ in epochs, lr, optimizer, options; name one of them"):
        make(copied.parent, tmp_path / "out")
    elsewhere = shutil.copytree(copied, tmp_path / "elsewhere" / copied.name)
    with pytest.raises(ValueError, match="are one run in two places; copy the files of one into the other"):
        assemble([copied, elsewhere], tmp_path / "out", "A", [SCRIPTS / "run.py"])
    other = {**longer.configuration, "task": "matbench_phonons", "prism_plugin": "0.0.9"}
    shutil.rmtree(second)
    third = copied.parent / f"matbench_phonons-{key_of(other)}"
    third.mkdir()
    (third / "configuration.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"the runs are of prism-plugin 0\.0\.9 and "):
        make(copied.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_submission_is_not_written_over_and_local_data_are_no_submission(copied, tmp_path) -> None:
    with pytest.raises(ValueError, match="the data are not the official ones, so this is no submission"):
        make(copied, tmp_path / "out", allow_local_data=False)
    shutil.copy(copied / "fold-0" / "seed-0.json", copied / "fold-0" / "seed-0 (copy).json")  # is nothing to it
    make(copied, tmp_path / "out")
    before = (tmp_path / "out" / "matbench_v0.1_PRISM_local" / "results.json.gz").read_bytes()
    with pytest.raises(FileExistsError, match="exists; move it away, or choose another --out or --algorithm"):
        make(copied, tmp_path / "out")
    assert (tmp_path / "out" / "matbench_v0.1_PRISM_local" / "results.json.gz").read_bytes() == before
    for bad, message in (
        ({"authors": " "}, "the authors are missing"),
        ({"algorithm": "../PRISM"}, "the name of the algorithm must be letters, digits and any of"),
        ({"algorithm": "coGN"}, "there is an algorithm 'coGN' on the leaderboard already"),
    ):
        with pytest.raises(ValueError, match=message):
            make(copied, tmp_path / "out", **bad)


def test_results_that_matbench_refuses_are_refused(finished, tmp_path) -> None:
    make(finished, tmp_path)
    path = tmp_path / "matbench_v0.1_PRISM_local" / "results.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"results\.json\.gz is no gzip"):
        check_results(path)
    content["tasks"][JDFT2D]["results"]["fold_0"]["data"]["mb-jdft2d-014"] = 1.0
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    with pytest.raises(ValueError, match=r"matbench does not take .*Hash of dictionary does not match"):
        check_results(path)


def test_predictions_that_are_not_finite_fail_the_fold(frame, tmp_path, monkeypatch) -> None:
    real = PRISM.predict_graphs

    def broken(model: PRISM, graphs: Sequence[CrystalGraph], *arguments: object, **named: object) -> torch.Tensor:
        answers = real(model, graphs, *arguments, **named)
        if len(graphs) == 128:  # the test part
            answers[5] = float("nan")
        return answers

    monkeypatch.setattr(PRISM, "predict_graphs", broken)
    run = TaskRun.prepare(JDFT2D, SMALL, frame)
    with pytest.raises(ValueError, match="predictions of 1 of 128 crystals of the test part are not finite"):
        run.run(tmp_path, folds=[0], seeds=[4], progress=False)
    assert not list(tmp_path.rglob("seed-4.json"))


def test_data_of_another_size_hash_or_length_are_refused_and_kept(frame, tmp_path, monkeypatch) -> None:
    write_matbench_file(JDFT2D, emt_alloys(20), tmp_path / "few.json.gz")
    with pytest.raises(ValueError, match=r"few\.json\.gz has 20 crystals, matbench_jdft2d has 636"):
        TaskRun.prepare(JDFT2D, SMALL, tmp_path / "few.json.gz")
    with pytest.raises(FileNotFoundError):
        TaskRun.prepare(JDFT2D, SMALL, tmp_path / "nowhere.json.gz")
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path))
    here = tmp_path / f"{JDFT2D}.json.gz"
    for content in (frame.read_bytes(), frame.read_bytes()[:-100]):  # another file; a download that ended early
        here.write_bytes(content)
        with pytest.raises(ValueError, match=r"wrong SHA-256 .* delete it, and it will be fetched again from https"):
            TaskRun.prepare(JDFT2D, SMALL)
        assert here.read_bytes() == content
    with pytest.raises(ValueError, match="is truncated, damaged or not compressed"):
        TaskRun.prepare(JDFT2D, SMALL, here)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "matbench_steels"], "no structure task 'matbench_steels' in Matbench; choose one of"),
        (["--task", JDFT2D, "--fold", "1", "1"], "give each fold once, got [1, 1]"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, frame) -> None:
    result = run_script("run.py", *arguments, "--data", frame)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_bad_values_are_named(frame, tmp_path) -> None:
    for given, message in (
        ({"preset": "matbench/jdft"}, "no preset 'matbench/jdft'; choose one of"),
        ({"optimizer": "adamm"}, "adamm"),
        ({"model": {"width": 3}}, "unknown model argument 'width'"),
        ({"epoch": 9, "seed": 1}, "unknown here: epoch, seed; what can be given is: .*epochs"),
        ({"model": {"task_type": "classification"}}, "is a regression, the model's task_type cannot be changed"),
    ):
        with pytest.raises(ValueError, match=message):
            TaskRun.prepare(JDFT2D, given, frame)
    run = TaskRun.prepare(JDFT2D, SMALL, frame)
    for folds, seeds, message in (
        ([5], [0], "Matbench has the folds 0 to 4, got 5"),
        ([], [0], r"give each fold once, got \[\]"),
        ([0], [1, 1], r"give each seed once, got \[1, 1\]"),
        ([0], [-1], "a seed is a whole number of at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            run.run(tmp_path, folds, seeds, progress=False)
    assert not list(tmp_path.rglob("seed*"))
    with pytest.raises(ValueError, match="dim must be a whole number of at least 2 and at most 4096, got 'wide'"):
        TaskRun.prepare(JDFT2D, {**SMALL, "model": {**SIZES, "dim": "wide"}}, frame)
    assert not list(tmp_path.rglob("configuration.json"))  # nothing that could be taken for a run


def test_a_dry_run_says_what_it_would_take_and_keeps_nothing(frame, tmp_path) -> None:
    sizes = [text for name, value in SIZES.items() for text in ("--set", f"{name}={value}")]
    result = run_script("run.py", "--task", JDFT2D, "--data", frame, *sizes, "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "fold 0: 458 for train, 50 for val, 128 for test" in result.stdout
    assert "folds: 5, seeds: 1, epochs: 5000 would take roughly" in result.stdout  # the preset's
    assert not list(tmp_path.iterdir())


def test_without_matbench_the_two_commands_are_named(frame) -> None:
    code = (
        "import sys; sys.modules['matbench'] = None; sys.argv = ['run.py', '--task', 'matbench_jdft2d']\n"
        f"exec(compile(open({str(SCRIPTS / 'run.py')!r}).read(), 'run.py', 'exec'))"
    )
    result = processes.run(["-c", code])
    assert result.returncode == 1
    assert "pip install 'prism-plugin[matbench]' and pip install --no-deps matbench==0.6" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_trial_data_are_the_same_every_time(frame, tmp_path) -> None:
    result = run_script("make_trial_data.py", tmp_path / "trial.json.gz")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "trial.json.gz").read_bytes() == frame.read_bytes()
    again = run_script("make_trial_data.py", tmp_path / "trial.json.gz")
    assert (again.returncode, again.stderr.strip()) == (1, f"error: {tmp_path / 'trial.json.gz'} exists")
