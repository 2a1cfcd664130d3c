"""The folder of a run: whether a training may begin or go on in it, and what it has written there."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from prism_plugin.errors import PrismError, warn
from prism_plugin.files import read_json
from prism_plugin.schema import as_dict, resumable
from prism_plugin.settings import TrainingSettings
from prism_plugin.training.checkpoints import CHECKPOINTS, newest_checkpoint

__all__ = ["CRYSTALS", "SETTINGS", "changeable", "check_folder", "describe_settings"]

SETTINGS = "settings.json"
CRYSTALS = "crystals"  # hash of all structures and labels; runs of 0.1.0 have that of names and labels only


def describe_settings(settings: TrainingSettings) -> dict[str, Any]:
    """Return settings as JSON has them."""
    return json.loads(json.dumps(as_dict(settings), default=list))


def changeable(settings: TrainingSettings) -> set[str]:
    """Return the names of the settings with which a run may go on that differ from its own.

    A schedule is stretched over the epochs; without one, more epochs are only more.
    """
    names = set(resumable(TrainingSettings))
    return names if settings.has_schedule else names | {"epochs"}


def check_folder(folder: Path, now: Mapping[str, Any], resume: bool, free: Collection[str]) -> Path | None:
    """Find the checkpoint from which a run goes on.

    Args:
        folder: the run folder.
        now: settings and data of the training that would go on, as JSON has them.
        resume: whether it is to go on.
        free: names that may differ.

    Returns:
        Its newest whole checkpoint; None for a run that begins.

    Raises:
        ValueError: if the folder holds a run and ``resume`` is False, one that differs in more than ``free`` settings,
            one without a whole checkpoint, or results without a checkpoint.
    """
    if not resume and any((folder / CHECKPOINTS).glob("*.ckpt")):
        raise PrismError(f"{str(folder)!r} holds a run already; go on with it (--resume), or give another folder")
    found = newest_checkpoint(folder)
    if found is None:
        if foreign := _of_others(folder):
            raise PrismError(
                f"{str(folder)!r} holds {', '.join(foreign)}, and no checkpoint: a training would replace what is "
                "there; give another folder, or move it away"
            )
        if (folder / SETTINGS).exists() and resume:
            warn(f"the run in {str(folder)!r} has no checkpoint yet: it begins anew")
        return None
    # A run from before there was a setting has its default.
    try:
        kept = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrismError(
            f"{str(folder / SETTINGS)!r} is missing or damaged ({error}); start in another folder"
        ) from error
    before = {**describe_settings(TrainingSettings()), CRYSTALS: now[CRYSTALS], **kept}
    changed = sorted(key for key in now if before.get(key) != now[key] and key not in free)
    if changed:
        was = ", ".join(f"{key} = {before.get(key)!r}" for key in changed)
        why = (
            " (its rate follows a schedule of that length; go on from its model: --init)"
            if changed == ["epochs"]
            else ""
        )
        raise PrismError(
            f"the run in {str(folder)!r} was started with {was}; resume it with the same settings and data{why}"
        )
    last, saved = found
    callbacks, begun = saved["callbacks"], int(saved["epoch"]) + 1
    if now["epochs"] < begun:
        raise PrismError(f"the run in {str(folder)!r} has begun {begun} epochs, {now['epochs']} are asked for")
    places = {state["dirpath"] for key, state in callbacks.items() if key.startswith("ModelCheckpoint")}
    if places != {str(last.parent.resolve())}:
        raise PrismError(
            f"the run was started in {', '.join(map(repr, places))}; move the folder back there to resume it, or "
            "delete it"
        )
    return last


def _of_others(folder: Path) -> list[str]:
    """Name the files that a run which has no checkpoint yet cannot have written, and would replace."""
    found = [name for name in ("model", "predictions.csv", "summary.json") if (folder / name).exists()]
    settings = read_json(folder / SETTINGS)
    if (folder / SETTINGS).exists() and "target" not in (settings if isinstance(settings, dict) else {}):
        found.append(SETTINGS)  # of a folder of prism label, for example
    if (folder / "config.json").exists() and settings is None:
        found.append("config.json")
    return found
