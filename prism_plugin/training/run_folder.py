"""The folder of a run: whether a training may begin or go on in it, and what it has written there."""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from prism_plugin.errors import PrismError
from prism_plugin.schema import as_dict, resumable
from prism_plugin.settings import TrainingSettings

__all__ = ["CHECKPOINTS", "LAST", "SETTINGS", "changeable", "check_folder", "describe_settings", "read_checkpoint"]

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
SETTINGS = "settings.json"


def describe_settings(settings: TrainingSettings) -> dict[str, Any]:
    """Return settings as JSON has them."""
    return json.loads(json.dumps(as_dict(settings), default=list))


def changeable(settings: TrainingSettings) -> set[str]:
    """Return the names of the settings with which a run may go on that differ from its own.

    A schedule is stretched over the epochs; without one, more epochs are only more.
    """
    names = set(resumable(TrainingSettings))
    return names if settings.has_schedule else names | {"epochs"}


def check_folder(folder: Path, now: Mapping[str, Any], resume: bool, free: Collection[str]) -> None:
    """Raise ValueError unless the folder is free, or holds a run that differs in ``free`` settings only.

    Args:
        folder: the run folder.
        now: settings and data of the training that would go on, as JSON has them.
        resume: whether it is to go on.
        free: names that may differ.
    """
    last = folder / CHECKPOINTS / LAST
    if not last.exists():
        return
    if not resume:
        raise PrismError(f"{str(folder)!r} holds a run already; go on with it (--resume), or give another folder")
    # A run from before there was a setting has its default.
    try:
        kept = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrismError(
            f"{str(folder / SETTINGS)!r} is missing or damaged ({error}); start in another folder"
        ) from error
    before = {**describe_settings(TrainingSettings()), **kept}
    changed = sorted(key for key in now if before.get(key) != now[key] and key not in free)
    if changed:
        was = ", ".join(f"{key} = {before.get(key)!r}" for key in changed)
        raise PrismError(
            f"the run in {str(folder)!r} was started with {was}; resume it with the same settings and data"
        )
    saved = read_checkpoint(last)
    callbacks, done = saved["callbacks"], int(saved["epoch"]) + 1
    if now["epochs"] < done:
        raise PrismError(f"the run in {str(folder)!r} has {done} epochs already, {now['epochs']} are asked for")
    places = {state["dirpath"] for key, state in callbacks.items() if key.startswith("ModelCheckpoint")}
    if places != {str(last.parent.resolve())}:
        raise PrismError(
            f"the run was started in {', '.join(map(repr, places))}; move the folder back there to resume it, or "
            "delete it"
        )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; ValueError if it is damaged."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved["callbacks"], saved["state_dict"], int(saved["epoch"])
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise PrismError(
            f"the checkpoint {str(path)!r} is damaged ({error}); start again in another folder, or delete this one"
        ) from error
    return saved
