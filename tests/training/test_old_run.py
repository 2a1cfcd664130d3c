"""A run that was begun by version 0.1.0 before its rooms were moved goes on, to the numbers that it would have had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from prism_plugin.data import read_records, split_records
from prism_plugin.training import TrainingSettings, train

OLD = Path(__file__).parent / "run_of_0_1"


def test_a_run_of_the_first_version_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(OLD, run)
    for path in (run / "checkpoints").iterdir():  # a checkpoint knows where it was written
        saved = torch.load(path, weights_only=True)
        for state in saved["callbacks"].values():
            for name, value in state.items():
                if isinstance(value, str):
                    state[name] = value.replace("/runs/old", str(run))
            if "best_k_models" in state:
                best = {name.replace("/runs/old", str(run)): score for name, score in state["best_k_models"].items()}
                state["best_k_models"] = best
        torch.save(saved, path)
    kept = json.loads((run / "settings.json").read_text())
    del kept["data"]
    settings = TrainingSettings(**{**kept, "epochs": 4})
    parts = split_records(read_records(run / "alloys.jsonl", "e"))
    summary = train(settings, parts, run, resume=True, progress=False)
    right = json.loads((run / "after_4_epochs.json").read_text())
    assert summary["best_epoch"] == right["best_epoch"]
    for part, scores in right["scores"].items():
        assert summary["scores"][part] == pytest.approx(scores, rel=1e-6)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == right["epoch"]
    # A bias before a norm, or one that is added to all keys of an attention, changes nothing: its gradient is rounding,
    # which Adam enlarges; and the norm's mean follows it.
    free = ("key.bias", "gate.bias", "message.bias", "running_mean")
    for name, total in right["weights"].items():
        if not name.endswith(free):
            found = float(last["state_dict"][name].double().abs().sum())
            assert found == pytest.approx(total, rel=2e-6, abs=1e-12), name
