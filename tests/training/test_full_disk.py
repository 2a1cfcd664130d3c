"""A disk of its own that is full: what happened is said, nothing is lost, and the run goes on when there is room."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prism_plugin import cli
from tests.conftest import alloy_file

SIZES = {"dim": 32, "num_layers": 2, "num_rbf": 6, "cutoff": 3.5, "cell_cutoff": 6.0}


def on_a_disk(size: str, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script where ``$DISK`` is a file system in memory of its own, beside ``$PRISM`` and ``$FOLDER``."""
    head = f'mount -t tmpfs -o size={size} tmpfs "$DISK" || exit 99\n'
    disk = folder / "disk"
    disk.mkdir()
    environment = {
        "PATH": "/usr/sbin:/sbin:/usr/bin:/bin",
        "DISK": str(disk),
        "FOLDER": str(folder),
        "PRISM": f"{sys.executable} -m prism_plugin.cli",
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
    }
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", head + script]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if found.returncode == 99 or "unshare failed" in found.stderr:
        pytest.skip(f"no file system can be mounted here: {found.stderr.strip()[-100:]}")
    return found


def check_it_was_said_and_went_on(done: subprocess.CompletedProcess[str]) -> None:
    assert "first 2" in done.stdout, done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "second 0" in done.stdout, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def _unshare() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    data = alloy_file(tmp_path, 24)
    sets = " ".join(f"--set {name}={value}" for name, value in SIZES.items())
    options = f"--data {data} --target e --epochs 3 --batch-size 8 --device cpu {sets}"
    assert cli.main(["train", *options.split(), "--out", str(tmp_path / "whole")]) == 0
    done = on_a_disk(
        "48m",
        f"""
        head -c 49600000 /dev/zero > "$DISK/others"
        $PRISM train {options} --out "$DISK/run"
        echo "first $?"
        rm "$DISK/others"
        ls "$DISK/run" "$DISK/run/checkpoints"
        if [ -e "$DISK/run/settings.json" ]; then $PRISM train --resume "$DISK/run"; else
        $PRISM train {options} --out "$DISK/run"; fi
        echo "second $?"
        cp "$DISK/run/predictions.csv" "$FOLDER/predictions.csv"
        """,
        tmp_path,
    )
    check_it_was_said_and_went_on(done)
    assert (tmp_path / "predictions.csv").read_bytes() == (tmp_path / "whole" / "predictions.csv").read_bytes()


def test_a_table_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    data = alloy_file(tmp_path, 600)
    done = on_a_disk(
        "1m",
        f"""
        head -c 1020000 /dev/zero > "$DISK/others"
        $PRISM predict {data} --out "$DISK/t.csv" --batch-size 16
        echo "first $?"
        rm "$DISK/others"
        $PRISM predict {data} --out "$DISK/t.csv" --batch-size 16
        echo "second $?"
        cp "$DISK/t.csv" "$FOLDER/t.csv"
        """,
        tmp_path,
    )
    check_it_was_said_and_went_on(done)
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"].rpartition("#")[2] for row in rows] == [str(number) for number in range(1, 601)]
    assert not any(row["error"] for row in rows)
