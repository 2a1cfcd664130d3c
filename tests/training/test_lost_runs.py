"""No run is lost: damaged checkpoints, full disks, signals, two writers, other data."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from prism_plugin import cli
from prism_plugin.data import split_records
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.prediction import predict_files
from prism_plugin.training import PropertyTraining, TrainingSettings, evaluate, train
from prism_plugin.training import checkpoints as module
from prism_plugin.training.checkpoints import WholeCheckpoints, is_within_epoch, newest_checkpoint
from prism_plugin.training.fit import _LAUNCHERS
from tests import processes
from tests.conftest import alloy_file, small_model

SIZES = {"dim": 8, "num_layers": 1, "num_rbf": 6, "cutoff": 3.5, "cell_cutoff": 6.0}
PARTS = split_records(emt_alloys(24))


def settings(epochs: int, **more: Any) -> TrainingSettings:
    return TrainingSettings(target="e", model=SIZES, epochs=epochs, batch_size=8, device="cpu", **more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, and one of three; nobody may change them."""
    folder = tmp_path_factory.mktemp("runs")
    for epochs in (2, 3):
        train(settings(epochs), PARTS, folder / str(epochs), progress=False)
    return folder


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run of two epochs, where it lay."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "2", tmp_path / "kept")
    place = runs / "copy"
    shutil.rmtree(place, ignore_errors=True)
    train(settings(2), PARTS, place, progress=False)
    return place


@pytest.mark.parametrize("harm", ["cut", "emptied", "flipped", "gone"])
def test_a_run_goes_on_from_the_newest_whole_checkpoint(harm: str, run: Path, runs: Path) -> None:
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    harmed = {"cut": content[: len(content) // 2], "emptied": b"", "flipped": content}
    if harm == "gone":
        last.unlink()
    else:
        last.write_bytes(harmed[harm])
    with pytest.warns(
        UserWarning, match=r"last\.ckpt is missing or damaged.*goes on after epoch 0, from previous\.ckpt"
    ):
        train(settings(3), PARTS, run, resume=True, progress=False)
    for name, value in last_weights(runs / "3").items():
        assert torch.equal(value, last_weights(run)[name]), name


def test_a_run_without_its_last_checkpoint_is_still_a_run(run: Path) -> None:
    (run / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ValueError, match="holds a run already"):
        train(settings(3), PARTS, run, progress=False)
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no other is whole"):
        train(settings(3), PARTS, run, resume=True, progress=False)


@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize("function", ["replace", "link", "fsync"])
def test_wherever_writing_ends_a_whole_checkpoint_is_left(
    function: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, or the process killed, at each call that changes a file."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    io = WholeCheckpoints()

    def checkpoint(epoch: int) -> dict[str, Any]:
        return {"callbacks": {}, "state_dict": {}, "epoch": epoch}

    for epoch in range(2):
        io.save_checkpoint(checkpoint(epoch), path)
    real, calls = getattr(os, function), []

    def failing(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) == call + 1:
            raise OSError(28, "No space left on device")
        return real(*arguments, **named)

    monkeypatch.setattr(os, function, failing)
    try:
        io.save_checkpoint(checkpoint(2), path)
        ended = True
    except OSError:
        ended = False
    monkeypatch.undo()
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["epoch"] in ((2,) if ended else (1, 2))
    assert found[0] == path
    io.save_checkpoint(checkpoint(3), path)
    assert newest_checkpoint(tmp_path)[1]["epoch"] == 3
    assert sorted(one.name for one in path.parent.iterdir()) == ["digests.json", "last.ckpt", "previous.ckpt"]


def test_a_half_written_checkpoint_is_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    whole = {"callbacks": {}, "state_dict": {}, "epoch": 0}
    WholeCheckpoints().save_checkpoint(whole, path)

    def half(content: Any, place: Path) -> None:
        Path(place).write_bytes(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.torch, "save", half)
    with pytest.raises(OSError, match="No space"):
        WholeCheckpoints().save_checkpoint({**whole, "epoch": 1}, path)
    assert newest_checkpoint(tmp_path)[1]["epoch"] == 0


SLURM = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "long", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("scheduler", [{}, {**SLURM, "SLURM_NODEID": "0"}], ids=["alone", "slurm"])
def test_a_scheduler_s_signal_ends_a_run_in_order(name: str, scheduler: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another run")  # as Lightning leaves it in a working directory
    options = ["--set", "dim=8", "--set", "num_layers=1", "--batch-size", "4", "--epochs", "100000"]
    options += ["--optimizer", "adamw-schedulefree"]  # whose epochs may change beside --resume
    data = alloy_file(tmp_path, 40)
    command = ["-m", "prism_plugin.cli", "train", "--data", data, "--target", "e", "--out", out, *options]
    process = processes.start(command, tmp_path, **scheduler)
    until = time.monotonic() + 120
    while not (out / "checkpoints" / "previous.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.05)
        assert process.returncode is None, process.stderr
    os.kill(process.pid, getattr(signal, name))
    assert process.wait(60).returncode == 128 + getattr(signal, name), process.stderr
    assert f"prism: ended by {name}; go on with: prism train --resume {out}" in process.stderr
    assert "Traceback" not in process.stderr
    assert not list(out.glob("hpc*"))
    saved = newest_checkpoint(out)
    again = ["-m", "prism_plugin.cli", "train", "--resume", out, "--epochs", saved[1]["epoch"] + 2]
    result = processes.run(again, tmp_path, **scheduler)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("name", "how"), [("SIGINT", "interrupted"), ("SIGUSR1", "ended by SIGUSR1")])
def test_a_signal_loses_no_step(
    name: str, how: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in the middle of the second step of the third epoch."""
    step = PropertyTraining.training_step

    def signalled(self: PropertyTraining, batch: Any, batch_idx: int) -> torch.Tensor:
        if (self.current_epoch, batch_idx) == (2, 1):
            os.kill(os.getpid(), getattr(signal, name))
        return step(self, batch, batch_idx)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)
    with monkeypatch.context() as patch:
        patch.setattr(PropertyTraining, "training_step", signalled)
        with pytest.raises(KeyboardInterrupt, match=f"{how}; go on with: prism train --resume") as ended:
            train(settings(3), PARTS, tmp_path / "run", progress=False)
    assert ended.value.status == 128 + getattr(signal, name)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)) == before
    saved = newest_checkpoint(tmp_path / "run")[1]
    assert is_within_epoch(saved)
    assert saved["global_step"] == 8  # of epochs of three
    train(settings(3), PARTS, tmp_path / "run", resume=True, progress=False)
    for key, value in last_weights(runs / "3").items():
        assert torch.equal(value, last_weights(tmp_path / "run")[key]), key


def test_a_run_goes_on_with_its_own_crystals_only(run: Path) -> None:
    moved = {part: list(records) for part, records in PARTS.items()}
    atoms = moved["train"][0].atoms.copy()
    atoms.positions[0] += 0.1
    record = moved["train"][0]
    moved["train"][0] = type(record)(atoms, record.target, record.name, record.split)
    with pytest.raises(ValueError, match="was started with crystals = "):
        train(settings(3), moved, run, resume=True, progress=False)


def test_a_training_without_a_part_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the part 'val' is missing or empty"):
        train(settings(1), {"train": PARTS["train"]}, tmp_path / "run", progress=False)


def test_two_writers_of_one_place_are_one_too_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = [FileLock(tmp_path / f".{name}.lock") for name in ("run", "t.csv")]
    for lock in held:
        lock.acquire()
    with pytest.raises(ValueError, match=r"another process writes .*run"):
        train(settings(1), PARTS, tmp_path / "run", progress=False)
    small_model(target="e").save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"another process writes .*t\.csv"):
        predict_files([tmp_path / "model"], tmp_path / "model", tmp_path / "t.csv", progress=False)
    data = alloy_file(tmp_path, 24)
    assert cli.main(["train", "--data", str(data), "--target", "e", "--out", str(tmp_path / "run")]) == 2
    assert "another process writes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


FORK = """
import os, sys, threading, time
import torch
from ase.build import bulk
from prism_plugin import PRISMCalculator
torch.set_num_threads(2)  # OpenMP has a thread that a child has not
calc, big, stop = PRISMCalculator(), bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat(3), False
def busy():
    while not stop:
        calc.predict([big])
thread = threading.Thread(target=busy)
thread.start()
time.sleep(1)
pid = os.fork()
if not pid:
    calc.predict([bulk("Cu")])
    os._exit(0)
until, done = time.monotonic() + 60, 0
while not done and time.monotonic() < until:
    done, _ = os.waitpid(pid, os.WNOHANG)
    time.sleep(0.05)
stop = True
thread.join()
sys.exit(0 if done else 1)
"""


def test_a_forked_child_answers() -> None:
    result = processes.run(["-c", FORK])
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_without_checkpoints_is_kept(run: Path, resume: bool) -> None:
    shutil.rmtree(run / "checkpoints")
    before = (run / "model" / "state.pt").read_bytes()
    with pytest.raises(ValueError, match=r"holds model, predictions\.csv, summary\.json, and no checkpoint"):
        train(settings(2, seed=5), PARTS, run, resume=resume, progress=False)
    assert (run / "model" / "state.pt").read_bytes() == before


def test_files_of_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds config\.json, and no checkpoint"):
        train(settings(1), PARTS, tmp_path, progress=False)
    (tmp_path / "settings.json").write_text('{"teacher": "TensorNet"}')  # of prism label
    with pytest.raises(ValueError, match=r"holds settings\.json, and no checkpoint"):
        train(settings(1), PARTS, tmp_path, progress=False)
    (tmp_path / "settings.json").unlink()
    (tmp_path / "config.json").unlink()
    mine, table = tmp_path / "parity.png", tmp_path / "predictions.csv"
    for name, text in ((mine, "mine"), (table, "mine"), (table, "split,name,atoms\n")):
        name.write_text(text)
        if text != "mine":  # it could be a table of prism evaluate, if it were not one of prism predict
            (tmp_path / "predictions.csv.model.json").write_text("{}")
        with pytest.raises(ValueError, match=rf"has another {name.name}, which would be replaced; give another folder"):
            evaluate(small_model(), PARTS, tmp_path, progress=False)
        assert name.read_text() == text
        name.unlink()
    (tmp_path / "predictions.csv.model.json").unlink()
    for _ in range(2):  # its own are replaced
        evaluate(small_model(), PARTS, tmp_path / "new", progress=False)


def test_nodes_need_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="nodes = 2 needs a launcher"):
        train(settings(1, nodes=2), PARTS, tmp_path / "run", progress=False)
