"""A run of prism label: the same bytes however it is run, doors that say what is wrong, a training that reads it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from ase.io import write
from filelock import FileLock

from prism_plugin import cli
from prism_plugin.data import read_records
from prism_plugin.data.emt_alloys import emt_alloys
from prism_plugin.data.shards import read_frames, read_shards
from prism_plugin.distillation.labelling import label_frames
from prism_plugin.distillation.settings import LabelSettings
from prism_plugin.distillation.teacher import Teacher
from tests import processes
from tests.distillation.conftest import EMT

FRAMES = 60


@pytest.fixture(scope="module")
def alloys(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("alloys") / "alloys.jsonl"
    rows = [
        {
            "lattice": record.atoms.cell.array.tolist(),
            "species": list(record.atoms.symbols),
            "frac_coords": record.atoms.get_scaled_positions().tolist(),
        }
        for record in emt_alloys(20)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def settings(alloys) -> dict:
    return {"teacher": EMT, "structures": alloys, "shard_frames": 20, "seed": 5}


@pytest.fixture(scope="module")
def labelled(settings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("labels") / "whole"
    label_frames(LabelSettings(**settings, frames=FRAMES), out, progress=False)
    return out


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.npz"))}


def test_two_processes_write_the_same_bytes_as_one(settings, labelled, tmp_path) -> None:
    label_frames(LabelSettings(**settings, frames=FRAMES, processes=2), tmp_path, progress=False)
    assert len(shards(labelled)) == 3
    assert shards(tmp_path) == shards(labelled)


def test_a_killed_run_goes_on_to_the_same_bytes(settings, labelled, tmp_path) -> None:
    given = {**settings, "structures": str(settings["structures"]), "frames": FRAMES}
    code = (
        "from prism_plugin.distillation.labelling import label_frames\n"
        "from prism_plugin.distillation.settings import LabelSettings\n"
        f"label_frames(LabelSettings(**{given!r}), {str(tmp_path)!r}, progress=False)"
    )
    run = processes.start(["-c", code])
    until = time.monotonic() + 120
    while not shards(tmp_path) and run.returncode is None and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    (tmp_path / ".shard-000001.npz.left").mkdir()  # as a kill while writing leaves it
    assert 1 <= len(shards(tmp_path)) < 3
    summary = label_frames(LabelSettings(**settings, frames=FRAMES), tmp_path, progress=False)
    assert 0 < summary.new < summary.kept
    assert shards(tmp_path) == shards(labelled)
    assert not list(tmp_path.glob(".shard-*"))


def test_a_longer_run_keeps_the_frames_that_are_there(settings, labelled, tmp_path) -> None:
    label_frames(LabelSettings(**settings, frames=25), tmp_path, progress=False)
    before = shards(tmp_path)
    assert before["shard-000000.npz"] == shards(labelled)["shard-000000.npz"]
    label_frames(LabelSettings(**settings, frames=FRAMES), tmp_path, progress=False)
    assert shards(tmp_path) == shards(labelled)


def test_labels_are_the_teachers(labelled, emt) -> None:
    frames = [frame for path in sorted(labelled.glob("*.npz")) for frame in read_frames(path)]
    for frame in frames[::7]:
        energy, forces, stress = emt.label(frame.atoms)
        assert energy == pytest.approx(frame.labels.energy, abs=1e-9)
        np.testing.assert_allclose(forces, frame.labels.forces, atol=1e-9)
        np.testing.assert_allclose(stress, frame.labels.stress, atol=1e-9)


def test_frames_and_refusals_are_counted(labelled) -> None:
    summary = json.loads((labelled / "summary.json").read_text())
    assert summary["asked"] == FRAMES
    assert summary["kept"] + sum(summary["refused"].values()) == FRAMES
    assert summary["kept"] == len(read_shards(labelled))


def test_a_training_reads_the_folder(labelled) -> None:
    records = read_records(labelled, "pes")
    assert all(record.forces is not None and record.stress is not None for record in records)
    assert len({record.name for record in records}) == len(records)
    parents: dict[str, set] = {}
    for record in records:
        parents.setdefault(record.name.rpartition("#")[0], set()).add(record.split)
    assert all(len(splits) == 1 for splits in parents.values())


def test_prism_train_learns_from_the_folder(labelled, tmp_path) -> None:
    small = [part for value in ("dim=8", "num_layers=1", "num_rbf=6", "cutoff=3.5") for part in ("--set", value)]
    where = ["--data", str(labelled), "--target", "pes", "--out", str(tmp_path / "run")]
    assert cli.main(["train", *where, "--epochs", "1", *small]) == 0


def test_a_finished_run_says_so(settings, labelled, capsys) -> None:
    command = ["label", "--teacher", EMT, "--structures", str(settings["structures"]), "--seed", "5"]
    assert cli.main([*command, "--shard-frames", "20", "--frames", str(FRAMES), "--out", str(labelled)]) == 0
    printed = capsys.readouterr().out
    assert "all frames were there already" in printed
    assert re.search(r"\d+ of 60 frames are labelled, \d+ refused", printed)
    assert "prism train --data" in printed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 6}, "other settings \\(seed: 5 there, 6 given\\)"),
        ({"structures": None}, "parents: .* there, null given"),
        ({"arguments": {"asap_cutoff": True}}, "teacher: "),
    ],
)
def test_other_settings_are_refused(settings, labelled, changed, message) -> None:
    before = shards(labelled)
    with pytest.raises(ValueError, match=message):
        label_frames(LabelSettings(**{**settings, **changed}, frames=FRAMES), labelled, progress=False)
    assert shards(labelled) == before


def test_two_writers_are_refused(settings, tmp_path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="another process labels into"):
        label_frames(LabelSettings(**settings, frames=5), tmp_path, progress=False)


def test_a_refused_teacher_labels_nothing(wrong, tmp_path) -> None:
    settings = LabelSettings("wrong:Scaled", 10, teacher_path=wrong)
    with pytest.raises(ValueError, match="the teacher is refused"):
        label_frames(settings, tmp_path, progress=False)
    assert not shards(tmp_path)


def test_a_teacher_that_fails_for_all_ends_the_run(wrong, tmp_path, monkeypatch) -> None:
    path = tmp_path / "large.extxyz"
    write(path, emt_alloys(1)[0].atoms * (3, 1, 1))
    monkeypatch.setattr("prism_plugin.distillation.frames._PROTOTYPE_EVERY", 1000)
    settings = LabelSettings("wrong:Weak", 10, path, teacher_path=wrong, skip_examination=True)
    with pytest.raises(ValueError, match=r"not one frame of shard 0 could be kept \(.*the teacher fails"):
        label_frames(settings, tmp_path / "out", progress=False)


def test_an_interrupted_run_says_how_to_go_on(settings, tmp_path, monkeypatch, capsys) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prism_plugin.distillation.labelling.wait", interrupted)
    command = ["label", "--teacher", EMT, "--frames", "10", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "nowhere", "--frames", "5"], "neither a folder nor an import path"),
        (["--teacher", EMT, "--frames", "0"], "frames must be at least 1, got 0"),
        (["--teacher", EMT, "--frames", "5", "--shard-frames", "7"], "must be a multiple of 5"),
        (["--teacher", EMT, "--frames", "5", "--seed", "-1"], "seed must be at least 0"),
        (["--teacher", EMT, "--frames", "5", "--structures", "none.jsonl"], "no structures 'none.jsonl'"),
        (["--teacher", EMT, "--frames", "5", "--teacher-option", "a={1}"], "must be plain values"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys) -> None:
    assert cli.main(["label", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_folders_that_hold_no_frames_are_messages(labelled, tmp_path) -> None:
    with pytest.raises(ValueError, match="no folder of prism label"):
        read_shards(tmp_path)
    (tmp_path / "settings.json").write_bytes((labelled / "settings.json").read_bytes())
    with pytest.raises(ValueError, match="no labelled frame yet"):
        read_shards(tmp_path)
    (tmp_path / "shard-000000.npz").write_bytes(shards(labelled)["shard-000000.npz"][:1000])
    with pytest.raises(ValueError, match="damaged"):
        read_shards(tmp_path)


def test_the_teachers_process_ends_with_it() -> None:
    teacher = Teacher(EMT)
    process = teacher._process
    teacher.close()
    assert process.poll() is not None
