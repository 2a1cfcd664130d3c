"""Other loggers beside the log of the run folder: the same numbers, and a message where one is not installed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prism_plugin import cli
from tests.conftest import alloy_file

SMALL = ["--set", "dim=8", "--set", "num_layers=1", "--set", "num_rbf=6", "--set", "cell_cutoff=6.0"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_has_what_the_run_folder_has(tmp_path: Path) -> None:
    data = alloy_file(tmp_path, 40)
    command = ["train", "--data", str(data), "--target", "e", "--epochs", "2", *SMALL, "--logger", "tensorboard"]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 0
    (log,) = (tmp_path / "run" / "log").glob("version_*/metrics.csv")
    expected = [float(row["val_mae"]) for row in csv.DictReader(log.read_text().splitlines()) if row["val_mae"]]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("val_mae")] == pytest.approx(expected, rel=1e-6)
    assert len(expected) == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = alloy_file(tmp_path, 40)
    command = ["train", "--data", str(data), "--target", "e", "--logger", name, "--out", str(tmp_path / "run")]
    assert cli.main(command) == 2
    assert f"the logger '{name}' is not installed: pip install {name}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
